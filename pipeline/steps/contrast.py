"""Pairs that no rater makes: a reaction to the speaker against one to somebody else."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rapport.pipeline.data.candidates import POLICY, Candidate
from rapport.pipeline.data.neighbours import named
from rapport.pipeline.rundir import Phase, RunError
from rapport.pipeline.settings import Preferences
from rapport.pipeline.steps.corpus import choose
from rapport.pipeline.steps.learning import Imitated
from rapport.pipeline.steps.sampling import CandidateGroups, Prompts
from rapport.rewards.ratings.pairs import (
    ContrastPair,
    ReactionId,
    amplitude,
    contrast_count,
    contrast_pairs,
    spread,
)
from rapport.rewards.ratings.scores import Scores


@dataclass(frozen=True, eq=False)
class Pool:
    """Reactions that contrast pairs are made of.

    Args:
        conversations: prompt id -> its conversation.
        actions: of each reaction, in the policy's own terms.
        groups: prompt id -> reactions that may be chosen there.
        motions: of each reaction, (time, dim).
    """

    conversations: Mapping[str, str]
    actions: Mapping[ReactionId, np.ndarray]
    groups: dict[str, list[ReactionId]] = field(default_factory=dict)
    motions: dict[ReactionId, np.ndarray] = field(default_factory=dict)

    @property
    def amplitudes(self) -> dict[str, dict[ReactionId, float]]:
        """How far each reaction moves, in units of how far all of them do."""
        scale = spread(list(self.motions.values()))
        return {
            prompt_id: {reaction: amplitude(self.motions[reaction], scale) for reaction in group}
            for prompt_id, group in self.groups.items()
        }


class RecordedActions(Mapping[ReactionId, np.ndarray]):
    """What recorded listeners did, in the policy's terms; read when it is asked for.

    Args:
        imitated: corpus and policy.
        reactions: whose candidate ids are clips of the corpus.
    """

    def __init__(self, imitated: Imitated, reactions: Collection[ReactionId]) -> None:
        self.imitated = imitated
        self.reactions = reactions

    def __getitem__(self, reaction: ReactionId) -> np.ndarray:
        clip = self.imitated.corpus.clip(reaction.candidate_id, modalities=())
        return self.imitated.policy.recorded(clip).actions

    def __iter__(self) -> Iterator[ReactionId]:
        return iter(self.reactions)

    def __len__(self) -> int:
        return len(self.reactions)


def contrasted(
    step: Phase,
    config: Preferences,
    imitated: Imitated,
    groups: CandidateGroups,
    *,
    rated: int,
    scores: Scores,
    round_index: int,
) -> tuple[list[ContrastPair], Pool, dict[str, float]]:
    """The pairs of `dpo.contrast`, what they are made of, and counts.

    Args:
        step: the phase.
        config: of the recipe.
        imitated: corpus and policy.
        groups: the round's candidates, whose prompts are answered.
        rated: pairs of raters that they stand beside.
        scores: of the candidates, where they were rated.
        round_index: of the loop.

    Raises:
        RunError: all reactions are to one speaker.
    """
    share = config.dpo.contrast
    if not share:
        return [], Pool({}, {}), {}
    seed = config.seed + round_index - 1
    if config.dpo.contrast_of == "recorded":
        # Recordings cost nothing: also those of moments that the policy was not asked about.
        wanted = max(contrast_count(rated, len(groups), share), len(groups))
        asked = choose(imitated.corpus, "train", wanted, seed=seed)
        pool = recorded_pool(imitated, asked)
    else:
        asked = list(groups)
        pool = sampled_pool(imitated, groups, scores)
    count = contrast_count(rated, len(pool.groups), share)
    try:
        pairs = contrast_pairs(pool.amplitudes, pool.conversations, count, seed=seed)
    except ValueError as error:
        raise RunError(f"dpo.contrast={share:g}: {error}") from error
    gap = float(np.median([pair.gap for pair in pairs])) if pairs else 0.0
    step.say(
        f"{len(pairs)} pairs of {config.dpo.contrast_of} reactions to this and to another speaker; "
        f"amplitudes differ by {np.expm1(gap):.0%} (median)"
    )
    step.logger.log({"contrast_pairs": len(pairs), "contrast_amplitude_gap": gap})
    return pairs, pool, {"contrast_pairs": len(pairs), "unanswered": len(asked) - len(pool.groups)}


def recorded_pool(imitated: Imitated, prompt_ids: Iterable[str]) -> Pool:
    """For each prompt the recorded listeners who fit its speaker; a prompt without one is left out.

    Where several listened to the same moment, the prompt's own is not among them: it alone goes on
    from the past that the prompt holds, which would tell it from others without any listening.
    """
    corpus = imitated.corpus
    layout = imitated.policy.layout
    fitting = named(corpus, "train")
    conversations = corpus.conversations("train")
    groups: dict[str, list[ReactionId]] = {}
    answers: dict[str, list[ReactionId]] = {}
    for prompt_id in prompt_ids:
        listeners = fitting[prompt_id]
        others = [clip_id for clip_id in listeners if clip_id != prompt_id]
        for clip_id in others or listeners:
            reaction = ReactionId(prompt_id, clip_id)
            groups.setdefault(prompt_id, []).append(reaction)
            answers.setdefault(clip_id, []).append(reaction)
    motions = {
        reaction: motion.subset(layout).values
        for clip_id, motion in corpus.listeners("train")
        for reaction in answers.get(clip_id, ())
    }
    return Pool(
        conversations={prompt_id: conversations[prompt_id] for prompt_id in groups},
        actions=RecordedActions(imitated, motions.keys()),
        groups=groups,
        motions=motions,
    )


def sampled_pool(imitated: Imitated, groups: CandidateGroups, scores: Scores) -> Pool:
    """For each prompt the policy's samples; of a rated group only those with the best score."""
    policy = imitated.policy
    conversations = imitated.corpus.conversations("train")
    actions: dict[ReactionId, np.ndarray] = {}
    pool = Pool({prompt_id: conversations[prompt_id] for prompt_id in groups}, actions)
    for prompt_id, group in groups.items():
        sampled = [candidate for candidate in group if candidate.source == POLICY]
        pool.groups[prompt_id] = []
        for candidate in _best(sampled, scores.get(prompt_id, {})):
            reaction = ReactionId(prompt_id, candidate.candidate_id)
            pool.groups[prompt_id].append(reaction)
            actions[reaction] = candidate.actions
            pool.motions[reaction] = policy.to_motion(candidate.reaction).values
    return pool


def contrast_rows(
    pairs: Iterable[ContrastPair], pool: Pool, imitated: Imitated
) -> Iterator[dict[str, Any]]:
    """Rows of `pair_schema`."""
    policy = imitated.policy
    prompts = Prompts(imitated, "train")
    for pair in pairs:
        yield policy.prompt_row(prompts[pair.prompt_id]) | {
            "chosen": policy.pack(pool.actions[pair.chosen]),
            "rejected": policy.pack(pool.actions[pair.rejected]),
            "chosen_score": None,
            "rejected_score": None,
            "made_for": pair.rejected.prompt_id,
            "learnt": False,
        }


def _best(group: list[Candidate], scores: Mapping[str, float | None]) -> list[Candidate]:
    rated = {
        candidate.candidate_id: score
        for candidate in group
        if (score := scores.get(candidate.candidate_id)) is not None
    }
    if not rated:
        return group
    best = max(rated.values())
    return [candidate for candidate in group if rated.get(candidate.candidate_id) == best]
