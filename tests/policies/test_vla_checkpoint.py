import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from rapport.policies.motion import Layout
from rapport.policies.policy import CheckpointError, weight_digest
from rapport.policies.vla.actions import ActionSpace, ActionTokenizer
from rapport.policies.vla.loading import (
    SequenceSizes,
    build_tiny,
    cast_weights,
    load_checkpoint,
    save_checkpoint,
    serving_state_dict,
    tiny_config,
)
from rapport.policies.vla.lora import add_lora, merge_lora
from rapport.policies.vla.model import FaceVLA
from rapport.policies.vla.text import build_text_tokenizer
from tests.talking import made_up

SPACE = ActionSpace(Layout((("expr", 3), ("rot", 3)), 25, "flame2020"), rate=5, seconds=2)
ACTIONS = ActionTokenizer(SPACE, np.full(6, -1.0), np.full(6, 1.0), first_token=768)
TOKENIZER = build_text_tokenizer(["hello there"], text_vocabulary=768)


def build(seed=0):
    sizes = {
        "hidden": 32,
        "layers": 2,
        "heads": 2,
        "tower_hidden": 16,
    }
    return build_tiny(
        tiny_config(TOKENIZER, SPACE, SequenceSizes(context=2.0, text_tokens=4), **sizes), seed=seed
    ).eval()


@pytest.fixture
def checkpoint(tmp_path):
    save_checkpoint(build(), TOKENIZER, ACTIONS, tmp_path / "ck")
    return tmp_path / "ck"


def log_probs(model):
    seen, actions = made_up(model.config)
    return model.action_log_probs(seen, actions)


def test_checkpoint_round_trip_gives_the_same_policy(checkpoint):
    loaded = load_checkpoint(checkpoint)
    assert weight_digest(loaded.model.state_dict()) == weight_digest(build().state_dict())
    assert loaded.actions.digest == ACTIONS.digest and len(loaded.tokenizer) == 1024
    torch.testing.assert_close(log_probs(loaded.model), log_probs(build()), rtol=0, atol=0)
    assert all(p.requires_grad for p in loaded.model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_loads_the_same_policy(tmp_path, dtype):
    model = build()
    cast_weights(model, dtype)
    save_checkpoint(model, TOKENIZER, ACTIONS, tmp_path / "ck")
    loaded, report = AutoModel.from_pretrained(tmp_path / "ck", output_loading_info=True)
    assert type(loaded) is FaceVLA and not any(report.values()), report
    assert weight_digest(loaded.state_dict()) == weight_digest(model.state_dict())
    torch.testing.assert_close(log_probs(loaded.eval()), log_probs(model), rtol=0, atol=0)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "ck")) == 1024


def test_files_hold_plain_names_and_nothing_is_left_over(checkpoint):
    assert set(load_file(checkpoint / "model.safetensors")) == set(build().state_dict())
    assert [p.name for p in checkpoint.parent.iterdir()] == ["ck"]
    assert json.loads((checkpoint / "config.json").read_text())["architectures"] == ["FaceVLA"]


def test_saving_again_replaces_the_checkpoint(checkpoint):
    save_checkpoint(build(seed=1), TOKENIZER, ACTIONS, checkpoint)
    assert weight_digest(load_checkpoint(checkpoint).model.state_dict()) == weight_digest(
        build(seed=1).state_dict()
    )


def test_a_save_that_fails_leaves_the_old_checkpoint(checkpoint):
    with pytest.raises(AttributeError):
        save_checkpoint(build(seed=1), None, ACTIONS, checkpoint)
    assert weight_digest(load_checkpoint(checkpoint).model.state_dict()) == weight_digest(
        build().state_dict()
    )


def test_dtype_is_kept_or_converted(tmp_path):
    save_checkpoint(build().to(torch.bfloat16), TOKENIZER, ACTIONS, tmp_path / "ck")
    assert load_checkpoint(tmp_path / "ck").model.dtype == torch.bfloat16
    assert load_checkpoint(tmp_path / "ck", dtype=torch.float32).model.dtype == torch.float32


def test_rotary_positions_stay_float32_in_any_dtype(checkpoint):
    half = load_checkpoint(checkpoint, dtype=torch.bfloat16).model
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    for name, buffer in load_checkpoint(checkpoint).model.named_buffers():
        torch.testing.assert_close(half.get_buffer(name), buffer, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "action_space.json"])
