"""How close generated motion is to recorded motion, FLAME group by FLAME group.

The metrics of GDPO-Listener's Table 6 (FD, P-FD, MSE, SID, rPCC) for every group of a layout, and
what tells a collapsed or trembling policy from a lively one: ratios of variance and jerk to the
recorded motion. Protocol `dualtalk` has the published numbers, of whole clips; here only the frames
of a part count, where somebody listens, or speaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rapport.policies.motion import Motion, require_same_layout
from rapport.rewards.metrics.measures.correlation import rpcc_per_channel
from rapport.rewards.metrics.measures.distance import mse
from rapport.rewards.metrics.measures.diversity import sid
from rapport.rewards.metrics.measures.frechet import fd, p_fd

# Clusters of SID, as in DualTalk.
CLUSTERS = 10
EXPR_CLUSTERS = 40
FEWEST = 4  # frames of a clip's part: a third difference needs them


@dataclass(frozen=True, eq=False)
class _GroupClip:
    """One FLAME group of a clip, (time, width) float64 each; `part` are the frames that count."""

    pred: np.ndarray
    target: np.ndarray
    partner: np.ndarray | None
    part: np.ndarray


def score(
    pred: Sequence[Motion],
    target: Sequence[Motion],
    partner: Sequence[Motion | None],
    parts: Sequence[np.ndarray],
) -> dict[str, float]:
    """Metrics `NAME/GROUP`, and `clips`, how many had a part of 4 frames or more.

    FD, P-FD, MSE and rPCC are means over clips; P-FD and rPCC over those with a partner. SID pools
    the frames of all clips; its clusters are those of the recorded motion. `variance_ratio` and
    `jerk_ratio` divide sums over clips, of variances over time and of third differences squared
    (then the root), so that a clip that hardly moves has no say. Where no clip had a part, there is
    nothing but `clips`.

    Args:
        pred: (time, dim) of each clip, of one layout as the target.
        target: likewise.
        partner: likewise, or None where a clip has none.
        parts: (time,) bool of each clip, the frames that count.

    Raises:
        LayoutError: unlike layouts.
    """
    used = [i for i, part in enumerate(parts) if np.count_nonzero(part) >= FEWEST]
    values: dict[str, float] = {"clips": len(used)}
    for i in used:
        require_same_layout(pred[i].layout, target[i].layout, "metrics by FLAME group")
    for group in target[used[0]].layout.names if used else ():
        clips = []
        for i in used:
            other = partner[i]
            clip = _GroupClip(
                pred=pred[i].group(group).astype(np.float64),
                target=target[i].group(group).astype(np.float64),
                partner=None if other is None else other.group(group).astype(np.float64),
                part=parts[i],
            )
            clips.append(clip)
        for name, value in _metrics(clips, EXPR_CLUSTERS if group == "expr" else CLUSTERS).items():
            if np.isfinite(value):
                values[f"{name}/{group}"] = float(value)
    return values


def variance_ratio(
    pred: Sequence[Motion], target: Sequence[Motion], parts: Sequence[np.ndarray]
) -> dict[str, float]:
    """`variance_ratio` of `score` alone, group -> value.

    Raises:
        ValueError: no clip has a part of 4 frames.
    """
    used = [i for i, part in enumerate(parts) if np.count_nonzero(part) >= FEWEST]
    if not used:
        raise ValueError(f"none of {len(parts)} clips has {FEWEST} frames that count")
    ratios = {}
    for name in target[used[0]].layout.names:
        generated = [pred[i].group(name)[parts[i]].astype(np.float64) for i in used]
        recorded = [target[i].group(name)[parts[i]].astype(np.float64) for i in used]
        ratios[name] = ratio(_variance(generated), _variance(recorded))
    return ratios


def _metrics(clips: Sequence[_GroupClip], clusters: int) -> dict[str, float]:
    """The metrics of one FLAME group over all clips; NaN where one cannot be had."""
    x = [clip.pred[clip.part] for clip in clips]
    y = [clip.target[clip.part] for clip in clips]
    partners = [None if clip.partner is None else clip.partner[clip.part] for clip in clips]
    pairs = list(zip(x, y, strict=True))
    triples = [(a, b, s) for a, b, s in zip(x, y, partners, strict=True) if s is not None]
    jerk_x = _jerk([(clip.pred, clip.part) for clip in clips])
    jerk_y = _jerk([(clip.target, clip.part) for clip in clips])
    metrics = {
        "FD": np.mean([fd(a, b) for a, b in pairs]),
        "MSE": np.mean([mse(a, b) for a, b in pairs]),
        "variance_ratio": ratio(_variance(x), _variance(y)),
        "jerk_ratio": np.sqrt(ratio(jerk_x, jerk_y)),
    }
    recorded = np.concatenate(y)
    if len(recorded) >= clusters:
        metrics["SID"] = sid(np.concatenate(x), recorded, clusters)
        metrics["SID_recorded"] = sid(recorded, recorded, clusters)
    if triples:
        metrics["P-FD"] = np.mean([p_fd(*triple) for triple in triples])
        metrics["rPCC"] = np.mean([rpcc_per_channel(*triple) for triple in triples])
    return metrics


def _variance(clips: Sequence[np.ndarray]) -> float:
    """Sum over clips and channels of the variances over time."""
    return float(sum(clip.var(0, ddof=1).sum() for clip in clips))


def _jerk(clips: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Sum of squared third differences of four frames in a row that all count.

    Of each clip its values (time, width) and mask (time,).
    """
    total = 0.0
    for values, mask in clips:
        whole = np.lib.stride_tricks.sliding_window_view(mask, 4).all(1)
        total += np.square(np.diff(values, n=3, axis=0)[whole]).sum()
    return float(total)


def ratio(numerator: float, denominator: float) -> float:
    """NaN where the recorded motion stands still."""
    return numerator / denominator if denominator > 0 else float("nan")
