"""Clips as the policy takes them: absent modalities are marked, actions decode to the recorded
listener.
"""

from dataclasses import replace

import numpy as np
import pytest

from rapport.pipeline.data.vla import _moves, examples, faces_at_rest
from rapport.policies.vla.policy import VlaPolicy


@pytest.fixture(scope="module")
def policy(tiny_checkpoint):
    return VlaPolicy.load(tiny_checkpoint)


def test_rows_hold_the_prompt_and_the_recorded_listener(tiny_corpus, policy):
    rests = faces_at_rest(tiny_corpus.clips("train", ()), policy)
    rows = list(examples(tiny_corpus.clips("train"), policy, rests))
    assert [row["prompt_id"] for row in rows] == tiny_corpus.clip_ids("train")
    clip, row = tiny_corpus.at("train", 3), rows[3]
    tokens = np.array(row["actions"])
    assert len(tokens) == 45 and tokens.min() >= 344 and tokens.max() < 600
    space = policy.actions.space
    wanted = space.to_knots(clip.listener.subset(space.layout))
    found = space.to_knots(policy.actions.to_motion(tokens))
    width = (policy.actions.high - policy.actions.low) / policy.actions.bins
    inside = (wanted > policy.actions.low) & (wanted < policy.actions.high)
    assert inside.mean() > 0.8
    assert (
        np.abs(found - wanted)[inside] <= np.broadcast_to(0.51 * width + 1e-6, wanted.shape)[inside]
    ).all()
    prompt = policy.prompt_row(policy.encode(clip))
    assert {name: row[name] for name in prompt} == prompt
    at_rest = np.median([np.reshape(row["actions"], (-1, space.dims)) for row in rows], axis=1)
    assert len({clip.dyad_id for clip in tiny_corpus.clips("train", ())}) == 1
    assert np.abs(np.median(at_rest, axis=0) - row["rest"]).max() <= 0.5


def test_a_row_without_video_says_none(tiny_corpus, policy):
    clip = tiny_corpus.at("train", 0)
    past = replace(clip.past, speaker_frames=None)
    row = policy.prompt_row(policy.encode(replace(clip, speaker_frames=None, past=past)))
    assert row["frames"] is None and not any(row["present"][::2]) and any(row["present"][1::2])


def test_who_listens_to_the_same_moment_perceives_the_same_and_has_a_past_of_their_own(
    tiny_corpus, policy
):
    clip = tiny_corpus.at("train", 0)
    moved = replace(clip.past.listener, values=clip.past.listener.values + 0.05)
    second = replace(clip, clip_id="second", past=replace(clip.past, listener=moved))
    later = tiny_corpus.at("train", 1)
    rests = faces_at_rest([clip, second, later], policy)
    rows = list(examples([clip, second, later, clip], policy, rests))
    for row, wanted in zip(rows, [clip, second, later, clip], strict=True):
        prompt = policy.prompt_row(policy.encode(wanted))
        assert {name: row[name] for name in prompt} == prompt
    assert rows[0]["own"] != rows[1]["own"]


def test_how_far_a_face_goes_is_counted_from_the_end_of_the_chunk_before():
    tokens = np.array([10, 0, 14, 0, 20, 9, 24, 9])  # two chunks of two actions of two dimensions
    found = _moves(tokens, np.array([8, 50]), chunk=4, face=np.array([True, False]))
    assert found.tolist() == [(2 + 6) / 2, (6 + 10) / 2]


def test_the_speaker_moves_through_the_past_and_then_the_clip(tiny_corpus):
    clip = tiny_corpus.at("train", 2)
    whole = clip.speaker_with_past.values
    assert len(whole) == len(clip.past.speaker) + len(clip.speaker)
    np.testing.assert_array_equal(whole[-len(clip.speaker) :], clip.speaker.values)
    np.testing.assert_array_equal(whole[: -len(clip.speaker)], clip.past.speaker.values)
    assert replace(clip, past=None).speaker_with_past is clip.speaker
