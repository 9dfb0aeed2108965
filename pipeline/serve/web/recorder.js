// In the thread of sound: cuts what comes in into chunks, from a frame of the context's clock on.

import { border } from "./wire.js";

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.begin = Infinity;
    this.port.onmessage = ({ data }) => {
      this.begin = Math.max(data.begin, currentFrame);
      this.size = data.size;
      this.number = 0;
      this.#next();
      this.port.postMessage({ begin: this.begin });
    };
  }

  #next() {
    const [first, end] = [0, 1].map((n) => border(this.number + n, this.size));
    this.chunk = new Float32Array(end - first);
    this.number += 1;
    this.place = 0;
  }

  process([input]) {
    const sound = input[0]; // absent where nothing plays: silence
    for (let n = Math.max(0, this.begin - currentFrame); n < 128; n += 1) {
      this.chunk[this.place] = sound ? sound[n] : 0;
      this.place += 1;
      if (this.place < this.chunk.length) continue;
      this.port.postMessage({ chunk: this.chunk });
      this.#next();
    }
    return true;
  }
}

registerProcessor("recorder", Recorder);
