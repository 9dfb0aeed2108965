"""Clips as the policy takes them: absent modalities are marked, actions decode to the recorded
listener.
"""

from dataclasses import replace

import numpy as np
import pytest

from rapport.pipeline.data.vla import examples
from rapport.policies.vla.policy import VlaPolicy


@pytest.fixture(scope="module")
def policy(tiny_checkpoint):
    return VlaPolicy.load(tiny_checkpoint)


def test_absent_modalities_are_marked_in_the_prompt(tiny_corpus, policy):
    clip, config = tiny_corpus.at("train", 0), policy.model.config
    full = policy.encode(clip)
    assert full.prompt_id == clip.clip_id and full.frames.shape == (1, 28, 28, 3)
    assert (full.ids == config.image_token_id).sum() == 4 and config.absent_token_id not in full.ids
    blind = policy.encode(replace(clip, speaker_frames=None))
    assert blind.frames is None
    assert (
        blind.ids == config.absent_token_id
    ).sum() == 4 and config.image_token_id not in blind.ids
    deaf, silent = (
        policy.encode(replace(clip, words=None)),
        policy.encode(replace(clip, words=())),
    )
    assert (deaf.ids == config.absent_token_id).sum() == 4 and (
        silent.ids == config.blank_token_id
    ).sum() == 4


def test_rows_hold_the_prompt_and_the_recorded_listener(tiny_corpus, policy):
    rows = list(examples(tiny_corpus.clips("train"), policy))
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
    frames = np.frombuffer(row["frames"], np.uint8).reshape(1, 28, 28, 3)
    np.testing.assert_array_equal(frames, policy.encode(clip).frames)


def test_a_row_without_video_says_none(tiny_corpus, policy):
    prompt = policy.encode(replace(tiny_corpus.at("train", 0), speaker_frames=None))
    assert policy.prompt_row(prompt) == {
        "prompt_id": prompt.prompt_id,
        "prompt": prompt.ids.tolist(),
        "frames": None,
    }
