// A live session, which goes on by itself where its replica or its connection is lost.
//
// The server keeps nothing of a session. What was said and what the policy did in the last
// `memory_s` is kept here, and handed to whoever goes on (docs/serve.md, "Going on").

import { Refusal } from "./refusal.js";
import { ACT, ARKIT, MOTION, PICTURE, PROTOCOL, SEEN, SOUND, TICKET, border, packed, unpacked } from "./wire.js";

const READY_S = 3; // so long a server may take to be ready
const SILENT_S = 2; // without any message for so long, a connection counts as lost
const PATIENCE_S = 30; // of trying to begin or to go on
const WAITS_S = [0, 0.2, 0.4, 0.8, 1.5]; // before each try; the last one again and again
const LONGEST_WAIT_S = 5; // that a server may ask for
const ENDED = 1000;
const LATE = 1; // flag of an answer: silence was heard in place of sound
const FINAL = [1007, 1008, 1009]; // closes after which trying again is no use

export class Session {
  /**
   * @param post async (body) => what POST /v1/sessions answers; throws Refusal.
   * @param wishes {policy, seed, text} of the session, each may be absent.
   * @param on {begun(info, waitS), frames(sample, values), seen(whether the last answer knew
   *     the speaker's face), stats(stats), state(word, message)}.
   *     Words: "connecting", "listening", "going on", "ended", "failed".
   */
  constructor(post, wishes, on) {
    this.post = post;
    this.wishes = { ...wishes };
    this.on = on;
    this.info = null;
    this.next = 0; // the first chunk that was not answered
    this.said = 0; // the chunk that is said next
    this.text = wishes.text; // what the listener is told there
    this.told = null; // [what it is told from the chunk on that is said next]
    this.pictures = []; // of that chunk
    this.retells = false; // whether the policy itself sees, and is shown pictures again
    this.kept = new Map(); // number of a chunk -> {sound, pictures, told, act, seen}
    this.liveliness = 1;
    this.name = null; // in the server's log
    this.wentOn = 0;
    this.before = { late: 0, dropped: 0 }; // counts of replicas that are gone
    this.counted = { late: 0, dropped: 0 };
    this.socket = null;
    this.trying = false;
    this.attempt = 0; // of going on, since the last answer
    this.troubled = null; // when the first of them was
    this.complaint = null; // why they failed
    this.over = false;
    this.endsAfter = Infinity; // chunks
    this.heardFrom = performance.now();
  }

  async begin() {
    await this.#try("connecting");
    this.watch = setInterval(() => this.#watch(), 250);
  }

  /** A chunk of sound: int16 samples. Chunks come in order, from 0 on. */
  say(number, samples) {
    this.said = number + 1;
    if (number >= this.next) this.#keep(number, new Uint8Array(samples.buffer)); // else silence was heard
    this.kept.delete(number - this.#memory() - this.#chunks(2 * PATIENCE_S));
    if (number + 1 >= this.endsAfter) this.#end();
  }

  #keep(number, sound) {
    const end = border(number + 1, this.info.chunk_samples);
    const pictures = this.pictures.filter(({ sample }) => sample < end);
    this.pictures = this.pictures.filter(({ sample }) => sample >= end);
    this.kept.set(number, { sound, pictures, told: this.told, act: null, seen: null });
    this.told = null;
    this.#send(this.#part(number));
  }

  /** A picture (Uint8Array of JPEG) of the moment of a sample. */
  picture(sample, payload) {
    const picture = { kind: PICTURE, sample, payload };
    if (this.retells) this.pictures.push(picture);
    this.#send(packed([picture]));
  }

  tell(text) {
    this.told = [text || null];
    this.#sendText(this.told);
  }

  liven(value) {
    this.liveliness = value;
    this.#send({ type: "liveliness", value });
  }

  ack(sample) {
    this.#send({ type: "ack", sample });
  }

  /** Connects anew, with all that was kept. */
  goOn() {
    if (!this.info || this.over || this.trying) return;
    // While sound is paused the server hears silence and answers that; it will be said yet.
    for (let n = this.said; n < this.next; n += 1) this.kept.delete(n);
    this.next = Math.min(this.next, this.said);
    this.#try("going on");
  }

  /** Leaves the server until `goOn`: nothing is said meanwhile. */
  pause() {
    if (!this.info || this.over) return;
    this.socket?.close(ENDED);
    this.socket = null; // whose end is no news
  }

  /** Ends after the chunk so many: its answer and the remaining frames still come. */
  endAfter(chunks) {
    this.endsAfter = chunks;
  }

  stop() {
    this.#end();
    this.#finish("ended", "");
  }

  #memory() {
    return this.#chunks(this.info.memory_s);
  }

