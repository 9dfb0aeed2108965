"""Nothing that the speaker does later changes what the policy did before: through the whole path,
to the bit, in training mode too.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rapport.policies.policy import Reaction
from rapport.policies.vla.sequence import seen_of
from tests.talking import changed_after, small_policy, talking

CHUNK = 0.4


@pytest.fixture(scope="module")
def policy():
    return small_policy()


@pytest.mark.parametrize("moment", [0.0, 0.4, 0.8, 1.2])
@pytest.mark.parametrize("training", [False, True])
def test_logits_until_a_moment_do_not_know_what_comes_after(policy, moment, training):
    clip = talking()
    policy.model.train(training)
    actions = torch.from_numpy(policy.recorded(clip).actions)[None]
    logits = []
    with torch.no_grad():
        for shown in (clip, changed_after(clip, moment)):
            seen = seen_of(policy.model.config, [policy.encode(shown)])
            logits.append(policy.model.action_logits(seen, actions)[0])
    policy.model.eval()
    known = round(moment / CHUNK + 1) * policy.model.config.chunk_tokens
    assert torch.equal(logits[0][:known], logits[1][:known])
    if known < len(logits[0]):
        assert not torch.allclose(logits[0][known:], logits[1][known:], atol=1e-4)


@pytest.mark.parametrize("moment", [0.3, 0.7])
def test_between_two_chunks_the_policy_acts_on_what_it_knew_at_the_first(policy, moment):
    clip = talking()
    first, other = (policy.encode(shown) for shown in (clip, changed_after(clip, moment)))
    known = int(moment / CHUNK) + 1
    history = policy.model.config.history
    np.testing.assert_array_equal(first.said[:known], other.said[:known])
    np.testing.assert_array_equal(first.heard[:known], other.heard[:known])
    np.testing.assert_array_equal(first.voice[: history + known], other.voice[: history + known])
    np.testing.assert_array_equal(first.frames[: history + known], other.frames[: history + known])
    assert (first.voice[history + known] != other.voice[history + known]).any()


def test_sampled_tokens_and_motion_until_a_moment_stay(policy):
    clip = talking()
    reactions = [
        policy.sample([policy.encode(shown)], 1, [4])[0][0]
        for shown in (clip, changed_after(clip, 0.8))
    ]
    known = 3 * policy.model.config.chunk_tokens
    tokens = [reaction.actions for reaction in reactions]
    np.testing.assert_array_equal(tokens[0][:known], tokens[1][:known])
    assert (tokens[0][known:] != tokens[1][known:]).any()
    # A frame needs the knot after its own block: those of 1.2 s are known but for the last block.
    motions = [policy.to_motion(reaction).values for reaction in reactions]
    np.testing.assert_array_equal(motions[0][:25], motions[1][:25])
    assert (motions[0][25:] != motions[1][25:]).any()


def test_a_word_is_heard_when_it_ends_and_a_past_ends_where_the_clip_begins(policy):
    clip = talking()
    late = replace(clip.words[0], text="late", start=-0.3, end=0.1)  # said across the start
    past = replace(clip.past, words=(*clip.past.words, late))
    prompt = policy.encode(replace(clip, past=past, words=()))
    assert not (prompt.said[0] == policy.word_ids("late")[-1]).any()
    assert (prompt.said[1] == policy.word_ids("late")[-1]).any()


def test_the_own_past_tells_nothing_of_what_follows(policy):
    clip = talking()
    other = replace(clip, listener=talking(seed=5).listener)
    np.testing.assert_array_equal(policy.encode(clip).own, policy.encode(other).own)
    np.testing.assert_array_equal(policy.encode(clip).rest, policy.encode(other).rest)
    assert (policy.encode(clip).own >= policy.model.config.action_token_start).all()


def test_a_clip_alone_equals_the_clip_cut_short(policy):
    """What is asked of a shorter policy is the beginning of what is asked of a longer one."""
    clip = talking()
    whole = policy.sample([policy.encode(clip)], 1, [2])[0][0]
    short = small_policy(seconds=0.8)
    short.model.load_state_dict(policy.model.state_dict())
    begun = short.sample([short.encode(clip)], 1, [2])[0][0]
    np.testing.assert_array_equal(begun.actions, whole.actions[: len(begun.actions)])
    assert isinstance(begun, Reaction)
