"""REACT's and MARS' files: fixtures in exactly the published layouts, and their faults."""

import csv

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from rapport.pipeline.data.corpora import look_at_prompts, open_corpus
from rapport.pipeline.data.neighbours import appropriate_to
from rapport.pipeline.data.readers.dyads import Cutting
from rapport.pipeline.data.readers.react import (
    INDICES,
    WHOLE_MATRIX,
    import_react,
    react_layout,
    read_attributes,
    read_coefficients,
)
from rapport.pipeline.data.settings import CorpusConfig
from rapport.pipeline.data.store import CorpusError, load_appropriate, load_labels
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.head.settings import HeadConfig
from rapport.policies.motion import Layout
from tests.recordings import record

CHATS = {
    "train": ("NoXI/010_2016-03-25_Paris", "RECOLA/group-1", "NoXI/021_2016-04-25_Paris"),
    "val": ("RECOLA/group-2",),
    "test": ("NoXI/030_2016-05-25_Paris",),
}
PEOPLE = {"NoXI": ("Expert_video", "Novice_video"), "RECOLA": ("P25", "P26")}
CLIPS = Cutting(seconds=1, stride=1, past=0)
WHOLE = Cutting(seconds=2, stride=2, past=0)


def coefficients(seed, frames):
    return np.random.default_rng(seed).normal(scale=0.2, size=(frames, 58)).astype(np.float32)


def attributes(seed, frames):
    """Action units of 0 and 1, valence and arousal, expression probabilities."""
    rng = np.random.default_rng(seed)
    expressions = rng.random((frames, 8))
    return np.hstack(
        [
            rng.integers(0, 2, (frames, 15)),
            rng.uniform(-1, 1, (frames, 2)),
            expressions / expressions.sum(1, keepdims=True),
        ]
    )


def seed_of(name):
    return sum(map(ord, name))


