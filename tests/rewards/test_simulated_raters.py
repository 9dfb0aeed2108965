"""Simulated raters: better reactions score higher, the same is rated the same, what is not seen is
missing.
"""

from dataclasses import replace

import numpy as np
import pytest

from rapport.rewards.ratings.following import empathy, perceived_valence
from rapport.rewards.ratings.presence import engagement, facing, naturalness
from rapport.rewards.ratings.ratings import CRITERIA
from rapport.rewards.ratings.simulated import Looks, SimulatedPanel, Taken, impressions, to_grades
from rapport.rewards.ratings.speaker_cues import (
    SpeakerCues,
    SpeakerRead,
    read_speaker,
    spoken_valence,
)
from rapport.rewards.ratings.traits import RaterTraits, draw_raters
from rapport.rewards.ratings.visible import Expression, VisibleMotion, displayed_valence
from rapport.rewards.ratings.voice import CLIP, frame_levels, voice_activity

FPS, FRAMES, RATE = 25.0, 100, 16_000
CLOCK = np.arange(FRAMES) / FPS
LEXICON = {"happy": 0.8, "love": 0.7, "died": -0.9, "terrible": -0.8}
GOOD = (("i", 0.1, 0.2), ("am", 0.2, 0.3), ("so", 0.3, 0.5), ("Happy!", 0.5, 1.0))
BAD = (("he", 0.1, 0.2), ("died", 0.3, 0.8))


def sway(seed=0, size=0.03):
    """(time, 3) slow head movement, as living people have."""
    rng = np.random.default_rng(seed)
    waves = np.sin(
        2 * np.pi * np.multiply.outer(CLOCK, rng.uniform(0.2, 0.9, (3, 3)))
        + rng.uniform(0, 6, (3, 3))
    )
    return size * waves.sum(axis=2)


def looks(lift=0.0, head=None, knit=0.0, noise=0.0, eyes=1.0, seed=0):
    """A face whose mouth corners are lifted by `lift` mm and inner brows lowered by `knit` mm."""
    rng = np.random.default_rng(seed)

    def pair(value):
        column = np.broadcast_to(value, FRAMES).astype(float)
        return np.stack([column, column], axis=1) + noise * rng.normal(size=(FRAMES, 2))

    alive = 0.4 * np.sin(2 * np.pi * 0.5 * CLOCK)  # lips are never quite still
    expression = Expression(
        mouth_lift=pair(lift + alive),
        mouth_spread=pair(0),
        lip_opening=np.zeros(FRAMES),
        brow_inner=pair(-knit),
        brow_outer=pair(0),
        eye_opening=np.full((FRAMES, 2), eyes),
    )
    return VisibleMotion(FPS, sway(seed) if head is None else head, expression)


def still():
    zero = np.zeros((FRAMES, 2))
    return VisibleMotion(
        FPS, np.zeros((FRAMES, 3)), Expression(zero, zero, zero[:, 0], zero, zero, zero + 1)
    )


def speech(voiced):
    """(samples,) a 150 Hz hum wherever `voiced` (time,) says so."""
    gate = np.repeat(np.asarray(voiced, float), int(RATE / FPS))
    return 0.1 * gate * np.sin(2 * np.pi * 150 * np.arange(len(gate)) / RATE)


HAPPY = SpeakerCues(looks(8.0), GOOD, speech(CLOCK < 3))
SAD = SpeakerCues(looks(-4.0, knit=2), BAD, speech(CLOCK < 3))
SILENT = SpeakerCues()


@pytest.fixture(scope="module")
def panel():
    return SimulatedPanel(5, seed=0, lexicon=LEXICON)


def means(panel, speaker, candidates, prompts=20):
    """candidate -> criterion -> mean over raters and over repetitions with other noise."""
    ratings = [r for p in range(prompts) for r in panel.rate(str(p), speaker, candidates)]
    return {
        c: {k: np.mean([getattr(r, k) for r in ratings if r.candidate_id == c]) for k in CRITERIA}
        for c in candidates
    }


