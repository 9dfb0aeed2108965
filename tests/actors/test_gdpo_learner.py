"""GDPO on real learners with a rollout fleet of their own: iterations, and that a killed learner
changes nothing.
"""

import os
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rapport.actors.engines import InProcess
from rapport.actors.fleet import Fleet
from rapport.actors.learner import Learners
from rapport.actors.settings import FleetConfig, LearnerConfig
from rapport.pipeline.data.flow import WINDOW_SCHEMA
from rapport.pipeline.objectives.gdpo import Gdpo
from rapport.pipeline.objectives.settings import FlowGdpoConfig
from rapport.pipeline.steps.alignment import sampled_by
from rapport.pipeline.steps.rewarding import Scenes, experience
from rapport.policies.flow import config
from rapport.policies.flow.model import initialised
from rapport.policies.flow.policy import FlowPolicy, Sampler
from rapport.policies.flow.settings import EncodersConfig
from rapport.policies.flow.training import to_bytes
from rapport.policies.flow.vae import MotionVAE
from rapport.policies.motion import Layout
from rapport.policies.policy import load_policy
from rapport.policies.tables import write_table
from rapport.rewards.dynamics import GroupWeightsConfig, RewardConfig

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
OPTIONS = LearnerConfig(
    world_size=2,
    cpus=0.4,
    gpus=0,
    threads=1,
    zero_stage=2,
    gradient_clipping=1.0,
    max_failures=1,
    checkpoint_every=2,
    timeout_s=300,
)
GDPO = FlowGdpoConfig(
    iterations=3, sync_every=2, batch_size=2, group_size=2, steps=2, learning_rate=1e-3
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
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
    write_table(folder / "windows.arrow", rows, WINDOW_SCHEMA)
    return folder


SAMPLER = Sampler(steps=2, sigma=0.5, corrected=True, shared_start=True, chunk=100)


def killed_once(objective: Gdpo, marker: Path) -> Gdpo:
    """The objective, but the learner that asks for rollouts is killed in the second iteration,
    once. Travels by value.
    """

    class Killed(Gdpo):
        def batch(self, step, rank, world_size):
            if step == 3 and rank == 0 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().batch(step, rank, world_size)

    killed = Killed.__new__(Killed)
    killed.__dict__ |= objective.__dict__
    return killed


def post_train(objective, files, folder, log):
    """The loop of `recipes/gdpo.py`."""
    scenes = Scenes(
        files / "windows.arrow", load_policy(files / "flow"), files / "flow", GDPO, seed=3
    )
    recipe = SimpleNamespace(gdpo=GDPO, reward=RewardConfig(), groups=GroupWeightsConfig())
    fleet_config = FleetConfig(workers=1, batch_prompts=2, timeout_s=60)
    start = partial(InProcess, str(files / "flow"), SAMPLER)
    with Fleet(start, fleet_config, losses=0) as fleet:
        roll_out = sampled_by(fleet, scenes, recipe)
        learners = Learners(objective, OPTIONS, folder, log=log, say=print)
        for iteration in learners.iterations():
            groups = roll_out(iteration.weights, iteration.index)
            batch = scenes.of_iteration(iteration.index)
            learners.learn(experience(scenes, batch, groups, recipe))
    return learners.result


def test_iterations_with_a_killed_learner_are_those_that_went_through(local_ray, files, tmp_path):
    objective = Gdpo(files / "flow", files / "windows.arrow", GDPO, 3, SAMPLER)
    logged, weights = {}, {}
    runs = {"whole": objective, "killed": killed_once(objective, tmp_path / "marker")}
    for name, running in runs.items():
        lines = logged[name] = []

        def log(values, step, to=lines):
            to.append((step, values))

        result = post_train(running, files, tmp_path / name, log)
        weights[name] = load_file(tmp_path / name / "policy" / "model.safetensors")
        assert result["steps"] == 6
    assert (tmp_path / "marker").exists()
    whole, killed = logged["whole"], logged["killed"]
    assert [step for step, _ in whole] == list(range(1, 7))
    assert dict(killed) == dict(whole), "the same rewards, ratios and gradients"
    assert ["reward/expr" in values for _, values in whole] == [True, False] * 3
    assert all(values["ratio"] == pytest.approx(1, abs=1e-6) for _, values in whole[::2]), (
        "on-policy after a refresh"
    )
    before = load_file(files / "flow" / "model.safetensors")
    assert any(not torch.equal(before[name], weight) for name, weight in weights["whole"].items())
    assert all(
        torch.equal(weights["killed"][name], weight) for name, weight in weights["whole"].items()
    )
