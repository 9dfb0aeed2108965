"""`dpo`: the main job. Imitate, roll out, rate, pair, align with DPO, judge (paper III-D, Eq.
10-11).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rapport.actors.cluster import cluster
from rapport.actors.fleet import Fleet
from rapport.actors.learner import Milestones
from rapport.actors.rater import RewardPool
from rapport.actors.renderer import Panel, RenderPool
from rapport.pipeline.config import DpoRecipeConfig
from rapport.pipeline.data.candidates import GROUND_TRUTH, Candidate, read_candidates
from rapport.pipeline.data.rating_package import read_manifest
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.data.vla import prompt_of, prompt_row
from rapport.pipeline.objectives.dpo import DpoTask
from rapport.pipeline.recipes.evaluate import (
    Answers,
    Judge,
    Row,
    Video,
    compared,
    group_of,
    interval_json,
    mean_given,
    render_shown,
    report,
    reward_pool,
    sample_held_out,
)
from rapport.pipeline.recipes.preferences import keep_ratings, pairs_of, simulated_ratings
from rapport.pipeline.recipes.preflight import preflight
from rapport.pipeline.recipes.prepare import prepare
from rapport.pipeline.recipes.rollout import (
    Groups,
    render_candidates,
    render_pool,
    roll_out,
    speaker_panel,
    start_fleet,
    to_motions,
)
from rapport.pipeline.recipes.sft import learn, train_sft
from rapport.pipeline.report.page import write_report
from rapport.pipeline.report.videos import HELD_OUT, PAIR, WORSE, Shown, fallen, spread
from rapport.pipeline.rundir import Phase, Run, RunError, Workspace
from rapport.policies.clip import Clip
from rapport.policies.tables import read_table, write_table
from rapport.policies.vla.loading import Checkpoint, load_checkpoint
from rapport.policies.vla.training import PAIR_SCHEMA
from rapport.rewards.metrics.statistics import paired_interval
from rapport.rewards.ratings.pairs import Pair
from rapport.rewards.ratings.raters import RaterScales, Survey, anonymous, survey
from rapport.rewards.ratings.ratings import Rating, read_ratings


def run(config: DpoRecipeConfig, run: Run) -> None:
    with cluster(config.cluster.address, config.cluster.cpus) as where:
        print(f"  {where}", flush=True)
        if config.cluster.preflight:
            preflight(config, run)
        given = config.candidates
        corpus = prepare(config.corpus, run) if given is None else Corpus(earlier(given, "corpus"))
        checkpoint = (
            train_sft(config, corpus, run) if given is None else earlier(given, "sft_policy")
        )
        policy = load_checkpoint(checkpoint)
        run.summary["artifacts"] |= {"corpus": str(corpus.path), "sft_policy": str(checkpoint)}
        with (
            start_fleet(config, checkpoint, policy, corpus, run) as fleet,
            reward_pool(config) as rewards,
            render_pool(config) as renderers,
        ):
            judge = Judge.of(config, corpus, policy.actions.space.layout, rewards, run)
            before = sample_held_out(config.evaluation, config.seed, corpus, policy, fleet)
            rows = judge.baselines() | {"SFT": judge(before)}
            track_round(rows["SFT"], 0, run)
            current = checkpoint
            for round_ in range(1, config.dpo.rounds + 1):
                groups = candidates(config, corpus, policy, fleet, renderers, run, round_)
                ratings = rate(config, corpus, policy, groups, rewards, run, round_)
                pairs = pair(config, corpus, policy, groups, ratings, run, round_)
                reference = checkpoint if config.dpo.reference == "sft" else current
                current = align(config, current, reference, pairs, run, round_)
                policy = load_checkpoint(current)
                gap = fleet.update(policy.model)
                print(
                    f"[fleet] weight version {fleet.version}, canary gap {gap:.1e} nats", flush=True
                )
                after = sample_held_out(config.evaluation, config.seed, corpus, policy, fleet)
                row = rows[row_name(round_, config.dpo.rounds)] = judge(after)
                track_round(row, round_, run)
            compare(rows, run)
            worse = fallen(rows["SFT"].scores, rows["SFT + DPO"].scores)
            show(config, corpus, policy, before, after, worse, pairs, renderers, run)
    write_report(run)


def row_name(round_: int, rounds: int) -> str:
    return "SFT + DPO" if round_ == rounds else f"SFT + DPO round {round_}"


def track_round(row: Row, round_: int, run: Run) -> None:
    """What the policy has come to on held-out prompts, as a curve over rounds; 0 = SFT."""
    means = {"simulated_rating": row.scores, "truth_affect_error": row.truth_errors}
    values = row.metrics | {
        name: mean_given(by_prompt.values()) for name, by_prompt in means.items()
    }
    run.tracker.log(
        {f"round/{name}": value for name, value in values.items() if value is not None}, round_
    )
    run.summary["metrics"].setdefault("rounds", []).append({"round": round_} | values)


def candidates(
    config: DpoRecipeConfig,
    corpus: Corpus,
    policy: Checkpoint,
    fleet: Fleet,
    renderers: RenderPool,
    run: Run,
    round_: int,
) -> Groups:
    """Sampled here and rendered, or those of an earlier `rollout` run."""
    if config.candidates is not None:
        return read_candidates(earlier(config.candidates, "candidates"))
    groups = roll_out(config, corpus, policy, fleet, run, round_)
    render_candidates(config, corpus, policy, groups, renderers, run, round_)
    return groups


def artifacts(directory: Path) -> dict[str, str]:
    """What an earlier `rollout` run left, and where."""
    summary = directory / "summary.json"
    if not summary.is_file():
        raise RunError(
            f"candidates={directory}: no summary.json there; it must be the folder of a "
            "`rollout` run"
        )
    return json.loads(summary.read_text())["artifacts"]


def earlier(directory: Path, artifact: str) -> Path:
    """Where an earlier `rollout` run left an artefact."""
    found = artifacts(directory)
    if artifact not in found:
        raise RunError(
            f"candidates={directory}: that run left no {artifact!r}, only {sorted(found)}"
        )
    return Path(found[artifact])


def rate(
    config: DpoRecipeConfig,
    corpus: Corpus,
    policy: Checkpoint,
    groups: Groups,
    rewards: RewardPool,
    run: Run,
    round_: int,
) -> list[Rating]:
    """People's ratings from a file, or those of SIMULATED raters who watch every candidate on the
    neutral head.
    """

    def work(phase: Phase) -> dict[str, Any]:
        extra: dict[str, Any] = {}
        if config.ratings is not None:
            ratings, found = peoples_ratings(config, groups)
            for text in (
                f"{len(found.raters)} people, {found.raters_per_candidate:.1f} for each of "
                f"{found.rated} "
                f"candidates; alpha {found.alpha}",
                *(f"WARNING: {w}" for w in found.warnings),
            ):
                phase.say(text)
            phase.logger.log(
                {f"alpha/{name}": value for name, value in found.alpha.items() if value is not None}
            )
            extra = {"survey": asdict(found) | {"warnings": found.warnings}}
            source = f"{len(found.raters)} people ({config.ratings.name})"
        else:
            watched = (
                group_of(corpus.clip(i), to_motions(policy, group)) for i, group in groups.items()
            )
            ratings = simulated_ratings(watched, rewards, config.seed)
            source = f"{config.raters.count} SIMULATED raters"
        return keep_ratings(ratings, source, phase) | extra

    result = run.once("rate", work, round_)
    if "survey" in result:
        run.summary["survey"] = result["survey"]
    return read_ratings(result["artifacts"]["ratings"])


def peoples_ratings(config: DpoRecipeConfig, groups: Groups) -> tuple[list[Rating], Survey]:
    """The filled sheets, without the raters' names, and how far they can be trusted."""
    members = {i: [c.candidate_id for c in group] for i, group in groups.items()}
    manifest = artifacts(config.candidates).get("manifest")
    videos = None if manifest is None else read_manifest(Path(manifest))
    ratings = anonymous(read_ratings(config.ratings, videos))
    return ratings, survey(ratings, members)


