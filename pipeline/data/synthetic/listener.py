"""The listener: many reactions are possible, one is recorded.

What would fit follows what the speaker means alone. What a recorded listener shows depends on a
manner that nothing about the speaker tells, which stays with the listener for a while, and on the
person. All of it is events: a face at rest, and now and then a smile, a frown, a nod, a glance.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import numpy as np

from rapport.pipeline.data.synthetic.face import (
    FaceBasis,
    assemble,
    draw_person,
    expression_coefficients,
)
from rapport.pipeline.data.synthetic.figures import FIGURES, FPS, Lasting, Shape
from rapport.pipeline.data.synthetic.looks import EVENTS, LAUGH_JAW, event_weights
from rapport.pipeline.data.synthetic.prosody import HOP, Syllable, Tone, voice
from rapport.pipeline.data.synthetic.signals import (
    Event,
    blur,
    event_times,
    lid_closure,
    nod,
    smooth_noise,
    steps,
    track,
)
from rapport.pipeline.data.synthetic.speaker import Speaker
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.motion import Motion
from rapport.rewards.ratings.points import Point

MANNERS = tuple(name for name, _ in FIGURES.manners)
SHOWN = 0.75  # valence of a fitting answer to a point of meaning 1


@dataclass(frozen=True)
class Manner:
    """How somebody listens for a while.

    Args:
        smiles: share of the glad points that are answered.
        frowns: share of the sorry ones; fewer are (Riehle 2017: frowns not above chance).
        size: of the answers.
        polite: share of all phrase ends that get a smile, whatever was said.
        nods: scales the chance of a nod.
        own: scales how often the face does something of its own.
        away: 1 = faces elsewhere.
    """

    smiles: float = 0.0
    frowns: float = 0.0
    size: float = 1.0
    polite: float = 0.0
    nods: float = 1.0
    own: float = 1.0
    away: float = 0.0


MannerAt = Callable[[float], Manner]  # at a time in seconds

_MANNERS = {
    "empathic": Manner(smiles=0.95, frowns=0.7),
    "muted": Manner(smiles=0.6, frowns=0.4, size=0.35, nods=0.4, own=0.6),
    "inattentive": Manner(nods=0.05, own=0.15, away=1.0),
    "polite": Manner(polite=0.35, nods=0.8),
}


@dataclass(frozen=True)
class Style:
    """Traits of a listener."""

    liveliness: float  # of the whole person; 1 = as most
    face: float  # scales what the face shows
    head: float  # scales what the head does
    delay_s: float  # from a point to the answer
    nodding: float  # chance of a nod at the end of a phrase
    blinks: float  # a minute


@dataclass(frozen=True, eq=False)
class Listener:
    """A listener over a conversation."""

    style: Style
    manners: tuple[str, ...]  # one for each stretch of time
    expressed: np.ndarray  # (time, 2) valence and arousal that this listener shows
    motion: Motion
    audible: tuple[float, ...]  # when an "mhm" is heard, seconds
    f0_hz: float

    @property
    def traits(self) -> dict[str, float]:
        """The style as name -> value."""
        return asdict(self.style)


def fitting_affect(points: Sequence[Point], clock: np.ndarray) -> np.ndarray:
    """The reaction that fits: a pulse of about 3 s after each point, cut short by the next one.

    Args:
        points: in order of time.
        clock: (time,) seconds, evenly spaced.

    Returns:
        (time, 2) valence and arousal: gladness is livelier than concern.
    """
    answers = [fitting_answer(point.time, point.meaning) for point in points]
    valence = track(_one_at_a_time(answers), clock)
    return np.stack([valence, np.where(valence > 0, 0.4, 0.15) * np.abs(valence)], axis=1)


def fitting_answer(time: float, meaning: float) -> Event:
    """The valence that answers a point made at `time` seconds."""
    start = time + FIGURES.answer_s
    return Event(start, rise=0.5, hold=1.4, fall=1.1, size=SHOWN * meaning)


def draw_style(rng: np.random.Generator) -> Style:
    """Draw a listener's traits at random."""
    liveliness = float(np.exp(FIGURES.liveliness_log_std * rng.normal()))
    return Style(
        liveliness=liveliness,
        face=_part(rng, liveliness, *FIGURES.face_by_liveliness),
        head=_part(rng, liveliness, *FIGURES.head_by_liveliness),
        delay_s=float(rng.uniform(*FIGURES.delay_s)),
        nodding=FIGURES.nodding * liveliness**0.5,
        blinks=FIGURES.blinks_listening * float(np.exp(FIGURES.blinks_log_std * rng.normal())),
    )


