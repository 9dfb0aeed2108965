"""Listeners that follow one rule: what a policy that perceives must beat.

A rule says which valence to show, second for second, from one or two cues of the speaker. Its face
is the mean face of the training listeners with that expression, its head that of a training
listener drawn at random. Rules are given more than a policy: the whole lexicon, and the speaker's
own motion or the valence of the speaker's face, without noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rapport.policies.motion import Motion
from rapport.rewards.ratings.speaker_cues import bare_word
from rapport.rewards.smoothing import moving_mean

LATE_S = 0.6  # a mirror follows so much later
SMOOTH_S = 1.0  # and shows the mean of so long
SHARE = 0.6  # of what it sees
WORD_DELAY_S = 0.45  # from the end of a word to the begin of its answer
WORD_S = 3.0  # length of that answer
BOTH = 0.65  # weight of face and of words where both count; raters who add them up do it so
BAD = -0.1  # valence from which on a cue is bad
LESS_SMILE = 0.2  # of displayed valence: what alignment took off once (notes of a run)
LESS_YAW = 0.4  # of the head's turn: what was left of it


def late(curve: np.ndarray, fps: float) -> np.ndarray:
    """What a mirror shows of a curve (time, ...): its mean over 1 s, 0.6 s later, 0.6 of it."""
    smooth = moving_mean(np.asarray(curve, np.float64), SMOOTH_S * fps)
    source = np.maximum(np.arange(len(curve)) - round(LATE_S * fps), 0)
    mirrored: np.ndarray = SHARE * smooth[source]
    return mirrored


def words_timed(
    words: Sequence[tuple[str, float, float]],
    lexicon: Mapping[str, float],
    frames: int,
    fps: float,
) -> np.ndarray:
    """An answer to each word that the lexicon knows, once it has been said, (frames,) in [-1, 1].

    Args:
        words: text, start and end in seconds from the start of the clip, negative before it.
        lexicon: word -> valence.
        frames: of the clip.
        fps: frames per second.
    """
    times = np.arange(frames) / fps
    curve = np.zeros(frames)
    for text, _, end in words:
        valence = lexicon.get(bare_word(text), 0.0)
        phase = np.clip((times - end - WORD_DELAY_S) / WORD_S, 0, 1)
        curve += valence * np.sin(np.pi * phase) ** 2
    return np.clip(curve, -1, 1)


def words_and_mirror(words: np.ndarray, face: np.ndarray) -> np.ndarray:
    """Words and face added up, (time,), as `words_timed` and `late` give them."""
    added: np.ndarray = np.clip(BOTH * words + BOTH * face / SHARE, -1, 1)
    return added


def bad_if_either(words: np.ndarray, face: np.ndarray) -> np.ndarray:
    """The worse of words and face where either is bad, else the better one, (time,)."""
    worse = np.minimum(words, face)
    either: np.ndarray = np.where(worse < BAD, worse, np.maximum(words, face))
    return either


def with_expression(head: Motion, mean: np.ndarray, expr: np.ndarray) -> Motion:
    """A mean face that shows an expression, on somebody's moving head.

    Args:
        head: whose head, lids, neck and eyes move; its face is replaced.
        mean: (dim,) the mean face, in the layout of `head`.
        expr: (time, expr) coefficients, added to those of the mean face.
    """
    layout = head.layout
    values = head.values[: len(expr)].copy()
    for name in ("expr", "jaw"):
        if name in layout.names:
            values[:, layout.columns(name)] = mean[layout.columns(name)]
    values[:, layout.columns("expr")] += expr
    return Motion(values, layout)


def motionless(mean: np.ndarray, like: Motion) -> Motion:
    """The mean face (dim,) as long as another motion."""
    return Motion(np.tile(mean, (len(like), 1)), like.layout)


def two_constants(motion: Motion, less: np.ndarray) -> Motion:
    """A policy's answer with two constants changed, which says nothing to any speaker.

    Once these two alone made most of what alignment had gained in ratings.

    Args:
        motion: its answer.
        less: (expr,) coefficients of `LESS_SMILE`, which are added.
    """
    layout = motion.layout
    values = motion.values.copy()
    values[:, layout.columns("expr")] += less
    for name in ("rot", "neck"):
        if name in layout.names:
            values[:, layout.columns(name).start + 1] *= LESS_YAW
    return Motion(values, layout)
