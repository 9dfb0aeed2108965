"""What faces show, in words: a vision-language model on vLLM, and what becomes of its answers."""

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rapport.pipeline.data.corpora import open_corpus
from rapport.pipeline.data.flow import describe_face, windows
from rapport.pipeline.data.readers import video
from rapport.pipeline.data.settings import CorpusConfig
from rapport.pipeline.data.store import Corpus, CorpusError, CorpusWriter, load_captions
from rapport.pipeline.data.video import captions
from rapport.pipeline.data.video.captions import WORDING, captions_of, conversation, one_line
from rapport.pipeline.data.video.shards import CAPTIONED, FACE_SIZE, FACES_SCHEMA
from rapport.policies.clip import Clip
from rapport.policies.motion import Layout, Motion
from tests import calls
from tests.calls import tracks
from tests.pipeline.test_data_video import CLIPS
from tests.tiny_vlm import save_tiny_vlm

LAYOUT = Layout((("rot", 3), ("eyepose", 6)), 25, "builtin")


def clip(clip_id="call-listener-b-000050", start=2.0, split="train"):
    motions = [Motion(np.zeros((25, LAYOUT.dim), np.float32), LAYOUT) for _ in range(2)]
    return Clip(clip_id, "call", split, *motions, start=start)


def jpeg(level):
    file = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), level, np.uint8)).save(file, "JPEG")
    return file.getvalue()


def test_a_model_is_shown_the_pictures_in_order_and_told_what_to_say():
    system, user = conversation([jpeg(10), jpeg(200)])
    assert system == {"role": "system", "content": WORDING}
    first, second, text = user["content"]
    assert np.asarray(first["image_pil"]).mean() < 20 < 190 < np.asarray(second["image_pil"]).mean()
    assert text["type"] == "text"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("Amused, looking away.", "Amused, looking away."),
        ("\n  Calm,   with a nod.  \nAnd more.", "Calm, with a nod."),
        ("a\x07b\x1b[31mc\ufffd d", "a b [31mc d"),
        ("", ""),
        ("\n \n", ""),
        ("x" * 900, "x" * 200),
    ],
)
def test_an_answer_is_one_line_that_can_be_printed(said, kept):
    assert one_line(said) == kept


def test_a_clip_has_the_captions_of_its_own_sides_and_time():
    said = {("a", 2.0): "Amused.", ("b", 2.0): "Bored.", ("a", 3.0): "Angry."}
    assert captions_of(clip(), said) == {"listener": "Bored.", "speaker": "Amused."}
    other = clip("call-listener-a-000075", start=3.0)
    assert captions_of(other, said) == {"listener": "Angry."}
    assert captions_of(clip(start=9.0), said) == {}


def test_prompts_are_captions_and_descriptions_where_there_is_none(tmp_path):
    with CorpusWriter(tmp_path / "corpus", {"kind": "test"}) as writer:
        writer.add(clip("x"), captions={"listener": "Bored."})
        writer.add(clip("y", start=5.0), captions={"speaker": "Amused."})
    corpus = Corpus(tmp_path / "corpus")
    told = load_captions(corpus.path)
    assert told == {("x", "listener"): "Bored.", ("y", "speaker"): "Amused."}
    made = {
        (clip.clip_id, window.role): window.text
        for clip in corpus.clips("train")
        for window in windows(clip, 5, captions=told)
    }
    described = describe_face(clip().listener)
    assert made == {
        ("x", "listener"): "Bored.",
        ("x", "speaker"): described,
        ("y", "listener"): described,
        ("y", "speaker"): "Amused.",
    }


def test_a_folder_without_a_model_is_refused_before_anything_is_tracked(tmp_path):
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "call.mp4").write_bytes(b"film")
    keys = {"split_screen": True, "voices": "loudness", "captioner": tmp_path}
    config = CorpusConfig(kind="video", root=tmp_path / "films", **keys)
    with pytest.raises(CorpusError, match=r"corpus.captioner=.*no config.json there"):
        video.look_at_video(config)


