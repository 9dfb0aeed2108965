"""What stands in front of LLaMA: speaker frames and voice -> perception tokens.

Both end in a root-mean-square norm and the scale of text embeddings, so that LLaMA meets them as it
meets words. A linear layer after the norm learns also where what is before it is frozen.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionModel,
)

from rapport.policies.sound import BANDS
from rapport.policies.vla.config import FaceVLAConfig, image_side, patch_grid

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SIGLIP_MEAN = (0.5, 0.5, 0.5)
SIGLIP_STD = (0.5, 0.5, 0.5)
VOICE_WIDTH = 64


class Projector(nn.Module):
    """MLP of Eq. 3: fused patch features (..., dino + siglip) -> (..., hidden).

    Shape and names are OpenVLA's.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, hidden)
        self.fc3 = nn.Linear(hidden, hidden)

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))
        return projected


class FrameEncoder(nn.Module):
    """Speaker frames -> picture tokens (Eq. 2-3).

    Features are the output of the last block that the configs keep, which is the published model's
    second-to-last, each stream's normed. What the projector makes of the patches is averaged over
    as many parts of a picture as it has tokens. What comes after that block (last block, final
    norm, pooling head) is not built: unused parameters would get no gradient and stall sharded
    training.
    """

    def __init__(self, config: FaceVLAConfig) -> None:
        super().__init__()
        dino = config.dino_config
        siglip = config.siglip_config
        hidden = config.text_config.hidden_size
        self.dino: Dinov2Model | Dinov2WithRegistersModel
        # DINOv2 puts its class token, and the register variant its registers, before the patches.
        if isinstance(dino, Dinov2WithRegistersConfig):
            self.dino = Dinov2WithRegistersModel(dino)
            self.extra_tokens = 1 + dino.num_register_tokens
        else:
            self.dino = Dinov2Model(dino)
            self.extra_tokens = 1
        self.siglip = SiglipVisionModel(siglip)
        self.projector = Projector(dino.hidden_size + siglip.hidden_size, hidden)
        self.adapter = nn.Linear(hidden, hidden)
        self.grid = patch_grid(dino)
        self.side = math.isqrt(config.tokens_per_frame)
        self.scale = config.perception_scale
        # The final norms are taken out in place, which their declared type does not foresee.
        self.dino.layernorm = nn.Identity()  # type: ignore[assignment]
        self.dino.embeddings.mask_token = None
        self.siglip.post_layernorm = nn.Identity()  # type: ignore[assignment]

    def features(self, frames: Tensor) -> Tensor:
        """Frames (n, height, width, 3) uint8 -> (n, tokens_per_frame, hidden), each of rms 1."""
        dtype = self.projector.fc1.weight.dtype
        size = image_side(self.dino.config)
        dino_pixels = standardise_pixels(frames, IMAGENET_MEAN, IMAGENET_STD, size=size)
        dino_patches = self.dino(dino_pixels.to(dtype)).last_hidden_state[:, self.extra_tokens :]
        size = image_side(self.siglip.config)
        siglip_pixels = standardise_pixels(frames, SIGLIP_MEAN, SIGLIP_STD, size=size)
        siglip_patches = self.siglip(siglip_pixels.to(dtype)).last_hidden_state
        patches = torch.cat([layer_norm(dino_patches), layer_norm(siglip_patches)], dim=-1)
        return rms_norm(self._averaged(self.projector(patches)))

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (n, height, width, 3) uint8 -> (n, tokens_per_frame, hidden)."""
        tokens: Tensor = self.adapter(self.features(frames)) * self.scale
        return tokens

    def _averaged(self, patches: Tensor) -> Tensor:
        """Patches (n, grid * grid, width) -> (n, tokens_per_frame, width)."""
        if self.side == 1:
            return patches.mean(dim=1, keepdim=True)
        square = patches.reshape(len(patches), self.grid, self.grid, -1).permute(0, 3, 1, 2)
        return F.adaptive_avg_pool2d(square, self.side).flatten(2).transpose(1, 2)


class VoiceEncoder(nn.Module):
    """Log-mel bands of a chunk -> voice tokens.

    It sees one chunk and the little sound before it that the bands begin with, so what it makes of
    a chunk does not depend on when it is asked.
    """

    def __init__(self, config: FaceVLAConfig) -> None:
        super().__init__()
        hidden = config.text_config.hidden_size
        self.tokens = config.voice_tokens
        self.scale = config.perception_scale
        self.early = nn.Conv1d(BANDS, VOICE_WIDTH, kernel_size=5, stride=2, padding=2)
        self.late = nn.Conv1d(VOICE_WIDTH, VOICE_WIDTH, kernel_size=5, stride=2, padding=2)
        self.projector = nn.Linear(2 * VOICE_WIDTH, hidden)
        self.adapter = nn.Linear(hidden, hidden)

    def features(self, bands: Tensor) -> Tensor:
        """Bands (n, time, BANDS) uint8 -> (n, voice_tokens, hidden), each of rms 1.

        A token is of the mean and the spread over its part of the chunk.
        """
        heard = (bands.to(self.early.weight.dtype) / 127.5 - 1).transpose(1, 2)
        over_time = F.gelu(self.late(F.gelu(self.early(heard))))
        parts = over_time.tensor_split(self.tokens, dim=2)
        means = [part.mean(dim=2) for part in parts]
        # Of silence the spread is 0, where a root has no slope.
        spreads = [(part.var(dim=2, correction=0) + 1e-6).sqrt() for part in parts]
        pooled = torch.cat([torch.stack(means, dim=1), torch.stack(spreads, dim=1)], dim=-1)
        return rms_norm(self.projector(pooled))

    def forward(self, bands: Tensor) -> Tensor:
        """Bands (n, time, BANDS) uint8 -> (n, voice_tokens, hidden)."""
        tokens: Tensor = self.adapter(self.features(bands)) * self.scale
        return tokens


def layer_norm(values: Tensor) -> Tensor:
    """Mean 0 and variance 1 along the last axis."""
    return F.layer_norm(values, values.shape[-1:])


def rms_norm(values: Tensor) -> Tensor:
    """Root mean square 1 along the last axis."""
    return F.rms_norm(values, values.shape[-1:], eps=1e-6)


def standardise_pixels(
    frames: Tensor, mean: tuple[float, ...], std: tuple[float, ...], size: int
) -> Tensor:
    """Frames as a visual stream takes them.

    Args:
        frames: (n, height, width, 3) uint8.
        mean: of each colour channel, in [0, 1].
        std: standard deviation of each colour channel.
        size: height and width that come out.

    Returns:
        (n, 3, size, size) float32.
    """
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames travel as uint8 and are normalised here, got {frames.dtype}")
    pixels = frames.permute(0, 3, 1, 2).float() / 255
    if pixels.shape[-2:] != (size, size):
        pixels = F.interpolate(
            pixels, size=(size, size), mode="bilinear", antialias=True, align_corners=False
        )
    return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]
