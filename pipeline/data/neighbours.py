"""Who is appropriate to whom: for each clip the clips whose listeners would fit its speaker, too.

One form for all corpora: clip id -> clip ids, the recorded listener first. `corpus` is what
`appropriate.parquet` says: who else fits of those who listen to the same words (synthetic), the 0/1
matrix of REACT 2023 and 2024, a session of MARS. Where nobody says it, `alike` guesses it from the
speakers, which is the idea of REACT's labels (Song et al., arXiv 2302.06514): where two speakers do
alike, the listener of one would do for the other. `random` and `recorded` stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from rapport.pipeline.data.settings import By
from rapport.pipeline.data.store import (
    Corpus,
    CorpusError,
    load_appropriate,
    load_labels,
    load_truth,
)
from rapport.policies.clip import AUDIO_RATE, Clip
from rapport.policies.sound import band_levels

Appropriate = dict[str, list[str]]

COUNT = 20  # speakers alike, as many as the trials of `alike` had
FITS = 0.2  # mean distance of the valence shown to the one that fits
_SOUNDS_PER_SECOND = 25  # windows of sound that a mean is of
_ROWS = 512  # speakers compared with all others at once


def appropriate_to(
    corpus: Corpus, split: str, by: By = "corpus", count: int = COUNT, seed: int = 0
) -> Appropriate:
    """Clips of a split -> the clips of the split whose listeners are appropriate, its own first.

    The recorded listener is always among them, as on the diagonal of REACT's matrix, also where a
    corpus knows that they listened badly: `without_own` takes them out.

    Args:
        corpus: whose clips.
        split: of it.
        by: who says so.
        count: speakers that are taken for alike, or drawn at random; all who listened to one count.
        seed: of `random`.

    Raises:
        CorpusError: `alike` has nothing to compare speakers by.
    """
    if by == "recorded":
        others: Mapping[str, Sequence[str]] = {}
    elif by == "corpus":
        others = named(corpus, split)
    elif by == "alike":
        others = _of_nearest(corpus, split, speaker_features(corpus, split), count)
    else:
        others = _of_random(corpus, split, count, np.random.default_rng(seed))
    return {
        clip_id: [clip_id, *(i for i in others.get(clip_id, ()) if i != clip_id)]
        for clip_id in corpus.clip_ids(split)
    }


def named(corpus: Corpus, split: str) -> Appropriate:
    """Clips of a split -> the clips of it that the corpus names; the own one only if it fits."""
    known = load_appropriate(corpus.path)
    ids = corpus.clip_ids(split)
    here = set(ids)
    return {clip_id: [i for i in known.get(clip_id, ()) if i in here] for clip_id in ids}


def without_own(appropriate: Mapping[str, Sequence[str]]) -> Appropriate:
    """The same without the recorded listener."""
    return {
        clip_id: [other for other in others if other != clip_id]
        for clip_id, others in appropriate.items()
    }


def in_words(by: By, appropriate: Mapping[str, Sequence[str]], ids: Sequence[str]) -> str:
    """Who says what is appropriate to some clips, and how much that is."""
    who = {
        "corpus": "those that the corpus names",
        "alike": "listeners to speakers alike",
        "random": "listeners to any speakers",
        "recorded": "nobody else's",
    }
    mean = float(np.mean([len(appropriate[clip_id]) for clip_id in ids]))
    return f"the recorded reaction and {who[by]}; {mean:.1f} to a speaker"


# -- REACT --


def matrix_rows(matrix: np.ndarray, pairs: int, where: str) -> list[np.ndarray]:
    """Of each direction of the pairs the directions whose listeners are appropriate.

    Args:
        matrix: (2 pairs, 2 pairs) of 0 and 1; rows are speakers, columns listeners, both in the
            order "pairs as listed, then the same pairs with roles swapped".
        pairs: that are listed.
        where: the file, for messages.

    Raises:
        CorpusError: another shape, other numbers, or most recorded listeners do not fit their own
            speakers: the order is another.
    """
    if matrix.shape != (2 * pairs, 2 * pairs):
        raise CorpusError(
            f"{where} has shape {matrix.shape}, {pairs} pairs are listed: it must be "
            f"({2 * pairs}, {2 * pairs}), the pairs and then the same pairs with roles swapped. Is "
            "it of another split or list?"
        )
    odd = ~np.isin(matrix, (0, 1))
    if odd.any():
        row, column = np.argwhere(odd)[0]
        raise CorpusError(
            f"{where} holds {matrix[row, column]} in row {row}, column {column}: 1 is appropriate, "
            "0 is not, and nothing else is known"
        )
    own = float(np.diagonal(matrix).mean())
    if own < 0.5:
        raise CorpusError(
            f"{where}: only {own:.0%} of the recorded listeners are appropriate to their own "
            "speakers (its diagonal). Rows and columns must stand as the pairs are listed, then "
            "the same pairs with roles swapped"
        )
    return [np.flatnonzero(row) for row in matrix]


def session_rows(sessions: Sequence[Hashable]) -> list[np.ndarray]:
    """Of each direction all that share its session, as in MARS (REACT 2025)."""
    members: dict[Hashable, list[int]] = {}
    for number, session in enumerate(sessions):
        members.setdefault(session, []).append(number)
    return [np.array(members[session]) for session in sessions]


# -- Speakers alike --


def speaker_features(corpus: Corpus, split: str) -> dict[str, np.ndarray]:
    """What the speaker of each moment does, by the id of its first clip.

    Means over whole seconds of the motion's channels and of the sound's bands, of what all clips
    have, each standardised over the moments.

    Raises:
        CorpusError: the clips have neither speakers' motion nor sound, or are of unlike lengths.
    """
    first = corpus.first_listeners(split)
    clips = corpus.clips(split, ("speaker", "speaker_audio"), only=set(first))
    described = {clip.clip_id: _described(clip) for clip in clips}
    common = set.intersection(*(set(parts) for parts in described.values()))
    if not common:
        raise CorpusError(
            f"{corpus.path}: not all clips of {split} have their speakers' motion, nor all their "
            "sound: nothing tells which speakers are alike"
        )
    rows = [
        np.concatenate([parts[name] for name in sorted(common)]) for parts in described.values()
    ]
    if len({len(row) for row in rows}) > 1:
        raise CorpusError(
            f"{corpus.path}: clips of {split} are of unlike lengths, and speakers are compared "
            "second by second: cut them alike"
        )
    features = np.stack(rows)
    scale = features.std(axis=0)
    scale[scale < 1e-8] = 1.0
    standardised = (features - features.mean(axis=0)) / scale
    return dict(zip(described, standardised, strict=True))


def _described(clip: Clip) -> dict[str, np.ndarray]:
    """Means over the whole seconds of a clip, flat, by modality."""
    parts = {}
    if clip.speaker is not None:
        parts["motion"] = _means(clip.speaker.values, round(clip.speaker.layout.fps))
    if clip.speaker_audio is not None:
        step = AUDIO_RATE // _SOUNDS_PER_SECOND
        ends = np.arange(step, len(clip.speaker_audio) + 1, step)
        parts["sound"] = _means(band_levels(clip.speaker_audio, ends), _SOUNDS_PER_SECOND)
    return parts


def _means(values: np.ndarray, length: int) -> np.ndarray:
    """Means over stretches of `length` rows, flat; what is left at the end counts if it is all."""
    length = min(length, len(values))
    count = len(values) // length
    return values[: count * length].reshape(count, length, -1).mean(axis=1).ravel()


def _of_nearest(
    corpus: Corpus, split: str, features: Mapping[str, np.ndarray], count: int
) -> Appropriate:
    """Of each clip the listeners to the `count` nearest moments of other conversations.

    Args:
        corpus: whose clips.
        split: of it.
        features: of each moment, by the id of its first clip.
        count: moments.
    """
    moments = corpus.moments(split)
    listeners = _listeners(moments)
    order = [moments[clip_id] for clip_id in features]
    names = corpus.conversations(split)
    of = np.array([names[clip_id] for clip_id in features])
    x = np.stack(list(features.values()))
    squares = np.sum(x**2, axis=1)
    nearest: dict[tuple[str, float], list[str]] = {}
    for begin in range(0, len(x), _ROWS):
        rows = slice(begin, begin + _ROWS)
        distances = squares - 2 * x[rows] @ x.T
        distances[of[rows, None] == of] = np.inf
        for moment, row in zip(order[rows], distances, strict=True):
            ranked = np.argsort(row, kind="stable")[:count]
            near = [order[i] for i in ranked if np.isfinite(row[i])]
            nearest[moment] = [clip_id for other in near for clip_id in listeners[other]]
    return {clip_id: nearest[moment] for clip_id, moment in moments.items()}


def _of_random(corpus: Corpus, split: str, count: int, rng: np.random.Generator) -> Appropriate:
    """Of each clip the listeners to some moments of other conversations, none drawn twice."""
    moments = corpus.moments(split)
    listeners = _listeners(moments)
    order = list(listeners)
    names = corpus.conversations(split)
    of = np.array([names[clip_ids[0]] for clip_ids in listeners.values()])
    drawn = {}
    for moment, own in zip(order, of, strict=True):
        others = np.flatnonzero(of != own)
        chosen = rng.permutation(others)[:count]
        drawn[moment] = [clip_id for i in chosen for clip_id in listeners[order[i]]]
    return {clip_id: drawn[moment] for clip_id, moment in moments.items()}


def _listeners(
    moments: Mapping[str, tuple[str, float]],
) -> dict[tuple[str, float], list[str]]:
    """All clips of each moment."""
    listeners: dict[tuple[str, float], list[str]] = {}
    for clip_id, moment in moments.items():
        listeners.setdefault(moment, []).append(clip_id)
    return listeners


# -- How right it is --


def precisions(corpus: Corpus, split: str, count: int = COUNT, seed: int = 0) -> dict[str, float]:
    """By whom listeners are called appropriate -> the share of them who are, by the hidden truth.

    A listener fits a speaker where the valence that they show is, in the mean over the clip, within
    `FITS` of the one that fits. The recorded listeners stand for themselves; of all others they
    are left out. `truth` takes the speakers alike of whom the truth asks the same valence: no
    likeness of speakers can do better. `random` is what calling anybody appropriate has.

    Args:
        corpus: with affect labels and hidden truth, as the synthetic one.
        split: of it.
        count: speakers alike.
        seed: of `random`.

    Raises:
        CorpusError: the corpus lacks either.
    """
    shown = {clip_id: affect[:, 0] for clip_id, affect in load_labels(corpus.path).items()}
    truths = load_truth(corpus.path)
    fitting = {clip_id: truth.appropriate_affect[:, 0] for clip_id, truth in truths.items()}

    def fits(speaker: str, listeners: Sequence[str]) -> np.ndarray:
        valences = np.stack([shown[clip_id] for clip_id in listeners])
        near: np.ndarray = np.abs(valences - fitting[speaker]).mean(axis=1) < FITS
        return near

    asked = {clip_id: fitting[clip_id] for clip_id in corpus.first_listeners(split)}
    labels = {
        by: without_own(appropriate_to(corpus, split, by, count, seed))
        for by in ("random", "alike", "corpus")
    }
    labels["truth"] = _of_nearest(corpus, split, asked, count)
    labels["recorded"] = appropriate_to(corpus, split, "recorded")
    return {by: precision(appropriate, fits) for by, appropriate in labels.items()}


def precision(
    appropriate: Mapping[str, Sequence[str]], fits: Callable[[str, Sequence[str]], np.ndarray]
) -> float:
    """Share of the listed listeners who fit the speaker they are listed for; NaN of none.

    Args:
        appropriate: clip id -> ids of the clips whose listeners are listed.
        fits: of a speaker's clip and listeners' clips, whether each fits.
    """
    right = [fits(speaker, listed) for speaker, listed in appropriate.items() if len(listed)]
    return float(np.concatenate(right).mean()) if right else float("nan")
