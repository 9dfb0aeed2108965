"""Preference pairs: by raters, or by whom a reaction was made for.

Raters' pairs are the best candidate of each group against the worst (VLA + DPO paper, III-D).
Contrast pairs need no rater: a reaction to the speaker against one that was made for another.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rapport.rewards.ratings.ratings import DIGITS


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
class ReactionId:
    """A reaction, and the prompt that it answers."""

    prompt_id: str
    candidate_id: str


@dataclass(frozen=True)
class ContrastPair:
    """`chosen` answers the prompt, `rejected` somebody else's.

    Args:
        prompt_id: whose speaker both are shown beside.
        chosen: made for this speaker.
        rejected: made for another one.
        gap: |log ratio| of their amplitudes; 0 = equally lively.
    """

    prompt_id: str
    chosen: ReactionId
    rejected: ReactionId
    gap: float


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
        if round(highest - lowest, DIGITS) < minimum_margin:
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


def contrast_pairs(
    amplitudes: Mapping[str, Mapping[ReactionId, float]],
    conversations: Mapping[str, str],
    count: int,
    *,
    drawn: int = 8,
    seed: int = 0,
) -> list[ContrastPair]:
    """Pairs that only listening tells apart: a reaction against one made for another speaker.

    Of `drawn` reactions from other conversations, the rejected one is that whose amplitude is
    nearest to the chosen one's. Its twin follows, in which the two change places beside the other
    speaker. So nothing that all speakers get alike (a smile, a still head, the noise of a sampler)
    is preferred, and in a batch that holds both, what makes one reaction likelier than the other
    whoever speaks cancels from the gradient. Avatar Forcing (arXiv 2601.00664) rejects what was
    generated without the speaker, which is less lively, too; here both were made for somebody.

    Args:
        amplitudes: prompt id -> reactions that may be chosen there -> how far they move, see
            `amplitude`.
        conversations: prompt id -> its conversation; others are of other people.
        count: of pairs, twins included; even. Prompts take turns to have one with its twin.
        drawn: reactions from other conversations, at most.
        seed: of order and draws.

    Raises:
        ValueError: nobody speaks but one person, or nothing was given to choose from.
    """
    prompts = sorted(prompt for prompt, group in amplitudes.items() if group)
    if len({conversations[prompt] for prompt in prompts}) < 2:
        raise ValueError(
            f"{len(prompts)} prompts with reactions are all of one speaker: a contrast needs "
            "reactions to two or more"
        )
    rng = np.random.default_rng([seed, len(prompts)])
    order = rng.permutation(len(prompts))
    pairs = []
    for number in range(count // 2):
        prompt = prompts[order[number % len(prompts)]]
        chosen = _drawn(amplitudes[prompt], rng)
        others = [other for other in prompts if conversations[other] != conversations[prompt]]
        picked = rng.permutation(len(others))[:drawn]
        rivals = [_drawn(amplitudes[others[place]], rng) for place in picked]
        own = amplitudes[prompt][chosen]
        gaps = {
            rival: _gap(own, amplitudes[others[place]][rival])
            for place, rival in zip(picked, rivals, strict=True)
        }
        rejected = min(rivals, key=lambda rival: gaps[rival])
        gap = gaps[rejected]
        pairs.append(ContrastPair(prompt, chosen, rejected, gap))
        pairs.append(ContrastPair(rejected.prompt_id, rejected, chosen, gap))
    return pairs


def contrast_count(rated: int, prompts: int, share: float) -> int:
    """How many contrast pairs make up `share` of all, beside `rated` pairs of raters; even.

    Ratings are dear and these pairs are not, so none of the former is left out for them. With
    share 1 there are no others, and as many as prompts.
    """
    wanted = prompts if share == 1 else rated * share / (1 - share)
    return 2 * round(wanted / 2)


def amplitude(motion: np.ndarray, scale: np.ndarray) -> float:
    """How far a face moves about its own mean: root mean square over time and channels.

    Args:
        motion: (time, dim).
        scale: (dim,) what each channel is measured in, see `spread`; where it is 0, nobody moves
            and the channel does not count.
    """
    moving = scale > 0
    if not moving.any():
        return 0.0
    return float(np.sqrt(np.mean((motion.std(axis=0)[moving] / scale[moving]) ** 2)))


def spread(motions: Sequence[np.ndarray]) -> np.ndarray:
    """(dim,) how far people move in each channel: root mean square of their deviations."""
    variances = np.stack([motion.var(axis=0) for motion in motions])
    return np.asarray(np.sqrt(variances.mean(axis=0)))


def _drawn(group: Mapping[ReactionId, float], rng: np.random.Generator) -> ReactionId:
    reactions = list(group)
    return reactions[rng.integers(len(reactions))]


def _gap(one: float, other: float) -> float:
    """|log ratio|; 0 where neither moves, infinite where one does."""
    if one == other:
        return 0.0
    return abs(math.log(one / other)) if one > 0 and other > 0 else math.inf
