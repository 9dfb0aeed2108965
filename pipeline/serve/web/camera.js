// Pictures of the speaker, for policies that see, or that are told what a face does.

const QUALITY = 0.7;

export class Camera {
  /**
   * @param video element that shows what is sent.
   * @param wants {side, every_s} of the pictures.
   */
  static async open(video, wants) {
    const wanted = { width: { ideal: 640 }, facingMode: "user" };
    const stream = await navigator.mediaDevices.getUserMedia({ video: wanted });
    const camera = new Camera(video, stream, wants);
    video.srcObject = stream;
    try {
      await video.play();
    } catch (error) {
      camera.stop();
      throw error;
    }
    return camera;
  }

  constructor(video, stream, wants) {
    this.video = video;
    this.stream = stream;
    this.wants = wants;
    this.canvas = new OffscreenCanvas(wants.side, wants.side);
  }

  /** Gives `seen` a JPEG (Uint8Array), again and again. */
  begin(seen) {
    const wanted = this.wants.side;
    this.timer = setInterval(async () => {
      const { videoWidth: width, videoHeight: height } = this.video;
      const side = Math.min(width, height);
      if (!side) return;
      const context = this.canvas.getContext("2d");
      context.drawImage(this.video, (width - side) / 2, (height - side) / 2, side, side, 0, 0, wanted, wanted);
      const picture = await this.canvas.convertToBlob({ type: "image/jpeg", quality: QUALITY });
      seen(new Uint8Array(await picture.arrayBuffer()));
    }, 1000 * this.wants.every_s);
  }

  stop() {
    clearInterval(this.timer);
    this.stream.getTracks().forEach((track) => track.stop());
    this.video.srcObject = null;
  }
}
