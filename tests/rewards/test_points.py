"""Points: who answers them, who does not, and what raters who understand speech make of it."""

import numpy as np
import pytest

from rapport.rewards.ratings.answers import answers, best_level, fits, held, window
from rapport.rewards.ratings.points import Point
from rapport.rewards.ratings.ratings import CRITERIA
from rapport.rewards.ratings.simulated import SimulatedPanel
from rapport.rewards.ratings.speaker_cues import SpeakerCues
from rapport.rewards.ratings.visible import FULL_FROWN_MM, FULL_SMILE_MM, Expression, VisibleMotion

FPS = 25.0
FRAMES = 200
CLOCK = np.arange(FRAMES) / FPS
GLAD = Point(2.0, 0.7, "plain")
BAD = Point(5.0, -0.7, "irony")


def pulse(start, size, seconds=2.0):
    """(time,) a smooth rise and fall from `start` on."""
    phase = np.clip((CLOCK - start) / seconds, 0, 1)
    return size * np.sin(np.pi * phase) ** 2


TRUE = pulse(2.4, 0.6) + pulse(5.4, -0.6)


def face(valence):
    """A face that shows a valence by its mouth alone, on a head that is alive."""
    mouth = np.arctanh(np.broadcast_to(valence, FRAMES))
    lift = np.where(mouth > 0, mouth * FULL_SMILE_MM, mouth * FULL_FROWN_MM)
    pair = np.stack([lift, lift], axis=1)
    rest = np.zeros((FRAMES, 2))
    head = 0.04 * np.sin(2 * np.pi * np.outer(CLOCK, [0.3, 0.4, 0.5]))
    return VisibleMotion(FPS, head, Expression(pair, rest, rest[:, 0], rest, rest, rest + 1))


def rated(points, faces, others=SpeakerCues, prompts=12):
    """face -> criterion -> mean over raters and repetitions."""
    panel = SimulatedPanel(5, seed=0)
    ratings = []
    for name in map(str, range(prompts)):
        speaker = others(points=tuple(points), name=name)
        seen = {key: face(valence) for key, valence in faces.items()}
        ratings += panel.rate(name, speaker, seen)
    return {
        key: {
            c: np.mean([getattr(r, c) for r in ratings if r.candidate_id == key]) for c in CRITERIA
        }
        for key in faces
    }


def rights(shown, points=(GLAD, BAD)):
    return [answer.right for answer in answers(np.broadcast_to(shown, FRAMES), points, FPS)]


def test_right_sign_one_wrong_sign_nothing_and_no_answer_half():
    assert rights(TRUE) == [1, 1]
    assert rights(-TRUE) == [0, 0]
    assert rights(0.0) == [0.5, 0.5]
    assert rights(pulse(2.4, 0.6)) == [1, 0.5]
    assert rights(pulse(2.4, 0.6) + pulse(5.4, 0.6)) == [1, 0]


def test_an_expression_that_is_held_answers_nothing():
    assert rights(0.5) == rights(-0.5) == [0.5, 0.5]
    resting = 0.25 + pulse(2.4, 0.4) - pulse(5.4, 0.6)
    assert rights(resting) == [1, 1]
    assert held(np.full(FRAMES, 0.5), FPS) == pytest.approx(0.5)
    assert held(np.full(FRAMES, -0.5), FPS) == pytest.approx(-0.5)
    assert held(TRUE, FPS) == 0


def test_an_answer_has_its_time():
    early, late = pulse(0.2, 0.6), pulse(4.6, 0.6)
    assert rights(early, [GLAD]) == rights(late, [GLAD]) == [0.5]
    # As an answer begins 0.3 s after the point at the earliest, so does its window.
    assert window(Point(1.7, 0.7, "plain"), FRAMES, FPS) == slice(50, 105)


def test_points_whose_answer_is_outside_the_clip_are_not_counted():
    def counted(time):
        return len(answers(np.zeros(FRAMES), [Point(time, 0.5, "plain")], FPS))

    assert [counted(t) for t in (-1.4, -1.2, 6.4, 6.6)] == [0, 1, 1, 0]
    assert counted(20.0) == 0
    assert answers(np.zeros(FRAMES), [Point(2.0, 0.0, "plain")], FPS) == []


def test_a_listener_fits_who_answers_most_points_and_none_of_them_wrongly():
    three = (Point(1.0, 0.5, "plain"), GLAD, BAD)
    assert fits(answers(TRUE, [GLAD, BAD], FPS))
    assert not fits(answers(pulse(2.4, 0.6), [GLAD, BAD], FPS))  # one of two
    assert not fits(answers(TRUE, [*three, Point(6.0, 0.5, "plain")], FPS))  # frowns at the last
    assert fits([])  # who is asked nothing


def test_the_best_level_is_over_eight_tenths_of_a_second():
    assert best_level((CLOCK < 0.8).astype(float), FPS) == pytest.approx(1)
    assert best_level((CLOCK < 0.4).astype(float), FPS) == pytest.approx(0.5)
    assert best_level(np.array([0.2, 0.4]), FPS) == pytest.approx(0.3)


