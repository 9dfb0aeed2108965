"""Sizes of the motion VAE and of AR-Flow.

`tiny` is for tests and the default, `paper` is GDPO-Listener's.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

from rapport.policies.motion import Layout

# GDPO-Listener, section 4.1: d = 67. The order of the groups is the paper's.
PAPER_GROUPS = (("expr", 50), ("jaw", 3), ("neck", 3), ("eyelid", 2), ("eyepose", 6), ("rot", 3))

Size = Literal["tiny", "paper"]


@dataclass(frozen=True)
class VaeSizes:
    """The motion VAE.

    Args:
        layout: of the motion that goes in and comes out.
        downsample: r, frames per latent.
        latent_dim: D_v. The paper gives no value.
        hidden: width of encoder and decoder each.
        layers: their blocks.
        heads: their attention heads.
        look_back: latents before its own that an encoded latent or a decoded one is computed from,
            per layer.
    """

    layout: Layout
    downsample: int = 8
    latent_dim: int = 64
    hidden: int = 128
    layers: int = 2
    heads: int = 4
    look_back: int = 2

    def __post_init__(self) -> None:
        _check_positive(self)
        _check_heads(self.hidden, self.heads)

    def to_json(self) -> str:
        """A text that `from_json` reads."""
        return json.dumps(asdict(self) | {"layout": json.loads(self.layout.to_json())}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> VaeSizes:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        return cls(**values | {"layout": Layout(**values["layout"])})


@dataclass(frozen=True)
class VoiceSizes:
    """The encoder of voices inside AR-Flow.

    Args:
        hidden: width.
        convolutions: before its blocks.
        kernel: frames that each of them sees.
        layers: blocks.
        heads: their attention heads.
        look_back: frames before its own that a frame attends to, in every block.
        stride: frames that come out as one token, complete with the last of them. Leads and latents
            are multiples of it.
    """

    hidden: int = 64
    convolutions: int = 3
    kernel: int = 3
    layers: int = 1
    heads: int = 4
    look_back: int = 50
    stride: int = 4

    def __post_init__(self) -> None:
        _check_positive(self)
        _check_heads(self.hidden, self.heads)


@dataclass(frozen=True)
class FlowSizes:
    """AR-Flow.

    Args:
        latent_dim: of the VAE whose latents it generates.
        downsample: of the same VAE.
        text_dim: of the features of the frozen text encoder (`rapport.policies.flow.encoders`).
        audio_dim: of the features of sound.
        hidden: width D.
        layers: blocks.
        heads: attention heads.
        mlp: width inside a block's MLP.
        window: latents of a clip, which it is trained on and asked for.
        span: latents that one looks back, in every layer, at what it heard, saw and did. It is
            less than a window, so that training meets what endless sequences do: old ones go.
        voice: encoder of log-mel bands; None = features of sound are projected as they are (the
            paper's, Eq. 1).
        path: channels of the path that it expects of a face before it generates it
            (`ARFlow.expect`); None = it expects nothing (the paper's).
        heed: by what factor samplers tell the velocity what is expected; 1 = as it was taught. What
            is expected is a mean, and stiller than anybody: told louder, it is answered more.
        evaluations: of the velocity that a latent takes, unless a sampler says otherwise; a
            distilled one needs fewer.
    """

    latent_dim: int = 64
    downsample: int = 8
    text_dim: int = 32
    audio_dim: int = 32
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    mlp: int = 384
    window: int = 25
    span: int = 16
    voice: VoiceSizes | None = None
    path: int | None = None
    heed: float = 1.0
    evaluations: int = 10

    def __post_init__(self) -> None:
        _check_positive(self)
        _check_heads(self.hidden, self.heads)

    @property
    def frames(self) -> int:
        """Frames of a window, L."""
        return self.window * self.downsample

    def to_json(self) -> str:
        """A text that `from_json` reads."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> FlowSizes:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        voice = values.pop("voice")
        return cls(**values, voice=None if voice is None else VoiceSizes(**voice))


def vae_config(size: Size, layout: Layout) -> VaeSizes:
    """Sizes of a VAE for motion of a layout. The paper gives none; `paper` is our guess."""
    if size == "tiny":
        return VaeSizes(layout)
    return VaeSizes(layout, hidden=256, layers=4, heads=8)


def flow_config(
    size: Size,
    vae: VaeSizes,
    text_dim: int,
    audio_dim: int,
    window: int = 25,
    learns_to_hear: bool = False,
    expects: bool = False,
) -> FlowSizes:
    """Sizes of an AR-Flow. `paper`: 6 layers, 16 heads, D = 512.

    With the features of T5-XXL (4096) and wav2vec2-large (1024), an MLP of 1600 makes the 19.3 M
    trainable parameters that the paper reports; it does not say where they are. An encoder of
    voices has 0.1 M more (`tiny`), or 3.7 M.

    Args:
        size: `tiny` or `paper`.
        vae: whose latents it generates.
        text_dim: of the features of the text encoder.
        audio_dim: of the features of sound.
        window: latents generated at once.
        learns_to_hear: with an encoder of voices, for log-mel bands.
        expects: says what to expect of a face before it generates one.
    """
    tiny = FlowSizes(
        latent_dim=vae.latent_dim,
        downsample=vae.downsample,
        text_dim=text_dim,
        audio_dim=audio_dim,
        window=window,
        voice=VoiceSizes() if learns_to_hear else None,
        path=vae.layout.dim if expects else None,
    )
    if size == "tiny":
        return tiny
    voice = VoiceSizes(hidden=304, layers=2, heads=8) if learns_to_hear else None
    return replace(tiny, hidden=512, layers=6, heads=16, mlp=1600, voice=voice)


def _check_positive(config: VaeSizes | VoiceSizes | FlowSizes) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, int) and value < 1:
            raise ValueError(
                f"{type(config).__name__}.{field.name} is {value}, it must be at least 1"
            )


def _check_heads(hidden: int, heads: int) -> None:
    if hidden % (2 * heads):
        raise ValueError(
            f"hidden {hidden} must be a multiple of twice heads {heads}: rotations turn pairs of "
            "channels"
        )
