"""Reflow: a few evaluations come to where the teacher's many do."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rapport.pipeline.objectives.reflow import Reflow
from rapport.pipeline.objectives.settings import DistilTraining
from rapport.pipeline.settings import DistilConfig
from rapport.pipeline.steps import distilling
from rapport.pipeline.steps.solvers import answers_by, variances
from rapport.policies.flow import config
from rapport.policies.flow.conditions import LEADS, MODALITIES
from rapport.policies.flow.model import initialised
from rapport.policies.flow.policy import FlowPolicy
from rapport.policies.flow.sampling import window_noise
from rapport.policies.flow.settings import EncodersConfig
from rapport.policies.flow.training import ANSWER_SCHEMA, from_bytes, to_bytes
from rapport.policies.flow.vae import MotionVAE
from rapport.policies.motion import Motion
from rapport.policies.tables import read_table, write_table
from tests.pipeline.descent import descend
from tests.small_flow import LAYOUT, SHAPES, SIZES

TAUGHT = 10
WINDOWS = 24


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """An AR-Flow whose velocity bends: two evaluations do not follow it."""
    torch.manual_seed(0)
    vae = MotionVAE(config.VaeSizes(LAYOUT, downsample=4, latent_dim=4, hidden=32))
    flow = initialised(SIZES, seed=0)
    for name, weight in flow.named_parameters():
        if weight.ndim > 1 and not weight.any():  # what begins as 0
            torch.nn.init.normal_(weight, std=0.3)
        assert weight.isfinite().all(), name
    path = tmp_path_factory.mktemp("teacher") / "policy"
    FlowPolicy(flow, vae, EncodersConfig()).save(path)
    return path


def window(index):
    rng = np.random.default_rng(index)
    features = {name: to_bytes(rng.normal(size=shape)) for name, shape in SHAPES.items()}
    return {"prompt_id": f"clip-{index}"} | features


def answered(teacher, folder, **keys):
    given = DistilConfig(distil=DistilTraining(windows=WINDOWS, taught=TAUGHT, **keys))
    table = folder / "answers.arrow"
    windows = [window(index) for index in range(WINDOWS)]
    rows = distilling._answered(FlowPolicy.load(teacher), windows, given)
    write_table(table, rows, ANSWER_SCHEMA)
    return table


def test_answers_come_of_their_own_noise_with_what_was_left_to_hear(teacher, tmp_path):
    rows = list(read_table(answered(teacher, tmp_path, drop_each=0.5)))
    assert {row["prompt_id"] for row in rows} == {f"clip-{i}" for i in range(WINDOWS)}
    assert {row["lead"] for row in rows} <= set(LEADS)
    policy = FlowPolicy.load(teacher).with_sampler(evaluations=TAUGHT, lead=rows[0]["lead"])
    lost = sum(row[name] is None for row in rows for name in MODALITIES)
    assert 0 < lost < WINDOWS * len(MODALITIES)
    rng = np.random.default_rng(0)
    rng.permutation(WINDOWS)
    rng.random((WINDOWS, len(MODALITIES)))
    seed = int(rng.integers(2**31, size=WINDOWS)[0])
    [[again]] = policy.sample([policy.prompt_of(rows[0])], 1, [seed])
    expected = from_bytes(rows[0]["latents"], 12, 4)
    torch.testing.assert_close(torch.from_numpy(again.actions), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(from_bytes(rows[0]["noise"], 12, 4), window_noise([seed], 1, 12, 4)[0, 0])


def test_two_evaluations_come_nearer_to_the_teachers_ten(teacher, tmp_path):
    keys = {"batch_size": 8, "steps": 60}
    task = Reflow(teacher, answered(teacher, tmp_path), DistilTraining(**keys), seed=0)
    module = task.module()
    descend(task, module, range(task.steps), rate=2e-3)
    task.save(module.state_dict(), tmp_path / "student")
    rows = [window(1000 + index) for index in range(16)]
    policies = {
        "teacher": FlowPolicy.load(teacher),
        "student": FlowPolicy.load(tmp_path / "student"),
    }
    well = answers_by(policies["teacher"], rows, "midpoint", TAUGHT).latents
    off = {
        name: np.abs(answers_by(policy, rows, "midpoint", 2).latents - well).mean()
        for name, policy in policies.items()
    }
    assert off["student"] < 0.7 * off["teacher"], off


def test_a_batch_is_shared_equally(teacher, tmp_path):
    task = Reflow(teacher, answered(teacher, tmp_path), DistilTraining(batch_size=8), seed=0)
    whole, parts = task.batch(3, 0, 1), [task.batch(3, rank, 2) for rank in range(2)]
    for name, value in whole.items():
        shared = torch.stack([parts[i % 2][name][i // 2] for i in range(8)])
        assert torch.equal(shared, value), name
    noise = whole["noise"]
    assert torch.equal(noise[:, :, :, 0], noise[:, :, :, 1]), "a latent has one noise"


def test_a_distilled_policy_says_how_few_evaluations_it_takes(teacher, tmp_path):
    policy = FlowPolicy.load(teacher)
    assert policy.sampler.evaluations == 10
    step = SimpleNamespace(directory=tmp_path, say=lambda text: None)
    seen = {}

    def learn(objective, learner, step):
        seen["policy"] = FlowPolicy.load(tmp_path / "initial")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distilling, "learn", learn)
        table = answered(teacher, tmp_path)
        result = SimpleNamespace(artifacts={"answers_table": table})
        distilling.distil.__wrapped__(step, DistilConfig(), teacher=teacher, answered=result)
    assert seen["policy"].sampler.evaluations == 2


def test_variances_are_summed_over_the_channels_of_a_group():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4000, 6)) * [1, 2, 0, 0, 3, 0]
    halves = [Motion(values[:2000], LAYOUT), Motion(values[2000:], LAYOUT)]
    found = variances(halves)
    assert found["expr"] == pytest.approx(5, rel=0.1) and found["jaw"] == pytest.approx(9, rel=0.1)
