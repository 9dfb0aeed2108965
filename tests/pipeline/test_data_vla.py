"""Clips as the policy takes them: absent modalities are marked, actions decode to the recorded
listener.
"""

from dataclasses import replace

import numpy as np
import pytest

from rapport.pipeline.data.vla import _moves, examples
from rapport.policies.vla.policy import VlaPolicy
from tests.talking import small_policy


@pytest.fixture(scope="module")
def policy(tiny_checkpoint):
    return VlaPolicy.load(tiny_checkpoint)


def test_rows_hold_the_prompt_and_the_recorded_listener(tiny_corpus, policy):
    rows = list(examples(tiny_corpus.clips("train"), policy))
    assert [row["prompt_id"] for row in rows] == tiny_corpus.clip_ids("train")
    clip, row = tiny_corpus.at("train", 3), rows[3]
    tokens = np.array(row["actions"])
    assert len(tokens) == 45 and tokens.min() >= 344 and tokens.max() < 600
    space = policy.actions.space
    wanted = space.to_knots(clip.listener.subset(space.layout))
    rest = clip.rest.subset(space.layout).values[0]
    np.testing.assert_array_equal(row["rest"], rest)
    found = space.to_knots(policy.actions.to_motion(tokens, rest))
    width = (policy.actions.high - policy.actions.low) / policy.actions.bins
    inside = (wanted - rest > policy.actions.low) & (wanted - rest < policy.actions.high)
    assert inside.mean() > 0.8
    assert (
        np.abs(found - wanted)[inside] <= np.broadcast_to(0.51 * width + 1e-6, wanted.shape)[inside]
    ).all()
    prompt = policy.prompt_row(policy.encode(clip))
    assert {name: row[name] for name in prompt} == prompt


def test_a_row_without_video_says_none(tiny_corpus, policy):
    clip = tiny_corpus.at("train", 0)
    past = replace(clip.past, speaker_frames=None)
    row = policy.prompt_row(policy.encode(replace(clip, speaker_frames=None, past=past)))
    assert row["frames"] is None and not any(row["present"][::2]) and any(row["present"][1::2])


def test_who_listens_to_the_same_moment_perceives_the_same_and_has_a_past_of_their_own(
    tiny_corpus, policy
):
    clip = tiny_corpus.at("train", 0)
    values = clip.past.listener.values
    turning = replace(clip.past.listener, values=values + np.linspace(0, 0.1, len(values))[:, None])
    other = replace(clip.rest, values=clip.rest.values + 0.05)
    past = replace(clip.past, listener=turning)
    second = replace(clip, clip_id="second", past=past, rest=other)
    later = tiny_corpus.at("train", 1)
    rows = list(examples([clip, second, later, clip], policy))
    for row, wanted in zip(rows, [clip, second, later, clip], strict=True):
        prompt = policy.prompt_row(policy.encode(wanted))
        assert {name: row[name] for name in prompt} == prompt
    assert rows[0]["own"] != rows[1]["own"] and rows[0]["rest"] != rows[1]["rest"]
    assert rows[0]["actions"] != rows[1]["actions"], "told from another face"


def test_how_far_a_face_is_from_rest_is_a_mean_over_a_chunk_and_does_not_count_the_head():
    policy = small_policy()  # 4 chunks of 2 actions of 3 dimensions of the face and 3 of the head
    still = policy.model.config.action_token_start + 128  # the bins go from -2 to 2
    tokens = np.full((4, 2, 6), still)
    tokens[1, 0, :3] += [3, -3, 6]
    tokens[2, :, 3:] += 50
    tokens[3, :, 1] -= 12
    assert _moves(tokens.ravel(), policy).tolist() == [0.0, 2.0, 0.0, 4.0]


def test_the_speaker_moves_through_the_past_and_then_the_clip(tiny_corpus):
    clip = tiny_corpus.at("train", 2)
    whole = clip.speaker_with_past.values
    assert len(whole) == len(clip.past.speaker) + len(clip.speaker)
    np.testing.assert_array_equal(whole[-len(clip.speaker) :], clip.speaker.values)
    np.testing.assert_array_equal(whole[: -len(clip.speaker)], clip.past.speaker.values)
    assert replace(clip, past=None).speaker_with_past is clip.speaker