def put_react(root, split, name, seconds=2, pictures=True):
    """One person of a recording as the challenge has it; a picture's colour is its number."""
    frames = 25 * seconds + 1
    seed = seed_of(name)

    def place(folder, suffix):
        path = root / split / folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    np.save(place("3D_FV_files", ".npy"), coefficients(seed, frames)[:, None])
    with place("Emotion", ".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([f"AU{i}" for i in range(15)] + ["Valence", "Arousal"] + list("abcdefgh"))
        writer.writerows(attributes(seed, frames))
    sound = np.random.default_rng(seed).uniform(-0.5, 0.5, round(frames / 25 * 44100))
    wavfile.write(place("Audio_files", ".wav"), 44100, (sound * 2**15).astype(np.int16))
    if pictures:
        folder = place("Video_files", "")
        folder.mkdir()
        for number in range(1, frames + 1):
            Image.new("RGB", (32, 32), (4 * number, 0, 0)).save(folder / f"{number}.png")


def write_list(root, split, pairs):
    root.mkdir(parents=True, exist_ok=True)
    lines = [",speaker_path,listener_path", *(f"{i},{s},{t}" for i, (s, t) in enumerate(pairs))]
    (root / f"{split}.csv").write_text("\n".join(lines) + "\n")


def pairs_of(split, clips=2):
    pairs = []
    for chat in CHATS[split]:
        first, second = PEOPLE[chat.partition("/")[0]]
        pairs += [(f"{chat}/{first}/{n}", f"{chat}/{second}/{n}") for n in range(1, clips + 1)]
    return pairs


@pytest.fixture
def react(tmp_path):
    root = tmp_path / "data"
    for split in CHATS:
        pairs = pairs_of(split)
        write_list(root, split, pairs)
        for pair in pairs:
            for name in pair:
                put_react(root, split, name, pictures=split == "train")
    for split in ("val", "test"):
        for name in [name for pair in pairs_of(split) for name in pair]:
            path = root / split / "Video_files" / f"{name}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            record(path, seconds=2.1, fps=25)
    np.save(root / "neighbour_emotion_train.npy", train_matrix())
    for split in ("val", "test"):
        np.save(root / f"neighbour_emotion_{split}.npy", np.eye(4))
    return root


def train_matrix():
    """Six pairs: the first as listed also has the listeners of directions 3 and, swapped, 7."""
    matrix = np.eye(12)
    matrix[0, [3, 7]] = 1
    matrix[8, 0] = 1
    return matrix


def test_a_folder_of_react_becomes_a_corpus_with_roles_both_ways(react, tmp_path):
    corpus = import_react(react, tmp_path / "corpus", "react", CLIPS, frames=1, image_size=28)
    assert corpus.layout == Layout((("expr", 52), ("rot", 3), ("trans", 3)), 25, "faceverse")
    # 2 windows, 2 roles, 6, 2 and 2 pairs.
    assert corpus.manifest["clips"] == {"test": 8, "train": 24, "validation": 8}
    speaker, listener = pairs_of("train")[1]  # the second recording of the first chat
    clip = corpus.clip(f"{listener.replace('/', '-')}-000025")
    assert clip.absent == ["words"] and clip.split == "train"
    np.testing.assert_array_equal(clip.listener.values, coefficients(seed_of(listener), 51)[25:50])
    np.testing.assert_array_equal(clip.speaker.values, coefficients(seed_of(speaker), 51)[25:50])
    # It begins where the first recording of the chat has ended.
    assert clip.start == pytest.approx(2.04 + 1)
    assert clip.speaker_id == "NoXI-010_2016-03-25_Paris-Expert_video"
    assert clip.dyad_id == "NoXI-010_2016-03-25_Paris-Novice_video"
    # Both people of a chat, in all its recordings, are one conversation.
    chats = {frozenset((c.dyad_id, c.speaker_id)) for c in corpus.clips("train", ())}
    assert len(set(corpus.conversations("train").values())) == len(chats) == 3
    assert len(clip.speaker_audio) == AUDIO_RATE
    # Seen at 1.5 s of the recording: the 38th picture.
    assert abs(int(clip.speaker_frames[0].mean(axis=(0, 1))[0]) - 4 * 38) <= 2
    shown = load_labels(corpus.path)[clip.clip_id]
    np.testing.assert_allclose(shown, attributes(seed_of(listener), 51)[25:50, 15:17], atol=1e-6)
    assert corpus.clip(corpus.clip_ids("test")[0]).speaker_frames.shape == (1, 28, 28, 3)
    counts = corpus.manifest["source"]["counts"]
    assert (counts["recordings"], counts["roles"], counts["resampled"]) == (10, 20, 20)


def test_the_matrix_names_the_same_part_of_the_appropriate_recordings(react, tmp_path):
    corpus = import_react(react, tmp_path / "corpus", "react", CLIPS, frames=0)
    pairs = pairs_of("train")
    listeners = [pair[1] for pair in pairs] + [pair[0] for pair in pairs]
    ids = [name.replace("/", "-") for name in listeners]
    fitting = load_appropriate(corpus.path)
    for first in ("000000", "000025"):
        assert fitting[f"{ids[0]}-{first}"] == [f"{ids[i]}-{first}" for i in (0, 3, 7)]
        assert fitting[f"{ids[8]}-{first}"] == [f"{ids[i]}-{first}" for i in (0, 8)]
        assert fitting[f"{ids[5]}-{first}"] == [f"{ids[5]}-{first}"]
    own_first = appropriate_to(corpus, "train")[f"{ids[8]}-000000"]
    assert own_first == [f"{ids[8]}-000000", f"{ids[0]}-000000"]


def test_the_matrix_of_all_splits_is_cut_to_the_lists(react, tmp_path, caplog):
    expected = load_appropriate(import_react(react, tmp_path / "cut", "react", WHOLE, 0).path)
    # All pairs of all splits in another order; UDIVA's names have five parts and are not in it.
    everyone = [pair for split in ("test", "train", "val") for pair in pairs_of(split)]
    order = [everyone.index(pair) for pair in pairs_of("train")]
    whole = np.eye(2 * len(everyone))
    both = np.array([*order, *(place + len(everyone) for place in order)])
    whole[np.ix_(both, both)] = train_matrix()
    np.save(react / WHOLE_MATRIX, whole)
    rows = [(s.split("/")[0].upper(), s.split("/")[1], s.split("/")[3]) for s, _ in everyone]
    lines = ["site,chat,clip", *map(",".join, rows)]
    (react / INDICES).write_text("\n".join(lines))
    for split in CHATS:
        (react / f"neighbour_emotion_{split}.npy").unlink()
    corpus = import_react(react, tmp_path / "whole", "react", WHOLE, frames=0)
    assert load_appropriate(corpus.path) == expected
    assert corpus.manifest["source"]["counts"]["without_neighbours"] == 0
    (react / INDICES).write_text("\n".join(lines[:-1]))
    with pytest.raises(CorpusError, match=r"has shape \(20, 20\), data_indices.csv .* 9 pairs"):
        import_react(react, tmp_path / "short", "react", WHOLE, frames=0)


def test_without_a_matrix_the_recorded_reaction_alone_is_appropriate(react, tmp_path, caplog):
    (react / "neighbour_emotion_train.npy").unlink()
    corpus = import_react(react, tmp_path / "corpus", "react", WHOLE, frames=0)
    assert "only the recorded reactions are appropriate" in caplog.text
    assert all(others == [own] for own, others in load_appropriate(corpus.path).items())
    assert corpus.manifest["source"]["counts"]["without_neighbours"] == 6


def test_without_a_test_split_val_is_it_and_neighbours_stay_within_their_split(react, tmp_path):
    (react / "test.csv").unlink()
    np.save(react / "neighbour_emotion_train.npy", np.ones((12, 12)))
    corpus = import_react(react, tmp_path / "corpus", "react", WHOLE, frames=0)
    assert corpus.manifest["clips"] == {"test": 4, "train": 8, "validation": 4}
    held_out = {clip.dyad_id for clip in corpus.clips("validation")}
    assert all("021" in dyad for dyad in held_out)
    fitting = load_appropriate(corpus.path)
    for split, count in (("train", 8), ("validation", 4)):
        ids = set(corpus.clip_ids(split))
        assert all(set(fitting[i]) == ids and len(ids) == count for i in ids)


def test_reactfaces_own_folders_without_splits_are_read(react, tmp_path):
    root = tmp_path / "reactface"
    root.mkdir()
    for split in CHATS:
        for folder in (react / split).iterdir():
            name = "SL-crop/Video_files" if folder.name == "Video_files" else folder.name
            for file in folder.rglob("*.*"):
                place = root / name / file.relative_to(folder)
                place.parent.mkdir(parents=True, exist_ok=True)
                file.rename(place)
        (root / "paper-list").mkdir(exist_ok=True)
        (react / f"{split}.csv").rename(root / "paper-list" / f"{split}.csv")
        np.save(root / f"neighbour_emotion_new_{split}.npy", np.eye(12 if split == "train" else 4))
    corpus = import_react(root, tmp_path / "corpus", "react", CLIPS, frames=1, image_size=16)
    assert corpus.manifest["clips"] == {"test": 8, "train": 24, "validation": 8}
    assert corpus.manifest["source"]["counts"]["without_frames"] == 0


def test_the_corpus_section_opens_it_and_looks_at_its_prompts(react, tmp_path):
    config = CorpusConfig(kind="react", root=react, seconds=1, past=1, frames=0)
    look_at_prompts(config, HeadConfig(), ("speaker", "speaker_audio"))
    corpus = open_corpus(config, tmp_path / "corpus")
    assert corpus.layout == react_layout("react") and set(corpus.splits) > {"train"}


# -- MARS --


@pytest.fixture
def mars(tmp_path):
    """Two sessions; in the second one the last recording is shorter."""
    root = tmp_path / "mars"
    for split, sessions in (("train", 2), ("val", 1), ("test", 1)):
        for session in range(sessions):
            for number in range(3):
                for role in ("speaker", "listener"):
                    seconds = 1 if (session, number) == (1, 2) else 2
                    put_mars(
                        root / split, f"{role}/session{session}/Camera-{split}-{number}", seconds
                    )
    return root


def put_mars(folder, name, seconds):
    for modality, values in (
        ("coefficients", coefficients(seed_of(name), 30 * seconds)),
        ("facial-attributes", attributes(seed_of(name), 30 * seconds)),
    ):
        path = folder / modality / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values)
    path = folder / "audio" / f"{name}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, seconds * AUDIO_RATE)
    wavfile.write(path, AUDIO_RATE, sound.astype(np.float32))


