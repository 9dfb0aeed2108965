"""The VLA live on vLLM: it does what the torch listener does, and holds nothing between chunks."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from rapport.policies.live import Chunk
from rapport.policies.vla.live import LiveVla
from rapport.policies.vla.vllm_live import VllmLiveVla
from rapport.policies.vla.vllm_plugin import (
    engine_prompt,
    perceived_items,
    read_output,
    sampling_params,
)
from tests.talking import small_policy, talking

pytestmark = pytest.mark.engine
SESSIONS = 4


@pytest.fixture(scope="module")
def policy():
    """Random weights, strong enough that what is seen, heard and done before is missed."""
    policy = small_policy(seconds=4.0, hidden=64)  # heads as wide as vLLM takes them on CPUs
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return policy


@pytest.fixture(scope="module")
def on_vllm(policy, tmp_path_factory):
    path = tmp_path_factory.mktemp("live") / "policy"
    policy.save(path)
    return VllmLiveVla(policy, path, SESSIONS)


@pytest.fixture(scope="module")
def in_torch(policy):
    return LiveVla(policy)


def heard_of(seed, chunks):
    """None, and then so many chunks."""
    clip = talking(seconds=0.4 * chunks, past=0, seed=seed)
    frames = clip.speaker_frames.reshape(chunks, -1, *clip.speaker_frames.shape[1:])
    sound = clip.speaker_audio.reshape(chunks, -1)
    taken = (np.arange(frames.shape[1]) + 1) * 0.4 / frames.shape[1]
    said = [clip.words[number::chunks] for number in range(chunks)]
    return [None, *map(Chunk, frames, [taken] * chunks, sound, said)]


def observed(live, chunks=5):
    """Sessions at different places of their contexts, as they are before they act."""
    states = []
    for seed in range(SESSIONS):
        state = live.start(seed)
        heard = heard_of(seed, chunks)[: chunks - seed + 1]
        for chunk in heard[:-1]:
            _, [state] = live.step([state], [chunk])
        states.append(live.observe(state, heard[-1]))
    return states


def unfinished(live):
    """Whether vLLM has requests, or blocks that belong to any."""
    core = live.llm.llm_engine.engine_core.engine_core
    used = core.scheduler.kv_cache_manager.usage
    return live.llm.llm_engine.has_unfinished_requests() or used > 0


def test_the_same_noise_chooses_the_same_actions_as_in_torch(on_vllm, in_torch):
    """Chunk by chunk from the same states, so that what one differs in does not spread.

    A number may lie so near to the border of two bins that rounding decides: one chunk may differ.
    """
    states = [in_torch.start(seed) for seed in range(SESSIONS)]
    agreed = []
    for chunk in zip(*[heard_of(seed, 6) for seed in range(SESSIONS)], strict=True):
        seen = [in_torch.observe(*each) for each in zip(states, chunk, strict=True)]
        expected = in_torch.choose(seen)
        agreed += [np.array_equal(*e) for e in zip(on_vllm.choose(seen), expected, strict=True)]
        blind = [replace(state, tokens=np.zeros_like(state.tokens)) for state in seen]
        if chunk[0] is not None:  # what is perceived decides some of them, so they can tell
            assert any(
                not np.array_equal(a, b)
                for a, b in zip(on_vllm.choose(blind), expected, strict=True)
            )
        _, states = in_torch.step(states, chunk)
    assert sum(agreed) >= len(agreed) - 1
    assert not unfinished(on_vllm)


def test_log_probs_agree_with_one_pass_in_torch(on_vllm, in_torch, policy):
    config = policy.model.config
    engine = on_vllm.llm.llm_engine
    for state in observed(in_torch):
        seen = in_torch.seen_by([state])
        tokens, present = torch.from_numpy(state.tokens), torch.from_numpy(state.present)
        before = torch.from_numpy(state.actions)[None]
        items = perceived_items(config, tokens, present)
        prompt = engine_prompt(config, seen, items, before)
        engine.add_request("0", prompt, sampling_params(config, config.chunk_tokens, 3, 0.8))
        while not (outputs := engine.step()):
            pass
        ids, log_probs = read_output(outputs[0])
        whole = torch.cat([before, torch.from_numpy(ids)[None]], dim=1)
        with torch.no_grad():
            logits = policy.model.logits_of(seen, tokens[None], whole)[0, len(state.actions) :]
        expected = (logits / 0.8).log_softmax(-1)
        expected = expected[range(len(ids)), ids - config.action_token_start].numpy()
        np.testing.assert_allclose(log_probs, expected, atol=1e-4)


def test_a_chunk_is_answered_alike_alone_and_in_company(on_vllm, in_torch):
    """Whoever else is asked, in which order, whether its past is cached, and from which thread."""
    states = observed(in_torch)
    together = on_vllm.choose(states)
    np.testing.assert_array_equal(on_vllm.choose(states[::-1])[::-1], together)
    on_vllm.llm.reset_prefix_cache()
    answers = [None] * SESSIONS

    def ask(place):
        [answers[place]] = on_vllm.choose([states[place]])

    threads = [threading.Thread(target=ask, args=[place]) for place in range(SESSIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(answers, together)


def test_a_chunk_costs_its_own_tokens_and_what_is_left_of_a_block(on_vllm, monkeypatch):
    config = on_vllm.config
    engine = on_vllm.llm.llm_engine
    state = on_vllm.start(0)
    heard = heard_of(9, 3)
    _, [state] = on_vllm.step([state], [None])
    read = []
    step = engine.step

    def watched():
        outputs = step()
        read.extend(len(o.prompt_token_ids) - o.num_cached_tokens for o in outputs)
        return outputs

    monkeypatch.setattr(engine, "step", watched)
    _, [state] = on_vllm.step([state], heard[1:2])  # the second chunk of its context
    assert state.chunk % config.context_chunks == 0
    assert read[0] <= config.observation_length + 32 + 1


def test_a_pass_that_fails_leaves_nothing_behind(on_vllm, in_torch, monkeypatch):
    states = observed(in_torch)
    expected = on_vllm.choose(states)
    steps = iter(range(100))
    step = on_vllm.llm.llm_engine.step

    def failing():
        if next(steps) == 3:
            raise RuntimeError("the model failed")
        return step()

    with monkeypatch.context() as patched:
        patched.setattr(on_vllm.llm.llm_engine, "step", failing)
        with pytest.raises(RuntimeError, match="the model failed"):
            on_vllm.choose(states)
    assert not unfinished(on_vllm)
    np.testing.assert_array_equal(on_vllm.choose(states[1:]), expected[1:])


def test_a_lost_session_goes_on_with_what_its_client_kept(on_vllm, in_torch):
    """From a torch listener, to one that has never heard of it."""
    heard = heard_of(5, 18)
    lost = 15
    _, [state] = in_torch.step([in_torch.start(4)], [None])
    acts = []
    for chunk in heard[1 : lost + 1]:
        _, [state] = in_torch.step([state], [chunk])
        acts.append(in_torch.act(state))
    first = (lost - round(on_vllm.memory / on_vllm.chunk)) // on_vllm.beat * on_vllm.beat
    first += on_vllm.beat
    assert first > 0
    moved = on_vllm.start(4, first=first)
    for chunk, act in zip(heard[first + 1 : lost + 1], acts[first:], strict=True):
        [moved] = on_vllm.follow([moved], [chunk], [act])
    for chunk in heard[lost + 1 :]:
        [expected], [state] = in_torch.step([state], [chunk])
        [found], [moved] = on_vllm.step([moved], [chunk])
        np.testing.assert_allclose(found.values, expected.values, atol=1e-4)
    assert on_vllm.pack(moved) == in_torch.pack(in_torch.unpack(on_vllm.pack(moved)))
