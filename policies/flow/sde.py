"""SDE rollouts (GDPO-Listener, Eq. 7): the ODE with noise of constant scale.

The noise gives denoise steps a probability. A step is Gaussian, N(m + dt u, sigma^2 dt I). In the
paper u = v: samples vary more than those of the ODE. With the drift correction of Flow-GRPO (Liu et
al. 2025, arXiv 2505.05470) they do not, up to the noise of the last step: u = v + sigma^2 / 2 s,
with the score s = (t v - m) / (1 - t) of rectified flow, so it costs nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rapport.policies.flow.conditions import LEAD, Conditions
from rapport.policies.flow.model import ARFlow
from rapport.policies.flow.sampling import autoregress, flow_times

# sum: the joint density of a latent. mean: its dim-th root, as flow_grpo has it. A clip range fits
# one of them only.
Reduction = Literal["sum", "mean"]


@dataclass(frozen=True, eq=False)
class SdePath:
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
        """Denoise steps of each latent."""
        return self.states.shape[3] - 1


def rollout(
    model: ARFlow,
    conditions: Conditions,
    noise: Tensor,
    sigma: float,
    reduction: Reduction = "sum",
    lead: int | None = LEAD,
    corrected: bool = False,
) -> SdePath:
    """Sample a window by Eq. 7, without gradients; the prefix is computed once per prompt.

    Args:
        model: the AR-Flow.
        conditions: of the window.
        noise: (batch, samples, latents, steps + 1, latent_dim) from N(0, I) (see
            `sampling.draw_noise`): the first of each latent is its start m_{l,0}, the others drive
            its steps.
        sigma: noise scale; 0 is the ODE, whose steps have no density (log-probs are NaN).
        reduction: of the log-probs over latent dims.
        lead: as in `ARFlow.encode_prefix`.
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
    visited: list[Tensor] = []
    visited_velocities: list[Tensor] = []

    def step(state: Tensor, velocity: Tensor, i: int) -> Tensor:
        latent = len(visited_velocities) // steps
        change = drift(state, velocity, time=i / steps, sigma=sigma, corrected=corrected)
        following = state + change / steps
        if sigma:
            following = following + sigma * math.sqrt(1 / steps) * noise[:, :, latent, i + 1]
        if i == 0:
            visited.append(state)
        visited.append(following)
        visited_velocities.append(velocity)
        return following

    with torch.no_grad():
        prefix = model.encode_prefix(conditions, lead)
        autoregress(model, prefix, noise[..., 0, :], steps=steps, step=step)
        states = torch.unflatten(torch.stack(visited, dim=2), 2, (-1, steps + 1))
        velocities = torch.unflatten(torch.stack(visited_velocities, dim=2), 2, (-1, steps))
        log_probs = step_log_probs(
            states, velocities, sigma=sigma, reduction=reduction, corrected=corrected
        )
        return SdePath(states, log_probs, sigma=sigma, reduction=reduction, corrected=corrected)


def drift(
    state: Tensor, velocity: Tensor, time: float | Tensor, sigma: float, corrected: bool
) -> Tensor:
    """Drift u of a step: the velocity, or with the score's part added.

    Args:
        state: m_t, (..., latent_dim).
        velocity: v at that state.
        time: flow time t in [0, 1).
        sigma: noise scale.
        corrected: add the score's part.
    """
    if not corrected:
        return velocity
    return velocity + 0.5 * sigma**2 * (time * velocity - state) / (1 - time)


