"""What AR-Flow is conditioned on, computed once per clip by frozen encoders (Eq. 1)."""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from rapport.policies.clip import AUDIO_RATE
from rapport.policies.flow.encoders import AudioEncoder, FeatureCache, LogMel, TextEncoder
from rapport.policies.flow.settings import EncodersConfig

Role = Literal["listener", "speaker"]


@dataclass(frozen=True, eq=False)
class Features:
    """Frozen encoders of text and sound, and the folder that keeps what they gave.

    Args:
        text: encoder of prompts.
        audio: encoder of voices.
        text_cache: of prompts, by their words.
        audio_cache: of wav2vec2's features of voices, by clip, person and sound; log-mel bands need
            none.
    """

    text: TextEncoder
    audio: LogMel | AudioEncoder
    text_cache: FeatureCache
    audio_cache: FeatureCache | None = None

    @classmethod
    def load(cls, config: EncodersConfig, cache: Path, device: torch.device | str = "cpu") -> Self:
        """The encoders that `config` names; without names, a tiny random T5 and log-mel bands.

        Args:
            config: which encoders.
            cache: folder of their features, where the config names none.
            device: where they compute; features are on the CPU once they are kept.
        """
        folder = cache if config.cache is None else config.cache
        text = TextEncoder.tiny()
        if config.text is not None:
            text = TextEncoder.from_pretrained(config.text)
        nn.Module.to(text.model, device)
        text_cache = FeatureCache(folder, text.name)
        if config.audio is None:
            return cls(text, LogMel(), text_cache)
        audio = AudioEncoder.from_pretrained(config.audio)
        nn.Module.to(audio.model, device)
        return cls(text, audio, text_cache, FeatureCache(folder, audio.name))

    def of_text(self, text: str | None) -> Tensor | None:
        """(text_dim,), None without a prompt."""
        if text is None:
            return None
        return self.text_cache.get(text, lambda: self.text([text])[0])

    def of_voice(
        self, clip_id: str, role: Role, audio: np.ndarray | None, frames: int, fps: float
    ) -> Tensor | None:
        """One token per video frame, (frames, audio_dim); None without sound.

        Args:
            clip_id: the clip.
            role: whose voice it is.
            audio: (samples,) at 16 kHz, at least as long as the frames.
            frames: of the window.
            fps: their rate.
        """
        if audio is None:
            return None
        heard = audio[: round(frames * AUDIO_RATE / fps)]
        if self.audio_cache is None:
            return self.audio(heard, frames, fps)
        sound = hashlib.sha256(heard.tobytes()).hexdigest()  # ids come again elsewhere
        key = f"{clip_id}/{role}/{frames}/{fps:g}/{sound}"
        return self.audio_cache.get(key, lambda: self.audio(heard, frames, fps))


def scratch_features(config: EncodersConfig, device: torch.device | str = "cpu") -> Features:
    """Encoders that keep nothing beyond this process."""
    folder = tempfile.mkdtemp(prefix="rapport-features-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Features.load(config, Path(folder), device)
