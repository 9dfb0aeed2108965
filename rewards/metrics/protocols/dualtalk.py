"""Protocol `dualtalk`: FD, P-FD, MSE, SID, rPCC, STS, Diversity and Variation of each group.

Source: Peng et al. 2025; also the protocol of GDPO-Listener's Table 6. DualTalk's tables print FD,
P-FD and MSE of the neck times 100, of the jaw times 1000, and the MSE of the expression times 10;
here nothing is scaled.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rapport.rewards.metrics.clips import as_list, grouped, require_same_face, same_count
from rapport.rewards.metrics.measures.correlation import rpcc, rpcc_per_channel
from rapport.rewards.metrics.measures.distance import mse, sts, sts_rms
from rapport.rewards.metrics.measures.diversity import diversity, seeded_diversity, sid, variation
from rapport.rewards.metrics.measures.frechet import fd, p_fd
from rapport.rewards.metrics.protocols.protocol import Inputs, Protocol

# Columns as DualTalk's model writes them.
PREDICTION = (("expr", 50), ("jaw", 3), ("neck", 3))
# `exp` and `pose` of its files have neck and jaw the other way round.
TRUTH = (("expr", 50), ("neck", 3), ("jaw", 3))
CLUSTERS = {"expr": 40, "jaw": 10, "neck": 10}
PAIRS = 100  # of frames, whose distances Diversity averages

GroupValues = dict[str, np.ndarray]  # group -> (time, width)


def score(inputs: Inputs) -> dict[str, float]:
    """Metrics with the suffixes `_exp`, `_jaw`, `_neck`, per clip, then the mean over clips.

    Clips of unequal length are cut to the shortest, as in the reference; more than 100 frames must
    be left. P-FD and rPCC are left out without a partner.

    Args:
        inputs: `pred`: clips (time, 56): expression 50, **jaw 3, neck 3**, as DualTalk's model
            writes them. `target`, `partner`: clips (time, 56): expression 50, **neck 3, jaw 3**, as
            its files have them. Typed motion with the groups expr, jaw and neck needs no such care.
            `seed`: of Diversity. The reference never seeds numpy; `reference` gives what its script
            would have printed after `numpy.random.seed(seed)`, with its draws for the ground truth
            in between.

    Raises:
        ValueError: clips that do not go together or are too short.
        LayoutError: typed motion of unlike frame rate or topology.
    """
    inputs.refuse("dualtalk", "neighbours", "speech_mask")
    rng = np.random.RandomState(inputs.seed)
    scores = []
    for clip in _common_frames(_roles(inputs)):
        if inputs.is_corrected:
            scores.append(_corrected(clip, inputs.seed))
        else:
            scores.append(_reference(clip, rng))
    return {name: float(np.mean([s[name] for s in scores])) for name in sorted(scores[0])}


def _roles(inputs: Inputs) -> list[list[GroupValues]]:
    """Clips of prediction, target and, where there is one, partner."""
    predicted = as_list(inputs.pred, "pred")
    roles = [grouped(predicted, "pred", PREDICTION)]
    for data, what in ((inputs.target, "target"), (inputs.partner, "partner")):
        if what == "partner" and data is None:
            continue
        clips = as_list(data, what)
        roles.append(grouped(clips, what, TRUTH))
        same_count(clips, predicted, what=what, like_what="pred")
        for index, (a, b) in enumerate(zip(predicted, clips, strict=True)):
            require_same_face(a, b, f"pred against {what} of clip {index}")
    return roles


def _common_frames(roles: list[list[GroupValues]]) -> Iterator[list[GroupValues]]:
    """Clip by clip the roles' groups, cut to the shortest of them."""
    for index, clip in enumerate(zip(*roles, strict=True)):
        frames = min(len(role["expr"]) for role in clip)
        if frames <= PAIRS:
            raise ValueError(
                f"clip {index} has {frames} frames in common; Diversity needs more than {PAIRS}"
            )
        for group in CLUSTERS:
            widths = [role[group].shape[1] for role in clip]
            if len(set(widths)) > 1:
                raise ValueError(
                    f"clip {index}: {group} has unlike widths {widths} in pred, target, partner"
                )
        yield [{group: role[group][:frames] for group in CLUSTERS} for role in clip]


def _reference(clip: list[GroupValues], rng: np.random.RandomState) -> dict[str, float]:
    scores = _shared(clip)
    for group in CLUSTERS:
        scores[_key("Diversity", group)] = diversity(clip[0][group], PAIRS, rng)
    for group in CLUSTERS:
        x = clip[0][group]
        y = clip[1][group]
        # The reference draws for the ground truth, too, so later draws depend on it.
        diversity(y, PAIRS, rng)
        # It calls SID the other way round: the clusters are those of the prediction.
        scores[_key("SID", group)] = sid(y, x, CLUSTERS[group])
        scores[_key("STS", group)] = sts(x, y)
        if len(clip) == 3:
            scores[_key("rPCC", group)] = rpcc(x, y, clip[2][group])
    return scores


def _corrected(clip: list[GroupValues], seed: int) -> dict[str, float]:
    scores = _shared(clip)
    for group in CLUSTERS:
        x = clip[0][group]
        y = clip[1][group]
        scores[_key("Diversity", group)] = seeded_diversity(x, PAIRS, seed)
        scores[_key("SID", group)] = sid(x, y, CLUSTERS[group])
        scores[_key("STS", group)] = sts_rms(x, y)
        if len(clip) == 3:
            scores[_key("rPCC", group)] = rpcc_per_channel(x, y, clip[2][group])
    return scores


def _shared(clip: list[GroupValues]) -> dict[str, float]:
    scores = {}
    for group in CLUSTERS:
        roles = [role[group] for role in clip]
        scores[_key("FD", group)] = fd(*roles[:2])
        if len(roles) == 3:
            scores[_key("P-FD", group)] = p_fd(*roles)
        scores[_key("MSE", group)] = mse(*roles[:2])
        scores[_key("Variation", group)] = variation(roles[0])
    return scores


def _key(metric: str, group: str) -> str:
    return f"{metric}_{'exp' if group == 'expr' else group}"


PROTOCOL = Protocol(
    name="dualtalk",
    source="Ruthless338/DualTalk: metric/metric.py (Peng et al., CVPR 2025)",
    corrections={
        "sid_argument_order": (
            "SID fits its clusters to the target and gives the entropy of the prediction; the "
            "reference calls it the other way round, and a frozen prediction scores above 0"
        ),
        "seeded_diversity": (
            "Diversity draws from a generator of `seed` for each clip, so that neither the order "
            "of clips nor earlier draws matter, and never pairs a frame with itself"
        ),
        "rpcc_per_channel": (
            "rPCC correlates over time within each channel; a constant channel correlates with "
            "nothing, where the reference gives NaN"
        ),
        "sts_rms": (
            "STS is the root of the mean, not of the sum, so that clips of any length compare"
        ),
    },
    score=score,
)
