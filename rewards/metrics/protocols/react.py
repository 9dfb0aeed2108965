"""The REACT 2023 and 2024 challenges and ReactFace: several reactions to one speaker.

Each reaction is held against all that are appropriate. FRCorr, FRDist, FRSyn, FRVar, FRDiv and
FRDvs as `metric/*.py` of reactmultimodalchallenge/baseline_react2024 and of lingjivoo/ReactFace
compute them (Song et al. 2023, 2024; Luo et al. 2024). N speakers, M reactions generated for each,
T frames at 25 fps, of which the first 750 count.

A reaction is appropriate to speaker k if it was given to a speaker j alike: `neighbours[k, j]`. The
challenge's matrix is (2n, 2n) for n recorded pairs: rows and columns follow the list "pairs, then
the same pairs with roles swapped", so predictions, targets and partners must stand in that order,
2n of each. A wrong order cannot be noticed.

    clips = prepare(REACT2024, pred, target, partner, neighbours)
    scores = score_speakers(REACT2024, clips, range(len(clips.pred)), variant)
    summarise(REACT2024, clips, scores, variant)

is what a protocol's `score` does; `rapport.actors.metrics` does the middle line on many processes.

FRDiv and FRDvs together say what neither does (`share`): whether reactions to one speaker are more
alike than reactions to two. FRCorr takes the best of the appropriate reactions, so a random
listener comes near to a good one: hold a row of random ones beside it.

FRRea is not here: it compares features of rendered frames (Inception's in REACT, I3D's in
ReactFace), so take `measures.frechet.fd` of yours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from rapport.policies.motion import Layout, Motion, require_same_layout
from rapport.rewards.metrics.measures.ccc import concordance
from rapport.rewards.metrics.measures.dtw import ChannelGroups, nearest_dtw
from rapport.rewards.metrics.measures.tlcc import lag_of_peak, lag_of_peak_as_published
from rapport.rewards.metrics.protocols.protocol import Inputs, Protocol, Variant, require_variant

FPS = 25
MAX_FRAMES = 750
# Occurrences of action units, valence and arousal, expression probabilities.
EMOTION_GROUPS: ChannelGroups = (
    (slice(0, 15), 1 / 15),
    (slice(15, 17), 1.0),
    (slice(17, 25), 1 / 8),
)


@dataclass(frozen=True)
class Setting:
    """What the protocols differ in.

    Args:
        name: of the protocol.
        dim: channels; 25 = 15 AU occurrences, valence, arousal, 8 expression probabilities. None =
            any, all treated alike; the paper's are the 58 of FaceVerse.
        groups: channels that are warped together by FRDist, and their weights.
        epsilon: in the denominator of the reference's CCC.
        factor: of the reference's FRCorr and FRDist, on top of their sum over samples.
    """

    name: str
    dim: int | None
    groups: ChannelGroups
    epsilon: float
    factor: float


REACT2023 = Setting("react2023", 25, EMOTION_GROUPS, epsilon=1e-8, factor=1.0)
REACT2024 = Setting("react2024", 25, EMOTION_GROUPS, epsilon=1e-8, factor=1.0)
REACTFACE = Setting("reactface", None, ((slice(None), 1.0),), epsilon=1e-50, factor=10.0)
SETTINGS = {setting.name: setting for setting in (REACT2023, REACT2024, REACTFACE)}


@dataclass(frozen=True, eq=False)
class ReactClips:
    """What is scored, checked.

    Args:
        pred: (N, M, T, D).
        target: (N or more, T, D), that of speaker k in place k.
        partner: (N, T, D), or None.
        neighbours: of each speaker the indices of the appropriate targets, or None.
    """

    pred: np.ndarray
    target: np.ndarray
    partner: np.ndarray | None
    neighbours: list[np.ndarray] | None


def fr_corr(
    pred: np.ndarray,
    target: np.ndarray,
    neighbours: Any,
    epsilon: float = 0.0,
    equal_constants: float = 1.0,
) -> float:
    """FRCorr: CCC with the appropriate reaction where it is greatest, mean over N and M.

    In [-1, 1]. REACT prints M times this, ReactFace 10 (compute_FRC) or 10 M times
    (compute_FRC_mp).

    Args:
        pred: (N, M, T, D).
        target: (N, T, D).
        neighbours: see `neighbour_lists`.
        epsilon: of `concordance`; REACT has 1e-8.
        equal_constants: of `concordance`; REACT has 0: a constant channel never agrees.
    """
    lists = neighbour_lists(neighbours, len(pred), len(target))
    agreement = [
        _concordance(x, target[indices], epsilon=epsilon, equal_constants=equal_constants).max(1)
        for x, indices in zip(pred, lists, strict=True)
    ]
    return float(np.mean(agreement))


def fr_dist(
    pred: np.ndarray, target: np.ndarray, neighbours: Any, groups: ChannelGroups = EMOTION_GROUPS
) -> float:
    """FRDist: DTW distance to the appropriate reaction where it is least, mean over N and M.

    REACT prints M times this, ReactFace 10 or 10 M times, with one group of weight 1.

    Args:
        pred: (N, M, T, D).
        target: (N, T, D).
        neighbours: see `neighbour_lists`.
        groups: channels that are warped together, and the weights of their distances in the sum.
    """
    lists = neighbour_lists(neighbours, len(pred), len(target))
    distances = [
        nearest_dtw(x, target[indices], groups) for x, indices in zip(pred, lists, strict=True)
    ]
    return float(np.mean(distances))


def fr_syn(pred: np.ndarray, partner: np.ndarray, variant: Variant = "corrected") -> float:
    """FRSyn: frames, 0 to 49, between reaction and partner at the peak of their correlation.

    Args:
        pred: (N, M, T, D).
        partner: (N, T, D).
        variant: "corrected" is the mean over N and M of `lag_of_peak`; "reference" that of
            `lag_of_peak_as_published` over N, for sample 0 only, as compute_TLCC_mp returns within
            its loop.
    """
    require_variant(variant)
    return float(np.mean([_lags(x, s, variant) for x, s in zip(pred, partner, strict=True)]))


def fr_dvs(pred: np.ndarray) -> float:
    """FRDvs: mean squared difference between the reactions to two speakers, of (N, M, T, D).

    Over ordered pairs, sample by sample; so twice ReactFace's equation 24, whose sum over i < k has
    the same denominator. The mean of (a - b)^2 over pairs is twice the variance (ddof 1).

    Raises:
        ValueError: a single speaker.
    """
    if len(pred) < 2:
        raise ValueError("FRDvs compares speakers; there is one")
    return float(np.mean([2 * _variance(pred[:, m], axis=0) for m in range(pred.shape[1])]))


def share(pred: np.ndarray) -> float:
    """What part of the spread of reactions (N, M, T, D) the speaker explains: 1 - FRDiv / FRDvs.

    FRDiv is twice the variance among reactions to one speaker; FRDvs, between those to two, has on
    top twice the variance of what is due to the speaker. So this is an intra-class correlation: 0
    of reactions that heed nobody (a little below or above it in a finite sample), 1 of one reaction
    to each speaker. Neither is best; the right value is people's. No paper prints it; from printed
    tables it follows (ReactFace, Table 2: .034).

    NaN where all reactions are one.

    Raises:
        ValueError: a single speaker, or a single sample.
    """
    if pred.shape[1] < 2:
        raise ValueError("share compares reactions to one speaker; there is one each")
    return _share(float(np.mean([2 * _variance(x, axis=0) for x in pred])), fr_dvs(pred))


def _share(diversity: float, between: float) -> float:
    return 1 - diversity / between if between > 0 else float("nan")


def prepare(
    setting: Setting, pred: Any, target: Any, partner: Any = None, neighbours: Any = None
) -> ReactClips:
    """Checked arrays of the first 750 frames, from arrays or nested lists of typed motion.

    Args:
        setting: which protocol.
        pred: (N, M, T, D), or (N, T, D) for one sample.
        target: (N, T, D); with `neighbours` more may follow, who listened to nobody predicted for.
        partner: (N, T, D), or None.
        neighbours: see `neighbour_lists`, or None.

    Raises:
        ValueError: shapes, lengths, widths, NaN; says what and where.
        LayoutError: typed motion of unlike layouts.
    """
    layouts: dict[str, Layout] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, value in (("pred", pred), ("target", target), ("partner", partner)):
        if value is not None:
            arrays[name] = _array(value, name, layouts)
    if missing := {"pred", "target"} - arrays.keys():
        raise ValueError(f"{setting.name} needs {' and '.join(sorted(missing))}")
    _check_layouts(setting, layouts)
    if arrays["pred"].ndim == 3:
        arrays["pred"] = arrays["pred"][:, None]
    _check_shapes(setting, arrays, more_targets=neighbours is not None)
    _check_finite(setting, arrays)
    lists = None
    if neighbours is not None:
        lists = neighbour_lists(neighbours, len(arrays["pred"]), len(arrays["target"]))
    frames = {name: array[..., :MAX_FRAMES, :] for name, array in arrays.items()}
    return ReactClips(
        pred=frames["pred"],
        target=frames["target"],
        partner=frames.get("partner"),
        neighbours=lists,
    )


def neighbour_lists(neighbours: Any, speakers: int, targets: int) -> list[np.ndarray]:
    """For each speaker the indices of the appropriate reactions among the targets, at least one.

    Args:
        neighbours: (speakers, targets) matrix, 1 or True where the target is appropriate; or one
            list of indices a speaker.
        speakers: how many.
        targets: how many.

    Raises:
        ValueError: another shape, an index that does not exist, or a speaker without any.
    """
    if isinstance(neighbours, np.ndarray) and neighbours.ndim == 2:
        if neighbours.shape != (speakers, targets):
            raise ValueError(
                f"neighbours has shape {neighbours.shape}, expected ({speakers}, {targets}): "
                "predictions, targets. The challenge's matrix is for the pairs and then the same "
                "pairs with roles swapped; give both"
            )
        lists = [np.flatnonzero(row == 1) for row in neighbours]
    else:
        lists = [np.asarray(indices) for indices in neighbours]
    if len(lists) != speakers:
        raise ValueError(f"neighbours has {len(lists)} lists for {speakers} speakers; one each")
    for speaker, indices in enumerate(lists):
        if indices.ndim != 1 or not len(indices):
            raise ValueError(
                f"neighbours: speaker {speaker} has no appropriate reaction, not even the "
                "recorded one"
            )
        if indices.dtype.kind not in "iu" or indices.min() < 0 or indices.max() >= targets:
            raise ValueError(
                f"neighbours of speaker {speaker}: expected indices below {targets}, got {indices}"
            )
    return lists


def score_speakers(
    setting: Setting, clips: ReactClips, speakers: Iterable[int], variant: Variant
) -> list[dict[str, np.ndarray]]:
    """For each of `speakers` the metrics of its samples; no speaker depends on another."""
    epsilon = setting.epsilon
    equal_constants = 0.0
    if variant == "corrected":
        epsilon = 0.0
        equal_constants = 1.0
    scores = []
    for k in speakers:
        x = clips.pred[k]
        score = {"FRVar": _variance(x, axis=1)}
        if len(x) > 1:
            # The challenge's S-MSE: mean squared difference over ordered pairs of samples, divided
            # by T D, both unlike ReactFace's equation 25.
            score["FRDiv"] = 2 * _variance(x, axis=0)
            if variant == "corrected":
                moving = x - x.mean(axis=1, keepdims=True, dtype=np.float64)
                score["FRDiv_moving"] = 2 * _variance(moving, axis=0)
        if clips.partner is not None:
            score["FRSyn"] = _lags(x, clips.partner[k], variant)
        if clips.neighbours is not None:
            near = clips.neighbours[k]
            appropriate = clips.target[near]
            agreement = _concordance(
                x, appropriate, epsilon=epsilon, equal_constants=equal_constants
            )
            score["FRCorr"] = agreement.max(axis=1)
            if variant == "corrected" and (near != k).any():
                score["FRCorr_others"] = agreement[:, near != k].max(axis=1)
            score["FRDist"] = nearest_dtw(x, appropriate, setting.groups)
        scores.append(score)
    return scores


def summarise(
    setting: Setting, clips: ReactClips, scores: Sequence[dict[str, np.ndarray]], variant: Variant
) -> dict[str, float]:
    """The protocol's numbers from those of all its speakers, in their order."""
    names = dict.fromkeys(name for score in scores for name in score)
    result = {
        name: float(np.mean([score[name] for score in scores if name in score])) for name in names
    }
    samples = clips.pred.shape[1]
    if variant == "reference":
        for name in {"FRCorr", "FRDist"} & result.keys():
            result[name] *= setting.factor * samples
        result.setdefault("FRDiv", 0.0)
    if len(clips.pred) > 1:
        result["FRDvs"] = fr_dvs(clips.pred)
        if variant == "corrected" and samples > 1:
            result["share"] = _share(result["FRDiv"], result["FRDvs"])
    return dict(sorted(result.items()))


