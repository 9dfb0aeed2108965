"""Faces of a head that somebody drew: what a tracker of real ones learns from.

Nobody has to label them, and no recording of a person is needed: the coefficients are known, the
head is drawn with them, and the landmarker sees what it would see of a person. Motion is that of
the synthetic corpus' speakers and listeners, and on half of the pictures more than that: any
expressions, turns, lids and gaze, apart from each other, so that none is read from another.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from rapport.pipeline.data.synthetic.face import FaceBasis
from rapport.pipeline.data.synthetic.generate import (
    Conversation,
    Design,
    listener_of,
    speaker_of,
)
from rapport.pipeline.data.synthetic.speaker import motion_of
from rapport.policies.head.arkit import EXPRESSIONS
from rapport.policies.head.asset import HeadAsset, load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.raster import Rasterizer
from rapport.policies.motion import Layout, Motion

SIZE = 256  # pixels: as much as the landmarker looks at
EXPR = 50
_SHAPE_DIMS = 20  # identity coefficients
_SHAPE_STD = 0.7
_JPEG = (40, 95)  # quality, from a bad call to a good one


def tracked_layout(asset: HeadAsset, fps: float) -> Layout:
    """What can be told of a face by its landmarks: of neck and place, nothing."""
    lids = () if asset.eyelids is None else (("eyelid", 2),)
    groups = (("expr", EXPR), ("jaw", 3), *lids, ("eyepose", 6), ("rot", 3))
    return Layout(groups, fps, asset.topology)


@dataclass(frozen=True, eq=False)
class Drawn:
    """Pictures of one person.

    Args:
        motion: (pictures, dim) that they show, in `tracked_layout`.
        shape: (n,) the person's identity.
        images: (pictures, SIZE, SIZE, 3) uint8.
    """

    motion: Motion
    shape: np.ndarray
    images: np.ndarray


class Models:
    """People who sit for their pictures.

    Args:
        asset: the head that they have.
        seed: other seeds are other people.
    """

    def __init__(self, asset: HeadAsset, seed: int = 0) -> None:
        self.asset = asset
        self.seed = seed
        self.layout = tracked_layout(asset, 25.0)
        self._head = FlameHead(asset)
        self._basis = FaceBasis.from_head(load_head())

    def draw(self, people: int, pictures: int) -> Iterator[Drawn]:
        """So many people, as many pictures of each; speakers and listeners in turn."""
        for number in range(people):
            rng = np.random.default_rng([self.seed, number])
            moving = self.moving(number)
            # Half of the pictures as people are, half with more.
            frames = np.sort(rng.choice(len(moving), pictures, replace=pictures > len(moving)))
            values = self._more(rng, moving.values[frames], rng.random(pictures) < 0.5)
            yield self.pictured(number, Motion(values, self.layout))

    def moving(self, number: int) -> Motion:
        """How person `number` moves through a conversation."""
        talk = Conversation("train", number // 2, 1, design=Design(listeners=1), seed=self.seed)
        speaker = speaker_of(talk)
        if number % 2:
            motion = listener_of(talk, speaker, 0).motion
        else:
            motion = motion_of(talk.rng(1), self._basis, speaker)
        return self._on_this_head(np.random.default_rng([self.seed, number, 1]), motion)

    def _on_this_head(self, rng: np.random.Generator, motion: Motion) -> Motion:
        """The motion in `tracked_layout`; another head shows expressions of its own instead."""
        values = np.zeros((len(motion), self.layout.dim), np.float32)
        for name, width in self.layout.groups:
            values[:, self.layout.columns(name)] = motion.group(name)[:, :width]
        values[:, self.layout.columns("rot")] += motion.group("neck")
        if self.asset.topology != motion.layout.topology:
            # As lively as the built-in ones, along directions of this head: FLAME's are scaled to
            # one standard deviation.
            size = np.linalg.norm(motion.group("expr"), axis=1, keepdims=True)
            mixed = motion.group("expr") @ rng.normal(size=(EXPR, EXPR)) / np.sqrt(EXPR)
            scaled = mixed / np.maximum(np.linalg.norm(mixed, axis=1, keepdims=True), 1e-6)
            values[:, self.layout.columns("expr")] = scaled * size
        return Motion(values, self.layout)

    def _more(self, rng: np.random.Generator, values: np.ndarray, more: np.ndarray) -> np.ndarray:
        """The motion with more of everything in those rows, each part by its own chance."""
        values = values.copy()
        count = len(values)

        def some(chance: float) -> np.ndarray:
            return more & (rng.random(count) < chance)

        def part(name: str) -> np.ndarray:
            columns: np.ndarray = values[:, self.layout.columns(name)]
            return columns

        rows = some(0.8)
        part("expr")[rows] += self._expressions(rng, int(rows.sum()))
        rows = some(0.5)
        part("jaw")[rows, 0] += rng.uniform(0, 0.3, rows.sum())
        part("jaw")[rows, 1:] += rng.normal(0, 0.02, (rows.sum(), 2))
        rows = some(0.5)
        part("rot")[rows] += rng.normal(0, 1, (rows.sum(), 3)) * (0.15, 0.25, 0.1)
        rows = some(0.5)
        gaze = rng.normal(0, 1, (rows.sum(), 3)) * (0.15, 0.25, 0.0)
        part("eyepose")[rows] += np.tile(gaze, 2)
        if "eyelid" in self.layout.names:
            rows = some(0.3)
            part("eyelid")[rows] = rng.uniform(0, 1, (rows.sum(), 1))
        return values

    def _expressions(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """(count, EXPR) random expressions, from hardly visible to strong."""
        size = rng.exponential(0.5, (count, 1))
        names = [name for name in EXPRESSIONS if name in self.asset.arkit]
        if not names:
            return np.asarray(size * rng.normal(0, 1, (count, EXPR)))
        table = np.stack([self.asset.arkit[name][:EXPR] for name in names])
        chosen = rng.random((count, len(names))) < 4 / len(names)
        return np.asarray(size * rng.random((count, len(names))) * chosen @ table)

    def pictured(self, number: int, motion: Motion) -> Drawn:
        """Pictures of person `number`: their skin and identity, their light and camera."""
        rng = np.random.default_rng([self.seed, number, 2])
        shape = (_SHAPE_STD * rng.normal(size=_SHAPE_DIMS)).astype(np.float32)
        shape[:4] *= 0.6  # the first directions can square the skull
        # Skin from pale to dark, and how red it is; eyes and brows with it.
        tint = rng.uniform(0.25, 1.25) * rng.normal(1, 0.08, 3)
        colors = np.clip(self.asset.colors * tint, 0, 1).astype(np.float32)
        rasterizer = Rasterizer(replace(self.asset, colors=colors), SIZE, supersample=2)
        vertices = self._head.vertices_of(motion, shape)
        zoom = rng.uniform(0.85, 1.2)
        shift = rng.normal(0, 0.008, 3) * (1, 1, 0)
        vertices = (vertices - rasterizer.center) * zoom + rasterizer.center + shift
        images = rasterizer.render(vertices.astype(np.float32))
        light = _light(rng)
        seen = [_as_sent(image, light, int(rng.integers(*_JPEG))) for image in images]
        return Drawn(motion, shape, np.stack(seen))


def _light(rng: np.random.Generator) -> np.ndarray:
    """How much brighter each place of a picture is than drawn, (SIZE, SIZE, 3)."""
    x, y = np.meshgrid(np.linspace(-1, 1, SIZE), np.linspace(-1, 1, SIZE))
    slope = rng.normal(0, 0.25, 2)
    level = rng.uniform(0.6, 1.3) * (1 + slope[0] * x + slope[1] * y)
    return np.asarray(level[..., None] * rng.normal(1, 0.05, 3), np.float32)


def _as_sent(image: np.ndarray, light: np.ndarray, quality: int) -> np.ndarray:
    """A picture in that light, as a call of that quality shows it."""
    lit = np.clip(image * light, 0, 255).astype(np.uint8)
    sent = io.BytesIO()
    Image.fromarray(lit).save(sent, "JPEG", quality=quality)
    return np.asarray(Image.open(sent))
