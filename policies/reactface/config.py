"""Sizes of ReactFace: `tiny` is for tests and the default, `paper` and `printed` are its own."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Literal

from rapport.policies.flow.config import VoiceSizes
from rapport.policies.motion import Layout
from rapport.policies.pictures import BLIND_S

Size = Literal["tiny", "paper", "printed"]
Delay = Literal["w", 0]
Synchronise = Literal["both", "face", "voice", "none"]
Sees = Literal["motion", "frames"]
EXPECTING = 2  # layers that expect


@dataclass(frozen=True)
class ReactFaceSizes:
    """What a ReactFace is made of.

    Args:
        layout: of the motion that is seen and made.
        audio_dim: of the features of sound.
        hidden: width d.
        heads: attention heads.
        latent: dims of z, that of an action.
        layers: blocks of the CIE.
        convolutions: of the encoders of faces and voices each.
        window: w, frames that are made at once.
        span: windows that one looks back, in every layer, at the speaker and at oneself.
        period: p of Eq. 17, frames that are equally far away.
        momentum: alpha of Eq. 10.
        mood: alpha of half of the dims of z, which are moods: how somebody listens today, and how
            lively. .98 lasts 16 s; 0 = there are none.
        delay: "w" = a window is made once the speaker is heard to its end (Eq. 4), and so shown w
            frames late; 0 = before any of it is heard.
        synchronise: what of the speaker the SLBS holds a window against: "face" = VIM alone,
            "voice" = MIM alone.
        expects: says what to expect of a listener's face before it draws one.
        heed: by what factor samplers follow that; 1 = as it was taught. What is expected is a mean,
            and stiller than anybody.
        sees: of the speaker's face: its motion, or pictures of it.
        pixels: height and width of those.
        rate: how many a second it was trained on; what comes faster live is thinned. 0 = as they
            come.
    """

    layout: Layout
    audio_dim: int
    hidden: int = 64
    heads: int = 4
    latent: int = 16
    layers: int = 3
    convolutions: int = 2
    window: int = 8
    span: int = 12
    period: int = 8
    momentum: float = 0.9
    mood: float = 0.98
    delay: Delay = "w"
    synchronise: Synchronise = "both"
    expects: bool = True
    heed: float = 1.0
    sees: Sees = "motion"
    pixels: int = 56
    rate: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) is int and name != "delay" and value < 1:
                raise ValueError(f"ReactFaceSizes.{name} is {value}, it must be at least 1")
        if self.hidden % (2 * self.heads):
            raise ValueError(
                f"hidden {self.hidden} must be a multiple of twice heads {self.heads}: rotations "
                "turn pairs of channels"
            )
        if self.pixels % 8:
            raise ValueError(
                f"pixels {self.pixels} must be a multiple of 8: they are halved thrice"
            )
        for name in ("momentum", "mood"):
            alpha = getattr(self, name)
            if not 0 <= alpha < 1:
                raise ValueError(f"{name} is {alpha:g}; at 1 nothing is ever drawn anew")

    @property
    def looked_back(self) -> int:
        """Frames of the span."""
        return self.span * self.window

    @property
    def moods(self) -> int:
        """Dims of z that are moods, its first ones."""
        return self.latent // 2 if self.mood else 0

    @property
    def kept(self) -> int:
        """Frames of the speaker that are kept: the span before the window before the newest."""
        return self.looked_back + 2 * self.window

    @property
    def ahead(self) -> int:
        """Windows between the newest that is heard and the one that is made."""
        return 0 if self.delay == "w" else 1

    @property
    def senses(self) -> VoiceSizes:
        """Of the encoders of faces and voices: a token a frame, k = 1."""
        return VoiceSizes(
            self.hidden,
            convolutions=self.convolutions,
            heads=self.heads,
            look_back=self.looked_back // 2,
            stride=1,
        )

    @property
    def memory(self) -> int:
        """Frames after which nothing that was heard or done changes anything."""
        senses = self.senses
        reach = senses.convolutions * (senses.kernel - 1) + senses.layers * senses.look_back
        expecting = EXPECTING * self.looked_back if self.expects else 0
        shown = round(BLIND_S * self.layout.fps) if self.sees == "frames" else 0
        return self.layers * self.looked_back + self.kept + reach + expecting + shown + self.window

    def to_json(self) -> str:
        """A text that `from_json` reads."""
        return json.dumps(asdict(self) | {"layout": json.loads(self.layout.to_json())}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> ReactFaceSizes:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        return cls(**values | {"layout": Layout(**values["layout"])})


def streams_of(sees: Sees) -> tuple[str, ...]:
    """Modalities of a speaker, names of `Clip`, that are read by one that sees this."""
    return ("speaker_frames" if sees == "frames" else "speaker", "speaker_audio")


def reactface_config(size: Size, layout: Layout, audio_dim: int) -> ReactFaceSizes:
    """Sizes by name.

    Args:
        size: `paper` is 128 wide, as the authors' programs run; `printed` is 256 wide, as their
            class is by default.
        layout: of the motion.
        audio_dim: of the features of sound.
    """
    tiny = ReactFaceSizes(layout, audio_dim)
    if size == "tiny":
        return tiny
    hidden = {"paper": 128, "printed": 256}[size]
    return replace(tiny, hidden=hidden, latent=hidden, heads=8)