def require_fps(setting: Setting, fps: float | None) -> None:
    """Raise `ValueError` unless plain arrays are at the protocols' frame rate; None = they are."""
    if fps is not None and fps != FPS:
        raise ValueError(f"{setting.name} is defined at {FPS} fps, not {fps:g}: resample first")


def score(setting: Setting, inputs: Inputs) -> dict[str, float]:
    """FRCorr, FRDist, FRSyn, FRVar, FRDiv, FRDvs; nothing is drawn at random.

    Left out: FRCorr and FRDist without `neighbours`, FRSyn without `partner`, FRDvs of a single
    speaker, and in "corrected" FRDiv of a single sample. "corrected" has moreover FRCorr_others,
    FRDiv_moving and `share`, see `CORRECTIONS`.

    "reference" gives what the evaluation scripts print: FRCorr and FRDist of the `_mp` functions,
    summed over M, by ReactFace moreover times 10; its sequential functions give one M-th. FRSyn is
    of sample 0. ReactFace's script does not call FRDist.

    Args:
        setting: which protocol.
        inputs: pred, target, partner and neighbours as `prepare` takes them.
    """
    inputs.refuse(setting.name, "speech_mask")
    require_fps(setting, inputs.fps)
    clips = prepare(
        setting,
        pred=inputs.pred,
        target=inputs.target,
        partner=inputs.partner,
        neighbours=inputs.neighbours,
    )
    scores = score_speakers(setting, clips, speakers=range(len(clips.pred)), variant=inputs.variant)
    return summarise(setting, clips, scores=scores, variant=inputs.variant)


