"""PosNet: the paper's network and losses, what it learns, and what it costs."""

import numpy as np
import pytest
import torch

from rapport.policies.motion import Layout, LayoutError, Motion
from rapport.policies.policy import CheckpointError
from rapport.policies.posnet import (
    ByPosNet,
    PosNet,
    connect_loss,
    first_difference_loss,
    posnet_loss,
    second_difference_loss,
    train_posnet,
)
from rapport.policies.posnet_settings import PosNetTraining
from rapport.policies.seams import smooth, with_jumps
from rapport.rewards.metrics.measures.seams import seams

FPS = 25
FRAMES = 10
LAYOUT = Layout((("expr", 2), ("rot", 3), ("trans", 3)), FPS, "faceverse")
SHORT = PosNetTraining(hidden=64, steps=200, batch_size=16, learning_rate=2e-3)


def people(count=48, frames=40, seed=0):
    rng = np.random.default_rng(seed)
    seconds = np.arange(frames)[:, None] / FPS
    motions = []
    for _ in range(count):
        hertz, phase = rng.uniform(0.3, 1, LAYOUT.dim), rng.uniform(0, 2 * np.pi, LAYOUT.dim)
        motions.append(Motion(0.1 * np.sin(2 * np.pi * hertz * seconds + phase), LAYOUT))
    return motions


def broken(motions, seed=0):
    rng = np.random.default_rng(seed)
    return [with_jumps(motion, FRAMES, rng, scale=np.full(6, 0.1)) for motion in motions]


@pytest.fixture(scope="module")
def trained():
    wanted = people()
    return train_posnet(broken(wanted), wanted, frames=FRAMES, training=SHORT)


def test_the_network_has_the_parameters_of_the_papers_code():
    net = PosNet(Layout((("expr", 52), ("rot", 3), ("trans", 3)), FPS, "faceverse"))
    encoder = 512 * 6 * 3 + 512 + 512 * 512 * 3 + 512
    decoder = 512 * (512 + 6) + 512 + 512 * 512 + 512 + 150 * 512 + 150
    assert sum(weights.numel() for weights in net.parameters()) == encoder + decoder == 1_402_006
    assert net(torch.zeros(2, 6), torch.zeros(2, 25, 6)).shape == (2, 25, 6)


def test_it_does_not_know_when_the_head_moved():
    """Averaged over time, a window whose middle is another way round is the same to it."""
    torch.manual_seed(0)
    net = PosNet(LAYOUT, frames=FRAMES, hidden=16)
    window = torch.zeros(1, FRAMES, 6)
    early, late = window.clone(), window.clone()
    early[0, 3] = late[0, 6] = 1
    last = torch.zeros(1, 6)
    torch.testing.assert_close(net(last, early), net(last, late))


def test_the_losses_are_those_printed():
    said = torch.tensor([[[1.0], [3.0], [2.0], [2.0]]])
    last = torch.tensor([[0.5]])
    assert connect_loss(said, last).item() == pytest.approx(0.5)
    assert first_difference_loss(said).item() == pytest.approx((2 + 1 + 0) / 3)
    assert second_difference_loss(said).item() == pytest.approx((1 + 1) / 2)
    target = torch.zeros_like(said)
    weights = PosNetTraining(connect=10, first=100, second=1000)
    total = (1 + 9 + 4 + 4) / 4 + 10 * 0.5 + 100 * 1 + 1000 * 1
    assert posnet_loss(said, last, target, weights).item() == pytest.approx(total)
    assert (PosNetTraining().connect, PosNetTraining().first, PosNetTraining().second) == (
        1,
        1,
        0.2,
    )


def test_two_of_the_losses_are_least_for_a_head_that_stands_still_and_one_lets_zigzags_through():
    still = torch.ones(1, 8, 6)
    zigzag = (-1.0) ** torch.arange(8)[None, :, None].expand(1, 8, 6)
    assert connect_loss(still, still[:, 0]) == first_difference_loss(still) == 0
    assert second_difference_loss(zigzag) == 0 < first_difference_loss(zigzag)


