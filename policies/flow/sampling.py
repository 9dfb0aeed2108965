"""Sampling from AR-Flow: latent after latent, each along its ODE (GDPO-Listener, Eq. 5-6), window
after window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rapport.policies.flow.conditions import Conditions
from rapport.policies.flow.model import ARFlow, History, Prefix

# (state, velocity, number of the denoise step) -> next state, each (batch, slots, latent_dim)
Step = Callable[[Tensor, Tensor, int], Tensor]


def draw_noise(seeds: Sequence[int], *shape: int) -> Tensor:
    """N(0, I) of (len(seeds), *shape): each prompt from a generator of its own, so that batching
    changes nothing.
    """
    return torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )


def flow_times(steps: int) -> Tensor:
    """Flow time t at the start of each of `steps` equal denoise steps from 0 (noise) to 1 (data):
    (steps,).
    """
    if steps < 1:
        raise ValueError(f"{steps} denoise steps, at least 1 is needed")
    return torch.arange(steps) / steps


def guidance_scale(
    speaking: Tensor, omega_speak: float, omega_listen: float, downsample: int
) -> Tensor:
    """omega_l of Eq. 6: (batch, frames) bool, who speaks -> (batch, frames / r), by the majority of
    its frames.
    """
    share = speaking.float().unflatten(1, (-1, downsample)).mean(-1)
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
    """Generate latents one after the other; the prefix and finished latents are never computed
    again.

    Args:
        noise: (batch, slots, n, latent_dim), state m_{l,0} of each latent to generate.
        steps: denoise steps of each latent.
        step: how a state moves on (`euler`, or the SDE's of `rapport.policies.flow.sde`).
        omega: (batch, n) guidance scale of each latent; None = 1 everywhere, which needs no
            unconditional pass.
        start: (batch, slots, k, latent_dim), latents of the window that are there already.

    Returns:
        (batch, slots, n, latent_dim), the new ones.
    """
    batch, slots, count, dim = noise.shape
    guided = omega is not None and bool((omega != 1).any())
    clean = noise[:, :, :0] if start is None else start
    first, times = clean.shape[2], flow_times(steps).to(noise)
    if first + count > model.config.window:
        raise ValueError(
            f"{first} + {count} latents are beyond the window of {model.config.window}; "
            "generate_long"
        )
    conditioned = (
        torch.tensor([True, False], device=noise.device).repeat_interleave(slots)
        if guided
        else None
    )
    past: History | None = None
    done = []
    for l in range(count):  # noqa: E741  the paper's index
        state, number = noise[:, :, l], torch.tensor([first + l], device=noise.device)
        for i in range(steps):
            twice = (torch.cat([x, x], dim=1) if guided else x for x in (clean, state.unsqueeze(2)))
            velocity, past = model(prefix, *twice, times[i : i + 1], number, past, conditioned)
            velocity, clean = velocity.squeeze(2), clean[:, :, :0]
            if guided:
                conditional, unconditional = velocity.split(slots, dim=1)
                velocity = unconditional + omega[:, l, None, None] * (conditional - unconditional)
            state = step(state, velocity, i)
        clean = state.unsqueeze(2)
        done.append(state)
    return torch.stack(done, dim=2) if done else noise


def euler(steps: int) -> Step:
    """m_{t + dt} = m_t + dt v, Eq. 5."""
    return lambda state, velocity, i: state + velocity / steps


def generate(
    model: ARFlow,
    conditions: Conditions,
    noise: Tensor,
    steps: int = 10,
    omega: Tensor | None = None,
    streaming: bool = False,
) -> Tensor:
    """One window by the ODE: noise (batch, samples, n, latent_dim) -> latents of the same shape.
    See `autoregress`.
    """
    with torch.no_grad():
        prefix = model.encode_prefix(conditions, streaming)
    return autoregress(model, prefix, noise, steps, euler(steps), omega)


def generate_long(
    model: ARFlow,
    conditions: Conditions,
    noise: Tensor,
    steps: int = 10,
    omega: Tensor | None = None,
    streaming: bool = False,
    history: int = 1,
) -> Tensor:
    """A sequence of any length by sliding the window: each starts with the last `history` latents
    of the one before.

    Time and memory of a window do not depend on how long the sequence is.

    Args:
        conditions: of the whole sequence.
        noise: (batch, samples, n, latent_dim) for all n latents.
        omega: (batch, n), or None.
        history: k, latents carried over (the paper's is 1 of 25).

    Returns:
        (batch, samples, n, latent_dim).
    """
    window, count = model.config.window, noise.shape[2]
    if not 1 <= history < window:
        raise ValueError(
            f"a history of {history} latents does not fit the window of {window}: from 1 to "
            f"{window - 1}"
        )
    done = noise[:, :, :0]
    while (made := done.shape[2]) < count:
        kept = min(history, made)
        length = min(window, count - made + kept)
        part = slice(made, made - kept + length)
        with torch.no_grad():
            prefix = model.encode_prefix(
                conditions.window(made - kept, length, model.config.downsample), streaming
            )
        new = autoregress(
            model,
            prefix,
            noise[:, :, part],
            steps,
            euler(steps),
            None if omega is None else omega[:, part],
            done[:, :, made - kept :],
        )
        done = torch.cat([done, new], dim=2)
    return done
