"""What `smooth` says: smoothers of the joints between windows, side by side.

A policy answers speakers, and its answers are smoothed at the joints of its windows: what does each
way mend, and what does it cost? PosNet (PFLPosNet) learns on the policy's answers to people of the
training split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from rapport.pipeline.data.store import Corpus
from rapport.pipeline.rundir import Phase, PhaseResult, Run, RunError, left_in, phase
from rapport.pipeline.settings import SmoothConfig
from rapport.pipeline.steps.corpus import choose, prepare, require_splits
from rapport.pipeline.steps.listening import policy_folder
from rapport.pipeline.tracking import by_method
from rapport.policies.live import LiveError
from rapport.policies.motion import Motion
from rapport.policies.policy import Policy, load_policy
from rapport.policies.posnet import ByPosNet, PosNet, train_posnet
from rapport.policies.seams import (
    SMOOTHERS,
    MovingAverage,
    Smoother,
    head_columns,
    head_groups,
    smooth,
    with_jumps,
)
from rapport.rewards.metrics.measures.seams import seams

Rows = dict[str, dict[str, float]]  # way -> metric of `seams` -> value
RECORDED = "recorded"
LATE = "average, late"
KEPT = "variance_kept"
POSNET = "posnet"


@dataclass(frozen=True, eq=False)
class Answers:
    """A policy's answers to some speakers.

    Args:
        made: as it made them.
        given: what is smoothed: the same, with the jumps that were asked for.
        recorded: the listeners whom it was to imitate, as long, in the same layout.
    """

    made: list[Motion]
    given: list[Motion]
    recorded: list[Motion]


@dataclass(frozen=True, eq=False)
class Smoothed:
    """Whose answers are smoothed.

    Args:
        policy: who answers.
        frames: of its windows.
        corpus: of the speakers.
    """

    policy: Policy
    frames: int
    corpus: Corpus

    def answers(self, config: SmoothConfig, split: str, clips: int) -> Answers:
        """To speakers of a split, one to each of `clips` moments (all, if there are fewer)."""
        policy = self.policy
        ids = choose(self.corpus, split, clips, seed=config.seed)
        prompts = [policy.encode(self.corpus.clip(clip_id)) for clip_id in ids]
        seeds = policy.seeds("held out", config.seed, 0, prompt_ids=ids)
        groups = policy.sample(prompts, 1, seeds)
        made = policy.to_motions([reaction for [reaction] in groups])
        recorded = [
            self.corpus.clip(clip_id, ()).listener.subset(policy.layout).window(0, len(motion))
            for clip_id, motion in zip(ids, made, strict=True)
        ]
        if not config.smooth.jumps:
            return Answers(made, made, recorded)
        columns = head_columns(policy.layout)
        spread = np.mean([motion.values[:, columns].var(axis=0) for motion in made], axis=0)
        breaks = partial(with_jumps, scale=np.sqrt(spread), size=config.smooth.jumps)
        rng = np.random.default_rng([config.seed, clips])
        return Answers(made, [breaks(each, self.frames, rng) for each in made], recorded)


def smoothed(run: Run, config: SmoothConfig) -> Smoothed:
    """The policy, and the corpus of its run or of the config.

    Raises:
        RunError: the corpus is gone, or lacks a split. So do the errors of `opened`.
    """
    policy, frames = opened(config)
    own = corpus_of(config.policy)
    corpus = prepare(run, config) if own is None else Corpus(own)
    require_splits(corpus, [config.smooth.split])
    return Smoothed(policy, frames, corpus)


def opened(config: SmoothConfig) -> tuple[Policy, int]:
    """The policy, and the frames of its windows.

    Raises:
        RunError: it does not say what its windows are.
        CheckpointError: there is no policy.
        LayoutError: its head does not turn.
    """
    policy = load_policy(policy_folder(config.policy))
    head_groups(policy.layout)
    return policy, frames_of(policy, config)


def frames_of(policy: Policy, config: SmoothConfig) -> int:
    """Frames of a window: those of the config, or what a live session is given at once."""
    if config.smooth.frames is not None:
        return config.smooth.frames
    try:
        return round(policy.live().chunk * policy.layout.fps)
    except LiveError as error:
        raise RunError(
            f"{error}; so nobody knows how long its windows are: smooth.frames=FRAMES"
        ) from error


def corpus_of(policy: Path | None) -> Path | None:
    """The corpus of a run; None where a policy is no run's folder."""
    artifacts = None if policy is None else left_in(policy)
    if artifacts is None:
        return None
    corpus = artifacts.get("corpus")
    if corpus is None or not corpus.is_dir():
        raise RunError(
            f"policy={policy}: its corpus is no longer where its summary.json says; name the "
            "policy's own folder, and a corpus (corpus.kind=parquet corpus.root=FOLDER)"
        )
    return corpus