def test_joints_are_mended_and_the_face_is_left_alone(trained):
    wanted = people(16, seed=9)
    given = broken(wanted, seed=9)
    smoothed = [smooth(motion, FRAMES, ByPosNet(trained)) for motion in given]
    before = seams(given, wanted, FRAMES, ["rot", "trans"])
    after = seams(smoothed, wanted, FRAMES, ["rot", "trans"])
    for group in ("rot", "trans"):
        assert after[f"jump/{group}"] < before[f"jump/{group}"] / 2
        assert after[f"jerk_ratio/{group}"] < before[f"jerk_ratio/{group}"] / 2
        assert after[f"variance_within/{group}"] < 0.9, "which is what it costs"
    for motion, other in zip(smoothed, given, strict=True):
        np.testing.assert_array_equal(motion.group("expr"), other.group("expr"))
        np.testing.assert_array_equal(motion.values[:FRAMES], other.values[:FRAMES])


def test_later_windows_change_nothing_before_and_a_session_is_a_file(trained):
    motion = broken(people(1, seed=3))[0]
    other = motion.values.copy()
    other[30:] += 1
    smoother = ByPosNet(trained)
    whole = smooth(motion, FRAMES, smoother).values
    changed = smooth(Motion(other, LAYOUT), FRAMES, smoother).values
    np.testing.assert_array_equal(whole[:30], changed[:30])
    assert not np.array_equal(whole[30:], changed[30:])
    shown, done = None, []
    for start in range(0, 40, FRAMES):
        shown = smoother(shown, motion.window(start, FRAMES))
        done.append(shown.values)
    np.testing.assert_array_equal(np.concatenate(done), whole)


def test_the_same_seed_trains_the_same_network_and_leaves_torchs_alone():
    wanted = people(8)
    given = broken(wanted)
    training = PosNetTraining(hidden=8, steps=3, batch_size=4)
    torch.manual_seed(1)
    first = train_posnet(given, wanted, frames=FRAMES, training=training)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    second = train_posnet(given, wanted, frames=FRAMES, training=training)
    assert torch.equal(drawn, torch.rand(1))
    for name, weights in first.state_dict().items():
        assert torch.equal(weights, second.state_dict()[name]), name


def test_a_network_is_saved_and_loaded(trained, tmp_path):
    trained.save(tmp_path / "posnet")
    loaded = PosNet.load(tmp_path / "posnet")
    motion = broken(people(1, seed=3))[0]
    np.testing.assert_array_equal(
        smooth(motion, FRAMES, ByPosNet(loaded)).values,
        smooth(motion, FRAMES, ByPosNet(trained)).values,
    )
    (tmp_path / "posnet" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="posnet holds no PosNet"):
        PosNet.load(tmp_path / "posnet")
    with pytest.raises(CheckpointError, match="nowhere holds no PosNet"):
        PosNet.load(tmp_path / "nowhere")


def test_what_does_not_fit_is_refused(trained):
    smoother = ByPosNet(trained)
    motion = people(1)[0]
    with pytest.raises(LayoutError, match="window of 11 frames, this PosNet makes 10"):
        smoother(None, motion.window(0, 11))
    other = Layout((("rot", 3),), FPS, "builtin")
    with pytest.raises(LayoutError, match="smoothing by this PosNet"):
        smoother(None, Motion(np.zeros((5, 3)), other))
    assert len(smooth(motion.window(0, 25), FRAMES, smoother)) == 25, "a short last window is"


def test_there_must_be_something_to_learn_from():
    motions = people(2)
    with pytest.raises(ValueError, match="0 motions, the shortest of 0 frames"):
        train_posnet([], [], frames=FRAMES)
    with pytest.raises(ValueError, match="shortest of 40 frames: a joint needs two windows of 25"):
        train_posnet(motions, motions, frames=25)
    with pytest.raises(ValueError, match="40 frames are given where 30 are wanted"):
        train_posnet(motions, [motion.window(0, 30) for motion in motions], frames=FRAMES)
