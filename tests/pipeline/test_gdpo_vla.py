"""The GDPO task of the VLA without Ray: its engine (transformers) lives in this process."""

from functools import cached_property
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rapport.actors.fleet import FleetOptions, prompt_seed
from rapport.pipeline.config import GroupWeightsConfig, PolicyConfig, RewardConfig, VlaGdpoConfig
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.objectives.gdpo_vla import LISTENER_SCHEMA, VlaGdpoTask
from rapport.pipeline.recipes.gdpo_vla import listener_rows
from rapport.policies.tables import read_table, write_table
from rapport.policies.vla.hf_engine import HfEngine
from rapport.policies.vla.loading import load_checkpoint, weight_digest
from rapport.policies.vla.trajectory import Trajectory
from rapport.rewards.dynamics import motion_limits

DIMS, STEPS = 9, 5  # of the tiny policy
OPTIONS = FleetOptions("hf", 1, 0.4, 0, 1, 1, "float32", 0.5, 4, 1, 1.0, 1e-3, 60, 60)
SETTINGS = {"iterations": 2, "sync_every": 2, "batch_size": 2, "group_size": 3}


class LocalGdpo(VlaGdpoTask):
    @cached_property
    def fleet(self):
        self.__dict__["began_with"] = weight_digest(self.behaviour.model.state_dict())
        engine = HfEngine(self.initial, "float32", 1.0, 0.5, 1)

        def generate(prompts, samples, seed):
            for prompt in prompts:
                [sampled] = engine.sample([prompt], samples, [prompt_seed(seed, prompt.prompt_id)])
                yield [
                    Trajectory(prompt.prompt_id, k, tokens, log_probs, 1, seed)
                    for k, (tokens, log_probs) in enumerate(sampled)
                ]

        return SimpleNamespace(
            update=lambda policy: engine.update(policy.state_dict()), generate=generate
        )


@pytest.fixture
def task(tiny_corpus, tiny_checkpoint, tmp_path):
    def make(**keys):
        policy = load_checkpoint(tiny_checkpoint)
        write_table(
            tmp_path / "listeners.arrow", listener_rows(tiny_corpus, policy), LISTENER_SCHEMA
        )
        limits = motion_limits(
            m.subset(policy.actions.space.layout) for _, m in tiny_corpus.listeners("train")
        )
        return LocalGdpo(
            str(tiny_checkpoint),
            str(tmp_path / "listeners.arrow"),
            PolicyConfig(),
            3,
            VlaGdpoConfig(**SETTINGS | keys),
            RewardConfig(),
            GroupWeightsConfig(),
            limits,
            OPTIONS,
            0,
        )

    return make


def refreshed(task, step=0):
    module = task.module()
    return module, task.refresh(
        module,
        {f"policy.{n}": v for n, v in task.checkpoint.model.state_dict().items()},
        step,
        0,
        1,
    )


def test_who_listens_is_a_prompt(tiny_corpus, tiny_checkpoint, task):
    rows = read_table(task().table)
    assert 0 < len(rows) <= 8 and all(
        len(row["listening"]) == 25 and any(row["listening"]) for row in rows
    )
    layout = load_checkpoint(tiny_checkpoint).actions.space.layout
    recorded = (
        dict(Corpus(tiny_corpus.path).listeners("train"))[rows[0]["prompt_id"]]
        .subset(layout)
        .values
    )
    assert rows[0]["recorded"] == recorded.astype(np.float32).tobytes()


def test_on_policy_the_ratio_is_exactly_1_and_engines_hardly_differ(task, alone):
    made = task()
    module, metrics = refreshed(made)
    assert {"reward/expr", "penalty/mse/rot", "zero_std/jaw", "rollout_s"} <= set(
        metrics
    ) and metrics["missing"] == 0
    loss, parts = made.loss(module, made.batch(0, 0, 1))
    assert parts["ratio"].item() == pytest.approx(1, abs=1e-6) and parts[
        "kl"
    ].item() == pytest.approx(0, abs=1e-6)
    assert 0 < parts["mismatch_max"].item() < 1e-3 and parts["truncated"] == 0
    assert loss.item() == pytest.approx(0, abs=1e-3), "advantages are centred within a group"
    row = made.replay[0]
    assert row["actions"].shape == row["old"].shape == row["listening"].shape == (3, DIMS * STEPS)


def test_what_an_engine_of_other_numbers_sampled_is_weighted(task, alone):
    """As if the engine had thought every token half as likely as the learner does: weight 2, cut at
    1.5.
    """
    made = task(truncation=1.5)
    module, _ = refreshed(made)
    plain = torch.autograd.grad(
        made.loss(module, made.batch(0, 0, 1))[0],
        made.checkpoint.model.parameters(),
        allow_unused=True,
    )
    for row in made.replay:
        row["engine"] = row["old"] - np.log(2)
    loss, parts = made.loss(module, made.batch(0, 0, 1))
    assert parts["truncated"] == 1 and parts["mismatch"].item() == pytest.approx(
        np.log(2), abs=1e-5
    )
    weighted = torch.autograd.grad(loss, made.checkpoint.model.parameters(), allow_unused=True)
    pairs = [(a, b) for a, b in zip(plain, weighted, strict=True) if a is not None]
    assert pairs
    for a, b in pairs:
        torch.testing.assert_close(b, 1.5 * a, rtol=1e-2, atol=1e-5)


def test_good_answers_become_likelier_where_they_listen(task, alone):
    made = task(beta=0.0, clip=0.9)
    module, _ = refreshed(made)
    optimiser = torch.optim.Adam(module.parameters(), 1e-3)
    for step in range(6):
        loss, _ = made.loss(module, made.batch(step % 2, 0, 1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    gain = 0.0
    for row in made.replay:
        with torch.no_grad():
            change = torch.where(
                row["listening"], made._log_probs(module, row) - row["old"], 0
            ).sum(1)
        gain += (change * row["advantages"]).sum().item()
    assert gain > 0


def test_engines_start_with_the_weights_of_their_checkpoint_also_after_a_restart(
    task, tiny_checkpoint, alone
):
    made, before = task(), load_checkpoint(tiny_checkpoint).model.state_dict()
    moved = {
        f"policy.{name}": value + 0.1 if value.is_floating_point() else value
        for name, value in before.items()
    }
    made.refresh(made.module(), moved, 2, 0, 1)
    assert made.began_with == weight_digest(before), "the canary would refuse them"
    assert weight_digest(made.behaviour.model.state_dict()) != made.began_with


def test_a_restart_samples_the_same_and_the_next_iteration_something_else(task, alone):
    made = task()
    _, metrics = refreshed(made, step=2)
    again = task()
    _, others = refreshed(again, step=2)
    for row, other in zip(made.replay, again.replay, strict=True):
        assert all(torch.equal(row[name], other[name]) for name in row)
    assert all(metrics[name] == others[name] for name in metrics if name != "rollout_s")
    refreshed(again, step=0)
    assert not torch.equal(again.replay[0]["actions"], made.replay[0]["actions"])
    assert [len(made.batch(step, 0, 1)["rows"]) for step in (2, 3)] == [2, 2]
    assert len(made.batch(2, 1, 2)["rows"]) == 1
