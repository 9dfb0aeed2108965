"""The GDPO task of the VLA without Ray: its engine (transformers) lives in this process."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rapport.pipeline.data.store import Corpus
from rapport.pipeline.objectives.gdpo import Gdpo
from rapport.pipeline.objectives.settings import VlaGdpoConfig
from rapport.pipeline.steps.alignment import sampled_by
from rapport.pipeline.steps.learning import Imitated
from rapport.pipeline.steps.rewarding import scenes_of
from rapport.policies.policy import Reaction, load_policy, weight_digest
from rapport.policies.tables import read_table
from rapport.policies.vla.hf_engine import HfEngine
from rapport.policies.vla.policy import TokenSampler
from rapport.policies.vla.settings import VlaConfig
from rapport.rewards.dynamics import motion_limits
from rapport.rewards.settings import GroupWeightsConfig, RewardConfig
from tests.pipeline.descent import descend
from tests.pipeline.iterations import experience_of

DIMS, STEPS = 9, 5  # of the tiny policy
SETTINGS = {"iterations": 2, "sync_every": 2, "batch_size": 2, "group_size": 3}


class LocalFleet:
    """Without Ray: its engine (transformers) lives in this process."""

    def __init__(self, checkpoint):
        self.engine = HfEngine(checkpoint, "float32", 1.0)
        self.began_with = weight_digest(self.engine.model.state_dict())
        self.behaviour = None

    def update(self, weights, policy):
        self.engine.update(dict(weights))
        self.behaviour = policy

    def groups(self, prompts, samples, seeds):
        sampled = self.engine.sample(prompts, samples, seeds)
        return [
            [
                Reaction(prompt.prompt_id, k, *both, seed=seed, rest=prompt.rest)
                for k, both in enumerate(group)
            ]
            for prompt, seed, group in zip(prompts, seeds, sampled, strict=True)
        ]


@pytest.fixture
def task(tiny_corpus, tiny_checkpoint, tmp_path):
    def make(vla=None, **keys):
        settings = VlaGdpoConfig(**SETTINGS | keys)
        recipe = SimpleNamespace(
            gdpo=settings, seed=3, reward=RewardConfig(), groups=GroupWeightsConfig()
        )
        step = SimpleNamespace(directory=tmp_path, say=lambda text: None)
        scenes = scenes_of(step, recipe, Imitated(tiny_corpus, tiny_checkpoint))
        objective = Gdpo(
            tiny_checkpoint, scenes.table, settings, 3, TokenSampler(1.0), vla or VlaConfig()
        )
        objective.recipe = recipe
        objective.scenes = scenes
        objective.fleet = LocalFleet(tiny_checkpoint)
        return objective

    return make


def iteration(task, module, state, index):
    """Sample, reward and replay an iteration; its metrics."""
    with sampled_by(task.fleet, task.scenes, task.recipe) as roll_out:
        groups = roll_out(state, index)
    given = experience_of(task, groups, index)
    task.refresh(module, given.data, 0, 1)
    return given.metrics


def refreshed(task, step=0):
    module = task.module()
    state = {f"policy.{n}": v for n, v in task.policy.model.state_dict().items()}
    return module, iteration(task, module, state, step // task.config.sync_every)


def test_who_listens_is_a_prompt(tiny_corpus, tiny_checkpoint, task):
    rows = read_table(task().table)
    assert 0 < len(rows) <= 8 and all(
        len(row["listening"]) == 25 and any(row["listening"]) for row in rows
    )
    layout = load_policy(tiny_checkpoint).layout
    recorded = (
        dict(Corpus(tiny_corpus.path).listeners("train"))[rows[0]["prompt_id"]]
        .subset(layout)
        .values
    )
    assert rows[0]["recorded"] == recorded.astype(np.float32).tobytes()


def test_on_policy_the_ratio_is_exactly_1_and_engines_hardly_differ(task, alone):
    made = task()
    module, metrics = refreshed(made)
    assert {"reward/expr", "reward/path/rot", "zero_std/jaw"} <= set(metrics)
    assert metrics["failed"] == 0
    loss, parts = made.loss(module, made.batch(0, 0, 1))
    assert parts["ratio"].item() == pytest.approx(1, abs=1e-6) and parts[
        "kl/reference"
    ].item() == pytest.approx(0, abs=1e-6)
    assert 0 < parts["mismatch_max"].item() < 1e-3 and parts["truncated"] == 0
    assert loss.item() == pytest.approx(0, abs=1e-3), "advantages are centred within a group"
    row = made.replay[0]
    assert row["actions"][0].shape == row["old"].shape == (3, DIMS * STEPS)
    assert row["rewarded"].shape == (DIMS * STEPS,), "the same for the whole group"


def test_what_an_engine_of_other_numbers_sampled_is_weighted(task, alone):
    """As if the engine had thought every token half as likely as the learner does: weight 2, cut at
    1.5.
    """
    made = task(truncation=1.5)
    module, _ = refreshed(made)
    plain = torch.autograd.grad(
        made.loss(module, made.batch(0, 0, 1))[0],
        made.policy.model.parameters(),
        allow_unused=True,
    )
    for row in made.replay:
        row["engine"] = row["old"] - np.log(2)
    loss, parts = made.loss(module, made.batch(0, 0, 1))
    assert parts["truncated"] == 1 and parts["mismatch"].item() == pytest.approx(
        np.log(2), abs=1e-5
    )
    weighted = torch.autograd.grad(loss, made.policy.model.parameters(), allow_unused=True)
    pairs = [(a, b) for a, b in zip(plain, weighted, strict=True) if a is not None]
    assert pairs
    for a, b in pairs:
        torch.testing.assert_close(b, 1.5 * a, rtol=1e-2, atol=1e-5)


def test_good_answers_become_likelier_where_they_listen(task, alone):
    made = task(beta=0.0, clip=0.9)
    module, _ = refreshed(made)
    descend(made, module, [0, 1] * 3, rate=1e-3)
    gain = 0.0
    for row in made.replay:
        with torch.no_grad():
            change = torch.where(
                row["rewarded"], made.policy.likelihood(module, row).log_probs - row["old"], 0
            )
        gain += (change * row["advantages"]).sum().item()
    assert gain > 0


def test_engines_start_with_the_weights_of_their_checkpoint_also_after_a_restart(
    task, tiny_checkpoint, alone
):
    made, before = task(), load_policy(tiny_checkpoint).model.state_dict()
    moved = {
        f"policy.{name}": value + 0.1 if value.is_floating_point() else value
        for name, value in before.items()
    }
    iteration(made, made.module(), moved, 1)
    assert made.fleet.began_with == weight_digest(before), "the canary would refuse them"
    # The fleet's first canary compares with this policy, so a restart may not move it.
    assert weight_digest(made.scenes.policy.weights()) == made.fleet.began_with
    behaviour = made.fleet.behaviour.model.state_dict()
    assert weight_digest(behaviour) != made.fleet.began_with
    assert weight_digest(behaviour) == weight_digest(made.fleet.engine.model.state_dict())


def test_engines_are_given_weights_with_adapters_merged(task, tmp_path, alone):
    made = task(vla=VlaConfig(lora_rank=2))
    module = made.module()
    state = {
        name: value + 0.1 if ".lora_" in name else value
        for name, value in module.state_dict().items()
    }
    iteration(made, module, state, 0)
    made.save(state, tmp_path / "saved")
    served = made.fleet.engine.model.state_dict()
    assert weight_digest(served) != made.fleet.began_with
    assert weight_digest(served) == weight_digest(made.fleet.behaviour.weights())
    saved = load_policy(tmp_path / "saved").model.state_dict()
    assert saved.keys() == served.keys()
    assert all(torch.equal(served[name], value) for name, value in saved.items())


def test_a_restart_samples_the_same_and_the_next_iteration_something_else(task, alone):
    made = task()
    _, metrics = refreshed(made, step=2)
    again = task()
    _, others = refreshed(again, step=2)
    for row, other in zip(made.replay, again.replay, strict=True):
        assert all(torch.equal(row[name], other[name]) for name in row)
    assert all(metrics[name] == others[name] for name in metrics)
    refreshed(again, step=0)
    assert not torch.equal(again.replay[0]["actions"], made.replay[0]["actions"])
    assert [len(made.batch(step, 0, 1)["prompts_of_step"]) for step in (2, 3)] == [2, 2]
    assert len(made.batch(2, 1, 2)["prompts_of_step"]) == 1


def test_limits_are_those_of_all_training_listeners(tiny_corpus, task):
    scenes = task().scenes
    listeners = (motion for _, motion in tiny_corpus.listeners("train"))
    limits = motion_limits(motion.subset(scenes.policy.layout) for motion in listeners)
    assert np.array_equal(scenes.limits.values, limits.values)
