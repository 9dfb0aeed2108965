"""What the VLA is shown of a clip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class VlaPrompt:
    """What is seen, heard and said around a reaction of n chunks, ready for any engine.

    Nothing in it is of the last chunk itself: what is said there is answered later. An item is
    what is seen and heard in a chunk; the items are those of the `history` chunks before the last
    one before the reaction, of that one, and of all chunks of the reaction but the last.

    Args:
        prompt_id: the clip it was made from.
        frames: (items, frames, height, width, 3) uint8, or None where no item has any.
        voice: (items, voice_frames, bands) uint8, or None likewise.
        present: (items, 2) bool: whether there are frames, and voice. What is absent is told by
            <absent>, and its bytes are never looked at.
        heard: (n, text_tokens) ids: the words before the last chunk, as each chunk would have them
            in its head if a context began with it.
        said: (n, chunk_text) ids: the words of the chunk before each.
        own: (n,) ids: the pose of the last action before the reaction, or <absent>. Nothing else of
            the listener's own past is told: a policy that sees its own face goes on with it, and
            hardly looks at the speaker (de Haan et al., NeurIPS 2019).
        rest: (dims,) the listener's face at rest, which actions are told from.
        begun: (k,) action ids that are there already; engines go on from them.
    """

    prompt_id: str
    frames: np.ndarray | None
    voice: np.ndarray | None
    present: np.ndarray
    heard: np.ndarray
    said: np.ndarray
    own: np.ndarray
    rest: np.ndarray
    begun: np.ndarray | None = None
