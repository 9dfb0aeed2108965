"""Conversations of two phones: takes written as the app's, read as motion of the built-in head."""

import numpy as np
import pytest
from scipy.io import wavfile

from rapport.pipeline.data.corpora import look_at_prompts, open_corpus
from rapport.pipeline.data.readers.dyads import Cutting, ReadCounts
from rapport.pipeline.data.readers.livelink import (
    FPS,
    import_livelink,
    livelink_layout,
    read_livelink_dyads,
)
from rapport.pipeline.data.settings import CorpusConfig
from rapport.pipeline.data.store import CorpusError
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.head.arkit import NAMES, arkit_layout
from rapport.policies.head.livelink import write_livelink
from rapport.policies.head.settings import HeadConfig
from rapport.policies.motion import Motion

JAW = NAMES.index("jawOpen")
CLIPS = Cutting(seconds=1, stride=1, past=1)


def put(folder, name, side, seconds, starts="00:00:00"):
    """A take whose jaw opens by .1 a second of the clock, and a sound whose loudness does."""
    folder.mkdir(parents=True, exist_ok=True)
    late = int(starts[-2:])
    clock = late + np.arange(round(seconds * 60)) / 60
    values = np.zeros((len(clock), 61))
    values[:, JAW] = clock / 10
    path = folder / f"{name}_speaker{side}.csv"
    write_livelink(path, Motion(values, arkit_layout(60)))
    rows = path.read_text().splitlines()
    for number, row in enumerate(rows[1:], 1):
        whole = late + int(row[6:8])
        rows[number] = f"{starts[:6]}{whole:02d}{row[8:]}"
    path.write_text("\n".join(rows))
    sound = (late + np.arange(round(seconds * AUDIO_RATE)) / AUDIO_RATE) / 20
    sound *= np.where(np.arange(len(sound)) % 2, 1, -1)
    wavfile.write(path.with_suffix(".wav"), AUDIO_RATE, sound.astype(np.float32))
    return path


@pytest.fixture
def takes(tmp_path):
    root = tmp_path / "takes"
    for name in "abcd":
        put(root, name, 1, 6)
        put(root, name, 2, 6)
    return root


def test_a_folder_of_takes_becomes_a_corpus_by_people(takes, tmp_path):
    keys = {"seconds": 1, "past": 1, "frames": 1, "image_size": 28}
    config = CorpusConfig(kind="livelink", root=takes, **keys)
    corpus = open_corpus(config, tmp_path / "corpus")
    assert corpus.layout == livelink_layout(FPS)
    clips = {split: list(corpus.clips(split)) for split in corpus.splits}
    people = {split: {clip.dyad_id for clip in clips[split]} for split in clips}
    assert people == {"train": {"a", "b"}, "validation": {"c"}, "test": {"d"}}
    clip = clips["train"][3]
    assert clip.absent == ["words"] and clip.speaker_frames.shape == (1, 28, 28, 3)
    assert clip.speaker.layout == clip.listener.layout and clip.past is not None
    np.testing.assert_allclose(clip.listener.group("jaw")[0, 0], 0.0424 * clip.start, atol=1e-4)
    assert corpus.manifest["source"]["counts"]["roles"] == 8
    assert corpus.manifest["source"]["counts"]["pose_only"] == 0


def test_sides_are_cut_to_the_later_beginning_by_their_timecodes(tmp_path):
    put(tmp_path, "a", 1, 8)
    put(tmp_path, "a", 2, 6, starts="00:00:02")
    clips = list(read_livelink_dyads(tmp_path, CLIPS))
    first = {clip.clip_id[:11]: clip for clip in reversed(clips) if clip.start == 0}
    assert len(first) == 2
    for clip in first.values():
        for motion in (clip.listener, clip.speaker):
            assert motion.group("jaw")[0, 0] == pytest.approx(0.0848, abs=1e-4)
        for sound in (clip.speaker_audio, clip.listener_audio):
            assert abs(sound[0]) == pytest.approx(0.1, abs=1e-3)


