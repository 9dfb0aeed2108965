"""What AR-Flow reacts to: features of text, partner audio, partner motion and actor audio.

Any of them may be absent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rapport.policies.flow.config import FlowSizes

MODALITIES = ("text", "partner_audio", "partner_motion", "actor_audio")
# Frames of a latent that are heard before it is generated: how long a listener waits. 0 = none of
# them, 8 = all of the 8 that it stands for, 12 = half of the next one's, too.
LEADS = (0, 4, 8, 12)
LEAD = 8
WHOLE = 2**40  # frames; everything in the window, the future too (the paper's offline setting)


@dataclass(frozen=True, eq=False)
class Conditions:
    """Features of a batch over the same frames. A modality that no sample has is None.

    Args:
        text: (batch, text_dim), one vector a prompt (Eq. 1).
        partner_audio: (batch, frames, audio_dim), one token per video frame.
        partner_motion: (batch, frames / r, latent_dim), the VAE's latents.
        actor_audio: like `partner_audio`.
        present: (batch, 4) bool, which of `MODALITIES` each sample has; None = all those given.
            What a sample lacks is never looked at, whatever stands in its place.
    """

    text: Tensor | None = None
    partner_audio: Tensor | None = None
    partner_motion: Tensor | None = None
    actor_audio: Tensor | None = None
    present: Tensor | None = None

    @property
    def given(self) -> dict[str, Tensor]:
        """Features by modality, without those that no sample has."""
        features = {name: getattr(self, name) for name in MODALITIES}
        return {name: value for name, value in features.items() if value is not None}

    @property
    def batch(self) -> int:
        """Number of samples.

        Raises:
            ValueError: there is no modality at all, and no `present` either.
        """
        features = list(self.given.values())
        if features:
            return len(features[0])
        if self.present is None:
            raise ValueError(
                "conditions without any modality need present=torch.zeros(batch, 4, "
                "dtype=torch.bool)"
            )
        return len(self.present)

    def presence(self) -> Tensor:
        """(batch, 4) bool: what is given and present."""
        given = torch.tensor([getattr(self, name) is not None for name in MODALITIES])
        if self.present is None:
            return given.expand(self.batch, -1).to(next(iter(self.given.values())).device)
        return given.to(self.present.device) & self.present

    def frames(self, downsample: int) -> int:
        """Frames that they cover; 0 where nothing lasts."""
        if self.partner_motion is not None:
            return self.partner_motion.shape[1] * downsample
        audio = self.partner_audio if self.partner_audio is not None else self.actor_audio
        return 0 if audio is None else audio.shape[1]

    def window(self, first: int, length: int, downsample: int) -> Conditions:
        """What belongs to latents [first, first + length)."""
        latents = slice(first, first + length)
        frames = slice(first * downsample, (first + length) * downsample)
        spans = {"partner_audio": frames, "partner_motion": latents, "actor_audio": frames}
        given = self.given
        parts = {name: given[name][:, span] for name, span in spans.items() if name in given}
        return replace(self, **parts)

    def check(self, config: FlowSizes) -> None:
        """Raise `ValueError` unless shapes fit and what is present is finite."""
        self._check_frames(config.downsample)
        shape = (self.batch, len(MODALITIES))
        if self.present is not None and (
            self.present.shape != shape or self.present.dtype != torch.bool
        ):
            raise ValueError(
                f"present must be bool {shape}, one for each of {MODALITIES}, got "
                f"{self.present.dtype} {tuple(self.present.shape)}"
            )
        dims = {"text": config.text_dim, "partner_motion": config.latent_dim}
        presence = self.presence()
        for column, name in enumerate(MODALITIES):
            value = getattr(self, name)
            if value is None:
                continue
            dim = dims.get(name, config.audio_dim)
            axes = 2 if name == "text" else 3
            if value.ndim != axes or len(value) != self.batch or value.shape[-1] != dim:
                expected = f"({self.batch}, {'' if name == 'text' else 'tokens, '}{dim})"
                raise ValueError(f"condition {name} must be {expected}, got {tuple(value.shape)}")
            if not value[presence[:, column]].isfinite().all():
                raise ValueError(
                    f"condition {name} holds NaN or infinity; mark it absent in `present`"
                )

    def _check_frames(self, downsample: int) -> None:
        """Raise `ValueError` unless all that lasts covers the same frames."""
        audio = {name: value for name, value in self.given.items() if name.endswith("audio")}
        frames = {name: value.shape[1] for name, value in audio.items()}
        if self.partner_motion is not None:
            frames["partner_motion"] = self.partner_motion.shape[1] * downsample
        if len(set(frames.values())) > 1:
            raise ValueError(
                f"conditions must cover the same frames, got {frames} (r = {downsample})"
            )


def lead_frames(lead: int | None) -> int:
    """Frames of a lead, None = `WHOLE`.

    Raises:
        ValueError: it is none of `LEADS`, so no policy was trained with it.
    """
    if lead is None:
        return WHOLE
    if lead not in LEADS:
        raise ValueError(
            f"a lead of {lead} frames: AR-Flow is trained with {LEADS} frames, and with None, "
            "which is the whole window"
        )
    return lead


def draw_leads(batch: int, whole_share: float, generator: torch.Generator) -> Tensor:
    """A lead for each sample, (batch,) int64 frames: any of `LEADS`, or `WHOLE`.

    Args:
        batch: samples.
        whole_share: probability of `WHOLE`.
        generator: that the draws come from.
    """
    leads = torch.tensor(LEADS)[torch.randint(len(LEADS), (batch,), generator=generator)]
    whole = torch.rand(batch, generator=generator) < whole_share
    return torch.where(whole, WHOLE, leads)


def dropout_mask(batch: int, each: float, every: float, generator: torch.Generator) -> Tensor:
    """Condition dropout: which modalities of each sample are kept, (batch, 4) bool.

    Losing single ones makes any subset usable, losing all trains the unconditional velocity of
    guidance (Eq. 6).

    Args:
        batch: samples.
        each: probability that a modality is lost.
        every: probability that all of a sample's are.
        generator: that the draws come from.
    """
    draws = torch.rand(batch, len(MODALITIES) + 1, generator=generator)
    return (draws[:, :-1] >= each) & (draws[:, -1:] >= every)
