"""What people had no time to rate is rated by a reward model of their ratings (`score.learnt`).

It rates whole groups, those of which people rated fewer than two candidates: a group is ordered by
people or by the model, never by both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rapport.actors.rater import Viewer
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.rundir import Phase, PhaseResult, RunError, Workspace, phase
from rapport.pipeline.settings import Preferences
from rapport.pipeline.steps.learning import Imitated
from rapport.pipeline.steps.sampling import CandidateGroups, motions_of_group
from rapport.policies.clip import Clip
from rapport.policies.motion import Motion
from rapport.rewards.ratings.raters import RaterScales
from rapport.rewards.ratings.ratings import CRITERIA, Rating, read_ratings, write_ratings
from rapport.rewards.ratings.scores import (
    ScoreConfig,
    Scores,
    criterion_means,
    rated_groups,
    score_candidates,
)
from rapport.rewards.ratings.speaker_cues import SpeakerCues
from rapport.rewards.ratings.visible import VisibleMotion
from rapport.rewards.reward_agreement import CHANCE, Agreement, accuracy, agreement, raters_left_out
from rapport.rewards.reward_features import reward_features
from rapport.rewards.reward_model import (
    FEWEST_GROUPS,
    Examples,
    RewardModel,
    RewardModelError,
    cross_validated,
    ratings_of,
)

MODEL = "reward model"
SWAPPED = "the same, another speaker beside"
SHUFFLED = "the same, taught shuffled ratings"
SHUFFLES = 19  # of whom none may be as good: one in twenty by luck
MOVEMENT = "rule: who moves more"
MIRROR = "rule: who mirrors"
ANY = "rule: all alike"
RATER = "one rater, against the others"
Member = tuple[str, str]  # prompt and candidate id


@dataclass(frozen=True, eq=False)
class Seen:
    """Candidates as the reward model sees them.

    Args:
        members: prompt and candidate id of each.
        own: (n, features) beside their own speaker.
        another: (n, features) beside a speaker of another conversation.
        names: of the features.
        conversations: prompt id -> its conversation.
    """

    members: list[Member]
    own: np.ndarray
    another: np.ndarray
    names: tuple[str, ...]
    conversations: Mapping[str, str]

    def places(self, wanted: Sequence[str]) -> np.ndarray:
        """Of the candidates of some prompts."""
        prompts = set(wanted)
        return np.array([n for n, (prompt, _) in enumerate(self.members) if prompt in prompts], int)

    def scores(self, values: np.ndarray) -> Scores:
        """One number for each candidate, as scores; NaN = none."""
        scores: Scores = {}
        for (prompt_id, candidate_id), value in zip(self.members, values, strict=True):
            scores.setdefault(prompt_id, {})[candidate_id] = (
                float(value) if np.isfinite(value) else None
            )
        return scores


def seen_by_model(
    corpus: Corpus, groups: Mapping[str, Mapping[str, Motion]], viewer: Viewer, seed: int
) -> Seen:
    """Look at all candidates, beside their own speaker and beside another.

    Args:
        corpus: of whose training split the prompts are.
        groups: prompt id -> candidate id -> motion.
        viewer: sees faces.
        seed: of who the other speaker is.
    """
    named = corpus.conversations("train")
    conversations = {prompt_id: named[prompt_id] for prompt_id in groups}
    cues = {prompt_id: _cues(corpus.clip(prompt_id), viewer) for prompt_id in groups}
    rng = np.random.default_rng([seed, len(groups)])
    members: list[Member] = []
    rows: list[dict[str, float]] = []
    foreign: list[dict[str, float]] = []
    for prompt_id, motions in groups.items():
        strangers = [p for p in groups if conversations[p] != conversations[prompt_id]]
        other = strangers[rng.integers(len(strangers))] if strangers else prompt_id
        faces = viewer.many(list(motions.values()))
        for candidate_id, face in zip(motions, faces, strict=True):
            members.append((prompt_id, candidate_id))
            rows.append(_beside(cues[prompt_id], face))
            foreign.append(_beside(cues[other], face))
    names = tuple(rows[0])
    own, another = (np.array([[row[n] for n in names] for row in x]) for x in (rows, foreign))
    return Seen(members, own, another, names, conversations)


def _cues(clip: Clip, viewer: Viewer) -> SpeakerCues:
    face = None if clip.speaker is None else viewer(clip.speaker, clip.speaker_shape)
    return SpeakerCues(face, audio=clip.speaker_audio, name=clip.clip_id)


def _beside(speaker: SpeakerCues, listener: VisibleMotion) -> dict[str, float]:
    """Features, for as long as both are seen."""
    face = speaker.visible
    if face is not None:
        frames = min(len(face), len(listener))
        face = face.window(0, frames)
        listener = listener.window(0, frames)
    return reward_features(SpeakerCues(face, audio=speaker.audio), listener)


# -- Learning, and how far it can be trusted --


@dataclass(frozen=True, eq=False)
class People:
    """People's ratings, and what they come to.

    Args:
        ratings: of any groups.
        score: weights of the criteria.
        scales: of the raters, where each one's scale is taken into account.
    """

    ratings: Sequence[Rating]
    score: ScoreConfig
    scales: RaterScales | None

    @cached_property
    def scores(self) -> Scores:
        """Of the candidates that somebody rated (Eq. 10)."""
        return score_candidates(self.ratings, self.score.weights, scales=self.scales)[0]

    def grades(self, members: Sequence[Member]) -> np.ndarray:
        """Mean of each criterion, (n, criteria) in [0, 1]; NaN = not rated."""
        by_member: dict[Member, list[Rating]] = {member: [] for member in members}
        for rating in self.ratings:
            if (rating.prompt_id, rating.candidate_id) in by_member:
                by_member[rating.prompt_id, rating.candidate_id].append(rating)
        means = [criterion_means(ratings, self.scales) for ratings in by_member.values()]
        return np.array([[mean.get(name, np.nan) for name in CRITERIA] for mean in means])


@dataclass(frozen=True, eq=False)
class Learnt:
    """A model of people's ratings.

    Args:
        model: fitted on all of them.
        table: who rates -> how far that agrees with people, tried on other conversations.
        by_luck: best accuracy of `SHUFFLES` models that were taught shuffled ratings. A model that
            learnt nothing still orders faces somehow, and faces have much in common: its accuracy
            may lie outside an interval around chance (permutation test, Ojala & Garriga 2010).
    """

    model: RewardModel
    table: Mapping[str, Agreement]
    by_luck: float


def require_groups(rated: int) -> None:
    """Raise `RunError` where people rated too few groups to learn from."""
    if rated < FEWEST_GROUPS:
        raise RunError(
            f"score.learnt: people rated {rated} groups (two candidates or more of each), and a "
            f"reward model learns from {FEWEST_GROUPS}: have more rated, or leave score.learnt out"
        )


def learn_ratings(seen: Seen, people: People, *, bootstrap: int, seed: int) -> Learnt:
    """A model of people's ratings, and how far it and others agree with them.

    Args:
        seen: the candidates.
        people: what they rated.
        bootstrap: resamples of intervals.
        seed: of the order of shuffled ratings.

    Raises:
        RunError: too few groups or conversations were rated.
    """
    rated = rated_groups(people.scores)
    require_groups(len(rated))
    places = seen.places(rated)
    members = [seen.members[place] for place in places]
    grades = people.grades(members)
    conversations = np.array([seen.conversations[prompt_id] for prompt_id, _ in members])
    examples = Examples(seen.own[places], grades, conversations, seen.names)
    try:
        own, another = cross_validated(examples, seen.another[places])
        rng = np.random.default_rng(seed)
        shuffled = [
            cross_validated(examples.with_grades(rng.permutation(grades)))[0]
            for _ in range(SHUFFLES)
        ]
        model = RewardModel.fit(examples)
    except RewardModelError as error:
        raise RunError(f"score.learnt: {error}; have more rated, or leave it out") from error

    def scored(values: np.ndarray) -> Scores:
        ratings = ratings_of(values, tuple(CRITERIA), members)
        return score_candidates(ratings, people.score.weights)[0]

    def rule(name: str) -> Scores:
        return seen.scores(seen.own[:, seen.names.index(name)])

    actual = {prompt_id: people.scores[prompt_id] for prompt_id in rated}
    judges = {
        MODEL: scored(own),
        SWAPPED: scored(another),
        MOVEMENT: rule("movement"),
        MIRROR: rule("mirror"),
        ANY: seen.scores(np.zeros(len(seen.members))),
    }
    judged = {name: [(scores, actual)] for name, scores in judges.items()}
    judged[SHUFFLED] = [(scored(values), actual) for values in shuffled]
    judged[RATER] = raters_left_out(people.ratings, people.score.weights, people.scales)
    table = {
        name: agreement(each, seen.conversations, bootstrap=bootstrap)
        for name, each in judged.items()
    }
    return Learnt(
        model,
        {name: row for name, row in table.items() if row is not None},
        by_luck=max(accuracy(scores, actual) for scores, _ in judged[SHUFFLED]),
    )


def require_trust(learnt: Learnt) -> None:
    """Raise `RunError` where the model does no better than chance in groups it never saw."""
    row = learnt.table.get(MODEL)
    if row is None or row.accuracy.low <= CHANCE or row.accuracy.mean <= learnt.by_luck:
        found = "cannot be measured" if row is None else f"is {row.accuracy}"
        raise RunError(
            "score.learnt: of couples that it was not fitted on, the share that the reward model "
            f"puts in people's order {found}, which does not exceed chance ({CHANCE:g}; models "
            f"that were taught shuffled ratings reached {learnt.by_luck:.3f}): have more groups "
            "rated, or by more raters, or leave score.learnt out"
        )


# -- The phase --


def learnt_ratings(
    run: Workspace,
    config: Preferences,
    imitated: Imitated,
    groups: CandidateGroups,
    ratings: Sequence[Rating],
    *,
    round_index: int = 1,
) -> list[Rating]:
    """Ratings by a model of people's, of the groups that people had no time for.

    Raises:
        RunError: there are too few to learn from, or the model is not to be trusted.
    """
    try:
        result = _learnt(
            run, config, imitated, groups=groups, ratings=ratings, round_index=round_index
        )
    except RunError as error:
        raise RunError(f"{error}. What people rated is kept in {run.directory / 'rate'}") from error
    file = result.artifacts.get("learnt_ratings")
    return [] if file is None else read_ratings(file)


@phase("reward_model")
def _learnt(
    step: Phase,
    config: Preferences,
    imitated: Imitated,
    groups: CandidateGroups,
    ratings: Sequence[Rating],
    *,
    round_index: int,
) -> PhaseResult:
    scales = RaterScales.fit(ratings) if config.score.rater_scales else None
    people = People(ratings, config.score, scales)
    rated = rated_groups(people.scores)
    left = [prompt_id for prompt_id in groups if prompt_id not in set(rated)]
    if not left:
        step.say("people rated every group: nothing is left to a model")
        return PhaseResult(counts={"learnt_groups": 0})
    require_groups(len(rated))
    motions = {prompt_id: motions_of_group(imitated, group) for prompt_id, group in groups.items()}
    seen = seen_by_model(imitated.corpus, motions, Viewer(config.head), config.seed)
    found = learn_ratings(seen, people, bootstrap=config.evaluation.bootstrap, seed=config.seed)
    say_table(step, found.table)
    require_trust(found)
    places = seen.places(left)
    learnt = found.model.ratings(seen.own[places], [seen.members[place] for place in places])
    files = {
        "reward_model": step.directory / "reward_model.npz",
        "learnt_ratings": step.directory / "learnt.parquet",
    }
    found.model.save(files["reward_model"])
    write_ratings(files["learnt_ratings"], learnt)
    step.say(
        f"{len(learnt)} candidates of {len(left)} groups that people had no time for are rated by "
        f"a model, which learnt from {len(rated)} groups"
    )
    counts = {"learnt_groups": len(left), "learnt_candidates": len(learnt)}
    return PhaseResult(
        artifacts=files,
        counts=counts,
        engines={"reward_model": f"ridge regression on people's ratings of {len(rated)} groups"},
        metrics={
            "learnt_from_groups": len(rated),
            "accuracy_by_luck": found.by_luck,
            "agreement": {name: row.to_json() for name, row in found.table.items()},
        },
    )


def say_table(step: Phase, table: Mapping[str, Agreement]) -> None:
    """To the terminal and the tracker; warns where the model hears nobody."""
    for name, row in table.items():
        step.say(
            f"{name}: {row.accuracy} of couples in people's order; Spearman {row.within:.2f} "
            f"within groups, {row.over_all:.2f} over all"
        )
    own = table.get(MODEL)
    another = table.get(SWAPPED)
    if own is None or another is None:
        return
    step.logger.log({"accuracy": own.accuracy.mean, "accuracy_swapped": another.accuracy.mean})
    if another.accuracy.low > CHANCE:
        kept = (another.accuracy.mean - CHANCE) / max(own.accuracy.mean - CHANCE, 1e-9)
        step.say(
            f"WARNING: {kept:.0%} of what the model gains over chance stays when another speaks: "
            "so much of it is taste in faces, and not whether this speaker is answered"
        )