def _part(rng: np.random.Generator, liveliness: float, power: float, log_std: float) -> float:
    """How much of a lively person a part of the body shows."""
    return liveliness**power * float(np.exp(log_std * rng.normal()))


def draw_manners(rng: np.random.Generator, count: int) -> tuple[str, ...]:
    """A manner for each of `count` stretches of time, mostly that of the one before."""
    chances = [share for _, share in FIGURES.manners]
    manners: list[str] = []
    for drawn in rng.choice(len(MANNERS), size=count, p=chances):
        stays = rng.random() < FIGURES.manner_stays
        manners.append(manners[-1] if manners and stays else MANNERS[drawn])
    return tuple(manners)


def simulate_listener(
    rng: np.random.Generator, basis: FaceBasis, speaker: Speaker, edges: np.ndarray
) -> Listener:
    """One listener to a whole conversation.

    Args:
        rng: of this listener; the speaker does not depend on it.
        basis: of the head.
        speaker: who is listened to.
        edges: (stretches + 1,) seconds between which a manner stays the same.
    """
    clock = speaker.clock
    person = draw_person(rng)
    style = draw_style(rng)
    manners = draw_manners(rng, len(edges) - 1)

    ends = edges[1:-1].tolist()

    def manner_at(second: float) -> Manner:
        return _MANNERS[manners[bisect_right(ends, second)]]

    answers = _answers(rng, speaker, style, manner_at)
    own = _own_events(rng, clock, style, manner_at)
    tracks = {name: track(answers.get(name, []) + own.get(name, []), clock) for name in EVENTS}
    glad = tracks["smile"]
    sorry = tracks["concern"] + tracks["disapproval"]
    lively = 0.4 * glad + 0.15 * sorry + 0.4 * tracks["laugh"] + 0.3 * tracks["flash"]
    expressed = np.clip(np.stack([glad - sorry, lively], axis=1), -1, 1)

    pitch, audible = _nods(rng, speaker, style, manner_at)
    away = np.array([manner_at(second).away for second in clock])
    expr = expression_coefficients(rng, basis, person, weights=event_weights(tracks))
    motion = _motion(
        rng, style, expr=expr, laugh=tracks["laugh"], nods=pitch, away=away, clock=clock
    )
    return Listener(
        style=style,
        manners=manners,
        expressed=expressed,
        motion=motion,
        audible=tuple(audible),
        f0_hz=float(rng.uniform(*FIGURES.f0_hz)),
    )


def _event(rng: np.random.Generator, shape: Shape, start: float, size: float) -> Event:
    """An event of a shape, of lengths of its own."""
    rise, hold, fall = (_length(rng, part) for part in (shape.rise, shape.hold, shape.fall))
    return Event(start, rise=rise, hold=hold, fall=fall, size=size)


def _length(rng: np.random.Generator, lasting: Lasting) -> float:
    return lasting.median_s * float(np.exp(lasting.log_std * rng.normal()))


def _one_at_a_time(events: list[Event]) -> list[Event]:
    """The same in order of time, each falling when the next one rises."""
    events = sorted(events, key=lambda event: event.start)
    shortened = [event.cut_short(by=after.start) for event, after in pairwise(events)]
    return shortened + events[-1:]


