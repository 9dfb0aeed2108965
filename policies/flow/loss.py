"""What AR-Flow learns by: the rectified-flow loss (GDPO-Listener, Eq. 4), and what to expect."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rapport.policies.flow.model import ARFlow, Prefix, Sight
from rapport.policies.flow.vae import MotionVAE

# Latents that a path is averaged over, a second or so: what a speaker explains is slow.
PATH_LATENTS = 3


def flow_errors(
    model: ARFlow,
    prefix: Prefix,
    latents: Tensor,
    noise: Tensor,
    time: Tensor,
    remembers: Tensor | None = None,
    expected: Tensor | None = None,
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
        expected: what `ARFlow.expect` says of the latents; None = it is asked.

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
    numbers = torch.arange(count, device=latents.device)
    if expected is None:
        expected = model.expect(prefix, numbers)
    velocity, _ = model(
        prefix,
        clean=latents[:, :, :-1],
        noisy=states.flatten(2, 3),
        time=time.flatten(2),
        number=numbers.repeat_interleave(draws),
        sight=Sight(remembers=remembers, expected=expected.repeat_interleave(draws, dim=2)),
    )
    velocity = torch.unflatten(velocity, 2, (count, draws))
    return (velocity - (goal - noise)).square().mean(-1)


@torch.no_grad()
def paths(vae: MotionVAE, latents: Tensor) -> Tensor:
    """The slow part of what latents (batch, n, latent_dim) decode to: (batch, n, dim).

    Means over the frames of `PATH_LATENTS` latents around each, fewer at the ends, in standard
    deviations of the channels.
    """
    frames = vae.standardise(vae.decode(latents))
    means = torch.unflatten(frames, 1, (latents.shape[1], -1)).mean(2)
    around = F.avg_pool1d(
        means.mT,
        PATH_LATENTS,
        stride=1,
        padding=PATH_LATENTS // 2,
        count_include_pad=False,
    )
    return around.mT