def test_other_weights_of_the_same_name_are_asked_anew(tmp_path, monkeypatch):
    model, shard = tmp_path / "model", tmp_path / "call"
    for folder in (model, shard):
        folder.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"one")
    (shard / "record.json").write_text('{"key": "x"}')
    asked = []

    def caption(missing, model, workers):
        asked.extend(missing)
        for known in missing:
            content = {"key": captions.key_of(model), "of": "x", "said": []}
            (known / captions.SAID).write_text(json.dumps(content))
            yield known, 0

    monkeypatch.setattr(captions, "_captioned", caption)
    for _ in range(2):
        captions.write_captions([shard], model, 0)
    assert asked == [shard]
    (model / "model.safetensors").write_bytes(b"other")
    captions.write_captions([shard], model, 0)
    assert asked == [shard, shard]


class FakeLlm:
    """Stands for vLLM's: says how many pictures it was shown."""

    def __init__(self, model, **keys):
        if "broken" in model:
            raise ValueError("no such architecture")

    def chat(self, asked, sampling, use_tqdm):
        texts = [f"Calm, {len(user['content']) - 1} times.\nMore." for _, user in asked]
        return [SimpleNamespace(outputs=[SimpleNamespace(text=text)]) for text in texts]


def test_a_model_that_cannot_be_run_is_named_when_it_is_asked_first(tmp_path, monkeypatch):
    """And not when it is made: what Ray says of actors that never began hides the reason."""
    sampling = SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=FakeLlm, SamplingParams=sampling))
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    shard = tmp_path / "call"
    shard.mkdir()
    (shard / "record.json").write_text('{"key": "x"}')
    rows = [{"side": "a", "start": 2.0, "pictures": [jpeg(10), jpeg(200)]}]
    pq.write_table(pa.Table.from_pylist(rows, schema=FACES_SCHEMA), shard / "faces.parquet")
    for name in ("model", "broken"):
        save_tiny_vlm(tmp_path / name)
    captioner = captions.Captioner(tmp_path / "model")
    assert captioner.caption(shard) == 1
    assert captions.read_captions(shard) == {("a", 2.0): "Calm, 2 times."}
    broken = captions.Captioner(tmp_path / "broken")
    with pytest.raises(CorpusError, match="broken: vLLM cannot run it .no such architecture"):
        broken.caption(shard)


@tracks
@pytest.mark.engine
@pytest.mark.long
@pytest.mark.timeout(600)
def test_vllm_captions_the_faces_of_films(tmp_path, monkeypatch):
    films = tmp_path / "films"
    films.mkdir()
    for number in range(2):
        calls.film(films / f"call{number}.mp4", calls.made_up(6, number))
    model = save_tiny_vlm(tmp_path / "model")
    keys = {"split_screen": True, "voices": "loudness", "workers": 1, "captioner": model} | CLIPS
    corpus = open_corpus(CorpusConfig(kind="video", root=films, **keys), tmp_path / "corpus")
    assert corpus.manifest["source"]["captioner"] == "model"
    told = load_captions(corpus.path)
    clips = [clip for split in corpus.splits for clip in corpus.clips(split)]
    assert told.keys() == {
        (clip.clip_id, role) for clip in clips for role in ("listener", "speaker")
    }
    shard = tmp_path / "tracked" / "call0"
    faces = pq.read_table(shard / "faces.parquet").to_pylist()
    assert {row["side"] for row in faces} == {"a", "b"}
    for row in faces:
        shown = [np.asarray(Image.open(io.BytesIO(picture))) for picture in row["pictures"]]
        assert np.stack(shown).shape == (CAPTIONED, FACE_SIZE, FACE_SIZE, 3)
        assert np.stack(shown).std(axis=(1, 2, 3)).min() > 10, "a face is in every picture"
    said = json.loads((shard / "captions.json").read_text())["said"]
    assert len(said) == len(faces) and all(row["text"] == one_line(row["text"]) for row in said)
    # What is there already is not asked for again; another wording is.
    monkeypatch.setattr(captions, "_captioned", lambda missing, *_: [(s, 0) for s in missing])
    asked = []
    monkeypatch.setattr(captions.logger, "info", asked.append)
    folders = [tmp_path / "tracked" / f"call{number}" for number in range(2)]
    captions.write_captions(folders, model, 1)
    assert asked == []
    monkeypatch.setattr(captions, "WORDING", "Say it in French.")
    captions.write_captions(folders, model, 1)
    assert len(asked) == 2
