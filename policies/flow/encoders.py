"""Frozen encoders of text and audio (GDPO-Listener, Eq. 1), and files that keep their features.

The paper's are T5-XXL and wav2vec 2.0 Large; any T5 or wav2vec2 checkpoint does. The `tiny` ones
have random weights: they still tell texts and sounds apart, and need no download.

wav2vec2 attends to a whole clip. Where features of one frame must not know of later sound, as when
streaming, `AudioEncoder.stream` encodes what has been heard so far, once per latent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    PreTrainedTokenizerBase,
    T5Config,
    T5EncoderModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from rapport.arrays import load_array
from rapport.files import atomic

AUDIO_RATE = 16_000  # Hz, of all published wav2vec2 checkpoints


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """Text prompts -> one vector each, the mean over tokens of a T5 encoder's last layer."""

    model: T5EncoderModel
    tokenizer: PreTrainedTokenizerBase
    name: str

    @classmethod
    def from_pretrained(cls, name_or_path: str, dtype: torch.dtype = torch.float32) -> TextEncoder:
        """A published T5 checkpoint."""
        model = T5EncoderModel.from_pretrained(name_or_path, dtype=dtype)
        return cls(_frozen(model), AutoTokenizer.from_pretrained(name_or_path), name_or_path)

    @classmethod
    def tiny(cls, dim: int = 32, seed: int = 0) -> TextEncoder:
        """Random weights over bytes."""
        config = T5Config(
            vocab_size=384, d_model=dim, d_kv=dim // 2, d_ff=2 * dim, num_layers=2, num_heads=2
        )
        model = _random(lambda: T5EncoderModel(config), seed)
        return cls(model, ByT5Tokenizer(), f"tiny-t5-{dim}-{seed}")

    @property
    def dim(self) -> int:
        """Features of a text."""
        return self.model.config.d_model

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """One vector of features for each text, (len(texts), dim) float32."""
        tokens = self.tokenizer(list(texts), return_tensors="pt", padding=True)
        tokens = tokens.to(self.model.device)
        output = self.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        hidden: Tensor = output.last_hidden_state.float()
        mask: Tensor = tokens.attention_mask.unsqueeze(-1).float()
        return (hidden * mask).sum(1) / mask.sum(1)


@dataclass(frozen=True, eq=False)
class AudioEncoder:
    """Sound -> one token per video frame, from a wav2vec2 encoder's last layer."""

    model: Wav2Vec2Model
    name: str

    @classmethod
    def from_pretrained(cls, name_or_path: str, dtype: torch.dtype = torch.float32) -> AudioEncoder:
        """A published wav2vec2 checkpoint."""
        return cls(_frozen(Wav2Vec2Model.from_pretrained(name_or_path, dtype=dtype)), name_or_path)

    @classmethod
    def tiny(cls, dim: int = 32, seed: int = 0) -> AudioEncoder:
        """Random weights."""
        config = Wav2Vec2Config(
            hidden_size=dim,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=2 * dim,
            conv_dim=(dim,) * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2,
        )
        model = _random(lambda: Wav2Vec2Model(config), seed)
        return cls(model, f"tiny-wav2vec2-{dim}-{seed}")

    @property
    def dim(self) -> int:
        """Features of a frame."""
        return self.model.config.hidden_size

    @torch.no_grad()
    def __call__(self, audio: np.ndarray, frames: int, fps: float) -> Tensor:
        """Audio that belongs to video frames -> features (frames, dim) float32.

        They are interpolated at the middle of each frame.

        Args:
            audio: (samples,) at 16 kHz. It may be up to a frame longer or shorter than the video;
                what is missing is silence.
            frames: of the video.
            fps: frames per second.

        Raises:
            ValueError: the audio is of another length, or not finite.
        """
        samples = round(frames * AUDIO_RATE / fps)
        audio = np.asarray(audio, np.float32)
        if audio.ndim != 1 or abs(len(audio) - samples) > AUDIO_RATE / fps:
            raise ValueError(
                f"{frames} frames at {fps:g} fps have {samples} audio samples at {AUDIO_RATE} Hz, "
                f"got an array of shape {audio.shape}"
            )
        if not np.isfinite(audio).all():
            raise ValueError(
                f"audio is not finite, first at sample {np.flatnonzero(~np.isfinite(audio))[0]}"
            )
        config = self.model.config
        span, hop = _receptive_field(config.conv_kernel, config.conv_stride)
        wave = torch.from_numpy(np.pad(audio, (0, max(samples - len(audio), span - len(audio), 0))))
        # The checkpoints were trained on audio of zero mean and unit variance.
        wave = (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt()
        parameter = next(self.model.parameters())
        features: Tensor = self.model(wave.to(parameter)[None]).last_hidden_state[0].float()
        last = len(features) - 1
        middle = (torch.arange(frames, device=features.device) + 0.5) * AUDIO_RATE / fps
        place = ((middle - span / 2) / hop).clamp(0, last)
        low = place.long()
        high = (low + 1).clamp(max=last)
        share = (place - low).unsqueeze(1)
        return features[low] * (1 - share) + features[high] * share

    def stream(self, audio: np.ndarray, frames: int, fps: float, downsample: int) -> Tensor:
        """Like a call, but frames [j r, (j + 1) r) know of no sound after them.

        It encodes all that was heard so far once for each latent.

        Args:
            audio: as in a call.
            frames: of the video.
            fps: frames per second.
            downsample: r, frames per latent.
        """
        parts: list[Tensor] = []
        for end in range(downsample, frames + downsample, downsample):
            end = min(end, frames)
            heard = audio[: round(end * AUDIO_RATE / fps)]
            parts.append(self(heard, end, fps)[len(parts) * downsample :])
        return torch.cat(parts)


@dataclass(frozen=True)
class FeatureCache:
    """Features of one encoder on disk, a file for each clip.

    Args:
        directory: of all encoders.
        encoder: its name, which is part of the path.
    """

    directory: Path
    encoder: str

    def get(self, key: str, compute: Callable[[], Tensor]) -> Tensor:
        """Features of a clip.

        Args:
            key: what tells it from others, say its id and whose audio it is.
            compute: called when they are not there yet.
        """
        file = self.directory / _digest(self.encoder) / f"{_digest(key)}.npy"
        if not file.is_file():
            features = compute().cpu().numpy()
            with atomic(file) as partial:
                np.save(partial, features)
        return torch.from_numpy(load_array(file))


def _receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """What a feature of a stack of convolutions sees, and how far the next is, in samples."""
    span = 1
    hop = 1
    for kernel, stride in zip(kernels, strides, strict=True):
        span += (kernel - 1) * hop
        hop *= stride
    return span, hop


Model = TypeVar("Model", bound=nn.Module)


def _frozen(model: Model) -> Model:
    # The cast is for type checkers: transformers' own `eval` has no types.
    cast(nn.Module, model).eval().requires_grad_(False)
    return model


def _random(build: Callable[[], Model], seed: int) -> Model:
    """A model with random weights, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _frozen(build())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
