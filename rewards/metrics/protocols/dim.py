"""Protocol `dim`: FD, P-FD, MSE, SID, Variation, rPCC, STS of pose and expression.

Source: Tran et al. 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rapport.rewards.metrics.clips import Clips, as_list, grouped, require_same_face, same_count
from rapport.rewards.metrics.measures.correlation import rpcc, rpcc_per_channel
from rapport.rewards.metrics.measures.distance import mse, sts, sts_rms
from rapport.rewards.metrics.measures.diversity import sid, variation, variation_flat
from rapport.rewards.metrics.measures.frechet import fd, p_fd
from rapport.rewards.metrics.protocols.protocol import Inputs, Protocol

COLUMNS = (("rot", 3), ("jaw", 3), ("expr", 50))
CLUSTERS = {"pose": 20, "exp": 40}

Roles = Sequence[Sequence[np.ndarray]]  # clips (time, dim) of prediction, target, maybe partner


def score(inputs: Inputs) -> dict[str, float]:
    """Metrics with the suffix `_pose` (rotation and jaw) and `_exp`.

    FD, P-FD and MSE are means over clips. `reference` computes the others on all clips joined end
    to end. Variation is that of the prediction. SID takes 40 frames or more in all. P-FD and rPCC
    are left out without a partner.

    Args:
        inputs: `pred`, `target`, `partner`: clips (time, 56), columns rotation 3, jaw 3, expression
            50; or typed motion with these groups. A clip's three are equally long.

    Raises:
        ValueError: clips that do not go together or are too short.
        LayoutError: typed motion of unlike frame rate or topology.
    """
    inputs.refuse("dim", "neighbours", "speech_mask")
    metrics = _corrected if inputs.is_corrected else _reference
    clips_by_role = _clips_by_role(inputs)
    scores: dict[str, float] = {}
    for group, clusters in CLUSTERS.items():
        roles = [[clip[group] for clip in clips] for clips in clips_by_role]
        group_scores = _mean_over_clips(roles) | metrics(roles)
        group_scores["SID"] = sid(np.concatenate(roles[0]), np.concatenate(roles[1]), clusters)
        scores |= {f"{name}_{group}": value for name, value in group_scores.items()}
    return dict(sorted(scores.items()))


def _mean_over_clips(roles: Roles) -> dict[str, float]:
    means = {"FD": _mean(fd, roles[:2]), "MSE": _mean(mse, roles[:2])}
    if len(roles) == 3:
        means["P-FD"] = _mean(p_fd, roles)
    return means


def _reference(roles: Roles) -> dict[str, float]:
    joined = [np.concatenate(clips) for clips in roles]
    scores = {"Variation": variation_flat(joined[0]), "STS": sts(joined[0], joined[1])}
    if len(roles) == 3:
        scores["rPCC"] = rpcc(*joined)
    return scores


def _corrected(roles: Roles) -> dict[str, float]:
    scores = {"Variation": _mean(variation, roles[:1]), "STS": _mean(sts_rms, roles[:2])}
    if len(roles) == 3:
        scores["rPCC"] = _mean(rpcc_per_channel, roles)
    return scores


def _mean(metric: Callable[..., float], roles: Roles) -> float:
    return float(np.mean([metric(*clip) for clip in zip(*roles, strict=True)]))


def _clips_by_role(inputs: Inputs) -> list[list[dict[str, np.ndarray]]]:
    """Pose and expression of each clip of prediction, target and, where there is one, partner."""
    predicted = as_list(inputs.pred, "pred")
    clips_by_role = [_pose_and_expression(predicted, "pred")]
    for data, what in ((inputs.target, "target"), (inputs.partner, "partner")):
        if what == "partner" and data is None:
            continue
        others = as_list(data, what)
        clips_by_role.append(_pose_and_expression(others, what))
        same_count(others, predicted, what=what, like_what="pred")
        for index, (a, b) in enumerate(zip(predicted, others, strict=True)):
            require_same_face(a, b, f"pred against {what} of clip {index}")
            shapes = _shapes(clips_by_role[0][index])
            other_shapes = _shapes(clips_by_role[-1][index])
            if shapes != other_shapes:
                raise ValueError(f"clip {index}: pred has {shapes}, {what} {other_shapes}")
    return clips_by_role


def _pose_and_expression(data: Clips, what: str) -> list[dict[str, np.ndarray]]:
    return [
        {"pose": np.concatenate([clip["rot"], clip["jaw"]], axis=1), "exp": clip["expr"]}
        for clip in grouped(data, what, COLUMNS)
    ]


def _shapes(clip: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {group: values.shape for group, values in clip.items()}


PROTOCOL = Protocol(
    name="dim",
    source=(
        "Boese0601/Dyadic-Interaction-Modeling: code/mymetrics.py, code/metrics/eval_utils.py "
        "(Tran et al., 2024)"
    ),
    corrections={
        "variation_per_channel": (
            "Variation is the variance over time of each channel of each clip, then the mean; not "
            "that of all values together, where offsets between channels and clips count as motion"
        ),
        "rpcc_per_channel": (
            "rPCC correlates over time within each channel of each clip; a constant channel "
            "correlates with nothing, where the reference gives NaN"
        ),
        "sts_within_clips": (
            "STS is the root of the mean, not of the sum, over the steps within clips: no step "
            "leads from the end of a clip to the start of the next, and length does not matter"
        ),
    },
    score=score,
)
