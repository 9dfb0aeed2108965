// ARKit's weights of a head's motion, as policies/head/arkit.py and livelink.py have them.

const STILL = 1e-5; // no weight moved further in a sweep over all of them
const SWEEPS = 2000;

export class ArkitRig {
  /**
   * @param rig of listener.json: what the head's expressions and ARKit's have in common.
   * @param layout of the motion.
   */
  constructor(rig, layout) {
    this.rig = rig;
    this.places = {};
    let start = 0;
    for (const [name, width] of layout.groups) {
      this.places[name] = [start, start + width];
      start += width;
    }
    this.solved = new Float64Array(rig.shapes.length); // each frame starts from the one before
  }

  /** Live Link Face's columns of a frame: weights, then angles in radians. */
  columns(frame) {
    const { rig } = this;
    const weights = new Float64Array(rig.names.length);
    this.#solve(this.#group(frame, "expr", 0));
    rig.shapes.forEach((place, n) => (weights[place] = this.solved[n]));
    const lids = this.#group(frame, "eyelid", 2);
    rig.blinks.forEach((place, n) => (weights[place] = lids[n]));
    const jaw = this.#group(frame, "jaw", 3);
    const eyes = this.#group(frame, "eyepose", 6);
    const [left, right] = [eyes.subarray(0, 3), eyes.subarray(3)];
    for (const [turn, turns] of [[jaw, rig.jaw], [left, rig.left_eye], [right, rig.right_eye]]) {
      for (const { place, axis, whole } of turns) weights[place] = turn[axis] / whole;
    }
    const head = times(
      matrix(this.#group(frame, "rot", 3)),
      matrix(this.#group(frame, "neck", 3)),
    );
    const shown = weights.map((weight) => Math.min(Math.max(weight, 0), 1));
    return Float32Array.of(
      ...rig.order.map((place) => shown[place]),
      ...angles(head),
      ...angles(matrix(left)),
      ...angles(matrix(right)),
    );
  }

  #group(frame, name, width) {
    const place = this.places[name];
    return place ? frame.subarray(...place) : new Float32Array(width);
  }

  /** Weights in [0, 1] whose vertices are nearest, one after the other until none moves. */
  #solve(expressions) {
    const { gram, likeness } = this.rig;
    const w = this.solved;
    const slope = gram.map((row, n) => {
      let sum = 0;
      for (let k = 0; k < w.length; k += 1) sum += row[k] * w[k];
      for (let k = 0; k < expressions.length; k += 1) sum -= expressions[k] * likeness[k][n];
      return sum;
    });
    for (let sweep = 0; sweep < SWEEPS; sweep += 1) {
      let moved = 0;
      for (let n = 0; n < w.length; n += 1) {
        const step = Math.min(Math.max(w[n] - slope[n] / gram[n][n], 0), 1) - w[n];
        if (step === 0) continue;
        w[n] += step;
        for (let k = 0; k < w.length; k += 1) slope[k] += step * gram[n][k];
        moved = Math.max(moved, Math.abs(step));
      }
      if (moved < STILL) return;
    }
  }
}

/** The rotation of an axis-angle (Rodrigues, 1840), rows one after the other. */
function matrix([x, y, z]) {
  const angle = Math.hypot(x, y, z);
  const s = angle > 1e-8 ? Math.sin(angle) / angle : 1;
  const c = angle > 1e-8 ? (1 - Math.cos(angle)) / angle ** 2 : 0.5;
  const d = 1 - c * angle ** 2;
  return [
    ...[d + c * x * x, c * x * y - s * z, c * x * z + s * y],
    ...[c * x * y + s * z, d + c * y * y, c * y * z - s * x],
    ...[c * x * z - s * y, c * y * z + s * x, d + c * z * z],
  ];
}

function times(a, b) {
  return a.map((_, n) => {
    const row = n - (n % 3);
    return a[row] * b[n % 3] + a[row + 1] * b[(n % 3) + 3] + a[row + 2] * b[(n % 3) + 6];
  });
}

/** Yaw, pitch and roll about Unreal's axes. */
function angles(m) {
  const yaw = Math.atan2(m[2], m[8]);
  const pitch = Math.asin(Math.min(Math.max(-m[5], -1), 1));
  const roll = Math.atan2(m[3], m[4]);
  return [-yaw, pitch, -roll];
}
