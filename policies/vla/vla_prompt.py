"""What the VLA is shown of a clip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class VlaPrompt:
    """A prompt ready for any engine.

    Args:
        prompt_id: the clip it was made from.
        ids: (prompt length,) token ids, one <image> id per patch.
        frames: (frames, height, width, 3) uint8, or None where the clip has no video.
    """

    prompt_id: str
    ids: np.ndarray
    frames: np.ndarray | None