def test_a_smile_answers_joy_and_a_frown_grief(panel):
    faces = {"smile": looks(6.0), "blank": looks(0.0), "frown": looks(-3.0, knit=1)}
    joy, grief = means(panel, HAPPY, faces), means(panel, SAD, faces)
    for criterion in ("empathy", "appropriateness"):
        for answers, best, worst in ((joy, "smile", "frown"), (grief, "frown", "smile")):
            assert answers[best][criterion] > answers["blank"][criterion] + 0.5, criterion
            assert answers["blank"][criterion] > answers[worst][criterion] + 0.2, criterion
    assert grief["smile"]["appropriateness"] < 1.5
    assert joy["smile"]["empathy"] > 4


def test_a_smile_that_follows_beats_one_that_comes_before_or_late():
    """Empathy is about following: with a speaker who lights up at 1 s, the reaction belongs soon
    after it.
    """
    wanted = np.tile(np.where(CLOCK >= 1.0, 0.7, 0.0), (2, 1))
    patience = np.array([1.0, 1.5])

    def score(onset):
        return empathy(0.7 * (CLOCK - onset >= 0), wanted, patience, FPS)

    assert score(1.4) == pytest.approx([1, 1])
    assert score(2.4)[0] < score(2.4)[1] == pytest.approx(1)  # the patient one does not mind 1.4 s
    assert (score(0.0) < 0.8).all() and (score(3.6) < 0.6).all()


def test_empathy_by_hand():
    wanted = np.full((1, FRAMES), 0.5)
    got = empathy(np.full(FRAMES, 0.15), wanted, np.array([1.0]), FPS)
    assert got == pytest.approx(np.exp([-0.5]))  # off by AGREE = 0.35


def test_a_reaction_to_nothing_is_out_of_place(panel):
    neutral = SpeakerCues(looks(0.0), (("the", 0.1, 0.3), ("bus", 0.3, 0.6)))
    got = means(panel, neutral, {"calm": looks(1.0), "grin": looks(14.0)})
    assert got["calm"]["appropriateness"] > got["grin"]["appropriateness"] + 0.5


def test_nods_in_pauses_beat_nods_anywhere_and_none():
    pauses = (CLOCK > 2) & (CLOCK < 3)
    nod = 0.06 * np.sin(2 * np.pi * 2 * CLOCK)

    def score(where):
        head = sway()
        head[:, 0] += nod * where
        return engagement(looks(head=head), pauses)

    in_pause, before, always, none = (
        score(pauses),
        score((CLOCK > 0.2) & (CLOCK < 1.2)),
        score(1),
        score(0),
    )
    assert in_pause > before + 0.1 and in_pause > none + 0.1
    assert in_pause > always + 0.02  # nodding all the time is no answer


def test_shaking_is_not_nodding():
    nod, shake = sway(), sway()
    wave = 0.05 * np.sin(2 * np.pi * 2 * CLOCK)
    nod[:, 0] += wave
    shake += wave[:, None]
    assert engagement(looks(head=nod), None) > engagement(looks(head=shake), None) + 0.1


def test_facing_counts_once_over_all_criteria(panel):
    averted = sway()
    averted[:, 1] += 0.4
    got = means(panel, HAPPY, {"here": looks(6.0), "elsewhere": looks(6.0, head=averted)})
    assert got["here"]["engagement"] > got["elsewhere"]["engagement"] + 1
    # What is left of a difference is the halo of the whole impression, at most a quarter of it.
    for criterion in ("empathy", "appropriateness", "naturalness"):
        assert abs(got["here"][criterion] - got["elsewhere"][criterion]) < 0.4, criterion


def test_facing_by_hand():
    head = np.zeros((FRAMES, 3))
    assert facing(looks(head=head)) == 1
    head[:, 1] = 0.2
    assert facing(looks(head=head)) == pytest.approx(np.exp(-0.5)) == facing(looks(head=-head))


def test_frozen_averted_sleeping_and_frantic_listeners_are_not_engaged():
    usual = engagement(looks(), None)
    averted = sway()
    averted[:, 1] += 0.6
    assert engagement(still(), None) == 0
    assert engagement(looks(head=averted), None) < 0.5 * usual
    assert engagement(looks(eyes=0.1), None) < 0.5 * usual
    assert engagement(looks(head=12 * sway()), None) < 0.5 * usual


def test_smooth_beats_jittery_and_the_more_so_the_more_it_jitters():
    scores = [naturalness(looks(noise=mm)) for mm in (0.0, 0.3, 0.6, 1.2)]
    assert scores[0] > 0.95 and scores == sorted(scores, reverse=True) and scores[-1] < 0.1