CORRECTIONS = {
    "all_samples": "FRSyn is the mean over all M samples, not that of sample 0",
    "nan_safe_synchrony": (
        "FRSyn: a channel that is constant over a lag's frames counts as uncorrelated there, "
        "instead of making the lag 49; a sample without any that varies keeps the 49"
    ),
    "nearest_peak": (
        "FRSyn: of equal peaks the one nearest to lag 0, in double precision, not the first in "
        "single"
    ),
    "constant_channel_ccc": "FRCorr: two equal constant channels agree by 1, not 0",
    "no_epsilon": "FRCorr: nothing is added to the denominator of CCC",
    "mean_over_samples": "FRCorr and FRDist are means over M, not sums",
    "one_sample_diversity": "FRDiv of one sample is left out, not 0",
    "own_reaction_apart": (
        "FRCorr_others: FRCorr with the recorded reaction taken out of its own neighbours, of the "
        "speakers who have others"
    ),
    "offsets_apart": (
        "FRDiv_moving: FRDiv with each reaction's mean over time taken out; a different still face "
        "each time has a FRDiv, and none of this"
    ),
    "share": (
        "share: 1 - FRDiv / FRDvs, what part of the spread the speaker explains; 0 of reactions "
        "that heed nobody, 1 of one reaction to each speaker, right where people have it"
    ),
}

