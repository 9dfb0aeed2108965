"""`evaluate --pred`: files in every layout, brought together by name, scored, shown, written."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rapport.pipeline.config import load_config
from rapport.pipeline.data.columns import sequences_to_arrow
from rapport.pipeline.data.readers.motion_files import read_clips, together
from rapport.pipeline.data.store import CorpusError
from rapport.pipeline.run import main
from rapport.pipeline.rundir import RunError
from rapport.pipeline.settings import EvaluateOfVla, FilesConfig
from rapport.pipeline.steps.scoring import read_inputs, score_files
from rapport.policies.motion import Layout, Motion
from rapport.rewards.affect import RidgeAffectEstimator
from rapport.rewards.metrics import PROTOCOLS, evaluate
from rapport.rewards.metrics.measures.mesh import Face
from rapport.settings import ConfigError
from tests.pipeline.bare import bare_run

RNG = np.random.default_rng(0)
DEMO = Path(__file__).parents[2].parent / "shared" / "data" / "dualtalk_demo"


def config_of(files):
    return EvaluateOfVla(files=files)


def motions(frames=110, clips=2, dim=56):
    return [RNG.normal(scale=0.2, size=(frames, dim)).astype(np.float32) for _ in range(clips)]


def save_dualtalk(folder, recording, side, x):
    folder.mkdir(exist_ok=True)
    np.savez(
        folder / f"{recording}_speaker{side}.npz",
        exp=x[:, :50],
        pose=x[:, 50:],
        shape=np.zeros((len(x), 100), np.float32),
    )


def test_dualtalk_as_published_with_predictions_as_its_code_writes_them(tmp_path, capsys):
    """Clips are found by name, partners by the other number, and the neck is the neck."""
    truth = {
        ("a", 1): motions()[0],
        ("a", 2): motions(120)[0],
        ("b", 1): motions()[0],
        ("b", 2): motions()[0],
    }
    for (recording, side), x in truth.items():
        save_dualtalk(tmp_path / "test", recording, side, x)
    predicted = {"b_speaker1": truth["b", 1] + 1, "a_speaker2": truth["a", 2] + 2}
    (tmp_path / "pred").mkdir()
    for name, x in predicted.items():
        np.save(
            tmp_path / "pred" / f"{name}.npy",
            np.concatenate([x[:, :50], x[:, 53:], x[:, 50:53]], axis=1),
        )
    files = FilesConfig(
        pred=tmp_path / "pred",
        target=tmp_path / "test",
        partner=tmp_path / "test",
        protocol="dualtalk",
        out=tmp_path / "new" / "scores.json",
    )
    run = bare_run(tmp_path)
    score_files(config_of(files), run)
    scores = json.loads((tmp_path / "new" / "scores.json").read_text())
    assert scores["metrics"]["MSE_neck"] == pytest.approx((1 + 4) / 2, rel=1e-5)
    layout = Layout((("expr", 50), ("neck", 3), ("jaw", 3)), 25, "flame2020")
    pred = [
        Motion(predicted["a_speaker2"], layout),
        Motion(predicted["b_speaker1"], layout),
    ]  # sorted by name
    direct = evaluate(
        "dualtalk", pred, [truth["a", 2], truth["b", 1]], [truth["a", 1], truth["b", 2]]
    )
    assert scores["metrics"] == pytest.approx(direct)
    assert run.summary["metrics"]["dualtalk"] == scores["metrics"] == run.logged[0]
    assert json.loads((tmp_path / "metrics.json").read_text()) == scores
    shown = capsys.readouterr().out
    assert "GDPO-Listener, Table 6" in shown and "FD_jaw x 1000" in shown and "7.49" in shown
    assert (
        scores["published"][0]["rows"]["DualTalk"]["FD_jaw"] == 7.49 and scores["corrections"] == {}
    )


def test_every_kind_of_file(tmp_path):
    x, y = motions()
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "one.npz", x)
    np.savez(tmp_path / "two.npz", *([x, y] * 6))
    assert np.array_equal(read_clips(tmp_path / "x.npy"), x) and np.array_equal(
        read_clips(tmp_path / "one.npz"), x
    )
    assert [len(c) for c in read_clips(tmp_path / "two.npz")] == [110] * 12
    np.savez(
        tmp_path / "face.npz",
        vertices=np.zeros((9, 4, 3)),
        rot=np.zeros((9, 3)),
        jaw=np.zeros((9, 1)),
        lip=[0, 1],
        upper=[2],
    )
    face = read_clips(tmp_path / "face.npz")
    assert isinstance(face, Face) and face.regions.lip == (0, 1)
    layout = Layout((("expr", 50), ("rot", 3), ("jaw", 3)), 30, "flame2020")
    columns = {"clip_id": pa.array(["b", "a"]), "motion": sequences_to_arrow([x, y], 56)}
    pq.write_table(
        pa.table(columns).replace_schema_metadata({"layout": layout.to_json()}),
        tmp_path / "typed.parquet",
    )
    typed = read_clips(tmp_path / "typed.parquet")
    assert typed["a"].layout == layout and np.array_equal(typed["a"].values, y)
    plain = pa.table({"clip_id": ["c"], "listener": [y.tolist()], "speaker": [x.tolist()]})
    pq.write_table(plain, tmp_path / "plain.parquet")
    assert np.allclose(read_clips(tmp_path / "plain.parquet", "speaker")["c"], x)


def test_a_corpus_that_prepare_wrote(tiny_corpus):
    targets, partners = read_clips(tiny_corpus.path), read_clips(tiny_corpus.path, "speaker")
    clip = tiny_corpus.at("test", 1)
    assert list(targets) == tiny_corpus.clip_ids("test")
    assert np.array_equal(targets[clip.clip_id].values, clip.listener.values)
    assert np.array_equal(partners[clip.clip_id].values, clip.speaker.values)
    shard = next(tiny_corpus.path.glob("test-*.parquet"))
    assert np.array_equal(read_clips(shard)[clip.clip_id].values, clip.listener.values)


def test_segments_of_lm_listener(tmp_path):
    p0, p1 = motions(60)
    segment = {"fname": "done/025/025.mp4", "split_start_frame": 10916, "split_end_frame": 10976}
    for person, x in (("p0", p0), ("p1", p1)):
        segment |= {
            f"{person}_exp": torch.tensor(x[:, :50]),
            f"{person}_pose": torch.tensor(x[:, 50:]),
        }
    torch.save([segment], tmp_path / "segments_val.pth")
    np.save(tmp_path / "025_10916_pred.npy", p0 + 1)
    (tmp_path / "pred").mkdir()
    (tmp_path / "025_10916_pred.npy").rename(tmp_path / "pred" / "025_10916_pred.npy")
    files = FilesConfig(
        pred=tmp_path / "pred",
        target=tmp_path / "segments_val.pth",
        partner=tmp_path / "segments_val.pth",
        fps=25,
    )
    inputs = read_inputs(files)
    assert inputs["target"][0].layout.fps == 25 and np.array_equal(inputs["partner"][0].values, p1)
    assert evaluate("lm_listener", **inputs)["L2"] == pytest.approx(1, rel=1e-5)
    times = {"split_start_time": 10916 / 25, "split_end_time": 10976 / 25}
    torch.save([segment | times], tmp_path / "timed.pth")
    assert read_clips(tmp_path / "timed.pth")["025_10916"].layout.fps == 25
    with pytest.raises(CorpusError, match=r"timed.pth has 25 fps .* not 60: give files.fps=25"):
        read_clips(tmp_path / "timed.pth", fps=60)


def test_l2_affect_with_an_estimator_of_an_earlier_run(tiny_corpus, tmp_path):
    clips = list(tiny_corpus.clips("train"))
    affects = [np.tanh(clip.listener.values[:, :2]) for clip in clips]
    RidgeAffectEstimator.fit([clip.listener for clip in clips], affects).save(
        tmp_path / "affect.npz"
    )
    run = bare_run(tmp_path)
    files = FilesConfig(
        pred=tiny_corpus.path, target=tiny_corpus.path, affect=tmp_path / "affect.npz"
    )
    score_files(config_of(files), run)
    assert run.summary["metrics"]["lm_listener"]["L2 Affect"] == 0


def test_what_is_not_a_number_is_null_and_not_logged(tmp_path):
    x, y, s = motions(clips=3)
    x[:, 50:53] = 0
    for name, values in (("x", x), ("y", y), ("s", s)):
        np.save(tmp_path / f"{name}.npy", values)
    run = bare_run(tmp_path)
    score_files(
        config_of(
            FilesConfig(
                pred=tmp_path / "x.npy",
                target=tmp_path / "y.npy",
                partner=tmp_path / "s.npy",
                protocol="dualtalk",
            )
        ),
        run,
    )
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"]["rPCC_jaw"] is None
    assert "rPCC_jaw" not in run.logged[0] and run.logged[0]["rPCC_exp"] > 0


def test_what_does_not_fit_is_named(tmp_path):
    x, y = motions()
    (tmp_path / "pred").mkdir()
    np.save(tmp_path / "pred" / "a_pred.npy", x)
    for name in ("pred", "other"):
        (tmp_path / name).mkdir(exist_ok=True)
    np.save(tmp_path / "other" / "b.npy", y)
    np.save(tmp_path / "short.npy", y[:50])
    files = FilesConfig(pred=tmp_path / "pred", target=tmp_path / "other")
    with pytest.raises(
        CorpusError, match="other lacks 1 of 1 predicted clips, first 'a'; it has 'b'"
    ):
        score_files(config_of(files), bare_run(tmp_path))
    with pytest.raises(
        RunError,
        match=r"protocol lm_listener: clip 0: pred has shape \(110, 56\), target \(50, 56\)",
    ):
        score_files(
            config_of(files.model_copy(update={"target": tmp_path / "short.npy"})),
            bare_run(tmp_path),
        )
    np.savez(tmp_path / "pred" / "many.npz", x, y)
    with pytest.raises(CorpusError, match="many.npz holds 2 clips: in a folder a file is a clip"):
        read_clips(tmp_path / "pred")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.npy").write_text("no array")
    (tmp_path / "bad.parquet").write_text("no table")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "columns.parquet")
    for name, message in (
        ("nowhere", "no file or folder"),
        ("empty", "has no .npy or"),
        ("bad.npy", "is no array"),
        ("bad.parquet", "cannot be read as Parquet"),
        ("columns.parquet", "expected clip_id and"),
    ):
        with pytest.raises(CorpusError, match=message):
            read_clips(tmp_path / name)


def test_clips_without_names_go_by_their_order():
    assert together([1, 2], {"b": 3, "a": 4}, "target") == [3, 4] and together(
        {"a": 1}, [5], "target"
    ) == [5]


def load(*overrides):
    return load_config(EvaluateOfVla, None, list(overrides))


def test_keys_that_do_not_go_together_are_refused():
    for overrides, message in (
        (["files.target=y.npy"], "files.target needs files.pred"),
        (["files.pred=x.npy"], r"protocol lm_listener needs files.target \(--target\)"),
        (
            ["files.pred=x.npy", "files.target=y.npy", "files.protocol=vbench"],
            "vbench has no files.target",
        ),
        (["files.pred=x.npy", "files.target=y.npy", "checkpoint=c"], "give one of them"),
        (
            ["files.pred=x.npy", "files.target=y.npy", "files.protocol=dim", "files.affect=a.npz"],
            "for protocol lm",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            load(*overrides)
    assert (
        load().files == FilesConfig()
        and load("files.pred=v.npy", "files.protocol=vbench").files.target is None
    )


def test_every_protocol_can_be_asked_for():
    assert all(
        load(
            f"files.protocol={name}",
            "files.pred=x.npy",
            *([] if name == "vbench" else ["files.target=y.npy"]),
        )
        for name in PROTOCOLS
    )


def test_options_stand_for_keys(tmp_path, capsys):
    arguments = [
        "evaluate",
        "--pred",
        "a: b.npy",
        "--target",
        "y.npy",
        "--protocol",
        "dim",
        "--variant",
        "corrected",
        "--json",
        "out.json",
        "--fps",
        "25",
        "seed=3",
        "--print-config",
    ]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "pred: 'a: b.npy'" in shown and "protocol: dim" in shown and "out: out.json" in shown
    assert "variant: corrected" in shown and "fps: 25.0" in shown and "seed: 3 " in shown
    assert main(["evaluate", "--target", "y.npy"]) == 2
    assert "files.target needs files.pred" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["sft", "--pred", "x.npy"])


def test_published_rows_say_whose_data_they_are(tmp_path, tiny_corpus, capsys):
    """A corpus that `prepare` generated is nobody's published one."""
    run = bare_run(tmp_path)
    score_files(config_of(FilesConfig(pred=tiny_corpus.path, target=tiny_corpus.path)), run)
    published = json.loads((tmp_path / "metrics.json").read_text())["published"]
    assert published and all("synthetic files, there" in row["unlike"][-1] for row in published)
    assert "other data:" in " ".join(capsys.readouterr().out.split())


