"""From landmarks to coefficients: a small network that learns on drawn faces of the head.

What one person's landmarks mean depends on their face. So the network is told two things of each
picture: what is seen, and what is usual for this person (the median over the recording).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rapport.arrays import ArrayFileError, load_named, save_named
from rapport.log import logger
from rapport.pipeline.data.store import CorpusError
from rapport.pipeline.data.video.faces import Models
from rapport.pipeline.data.video.features import features, mean_face, upright
from rapport.pipeline.data.video.landmarks import Face, Landmarker, tracker_version
from rapport.pipeline.data.video.quality import Gauge, errors
from rapport.policies.head.asset import HeadAsset
from rapport.policies.head.flame import FlameHead
from rapport.policies.motion import Layout, Motion

VERSION = 1  # of what is learnt and how; another one is learnt anew
SHIPPED = Path(__file__).parent / "assets" / "builtin_face.npz"


@dataclass(frozen=True)
class Lessons:
    """How a regressor is learnt.

    Args:
        people: that are drawn.
        pictures: of each.
        components: that the features are cut to.
        hidden: width of the two layers.
        epochs: passes over the pictures.
        seed: of people and weights.
        strangers: people of their own, as they are in a conversation, on whom it is asked how far
            the regressor is off.
    """

    people: int = 200
    pictures: int = 30
    components: int = 120
    hidden: int = 256
    epochs: int = 150
    seed: int = 1
    strangers: int = 16


LESSONS = Lessons()
_STRANGERS_SEED = 9999
_STRANGERS_FRAMES = 75


@dataclass(frozen=True, eq=False)
class Example:
    """What the landmarker sees of drawn people.

    Args:
        faces: of all pictures in which it saw one.
        motion: that they show.
        people: (pictures,) who it is.
    """

    faces: list[Face]
    motion: Motion
    people: np.ndarray


def see(models: Models, landmarker: Landmarker, people: int, pictures: int) -> Example:
    """Draw people and look at them; pictures in which no face is seen are left out."""
    faces = []
    values = []
    numbers = []
    for number, drawn in enumerate(models.draw(people, pictures)):
        for image, row in zip(drawn.images, drawn.motion.values, strict=True):
            face = landmarker(image)
            if face is not None:
                faces.append(face)
                values.append(row)
                numbers.append(number)
    if len(faces) < people:
        raise CorpusError(
            f"the landmarker saw a face in {len(faces)} of {people * pictures} pictures of the "
            f"{models.asset.topology} head: it cannot be learnt from; use tracks of another "
            "tracker, corpus.tracks=FOLDER"
        )
    return Example(faces, Motion(np.stack(values), models.layout), np.array(numbers))


class Regressor:
    """Coefficients of a head from landmarks.

    Args:
        arrays: as `learn` makes and `save` writes them.
        layout: of the motion.
        about: what it was learnt on.
    """

    def __init__(self, arrays: dict[str, np.ndarray], layout: Layout, about: dict[str, Any]):
        self.arrays = arrays
        self.layout = layout
        self.about = about

    @property
    def mean(self) -> np.ndarray:
        """The face that others are turned to."""
        return self.arrays["mean"]

    def features(self, faces: Sequence[Face]) -> np.ndarray:
        """Components of the features of faces, (n, components) float32."""
        raw = features(faces, self.mean)
        centred = (raw - self.arrays["centre"]) / self.arrays["spread"]
        return np.asarray(centred @ self.arrays["components"], np.float32)

    def __call__(self, seen: np.ndarray, usual: np.ndarray) -> np.ndarray:
        """Coefficients (n, layout.dim) of one person.

        Args:
            seen: (n, components), of `features`.
            usual: (components,) the median of what is seen of this person.
        """
        # A face that is unlike all that were drawn is taken for the nearest that is like them: what
        # it does is told by how it differs from what is usual for it. How a head is turned is the
        # same on every face.
        length = float(np.linalg.norm(usual))
        known = usual * min(1.0, float(self.arrays["reach"]) / max(length, 1e-6))
        values = self._answer(seen - usual + known, known)
        rot = self.layout.columns("rot")
        values[:, rot] = self._answer(seen, usual)[:, rot]
        return values

    def _answer(self, seen: np.ndarray, usual: np.ndarray) -> np.ndarray:
        """What the network says, (n, layout.dim)."""
        inputs = np.concatenate([seen, np.broadcast_to(usual, seen.shape)], axis=1)
        hidden = inputs
        for layer in ("1", "2"):
            hidden = hidden @ self.arrays[f"weight{layer}"].T + self.arrays[f"bias{layer}"]
            hidden = np.maximum(hidden, 0)
        answer = hidden @ self.arrays["weight3"].T + self.arrays["bias3"]
        answer += inputs @ self.arrays["direct"].T
        return np.asarray(answer * self.arrays["scale"] + self.arrays["rest"], np.float32)

    def motion(self, faces: Sequence[Face]) -> Motion:
        """Pictures of one person as motion, each by itself."""
        seen = self.features(faces)
        return Motion(self(seen, np.median(seen, axis=0)), self.layout)

    def reads_as(self, about: dict[str, Any]) -> bool:
        """Whether it was learnt just so."""
        return {name: value for name, value in self.about.items() if name != "errors"} == about

    def save(self, path: Path) -> None:
        """Write an `.npz` that `load` reads; whole or not at all."""
        texts = {"layout": self.layout.to_json(), "about": json.dumps(self.about)}
        save_named(path, self.arrays | {name: np.array(text) for name, text in texts.items()})

    @classmethod
    def load(cls, path: Path) -> Regressor:
        """Read what `save` wrote.

        Raises:
            CorpusError: the file is damaged, or none.
        """
        try:
            arrays = dict(load_named(path))
            layout = Layout.from_json(str(arrays.pop("layout")))
            about = json.loads(str(arrays.pop("about")))
        except (ArrayFileError, KeyError, ValueError) as error:
            raise CorpusError(f"{path} is no regressor ({error}): remove it") from error
        for name, array in arrays.items():
            if array.dtype == np.float16:  # as it is shipped
                arrays[name] = array.astype(np.float32)
        return cls(arrays, layout, about)


def learnt(
    asset: HeadAsset, landmarker: Landmarker, lessons: Lessons = LESSONS, folder: Path | None = None
) -> Regressor:
    """The regressor of a head for a landmarker; learnt once, then kept.

    That of the built-in head comes with the project (infra/ship_face_reader.py).

    Args:
        asset: the head.
        landmarker: what it will read.
        lessons: how it is learnt.
        folder: where it is kept; None = the user's cache (`XDG_CACHE_HOME`).
    """
    about = {
        "version": VERSION,
        "head": _digest(asset),
        "landmarker": landmarker.digest,
        "tracker": tracker_version(),
        **asdict(lessons),
    }
    if SHIPPED.is_file() and (regressor := Regressor.load(SHIPPED)).reads_as(about):
        return regressor
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    path = (folder or _cache()) / f"face-{asset.topology}-{key[:16]}.npz"
    if path.is_file():
        regressor = Regressor.load(path)
        logger.info(f"  the face reader of this head is kept: {path}")
        return regressor
    logger.info(
        f"  learning to read the {asset.topology} head off landmarks, from "
        f"{lessons.people * lessons.pictures} drawn pictures; it is kept for the next time"
    )
    models = Models(asset, lessons.seed)
    example = see(models, landmarker, lessons.people, lessons.pictures)
    regressor = learn(example, asset, lessons)
    regressor.about = about | {"errors": strangers(regressor, asset, landmarker, lessons)}
    regressor.save(path)
    return regressor


def strangers(
    regressor: Regressor, asset: HeadAsset, landmarker: Landmarker, lessons: Lessons
) -> dict[str, dict[str, Any]]:
    """`errors` on drawn people whom the regressor does not know: speakers and listeners."""
    models = Models(asset, _STRANGERS_SEED)
    gauge = Gauge(asset)
    pairs: dict[str, list[tuple[Motion, Motion]]] = {"speakers": [], "listeners": []}
    for number in range(lessons.strangers):
        moving = models.moving(number)
        start = (len(moving) - _STRANGERS_FRAMES) // 2
        drawn = models.pictured(number, moving.window(start, _STRANGERS_FRAMES))
        faces = [landmarker(image) for image in drawn.images]
        kept = [index for index, face in enumerate(faces) if face is not None]
        truth = Motion(drawn.motion.values[kept], drawn.motion.layout)
        read = regressor.motion([face for face in faces if face is not None])
        pairs[("speakers", "listeners")[number % 2]].append((truth, read))
    return {who: errors(gauge, of) for who, of in pairs.items()}


def _digest(asset: HeadAsset) -> str:
    digest = hashlib.sha256()
    for array in (asset.v_template, asset.faces, asset.shapedirs, asset.exprdirs, asset.eyelids):
        if array is not None:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "rapport"


class _Network(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.third = nn.Linear(hidden, outputs)
        self.direct = nn.Linear(inputs, outputs, bias=False)
        self.drop = nn.Dropout(0.1)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.first(self.drop(inputs)))
        hidden = torch.relu(self.second(self.drop(hidden)))
        answer: Tensor = self.third(hidden) + self.direct(inputs)
        return answer


def learn(example: Example, asset: HeadAsset, lessons: Lessons = LESSONS) -> Regressor:
    """Fit a regressor to drawn faces.

    Errors count by how far they move the vertices of the head at rest, and a little by themselves.
    """
    mean = mean_face(upright(example.faces))
    raw = features(example.faces, mean)
    centre = raw.mean(axis=0)
    spread = raw.std(axis=0) + 1e-4
    scaled = (raw - centre) / spread
    _, sizes, rows = np.linalg.svd(scaled[: 4 * raw.shape[1]], full_matrices=False)
    kept = rows[: lessons.components] * np.sqrt(len(scaled)) / sizes[: lessons.components, None]
    components = kept.T.astype(np.float32)
    seen = scaled @ components
    usual = np.stack(
        [np.median(seen[example.people == person], axis=0) for person in example.people]
    )
    values = example.motion.values
    rest = values.mean(axis=0)
    scale = values.std(axis=0) + 1e-6
    network = _fit(
        np.concatenate([seen, usual], axis=1),
        (values - rest) / scale,
        _weights(asset, example.motion.layout, scale),
        lessons,
    )
    arrays = {
        "mean": mean,
        "centre": centre,
        "spread": spread,
        "components": components,
        "reach": np.array(np.quantile(np.linalg.norm(usual, axis=1), 0.9)),
        "rest": rest,
        "scale": scale,
        "direct": network.direct.weight.detach().numpy(),
    }
    for number, layer in enumerate((network.first, network.second, network.third), 1):
        arrays[f"weight{number}"] = layer.weight.detach().numpy()
        arrays[f"bias{number}"] = layer.bias.detach().numpy()
    return Regressor(arrays, example.motion.layout, {})


def _weights(asset: HeadAsset, layout: Layout, scale: np.ndarray) -> np.ndarray:
    """(dim, n): how errors of the scaled coefficients move the head, as far as matters."""
    head = FlameHead(asset)
    steps = np.concatenate([np.zeros((1, layout.dim)), 0.1 * np.diag(scale)]).astype(np.float32)
    rot = layout.columns("rot")
    steps[:, rot] = 0  # it moves all: counted by itself
    vertices = head.vertices_of(Motion(steps, layout)).astype(np.float64)
    ways = (vertices[1:] - vertices[:1]).reshape(layout.dim, -1) / 0.1
    gram = ways @ ways.T
    gram /= np.trace(gram)
    gram[rot, rot] += np.eye(3) / 10
    gram += np.eye(layout.dim) / (4 * layout.dim)
    return np.linalg.cholesky(gram)


def _fit(
    inputs: np.ndarray, targets: np.ndarray, weights: np.ndarray, lessons: Lessons
) -> _Network:
    torch.manual_seed(lessons.seed)
    network = _Network(inputs.shape[1], lessons.hidden, targets.shape[1])
    x = torch.from_numpy(inputs.astype(np.float32))
    y = torch.from_numpy(targets.astype(np.float32))
    toll = torch.from_numpy(weights.astype(np.float32))
    batch = 256
    steps = lessons.epochs * -(-len(x) // batch)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    order = torch.Generator().manual_seed(lessons.seed)
    for _ in range(lessons.epochs):
        for rows in torch.randperm(len(x), generator=order).split(batch):
            loss = ((network(x[rows]) - y[rows]) @ toll).square().sum(1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval()