def test_jumps_grimaces_lopsided_and_dead_faces_are_unnatural():
    usual = naturalness(looks())
    jump = sway()
    jump[50:] += 0.5
    assert naturalness(looks(head=jump)) < 0.9 * usual
    assert naturalness(looks(lift=40.0)) < 0.5 * usual
    assert naturalness(still()) < 0.5 * usual
    face = looks()
    half = Expression(
        **{**vars(face.expression), "mouth_lift": face.expression.mouth_lift + np.array([8.0, 0.0])}
    )
    assert naturalness(VisibleMotion(FPS, face.head, half)) < 0.5 * usual


def test_blinks_are_natural():
    face = looks()
    blink = Expression(
        **{
            **vars(face.expression),
            "eye_opening": np.where(np.arange(FRAMES) % 40 < 4, 0, 1.0)[:, None] * np.ones(2),
        }
    )
    assert naturalness(VisibleMotion(FPS, face.head, blink)) == naturalness(face)


def test_same_seed_rater_prompt_and_candidate_same_rating(panel):
    faces = {"a": looks(6.0, seed=1), "b": looks(0.0, seed=2), "c": looks(-3.0, seed=3)}
    whole = panel.rate("p", HAPPY, faces)
    apart = [
        r
        for name in reversed(faces)
        for r in SimulatedPanel(5, 0, LEXICON).rate("p", HAPPY, {name: faces[name]})
    ]
    key = lambda r: (r.candidate_id, r.rater)  # noqa: E731
    assert sorted(whole, key=key) == sorted(apart, key=key)
    fewer = SimulatedPanel(2, 0, LEXICON).rate("p", HAPPY, faces)
    assert fewer == [r for r in whole if r.rater in ("simulated-0", "simulated-1")]
    assert SimulatedPanel(5, 1, LEXICON).rate("p", HAPPY, faces) != whole


def test_noise_differs_by_prompt_candidate_and_rater(panel):
    face = looks(3.0)

    def grades(prompt, candidate):
        return [
            (r.empathy, r.appropriateness, r.engagement, r.naturalness)
            for r in panel.rate(prompt, HAPPY, {candidate: face})
        ]

    assert len({tuple(grades(str(p), "a")) for p in range(20)}) > 3
    assert len({tuple(grades("p", str(c))) for c in range(20)}) > 3
    assert len(set(grades("p", "a"))) > 1


def test_grades_are_whole_numbers_by_people_who_are_called_simulated(panel):
    ratings = panel.rate("p", HAPPY, {"a": looks(5.0), "b": looks(noise=2.0)})
    assert [r.rater for r in ratings[:5]] == [f"simulated-{i}" for i in range(5)]
    values = [getattr(r, c) for r in ratings for c in CRITERIA]
    assert all(isinstance(v, int) and 1 <= v <= 5 for v in values)


def test_what_cannot_be_seen_is_missing_not_guessed(panel):
    for speaker in (
        SILENT,
        SpeakerCues(audio=HAPPY.audio),
        SpeakerCues(VisibleMotion(FPS, sway(), None)),
    ):
        for rating in panel.rate("p", speaker, {"a": looks(5.0)}):
            assert rating.empathy is None and rating.appropriateness is None
            assert rating.engagement is not None and rating.naturalness is not None
    for rating in panel.rate("p", HAPPY, {"hidden": VisibleMotion(FPS, sway(), None)}):
        assert (
            rating.empathy is None
            and rating.appropriateness is None
            and rating.naturalness is not None
        )
    for rating in panel.rate("p", HAPPY, {"not rendered": None}):
        assert [getattr(rating, c) for c in CRITERIA] == [None] * 4
    deaf_to_words = SimulatedPanel(1).rate("p", SpeakerCues(words=GOOD), {"a": looks(5.0)})
    assert deaf_to_words[0].empathy is None


def test_words_alone_and_face_alone_are_enough(panel):
    faces = {"smile": looks(6.0), "frown": looks(-3.0)}
    for speaker in (SpeakerCues(words=GOOD), SpeakerCues(visible=looks(8.0))):
        got = means(panel, speaker, faces)
        assert got["smile"]["empathy"] > got["frown"]["empathy"] + 1


