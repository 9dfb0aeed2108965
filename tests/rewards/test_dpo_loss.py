"""DPO losses against values worked out by hand."""

import math

import pytest
import torch

from rapport.rewards.dpo_loss import PairLogProbs, dpo_loss

# log-ratios: chosen +2 and -1, rejected -3 and +1, so D = 5 and -2
POLICY_W, REFERENCE_W = torch.tensor([-98.0, -101.0]), torch.tensor([-100.0, -100.0])
POLICY_L, REFERENCE_L = torch.tensor([-93.0, -89.0]), torch.tensor([-90.0, -90.0])


def loss(kind="sigmoid", beta=0.1, tokens=10, **kwargs):
    pairs = PairLogProbs(POLICY_W, POLICY_L, REFERENCE_W, REFERENCE_L, num_tokens=tokens)
    return dpo_loss(pairs, beta, kind, **kwargs)


def log_sigmoid(x):
    return -math.log(1 + math.exp(-x))


def test_sigmoid():
    assert loss().losses.tolist() == pytest.approx([-log_sigmoid(0.5), -log_sigmoid(-0.2)])


def test_ipo_averages_per_token():
    assert loss("ipo", beta=0.25).losses.tolist() == pytest.approx(
        [(0.5 - 2) ** 2, (-0.2 - 2) ** 2]
    )
    by_pair = loss("ipo", beta=0.25, tokens=torch.tensor([10.0, 20.0])).losses
    assert by_pair.tolist() == pytest.approx([(0.5 - 2) ** 2, (-0.1 - 2) ** 2])


def test_robust():
    expected = [(-0.8 * log_sigmoid(z) + 0.2 * log_sigmoid(-z)) / 0.6 for z in (0.5, -0.2)]
    assert loss("robust", label_smoothing=0.2).losses.tolist() == pytest.approx(expected)
    assert torch.equal(loss("robust").losses, loss("sigmoid").losses)


def test_robust_is_unbiased_under_turned_labels():
    e = 0.3
    right = loss("robust", label_smoothing=e).losses
    turned = PairLogProbs(POLICY_L, POLICY_W, REFERENCE_L, REFERENCE_W, num_tokens=10)
    wrong = dpo_loss(turned, 0.1, "robust", label_smoothing=e).losses
    assert torch.allclose((1 - e) * right + e * wrong, loss().losses, atol=1e-6)


def test_margin():
    got = loss("margin", score_margin=torch.tensor([0.3, 0.0])).losses
    assert got.tolist() == pytest.approx([-log_sigmoid(0.5 - 0.3), -log_sigmoid(-0.2)])


def test_imitation_of_the_chosen_is_added_per_token():
    nll = torch.tensor([9.8, 10.1])  # 98 and 101 nats over ten tokens
    added = loss(chosen_nll=0.3).losses - loss().losses
    assert added.tolist() == pytest.approx((0.3 * nll).tolist(), rel=1e-5)
    assert loss().metrics["chosen_nll"].tolist() == pytest.approx(nll.tolist())
    by_pair = loss(chosen_nll=1.0, tokens=torch.tensor([10.0, 20.0])).losses - loss().losses
    assert by_pair.tolist() == pytest.approx([9.8, 5.05], rel=1e-5)


def test_metrics():
    metrics = loss().metrics
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
    whole = dpo_loss(PairLogProbs(*batch, num_tokens=5), 0.3, kind, score_margin=margin)
    for cut in (slice(0, 3), slice(3, 7)):
        part = dpo_loss(
            PairLogProbs(*(x[cut] for x in batch), num_tokens=5),
            0.3,
            kind,
            score_margin=None if margin is None else margin[cut],
        )
        assert torch.equal(part.losses, whole.losses[cut])
        for name, values in whole.metrics.items():
            assert torch.equal(part.metrics[name], values[cut])


def test_the_reference_itself_loses_log_two_and_the_gradient_pushes_apart():
    chosen, rejected = POLICY_W.clone().requires_grad_(), POLICY_L.clone().requires_grad_()
    output = dpo_loss(PairLogProbs(chosen, rejected, POLICY_W, POLICY_L, num_tokens=10), 0.1)
    assert output.losses.tolist() == pytest.approx([math.log(2)] * 2)
    output.losses.sum().backward()
    assert (chosen.grad < 0).all() and (rejected.grad > 0).all()
    assert torch.allclose(chosen.grad, torch.full((2,), -0.05))
    assert not any(value.requires_grad for value in output.metrics.values())


def test_large_differences_stay_finite():
    far = torch.tensor([1e4, -1e4])
    pairs = PairLogProbs(far, -far, torch.zeros(2), torch.zeros(2), num_tokens=1)
    assert dpo_loss(pairs, 1.0).losses.tolist() == pytest.approx([0, 2e4])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kind": "hinge"}, "unknown DPO loss"),
        ({"beta": 0.0}, "beta"),
        ({"chosen_nll": -0.1}, "chosen_nll"),
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
        PairLogProbs(*[torch.zeros(2, 10)] * 4, num_tokens=10)
