// When which frame of the face is shown. The clock is that of the sound, in samples.

const STEADY_S = [0.08, 0.24]; // least and most that frames wait for others that come late
const MARGIN_S = 0.02;
const ANSWERS = 12; // of the past, that the wait is measured on
const FASTER = 0.05; // share by which time may run faster or slower to change the wait
const HOLD_S = 0.5; // the last pose stays so long
const REST_S = 1.2; // and comes to rest in so long
const RETURN_S = 0.25; // from the pose that was held to what comes anew

export class Playout {
  /**
   * @param rate samples of sound per second.
   * @param fps frames per second.
   * @param width numbers in a frame.
   */
  constructor(rate, fps, width) {
    this.rate = rate;
    this.step = rate / fps;
    this.width = width;
    this.frames = new Map(); // number -> values
    this.oldest = 0; // frames before it are past
    this.lags = []; // of the last answers: from their first frame's sample to their arrival
    this.delay = null; // samples from sound to picture
    this.clock = 0;
    this.sample = 0; // that is shown
    this.shown = new Float32Array(width);
    this.held = new Float32Array(width); // what was shown when frames ran out
    this.state = "waits"; // "waits", "plays", "holds", "rests"
    this.since = -Infinity; // of the state, sample of the clock
  }

  /** Whether what is shown is what was answered, and no way from or to it. */
  get steady() {
    return this.state === "plays" && this.clock - this.since > RETURN_S * this.rate;
  }

  /** Frames (count * width) from a sample on, which came at `now`. */
  add(sample, values, now) {
    const first = Math.round(sample / this.step);
    const count = values.length / this.width;
    if (!count) return;
    this.lags.push(now - sample);
    if (this.lags.length > ANSWERS) this.lags.shift();
    if (this.delay === null) this.delay = this.#wanted();
    for (let n = 0; n < count; n += 1) {
      const frame = values.subarray(n * this.width, (n + 1) * this.width);
      if (first + n >= this.oldest) this.frames.set(first + n, frame);
    }
  }

  /** The sample that is shown at `now`. */
  at(now) {
    return this.delay === null ? 0 : Math.max(0, now - this.delay);
  }

  /** Values of the face at `now`. */
  show(now) {
    const passed = Math.max(0, now - this.clock);
    this.clock = now;
    if (this.delay === null) return this.shown;
    const change = this.#wanted() - this.delay;
    // Where nothing moves, nobody sees time jump.
    const most = this.state === "plays" ? FASTER * passed : Infinity;
    this.delay += Math.max(-most, Math.min(most, change));

    this.sample = now - this.delay;
    const place = this.sample / this.step;
    const number = Math.floor(place);
    const values = this.#between(number, place - number);
    this.#forget(number - 2);
    if (values) this.#play(values, now);
    else this.#starve(now);
    return this.shown;
  }

  #wanted() {
    const sorted = [...this.lags].sort((a, b) => a - b);
    const late = sorted[Math.max(0, sorted.length - 2)]; // one outlier in twelve is let go
    const wait = late - sorted[0] + MARGIN_S * this.rate;
    const [least, most] = STEADY_S.map((seconds) => seconds * this.rate);
    return sorted[0] + Math.max(least, Math.min(most, wait));
  }

  #play(values, now) {
    if (this.state !== "plays") {
      this.held.set(this.shown);
      this.#enter("plays", now);
    }
    const share = smooth((now - this.since) / (RETURN_S * this.rate));
    for (let n = 0; n < this.width; n += 1) {
      this.shown[n] = this.held[n] + share * (values[n] - this.held[n]);
    }
  }

  #starve(now) {
    if (this.state === "waits") return;
    if (this.state === "plays") {
      this.held.set(this.shown);
      this.#enter("holds", now);
    }
    const heldS = (now - this.since) / this.rate;
    if (this.state === "holds" && heldS > HOLD_S) this.#enter("rests", now);
    if (this.state !== "rests") return;
    const share = smooth((now - this.since) / (REST_S * this.rate));
    for (let n = 0; n < this.width; n += 1) this.shown[n] = (1 - share) * this.held[n];
  }

  #enter(state, now) {
    this.state = state;
    this.since = now;
  }

  /** Piecewise cubic that never overshoots (Fritsch and Carlson, 1980): lids do not pass closed. */
  #between(number, share) {
    const b = this.frames.get(number);
    const c = this.frames.get(number + 1);
    if (!b || !c) return null;
    const a = this.frames.get(number - 1) ?? b;
    const d = this.frames.get(number + 2) ?? c;
    const values = new Float32Array(this.width);
    const s2 = share * share;
    const s3 = s2 * share;
    for (let n = 0; n < this.width; n += 1) {
      const slope = c[n] - b[n];
      const before = harmonic(b[n] - a[n], slope);
      const after = harmonic(slope, d[n] - c[n]);
      values[n] =
        b[n] + (3 * s2 - 2 * s3) * slope + (s3 - 2 * s2 + share) * before + (s3 - s2) * after;
    }
    return values;
  }

  #forget(before) {
    for (; this.oldest < before; this.oldest += 1) this.frames.delete(this.oldest);
  }
}

function harmonic(p, q) {
  return p * q > 0 ? (2 * p * q) / (p + q) : 0;
}

function smooth(share) {
  const x = Math.max(0, Math.min(1, share));
  return x * x * (3 - 2 * x);
}
