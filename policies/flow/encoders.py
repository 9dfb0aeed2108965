"""Frozen encoders of text and audio (GDPO-Listener, Eq. 1), and files that keep their features.

The paper's are T5-XXL and wav2vec 2.0 Large; any T5 or wav2vec2 checkpoint does. Without a download
there are a tiny T5 with random weights, which still tells texts apart, and log-mel bands, which
AR-Flow learns to hear by itself (`rapport.policies.flow.voice`).

No feature of a frame knows of later sound. Log-mel bands are causal by nature. wav2vec2 attends to
all that it is given and was trained on sound of one loudness, so it is given a few seconds at a
time, which end where they are heard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from rapport.arrays import load_array
from rapport.files import atomic
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.sound import BANDS, WINDOW, band_levels

# transformers takes seconds to import, and log-mel bands do without.
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, T5EncoderModel, Wav2Vec2Model

HOPS = 2  # windows of log-mel bands in a video frame; they end evenly spaced, the last with it
QUIET_DB = -90.0  # below full scale; what is quieter counts as this
CONTEXT_S = 4.0  # sound that wav2vec2 is given: after that much, more hardly changes its features
CHUNK = 4  # video frames that it encodes at once; every delay of AR-Flow is a multiple
BATCH = 16  # chunks in a forward pass


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """Text prompts -> one vector each, the mean over tokens of a T5 encoder's last layer."""

    model: T5EncoderModel
    tokenizer: PreTrainedTokenizerBase
    name: str

    @classmethod
    def from_pretrained(cls, name_or_path: str, dtype: torch.dtype = torch.float32) -> TextEncoder:
        """A published T5 checkpoint."""
        from transformers import AutoTokenizer, T5EncoderModel

        model = T5EncoderModel.from_pretrained(name_or_path, dtype=dtype)
        return cls(_frozen(model), AutoTokenizer.from_pretrained(name_or_path), name_or_path)

    @classmethod
    def tiny(cls, dim: int = 32, seed: int = 0) -> TextEncoder:
        """Random weights over bytes."""
        from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

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


@dataclass(frozen=True)
class LogMel:
    """Sound -> the log-mel bands of each video frame, `HOPS` windows of them.

    Nothing is learnt here and nothing is kept: computing them is as quick as reading them.
    """

    name: str = f"log-mel-{HOPS}x{BANDS}"
    dim: int = HOPS * BANDS

    def __call__(self, audio: np.ndarray, frames: int, fps: float) -> Tensor:
        """Audio that belongs to video frames -> bands (frames, dim) float32, in dB of full scale.

        A frame's windows end in it, the last one with it.

        Args:
            audio: (samples,) at 16 kHz. It may be up to a frame longer or shorter than the video;
                what is missing is silence.
            frames: of the video.
            fps: frames per second.

        Raises:
            ValueError: the audio is of another length, or not finite.
        """
        return self._bands(_samples_of(audio, frames, fps), self._ends(0, frames, fps))

    def follow(
        self, before: np.ndarray, audio: np.ndarray, first: int, frames: int, fps: float
    ) -> tuple[Tensor, np.ndarray]:
        """Bands of frames that follow others, as if all had been there at once.

        Args:
            before: (n,) the end of the sound before them, `WINDOW` samples, or none where it was
                silent.
            audio: (samples,) at 16 kHz, from the sample at which the first of them begins to the
                one at which the last ends, each to the nearest.
            first: number of the first of them since the beginning.
            frames: how many they are.
            fps: frames per second.

        Returns:
            (frames, dim) float32, and the end of the sound, for the frames after them.

        Raises:
            ValueError: the audio is of another length, or not finite.
        """
        start, end = (round(frame * AUDIO_RATE / fps) for frame in (first, first + frames))
        if audio.shape != (end - start,):
            raise ValueError(
                f"frames {first} to {first + frames - 1} at {fps:g} fps have {end - start} audio "
                f"samples at {AUDIO_RATE} Hz, got an array of shape {audio.shape}"
            )
        _check_finite(audio)
        sound = np.concatenate([before, audio]).astype(np.float32)
        ends = self._ends(first, frames, fps) - start + len(before)
        return self._bands(sound, ends), sound[-WINDOW:]

    def _ends(self, first: int, frames: int, fps: float) -> np.ndarray:
        """The sample after each window's last."""
        windows = np.arange(first * HOPS + 1, (first + frames) * HOPS + 1)
        return np.round(windows * AUDIO_RATE / (fps * HOPS)).astype(int)

    def _bands(self, samples: np.ndarray, ends: np.ndarray) -> Tensor:
        levels = band_levels(samples, ends).clip(min=QUIET_DB)
        return torch.from_numpy(levels.astype(np.float32)).reshape(-1, self.dim)


