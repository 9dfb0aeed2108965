"""How much of what a policy does it owes to what it perceives.

It is asked how unlikely what a recorded listener did is to it, with the conversation's own streams
and with those of another one: what the swap costs is how much they tell. A stream alone, with the
others absent, says more than a stream swapped beside the others: these say the same, and the better
listener would lose less. What is confidently wrong costs most, so the swap's cost is read beside
the gain over no stream at all.

The unit is the policy's: nats of an action, or errors of a velocity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Cost(NamedTuple):
    """How unlikely recorded reactions are to a policy, in its unit.

    Args:
        own: (clips,) with the clip's own streams.
        swapped: (clips,) how much more with those of others, mean over these.
        gain: (clips,) how much less with the clip's own than with no stream at all.
    """

    own: np.ndarray
    swapped: np.ndarray
    gain: np.ndarray


def drawn_others(conversations: Sequence[str], count: int, seed: int = 0) -> np.ndarray:
    """Clips of other conversations for each clip, (clips, n).

    Args:
        conversations: of each clip.
        count: how many, at most.
        seed: of the draw.

    Raises:
        ValueError: all clips are of one conversation.
    """
    names = np.array(conversations)
    rng = np.random.default_rng(seed)
    fewest = min(int((names != name).sum()) for name in set(conversations))
    if not fewest:
        raise ValueError("all clips are of one conversation: there is no other one to swap with")
    others = [
        rng.choice(np.flatnonzero(names != name), min(count, fewest), replace=False)
        for name in names
    ]
    return np.stack(others)