def pair(
    config: DpoRecipeConfig,
    corpus: Corpus,
    policy: Checkpoint,
    groups: Groups,
    ratings: list[Rating],
    run: Run,
    round_: int,
) -> Path:
    """Score every candidate (Eq. 10); best and worst of a group make a pair. Returns the training
    table.
    """

    def work(phase: Phase) -> dict[str, Any]:
        members = {i: [c.candidate_id for c in group] for i, group in groups.items()}
        scales = (
            RaterScales.of(ratings)
            if config.ratings is not None and config.score.rater_scales
            else None
        )
        by_id = {(c.prompt_id, c.candidate_id): c for group in groups.values() for c in group}
        pairs, counts = pairs_of(
            ratings,
            members,
            config.score,
            config.dpo.batch_size,
            lambda p: by_id[p.prompt_id, p.chosen_id].source == GROUND_TRUTH,
            phase,
            scales,
        )
        table = phase.directory / "pairs.arrow"
        write_table(table, pair_rows(pairs, by_id, corpus, policy), PAIR_SCHEMA)
        return {"counts": counts, "artifacts": {"pairs": str(table)}}

    return Path(run.once("pair", work, round_)["artifacts"]["pairs"])


def pair_rows(
    pairs: list[Pair],
    candidates: dict[tuple[str, str], Candidate],
    corpus: Corpus,
    policy: Checkpoint,
) -> Iterator[dict[str, Any]]:
    for p in pairs:
        yield prompt_row(prompt_of(corpus.clip(p.prompt_id), policy)) | {
            "chosen": candidates[p.prompt_id, p.chosen_id].tokens.tolist(),
            "rejected": candidates[p.prompt_id, p.rejected_id].tokens.tolist(),
            "chosen_score": p.chosen_score,
            "rejected_score": p.rejected_score,
        }


