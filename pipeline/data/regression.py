"""A listener by ridge regression: for every speaker the one answer that is least wrong on average.

It stands where REACT's Trans-AE does among baselines: everything that the speaker does goes in, a
deterministic least-squares answer comes out. It is linear and solved in closed form; a transformer
trained to the same error collapses towards the same conditional mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rapport.policies.clip import AUDIO_RATE, Clip
from rapport.policies.motion import Layout, Motion
from rapport.policies.vla.actions import spline_basis

_TARGETS_PER_SECOND = 5  # knots of the default action space: what a policy here predicts
_FEATURES_PER_SECOND = 1  # coarser: affect lasts for seconds, and clips are few
_RIDGES = 10.0 ** np.arange(-1, 7)  # tried on the last quarter of the training clips
_FEWEST = 8  # clips to train on


# Below this deviation, relative to its size, a column is constant but for the rounding of float32.
_CONSTANT = 1e-5


class RegressionError(ValueError):
    """There is nothing to regress on, or too little; the message says what is missing."""


@dataclass(frozen=True, eq=False)
class RegressionListener:
    """Ridge regression from what the speaker does over a clip to how the listener moves over it.

    Features are the speaker's motion and sound level in blocks of 1 s, as far as the clips have
    them, standardised. Targets are the listener's motion in blocks of 0.2 s, standardised. What is
    constant in training is no feature, and is answered as it was.

    Args:
        layout: of the answers.
        ridge: chosen on held-back training clips.
        x_mean: (features,) mean over the training clips.
        x_scale: (features,) standard deviation over the training clips, 1 where constant.
        mean: (dim,) mean of the targets.
        scale: (dim,) standard deviation of the targets, 1 where constant.
        moves: (dim,) whether the targets of a column vary.
        weights: (features, blocks * dim).
        offset: (blocks * dim,) mean standardised target.
    """

    layout: Layout
    ridge: float
    x_mean: np.ndarray
    x_scale: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    moves: np.ndarray
    weights: np.ndarray
    offset: np.ndarray

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
        inputs = []
        answers = []
        for clip in clips:
            inputs.append(features(clip))
            answers.append(targets(clip.listener, layout))
        if len(inputs) < _FEWEST:
            raise RegressionError(
                f"{len(inputs)} training clips, a regression needs {_FEWEST} or more"
            )
        x = np.stack(inputs)
        y = np.stack(answers)
        if not x.size or not y.size:
            raise RegressionError("clips are shorter than the second that a feature is a mean of")
        x_mean = x.mean(axis=0)
        x_scale, _ = _scale(x, axis=(0,))
        mean = y.mean(axis=(0, 1))
        scale, moves = _scale(y, axis=(0, 1))
        x = (x - x_mean) / x_scale
        y = ((y - mean) / scale).reshape(len(y), -1)
        ridge = _best_ridge(x, y)
        weights, offset = _solve(x, y, ridge)
        return cls(
            layout=layout,
            ridge=ridge,
            x_mean=x_mean,
            x_scale=x_scale,
            mean=mean,
            scale=scale,
            moves=moves,
            weights=weights,
            offset=offset,
        )

    def standardised(self, clip: Clip) -> np.ndarray:
        """(blocks, dim) answer in standard deviations from the mean of the training listeners."""
        x = (features(clip) - self.x_mean) / self.x_scale
        return (x @ self.weights + self.offset).reshape(-1, self.layout.dim)

    def __call__(self, clip: Clip) -> Motion:
        """The answer to a clip's speaker, splined through the blocks.

        Frames after the last whole block are left out.
        """
        blocks = self.standardised(clip) * self.scale + self.mean
        frames = len(blocks) * _block_frames(_TARGETS_PER_SECOND, self.layout)
        return Motion(spline_basis(frames, len(blocks)) @ blocks, self.layout)


def features(clip: Clip) -> np.ndarray:
    """(features,) float64 of the speaker.

    Raises:
        RegressionError: the clip has neither motion nor sound of the speaker.
    """
    parts = []
    if clip.speaker is not None:
        block = _block_frames(_FEATURES_PER_SECOND, clip.speaker.layout)
        parts.append(_block_means(clip.speaker.values, block).ravel())
    if clip.speaker_audio is not None:
        power = _block_means(clip.speaker_audio[:, None] ** 2, AUDIO_RATE // _FEATURES_PER_SECOND)
        parts.append(np.log10(power.ravel() + 1e-6))
    if not parts:
        raise RegressionError(
            f"clip {clip.clip_id!r} has neither speaker motion nor sound: nothing to regress on"
        )
    return np.concatenate(parts).astype(np.float64)


def targets(listener: Motion, layout: Layout) -> np.ndarray:
    """(blocks, dim) float64: means of the listener's groups in blocks of 0.2 s."""
    block = _block_frames(_TARGETS_PER_SECOND, layout)
    return _block_means(listener.subset(layout).values, block).astype(np.float64)


def _scale(values: np.ndarray, axis: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations of the last axis, 1 where a column is constant, and which vary."""
    deviation = values.std(axis=axis)
    varies = deviation > _CONSTANT * (1e-3 + np.abs(values).max(axis=axis))
    return np.where(varies, deviation + 1e-8, 1.0), varies


def _block_frames(per_second: int, layout: Layout) -> int:
    return round(layout.fps / per_second)


def _best_ridge(x: np.ndarray, y: np.ndarray) -> float:
    """The ridge with the least error on the last quarter of the clips."""
    # The last ones, not random ones: neighbours share a dyad, which must not be parted.
    held_back = np.arange(len(x)) >= len(x) * 3 // 4
    errors = []
    for ridge in _RIDGES:
        weights, offset = _solve(x[~held_back], y[~held_back], ridge)
        errors.append(np.mean((x[held_back] @ weights + offset - y[held_back]) ** 2))
    return float(_RIDGES[int(np.argmin(errors))])


def _solve(x: np.ndarray, y: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights and intercept of ridge regression in its dual form.

    The dual form is the smaller system when there are fewer clips than features.
    """
    offset = y.mean(axis=0)
    dual = np.linalg.solve(x @ x.T + ridge * np.eye(len(x)), y - offset)
    return x.T @ dual, offset


def _block_means(values: np.ndarray, block: int) -> np.ndarray:
    """Means of consecutive blocks of `block` rows of (time, dim); a short last one is dropped."""
    count = len(values) // block
    return values[: count * block].reshape(count, block, values.shape[1]).mean(axis=1)
