"""How far one-line rules come on the synthetic corpus, by the sign of what they show at points.

    python -m rapport.pipeline.data.synthetic.task

Cues are clean signals here: words, the valence that the speaker's face shows, how the voice is.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rapport.pipeline.data.synthetic.figures import FPS
from rapport.pipeline.data.synthetic.generate import (
    Conversation,
    Design,
    listener_of,
    points_between,
    speaker_of,
)
from rapport.pipeline.data.synthetic.listener import fitting_affect, fitting_answer
from rapport.pipeline.data.synthetic.script import KINDS
from rapport.pipeline.data.synthetic.signals import blur, track
from rapport.pipeline.data.synthetic.speaker import Speaker
from rapport.pipeline.data.synthetic.words import LEXICON, OUTCOMES, TOPICS
from rapport.pipeline.data.windows import HEARD_S
from rapport.rewards.metrics.rules import BOTH, LATE_S, SHARE, bad_if_either
from rapport.rewards.ratings.answers import answers
from rapport.rewards.ratings.points import Point

Rule = Callable[[Speaker], np.ndarray]  # the valence that it shows, (time,)
# Rule or "recorded, MANNER" -> kind -> for each point 1 right, .5 not answered, 0 wrong.
Rights = dict[str, dict[str, list[float]]]


def words(speaker: Speaker) -> np.ndarray:
    """An answer to each word that the lexicon knows, as soon as it has been said."""
    answered = [
        Point(word.end, LEXICON[word.text], kind="word")
        for word in speaker.speech.words
        if word.text in LEXICON
    ]
    return fitting_affect(answered, speaker.clock)[:, 0]


def mirror(speaker: Speaker) -> np.ndarray:
    """The speaker's face, smoothed over 1 s, 0.6 s later, 0.6 of it."""
    smooth = blur(speaker.affect[:, 0], 0.3, FPS)
    late = np.maximum(np.arange(len(smooth)) - round(LATE_S * FPS), 0)
    return SHARE * smooth[late]


def mirror_less_mean(speaker: Speaker) -> np.ndarray:
    """The same without what the speaker's face always shows."""
    mirrored = mirror(speaker)
    return mirrored - mirrored.mean()


def words_and_mirror(speaker: Speaker) -> np.ndarray:
    """Words and face, added."""
    return BOTH * words(speaker) + BOTH * mirror(speaker) / SHARE


def bad_if_words_or_face_are(speaker: Speaker) -> np.ndarray:
    """The worse of words and face where one of them is bad, else the better one."""
    return bad_if_either(words(speaker), mirror_less_mean(speaker))


def program(speaker: Speaker) -> np.ndarray:
    """All cues, with knowledge of how they go together; it is told when points are made."""
    read = [
        fitting_answer(phrase.point, _meaning(speaker, phrase.point))
        for phrase in speaker.speech.phrases
    ]
    return track(read, speaker.clock)


def _meaning(speaker: Speaker, time: float) -> float:
    """What is meant at a time, by words, face and voice."""
    said = 0.0
    outcome = 0
    topic = 0
    for word in speaker.speech.words:
        if word.end > time + 1e-6:
            break
        topic = next((s for s, pool in TOPICS.items() if word.text in pool.words), topic)
        if abs(word.end - time) < 1e-6:
            said = LEXICON.get(word.text, 0.0)
            outcome = next((s for s, pool in OUTCOMES.items() if word.text in pool.words), 0)
    frame = min(int((time - speaker.clock[0]) * FPS), len(speaker.clock) - 1)
    face = speaker.affect[frame, 0] - np.median(speaker.affect[:, 0])
    excited = speaker.affect[frame, 1]
    if outcome:
        return float(outcome * topic)
    if abs(said) < 0.6:
        return float(np.sign(face)) if abs(face) > 0.25 else 0.0
    if said > 0:
        return -1.0 if face < -0.15 else 1.0
    return 1.0 if face > 0.15 and excited > 0.2 else -1.0


RULES: Mapping[str, Rule] = {
    "words, timed": words,
    "mirror, late and smoothed": mirror,
    "mirror less own mean": mirror_less_mean,
    "words + mirror": words_and_mirror,
    "bad if words or face are bad": bad_if_words_or_face_are,
    "program that knows the table": program,
}


def measure(seed: int, riddles: float, conversations: int) -> Rights:
    """How points are answered by each rule and by recorded listeners, by kind of point.

    Args:
        seed: of the corpus.
        riddles: of the corpus.
        conversations: of its test split.
    """
    design = Design(riddles=riddles, frames=0)
    found: Rights = {}
    for number in range(conversations):
        conversation = Conversation("test", number, clips=4, design=design, seed=seed)
        speaker = speaker_of(conversation)
        shown = {name: rule(speaker) for name, rule in RULES.items()}
        for name, valence in shown.items():
            _add(found, name, valence, speaker, clip=0, seconds=conversation.clips * design.seconds)
        for place in range(design.listeners):
            listener = listener_of(conversation, speaker, place)
            for clip, manner in enumerate(listener.manners[1:]):
                for name in (f"recorded, {manner}", "recorded, all"):
                    _add(found, name, listener.expressed[:, 0], speaker, clip, design.seconds)
    return found


def _add(
    found: Rights,
    name: str,
    shown: np.ndarray,
    speaker: Speaker,
    clip: int,
    seconds: float,
) -> None:
    """Note how the points of a clip were answered by what was `shown` over a conversation."""
    first = round((HEARD_S + clip * seconds) * FPS)
    window = shown[first : first + round(seconds * FPS)]
    for answer in answers(window, points_between(speaker, clip * seconds, seconds), FPS):
        found.setdefault(name, {}).setdefault(answer.point.kind, []).append(answer.right)


def table(by_seed: Sequence[Rights]) -> str:
    """Shares of points answered right: a rule a row; all points of each seed, then by kind."""
    seeds = [f"set {number}" for number in range(1, len(by_seed) + 1)]
    lines = [f"{'':30}" + "".join(f"{name:>9}" for name in ("all", *seeds, *KINDS))]
    for name in by_seed[0]:
        of_seed = [np.concatenate(list(found[name].values())) for found in by_seed]
        of_kind = [
            np.concatenate([found[name].get(kind, []) for found in by_seed]) for kind in KINDS
        ]
        columns = [np.concatenate(of_seed), *of_seed, *of_kind]
        shares = [f"{column.mean():9.2f}" if len(column) else f"{'-':>9}" for column in columns]
        lines.append(f"{name:30}" + "".join(shares))
    return "\n".join(lines)


def main() -> None:
    """Print the table for each setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--riddles", type=float, nargs="+", default=[1.0, 0.5])
    parser.add_argument("--conversations", type=int, default=40)
    arguments = parser.parse_args()
    for riddles in arguments.riddles:
        found = [measure(seed, riddles, arguments.conversations) for seed in arguments.seeds]
        print(f"riddles {riddles:g}\n{table(found)}\n")


if __name__ == "__main__":
    main()