@dataclass(frozen=True, eq=False)
class AudioEncoder:
    """Sound -> one token per video frame, from a wav2vec2 encoder's last layer.

    Frames are encoded `CHUNK` at a time, each chunk from the `CONTEXT_S` that end with it, silence
    before the beginning: so features know nothing of what follows their chunk, and are the same
    whether a clip is encoded whole or as it comes in. That costs CONTEXT_S x fps / CHUNK times as
    much as encoding a clip once (25 times at 25 fps): do it on a GPU.
    """

    model: Wav2Vec2Model
    name: str

    @classmethod
    def from_pretrained(cls, name_or_path: str, dtype: torch.dtype = torch.float32) -> AudioEncoder:
        """A published wav2vec2 checkpoint."""
        from transformers import Wav2Vec2Model

        model = _frozen(Wav2Vec2Model.from_pretrained(name_or_path, dtype=dtype))
        return cls(model, f"{name_or_path} {CONTEXT_S:g} s / {CHUNK} frames")

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
        samples = _samples_of(audio, frames, fps)
        context = round(CONTEXT_S * AUDIO_RATE)
        heard = torch.from_numpy(np.pad(samples, (context, 0)))
        ends = [min(first + CHUNK, frames) for first in range(0, frames, CHUNK)]
        waves = [heard[end : end + context] for end in (round(e * AUDIO_RATE / fps) for e in ends)]
        encoded = torch.cat(
            [self._encode(waves[i : i + BATCH]) for i in range(0, len(ends), BATCH)]
        )
        parts = []
        for features, first, end in zip(encoded, range(0, frames, CHUNK), ends, strict=True):
            back = torch.arange(first - end, 0, device=features.device) + 0.5
            parts.append(self._at(features, context + back * AUDIO_RATE / fps))
        return torch.cat(parts)

    def _encode(self, waves: Sequence[Tensor]) -> Tensor:
        """Features (waves, n, dim) of equally long waves."""
        together = torch.stack(list(waves))
        # The checkpoints were trained on audio of zero mean and unit variance.
        together = together - together.mean(1, keepdim=True)
        together = together / (together.var(1, correction=0, keepdim=True) + 1e-7).sqrt()
        parameter = next(self.model.parameters())
        hidden: Tensor = self.model(together.to(parameter)).last_hidden_state
        return hidden.float()

    def _at(self, features: Tensor, sample: Tensor) -> Tensor:
        """Features (n, dim) of a wave, interpolated at samples (frames,) of it."""
        config = self.model.config
        span, hop = _receptive_field(config.conv_kernel, config.conv_stride)
        last = len(features) - 1
        place = ((sample - span / 2) / hop).clamp(0, last)
        low = place.long()
        high = (low + 1).clamp(max=last)
        share = (place - low).unsqueeze(1)
        return features[low] * (1 - share) + features[high] * share


def _samples_of(audio: np.ndarray, frames: int, fps: float) -> np.ndarray:
    """Exactly the samples of the frames, float32; silence where the last ones are missing.

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
    _check_finite(audio)
    return np.pad(audio, (0, max(samples - len(audio), 0)))[:samples]


def _check_finite(audio: np.ndarray) -> None:
    """Raise `ValueError` unless all samples are numbers."""
    if not np.isfinite(audio).all():
        raise ValueError(
            f"audio is not finite, first at sample {np.flatnonzero(~np.isfinite(audio))[0]}"
        )


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
