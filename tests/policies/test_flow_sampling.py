"""ODE and SDE sampling, guidance, endless sequences, and replay of what was sampled."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from rapport.policies.flow.conditions import MODALITIES, Conditions
from rapport.policies.flow.config import FlowSizes, VoiceSizes
from rapport.policies.flow.model import initialised
from rapport.policies.flow.sampling import (
    autoregress,
    draw_noise,
    euler,
    flow_times,
    generate,
    generate_long,
    guidance_scale,
)
from rapport.policies.flow.sde import replay_velocities, rollout, step_kl, step_log_probs

CONFIG = FlowSizes(
    latent_dim=4,
    downsample=8,
    text_dim=5,
    audio_dim=6,
    hidden=32,
    layers=2,
    heads=4,
    mlp=48,
    window=5,
)


@pytest.fixture(scope="module")
def model():
    built = initialised(CONFIG, seed=0).double().eval()
    built.gain.weight.data = normal(4, 256, seed=77) / 16
    return built


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conditions(batch=2, latents=5, seed=0):
    return Conditions(
        normal(batch, 5, seed=seed),
        normal(batch, latents * 8, 6, seed=seed + 1),
        normal(batch, latents, 4, seed=seed + 2),
        normal(batch, latents * 8, 6, seed=seed + 3),
    )


def uncached(model, conditions, noise, steps, omega=1.0):
    """The paper's sampling as it reads: the whole sequence again for every step of every latent."""
    latents = noise[:, :, :0]
    nothing = Conditions(present=torch.zeros(len(noise), 4, dtype=torch.bool))
    for l in range(noise.shape[2]):  # noqa: E741
        state, number = noise[:, :, l : l + 1], torch.tensor([l])
        for i in range(steps):
            time = torch.tensor([i / steps])
            v = model(model.encode_prefix(conditions), latents, state, time, number)[0]
            if omega != 1:
                free = model(model.encode_prefix(nothing), latents, state, time, number)[0]
                v = free + omega * (v - free)
            state = state + v / steps
        latents = torch.cat([latents, state], dim=2)
    return latents


class LinearField(torch.nn.Module):
    """v = a m + b."""

    config = CONFIG

    def encode_prefix(self, conditions, lead=8):
        return None

    def forward(self, prefix, clean, noisy, time, number, past=None, conditioned=None):
        return -2 * noisy + 3, past


@torch.no_grad()
@pytest.mark.parametrize("omega", [1.0, 2.5])
def test_cached_sampling_equals_uncached(model, omega):
    noise = normal(2, 3, 5, 4, seed=9)
    scale = None if omega == 1 else torch.full((2, 5), omega).double()
    got = generate(model, conditions(), noise, steps=3, omega=scale)
    torch.testing.assert_close(
        got, uncached(model, conditions(), noise, 3, omega), atol=1e-10, rtol=1e-10
    )
    single = deepcopy(model).float()
    c = Conditions(*(getattr(conditions(), name).float() for name in MODALITIES))
    got = generate(
        single, c, noise.float(), steps=3, omega=None if scale is None else scale.float()
    )
    torch.testing.assert_close(
        got, uncached(single, c, noise.float(), 3, omega), atol=1e-5, rtol=1e-5
    )


def test_euler_by_hand_on_a_linear_field():
    # m <- m + (3 - 2 m) / 4, four times: 1.5 + (m_0 - 1.5) / 2^4
    got = generate(LinearField(), None, normal(1, 2, 3, 4), steps=4)
    torch.testing.assert_close(got, 1.5 + (normal(1, 2, 3, 4) - 1.5) / 16)
    assert flow_times(4, torch.zeros(1)).tolist() == [0, 0.25, 0.5, 0.75]


def test_each_prompt_has_noise_of_its_own():
    both, first = draw_noise([7, 8], 3, 4), draw_noise([7], 3, 4)
    assert torch.equal(both[:1], first) and not torch.equal(both[0], both[1])