def test_what_was_read_is_said_and_degrees_in_plain_arrays_too(tmp_path, caplog):
    x, y = motions()
    np.save(tmp_path / "x.npy", x)
    y[3, 54] = 40
    np.save(tmp_path / "y.npy", y)
    files = FilesConfig(pred=tmp_path / "x.npy", target=tmp_path / "y.npy")
    with caplog.at_level("INFO", logger="rapport"):
        score_files(config_of(files), bare_run(tmp_path))
    assert "x.npy: 1 clips, an array (..., 56)" in caplog.text
    [warning] = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert "y.npy: columns 50 to 55 are rotations" in warning and "turns by 40" in warning
    caplog.clear()
    with caplog.at_level("WARNING", logger="rapport"):  # z-scores are beyond pi as they should
        score_files(config_of(files.model_copy(update={"protocol": "l2l"})), bare_run(tmp_path))
    assert "turns by" not in caplog.text


def test_unlike_formats_are_not_scored_against_each_other(tmp_path):
    x = motions(60)[0]
    np.savez(tmp_path / "emoca.npz", expcode=x[:, :50], posecode=x[:, 50:])
    save_dualtalk(tmp_path / "d", "a", 1, x)
    files = FilesConfig(
        pred=tmp_path / "emoca.npz", target=tmp_path / "d" / "a_speaker1.npz", fps=25
    )
    with pytest.raises(RunError, match="unlike layouts"):
        score_files(config_of(files), bare_run(tmp_path))


