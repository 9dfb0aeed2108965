"""Sampling from AR-Flow: latent after latent, each along its ODE (GDPO-Listener, Eq. 5-6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rapport.policies.flow.conditions import LEAD, Conditions
from rapport.policies.flow.model import ARFlow, History, Prefix, Sight
from rapport.policies.flow.settings import Solver, denoise_steps

# (state, flow time) -> velocity. Flow times have the state's shape, with a last dim of 1, or one
# that broadcasts to it.
Velocity = Callable[[Tensor, Tensor], Tensor]


class Denoise(Protocol):
    """How a latent comes from its noise."""

    def __call__(self, velocity: Velocity, start: Tensor, latent: int) -> Tensor:
        """The finished latent.

        Args:
            velocity: of the latent.
            start: m_{l,0}, (batch, slots, latent_dim).
            latent: which of those that are generated.
        """


def draw_noise(seeds: Sequence[int], *shape: int) -> Tensor:
    """N(0, I) of (len(seeds), *shape).

    Each prompt has a generator of its own, so that batching changes nothing.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def latent_noise(seed: int, sample: int, latent: int, dim: int) -> Tensor:
    """m_{l,0} of a latent, N(0, I) of (dim,) float32.

    Seed, number of the sample and number of the latent seed a generator of its own. So noise of a
    latent is the same whatever was drawn before it: in a window, in a longer one, and live, where a
    session may go on elsewhere.
    """
    rng = np.random.default_rng([seed, sample, latent])
    return torch.from_numpy(rng.standard_normal(dim, np.float32))


def window_noise(seeds: Sequence[int], samples: int, latents: int, dim: int) -> Tensor:
    """`latent_noise` of the first latents of each prompt: (len(seeds), samples, latents, dim)."""
    rows = [
        latent_noise(seed, sample, latent, dim)
        for seed in seeds
        for sample in range(samples)
        for latent in range(latents)
    ]
    return torch.stack(rows).reshape(len(seeds), samples, latents, dim)


def advance(
    velocity: Velocity, state: Tensor, time: Tensor, length: Tensor, solver: Solver
) -> Tensor:
    """m_{t + length}, by one step of the rule.

    Euler's (Eq. 5 of GDPO-Listener) is exact to first order in the length only, and what it gets
    wrong is the spread: with 10 steps it keeps .71 to .77 of the variance of an AR(1) Gaussian,
    the midpoint rule with as many evaluations all of it (`test_flow_sampling.py`).

    Args:
        velocity: of the policy.
        state: m_t.
        time: t.
        length: of the step.
        solver: which rule.
    """
    first = velocity(state, time)
    if solver == "euler":
        return state + length * first
    return state + length * velocity(state + length / 2 * first, time + length / 2)


def ode(solver: Solver = "midpoint", evaluations: int = 10) -> Denoise:
    """From noise to data along the ODE, in equal steps."""
    steps = denoise_steps(solver, evaluations)

    def denoise(velocity: Velocity, start: Tensor, latent: int) -> Tensor:
        length = flow_time(1 / steps, start)
        state = start
        for i in range(steps):
            state = advance(velocity, state, i * length, length, solver)
        return state

    return denoise


