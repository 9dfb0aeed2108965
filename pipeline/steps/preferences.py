"""Preferences: from candidates that were watched to ratings, scores and pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from rapport.actors.learner import whole_lines
from rapport.actors.rater import RatedPrompt, RewardPool
from rapport.log import logger
from rapport.pipeline.data.candidates import GROUND_TRUTH, Candidate, read_members
from rapport.pipeline.data.rating_package import read_manifest
from rapport.pipeline.data.synthetic.words import LEXICON
from rapport.pipeline.objectives.dpo import pair_schema
from rapport.pipeline.rating.page import Page
from rapport.pipeline.rating.quality import Opinions
from rapport.pipeline.rundir import Phase, PhaseResult, RunError, Workspace, left_in, phase
from rapport.pipeline.settings import Judged, Preferences
from rapport.pipeline.steps.contrast import contrast_rows, contrasted
from rapport.pipeline.steps.learning import Imitated
from rapport.pipeline.steps.rating import asked_live, read_said, require_package, sources_of
from rapport.pipeline.steps.reward_model import learnt_ratings, require_groups
from rapport.pipeline.steps.sampling import (
    CandidateGroups,
    Prompts,
    artifacts_of,
    earlier,
    motions_of_group,
)
from rapport.pipeline.steps.sheets import digest_of, require_read
from rapport.policies.clip import Clip
from rapport.policies.motion import Motion
from rapport.policies.tables import write_table
from rapport.rewards.ratings.comparisons import (
    Comparison,
    compared_pairs,
    holds_comparisons,
    read_comparisons,
    require_members,
    strengths,
    survey_comparisons,
    write_comparisons,
)
from rapport.rewards.ratings.pairs import Pair, make_pairs
from rapport.rewards.ratings.points import Point
from rapport.rewards.ratings.raters import RaterScales, anonymous, neutral_raters, survey
from rapport.rewards.ratings.ratings import Rating, Remark, read_ratings, write_ratings
from rapport.rewards.ratings.scores import (
    ScoreConfig,
    Scores,
    rated_groups,
    score_candidates,
)
from rapport.rewards.reward_model import LEARNT

Points = Mapping[str, tuple[Point, ...]]  # by clip id


def reward_pool(config: Judged) -> RewardPool:
    """Workers with panels of SIMULATED raters."""
    return RewardPool(config.raters, config.head, LEXICON, losses=config.cluster.lost_workers)


def watched(
    clip: Clip, candidates: Mapping[str, Motion], points: Points | None = None
) -> RatedPrompt:
    """Candidates with what raters see and hear of the clip's speaker, for as long as they last.

    Args:
        clip: that the candidates answer.
        candidates: by id.
        points: what speakers mean, by clip id; None = the corpus does not say.
    """
    words = None
    if clip.words is not None:
        words = tuple((word.text, word.start, word.end) for word in clip.words)
    speaker = clip.speaker
    if speaker is not None and candidates:
        speaker = speaker.window(0, len(next(iter(candidates.values()))))
    return RatedPrompt(
        clip.clip_id,
        candidates,
        speaker,
        speaker_shape=clip.speaker_shape,
        words=words,
        audio=clip.speaker_audio,
        points=None if points is None else points.get(clip.clip_id, ()),
    )


def simulated_ratings(
    prompts: Iterable[RatedPrompt], raters: RewardPool, seed: int
) -> list[Rating]:
    """Of SIMULATED raters, who watch every candidate on the neutral head."""
    return [rating for _, ratings in raters.rate(prompts, seed) for rating in ratings]


def kept_ratings(
    file: Path, prompts: Mapping[str, Callable[[], RatedPrompt]], raters: RewardPool, seed: int
) -> list[Rating]:
    """As `simulated_ratings`, but each answer is kept in `file`, and not asked for again.

    Args:
        file: a line for each prompt.
        prompts: by id, made when they are asked about.
        raters: who answer.
        seed: says who they are.
    """
    answered = {}
    if file.is_file():
        kept = whole_lines(file)  # a killed run leaves half a line
        file.write_text("".join(f"{line}\n" for line in kept))
        answered = dict(map(json.loads, kept))
    left = (ask() for prompt_id, ask in prompts.items() if prompt_id not in answered)
    with file.open("a") as lines:
        for prompt, ratings in raters.rate(left, seed):
            answered[prompt.prompt_id] = [asdict(rating) for rating in ratings]
            lines.write(json.dumps([prompt.prompt_id, answered[prompt.prompt_id]]) + "\n")
            lines.flush()
    return [Rating(**rating) for ratings in answered.values() for rating in ratings]


def rate(
    run: Workspace,
    config: Preferences,
    imitated: Imitated,
    groups: CandidateGroups,
    raters: RewardPool,
    *,
    page: Page | None = None,
    round_index: int = 1,
) -> Opinions:
    """People's ratings or choices, or ratings of SIMULATED raters who watch everything.

    People's come from their sheets, or from `page` (`ratings=live`). With `score.learnt` they are
    followed by those of a model (rater `LEARNT`) of the groups that people had no time for. None
    where `dpo.contrast=1`: nobody is asked.
    """
    if not config.asks_raters:
        return []
    if page is not None:
        said = asked_live(run, config, imitated, groups=groups, page=page, round_index=round_index)
    else:
        result = _rated(
            run, config, imitated, groups=groups, raters=raters, round_index=round_index
        )
        if result.value is not None:
            require_read(sheets_of(config), result.value["sheets"])
            run.summary["survey"] = result.value
        said = read_said(result.artifacts["ratings"])
    if not config.learns_ratings:
        return said
    graded = [each for each in said if isinstance(each, Rating)]
    learnt = learnt_ratings(
        run, config, imitated, groups=groups, ratings=graded, round_index=round_index
    )
    return graded + learnt


@phase("rate")
def _rated(
    step: Phase,
    config: Preferences,
    imitated: Imitated,
    groups: CandidateGroups,
    raters: RewardPool,
    *,
    round_index: int,
) -> PhaseResult:
    described = None
    answered = step.directory / "answered.jsonl"
    sheets = sheets_of(config)
    if sheets is None:
        prompts = {
            clip_id: partial(_watched_group, imitated, clip_id, group)
            for clip_id, group in groups.items()
        }
        ratings = kept_ratings(answered, prompts, raters, config.seed)
        source = f"{config.raters.count} SIMULATED raters"
    elif holds_comparisons(sheets):
        chosen = peoples_comparisons(step, sheets, groups)
        return replace(chosen, value=chosen.value | {"sheets": digest_of(sheets)})
    else:
        ratings, described = peoples_ratings(step, config, _members(groups))
        described["sheets"] = digest_of(sheets)
        source = f"{len(described['raters'])} people"
    kept = keep_ratings(step, ratings, source)
    answered.unlink(missing_ok=True)  # they stand in one file now
    return replace(kept, value=described)


def keep_ratings(step: Phase, ratings: list[Rating], source: str) -> PhaseResult:
    """Write ratings in the phase's folder.

    Args:
        step: the phase.
        ratings: in any order.
        source: who rated.
    """
    file = step.directory / "ratings.parquet"
    write_ratings(file, sorted(ratings, key=lambda r: (r.prompt_id, r.candidate_id, r.rater)))
    step.say(f"{len(ratings)} ratings by {source}")
    return PhaseResult(artifacts={"ratings": file}, engines={"raters": source})


def _watched_group(imitated: Imitated, clip_id: str, group: Iterable[Candidate]) -> RatedPrompt:
    corpus = imitated.corpus
    return watched(corpus.clip(clip_id), motions_of_group(imitated, group), corpus.points)


def check_ratings(config: Preferences) -> None:
    """Read people's sheets and compare them with the candidates, before anything is started.

    What was left out of the sheets is said here, with the names of files and raters; the phase
    `rate` repeats it without, since raters' names stay in their sheets.

    Raises:
        RatingError: of `read_ratings`; a rating of a candidate that does not exist.
        RunError: the folder of candidates is not that of a `rollout` run.
        CandidateError: its candidates cannot be read.
    """
    if config.live and config.candidates is not None:
        require_package(config.candidates)
    sheets = sheets_of(config)
    if sheets is None or config.candidates is None:
        return
    if holds_comparisons(sheets):
        if config.score.learnt:
            raise RunError(
                f"score.learnt learns from grades on the four scales, {config.ratings} holds "
                "choices between two: leave it out"
            )
        require_members(
            read_comparisons(sheets),
            read_members(earlier(config.candidates, "candidates")),
        )
        return
    ratings, remarks = _sheets(sheets, config.candidates)
    members = read_members(earlier(config.candidates, "candidates"))
    scores, _ = score_candidates(ratings, config.score.weights, members)
    if config.learns_ratings:
        rated = rated_groups(scores)
        if len(rated) < len(members):
            require_groups(len(rated))
    for remark in remarks:
        logger.warning(f"WARNING: {config.ratings}: {remark}")


def sheets_of(config: Preferences) -> Path | None:
    """What people wrote before the run: a sheet, a folder of them, or what a `rate` run left."""
    if config.sheets is None:
        return None
    left = left_in(config.sheets) or {}
    return left.get("ratings", config.sheets)


def peoples_ratings(
    step: Phase, config: Preferences, members: Mapping[str, list[str]]
) -> tuple[list[Rating], dict[str, Any]]:
    """The filled sheets.

    Args:
        step: the phase.
        config: names sheets and candidates.
        members: prompt id -> candidate ids.

    Returns:
        ratings without the raters' names; a `Survey` and its warnings, among them what was left out
        of the sheets.
    """
    sheets = sheets_of(config)
    if sheets is None or config.candidates is None:
        raise ValueError("ratings=FILE needs candidates=RUN_DIR")
    named, remarks = _sheets(sheets, config.candidates)
    ratings = anonymous(named)
    surveyed = survey(ratings, members)
    step.say(
        f"{len(surveyed.raters)} people, {surveyed.raters_per_candidate:.1f} for each of "
        f"{surveyed.rated} candidates; alpha {surveyed.alpha}"
    )
    warnings = [remark.anonymous for remark in remarks] + surveyed.warnings
    for warning in warnings:
        step.say(f"WARNING: {warning}")
    alphas = {f"alpha/{name}": value for name, value in surveyed.alpha.items()}
    step.logger.log({name: value for name, value in alphas.items() if value is not None})
    return ratings, asdict(surveyed) | {"warnings": warnings}


def peoples_comparisons(step: Phase, sheet: Path, groups: CandidateGroups) -> PhaseResult:
    """People's choices from a table of them, and how far they agree; without their names."""
    named = read_comparisons(sheet)
    names = neutral_raters(choice.rater for choice in named)
    comparisons = [replace(each, rater=names[each.rater]) for each in named]
    surveyed = survey_comparisons(comparisons, _members(groups))
    for warning in surveyed.warnings:
        step.say(f"WARNING: {warning}")
    step.say(f"{len(comparisons)} choices by {len(names)} people; alpha {surveyed.alpha}")
    file = step.directory / "ratings.parquet"
    write_comparisons(file, comparisons)
    described = asdict(surveyed) | {
        "warnings": surveyed.warnings,
        "strengths": strengths(comparisons, sources_of(groups)),
    }
    return PhaseResult(
        artifacts={"ratings": file},
        engines={"raters": f"{len(names)} people"},
        value=described,
    )


