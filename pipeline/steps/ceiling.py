"""What there is to perceive: how many nats of a reaction the hidden truth explains.

    python -m rapport.pipeline.steps.ceiling runs/.../prepare/corpus

A policy that perceives cannot gain more than the speaker tells. At the beginning of every second
the listener's face and head are asked what would be fitting just now. The nats by which a
classifier beats the frequencies, on people it has not met, say how much the two have in common: a
bound from below, since a better reader of faces may find more, and since a speaker tells more than
what is fitting just now (when a phrase ends, say). So it is a yardstick for a policy's gain, and no
proof that more cannot be had. It needs no policy and no Ray; half a minute.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from rapport.pipeline.data.store import Corpus, load_truth
from rapport.rewards.metrics.statistics import Interval, mean_interval

EVERY_S = 1.0  # as a policy acts chunk by chunk
EDGES = (-0.45, -0.2, -0.07, 0.07, 0.2, 0.45)  # of fitting valence, between classes


class Seconds(NamedTuple):
    """What a listener was like at the beginning of every second.

    Args:
        faces: (n, coefficients), less what is usual for this listener.
        fitting: (n,) class of the fitting valence.
        conversations: (n,).
    """

    faces: np.ndarray
    fitting: np.ndarray
    conversations: np.ndarray


def explained(learnt: Seconds, asked: Seconds) -> Interval:
    """Nats by which a face tells what is fitting, with a bootstrap over conversations.

    Args:
        learnt: to fit on.
        asked: of other people.

    Raises:
        ValueError: something is asked about that was never learnt.
    """
    model = HistGradientBoostingClassifier(
        max_iter=60, learning_rate=0.06, max_leaf_nodes=8, l2_regularization=5, random_state=0
    )
    model.fit(learnt.faces, learnt.fitting)
    classes, counts = np.unique(learnt.fitting, return_counts=True)
    if missing := set(asked.fitting.tolist()) - set(classes.tolist()):
        raise ValueError(f"classes {sorted(missing)} of fitting valence never occur in training")
    gains = np.log(model.predict_proba(asked.faces)) - np.log(counts / counts.sum())
    told = gains[np.arange(len(gains)), np.searchsorted(classes, asked.fitting)]
    seconds = {str(number): float(gain) for number, gain in enumerate(told)}
    return mean_interval(seconds, groups=dict(zip(seconds, asked.conversations, strict=True)))


def seconds_of(corpus: Corpus, split: str) -> Seconds:
    """All listeners of a split of a corpus that has hidden truth."""
    truth = load_truth(corpus.path)
    conversation_of = corpus.conversations(split)
    rests = corpus.rests
    faces, fitting, conversations = [], [], []
    for clip_id, motion in corpus.listeners(split):
        frames = np.arange(0, len(motion), round(EVERY_S * motion.layout.fps))
        faces.append(motion.values[frames] - rests[clip_id])
        fitting.append(np.digitize(truth[clip_id].appropriate_affect[frames, 0], EDGES))
        conversations += [conversation_of[clip_id]] * len(frames)
    return Seconds(np.concatenate(faces), np.concatenate(fitting), np.array(conversations))


def main(arguments: list[str] | None = None) -> Interval:
    """Print the ceiling of a corpus."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--split", default="validation")
    given = parser.parse_args(arguments)
    corpus = Corpus(given.corpus)
    asked = seconds_of(corpus, given.split)
    found = explained(seconds_of(corpus, "train"), asked)
    share = np.bincount(asked.fitting) / len(asked.fitting)
    entropy = -sum(p * np.log(p) for p in share if p)
    print(
        f"a listener's face at the beginning of a second tells {found.mean:.2f} "
        f"[{found.low:.2f}, {found.high:.2f}] of the {entropy:.2f} nats of what is fitting "
        f"({len(asked.fitting)} seconds of {given.split}, "
        f"{len(set(asked.conversations))} conversations)"
    )
    return found


if __name__ == "__main__":
    main()
