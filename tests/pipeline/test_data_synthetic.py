"""The synthetic corpus: deterministic, complete, one-to-many, a task for all cues together, with
people's figures; and imitation collapses on it.
"""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from rapport.pipeline.data.collapse import regression_collapse
from rapport.pipeline.data.statistics import amplitude_shares, motion_statistics
from rapport.pipeline.data.store import (
    Corpus,
    CorpusError,
    load_appropriate,
    load_labels,
    load_points,
    load_truth,
)
from rapport.pipeline.data.synthetic.figures import FIGURES, FPS, LAYOUT
from rapport.pipeline.data.synthetic.generate import (
    Conversation,
    Design,
    _basis,
    generate_corpus,
    listener_of,
    simulate,
    speaker_of,
)
from rapport.pipeline.data.synthetic.listener import SHOWN, draw_manners, fitting_affect
from rapport.pipeline.data.synthetic.looks import CHANNELS, event_weights, expression_of
from rapport.pipeline.data.synthetic.prosody import Syllable, Tone, voice
from rapport.pipeline.data.synthetic.script import KINDS, Script
from rapport.pipeline.data.synthetic.signals import (
    BAND_HZ,
    Event,
    event_times,
    lid_closure,
    nod,
    smooth_noise,
    steps,
    track,
)
from rapport.pipeline.data.synthetic.task import RULES, measure
from rapport.pipeline.data.synthetic.words import (
    EMPTY,
    LEXICON,
    OUTCOMES,
    TOPIC,
    TOPICS,
    VALENCE_WORDS,
    say,
    syllables,
)
from rapport.pipeline.data.windows import HEARD_S
from rapport.pipeline.recipes.prepare import mean_events
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.motion import Motion
from rapport.rewards.ratings.answers import answers, fits
from rapport.rewards.ratings.points import Point
from rapport.rewards.ratings.voice import RECORDING, step_levels, voice_activity

