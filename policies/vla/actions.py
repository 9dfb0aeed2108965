"""Action tokens: listener motion <-> knots <-> one of 256 bins per knot and dimension.

The paper (VLA + DPO, section III-C2, Eq. 5-6) gives every frame and dimension a token. At the
corpus rate that is 5,600 tokens for 4 s, so actions are knots at a lower rate (5 Hz) that a
quadratic B-spline takes to the corpus rate: 20 knots x 56 dimensions = 1,120 tokens. A frame needs
the knot of its own block and those beside it, so a motion can be drawn while it is being sampled,
one block behind the newest knot.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from rapport.policies.motion import Layout, LayoutError, Motion, require_same_layout

FILE_NAME = "action_space.json"
# The paper's pose tokens; every other group is expression.
HEAD_POSE_GROUPS = ("rot", "neck", "trans")
# What is this close to a whole number is one: rates and durations are written as decimals.
WHOLE_TOLERANCE = 1e-6


class ActionError(ValueError):
    """Action tokens, knots or their description do not fit."""


def whole(value: float, what: str) -> int:
    """`value` as an integer.

    Args:
        value: a positive whole number, up to rounding.
        what: its name in the message.

    Raises:
        ActionError: it is not.
    """
    if abs(value - round(value)) > WHOLE_TOLERANCE or round(value) < 1:
        raise ActionError(f"{what} must be a positive whole number, got {value:g}")
    return round(value)


def spline_basis(frames: int, knots: int) -> np.ndarray:
    """Matrix (frames, knots) that evaluates the quadratic B-spline of knots.

    Each knot belongs to one of `knots` equal blocks of frames. The first and the last knot stand
    also for those before and after them, so a constant face stays constant.
    """
    if not 1 <= knots <= frames:
        raise ActionError(
            f"a spline of {frames} frames needs between 1 and {frames} knots, got {knots}"
        )
    block, weights = _spline_weights((np.arange(frames) + 0.5) * knots / frames)
    basis = np.zeros((frames, knots))
    for offset, weight in zip((-1, 0, 1), weights, strict=True):
        np.add.at(basis, (np.arange(frames), np.clip(block + offset, 0, knots - 1)), weight)
    return basis


@cache
def _spline_inverse(frames: int, knots: int) -> np.ndarray:
    """The knots that fit frames best by least squares, (knots, frames)."""
    return np.linalg.pinv(spline_basis(frames, knots))


def _spline_weights(place: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """The block that each frame is in, and the weights of the knots before, of and after it.

    Args:
        place: (frames,) where the middle of each frame is, in blocks.
    """
    block = np.floor(place).astype(int)
    u = place - block
    return block, (0.5 * (1 - u) ** 2, 0.5 + u * (1 - u), 0.5 * u**2)


@dataclass(frozen=True, eq=False)
class Drawn:
    """How far a motion has been drawn whose knots come one after the other.

    Args:
        knots: how many there have been.
        last: the newest two of them, or as many as there are, (n, dims).
        frames: how many frames are drawn.
    """

    knots: int
    last: np.ndarray
    frames: int


@dataclass(frozen=True)
class ActionSpace:
    """What an action sequence stands for.

    Args:
        layout: columns and frame rate of the motion it decodes to, a subset of the corpus layout.
        rate: knots per second.
        seconds: horizon.
    """

    layout: Layout
    rate: float = 5.0
    seconds: float = 4.0

    def __post_init__(self) -> None:
        if self.steps > self.frames:
            raise ActionError(
                f"{self.rate:g} knots per second are more than {self.layout.fps:g} frames per "
                "second"
            )

    @property
    def steps(self) -> int:
        """Knots of one action sequence, S."""
        return whole(
            self.rate * self.seconds, f"rate {self.rate:g} Hz x horizon {self.seconds:g} s"
        )

    @property
    def frames(self) -> int:
        """Frames of one action sequence at the rate of `layout`, T."""
        return whole(
            self.layout.fps * self.seconds, f"{self.layout.fps:g} fps x horizon {self.seconds:g} s"
        )

    @property
    def dims(self) -> int:
        """Columns of the layout, one token of each step for each."""
        return self.layout.dim

    @property
    def tokens(self) -> int:
        """Tokens of one action sequence."""
        return self.steps * self.dims

    @property
    def expression(self) -> np.ndarray:
        """(dims,) bool: True where a dimension moves the face, False where it moves the head."""
        groups = self.layout.groups
        return np.concatenate(
            [np.full(width, name not in HEAD_POSE_GROUPS) for name, width in groups]
        )

    @property
    def pose(self) -> list[int]:
        """Numbers of the dimensions that move the head."""
        numbers: list[int] = np.flatnonzero(~self.expression).tolist()
        return numbers

    @cached_property
    def basis(self) -> np.ndarray:
        """The spline through the knots, (frames, steps)."""
        return spline_basis(self.frames, self.steps)

    @cached_property
    def inverse(self) -> np.ndarray:
        """The knots that fit a motion best by least squares, (steps, frames)."""
        return _spline_inverse(self.frames, self.steps)

    def to_knots(self, motion: Motion) -> np.ndarray:
        """Knots (steps, dims) whose spline is nearest to the motion.

        Exact for a motion that `to_motion` returned. Raises `LayoutError` unless the motion has the
        space's layout and length.
        """
        require_same_layout(motion.layout, self.layout, "encode motion as actions")
        if len(motion) != self.frames:
            raise LayoutError(
                f"actions cover {self.frames} frames, this motion has {len(motion)}; cut a "
                "window first"
            )
        return self.inverse @ motion.values.astype(np.float64)

    def to_motion(self, knots: np.ndarray) -> Motion:
        """The spline through knots (steps, dims), at the frame rate of `layout`."""
        if knots.shape != (self.steps, self.dims):
            raise ActionError(f"knots must be {(self.steps, self.dims)}, got {knots.shape}")
        return Motion(self.basis @ knots, self.layout)

    @property
    def start(self) -> Drawn:
        """Nothing is drawn yet."""
        return Drawn(knots=0, last=np.zeros((0, self.dims)), frames=0)

    def last_knot(self, motion: Motion) -> np.ndarray | None:
        """The last knot of what came before, (dims,); None where it is shorter than a block.

        Args:
            motion: of any length, in the space's layout.
        """
        require_same_layout(motion.layout, self.layout, "encode motion as actions")
        blocks = int(len(motion) * self.rate / self.layout.fps + WHOLE_TOLERANCE)
        if not blocks:
            return None
        frames = round(blocks * self.layout.fps / self.rate)
        inverse = _spline_inverse(frames, blocks)
        knot: np.ndarray = inverse[-1] @ motion.values[-frames:].astype(np.float64)
        return knot

    def frames_of(self, blocks: int) -> int:
        """How many frames the first blocks have."""
        return math.ceil(blocks * self.layout.fps / self.rate - 0.5 - WHOLE_TOLERANCE)

    def draw(
        self, drawn: Drawn, knots: np.ndarray, *, ends: bool = False
    ) -> tuple[np.ndarray, Drawn]:
        """What more of a motion can be drawn now that more knots are known.

        Motions drawn piece by piece are those of `to_motion`, however long. A frame is drawn once
        the knot after its block is known.

        Args:
            drawn: what has been drawn.
            knots: the next ones, (n, dims).
            ends: whether there will be no more: the last block is drawn, too.

        Returns:
            the new frames (n, dims) float64, and what has been drawn with them.
        """
        known = np.concatenate([drawn.last, knots])
        count = drawn.knots + len(knots)
        first = count - len(known)  # number of the oldest knot that is still known
        blocks = count if ends else max(count - 1, 0)
        frames = np.arange(drawn.frames, max(self.frames_of(blocks), drawn.frames))
        block, weights = _spline_weights((frames + 0.5) * self.rate / self.layout.fps)
        values = np.zeros((len(frames), self.dims))
        for offset, weight in zip((-1, 0, 1), weights, strict=True):
            values += weight[:, None] * known[np.clip(block + offset, 0, count - 1) - first]
        state = Drawn(knots=count, last=known[-2:], frames=drawn.frames + len(frames))
        return values, state


def fit_bounds(
    knots: Iterable[np.ndarray], tail: float = 1.0, max_rows: int = 200_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Per-dimension bin range of a corpus (section III-C2: the top and bottom 1 % are cut off).

    Args:
        knots: arrays (steps, dims), streamed; never all in memory.
        tail: percent cut off at each end.
        max_rows: percentiles are exact up to this many rows and over a uniform sample of this size
            beyond.
        seed: of that sample.

    Returns:
        The lower and the upper bound, (dims,) float64 each.

    Raises:
        ActionError: there are no knots, or some are not finite.
    """
    rng = np.random.default_rng(seed)
    rows: list[np.ndarray] = []
    keys: list[np.ndarray] = []
    count = 0
    for part in knots:
        rows.append(np.asarray(part, dtype=np.float32))
        keys.append(rng.random(len(part)))
        count += len(part)
        # Every row has a random key, and the rows with the smallest keys are a uniform sample.
        if count > 2 * max_rows:
            sample, sample_keys = _smallest(rows, keys, max_rows)
            rows = [sample]
            keys = [sample_keys]
            count = max_rows
    if not count:
        raise ActionError("no knots to fit the action bins on: the training corpus is empty")
    sample, _ = _smallest(rows, keys, max_rows)
    if not np.isfinite(sample).all():
        raise ActionError(
            "NaN or infinity among the knots; drop or repair these clips before fitting the bins"
        )
    low, high = np.percentile(sample.astype(np.float64), [tail, 100 - tail], axis=0)
    return low, high


