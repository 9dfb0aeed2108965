"""The listener: many reactions are possible, one is recorded.

What would fit (`appropriate`) follows the speaker alone. What the recorded listener shows depends
on the manner drawn for each clip, which nothing about the speaker predicts, and on the listener's
own traits.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

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
from rapport.pipeline.data.synthetic.prosody import HOP, Syllable, affect_at, voice
from rapport.pipeline.data.synthetic.signals import (
    blink_track,
    blur,
    event_times,
    lag,
    nod,
    smooth_noise,
)
from rapport.pipeline.data.synthetic.speaker import Speaker
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.motion import Motion

MANNERS = tuple(name for name, _ in FIGURES.manners)

_POLITE = (0.45, 0.10)  # a smile whatever is said
_ABSENT = (0.0, -0.30)  # face of somebody whose mind is elsewhere
_MUTED = 0.3  # of the fitting reaction


@dataclass(frozen=True)
class Style:
    """Traits of a listener."""

    expressivity: float  # scales reactions
    delay_s: float  # from the speaker's affect to the reaction
    nodding: float  # chance of a nod at the end of a phrase
    attention: float  # share of the time looking at the speaker


@dataclass(frozen=True, eq=False)
class Listener:
    """A listener over a conversation."""

    person: Person
    style: Style
    manners: list[str]  # one for each clip
    appropriate: np.ndarray  # (time, 2) hidden truth
    expressed: np.ndarray  # (time, 2) what this listener shows
    motion: Motion
    audio: np.ndarray  # (samples,) backchannels

    @property
    def traits(self) -> dict[str, float]:
        """The style as name -> value."""
        return asdict(self.style)


def appropriate_affect(
    speaker: Speaker, frames: int, delay_s: float = FIGURES.nominal_delay_s
) -> np.ndarray:
    """The fitting reaction: the answer to each affect episode, delayed and with a soft rise.

    Args:
        speaker: who is listened to.
        frames: to answer, from the start.
        delay_s: from the speaker's affect to the answer.

    Returns:
        (frames, 2) valence and arousal.
    """
    affects = [affect_at(speaker.episodes, frame / FPS) for frame in range(frames)]
    answers = np.array([AFFECTS[affect].answer for affect in affects])
    return lag(answers, delay_s=delay_s, rise_s=FIGURES.reaction_rise_s, fps=FPS)


def draw_style(rng: np.random.Generator) -> Style:
    """Draw a listener's traits at random."""
    return Style(
        expressivity=float(np.clip(np.exp(0.2 * rng.normal()), 0.65, 1.4)),
        delay_s=float(rng.uniform(*FIGURES.reaction_delay_s)),
        nodding=float(rng.uniform(0.3, 0.8)),
        attention=float(np.clip(FIGURES.gaze_on_speaker + 0.1 * rng.normal(), 0.5, 0.95)),
    )


def simulate_listener(
    rng: np.random.Generator, basis: FaceBasis, speaker: Speaker, clips: int
) -> Listener:
    """One listener to a whole conversation of `clips` clips of equal length."""
    frames = len(speaker.affect)
    person = draw_person(rng)
    style = draw_style(rng)
    chances = [share for _, share in FIGURES.manners]
    manners = [MANNERS[i] for i in rng.choice(len(MANNERS), size=clips, p=chances)]
    blend = _manner_weights(manners, frames)

    fitting = style.expressivity * appropriate_affect(speaker, frames, style.delay_s)
    fitting = np.clip(fitting, -1, 1)
    shown = {
        "empathic": fitting,
        "muted": _MUTED * fitting,
        "inattentive": _ABSENT,
        "polite": _POLITE,
    }
    expressed = sum(blend[name] * np.asarray(shown[name]) for name in MANNERS)
    expressed = np.clip(expressed + 0.05 * smooth_noise(rng, frames, dims=2, fps=FPS), -1, 1)

    nods, backchannels = _feedback(rng, speaker, style, blend=blend)
    motion = _motion(
        rng, basis, person, style=style, expressed=expressed, away=blend["inattentive"], nods=nods
    )
    audio = _backchannel_audio(rng, backchannels, frames)
    return Listener(
        person=person,
        style=style,
        manners=manners,
        appropriate=appropriate_affect(speaker, frames),
        expressed=expressed,
        motion=motion,
        audio=audio,
    )


