"""Protocol `dualtalk`: FD, P-FD, MSE, SID, rPCC, STS, Diversity, Variation by group (Peng et al.
2025).

Also the protocol of GDPO-Listener's Table 6. DualTalk's tables print FD, P-FD and MSE of the neck
times 100, of the jaw times 1000, and the MSE of the expression times 10; here nothing is scaled.
"""

from __future__ import annotations

import numpy as np

from rapport.rewards.metrics.clips import Clips, as_list, grouped, require_same_face, same_count
from rapport.rewards.metrics.measures.correlation import rpcc, rpcc_per_channel
from rapport.rewards.metrics.measures.distance import mse, sts, sts_rms
from rapport.rewards.metrics.measures.diversity import diversity, seeded_diversity, sid, variation
from rapport.rewards.metrics.measures.frechet import fd, p_fd
from rapport.rewards.metrics.protocols.protocol import Protocol, refuse, require_variant

PREDICTION = (("expr", 50), ("jaw", 3), ("neck", 3))  # as DualTalk's model writes it
TRUTH = (
    ("expr", 50),
    ("neck", 3),
    ("jaw", 3),
)  # `exp` and `pose` of its files: the other way round
CLUSTERS = {"expr": 40, "jaw": 10, "neck": 10}
PAIRS = 100


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
    """Metrics with the suffixes `_exp`, `_jaw`, `_neck`, per clip, then the mean over clips.

    Args:
        pred: clips (time, 56): expression 50, **jaw 3, neck 3**, as DualTalk's model writes them.
        target, partner: clips (time, 56): expression 50, **neck 3, jaw 3**, as its files have them.
            Typed motion with the groups expr, jaw and neck needs no such care. P-FD and rPCC are
            left out without `partner`.
        seed: of Diversity. The reference never seeds numpy; `reference` gives what its script would
            have printed after `numpy.random.seed(seed)`, with its draws for the ground truth in
            between.

    Clips of unequal length are cut to the shortest, as in the reference; more than 100 frames must
    be left."""
    require_variant(variant)
    refuse("dualtalk", neighbours=neighbours, speech_mask=speech_mask)
    roles = [grouped(pred, "pred", PREDICTION)]
    for data, what in ((target, "target"), *([] if partner is None else [(partner, "partner")])):
        roles.append(grouped(data, what, TRUTH))
        same_count(roles[-1], roles[0], what, "pred")
        for index, (a, b) in enumerate(
            zip(as_list(pred, "pred"), as_list(data, what), strict=True)
        ):
            require_same_face(a, b, f"pred against {what} of clip {index}")
    rng = np.random.RandomState(seed)
    clips = []
    for index, clip in enumerate(zip(*roles, strict=True)):
        frames = min(len(role["expr"]) for role in clip)
        if frames <= PAIRS:
            raise ValueError(
                f"clip {index} has {frames} frames in common; Diversity needs more than {PAIRS}"
            )
        for group in CLUSTERS:
            if len({role[group].shape[1] for role in clip}) > 1:
                widths = [role[group].shape[1] for role in clip]
                raise ValueError(
                    f"clip {index}: {group} has unlike widths {widths} in pred, target, partner"
                )
        cut = [{group: role[group][:frames] for group in CLUSTERS} for role in clip]
        clips.append(_corrected(cut, seed) if variant == "corrected" else _reference(cut, rng))
    return {name: float(np.mean([clip[name] for clip in clips])) for name in sorted(clips[0])}


def _reference(clip: list[dict[str, np.ndarray]], rng: np.random.RandomState) -> dict[str, float]:
    scores = _shared(clip)
    for group in CLUSTERS:
        scores[_key("Diversity", group)] = diversity(clip[0][group], PAIRS, rng)
    for group in CLUSTERS:
        diversity(clip[1][group], PAIRS, rng)  # the reference's own of the ground truth
        x, y = clip[0][group], clip[1][group]
        scores[_key("SID", group)] = sid(
            y, x, CLUSTERS[group]
        )  # swapped: clusters of x, entropy of y
        scores[_key("STS", group)] = sts(x, y)
        if len(clip) == 3:
            scores[_key("rPCC", group)] = rpcc(x, y, clip[2][group])
    return scores


def _corrected(clip: list[dict[str, np.ndarray]], seed: int) -> dict[str, float]:
    scores = _shared(clip)
    for group in CLUSTERS:
        x, y = clip[0][group], clip[1][group]
        scores[_key("Diversity", group)] = seeded_diversity(x, PAIRS, seed)
        scores[_key("SID", group)] = sid(x, y, CLUSTERS[group])
        scores[_key("STS", group)] = sts_rms(x, y)
        if len(clip) == 3:
            scores[_key("rPCC", group)] = rpcc_per_channel(x, y, clip[2][group])
    return scores


def _shared(clip: list[dict[str, np.ndarray]]) -> dict[str, float]:
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
        "sid_argument_order": "SID fits its clusters to the target and gives the entropy of the prediction; the "
        "reference calls it the other way round, and a frozen prediction scores above 0",
        "seeded_diversity": "Diversity draws from a generator of `seed` for each clip, so that neither the order of "
        "clips nor earlier draws matter, and never pairs a frame with itself",
        "rpcc_per_channel": "rPCC correlates over time within each channel; a constant channel correlates with "
        "nothing, where the reference gives NaN",
        "sts_rms": "STS is the root of the mean, not of the sum, so that clips of any length compare",
    },
    score=score,
)
