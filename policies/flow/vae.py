"""Motion VAE (GDPO-Listener, section 3.1): r frames of FLAME motion <-> one latent.

The paper does not describe the network. Ours is causal in steps of one latent and looks back only
so far: a latent needs no later frame, and a sequence of any length is coded as its windows are. So
it streams, and a sequence may grow while it is played: a frame is final as soon as the latent half
a window later is there.

Faces move smoothly, and a decoder of plain frames has to unlearn, channel by channel, a tremble
that it starts with. So a latent is written as cosines over 2 r frames, each in units of how much
the corpus has of it, and neighbours are faded into each other, which leaves no seams.

Both halves are a linear map plus what a transformer adds to it, which is nothing before training:
much of a face is a linear code, and a network that ends in a norm can hardly express that almost
nothing moves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rapport.policies.flow.config import VaeSizes
from rapport.policies.flow.statistics import mean_and_std
from rapport.policies.flow.transformer import CausalTransformer, Memory, silent
from rapport.policies.motion import Motion, require_same_layout

BATCH = 64  # sequences coded at once: a window of 25 latents takes 1 MB


@dataclass(frozen=True, eq=False)
class Shown:
    """How far a sequence is decoded.

    Args:
        memory: of the decoder.
        end: (batch, r, dim), what the last latent says of frames that the next one speaks of, too:
            standardised and faded; zeros before the first latent.
    """

    memory: Memory
    end: Tensor

    def where(self, begun: Tensor) -> Shown:
        """For those samples that have not `begun`, (batch,) bool, nothing was decoded so far."""
        return Shown(self.memory.where(begun), torch.where(begun[:, None, None], self.end, 0.0))


class MotionVAE(nn.Module):
    """Frames (batch, time, dim) of a layout <-> latents (batch, time / r, latent_dim).

    `fit_channels` before training and `fit_latents` after it set the buffers that make channels and
    latents of unit variance over the corpus, and the spectrum of its motion. Without the first,
    expression coefficients would drown the radians; the second is what flow matching from N(0, I)
    starts from.
    """

    channel_mean: Tensor
    channel_std: Tensor
    spectrum: Tensor
    cosines: Tensor
    fade: Tensor
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: VaeSizes) -> None:
        super().__init__()
        self.config = config
        patch = config.downsample * config.layout.dim
        self.patch_in = nn.Linear(patch, config.hidden)
        self.encoder = _half(config)
        self.posterior = silent(nn.Linear(config.hidden, 2 * config.latent_dim))
        self.linear_in = nn.Linear(patch, 2 * config.latent_dim, bias=False)
        self.latent_in = nn.Linear(config.latent_dim, config.hidden)
        self.decoder = _half(config)
        self.patch_out = silent(nn.Linear(config.hidden, 2 * patch))
        self.linear_out = nn.Linear(config.latent_dim, 2 * patch, bias=False)
        self.register_buffer("channel_mean", torch.zeros(config.layout.dim))
        self.register_buffer("channel_std", torch.ones(config.layout.dim))
        span = 2 * config.downsample
        self.register_buffer("spectrum", torch.ones(span, config.layout.dim))
        self.register_buffer("cosines", cosine_basis(span), persistent=False)
        fade = (math.pi * (torch.arange(span) + 0.5) / span).sin().square()
        self.register_buffer("fade", fade, persistent=False)
        self.register_buffer("latent_mean", torch.zeros(config.latent_dim))
        self.register_buffer("latent_std", torch.ones(config.latent_dim))

    def fit_channels(self, motions: Iterable[Motion]) -> None:
        """Mean, standard deviation and spectrum of every channel, over a corpus.

        A channel that stands still keeps scale 1. The spectrum is the root mean square of each
        cosine over windows of 2 r frames, (2 r, dim), in standard deviations.

        Raises:
            ValueError: all motions are shorter than a window.
        """
        values = []
        for motion in motions:
            require_same_layout(motion.layout, self.config.layout, "statistics for the motion VAE")
            values.append(torch.from_numpy(motion.values))
        hop = self.config.downsample
        span = 2 * hop
        windows = [
            frames.unfold(0, span, hop).transpose(1, 2) for frames in values if len(frames) >= span
        ]
        statistics = mean_and_std(values)
        if not windows or statistics is None:
            raise ValueError(
                f"none of {len(values)} motions has a window: all are shorter than {span} frames"
            )
        self.channel_mean.copy_(statistics[0])
        self.channel_std.copy_(statistics[1])
        amplitudes = self.cosines @ self.standardise(torch.cat(windows))
        self.spectrum.copy_(amplitudes.square().mean(0).sqrt())

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.channel_mean.device

    @torch.no_grad()
    def fit_latents(self, motions: Iterable[Motion]) -> None:
        """Mean and standard deviation of every latent dimension over a corpus.

        Args:
            motions: each of whole latents.

        Raises:
            ValueError: there are no motions.
        """
        batches = _batches(torch.from_numpy(motion.values) for motion in motions)
        statistics = mean_and_std(self.encode_posterior(x.to(self.device))[0] for x in batches)
        if statistics is None:
            raise ValueError("no motions to take the statistics of latents from")
        self.latent_mean.copy_(statistics[0])
        self.latent_std.copy_(statistics[1])

    def standardise(self, frames: Tensor) -> Tensor:
        """M -> M': every channel of zero mean and unit variance over the corpus."""
        return (frames - self.channel_mean) / self.channel_std

    def encode_posterior(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(m | M), not standardised.

        Frames (batch, time, dim) -> (batch, time / r, latent_dim) each.
        """
        r = self.config.downsample
        dim = self.config.layout.dim
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
        posterior, _ = self._posterior(frames)
        mean, log_variance = posterior.chunk(2, dim=-1)
        return mean, log_variance

    def _posterior(self, frames: Tensor, past: Memory | None = None) -> tuple[Tensor, Memory]:
        """Mean and log-variance side by side; `past` is of the frames before."""
        patches = self.standardise(frames).reshape(len(frames), -1, self.patch_in.in_features)
        linear: Tensor = self.linear_in(patches)
        read, memory = self.encoder.follow(self.patch_in(patches), past)
        return linear + self.posterior(read), memory

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (batch, time, dim) -> standardised latents (batch, time / r, latent_dim).

        They are the posterior's means.
        """
        mean, _ = self.encode_posterior(frames)
        return (mean - self.latent_mean) / self.latent_std

    def encode_next(self, frames: Tensor, past: Memory) -> tuple[Tensor, Memory]:
        """`encode` for frames of whole latents that follow those of `past`."""
        posterior, memory = self._posterior(frames, past)
        mean, _ = posterior.chunk(2, dim=-1)
        return (mean - self.latent_mean) / self.latent_std, memory

    def decode(self, latents: Tensor) -> Tensor:
        """Standardised latents (batch, n, latent_dim) -> frames (batch, n r, dim)."""
        return self._unstandardised(self._decode(self._unscaled(latents)))

    def nothing_shown(self, batch: int) -> Shown:
        """Before the first latent is decoded."""
        config = self.config
        end = self.channel_mean.new_zeros(batch, config.downsample, config.layout.dim)
        return Shown(self.decoder.nothing(batch), end)

    def decode_next(self, latent: Tensor, shown: Shown) -> tuple[Tensor, Shown]:
        """The frames that one more latent settles.

        They begin half a latent before its own ones: r of them, the first r // 2 of which are
        meaningless in the first latent of a sequence. What is still left is `decode_end`'s.

        Args:
            latent: (batch, 1, latent_dim), standardised.
            shown: how far the latents before it are decoded.

        Returns:
            (batch, r, dim), and how far it is decoded now.
        """
        r = self.config.downsample
        spans, memory = self._spans(self._unscaled(latent), shown.memory)
        early, late = torch.split(spans[:, 0], r, dim=1)
        follows = shown.memory.there[:, -1, None, None]
        weights = self.fade[:r, None] + torch.where(follows, self.fade[r:, None], 0.0)
        return self._unstandardised((shown.end + early) / weights), Shown(memory, late)

    def decode_end(self, shown: Shown) -> Tensor:
        """The frames that are left when a sequence ends, (batch, r // 2, dim)."""
        r = self.config.downsample
        rest = slice(r, r + r // 2)
        return self._unstandardised(shown.end[:, : r // 2] / self.fade[rest, None])

    def _unscaled(self, latents: Tensor) -> Tensor:
        """Standardised latents as the encoder has them."""
        return latents * self.latent_std + self.latent_mean

    def _unstandardised(self, frames: Tensor) -> Tensor:
        """M' -> M."""
        return frames * self.channel_std + self.channel_mean

    @torch.no_grad()
    def to_motions(self, latents: Iterable[Tensor]) -> list[Motion]:
        """Standardised latents (n, latent_dim) of each sequence -> typed motions of n r frames."""
        motions = []
        for batch in _batches(latents):
            frames = self.decode(batch.to(self.device)).cpu().numpy()
            motions += [Motion(values, self.config.layout) for values in frames]
        return motions

    @torch.no_grad()
    def latents_of(self, motions: Iterable[Motion]) -> list[Tensor]:
        """Typed motions of whole latents -> standardised latents (time / r, latent_dim) of each."""
        latents: list[Tensor] = []
        for batch in _batches(self._typed(motion) for motion in motions):
            latents += self.encode(batch.to(self.device)).unbind()
        return latents

    def _typed(self, motion: Motion) -> Tensor:
        require_same_layout(motion.layout, self.config.layout, "the motion VAE is of one layout")
        return torch.from_numpy(motion.values)

    def forward(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `vae_loss` takes.

        Args:
            frames: (batch, time, dim).
            noise: (batch, time / r, latent_dim), from N(0, I).

        Returns:
            Reconstruction and target, standardised frames (batch, time, dim) each, and mean and
            log-variance of the posterior, (batch, time / r, latent_dim) each.
        """
        mean, log_variance = self.encode_posterior(frames)
        decoded = self._decode(mean + noise * (0.5 * log_variance).exp())
        return decoded, self.standardise(frames), mean, log_variance

    def _decode(self, latents: Tensor) -> Tensor:
        """Latents as the encoder has them (batch, n, latent_dim) -> standardised frames."""
        r = self.config.downsample
        count = latents.shape[1]
        spans, _ = self._spans(latents)
        frames = _overlap_add(spans, r)
        # Each frame is divided by the weights that it was summed with.
        weights = _overlap_add(self.fade.unsqueeze(1).expand(count, -1, 1).unsqueeze(0), r)
        return (frames / weights)[:, r // 2 : r // 2 + count * r]

    def _spans(self, latents: Tensor, past: Memory | None = None) -> tuple[Tensor, Memory]:
        """What each latent says of the 2 r frames around it, standardised and faded.

        (batch, n, 2 r, dim); `past` is of the latents before.
        """
        linear: Tensor = self.linear_out(latents)
        read, memory = self.decoder.follow(self.latent_in(latents), past)
        patches = linear + self.patch_out(read)
        amplitudes = torch.unflatten(patches, -1, (-1, self.config.layout.dim))
        spans = self.cosines.T @ (amplitudes * self.spectrum)
        return spans * self.fade.unsqueeze(1), memory


def vae_loss(
    decoded: Tensor,
    target: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    *,
    velocity_weight: float,
    kl_weight: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruction + velocity + KL to N(0, I), each a mean over all its axes.

    The size of an error and its square count alike. A listener's jaw moves little, in standard
    deviations of a corpus in which people speak: the squares of its errors are next to nothing, and
    it would be left to tremble. Blinks are rare, and by sizes alone the best guess is that there is
    none.

    Args:
        decoded: reconstruction, (batch, time, dim), as `MotionVAE` returns it.
        target: what it should be.
        mean: of the posterior, (batch, time / r, latent_dim).
        log_variance: of the posterior.
        velocity_weight: of the error of frame-to-frame differences, which keeps patches from
            showing.
        kl_weight: of the KL.

    Returns:
        The loss and its parts, detached: `reconstruction`, `velocity`, `kl`.
    """
    error = decoded - target
    change = error.diff(dim=1)
    reconstruction = _size_and_square(error)
    velocity = _size_and_square(change)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    loss = reconstruction + velocity_weight * velocity + kl_weight * kl
    parts = {"reconstruction": reconstruction, "velocity": velocity, "kl": kl}
    return loss, {name: part.detach() for name, part in parts.items()}


def _batches(sequences: Iterable[Tensor]) -> Iterator[Tensor]:
    """Sequences (time, dim) in their order, up to `BATCH` of one length in each tensor."""
    for _, alike in groupby(sequences, key=len):
        while some := list(islice(alike, BATCH)):
            yield torch.stack(some)


def _half(config: VaeSizes) -> CausalTransformer:
    """The transformer of encoder or decoder."""
    return CausalTransformer(
        config.hidden, layers=config.layers, heads=config.heads, look_back=config.look_back
    )


def cosine_basis(length: int) -> Tensor:
    """The orthonormal DCT-II, (length, length): rows are cosines over time.

    Its transpose is its inverse.
    """
    frequency = torch.arange(length).unsqueeze(1)
    time = torch.arange(length)
    basis = torch.cos(math.pi / length * (time + 0.5) * frequency) * math.sqrt(2 / length)
    basis[0] /= math.sqrt(2)
    return basis


def _overlap_add(spans: Tensor, hop: int) -> Tensor:
    """The sum over time of spans that begin every `hop` frames.

    (batch, n, 2 hop, dim) -> (batch, (n + 1) hop, dim).
    """
    early, late = torch.split(spans, hop, dim=2)
    return F.pad(early.flatten(1, 2), (0, 0, 0, hop)) + F.pad(late.flatten(1, 2), (0, 0, hop, 0))


def _size_and_square(error: Tensor) -> Tensor:
    return (error.abs() + error.square()).mean()
