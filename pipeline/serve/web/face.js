// The head, drawn by three.js and moved by Live Link Face's columns.

import {
  ACESFilmicToneMapping, Box3, DirectionalLight, Euler, FrontSide, HemisphereLight,
  LinearFilter, PerspectiveCamera, Scene, TextureLoader, Vector3, WebGLRenderer,
} from "./vendor/three/three.module.min.js";
import { GLTFLoader } from "./vendor/three/GLTFLoader.js";
import { CHANNELS, shapeOf } from "./arkit.js";

const SHARPEST = 2; // pixels of the picture per pixel of the page
const BLURREDEST = 0.5;
const SLOW_MS = 45; // between two pictures; from here on they get fewer pixels
const PICTURES = 20; // that this is judged on
const VIEW = 18; // degrees
// In heights of the head: the ragged edge of its bust is where style.css fades the picture; air above it.
const BELOW = 0.07;
const ABOVE = 0.14;
// Joints of the head -> first of their three columns.
const JOINTS = {
  neck: CHANNELS.indexOf("HeadYaw"),
  leftEye: CHANNELS.indexOf("LeftEyeYaw"),
  rightEye: CHANNELS.indexOf("RightEyeYaw"),
};

export class Face {
  constructor(canvas) {
    this.canvas = canvas;
    this.renderer = new WebGLRenderer({ canvas, antialias: true, alpha: true });
    this.renderer.toneMapping = ACESFilmicToneMapping;
    this.renderer.toneMappingExposure = 1.05;
    this.camera = new PerspectiveCamera(VIEW, 1, 0.1, 10);
    this.scene = new Scene();
    this.scene.add(new HemisphereLight(0xfff4ea, 0x6b5048, 1.2));
    this.scene.add(light(0xffeedd, 2.3, [0.6, 0.7, 1]));
    this.scene.add(light(0xc4d4ff, 0.6, [-1, 0.25, 0.6]));
    this.scene.add(light(0xffffff, 2.2, [-0.5, 0.9, -1]));
    this.mesh = null;
    this.sharpness = Math.min(SHARPEST, devicePixelRatio);
    this.drawn = { count: 0, since: 0 };
    new ResizeObserver(() => this.#fit()).observe(canvas);
  }

  async load(url) {
    const loader = new GLTFLoader();
    // Its own loader fetches pictures out of the file as blobs, which connect-src forbids.
    loader.register((parser) => {
      parser.textureLoader = new TextureLoader(parser.options.manager);
      return { name: "pictures by img" };
    });
    const { scene } = await loader.loadAsync(url);
    this.joints = {};
    scene.traverse((node) => {
      if (node.morphTargetInfluences) this.mesh = node;
      if (node.name in JOINTS) this.joints[node.name] = node;
    });
    this.mesh.frustumCulled = false;
    this.mesh.material.side = FrontSide; // the dark inside would shine through along the outline
    // Smaller copies of the texture mix what lies beside a seam into it.
    const { map } = this.mesh.material;
    if (map) Object.assign(map, { generateMipmaps: false, minFilter: LinearFilter });
    this.targets = this.#targets();
    this.scene.add(scene);
    this.box = new Box3().setFromObject(scene);
    this.#fit();
  }

  /** [column, morph target] of what the head has. Eyes turn by their joints, not twice. */
  #targets() {
    const byJoints = "leftEye" in this.joints && "rightEye" in this.joints;
    const targets = [];
    CHANNELS.forEach((channel, column) => {
      const target = this.mesh.morphTargetDictionary[shapeOf(channel)];
      const looks = channel.startsWith("EyeLook");
      if (target !== undefined && !(looks && byJoints)) targets.push([column, target]);
    });
    return targets;
  }

  /** Draws the face by 61 values. */
  show(values) {
    if (!this.mesh) return;
    for (const [column, target] of this.targets) {
      this.mesh.morphTargetInfluences[target] = values[column];
    }
    for (const [name, joint] of Object.entries(this.joints)) {
      const [yaw, pitch, roll] = values.subarray(JOINTS[name], JOINTS[name] + 3);
      joint.setRotationFromEuler(new Euler(pitch, -yaw, -roll, "YXZ"));
    }
    this.#draw();
    this.#pace();
  }

  /** Name -> value of the morph targets, as they are drawn. */
  weights() {
    const names = Object.entries(this.mesh?.morphTargetDictionary ?? {});
    return Object.fromEntries(names.map(([name, n]) => [name, this.mesh.morphTargetInfluences[n]]));
  }

  /** Name -> turn of the joints [x, y, z, w], as they are drawn. */
  turns() {
    const joints = Object.entries(this.joints ?? {});
    return Object.fromEntries(joints.map(([name, joint]) => [name, joint.quaternion.toArray()]));
  }

  #fit() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height || !this.mesh) return;
    this.renderer.setPixelRatio(this.sharpness);
    this.renderer.setSize(width, height, false);
    this.camera.aspect = width / height;
    const size = this.box.getSize(new Vector3());
    const bottom = this.box.min.y + BELOW * size.y;
    const wide = size.x / this.camera.aspect;
    const seen = Math.max((1 + ABOVE - BELOW) * size.y, wide);
    const away = seen / 2 / Math.tan((VIEW * Math.PI) / 360) + size.z / 2;
    const { x, z } = this.box.getCenter(new Vector3());
    this.camera.position.set(x, bottom + seen / 2, z + away);
    this.camera.updateProjectionMatrix();
    this.#draw();
  }

  #draw() {
    this.renderer.render(this.scene, this.camera);
  }

  /** Where pictures come slowly, they get fewer pixels. */
  #pace() {
    const now = performance.now();
    if (this.drawn.count === 0) this.drawn.since = now;
    this.drawn.count += 1;
    if (this.drawn.count <= PICTURES) return;
    const slow = (now - this.drawn.since) / PICTURES > SLOW_MS;
    this.drawn.count = 0;
    if (!slow || this.sharpness <= BLURREDEST) return;
    this.sharpness = Math.max(BLURREDEST, 0.7 * this.sharpness);
    this.#fit();
  }
}

function light(colour, strength, place) {
  const lamp = new DirectionalLight(colour, strength);
  lamp.position.set(...place);
  return lamp;
}