def test_speaker_and_listener_must_be_in_step(panel):
    short = VisibleMotion(
        FPS, sway()[:50], Expression(**{k: v[:50] for k, v in vars(looks().expression).items()})
    )
    with pytest.raises(ValueError, match="100 frames at 25 fps, listener for 50"):
        panel.rate("p", HAPPY, {"a": short})


def test_raters_differ_and_their_grades_follow_their_traits():
    raters = draw_raters(5, 0)
    assert len(set(raters.leniency)) == 5
    assert (np.diff(raters.thresholds, axis=1) > 0).all()
    latent, quiet = np.tile(np.linspace(0, 1, 4), (5, 1)), np.zeros((5, 4))
    grades = to_grades(latent, quiet, raters)
    assert (np.diff(grades, axis=1) >= 0).all()
    assert (to_grades(latent, quiet + 3, raters) >= grades).all()
    missing = latent.copy()
    missing[:, 0] = np.nan
    assert np.isnan(to_grades(missing, quiet, raters)[:, 0]).all()
    one = RaterTraits(
        *(np.array([value]) for value in (0.5, 0.8, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)),
        thresholds=np.array([[1.5, 2.5, 3.5, 4.5]]),
    )
    impression = np.array(
        [[0.0, 0.5, 0.7, 1.0]]
    )  # grades 1, 3, 3.8 and 5 before rounding; 3.2 on the whole

    def grade(**traits):
        return to_grades(
            impression,
            np.ones((1, 4)),
            replace(one, **{k: np.array([v]) for k, v in traits.items()}),
        )[0]

    assert grade().tolist() == [1, 3, 4, 5]
    assert grade(leniency=0.8).tolist() == [2, 4, 5, 5]
    assert grade(stretch=0.5).tolist() == [2, 3, 3, 4]
    assert grade(halo=0.6).tolist() == [2, 3, 3, 4]
    assert grade(noise=-1.0).tolist() == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="panel of 0"):
        SimulatedPanel(0)


def test_impressions_lie_in_the_unit_interval():
    read = SpeakerRead(
        face=np.full(FRAMES, -0.9), meaning=None, liveliness=np.ones(FRAMES), pauses=None
    )
    raters = draw_raters(3, 0)
    taken = Taken(read, perceived_valence(read, raters))
    for face in (looks(4.0), looks(60.0, noise=30.0), still(), looks(-60.0, head=99 * sway())):
        latent = impressions(Looks.of(face), taken, raters)
        assert latent.shape == (3, 4) and (latent >= 0).all() and (latent <= 1).all()


def test_voice_activity_and_energy():
    voiced = (CLOCK >= 1) & (CLOCK < 2)
    level = frame_levels(speech(voiced), RATE, FRAMES, FPS)
    assert level[30] == pytest.approx(10 * np.log10(0.1**2 / 2), abs=0.2)
    assert level[5] == pytest.approx(-100)
    assert np.array_equal(voice_activity(level, CLIP), voiced)
    gap = voiced & ~((CLOCK >= 1.4) & (CLOCK < 1.6))  # 5 frames within a word
    assert np.array_equal(
        voice_activity(frame_levels(speech(gap), RATE, FRAMES, FPS), CLIP), voiced
    )
    assert not voice_activity(np.full(FRAMES, -90.0), CLIP).any()
    short = frame_levels(speech(voiced)[:RATE], RATE, FRAMES, FPS)
    assert len(short) == FRAMES and (short[25:] == -100).all()


def test_words_count_from_when_they_were_said():
    valence = spoken_valence(GOOD, LEXICON, FRAMES, FPS)
    assert (valence[CLOCK < 1] == 0).all()
    assert valence[25] == pytest.approx(np.tanh(1.5 * 0.8))
    assert 0 < valence[-1] < valence[25]
    assert (spoken_valence((), LEXICON, FRAMES, FPS) == 0).all()


def test_what_is_made_of_a_speaker():
    read = read_speaker(HAPPY, LEXICON, FRAMES, FPS)
    assert read.has_affect and (read.face > 0.6).all()
    assert read.pauses[80:].all() and not read.pauses[:70].any()
    assert read.face.mean() == pytest.approx(
        displayed_valence(HAPPY.visible.expression).mean(), abs=0.02
    )
    nothing = read_speaker(SILENT, LEXICON, FRAMES, FPS)
    assert (nothing.face, nothing.meaning, nothing.liveliness, nothing.pauses) == (None,) * 4
    assert not nothing.has_affect