def _answers(
    rng: np.random.Generator, speaker: Speaker, style: Style, manner_at: MannerAt
) -> dict[str, list[Event]]:
    """Smiles, frowns and laughs at what the speaker says, by name of the event."""
    named: list[tuple[str, Event]] = []
    laughs = []
    for phrase in speaker.speech.phrases:
        said = phrase.utterance
        moment = phrase.point
        manner = manner_at(moment)
        draws = rng.random(3)
        start = moment + style.delay_s + 0.08 * float(rng.normal())
        varied = style.face * float(np.exp(0.15 * rng.normal()))
        smile = _event(rng, FIGURES.smile, start, size=0.0)
        frown = _event(rng, FIGURES.frown, start, size=0.0)
        laugh = _event(rng, FIGURES.laugh, start + 0.1, size=0.8 * manner.size * style.face)
        if draws[0] < manner.polite:
            named.append(("smile", _sized(smile, 0.6 * varied)))
        elif said.meaning > 0 and draws[0] < manner.smiles:
            named.append(("smile", _sized(smile, SHOWN * said.meaning * manner.size * varied)))
            if draws[1] < 0.5 * said.laughs:
                laughs.append(laugh)
        elif said.meaning < 0 and draws[0] < manner.frowns:
            # Anger at somebody else is met with disapproval, grief with concern.
            name = "disapproval" if said.arousal > 0 else "concern"
            named.append((name, _sized(frown, -SHOWN * said.meaning * manner.size * varied)))
    named.sort(key=lambda entry: entry[1].start)
    cut = _one_at_a_time([event for _, event in named])
    answers: dict[str, list[Event]] = {"laugh": laughs}
    for (name, _), event in zip(named, cut, strict=True):
        answers.setdefault(name, []).append(event)
    return answers


def _sized(event: Event, size: float) -> Event:
    return replace(event, size=float(np.clip(size, 0, 1.1)))


def _own_events(
    rng: np.random.Generator, clock: np.ndarray, style: Style, manner_at: MannerAt
) -> dict[str, list[Event]]:
    """What a face does besides, which nothing said asks for."""
    rates = {
        "smile": (FIGURES.own_smiles, FIGURES.smile, 0.35),
        "flash": (FIGURES.own_flashes, FIGURES.flash, 0.5),
        "press": (FIGURES.own_presses, FIGURES.press, 0.6),
    }
    events: dict[str, list[Event]] = {}
    for name, (rate, shape, size) in rates.items():
        times = event_times(rng, clock[0], clock[-1], rate * style.liveliness)
        willing = rng.random(len(times))
        drawn = [
            _event(rng, shape, start, size * style.face * float(np.exp(0.3 * rng.normal())))
            for start in times
        ]
        events[name] = [
            event
            for event, draw in zip(drawn, willing, strict=True)
            if draw < manner_at(event.start).own
        ]
    return events


def _nods(
    rng: np.random.Generator, speaker: Speaker, style: Style, manner_at: MannerAt
) -> tuple[np.ndarray, list[float]]:
    """Nods at the ends of the speaker's phrases, and the times of audible backchannels.

    Returns:
        (time,) pitch of the head in radians, and seconds.
    """
    clock = speaker.clock
    pitch = np.zeros(len(clock))
    audible = []
    for phrase in speaker.speech.phrases:
        draws = rng.random(2)
        start = phrase.end + rng.uniform(*FIGURES.nod_latency_s)
        hz = rng.uniform(*FIGURES.nod_hz)
        radians = rng.uniform(*FIGURES.nod_rad) * style.head
        cycles = int(rng.integers(FIGURES.nod_cycles[0], FIGURES.nod_cycles[1] + 1))
        chance = style.nodding * manner_at(start).nods * (0.3 + 1.4 * phrase.call)
        if draws[0] < chance and start < clock[-1]:
            pitch += nod(clock, start, hz=hz, radians=radians, cycles=cycles)
            if draws[1] < FIGURES.backchannel:
                audible.append(start)
    return pitch, audible


