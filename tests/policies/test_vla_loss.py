import math

import numpy as np
import pytest
import torch

from rapport.policies.motion import Layout
from rapport.policies.vla.actions import ActionSpace, ActionTokenizer
from rapport.policies.vla.loss import (
    expected_action,
    identity_consistency,
    sft_loss,
    temporal_coherence,
)

SPACE = ActionSpace(
    Layout((("expr", 1), ("rot", 1)), 2, "builtin"), rate=1, seconds=2
)  # 2 steps x 2 dims
TOKENIZER = ActionTokenizer(
    SPACE, np.array([0.0, -3.0]), np.array([1.0, 3.0]), first_token=100, bins=4
)


def certain(bins, scale=1e4):
    """Logits that put everything on the given bins (batch, tokens)."""
    return torch.nn.functional.one_hot(torch.tensor(bins), 4).float() * scale


def test_expected_action_by_hand():
    centres = torch.from_numpy(TOKENIZER.centres)
    even = expected_action(torch.zeros(1, 4, 4), centres)
    assert even.shape == (1, 2, 2)
    torch.testing.assert_close(even[0], torch.tensor([[0.5, 0.0], [0.5, 0.0]]))
    sure = expected_action(certain([[0, 3, 1, 0]]), centres)
    torch.testing.assert_close(sure[0], torch.tensor([[0.125, 2.25], [0.375, -2.25]]))


def test_regularisers_by_hand():
    actions = torch.tensor([[[0.0], [1.0], [2.0]]])
    shifted = actions + 0.5  # same velocities, another resting face
    assert temporal_coherence(shifted, actions).item() == 0
    assert identity_consistency(shifted, actions).item() == pytest.approx(0.25)
    still = torch.ones(1, 3, 1)  # same mean, no movement
    assert temporal_coherence(still, actions).item() == pytest.approx(1.0)
    assert identity_consistency(still, actions).item() == 0


def test_uniform_logits_cost_log_bins():
    ids = torch.tensor([[100, 103, 100, 103]])
    loss, parts = sft_loss(
        torch.zeros(1, 4, 4), ids, TOKENIZER, lambda_exp=2, lambda_pose=0.5, lambda_reg=0
    )
    assert parts["ce_expression"].item() == pytest.approx(math.log(4))
    assert parts["ce_pose"].item() == pytest.approx(math.log(4))
    assert loss.item() == pytest.approx(2.5 * math.log(4))


def test_parts_separate_expression_from_pose():
    ids = torch.tensor([[101, 102, 101, 102]])
    logits = certain([[1, 2, 1, 2]])
    logits[:, [1, 3]] = 0  # pose unknown
    _, parts = sft_loss(logits, ids, TOKENIZER)
    assert parts["ce_expression"].item() == pytest.approx(0, abs=1e-6)
    assert parts["ce_pose"].item() == pytest.approx(math.log(4))


def test_regularisation_is_in_bin_ranges_so_units_do_not_matter():
    ids = torch.tensor([[100, 100, 100, 100]])  # both dimensions at 1/8 of their range
    logits = certain([[0, 0, 2, 2]])  # predicted to move by half of the range in the second step
    loss, parts = sft_loss(logits, ids, TOKENIZER, lambda_exp=0, lambda_pose=0, lambda_reg=3)
    assert parts["temporal"].item() == pytest.approx(0.5**2)
    assert parts["identity"].item() == pytest.approx(0.25**2)
    assert loss.item() == pytest.approx(3 * (0.25 + 0.0625))


def test_constant_dimension_does_not_regularise():
    frozen = ActionTokenizer(SPACE, np.array([0.0, 1.0]), np.array([1.0, 1.0]), 100, bins=4)
    ids = torch.tensor([[100, 100, 100, 100]])
    _, parts = sft_loss(certain([[0, 0, 0, 3]]), ids, frozen)
    assert parts["temporal"].item() == 0 and parts["identity"].item() == 0


def test_gradient_moves_the_expected_action_towards_the_target():
    logits = torch.zeros(1, 4, 4, requires_grad=True)
    ids = torch.tensor([[103, 103, 103, 103]])
    loss, parts = sft_loss(logits, ids, TOKENIZER, lambda_exp=0, lambda_pose=0)
    loss.backward()
    assert (logits.grad[..., 3] < 0).all() and (logits.grad[..., 0] > 0).all()
    assert not any(part.requires_grad for part in parts.values())


def test_loss_of_a_batch_is_the_mean_over_its_shards():
    torch.manual_seed(0)
    logits, ids = torch.randn(4, 4, 4), torch.randint(100, 104, (4, 4))
    whole, _ = sft_loss(logits, ids, TOKENIZER)
    shards = [
        sft_loss(logits[part], ids[part], TOKENIZER)[0] for part in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(whole, sum(shards) / 2)


def test_layout_without_pose_has_no_pose_part():
    space = ActionSpace(Layout((("expr", 2),), 2, "builtin"), rate=1, seconds=2)
    tokenizer = ActionTokenizer(space, np.zeros(2), np.ones(2), 100, bins=4)
    _, parts = sft_loss(torch.zeros(1, 4, 4), torch.full((1, 4), 100), tokenizer)
    assert sorted(parts) == ["ce_expression", "identity", "temporal"]