def _sheets(sheets: Path, candidates: Path) -> tuple[list[Rating], list[Remark]]:
    """What people's sheets say about the candidates of a run, and what was left out of it."""
    manifest = artifacts_of(candidates).get("manifest")
    videos = None if manifest is None else read_manifest(manifest)
    remarks: list[Remark] = []
    return read_ratings(sheets, videos, say=remarks.append), remarks


def _members(groups: CandidateGroups) -> dict[str, list[str]]:
    return {i: [candidate.candidate_id for candidate in group] for i, group in groups.items()}


def pair(
    run: Workspace,
    config: Preferences,
    imitated: Imitated,
    groups: CandidateGroups,
    ratings: Opinions,
    *,
    round_index: int = 1,
) -> Path:
    """The table of pairs: best and worst of a group by Eq. 10, and those of `dpo.contrast`.

    Where people chose between two, those two make the pair.
    """
    result = _paired(run, config, imitated, groups=groups, ratings=ratings, round_index=round_index)
    return result.artifacts["pairs"]


@phase("pair")
def _paired(
    step: Phase,
    config: Preferences,
    imitated: Imitated,
    groups: CandidateGroups,
    ratings: Opinions,
    *,
    round_index: int,
) -> PhaseResult:
    by_id = {(c.prompt_id, c.candidate_id): c for group in groups.values() for c in group}
    rated: list[Pair] = []
    scores: Scores = {}
    counts: dict[str, float] = {}
    comparisons = [each for each in ratings if isinstance(each, Comparison)]
    if comparisons:
        rated, scores, chosen_counts = compared_pairs(
            comparisons, config.score.minimum_margin, _members(groups)
        )
        counts |= chosen_counts
        step.say(f"{len(rated)} pairs of {len(comparisons)} choices")
        step.logger.log({"rated_pairs": len(rated)})
    elif config.asks_raters:
        graded = [each for each in ratings if isinstance(each, Rating) and each.rater != LEARNT]
        scales = None
        if config.ratings is not None and config.score.rater_scales:
            scales = RaterScales.fit(graded)
        recorded = {key for key, candidate in by_id.items() if candidate.source == GROUND_TRUTH}
        rated, scores, rated_counts = pairs_of(
            step, graded, _members(groups), config.score, recorded=recorded, scales=scales
        )
        counts |= rated_counts
    learnt, learnt_scores = learnt_pairs(ratings, config.score)
    scores |= learnt_scores
    if learnt:
        counts["learnt_pairs"] = len(learnt)
        step.say(f"{len(learnt)} pairs more by a model of people's ratings")
        step.logger.log({"learnt_pairs": len(learnt)})
    contrast, pool, contrast_counts = contrasted(
        step,
        config,
        imitated,
        groups,
        rated=len(rated) + len(learnt),
        scores=scores,
        round_index=round_index,
    )
    counts |= contrast_counts
    counts["rated_pairs"] = len(rated)
    counts["pairs"] = len(rated) + len(learnt) + len(contrast)
    require_batch(counts, config.dpo.batch_size)
    # Twins first: their number is even, so that no rated pair comes between two.
    rows = chain(
        contrast_rows(contrast, pool, imitated),
        pair_rows(rated, by_id, imitated),
        pair_rows(learnt, by_id, imitated, learnt=True),
    )
    table = step.directory / "pairs.arrow"
    write_table(table, rows, pair_schema(imitated.policy))
    return PhaseResult(
        artifacts={"pairs": table},
        counts=counts,
        metrics={"contrast_share": len(contrast) / counts["pairs"]},
    )


