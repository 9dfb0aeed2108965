"""A name that is mistyped costs seconds: nothing is made, and nothing has started."""

import re

import numpy as np
import pytest

from rapport.pipeline.run import main

VLA = ["vla.size=pretrained", "vla.dino=nowhere/dino", "vla.siglip=nowhere/siglip"]


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("clips.npy", np.zeros((2, 100, 56), np.float32))
    (tmp_path / "folder").mkdir()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "--pred", "nosuch.npy", "--target", "clips.npy"], "nosuch.npy"),
        (["evaluate", "--pred", "clips.npy", "--target", "nosuch.npy"], "nosuch.npy"),
        (
            ["evaluate", "--pred", "clips.npy", "--target", "clips.npy", "--json", "folder"],
            "--json.*name the file",
        ),
        (
            ["evaluate", "--pred", "clips.npy", "--target", "clips.npy", "files.affect=no.npz"],
            "files.affect=no.npz",
        ),
        (["evaluate", "checkpoint=nosuch"], "nosuch is no policy"),
        (["evaluate", "checkpoint=folder"], "folder is no policy"),
        (["evaluate", "head.path=nosuch.pkl"], "nosuch.pkl"),
        (["dpo", "candidates=nosuch"], "candidates=nosuch: no summary.json there"),
        (["dpo", "candidates=folder", "ratings=nosuch.csv"], "candidates=folder"),
        (["dpo", "ratings=live", "rate.raters=2"], "rate.raters=2 links are fewer"),
        (["dpo", "sft.checkpoint=nosuch"], "nosuch is no policy"),
        (["dpo", "vla.llama=folder", *VLA], "vla.llama=folder.*config.json"),
        (["dpo", "policy=nosuch:Policy"], "policy=nosuch:Policy cannot be imported"),
        (["gdpo", "imitation=nosuch"], "imitation=nosuch: no config.yaml there"),
        (["gdpo", "encoders.text=folder"], "encoders.text=folder is no model"),
        (["sft", "corpus.kind=parquet", "corpus.root=nosuch"], "nosuch"),
        (["prepare", "corpus.kind=dualtalk"], "needs corpus.root"),
        (["prepare", "corpus.kind=lm_listener", "corpus.root=nosuch"], "nosuch: no such folder"),
        (["rank", "rank.dpo=nosuch"], "rank.dpo=nosuch: no summary.json there"),
        (["preflight", "--plan", "nodes=1", "bench=[nosuch.json]"], "nosuch.json"),
        (["tune", "dpo", "candidates=nosuch"], "candidates=nosuch: no summary.json there"),
        (["ablate", "sft.checkpoint=nosuch"], "nosuch is no policy"),
        (["listen", "policy=folder", "speaker=clips.npy"], "policy=folder: neither policy.json"),
        (["listen"], "listen needs speaker=RECORDING"),
        (["bridge"], "bridge needs speaker=RECORDING"),
    ],
)
def test_what_is_not_there_is_named_before_anything_is_made(arguments, words, tmp_path, capsys):
    assert main([*arguments, "--run-dir", "run"]) == 2
    said = capsys.readouterr().err
    assert re.search(words, said), said
    assert said.startswith(f"rapport {arguments[0]}: ") and "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips.npy", "folder"]


def test_a_run_directory_that_cannot_be_made_is_named(tmp_path, capsys):
    assert main(["prepare", "corpus.train_clips=8", "--run-dir", "clips.npy/run"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "clips.npy" in said and "Not a directory" in said
