"""The rollout fleet of AR-Flow on a local Ray: same groups whoever samples them, and the weights it
was given.
"""

import os
import signal
from functools import partial

import numpy as np
import pytest
import torch

from rapport.actors.engines import InProcess
from rapport.actors.fleet import Fleet, StaleWeightsError
from rapport.actors.settings import FleetConfig
from rapport.pipeline.data.flow import WINDOW_SCHEMA
from rapport.pipeline.objectives.settings import FlowGdpoConfig
from rapport.pipeline.steps.rewarding import Scenes
from rapport.policies.flow import config
from rapport.policies.flow.model import initialised
from rapport.policies.flow.policy import FlowPolicy, Sampler
from rapport.policies.flow.rollouts import NoisyWindow
from rapport.policies.flow.settings import EncodersConfig
from rapport.policies.flow.training import to_bytes
from rapport.policies.flow.vae import MotionVAE
from rapport.policies.policy import load_policy
from rapport.policies.tables import write_table
from tests.small_flow import LAYOUT, SHAPES, SIZES

pytestmark = pytest.mark.engine
ROWS, SEEDS = [0, 3, 1, 2, 0], [5, 6, 7, 8, 9]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("fleet"), np.random.default_rng(0)
    torch.manual_seed(0)
    vae = MotionVAE(config.VaeSizes(LAYOUT, downsample=4, latent_dim=4, hidden=32))
    FlowPolicy(initialised(SIZES, 0), vae, EncodersConfig()).save(folder / "flow")
    rows = (
        {
            "prompt_id": str(i),
            "latents": to_bytes(np.zeros((12, 4))),
            "recorded": to_bytes(rng.normal(size=(48, 6))),
            "listening": [True] * 48,
            "speaking": [False] * 48,
        }
        | {name: to_bytes(rng.normal(size=shape)) for name, shape in SHAPES.items()}
        for i in range(4)
    )
    write_table(folder / "windows.arrow", rows, WINDOW_SCHEMA)
    return folder


SAMPLER = Sampler(evaluations=4, exploration=NoisyWindow("midpoint", 4, 0.5))


def fleet(files, workers=2, batch_prompts=2, losses=0):
    settings = FleetConfig(workers=workers, batch_prompts=batch_prompts, timeout_s=60)
    return Fleet(partial(InProcess, str(files / "flow"), SAMPLER), settings, losses=losses)


@pytest.fixture(scope="module")
def scenes(files):
    policy = load_policy(files / "flow")
    return Scenes(files / "windows.arrow", policy, files / "flow", FlowGdpoConfig(), seed=0)


def roll_out(fleet, scenes):
    prompts = [scenes.policy.prompt_of(scenes.rows[row]) for row in ROWS]
    return fleet.groups(prompts, 3, SEEDS)


def states(group):
    return torch.from_numpy(np.stack([reaction.actions for reaction in group]))


def assert_same(groups, others):
    for these in (groups, others):
        assert [group[0].prompt_id for group in these] == [str(row) for row in ROWS]
    for a, b in zip(groups, others, strict=True):
        torch.testing.assert_close(states(a), states(b))
        for one, other in zip(a, b, strict=True):
            np.testing.assert_allclose(one.motion.values, other.motion.values, atol=1e-4)


def test_groups_do_not_depend_on_workers_and_batches(local_ray, files, scenes):
    with fleet(files) as two, fleet(files, workers=1, batch_prompts=5) as one:
        groups, others = roll_out(two, scenes), roll_out(one, scenes)
    assert_same(groups, others)
    assert states(groups[0]).shape == (3, 12, 3, 4)
    assert not torch.equal(states(groups[0]), states(groups[4])), "another seed"


def test_new_weights_are_sampled_with_and_old_ones_are_noticed(local_ray, files, scenes):
    with fleet(files, losses=1) as two:
        before = roll_out(two, scenes)
        two.update(initialised(SIZES, 1).state_dict())
        after = roll_out(two, scenes)
        assert {reaction.weight_version for group in after for reaction in group} == {1}
        assert not torch.equal(states(before[0]), states(after[0]))
        two.version = 9
        with pytest.raises(StaleWeightsError, match="another weight version than 9"):
            roll_out(two, scenes)


def test_a_lost_worker_is_replaced_by_one_with_the_current_weights(local_ray, files, scenes):
    import ray

    with fleet(files, workers=1, losses=1) as one:
        one.update(initialised(SIZES, 1).state_dict())
        groups = roll_out(one, scenes)
        pid = ray.get(one._actors[0].__ray_call__.remote(lambda worker: os.getpid()))
        os.kill(pid, signal.SIGKILL)
        assert_same(roll_out(one, scenes), groups)
        assert one.lost == 1
