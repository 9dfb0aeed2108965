"""Preference pairs: the best candidate of each group against the worst (VLA + DPO paper, section
III-D).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """`chosen_id` was preferred to `rejected_id` as a reaction to the prompt; scores of Eq. 10 in
    [0, 1].
    """

    prompt_id: str
    chosen_id: str
    rejected_id: str
    chosen_score: float
    rejected_score: float

    @property
    def margin(self) -> float:
        return self.chosen_score - self.rejected_score


@dataclass(frozen=True)
class PairCounts:
    """What became of the groups: `groups` = pairs + unscored + single_member + all_tied +
    below_margin.

    Args:
        groups: prompts.
        pairs: groups that gave a pair.
        unscored: groups without any score.
        single_member: groups with one scored candidate, which has nothing to be compared with.
        all_tied: groups whose best and worst score are equal: no preference was expressed.
        below_margin: groups whose best and worst differ by less than the margin asked for.
        ties_broken: pairs for which several candidates shared the best or the worst score.
        unscored_candidates: candidates without a score, left out of their group.
    """

    groups: int
    pairs: int
    unscored: int
    single_member: int
    all_tied: int
    below_margin: int
    ties_broken: int
    unscored_candidates: int


def make_pairs(
    scores: Mapping[str, Mapping[str, float | None]], min_margin: float = 0.0
) -> tuple[list[Pair], PairCounts]:
    """One pair per prompt: highest score chosen, lowest rejected; sorted by prompt id.

    Args:
        scores: prompt id -> candidate id -> score, or None where it is missing (which is not zero).
        min_margin: least difference of scores that makes a pair. A difference of zero never does.

    Where several candidates share the best or the worst score, a hash of the ids decides: the same
    choice whatever their order, and no favour to names that sort first, such as the ground truth's.
    """
    if not 0 <= min_margin <= 1:
        raise ValueError(f"min_margin is {min_margin:g}; scores lie in [0, 1], so it must as well")
    pairs: list[Pair] = []
    unscored = single = tied = below = broken = missing = 0
    for prompt_id in sorted(scores):
        group = {
            candidate: score for candidate, score in scores[prompt_id].items() if score is not None
        }
        missing += len(scores[prompt_id]) - len(group)
        if len(group) < 2:
            unscored += not group
            single += len(group)
            continue
        high, low = max(group.values()), min(group.values())
        if high == low:
            tied += 1
            continue
        if high - low < min_margin:
            below += 1
            continue
        best = [candidate for candidate, score in group.items() if score == high]
        worst = [candidate for candidate, score in group.items() if score == low]
        broken += len(best) > 1 or len(worst) > 1
        pairs.append(Pair(prompt_id, _pick(prompt_id, best), _pick(prompt_id, worst), high, low))
    counts = PairCounts(
        groups=len(scores),
        pairs=len(pairs),
        unscored=unscored,
        single_member=single,
        all_tied=tied,
        below_margin=below,
        ties_broken=broken,
        unscored_candidates=missing,
    )
    return pairs, counts


def _pick(prompt_id: str, candidates: Iterable[str]) -> str:
    return min(candidates, key=lambda c: (hashlib.sha256(f"{prompt_id}\0{c}".encode()).digest(), c))
