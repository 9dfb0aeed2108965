"""Does a listener answer a face? Somebody who is silent smiles, or frowns, for 5 of 16 s.

    python -m tests.bench_answering            # the listener that comes with the project
    python -m tests.bench_answering RUN        # the policy that a run ended with

How much more the listener smiles meanwhile than before and after, in weights of ARKit's two smiles;
beside it the same sessions without a face to see. A smile or frown that is not answered comes to
what the sessions without a face have.
"""

import sys
from pathlib import Path

import numpy as np

from rapport.pipeline.steps.listening import policy_folder
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.head.asset import load_head
from rapport.policies.live import Chunk
from rapport.policies.motion import Motion
from rapport.policies.policy import load_policy

SECONDS, BEGINS, ENDS = 16, 5, 10
LATE_S = 0.6  # an answer needs that long
SEEDS = range(8)
FACES = {
    "smile": ("mouthSmileLeft", "mouthSmileRight"),
    "frown": ("mouthFrownLeft", "mouthFrownRight", "browDownLeft", "browDownRight"),
}


def expression(asset, face):
    """Its coefficients on the channels of `expr`."""
    return sum(asset.arkit[name][:50] for name in FACES[face])


def session(live, seed, motion):
    """(frames, dim) of a listener to a face, or to nobody where `motion` is None."""
    silence = np.zeros(round(live.chunk * AUDIO_RATE), np.float32)
    count = round(live.chunk * live.policy.layout.fps)
    state, frames = live.start(seed=seed), []
    for number in range(int(SECONDS / live.chunk)):
        seen = None if motion is None else motion.window(number * count, count)
        [answer], [state] = live.step([state], [Chunk(audio=silence, motion=seen)])
        frames.append(answer.values)
    return np.concatenate(frames)


def main():
    policy = load_policy(policy_folder(Path(sys.argv[1]) if sys.argv[1:] else None))
    live, layout, asset = policy.live(), policy.layout, load_head()
    smile = expression(asset, "smile")
    seconds = np.arange(SECONDS * layout.fps) / layout.fps

    def smiles(seed, motion):
        values = session(live, seed, motion)[:, layout.columns("expr")] @ smile / (smile @ smile)
        at = seconds[: len(values)]
        meanwhile = (at > BEGINS + LATE_S) & (at < ENDS + LATE_S)
        return values[meanwhile].mean() - values[~meanwhile].mean()

    alone = np.array([smiles(seed, None) for seed in SEEDS])
    print(f"without a face: {alone.mean():+.3f}")
    for face in FACES:
        values = np.zeros((len(seconds), layout.dim), np.float32)
        shown = (seconds >= BEGINS) & (seconds < ENDS)
        values[shown, layout.columns("expr")] = 0.8 * expression(asset, face)
        answers = np.array([smiles(seed, Motion(values, layout)) for seed in SEEDS])
        more = int((answers > alone).sum())
        print(
            f"{face}: {answers.mean():+.3f}; more than without in {more} of {len(SEEDS)} sessions"
        )


if __name__ == "__main__":
    main()
