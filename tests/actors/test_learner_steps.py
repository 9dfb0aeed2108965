"""An optimiser step: split into micro-batches, computed twice, in exact float32."""

import numpy as np
import pytest
import torch

from rapport.actors.learner import full_state_dict, split_rows, start_engine, train_step
from rapport.actors.precision import exact_float32
from rapport.actors.settings import LearnerConfig
from rapport.pipeline.config import ConfigError, load_config
from rapport.pipeline.data.vla import examples
from rapport.pipeline.objectives.dpo import Dpo, pair_schema
from rapport.pipeline.objectives.settings import SftConfig, VlaDpoConfig
from rapport.pipeline.objectives.sft import Sft
from rapport.pipeline.settings import GdpoOfFlow
from rapport.policies.tables import write_table
from rapport.policies.vla.policy import VlaPolicy
from rapport.policies.vla.settings import VlaConfig
from rapport.policies.vla.training import SFT_SCHEMA

SFT = SftConfig(steps=2, batch_size=6, window_share=0.5, learning_rate=3e-3)
DPO = VlaDpoConfig(epochs=2, batch_size=6, learning_rate=1e-3, chosen_nll=0)


@pytest.fixture(scope="module")
def tables(tiny_corpus, tiny_checkpoint, tmp_path_factory):
    """Files of SFT examples and of preference pairs."""
    folder = tmp_path_factory.mktemp("tables")
    policy = VlaPolicy.load(tiny_checkpoint)
    rows = list(examples(tiny_corpus.clips("train"), policy))
    rng = np.random.default_rng(0)
    pairs = [
        {name: row[name] for name in policy.prompt_columns}
        | {
            "chosen": row["actions"],
            "rejected": (344 + rng.integers(0, 256, 45)).tolist(),
            "chosen_score": 0.75,
            "rejected_score": 0.25,
        }
        for row in rows
    ]
    write_table(folder / "sft.arrow", rows, SFT_SCHEMA)
    write_table(folder / "pairs.arrow", pairs, pair_schema(policy))
    return folder


@pytest.fixture
def trained(alone, tiny_checkpoint, tables, tmp_path, monkeypatch):
    """`trained("sft" | "dpo", stage, **learner keys)` -> metrics of two steps, weights after."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)

    def run(kind, stage, **keys):
        if kind == "sft":
            task = Sft(tiny_checkpoint, tables / "sft.arrow", SFT, 0, VlaConfig())
        else:
            reference = tmp_path / "reference.parquet"
            files = (tiny_checkpoint, tiny_checkpoint, tables / "pairs.arrow")
            task = Dpo(*files, DPO, 0, reference, VlaConfig())
        config = LearnerConfig(world_size=1, zero_stage=stage, gradient_clipping=1.0, **keys)
        engine = start_engine(task, config)
        task.prepare(engine.__call__, 0, 1)
        steps = [
            train_step(engine, task, i, rank=0, world_size=1, micro_batch=config.micro_batch)
            for i in range(2)
        ]
        return steps, full_state_dict(engine)

    return run


def assert_same(one, other):
    for metrics, expected in zip(one[0], other[0], strict=True):
        # Rewards are differences of log-probs of some 250 nats, whose float32 grid is 1.5e-5.
        # The spread of a still voice is a root near 0, which multiplies rounding by 500.
        norms = [values.pop("gradient_norm") for values in (metrics, expected)]
        assert norms[0] == pytest.approx(norms[1], rel=5e-5)
        assert metrics == pytest.approx(expected, rel=1e-5, abs=5e-5)
    for name, weight in one[1].items():
        if name.endswith("k_proj.bias"):  # softmax is blind to it: its gradient is rounding noise
            continue
        torch.testing.assert_close(weight, other[1][name], rtol=0, atol=2e-5, msg=name)


@pytest.mark.engine
@pytest.mark.parametrize(("kind", "stage"), [("sft", 1), ("sft", 2), ("sft", 3), ("dpo", 2)])
def test_a_split_step_is_the_whole_step(trained, kind, stage):
    """Of 6 rows, 4 and 2 at once: unequal pieces weigh as much as they hold."""
    whole = trained(kind, stage)
    assert whole[0][0]["gradient_norm"] > 0 and whole[0][0] != whole[0][1]
    assert_same(trained(kind, stage, micro_batch=4), whole)


@pytest.mark.engine
@pytest.mark.parametrize(("kind", "stage"), [("sft", 2), ("dpo", 3)])
def test_what_is_computed_twice_is_the_same_step(trained, kind, stage):
    twice = trained(kind, stage, gradient_checkpointing=True, micro_batch=3)
    assert_same(twice, trained(kind, stage))


def test_a_batch_is_split_by_rows_whatever_it_is_made_of():
    batch = {
        "tensor": torch.arange(10).reshape(5, 2),
        "list": list("abcde"),
        "dict": {"inner": torch.arange(5)},
        "number": 3,
        "nothing": None,
    }
    pieces = list(split_rows(batch, 2))
    assert [share for _, share in pieces] == [0.4, 0.4, 0.2]
    assert [piece["list"] for piece, _ in pieces] == [["a", "b"], ["c", "d"], ["e"]]
    assert [piece["dict"]["inner"].tolist() for piece, _ in pieces] == [[0, 1], [2, 3], [4]]
    assert torch.equal(torch.cat([piece["tensor"] for piece, _ in pieces]), batch["tensor"])
    assert all(piece["number"] == 3 and piece["nothing"] is None for piece, _ in pieces)
    assert list(split_rows(batch, None)) == [(batch, 1.0)]
    with pytest.raises(ValueError, match="micro_batch"):
        list(split_rows({"a": torch.zeros(2), "b": torch.zeros(3)}, 2))


def test_float32_is_float32_where_learners_and_engines_start():
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = True
        exact_float32()
        assert not any(backend.allow_tf32 for backend in backends)
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def test_a_policy_without_blocks_to_compute_twice_refuses_the_key():
    with pytest.raises(ConfigError, match=r"gradient_checkpointing is for policy=vla"):
        load_config(GdpoOfFlow, None, ["learner.gradient_checkpointing=true"])
