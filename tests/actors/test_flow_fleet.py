"""The rollout fleet of AR-Flow on a local Ray: same groups whoever samples them, and the weights it
was given.
"""

import os
import signal

import numpy as np
import pytest
import torch

from rapport.actors.fleet import StaleWeightsError
from rapport.actors.flow_rollout import FlowFleet, FlowFleetOptions, Sampling
from rapport.pipeline.data.flow import WINDOW_SCHEMA
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
ROWS, SEEDS = [0, 3, 1, 2, 0], [5, 6, 7, 8, 9]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("fleet"), np.random.default_rng(0)
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
            "listening": [True] * 12,
            "speaking": [False] * 12,
        }
        | {name: to_bytes(rng.normal(size=shape)) for name, shape in SHAPES.items()}
        for i in range(4)
    )
    write_table(folder / "windows.arrow", rows, WINDOW_SCHEMA)
    return folder


def fleet(files, workers=2, batch_prompts=2, losses=0):
    limits = Motion(np.stack([np.full(6, -3.0), np.full(6, 3.0)]), LAYOUT)
    sampling = Sampling(
        group_size=3, steps=2, sigma=0.5, reduction="sum", corrected=True, shared_start=True
    )
    options = FlowFleetOptions(workers, 0.1, 0, 1, batch_prompts, 60, losses)
    return FlowFleet(
        files / "flow", files / "vae", files / "windows.arrow", limits, sampling, options
    )


def assert_same(groups, others):
    assert [group.row for group in groups] == [group.row for group in others] == ROWS
    for a, b in zip(groups, others, strict=True):
        torch.testing.assert_close(a.states, b.states)
        for penalties, wanted in zip(a.penalties, b.penalties, strict=True):
            assert all(penalties[name] == pytest.approx(wanted[name], rel=1e-4) for name in wanted)


def test_groups_do_not_depend_on_workers_and_batches(local_ray, files):
    with fleet(files) as two, fleet(files, workers=1, batch_prompts=5) as one:
        groups, others = two.roll_out(ROWS, SEEDS), one.roll_out(ROWS, SEEDS)
    assert_same(groups, others)
    assert groups[0].states.shape == (3, 3, 3, 4) and len(groups[0].penalties) == 3
    assert not torch.equal(groups[0].states, groups[4].states), "another seed"


def test_new_weights_are_sampled_with_and_old_ones_are_noticed(local_ray, files):
    with fleet(files, losses=1) as two:
        before = two.roll_out(ROWS, SEEDS)
        two.update(initialised(SIZES, 1).state_dict(), version=8)
        after = two.roll_out(ROWS, SEEDS)
        assert {group.version for group in after} == {8}
        assert not torch.equal(before[0].states, after[0].states)
        two.version = 9
        with pytest.raises(StaleWeightsError, match="another weight version than 9"):
            two.roll_out(ROWS, SEEDS)


def test_a_lost_worker_is_replaced_by_one_with_the_current_weights(local_ray, files):
    import ray

    with fleet(files, workers=1, losses=1) as one:
        one.update(initialised(SIZES, 1).state_dict(), version=4)
        groups = one.roll_out(ROWS, SEEDS)
        pid = ray.get(one._actors[0].__ray_call__.remote(lambda worker: os.getpid()))
        os.kill(pid, signal.SIGKILL)
        assert_same(one.roll_out(ROWS, SEEDS), groups)
        assert one.lost == 1