  #chunks(seconds) {
    return Math.ceil((seconds * this.info.rate) / this.info.chunk_samples);
  }

  /** A chunk in which nothing was heard. */
  #silence(number) {
    const [first, end] = [0, 1].map((n) => border(number + n, this.info.chunk_samples));
    return { sound: new Uint8Array(2 * (end - first)), pictures: [], told: null, act: null, seen: null };
  }

  #part(number) {
    return packed([this.#sound(number)]);
  }

  #sound(number) {
    const sample = border(number, this.info.chunk_samples);
    return { kind: SOUND, sample, payload: this.kept.get(number).sound };
  }

  #send(message, socket = this.socket) {
    if (socket?.readyState !== WebSocket.OPEN) return;
    socket.send(message instanceof Uint8Array ? message : JSON.stringify(message));
  }

  #sendText(told) {
    if (told) this.#send({ type: "text", text: told[0] });
  }

  #sendPictures(pictures) {
    for (const picture of pictures) this.#send(packed([picture]));
  }

  #end() {
    this.#send({ type: "end" });
  }

  #finish(word, message) {
    if (this.over) return;
    this.over = true;
    clearInterval(this.watch);
    this.socket?.close(ENDED);
    this.on.state(word, message);
  }

  /** Tries until a replica is ready, then hands it all that it needs. */
  async #try(word) {
    this.trying = true;
    this.on.state(word, "");
    this.troubled ??= performance.now();
    for (; !this.over; this.attempt += 1) {
      await wait(WAITS_S[Math.min(this.attempt, WAITS_S.length - 1)]);
      if (this.over) return;
      const tired = performance.now() - this.troubled > 1000 * PATIENCE_S;
      if (tired) return this.#finish("failed", this.complaint ?? "The session ends again and again.");
      try {
        await this.#connect();
        if (this.over) return;
        this.attempt += 1; // a session that ends before it answers is no success
        this.trying = false;
        this.on.state("listening", "");
        return;
      } catch (refusal) {
        if (!(refusal instanceof Refusal)) throw refusal;
        if (this.over) return;
        if (refusal.final) return this.#finish("failed", refusal.message);
        this.complaint = refusal.message;
        this.on.state(word, refusal.message);
        await wait(Math.min(refusal.waitS, LONGEST_WAIT_S));
      }
    }
  }

  async #connect() {
    const number = this.next;
    const wishes = { ...this.wishes, text: this.text };
    const info = await this.post({ ...wishes, outputs: ["arkit", "act"], number });
    const { socket, ready } = await this.#open(info);
    if (this.over) return socket.close(ENDED);
    const first = this.info === null;
    const last = this.socket;
    this.socket = socket;
    this.name = ready.id;
    last?.close(ENDED);
    if (first) {
      this.info = info;
      // Whoever goes on must draw the same noise.
      Object.assign(this.wishes, { policy: info.policy, seed: info.seed });
      this.on.begun(info, ready.wait_s);
      this.#sendText(this.told); // while the connection was made
    } else {
      this.wentOn += 1;
      this.before.late += this.counted.late;
      this.before.dropped += this.counted.dropped;
      this.counted = { late: 0, dropped: 0 };
      this.#handOver(number);
    }
    if (this.liveliness !== 1) this.liven(this.liveliness);
  }

  /** What was said and done before chunk `number`, and what was said since. */
  #handOver(number) {
    let oldest = number;
    while (number - oldest < this.#memory() && this.kept.get(oldest - 1)?.act) oldest -= 1;
    if (oldest < number) this.#send({ type: "went", chunks: number - oldest });
    for (let n = oldest; n < number; n += 1) {
      const sound = this.#sound(n);
      const { pictures, act, seen } = this.kept.get(n);
      this.#sendPictures(pictures);
      const parts = [sound, { kind: ACT, sample: sound.sample, payload: act }];
      if (seen) parts.unshift({ kind: MOTION, sample: sound.sample, payload: seen });
      this.#send(packed(parts));
    }
    let n = number;
    for (; this.kept.has(n); n += 1) {
      const { pictures, told } = this.kept.get(n);
      this.#sendText(told);
      this.#sendPictures(pictures);
      this.#send(this.#part(n));
    }
    this.#sendText(this.told);
    this.#sendPictures(this.pictures);
    if (n >= this.endsAfter) this.#end();
  }

  /** A socket whose server is ready. */
  #open(info) {
    // Behind a proxy that ends TLS, the server may not know that this page came by https.
    const url = new URL(info.url);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(url, [PROTOCOL, TICKET + info.ticket]);
    socket.binaryType = "arraybuffer";
    return new Promise((resolve, reject) => {
      let complaint = "";
      const tooLong = setTimeout(() => socket.close(), 1000 * READY_S);
      socket.onmessage = ({ data }) => {
        const said = typeof data === "string" ? JSON.parse(data) : {};
        if (said.type === "error") complaint = said.message;
        if (said.type !== "ready") return;
        clearTimeout(tooLong);
        this.heardFrom = performance.now();
        socket.onmessage = (event) => this.#hear(socket, event.data);
        socket.onclose = (event) => this.#closed(socket, event);
        resolve({ socket, ready: said });
      };
      socket.onclose = ({ code }) => {
        clearTimeout(tooLong);
        const message = complaint || "The connection could not be made.";
        reject(new Refusal(message, { final: FINAL.includes(code) }));
      };
    });
  }

  #hear(socket, data) {
    this.heardFrom = performance.now();
    if (typeof data !== "string") return this.#answer(unpacked(data));
    const said = JSON.parse(data);
    if (said.type === "ping") this.#send({ type: "pong", id: said.id ?? null }, socket);
    if (said.type === "move") this.goOn();
    if (said.type === "error") this.complaint = said.message;
    if (said.type === "stats") {
      this.counted = { late: said.late, dropped: said.dropped };
      this.on.stats({
        late: this.before.late + said.late,
        dropped: this.before.dropped + said.dropped,
        sessions: said.sessions,
      });
    }
  }

  #well() {
    this.attempt = 0;
    this.troubled = null;
    this.complaint = null;
  }

  #answer(parts) {
    if (parts.some(({ kind }) => kind === ACT)) this.#well();
    this.on.seen(parts.some(({ kind }) => kind === SEEN));
    for (const { kind, flags, sample, payload } of parts) {
      if (kind === ARKIT) this.on.frames(sample, new Float32Array(payload));
      if (kind === ACT) {
        const number = Math.round(sample / this.info.chunk_samples);
        const act = new Uint8Array(payload);
        const chunk = this.kept.get(number);
        const silent = { ...this.#silence(number), told: chunk?.told, act };
        if (!chunk) this.kept.set(number, silent);
        else if (flags & LATE) this.kept.set(number, { ...silent, pictures: chunk.pictures }); // these were seen
        else chunk.act = act;
        for (; this.next <= number; this.next += 1) {
          const told = this.kept.get(this.next)?.told;
          if (told) [this.text] = told;
        }
      }
      if (kind === SEEN) {
        const chunk = this.kept.get(Math.round(sample / this.info.chunk_samples));
        if (chunk) chunk.seen = new Uint8Array(payload);
      }
    }
  }

  #closed(socket, { code, reason }) {
    if (socket !== this.socket || this.over || this.trying) return;
    if (code === ENDED) return this.#finish("ended", "");
    if (FINAL.includes(code)) {
      return this.#finish("failed", this.complaint ?? (reason || `The server closed the session (${code}).`));
    }
    this.goOn();
  }

  /** A connection may be lost without a word. */
  #watch() {
    const chunkS = this.info ? this.info.chunk_samples / this.info.rate : 0;
    const silentS = (performance.now() - this.heardFrom) / 1000;
    const waits = this.info && this.socket && this.kept.has(this.next); // for an answer
    if (waits && silentS > Math.max(SILENT_S, 3 * chunkS)) this.goOn();
  }
}

function wait(seconds) {
  return new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
}
