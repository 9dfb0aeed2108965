"""Sampling from AR-Flow: latent after latent, each along its ODE (GDPO-Listener, Eq. 5-6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rapport.policies.flow.conditions import Conditions
from rapport.policies.flow.model import ARFlow, History, Prefix

# (state, velocity, number of the denoise step) -> next state, each (batch, slots, latent_dim)
Step = Callable[[Tensor, Tensor, int], Tensor]


def draw_noise(seeds: Sequence[int], *shape: int) -> Tensor:
    """N(0, I) of (len(seeds), *shape).

    Each prompt has a generator of its own, so that batching changes nothing.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def flow_times(steps: int, like: Tensor) -> Tensor:
    """Flow time t at the start of each of `steps` equal denoise steps, (steps,).

    They lead from 0 (noise) to 1 (data), on the device of `like` and in its dtype, but not in less
    than float32.
    """
    if steps < 1:
        raise ValueError(f"{steps} denoise steps, at least 1 is needed")
    times = torch.arange(steps) / steps
    return times.to(like.device, torch.promote_types(like.dtype, torch.float32))


def guidance_scale(
    speaking: Tensor, omega_speak: float, omega_listen: float, downsample: int
) -> Tensor:
    """omega_l of Eq. 6, (batch, frames / r): by the majority of the frames of each latent.

    Args:
        speaking: (batch, frames) bool, whether the generated person speaks.
        omega_speak: scale of latents in which they do.
        omega_listen: scale of the others.
        downsample: r, frames per latent.
    """
    share = torch.unflatten(speaking.float(), 1, (-1, downsample)).mean(-1)
    return torch.where(share >= 0.5, omega_speak, omega_listen)


@torch.no_grad()
def autoregress(
    model: ARFlow,
    prefix: Prefix,
    noise: Tensor,
    steps: int,
    step: Step,
    omega: Tensor | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Generate latents one after the other.

    The prefix and finished latents are never computed again.

    Args:
        model: the AR-Flow.
        prefix: of the prompts.
        noise: (batch, slots, n, latent_dim), state m_{l,0} of each latent to generate.
        steps: denoise steps of each latent.
        step: how a state moves on (`euler`, or the SDE's of `rapport.policies.flow.sde`).
        omega: (batch, n) guidance scale of each latent; None = 1 everywhere, which needs no
            unconditional pass.
        start: (batch, slots, k, latent_dim), latents of the window that are there already.

    Returns:
        (batch, slots, n, latent_dim), the new ones.
    """
    slots = noise.shape[1]
    count = noise.shape[2]
    if omega is not None and bool((omega == 1).all()):
        omega = None
    clean = noise[:, :, :0] if start is None else start
    first = clean.shape[2]
    times = flow_times(steps, noise)
    if first + count > model.config.window:
        raise ValueError(
            f"{first} + {count} latents are beyond the window of {model.config.window}; use "
            "generate_long"
        )
    conditioned: Tensor | None = None
    if omega is not None:
        # With guidance every sample takes two slots, of which the second sees no conditions.
        conditioned = torch.tensor([True, False], device=noise.device).repeat_interleave(slots)
    past: History | None = None
    finished: list[Tensor] = []
    for latent in range(count):
        state = noise[:, :, latent]
        number = torch.tensor([first + latent], device=noise.device)
        for i in range(steps):
            noisy = state.unsqueeze(2)
            velocity, past = model(
                prefix,
                clean=clean if omega is None else torch.cat([clean, clean], dim=1),
                noisy=noisy if omega is None else torch.cat([noisy, noisy], dim=1),
                time=times[i : i + 1],
                number=number,
                past=past,
                conditioned=conditioned,
            )
            velocity = velocity.squeeze(2)
            if omega is not None:
                conditional, unconditional = torch.split(velocity, slots, dim=1)
                scale = omega[:, latent, None, None]
                velocity = unconditional + scale * (conditional - unconditional)
            # The finished latents are in `past` from the first step on.
            clean = clean[:, :, :0]
            state = step(state, velocity, i)
        clean = state.unsqueeze(2)
        finished.append(state)
    return torch.stack(finished, dim=2) if finished else noise


def euler(steps: int) -> Step:
    """The step of the ODE: m_{t + dt} = m_t + dt v, Eq. 5."""
    return lambda state, velocity, i: state + velocity / steps


def generate(
    model: ARFlow,
    conditions: Conditions,
    noise: Tensor,
    steps: int = 10,
    omega: Tensor | None = None,
    streaming: bool = False,
) -> Tensor:
    """One window by the ODE, (batch, samples, n, latent_dim).

    Args:
        model: the AR-Flow.
        conditions: of the window.
        noise: (batch, samples, n, latent_dim).
        steps: denoise steps of each latent.
        omega: guidance, as in `autoregress`.
        streaming: as in `ARFlow.encode_prefix`.
    """
    with torch.no_grad():
        prefix = model.encode_prefix(conditions, streaming)
    return autoregress(model, prefix, noise, steps=steps, step=euler(steps), omega=omega)


def generate_long(
    model: ARFlow,
    conditions: Conditions,
    noise: Tensor,
    steps: int = 10,
    omega: Tensor | None = None,
    streaming: bool = False,
    history: int = 1,
) -> Tensor:
    """A sequence of any length by sliding the window.

    Each window starts with the last `history` latents of the one before. Time and memory of a
    window do not depend on how long the sequence is.

    Args:
        model: the AR-Flow.
        conditions: of the whole sequence.
        noise: (batch, samples, n, latent_dim) for all n latents.
        steps: denoise steps of each latent.
        omega: (batch, n), or None.
        streaming: as in `ARFlow.encode_prefix`.
        history: k, latents carried over (the paper's is 1 of 25).

    Returns:
        (batch, samples, n, latent_dim).
    """
    window = model.config.window
    count = noise.shape[2]
    if not 1 <= history < window:
        raise ValueError(
            f"a history of {history} latents does not fit the window of {window}: from 1 to "
            f"{window - 1}"
        )
    latents = noise[:, :, :0]
    while latents.shape[2] < count:
        end = latents.shape[2]
        first = end - min(history, end)
        length = min(window, count - first)
        part = slice(end, first + length)
        with torch.no_grad():
            prefix = model.encode_prefix(
                conditions.window(first, length, model.config.downsample), streaming
            )
        new = autoregress(
            model,
            prefix,
            noise[:, :, part],
            steps=steps,
            step=euler(steps),
            omega=None if omega is None else omega[:, part],
            start=latents[:, :, first:],
        )
        latents = torch.cat([latents, new], dim=2)
    return latents
