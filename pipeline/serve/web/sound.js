// Sound of a microphone or of a file, in chunks, and the clock that all goes by.

const SHARE = 0.05; // of a step of the context's clock that is followed at once
const FAR_S = 0.1; // steps larger than this are followed wholly: sound was paused

export class Sound {
  /**
   * A microphone, or a file that is played aloud. Call it from a click: browsers start no sound else.
   *
   * @param rate samples per second.
   * @param file of sound, or null for the microphone.
   */
  static async open(rate, file) {
    const context = new AudioContext({ sampleRate: rate });
    const sound = new Sound(context);
    try {
      await Promise.all([context.resume(), context.audioWorklet.addModule("recorder.js")]);
      await (file ? sound.#file(file) : sound.#microphone());
      return sound;
    } catch (error) {
      sound.close();
      throw error;
    }
  }

  constructor(context) {
    this.context = context;
    this.first = null; // frame of the context's clock at which sample 0 is heard
    this.stream = null;
    this.player = null;
    this.chunks = Infinity; // until the file ends
    this.onlost = null; // called where the microphone is unplugged
    this.ahead = null; // seconds of the context's clock before the page's
  }

  async #microphone() {
    // The voice as it is: what tidies calls up also takes breath and laughter away.
    const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    if (!navigator.mediaDevices) throw new Error("Browsers give a microphone to https and localhost only.");
    this.stream = await navigator.mediaDevices.getUserMedia({ audio });
    this.stream.getTracks().forEach((track) => (track.onended = () => this.onlost?.()));
    this.#wire(this.context.createMediaStreamSource(this.stream));
  }

  async #file(file) {
    let buffer;
    try {
      buffer = await this.context.decodeAudioData(await file.arrayBuffer());
    } catch {
      throw new Error(`This browser finds no sound in ${file.name}: try a WAV, MP3 or MP4 file.`);
    }
    this.player = new AudioBufferSourceNode(this.context, { buffer });
    this.player.connect(this.context.destination);
    this.#wire(this.player);
  }

  #wire(source) {
    this.meter = new AnalyserNode(this.context, { fftSize: 512 });
    this.levels = new Float32Array(this.meter.fftSize);
    this.recorder = new AudioWorkletNode(this.context, "recorder", {
      channelCount: 1,
      channelCountMode: "explicit",
    });
    source.connect(this.meter);
    source.connect(this.recorder).connect(this.context.destination); // which it gives silence
  }

  /**
   * Begins to listen, after `waitS`.
   *
   * @param size samples in a chunk, which may be no whole number.
   * @param heard (number, Int16Array) of each chunk.
   */
  begin(waitS, size, heard) {
    const rate = this.context.sampleRate;
    let number = 0;
    this.recorder.port.onmessage = ({ data }) => {
      if (data.chunk) {
        heard(number, int16(data.chunk));
        number += 1;
        return;
      }
      this.first = data.begin;
      this.player?.start(this.first / rate);
    };
    // A file begins a little later still, so that its first sample is not missed.
    const begin = Math.ceil((this.context.currentTime + waitS + 0.05) * rate);
    this.recorder.port.postMessage({ begin, size });
    if (this.player) this.chunks = Math.ceil(this.player.buffer.length / size);
  }

  /** The sample that is heard now; before the first it is negative. */
  now() {
    if (this.first === null) return -Infinity;
    return this.#seconds() * this.context.sampleRate - this.first;
  }

  /** The context's clock without its steps, which are larger than a picture's time. */
  #seconds() {
    const page = performance.now() / 1000;
    const ahead = this.context.currentTime - page;
    if (this.ahead === null || Math.abs(ahead - this.ahead) > FAR_S) this.ahead = ahead;
    this.ahead += SHARE * (ahead - this.ahead);
    return page + this.ahead;
  }

  /** How loud it is now: 0 to 1, even steps of loudness. */
  level() {
    this.meter.getFloatTimeDomainData(this.levels);
    const power = this.levels.reduce((sum, x) => sum + x * x, 0) / this.levels.length;
    return Math.max(0, Math.min(1, 1 + Math.log10(power + 1e-9) / 5));
  }

  /** Ends the sound. The clock goes on until `close`. */
  stop() {
    this.stream?.getTracks().forEach((track) => track.stop());
    if (this.first !== null) this.player?.stop();
    this.player?.disconnect();
    this.recorder?.disconnect();
  }

  close() {
    this.stop();
    if (this.context.state !== "closed") this.context.close();
  }
}

function int16(samples) {
  return Int16Array.from(samples, (x) => Math.max(-32768, Math.min(32767, Math.round(32768 * x))));
}
