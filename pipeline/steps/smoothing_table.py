"""Ways to smooth the joints between windows, side by side: what each mends, and what it costs.

    python -m rapport.pipeline.steps.smoothing_table runs/.../prepare/corpus [--policy FOLDER]

Without a policy, the recorded heads of people are cut in windows that jump, so that it is known
what they should be; with one, its own answers are smoothed, at the joints of its windows. PosNet
(PFLPosNet) learns on people of the training split, or on the policy's answers to them. It needs no
Ray; some minutes.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from rapport.pipeline.data.store import Corpus
from rapport.policies.motion import Motion
from rapport.policies.policy import Policy, load_policy
from rapport.policies.posnet import FRAMES, ByPosNet, PosNetTraining, train_posnet
from rapport.policies.seams import (
    Inertialisation,
    MovingAverage,
    Smoother,
    Unsmoothed,
    head_columns,
    head_groups,
    smooth,
    with_jumps,
)
from rapport.rewards.metrics.measures.seams import seams

Rows = dict[str, dict[str, float]]  # way -> metric of `seams` -> value
RECORDED = "recorded"
NONE = "none"
LATE = "average, late"
# Ways that need no training.
UNTRAINED: Mapping[str, Smoother] = {
    NONE: Unsmoothed(),
    "moving average": MovingAverage(),
    "inertialisation": Inertialisation(),
}


def smoothing_table(
    motions: Sequence[Motion],
    smoothers: Mapping[str, Smoother],
    frames: int,
    recorded: Sequence[Motion] | None = None,
) -> Rows:
    """Each way's smoothness, and what is left of the motion.

    The last row is what a moving average would do that waits for the next window.

    Args:
        motions: of any policy, made in windows of `frames`.
        smoothers: name -> way.
        frames: of a window.
        recorded: what ratios are over, and the first row; None = the motions as they came.

    Raises:
        LayoutError: as of the smoothers, or recorded motion of another layout.
        ValueError: as of `seams`; no motion at all.
    """
    if not motions:
        raise ValueError("no motion to smooth")
    groups = head_groups(motions[0].layout)
    reference = motions if recorded is None else recorded
    rows = {} if recorded is None else {RECORDED: seams(recorded, recorded, frames, groups)}
    for name, smoother in smoothers.items():
        smoothed = [smooth(motion, frames, smoother) for motion in motions]
        rows[name] = seams(smoothed, reference, frames, groups)
    late = [smooth(motion, len(motion), MovingAverage()) for motion in motions]
    rows[LATE] = seams(late, reference, frames, groups)
    return rows


def tabulate_smoothing(rows: Rows, title: str) -> Table:
    """The rows for a terminal, a line for each metric of each group."""
    metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
    table = Table(title=title)
    table.add_column("")
    for name in rows:
        table.add_column(name, justify="right")
    for metric in metrics:
        table.add_row(metric, *(f"{row[metric]:.2f}" for row in rows.values()))
    return table


def main(arguments: list[str] | None = None) -> Rows:
    """Print the table of a corpus, or of a policy that answers its speakers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--policy", type=Path, help="folder; none = recorded heads that jump")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--frames", type=int, default=FRAMES, help="of a window")
    parser.add_argument("--train", type=int, default=1024, help="clips that PosNet learns on")
    parser.add_argument("--clips", type=int, default=256, help="that are smoothed")
    parser.add_argument("--steps", type=int, default=PosNetTraining().steps, help="of PosNet")
    parser.add_argument("--hidden", type=int, default=512, help="its width")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    corpus = Corpus(given.corpus)
    policy = None if given.policy is None else load_policy(given.policy)

    def joined(split: str, count: int, seed: int) -> tuple[list[Motion], list[Motion]]:
        if policy is None:
            return _broken(corpus, split, count, frames=given.frames, seed=seed)
        return _answers(policy, corpus, split, count, seed=seed)

    learnt = joined("train", given.train, given.seed)
    training = PosNetTraining(steps=given.steps, seed=given.seed)
    net = train_posnet(*learnt, frames=given.frames, hidden=given.hidden, training=training)
    motions, recorded = joined(given.split, given.clips, given.seed + 1)
    rows = smoothing_table(
        motions,
        {**UNTRAINED, "PosNet": ByPosNet(net)},
        given.frames,
        recorded if policy is None else None,
    )
    if policy is not None:
        groups = head_groups(policy.layout)
        rows = {RECORDED: seams(recorded, recorded, given.frames, groups), **rows}
    what = "recorded heads that jump" if policy is None else f"answers of {given.policy}"
    title = f"{len(motions)} clips of {given.split}, windows of {given.frames} frames, {what}"
    Console(width=120).print(tabulate_smoothing(rows, title))
    return rows


def _broken(
    corpus: Corpus, split: str, count: int, *, frames: int, seed: int
) -> tuple[list[Motion], list[Motion]]:
    """Recorded listeners with jumps, and without."""
    recorded = [motion for _, motion in itertools.islice(corpus.listeners(split), count)]
    columns = head_columns(corpus.layout)
    scale = np.sqrt(np.mean([motion.values[:, columns].var(axis=0) for motion in recorded], axis=0))
    rng = np.random.default_rng(seed)
    broken = [with_jumps(each, frames, rng, scale=scale) for each in recorded]
    return broken, recorded


def _answers(
    policy: Policy, corpus: Corpus, split: str, count: int, *, seed: int
) -> tuple[list[Motion], list[Motion]]:
    """A policy's answers to the speakers of a split, and the recorded listeners."""
    clips = list(itertools.islice(corpus.clips(split), count))
    prompts = [policy.encode(clip) for clip in clips]
    sampled = policy.sample(prompts, 1, list(range(seed, seed + len(clips))))
    answers = policy.to_motions([reaction for [reaction] in sampled])
    recorded = [
        clip.listener.subset(policy.layout).window(0, len(answer))
        for clip, answer in zip(clips, answers, strict=True)
    ]
    return answers, recorded


if __name__ == "__main__":
    main()
