"""The figures of the synthetic corpus in one place, with units and sources.

Sources are given in full in docs/corpus.md. "Ours" marks a choice for which we know no published
figure.
"""

from __future__ import annotations

from dataclasses import dataclass

from rapport.policies.motion import Layout

FPS = 25.0
LAYOUT = Layout(
    groups=(("expr", 50), ("jaw", 3), ("neck", 3), ("eyelid", 2), ("eyepose", 6), ("rot", 3)),
    fps=FPS,
    topology="builtin",
)


@dataclass(frozen=True)
class Figures:
    """How the two people behave.

    Rates are per minute, times in seconds, angles in radians, frequencies in Hz.
    """

    # The conversation
    clips_per_dyad: int = 8  # a dyad of 32 s at 4 s a clip; ours
    episode_clips: tuple[int, ...] = (1, 1, 2)  # lengths of an affect episode in clips; ours
    # Share of episodes that begin inside a clip, not near its start; ours.
    mid_clip_onset: float = 0.15

    # Speech
    syllable_s: float = 0.19  # about 5 a second; ours
    # Medium pauses last 0.2 to 1 s, Campione & Veronis 2002; the median is ours.
    pause_median_s: float = 0.5
    pause_log_std: float = 0.5
    # Range of people's mean pitch, low male to high female; ours.
    f0_hz: tuple[float, float] = (105.0, 220.0)
    backchannel: float = 0.3  # share of nodded phrase ends that also get an audible "mhm"; ours

    # Eyes
    # At rest, Bentivoglio et al. 1997; listening alone does not raise it (Brych 2021).
    blinks_listening: float = 17.0
    blinks_speaking: float = 26.0  # in conversation, Bentivoglio et al. 1997
    blink_close_s: float = 0.10  # ours; a blink of about 0.3 s in all
    blink_open_s: float = 0.20
    gaze_on_speaker: float = 0.75  # share of listening time, Argyle & Cook 1976
    gaze_away_s: float = 1.2  # mean length of a glance away; ours
    gaze_away_rad: float = 0.22

    # Head
    # Ours: the slow end of nodding, so that a 5 Hz spline can carry it.
    nod_hz: tuple[float, float] = (1.3, 2.4)
    nod_rad: tuple[float, float] = (0.03, 0.09)  # 2 to 5 degrees; ours
    nod_cycles: tuple[int, int] = (1, 3)
    nod_latency_s: tuple[float, float] = (0.1, 0.5)  # after the end of a phrase; ours
    # Pitch, yaw, roll; half of the real dyad's (test).
    sway_rad: tuple[float, float, float] = (0.05, 0.06, 0.03)
    neck_share: float = 0.25  # of the head's rotation, the rest is in `rot`; ours

    # Face
    # Mean latency is under 0.9 s (Sato & Yoshikawa 2005; Riehle 2017).
    reaction_delay_s: tuple[float, float] = (0.4, 1.2)
    nominal_delay_s: float = 0.8
    reaction_rise_s: float = 0.3  # time constant of a facial reaction; ours
    asymmetry: float = 0.08  # std of the left-right difference of a person's expressions; ours
    fidget: float = 0.02  # std of stray ARKit activations; ours
    coefficient_noise: float = 0.02  # std on every expression coefficient; ours
    resting_face: float = 0.04  # std of a person's constant offset on every coefficient; ours

    # How recorded listeners behave; ours, after "high-quality interactions as well as neutral or
    # inattentive ones"
    manners: tuple[tuple[str, float], ...] = (
        ("empathic", 0.45),
        ("muted", 0.15),
        ("inattentive", 0.25),
        ("polite", 0.15),
    )


FIGURES = Figures()
