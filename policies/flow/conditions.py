"""What AR-Flow reacts to: features of text, partner audio, partner motion, actor audio; any may be
absent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rapport.policies.flow.config import FlowConfig

MODALITIES = ("text", "partner_audio", "partner_motion", "actor_audio")


@dataclass(frozen=True, eq=False)
class Conditions:
    """Features of a batch over the same frames. A modality that no sample has is None.

    Args:
        text: (batch, text_dim), one vector a prompt (Eq. 1).
        partner_audio, actor_audio: (batch, frames, audio_dim), one token per video frame.
        partner_motion: (batch, frames / r, latent_dim), the VAE's latents.
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
        features = {name: getattr(self, name) for name in MODALITIES}
        return {name: value for name, value in features.items() if value is not None}

    @property
    def batch(self) -> int:
        """Samples. Raises `ValueError` when there is no modality at all and `present` does not tell
        either.
        """
        sized = [*self.given.values(), *([] if self.present is None else [self.present])]
        if not sized:
            raise ValueError(
                "conditions without any modality need present=torch.zeros(batch, 4, "
                "dtype=torch.bool)"
            )
        return len(sized[0])

    def presence(self) -> Tensor:
        """(batch, 4) bool: what is given and present."""
        given = torch.tensor([getattr(self, name) is not None for name in MODALITIES])
        if self.present is None:
            return given.expand(self.batch, -1).to(next(iter(self.given.values())).device)
        return given.to(self.present.device) & self.present

    def window(self, first: int, length: int, downsample: int) -> Conditions:
        """What belongs to latents [first, first + length)."""
        frames = slice(first * downsample, (first + length) * downsample)
        spans = {
            "partner_audio": frames,
            "partner_motion": slice(first, first + length),
            "actor_audio": frames,
        }
        return replace(
            self,
            **{
                name: self.given[name][:, span]
                for name, span in spans.items()
                if name in self.given
            },
        )

    def check(self, config: FlowConfig) -> None:
        """Raise `ValueError` on a wrong shape or on values of present modalities that are not
        finite.
        """
        dims = {"text": config.text_dim, "partner_motion": config.latent_dim}
        frames = {
            name: value.shape[1] for name, value in self.given.items() if name.endswith("audio")
        }
        if self.partner_motion is not None:
            frames["partner_motion"] = self.partner_motion.shape[1] * config.downsample
        if len(set(frames.values())) > 1:
            raise ValueError(
                f"conditions must cover the same frames, got {frames} (r = {config.downsample})"
            )
        if self.present is not None and (
            self.present.shape != (self.batch, len(MODALITIES)) or self.present.dtype != torch.bool
        ):
            raise ValueError(
                f"present must be bool {(self.batch, len(MODALITIES))}, one for each of "
                f"{MODALITIES}, got "
                f"{self.present.dtype} {tuple(self.present.shape)}"
            )
        for column, name in enumerate(MODALITIES):
            value, dim = getattr(self, name), dims.get(name, config.audio_dim)
            if value is None:
                continue
            if (
                value.ndim != (2 if name == "text" else 3)
                or len(value) != self.batch
                or value.shape[-1] != dim
            ):
                shape = f"({self.batch}, {'' if name == 'text' else 'tokens, '}{dim})"
                raise ValueError(f"condition {name} must be {shape}, got {tuple(value.shape)}")
            if not value[self.presence()[:, column]].isfinite().all():
                raise ValueError(
                    f"condition {name} holds NaN or infinity; mark it absent in `present`"
                )


def dropout_mask(batch: int, each: float, every: float, generator: torch.Generator) -> Tensor:
    """Condition dropout, (batch, 4) bool, what is kept: a modality is lost with probability `each`,
    all with `every`.

    The first makes any subset usable, the second trains the unconditional velocity of guidance (Eq.
    6)."""
    draws = torch.rand(batch, len(MODALITIES) + 1, generator=generator)
    return (draws[:, :-1] >= each) & (draws[:, -1:] >= every)
