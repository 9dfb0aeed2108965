"""ZeRO 1, 2, 3 on two learners and one alone train the same policy, also across a restart."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from rapport.actors.learner import fit
from rapport.actors.settings import LearnerConfig
from rapport.pipeline.data.vla import examples
from rapport.pipeline.objectives.dpo import Dpo, pair_schema
from rapport.pipeline.objectives.objective import PolicyObjective
from rapport.pipeline.objectives.settings import SftConfig, VlaDpoConfig
from rapport.pipeline.objectives.sft import Sft
from rapport.policies.tables import write_table
from rapport.policies.vla.loading import load_checkpoint
from rapport.policies.vla.policy import VlaPolicy
from rapport.policies.vla.settings import VlaConfig
from rapport.policies.vla.training import SFT_SCHEMA

pytestmark = pytest.mark.engine
OPTIONS = LearnerConfig(
    world_size=2,
    cpus=0.4,
    gpus=0,
    threads=1,
    zero_stage=1,
    gradient_clipping=1.0,
    max_failures=0,
    checkpoint_every=100,
    timeout_s=300,
)
SFT = SftConfig(steps=4, batch_size=4, window_share=0.5, learning_rate=3e-3)
DPO = VlaDpoConfig(epochs=4, batch_size=8, learning_rate=1e-3, chosen_nll=0)


@pytest.fixture(scope="module")
def tables(tiny_corpus, tiny_checkpoint, tmp_path_factory):
    """Files of SFT examples and of preference pairs (recorded over random)."""
    folder, policy = tmp_path_factory.mktemp("tables"), VlaPolicy.load(tiny_checkpoint)
    rows = list(examples(tiny_corpus.clips("train"), policy))
    rng = np.random.default_rng(0)
    pairs = (
        policy.prompt_row(policy.encode(clip))
        | {
            "chosen": row["actions"],
            "rejected": (344 + rng.integers(0, 256, 45)).tolist(),
            "chosen_score": 0.75,
            "rejected_score": 0.25,
        }
        for clip, row in zip(tiny_corpus.clips("train"), rows, strict=True)
    )
    write_table(folder / "sft.arrow", rows, SFT_SCHEMA)
    write_table(folder / "pairs.arrow", pairs, pair_schema(policy))
    return folder


@pytest.fixture(scope="module")
def train(local_ray, tiny_checkpoint, tables, tmp_path_factory):
    """`train("sft" | "dpo", **options)` -> what was logged, weights before and after, what `fit`
    returned.
    """

    def run(kind, kill=False, **options):
        folder = tmp_path_factory.mktemp(kind)
        if kind == "sft":
            task = Sft(tiny_checkpoint, tables / "sft.arrow", SFT, 0, VlaConfig())
        else:
            task = Dpo(
                tiny_checkpoint,
                tiny_checkpoint,
                tables / "pairs.arrow",
                DPO,
                0,
                folder / "reference.parquet",
                VlaConfig(),
            )
        logged, said = [], []
        result = fit(
            killed_once(task, folder / "killed") if kill else task,
            OPTIONS.model_copy(update=options),
            folder,
            lambda metrics, step: logged.append((step, metrics)),
            said.append,
        )
        return logged, load_file(folder / "policy" / "model.safetensors"), result, folder

    alone = {}

    def run_once(kind, **options):
        key = kind, tuple(options.items())
        if key not in alone:
            alone[key] = run(kind, **options)
        return alone[key]

    return run_once


def killed_once(task: PolicyObjective, marker: Path) -> PolicyObjective:
    """The task, but its learner of rank 1 is killed before step 3, once. Local, so that it travels
    by value.
    """

    class Killed(type(task)):
        def batch(self, step, rank, world_size):
            if step == 3 and rank == 1 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().batch(step, rank, world_size)

    killed = Killed.__new__(Killed)
    killed.__dict__ |= task.__dict__
    return killed


def assert_same_training(one, other, steps):
    (logged, weights, *_), (others, other_weights, *_) = one, other
    assert [step for step, _ in logged] == [step for step, _ in others] == list(range(1, steps + 1))
    for (_, metrics), (_, wanted) in zip(logged, others, strict=True):
        assert metrics.keys() == wanted.keys()
        assert metrics["loss"] == pytest.approx(wanted["loss"], rel=1e-4)
        assert metrics["gradient_norm"] == pytest.approx(wanted["gradient_norm"], rel=1e-3)
    assert weights.keys() == other_weights.keys()
    for name, weight in weights.items():
        if (
            "key.bias" in name or "k_proj.bias" in name
        ):  # softmax is blind to it: its gradient is rounding noise
            continue
        np.testing.assert_allclose(weight, other_weights[name], rtol=0, atol=1e-4, err_msg=name)


def test_one_learner_learns_and_says_what_ran(train, tiny_checkpoint):
    logged, weights, result, folder = train("sft", world_size=1)
    losses = [metrics["loss"] for _, metrics in logged]
    assert losses[-1] < losses[0] and result["steps"] == 4 and result["final"] == logged[-1][1]
    assert result["engine"] == {
        "name": "deepspeed",
        "zero_stage": 1,
        "world_size": 1,
        "optimizer": "AdamW",
        "device": "cpu",
    }
    before = load_file(tiny_checkpoint / "model.safetensors")
    assert weights.keys() == before.keys()
    still = [name for name in weights if np.array_equal(weights[name], before[name])]
    assert not still, "every weight is trained"
    assert load_checkpoint(folder / "policy").model.config.action_steps == 5


@pytest.mark.long
def test_sharded_sft_is_sft_on_one_learner(train):
    """ZeRO 3; ZeRO 2 is DPO's below."""
    sharded = train("sft", zero_stage=3)
    assert sharded[2]["engine"]["zero_stage"] == 3 and sharded[2]["engine"]["world_size"] == 2
    assert_same_training(sharded, train("sft", world_size=1), steps=4)


@pytest.mark.long
def test_training_whose_learner_was_killed_is_training_that_went_through(train):
    """In every number: data order, random draws, optimiser, schedule, reference."""
    killed = train("dpo", zero_stage=2, kill=True, max_failures=1, checkpoint_every=2)
    whole = train("dpo", zero_stage=2)
    assert (killed[3] / "killed").exists() and killed[2]["engine"]["zero_stage"] == 2
    assert killed[0] == whole[0] and killed[2]["final"] == whole[2]["final"]
    for name, weight in whole[1].items():
        np.testing.assert_array_equal(killed[1][name], weight, err_msg=name)


def test_sharded_dpo_is_dpo_on_one_learner(train):
    sharded, alone = train("dpo", zero_stage=2), train("dpo", world_size=1)
    assert_same_training(sharded, alone, steps=4)
    assert alone[0][0][1]["loss"] == pytest.approx(
        np.log(2), rel=1e-4
    )  # the policy is its own reference
    assert alone[0][-1][1]["loss"] < np.log(2) - 0.01
