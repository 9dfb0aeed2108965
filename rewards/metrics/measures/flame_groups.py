"""How close generated motion is to recorded motion, FLAME group by FLAME group, over the frames of
a part.

The metrics of GDPO-Listener's Table 6 (FD, P-FD, MSE, SID, rPCC) for every group of a layout, and
what tells a collapsed or trembling policy from a lively one: ratios of variance and jerk to the
recorded motion. Protocol `dualtalk` has the published numbers, of whole clips; here a part is where
somebody listens, or speaks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rapport.policies.motion import Motion, require_same_layout
from rapport.rewards.metrics.measures.correlation import rpcc_per_channel
from rapport.rewards.metrics.measures.distance import mse
from rapport.rewards.metrics.measures.diversity import sid
from rapport.rewards.metrics.measures.frechet import fd, p_fd

CLUSTERS, EXPR_CLUSTERS = 10, 40  # of SID, as in DualTalk
FEWEST = 4  # frames of a clip's part: a third difference needs them


def score(
    pred: Sequence[Motion],
    target: Sequence[Motion],
    partner: Sequence[Motion | None],
    parts: Sequence[np.ndarray],
) -> dict[str, float]:
    """Metrics `NAME/GROUP`, and `clips`, how many had a part of 4 frames or more. Nothing else when
    none had.

    FD, P-FD, MSE and rPCC are means over clips; P-FD and rPCC over those with a partner. SID pools
    the frames of all clips; its clusters are those of the recorded motion. `variance_ratio` and
    `jerk_ratio` divide sums over clips, of variances over time and of third differences squared
    (then the root), so that a clip that hardly moves has no say.

    Args:
        pred, target, partner: of each clip, (time, dim), of one layout.
        parts: (time,) bool of each clip, the frames that count.
    """
    used = [i for i, part in enumerate(parts) if np.count_nonzero(part) >= FEWEST]
    values: dict[str, float] = {"clips": len(used)}
    for i in used:
        require_same_layout(pred[i].layout, target[i].layout, "metrics by FLAME group")
    for group in target[used[0]].layout.names if used else ():
        x, y = ([data[i].group(group).astype(np.float64) for i in used] for data in (pred, target))
        cut = [(a[parts[i]], b[parts[i]]) for a, b, i in zip(x, y, used, strict=True)]
        others = [
            (a, b, partner[i].group(group)[parts[i]].astype(np.float64))
            for (a, b), i in zip(cut, used, strict=True)
            if partner[i] is not None
        ]
        frames = [np.concatenate(side) for side in zip(*cut, strict=True)]
        clusters = EXPR_CLUSTERS if group == "expr" else CLUSTERS
        masks = [parts[i] for i in used]
        found = {
            "FD": np.mean([fd(a, b) for a, b in cut]),
            "MSE": np.mean([mse(a, b) for a, b in cut]),
            "variance_ratio": _ratio(*map(_variance, zip(*cut, strict=True))),
            "jerk_ratio": np.sqrt(_ratio(*(_jerk(side, masks) for side in (x, y)))),
        }
        if len(frames[1]) >= clusters:
            found["SID"], found["SID_recorded"] = (
                sid(side, frames[1], clusters) for side in frames
            )
        if others:
            found["P-FD"] = np.mean([p_fd(*clip) for clip in others])
            found["rPCC"] = np.mean([rpcc_per_channel(*clip) for clip in others])
        values |= {
            f"{name}/{group}": float(value) for name, value in found.items() if np.isfinite(value)
        }
    return values


def variance_ratio(
    pred: Sequence[Motion], target: Sequence[Motion], parts: Sequence[np.ndarray]
) -> dict[str, float]:
    """`variance_ratio` alone, group -> value; what `score` says of a part that no clip has is an
    error here.
    """
    used = [i for i, part in enumerate(parts) if np.count_nonzero(part) >= FEWEST]
    if not used:
        raise ValueError(f"none of {len(parts)} clips has {FEWEST} frames that count")
    names = target[used[0]].layout.names
    sides = (
        {
            name: _variance([data[i].group(name)[parts[i]].astype(np.float64) for i in used])
            for name in names
        }
        for data in (pred, target)
    )
    generated, recorded = sides
    return {name: _ratio(generated[name], recorded[name]) for name in names}


def _variance(clips: Sequence[np.ndarray]) -> float:
    """Sum over clips and channels of the variances over time."""
    return float(sum(clip.var(0, ddof=1).sum() for clip in clips))


def _jerk(clips: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> float:
    """Sum of squared third differences of four frames in a row that all count."""
    total = 0.0
    for clip, mask in zip(clips, masks, strict=True):
        whole = np.lib.stride_tricks.sliding_window_view(mask, 4).all(1)
        total += np.square(np.diff(clip, n=3, axis=0)[whole]).sum()
    return float(total)


def _ratio(numerator: float, denominator: float) -> float:
    """NaN where the recorded motion stands still."""
    return numerator / denominator if denominator > 0 else float("nan")
