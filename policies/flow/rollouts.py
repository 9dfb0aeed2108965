"""Rollouts of AR-Flow: some of its denoise steps are drawn, so that they have a probability.

Two ways, each a sequence of Gaussian steps m' ~ N(mean(m), deviation^2 I).

- `NoisyWindow` (MixGRPO, Li et al. 2025, arXiv 2507.21802): the sampler that is judged, with noise
  in a window of one or two of its steps. A noisy step goes farther along the ODE than to the next
  flow time, and comes back by the forward process, which adds noise (the "churn" of Karras et al.
  2022, arXiv 2206.00364). So what is sampled is spread as without noise, whatever sigma.
- `PaperSde` (GDPO-Listener, Eq. 7): Euler steps, each with noise of constant scale. Its samples are
  more spread than the ODE's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rapport.policies.flow.conditions import LEAD, Conditions
from rapport.policies.flow.model import ARFlow, History, Prefix, Sight
from rapport.policies.flow.sampling import (
    Denoise,
    Velocity,
    advance,
    autoregress,
    flow_time,
)
from rapport.policies.flow.settings import Solver, check_window, denoise_steps


class Exploration(Protocol):
    """How rollouts leave the ODE. A latent takes `steps` denoise steps, of which `noisy` are drawn.

    The drawn ones follow each other, from the step that `first` names.
    """

    @property
    def steps(self) -> int:
        """Denoise steps of a latent."""

    @property
    def noisy(self) -> int:
        """Those that are drawn."""

    def first(self, seeds: Sequence[int]) -> Tensor:
        """(prompts,) int64, the first drawn step of each prompt, by its seed."""

    def mean(self, velocity: Velocity, state: Tensor, step: Tensor, drawn: Tensor) -> Tensor:
        """Where a step leads on average, from state m at step number `step`.

        Args:
            velocity: of the policy.
            state: (..., latent_dim).
            step: number of the step, float, (..., 1) or what broadcasts to it.
            drawn: bool like `step`, whether it is drawn. Others are steps of the ODE.
        """

    def deviation(self, step: Tensor) -> Tensor:
        """Standard deviation of a drawn step, like `step`."""


@dataclass(frozen=True)
class NoisyWindow:
    """The judged sampler with noise in some of its steps, never in the last.

    Args:
        solver: of the ODE.
        evaluations: of the velocity for a latent.
        sigma: share of the noise that a state still has which a drawn step draws anew, in (0, 1].
        noisy: steps that are drawn.

    Raises:
        ValueError: another sigma, or no step without noise at the end.
    """

    solver: Solver
    evaluations: int
    sigma: float
    noisy: int = 1

    def __post_init__(self) -> None:
        check_window(self.solver, self.evaluations, self.sigma, self.noisy)

    @property
    def steps(self) -> int:
        """Denoise steps of a latent."""
        return denoise_steps(self.solver, self.evaluations)

    def first(self, seeds: Sequence[int]) -> Tensor:
        """Drawn from those that leave the last step alone."""
        places = self.steps - self.noisy
        draws = [
            torch.randint(places, (), generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
        return torch.stack(draws)

    def mean(self, velocity: Velocity, state: Tensor, step: Tensor, drawn: Tensor) -> Tensor:
        """Farther along the ODE, and back by the mean of the forward process.

        A state at flow time t is t data + (1 - t) noise. From t' > t back to t it is scaled by
        t / t', and the noise that this leaves out is drawn. With (1 - t') / t' = kept (1 - t) / t,
        kept^2 = 1 - sigma^2, that is sigma^2 of the variance of the noise at t.
        """
        time = step / self.steps
        reached = (step + 1) / self.steps
        kept = torch.where(drawn, math.sqrt(1 - self.sigma**2), 1.0)
        farther = reached / (reached + (1 - reached) * kept)
        there = advance(velocity, state, time, farther - time, self.solver)
        return reached / farther * there

    def deviation(self, step: Tensor) -> Tensor:
        """The share sigma of the noise of a state at the end of the step."""
        return self.sigma * (1 - (step + 1) / self.steps)


@dataclass(frozen=True)
class PaperSde:
    """Eq. 7: every step is drawn, N(m + dt v, sigma^2 dt I).

    Args:
        steps: denoise steps of a latent.
        sigma: noise scale.

    Raises:
        ValueError: no steps, or no noise.
    """

    steps: int
    sigma: float

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.sigma > 0:
            raise ValueError(
                f"{self.steps} steps with sigma {self.sigma:g}: at least one step, and sigma above "
                "0, or no step has a density"
            )

    @property
    def noisy(self) -> int:
        """All."""
        return self.steps

    def first(self, seeds: Sequence[int]) -> Tensor:
        """The first."""
        return torch.zeros(len(seeds), dtype=torch.int64)

    def mean(self, velocity: Velocity, state: Tensor, step: Tensor, drawn: Tensor) -> Tensor:
        """Euler's."""
        return advance(velocity, state, step / self.steps, flow_time(1 / self.steps, step), "euler")

    def deviation(self, step: Tensor) -> Tensor:
        """The same at every step."""
        return torch.full_like(step, self.sigma / math.sqrt(self.steps))