def _smallest(
    rows: list[np.ndarray], keys: list[np.ndarray], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` rows of the smallest keys, in the order they came, and their keys."""
    all_rows = np.concatenate(rows)
    all_keys = np.concatenate(keys)
    if len(all_keys) <= count:
        return all_rows, all_keys
    chosen = np.sort(np.argpartition(all_keys, count)[:count])
    return all_rows[chosen], all_keys[chosen]


@dataclass(frozen=True, eq=False)
class ActionTokenizer:
    """Knots <-> token ids, step by step and within a step in the order of the layout's columns.

    A token says how far its dimension is from where it rests: uniform bins between `low` and `high`
    (Eq. 5); values outside are clipped; a token stands for the centre of its bin (Eq. 6). Bin 0 is
    `first_token`, ids rise with the value and take the last `bins` ids of the language model's
    vocabulary (the place OpenVLA uses). A dimension that never moves in the corpus (low == high)
    keeps bin 0 and its constant value.

    So people with different faces do the same when they smile, and nothing of whose face it is has
    to be learnt.

    Args:
        space: what the knots are.
        low: (dims,) lower end of the bins, from the face at rest.
        high: (dims,) upper end.
        first_token: id of bin 0.
        bins: bins of every dimension.
        rest: (dims,) the face at rest of somebody of whom nothing is known; None = zeros.
    """

    space: ActionSpace
    low: np.ndarray
    high: np.ndarray
    first_token: int
    bins: int = 256
    rest: np.ndarray | None = None

    def __post_init__(self) -> None:
        low = np.asarray(self.low, dtype=np.float64)
        high = np.asarray(self.high, dtype=np.float64)
        if low.shape != (self.space.dims,) or high.shape != low.shape:
            raise ActionError(
                f"bin bounds must be ({self.space.dims},), got {low.shape} and {high.shape}"
            )
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()):
            raise ActionError("bin bounds must be finite with low <= high in every dimension")
        rest = np.zeros(self.space.dims) if self.rest is None else np.asarray(self.rest, np.float64)
        if rest.shape != low.shape or not np.isfinite(rest).all():
            raise ActionError(f"a face at rest must be ({self.space.dims},), finite; {rest.shape}")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)
        object.__setattr__(self, "rest", rest)

    @property
    def moves(self) -> np.ndarray:
        """(dims,) bool: False where the corpus holds a constant."""
        return self.high > self.low

    @cached_property
    def centres(self) -> np.ndarray:
        """How far from rest every bin is, (dims, bins)."""
        fraction = (np.arange(self.bins) + 0.5) / self.bins
        centres: np.ndarray = self.low[:, None] + (self.high - self.low)[:, None] * fraction
        return centres

    def encode(self, knots: np.ndarray, rest: np.ndarray) -> np.ndarray:
        """Knots (steps, dims) of somebody with a face at rest (dims,) -> ids (steps * dims,)."""
        if knots.ndim != 2 or knots.shape[1] != self.space.dims:
            raise ActionError(f"knots must be (steps, {self.space.dims}), got {knots.shape}")
        width = np.where(self.moves, self.high - self.low, 1.0)
        fraction = np.where(self.moves, (knots - rest - self.low) / width, 0.0)
        bins = np.clip(np.floor(fraction * self.bins), 0, self.bins - 1).astype(np.int64)
        tokens: np.ndarray = bins.reshape(-1) + self.first_token
        return tokens

    def decode(self, tokens: np.ndarray, rest: np.ndarray) -> np.ndarray:
        """Token ids (steps * dims,) on a face at rest (dims,) -> knots (steps, dims).

        Raises:
            ActionError: some ids are no actions.
        """
        tokens = np.asarray(tokens, dtype=np.int64)
        if tokens.ndim != 1 or len(tokens) % self.space.dims:
            raise ActionError(
                f"action tokens must be (steps * {self.space.dims},), got {tokens.shape}"
            )
        bins = (tokens - self.first_token).reshape(-1, self.space.dims)
        outside = np.argwhere((bins < 0) | (bins >= self.bins))
        if len(outside):
            step, dim = outside[0]
            raise ActionError(
                f"token {bins[step, dim] + self.first_token} at step {step}, dimension {dim} is "
                f"no action: actions are [{self.first_token}, {self.first_token + self.bins})"
            )
        knots: np.ndarray = rest + self.centres[np.arange(self.space.dims), bins]
        return knots

    def to_tokens(self, motion: Motion, rest: np.ndarray) -> np.ndarray:
        """Motion of exactly the space's layout and length -> token ids (steps * dims,)."""
        return self.encode(self.space.to_knots(motion), rest)

    def to_motion(self, tokens: np.ndarray, rest: np.ndarray) -> Motion:
        """Token ids (steps * dims,) of a whole action sequence -> motion."""
        return self.space.to_motion(self.decode(tokens, rest))

    def to_json(self) -> str:
        """A text that `from_json` reads."""
        values = {
            "layout": json.loads(self.space.layout.to_json()),
            "rate": self.space.rate,
            "seconds": self.space.seconds,
            "bins": self.bins,
            "first_token": self.first_token,
            "low": self.low.tolist(),
            "high": self.high.tolist(),
            "rest": np.asarray(self.rest).tolist(),
        }
        return json.dumps(values, indent=1)

    @classmethod
    def from_json(cls, text: str) -> ActionTokenizer:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        return cls(
            space=ActionSpace(Layout(**values["layout"]), values["rate"], values["seconds"]),
            low=np.array(values["low"]),
            high=np.array(values["high"]),
            first_token=values["first_token"],
            bins=values["bins"],
            rest=np.array(values["rest"]),
        )

    def save(self, folder: Path) -> None:
        """Write `action_space.json` into a folder."""
        (folder / FILE_NAME).write_text(self.to_json())

    @classmethod
    def load(cls, folder: Path) -> ActionTokenizer:
        """Read what `save` wrote.

        Raises:
            ActionError: the folder lacks `action_space.json`, without which its weights mean
                nothing.
        """
        file = folder / FILE_NAME
        if not file.is_file():
            raise ActionError(
                f"{file} is missing: its tokens cannot be turned into motion; save the "
                "checkpoint again"
            )
        return cls.from_json(file.read_text())

    @property
    def digest(self) -> str:
        """sha256 of everything that gives a token its meaning."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()
