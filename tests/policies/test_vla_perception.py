"""The number that says what a policy perceives: zero where it looks at nothing."""

import numpy as np
import pytest
import torch

from rapport.policies.perception import drawn_others
from rapport.policies.vla.perception import ASKED, perception
from rapport.policies.vla.sequence import later, seen_of, without
from tests.talking import small_policy, talking

CLIPS = [talking(seed=seed) for seed in range(6)]


def costs_of(policy, clips=CLIPS):
    prompts = [policy.encode(clip) for clip in clips]
    actions = np.stack([policy.recorded(clip).actions for clip in clips])
    others = np.array([[(i + 1) % len(clips), (i + 2) % len(clips)] for i in range(len(clips))])
    return perception(policy.model, prompts, actions, others), prompts, actions, others


def test_it_is_the_nats_of_the_first_action_of_every_chunk_by_hand():
    policy = small_policy()
    config = policy.model.config
    costs, prompts, actions, others = costs_of(policy)
    assert list(costs) == list(ASKED)

    def nats(clip, speaker, absent):
        seen = seen_of(config, [prompts[speaker]])
        seen = without(config, seen, {name: torch.tensor([True]) for name in absent})
        total = 0.0
        for chunk in range(config.chunks):
            # The pose of what this listener did before; the rotation is behind the expression.
            own = actions[clip, 12 * chunk - 3 : 12 * chunk] if chunk else prompts[clip].own
            shown = later(seen, chunk, torch.from_numpy(own)[None])
            first = torch.from_numpy(actions[clip, 12 * chunk : 12 * chunk + 6])[None]
            total -= policy.model.action_log_probs(shown, first).sum().item()
        return total / config.chunks

    none = nats(3, 3, ("frames", "voice", "words"))
    for name, absent in (("all", ()), ("frames", ("voice", "words"))):
        own = nats(3, 3, absent)
        swapped = np.mean([nats(3, other, absent) for other in others[3]])
        assert costs[name].own[3] == pytest.approx(own, abs=1e-4)
        assert costs[name].swapped[3] == pytest.approx(swapped - own, abs=1e-4)
        assert costs[name].gain[3] == pytest.approx(none - own, abs=1e-4)


def test_a_policy_that_looks_at_nothing_loses_nothing_by_a_swap():
    policy = small_policy()
    with torch.no_grad():
        for layer in policy.model.language_model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    costs = costs_of(policy)[0]
    for cost in costs.values():
        np.testing.assert_allclose(cost.swapped, 0, atol=1e-4)
        np.testing.assert_allclose(cost.gain, 0, atol=1e-4)


def test_streams_that_nobody_has_are_not_asked_about():
    from dataclasses import replace

    deaf = [replace(clip, speaker_audio=None, words=None, past=None) for clip in CLIPS]
    assert list(costs_of(small_policy(), deaf)[0]) == ["all", "frames"]


def test_others_are_of_other_conversations_and_few_where_there_are_few():
    names = ["a", "a", "a", "b", "c", "c"]
    others = drawn_others(names, 2)
    assert others.shape == (6, 2)
    for name, row in zip(names, others, strict=True):
        assert all(names[other] != name for other in row) and len(set(row)) == 2
    assert drawn_others(names, 9).shape == (6, 3)
    with pytest.raises(ValueError, match="one conversation"):
        drawn_others(["a", "a"], 2)
