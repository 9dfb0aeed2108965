"""SDE rollouts (GDPO-Listener, Eq. 7): the ODE with noise of constant scale, so that denoise steps
have probabilities.

A step is Gaussian, N(m + dt u, sigma^2 dt I). In the paper u = v: what is sampled is more spread
than what the ODE gives. With the drift correction of Flow-GRPO (Liu et al. 2025, arXiv 2505.05470)
it is not, up to the noise of the last step: u = v + sigma^2 / 2 s, with the score s = (t v - m) /
(1 - t) of rectified flow, so it costs nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rapport.policies.flow.conditions import Conditions
from rapport.policies.flow.model import ARFlow
from rapport.policies.flow.sampling import autoregress, flow_times

# sum: the joint density of a latent. mean: its dim-th root, as flow_grpo has it. A clip range fits
# one of them only.
Reduction = Literal["sum", "mean"]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What was sampled for one window: all that is needed to replay it.

    Args:
        states: (batch, samples, latents, steps + 1, latent_dim), m_{l,t} from noise to the finished
            latent.
        log_probs: (batch, samples, latents, steps) float32 of the steps under the policy that
            sampled them.
        sigma: noise scale.
        reduction: of the log-probs over latent dims.
        corrected: whether the drift was.
    """

    states: Tensor
    log_probs: Tensor
    sigma: float
    reduction: Reduction
    corrected: bool = False

    @property
    def latents(self) -> Tensor:
        """(batch, samples, latents, latent_dim), the finished ones."""
        return self.states[..., -1, :]

    @property
    def steps(self) -> int:
        return self.states.shape[3] - 1


def rollout(
    model: ARFlow,
    conditions: Conditions,
    noise: Tensor,
    sigma: float,
    reduction: Reduction = "sum",
    streaming: bool = False,
    corrected: bool = False,
) -> Trajectory:
    """Sample a window by Eq. 7, without gradients; the prefix is computed once per prompt.

    Args:
        noise: (batch, samples, latents, steps + 1, latent_dim) from N(0, I) (see
            `sampling.draw_noise`): the first of each latent is its start m_{l,0}, the others drive
            its steps.
        sigma: noise scale; 0 is the ODE, whose steps have no density (log-probs are NaN).
        corrected: with the drift correction.
    """
    if noise.ndim != 5 or noise.shape[3] < 2:
        raise ValueError(
            "noise must be (batch, samples, latents, steps + 1, latent_dim), got "
            f"{tuple(noise.shape)}"
        )
    if sigma < 0:
        raise ValueError(f"sigma is {sigma:g}, it must not be negative")
    steps = noise.shape[3] - 1
    states, velocities = [], []

    def step(state: Tensor, velocity: Tensor, i: int) -> Tensor:
        latent = len(velocities) // steps
        following = state + drift(state, velocity, i / steps, sigma, corrected) / steps
        if sigma:
            following = following + sigma * math.sqrt(1 / steps) * noise[:, :, latent, i + 1]
        states.extend([state, following] if i == 0 else [following])
        velocities.append(velocity)
        return following

    with torch.no_grad():
        prefix = model.encode_prefix(conditions, streaming)
        autoregress(model, prefix, noise[..., 0, :], steps, step)
        path = torch.stack(states, dim=2).unflatten(2, (-1, steps + 1))
        velocity = torch.stack(velocities, dim=2).unflatten(2, (-1, steps))
        log_probs = step_log_probs(path, velocity, sigma, reduction, corrected)
        return Trajectory(path, log_probs, sigma, reduction, corrected)


def drift(
    state: Tensor, velocity: Tensor, time: float | Tensor, sigma: float, corrected: bool
) -> Tensor:
    """u of a step from flow time `time` in [0, 1) on: the velocity, or with the score's part."""
    if not corrected:
        return velocity
    return velocity + 0.5 * sigma**2 * (time * velocity - state) / (1 - time)


