"""Encoders before imitation: they learn to tell what the speaker's face does, and keep it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rapport.actors.learner import split_rows
from rapport.pipeline.data.perception import PERCEPTION_SCHEMA, Channels, perceived_chunks
from rapport.pipeline.objectives.perception import Perception
from rapport.pipeline.objectives.settings import PerceptionTraining
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.head.asset import load_head
from rapport.policies.motion import Layout, Motion
from rapport.policies.tables import write_table
from rapport.policies.vla.policy import VlaPolicy
from rapport.policies.vla.settings import VlaConfig
from tests.talking import small_policy, talking

LAYOUT = Layout((("expr", 2), ("jaw", 1)), 25, "builtin")
CHANNELS = Channels(np.eye(2))


def telling(seed):
    """A clip whose pictures are as bright as the speaker's jaw is open, and whose voice as loud."""
    clip = talking(seed=seed, past=0)
    rng = np.random.default_rng(seed)
    opening = np.repeat(rng.random(8), 5)  # of 5 frames of motion each, one picture a step
    values = np.zeros((40, 3))
    values[:, 2] = opening
    frames = np.zeros((8, 28, 28, 3), np.uint8)
    frames += (255 * opening[2::5]).astype(np.uint8)[:, None, None, None]
    loud = np.repeat(opening, AUDIO_RATE // 25)
    audio = (loud * rng.normal(size=len(loud))).astype(np.float32) / 10
    return replace(clip, speaker=Motion(values, LAYOUT), speaker_frames=frames, speaker_audio=audio)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pretraining")
    policy = small_policy()
    policy.save(path / "initial")
    clips = [telling(seed) for seed in range(40)]
    rows = perceived_chunks(clips, policy.model.config, CHANNELS, limit=1000)
    assert write_table(path / "chunks.arrow", rows, PERCEPTION_SCHEMA) == 160
    return path


def task(folder, **keys) -> Perception:
    config = PerceptionTraining(**{"steps": 60, "batch_size": 32, "learning_rate": 3e-3} | keys)
    return Perception(
        folder / "initial", folder / "chunks.arrow", CHANNELS.groups(LAYOUT), config, seed=0
    )


@pytest.fixture(scope="module")
def trained(folder):
    objective = task(folder)
    module = objective.module()
    optimiser = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(objective.steps):
        loss, parts = objective.loss(module, objective.batch(step, 0, 1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append({name: value.item() for name, value in parts.items()})
    objective.save(module.state_dict(), folder / "policy")
    return losses


def test_pictures_and_voice_tell_after_a_little_training(trained):
    first, last = trained[0], trained[-1]
    # The one channel of three that moves; its spread is a second thing that a voice tells.
    assert last["pictures"] < 0.3 * first["pictures"]
    assert last["voice"] < 0.8 * first["voice"]


def test_the_encoders_are_kept_and_stay_and_all_else_is_as_it_was(trained, folder):
    before, after = (VlaPolicy.load(folder / name) for name in ("initial", "policy"))
    assert after.model.config.perception_trained and not before.model.config.perception_trained
    changed = {
        name
        for name, value in after.model.state_dict().items()
        if not torch.equal(value, before.model.state_dict()[name])
    }
    assert changed and all(name.startswith(("vision.", "voice.")) for name in changed)
    assert not any("adapter" in name for name in changed)
    after.prepare_training(VlaConfig())
    learns = {name for name, p in after.model.named_parameters() if p.requires_grad}
    assert {"vision.adapter.weight", "voice.adapter.weight", "slots.own.weight"} <= learns
    assert not any(
        name.startswith(("vision.", "voice.")) and "adapter" not in name for name in learns
    )


def test_two_pictures_are_further_apart_than_before(trained, folder):
    frames = torch.zeros((2, 28, 28, 3), dtype=torch.uint8)
    frames[1] = 250
    apart = []
    for name in ("initial", "policy"):
        with torch.no_grad():
            dark, bright = VlaPolicy.load(folder / name).model.vision(frames)
        apart.append((dark - bright).square().mean().sqrt().item() / dark.square().mean().sqrt())
    assert apart[1] > 0.5, apart


def test_a_batch_is_a_function_of_its_step_and_ranks_share_it(folder):
    whole = task(folder).batch(3, 0, 1)
    shares = [task(folder).batch(3, rank, 2) for rank in range(2)]
    for name, values in whole.items():
        for rank, share in enumerate(shares):
            assert torch.equal(values[rank::2], share[name])


def test_a_batch_in_pieces_is_the_batch_whoever_is_absent(folder, tmp_path):
    """Pieces are weighed by their rows; in one of these nobody is seen, in another all are."""
    policy = small_policy()
    clips = [telling(0), replace(telling(1), speaker_frames=None, dyad_id="unseen")]
    write_table(
        tmp_path / "chunks.arrow",
        perceived_chunks(clips, policy.model.config, CHANNELS, limit=99),
        PERCEPTION_SCHEMA,
    )
    config = PerceptionTraining(steps=1, batch_size=8)
    objective = Perception(
        folder / "initial", tmp_path / "chunks.arrow", CHANNELS.groups(LAYOUT), config, seed=0
    )
    module = objective.module()
    batch = objective.batch(0, 0, 1)
    seen = batch["seen"] > 0
    assert seen.sum() == 4
    order = torch.argsort(seen.int(), stable=True)
    batch = {name: values[order] for name, values in batch.items()}
    whole = objective.loss(module, batch)[0].item()
    pieces = [objective.loss(module, piece)[0].item() for piece, _ in split_rows(batch, 4)]
    assert pieces[0] != pytest.approx(pieces[1], rel=0.1)
    assert np.mean(pieces) == pytest.approx(whole, rel=1e-5)


def test_what_stands_still_is_not_asked_for(folder):
    batch = task(folder).batch(0, 0, 1)
    assert (batch["face"][..., 1:] == 0).all() and batch["face"][..., 0].std() > 0.5


def test_every_moment_counts_once_and_absent_streams_have_no_weight(folder):
    policy = small_policy()
    clip = telling(0)
    twice = [clip, replace(clip, clip_id="again")]
    rows = list(perceived_chunks(twice, policy.model.config, CHANNELS, limit=9))
    assert len(rows) == policy.model.config.chunks
    deaf = replace(telling(1), speaker_audio=None, dyad_id="other")
    blind = replace(telling(2), speaker_frames=None, dyad_id="third")
    rows = list(perceived_chunks([deaf, blind], policy.model.config, CHANNELS, limit=9))
    assert [row["voice"] is None for row in rows] == [True] * 4 + [False] * 4
    assert [row["frames"] is None for row in rows] == [False] * 4 + [True] * 4
    nobody = replace(clip, speaker=None)
    assert not list(perceived_chunks([nobody], policy.model.config, CHANNELS, limit=9))


def test_the_face_is_told_in_arkit_weights_where_the_head_has_them():
    head = load_head()
    names = sorted(head.arkit)
    values = np.zeros((3, 50), np.float32)
    values[1] = head.expr(mouthSmileLeft=0.5)[:50]
    motion = Motion(values, Layout((("expr", 50),), 25, "builtin"))
    found = Channels.of(head, 50)(motion)
    assert found.shape == (3, len(names))
    expected = np.zeros(len(names))
    expected[names.index("mouthSmileLeft")] = 0.5
    np.testing.assert_allclose(found[1], expected, atol=0.1)
    assert Channels.of(None, 7).from_expression.shape == (7, 7)
