"""The lm-listener protocol: L2, FD, P-FD, Variation, Diversity, L2 Affect.

As `evaluate_listener.py` of sanjayss34/lm-listener computes them (Ng et al. 2023), whose columns and
scale are those of the VLA + DPO paper's tables I, II and IV. Everything is computed per clip, in raw
coefficient units, and then averaged over clips. Two departures, both named where they are: Diversity
is seeded (theirs is not), and FD is computed by a formula that needs no matrix square root.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policies.motion import Motion, require_same_layout
from rewards.affect import AffectEstimator

MAX_FRAMES = 240  # of a clip; the reference script's limit
AFFECT_WINDOW = 30  # frames; one second at the reference script's 30 fps
DIVERSITY_SEED = 224


def l2(x: np.ndarray, y: np.ndarray) -> float:
    """Mean squared difference of (time, dim) arrays; no square root is taken."""
    return float(np.mean((_array(x) - _array(y, like=x)) ** 2))


def fd(x: np.ndarray, y: np.ndarray) -> float:
    """Frechet distance between Gaussians fitted to the frames of x and of y, (time, dim) each.

        |mu_x - mu_y|^2 + tr(S_x) + tr(S_y) - 2 tr((S_x S_y)^(1/2)),  covariances with ddof 1

    With S = A^T A (A the centred frames over sqrt(time - 1)) the last trace is the sum of the singular
    values of A_x A_y^T. That holds for rank-deficient covariances too, where clips are shorter than
    wide and `scipy.linalg.sqrtm` loses its footing.
    """
    x, y = _array(x), _array(y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"FD of {x.shape[1]} against {y.shape[1]} channels")
    a, b = _covariance_root(x), _covariance_root(y)
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    distance = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.sum(a**2) + np.sum(b**2) - 2 * cross
    return max(float(distance), 0.0)  # rounding may carry the distance of equal clips below zero


def p_fd(x: np.ndarray, y: np.ndarray, speaker: np.ndarray) -> float:
    """Paired FD: between [speaker, x] and [speaker, y], so that the synchrony with the speaker counts."""
    speaker = _array(speaker)
    if not len(speaker) == len(x) == len(y):
        raise ValueError(f"P-FD needs equal lengths, got speaker {len(speaker)}, x {len(x)}, y {len(y)} frames")
    return fd(np.concatenate([speaker, _array(x)], axis=1), np.concatenate([speaker, _array(y)], axis=1))


def variation(x: np.ndarray) -> float:
    """Mean over channels of the variance over time (ddof 0)."""
    return float(_array(x).var(axis=0).mean())


def diversity(x: np.ndarray, seed: int = DIVERSITY_SEED) -> float:
    """Mean distance between random pairs of frames: 30 pairs, or 10 where the clip has 30 frames or fewer.

    Both ends are drawn without replacement and independently, so a pair may be a frame with itself, as in
    the reference script. That script never seeds numpy, so its numbers cannot be repeated; these can:
    `numpy.random.default_rng(seed)`.
    """
    x = _array(x)
    pairs = 30 if len(x) > 30 else 10
    if len(x) < pairs:
        raise ValueError(f"Diversity draws {pairs} frames, the clip has {len(x)}")
    rng = np.random.default_rng(seed)
    first, second = (rng.choice(len(x), pairs, replace=False) for _ in range(2))
    return float(np.linalg.norm(x[first] - x[second], axis=1).mean())


def l2_affect(valence_x: np.ndarray, valence_y: np.ndarray, window: int = AFFECT_WINDOW) -> float:
    """Mean squared difference of window means of valence, (time,) each; the tail short of a window is dropped.

    The papers print it times 100. Ours depends on the estimator, so it compares with other numbers of that
    estimator only, never with the papers'.
    """
    valence_x, valence_y = np.asarray(valence_x, np.float64), np.asarray(valence_y, np.float64)
    if valence_x.shape != valence_y.shape or valence_x.ndim != 1:
        raise ValueError(f"L2 Affect needs two valences of shape (time,), got {valence_x.shape} and {valence_y.shape}")
    windows = len(valence_x) // window
    if windows == 0:
        raise ValueError(f"L2 Affect averages over {window} frames, the clip has {len(valence_x)}")
    difference = (valence_x - valence_y)[: windows * window].reshape(windows, window).mean(axis=1)
    return float(np.mean(difference**2))


def evaluate(
    predictions: Sequence[Motion],
    targets: Sequence[Motion],
    speakers: Sequence[Motion | None] | None = None,
    affect: AffectEstimator | None = None,
    seed: int = DIVERSITY_SEED,
) -> dict[str, float | None]:
    """All metrics, averaged over clips. A metric that could be computed on no clip is None, not zero.

    Args:
        predictions, targets: one motion per clip, alike in layout and length; the first 240 frames count.
        speakers: the speaker's motion per clip, None where the corpus lacks it; P-FD is the mean over the
            clips that have it (`p_fd_clips` of them).
        affect: the affect estimator behind L2 Affect; the mean is over clips of at least 30 frames
            (`l2_affect_clips` of them).
        seed: of Diversity's frame pairs; the same pairs in every clip.

    Passing the targets as predictions gives the papers' ground-truth row.
    """
    if not len(predictions) == len(targets) > 0:
        raise ValueError(f"{len(predictions)} predictions for {len(targets)} targets; one each, and at least one")
    if speakers is None:
        speakers = [None] * len(targets)
    if len(speakers) != len(targets):
        raise ValueError(f"{len(speakers)} speakers for {len(targets)} targets; None where there is no motion")

    per_clip: dict[str, list[float]] = {
        name: [] for name in ("l2", "fd", "p_fd", "variation", "diversity", "l2_affect")
    }
    for index, (prediction, target, speaker) in enumerate(zip(predictions, targets, speakers, strict=True)):
        require_same_layout(prediction.layout, target.layout, f"evaluating clip {index} against its target")
        if len(prediction) != len(target):
            raise ValueError(f"clip {index}: {len(prediction)} predicted frames for {len(target)} in the target")
        x, y = prediction.values[:MAX_FRAMES], target.values[:MAX_FRAMES]
        per_clip["l2"].append(l2(x, y))
        per_clip["fd"].append(fd(x, y))
        per_clip["variation"].append(variation(x))
        per_clip["diversity"].append(diversity(x, seed))
        if speaker is not None:
            per_clip["p_fd"].append(p_fd(x, y, speaker.values[:MAX_FRAMES]))
        if affect is not None and len(x) >= AFFECT_WINDOW:
            valence_x, valence_y = (affect(motion)[:MAX_FRAMES, 0] for motion in (prediction, target))
            per_clip["l2_affect"].append(l2_affect(valence_x, valence_y))
    means = {name: float(np.mean(values)) if values else None for name, values in per_clip.items()}
    counts = {name: len(per_clip[key]) for name, key in
              (("clips", "l2"), ("p_fd_clips", "p_fd"), ("l2_affect_clips", "l2_affect"))}
    return means | counts


def _array(x: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"expected an array (time, dim) that is not empty, got shape {x.shape}")
    if like is not None and x.shape != np.shape(like):
        raise ValueError(f"cannot compare arrays of shapes {np.shape(like)} and {x.shape}")
    return x


def _covariance_root(x: np.ndarray) -> np.ndarray:
    """A with A^T A = np.cov(x.T), (min(time, dim), dim)."""
    if len(x) < 2:
        raise ValueError("a covariance needs at least 2 frames")
    return np.linalg.qr(x - x.mean(axis=0), mode="r") / np.sqrt(len(x) - 1)
