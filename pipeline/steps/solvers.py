"""How much of the spread of a trained AR-Flow its solver keeps: `RUN` of `gdpo` or `sft`.

    python -m rapport.pipeline.steps.solvers RUN

Answers to validation windows by every rule and number of evaluations, from the same noise; the
variance of each FLAME group over that of an ODE solved well.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rapport.pipeline.steps.imitation_flow import earlier_flow
from rapport.policies.flow.policy import FlowPolicy, Sampler
from rapport.policies.flow.settings import Solver
from rapport.policies.motion import Motion

WELL = 64  # evaluations by the midpoint rule
RULES: tuple[tuple[Solver, int], ...] = (
    *(("euler", evaluations) for evaluations in (2, 4, 10, 20)),
    *(("midpoint", evaluations) for evaluations in (2, 4, 6, 10)),
)


@dataclass(frozen=True, eq=False)
class Answers:
    """One answer to each window.

    Args:
        latents: (windows, latents, latent_dim).
        variances: by FLAME group, over all frames of all windows, summed over its channels.
    """

    latents: np.ndarray
    variances: Mapping[str, float]

    def kept(self, well: Answers) -> dict[str, float]:
        """Variances over those of better answers."""
        return {group: value / well.variances[group] for group, value in self.variances.items()}


def answers_by(
    policy: FlowPolicy, rows: Sequence[Mapping[str, Any]], solver: Solver, evaluations: int
) -> Answers:
    """What a policy answers to rows of windows, from the same noise by whatever rule."""
    asked = policy.with_sampler(Sampler(solver, evaluations))
    groups = asked.sample([asked.prompt_of(row) for row in rows], 1, range(len(rows)))
    reactions = [reaction for [reaction] in groups]
    latents = np.stack([reaction.actions for reaction in reactions])
    return Answers(latents, variances(asked.to_motions(reactions)))


def variances(motions: Sequence[Motion]) -> dict[str, float]:
    """Variance over all frames of all motions, summed over the channels of each group."""
    frames = np.concatenate([motion.values for motion in motions])
    layout = motions[0].layout
    return {name: float(frames[:, layout.columns(name)].var(axis=0).sum()) for name in layout.names}


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Print the table of a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--windows", type=int, default=256)
    given = parser.parse_args(arguments)
    earlier = earlier_flow(given.run)
    table = earlier.encoded("validation")
    assert table is not None
    rows = [table[i] for i in range(min(given.windows, len(table)))]
    policy = FlowPolicy.load(earlier.policy_path)
    well = answers_by(policy, rows, "midpoint", WELL)
    print("| | " + " | ".join(well.variances) + " |")
    print("| --- |" + " --- |" * len(well.variances))
    found = {}
    for solver, evaluations in RULES:
        kept = answers_by(policy, rows, solver, evaluations).kept(well)
        print(f"| {solver} {evaluations} | " + " | ".join(f"{x:.2f}" for x in kept.values()) + " |")
        found[f"{solver} {evaluations}"] = kept
    return found


if __name__ == "__main__":
    main()