def test_sampling_together_equals_one_by_one(model):
    noise = draw_noise([1, 2], 3, 5, 4).double()
    whole = generate(model, conditions(), noise, steps=3)
    for b in range(2):
        alone = Conditions(*(getattr(conditions(), name)[b : b + 1] for name in MODALITIES))
        for s in range(3):
            one = generate(model, alone, noise[b : b + 1, s : s + 1], steps=3)
            torch.testing.assert_close(one[0, 0], whole[b, s], atol=1e-10, rtol=1e-10)


def test_guidance(model):
    noise = normal(2, 2, 5, 4, seed=9)

    def omega(*values):
        return torch.tensor(values).double().expand(2, 5)

    plain = generate(model, conditions(), noise, 3)
    assert torch.equal(generate(model, conditions(), noise, 3, omega(1, 1, 1, 1, 1)), plain)
    nothing = Conditions(present=torch.zeros(2, 4, dtype=torch.bool))
    free = generate(model, nothing, noise, 3)
    torch.testing.assert_close(generate(model, conditions(), noise, 3, omega(0, 0, 0, 0, 0)), free)
    # other scale from latent 2 on: the latents before it are as without
    mixed = generate(model, conditions(), noise, 3, omega(1, 1, 4, 4, 4))
    torch.testing.assert_close(mixed[:, :, :2], plain[:, :, :2])
    assert (mixed - plain)[:, :, 2:].abs().amax((0, 1, 3)).min() > 1e-4


