"""ODE and SDE sampling, guidance, endless sequences, and replay of what was sampled."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from rapport.policies.flow.conditions import MODALITIES, Conditions
from rapport.policies.flow.config import FlowSizes, VoiceSizes
from rapport.policies.flow.model import initialised
from rapport.policies.flow.rollouts import (
    NoisyWindow,
    PaperSde,
    log_probs,
    replay_latents,
    replay_means,
    rollout,
    step_kl,
)
from rapport.policies.flow.sampling import (
    autoregress,
    draw_noise,
    generate,
    generate_long,
    guidance_scale,
    latent_noise,
    ode,
    window_noise,
)
from rapport.policies.flow.settings import denoise_steps

EULER = ode("euler", 3)
WINDOW = NoisyWindow("midpoint", 6, 0.5)
SDE = PaperSde(4, 0.5)

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
    path=3,
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
            time = torch.tensor([i / steps], dtype=noise.dtype)
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

    def heeded(self, prefix, number, conditioned=None):
        return torch.zeros(1, 1, len(number), 0)

    def forward(self, prefix, clean, noisy, time, number, past=None, sight=None):
        return -2 * noisy + 3, past


@torch.no_grad()
@pytest.mark.parametrize("omega", [1.0, 2.5])
def test_cached_sampling_equals_uncached(model, omega):
    noise = normal(2, 3, 5, 4, seed=9)
    scale = None if omega == 1 else torch.full((2, 5), omega).double()
    got = generate(model, conditions(), noise, EULER, omega=scale)
    torch.testing.assert_close(
        got, uncached(model, conditions(), noise, 3, omega), atol=1e-10, rtol=1e-10
    )
    single = deepcopy(model).float()
    c = Conditions(*(getattr(conditions(), name).float() for name in MODALITIES))
    got = generate(single, c, noise.float(), EULER, omega=None if scale is None else scale.float())
    torch.testing.assert_close(
        got, uncached(single, c, noise.float(), 3, omega), atol=1e-5, rtol=1e-5
    )


def test_euler_by_hand_on_a_linear_field():
    # m <- m + (3 - 2 m) / 4, four times: 1.5 + (m_0 - 1.5) / 2^4
    got = generate(LinearField(), None, normal(1, 2, 3, 4), ode("euler", 4))
    torch.testing.assert_close(got, 1.5 + (normal(1, 2, 3, 4) - 1.5) / 16)


def test_midpoint_by_hand_on_a_linear_field():
    # half a step of 1/2: m + (3 - 2 m) / 4; then m <- m + (3 - 2 half) / 2 = 1.5 + (m - 1.5) / 2
    got = generate(LinearField(), None, normal(1, 2, 3, 4), ode("midpoint", 4))
    torch.testing.assert_close(got, 1.5 + (normal(1, 2, 3, 4) - 1.5) / 4)


@pytest.mark.parametrize(
    ("solver", "evaluations"), [("midpoint", 5), ("midpoint", 0), ("euler", 0)]
)
def test_evaluations_make_whole_steps(solver, evaluations):
    with pytest.raises(ValueError, match="no whole denoise steps"):
        denoise_steps(solver, evaluations)


def test_each_prompt_has_noise_of_its_own():
    both, first = draw_noise([7, 8], 3, 4), draw_noise([7], 3, 4)
    assert torch.equal(both[:1], first) and not torch.equal(both[0], both[1])


def test_noise_of_a_latent_is_its_own_whatever_was_drawn_before():
    window = window_noise([7, 8], 2, 5, 4)
    assert window.shape == (2, 2, 5, 4) and window.dtype == torch.float32
    assert torch.equal(window_noise([8], 3, 9, 4)[0, :2, :5], window[1])
    assert torch.equal(latent_noise(7, 1, 3, 4), window[0, 1, 3])
    assert len(window.flatten().unique()) == 80
    many = window_noise([1], 50, 50, 64)
    assert many.mean().item() == pytest.approx(0, abs=0.01)
    assert many.std().item() == pytest.approx(1, abs=0.01)


def test_sampling_together_equals_one_by_one(model):
    noise = draw_noise([1, 2], 3, 5, 4).double()
    whole = generate(model, conditions(), noise, EULER)
    for b in range(2):
        alone = Conditions(*(getattr(conditions(), name)[b : b + 1] for name in MODALITIES))
        for s in range(3):
            one = generate(model, alone, noise[b : b + 1, s : s + 1], EULER)
            torch.testing.assert_close(one[0, 0], whole[b, s], atol=1e-10, rtol=1e-10)


def test_guidance(model):
    noise = normal(2, 2, 5, 4, seed=9)

    def omega(*values):
        return torch.tensor(values).double().expand(2, 5)

    plain = generate(model, conditions(), noise, EULER)
    assert torch.equal(generate(model, conditions(), noise, EULER, omega(1, 1, 1, 1, 1)), plain)
    nothing = Conditions(present=torch.zeros(2, 4, dtype=torch.bool))
    free = generate(model, nothing, noise, EULER)
    torch.testing.assert_close(
        generate(model, conditions(), noise, EULER, omega(0, 0, 0, 0, 0)), free
    )
    # other scale from latent 2 on: the latents before it are as without
    mixed = generate(model, conditions(), noise, EULER, omega(1, 1, 4, 4, 4))
    torch.testing.assert_close(mixed[:, :, :2], plain[:, :, :2])
    assert (mixed - plain)[:, :, 2:].abs().amax((0, 1, 3)).min() > 1e-4


def test_guidance_scale_is_that_of_most_frames():
    speaking = torch.tensor([[1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    assert guidance_scale(speaking, 2.0, 3.0, downsample=4).tolist() == [[2, 3, 3]]


@pytest.mark.parametrize(
    "lead", [4, *(pytest.param(lead, marks=pytest.mark.long) for lead in (0, 8, 12))]
)
def test_an_hour_live_is_an_hour_at_once(lead):
    """300 latents, step by step with what a span of 3 needs, against one pass over all of them; and
    with the encoder of voices in front.
    """
    config = replace(CONFIG, span=3, voice=VoiceSizes(16, look_back=9))
    endless = initialised(config, seed=0).eval()
    double = conditions(batch=1, latents=300)
    c = Conditions(*(getattr(double, name).float() for name in MODALITIES))
    noise = normal(1, 2, 300, 4, seed=9).float()
    two = ode("euler", 2)
    live = generate_long(endless, c, noise, two, lead=lead)
    assert (live - generate(endless, c, noise, two, lead=lead)).abs().max() < 1e-5
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

    def watched(prefix, *args, past, **keys):
        kept.append((len(prefix.heard), past.latents))
        return forward(prefix, *args, past=past, **keys)

    monkeypatch.setattr(endless, "forward", watched)
    double = conditions(batch=1, latents=40)
    c = Conditions(*(getattr(double, name).float() for name in MODALITIES))
    generate_long(endless, c, normal(1, 1, 40, 4).float(), ode("euler", 1))
    assert max(kept) == kept[-1] == (5 * 17, 3)


def test_an_endless_sequence_may_be_guided(model):
    c, noise = conditions(latents=7), normal(2, 2, 7, 4, seed=9)
    omega = torch.tensor([1.0, 1, 3, 3, 1, 2, 2]).double().expand(2, 7)
    two = ode("euler", 2)
    live = generate_long(model, c, noise, two, omega=omega)
    torch.testing.assert_close(live, generate(model, c, noise, two, omega), atol=1e-9, rtol=1e-9)
    assert (live - generate(model, c, noise, two)).abs().max() > 1e-4


def test_a_sequence_may_begin_with_latents_that_are_there(model):
    """The last three of five, from the first two."""
    c, noise = conditions(), normal(2, 2, 5, 4, seed=9)
    two = ode("euler", 2)
    whole = generate(model, c, noise, two)
    prefix = model.encode_prefix(c)
    rest = autoregress(model, prefix, noise[:, :, 2:], two, start=whole[:, :, :2])
    torch.testing.assert_close(rest, whole[:, :, 2:], atol=1e-10, rtol=1e-10)


class GaussianField(LinearField):
    """The exact velocity of rectified flow from N(0, I) to N(0, spread^2 I)."""

    def __init__(self, spread):
        super().__init__()
        self.spread = spread

    def forward(self, prefix, clean, noisy, time, number, past=None, sight=None):
        time = time.unsqueeze(-1) if time.ndim else time
        variance = (self.spread * time) ** 2 + (1 - time) ** 2
        return noisy * (self.spread**2 * time - (1 - time)) / variance, past


SPREADS = (0.15, 0.3, 0.55, 0.8)


def kept(sampled, spread):
    return (sampled.var() / spread**2).item()


@pytest.mark.parametrize("spread", SPREADS)
def test_ten_evaluations_of_the_midpoint_rule_keep_the_variance_and_eulers_do_not(spread):
    noise = normal(1, 20_000, 1, 4, seed=5)
    field = GaussianField(spread)
    assert kept(generate(field, None, noise, ode("midpoint", 10)), spread) == pytest.approx(
        1, abs=0.07
    )
    euler = kept(generate(field, None, noise, ode("euler", 10)), spread)
    assert euler < 0.8
    if spread > 0.15:
        assert euler < kept(generate(field, None, noise, ode("midpoint", 4)), spread) < 1.1


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("sigma", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_rollouts_with_a_noisy_step_are_as_spread_as_the_answers(spread, sigma, first):
    """GDPO judges answers by the ODE; what it learns from must be like them."""
    noise = normal(1, 20_000, 1, 2, 4, seed=5)
    window = NoisyWindow("midpoint", 10, sigma)
    field = GaussianField(spread)
    path = rollout(field, None, noise, window, torch.tensor([first]))
    answers = generate(field, None, noise[..., 0, :], ode("midpoint", 10))
    assert (path.latents.var() / answers.var()).item() == pytest.approx(1, abs=0.05)


def test_rollouts_of_the_papers_sde_are_more_spread():
    noise = normal(1, 20_000, 1, 5, 4, seed=5)
    path = rollout(GaussianField(0.3), None, noise, SDE, torch.tensor([0]))
    assert kept(path.latents, 0.3) > 1.1


def test_a_noisy_step_draws_the_share_of_the_noise_that_sigma_says():
    """At flow time t a state is t data + (1 - t) noise; of the noise sigma^2 is new."""
    window = NoisyWindow("midpoint", 10, 0.6)
    field = GaussianField(0.5)
    begun = normal(1, 1, 1, 4).expand(1, 50_000, 1, 4)
    noise = torch.stack([begun, normal(1, 50_000, 1, 4, seed=6)], 3)
    path = rollout(field, None, noise, window, torch.tensor([1]))
    after = path.states[0, :, 0, 1]
    assert after.std(0).tolist() == pytest.approx([0.6 * 0.6] * 4, rel=0.02)  # 1 - t = .6


def first_of(exploration, *seeds):
    return exploration.first(seeds)


def test_each_prompt_has_a_window_of_its_own_and_the_last_step_has_no_noise(model):
    window = NoisyWindow("midpoint", 10, 0.5, noisy=2)
    places = first_of(window, *range(200)).tolist()
    assert set(places) == {0, 1, 2}
    assert torch.equal(window.first([7, 9]), torch.cat([window.first([7]), window.first([9])]))
    noise = draw_noise([3, 4], 2, 5, 3, 4).double()
    both = rollout(model, conditions(), noise, window, torch.tensor([0, 2]))
    for b, first in enumerate((0, 2)):
        alone = Conditions(*(getattr(conditions(), name)[b : b + 1] for name in MODALITIES))
        one = rollout(model, alone, noise[b : b + 1], window, torch.tensor([first]))
        torch.testing.assert_close(both.states[b], one.states[0])


def test_what_is_drawn_is_the_noise(model):
    for exploration, noisy in ((WINDOW, 1), (SDE, 4)):
        first = first_of(exploration, 3, 4)
        noise = draw_noise([3, 4], 2, 5, noisy + 1, 4).double()
        path = rollout(model, conditions(), noise, exploration, first)
        assert path.states.shape == (2, 2, 5, noisy + 2, 4) and not path.states.requires_grad
        means = replay_means(model, conditions(), path.states, exploration, first)
        step = first[:, None] + torch.arange(noisy)
        width = exploration.deviation(step.double())[:, None, None, :, None]
        torch.testing.assert_close(
            path.states[:, :, :, 1:-1] - means, width * noise[..., 1:, :], atol=1e-6, rtol=1e-6
        )


def test_the_papers_first_state_is_noise_and_its_last_is_the_latent(model):
    noise = draw_noise([3, 4], 2, 5, 5, 4).double()
    path = rollout(model, conditions(), noise, SDE, first_of(SDE, 3, 4))
    assert torch.equal(path.states[..., 0, :], noise[..., 0, :])
    assert torch.equal(path.states[..., -1, :], path.states[..., -2, :])


def test_log_probs_are_those_of_the_gaussian():
    states, means = normal(2, 3, 5, 6, 4), normal(2, 3, 5, 4, 4, seed=1)
    first = torch.tensor([0, 0])
    got = log_probs(states, means, PaperSde(4, 0.7), first)
    step = torch.distributions.Normal(means, 0.7 * math.sqrt(1 / 4))
    torch.testing.assert_close(got, step.log_prob(states[:, :, :, 1:-1]).sum(-1))
    half = log_probs(states.bfloat16(), means.bfloat16(), PaperSde(4, 0.7), first)
    assert half.dtype == torch.float32
    window = NoisyWindow("midpoint", 10, 0.5)
    got = log_probs(states[:, :, :, :3], means[:, :, :, :1], window, torch.tensor([0, 3]))
    width = torch.tensor([0.5 * 0.8, 0.5 * 0.2]).double()[:, None, None, None, None]
    step = torch.distributions.Normal(means[:, :, :, :1], width)
    torch.testing.assert_close(
        got, step.log_prob(states[:, :, :, 1:2]).sum(-1), atol=1e-5, rtol=1e-5
    )


def test_kl_is_that_of_the_gaussians():
    m, r = normal(2, 3, 5, 1, 4), normal(2, 3, 5, 1, 4, seed=1)
    width = torch.tensor([0.5 * 0.8, 0.5 * 0.4]).double()[:, None, None, None, None]
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(m, width), torch.distributions.Normal(r, width)
    )
    window, first = NoisyWindow("midpoint", 10, 0.5), torch.tensor([0, 2])
    torch.testing.assert_close(step_kl(m, r, window, first), expected.sum(-1), atol=1e-5, rtol=1e-5)
    assert (step_kl(m, m, window, first) == 0).all()


@pytest.mark.parametrize("exploration", [WINDOW, SDE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_policy_ratio_is_exactly_1(dtype, exploration):
    """Old log-probs by the same replay: equal to the last bit. Those of the rollout: up to the
    order of sums.
    """
    model = initialised(CONFIG, seed=0).to(dtype)
    c = Conditions(*(getattr(conditions(), name).to(dtype) for name in MODALITIES))
    first = first_of(exploration, 3, 4)
    noise = draw_noise([3, 4], 3, 5, exploration.noisy + 1, 4).to(dtype)
    path = rollout(model, c, noise, exploration, first)

    def again():
        means = replay_means(model, c, path.states, exploration, first)
        return log_probs(path.states, means, exploration, first)

    with torch.no_grad():
        old = again()
    new = again()
    assert new.requires_grad and ((new - old).exp() == 1).all()
    assert (new - path.log_probs).abs().max() < (1e-3 if dtype == torch.float32 else 1e-6)
    assert path.log_probs.shape == (2, 3, 5, exploration.noisy)


@pytest.mark.parametrize("exploration", [WINDOW, SDE])
def test_rollouts_in_bfloat16(exploration):
    model = initialised(CONFIG, seed=0).bfloat16()
    c = Conditions(*(getattr(conditions(), name).bfloat16() for name in MODALITIES))
    first = first_of(exploration, 3, 4)
    noise = draw_noise([3, 4], 2, 5, exploration.noisy + 1, 4).bfloat16()
    path = rollout(model, c, noise, exploration, first)
    means = replay_means(model, c, path.states, exploration, first)
    again = log_probs(path.states, means, exploration, first)
    assert path.states.dtype == torch.bfloat16 and again.dtype == torch.float32
    assert (again - path.log_probs).abs().max() < 0.5


@pytest.mark.parametrize("chunk", [1, 4, 7])
def test_chunked_gradients_equal_full_ones(model, chunk):
    first = first_of(SDE, 3, 4)
    states = rollout(
        model, conditions(), draw_noise([3, 4], 2, 5, 5, 4).double(), SDE, first
    ).states

    def gradients(chunk):
        means = replay_means(model, conditions(), states, SDE, first, chunk=chunk)
        model.zero_grad()
        log_probs(states, means, SDE, first).square().mean().backward()
        return means.detach(), [p.grad.clone() for p in model.parameters()]

    (v, full), (w, chunked) = gradients(None), gradients(chunk)
    torch.testing.assert_close(v, w, atol=1e-10, rtol=1e-10)
    for a, b in zip(full, chunked, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)


def test_a_replay_along_the_ode_gives_the_sampled_latents_and_a_gradient(model):
    noise = draw_noise([3, 4], 2, 5, 4).double()
    denoise = ode("midpoint", 4)
    sampled = generate(model, conditions(), noise, denoise)
    again = replay_latents(model, conditions(), sampled, noise, denoise)
    torch.testing.assert_close(again, sampled, atol=1e-10, rtol=1e-10)
    assert again.requires_grad


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(ValueError, match=r"5, latent_dim\), of the start and the drawn steps"):
        rollout(model, conditions(), normal(2, 2, 5, 4), SDE, torch.tensor([0, 0]))
    for sigma in (0, -1, 1.5):
        with pytest.raises(ValueError, match="sigma is"):
            NoisyWindow("midpoint", 10, sigma)
    with pytest.raises(ValueError, match="the last one has none"):
        NoisyWindow("midpoint", 4, 0.5, noisy=2)
    with pytest.raises(ValueError, match="or no step has a density"):
        PaperSde(4, 0)
    with pytest.raises(ValueError, match="not those of means"):
        log_probs(normal(2, 3, 5, 3, 4), normal(2, 3, 5, 2, 4), SDE, torch.tensor([0, 0]))


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
        states = normal(1, 2, 5, steps + 2, 4)
        sde = PaperSde(steps, 0.5)
        first = torch.tensor([0])
        return saved_bytes(
            lambda: replay_means(model, conditions(1), states, sde, first, chunk=chunk)
        )

    few, many = kept(2, 10), kept(16, 10)
    assert many - few < 0.05 * few
    assert kept(16, None) > 3 * many
