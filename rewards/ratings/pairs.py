"""Preference pairs: the best candidate of each group against the worst.

Source: section III-D of the VLA + DPO paper.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """`chosen_id` was preferred to `rejected_id` as a reaction to the prompt.

    The scores are those of Eq. 10, in [0, 1].
    """

    prompt_id: str
    chosen_id: str
    rejected_id: str
    chosen_score: float
    rejected_score: float

    @property
    def margin(self) -> float:
        """By how much the chosen score is higher."""
        return self.chosen_score - self.rejected_score


@dataclass(frozen=True)
class PairCounts:
    """What became of the groups.

    `groups` = pairs + unscored + single_member + all_tied + below_margin.

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
    scores: Mapping[str, Mapping[str, float | None]], minimum_margin: float = 0.0
) -> tuple[list[Pair], PairCounts]:
    """One pair per prompt: highest score chosen, lowest rejected; sorted by prompt id.

    Where several candidates share the best or the worst score, a hash of the ids decides: the same
    choice whatever their order, and no favour to names that sort first, such as the ground truth's.

    Args:
        scores: prompt id -> candidate id -> score, or None where it is missing (which is not zero).
        minimum_margin: least difference of scores that makes a pair. Equal scores never do.

    Raises:
        ValueError: a margin outside [0, 1].
    """
    if not 0 <= minimum_margin <= 1:
        raise ValueError(
            f"minimum_margin is {minimum_margin:g}; scores lie in [0, 1], so it must as well"
        )
    pairs: list[Pair] = []
    unscored = single_member = all_tied = below_margin = ties_broken = unscored_candidates = 0
    for prompt_id in sorted(scores):
        group = {
            candidate: score for candidate, score in scores[prompt_id].items() if score is not None
        }
        unscored_candidates += len(scores[prompt_id]) - len(group)
        if len(group) < 2:
            unscored += not group
            single_member += len(group)
            continue
        highest = max(group.values())
        lowest = min(group.values())
        if highest == lowest:
            all_tied += 1
            continue
        if highest - lowest < minimum_margin:
            below_margin += 1
            continue
        best = [candidate for candidate, score in group.items() if score == highest]
        worst = [candidate for candidate, score in group.items() if score == lowest]
        ties_broken += len(best) > 1 or len(worst) > 1
        pairs.append(
            Pair(
                prompt_id,
                chosen_id=_pick(prompt_id, best),
                rejected_id=_pick(prompt_id, worst),
                chosen_score=highest,
                rejected_score=lowest,
            )
        )
    counts = PairCounts(
        groups=len(scores),
        pairs=len(pairs),
        unscored=unscored,
        single_member=single_member,
        all_tied=all_tied,
        below_margin=below_margin,
        ties_broken=ties_broken,
        unscored_candidates=unscored_candidates,
    )
    return pairs, counts


def _pick(prompt_id: str, candidates: Iterable[str]) -> str:
    def key(candidate: str) -> tuple[bytes, str]:
        return hashlib.sha256(f"{prompt_id}\0{candidate}".encode()).digest(), candidate

    return min(candidates, key=key)
