"""The rollout fleet of AR-Flow: actors that sample groups by the SDE, decode them and measure how
they move.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
import torch
from torch import Tensor

from rapport.actors import telemetry
from rapport.actors.cluster import on_nodes, worker_environment
from rapport.actors.fleet import StaleWeightsError
from rapport.actors.pool import Pool
from rapport.actors.timeline import Worker
from rapport.policies.flow import checkpoint
from rapport.policies.flow.conditions import Conditions
from rapport.policies.flow.sampling import draw_noise
from rapport.policies.flow.sde import Reduction, rollout
from rapport.policies.flow.training import collate_conditions, from_bytes
from rapport.policies.motion import Motion
from rapport.policies.tables import read_table
from rapport.rewards.dynamics import Penalties, missing_penalties, penalties


@dataclass(frozen=True)
class FlowFleetOptions:
    """Fields as in `rapport.pipeline.config.FlowRolloutConfig`."""

    workers: int
    cpus: float
    gpus: float
    threads: int
    batch_prompts: int
    timeout_s: float
    losses: int
    nodes: str | None = None


@dataclass(frozen=True)
class Sampling:
    """How groups are sampled; fields as in `rapport.pipeline.config.GdpoConfig`."""

    group_size: int
    steps: int
    sigma: float
    reduction: Reduction
    corrected: bool
    shared_start: bool


@dataclass(frozen=True)
class Prompts:
    """A batch of windows to answer: its number, their rows in the table, and a seed each, whichever
    worker gets it.
    """

    number: int
    rows: list[int]
    seeds: list[int]


@dataclass(frozen=True, eq=False)
class Group:
    """The rollouts of one window.

    Args:
        row: of the window in the table.
        states: (group_size, latents, steps + 1, latent_dim), see
            `rapport.policies.flow.sde.Trajectory`.
        log_probs: (group_size, latents, steps) under the weights that sampled it.
        penalties: of each sample on decoded listening frames; all NaN where its rollout failed.
        version: of the weights that sampled it.
    """

    row: int
    states: Tensor
    log_probs: Tensor
    penalties: list[Penalties]
    version: int


@ray.remote
class FlowWorker(Worker):
    """Holds an AR-Flow, the frozen VAE and the windows."""

    def __init__(
        self,
        flow: str,
        vae: str,
        table: str,
        limits: Motion,
        sampling: Sampling,
        options: FlowFleetOptions,
    ):
        torch.set_num_threads(options.threads)
        self.device = torch.device("cuda" if options.gpus else "cpu")
        self.flow = checkpoint.load_flow(Path(flow)).eval().to(self.device)
        self.vae = checkpoint.load_vae(Path(vae)).to(self.device)
        self.rows, self.limits, self.sampling, self.version = (
            read_table(Path(table)),
            limits,
            sampling,
            0,
        )

    def update(self, state: Mapping[str, Tensor], version: int) -> int:
        """Replace the weights in place; returns their version."""
        self.flow.load_state_dict(state)
        self.version = version
        return version

    def roll_out(self, prompts: Prompts) -> list[Group]:
        """One batch: the prefix of a prompt is computed once for its whole group."""
        s, sizes = self.sampling, self.flow.config
        rows = [self.rows[i] for i in prompts.rows]
        conditions = {
            name: value.to(self.device) for name, value in collate_conditions(rows, sizes).items()
        }
        noise = draw_noise(
            prompts.seeds, s.group_size, sizes.window, s.steps + 1, sizes.latent_dim
        ).to(self.device)
        if s.shared_start:
            noise[:, :, :, 0] = noise[:, :1, :, 0]
        path = rollout(
            self.flow, Conditions(**conditions), noise, s.sigma, s.reduction, corrected=s.corrected
        )
        states, log_probs = path.states, path.log_probs.cpu()
        with torch.no_grad():
            frames = (
                self.vae.decode(states[..., -1, :].flatten(0, 1))
                .unflatten(0, states.shape[:2])
                .cpu()
                .numpy()
            )
        return [
            Group(
                index,
                sampled.nan_to_num().cpu(),
                likely,
                [self._penalties(row, motion) for motion in motions],
                self.version,
            )
            for index, row, sampled, likely, motions in zip(
                prompts.rows, rows, states, log_probs, frames, strict=True
            )
        ]

    def _penalties(self, row: Mapping, frames: np.ndarray) -> Penalties:
        layout = self.vae.config.layout
        if not np.isfinite(frames).all():
            return missing_penalties(layout)
        recorded = Motion(from_bytes(row["frames"], -1, layout.dim).numpy(), layout)
        return penalties(Motion(frames, layout), recorded, np.array(row["listening"]), self.limits)


class FlowFleet(Pool):
    """Workers with one policy. A worker that replaces a lost one is given the current weights
    before it serves.

    Args:
        flow, vae: checkpoints every node can read.
        table: windows (`rapport.pipeline.data.flow.WINDOW_SCHEMA`).
        limits: lowest and highest value of every channel, see
            `rapport.rewards.dynamics.motion_limits`.
    """

    def __init__(
        self,
        flow: Path,
        vae: Path,
        table: Path,
        limits: Motion,
        sampling: Sampling,
        options: FlowFleetOptions,
    ):
        self.options, self.version, self._state = options, 0, None
        # Asked for by a learner: not in its placement group, which has no room for more than the
        # learner.
        worker = FlowWorker.options(
            num_cpus=options.cpus,
            num_gpus=options.gpus,
            scheduling_strategy="DEFAULT",
            resources=on_nodes(options.nodes),
            runtime_env={"env_vars": worker_environment(options.threads)},
        )

        def start(index: int) -> ray.actor.ActorHandle:
            return worker.remote(str(flow), str(vae), str(table), limits, sampling, options)

        super().__init__(
            "flow rollout fleet",
            "rollout",
            start,
            options.workers,
            2,
            options.timeout_s,
            options.losses,
        )

    def update(self, state: Mapping[str, Tensor], version: int) -> None:
        """Give every worker the weights `state`; `version` is carried by what they sample from then
        on.
        """
        telemetry.record(telemetry.WEIGHT_VERSION_LAG, version - self.version, pool=self.name)
        self.version, self._state = version, ray.put(state)
        self.each("update", self._state, version)
        telemetry.record(telemetry.WEIGHT_VERSION_LAG, 0, pool=self.name)

    def roll_out(self, rows: list[int], seeds: list[int]) -> list[Group]:
        """A group for each row of the table, in the order of `rows`, whoever finishes first."""
        size = self.options.batch_prompts
        batches = (
            Prompts(i, rows[i : i + size], seeds[i : i + size]) for i in range(0, len(rows), size)
        )
        answers = sorted(self.stream("roll_out", batches), key=lambda answer: answer[0].number)
        groups = [group for _, sampled in answers for group in sampled]
        latents = sum(group.states.shape[0] * group.states.shape[1] for group in groups)
        telemetry.record(telemetry.TOKENS, latents, pool=self.name)
        stale = [group.row for group in groups if group.version != self.version]
        if stale:
            raise StaleWeightsError(
                f"{len(stale)} groups of another weight version than {self.version}, first of row "
                f"{stale[0]}"
            )
        return groups

    def boot(self, actor: ray.actor.ActorHandle) -> ray.ObjectRef | None:
        return None if self._state is None else actor.update.remote(self._state, self.version)

    def admit(self, answer: int) -> bool:
        return answer == self.version  # else the weights changed while it started
