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
    """Affect episodes of whole clips.

    Most begin about a second before their clip does, some in its middle: clips of a real corpus are
    cut at what a speaker begins to tell, so that most clips hold one affect. No affect follows
    itself.
    """
    frequency = np.array([affect.frequency for affect in AFFECTS])
    episodes: list[Episode] = []
    clip = 0
    while clip < clips:
        chances = frequency.copy()
        if episodes:
            chances[episodes[-1].affect] = 0
        if rng.random() < FIGURES.mid_clip_onset:
            offset = seconds * rng.uniform(0.25, 0.6)
        else:
            offset = -seconds * rng.uniform(0.15, 0.35)
        affect = int(rng.choice(len(AFFECTS), p=chances / chances.sum()))
        episodes.append(Episode(clip * seconds + offset, affect))
        clip += int(rng.choice(FIGURES.episode_clips))
    return episodes


def simulate_speaker(
    rng: np.random.Generator, basis: FaceBasis, episodes: list[Episode], frames: int
) -> Speaker:
    """Speech, voice and motion of one speaker for `frames` frames from time 0."""
    seconds = frames / FPS
    clock = np.arange(frames) / FPS
    person = draw_person(rng)
    start = -float(rng.uniform(0, 2))  # somewhere in a sentence
    speech = plan_speech(rng, episodes, start=start, end=seconds)

    felt = np.array([AFFECTS[affect_at(episodes, second)].felt for second in clock])
    strength = float(np.clip(rng.normal(1.0, 0.15), 0.6, 1.3))
    shown = strength * blur(felt, 0.2, FPS)
    affect = np.clip(shown + 0.08 * smooth_noise(rng, frames, dims=2, fps=FPS), -1, 1)

    steps = round(seconds * AUDIO_RATE / HOP)
    arousal = np.interp(np.arange(steps) * HOP / AUDIO_RATE, clock, affect[:, 1])
    f0_hz = float(rng.uniform(*FIGURES.f0_hz))
    audio = voice(rng, speech.syllables, speech.phrases, arousal=arousal, f0_hz=f0_hz)
    motion = _motion(rng, basis, person, speech=speech, affect=affect)
    return Speaker(
        person=person, episodes=episodes, speech=speech, affect=affect, motion=motion, audio=audio
    )


def _motion(
    rng: np.random.Generator, basis: FaceBasis, person: Person, speech: Speech, affect: np.ndarray
) -> Motion:
    """How the speaker moves: expression, lips and jaw of the vowels, head, eyes."""
    frames = len(affect)
    clock = np.arange(frames) / FPS
    weights, laugh = expression_of(affect)
    expr = expression_coefficients(rng, basis, person, weights=weights, liveliness=1.5)
    jaw = laugh.copy()
    for vowels, shapes in (("ou", _ROUND), ("eiy", _WIDE)):
        lips = 0.3 * loudness(speech.with_vowels(vowels), clock)
        expr += blur(lips, 0.03, FPS)[:, None] * basis.rows(shapes).sum(axis=0)
    for vowel, opening in _OPENING.items():
        jaw += opening * loudness(speech.with_vowels(vowel), clock)

    sway_noise = smooth_noise(rng, frames, dims=3, fps=FPS, corner_hz=0.3)
    sway = np.array(FIGURES.sway_rad) * sway_noise
    # Heads move with speech, more when the speaker is excited, and droop in grief.
    voiced = blur(loudness(speech.syllables, clock), 0.15, FPS)
    excited = 1 + np.maximum(affect[:, 1:], 0)
    beat_noise = smooth_noise(rng, frames, dims=3, fps=FPS, corner_hz=1.5)
    beat = 0.03 * excited * voiced[:, None] * beat_noise
    grief = np.maximum(-affect[:, :1], 0) * np.maximum(-affect[:, 1:], 0)
    droop = 0.10 * blur(grief, 0.4, FPS)
    head = sway + beat + np.concatenate([droop, np.zeros((frames, 2))], axis=1)

    blinks = event_times(rng, frames / FPS, FIGURES.blinks_speaking)
    lids = blink_track(
        blinks, frames, FPS, close_s=FIGURES.blink_close_s, open_s=FIGURES.blink_open_s
    )
    gaze = 0.08 * smooth_noise(rng, frames, dims=2, fps=FPS, corner_hz=0.8)
    stray = smooth_noise(rng, frames, dims=5, fps=FPS)
    jaw_open = blur(jaw, 0.03, FPS)
    return assemble(expr, jaw_open=jaw_open, head=head, lids=lids, gaze=gaze, stray=stray)
