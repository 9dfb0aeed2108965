"""The prompt of one clip: a fixed number of tokens, so that batches need no mask.

    <s> | frames x patches of <image> | text_tokens of text, left-filled with <blank> | <act>

then the action tokens. A modality that the clip lacks fills its whole region with <absent>: a
learned mark that cannot be mistaken for a black frame or for silence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from rapport.policies.vla.config import FaceVLAConfig


def build_prompt(
    config: FaceVLAConfig, text_ids: Sequence[int] | None, has_frames: bool
) -> np.ndarray:
    """Token ids (prompt_length,) int64.

    Args:
        config: of the policy that reads them.
        text_ids: what the speaker says; `[]` is silence, None an absent transcript. The end of a
            text that is too long is kept: the listener answers to what was said last.
        has_frames: whether the clip has speaker frames.
    """
    image = [config.image_token_id if has_frames else config.absent_token_id] * config.image_tokens
    if text_ids is None:
        text = [config.absent_token_id] * config.text_tokens
    else:
        kept = list(text_ids)[-config.text_tokens :]
        text = [config.blank_token_id] * (config.text_tokens - len(kept)) + kept
    return np.array([config.bos_token_id, *image, *text, config.act_token_id], dtype=np.int64)


def collapse_images(config: FaceVLAConfig, prompt: Sequence[int]) -> list[int]:
    """The prompt with one <image> per frame in place of one per patch, as vLLM takes it."""
    end = 1 + config.image_tokens
    region = list(prompt[1:end])
    if region[0] == config.image_token_id:
        region = region[:: config.patches]
    return [*prompt[:1], *region, *prompt[end:]]


def select_frames(frames: np.ndarray, count: int, size: int) -> np.ndarray:
    """`count` evenly spaced frames, each resized to `size` pixels.

    Args:
        frames: (n, height, width, 3) uint8, evenly spaced over the clip, n >= count.
        count: how many to take: the middle ones of as many equal parts.
        size: height and width of the frames that come out.

    Returns:
        (count, size, size, 3) uint8.

    Raises:
        ValueError: the clip has too few frames, or they are no RGB images.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(
            f"speaker frames must be (n, height, width, 3) uint8, got {frames.shape} {frames.dtype}"
        )
    if len(frames) < count:
        raise ValueError(
            f"{count} speaker frames are needed, this clip has {len(frames)}; lower `frames`"
        )
    chosen = frames[((np.arange(count) + 0.5) * len(frames) / count).astype(int)]
    if chosen.shape[1:3] == (size, size):
        return np.ascontiguousarray(chosen)
    pixels = torch.from_numpy(np.ascontiguousarray(chosen)).permute(0, 3, 1, 2).float()
    pixels = F.interpolate(
        pixels, size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )
    resized = pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return resized.contiguous().numpy()