PROTOCOLS = [
    Protocol(
        name="react2023",
        source="reactmultimodalchallenge/baseline_react2023: evaluate.py, metric/*.py",
        corrections=CORRECTIONS,
        score=partial(score, REACT2023),
    ),
    Protocol(
        name="react2024",
        source="reactmultimodalchallenge/baseline_react2024: evaluate.py, metric/*.py",
        corrections=CORRECTIONS,
        score=partial(score, REACT2024),
    ),
    Protocol(
        name="reactface",
        source="lingjivoo/ReactFace: evaluate_metric.py, metric/*.py",
        corrections=CORRECTIONS | {"no_factor_ten": "FRCorr and FRDist are not multiplied by 10"},
        score=partial(score, REACTFACE),
    ),
]


def _concordance(
    samples: np.ndarray, ys: np.ndarray, epsilon: float, equal_constants: float
) -> np.ndarray:
    """CCC of samples (M, T, D) with appropriate reactions (K, T, D), mean over channels, (M, K)."""
    agreement = concordance(samples, ys, epsilon=epsilon, equal_constants=equal_constants)
    mean: np.ndarray = agreement.mean(axis=2)
    return mean


def _lags(samples: np.ndarray, partner: np.ndarray, variant: Variant) -> np.ndarray:
    """Frames, (M,), or (1,) in the reference, of samples (M, T, D) and partner (T, D)."""
    if variant == "reference":
        return np.array([lag_of_peak_as_published(samples[0], partner)])
    return np.array([lag_of_peak(x, partner) for x in samples])