@dataclass(frozen=True, eq=False)
class Path:
    """What was sampled for one window: all that is needed to replay it.

    Args:
        states: (batch, samples, latents, noisy + 2, latent_dim): before the first drawn step of
            each latent, after each, and the finished latent.
        log_probs: (batch, samples, latents, noisy) float32 of the drawn steps under the policy that
            sampled them.
    """

    states: Tensor
    log_probs: Tensor

    @property
    def latents(self) -> Tensor:
        """(batch, samples, latents, latent_dim), the finished ones."""
        return self.states[..., -1, :]


def rollout(
    model: ARFlow,
    conditions: Conditions,
    noise: Tensor,
    exploration: Exploration,
    first: Tensor,
    lead: int | None = LEAD,
) -> Path:
    """Sample a window, without gradients; the prefix is computed once per prompt.

    Args:
        model: the AR-Flow.
        conditions: of the window.
        noise: (batch, samples, latents, noisy + 1, latent_dim) from N(0, I) (see
            `sampling.draw_noise`): the first of each latent is its start m_{l,0}, the others are
            those of the drawn steps.
        exploration: which steps are drawn, and how.
        first: (batch,) int64, the first drawn step.
        lead: as in `ARFlow.encode_prefix`.
    """
    noisy = exploration.noisy
    if noise.ndim != 5 or noise.shape[3] != noisy + 1:
        raise ValueError(
            f"noise must be (batch, samples, latents, {noisy + 1}, latent_dim), of the start and "
            f"the drawn steps, got {tuple(noise.shape)}"
        )
    begin = first.to(noise.device)[:, None, None]
    visited: list[Tensor] = []
    means: list[Tensor] = []

    def denoise(velocity: Velocity, start: Tensor, latent: int) -> Tensor:
        states = [start]
        expected: list[Tensor] = []
        for i in range(exploration.steps):
            place = i - begin
            drawn = (place >= 0) & (place < noisy)
            step = torch.full_like(begin, i, dtype=flow_time(0.0, noise).dtype)
            mean = exploration.mean(velocity, states[-1], step, drawn).to(start.dtype)
            own = _chosen(noise[:, :, latent, 1:], place.clamp(0, noisy - 1)).squeeze(2)
            moved = mean + exploration.deviation(step).to(start.dtype) * own
            states.append(torch.where(drawn, moved, mean))
            expected.append(mean)
        window = begin + torch.arange(noisy + 1, device=begin.device)
        kept = _chosen(torch.stack(states, 2), window)
        visited.append(torch.cat([kept, states[-1].unsqueeze(2)], 2))
        means.append(_chosen(torch.stack(expected, 2), window[..., :-1]))
        return states[-1]

    with torch.no_grad():
        prefix = model.encode_prefix(conditions, lead)
        autoregress(model, prefix, noise[..., 0, :], denoise)
        states = torch.stack(visited, 2)
        return Path(states, log_probs(states, torch.stack(means, 2), exploration, first))


def _chosen(values: Tensor, places: Tensor) -> Tensor:
    """Of (batch, samples, n, dim) those at `places` (batch, 1, m): (batch, samples, m, dim)."""
    index = places.unsqueeze(-1).expand(-1, values.shape[1], -1, values.shape[-1])
    return values.gather(2, index)


def replay_means(
    model: ARFlow,
    conditions: Conditions,
    states: Tensor,
    exploration: Exploration,
    first: Tensor,
    lead: int | None = LEAD,
    chunk: int | None = None,
) -> Tensor:
    """Means (batch, samples, latents, noisy, latent_dim) of the drawn steps, with gradients.

    Every latent is conditioned on the sampled latents before it, so all drawn steps of all latents
    are computed side by side. With a `chunk`, that many of them at a time; their activations are
    dropped and made again in the backward pass, so that memory holds prefix, history and one chunk.
    Gradients are the same.

    Args:
        model: the AR-Flow.
        conditions: of the window.
        states: `Path.states`.
        exploration: of the rollout.
        first: of the rollout.
        lead: as in the rollout.
        chunk: drawn steps of a sample at a time (the paper's is 2 steps of 25 latents); None = all
            at once.
    """
    latents = states.shape[2]
    noisy = exploration.noisy
    replay = Replay.of(model, conditions, states[..., -1, :], lead)
    before = states[:, :, :, :noisy].flatten(2, 3)
    numbers = torch.arange(latents, device=states.device).repeat_interleave(noisy)
    steps = _steps(first, noisy, like=states).repeat(1, 1, latents, 1)
    drawn = torch.ones_like(steps, dtype=torch.bool)
    count = latents * noisy

    def means_of(start: int, stop: int) -> Tensor:
        part = slice(start, stop)
        return exploration.mean(
            replay.velocity(numbers[part]),
            before[:, :, part],
            steps[:, :, part],
            drawn[:, :, part],
        )

    if chunk is None or chunk >= count:
        means = means_of(0, count)
    else:
        parts = [
            checkpoint(means_of, start, min(start + chunk, count), use_reentrant=False)
            for start in range(0, count, chunk)
        ]
        means = torch.cat(parts, dim=2)
    return torch.unflatten(means, 2, (latents, noisy))


