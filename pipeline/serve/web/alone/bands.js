// Log-mel bands of sound, as policies/sound.py and `LogMel` have them.

const BANDS = 32;
const HOPS = 2; // windows in a video frame; they end evenly spaced, the last with it
const WINDOW = 400; // samples
const FFT = 512;
const LINES = FFT / 2 + 1;
const LOWEST_HZ = 60;
const HIGHEST_HZ = 7600;
const QUIET_DB = -90;

/** Bands in a video frame. */
export const WIDTH = HOPS * BANDS;

/** To the nearest whole number, halves to the even one, as Python does. */
export function nearest(x) {
  const up = Math.round(x);
  return up - x === 0.5 && up % 2 ? up - 1 : up;
}

/** A voice that is heard chunk by chunk. */
export class Voice {
  /**
   * @param rate samples of sound per second.
   * @param fps frames per second.
   */
  constructor(rate, fps) {
    this.rate = rate;
    this.fps = fps;
    this.window = hann();
    this.triangles = triangles(rate);
    this.before = new Float32Array(0); // the last WINDOW samples
  }

  /** The sample at which a frame begins. */
  sampleOf(frame) {
    return nearest((frame * this.rate) / this.fps);
  }

  /** It was silent until now. */
  forget() {
    this.before = new Float32Array(0);
  }

  /** Bands (frames * WIDTH, dB) of the frames from `first` on, whose samples `sound` are. */
  follow(sound, first, frames) {
    const start = this.sampleOf(first);
    const whole = new Float32Array(this.before.length + sound.length);
    whole.set(this.before);
    whole.set(sound, this.before.length);
    const bands = new Float32Array(frames * WIDTH);
    for (let window = 0; window < frames * HOPS; window += 1) {
      const end = nearest(((first * HOPS + 1 + window) * this.rate) / (this.fps * HOPS));
      const levels = this.#levels(whole, end - start + this.before.length);
      bands.set(levels, window * BANDS);
    }
    this.before = whole.slice(-WINDOW);
    return bands;
  }

  #levels(sound, end) {
    const real = new Float64Array(FFT);
    const imaginary = new Float64Array(FFT);
    for (let n = 0; n < WINDOW; n += 1) {
      const place = end - WINDOW + n;
      if (place >= 0) real[n] = sound[place] * this.window[n];
    }
    transform(real, imaginary);
    const powers = new Float64Array(BANDS);
    for (const { line, band, weight } of this.triangles) {
      powers[band] += weight * (real[line] ** 2 + imaginary[line] ** 2);
    }
    return powers.map((power) => Math.max(10 * Math.log10(power + 1e-12), QUIET_DB));
  }
}

/** A window whose sine of full scale has power 1. */
function hann() {
  const window = new Float64Array(WINDOW).map(
    (_, n) => 0.5 - 0.5 * Math.cos((2 * Math.PI * n) / (WINDOW - 1)),
  );
  const sum = window.reduce((total, value) => total + value, 0);
  return window.map((value) => (2 * value) / sum);
}

/** Triangles, evenly spaced in mel: the weights {line, band, weight} that are not 0. */
function triangles(rate) {
  const mel = (hertz) => 2595 * Math.log10(1 + hertz / 700);
  const [lowest, highest] = [mel(LOWEST_HZ), mel(HIGHEST_HZ)];
  const edge = (n) => lowest + ((highest - lowest) * n) / (BANDS + 1);
  const lines = Array.from({ length: LINES }, (_, n) => mel((n * rate) / FFT));
  const weights = [];
  for (let band = 0; band < BANDS; band += 1) {
    const [left, middle, right] = [edge(band), edge(band + 1), edge(band + 2)];
    const of = lines.map((x) => Math.min((x - left) / (middle - left), (right - x) / (right - middle)));
    const inside = of.flatMap((weight, line) => (weight > 0 ? [{ line, band, weight }] : []));
    weights.push(...inside);
    if (inside.length) continue;
    // The lowest triangles are narrower than the lines of a spectrum are apart.
    const off = lines.map((x) => Math.abs(x - middle));
    weights.push({ line: off.indexOf(Math.min(...off)), band, weight: 1 });
  }
  return weights;
}

/** The discrete Fourier transform in place, of a length that is a power of 2. */
function transform(real, imaginary) {
  const length = real.length;
  for (let n = 1, mirrored = 0; n < length; n += 1) {
    let bit = length >> 1;
    for (; mirrored & bit; bit >>= 1) mirrored ^= bit;
    mirrored ^= bit;
    if (n < mirrored) {
      [real[n], real[mirrored]] = [real[mirrored], real[n]];
      [imaginary[n], imaginary[mirrored]] = [imaginary[mirrored], imaginary[n]];
    }
  }
  for (let half = 1; half < length; half *= 2) {
    for (let k = 0; k < half; k += 1) {
      const cos = Math.cos((Math.PI * k) / half);
      const sin = -Math.sin((Math.PI * k) / half);
      for (let even = k; even < length; even += 2 * half) {
        const odd = even + half;
        const re = real[odd] * cos - imaginary[odd] * sin;
        const im = real[odd] * sin + imaginary[odd] * cos;
        real[odd] = real[even] - re;
        imaginary[odd] = imaginary[even] - im;
        real[even] += re;
        imaginary[even] += im;
      }
    }
  }
}