def replay_velocities(
    model: ARFlow,
    conditions: Conditions,
    states: Tensor,
    lead: int | None = LEAD,
    chunk: int | None = None,
) -> Tensor:
    """Velocities (batch, samples, latents, steps, latent_dim) at stored states, with gradients.

    Every latent is conditioned on the sampled latents before it, so all steps of all latents are
    computed side by side. With a `chunk`, that many of them at a time; their activations are
    dropped and made again in the backward pass, so that memory holds prefix, history and one chunk.
    Gradients are the same.

    Args:
        model: the AR-Flow.
        conditions: of the window.
        states: `SdePath.states`.
        lead: as in the rollout.
        chunk: states of a sample at a time (the paper's is 2 steps of 25 latents); None = all at
            once.
    """
    latents = states.shape[2]
    steps = states.shape[3] - 1
    device = states.device
    prefix = model.encode_prefix(conditions, lead)
    # Finished latents first, with no noisy ones: their keys and values serve all states.
    nothing = states[:, :, :0, 0]
    _, past = model(
        prefix,
        clean=states[:, :, :-1, -1],
        noisy=nothing,
        time=states.new_zeros(0),
        number=torch.zeros(0, dtype=torch.int64, device=device),
    )
    noisy = states[:, :, :, :-1].flatten(2, 3)
    times = flow_times(steps, states).repeat(latents)
    numbers = torch.arange(latents, device=device).repeat_interleave(steps)
    count = latents * steps

    def velocities_of(start: int, stop: int) -> Tensor:
        velocities: Tensor
        velocities, _ = model(
            prefix,
            clean=nothing,
            noisy=noisy[:, :, start:stop],
            time=times[start:stop],
            number=numbers[start:stop],
            past=past,
        )
        return velocities

    if chunk is None or chunk >= count:
        velocities = velocities_of(0, count)
    else:
        parts = [
            checkpoint(velocities_of, start, min(start + chunk, count), use_reentrant=False)
            for start in range(0, count, chunk)
        ]
        velocities = torch.cat(parts, dim=2)
    return torch.unflatten(velocities, 2, (latents, steps))


def step_log_probs(
    states: Tensor, velocities: Tensor, sigma: float, reduction: Reduction, corrected: bool = False
) -> Tensor:
    """Log-density log N(m_{t+dt}; m_t + dt u, sigma^2 dt I) of every step, in float32 or finer.

    Args:
        states: (..., steps + 1, latent_dim), constants here.
        velocities: (..., steps, latent_dim).
        sigma: noise scale.
        reduction: over latent dims.
        corrected: whether the drift was.

    Returns:
        (..., steps). NaN where sigma is 0.
    """
    steps = velocities.shape[-2]
    if states.shape[-2] != steps + 1 or states.shape[:-2] != velocities.shape[:-2]:
        raise ValueError(
            f"states {tuple(states.shape)} are not those of velocities {tuple(velocities.shape)}"
        )
    states = _at_least_float32(states.detach())
    velocities = _at_least_float32(velocities)
    if sigma == 0:
        return torch.full_like(velocities[..., 0], torch.nan)
    deviation = sigma * math.sqrt(1 / steps)
    times = flow_times(steps, states).unsqueeze(-1)
    before = states[..., :-1, :]
    drifts = drift(before, velocities, time=times, sigma=sigma, corrected=corrected)
    z = (states[..., 1:, :] - before - drifts / steps) / deviation
    return _reduce(-0.5 * z.square() - math.log(deviation) - 0.5 * math.log(2 * math.pi), reduction)


def step_kl(
    velocities: Tensor,
    reference: Tensor,
    sigma: float,
    reduction: Reduction,
    corrected: bool = False,
) -> Tensor:
    """KL(policy || reference) of every step, dt |u - u_ref|^2 / (2 sigma^2).

    Both are Gaussians of one width. flow_grpo leaves out the division by dt: multiply by dt for its
    numbers.

    Args:
        velocities: of the policy, (..., steps, latent_dim).
        reference: velocities of the reference at the same states.
        sigma: noise scale.
        reduction: over latent dims.
        corrected: whether the drift is.

    Returns:
        (..., steps).
    """
    steps = velocities.shape[-2]
    times = flow_times(steps, velocities).unsqueeze(-1)
    # The drift is linear in state and velocity, and the states are the same.
    same_state = torch.zeros_like(velocities)
    difference = drift(
        same_state, velocities - reference, time=times, sigma=sigma, corrected=corrected
    )
    return _reduce(difference.square() / (2 * sigma**2 * steps), reduction)


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _reduce(values: Tensor, reduction: Reduction) -> Tensor:
    if reduction not in ("sum", "mean"):
        raise ValueError(f"unknown reduction {reduction!r}, expected 'sum' or 'mean'")
    return values.sum(-1) if reduction == "sum" else values.mean(-1)