def test_midnight_may_lie_between_the_two_beginnings(tmp_path):
    put(tmp_path, "a", 1, 14, starts="00:00:01")
    early = put(tmp_path, "a", 2, 14)
    rows = early.read_text().splitlines()
    for number, row in enumerate(rows[1:], 1):
        second = 58 + int(row[6:8])
        clock = f"23:59:{second:02d}" if second < 60 else f"00:00:{second - 60:02d}"
        rows[number] = clock + row[8:]
    early.write_text("\n".join(rows))
    clips = list(read_livelink_dyads(tmp_path, CLIPS))
    assert 10 < max(clip.start + clip.seconds for clip in clips) <= 11  # of 11 s in common


def test_words_go_with_their_sound(tmp_path):
    path = put(tmp_path, "a", 1, 10)
    put(tmp_path, "a", 2, 6, starts="00:00:02")
    said = "0.5 1.0 before\n1.8 2.4 hello\n4.5 4.8 you\n9.0 9.4 after"
    path.with_suffix(".txt").write_text(said)
    heard = [clip.words for clip in read_livelink_dyads(tmp_path, CLIPS) if "er2-" in clip.clip_id]
    words = [(word.text, word.start, word.end) for words in heard for word in words]
    assert words == [
        ("hello", 0.0, pytest.approx(0.4)),
        ("you", pytest.approx(0.5), pytest.approx(0.8)),
    ]


def test_clips_in_which_a_phone_lost_the_face_are_left_out(tmp_path):
    path = put(tmp_path, "a", 1, 8)
    put(tmp_path, "a", 2, 8)
    rows = path.read_text().splitlines()
    for number in range(1 + 4 * 60, 1 + 4 * 60 + 30):  # second 4 to 4.5
        rows[number] = rows[number].replace(",61,", ",0,")
    path.write_text("\n".join(rows))
    counts = ReadCounts()
    clips = list(read_livelink_dyads(tmp_path, CLIPS, counts=counts))
    # The clip from 4 to 5 s and the one that has it as its past, of both roles.
    assert sorted({round(clip.start) for clip in clips}) == [0, 1, 2, 3, 6, 7]
    assert counts.lost_face == 4


def test_a_side_with_sound_alone_is_heard(tmp_path):
    put(tmp_path, "a", 1, 6)
    put(tmp_path, "a", 2, 6).unlink()
    clips = list(read_livelink_dyads(tmp_path, CLIPS))
    assert clips and all(clip.speaker is None for clip in clips)
    assert all(clip.speaker_audio is not None for clip in clips)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "a_speaker1.csv is empty"),
        (lambda text: text.replace(",", ";"), "a_speaker1.csv, line 1"),
        (lambda text: text.replace(",61,", ",52,", 1), "a_speaker1.csv, line 2"),
        (lambda text: text.replace("00:00:0", "00:09:0"), "have no time in common"),
    ],
)
def test_damaged_takes_end_before_clips_are_cut(takes, tmp_path, change, message):
    path = takes / "a_speaker1.csv"
    path.write_text(change(path.read_text()))
    config = CorpusConfig(kind="livelink", root=takes, seconds=1)
    with pytest.raises(CorpusError, match=message):
        look_at_prompts(config, HeadConfig(), {"speaker", "speaker_audio"})
    with pytest.raises(CorpusError, match=message):
        import_livelink(takes, tmp_path / "corpus", CLIPS)
    assert not (tmp_path / "corpus").exists()


def test_other_folders_say_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CorpusError, match=r"1\|2.wav\|csv: is it Live Link Face's folder"):
        list(read_livelink_dyads(tmp_path, CLIPS))


def test_a_sound_of_another_length_is_an_error(takes):
    wavfile.write(takes / "a_speaker1.wav", AUDIO_RATE, np.zeros(3 * AUDIO_RATE, np.float32))
    with pytest.raises(CorpusError, match="a_speaker1.wav ends after 3.00 s"):
        list(read_livelink_dyads(takes, CLIPS))