def test_in_mars_all_of_a_session_are_appropriate(mars, tmp_path):
    corpus = import_react(mars, tmp_path / "corpus", "mars", CLIPS)
    assert corpus.layout.fps == 30 and corpus.layout.dim == 58
    fitting = load_appropriate(corpus.path)
    names = [f"listener-session1-Camera-train-{number}" for number in range(3)]
    assert fitting[f"{names[0]}-000000"] == [f"{name}-000000" for name in names]
    # The third recording has no second second.
    assert fitting[f"{names[0]}-000030"] == [f"{name}-000030" for name in names[:2]]
    assert f"{names[2]}-000030" not in fitting
    swapped = "speaker-session0-Camera-train-1-000000"
    assert len(fitting[swapped]) == 3 and all("speaker-session0" in i for i in fitting[swapped])
    clip = corpus.clip(swapped)
    assert clip.speaker_id == "listener-session0-Camera-train-1"
    assert clip.absent == ["speaker_frames", "words"]


def test_a_recording_of_mars_without_a_partner_is_named(mars, tmp_path):
    (mars / "train/coefficients/listener/session1/Camera-train-0.npy").unlink()
    with pytest.raises(CorpusError, match="1 recordings have no partner.*speaker/session1/Camera"):
        import_react(mars, tmp_path / "corpus", "mars", CLIPS)


