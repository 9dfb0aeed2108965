"""Speech as time and sound: phrases, syllables, pauses, laughs, and a voice.

A voice tells how excited its speaker is (pitch, loudness, bright overtones), whether they smile
(formants move up as the lips spread), laugh (breathy bursts) or hesitate, and irony by being slow
and flat. It is a harmonic source with vowel formants and noise: nobody would take it for a person,
but energy, pitch, spectrum, rhythm and voice activity are where a voice has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from rapport.pipeline.data.synthetic.figures import FIGURES
from rapport.pipeline.data.synthetic.script import Script, Utterance
from rapport.pipeline.data.synthetic.words import FILLERS, syllables
from rapport.policies.clip import AUDIO_RATE, Word

HOP = 160  # samples between control points: 10 ms
_HARMONICS = 14
_SLOWER = 0.3  # a flat voice takes so much longer
_SMILED = 0.12  # formants of a full smile are so much higher
_BREATH = 0.35  # noise in a laugh, as a share of its amplitude

# First three formants in Hz by vowel letter, rounded from common textbook values for English.
_FORMANTS = {
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (300, 2250, 3000),
    "o": (500, 900, 2400),
    "u": (320, 850, 2250),
    "y": (390, 1990, 2550),
    "m": (270, 1000, 2200),
}


@dataclass(frozen=True)
class Syllable:
    """One syllable, or one burst of a laugh.

    Args:
        start: seconds.
        end: seconds.
        vowel: its letter.
        stress: scales loudness and pitch excursion.
        laughed: 0 = spoken, else how loudly it is laughed, up to 1.
    """

    start: float
    end: float
    vowel: str
    stress: float
    laughed: float = 0.0


@dataclass(frozen=True)
class Phrase:
    """An utterance and its times, in seconds.

    Args:
        utterance: what is said.
        start: of its first word.
        end: of its last word.
        point: end of the word that makes its point; its end where it makes none.
        silent: when the laugh after it is over; `end` where nobody laughs.
        call: how much it calls for a nod, 0 to 1: some moments trigger many listeners (Blomsma
            2024).
    """

    utterance: Utterance
    start: float
    end: float
    point: float
    silent: float
    call: float


@dataclass(frozen=True)
class Speech:
    """What is said in a conversation."""

    words: tuple[Word, ...]
    syllables: tuple[Syllable, ...]
    phrases: tuple[Phrase, ...]

    def with_vowels(self, vowels: str) -> tuple[Syllable, ...]:
        """Syllables with one of these vowels."""
        return tuple(syllable for syllable in self.syllables if syllable.vowel in vowels)


def plan_speech(rng: np.random.Generator, script: Script, start: float, end: float) -> Speech:
    """The utterances of a script in time, with log-normal pauses between.

    Args:
        rng: of lengths and pauses.
        script: what is said.
        start: seconds at which the first one starts.
        end: seconds; nothing starts later.
    """
    words: list[Word] = []
    spoken: list[Syllable] = []
    phrases = []
    now = start
    while now < end:
        utterance = script.next(now)
        pace = FIGURES.syllable_s * (1 - 0.15 * utterance.arousal) * (1 + _SLOWER * utterance.flat)
        began = now
        point = None
        for place, text in enumerate(utterance.words):
            word_start = now
            filler = text in FILLERS
            for index, vowel in enumerate(syllables(text)):
                length = pace * float(np.clip(rng.normal(1.0, 0.15), 0.6, 1.5))
                length *= 2.0 if filler else 1.0
                stress = float(rng.uniform(0.8, 1.2)) * (1.0 if index == 0 else 0.8)
                spoken.append(Syllable(now, now + length, vowel=vowel, stress=stress))
                now += length
            words.append(Word(text, word_start, now))
            if place == utterance.point:
                point = now
            if filler:
                now += 0.25
        ended = now
        laugh = _laugh(rng, now, utterance.laughs)
        spoken += laugh
        now = laugh[-1].end if laugh else now
        phrases.append(
            Phrase(
                utterance,
                start=began,
                end=ended,
                point=ended if point is None else point,
                silent=now,
                call=float(rng.random()),
            )
        )
        now += FIGURES.pause_median_s * float(np.exp(FIGURES.pause_log_std * rng.normal()))
    return Speech(tuple(words), tuple(spoken), tuple(phrases))


def _laugh(rng: np.random.Generator, start: float, size: float) -> list[Syllable]:
    """Bursts of a laugh from `start` on, each weaker than the one before; none of size 0."""
    if not size:
        return []
    bursts = 2 + round(4 * size * float(rng.uniform(0.7, 1.3)))
    step = 1 / FIGURES.laugh_hz
    first = start + 0.05
    return [
        Syllable(
            first + i * step,
            first + (i + 0.6) * step,
            vowel="a",
            stress=1.2 * size * (1 - 0.5 * i / bursts),
            laughed=size,
        )
        for i in range(bursts)
    ]


def loudness(syllables: tuple[Syllable, ...], clock: np.ndarray) -> np.ndarray:
    """Syllable envelope (time,) at the times of `clock`: half a sine a syllable, 0 in pauses.

    Args:
        syllables: in any order.
        clock: (time,) evenly spaced seconds.
    """
    envelope = np.zeros(len(clock))
    step = clock[1] - clock[0]
    for syllable in syllables:
        inside = _span(clock, step, syllable.start, syllable.end)
        phase = (clock[inside] - syllable.start) / (syllable.end - syllable.start)
        envelope[inside] += syllable.stress * np.sin(np.pi * phase) ** 0.7
    return envelope


def _span(clock: np.ndarray, step: float, start: float, end: float) -> slice:
    """The places of an evenly spaced `clock` in [start, end)."""
    first = ceil((start - clock[0]) / step - 1e-9)
    last = ceil((end - clock[0]) / step - 1e-9)
    return slice(max(first, 0), max(last, 0))


@dataclass(frozen=True, eq=False)
class Tone:
    """How a voice sounds, (steps,) each, every 10 ms.

    Args:
        arousal: in [-1, 1]. Excited voices are louder, higher, wider in pitch and brighter (Banse &
            Scherer 1996; Juslin & Laukka 2003).
        smile: in [-1, 1]: 1 = spread lips, which move formants up; -1 = lips drawn down.
        flat: 1 = monotonous, 0 = as lively as a voice is.
    """

    arousal: np.ndarray
    smile: np.ndarray
    flat: np.ndarray

    def after(self, step: int) -> Tone:
        """The same from a step on."""
        return Tone(self.arousal[step:], self.smile[step:], self.flat[step:])

    @classmethod
    def calm(cls, steps: int) -> Tone:
        """A voice of no particular tone."""
        return cls(np.zeros(steps), np.zeros(steps), np.zeros(steps))


def voice(
    rng: np.random.Generator,
    syllables: tuple[Syllable, ...],
    phrases: tuple[tuple[float, float], ...],
    tone: Tone,
    f0_hz: float,
    start: float = 0.0,
    level: float = 0.12,
) -> np.ndarray:
    """Sound of syllables and laughs. Between them there is silence: exact zeros.

    Args:
        rng: of the noise in consonants and laughs.
        syllables: to speak.
        phrases: start and end of each in seconds; pitch declines over a phrase.
        tone: also sets the length of the result.
        f0_hz: the person's mean pitch.
        start: seconds at which the sound begins.
        level: amplitude at arousal 0.

    Returns:
        (steps * HOP,) float32 in [-1, 1] at `AUDIO_RATE`.
    """
    steps = len(tone.arousal)
    step = HOP / AUDIO_RATE
    clock = start + np.arange(steps) * step
    envelope = loudness(syllables, clock)
    pitch = np.zeros(steps)
    for begin, end in phrases:
        inside = _span(clock, step, begin, end)
        pitch[inside] = 2.0 - 4.0 * (clock[inside] - begin) / (end - begin)
    laughed = np.zeros(steps)
    onsets = np.zeros(steps)
    formants = np.tile(np.array(_FORMANTS["e"], float), (steps, 1))
    for syllable in syllables:
        inside = _span(clock, step, syllable.start, syllable.end)
        formants[inside] = _FORMANTS[syllable.vowel]
        laughed[inside] = syllable.laughed
        # A short noise at the onset stands for the consonant.
        onsets[_span(clock, step, syllable.start, syllable.start + 0.03)] = 0.15 * level
    formants *= 1 + _SMILED * tone.smile[:, None]
    melody = (1 + np.maximum(tone.arousal, 0)) * (pitch + 1.5 * (envelope - 0.5))
    semitones = 4.0 * tone.arousal + (1 - 0.9 * tone.flat) * melody + 4.0 * (laughed > 0)
    f0 = f0_hz * 2.0 ** (semitones / 12)
    gain = level * (1 + 0.6 * tone.arousal) * envelope
    breath = _BREATH * gain * (laughed > 0)
    sound = _harmonics(f0, formants, gain - breath, tilt=0.5 - 0.3 * tone.arousal)
    noise = rng.normal(size=steps * HOP).astype(np.float32)
    noise[1:] -= noise[:-1].copy()
    sound += noise * np.repeat((onsets + breath).astype(np.float32), HOP)
    return np.clip(sound, -1, 1).astype(np.float32)


def _harmonics(
    f0: np.ndarray, formants: np.ndarray, gain: np.ndarray, tilt: np.ndarray
) -> np.ndarray:
    """Sum of harmonics weighted by formant resonances.

    Args:
        f0: (steps,) fundamental frequency, Hz.
        formants: (steps, 3) Hz.
        gain: (steps,) amplitude.
        tilt: (steps,) harmonic k is k ** -tilt as strong as the first.
    """
    phase = 2 * np.pi * np.cumsum(np.repeat(f0, HOP)) / AUDIO_RATE
    cosine = np.cos(phase).astype(np.float32)
    previous = np.zeros(len(phase), np.float32)
    current = np.sin(phase).astype(np.float32)
    sound = np.zeros(len(phase), np.float32)
    for k in range(1, _HARMONICS + 1):
        resonance = np.exp(-0.5 * ((k * f0[:, None] - formants) / 180.0) ** 2)
        bands = resonance @ np.array([1.0, 0.6, 0.3])
        sound += _upsample(gain * (0.15 + bands) * k**-tilt) * current
        # sin((k + 1) x) by Chebyshev's recurrence, which is faster than the sine itself.
        previous, current = current, 2 * cosine * current - previous
    return sound


def _upsample(track: np.ndarray) -> np.ndarray:
    """(steps,) to (steps * HOP,) by linear interpolation, the last step held."""
    following = np.append(track[1:], track[-1])
    ramp = np.arange(HOP, dtype=np.float32) / HOP
    start = track[:, None].astype(np.float32)
    rise = (following - track)[:, None].astype(np.float32)
    return (start + rise * ramp).reshape(-1)
