// A live session with the listener of the page's own folder: what session.js is with a server.
//
// Nothing leaves the browser. A worker hears one chunk after the other; where it needs longer for a
// chunk than the chunk lasts, the session fails rather than fall ever farther behind.

import { noise } from "./noise.js";

const MOST_WAITING = 10; // chunks that are said and not heard yet

export class Session {
  /**
   * @param post is not asked: there is no server.
   * @param wishes {seed, text, lead} of the session, each may be absent; and `noise`, (number, dim)
   *     to Float32Array, in place of the page's own.
   * @param on {begun(info, waitS), frames(sample, values), stats(stats), state(word, message)}, and
   *     perhaps motion(sample, values), which is not scaled by the liveliness.
   */
  constructor(post, wishes, on) {
    this.wishes = { seed: 0, text: null, noise, ...wishes };
    this.on = on;
    this.info = null;
    this.early = null; // what it is told before it is there
    this.liveliness = 1;
    this.next = 0; // the first chunk that was not answered
    this.wentOn = 0;
    this.over = false;
    this.endsAfter = Infinity; // samples
    this.sound = new Float32Array(0); // that was said and not heard yet
    this.heard = 0; // samples
    this.busy = true; // until the worker is ready
  }

  async begin() {
    this.on.state("connecting", "");
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => this.#hear(data);
    this.worker.onerror = () => this.#finish("failed", "The listener's program did not load.");
    const { lead, text } = this.wishes;
    // listener.json and step.onnx lie beside the page.
    this.worker.postMessage({ folder: document.baseURI, lead, text });
  }

  /** A chunk of sound: int16 samples. Chunks come in order, from 0 on. */
  say(number, samples) {
    const sound = new Float32Array(this.sound.length + samples.length);
    sound.set(this.sound);
    for (let n = 0; n < samples.length; n += 1) sound[this.sound.length + n] = samples[n] / 32768;
    this.sound = sound;
    if (sound.length > MOST_WAITING * this.info.chunk_samples) {
      this.#finish("failed", "This device is too slow for the listener.");
    }
    this.#step();
  }

  picture() {} // it sees nothing

  /** From the next chunk on it is told this, if it was exported with it. */
  tell(text) {
    if (this.over) return;
    if (!this.info) {
      this.early = text;
      return;
    }
    const { texts } = this.info;
    const known = !text || texts.includes(text);
    if (known) this.wishes.text = text || null;
    this.on.state("listening", known ? "" : `It can be told: ${texts.join(", ")}.`);
  }

  liven(value) {
    this.liveliness = value;
  }

  ack() {}

  goOn() {}

  /** Ends after the chunk so many. */
  endAfter(chunks) {
    this.endsAfter = chunks * this.info.chunk_samples;
    this.#step();
  }

  stop() {
    this.#finish("ended", "");
  }

  #hear({ error, facts, next, frame, motion, arkit, ms }) {
    if (this.over) return;
    if (error) return this.#finish("failed", error);
    this.needs = next;
    this.busy = false;
    if (facts) {
      this.facts = facts;
      this.info = this.#info(facts);
      this.on.begun(this.info, 0);
      this.on.state("listening", "");
      if (this.early !== null) this.tell(this.early);
    } else {
      const sample = Math.round((frame * this.info.rate) / this.info.fps);
      if (this.heard) this.next += 1;
      if (arkit.length) this.on.frames(sample, arkit);
      if (motion.length) this.on.motion?.(sample, motion);
      this.on.stats({ late: 0, dropped: 0, sessions: 1, answer_s: ms / 1000 });
    }
    this.#step();
  }

  /** The next step, once its chunk was said. */
  #step() {
    if (this.busy || this.over) return;
    const { number, waits, span } = this.needs;
    const length = waits ? 0 : span[1] - span[0];
    if (this.heard + length > this.endsAfter) return this.#finish("ended", "");
    if (this.sound.length < length) return;
    const sound = waits ? null : this.sound.slice(0, length);
    this.sound = this.sound.slice(length);
    this.heard += length;
    this.busy = true;
    const { seed, text } = this.wishes;
    this.worker.postMessage({
      sound,
      noise: this.wishes.noise(seed, Math.max(number, 0), this.facts.latent_dim),
      text,
      liveliness: this.liveliness,
    });
  }

  #info({ rate, frames, layout, leads, lead, policy, simulated, texts }) {
    const { fps } = layout;
    const { ahead } = leads[this.wishes.lead ?? lead];
    return {
      rate,
      fps,
      layout,
      policy,
      simulated,
      seed: this.wishes.seed,
      chunk_samples: Math.round((frames * rate) / fps),
      // A latent settles frames from half of it before it begins.
      delay_s: ((ahead + 1) * frames + Math.floor(frames / 2)) / fps,
      recorded: false,
      texts: Object.keys(texts), // all that it can be told
    };
  }

  #finish(word, message) {
    if (this.over) return;
    this.over = true;
    this.worker?.terminate();
    this.on.state(word, message);
  }
}
