// Clips: fetched ahead, played to the end, one or two listeners beside their speaker.

/** Clips that were fetched before they are needed. */
export class Shelf {
  constructor() {
    this.clips = new Map(); // address -> promise of an address in memory
  }

  fetch(addresses) {
    for (const address of addresses) {
      if (this.clips.has(address)) continue;
      const clip = fetch(address)
        .then((answer) => (answer.ok ? answer.blob() : Promise.reject(answer.status)))
        .then((blob) => URL.createObjectURL(blob));
      clip.catch(() => this.clips.delete(address));
      this.clips.set(address, clip);
    }
  }

  /** The address to play; that of the server where the clip was not fetched. */
  async take(address) {
    return (await this.clips.get(address)?.catch(() => null)) ?? address;
  }

  /** Let go of all but these. */
  async keep(addresses) {
    for (const [address, clip] of this.clips) {
      if (addresses.includes(address)) continue;
      this.clips.delete(address);
      URL.revokeObjectURL(await clip.catch(() => ""));
    }
  }
}

const APART_S = 0.08; // by which pictures of two clips may differ

/** What of a file is seen where: a whole file, or its halves. */
const VIEWS = {
  1: [{ file: 0, part: "whole", sound: true }],
  2: [
    { file: 0, part: "listener", name: "A" },
    { file: 0, part: "speaker", sound: true },
    { file: 1, part: "listener", name: "B" },
  ],
};

export class Player {
  /**
   * @param frame element that clips are shown in.
   * @param told is told "empty", "loading", "ready", "playing", "paused", "ended" or "failed".
   */
  constructor(frame, told) {
    this.frame = frame;
    this.told = told;
    this.videos = [];
    this.state = "empty";
  }

  show(addresses) {
    this.clear();
    this.addresses = addresses;
    const views = VIEWS[addresses.length];
    this.frame.dataset.clips = addresses.length;
    const made = views.map(({ file, part, name, sound }) => {
      const video = document.createElement("video");
      Object.assign(video, { preload: "auto", playsInline: true, muted: !sound, src: addresses[file] });
      video.disablePictureInPicture = true;
      const box = document.createElement("figure");
      box.className = part;
      box.append(video);
      if (name) {
        const caption = document.createElement("figcaption");
        caption.textContent = name;
        box.append(caption);
      }
      return { box, video, sound };
    });
    this.videos = made.map(({ video }) => video);
    this.main = made.find(({ sound }) => sound).video;
    this.frame.replaceChildren(...made.map(({ box }) => box));
    for (const video of this.videos) {
      video.addEventListener("canplay", () => this.look(), { once: true });
      video.addEventListener("error", () => this.turn("failed"));
      video.addEventListener("ended", () => this.end());
    }
    this.main.addEventListener("pause", () => this.state === "playing" && !this.main.ended && this.pause());
    this.main.addEventListener("timeupdate", () => this.align());
    this.turn("loading");
  }

  clear() {
    for (const video of this.videos) {
      video.removeAttribute("src");
      video.load();
    }
    this.videos = [];
    this.turn("empty");
  }

  look() {
    const there = this.videos.every((video) => video.readyState >= HTMLMediaElement.HAVE_FUTURE_DATA);
    if (there && this.state === "loading") this.turn("ready");
  }

  /** Whether it plays; browsers may want a click first. */
  async play() {
    if (this.state === "ended") for (const video of this.videos) video.currentTime = 0;
    try {
      await Promise.all(this.videos.map((video) => video.play()));
    } catch {
      this.pause();
      return false;
    }
    this.turn("playing");
    return true;
  }

  pause() {
    for (const video of this.videos) video.pause();
    if (this.state === "playing") this.turn("paused");
  }

  press() {
    if (this.state === "playing") this.pause();
    else if (this.state === "failed") this.show(this.addresses);
    else if (this.videos.length) this.play();
  }

  align() {
    if (this.state !== "playing") return;
    for (const video of this.videos) {
      const apart = Math.abs(video.currentTime - this.main.currentTime);
      if (video !== this.main && !video.ended && apart > APART_S) video.currentTime = this.main.currentTime;
    }
  }

  end() {
    if (this.state === "playing" && this.videos.every((video) => video.ended)) this.turn("ended");
  }

  turn(state) {
    this.state = state;
    this.told(state);
  }
}
