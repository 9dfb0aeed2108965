"""What of adapters arrives in merged weights, and that a canary sees what does not."""

import logging
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from rapport.actors.learner import schedule
from rapport.policies.policy import Reaction
from rapport.policies.vla.hf_engine import HfEngine
from rapport.policies.vla.loading import ADAPTERS_FILE, cast_weights, load_unmerged
from rapport.policies.vla.lora import arrived_share, merge_lora
from rapport.policies.vla.policy import LORA_SCALING, VlaPolicy
from rapport.policies.vla.settings import VlaConfig


def learnt_update(rate, width=256, rank=32, steps=125):
    """Adapters of one layer after a recipe's schedule of AdamW, its weights as large as LLaMA's."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.02 * torch.randn(width, width, generator=generator)
    down = (torch.rand(rank, width, generator=generator) * 2 - 1) / 64  # as in a layer 4,096 wide
    wanted = torch.randn(width, width, generator=generator)
    down.requires_grad_()
    up = torch.zeros(width, rank, requires_grad=True)
    optimiser = torch.optim.AdamW([down, up], lr=rate, betas=(0.9, 0.95), weight_decay=0)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * schedule(step, steps)
        inputs = torch.randn(16, width, generator=generator)
        noise = torch.randn(16, width, generator=generator)
        loss = -((inputs @ (up @ down).T) * (inputs @ wanted.T / width**0.5 + noise)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return {
        "x.base_layer.weight": weight,
        "x.lora_A.default.weight": down.detach(),
        "x.lora_B.default.weight": up.detach(),
    }


def in_bfloat16(state):
    return {name: value.bfloat16() for name, value in state.items()}


def test_what_arrives_in_bfloat16_goes_by_the_learning_rate():
    shares = {
        rate: arrived_share(in_bfloat16(learnt_update(rate)), LORA_SCALING)
        for rate in (1e-6, 1e-5, 5e-5)
    }
    assert shares[1e-6] < 0.2 and 0.2 < shares[1e-5] < 0.8 and shares[5e-5] > 0.8, shares
    assert arrived_share(learnt_update(1e-6), LORA_SCALING) == pytest.approx(1, abs=1e-2)


def test_what_arrives_by_hand():
    """A weight of 1 has a grid of 2^-7 above it: 0.003 is lost, 0.005 becomes 0.0078."""
    state = {
        "x.base_layer.weight": torch.ones(1, 2, dtype=torch.bfloat16),
        "x.lora_A.default.weight": torch.tensor([[0.003, 0.005]]),
        "x.lora_B.default.weight": torch.ones(1, 1),
        "y.weight": torch.ones(3),
    }
    expected = 2**-7 * 0.005 / (0.003**2 + 0.005**2)
    assert arrived_share(state, 1.0) == pytest.approx(expected, rel=1e-4)
    assert merge_lora(state, 1.0)["x.weight"].tolist() == [[1.0, 1 + 2**-7]]
    nothing = {**state, "x.lora_B.default.weight": torch.zeros(1, 1)}
    assert arrived_share(nothing, 1.0) == 1.0


@pytest.fixture(params=["float32", "bfloat16"])
def adapted(request, tiny_checkpoint, tmp_path):
    """Folders of a policy and of one that was learnt on it with adapters, and the learner."""
    initial = tmp_path / "sft" / "policy"
    start = VlaPolicy.load(tiny_checkpoint)
    cast_weights(start.model, getattr(torch, request.param))
    start.save(initial)
    learner = VlaPolicy.load(initial)
    learner.prepare_training(VlaConfig(lora_rank=2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in learner.model.named_parameters():
            if "lora_B" in name or "lm_head" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    learner.save(tmp_path / "dpo" / "policy")
    learner.model.eval()
    return SimpleNamespace(root=tmp_path, path=tmp_path / "dpo" / "policy", learner=learner)


def answer(path, prompt, dtype):
    """Of an engine that holds the saved weights."""
    tokens, log_probs = HfEngine(path, dtype, 1.0).sample([prompt], 1, [0])[0][0]
    return Reaction(prompt.prompt_id, 0, tokens, log_probs=log_probs)


def test_what_was_learnt_can_be_loaded_unmerged_wherever_the_run_is(adapted, tiny_corpus):
    moved = adapted.root.with_name(f"{adapted.root.name}-moved")
    shutil.move(adapted.root, moved)
    policy = VlaPolicy.load(moved / "dpo" / "policy")
    unmerged = load_unmerged(policy._folder, policy.model)
    expected = adapted.learner.model.state_dict()
    assert unmerged.state_dict().keys() == expected.keys()
    for name, value in unmerged.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name)
    assert unmerged.lora_scaling == adapted.learner.model.lora_scaling


def test_the_canary_compares_with_the_unmerged_learner(adapted, tiny_corpus):
    policy = VlaPolicy.load(adapted.path)
    dtype = str(policy.model.dtype).removeprefix("torch.")
    prompt = policy.encode(tiny_corpus.at("train", 0))
    tolerance = 1e-4 if dtype == "float32" else 0.1
    reaction = answer(adapted.path, prompt, dtype)
    assert policy.log_prob_gaps(prompt, reaction).max() < tolerance
    assert adapted.learner.log_prob_gaps(prompt, reaction).max() < tolerance


def test_a_canary_sees_a_merge_that_lost_the_update(adapted, tiny_corpus):
    """As if rounding had taken all of it: engine and merged weights agree, and both are wrong."""
    merged = load_file(adapted.path / "model.safetensors")
    initial = load_file(adapted.root / "sft" / "policy" / "model.safetensors")
    lost = {n: initial[n] if ".layers." in n else value for n, value in merged.items()}
    save_file(lost, adapted.path / "model.safetensors", metadata={"format": "pt"})
    policy = VlaPolicy.load(adapted.path)
    prompt = policy.encode(tiny_corpus.at("train", 0))
    reaction = answer(adapted.path, prompt, str(policy.model.dtype).removeprefix("torch."))
    assert policy.log_prob_gaps(prompt, reaction).max() > 0.2
    (adapted.path / ADAPTERS_FILE).unlink()
    unseen = VlaPolicy.load(adapted.path).log_prob_gaps(prompt, reaction)
    assert unseen.max() < 0.05, "and was not seen"


def test_adapters_whose_base_is_gone_are_said(adapted, tiny_corpus, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("rapport"), "propagate", True)
    shutil.rmtree(adapted.root / "sft")
    policy = VlaPolicy.load(adapted.path)
    with caplog.at_level(logging.INFO, logger="rapport"):
        assert policy._as_learnt() is policy.model
    assert "which is gone" in caplog.text


def test_the_learners_weights_are_taken_over_with_their_adapters(adapted, tiny_corpus):
    """As GDPO does in every iteration; adapters are put on once."""
    behaviour = VlaPolicy.load(adapted.root / "sft" / "policy")
    state = {f"policy.{name}": value for name, value in adapted.learner.model.state_dict().items()}
    for _ in range(2):
        behaviour.load_learnt(state)
    assert behaviour.model.state_dict().keys() == adapted.learner.model.state_dict().keys()
    prompt = behaviour.encode(tiny_corpus.at("train", 0))
    dtype = str(behaviour.model.dtype).removeprefix("torch.")
    assert behaviour.log_prob_gaps(prompt, answer(adapted.path, prompt, dtype)).max() < 0.1


def test_saving_says_what_was_lost(adapted):
    state = {f"policy.{name}": value for name, value in adapted.learner.model.state_dict().items()}
    share = adapted.learner.rounding(state)["adapters/arrived"]
    assert share == pytest.approx(1, abs=0.02)
    assert VlaPolicy.load(adapted.path).rounding(state) == {}, "it has no adapters"
