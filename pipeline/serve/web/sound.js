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
    this.samples = null; // of the file
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
    const source = this.context.createMediaStreamSource(this.stream);
    this.#wire();
    source.connect(this.recorder);
    source.connect(this.meter);
  }

  async #file(file) {
    try {
      this.samples = await mono(await this.context.decodeAudioData(await file.arrayBuffer()));
    } catch {
      throw new Error(`This browser finds no sound in ${file.name}: try a WAV, MP3 or MP4 file.`);
    }
    this.#wire();
    this.recorder.connect(this.meter);
  }

  #wire() {
    this.meter = new AnalyserNode(this.context, { fftSize: 512 });
    this.levels = new Float32Array(this.meter.fftSize);
    this.recorder = new AudioWorkletNode(this.context, "recorder", {
      channelCount: 1,
      channelCountMode: "explicit",
      outputChannelCount: [1],
    });
    this.recorder.connect(this.context.destination); // of a microphone it gets silence
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
    };
    const begin = Math.ceil((this.context.currentTime + waitS) * rate);
    this.recorder.port.postMessage({ begin, size, file: this.samples });
    if (this.samples) this.chunks = Math.ceil(this.samples.length / size);
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
    this.recorder?.disconnect();
  }

  close() {
    this.stop();
    if (this.context.state !== "closed") this.context.close();
  }
}

/** The sound of all channels in one, as browsers mix them. */
async function mono(buffer) {
  const mixer = new OfflineAudioContext(1, buffer.length, buffer.sampleRate);
  const player = new AudioBufferSourceNode(mixer, { buffer });
  player.connect(mixer.destination);
  player.start();
  return (await mixer.startRendering()).getChannelData(0);
}

function int16(samples) {
  return Int16Array.from(samples, (x) => Math.max(-32768, Math.min(32767, Math.round(32768 * x))));
}
