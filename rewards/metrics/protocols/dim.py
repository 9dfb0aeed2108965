"""Protocol `dim`: FD, P-FD, MSE, SID, Variation, rPCC, STS of pose and expression (Tran et al.
2024).
"""

from __future__ import annotations

import numpy as np

from rapport.rewards.metrics.clips import Clips, as_list, grouped, require_same_face, same_count
from rapport.rewards.metrics.measures.correlation import rpcc, rpcc_per_channel
from rapport.rewards.metrics.measures.distance import mse, sts, sts_rms
from rapport.rewards.metrics.measures.diversity import sid, variation, variation_flat
from rapport.rewards.metrics.measures.frechet import fd, p_fd
from rapport.rewards.metrics.protocols.protocol import Protocol, refuse, require_variant

ORDER = (("rot", 3), ("jaw", 3), ("expr", 50))
CLUSTERS = {"pose": 20, "exp": 40}


def score(
    pred: Clips,
    target: Clips,
    partner: Clips | None = None,
    *,
    neighbours: None = None,
    speech_mask: None = None,
    fps: float | None = None,
    variant: str = "reference",
    seed: int = 0,
) -> dict[str, float]:
    """Metrics with the suffix `_pose` (rotation and jaw) and `_exp`.

    Args:
        pred, target, partner: clips (time, 56), columns rotation 3, jaw 3, expression 50; or typed
            motion with these groups. A clip's three are equally long. P-FD and rPCC are left out
            without `partner`.

    FD, P-FD and MSE are means over clips. `reference` computes the others on all clips joined end
    to end. Variation is that of the prediction. SID takes 40 frames or more in all."""
    require_variant(variant)
    refuse("dim", neighbours=neighbours, speech_mask=speech_mask)
    x, y = _pose_and_expression(pred, "pred"), _pose_and_expression(target, "target")
    s = None if partner is None else _pose_and_expression(partner, "partner")
    for other, data, what in ((y, target, "target"), (s, partner, "partner")):
        if other is not None:
            _require_alike(pred, data, x, other, what)
    metrics = _corrected if variant == "corrected" else _reference
    scores: dict[str, float] = {}
    for group in ("pose", "exp"):
        clips = [[clip[group] for clip in role] for role in (x, y, *([] if s is None else [s]))]
        both = _mean_over_clips(*clips) | metrics(*clips)
        both["SID"] = sid(np.concatenate(clips[0]), np.concatenate(clips[1]), CLUSTERS[group])
        scores |= {f"{name}_{group}": value for name, value in both.items()}
    return dict(sorted(scores.items()))


def _mean_over_clips(x: list, y: list, s: list | None = None) -> dict[str, float]:
    means = {"FD": _mean(fd, x, y), "MSE": _mean(mse, x, y)}
    return means if s is None else means | {"P-FD": _mean(p_fd, x, y, s)}


def _reference(x: list, y: list, s: list | None = None) -> dict[str, float]:
    whole_x, whole_y = np.concatenate(x), np.concatenate(y)
    scores = {"Variation": variation_flat(whole_x), "STS": sts(whole_x, whole_y)}
    return scores if s is None else scores | {"rPCC": rpcc(whole_x, whole_y, np.concatenate(s))}


def _corrected(x: list, y: list, s: list | None = None) -> dict[str, float]:
    scores = {"Variation": _mean(variation, x), "STS": _mean(sts_rms, x, y)}
    return scores if s is None else scores | {"rPCC": _mean(rpcc_per_channel, x, y, s)}


def _mean(metric, *roles: list) -> float:
    return float(np.mean([metric(*clip) for clip in zip(*roles, strict=True)]))


def _pose_and_expression(data: Clips, what: str) -> list[dict[str, np.ndarray]]:
    return [
        {"pose": np.concatenate([clip["rot"], clip["jaw"]], axis=1), "exp": clip["expr"]}
        for clip in grouped(data, what, ORDER)
    ]


def _require_alike(pred: Clips, data: Clips, x: list, other: list, what: str) -> None:
    same_count(other, x, what, "pred")
    for index, (a, b) in enumerate(zip(as_list(pred, "pred"), as_list(data, what), strict=True)):
        require_same_face(a, b, f"pred against {what} of clip {index}")
        shapes = [
            {group: values.shape for group, values in clip.items()}
            for clip in (x[index], other[index])
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(f"clip {index}: pred has {shapes[0]}, {what} {shapes[1]}")


PROTOCOL = Protocol(
    name="dim",
    source="Boese0601/Dyadic-Interaction-Modeling: code/mymetrics.py, code/metrics/eval_utils.py (Tran et al., 2024)",
    corrections={
        "variation_per_channel": "Variation is the variance over time of each channel of each clip, then the mean; not "
        "that of all values together, where offsets between channels and clips count as motion",
        "rpcc_per_channel": "rPCC correlates over time within each channel of each clip; a constant channel correlates "
        "with nothing, where the reference gives NaN",
        "sts_within_clips": "STS is the root of the mean, not of the sum, over the steps within clips: no step leads "
        "from the end of a clip to the start of the next, and length does not matter",
    },
    score=score,
)
