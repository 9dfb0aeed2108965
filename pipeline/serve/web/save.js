// What was said and shown, to the user's disk.

import { CHANNELS } from "./arkit.js";
import { border } from "./wire.js";

const KEPT_S = 30 * 60; // older is let go

export class Record {
  /** @param info of the session, see docs/serve.md. */
  constructor(info) {
    this.info = info;
    this.sound = []; // chunks of int16
    this.first = 0; // chunk
    this.frames = []; // [sample, values]
  }

  say(samples) {
    this.sound.push(samples);
    if (this.sound.length * this.info.chunk_samples > KEPT_S * this.info.rate) {
      this.sound.shift();
      this.first += 1;
    }
  }

  show(sample, values) {
    for (let n = 0; n * CHANNELS.length < values.length; n += 1) {
      const frame = values.subarray(n * CHANNELS.length, (n + 1) * CHANNELS.length);
      this.frames.push([sample + Math.round((n * this.info.rate) / this.info.fps), frame]);
    }
    const oldest = border(this.first, this.info.chunk_samples);
    while (this.frames.length && this.frames[0][0] < oldest) this.frames.shift();
  }

  /** Two files: the voice as WAV, the motion as JSON; both begin at the same sample. */
  save() {
    const { policy, seed, rate, fps, simulated } = this.info;
    const first = border(this.first, this.info.chunk_samples);
    // A session that went on elsewhere may have been told some frames twice.
    const frames = [...new Map(this.frames)].sort(([a], [b]) => a - b);
    const motion = {
      policy, seed, simulated, rate, fps,
      channels: CHANNELS,
      samples: frames.map(([sample]) => sample - first),
      frames: frames.map(([, values]) => Array.from(values, (x) => Number(x.toFixed(5)))),
    };
    const name = `listener-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}`;
    download(`${name}.json`, [JSON.stringify(motion)], "application/json");
    const samples = this.sound.reduce((sum, chunk) => sum + chunk.length, 0);
    download(`${name}.wav`, [header(samples, rate), ...this.sound], "audio/wav");
  }
}

/** Of a WAV file: 16 bits, mono (RIFF, WAVE_FORMAT_PCM). */
function header(samples, rate) {
  const view = new DataView(new ArrayBuffer(44));
  const word = (place, text) => [...text].forEach((c, n) => view.setUint8(place + n, c.charCodeAt(0)));
  word(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples, true);
  word(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  word(36, "data");
  view.setUint32(40, 2 * samples, true);
  return view;
}

function download(name, parts, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(parts, { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
