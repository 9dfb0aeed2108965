"""The figures of the synthetic corpus in one place, with units and sources.

Sources are given in full in docs/corpus.md. "Ours" marks a choice for which we know no published
figure.
"""

from __future__ import annotations

from dataclasses import dataclass

from rapport.policies.motion import Layout

FPS = 25.0
LAYOUT = Layout(
    groups=(
        ("expr", 50),
        ("jaw", 3),
        ("neck", 3),
        ("eyelid", 2),
        ("eyepose", 6),
        ("rot", 3),
        ("trans", 3),
    ),
    fps=FPS,
    topology="builtin",
)


@dataclass(frozen=True)
class Lasting:
    """Length of something: log-normal, with a median in seconds and a standard deviation."""

    median_s: float
    log_std: float = 0.25


@dataclass(frozen=True)
class Shape:
    """An event of the face: it rises, holds and falls; the fall is slower than the rise."""

    rise: Lasting
    hold: Lasting
    fall: Lasting


@dataclass(frozen=True)
class Figures:
    """How the people behave.

    Rates are per minute, times in seconds, angles in radians, lengths in metres, frequencies in Hz.
    """

    # The conversation; ours
    training_clips: int = 8  # of a conversation
    held_out_clips: int = 4  # fewer, so that there are more people to judge on

    # What is meant; shares are a design, far from those of people's conversations.
    pointed: float = 0.62  # share of utterances that make a point
    # Shares of the points that are not plain. Irony is 8 % of friends' turns (Gibbs 2000, memory).
    riddles: tuple[tuple[str, float], ...] = (
        ("dry", 0.12),
        ("shown", 0.08),
        ("irony", 0.10),
        ("trouble", 0.14),
        ("comic", 0.18),
        ("outcome", 0.18),
    )
    meaning: tuple[float, float] = (0.6, 1.0)  # how much a point means, either way
    voice_against: float = 0.7  # share of plain points with anger or calm joy in the voice
    phatic: float = 0.3  # share of empty utterances with a smile
    hesitates: float = 0.5  # share of sad points that begin with a filler
    topic_s: float = 15.0  # after that, a topic is named again before its outcome is told
    outcome_within: int = 3  # utterances from a topic to its first outcome

    # Speech
    syllable_s: float = 0.19  # about 5 a second; ours
    # Medium pauses last 0.2 to 1 s, Campione & Veronis 2002; the median is ours.
    pause_median_s: float = 0.65
    pause_log_std: float = 0.4
    # Range of people's mean pitch, low male to high female; ours.
    f0_hz: tuple[float, float] = (105.0, 220.0)
    laugh_hz: float = 4.5  # bursts of a laugh a second, Provine & Yong 1991 (memory)
    backchannel: float = 0.3  # share of nodded phrase ends that also get an audible "mhm"; ours

    # The speaker's face; ours
    resting_valence: float = 0.25  # std over people of the valence that a face shows at rest
    strength_log_std: float = 0.45  # of how much a speaker shows, over people

    # The listener as a person. Expressivity varies between people and little otherwise (Kavanagh
    # 2024); the amounts are ours.
    liveliness_log_std: float = 0.45
    # How much face and head of a lively person do: a power of liveliness, and a spread besides.
    face_by_liveliness: tuple[float, float] = (0.6, 0.2)
    head_by_liveliness: tuple[float, float] = (0.8, 0.4)
    delay_s: tuple[float, float] = (0.35, 1.0)  # smiles follow mostly within 1 s, Riehle 2017
    nodding: float = 0.7  # chance of a nod at the end of a phrase
    # Besides those that go with glances, which make 17, as at rest (Bentivoglio et al. 1997).
    blinks_listening: float = 11.0
    blinks_log_std: float = 0.35  # over people; log-normal, Doughty 2002
    blinks_speaking: float = 26.0  # in conversation, Bentivoglio et al. 1997
    asymmetry: float = 0.08  # std of the left-right difference of a person's expressions; ours
    resting_face: float = 0.04  # std of a person's constant offset on every coefficient; ours

    # What a listener does. Onsets vary less than the rest (Schmidt 2003); medians are ours.
    smile: Shape = Shape(Lasting(0.5), Lasting(1.2, 0.5), Lasting(0.9, 0.3))
    frown: Shape = Shape(Lasting(0.6), Lasting(1.4, 0.5), Lasting(1.0, 0.3))
    flash: Shape = Shape(Lasting(0.16), Lasting(0.2, 0.3), Lasting(0.35))
    press: Shape = Shape(Lasting(0.3), Lasting(0.4, 0.3), Lasting(0.5))
    laugh: Shape = Shape(Lasting(0.25), Lasting(0.5, 0.3), Lasting(0.4))
    own_smiles: float = 2.5  # that nothing said asks for
    own_flashes: float = 2.0
    own_presses: float = 3.0
    nod_hz: tuple[float, float] = (1.5, 2.5)  # the slow end of nodding; ours
    nod_rad: tuple[float, float] = (0.035, 0.09)  # 2 to 5 degrees
    nod_cycles: tuple[int, int] = (1, 4)
    nod_latency_s: tuple[float, float] = (0.1, 0.5)  # after the end of a phrase
    gaze_every_s: float = 4.0  # looks at the speaker 75 % of the time, Argyle & Cook 1976 (memory)
    gaze_away_s: float = 0.9
    gaze_away_rad: float = 0.22
    posture_steps: float = 7.0
    posture_s: float = 0.7
    posture_rad: tuple[float, float, float] = (0.05, 0.06, 0.03)  # std of pitch, yaw, roll
    posture_m: tuple[float, float, float] = (0.012, 0.004, 0.012)  # std of a third of the steps
    blink_s: tuple[float, float, float] = (0.09, 0.03, 0.19)  # close, closed, open

    # What moves without an event. The real figures that this is set by: docs/corpus.md.
    fidget: float = 0.0016  # std of stray ARKit activations and of every expression coefficient
    head_fidget_rad: tuple[float, float, float] = (0.0084, 0.0084, 0.005)
    head_fidget_m: float = 0.0003
    neck_share: float = 0.25  # of the head's rotation, the rest is in `rot`; ours

    # What fits: from when on after a point, and the answer that shows it.
    answer_s: float = 0.45

    # How recorded listeners behave; ours, after "high-quality interactions as well as neutral or
    # inattentive ones".
    manners: tuple[tuple[str, float], ...] = (
        ("empathic", 0.45),
        ("muted", 0.15),
        ("inattentive", 0.25),
        ("polite", 0.15),
    )
    manner_stays: float = 0.7  # chance that it stays the same from clip to clip


FIGURES = Figures()