def _motion(
    rng: np.random.Generator,
    style: Style,
    expr: np.ndarray,
    laugh: np.ndarray,
    nods: np.ndarray,
    away: np.ndarray,
    clock: np.ndarray,
) -> Motion:
    """How the listener moves.

    Args:
        rng: of everything that no trait or event decides.
        style: the listener's traits.
        expr: (time, 50) coefficients of the expression.
        laugh: (time,) how much the listener laughs.
        nods: (time,) pitch in radians.
        away: (time,) how inattentive the listener is, 0 to 1.
        clock: (time,) seconds.
    """
    frames = len(clock)
    poses, place = _posture(rng, style, clock)
    glances, turned, blinks = _glances(rng, away, clock)
    noise = smooth_noise(rng, frames, dims=3, fps=FPS, corner_hz=0.5)
    fidget = np.array(FIGURES.head_fidget_rad) * style.head**0.5 * noise
    place += FIGURES.head_fidget_m * noise
    elsewhere = blur(away, 0.25, FPS) * rng.choice([-1.0, 1.0]) * rng.uniform(0.2, 0.35)
    head = poses + fidget
    head[:, 0] += nods
    head[:, 1] += turned + elsewhere
    # Who laughs throws the head back and shakes.
    head[:, 0] -= laugh * (0.05 + 0.015 * np.sin(2 * np.pi * 2.2 * clock))

    blinks += event_times(rng, clock[0], clock[-1], style.blinks)
    lids = np.maximum(lid_closure(blinks, FIGURES.blink_s, clock), 0.25 * blur(away, 0.1, FPS))
    # Half of what the head turns the eyes turn back, to stay on the speaker.
    gaze = glances - 0.5 * (head[:, :2] - fidget[:, :2]) * (1 - away[:, None])
    return assemble(
        expr,
        jaw_open=1.2 * LAUGH_JAW * laugh,
        head=head,
        lids=lids,
        gaze=blur(gaze, 0.02, FPS),
        place=place,
        stray=smooth_noise(rng, frames, dims=5, fps=FPS),
    )


def _posture(
    rng: np.random.Generator, style: Style, clock: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (time, 3) in radians and place (time, 3) in metres, kept between steps."""
    rate = FIGURES.posture_steps * style.liveliness
    times = event_times(rng, clock[0], clock[-1], rate)
    lengths = FIGURES.posture_s * np.exp(0.25 * rng.normal(size=len(times)))
    poses = style.head * np.array(FIGURES.posture_rad) * rng.normal(size=(len(times) + 1, 3))
    places = style.head * np.array(FIGURES.posture_m) * rng.normal(size=(len(times) + 1, 3))
    moves = rng.random(len(times)) < 1 / 3
    for number, move in enumerate(moves):
        if not move:
            places[number + 1] = places[number]
    return steps(times, poses, lengths, clock), steps(times, places, lengths, clock)


def _glances(
    rng: np.random.Generator, away: np.ndarray, clock: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Looks away from the speaker, more of them where the listener is inattentive.

    Returns:
        (time, 2) pitch and yaw of the eyes, (time,) yaw of the head that goes with some of them,
        and the times of the blinks that go with others.
    """
    gaze = np.zeros((len(clock), 2))
    turns: list[Event] = []
    blinks: list[float] = []
    frame = 0
    while True:
        every = FIGURES.gaze_every_s * (1 - 0.6 * away[frame]) - FIGURES.gaze_away_s
        start = clock[frame] + rng.exponential(every)
        length = 0.15 + rng.exponential(FIGURES.gaze_away_s)
        aim = FIGURES.gaze_away_rad * rng.normal(size=2) * (0.5, 1.0)
        with_head, with_blink = rng.random(2) < (0.25, 0.4)
        first = int((start - clock[0]) * FPS)
        last = int((start + length - clock[0]) * FPS) + 1
        if last >= len(clock):
            return gaze, track(turns, clock), blinks
        gaze[first:last] = aim
        if with_head:
            turns.append(Event(start, rise=0.35, hold=length, fall=0.45, size=0.5 * aim[1]))
        if with_blink:
            blinks.append(start)
        frame = last


def backchannel_audio(
    rng: np.random.Generator, listener: Listener, start: float, seconds: float
) -> np.ndarray:
    """Soft "mhm": two hummed syllables at each time; silence elsewhere.

    Args:
        rng: of the noise in it.
        listener: who hums.
        start: seconds at which the sound begins.
        seconds: its length.
    """
    audio = np.zeros(round(seconds * AUDIO_RATE), np.float32)
    hum = tuple(Syllable(begin, begin + 0.16, vowel="m", stress=0.8) for begin in (0.0, 0.2))
    length = 40
    for time in listener.audible:
        first = round((time - start) * AUDIO_RATE)
        if first < 0:
            continue
        sound = voice(rng, hum, ((0.0, 0.36),), Tone.calm(length), f0_hz=listener.f0_hz, level=0.04)
        audio[first : first + length * HOP] += sound[: len(audio) - first]
    return audio