def pairs_of(
    step: Phase,
    ratings: list[Rating],
    members: Mapping[str, list[str]],
    config: ScoreConfig,
    *,
    recorded: Collection[tuple[str, str]],
    scales: RaterScales | None = None,
) -> tuple[list[Pair], Scores, dict[str, int]]:
    """Score every candidate (Eq. 10); best and worst of a group make a pair.

    Args:
        step: the phase.
        ratings: of the candidates.
        members: prompt id -> candidate ids.
        config: weights of the criteria, least margin.
        recorded: prompt and candidate ids of recorded listeners.
        scales: of the raters, where each one's scale is taken into account.

    Returns:
        the pairs, the scores, and counts of what was scored and paired.
    """
    scores, scored = score_candidates(ratings, config.weights, members, scales=scales)
    pairs, paired = make_pairs(scores, config.minimum_margin)
    counts = asdict(scored) | asdict(paired)
    if pairs:
        share = float(np.mean([(pair.prompt_id, pair.chosen_id) in recorded for pair in pairs]))
        margin = np.mean([pair.margin for pair in pairs])
        step.say(
            f"{len(pairs)} rated pairs, mean margin {margin:.3f}, recorded listener chosen in "
            f"{share:.0%}"
        )
        step.logger.log({"rated_pairs": len(pairs), "ground_truth_chosen": share})
    return pairs, scores, counts


