"""The speaker: what is meant, and what of it can be heard and seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rapport.pipeline.data.synthetic.face import (
    FaceBasis,
    Person,
    assemble,
    draw_person,
    expression_coefficients,
)
from rapport.pipeline.data.synthetic.figures import FIGURES, FPS
from rapport.pipeline.data.synthetic.looks import expression_of
from rapport.pipeline.data.synthetic.prosody import (
    HOP,
    Phrase,
    Speech,
    Tone,
    loudness,
    plan_speech,
    voice,
)
from rapport.pipeline.data.synthetic.script import Script
from rapport.pipeline.data.synthetic.signals import (
    Event,
    blur,
    event_times,
    lid_closure,
    smooth_noise,
    track,
)
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.motion import Motion
from rapport.rewards.ratings.points import Point

_ROUND = ("mouthFunnel", "mouthPucker")  # lips of o and u
_WIDE = ("mouthStretchLeft", "mouthStretchRight")  # lips of e and i
_OPENING = {"a": 0.16, "e": 0.10, "i": 0.06, "o": 0.12, "u": 0.06, "y": 0.06}  # jaw, radians; ours
_BEFORE_S = 0.6  # a face shows what is meant before the word has been said
_AFTER_S = 1.0


@dataclass(frozen=True, eq=False)
class Speaker:
    """A speaker over a conversation.

    Args:
        person: whose face.
        speech: what is said.
        points: what is meant, in seconds from the conversation's time 0.
        affect: (time, 2) valence and arousal that the face shows, without its lips' speaking.
        tone: of the voice, every 10 ms.
        clock: (time,) seconds of the frames.
        f0_hz: mean pitch of the voice.
    """

    person: Person
    speech: Speech
    points: tuple[Point, ...]
    affect: np.ndarray
    tone: Tone
    clock: np.ndarray
    f0_hz: float


def draw_speaker(rng: np.random.Generator, script: Script, start: float, end: float) -> Speaker:
    """A person and what they say, mean and show from `start` to `end` seconds."""
    frames = round((end - start) * FPS)
    clock = start + np.arange(frames) / FPS
    person = draw_person(rng)
    resting = FIGURES.resting_valence * float(rng.normal())
    strength = float(np.clip(np.exp(FIGURES.strength_log_std * rng.normal()), 0.4, 2.5))
    speech = plan_speech(rng, script, start=start - float(rng.uniform(0, 2)), end=end)

    shown = [_shown(phrase, strength * phrase.utterance.face) for phrase in speech.phrases]
    excited = [_spoken(phrase, phrase.utterance.arousal) for phrase in speech.phrases]
    affect = np.stack([resting + track(shown, clock), track(excited, clock)], axis=1)
    affect += 0.03 * smooth_noise(rng, frames, dims=2, fps=FPS)
    affect = np.clip(affect, -1, 1)

    steps = round((end - start) * AUDIO_RATE / HOP)
    moments = start + np.arange(steps) * HOP / AUDIO_RATE
    flat = [_spoken(phrase, phrase.utterance.flat) for phrase in speech.phrases]
    tone = Tone(
        arousal=np.interp(moments, clock, affect[:, 1]),
        smile=np.interp(moments, clock, affect[:, 0]),
        flat=track(flat, moments),
    )
    points = tuple(
        Point(phrase.point, said.meaning, kind=said.kind, known=said.known)
        for phrase in speech.phrases
        if (said := phrase.utterance).point is not None
    )
    return Speaker(
        person=person,
        speech=speech,
        points=points,
        affect=affect,
        tone=tone,
        clock=clock,
        f0_hz=float(rng.uniform(*FIGURES.f0_hz)),
    )


def _shown(phrase: Phrase, size: float) -> Event:
    """What the face shows: before the point is made, until a while after, or the laugh is over."""
    rise = 0.45
    start = phrase.point - _BEFORE_S - rise
    hold = max(phrase.point, phrase.silent) + _AFTER_S - start - rise
    return Event(start, rise=rise, hold=hold, fall=0.7, size=size)


def _spoken(phrase: Phrase, size: float) -> Event:
    """Something of the voice, from the first word to the end of the laugh."""
    hold = phrase.silent - phrase.start
    return Event(phrase.start - 0.15, rise=0.15, hold=hold, fall=0.2, size=size)


def sound_of(rng: np.random.Generator, speaker: Speaker, start: float) -> np.ndarray:
    """The speaker's voice from `start` seconds on, silence before.

    Returns:
        (samples,) float32 at `AUDIO_RATE`, as long as the conversation.
    """
    before = round((start - speaker.clock[0]) * AUDIO_RATE / HOP)
    sound = voice(
        rng,
        speaker.speech.syllables,
        tuple((phrase.start, phrase.end) for phrase in speaker.speech.phrases),
        tone=speaker.tone.after(before),
        f0_hz=speaker.f0_hz,
        start=start,
    )
    return np.concatenate([np.zeros(before * HOP, np.float32), sound])


def motion_of(rng: np.random.Generator, basis: FaceBasis, speaker: Speaker) -> Motion:
    """How the speaker moves: expression, lips and jaw of the vowels, head, eyes."""
    affect = speaker.affect
    speech = speaker.speech
    clock = speaker.clock
    frames = len(affect)
    weights, laugh = expression_of(affect)
    expr = expression_coefficients(rng, basis, speaker.person, weights=weights)
    jaw = laugh.copy()
    for vowels, shapes in (("ou", _ROUND), ("eiy", _WIDE)):
        lips = 0.3 * loudness(speech.with_vowels(vowels), clock)
        expr += blur(lips, 0.03, FPS)[:, None] * basis.rows(shapes).sum(axis=0)
    for vowel, opening in _OPENING.items():
        jaw += opening * loudness(speech.with_vowels(vowel), clock)

    sway = np.array(FIGURES.posture_rad) * smooth_noise(rng, frames, dims=3, fps=FPS, corner_hz=0.3)
    # Heads move with speech, more when the speaker is excited, and droop in grief.
    voiced = blur(loudness(speech.syllables, clock), 0.15, FPS)
    excited = 1 + np.maximum(affect[:, 1:], 0)
    beat_noise = smooth_noise(rng, frames, dims=3, fps=FPS, corner_hz=1.5)
    beat = 0.03 * excited * voiced[:, None] * beat_noise
    grief = np.maximum(-affect[:, :1], 0) * np.maximum(-affect[:, 1:], 0)
    droop = 0.10 * blur(grief, 0.4, FPS)
    head = sway + beat + np.concatenate([droop, np.zeros((frames, 2))], axis=1)

    blinks = event_times(rng, clock[0], clock[-1], FIGURES.blinks_speaking)
    gaze = 0.08 * smooth_noise(rng, frames, dims=2, fps=FPS, corner_hz=0.8)
    place = (
        0.5
        * np.array(FIGURES.posture_m)
        * smooth_noise(rng, frames, dims=3, fps=FPS, corner_hz=0.3)
    )
    return assemble(
        expr,
        jaw_open=blur(jaw, 0.03, FPS),
        head=head,
        lids=lid_closure(blinks, FIGURES.blink_s, clock),
        gaze=gaze,
        place=place,
        stray=smooth_noise(rng, frames, dims=5, fps=FPS),
    )