def test_a_place_where_nothing_can_be_written_is_refused_before_anything(tmp_path, capsys):
    (tmp_path / "file").touch()
    for out, message in (
        (tmp_path, "is a folder: name the file to write"),
        (tmp_path / "file" / "x.json", "nothing may be written to"),
    ):
        arguments = ["evaluate", "--pred", "x.npy", "--target", "y.npy", "--json", str(out)]
        assert main([*arguments, "--run-dir", str(tmp_path / "run")]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.e2e
def test_the_whole_command(tmp_path, capsys):
    x, y = motions()
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    arguments = [
        "evaluate",
        "--pred",
        str(tmp_path / "x.npy"),
        "--target",
        str(tmp_path / "y.npy"),
        "--protocol",
        "lm_listener",
        "--variant",
        "corrected",
        "--json",
        str(tmp_path / "out.json"),
        "seed=4",
    ]
    assert main([*arguments, "--run-dir", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "L2L-trevor" in shown and "RealTalk" in shown and "summary: " in shown
    scores = json.loads((tmp_path / "out.json").read_text())["metrics"]
    assert scores == pytest.approx(evaluate("lm_listener", x, y, variant="corrected", seed=4))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["metrics"]["lm_listener"] == scores
    np.save(tmp_path / "y.npy", y[:9])
    assert main([*arguments, "--run-dir", str(tmp_path / "again")]) == 2
    assert "clip 0: pred has shape (110, 56), target (9, 56)" in capsys.readouterr().err


@pytest.mark.skipif(not DEMO.is_dir(), reason="DualTalk's demo is not there")
def test_dualtalks_demo_against_itself():
    truth = read_clips(DEMO)
    [motion] = truth.values()
    scores = evaluate("dualtalk", motion, motion)
    assert scores["MSE_jaw"] == 0 and scores["FD_exp"] == pytest.approx(0, abs=1e-6)
    assert replace(motion).layout.fps == 25 and scores["SID_exp"] > 3