def replay_velocities(
    model: ARFlow,
    conditions: Conditions,
    states: Tensor,
    streaming: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """Velocities (batch, samples, latents, steps, latent_dim) at stored states, with gradients.

    Every latent is conditioned on the sampled latents before it, so all steps of all latents are
    computed side by side. With a `chunk`, that many of them at a time; their activations are
    dropped and made again in the backward pass, so that memory holds prefix, history and one chunk.
    Gradients are the same.

    Args:
        states: `Trajectory.states`.
        chunk: states of a sample at a time (the paper's is 2 steps of 25 latents); None = all at
            once.
    """
    batch, samples, latents, points, dim = states.shape
    steps, device = points - 1, states.device
    prefix = model.encode_prefix(conditions, streaming)
    clean, nothing = states[:, :, :-1, -1], states[:, :, :0, 0]
    no_time = states.new_zeros(0)
    _, past = model(
        prefix, clean, nothing, no_time, torch.zeros(0, dtype=torch.int64, device=device)
    )
    noisy, times = states[:, :, :, :-1].flatten(2, 3), flow_times(steps).to(states).repeat(latents)
    numbers, count = torch.arange(latents, device=device).repeat_interleave(steps), latents * steps

    def part(start: int, stop: int) -> Tensor:
        return model(
            prefix, nothing, noisy[:, :, start:stop], times[start:stop], numbers[start:stop], past
        )[0]

    if chunk is None or chunk >= count:
        velocities = part(0, count)
    else:
        parts = [
            checkpoint(part, start, min(start + chunk, count), use_reentrant=False)
            for start in range(0, count, chunk)
        ]
        velocities = torch.cat(parts, dim=2)
    return velocities.unflatten(2, (latents, steps))


def step_log_probs(
    states: Tensor, velocities: Tensor, sigma: float, reduction: Reduction, corrected: bool = False
) -> Tensor:
    """log N(m_{t+dt}; m_t + dt u, sigma^2 dt I) of every step, in float32 or finer.

    Args:
        states: (..., steps + 1, latent_dim), constants here.
        velocities: (..., steps, latent_dim).
        reduction: over latent dims.

    Returns:
        (..., steps). NaN where sigma is 0.
    """
    steps = velocities.shape[-2]
    if states.shape[-2] != steps + 1 or states.shape[:-2] != velocities.shape[:-2]:
        raise ValueError(
            f"states {tuple(states.shape)} are not those of velocities {tuple(velocities.shape)}"
        )
    states, velocities = (
        x if x.dtype == torch.float64 else x.float() for x in (states.detach(), velocities)
    )
    if sigma == 0:
        return torch.full_like(velocities[..., 0], torch.nan)
    deviation = sigma * math.sqrt(1 / steps)
    times = flow_times(steps).to(states).unsqueeze(-1)
    drifts = drift(states[..., :-1, :], velocities, times, sigma, corrected)
    z = (states[..., 1:, :] - states[..., :-1, :] - drifts / steps) / deviation
    return _reduce(-0.5 * z.square() - math.log(deviation) - 0.5 * math.log(2 * math.pi), reduction)


def step_kl(
    velocities: Tensor,
    reference: Tensor,
    sigma: float,
    reduction: Reduction,
    corrected: bool = False,
) -> Tensor:
    """KL(policy || reference) of every step: both are Gaussians of one width, dt |u - u_ref|^2 / (2
    sigma^2).

    Velocities (..., steps, latent_dim) -> (..., steps). flow_grpo leaves out the division by dt:
    multiply by dt for its numbers."""
    steps = velocities.shape[-2]
    times = flow_times(steps).to(velocities).unsqueeze(-1)
    apart = drift(torch.zeros_like(velocities), velocities - reference, times, sigma, corrected)
    return _reduce(apart.square() / (2 * sigma**2 * steps), reduction)


def _reduce(values: Tensor, reduction: Reduction) -> Tensor:
    if reduction not in ("sum", "mean"):
        raise ValueError(f"unknown reduction {reduction!r}, expected 'sum' or 'mean'")
    return values.sum(-1) if reduction == "sum" else values.mean(-1)
