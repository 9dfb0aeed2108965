"""What AR-Flow makes of a speaker: its errors by hand, and nothing where it looks at nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rapport.policies.flow.conditions import MODALITIES, Conditions
from rapport.policies.flow.config import FlowSizes, VaeSizes
from rapport.policies.flow.loss import flow_errors, paths
from rapport.policies.flow.model import initialised
from rapport.policies.flow.perception import ASKED, DRAWS, SEED, perception
from rapport.policies.flow.training import FlowModule
from rapport.policies.flow.vae import MotionVAE
from tests.small_flow import LAYOUT

SIZES = FlowSizes(
    latent_dim=4, text_dim=5, audio_dim=6, hidden=32, layers=2, mlp=48, window=3, path=2
)
OTHERS = np.array([[1, 2], [2, 0], [0, 1]])


@pytest.fixture(scope="module")
def flow():
    return initialised(SIZES, seed=0).double().eval()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def windows(absent=()):
    present = torch.tensor([[name not in absent for name in MODALITIES]] * 3)
    return {
        "text": normal(3, 5),
        "partner_audio": normal(3, 24, 6, seed=1),
        "partner_motion": normal(3, 3, 4, seed=2),
        "actor_audio": normal(3, 24, 6, seed=3),
        "present": present,
    }


def error_by_hand(flow, latents, speakers, shown, lead):
    """Only what is shown is given at all; noise and times as they are drawn."""
    given = windows()
    conditions = Conditions(
        **{name: given[name][speakers] for name in shown},
        present=torch.tensor([[name in shown for name in MODALITIES]] * 3),
    )
    noise = torch.randn(3, 1, 3, 4, 4, generator=torch.Generator().manual_seed(SEED)).double()
    time = torch.tensor([0.125, 0.375, 0.625, 0.875]).double().expand(3, 1, 3, DRAWS)
    forgotten = torch.zeros(3, dtype=torch.bool)
    prefix = flow.encode_prefix(conditions, lead)
    errors = flow_errors(flow, prefix, latents[:, None], noise, time, remembers=forgotten)
    return errors.mean((1, 2, 3))


@torch.no_grad()
def test_it_is_the_error_without_the_own_past_by_hand(flow):
    latents = normal(3, 3, 4, seed=4)
    costs = perception(flow, windows(), latents, OTHERS, lead=8)
    assert list(costs) == list(ASKED)
    nothing = error_by_hand(flow, latents, [0, 1, 2], (), 8)
    for name, shown in ASKED.items():
        own = error_by_hand(flow, latents, [0, 1, 2], shown, 8)
        foreign = [error_by_hand(flow, latents, list(row), shown, 8) for row in OTHERS.T]
        np.testing.assert_allclose(costs[name].own, own, rtol=1e-6)
        np.testing.assert_allclose(costs[name].swapped, sum(foreign) / 2 - own, rtol=1e-6)
        np.testing.assert_allclose(costs[name].gain, nothing - own, rtol=1e-6)
    assert abs(costs["all"].swapped).min() > 1e-6
    whole = perception(flow, windows(), latents, OTHERS, lead=None)
    assert not np.allclose(whole["all"].own, costs["all"].own)


def test_a_flow_that_looks_at_nothing_loses_nothing_by_a_swap():
    deaf = initialised(SIZES, seed=0).double().eval()
    with torch.no_grad():
        for block in deaf.blocks:
            block.out.weight.zero_()
    for cost in perception(deaf, windows(), normal(3, 3, 4), OTHERS, lead=8).values():
        np.testing.assert_allclose(cost.swapped, 0, atol=1e-12)
        np.testing.assert_allclose(cost.gain, 0, atol=1e-12)


def test_streams_that_nobody_has_are_not_asked_about(flow):
    silent = windows(absent=("text", "partner_audio", "actor_audio"))
    costs = perception(flow, silent, normal(3, 3, 4), OTHERS, lead=8)
    assert list(costs) == ["motion"]


def test_paths_are_the_slow_part_of_what_latents_decode_to():
    torch.manual_seed(0)
    vae = MotionVAE(VaeSizes(LAYOUT, latent_dim=4, hidden=32)).eval()
    vae.channel_mean.fill_(2.0)
    vae.channel_std.fill_(4.0)
    latents = torch.randn(2, 5, 4)
    frames = ((vae.decode(latents) - 2) / 4).detach()
    expected = [frames[:, max(0, n - 1) * 8 : (n + 2) * 8].mean(1) for n in range(5)]
    torch.testing.assert_close(paths(vae, latents), torch.stack(expected, 1))


def test_what_is_expected_owes_nothing_to_noise_and_own_past(flow):
    """It is a function of what is heard; and the velocity is told."""
    given = windows()
    heard = Conditions(**{name: given[name] for name in MODALITIES})
    prefix = flow.encode_prefix(heard, 0)
    numbers = torch.arange(3)
    expected = flow.expect(prefix, numbers)
    assert expected.shape == (3, 1, 3, 2)
    later = replace(heard, partner_motion=heard.partner_motion.index_fill(1, torch.tensor(1), 7.0))
    change = (flow.expect(flow.encode_prefix(later, 0), numbers) - expected).abs()
    assert change[:, :, :2].max() == 0 and change[:, :, 2].min() > 1e-9
    latents = normal(3, 1, 3, 4)
    time = torch.tensor(0.5).double()
    before, _ = flow(prefix, latents[:, :, :-1], latents, time, numbers)
    told = initialised(SIZES, seed=0).double().eval()
    with torch.no_grad():
        told.path.bias += 1
    after, _ = told(told.encode_prefix(heard, 0), latents[:, :, :-1], latents, time, numbers)
    assert (after - before).abs().min() > 1e-9


def test_imitation_is_both_losses_and_the_second_teaches_what_to_expect():
    learner = FlowModule(initialised(SIZES, seed=0).double().train())
    given = windows()
    latents = normal(3, 1, 3, 4, seed=5)
    noise, time = normal(3, 1, 3, 2, 4, seed=6), torch.rand(3, 1, 3, 2).double()
    lead, path = torch.full((3,), 8), normal(3, 3, 2, seed=7)
    rest = (given, lead, latents, noise, time, torch.ones(3, dtype=torch.bool))
    velocity, missed = learner("imitation", *rest, path)
    torch.testing.assert_close(velocity, learner("errors", *rest).mean())
    flow = learner.flow
    expected = flow.expect(flow.encode_prefix(Conditions(**given), lead), torch.arange(3))
    torch.testing.assert_close(missed, (expected[:, 0] - path).square().mean())
    optimiser = torch.optim.Adam(learner.parameters(), 1e-2)
    for _ in range(30):
        optimiser.zero_grad()
        learner("imitation", *rest, path)[1].backward()
        optimiser.step()
    assert learner("imitation", *rest, path)[1] < 0.1 * missed
    assert learner("imitation", *rest, None)[1] == 0
