"""Rectified-flow loss of AR-Flow (GDPO-Listener, Eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from rapport.policies.flow.model import ARFlow, Prefix, Sight


def flow_errors(
    model: ARFlow,
    prefix: Prefix,
    latents: Tensor,
    noise: Tensor,
    time: Tensor,
    remembers: Tensor | None = None,
) -> Tensor:
    """|v_theta(m_{l,t}) - (m_l - m_{l,0})|^2 as the mean over dims.

    The states are m_{l,t} = t m_l + (1 - t) m_{l,0}. All latents are predicted side by side, each
    from the true ones before it.

    Args:
        model: the AR-Flow.
        prefix: of the prompts.
        latents: (batch, slots, n, latent_dim), m_l.
        noise: (batch, slots, n, draws, latent_dim), m_{l,0}. Several draws of a latent share prefix
            and history.
        time: (batch, slots, n, draws), t in [0, 1].
        remembers: (batch,) bool, who knows their own past; None = all.

    Returns:
        (batch, slots, n, draws).
    """
    draws = noise.shape[3]
    count = latents.shape[2]
    if time.shape != noise.shape[:-1] or noise.shape[:3] + noise.shape[4:] != latents.shape:
        raise ValueError(
            f"latents {tuple(latents.shape)}, noise {tuple(noise.shape)} and time "
            f"{tuple(time.shape)} do not fit: (batch, slots, n, dim), (batch, slots, n, draws, "
            "dim), (batch, slots, n, draws)"
        )
    goal = latents.unsqueeze(3)
    t = time.unsqueeze(-1)
    states = t * goal + (1 - t) * noise
    number = torch.arange(count, device=latents.device).repeat_interleave(draws)
    velocity, _ = model(
        prefix,
        clean=latents[:, :, :-1],
        noisy=states.flatten(2, 3),
        time=time.flatten(2),
        number=number,
        sight=Sight(remembers=remembers),
    )
    velocity = torch.unflatten(velocity, 2, (count, draws))
    return (velocity - (goal - noise)).square().mean(-1)
