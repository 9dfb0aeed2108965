"""A listener by ridge regression: for every speaker the one answer that is least wrong on average.

It stands where REACT's Trans-AE does among baselines: everything that the speaker does goes in, a
deterministic least-squares answer comes out. It is linear and solved in closed form; a transformer
trained to the same error collapses towards the same conditional mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rapport.policies.clip import AUDIO_RATE, Clip
from rapport.policies.motion import Layout, Motion
from rapport.policies.vla.actions import spline_basis

_BLOCKS_PER_SECOND = 5  # knots of the default action space: what a policy here predicts
# How long ago the speaker did it, in blocks: finer for what was just now.
_LAGS = (0, 1, 2, 4, 6, 9, 13, 20)
_RIDGES = 10.0 ** np.arange(0, 7)  # tried on the last quarter of the training clips
_FEWEST = 8  # clips to train on
_QUIET = 1e-6  # power that silence counts as, of 1 at most


# Below this deviation, relative to its size, a column is constant but for the rounding of float32.
_CONSTANT = 1e-5


class RegressionError(ValueError):
    """There is nothing to regress on, or too little; the message says what is missing."""


@dataclass(frozen=True, eq=False)
class RegressionListener:
    """Ridge regression from what the speaker has done so far to how the listener moves now.

    Everything is a mean over a block of 0.2 s, standardised. Features are the speaker's motion and
    the sound levels of both in the last 4 s, as far as the clips have them, and the speaker's past.
    What is constant in training is no feature, and is answered as it was.

    Args:
        layout: of the answers.
        ridges: of each group, chosen on held-back training clips: what can be foretold of one group
            is not drowned by what cannot of the others.
        x_mean: (cues,) mean over the training clips.
        x_scale: (cues,) standard deviation over the training clips, 1 where constant.
        mean: (dim,) mean of the targets.
        scale: (dim,) standard deviation of the targets, 1 where constant.
        moves: (dim,) whether the targets of a column vary.
        weights: (lags * cues, dim).
    """

    layout: Layout
    ridges: dict[str, float]
    x_mean: np.ndarray
    x_scale: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    moves: np.ndarray
    weights: np.ndarray

    @classmethod
    def fit(cls, clips: Iterable[Clip], layout: Layout) -> RegressionListener:
        """Fit to clips of one length.

        Args:
            clips: training clips; neighbours share a dyad.
            layout: groups of the listener to answer with.

        Raises:
            RegressionError: the clips have neither speaker motion nor sound, or there are fewer
                than 8.
        """
        seen = []
        answers = []
        for clip in clips:
            seen.append(cues(clip))
            answers.append(targets(clip.listener, layout))
        if len(seen) < _FEWEST:
            raise RegressionError(
                f"{len(seen)} training clips, a regression needs {_FEWEST} or more"
            )
        y = np.stack(answers)
        if not y.size:
            raise RegressionError("clips are shorter than the 0.2 s that an answer is a mean of")
        blocks = y.shape[1]
        now = np.stack([track[-blocks:] for track in seen])
        x_mean = now.mean(axis=(0, 1))
        x_scale, _ = _scale(now, axis=(0, 1))
        mean = y.mean(axis=(0, 1))
        scale, moves = _scale(y, axis=(0, 1))
        y = (y - mean) / scale
        x = np.stack([_lagged((track - x_mean) / x_scale, blocks) for track in seen])
        ridges = _best_ridges(x, y, layout)
        moments = _moments(x, y)
        weights = np.empty((x.shape[-1], layout.dim))
        for group, ridge in ridges.items():
            weights[:, layout.columns(group)] = _solve(*moments, ridge)[:, layout.columns(group)]
        return cls(
            layout=layout,
            ridges=ridges,
            x_mean=x_mean,
            x_scale=x_scale,
            mean=mean,
            scale=scale,
            moves=moves,
            weights=weights,
        )

    def standardised(self, clip: Clip) -> np.ndarray:
        """(blocks, dim) answer in standard deviations from the mean of the training listeners."""
        track = (cues(clip) - self.x_mean) / self.x_scale
        blocks = len(clip.listener) // _block_frames(self.layout)
        return np.asarray(_lagged(track, blocks) @ self.weights)

    def __call__(self, clip: Clip) -> Motion:
        """The answer to a clip's speaker, splined through the blocks.

        Frames after the last whole block are left out.
        """
        blocks = self.standardised(clip) * self.scale + self.mean
        frames = len(blocks) * _block_frames(self.layout)
        return Motion(spline_basis(frames, len(blocks)) @ blocks, self.layout)


def cues(clip: Clip) -> np.ndarray:
    """(blocks, cues) float64 of what the listener hears and sees, in blocks of 0.2 s.

    It ends with the clip and begins with its past, where the clip has one. A listener's own voice,
    of which no past is known, is heard where the clip has it; before, it is taken as silent.

    Raises:
        RegressionError: the clip has neither motion nor sound of the speaker.
    """
    parts = []
    past = clip.past
    if clip.speaker is not None:
        block = _block_frames(clip.speaker.layout)
        parts.append(_block_means(clip.speaker.values, block))
        if past is not None and past.speaker is not None:
            parts[-1] = np.concatenate([_before(past.speaker.values, block), parts[-1]])
    block = AUDIO_RATE // _BLOCKS_PER_SECOND
    if clip.speaker_audio is not None:
        power = _block_means(clip.speaker_audio[:, None] ** 2, block)
        if past is not None and past.speaker_audio is not None:
            before = _before(past.speaker_audio[:, None] ** 2, block)
            power = np.concatenate([before, power])
        parts.append(np.log10(power + _QUIET))
    if not parts:
        raise RegressionError(
            f"clip {clip.clip_id!r} has neither speaker motion nor sound: nothing to regress on"
        )
    if clip.listener_audio is not None:
        power = _block_means(clip.listener_audio[:, None] ** 2, block)
        earlier = max(0, max(map(len, parts)) - len(power))
        power = np.pad(power, ((earlier, 0), (0, 0)))
        parts.append(np.log10(power + _QUIET))
    blocks = min(map(len, parts))
    return np.concatenate([part[-blocks:] if blocks else part[:0] for part in parts], axis=1)


def targets(listener: Motion, layout: Layout) -> np.ndarray:
    """(blocks, dim) float64: means of the listener's groups in blocks of 0.2 s."""
    block = _block_frames(layout)
    return _block_means(listener.subset(layout).values, block).astype(np.float64)


