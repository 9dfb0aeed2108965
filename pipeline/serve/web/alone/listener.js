// A listener in ONNX Runtime: `LiveFlow` of policies/flow/live.py, for one session.

import { Voice, WIDTH } from "./bands.js";

const ARRAYS = { float32: Float32Array, bool: Uint8Array, int64: BigInt64Array };
const NEXT = "next."; // before the name of a tensor of the state, where it comes out
const MODALITIES = ["text", "partner_audio", "partner_motion", "actor_audio"];

export class Listener {
  /**
   * @param ort onnxruntime-web.
   * @param facts listener.json.
   * @param step URL of step.onnx.
   */
  static async load(ort, facts, step) {
    const session = await ort.InferenceSession.create(step, {
      executionProviders: ["wasm"],
      graphOptimizationLevel: "all",
    });
    return new Listener(ort, facts, session);
  }

  constructor(ort, facts, session) {
    this.ort = ort;
    this.facts = facts;
    this.session = session;
    this.number = 0;
  }

  /** Begins anew, with frames of a latent that are heard before it is made, and what it is told. */
  start(lead, text) {
    const { number, ahead, begins } = this.facts.leads[lead];
    this.number = number;
    this.ahead = ahead;
    this.voice = new Voice(this.facts.rate, this.facts.layout.fps);
    this.state = {};
    for (const tensor of this.facts.state) this.#set(tensor, begins[tensor.name]);
    this.tell(text);
  }

  /** Numbers in a frame. */
  get dim() {
    return this.facts.layout.groups.reduce((sum, [, width]) => sum + width, 0);
  }

  /** Whether the next step is taken before anything is heard. */
  get waits() {
    return this.number + this.ahead < 0;
  }

  /** Number of the first sample of the next chunk, and of the first after it. */
  get span() {
    const first = (this.number + this.ahead) * this.facts.frames;
    return [this.voice.sampleOf(first), this.voice.sampleOf(first + this.facts.frames)];
  }

  /** From the next step on it is told this, one of `facts.texts`; null = nothing. */
  tell(text) {
    const told = text === null ? {} : this.facts.texts[text];
    if (!told) throw new Error(`It can be told: ${Object.keys(this.facts.texts).join(", ")}.`);
    for (const tensor of this.facts.state) if (tensor.told) this.#set(tensor, told[tensor.name]);
  }

  /**
   * One latent.
   *
   * @param sound Float32Array of the chunk, or null where nothing is heard.
   * @param noise Float32Array of the latent.
   * @returns {frame, values}: number of the first frame that is settled now, and the frames.
   */
  async step(sound, noise) {
    const { frames } = this.facts;
    const { dim } = this;
    if (sound === null) this.voice.forget();
    const bands = sound && this.voice.follow(sound, (this.number + this.ahead) * frames, frames);
    const present = MODALITIES.map((name) => Number(name === "partner_audio" && sound !== null));
    const results = await this.session.run({
      ...this.state,
      present: this.#tensor("bool", present, [1, MODALITIES.length]),
      partner_audio: this.#tensor("float32", bands, [1, frames, WIDTH]),
      partner_motion: this.#tensor("float32", null, [1, frames, dim]),
      actor_audio: this.#tensor("float32", null, [1, frames, WIDTH]),
      noise: this.#tensor("float32", noise, [1, 1, noise.length]),
    });
    for (const { name, changes } of this.facts.state) {
      if (changes) this.state[name] = results[NEXT + name];
    }
    // The first frames that a session settles lie before its beginning.
    const first = this.number * frames - Math.floor(frames / 2);
    const skipped = Math.min(Math.max(-first, 0), frames);
    this.number += 1;
    return { frame: first + skipped, values: results.frames.data.slice(skipped * dim) };
  }

  #set({ name, type, shape }, values) {
    this.state[name] = this.#tensor(type, values, shape);
  }

  /** A tensor; without values it is 0. */
  #tensor(type, values, shape) {
    const size = shape.reduce((product, length) => product * length, 1);
    const array = new ARRAYS[type](size);
    if (values) array.set(type === "int64" ? Array.from(values, BigInt) : values);
    return new this.ort.Tensor(type, array, shape);
  }
}
