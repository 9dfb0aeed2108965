"""A registered policy is an MLflow model, which MLflow and the package can load and ask."""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from rapport.pipeline.data import store
from rapport.pipeline.recipes.serve import registry_of
from rapport.pipeline.rundir import RunError
from rapport.pipeline.serve.deployment import REGISTRY, built
from rapport.pipeline.serve.settings import ServeSection
from rapport.pipeline.serve.voices import load_voice
from rapport.pipeline.settings import ServeConfig
from rapport.pipeline.tracking import CANDIDATE, Tracker
from rapport.policies.flow.config import PAPER_GROUPS
from rapport.policies.head.asset import load_head
from rapport.policies.motion import Layout, Motion
from tests.small_flow import saved_policy

LAYOUT = Layout((("jaw", 2),), 25, "builtin")


@dataclass
class StandInPolicy:
    """Draws around the mean that its folder holds; a prompt is the number of the clip."""

    mean: float

    def encode(self, clip):
        return int(clip)

    def sample(self, prompts, samples, seeds):
        assert len(prompts) == len(seeds)
        return [
            [prompt + np.random.default_rng(seed).normal(self.mean, 1, (3, 2))] * samples
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def to_motion(self, reaction):
        return Motion(reaction, LAYOUT)


class StandInCorpus:
    """The last letter of a clip's id is the clip."""

    def __init__(self, path):
        assert path == "corpora/tiny"

    def clip(self, clip_id):
        return clip_id[-1]


@pytest.fixture
def stand_ins(monkeypatch):
    """Stand for policies and corpora: this tests what lies between them and MLflow."""
    module = ModuleType("rapport.policies.policy")
    module.load_policy = lambda path: StandInPolicy(float((Path(path) / "mean").read_text()))
    monkeypatch.setitem(sys.modules, "rapport.policies.policy", module)
    monkeypatch.setattr(store, "Corpus", StandInCorpus)


@pytest.fixture
def tracker(tmp_path):
    (tmp_path / "run").mkdir()
    tracker = Tracker(None, "tests", tmp_path / "run", None, system_metrics=False)
    yield tracker
    tracker.close(failed=False)


def policy_folder(folder, mean):
    folder.mkdir(parents=True)
    (folder / "mean").write_text(str(mean))
    return folder


def questions(*rows):
    return pd.DataFrame(rows, columns=["corpus", "clip_id", "seed"])


def answer(number, mean, seed):
    values = number + np.random.default_rng(seed).normal(mean, 1, (3, 2))
    return values.astype(np.float32)


def test_a_registered_policy_is_loaded_by_its_alias_and_listens(tracker, tmp_path, stand_ins):
    """Each trial of a sweep has a run of its own: the model belongs to that run, not to ours."""
    trial = tracker.part("trial", None)
    trial.register("listener", policy_folder(tmp_path / "dpo" / "policy", 5.0))
    trial.end(failed=False)
    client = MlflowClient(tracker.uri)
    version = client.get_model_version_by_alias("listener", CANDIDATE)
    assert int(version.version) == 1 and version.run_id == trial.run_id
    assert version.source.endswith("/policy")

    model = mlflow.pyfunc.load_model("models:/listener@candidate")
    answers = model.predict(questions(("corpora/tiny", "clip-3", 7), ("corpora/tiny", "clip-4", 8)))
    assert list(answers.columns) == ["values", "layout"] and len(answers) == 2
    for row, (number, seed) in zip(answers.itertuples(), ((3, 7), (4, 8)), strict=True):
        np.testing.assert_array_equal(row.values, answer(number, 5.0, seed))
        assert Layout.from_json(row.layout) == LAYOUT
    alone = model.predict(questions(("corpora/tiny", "clip-4", 8)))
    assert alone["values"][0] == answers["values"][1], "whatever stands beside it"


def test_the_model_says_what_it_takes_gives_and_needs(tracker, tmp_path, stand_ins):
    tracker.register("described", policy_folder(tmp_path / "policy", 0.0), alias="champion")
    info = mlflow.models.get_model_info("models:/described@champion")
    assert info.signature.inputs.input_names() == ["corpus", "clip_id", "seed"]
    assert info.signature.outputs.input_names() == ["values", "layout"]
    folder = Path(mlflow.artifacts.download_artifacts("models:/described@champion"))
    assert "rapport-rlhf" in (folder / "requirements.txt").read_text().split()
    assert [path.name for path in (folder / "artifacts").rglob("mean")] == ["mean"]
    assert {path.name for path in tmp_path.iterdir()} >= {"policy", "run", "mlflow.db"}
    assert not list(tmp_path.glob(".mlflow-*")), "nothing is left beside the policy"

    model = mlflow.pyfunc.load_model("models:/described@champion")
    with pytest.raises(mlflow.MlflowException, match="clip_id"):
        model.predict(pd.DataFrame({"corpus": ["corpora/tiny"], "seed": [1]}))


def test_the_alias_moves_to_the_newest_version(tracker, tmp_path, stand_ins):
    for mean in (1.0, 2.0):
        tracker.register("moving", policy_folder(tmp_path / str(mean) / "policy", mean))
    versions = MlflowClient(tracker.uri).search_model_versions("name='moving'")
    assert {int(version.version) for version in versions} == {1, 2}
    model = mlflow.pyfunc.load_model("models:/moving@candidate")
    answers = model.predict(questions(("corpora/tiny", "clip-0", 7)))
    newest = MlflowClient(tracker.uri).get_model_version_by_alias("moving", CANDIDATE)
    assert int(newest.version) == 2
    np.testing.assert_array_equal(answers["values"][0], answer(0, 2.0, 7))


@pytest.mark.parametrize(("kind", "simulated"), [("synthetic", True), ("folder", False)])
def test_serve_takes_a_policy_from_the_registry(tracker, tmp_path, kind, simulated):
    """With what is known of the people it was trained on."""
    run = tmp_path / "gdpo"
    folder = saved_policy(run / "policy", PAPER_GROUPS)
    (run / "config.yaml").write_text(f"corpus: {{kind: {kind}}}")
    tracker.register("talker", folder)
    head = load_head()
    voice = load_voice("talker", "models:/talker/1", ServeSection(sessions=1), head)
    assert voice.simulated is simulated
    with pytest.raises(RunError, match=r"models:/nobody/1, in the registry .*: .*tracking.uri"):
        load_voice("nobody", "models:/nobody/1", ServeSection(sessions=1), head)


def test_replicas_know_the_registry_of_the_run(monkeypatch):
    monkeypatch.delenv(REGISTRY, raising=False)
    config = ServeConfig()
    assert registry_of(config, "sqlite:///runs/mlflow.db") == "sqlite:///runs/mlflow.db"
    monkeypatch.setenv(REGISTRY, "http://mlflow:5000")
    assert registry_of(config, "sqlite:///runs/mlflow.db") == "http://mlflow:5000"
    named = ServeConfig(tracking={"uri": "http://other:5000"})
    assert registry_of(named, "sqlite:///runs/mlflow.db") == "http://other:5000"
    deployment = built(config.serve, config.head, "http://mlflow:5000")._bound_deployment
    variables = deployment.ray_actor_options["runtime_env"]["env_vars"]
    assert variables[REGISTRY] == "http://mlflow:5000"