def _scale(values: np.ndarray, axis: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations of the last axis, 1 where a column is constant, and which vary."""
    deviation = values.std(axis=axis)
    varies = deviation > _CONSTANT * (1e-3 + np.abs(values).max(axis=axis))
    return np.where(varies, deviation + 1e-8, 1.0), varies


def _block_frames(layout: Layout) -> int:
    return round(layout.fps / _BLOCKS_PER_SECOND)


def _lagged(track: np.ndarray, blocks: int) -> np.ndarray:
    """Means over the stretches between `_LAGS` before each of the last `blocks` of a track.

    Args:
        track: (time, cues), standardised: what was before it is taken as 0, the mean.
        blocks: whose features are wanted; a block sees itself and what was before.

    Returns:
        (blocks, lags * cues) float32.
    """
    sums = np.cumsum(np.concatenate([np.zeros((_LAGS[-1] + 1, track.shape[1])), track]), axis=0)
    last = np.arange(len(sums) - blocks, len(sums))
    means = [(sums[last - near] - sums[last - far]) / (far - near) for near, far in pairwise(_LAGS)]
    return np.concatenate(means, axis=1).astype(np.float32)


def _best_ridges(x: np.ndarray, y: np.ndarray, layout: Layout) -> dict[str, float]:
    """Group -> the ridge with the least error on the last quarter of the clips.

    Args:
        x: (clips, blocks, features).
        y: (clips, blocks, dim).
        layout: of the targets.
    """
    # The last ones, not random ones: neighbours share a dyad, which must not be parted.
    first = len(x) * 3 // 4
    moments = _moments(x[:first], y[:first])
    errors = []  # (ridges, dim)
    for ridge in _RIDGES:
        predicted = x[first:] @ _solve(*moments, ridge)
        errors.append(np.mean((predicted - y[first:]) ** 2, axis=(0, 1)))
    ridges = {}
    for group in layout.names:
        of_group = np.sum(np.stack(errors)[:, layout.columns(group)], axis=1)
        ridges[group] = float(_RIDGES[int(np.argmin(of_group))])
    return ridges


def _moments(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Second moments of the features, and of them with the targets, float64."""
    features = x.reshape(-1, x.shape[-1]).astype(np.float64)
    return features.T @ features, features.T @ y.reshape(-1, y.shape[-1])


def _solve(squares: np.ndarray, products: np.ndarray, ridge: float) -> np.ndarray:
    """Weights (features, dim) of ridge regression; both are standardised, so there is no offset."""
    return np.asarray(np.linalg.solve(squares + ridge * np.eye(len(squares)), products))


def _block_means(values: np.ndarray, block: int) -> np.ndarray:
    """Means of consecutive blocks of `block` rows of (time, dim); a short last one is dropped."""
    count = len(values) // block
    return values[: count * block].reshape(count, block, values.shape[1]).mean(axis=1)


def _before(values: np.ndarray, block: int) -> np.ndarray:
    """`_block_means` that end with the last row."""
    return _block_means(values[len(values) % block :], block)
