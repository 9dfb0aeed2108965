"""The synthetic corpus: deterministic, complete, one-to-many, with people's figures, and imitation
collapses on it.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from rapport.pipeline.data.collapse import regression_collapse
from rapport.pipeline.data.statistics import motion_statistics
from rapport.pipeline.data.store import Corpus, CorpusError, load_labels, load_truth
from rapport.pipeline.data.synthetic.affect import AFFECTS, CHANNELS, expression_of
from rapport.pipeline.data.synthetic.figures import FIGURES, FPS, LAYOUT
from rapport.pipeline.data.synthetic.generate import (
    Conversation,
    SpeakerVideo,
    generate_corpus,
    simulate,
)
from rapport.pipeline.data.synthetic.prosody import Episode, affect_at, plan_speech
from rapport.pipeline.data.synthetic.signals import (
    BAND_HZ,
    blink_track,
    event_times,
    lag,
    nod,
    smooth_noise,
)
from rapport.pipeline.data.synthetic.words import LEXICON, SENTENCES, say, syllables
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.motion import Motion
from rapport.rewards.ratings.voice import RECORDING, step_levels, voice_activity

DYADS = 20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    """Without video: 20 dyads to train on, 6 to test."""
    path = tmp_path_factory.mktemp("synthetic") / "c"
    return generate_corpus(
        path, n_train=8 * DYADS, n_test=48, video=SpeakerVideo(frames=0), workers=0
    )


@pytest.fixture(scope="module")
def dyads(corpus) -> list[list]:
    """Training clips by dyad, in order."""
    clips = list(corpus.clips("train"))
    return [clips[i : i + 8] for i in range(0, len(clips), 8)]


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


def test_a_clip_has_every_modality(tmp_path):
    corpus = generate_corpus(
        tmp_path / "c", n_train=2, n_test=1, video=SpeakerVideo(3, 32), workers=0
    )
    assert corpus.manifest["clips"] == {"test": 1, "train": 2}
    clip = corpus.at("train", 1)
    assert clip.absent == [] and clip.listener.layout == LAYOUT and LAYOUT.dim == 67
    assert clip.listener.values.shape == clip.speaker.values.shape == (100, 67)
    assert clip.speaker_frames.shape == (3, 32, 32, 3)
    assert len(clip.speaker_audio) == len(clip.listener_audio) == 4 * AUDIO_RATE
    assert 3 <= len(clip.words) <= 20 and all(0 <= w.start < w.end <= 4 for w in clip.words)
    assert clip.speaker_frames.std() > 20  # a head, not an empty picture
    assert (
        np.abs(clip.speaker_frames[0].astype(int) - clip.speaker_frames[2]).max() > 20
    )  # that moves
    other = corpus.at("test", 0)
    assert np.abs(clip.speaker_shape - other.speaker_shape).max() > 0.1  # somebody else


def test_same_seed_same_files_whatever_the_workers(tmp_path):
    arguments = {"n_train": 9, "n_test": 1, "video": SpeakerVideo(frames=1, size=16)}
    alone = generate_corpus(tmp_path / "a", **arguments, seed=3, workers=0)
    pool = generate_corpus(tmp_path / "b", **arguments, seed=3, workers=2)
    other = generate_corpus(tmp_path / "c", **arguments, seed=4, workers=0)
    assert alone.digest == pool.digest != other.digest
    assert alone.manifest == pool.manifest


def test_a_clip_does_not_depend_on_the_size_of_the_corpus(corpus):
    alone = simulate(
        Conversation(0, "train", 1, clips=2, seconds=4.0, video=SpeakerVideo(frames=0, size=16))
    )
    assert alone[1][0].clip_id == corpus.at("train", 9).clip_id
    assert np.array_equal(alone[1][0].listener.values, corpus.at("train", 9).listener.values)


def test_dyads_stay_in_one_split(corpus):
    train, test = ({c.dyad_id for c in corpus.clips(s)} for s in ("train", "test"))
    assert len(train) == DYADS and len(test) == 6 and not train & test


def test_every_dimension_moves_in_every_dyad(dyads):
    for clips in dyads[:5]:
        assert whole(clips, "listener").values.std(axis=0).min() > 1e-3
        assert (
            whole(clips, "listener").group("expr").std(axis=0).min()
            > 0.75 * FIGURES.coefficient_noise
        )


def test_listeners_move_like_people(dyads):
    """Bounds from docs/corpus.md; the real dyad's person, who also talks, moves about twice as
    much.
    """
    figures = [motion_statistics(whole(clips, "listener")) for clips in dyads]
    mean = {name: np.mean([f[name] for f in figures]) for name in figures[0]}
    assert 1.5 < mean["head_pitch_std_deg"] < 6.5 and 1.5 < mean["head_yaw_std_deg"] < 7
    assert 5 < mean["head_speed_deg_s"] < 26
    assert 8 < mean["nods_per_min"] < 25
    assert 14 < mean["blinks_per_min"] < 21  # 17 at rest, Bentivoglio et al. 1997
    assert mean["head_power_below_2.5hz"] > 0.95 and mean["expr_power_below_2.5hz"] > 0.9


def test_speakers_blink_more_and_move_their_jaw(dyads):
    speaker, listener = (
        [motion_statistics(whole(c, who)) for c in dyads] for who in ("speaker", "listener")
    )
    assert 22 < np.mean([f["blinks_per_min"] for f in speaker]) < 30  # 26 in conversation
    assert np.mean([f["jaw_std_deg"] for f in speaker]) > 4 * np.mean(
        [f["jaw_std_deg"] for f in listener]
    )


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
    assert 0.65 < mean["speaker"] < 0.85 and 0.15 < mean["silence"] < 0.35
    assert 0.001 < mean["listener"] < 0.06 and mean["overlap"] < mean["listener"]
    assert 0.3 < mean["pause_median_s"] < 0.8


def test_voice_is_where_the_words_are(dyads):
    clips = dyads[0]
    for clip in clips[:3]:
        speaking = voice_activity(step_levels(clip.speaker_audio), RECORDING)
        spoken = np.zeros(len(speaking), bool)
        for word in clip.words:
            spoken[round(word.start * 100) : round(word.end * 100)] = True
        assert (speaking == spoken).mean() > 0.85


def test_arousal_is_heard(dyads):
    """Loudness where there is voice follows the arousal of the affect that is felt: joy is louder
    than sadness.
    """
    levels = {"bright": [], "sad": []}
    for clips in dyads:
        for clip in clips:
            words = {w.text for w in clip.words}
            level = clip.speaker_audio[np.abs(clip.speaker_audio) > 0.01].std()
            if words & {"hilarious", "giggling", "laughed", "funniest"}:
                levels["bright"].append(level)
            if words & {"died", "lonely", "funeral", "cried", "wept"}:
                levels["sad"].append(level)
    assert np.mean(levels["bright"]) > 1.3 * np.mean(levels["sad"])


def test_manners_have_their_shares_and_the_speaker_does_not_tell_them(corpus):
    truth = load_truth(corpus.path)
    shares = dict(FIGURES.manners)
    manners = [t.manner for t in truth.values()]
    for name, share in shares.items():
        assert abs(manners.count(name) / len(manners) - share) < 0.12
    valence = {
        name: [t.appropriate_affect[:, 0].mean() for t in truth.values() if t.manner == name]
        for name in shares
    }
    overall = np.concatenate(list(valence.values()))
    for values in valence.values():  # within three standard errors of the same mean
        assert abs(np.mean(values) - overall.mean()) < 3 * overall.std() / np.sqrt(len(values))


def test_only_empathic_listeners_follow_the_hidden_truth(corpus):
    truth, labels = load_truth(corpus.path), load_labels(corpus.path)
    assert truth.keys() == labels.keys() and len(truth) == len(corpus)
    missed = {key: np.mean((labels[key] - t.appropriate_affect) ** 2) for key, t in truth.items()}
    error = {
        name: np.mean([missed[key] for key, t in truth.items() if t.manner == name])
        for name, _ in FIGURES.manners
    }
    assert error["empathic"] < 0.5 * error["muted"] < 0.5 * error["polite"]
    assert error["empathic"] < 0.2 * error["inattentive"]


def test_expressed_affect_is_in_the_motion(corpus):
    """Valence can be read off the mouth: least squares on smile and frown directions alone, on test
    clips.
    """
    labels = load_labels(corpus.path)

    def rows(split):
        clips = list(corpus.clips(split))
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
    assert figures["variance_ratio"] < 0.3 and figures["variation_ratio"] < 0.3
    assert figures["train_clips"] == 8 * DYADS and figures["test_clips"] == 48


def test_regression_does_not_collapse_where_there_is_one_answer(corpus, monkeypatch):
    """The same regression on a corpus whose listeners mirror the speaker keeps the variance: the
    measure is fair.
    """
    original = Corpus.clips

    def mirrored(self, split):
        return (replace(clip, listener=clip.speaker) for clip in original(self, split))

    collapsed = regression_collapse(corpus)["variance_ratio"]
    monkeypatch.setattr(Corpus, "clips", mirrored)
    fair = regression_collapse(corpus)
    assert fair["r2"] > 0.3 and fair["variance_ratio"] > 4 * collapsed


def test_bad_requests(tmp_path, corpus):
    with pytest.raises(ValueError, match="n_train=0"):
        generate_corpus(tmp_path / "c", n_train=0)
    with pytest.raises(ValueError, match="whole frames"):
        generate_corpus(tmp_path / "c", seconds=3.99)
    with pytest.raises(CorpusError, match="already there"):
        generate_corpus(corpus.path, n_train=1, n_test=1)


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


def test_answers_are_empathic():
    answer = {a.name: a.answer for a in AFFECTS}
    assert answer["joy"][0] > 0.4 and answer["amusement"][0] > 0.4
    assert answer["sadness"][0] < -0.3 and answer["anger"][0] < -0.3
    anger = next(a for a in AFFECTS if a.name == "anger")
    assert anger.answer[1] < 0.5 * anger.felt[1]  # concern, not mirrored rage
    for affect in AFFECTS:
        assert np.linalg.norm(affect.answer) <= np.linalg.norm(affect.felt) + 0.1


def test_sentences_carry_their_valence():
    rng = np.random.default_rng(0)
    mean = {
        name: np.mean([LEXICON.get(w, 0) for _ in range(100) for w in say(rng, name)])
        for name in SENTENCES
    }
    assert (
        min(mean["joy"], mean["amusement"])
        > 0.1
        > -0.05
        > max(mean["sadness"], mean["anger"], mean["worry"])
    )
    assert abs(mean["neutral"]) < 0.05
    assert set(SENTENCES) == {a.name for a in AFFECTS}
    assert not any(
        set("{}|") & set(word) for name in SENTENCES for _ in range(50) for word in say(rng, name)
    )


def test_syllables_by_vowel_groups():
    assert syllables("table") == "a" and syllables("beautiful") == "eiu" and syllables("the") == "e"
    assert syllables("hm") == "e"


def test_episode_and_plan_agree():
    episodes = [Episode(-0.5, 1), Episode(4.0, 3)]
    assert [affect_at(episodes, t) for t in (-2.0, 0.0, 3.9, 4.0, 9.0)] == [1, 1, 1, 3, 3]
    speech = plan_speech(np.random.default_rng(0), episodes, 0.0, 10.0)
    starts, ends = np.array(speech.phrases).T
    assert (starts[1:] > ends[:-1]).all() and starts[0] == 0  # pauses between phrases
    assert all(
        a.end <= b.start + 1e-9 for a, b in zip(speech.words, speech.words[1:], strict=False)
    )


def test_smooth_noise_has_unit_variance_and_a_band():
    noise = smooth_noise(np.random.default_rng(0), 4000, 20, FPS)
    assert np.mean(noise.var(axis=0)) == pytest.approx(1, abs=0.1)
    spectrum = np.abs(np.fft.rfft(noise * np.hanning(4000)[:, None], axis=0)) ** 2
    above = np.fft.rfftfreq(4000, 1 / FPS) > BAND_HZ + 0.1
    assert spectrum[above].sum() < 1e-4 * spectrum.sum()


def test_lag_delays_a_step_and_keeps_its_height():
    step = np.r_[np.zeros(50), np.ones(150)][:, None]
    answer = lag(step, 0.8, 0.3, FPS)[:, 0]
    assert answer[: 50 + 20].max() < 1e-9 and answer[-1] == pytest.approx(1)
    assert 70 < np.argmax(answer > 0.5) < 82


def test_blinks_close_fully_and_quickly():
    track = blink_track([1.0], 100, FPS, 0.10, 0.20)
    assert track.max() > 0.9 and np.count_nonzero(track > 0.05) <= 8
    rate = len(event_times(np.random.default_rng(0), 6000.0, 17.0)) / 100
    assert rate == pytest.approx(17, rel=0.1)


def test_nod_goes_down_and_fades():
    clock = np.arange(100) / FPS
    pitch = nod(clock, 1.0, 2.0, 0.08, 3)
    assert pitch.min() >= 0 and 0.05 < pitch.max() <= 0.08
    assert pitch[:25].max() == 0 and pitch[66:].max() == 0
    strokes = [pitch[25 + round(12.5 * i) : 25 + round(12.5 * (i + 1))].max() for i in range(3)]
    assert strokes[0] > strokes[1] > strokes[2]