def flow_time(value: float, like: Tensor) -> Tensor:
    """A flow time on the device of `like`, in its dtype, but not in less than float32."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    # Written by the device itself: a GPU's graph holds no copies from the host.
    return torch.full((), value, device=like.device, dtype=dtype)


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


@dataclass(frozen=True, eq=False)
class Finished:
    """The finished latents of a sequence.

    Args:
        clean: (batch, slots, k, latent_dim), those that are not in `past` yet, the last ones.
        past: of those before them.
    """

    clean: Tensor
    past: History = History((), ())


@torch.no_grad()
def next_latent(
    model: ARFlow,
    prefix: Prefix,
    number: Tensor,
    finished: Finished,
    noise: Tensor,
    denoise: Callable[[Velocity, Tensor], Tensor],
    scale: Tensor | None = None,
) -> tuple[Tensor, Finished]:
    """The latent that follows.

    Args:
        model: the AR-Flow.
        prefix: what is heard by then.
        number: of the latent, (1,) or (batch, 1) int64.
        finished: the latents before it.
        noise: (batch, slots, latent_dim), its start m_{l,0}.
        denoise: how it comes from there: of its velocity, and its start.
        scale: (batch,) guidance scale; None = 1, which needs no unconditional pass.

    Returns:
        (batch, slots, latent_dim), and it with those before it.
    """
    slots = noise.shape[1]
    conditioned: Tensor | None = None
    if scale is not None:
        # With guidance every sample takes two slots, of which the second sees no conditions.
        conditioned = torch.tensor([True, False], device=noise.device).repeat_interleave(slots)
    sight = Sight(conditioned, expected=model.heeded(prefix, number, conditioned))
    clean = finished.clean
    past = finished.past

    def velocity(state: Tensor, time: Tensor) -> Tensor:
        nonlocal clean, past
        # A flow time has more digits than bfloat16, and takes states along.
        noisy = state.to(noise.dtype).unsqueeze(2)
        predicted, past = model(
            prefix,
            clean=clean if scale is None else torch.cat([clean, clean], dim=1),
            noisy=noisy if scale is None else torch.cat([noisy, noisy], dim=1),
            time=time,
            number=number,
            past=past,
            sight=sight,
        )
        # The finished latents are in `past` from now on.
        clean = clean[:, :, :0]
        found: Tensor = predicted.squeeze(2)
        if scale is None:
            return found
        conditional, unconditional = torch.split(found, slots, dim=1)
        guided: Tensor = unconditional + scale[:, None, None] * (conditional - unconditional)
        return guided

    latent = denoise(velocity, noise)
    return latent, Finished(latent.unsqueeze(2), past)


@torch.no_grad()
def known_latent(model: ARFlow, prefix: Prefix, finished: Finished, latent: Tensor) -> Finished:
    """What `next_latent` gives besides a latent (batch, slots, latent_dim) that is known."""
    none = latent.unsqueeze(2)[:, :, :0]
    number = torch.zeros(0, dtype=torch.int64, device=latent.device)
    _, past = model(
        prefix,
        clean=finished.clean,
        noisy=none,
        time=none[..., 0],
        number=number.expand(len(latent), 0),
        past=finished.past,
        sight=Sight(expected=none.new_zeros(*none.shape[:3], model.config.path or 0)),
    )
    return Finished(latent.unsqueeze(2), past)


@torch.no_grad()
def autoregress(
    model: ARFlow,
    prefix: Prefix | Callable[[int], Prefix],
    noise: Tensor,
    denoise: Denoise,
    omega: Tensor | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Generate latents one after the other.

    The prefix and finished latents are never computed again, and finished ones are forgotten when
    no other looks back at them.

    Args:
        model: the AR-Flow.
        prefix: of the prompts; or called with the number of each latent, for what is heard by then.
        noise: (batch, slots, n, latent_dim), state m_{l,0} of each latent to generate.
        denoise: how a latent comes from it (`ode`, or `rapport.policies.flow.rollouts`).
        omega: (batch, n) guidance scale of each latent; None = 1 everywhere, which needs no
            unconditional pass.
        start: (batch, slots, k, latent_dim), latents before them that are there already.

    Returns:
        (batch, slots, n, latent_dim), the new ones.
    """
    if omega is not None and bool((omega == 1).all()):
        omega = None
    finished = Finished(noise[:, :, :0] if start is None else start)
    first = finished.clean.shape[2]
    latents: list[Tensor] = []
    for latent in range(noise.shape[2]):
        # The latent before it, whose keys are computed now, looks back from its own place.
        finished = replace(finished, past=finished.past.last(model.config.span))
        state, finished = next_latent(
            model,
            prefix(first + latent) if callable(prefix) else prefix,
            torch.full((1,), first + latent, device=noise.device),
            finished,
            noise[:, :, latent],
            partial(denoise, latent=latent),
            scale=None if omega is None else omega[:, latent],
        )
        latents.append(state)
    return torch.stack(latents, dim=2) if latents else noise


def generate(
    model: ARFlow,
    conditions: Conditions,
    noise: Tensor,
    denoise: Denoise,
    omega: Tensor | None = None,
    lead: int | None = LEAD,
) -> Tensor:
    """A sequence, all of whose conditions are there: (batch, samples, n, latent_dim).

    Args:
        model: the AR-Flow.
        conditions: of the sequence.
        noise: (batch, samples, n, latent_dim).
        denoise: as in `autoregress`.
        omega: guidance, as in `autoregress`.
        lead: as in `ARFlow.encode_prefix`.
    """
    with torch.no_grad():
        prefix = model.encode_prefix(conditions, lead)
    return autoregress(model, prefix, noise, denoise, omega=omega)


def generate_long(
    model: ARFlow,
    conditions: Conditions,
    noise: Tensor,
    denoise: Denoise,
    omega: Tensor | None = None,
    lead: int = LEAD,
) -> Tensor:
    """What `generate` gives, as it is done live: conditions come in latent by latent.

    A latent is generated as soon as its lead is heard. Keys and values are computed once and kept
    for as long as somebody looks back at them, so time and memory of a latent do not depend on how
    many there were before it.

    Args:
        model: the AR-Flow.
        conditions: of the whole sequence, of which something lasts; a latent looks at no frame
            after its lead.
        noise: (batch, samples, n, latent_dim) for all n latents.
        denoise: as in `autoregress`.
        omega: (batch, n), or None.
        lead: frames of a latent that are heard before it is generated, one of `LEADS`.

    Returns:
        (batch, samples, n, latent_dim).
    """
    r = model.config.downsample
    count = conditions.frames(r) // r
    prompt = Conditions(text=conditions.text, present=conditions.presence())
    with torch.no_grad():
        heard = model.encode_prefix(prompt, lead)

    def listen(latent: int) -> Prefix:
        nonlocal heard
        heard = heard.since((latent - 1 - model.config.span) * r)
        ready = min(-(-(latent * r + lead) // r), count)
        for block in range(heard.frames // r, ready):
            following = replace(conditions.window(block, 1, r), text=None)
            heard = model.encode_prefix(following, past=heard)
        return heard

    return autoregress(model, listen, noise, denoise, omega=omega)