CONVERSATIONS = 12
UNSEEN = Design(frames=0, riddles=1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    """Without video: 12 conversations to train on, 1 to choose on, 6 to test, 4 listeners each."""
    path = tmp_path_factory.mktemp("synthetic") / "c"
    return generate_corpus(path, 8 * CONVERSATIONS, 4, 24, design=UNSEEN, workers=0)


@pytest.fixture(scope="module")
def dyads(corpus) -> list[list]:
    """Training clips by dyad, in order of time."""
    by_dyad: dict[str, list] = {}
    for clip in corpus.clips("train"):
        by_dyad.setdefault(clip.dyad_id, []).append(clip)
    return list(by_dyad.values())


@pytest.fixture(scope="module")
def speakers():
    """Of 20 training conversations of 52 s."""
    return [speaker_of(Conversation("train", number, 8, design=UNSEEN)) for number in range(20)]


def whole(clips, name: str) -> Motion:
    return Motion(np.concatenate([getattr(clip, name).values for clip in clips]), LAYOUT)


def turn_statistics(speaker: np.ndarray, listener: np.ndarray) -> dict[str, float]:
    """Shares of the time in which each, both or neither speaks, and the speaker's median pause.

    Of masks every 10 ms; what comes before the first word and after the last one is no pause.
    """
    edges = np.flatnonzero(np.diff(speaker)) + 1
    lengths = [end - start for start, end in pairwise(edges) if not speaker[start]]
    return {
        "speaker": float(speaker.mean()),
        "listener": float(listener.mean()),
        "overlap": float((speaker & listener).mean()),
        "silence": float((~speaker & ~listener).mean()),
        "pause_median_s": float(np.median(lengths) / 100) if lengths else float("nan"),
    }


# -- Files --


def test_a_clip_has_every_modality_and_its_past(tmp_path):
    design = Design(listeners=2, riddles=1, frames=2, image_size=32)
    corpus = generate_corpus(tmp_path / "c", 2, 1, 1, design=design, workers=0)
    assert corpus.manifest["clips"] == {"test": 2, "train": 4, "validation": 2}
    clip = corpus.clip("train-0000-1-1")
    assert clip.absent == [] and clip.listener.layout == LAYOUT and LAYOUT.dim == 70
    assert clip.listener.values.shape == clip.speaker.values.shape == (100, 70)
    assert clip.speaker_frames.shape == (8, 32, 32, 3)
    assert len(clip.speaker_audio) == len(clip.listener_audio) == 4 * AUDIO_RATE
    assert 2 <= len(clip.words) <= 20 and all(0 <= w.start < w.end <= 4 for w in clip.words)
    assert clip.speaker_frames.std() > 20  # a head, not an empty picture
    difference = clip.speaker_frames[0].astype(int) - clip.speaker_frames[2]
    assert np.abs(difference).max() > 20  # that moves
    assert np.abs(clip.speaker_shape - corpus.at("test", 0).speaker_shape).max() > 0.1  # another

    # What came before the second clip is the first one; what was said reaches back further.
    before = corpus.clip("train-0000-1-0")
    assert (clip.start, before.start) == (4, 0)
    assert np.array_equal(clip.past.listener.values, before.listener.values)
    assert np.array_equal(clip.past.speaker.values, before.speaker.values)
    assert np.array_equal(clip.past.speaker_audio, before.speaker_audio)
    assert np.array_equal(clip.past.speaker_frames, before.speaker_frames)
    assert -HEARD_S <= clip.past.words[0].start < -HEARD_S + 5 and clip.past.words[-1].end < 1
    assert len(before.past.listener) == 100, "the first clip has its whole past, too"
    assert before.past.speaker_audio.std() > 0.01


def test_frames_are_taken_at_even_moments(tmp_path):
    """Frame k at (k + .5) / rate seconds: at 1 a second those of 0.5 s, 1.5 s, ..."""
    one = Conversation("train", 0, 1, design=Design(listeners=1, frames=1, image_size=16))
    five = replace(one, design=replace(one.design, frames=5))
    sparse = simulate(one)[0].clip.speaker_frames
    dense = simulate(five)[0].clip.speaker_frames
    assert len(sparse) == 4 and len(dense) == 20
    assert np.array_equal(sparse, dense[2::5]), "0.5 s is the third of five"


def test_a_clip_without_a_past_or_a_longer_one():
    design = Design(listeners=1, frames=1, image_size=16)
    none = simulate(Conversation("test", 0, 1, design=replace(design, past=0)))[0].clip
    assert none.past is None and none.speaker_frames.shape[0] == 4
    long = simulate(Conversation("test", 0, 2, design=replace(design, past=6)))[1].clip
    assert len(long.past.listener) == 150 and len(long.past.speaker_frames) == 6
    assert np.array_equal(none.listener.values, long.past.listener.values[50:])


def test_same_seed_same_files_whatever_the_workers(tmp_path):
    design = Design(listeners=2, frames=1, image_size=16)
    alone = generate_corpus(tmp_path / "a", 9, 1, 1, design=design, seed=3, workers=0)
    pool = generate_corpus(tmp_path / "b", 9, 1, 1, design=design, seed=3, workers=2)
    other = generate_corpus(tmp_path / "c", 9, 1, 1, design=design, seed=4, workers=0)
    assert alone.digest == pool.digest != other.digest
    assert alone.manifest == pool.manifest


def test_a_clip_does_not_depend_on_how_many_others_there_are(corpus):
    few = Conversation("train", 1, clips=2, design=replace(UNSEEN, listeners=2))
    for sample in simulate(few):
        clip = corpus.clip(sample.clip.clip_id)
        assert np.array_equal(clip.listener.values, sample.clip.listener.values)
        assert clip.words == tuple(  # as float32 has them
            replace(word, start=np.float32(word.start), end=np.float32(word.end))
            for word in sample.clip.words
        )
        assert len(clip.speaker_audio) == len(sample.clip.speaker_audio)


def test_listeners_to_one_speaker_share_the_moment_and_nothing_else(corpus):
    clips = [corpus.clip(f"test-0002-{number}-3") for number in range(4)]
    assert len({clip.moment for clip in clips}) == 1 and clips[0].speaker_id == "test-0002"
    assert len({clip.dyad_id for clip in clips}) == 4
    for one, other in pairwise(clips):
        assert np.array_equal(one.speaker.values, other.speaker.values)
        assert np.array_equal(one.speaker_audio, other.speaker_audio)
        assert not np.allclose(one.listener.values, other.listener.values, atol=0.01)
        assert not np.allclose(one.past.listener.values, other.past.listener.values, atol=0.01)


def test_people_stay_in_one_split(corpus):
    speakers = {
        split: {clip.speaker_id for clip in corpus.clips(split, ())} for split in corpus.splits
    }
    assert {split: len(people) for split, people in speakers.items()} == {
        "train": CONVERSATIONS,
        "validation": 1,
        "test": 6,
    }
    assert len(set.union(*speakers.values())) == CONVERSATIONS + 7


@pytest.mark.parametrize(
    ("sizes", "design", "message"),
    [
        ((0, 1, 1), {}, "n_train=0"),
        ((1, 0, 1), {}, "n_validation=0"),
        ((1, 1, 1), {"listeners": 0}, "listeners=0"),
        ((1, 1, 1), {"seconds": 3.99}, "whole frames at 25 fps"),
        ((1, 1, 1), {"past": 21}, "past=21"),
        ((1, 1, 1), {"riddles": 1.5}, "riddles=1.5"),
        ((1, 1, 1), {"seconds": 1.2, "past": 0}, "2 frames of video a second"),
    ],
)
def test_bad_requests(tmp_path, sizes, design, message):
    with pytest.raises(CorpusError, match=message):
        generate_corpus(tmp_path / "c", *sizes, design=Design(**design))


def test_a_corpus_is_not_written_over(corpus):
    with pytest.raises(CorpusError, match="already there"):
        generate_corpus(corpus.path, 1, 1, 1)


# -- What is meant --


def test_points_are_made_at_the_end_of_their_word(corpus):
    points = load_points(corpus.path)
    assert points.keys() == {clip for split in corpus.splits for clip in corpus.clip_ids(split)}
    checked = 0
    for clip in corpus.clips("test", ("words", "past")):
        said = (*clip.past.words, *clip.words)
        for point in points[clip.clip_id]:
            assert -5 <= point.time < 4 and 0.6 <= abs(point.meaning) <= 1
            if not 0 < point.time < 3.9:  # words are cut with their clip
                continue
            word = next(word.text for word in said if abs(word.end - point.time) < 1e-3)
            if point.kind in ("plain", "dry", "trouble"):
                assert np.sign(LEXICON[word]) == np.sign(point.meaning)
            elif point.kind in ("irony", "comic"):
                assert np.sign(LEXICON[word]) == -np.sign(point.meaning)
            else:
                assert word not in LEXICON
            checked += 1
    assert checked > 50


def test_an_outcome_means_what_its_topic_says(speakers):
    """Its sign is that of the last topic named times that of the word; the topic is heard."""
    outcomes = 0
    for speaker in speakers:
        topic, named = 0, -np.inf
        words = {round(word.end, 6): word.text for word in speaker.speech.words}
        for phrase in speaker.speech.phrases:
            said = phrase.utterance
            if said.kind == "topic":
                topic = next(sign for sign, pool in TOPICS.items() if said.words[-1] in pool.known)
                named = phrase.end
            elif said.kind == "outcome":
                word = words[round(phrase.point, 6)]
                there = next(sign for sign, pool in OUTCOMES.items() if word in pool.known)
                assert np.sign(said.meaning) == topic * there
                assert 0 < phrase.point - named < HEARD_S and said.face == 0
                outcomes += 1
    assert outcomes > 20


def test_kinds_have_their_shares_and_riddles_scale_them():
    def shares(riddles: float) -> dict[str, float]:
        script = Script(np.random.default_rng(0), riddles=riddles, held_out=False)
        said = Counter(script.next(3.0 * number).kind for number in range(6000))
        points = sum(said[kind] for kind in KINDS)
        assert 0.5 < points / 6000 < 0.75  # a third means nothing
        return {kind: said[kind] / points for kind in KINDS}

    wanted = dict(FIGURES.riddles)
    full = shares(1.0)
    half = shares(0.5)
    for kind, share in wanted.items():
        assert abs(full[kind] - share) < 0.04 and abs(half[kind] - share / 2) < 0.03
    assert shares(0.0)["plain"] == 1


def test_points_are_about_thirteen_a_minute(speakers):
    minutes = sum(len(speaker.clock) for speaker in speakers) / FPS / 60
    assert 11 < sum(len(speaker.points) for speaker in speakers) / minutes < 15


def test_some_words_are_said_in_test_only():
    def said(split: str) -> set[str]:
        conversations = (Conversation(split, n, 4, design=UNSEEN) for n in range(40))
        return {w.text for one in conversations for w in speaker_of(one).speech.words}

    pools = [pool for _, by_sign in VALENCE_WORDS for pool in by_sign.values()]
    pools += [*TOPICS.values(), *OUTCOMES.values()]
    held_out = {word for pool in pools for word in pool.held_out}
    known = {word for pool in pools for word in pool.known}
    assert not held_out & known and abs(len(held_out) / len(held_out | known) - 0.25) < 0.03
    assert not said("train") & held_out and not said("validation") & held_out
    assert said("test") >= held_out


def test_known_says_whether_training_has_the_words(corpus):
    points = [point for of in load_points(corpus.path).values() for point in of]
    assert any(not point.known for point in points)
    assert all(point.known for point in points if point.kind == "shown")
    for split in ("train", "validation"):
        ids = set(corpus.clip_ids(split))
        of_split = [load_points(corpus.path)[clip_id] for clip_id in ids]
        assert all(point.known for of in of_split for point in of)


def test_words_alone_do_not_tell_the_kind():
    """Glad words are said plainly, dryly and in irony, bad ones also in comic mishaps."""
    script = Script(np.random.default_rng(1), riddles=1.0, held_out=False)
    kinds: dict[str, set[str]] = {}
    for number in range(4000):
        said = script.next(3.0 * number)
        if said.kind in ("plain", "dry", "irony", "trouble", "comic"):
            kinds.setdefault(said.words[said.point], set()).add(said.kind)
    for word, seen in kinds.items():
        wanted = {"irony"} if LEXICON[word] > 0 else {"trouble", "comic"}
        assert seen == {"plain", "dry"} | wanted


def test_no_cue_alone_tells_what_is_meant_and_all_together_do():
    """The point of the corpus. Bounds are those of issue and docs/corpus.md, less their noise."""
    found = measure(seed=5, riddles=1.0, conversations=30)
    right = {name: np.mean([x for of in found[name].values() for x in of]) for name in found}
    program = right["program that knows the table"]
    rules = [right[name] for name in RULES if name != "program that knows the table"]
    assert max(rules) < 0.78 and program > 0.93
    assert np.mean(found["words, timed"]["irony"]) < 0.1
    assert np.mean(found["words, timed"]["comic"]) < 0.1
    assert np.mean(found["mirror less own mean"]["trouble"]) < 0.15
    assert 0.3 < np.mean(found["words, timed"]["outcome"]) < 0.7
    assert np.mean(found["bad if words or face are bad"]["comic"]) < 0.1
    assert 0.8 < right["recorded, empathic"] < 0.95
    assert right["recorded, empathic"] > max(rules)
    assert abs(right["recorded, inattentive"] - 0.5) < 0.06
    assert abs(right["recorded, polite"] - 0.5) < 0.1


def test_without_riddles_words_win():
    found = measure(seed=5, riddles=0.0, conversations=8)
    assert np.mean(found["words, timed"]["plain"]) > 0.95


def test_what_fits_is_a_pulse_after_each_point():
    clock = np.arange(0, 12, 1 / FPS)
    fitting = fitting_affect([Point(1.0, 1.0, "plain"), Point(6.0, -0.6, "dry")], clock)
    valence = fitting[:, 0]
    assert np.all(valence[clock <= 1.45] == 0) and valence.max() == pytest.approx(SHOWN, abs=0.01)
    assert 1.45 < clock[np.argmax(valence)] < 2.5
    assert np.all(valence[(clock > 4.5) & (clock < 6.4)] == 0), "it is over before the next one"
    assert valence.min() == pytest.approx(-0.6 * SHOWN, abs=0.01)
    assert np.all(fitting[:, 1] >= 0)


def test_what_fits_the_next_point_ends_what_fitted_the_one_before():
    clock = np.arange(0, 8, 1 / FPS)
    alone = fitting_affect([Point(1.0, 1.0, "plain")], clock)[:, 0]
    both = fitting_affect([Point(1.0, 1.0, "plain"), Point(2.0, -1.0, "dry")], clock)[:, 0]
    begun = round((2.0 + FIGURES.answer_s) * FPS)
    assert np.allclose(alone[:begun], both[:begun], atol=0.1)  # a shorter hold sags faster
    assert both[begun + 40] < -0.5 < 0 < alone[begun + 20]


# -- Listeners --


def test_manners_have_their_shares_and_mostly_stay():
    rng = np.random.default_rng(0)
    drawn = [draw_manners(rng, 9) for _ in range(400)]
    counted = Counter(manner for manners in drawn for manner in manners)
    for name, share in FIGURES.manners:
        assert abs(counted[name] / counted.total() - share) < 0.04
    changes = [one != other for manners in drawn for one, other in pairwise(manners)]
    again = sum(share**2 for _, share in FIGURES.manners)
    assert np.mean(changes) == pytest.approx((1 - FIGURES.manner_stays) * (1 - again), abs=0.02)


def test_only_empathic_listeners_follow_the_hidden_truth(corpus):
    truth, labels = load_truth(corpus.path), load_labels(corpus.path)
    assert truth.keys() == labels.keys() and len(truth) == len(corpus)
    moved: dict[str, list[tuple[float, float]]] = {}
    for key, hidden in truth.items():
        shown, fitting = labels[key][:, 0], hidden.appropriate_affect[:, 0]
        covariance = np.cov(shown, fitting)
        moved.setdefault(hidden.manner, []).append((covariance[0, 1], covariance[1, 1]))
    slope = {manner: np.divide(*np.sum(values, axis=0)) for manner, values in moved.items()}
    assert slope["empathic"] > 0.5 and 0.05 < slope["muted"] < 0.4 * slope["empathic"]
    assert abs(slope["inattentive"]) < 0.1 and abs(slope["polite"]) < 0.15


def test_who_fits_whom_follows_from_points_and_answers(corpus):
    points, labels = load_points(corpus.path), load_labels(corpus.path)
    truth, fitting = load_truth(corpus.path), load_appropriate(corpus.path)
    moments = corpus.moments("train")
    asked = []
    for clip_id in corpus.clip_ids("train"):
        judged = answers(labels[clip_id][:, 0], points[clip_id], FPS)
        assert (clip_id in fitting[clip_id]) == (not judged or fits(judged))
        assert all(moments[other] == moments[clip_id] for other in fitting[clip_id])
        if judged:
            asked.append(clip_id)
    shares = {
        manner: np.mean([i in fitting[i] for i in asked if truth[i].manner == manner])
        for manner, _ in FIGURES.manners
    }
    assert shares["empathic"] > 0.55 and shares["empathic"] > 2 * shares["polite"]
    assert shares["inattentive"] < 0.2


def test_every_dimension_moves_in_every_dyad(dyads):
    for clips in dyads[:5]:
        motion = whole(clips, "listener")
        assert motion.group("trans").std(axis=0).min() > 0.5 * FIGURES.head_fidget_m
        others = motion.values[:, : LAYOUT.columns("trans").start]
        assert others.std(axis=0).min() > 0.2 * FIGURES.fidget


def test_listeners_move_in_events_as_people_do(dyads):
    """Targets of docs/corpus.md, from two real people, after one frame of smoothing."""
    figures = mean_events([whole(clips, "listener") for clips in dyads])
    assert 8 < figures["face_kurtosis"] < 16 and 6 < figures["head_kurtosis"] < 10
    assert 0.3 < figures["face_still"] < 0.6 and 0.12 <= figures["head_still"] < 0.3
    assert 0.65 < figures["face_fastest_tenth"] < 0.8
    assert 0.45 < figures["head_fastest_tenth"] < 0.7


def test_listeners_move_about_as_much_as_people(dyads):
    """Bounds from docs/corpus.md; the real dyad's person, who also talks, moves about twice as
    much.
    """
    figures = [motion_statistics(whole(clips, "listener")) for clips in dyads]
    mean = {name: np.mean([f[name] for f in figures]) for name in figures[0]}
    assert 1.5 < mean["head_pitch_std_deg"] < 6.5 and 1.5 < mean["head_yaw_std_deg"] < 7
    assert 4 < mean["head_speed_deg_s"] < 26
    assert 6 < mean["nods_per_min"] < 25
    assert 14 < mean["blinks_per_min"] < 21  # 17 at rest, Bentivoglio et al. 1997
    assert mean["head_power_below_2.5hz"] > 0.95 and mean["expr_power_below_2.5hz"] > 0.9


def test_heads_change_their_place(dyads):
    spread = np.mean([whole(clips, "listener").group("trans").std(axis=0) for clips in dyads], 0)
    assert np.all(spread > 0.001) and np.all(spread < 0.02)  # metres


def test_expressivity_is_a_persons(dyads):
    """A third of the log amplitude with 256 listeners; 48 tell it to about a tenth."""
    figures = amplitude_shares(whole(clips, "listener") for clips in dyads)
    assert figures["expr_between_people"] > 0.2 and figures["head_between_people"] > 0.2


def test_speakers_blink_more_and_move_their_jaw(dyads):
    speaker, listener = (
        [motion_statistics(whole(c, who)) for c in dyads] for who in ("speaker", "listener")
    )
    assert 22 < np.mean([f["blinks_per_min"] for f in speaker]) < 30  # 26 in conversation
    assert np.mean([f["jaw_std_deg"] for f in speaker]) > 4 * np.mean(
        [f["jaw_std_deg"] for f in listener]
    )


def test_expressed_affect_is_in_the_motion(corpus):
    """Valence can be read off the mouth: least squares on smile and frown directions alone, on test
    clips.
    """
    labels = load_labels(corpus.path)

    def rows(split):
        clips = list(corpus.clips(split, ()))
        expr = np.concatenate([c.listener.group("expr") for c in clips])
        return np.c_[expr, np.ones(len(expr))], np.concatenate(
            [labels[c.clip_id][:, 0] for c in clips]
        )

    x, y = rows("train")
    x_test, y_test = rows("test")
    fit = np.linalg.lstsq(x, y, rcond=None)[0]
    assert np.corrcoef(x_test @ fit, y_test)[0, 1] > 0.85


def test_regression_collapses(corpus):
    """The least-squares answer to many possible reactions moves far less than any of them."""
    figures = regression_collapse(corpus)
    assert figures["variance_ratio"] < 0.2 and figures["variation_ratio"] < 0.2
    assert figures["train_clips"] == 32 * CONVERSATIONS and figures["test_clips"] == 96


def test_regression_does_not_collapse_where_there_is_one_answer(corpus, monkeypatch):
    """The same regression on a corpus whose listeners mirror the speaker keeps the variance: the
    measure is fair.
    """
    original = Corpus.clips

    def mirrored(self, split, modalities):
        return (replace(c, listener=c.speaker) for c in original(self, split, modalities))

    collapsed = regression_collapse(corpus)["variance_ratio"]
    monkeypatch.setattr(Corpus, "clips", mirrored)
    fair = regression_collapse(corpus)
    assert fair["r2"] > 0.3 and fair["variance_ratio"] > 4 * collapsed


# -- Voices --


def test_turn_statistics_by_hand():
    speaker = np.array([1, 1, 1, 0, 0, 1, 1, 0, 0, 0], bool)
    listener = np.array([0, 0, 1, 1, 0, 0, 0, 0, 0, 0], bool)
    figures = turn_statistics(speaker, listener)
    assert figures["speaker"] == 0.5 and figures["listener"] == 0.2
    assert figures["overlap"] == 0.1 and figures["silence"] == 0.4
    assert figures["pause_median_s"] == 0.02  # the pause inside; what follows the last word is none
    assert np.isnan(turn_statistics(np.ones(5, bool), np.zeros(5, bool))["pause_median_s"])


def test_one_speaks_with_pauses_the_other_hardly(dyads):
    def speaking(clips, name):
        audio = np.concatenate([getattr(clip, name) for clip in clips])
        return voice_activity(step_levels(audio), RECORDING)

    shares = [
        turn_statistics(speaking(clips, "speaker_audio"), speaking(clips, "listener_audio"))
        for clips in dyads
    ]
    mean = {name: np.mean([s[name] for s in shares]) for name in shares[0]}
    assert 0.6 < mean["speaker"] < 0.85 and 0.15 < mean["silence"] < 0.4
    assert 0.001 < mean["listener"] < 0.06 and mean["overlap"] < mean["listener"]
    assert 0.3 < mean["pause_median_s"] < 0.8


def test_voice_is_where_the_words_are(dyads):
    """Laughs are not words: in some clips there is more voice."""
    agree = []
    for clips in dyads[::4]:
        for clip in clips:
            speaking = voice_activity(step_levels(clip.speaker_audio), RECORDING)
            spoken = np.zeros(len(speaking), bool)
            for word in clip.words:
                spoken[round(word.start * 100) : round(word.end * 100)] = True
            agree.append((speaking == spoken).mean())
    assert np.mean(agree) > 0.85


def spoken(tone: Tone, laughed: float = 0.0) -> np.ndarray:
    """A second of one vowel, five syllables of it."""
    sung = tuple(
        Syllable(0.2 * i, 0.2 * i + 0.15, vowel="e", stress=1.0, laughed=laughed) for i in range(5)
    )
    rng = np.random.default_rng(0)
    return voice(rng, sung, ((0.0, 1.0),), tone=tone, f0_hz=150.0)


def centroid(sound: np.ndarray, above: float = 0.0) -> float:
    """Mean frequency of the power above some frequency, Hz."""
    power = np.abs(np.fft.rfft(sound)) ** 2
    hz = np.fft.rfftfreq(len(sound), 1 / AUDIO_RATE)
    part = hz > above
    return float((hz[part] * power[part]).sum() / power[part].sum())


def test_a_voice_tells_more_than_arousal():
    calm = Tone.calm(100)
    still = np.zeros(100)
    neutral = spoken(calm)
    assert spoken(Tone(still + 0.8, still, still)).std() > 1.3 * neutral.std()  # loud
    smiling = spoken(Tone(still, still + 1, still))
    frowning = spoken(Tone(still, still - 1, still))
    assert centroid(smiling, 1000) > centroid(neutral, 1000) > centroid(frowning, 1000)
    # A laugh is breathy: more of it lies above all formants and harmonics.
    noise = [np.abs(np.fft.rfft(sound))[5000:].std() for sound in (neutral, spoken(calm, 1.0))]
    assert noise[1] > 3 * noise[0]


def test_irony_is_slow_and_flat_and_mishaps_are_laughed_at(speakers):
    pace: dict[str, list[float]] = {}
    for speaker in speakers:
        for phrase in speaker.speech.phrases:
            said = phrase.utterance
            count = sum(len(syllables(word)) for word in said.words)
            pace.setdefault(said.kind, []).append((phrase.end - phrase.start) / count)
            laughs = phrase.silent - phrase.end
            assert (laughs > 0.3) == (said.kind in ("trouble", "comic"))
    assert np.mean(pace["irony"]) > 1.2 * np.mean(pace["plain"])


# -- Looks and signals --


def test_affects_look_different():
    def look(valence, arousal):
        weights, jaw = expression_of(np.array([[valence, arousal]]))
        return dict(zip(CHANNELS, weights[0], strict=True)), jaw[0]

    glad, glad_jaw = look(0.8, 0.6)
    sad, sad_jaw = look(-0.7, -0.4)
    angry, _ = look(-0.7, 0.7)
    calm, _ = look(0.0, 0.0)
    assert glad["mouthSmileLeft"] > 0.5 and glad["mouthFrownLeft"] == 0 and glad_jaw > 0
    assert sad["mouthFrownLeft"] > 0.4 and sad["mouthSmileLeft"] == 0 and sad_jaw == 0
    assert sad["browInnerUp"] > angry["browInnerUp"] and angry["browDownLeft"] > sad["browDownLeft"]
    assert max(calm.values()) == 0


def test_events_add_up_on_both_sides_and_stay_in_range():
    weights = event_weights({"smile": np.array([0.5, 1.2]), "flash": np.array([1.0, 1.0])})
    look = dict(zip(CHANNELS, weights.T, strict=True))
    assert np.allclose(look["mouthSmileLeft"], [0.425, 1.0])
    assert np.array_equal(look["mouthSmileLeft"], look["mouthSmileRight"])
    assert np.allclose(look["browInnerUp"], 0.6) and not look["mouthFrownLeft"].any()


def test_anger_is_met_with_disapproval_and_grief_with_concern():
    """Nobody mirrors rage: brows are drawn down at what makes a speaker loud, else raised."""
    brow = _basis().rows(("browInnerUp",))[0]
    raised: dict[bool, list[float]] = {True: [], False: []}
    for number in range(12):
        conversation = Conversation("train", number, 8, design=UNSEEN)
        speaker = speaker_of(conversation)
        for place in range(4):
            listener = listener_of(conversation, speaker, place)
            for phrase in speaker.speech.phrases:
                frame = round((phrase.point + 2 + HEARD_S) * FPS)
                if phrase.utterance.meaning > 0 or frame >= len(speaker.clock):
                    continue
                if listener.expressed[frame, 0] < -0.3:
                    expr = listener.motion.group("expr")[frame]
                    loud = phrase.utterance.arousal > 0
                    raised[loud].append(float(expr @ brow / np.linalg.norm(brow)))
    assert min(map(len, raised.values())) > 10
    assert np.mean(raised[False]) > np.mean(raised[True]) + 0.1


def test_sentences_mean_nothing_but_by_their_point():
    rng = np.random.default_rng(0)
    for sentences in (EMPTY, TOPIC, *(sentences for sentences, _ in VALENCE_WORDS)):
        for _ in range(60):
            words = say(rng, sentences, "POINT")
            assert not [word for word in words if word in LEXICON]
            assert words.count("POINT") == (sentences is not EMPTY)
            assert not any(set("{}|*") & set(word) for word in words)
    for _, pools in VALENCE_WORDS:
        for sign, pool in pools.items():
            for word in pool.known + pool.held_out:
                assert sign * LEXICON[word] >= 0.6


def test_syllables_by_vowel_groups():
    assert syllables("table") == "a" and syllables("beautiful") == "eiu" and syllables("the") == "e"
    assert syllables("hm") == "e"


def test_speech_is_one_word_after_another_with_pauses_between(speakers):
    for speaker in speakers[:5]:
        words = speaker.speech.words
        assert all(a.end <= b.start + 1e-9 for a, b in pairwise(words))
        phrases = speaker.speech.phrases
        assert all(b.start > a.silent >= a.end >= a.point > a.start for a, b in pairwise(phrases))
        assert words[0].start <= -HEARD_S


def test_smooth_noise_has_unit_variance_and_a_band():
    noise = smooth_noise(np.random.default_rng(0), 4000, 20, FPS)
    assert np.mean(noise.var(axis=0)) == pytest.approx(1, abs=0.1)
    spectrum = np.abs(np.fft.rfft(noise * np.hanning(4000)[:, None], axis=0)) ** 2
    above = np.fft.rfftfreq(4000, 1 / FPS) > BAND_HZ + 0.1
    assert spectrum[above].sum() < 1e-4 * spectrum.sum()


def test_an_event_rises_holds_and_falls():
    clock = np.arange(0, 6, 0.01)
    one = Event(1.0, rise=0.5, hold=1.0, fall=0.9, size=0.8)
    path = track([one], clock)
    assert np.all(path[clock <= 1.0] == 0) and np.all(path[clock >= 3.41] == 0)
    assert path.max() == pytest.approx(0.8, abs=0.01)
    assert 0.85 * 0.8 < path[np.searchsorted(clock, 2.49)] < 0.8, "it sags while it is held"
    # Minimum jerk: half of the way at half of the time, fastest there with 1.875 of the mean speed.
    half = np.searchsorted(clock, 1.25)
    assert path[half] == pytest.approx(0.4, abs=0.01)
    assert np.gradient(path, clock)[half] == pytest.approx(1.875 * 0.8 / 0.5, rel=0.02)
    assert np.array_equal(track([one], clock[200:]), path[200:]), "wherever the clock starts"


def test_an_event_is_cut_short_but_not_before_its_apex():
    one = Event(1.0, rise=0.5, hold=2.0, fall=0.9, size=1.0)
    assert one.cut_short(by=2.0).falls == pytest.approx(2.0)
    assert one.cut_short(by=1.1).falls == pytest.approx(1.7)
    assert one.cut_short(by=9.0) == one


def test_steps_go_from_place_to_place_and_stay():
    clock = np.arange(0, 4, 0.04)
    way = steps([1.0, 2.5], np.array([[0.0], [2.0], [-1.0]]), [0.5, 0.5], clock)[:, 0]
    assert np.all(way[clock <= 1] == 0) and np.allclose(way[(clock > 1.6) & (clock < 2.5)], 2)
    assert np.allclose(way[clock > 3.1], -1)


def test_blinks_close_fully_and_quickly():
    clock = np.arange(100) / FPS
    closed = lid_closure([1.0], FIGURES.blink_s, clock)
    assert closed.max() > 0.9 and np.count_nonzero(closed > 0.05) <= 8
    rate = len(event_times(np.random.default_rng(0), 0.0, 6000.0, 17.0)) / 100
    assert rate == pytest.approx(17, rel=0.1)


def test_nod_goes_down_and_fades_by_half():
    clock = np.arange(100) / FPS
    pitch = nod(clock, 1.0, 2.0, 0.08, 3)
    assert pitch.min() >= 0 and 0.05 < pitch.max() <= 0.08
    assert pitch[:25].max() == 0 and pitch[66:].max() == 0
    strokes = [pitch[25 + round(12.5 * i) : 25 + round(12.5 * (i + 1))].max() for i in range(3)]
    assert strokes[0] > strokes[1] > strokes[2] > 0.4 * strokes[0]
