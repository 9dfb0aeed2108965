// In the thread of sound: cuts what comes in into chunks, from a frame of the context's clock on.
// A file is played from here, so that no late start moves it against its chunks.

import { border } from "./wire.js";

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.begin = Infinity;
    this.port.onmessage = ({ data }) => {
      this.begin = Math.max(data.begin, currentFrame);
      this.size = data.size;
      this.file = data.file; // absent where there is a microphone
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

  process([input], [output]) {
    for (let n = Math.max(0, this.begin - currentFrame); n < 128; n += 1) {
      const sample = this.#heard(n, input[0]);
      if (this.file) output[0][n] = sample;
      this.chunk[this.place] = sample;
      this.place += 1;
      if (this.place < this.chunk.length) continue;
      this.port.postMessage({ chunk: this.chunk });
      this.#next();
    }
    return true;
  }

  /** Silence where nothing plays. */
  #heard(n, microphone) {
    const sound = this.file ? this.file[currentFrame + n - this.begin] : microphone?.[n];
    return sound ?? 0;
  }
}

registerProcessor("recorder", Recorder);
