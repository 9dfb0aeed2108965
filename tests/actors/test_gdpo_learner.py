"""GDPO on real learners with a rollout fleet of their own: iterations, and that a killed learner
changes nothing.
"""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rapport.actors.flow_rollout import FlowFleetOptions
from rapport.actors.learner import LearnerOptions, fit
from rapport.pipeline.config import GdpoConfig, GroupWeightsConfig, RewardConfig
from rapport.pipeline.data.flow import WINDOW_SCHEMA
from rapport.pipeline.objectives.gdpo import GdpoTask
from rapport.policies.flow import checkpoint, config
from rapport.policies.flow.model import initialised
from rapport.policies.flow.training import to_bytes
from rapport.policies.flow.vae import MotionVAE
from rapport.policies.motion import Layout, Motion
from rapport.policies.tables import write_table

pytestmark = pytest.mark.engine
LAYOUT = Layout((("expr", 4), ("jaw", 2)), 25, "builtin")
SIZES = config.FlowConfig(
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
OPTIONS = LearnerOptions(
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
GDPO = GdpoConfig(
    iterations=3, sync_every=2, batch_size=2, group_size=2, steps=2, learning_rate=1e-3
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("gdpo"), np.random.default_rng(0)
    torch.manual_seed(0)
    checkpoint.save(
        MotionVAE(config.VAEConfig(LAYOUT, downsample=4, latent_dim=4, hidden=32)), folder / "vae"
    )
    checkpoint.save(initialised(SIZES, 0), folder / "flow")
    rows = (
        {
            "clip_id": str(i),
            "latents": to_bytes(np.zeros((3, 4))),
            "frames": to_bytes(rng.normal(size=(12, 6))),
            "listening": [i < 4] * 12,
            "speaking": [i >= 4] * 12,
        }
        | {name: to_bytes(rng.normal(size=shape)) for name, shape in SHAPES.items()}
        for i in range(5)
    )
    write_table(folder / "windows.arrow", rows, WINDOW_SCHEMA)
    return folder


def killed_once(task: GdpoTask, marker: Path) -> GdpoTask:
    """The task, but the learner that owns the fleet is killed in the second iteration, once.
    Travels by value.
    """

    class Killed(GdpoTask):
        def batch(self, step, rank, world_size):
            if step == 3 and rank == 0 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().batch(step, rank, world_size)

    return Killed(**{name: getattr(task, name) for name in task.__dataclass_fields__})


def test_iterations_with_a_killed_learner_are_those_that_went_through(local_ray, files, tmp_path):
    limits = Motion(np.stack([np.full(6, -3.0), np.full(6, 3.0)]), LAYOUT)
    task = GdpoTask(
        str(files / "flow"),
        str(files / "windows.arrow"),
        str(files / "vae"),
        limits,
        3,
        GDPO,
        RewardConfig(),
        GroupWeightsConfig(),
        FlowFleetOptions(1, 0.1, 0, 1, 2, 60, 0),
    )
    logged, weights = {}, {}
    for name, running in (("whole", task), ("killed", killed_once(task, tmp_path / "marker"))):
        lines = logged[name] = []
        result = fit(
            running,
            OPTIONS,
            tmp_path / name,
            lambda values, step, to=lines: to.append((step, values)),
            print,
        )
        weights[name] = load_file(tmp_path / name / "policy" / "model.safetensors")
        assert result["steps"] == 6
    assert (tmp_path / "marker").exists()
    whole, killed = (
        [
            (step, {k: v for k, v in values.items() if k != "rollout_s"})
            for step, values in logged[name]
        ]
        for name in ("whole", "killed")
    )
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