def test_raters_prefer_who_answers_what_is_meant_to_every_constant():
    constants = {f"{v:+.1f}": np.full(FRAMES, v) for v in (-0.6, -0.3, 0.0, 0.3, 0.6)}
    got = rated([GLAD, BAD], {"true": TRUE, "half": 0.4 * TRUE, "wrong": -TRUE, **constants})
    rest = [got[name] for name in constants]
    for criterion in ("empathy", "appropriateness"):
        assert got["true"][criterion] > max(g[criterion] for g in rest) + 0.8, criterion
        assert got["wrong"][criterion] < got["true"][criterion] - 2, criterion
    assert got["half"]["empathy"] > max(g["empathy"] for g in rest)
    assert got["true"]["empathy"] > got["half"]["empathy"] + 0.8


def test_a_held_smile_earns_half_at_most_even_where_all_is_glad():
    news = [Point(t, 0.7, "plain") for t in (1.0, 5.0)]
    answer = pulse(1.4, 0.6) + pulse(5.4, 0.6)
    got = rated(news, {"answers": answer, "holds": np.full(FRAMES, 0.6), "blank": np.zeros(FRAMES)})
    gain = {name: got[name]["empathy"] - got["blank"]["empathy"] for name in got}
    assert 0 < gain["holds"] < 0.6 * gain["answers"]


def test_a_smile_at_bad_news_is_worse_than_a_frown_at_good_news():
    smile = rated([Point(2.0, -0.7, "plain")], {"a": pulse(2.4, 0.3)})["a"]
    frown = rated([Point(2.0, 0.7, "plain")], {"a": -pulse(2.4, 0.3)})["a"]
    assert smile["appropriateness"] < frown["appropriateness"] - 0.2


def test_what_nobody_asked_for_is_out_of_place():
    nothing = rated([], {"calm": np.zeros(FRAMES), "laughs": pulse(3.0, 0.8)})
    assert nothing["calm"]["appropriateness"] > nothing["laughs"]["appropriateness"] + 0.5
    late = rated([Point(0.5, 0.7, "plain")], {"soon": pulse(0.9, 0.6), "late": pulse(5.7, 0.6)})
    assert late["soon"]["appropriateness"] > late["late"]["appropriateness"] + 0.8


def test_a_smile_may_be_returned_where_nothing_is_meant():
    shown = pulse(3.0, 0.35)

    def returned_to(speaker):
        return rated([], {"a": shown}, lambda **known: SpeakerCues(face(speaker), **known))

    smiling, blank = returned_to(pulse(2.0, 0.6)), returned_to(np.zeros(FRAMES))
    assert smiling["a"]["appropriateness"] > blank["a"]["appropriateness"]
    # A speaker who always smiles does not ask for it.
    always = rated(
        [], {"a": shown}, lambda **known: SpeakerCues(face(np.full(FRAMES, 0.6)), **known)
    )
    assert always["a"] == blank["a"]


def test_twice_what_is_wanted_is_too_much():
    got = rated([GLAD], {"fits": pulse(2.4, 0.6), "too much": pulse(2.4, 0.98)})
    small = rated([Point(2.0, 0.3, "plain")], {"fits": pulse(2.4, 0.26), "much": pulse(2.4, 0.95)})
    assert abs(got["fits"]["empathy"] - got["too much"]["empathy"]) < 0.5
    assert small["fits"]["empathy"] > small["much"]["empathy"] + 0.8


def test_raters_go_by_what_is_meant_and_not_by_words_or_face():
    """Irony: glad words, and what is meant is bad. One of ten raters is mistaken."""
    words = (("wonderful", 1.5, 2.0),)
    point = Point(2.0, -0.7, "irony")
    faces = {"smile": face(pulse(2.4, 0.6)), "concern": face(pulse(2.4, -0.6))}
    panel = SimulatedPanel(400, seed=1, lexicon={"wonderful": 0.9})
    told = panel.rate("p", SpeakerCues(words=words, points=(point,), name="p"), faces)
    liked = [
        concern.empathy > smile.empathy
        for smile, concern in zip(told[:400], told[400:], strict=True)
    ]
    assert 0.85 < np.mean(liked) < 0.94
    untold = panel.rate("p", SpeakerCues(words=words, name="p"), faces)
    assert np.mean([r.empathy for r in untold[:400]]) > np.mean([r.empathy for r in untold[400:]])


def test_who_misreads_what_depends_on_rater_clip_and_point_alone():
    points = (GLAD, BAD)
    seen = {"a": face(TRUE)}

    def grades(name, raters=40, faces=seen):
        ratings = SimulatedPanel(raters, seed=3).rate(
            "p", SpeakerCues(points=points, name=name), faces
        )
        return [r.empathy for r in ratings if r.candidate_id == "a"]

    assert grades("x") == grades("x", faces={"b": face(0.0), **seen})
    assert grades("x", raters=7) == grades("x")[:7]
    assert grades("x") != grades("y")


def test_points_are_enough_to_judge_by_and_their_absence_is_not_silence():
    seen = {"a": face(TRUE)}
    panel = SimulatedPanel(1)
    assert panel.rate("p", SpeakerCues(points=(), name="p"), seen)[0].empathy is not None
    assert panel.rate("p", SpeakerCues(name="p"), seen)[0].empathy is None
