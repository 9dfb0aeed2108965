"""Eq. 10 by hand, and its gradient."""

import math

import pytest
import torch

from rapport.rewards.policy_loss import PolicyActions, clipped_policy_loss, importance_weights

ZERO = torch.zeros(2, 2)


def loss(ratios, advantages, kl=ZERO, clip=0.2, beta=0.0, mask=None):
    log_probs = torch.tensor(ratios).log().requires_grad_()
    actions = PolicyActions(
        log_probs=log_probs,
        old_log_probs=torch.zeros_like(log_probs),
        advantages=torch.tensor(advantages).unsqueeze(1),
        kl=kl,
        mask=mask,
    )
    output = clipped_policy_loss(actions, clip, beta)
    return output.loss, output.metrics, log_probs


def test_by_hand():
    # good sample: 1.5 counts as 1.2, 0.5 as it is; bad sample: 1.5 as it is, 0.5 counts as 0.8
    value, metrics, _ = loss([[1.5, 0.5], [1.5, 0.5]], [2.0, -1.0])
    assert value.item() == pytest.approx(-((2.4 + 1.0) / 2 + (-1.5 - 0.8) / 2) / 2)
    assert metrics["ratio"].item() == pytest.approx(1)
    assert metrics["clip_fraction"].item() == 1
    assert metrics["approx_kl"].item() == pytest.approx(-(math.log(1.5) + math.log(0.5)) / 2)
    assert not any(value.requires_grad for value in metrics.values())


def test_the_kl_pulls_back():
    kl = torch.tensor([[1.0, 3.0], [0.0, 0.0]])
    value, metrics, _ = loss([[1.0, 1.0], [1.0, 1.0]], [0.0, 0.0], kl, beta=0.5)
    assert value.item() == pytest.approx(0.5 * (1 + 3) / 2 / 2)
    assert metrics["kl"].item() == pytest.approx(1)


def test_gradient_is_the_policy_gradient_where_not_clipped():
    value, _, log_probs = loss([[1.5, 1.1], [0.5, 0.9]], [2.0, -1.0])
    value.backward()
    # -A rho / (samples actions); nothing where the clip binds
    torch.testing.assert_close(log_probs.grad, torch.tensor([[0, -2 * 1.1 / 4], [0, 0.9 / 4]]))


def test_masked_actions_do_not_count_whatever_they_are():
    mask = torch.tensor([[True, False], [True, True]])
    ratios = [[1.1, math.nan], [1.5, 0.5]]
    value, metrics, log_probs = loss(ratios, [2.0, -1.0], mask=mask)
    assert value.item() == pytest.approx(-(2.2 + (-1.5 - 0.8) / 2) / 2)
    assert metrics["ratio"].item() == pytest.approx((1.1 + 1.5 + 0.5) / 3)
    value.backward()
    assert log_probs.grad[0, 1] == 0 and log_probs.grad.isfinite().all()
    nobody = torch.zeros(2, 2, dtype=torch.bool)
    assert loss([[1.0, 1.0], [1.0, 1.0]], [2.0, -1.0], mask=nobody)[0].item() == 0


def test_importance_weights_by_hand():
    old, engine = torch.tensor([0.5, 0.5, 0.5]).log(), torch.tensor([0.5, 0.25, 0.1]).log()
    assert importance_weights(old, engine, 3.0).tolist() == pytest.approx([1, 2, 3])
    with pytest.raises(ValueError, match="truncation 0.5 must be at least 1"):
        importance_weights(old, engine, 0.5)


def test_weights_scale_the_surrogate_and_not_the_kl():
    log_probs, kl = torch.zeros(1, 2, requires_grad=True), torch.tensor([[1.0, 1.0]])
    weights = torch.tensor([[2.0, 0.5]])
    actions = PolicyActions(
        log_probs=log_probs,
        old_log_probs=torch.zeros(1, 2),
        advantages=torch.tensor([[3.0]]),
        kl=kl,
        weights=weights,
    )
    value = clipped_policy_loss(actions, 0.2, 0.1).loss
    assert value.item() == pytest.approx(-((2 * 3 - 0.1) + (0.5 * 3 - 0.1)) / 2)
    value.backward()
    assert log_probs.grad.tolist() == [pytest.approx([-3.0, -0.75])]


def test_shards_give_the_loss_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    new, old, kl = (torch.randn(6, 3, 4, generator=generator) for _ in range(3))
    advantages = torch.randn(6, 3, 1, generator=generator)
    mask = torch.rand(6, 3, 4, generator=generator) > 0.3

    def loss_of(samples):
        actions = PolicyActions(
            log_probs=new[samples],
            old_log_probs=old[samples],
            advantages=advantages[samples],
            kl=kl[samples],
            mask=mask[samples],
        )
        return clipped_policy_loss(actions, 0.2, 0.1).loss

    whole = loss_of(slice(None))
    parts = [loss_of(samples) for samples in (slice(0, 2), slice(2, 4), slice(4, 6))]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_an_action_has_the_advantage_of_its_own():
    log_probs = torch.zeros(2, 2, requires_grad=True)
    actions = PolicyActions(
        log_probs=log_probs,
        old_log_probs=torch.zeros(2, 2),
        advantages=torch.tensor([[1.0, 2.0], [3.0, -4.0]]),
        kl=ZERO,
    )
    clipped_policy_loss(actions, 0.2, 0.0).loss.backward()
    assert log_probs.grad.tolist() == [[-0.25, -0.5], [-0.75, 1.0]]


def test_without_advantage_nothing_is_learnt():
    value, _, log_probs = loss([[1.1, 0.9], [1.3, 0.5]], [0.0, 0.0])
    value.backward()
    assert (log_probs.grad == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"advantages": [1.0]}, r"advantages must broadcast to log-probs \(2, 2\), got \(1, 1\)"),
        ({"kl": torch.zeros(2, 3)}, r"kl \(2, 3\)"),
        ({"mask": torch.ones(2, 1, dtype=torch.bool)}, r"mask \(2, 1\)"),
        ({"clip": 0.0}, "clip 0"),
        ({"beta": -1.0}, "beta -1"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        loss(**{"ratios": [[1.0, 1.0], [1.0, 1.0]], "advantages": [1.0, 1.0]} | change)