def test_guidance_scale_is_that_of_most_frames():
    speaking = torch.tensor([[1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    assert guidance_scale(speaking, 2.0, 3.0, downsample=4).tolist() == [[2, 3, 3]]


@pytest.mark.parametrize("lead", [0, 4, 8, 12])
def test_an_hour_live_is_an_hour_at_once(lead):
    """300 latents, step by step with what a span of 3 needs, against one pass over all of them; and
    with the encoder of voices in front.
    """
    config = replace(CONFIG, span=3, voice=VoiceSizes(16, look_back=9))
    endless = initialised(config, seed=0).eval()
    double = conditions(batch=1, latents=300)
    c = Conditions(*(getattr(double, name).float() for name in MODALITIES))
    noise = normal(1, 2, 300, 4, seed=9).float()
    live = generate_long(endless, c, noise, steps=2, lead=lead)
    assert (live - generate(endless, c, noise, steps=2, lead=lead)).abs().max() < 1e-5
    # And all latents side by side, each from those before it, as in training.
    prefix = endless.encode_prefix(c, lead)
    number = torch.arange(300)
    state = noise
    for i in range(2):
        time = torch.full((300,), i / 2)
        velocity, _ = endless(prefix, live[:, :, :-1], state, time, number)
        state = state + velocity / 2
    assert (state - live).abs().max() < 1e-5


def test_what_is_kept_does_not_grow(monkeypatch):
    kept = []
    config = replace(CONFIG, span=3)
    endless = initialised(config, seed=0).eval()
    forward = endless.forward

    def watched(prefix, *args, past=None, **keys):
        latents = 0 if past is None else past.keys[0].shape[-2]
        kept.append((len(prefix.heard), latents))
        return forward(prefix, *args, past=past, **keys)

    monkeypatch.setattr(endless, "forward", watched)
    double = conditions(batch=1, latents=40)
    c = Conditions(*(getattr(double, name).float() for name in MODALITIES))
    generate_long(endless, c, normal(1, 1, 40, 4).float(), steps=1)
    assert max(kept) == kept[-1] == (5 * 17, 3)


def test_an_endless_sequence_may_be_guided(model):
    c, noise = conditions(latents=7), normal(2, 2, 7, 4, seed=9)
    omega = torch.tensor([1.0, 1, 3, 3, 1, 2, 2]).double().expand(2, 7)
    live = generate_long(model, c, noise, steps=2, omega=omega)
    torch.testing.assert_close(live, generate(model, c, noise, 2, omega), atol=1e-9, rtol=1e-9)
    assert (live - generate(model, c, noise, 2)).abs().max() > 1e-4


def test_a_sequence_may_begin_with_latents_that_are_there(model):
    """The last three of five, from the first two."""
    c, noise = conditions(), normal(2, 2, 5, 4, seed=9)
    whole = generate(model, c, noise, 2)
    prefix = model.encode_prefix(c)
    rest = autoregress(model, prefix, noise[:, :, 2:], 2, euler(2), start=whole[:, :, :2])
    torch.testing.assert_close(rest, whole[:, :, 2:], atol=1e-10, rtol=1e-10)


def test_sigma_0_is_the_ode_exactly(model):
    noise = draw_noise([3, 4], 2, 5, 4 + 1, 4).double()
    trajectory = rollout(model, conditions(), noise, sigma=0.0)
    assert torch.equal(trajectory.latents, generate(model, conditions(), noise[..., 0, :], steps=4))
    assert trajectory.log_probs.isnan().all()


def test_states_are_the_path_and_noise_has_the_width_it_should(model):
    noise = draw_noise([3, 4], 2, 5, 3, 4).double()
    trajectory = rollout(model, conditions(), noise, sigma=0.5)
    assert trajectory.states.shape == (2, 2, 5, 3, 4) and trajectory.steps == 2
    assert torch.equal(trajectory.states[..., 0, :], noise[..., 0, :])
    velocities = replay_velocities(model, conditions(), trajectory.states)
    pushed = trajectory.states.diff(dim=3) - velocities / 2
    torch.testing.assert_close(
        pushed, 0.5 * math.sqrt(0.5) * noise[..., 1:, :], atol=1e-10, rtol=1e-10
    )
    assert not trajectory.states.requires_grad


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_log_probs_are_those_of_the_gaussian(reduction):
    states, velocities = normal(2, 3, 5, 4), normal(2, 3, 4, 4, seed=1)
    got = step_log_probs(states, velocities, sigma=0.7, reduction=reduction)
    step = torch.distributions.Normal(states[..., :-1, :] + velocities / 4, 0.7 * math.sqrt(1 / 4))
    expected = step.log_prob(states[..., 1:, :])
    torch.testing.assert_close(got, expected.sum(-1) if reduction == "sum" else expected.mean(-1))
    half = step_log_probs(states.bfloat16(), velocities.bfloat16(), 0.7, reduction)
    assert half.dtype == torch.float32


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_kl_is_that_of_the_gaussians(reduction):
    v, w, sigma = normal(2, 4, 3), normal(2, 4, 3, seed=1), 0.7
    width = sigma * math.sqrt(1 / 4)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(v / 4, width), torch.distributions.Normal(w / 4, width)
    )
    expected = expected.sum(-1) if reduction == "sum" else expected.mean(-1)
    torch.testing.assert_close(step_kl(v, w, sigma, reduction), expected)
    assert (step_kl(v, v, sigma, reduction) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lead", [0, None])
def test_on_policy_ratio_is_exactly_1(dtype, lead):
    """Old log-probs by the same replay: equal to the last bit. Those of the rollout: up to the
    order of sums.
    """
    model = initialised(CONFIG, seed=0).to(dtype)
    c = Conditions(*(getattr(conditions(), name).to(dtype) for name in MODALITIES))
    trajectory = rollout(model, c, draw_noise([3, 4], 3, 5, 5, 4).to(dtype), sigma=0.5, lead=lead)
    with torch.no_grad():
        old = step_log_probs(
            trajectory.states, replay_velocities(model, c, trajectory.states, lead), 0.5, "sum"
        )
    new = step_log_probs(
        trajectory.states, replay_velocities(model, c, trajectory.states, lead), 0.5, "sum"
    )
    assert new.requires_grad and ((new - old).exp() == 1).all()
    assert (new - trajectory.log_probs).abs().max() < (1e-4 if dtype == torch.float32 else 1e-10)
    assert trajectory.log_probs.shape == (2, 3, 5, 4)


@pytest.mark.parametrize("chunk", [1, 4, 7])
def test_chunked_gradients_equal_full_ones(model, chunk):
    states = rollout(model, conditions(), draw_noise([3, 4], 2, 5, 5, 4).double(), sigma=0.5).states

    def gradients(chunk):
        velocities = replay_velocities(model, conditions(), states, chunk=chunk)
        model.zero_grad()
        step_log_probs(states, velocities, 0.5, "sum").square().mean().backward()
        return velocities.detach(), [p.grad.clone() for p in model.parameters()]

    (v, full), (w, chunked) = gradients(None), gradients(chunk)
    torch.testing.assert_close(v, w, atol=1e-10, rtol=1e-10)
    for a, b in zip(full, chunked, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)


def test_more_noise_spreads_the_samples(model):
    noise = draw_noise([3], 64, 5, 5, 4).double()
    c = conditions(batch=1)
    noise[..., 0, :] = noise[:, :1, :, 0]  # the same start: what differs is the noise on the way
    spread = [
        rollout(model, c, noise, sigma).latents.std(1).mean().item() for sigma in (0.0, 0.5, 1.0)
    ]
    assert spread[0] < 1e-9 < spread[1] < spread[2]


class GaussianField(LinearField):
    """The exact velocity of rectified flow from N(0, I) to N(0, 0.3^2 I)."""

    def forward(self, prefix, clean, noisy, time, number, past=None, conditioned=None):
        variance = (0.3 * time) ** 2 + (1 - time) ** 2
        return noisy * (0.3**2 * time - (1 - time)) / variance, past


@pytest.mark.parametrize(("corrected", "low", "high"), [(True, 0.28, 0.34), (False, 0.40, 0.70)])
def test_the_drift_correction_keeps_the_spread_of_the_data(corrected, low, high):
    noise = normal(1, 4000, 1, 41, 4, seed=5)
    sampled = rollout(GaussianField(), None, noise, sigma=0.8, corrected=corrected)
    assert low < sampled.latents.std().item() < high


def test_corrected_steps_have_their_own_log_probs_and_kl(model):
    noise = normal(2, 3, 5, 4, 4, seed=8)
    path = rollout(model, conditions(), noise, sigma=0.6, corrected=True)
    velocities = replay_velocities(model, conditions(), path.states)
    log_probs = step_log_probs(path.states, velocities, 0.6, "sum", corrected=True)
    torch.testing.assert_close(log_probs, path.log_probs, atol=1e-9, rtol=1e-9)
    # what was added to the mean is the noise itself
    z = noise[..., 1:, :]
    deviation = 0.6 * math.sqrt(1 / 3)
    wanted = (-0.5 * z.square() - math.log(deviation) - 0.5 * math.log(2 * math.pi)).sum(-1)
    torch.testing.assert_close(log_probs, wanted, atol=1e-5, rtol=1e-5)  # flow times are float32
    plain, corrected = (step_kl(velocities, velocities + 1, 0.6, "sum", c) for c in (False, True))
    factor = torch.tensor(
        [(1 + 0.18 * t / (1 - t)) ** 2 for t in (0, 1 / 3, 2 / 3)], dtype=torch.float64
    )
    torch.testing.assert_close(corrected, plain * factor, atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(ValueError, match=r"steps \+ 1, latent_dim\), got \(2, 2, 5, 4\)"):
        rollout(model, conditions(), normal(2, 2, 5, 4), sigma=0.5)
    with pytest.raises(ValueError, match="negative"):
        rollout(model, conditions(), normal(2, 2, 5, 3, 4), sigma=-1)
    with pytest.raises(ValueError, match="not those of velocities"):
        step_log_probs(normal(2, 3, 4), normal(2, 3, 4), 0.5, "sum")
    with pytest.raises(ValueError, match="unknown reduction"):
        step_log_probs(normal(2, 4, 4), normal(2, 3, 4), 0.5, "max")


def saved_bytes(work):
    """Bytes that autograd keeps for the backward pass, each storage counted once."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    del result
    return sum(kept.values())


def test_what_a_chunked_replay_keeps_does_not_grow_with_the_steps(model):
    def kept(steps, chunk):
        states = normal(1, 2, 5, steps + 1, 4)
        return saved_bytes(lambda: replay_velocities(model, conditions(1), states, chunk=chunk))

    few, many = kept(2, 10), kept(16, 10)
    assert many - few < 0.05 * few
    assert kept(16, None) > 3 * many
