// Pictures of the speaker, for policies that see.

const SIDE = 224; // pixels
const EVERY_S = 0.2;
const QUALITY = 0.7;

export class Camera {
  /** @param video element that shows what is sent. */
  static async open(video) {
    const wanted = { width: { ideal: 640 }, facingMode: "user" };
    const stream = await navigator.mediaDevices.getUserMedia({ video: wanted });
    video.srcObject = stream;
    await video.play();
    return new Camera(video, stream);
  }

  constructor(video, stream) {
    this.video = video;
    this.stream = stream;
    this.canvas = new OffscreenCanvas(SIDE, SIDE);
  }

  /** Gives `seen` a JPEG (Uint8Array), five times a second. */
  begin(seen) {
    this.timer = setInterval(async () => {
      const { videoWidth: width, videoHeight: height } = this.video;
      const side = Math.min(width, height);
      if (!side) return;
      const context = this.canvas.getContext("2d");
      context.drawImage(this.video, (width - side) / 2, (height - side) / 2, side, side, 0, 0, SIDE, SIDE);
      const picture = await this.canvas.convertToBlob({ type: "image/jpeg", quality: QUALITY });
      seen(new Uint8Array(await picture.arrayBuffer()));
    }, 1000 * EVERY_S);
  }

  stop() {
    clearInterval(this.timer);
    this.stream.getTracks().forEach((track) => track.stop());
    this.video.srcObject = null;
  }
}