def _variance(x: np.ndarray, axis: int) -> np.ndarray:
    """Variance (ddof 1) along an axis, mean of the rest, in double precision."""
    variance: np.ndarray = np.var(x, axis=axis, ddof=1, dtype=np.float64).mean()
    return variance


def _array(value: Any, what: str, layouts: dict[str, Layout]) -> np.ndarray:
    """Numbers of arrays, typed motion or nested lists of either.

    The layout of typed motion goes to `layouts[what]`.
    """
    if isinstance(value, Motion):
        first = layouts.setdefault(what, value.layout)
        require_same_layout(value.layout, first, f"clips of {what}")
        return value.values
    if isinstance(value, list | tuple):
        items = [_array(item, what, layouts) for item in value]
        shapes = {item.shape for item in items}
        if not items:
            raise ValueError(f"{what} is empty")
        if len(shapes) != 1:
            raise ValueError(f"{what}: clips of unlike shapes {sorted(shapes)}")
        return np.stack(items)
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{what}: expected numbers, got {array.dtype}")
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def _check_layouts(setting: Setting, layouts: dict[str, Layout]) -> None:
    for name, layout in layouts.items():
        first = next(iter(layouts.values()))
        require_same_layout(layout, first, f"{setting.name}: {name} against the others")
        if layout.fps != FPS:
            raise ValueError(
                f"{setting.name} is defined at {FPS} fps, {name} has {layout.fps:g}: resample it "
                "first"
            )


def _check_shapes(setting: Setting, arrays: dict[str, np.ndarray], more_targets: bool) -> None:
    shape = arrays["pred"].shape
    if len(shape) != 4 or setting.dim not in (None, shape[-1]) or 0 in shape or shape[2] < 2:
        raise ValueError(
            f"{setting.name}: pred has shape {shape}, expected (N, M, T, {setting.dim or 'D'}), T "
            "at least 2"
        )
    expected = (shape[0], *shape[2:])
    for name in arrays.keys() - {"pred"}:
        more = name == "target" and more_targets and len(arrays[name]) > shape[0]
        if arrays[name].shape != expected and not (more and arrays[name].shape[1:] == expected[1:]):
            raise ValueError(
                f"{setting.name}: {name} has shape {arrays[name].shape}, expected {expected} "
                f"(N, T, D) as pred is {shape}"
            )


def _check_finite(setting: Setting, arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        for speaker, clip in enumerate(array):
            if not np.isfinite(clip).all():
                place = [int(i) for i in np.argwhere(~np.isfinite(clip))[0]]
                axes = ["sample", "frame", "channel"][-len(place) :]
                at = ", ".join(f"{axis} {index}" for axis, index in zip(axes, place, strict=True))
                raise ValueError(
                    f"{setting.name}: {name} has NaN or infinity, first at speaker {speaker}, {at}"
                )
