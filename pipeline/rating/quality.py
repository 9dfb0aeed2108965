"""What answers are worth: agreement, attention, steadiness, and whether listening is what is rated.

Nobody is left out here. Who looks careless is flagged, with the reason, and the studio decides.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from rapport.pipeline.rating.offers import Offer
from rapport.pipeline.rating.store import Answered, Rater, Store
from rapport.rewards.ratings.beside import share_matched
from rapport.rewards.ratings.comparisons import (
    SHARES,
    Comparison,
    comparison_alpha,
    strengths,
    survey_comparisons,
)
from rapport.rewards.ratings.raters import Survey, krippendorff_alpha, survey
from rapport.rewards.ratings.ratings import CRITERIA, Rating
from rapport.rewards.ratings.scores import difference

Opinions = list[Rating] | list[Comparison]

FEWEST = 5  # items of a rater before their habits are spoken of
STRAIGHT = 0.8  # share of items with one grade on all scales, or of choices of one side
REPEATS = 2  # items that were seen twice before steadiness is spoken of
UNSTEADY = 1.0  # mean difference between two ratings of the same clip by the same person
QUICK = 0.1  # share of items answered before the video could have ended
SEEN = 0.9  # share of a video's length that nobody can be quicker than; clocks differ


@dataclass(frozen=True)
class Habits:
    """How a rater rates.

    Args:
        rater: neutral name.
        outside: what Prolific calls them.
        groups: finished in this round.
        items: answered in it.
        seconds: median, of an item.
        straight: share of items with one grade on all scales, or of choices of the same side; None
            below `FEWEST` items.
        unsteady: scales: mean absolute difference between two ratings of a clip; pairs: share of
            repeated choices that turned; None below `REPEATS` items that were repeated.
        checks: instructed items: obeyed, and all of them.
        quick: share of items answered before the video could have ended.
        against: agreement (alpha) of all without this rater less that with them.
        left_out: whether the studio leaves them out.
        flags: reasons to look at them.
    """

    rater: str
    outside: str | None
    groups: int
    items: int
    seconds: float
    straight: float | None
    unsteady: float | None
    checks: tuple[int, int]
    quick: float
    against: float | None
    left_out: bool
    flags: list[str] = field(default_factory=list)


def opinions(answers: Iterable[Answered], offer: Offer, left_out: Collection[int] = ()) -> Opinions:
    """What people say of candidates: ratings, or comparisons. Checks and controls are none.

    Args:
        answers: of any rounds; those of the offer's are taken.
        offer: the round.
        left_out: numbers of raters who do not count.
    """
    ratings: list[Rating] = []
    comparisons: list[Comparison] = []
    for answered in answers:
        if answered.item.kind != "plain" or answered.rater in left_out:
            continue
        if answered.place.round != offer.number:
            continue
        rater = f"rater-{answered.rater}"
        shown = [offer.videos[name] for name in answered.item.videos]
        prompt_id, first_id = shown[0].prompt_id, str(shown[0].candidate_id)
        if len(shown) == 2:
            second_id = str(shown[1].candidate_id)
            preferred = answered.answer["preferred"]
            comparisons.append(Comparison(prompt_id, first_id, second_id, rater, preferred))
        elif any(grade is not None for grade in answered.answer.values()):
            ratings.append(Rating(prompt_id, first_id, rater, **answered.answer))
    return comparisons or ratings


def present_opinions(store: Store, offer: Offer) -> Opinions:
    """What raters who are not left out have said of an offer until now."""
    return opinions(store.answers(offer.number), offer, store.left_out())


def surveyed(said: Opinions, offer: Offer) -> Survey:
    """How much of an offer was rated, and how far raters agree."""
    comparisons = [each for each in said if isinstance(each, Comparison)]
    if comparisons:
        return survey_comparisons(comparisons, offer.members)
    return survey([each for each in said if isinstance(each, Rating)], offer.members)


def agreement(said: Opinions, weights: Mapping[str, float]) -> float | None:
    """Alpha: of choices, or the mean of those of the criteria that weigh anything; None = unknown.

    Args:
        said: by everybody who counts.
        weights: of the criteria.
    """
    comparisons = [each for each in said if isinstance(each, Comparison)]
    if comparisons:
        return comparison_alpha(comparisons)
    ratings = [each for each in said if isinstance(each, Rating)]
    weighed = [name for name, w in weights.items() if w > 0]
    alphas = [krippendorff_alpha(ratings, name) for name in weighed]
    known = [alpha for alpha in alphas if alpha is not None]
    return float(np.mean(known)) if known else None


def matched(
    answers: Sequence[Answered], offer: Offer, left_out: Collection[int] = ()
) -> dict[str, dict[str, float | None]]:
    """Whether listeners are rated higher beside the speaker to whom they were listening.

    Of each source: `matched` is the share of judgements in favour of the own speaker, ties counted
    half, where chance is .5; `difference` that of the ratings, None where sides were chosen. Both
    listeners of a judgement are of one source and stand beside one speaker, judged by one person.
    """
    present = [
        each for each in answers if each.place.round == offer.number and each.rater not in left_out
    ]
    graded = {
        (each.rater, each.item.videos[0]): Rating("-", "-", "-", **each.answer)
        for each in present
        if len(each.item.videos) == 1
        and each.item.kind in ("plain", "control")
        and any(grade is not None for grade in each.answer.values())
    }
    by_candidate = {(v.prompt_id, v.candidate_id): name for name, v in offer.videos.items()}
    differences: dict[str, list[float]] = defaultdict(list)
    for each in present:
        if each.item.kind != "control":
            continue
        video = next(name for name in each.item.videos if name in offer.controls)
        control = offer.controls[video]
        if len(each.item.videos) == 2:
            share = SHARES[each.answer["preferred"]]
            own_is_first = each.item.videos[1] == video
            differences[control.source].append((share - 0.5) * (1 if own_is_first else -1))
            continue
        own = graded.get((each.rater, by_candidate[control.prompt_id, control.counterpart]))
        other = graded.get((each.rater, video))
        if own is None or other is None:
            continue
        apart = difference(own, other, offer.weights)
        if apart is not None:
            differences[control.source].append(apart)
    scales = bool(graded)
    return {
        source: {
            "judgements": len(values),
            "matched": share_matched(values),
            "difference": float(np.mean(values)) if scales else None,
        }
        for source, values in sorted(differences.items())
    }


def habits(store: Store, offer: Offer) -> list[Habits]:
    """How everybody rates who has answered anything in this round."""
    answers = store.answers(offer.number)
    raters = {rater.number: rater for rater in store.raters()}
    finished = store.groups_by_rater(offer.number)
    by_rater: dict[int, list[Answered]] = defaultdict(list)
    for each in answers:
        by_rater[each.rater].append(each)
    said = opinions(answers, offer, store.left_out())
    who_said = {each.rater for each in said}
    whole = agreement(said, offer.weights)
    rows = []
    for number, given in sorted(by_rater.items()):
        without: Opinions = [each for each in said if each.rater != raters[number].name]  # type: ignore[assignment]
        alone = agreement(without, offer.weights) if raters[number].name in who_said else None
        against = None if whole is None or alone is None else alone - whole
        rows.append(_habits(raters[number], given, offer, finished[number], against))
    return rows


def _habits(
    rater: Rater, given: Sequence[Answered], offer: Offer, groups: int, against: float | None
) -> Habits:
    obeyed = [each.item.obeyed(each.answer) for each in given if each.item.kind == "instructed"]
    quick = [each.seconds < _least_seconds(each, offer) for each in given]
    straight = straightness(given)
    unsteady = unsteadiness(given)
    flags = []
    if not all(obeyed):
        flags.append("failed a check")
    if np.mean(quick) > QUICK:
        flags.append("answers before the video ends")
    if straight is not None and straight >= STRAIGHT:
        flags.append("straight-lining")
    if unsteady is not None and unsteady > (UNSTEADY if len(given[0].item.videos) == 1 else 0.5):
        flags.append("rates the same clip otherwise the second time")
    return Habits(
        rater=rater.name,
        outside=rater.outside,
        groups=groups,
        items=len(given),
        seconds=float(np.median([each.seconds for each in given])),
        straight=straight,
        unsteady=unsteady,
        checks=(sum(obeyed), len(obeyed)),
        quick=float(np.mean(quick)),
        against=against,
        left_out=rater.left_out,
        flags=flags,
    )


def _least_seconds(answered: Answered, offer: Offer) -> float:
    """How long the videos of an item last; two are played at once."""
    lengths = [offer.videos[name].seconds for name in answered.item.videos]
    return SEEN * max(lengths)


def straightness(given: Sequence[Answered]) -> float | None:
    """Share of items graded alike on all scales, or of choices of the side chosen most often.

    Instructed items do not count. None below `FEWEST` items.
    """
    own = [each for each in given if each.item.kind != "instructed"]
    if len(own) < FEWEST:
        return None
    if len(own[0].item.videos) == 1:
        return float(np.mean([len(set(each.answer.values())) == 1 for each in own]))
    sides = Counter(each.answer["preferred"] for each in own)
    return sides.most_common(1)[0][1] / len(own)


def unsteadiness(given: Sequence[Answered]) -> float | None:
    """By how much a rater differs from themselves; see `Habits.unsteady`."""
    first = {frozenset(each.item.videos): each for each in given if each.item.kind == "plain"}
    gaps: list[float] = []
    repeated = 0
    for again in given:
        before = first.get(frozenset(again.item.videos))
        if again.item.kind != "repeated" or before is None:
            continue
        repeated += 1
        if len(again.item.videos) == 2:
            gaps.append(float(_favourite(again) != _favourite(before)))
            continue
        both = [(again.answer[name], before.answer[name]) for name in CRITERIA]
        gaps += [abs(one - other) for one, other in both if one is not None and other is not None]
    return float(np.mean(gaps)) if gaps and repeated >= REPEATS else None


def _favourite(answered: Answered) -> str:
    """The video that was chosen, whatever its side."""
    preferred = answered.answer["preferred"]
    if preferred == "tie":
        return "tie"
    return answered.item.videos[preferred == "second"]


def status(store: Store, offer: Offer) -> dict[str, Any]:
    """All that the studio's page shows of a round, as JSON."""
    answers = store.answers(offer.number)
    raters = store.raters()
    left_out = store.left_out()
    said = opinions(answers, offer, left_out)
    rows = habits(store, offer)
    flagged = {row.rater for row in rows if row.flags}
    unflagged: Opinions = [each for each in said if each.rater not in flagged]  # type: ignore[assignment]
    finished = store.finished()
    survey = surveyed(said, offer)
    return {
        "round": offer.number,
        "form": store.config.form,
        "per_group": store.per_group,
        "groups": {name: finished[name] for name in sorted(offer.groups)},
        "begun": store.begun(),
        "answers": len(answers),
        "opinions": len(said),
        "survey": asdict(survey) | {"warnings": survey.warnings},
        "agreement": agreement(said, offer.weights),
        "agreement_without_flagged": agreement(unflagged, offer.weights) if flagged else None,
        "matched": matched(answers, offer, left_out),
        "strengths": strengths_of(said, offer),
        "raters": [asdict(row) for row in rows],
        "came": sum(rater.consented is not None for rater in raters),
    }


def strengths_of(said: Opinions, offer: Offer) -> dict[str, float]:
    """Bradley-Terry strengths of the sources; empty where nothing was compared."""
    comparisons = [each for each in said if isinstance(each, Comparison)]
    if not comparisons or not offer.sources:
        return {}
    return strengths(comparisons, offer.sources)