def replay_latents(
    model: ARFlow,
    conditions: Conditions,
    latents: Tensor,
    noise: Tensor,
    denoise: Denoise,
    lead: int | None = LEAD,
) -> Tensor:
    """The latents of a rollout along the ODE once more, with gradients; (batch, samples, n, dim).

    Every latent comes from its own noise, given the sampled latents before it, which are constants:
    so all of them are denoised side by side, and a gradient reaches what a latent does to itself.

    Args:
        model: the AR-Flow.
        conditions: of the window.
        latents: that were sampled, (batch, samples, n, latent_dim).
        noise: that they were sampled from.
        denoise: that they were sampled by (`sampling.ode`).
        lead: as in the rollout.
    """
    replay = Replay.of(model, conditions, latents, lead)
    numbers = torch.arange(latents.shape[2], device=latents.device)
    return denoise(replay.velocity(numbers), noise, 0)


@dataclass(frozen=True, eq=False)
class Replay:
    """A window whose finished latents are known: all of them are denoised side by side again.

    Args:
        model: the AR-Flow.
        prefix: of the prompts.
        past: of the finished latents.
        nothing: no clean latents, (batch, samples, 0, latent_dim).
    """

    model: ARFlow
    prefix: Prefix
    past: History
    nothing: Tensor

    @classmethod
    def of(cls, model: ARFlow, conditions: Conditions, latents: Tensor, lead: int | None) -> Self:
        """Keys and values of the finished latents (batch, samples, latents, latent_dim)."""
        prefix = model.encode_prefix(conditions, lead)
        nothing = latents[:, :, :0]
        _, past = model(
            prefix,
            clean=latents[:, :, :-1],
            noisy=nothing,
            time=latents.new_zeros(0),
            number=torch.zeros(0, dtype=torch.int64, device=latents.device),
        )
        return cls(model, prefix, past, nothing)

    def velocity(self, numbers: Tensor) -> Velocity:
        """Of states (batch, samples, n, latent_dim) of the latents `numbers` (n,)."""
        sight = Sight(expected=self.model.heeded(self.prefix, numbers))

        def velocity(state: Tensor, time: Tensor) -> Tensor:
            predicted: Tensor
            predicted, _ = self.model(
                self.prefix,
                clean=self.nothing,
                noisy=state.to(self.nothing.dtype),
                time=time.squeeze(-1) if time.ndim else time,
                number=numbers,
                past=self.past,
                sight=sight,
            )
            return predicted

        return velocity


def log_probs(states: Tensor, means: Tensor, exploration: Exploration, first: Tensor) -> Tensor:
    """Log-density of every drawn step, (batch, samples, latents, noisy), in float32 or finer.

    Args:
        states: `Path.states`, constants here.
        means: of the drawn steps, (batch, samples, latents, noisy, latent_dim).
        exploration: of the rollout.
        first: of the rollout.
    """
    noisy = exploration.noisy
    if states.shape[3] != noisy + 2 or states.shape[:3] != means.shape[:3]:
        raise ValueError(
            f"states {tuple(states.shape)} are not those of means {tuple(means.shape)}"
        )
    states = _at_least_float32(states.detach())
    means = _at_least_float32(means)
    deviation = exploration.deviation(_steps(first, noisy, like=states)).unsqueeze(2)
    z = (states[:, :, :, 1:-1] - means) / deviation
    return (-0.5 * z.square() - deviation.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def step_kl(means: Tensor, reference: Tensor, exploration: Exploration, first: Tensor) -> Tensor:
    """KL(policy || reference) of every drawn step, (batch, samples, latents, noisy), nats.

    Both are Gaussians of one width: |mean - mean_ref|^2 / (2 deviation^2).

    Args:
        means: of the policy, as `replay_means` gives them.
        reference: of the reference at the same states.
        exploration: of the rollout.
        first: of the rollout.
    """
    deviation = exploration.deviation(_steps(first, exploration.noisy, like=means)).unsqueeze(2)
    return ((means - reference) / deviation).square().sum(-1) / 2


def _steps(first: Tensor, noisy: int, like: Tensor) -> Tensor:
    """Numbers of the drawn steps, (batch, 1, noisy, 1), as float."""
    numbers = first.to(like.device)[:, None] + torch.arange(noisy, device=like.device)
    return numbers[:, None, :, None].to(flow_time(0.0, like).dtype)


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
