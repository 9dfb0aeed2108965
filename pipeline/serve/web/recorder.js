// In the thread of sound: cuts what comes in into chunks, from a frame of the context's clock on.

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.begin = Infinity;
    this.place = 0;
    this.port.onmessage = ({ data }) => {
      this.begin = Math.max(data.begin, currentFrame);
      this.chunk = new Float32Array(data.size);
      this.port.postMessage({ begin: this.begin });
    };
  }

  process([input]) {
    const sound = input[0]; // absent where nothing plays: silence
    for (let n = Math.max(0, this.begin - currentFrame); n < 128; n += 1) {
      this.chunk[this.place] = sound ? sound[n] : 0;
      this.place += 1;
      if (this.place < this.chunk.length) continue;
      this.port.postMessage({ chunk: this.chunk.slice() });
      this.place = 0;
    }
    return true;
  }
}

registerProcessor("recorder", Recorder);