# -- Faults --

NOVICE = "NoXI/010_2016-03-25_Paris/Novice_video/1"


def _break(root, what):
    motion = root / f"train/3D_FV_files/{NOVICE}.npy"
    emotion = root / f"train/Emotion/{NOVICE}.csv"
    if what == "no motion":
        motion.unlink()
    elif what == "no sound":
        (root / f"train/Audio_files/{NOVICE}.wav").unlink()
    elif what == "no list":
        (root / "val.csv").unlink()
    elif what == "half a pair":
        (root / "train.csv").write_text(f",speaker_path,listener_path\n0,{NOVICE},\n")
    elif what == "no header":
        write_list(root, "train", pairs_of("train"))
        lines = (root / "train.csv").read_text().splitlines()
        (root / "train.csv").write_text("\n".join(lines[1:]))
    elif what == "twice":
        write_list(root, "train", [*pairs_of("train"), pairs_of("train")[0]])
    elif what == "57":
        np.save(motion, coefficients(0, 51)[:, :57])
    elif what == "nan":
        values = coefficients(0, 51)
        values[7, 3] = np.nan
        np.save(motion, values)
    elif what == "degrees":
        np.save(motion, 100 * coefficients(0, 51))
    elif what == "short":
        np.save(motion, coefficients(0, 30))
    elif what == "short attributes":
        emotion.write_text("\n".join(emotion.read_text().splitlines()[:30]))
    elif what == "30 fps":
        np.save(motion, coefficients(0, 61))
    elif what == "24 attributes":
        lines = emotion.read_text().splitlines()
        emotion.write_text("\n".join(line.rpartition(",")[0] for line in lines))
    elif what == "swapped attributes":
        lines = emotion.read_text().splitlines()
        emotion.write_text("\n".join(",".join(line.split(",")[::-1]) for line in lines))
    elif what == "attributes without a header":
        emotion.write_text("\n".join(emotion.read_text().splitlines()[1:]))
    elif what == "attributes of nan":
        lines = emotion.read_text().splitlines()
        lines[5] = "nan" + lines[5][lines[5].index(",") :]
        emotion.write_text("\n".join(lines))
    elif what == "matrix of pairs":
        np.save(root / "neighbour_emotion_train.npy", np.eye(6))
    elif what == "matrix of nan":
        np.save(root / "neighbour_emotion_train.npy", np.where(np.eye(12), 1, np.nan))
    elif what == "matrix in another order":
        np.save(root / "neighbour_emotion_train.npy", np.roll(np.eye(12), 6, axis=1))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no motion", r"1 files of the pairs in .* are missing, first .*Novice_video/1\.npy"),
        ("no sound", r"1 files of the pairs in .* are missing, first .*Novice_video/1\.wav"),
        ("no list", r"has no val\.csv"),
        ("half a pair", r"train\.csv, line 2: .* names no pair"),
        ("no header", r"train\.csv has no header: its first pair would be lost"),
        ("twice", r"Expert_video/1 is in 2 pairs"),
        ("57", r"Novice_video/1\.npy: expected \(time, 58\) = .*got \(51, 57\)"),
        ("nan", r"Novice_video/1\.npy: motion has NaN or infinity, first at frame 7, column 3"),
        ("degrees", r"Novice_video/1\.npy: rot turns by .* Are these degrees"),
        ("short", r"lose more than 10%.*Novice_video/1\.npy ends after 1\.20 s"),
        ("short attributes", r"lose more than 10%.*Novice_video/1\.csv ends after 1\.16 s"),
        ("30 fps", r"Novice_video/1\.npy: 61 frames are 2\.44 s at 25 fps.*Is it at 30 fps"),
        ("24 attributes", r"Novice_video/1\.csv: expected \(time, 25\) = .*got \(51, 24\)"),
        ("swapped attributes", r"Novice_video/1\.csv: action units .* in another order"),
        ("attributes without a header", r"Novice_video/1\.csv has no header"),
        ("attributes of nan", r"Novice_video/1\.csv has NaN.*frame 4, column 0"),
        ("matrix of pairs", r"neighbour_emotion_train\.npy has shape \(6, 6\), 6 pairs are listed"),
        ("matrix of nan", r"neighbour_emotion_train\.npy holds nan in row 0, column 1"),
        ("matrix in another order", r"only 0% of the recorded listeners are appropriate"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(react, tmp_path, what, message):
    _break(react, what)
    with pytest.raises(CorpusError, match=message):
        import_react(react, tmp_path / "corpus", "react", CLIPS, frames=0)
    assert not (tmp_path / "corpus").exists()


def test_a_missing_picture_is_named(react, tmp_path):
    name = pairs_of("train")[0][0]
    (react / "train/Video_files" / name / "13.png").unlink()
    with pytest.raises(CorpusError, match=r"13\.png is missing or no picture"):
        import_react(react, tmp_path / "corpus", "react", CLIPS, frames=1)


def test_files_are_read_in_either_shape(tmp_path):
    np.save(tmp_path / "flat.npy", coefficients(0, 10))
    np.save(tmp_path / "deep.npy", coefficients(0, 10)[:, None])
    flat = read_coefficients(tmp_path / "flat.npy", "mars")
    deep = read_coefficients(tmp_path / "deep.npy", "mars")
    np.testing.assert_array_equal(flat.values, deep.values)
    np.testing.assert_array_equal(flat.group("trans"), coefficients(0, 10)[:, 55:])
    np.save(tmp_path / "attributes.npy", attributes(0, 10))
    assert read_attributes(tmp_path / "attributes.npy").shape == (10, 25)
