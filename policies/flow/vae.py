"""Motion VAE (GDPO-Listener, section 3.1): r frames of FLAME motion <-> one latent, over time a
transformer.

The paper does not describe the network. Ours is causal in steps of one latent and looks back only
so far: a latent needs no later frame, and a sequence of any length is coded as its windows are. So
it streams, and a sequence may grow while it is played: a frame is final as soon as the latent half
a window later is there.

Faces move smoothly, and a decoder of plain frames has to unlearn, channel by channel, a tremble
that it starts with. So a latent is written as cosines over 2 r frames, each in units of how much
the corpus has of it, and neighbours are faded into each other: what is decoded has no seams.

Both halves are a linear map plus what a transformer adds to it, which is nothing before training:
much of a face is a linear code, and a network that ends in a norm can hardly say "almost still".
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rapport.policies.flow.config import VAEConfig
from rapport.policies.flow.statistics import mean_and_std
from rapport.policies.flow.tmrope import rotate, rotations
from rapport.policies.flow.transformer import Block, silent
from rapport.policies.motion import Motion, require_same_layout


class CausalTransformer(nn.Module):
    """Blocks in which token j attends to tokens [j - look_back, j]."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.look_back = config.look_back
        self.blocks = nn.ModuleList(
            Block(config.hidden, config.heads, 4 * config.hidden) for _ in range(config.layers)
        )
        self.norm = nn.RMSNorm(config.hidden, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, hidden) -> the same."""
        steps = torch.arange(x.shape[1], device=x.device)
        past = steps[:, None] - steps
        mask = (past >= 0) & (past <= self.look_back)
        rotation = rotations(steps, x.shape[-1] // self.blocks[0].heads)
        for block in self.blocks:
            q, k, v = block.queries_keys_values(x)
            x = block.finish(
                x, F.scaled_dot_product_attention(rotate(q, rotation), rotate(k, rotation), v, mask)
            )
        return self.norm(x)


class MotionVAE(nn.Module):
    """Frames (batch, time, dim) in the units of `config.layout` <-> latents (batch, time / r,
    latent_dim).

    `fit_channels` before training and `fit_latents` after it set the buffers that make channels and
    latents of unit variance over the corpus, and the spectrum of its motion: without the first
    expression would drown the radians, the second is what flow matching from N(0, I) wants."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        patch = config.downsample * config.layout.dim
        self.patch_in = nn.Linear(patch, config.hidden)
        self.encoder = CausalTransformer(config)
        self.posterior = silent(nn.Linear(config.hidden, 2 * config.latent_dim))
        self.linear_in = nn.Linear(patch, 2 * config.latent_dim, bias=False)
        self.latent_in = nn.Linear(config.latent_dim, config.hidden)
        self.decoder = CausalTransformer(config)
        self.patch_out = silent(nn.Linear(config.hidden, 2 * patch))
        self.linear_out = nn.Linear(config.latent_dim, 2 * patch, bias=False)
        self.register_buffer("channel_mean", torch.zeros(config.layout.dim))
        self.register_buffer("channel_std", torch.ones(config.layout.dim))
        span = 2 * config.downsample
        self.register_buffer("spectrum", torch.ones(span, config.layout.dim))
        self.register_buffer("cosines", cosine_basis(span), persistent=False)
        self.register_buffer(
            "fade", (math.pi * (torch.arange(span) + 0.5) / span).sin().square(), persistent=False
        )
        self.register_buffer("latent_mean", torch.zeros(config.latent_dim))
        self.register_buffer("latent_std", torch.ones(config.latent_dim))

    def fit_channels(self, motions: Iterable[Motion]) -> None:
        """Mean, standard deviation and spectrum of every channel; one that stands still is left at
        scale 1.

        The spectrum is the root mean square of each cosine over windows of 2 r frames, (2 r, dim),
        in normalised units."""
        values = []
        for motion in motions:
            require_same_layout(motion.layout, self.config.layout, "statistics for the motion VAE")
            values.append(torch.from_numpy(motion.values))
        r = self.config.downsample
        windows = [v.unfold(0, 2 * r, r).transpose(1, 2) for v in values if len(v) >= 2 * r]
        if not windows:
            raise ValueError(
                f"none of {len(values)} motions has a window: all are shorter than {2 * r} frames"
            )
        mean, std = mean_and_std(values)
        self.channel_mean.copy_(mean)
        self.channel_std.copy_(std)
        self.spectrum.copy_(
            (self.cosines @ self.normalise(torch.cat(windows))).square().mean(0).sqrt()
        )

    @torch.no_grad()
    def fit_latents(self, clips: Iterable[Tensor]) -> None:
        """Mean and standard deviation of every latent dimension over frames (batch, time, dim) of
        the corpus.
        """
        mean, std = mean_and_std(self.encode_posterior(clip)[0] for clip in clips)
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)

    def normalise(self, frames: Tensor) -> Tensor:
        """M -> M', channel by channel."""
        return (frames - self.channel_mean) / self.channel_std

    def encode_posterior(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(m | M), each (batch, time / r, latent_dim), not standardised."""
        r, dim = self.config.downsample, self.config.layout.dim
        if (
            frames.ndim != 3
            or frames.shape[-1] != dim
            or frames.shape[1] % r
            or not frames.shape[1]
        ):
            raise ValueError(
                f"frames must be (batch, time, {dim}) with time a multiple of {r}, got "
                f"{tuple(frames.shape)}; cut the clip"
            )
        patches = self.normalise(frames).reshape(len(frames), -1, r * dim)
        return (
            self.linear_in(patches) + self.posterior(self.encoder(self.patch_in(patches)))
        ).chunk(2, dim=-1)

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (batch, time, dim) -> the posterior's mean, standardised, (batch, time / r,
        latent_dim).
        """
        return (self.encode_posterior(frames)[0] - self.latent_mean) / self.latent_std

    def decode(self, latents: Tensor) -> Tensor:
        """Standardised latents (batch, n, latent_dim) -> frames (batch, n r, dim)."""
        return (
            self._decode(latents * self.latent_std + self.latent_mean) * self.channel_std
            + self.channel_mean
        )

    def to_motion(self, latents: Tensor) -> Motion:
        """Standardised latents (n, latent_dim) of one sequence -> typed motion of n r frames."""
        with torch.no_grad():
            return Motion(self.decode(latents.unsqueeze(0))[0].cpu().numpy(), self.config.layout)

    def forward(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `vae_loss` takes: reconstruction and target, normalised frames; mean and
        log-variance of the posterior.

        Args:
            frames: (batch, time, dim).
            noise: (batch, time / r, latent_dim), from N(0, I).
        """
        mean, log_variance = self.encode_posterior(frames)
        return (
            self._decode(mean + noise * (0.5 * log_variance).exp()),
            self.normalise(frames),
            mean,
            log_variance,
        )

    def _decode(self, latents: Tensor) -> Tensor:
        r, dim = self.config.downsample, self.config.layout.dim
        patches = self.linear_out(latents) + self.patch_out(self.decoder(self.latent_in(latents)))
        spans = self.cosines.T @ (patches.unflatten(-1, (2 * r, dim)) * self.spectrum)
        fade = self.fade.unsqueeze(1).expand(latents.shape[1], -1, 1)
        frames = _overlap_add(spans * self.fade.unsqueeze(1), r) / _overlap_add(
            fade.unsqueeze(0), r
        )
        return frames[:, r // 2 : r // 2 + latents.shape[1] * r]


def vae_loss(
    decoded: Tensor,
    target: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    velocity_weight: float,
    kl_weight: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruction + velocity + KL, each a mean: over frames and normalised channels, over
    latents and their dims.

    The size of an error and its square count alike. A listener's jaw moves little, in units of the
    spread of a corpus in which people speak: the squares of its errors are next to nothing, and it
    would be left to tremble. Blinks are rare, and by sizes alone the best guess is that there is
    none.

    Args:
        decoded, target, mean, log_variance: what `MotionVAE` returns.
        velocity_weight: of the error of frame-to-frame differences, which keeps patches from
            showing.

    Returns:
        The loss and its parts, detached: `reconstruction`, `velocity`, `kl`.
    """
    error = decoded - target
    reconstruction, velocity = ((e.abs() + e.square()).mean() for e in (error, error.diff(dim=1)))
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    loss = reconstruction + velocity_weight * velocity + kl_weight * kl
    parts = {"reconstruction": reconstruction, "velocity": velocity, "kl": kl}
    return loss, {name: part.detach() for name, part in parts.items()}


def cosine_basis(length: int) -> Tensor:
    """The orthonormal DCT-II, (length, length), rows are cosines over time; its transpose is its
    inverse.
    """
    k, t = torch.arange(length).unsqueeze(1), torch.arange(length)
    basis = torch.cos(math.pi / length * (t + 0.5) * k) * math.sqrt(2 / length)
    basis[0] /= math.sqrt(2)
    return basis


def _overlap_add(spans: Tensor, hop: int) -> Tensor:
    """Spans (batch, n, 2 hop, dim), one every `hop` frames -> their sum over time, (batch, (n + 1)
    hop, dim).
    """
    early, late = spans.split(hop, dim=2)
    return F.pad(early.flatten(1, 2), (0, 0, 0, hop)) + F.pad(late.flatten(1, 2), (0, 0, hop, 0))
