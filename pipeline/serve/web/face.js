// The head, drawn by three.js and moved by Live Link Face's columns.

import {
  ACESFilmicToneMapping, Box3, DirectionalLight, Euler, HemisphereLight, PerspectiveCamera, Scene,
  TextureLoader, Vector3, WebGLRenderer,
} from "./vendor/three/three.module.min.js";
import { GLTFLoader } from "./vendor/three/GLTFLoader.js";
import { CHANNELS, shapeOf } from "./arkit.js";

const SHARPEST = 2; // pixels of the picture per pixel of the page
const VIEW = 22; // degrees
const ROOM = 1.3; // what is seen, in heights of the head
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
    this.scene.add(new HemisphereLight(0xdfe9ff, 0x57453c, 1.3));
    this.scene.add(light(0xfff1e0, 2.3, [0.6, 0.7, 1]));
    this.scene.add(light(0xa9c4ff, 0.9, [-1, 0.25, 0.6]));
    this.scene.add(light(0xffffff, 2.2, [-0.5, 0.9, -1]));
    this.mesh = null;
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
    this.targets = this.#targets();
    this.scene.add(scene);
    const box = new Box3().setFromObject(scene);
    this.size = box.getSize(new Vector3());
    this.middle = box.getCenter(new Vector3());
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
    this.renderer.setPixelRatio(Math.min(SHARPEST, devicePixelRatio));
    this.renderer.setSize(width, height, false);
    this.camera.aspect = width / height;
    const seen = ROOM * Math.max(this.size.y, (this.size.x * height) / width);
    const away = seen / 2 / Math.tan((VIEW * Math.PI) / 360) + this.size.z / 2;
    this.camera.position.set(this.middle.x, this.middle.y, this.middle.z + away);
    this.camera.updateProjectionMatrix();
    this.#draw();
  }

  #draw() {
    this.renderer.render(this.scene, this.camera);
  }
}

function light(colour, strength, place) {
  const lamp = new DirectionalLight(colour, strength);
  lamp.position.set(...place);
  return lamp;
}
