"""The speaker: affect in episodes, and what of it can be heard and seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rapport.pipeline.data.synthetic.affect import AFFECTS, expression_of
from rapport.pipeline.data.synthetic.face import (
    FaceBasis,
    Person,
    assemble,
    draw_person,
    expression_coefficients,
)
from rapport.pipeline.data.synthetic.figures import FIGURES, FPS
from rapport.pipeline.data.synthetic.prosody import (
    HOP,
    Episode,
    Speech,
    affect_at,
    loudness,
    plan_speech,
    voice,
)
from rapport.pipeline.data.synthetic.signals import blink_track, blur, event_times, smooth_noise
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.motion import Motion

_ROUND = ("mouthFunnel", "mouthPucker")  # lips of o and u
_WIDE = ("mouthStretchLeft", "mouthStretchRight")  # lips of e and i
_OPENING = {"a": 0.16, "e": 0.10, "i": 0.06, "o": 0.12, "u": 0.06, "y": 0.06}  # jaw, radians; ours


@dataclass(frozen=True, eq=False)
class Speaker:
    """A speaker over a conversation of `frames` frames."""

    person: Person
    episodes: list[Episode]
    speech: Speech
    affect: np.ndarray  # (time, 2) as felt and shown
    motion: Motion
    audio: np.ndarray  # (samples,)


def draw_episodes(rng: np.random.Generator, clips: int, seconds: float) -> list[Episode]:
    """Affect episodes of whole clips; most begin about a second before their clip does, some in its
    middle.

    Clips of a real corpus are cut at what a speaker begins to tell, so most clips hold one affect.
    No affect follows itself.
    """
    frequency = np.array([affect.frequency for affect in AFFECTS])
    episodes: list[Episode] = []
    clip = 0
    while clip < clips:
        chances = frequency.copy()
        if episodes:
            chances[episodes[-1].affect] = 0
        inside = rng.random() < FIGURES.mid_clip_onset
        offset = seconds * rng.uniform(0.25, 0.6) if inside else -seconds * rng.uniform(0.15, 0.35)
        episodes.append(
            Episode(
                clip * seconds + offset, int(rng.choice(len(AFFECTS), p=chances / chances.sum()))
            )
        )
        clip += int(rng.choice(FIGURES.episode_clips))
    return episodes


def simulate_speaker(
    rng: np.random.Generator, basis: FaceBasis, episodes: list[Episode], frames: int
) -> Speaker:
    """Speech, voice and motion of one speaker for `frames` frames from time 0."""
    seconds = frames / FPS
    clock = np.arange(frames) / FPS
    person = draw_person(rng)
    speech = plan_speech(rng, episodes, -float(rng.uniform(0, 2)), seconds)

    felt = np.array([AFFECTS[affect_at(episodes, t)].felt for t in clock])
    strength = float(np.clip(rng.normal(1.0, 0.15), 0.6, 1.3))
    affect = np.clip(
        strength * blur(felt, 0.2, FPS) + 0.08 * smooth_noise(rng, frames, 2, FPS), -1, 1
    )

    steps = round(seconds * AUDIO_RATE / HOP)
    arousal = np.interp(np.arange(steps) * HOP / AUDIO_RATE, clock, affect[:, 1])
    audio = voice(
        rng, speech.syllables, speech.phrases, arousal, float(rng.uniform(*FIGURES.f0_hz))
    )

    return Speaker(
        person, episodes, speech, affect, _motion(rng, basis, person, speech, affect), audio
    )


def _motion(
    rng: np.random.Generator, basis: FaceBasis, person: Person, speech: Speech, affect: np.ndarray
) -> Motion:
    frames = len(affect)
    clock = np.arange(frames) / FPS
    weights, laugh = expression_of(affect)
    expr = expression_coefficients(rng, basis, person, weights, liveliness=1.5)
    jaw = laugh.copy()
    for vowels, shapes in (("ou", _ROUND), ("eiy", _WIDE)):
        lips = 0.3 * loudness(tuple(s for s in speech.syllables if s.vowel in vowels), clock)
        expr += blur(lips, 0.03, FPS)[:, None] * basis.rows(shapes).sum(axis=0)
    for vowel, opening in _OPENING.items():
        jaw += opening * loudness(tuple(s for s in speech.syllables if s.vowel == vowel), clock)

    voiced = blur(
        loudness(speech.syllables, clock), 0.15, FPS
    )  # heads move with speech, more when excited
    sway = np.array(FIGURES.sway_rad) * smooth_noise(rng, frames, 3, FPS, corner_hz=0.3)
    beat = (
        0.03
        * (1 + np.maximum(affect[:, 1:], 0))
        * voiced[:, None]
        * smooth_noise(rng, frames, 3, FPS, 1.5)
    )
    droop = 0.10 * blur(np.maximum(-affect[:, :1], 0) * np.maximum(-affect[:, 1:], 0), 0.4, FPS)
    head = sway + beat + np.concatenate([droop, np.zeros((frames, 2))], axis=1)

    blinks = event_times(rng, frames / FPS, FIGURES.blinks_speaking)
    lids = blink_track(blinks, frames, FPS, FIGURES.blink_close_s, FIGURES.blink_open_s)
    gaze = 0.08 * smooth_noise(rng, frames, 2, FPS, corner_hz=0.8)
    return assemble(expr, blur(jaw, 0.03, FPS), head, lids, gaze, smooth_noise(rng, frames, 5, FPS))
