"""DPO losses against values worked out by hand."""

import math

import pytest
import torch

from rapport.rewards.dpo_loss import dpo_loss

# log-ratios: chosen +2 and -1, rejected -3 and +1, so D = 5 and -2
POLICY_W, REFERENCE_W = torch.tensor([-98.0, -101.0]), torch.tensor([-100.0, -100.0])
POLICY_L, REFERENCE_L = torch.tensor([-93.0, -89.0]), torch.tensor([-90.0, -90.0])


def loss(kind="sigmoid", beta=0.1, tokens=10, **kwargs):
    return dpo_loss(
        POLICY_W, POLICY_L, REFERENCE_W, REFERENCE_L, beta, kind, num_tokens=tokens, **kwargs
    )


def log_sigmoid(x):
    return -math.log(1 + math.exp(-x))


def test_sigmoid():
    assert loss()[0].tolist() == pytest.approx([-log_sigmoid(0.5), -log_sigmoid(-0.2)])


def test_ipo_averages_per_token():
    assert loss("ipo", beta=0.25)[0].tolist() == pytest.approx([(0.5 - 2) ** 2, (-0.2 - 2) ** 2])
    by_pair = loss("ipo", beta=0.25, tokens=torch.tensor([10.0, 20.0]))[0]
    assert by_pair.tolist() == pytest.approx([(0.5 - 2) ** 2, (-0.1 - 2) ** 2])


def test_robust():
    expected = [(-0.8 * log_sigmoid(z) + 0.2 * log_sigmoid(-z)) / 0.6 for z in (0.5, -0.2)]
    assert loss("robust", label_smoothing=0.2)[0].tolist() == pytest.approx(expected)
    assert torch.equal(loss("robust")[0], loss("sigmoid")[0])


def test_robust_is_unbiased_under_turned_labels():
    e = 0.3
    right, _ = dpo_loss(
        POLICY_W, POLICY_L, REFERENCE_W, REFERENCE_L, 0.1, "robust", None, e, num_tokens=10
    )
    wrong, _ = dpo_loss(
        POLICY_L, POLICY_W, REFERENCE_L, REFERENCE_W, 0.1, "robust", None, e, num_tokens=10
    )
    assert torch.allclose((1 - e) * right + e * wrong, loss()[0], atol=1e-6)


def test_margin():
    got = loss("margin", score_margin=torch.tensor([0.3, 0.0]))[0]
    assert got.tolist() == pytest.approx([-log_sigmoid(0.5 - 0.3), -log_sigmoid(-0.2)])


def test_metrics():
    metrics = loss()[1]
    assert metrics["accuracy"].tolist() == [1, 0]
    assert metrics["margin"].tolist() == pytest.approx([0.5, -0.2])
    assert metrics["chosen_reward"].tolist() == pytest.approx([0.2, -0.1])
    assert metrics["rejected_reward"].tolist() == pytest.approx([-0.3, 0.1])
    assert metrics["kl_per_token"].tolist() == pytest.approx([1 / 20, 0])


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "robust", "margin"])
def test_shards_give_the_losses_of_the_whole(kind):
    torch.manual_seed(0)
    batch = [torch.randn(7) for _ in range(4)]
    margin = torch.rand(7) if kind == "margin" else None
    whole, metrics = dpo_loss(*batch, 0.3, kind, margin, num_tokens=5)
    for cut in (slice(0, 3), slice(3, 7)):
        part, part_metrics = dpo_loss(
            *(x[cut] for x in batch),
            0.3,
            kind,
            None if margin is None else margin[cut],
            num_tokens=5,
        )
        assert torch.equal(part, whole[cut])
        assert all(torch.equal(part_metrics[name], metrics[name][cut]) for name in metrics)


def test_the_reference_itself_loses_log_two_and_the_gradient_pushes_apart():
    chosen, rejected = POLICY_W.clone().requires_grad_(), POLICY_L.clone().requires_grad_()
    losses, metrics = dpo_loss(chosen, rejected, POLICY_W, POLICY_L, 0.1, num_tokens=10)
    assert losses.tolist() == pytest.approx([math.log(2)] * 2)
    losses.sum().backward()
    assert (chosen.grad < 0).all() and (rejected.grad > 0).all()
    assert torch.allclose(chosen.grad, torch.full((2,), -0.05))
    assert not any(value.requires_grad for value in metrics.values())


def test_large_differences_stay_finite():
    far = torch.tensor([1e4, -1e4])
    losses, _ = dpo_loss(far, -far, torch.zeros(2), torch.zeros(2), 1.0, num_tokens=1)
    assert losses.tolist() == pytest.approx([0, 2e4])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kind": "hinge"}, "unknown DPO loss"),
        ({"beta": 0.0}, "beta"),
        ({"label_smoothing": 0.1}, "label_smoothing"),
        ({"kind": "robust", "label_smoothing": 0.5}, "label_smoothing"),
        ({"kind": "margin"}, "score_margin"),
        ({"score_margin": torch.ones(2)}, "score_margin"),
        ({"kind": "margin", "score_margin": torch.ones(3)}, "shape"),
    ],
)
def test_what_does_not_fit_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        loss(**kwargs)


def test_token_log_probs_are_refused():
    with pytest.raises(ValueError, match="batch"):
        dpo_loss(*[torch.zeros(2, 10)] * 4, 0.1, num_tokens=10)