def align(
    config: DpoRecipeConfig,
    initial: Path,
    reference: Path,
    pairs: Path,
    run: Workspace,
    round_: int,
    reference_file: Path | None = None,
    milestones: Milestones | None = None,
) -> Path:
    """DPO from the policy in `initial` against the frozen one in `reference`; returns the aligned
    checkpoint.

    Args:
        reference_file: of reference log-probs, see `DpoTask`; where several runs share them.
    """

    def work(phase: Phase) -> dict[str, Any]:
        task = DpoTask(
            str(initial),
            str(pairs),
            config.policy,
            config.seed + round_ - 1,
            config.dpo,
            str(reference),
            str(reference_file or phase.directory / "reference.parquet"),
        )
        phase.say(
            f"{len(task.rows)} pairs, {task.steps} steps, beta {config.dpo.beta:g}, "
            f"{config.dpo.loss}"
        )
        return learn(task, config.learner, phase, milestones)

    result = run.once("dpo", work, round_)
    run.summary["metrics"]["dpo"] = result["final"]
    return Path(result["policy"])


def compare(rows: dict[str, Row], run: Run) -> None:
    """The table, and what DPO changed on held-out prompts."""
    values = report(rows, run)
    before, after = values["SFT"], values["SFT + DPO"]
    bootstrap = run.config.evaluation.bootstrap
    change = paired_interval(rows["SFT"].scores, rows["SFT + DPO"].scores, resamples=bootstrap)
    changes: dict[str, Any] = {"simulated_rating_change": interval_json(change)}
    errors = [rows[name].truth_errors for name in ("SFT", "SFT + DPO")]
    if all(errors):
        changes["truth_affect_error_change"] = interval_json(
            paired_interval(*errors, resamples=bootstrap)
        )
    for name in ("l2", "fd"):
        changes[f"{name}_change_percent"] = 100 * (after[name] / before[name] - 1)
    run.summary["metrics"] |= {"before": before, "after": after, "change": changes}
    print(
        f"simulated raters: {change.mean:+.2f} of 5, 95 % interval [{change.low:+.2f}, "
        f"{change.high:+.2f}]; "
        f"L2 {changes['l2_change_percent']:+.0f} %, FD {changes['fd_change_percent']:+.0f} %",
        flush=True,
    )


def show(
    config: DpoRecipeConfig,
    corpus: Corpus,
    policy: Checkpoint,
    before: Answers,
    after: Answers,
    worse: list[str],
    pairs: Path,
    renderers: RenderPool,
    run: Run,
) -> None:
    """Videos, `evaluation.clips` of each kind: held-out clips, those that got worse, and pairs that
    were learnt from.

    Args:
        worse: held-out prompts whose rating fell, the largest fall first.
        pairs: the training table of the last round.
    """

    def work(phase: Phase) -> dict[str, Any]:
        count = config.evaluation.clips
        kinds = [(i, f"{i}.mp4", HELD_OUT) for i in list(before)[:count]]
        kinds += [(i, f"worse/{i}.mp4", WORSE) for i in worse[:count]]
        videos = [
            compared(corpus.clip(i), file, kind, {"SFT": before[i][0], "SFT + DPO": after[i][0]})
            for i, file, kind in kinds
        ]
        table = read_table(pairs).select_columns(
            ["prompt_id", "chosen", "rejected", "chosen_score", "rejected_score"]
        )
        by_margin = sorted(
            table, key=lambda row: (row["rejected_score"] - row["chosen_score"], row["prompt_id"])
        )
        videos += [
            chosen_against_rejected(corpus.clip(row["prompt_id"]), row, policy)
            for row in spread(by_margin, count)
        ]
        return render_shown(config.render, videos, renderers, phase)

    run.once("clips", work)


def chosen_against_rejected(clip: Clip, row: dict[str, Any], policy: Checkpoint) -> Video:
    """A row of the training table: speaker, chosen, rejected."""
    answers = {
        name: policy.actions.to_motion(np.array(row[name])) for name in ("chosen", "rejected")
    }
    panels = (speaker_panel(clip), *(Panel(name, motion) for name, motion in answers.items()))
    scores = {name: row[f"{name}_score"] for name in answers}
    captions = [panel.caption for panel in panels]
    shown = Shown(PAIR, f"pairs/{clip.clip_id}.mp4", clip.clip_id, clip.text, captions, scores)
    return shown, panels, clip.speaker_audio