def test_missing_file_is_named(checkpoint, name):
    (checkpoint / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(checkpoint)


def test_truncated_weights_are_reported(checkpoint):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        load_checkpoint(checkpoint)


def test_another_model_is_refused(checkpoint):
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="'llama'"):
        load_checkpoint(checkpoint)


def test_weights_of_another_size_are_named(checkpoint, tmp_path):
    bigger = build_tiny(
        tiny_config(TOKENIZER, SPACE, hidden=64, layers=2, heads=2, tower_hidden=16)
    )
    save_checkpoint(bigger, TOKENIZER, ACTIONS, tmp_path / "bigger")
    (checkpoint / "model.safetensors").write_bytes(
        (tmp_path / "bigger" / "model.safetensors").read_bytes()
    )
    with pytest.raises(CheckpointError, match="language_model"):
        load_checkpoint(checkpoint)


def test_action_space_of_another_policy_is_refused(checkpoint):
    ActionTokenizer(ActionSpace(SPACE.layout, 5, 4), ACTIONS.low, ACTIONS.high, 768).save(
        checkpoint
    )
    with pytest.raises(CheckpointError, match="disagree"):
        load_checkpoint(checkpoint)


def test_digest_sees_names_types_shapes_and_bytes_but_no_order():
    weights = {"a": torch.arange(4.0), "b": torch.ones(2, dtype=torch.bfloat16)}
    same = {"b": weights["b"].clone(), "a": weights["a"].clone()}
    assert weight_digest(weights) == weight_digest(same)
    others = [
        {"a": weights["a"], "c": weights["b"]},
        {"a": weights["a"].reshape(2, 2), "b": weights["b"]},
        {"a": weights["a"].view(torch.int32), "b": weights["b"]},
        {"a": weights["a"] + 1e-6, "b": weights["b"]},
    ]
    assert len({weight_digest(w) for w in [weights, *others]}) == 5
    assert weight_digest({"a": weights["a"][::2]}) == weight_digest({"a": torch.tensor([0.0, 2.0])})


def train_adapters(model):
    add_lora(model, rank=4, alpha=8)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def test_fresh_adapters_change_nothing_and_only_they_train_in_the_blocks():
    model = build()
    before = log_probs(model)
    add_lora(model, rank=4, alpha=8)
    torch.testing.assert_close(log_probs(model), before)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    blocks = {n for n in trainable if "language_model.model.layers" in n}
    assert len(blocks) == 2 * 7 * 2 and all(
        "lora_" in n for n in blocks
    )  # layers x targets x (A, B)
    assert not any("lora_" in n for n in trainable - blocks)
    assert {
        "vision.projector.fc1.weight",
        "slots.own.weight",
        "language_model.lm_head.weight",
    } <= trainable


def test_merged_adapters_give_the_same_policy_in_a_plain_checkpoint(tmp_path):
    model = build()
    before = log_probs(model)
    train_adapters(model)
    adapted = log_probs(model)
    assert not torch.allclose(adapted, before, atol=1e-3)
    save_checkpoint(model, TOKENIZER, ACTIONS, tmp_path / "ck")
    torch.testing.assert_close(
        log_probs(load_checkpoint(tmp_path / "ck").model), adapted, atol=1e-5, rtol=0
    )
    assert set(serving_state_dict(model)) == set(build().state_dict())


def test_merge_works_on_weights_gathered_from_shards():
    model = build()
    train_adapters(model)
    gathered = {name: value.clone() for name, value in model.state_dict().items()}
    merged = serving_state_dict(model, gathered)
    assert model.lora_scaling == 2
    assert weight_digest(merged) == weight_digest(serving_state_dict(model))


def test_merge_by_hand():
    weights = {
        "x.base_layer.weight": torch.zeros(1, 2),
        "x.base_layer.bias": torch.ones(1),
        "x.lora_A.default.weight": torch.tensor([[1.0, 2.0]]),
        "x.lora_B.default.weight": torch.tensor([[3.0]]),
        "y.weight": torch.ones(2),
    }
    merged = merge_lora(weights, scaling=0.5)
    assert {k: v.tolist() for k, v in merged.items()} == {
        "x.weight": [[1.5, 3.0]],
        "x.bias": [1.0],
        "y.weight": [1.0, 1.0],
    }