def learnt_pairs(ratings: Opinions, config: ScoreConfig) -> tuple[list[Pair], Scores]:
    """Pairs and scores of the groups that a model rated; none where it rated nothing."""
    learnt = [each for each in ratings if isinstance(each, Rating) and each.rater == LEARNT]
    scores, _ = score_candidates(learnt, config.weights)
    return make_pairs(scores, config.minimum_margin)[0], scores


def require_batch(counts: Mapping[str, float], batch_size: int) -> None:
    """Raise `RunError` where pairs do not fill a batch; it says what became of the groups."""
    if counts["pairs"] < batch_size:
        raise RunError(
            f"{counts['pairs']:g} pairs are fewer than one batch (dpo.batch_size={batch_size}): "
            f"{dict(counts)}. More ratings make more pairs, in a new --run-dir, as do a smaller "
            "score.minimum_margin and a smaller dpo.batch_size"
        )


def pair_rows(
    pairs: Iterable[Pair],
    candidates: Mapping[tuple[str, str], Candidate],
    imitated: Imitated,
    *,
    learnt: bool = False,
) -> Iterator[dict[str, Any]]:
    """Rows of `pair_schema`."""
    policy = imitated.policy
    prompts = Prompts(imitated, "train")
    for pair in pairs:
        chosen = candidates[pair.prompt_id, pair.chosen_id]
        rejected = candidates[pair.prompt_id, pair.rejected_id]
        yield policy.prompt_row(prompts[pair.prompt_id]) | {
            "chosen": policy.pack(chosen.actions),
            "rejected": policy.pack(rejected.actions),
            "chosen_score": pair.chosen_score,
            "rejected_score": pair.rejected_score,
            "made_for": None,
            "learnt": learnt,
        }
