"""Speech as time and sound: phrases, syllables, pauses, and a voice.

The voice carries arousal in pitch and loudness. It is a harmonic source with vowel formants and
noisy consonants: nobody would take it for a person, but energy, pitch, rhythm and voice activity
are where a voice has them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rapport.pipeline.data.synthetic.affect import AFFECTS
from rapport.pipeline.data.synthetic.figures import FIGURES
from rapport.pipeline.data.synthetic.words import say, syllables
from rapport.policies.clip import AUDIO_RATE, Word

HOP = 160  # samples between control points: 10 ms
_HARMONICS = 14

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
    """One syllable; times in seconds, `stress` scales its loudness and pitch excursion."""

    start: float
    end: float
    vowel: str
    stress: float


@dataclass(frozen=True)
class Episode:
    """From `start` seconds on, until the next episode, the speaker feels `AFFECTS[affect]`."""

    start: float
    affect: int


@dataclass(frozen=True)
class Speech:
    """What is said in a conversation."""

    words: tuple[Word, ...]
    syllables: tuple[Syllable, ...]
    phrases: tuple[tuple[float, float], ...]  # start and end of each, between pauses, seconds

    def with_vowels(self, vowels: str) -> tuple[Syllable, ...]:
        """Syllables with one of these vowels."""
        return tuple(syllable for syllable in self.syllables if syllable.vowel in vowels)


def affect_at(episodes: list[Episode], second: float) -> int:
    """Index into `AFFECTS` of the episode running at a time."""
    current = episodes[0]
    for episode in episodes[1:]:
        if episode.start <= second:
            current = episode
    return current.affect


def plan_speech(
    rng: np.random.Generator, episodes: list[Episode], start: float, end: float
) -> Speech:
    """Sentences that go with the affect of their first word, with log-normal pauses between."""
    words: list[Word] = []
    spoken: list[Syllable] = []
    phrases = []
    now = start
    while now < end:
        affect = AFFECTS[affect_at(episodes, now)]
        pace = FIGURES.syllable_s * (1 - 0.15 * affect.felt[1])
        phrase_start = now
        for text in say(rng, affect.name):
            word_start = now
            for index, vowel in enumerate(syllables(text)):
                length = pace * float(np.clip(rng.normal(1.0, 0.15), 0.6, 1.5))
                stress = float(rng.uniform(0.8, 1.2)) * (1.0 if index == 0 else 0.8)
                spoken.append(Syllable(now, now + length, vowel=vowel, stress=stress))
                now += length
            words.append(Word(text, word_start, now))
        phrases.append((phrase_start, now))
        now += FIGURES.pause_median_s * float(np.exp(FIGURES.pause_log_std * rng.normal()))
    return Speech(tuple(words), tuple(spoken), tuple(phrases))


def loudness(syllables: tuple[Syllable, ...], clock: np.ndarray) -> np.ndarray:
    """Syllable envelope (time,) at the times of `clock`: half a sine a syllable, 0 in pauses."""
    envelope = np.zeros(len(clock))
    for syllable in syllables:
        phase = (clock - syllable.start) / (syllable.end - syllable.start)
        inside = (phase > 0) & (phase < 1)
        envelope[inside] += syllable.stress * np.sin(np.pi * phase[inside]) ** 0.7
    return envelope


def voice(
    rng: np.random.Generator,
    syllables: tuple[Syllable, ...],
    phrases: tuple[tuple[float, float], ...],
    arousal: np.ndarray,
    f0_hz: float,
    level: float = 0.12,
) -> np.ndarray:
    """Sound of syllables.

    Higher arousal is louder, higher and wider in pitch (Banse & Scherer 1996; Juslin & Laukka
    2003). Between syllables there is silence: exact zeros.

    Args:
        rng: of the noise in consonants.
        syllables: to speak.
        phrases: start and end of each in seconds; pitch declines over a phrase.
        arousal: (steps,) in [-1, 1] every 10 ms, which also sets the length of the result.
        f0_hz: the person's mean pitch.
        level: amplitude at arousal 0.

    Returns:
        (steps * HOP,) float32 in [-1, 1] at `AUDIO_RATE`.
    """
    steps = len(arousal)
    clock = np.arange(steps) * HOP / AUDIO_RATE
    envelope = loudness(syllables, clock)
    pitch = np.zeros(steps)
    for start, end in phrases:
        inside = (clock >= start) & (clock < end)
        pitch[inside] = 2.0 - 4.0 * (clock[inside] - start) / (end - start)
    semitones = 4.0 * arousal + (1 + np.maximum(arousal, 0)) * (pitch + 1.5 * (envelope - 0.5))
    f0 = f0_hz * 2.0 ** (semitones / 12)
    formants = np.tile(np.array(_FORMANTS["e"], float), (steps, 1))
    for syllable in syllables:
        formants[(clock >= syllable.start) & (clock < syllable.end)] = _FORMANTS[syllable.vowel]
    gain = level * (1 + 0.6 * arousal) * envelope
    sound = _harmonics(f0, formants, gain)
    onsets = np.zeros(steps)
    for syllable in syllables:  # a short noise at the onset stands for the consonant
        onsets[(clock >= syllable.start) & (clock < syllable.start + 0.03)] = 0.15 * level
    noise = rng.normal(size=steps * HOP).astype(np.float32)
    noise[1:] -= noise[:-1].copy()
    sound += noise * np.repeat(onsets.astype(np.float32), HOP)
    return np.clip(sound, -1, 1).astype(np.float32)


def _harmonics(f0: np.ndarray, formants: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Sum of harmonics weighted by formant resonances.

    Args:
        f0: (steps,) fundamental frequency, Hz.
        formants: (steps, 3) Hz.
        gain: (steps,) amplitude.
    """
    phase = 2 * np.pi * np.cumsum(np.repeat(f0, HOP)) / AUDIO_RATE
    cosine = np.cos(phase).astype(np.float32)
    previous = np.zeros(len(phase), np.float32)
    current = np.sin(phase).astype(np.float32)
    sound = np.zeros(len(phase), np.float32)
    for k in range(1, _HARMONICS + 1):
        resonance = np.exp(-0.5 * ((k * f0[:, None] - formants) / 180.0) ** 2)
        bands = resonance @ np.array([1.0, 0.6, 0.3])
        sound += _upsample(gain * (0.15 + bands) / np.sqrt(k)) * current
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
