"""A policy listens to a recording, step by step, as it would to a microphone.

    python docs/examples/listen.py POLICY SPEAKER [listener.npz]

`rapport listen policy=POLICY speaker=SPEAKER` does it with several listeners and draws them. POLICY
is a folder that a recipe wrote, e.g. runs/.../dpo/policy; SPEAKER a film or a sound.
"""

import itertools
import sys
from pathlib import Path

import numpy as np

from rapport import Motion, load_policy
from rapport.pipeline.data.recording import open_recording


def main(checkpoint: Path, speaker: Path, listener: Path) -> None:
    policy = load_policy(checkpoint)
    live = policy.live()
    chunks = open_recording(speaker).chunks(live.chunk, policy.reads)
    state = live.start(seed=0)
    pieces = []
    # Some policies move before they have heard anything.
    for heard in itertools.chain([None] if state.waits else [], chunks):
        [motion], [state] = live.step([state], [heard])
        print(f"{len(motion)} frames settled, {live.chunk:g} s a step")
        pieces.append(motion.values)
    pieces.append(live.finish(state).values)
    Motion(np.concatenate(pieces), policy.layout).save(listener)
    print(listener)


if __name__ == "__main__":
    checkpoint, speaker, *listener = map(Path, sys.argv[1:])
    main(checkpoint, speaker, listener[0] if listener else Path("listener.npz"))
