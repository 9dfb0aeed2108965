"""Why imitation alone is not enough: a deterministic regression on one-to-many data collapses towards the mean.

When one speaker can be answered in many ways, the least-squares answer is the average of them, which moves less than
any of them. `regression_collapse` measures it on a corpus, real or synthetic.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pipeline.data.clip import AUDIO_RATE, Clip
from pipeline.data.store import Corpus

_TARGETS_PER_SECOND = 5  # knots of the default action space: what a policy here predicts
_FEATURES_PER_SECOND = 1  # coarser: affect lasts for seconds, and clips are few
_RIDGES = 10.0 ** np.arange(-1, 7)  # tried on the last quarter of the training clips
_REACTION_GROUPS = ("expr", "rot", "neck", "jaw")


def regression_collapse(corpus: Corpus) -> dict[str, float]:
    """Ridge regression from everything the speaker does to how the listener moves, judged on the test split.

    Features: the speaker's motion and sound level in blocks of 1 s over the whole clip, as far as the corpus has
    them. Targets: the listener's head, jaw and expression in blocks of 0.2 s, standardised. The ridge is chosen on
    held-back training clips.

    Returns:
        `variance_ratio`: variance of the prediction over clips and time / variance of the truth, mean over dimensions;
        1 for a faithful imitator, near 0 for one that has collapsed;
        `variation_ratio`: the same for the variance over time within a clip;
        `r2`: explained variance on test clips: above 0 the regression has learnt something and still collapses;
        `ridge`, `train_clips`, `test_clips`.

    Raises:
        ValueError: the clips have neither speaker motion nor sound, or there are fewer than 8 to train on.
    """
    x, y = _matrices(corpus.clips("train"))
    x_test, y_test = _matrices(corpus.clips("test"))
    if len(x) < 8:
        raise ValueError(f"{corpus.path} has {len(x)} training clips, a regression needs 8 or more")
    dims = y.shape[2]
    mean, scale = y.mean(axis=(0, 1)), y.std(axis=(0, 1)) + 1e-8
    flat = ((y - mean) / scale).reshape(len(y), -1)
    x_mean, x_scale = x.mean(axis=0), x.std(axis=0) + 1e-8
    x, x_test = (x - x_mean) / x_scale, (x_test - x_mean) / x_scale

    held = np.arange(len(x)) >= len(x) * 3 // 4  # the last: neighbours share a dyad, do not part them
    errors = [np.mean((_ridge(x[~held], flat[~held], x[held], ridge) - flat[held]) ** 2) for ridge in _RIDGES]
    ridge = float(_RIDGES[int(np.argmin(errors))])
    predicted = _ridge(x, flat, x_test, ridge).reshape(len(x_test), -1, dims)
    truth = (y_test - mean) / scale
    return {
        "variance_ratio": float(np.mean(predicted.var(axis=(0, 1)) / truth.var(axis=(0, 1)))),
        "variation_ratio": float(np.mean(predicted.var(axis=1).mean(axis=0) / truth.var(axis=1).mean(axis=0))),
        "r2": float(1 - np.mean((predicted - truth) ** 2) / np.mean(truth**2)),
        "ridge": ridge,
        "train_clips": float(len(x)),
        "test_clips": float(len(x_test)),
    }


def _ridge(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, ridge: float) -> np.ndarray:
    """Ridge regression with intercept in its dual form: clips are fewer than features."""
    offset = y.mean(axis=0)
    dual = np.linalg.solve(x @ x.T + ridge * np.eye(len(x)), y - offset)
    return x_new @ (x.T @ dual) + offset


def _matrices(clips: Iterable[Clip]) -> tuple[np.ndarray, np.ndarray]:
    """Speaker features (clips, features) and listener targets (clips, blocks, dim)."""
    features, targets = [], []
    for clip in clips:
        fps = clip.listener.layout.fps
        groups = [name for name in _REACTION_GROUPS if name in clip.listener.layout.names]
        reaction = np.concatenate([clip.listener.group(name) for name in groups], axis=1)
        targets.append(_block_means(reaction, round(fps / _TARGETS_PER_SECOND)))
        heard = []
        if clip.speaker is not None:
            heard.append(_block_means(clip.speaker.values, round(fps / _FEATURES_PER_SECOND)).ravel())
        if clip.speaker_audio is not None:
            power = _block_means(clip.speaker_audio[:, None] ** 2, AUDIO_RATE // _FEATURES_PER_SECOND)
            heard.append(np.log10(power.ravel() + 1e-6))
        if not heard:
            raise ValueError(f"clip {clip.clip_id!r} has neither speaker motion nor sound: nothing to regress on")
        features.append(np.concatenate(heard))
    return np.stack(features).astype(np.float64), np.stack(targets).astype(np.float64)


def _block_means(values: np.ndarray, block: int) -> np.ndarray:
    """Means of consecutive blocks of `block` rows of (time, dim); an incomplete last one is dropped."""
    count = len(values) // block
    return values[: count * block].reshape(count, block, -1).mean(axis=1)
