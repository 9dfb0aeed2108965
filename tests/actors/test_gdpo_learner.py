"""GDPO on real learners and a rollout fleet: iterations; a killed learner changes nothing."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rapport.actors.settings import FleetConfig, LearnerConfig
from rapport.pipeline.data.flow import WINDOW_SCHEMA
from rapport.pipeline.data.synthetic.generate import Design, generate_corpus
from rapport.pipeline.objectives.gdpo import Gdpo
from rapport.pipeline.objectives.settings import FlowGdpoConfig, GdpoConfig
from rapport.pipeline.recipes import gdpo as recipe
from rapport.pipeline.settings import GdpoOfFlow, GdpoOfReactFace
from rapport.pipeline.steps import alignment
from rapport.pipeline.steps.learning import Imitated
from rapport.pipeline.steps.sampling import fleet_sampler, start_fleet
from rapport.policies.flow import config
from rapport.policies.flow.model import initialised
from rapport.policies.flow.policy import FlowPolicy
from rapport.policies.flow.settings import EncodersConfig
from rapport.policies.flow.training import to_bytes
from rapport.policies.flow.vae import MotionVAE
from rapport.policies.motion import Layout
from rapport.policies.reactface.policy import ReactFacePolicy
from rapport.policies.tables import write_table

pytestmark = pytest.mark.engine
LAYOUT = Layout((("expr", 4), ("jaw", 2)), 25, "builtin")
SIZES = config.FlowSizes(
    latent_dim=4,
    downsample=4,
    text_dim=5,
    audio_dim=6,
    hidden=32,
    layers=1,
    heads=4,
    mlp=48,
    window=3,
)
SHAPES = {"text": (5,), "partner_audio": (12, 6), "partner_motion": (3, 4), "actor_audio": (12, 6)}
SHORT = {
    "iterations": 3,
    "sync_every": 2,
    "batch_size": 2,
    "group_size": 2,
    "learning_rate": 1e-3,
}
ON_RAY = {
    "seed": 3,
    "learner": LearnerConfig(
        world_size=2,
        cpus=0.4,
        gpus=0,
        threads=1,
        zero_stage=2,
        gradient_clipping=1.0,
        max_failures=1,
        checkpoint_every=2,
        timeout_s=300,
    ),
    "rollout": FleetConfig(workers=1, cpus=0.1, gpus=0, threads=1, batch_prompts=2, timeout_s=60),
}
OF_FLOW = GdpoOfFlow(gdpo=FlowGdpoConfig(**SHORT, estimator="gdpo", steps=2), **ON_RAY)
OF_REACTFACE = GdpoOfReactFace(policy="reactface", gdpo=GdpoConfig(**SHORT), **ON_RAY)


@pytest.fixture(scope="module")
def a_flow(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("gdpo"), np.random.default_rng(0)
    torch.manual_seed(0)
    vae = MotionVAE(config.VaeSizes(LAYOUT, downsample=4, latent_dim=4, hidden=32))
    FlowPolicy(initialised(SIZES, 0), vae, EncodersConfig()).save(folder / "flow")
    rows = (
        {
            "prompt_id": str(i),
            "latents": to_bytes(np.zeros((3, 4))),
            "recorded": to_bytes(rng.normal(size=(12, 6))),
            "listening": [i < 4] * 12,
            "speaking": [i >= 4] * 12,
        }
        | {name: to_bytes(rng.normal(size=shape)) for name, shape in SHAPES.items()}
        for i in range(5)
    )
    (folder / "windows").mkdir()
    write_table(folder / "windows" / "train.arrow", rows, WINDOW_SCHEMA)
    return Imitated(corpus=None, policy_path=folder / "flow", windows=folder / "windows")


@pytest.fixture(scope="module")
def a_reactface(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reactface")
    design = Design(seconds=1, past=0, frames=0)
    corpus = generate_corpus(folder / "corpus", 12, 2, 2, design=design, workers=0)
    clips = list(corpus.clips("train"))
    ReactFacePolicy.untrained(corpus.layout, clips, seed=0).save(folder / "policy")
    return Imitated(corpus, folder / "policy")


def killed_once(marker: Path) -> type[Gdpo]:
    """GDPO, but the learner that asks for rollouts is killed in the second iteration, once.

    Local, so that it travels by value.
    """

    class Killed(Gdpo):
        def batch(self, step, rank, world_size):
            if step == 3 and rank == 0 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().batch(step, rank, world_size)

    return Killed


def post_train(imitated, config, directory):
    """The recipe's own loop; returns the phase's result and what was logged."""
    logged = []
    step = SimpleNamespace(
        name="gdpo",
        directory=directory,
        say=print,
        logger=SimpleNamespace(log=lambda values, step: logged.append((step, values))),
    )
    run = SimpleNamespace(
        once=lambda name, work, round_index: work(step), summary={"metrics": {}}, root=directory
    )
    imitated.policy.sampler = fleet_sampler(config, imitated.policy)
    with start_fleet(config.rollout, 0, imitated) as fleet:
        fleet.ready()
        return recipe.post_train(run, config, imitated, fleet), logged


@pytest.mark.long
@pytest.mark.parametrize(("policy", "config"), [("a_flow", OF_FLOW), ("a_reactface", OF_REACTFACE)])
def test_iterations_with_a_killed_learner_are_those_that_went_through(
    local_ray, request, policy, config, tmp_path, monkeypatch
):
    imitated = request.getfixturevalue(policy)
    logged, weights = {}, {}
    marker = tmp_path / "marker"
    for name, objective in (("whole", Gdpo), ("killed", killed_once(marker))):
        monkeypatch.setattr(alignment, "Gdpo", objective)
        (tmp_path / name).mkdir()
        result, logged[name] = post_train(imitated, config, tmp_path / name)
        weights[name] = load_file(result.artifacts["gdpo_policy"] / "model.safetensors")
        assert result.counts["gdpo_steps"] == 6
    assert marker.exists()
    whole, killed = logged["whole"], logged["killed"]
    assert [step for step, _ in whole] == list(range(1, 7))
    assert dict(killed) == dict(whole), "the same rewards, ratios and gradients"
    assert ["reward/expr" in values for _, values in whole] == [True, False] * 3
    assert all(values["ratio"] == pytest.approx(1, abs=1e-6) for _, values in whole[::2]), (
        "on-policy after a refresh"
    )
    before = load_file(imitated.policy_path / "model.safetensors")
    assert any(not torch.equal(before[name], weight) for name, weight in weights["whole"].items())
    assert all(
        torch.equal(weights["killed"][name], weight) for name, weight in weights["whole"].items()
    )