@phase("posnet")
def learn_posnet(step: Phase, config: SmoothConfig, asked: Smoothed) -> PhaseResult:
    """A PosNet that turns the policy's answers into what people did."""
    answers = asked.answers(config, "train", config.smooth.train_clips)
    step.say(f"{len(answers.given)} answers, {config.posnet.steps} steps")
    net = train_posnet(
        answers.given,
        answers.recorded,
        frames=asked.frames,
        training=config.posnet,
        seed=config.seed,
        log=step.logger.log,
    )
    folder = step.directory / "net"
    net.save(folder)
    return PhaseResult(artifacts={"posnet": folder}, counts={"posnet_clips": len(answers.given)})


@phase("smooth")
def compare(step: Phase, config: SmoothConfig, asked: Smoothed, posnet: Path) -> PhaseResult:
    """The table, on speakers of whom PosNet has learnt nothing."""
    answers = asked.answers(config, config.smooth.split, config.smooth.clips)
    ways = {**SMOOTHERS, POSNET: ByPosNet(PosNet.load(posnet))}
    rows = smoothing_table(answers, ways, asked.frames)
    broken = f", broken by {config.smooth.jumps:g} sd" if config.smooth.jumps else ""
    title = (
        f"{len(answers.made)} answers of {asked.policy.kind}, {config.smooth.split}, windows of "
        f"{asked.frames} frames{broken}; 1 = as recorded; kept: 1 = as the policy made it"
    )
    Console(width=120).print(tabulate_smoothing(rows, title))
    step.logger.log(by_method(rows))
    return PhaseResult(
        counts={"smoothed_clips": len(answers.made), "window_frames": asked.frames}, metrics=rows
    )


def smoothing_table(answers: Answers, smoothers: Mapping[str, Smoother], frames: int) -> Rows:
    """Each way's smoothness, and what is left of the motion.

    Ratios are over the people who were recorded, the first row; `variance_kept/GROUP` is over the
    answers as they were made. The last row is what a moving average would do that waits for the
    next window.

    Args:
        answers: of any policy, made in windows of `frames`.
        smoothers: name -> way.
        frames: of a window.

    Raises:
        LayoutError: as of the smoothers.
        ValueError: as of `seams`; no motion at all.
    """
    if not answers.made:
        raise ValueError("no motion to smooth")
    groups = head_groups(answers.made[0].layout)
    made = seams(answers.made, answers.recorded, frames, groups)

    def row(motions: Sequence[Motion]) -> dict[str, float]:
        values = seams(motions, answers.recorded, frames, groups)
        kept = {
            f"{KEPT}/{group}": values[f"variance_ratio/{group}"] / made[f"variance_ratio/{group}"]
            for group in groups
        }
        return values | kept

    rows = {RECORDED: seams(answers.recorded, answers.recorded, frames, groups)}
    for name, smoother in smoothers.items():
        rows[name] = row([smooth(motion, frames, smoother) for motion in answers.given])
    late = MovingAverage()
    rows[LATE] = row([smooth(motion, len(motion), late) for motion in answers.given])
    return rows


def tabulate_smoothing(rows: Rows, title: str) -> Table:
    """The rows for a terminal, a line for each metric of each group."""
    metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
    table = Table(title=title)
    table.add_column("")
    for name in rows:
        table.add_column(name, justify="right")
    for metric in metrics:
        table.add_row(metric, *(_cell(row.get(metric)) for row in rows.values()))
    return table


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