def _manner_weights(manners: list[str], frames: int) -> dict[str, np.ndarray]:
    """Weight (time, 1) of each manner; they sum to 1 and change over about half a second."""
    by_frame = np.repeat(np.array(manners), frames // len(manners))
    return {name: blur((by_frame == name)[:, None].astype(float), 0.2, FPS) for name in MANNERS}


def _feedback(
    rng: np.random.Generator, speaker: Speaker, style: Style, blend: dict[str, np.ndarray]
) -> tuple[np.ndarray, list[float]]:
    """Nods at the ends of the speaker's phrases, and the times of audible backchannels.

    Returns:
        (time,) pitch of the head in radians, and seconds.
    """
    frames = len(speaker.affect)
    clock = np.arange(frames) / FPS
    pitch = np.zeros(frames)
    audible = []
    willing = {"empathic": 1.0, "muted": 0.4, "inattentive": 0.05, "polite": 0.8}
    for _, phrase_end in speaker.speech.phrases:
        draws = rng.random(2)
        start = phrase_end + rng.uniform(*FIGURES.nod_latency_s)
        hz = rng.uniform(*FIGURES.nod_hz)
        radians = rng.uniform(*FIGURES.nod_rad)
        cycles = int(rng.integers(FIGURES.nod_cycles[0], FIGURES.nod_cycles[1] + 1))
        frame = int(start * FPS)
        if not 0 <= frame < frames:
            continue
        chance = style.nodding * sum(willing[name] * blend[name][frame, 0] for name in MANNERS)
        if draws[0] < chance:
            pitch += nod(clock, start, hz=hz, radians=radians, cycles=cycles)
            if draws[1] < FIGURES.backchannel:
                audible.append(start)
    return pitch, audible


def _motion(
    rng: np.random.Generator,
    basis: FaceBasis,
    person: Person,
    style: Style,
    expressed: np.ndarray,
    away: np.ndarray,
    nods: np.ndarray,
) -> Motion:
    """How the listener moves.

    Args:
        rng: of everything that no trait or affect decides.
        basis: of the head.
        person: whose face.
        style: the listener's traits.
        expressed: (time, 2) affect to show.
        away: (time, 1) how inattentive the listener is, 0 to 1.
        nods: (time,) pitch in radians.
    """
    frames = len(expressed)
    weights, laugh = expression_of(expressed)
    expr = expression_coefficients(rng, basis, person, weights=weights)

    # Arousal shows in how much the head moves.
    alive = 1 + 0.6 * blur(expressed[:, 1:], 0.3, FPS)
    sway_noise = smooth_noise(rng, frames, dims=3, fps=FPS, corner_hz=0.25)
    sway = alive * np.array(FIGURES.sway_rad) * sway_noise
    # An inattentive listener faces elsewhere.
    turned = away * rng.choice([-1.0, 1.0]) * rng.uniform(0.2, 0.35)
    head = sway + np.concatenate([nods[:, None], turned, np.zeros_like(turned)], axis=1)

    blinks = event_times(rng, frames / FPS, FIGURES.blinks_listening)
    lids = blink_track(
        blinks, frames, FPS, close_s=FIGURES.blink_close_s, open_s=FIGURES.blink_open_s
    )
    lids = np.maximum(lids, 0.25 * away[:, 0])
    glances = _gaze(rng, style.attention * (1 - 0.7 * away[:, 0]))
    # Half of what the head turns the eyes turn back, to stay on the speaker.
    gaze = glances - 0.5 * head[:, :2] * (1 - away)
    stray = smooth_noise(rng, frames, dims=5, fps=FPS)
    return assemble(expr, jaw_open=laugh, head=head, lids=lids, gaze=gaze, stray=stray)


def _gaze(rng: np.random.Generator, attention: np.ndarray) -> np.ndarray:
    """Pitch and yaw of the eyes (time, 2): on the speaker (0) but for glances away.

    Glances have exponential lengths; looks at the speaker are so long that the share of time which
    they take is `attention` (time,).
    """
    frames = len(attention)
    gaze = np.zeros((frames, 2))
    frame = 0
    while frame < frames:
        share = float(attention[frame])
        on = rng.exponential(FIGURES.gaze_away_s * share / (1 - share))
        off = rng.exponential(FIGURES.gaze_away_s)
        start = frame + round(on * FPS)
        stop = start + max(1, round(off * FPS))
        gaze[start:stop] = FIGURES.gaze_away_rad * rng.normal(size=2) * (0.5, 1.0)
        frame = stop
    return blur(gaze, 0.05, FPS)


def _backchannel_audio(rng: np.random.Generator, times: list[float], frames: int) -> np.ndarray:
    """Soft "mhm": two hummed syllables at each time; silence elsewhere."""
    audio = np.zeros(round(frames / FPS * AUDIO_RATE), np.float32)
    f0_hz = float(rng.uniform(*FIGURES.f0_hz))
    hum = tuple(Syllable(start, start + 0.16, vowel="m", stress=0.8) for start in (0.0, 0.2))
    steps = 40
    for time in times:
        first = round(time * AUDIO_RATE)
        sound = voice(rng, hum, ((0.0, 0.36),), arousal=np.zeros(steps), f0_hz=f0_hz, level=0.04)
        audio[first : first + steps * HOP] += sound[: len(audio) - first]
    return audio
