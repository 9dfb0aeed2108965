"""AR-Flow: positions by hand, what a token may see, and that caching, absence and order change
nothing.
"""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from rapport.policies.flow.conditions import (
    LEADS,
    MODALITIES,
    WHOLE,
    Conditions,
    draw_leads,
    dropout_mask,
    lead_frames,
)
from rapport.policies.flow.config import (
    PAPER_GROUPS,
    FlowSizes,
    VoiceSizes,
    flow_config,
    vae_config,
)
from rapport.policies.flow.loss import flow_errors
from rapport.policies.flow.model import ARFlow, History, Sight, initialised, time_features
from rapport.policies.flow.sampling import generate, ode
from rapport.policies.flow.tmrope import audio_times, motion_times, rotate, rotations
from rapport.policies.motion import Layout

CONFIG = FlowSizes(
    latent_dim=4,
    downsample=8,
    text_dim=5,
    audio_dim=6,
    hidden=32,
    layers=2,
    heads=4,
    mlp=48,
    window=6,
    path=3,
)


@pytest.fixture(scope="module")
def model():
    built = initialised(CONFIG, seed=0).double().eval()
    built.gain.weight.data = normal(4, 256, seed=77) / 16
    return built


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conditions(batch=2, latents=6, seed=0):
    return Conditions(
        normal(batch, 5, seed=seed),
        normal(batch, latents * 8, 6, seed=seed + 1),
        normal(batch, latents, 4, seed=seed + 2),
        normal(batch, latents * 8, 6, seed=seed + 3),
    )


def velocities(model, prefix, clean, noisy, time):
    """All latents side by side."""
    return model(prefix, clean, noisy, time, torch.arange(noisy.shape[2]))[0]


def test_tmrope_by_hand():
    assert audio_times(4).tolist() == [0, 1, 2, 3]
    assert audio_times(12, stride=4).tolist() == [3, 7, 11]
    assert motion_times(torch.arange(3), 8).tolist() == [4, 12, 20]
    assert motion_times(torch.arange(3), 5).tolist() == [2, 7, 12]
    cos, sin = rotations(torch.tensor([0, 3]), head_dim=4)
    assert cos[1].tolist() == pytest.approx([math.cos(3), math.cos(3 / 100)])
    turned = rotate(torch.tensor([1.0, 1.0, 0.0, 0.0]), (cos[1], sin[1]))
    assert turned.tolist() == pytest.approx(
        [math.cos(3), math.cos(0.03), math.sin(3), math.sin(0.03)]
    )


@pytest.mark.parametrize("r", [1, 4, 5, 8])
def test_a_latent_stands_at_the_centre_of_its_audio_window(r):
    for j in range(5):
        window = audio_times((j + 1) * r)[j * r :]
        assert motion_times(torch.tensor(j), r) == window[r // 2]
        if r % 2:
            assert motion_times(torch.tensor(j), r) == window.double().mean()


def test_only_the_difference_of_times_counts():
    q, k = normal(8), normal(8, seed=1)

    def product(t, s):
        return (
            rotate(q, rotations(torch.tensor(t), 8)) * rotate(k, rotations(torch.tensor(s), 8))
        ).sum()

    torch.testing.assert_close(product(3, 17), product(1003, 1017))
    assert (product(3, 17) - product(3, 18)).abs() > 1e-3


def test_channels_of_features_are_standardised():
    """Raw features with statistics give what standardised ones give without."""
    plain, fitted = (initialised(CONFIG, seed=0).double().eval() for _ in range(2))
    deviation = torch.arange(1, 7).double()
    offset = 5 * normal(6)
    given = conditions()
    audio = {
        name: getattr(given, name) * deviation + offset for name in ("partner_audio", "actor_audio")
    }
    text = torch.stack([torch.full((5,), 1.0), torch.full((5,), 3.0)]).double()
    text[:, 4] = 7.0  # says nothing
    fitted.fit_features(
        text.split(1),
        [audio["partner_audio"][:1], audio["partner_audio"][1:], audio["actor_audio"]],
    )
    assert fitted.text_mean.tolist() == [2, 2, 2, 2, 7] and fitted.text_std.tolist() == [1] * 5
    both = torch.cat(list(audio.values())).flatten(0, 1)
    torch.testing.assert_close(fitted.audio_mean, both.mean(0))
    torch.testing.assert_close(fitted.audio_std, both.std(0, correction=0))
    same = {name: (x - both.mean(0)) / both.std(0, correction=0) for name, x in audio.items()}
    inputs = normal(2, 1, 6, 4), normal(2, 1, 6, 4, seed=9), torch.tensor(0.3)
    expected = velocities(
        plain, plain.encode_prefix(replace(given, text=text - fitted.text_mean, **same)), *inputs
    )
    found = velocities(fitted, fitted.encode_prefix(replace(given, text=text, **audio)), *inputs)
    torch.testing.assert_close(found, expected)
    before = fitted.audio_mean.clone()
    fitted.fit_features([], [])
    assert fitted.audio_mean.equal(before)


def test_a_state_passes_by_the_transformer_times_a_gain_of_flow_time(model):
    plain = initialised(CONFIG, seed=0).double().eval()
    prefix, clean, noisy, time = (
        model.encode_prefix(conditions()),
        normal(2, 1, 6, 4),
        normal(2, 1, 6, 4, seed=9),
        0.3,
    )
    by_hand = velocities(plain, prefix, clean, noisy, torch.tensor(time))
    angles = torch.tensor(
        [1000 * time * 10_000 ** (-i / 128) for i in range(128)], dtype=torch.float64
    )
    gain = model.gain.weight @ torch.cat([angles.cos(), angles.sin()])
    found = velocities(model, prefix, clean, noisy, torch.tensor(time, dtype=torch.float64))
    assert gain.abs().min() > 1e-3
    torch.testing.assert_close(found, by_hand + gain * noisy, atol=1e-6, rtol=1e-6)


def test_paper_size_has_19_3_million_parameters():
    vae = vae_config("paper", Layout(PAPER_GROUPS, 25, "flame2020"))
    with torch.device("meta"):
        paper = ARFlow(flow_config("paper", vae, text_dim=4096, audio_dim=1024))
        hearing = ARFlow(flow_config("paper", vae, 4096, audio_dim=64, learns_to_hear=True))
    assert (paper.config.layers, paper.config.heads, paper.config.hidden) == (6, 16, 512)
    assert sum(p.numel() for p in paper.parameters()) == pytest.approx(19.3e6, rel=0.01)
    voice = sum(p.numel() for p in hearing.project_audio.parameters())
    assert voice == pytest.approx(3.7e6, rel=0.02)
    for config in (paper.config, hearing.config):
        assert FlowSizes.from_json(config.to_json()) == config


def test_the_tiny_encoder_of_voices_has_0_1_million_parameters():
    vae = vae_config("tiny", Layout(PAPER_GROUPS, 25, "flame2020"))
    tiny = ARFlow(flow_config("tiny", vae, text_dim=32, audio_dim=64, learns_to_hear=True))
    voice = sum(p.numel() for p in tiny.project_audio.parameters())
    assert voice == pytest.approx(0.125e6, rel=0.02)


@pytest.mark.parametrize("voice", [None, VoiceSizes(16)])
def test_shapes_and_every_parameter_has_a_gradient(voice):
    model = initialised(replace(CONFIG, voice=voice), seed=0)
    c = conditions()
    c = Conditions(*(getattr(c, name).float() for name in MODALITIES))
    prefix = model.encode_prefix(c)
    latents, noise = torch.randn(2, 3, 6, 4), torch.randn(2, 3, 6, 2, 4)
    errors = flow_errors(model, prefix, latents, noise, torch.rand(2, 3, 6, 2))
    assert errors.shape == (2, 3, 6, 2)
    errors.mean().backward()
    assert [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ] == []


def test_cached_equals_uncached(model):
    """One latent at a time, with kept keys and values, against one pass over everything."""
    prefix = model.encode_prefix(conditions())
    clean, noisy, time = (
        normal(2, 3, 6, 4, seed=5),
        normal(2, 3, 6, 4, seed=6),
        torch.linspace(0, 1, 6).double(),
    )
    whole = velocities(model, prefix, clean[:, :, :5], noisy, time)
    past, new = None, clean[:, :, :0]
    for l in range(6):  # noqa: E741
        for again in range(2):  # asking twice must leave no trace
            one, past = model(
                prefix, new, noisy[:, :, l : l + 1], time[l : l + 1], torch.tensor([l]), past
            )
            new = clean[:, :, :0]
            torch.testing.assert_close(
                one[:, :, 0], whole[:, :, l], atol=1e-10, rtol=1e-10, msg=f"latent {l}, {again}"
            )
        new = clean[:, :, l : l + 1]


def test_flow_time_stays_float32_in_any_dtype():
    time = torch.linspace(0, 1, 101)
    exact = time_features(time.double())
    torch.testing.assert_close(time_features(time).double(), exact, rtol=0, atol=1e-4)
    # Of a time that is a bfloat16 already, too.
    half = time.bfloat16()
    torch.testing.assert_close(time_features(half), time_features(half.float()), rtol=0, atol=0)


def test_a_bfloat16_model_is_told_the_time_of_a_float32_one(model):
    """What its time layers are given, at every denoise step of a rollout."""

    def told(dtype):
        seen = []
        copied = deepcopy(model).to(dtype)
        copied.time.register_forward_pre_hook(lambda _, args: seen.append(args[0].float()))
        heard = Conditions(*(getattr(conditions(1, 2), name).to(dtype) for name in MODALITIES))
        generate(copied, heard, normal(1, 1, 2, 4, seed=1).to(dtype), ode("euler", 7))
        return torch.stack([when.flatten()[:256] for when in seen])

    exact = told(torch.float32)
    assert exact.shape == (14, 256) and exact.std() > 0.5
    torch.testing.assert_close(told(torch.bfloat16), exact, rtol=0, atol=2**-8)


def test_one_softmax_over_prefix_history_and_itself(model):
    """Against attention written for one token at a time, with all its keys in one list."""
    c = conditions(1, 2)
    prefix = model.encode_prefix(c)
    clean, noisy, time = (
        normal(1, 1, 1, 4, seed=5),
        normal(1, 1, 1, 4, seed=6),
        torch.tensor([0.3]).double(),
    )
    got, past = model(prefix, clean, noisy, time, torch.tensor([1]))
    when = time_features(time)[0]
    turn = rotations(torch.tensor(8 + 4), 8)

    def read(x, remembers):
        for layer, block in enumerate(model.blocks):
            q, k, v = (h.squeeze(-2) for h in block.queries_keys_values(x[None]))
            plain, q, k = q, rotate(q, turn), rotate(k, turn)
            known = slice(None) if remembers else slice(0)
            scene, told = prefix.scene, prefix.text
            past_keys, past_values = past.keys[layer][0, 0], past.values[layer][0, 0]
            keys = torch.cat([scene.keys[layer][0].mT, past_keys[:, known], k[:, None]], dim=1)
            values = [told.values[layer][0], scene.values[layer][0], past_values[:, known]]
            values = torch.cat([*values, v[:, None]], dim=1)
            scores = [(told.keys[layer][0].mT @ plain[..., None]).squeeze(-1)]
            scores.append((keys @ q[..., None]).squeeze(-1))
            weights = (torch.cat(scores, dim=1) / math.sqrt(8)).softmax(-1)
            x = block.finish(x[None], (weights[..., None] * values).sum(1, keepdim=True))[0]
        return x

    asked = read(model.kinds.weight[6], remembers=False)
    expected = model.path(model.path_norm(asked))
    torch.testing.assert_close(model.expect(prefix, torch.tensor([1]))[0, 0, 0], expected)
    x = model.project_latent(noisy[0, 0, 0]) + model.kinds.weight[5] + model.time(when)
    x = read(x + model.project_path(expected), remembers=True)
    torch.testing.assert_close(
        got[0, 0, 0], model.velocity(model.norm(x)) + model.gain(when) * noisy[0, 0, 0]
    )


def test_noise_and_time_of_a_latent_reach_no_other(model):
    prefix = model.encode_prefix(conditions())
    clean, noisy, time = (
        normal(2, 1, 5, 4, seed=5),
        normal(2, 1, 6, 4, seed=6),
        torch.full((6,), 0.5).double(),
    )
    before = velocities(model, prefix, clean, noisy, time)
    noisy[:, :, 2] += 1
    time[4] = 0.9
    change = (velocities(model, prefix, clean, noisy, time) - before).abs().amax((0, 1, 3))
    assert (change[[2, 4]] > 1e-4).all() and (change[[0, 1, 3, 5]] == 0).all()


def test_a_latent_sees_the_clean_ones_before_it_only(model):
    prefix = model.encode_prefix(conditions())
    clean, noisy, time = (
        normal(2, 1, 5, 4, seed=5),
        normal(2, 1, 6, 4, seed=6),
        torch.zeros(6).double(),
    )
    before = velocities(model, prefix, clean, noisy, time)
    clean[:, :, 2] += 1
    change = (velocities(model, prefix, clean, noisy, time) - before).abs().amax((0, 1, 3))
    assert (change[:3] == 0).all() and (change[3:] > 1e-5).all()


def test_slots_and_prompts_do_not_mix(model):
    c = conditions()
    clean, noisy, time = (
        normal(2, 3, 5, 4, seed=5),
        normal(2, 3, 6, 4, seed=6),
        torch.zeros(6).double(),
    )
    whole = velocities(model, model.encode_prefix(c), clean, noisy, time)
    for b in range(2):
        alone = model.encode_prefix(
            Conditions(*(getattr(c, name)[b : b + 1] for name in MODALITIES))
        )
        for s in range(3):
            one = velocities(
                model, alone, clean[b : b + 1, s : s + 1], noisy[b : b + 1, s : s + 1], time
            )
            torch.testing.assert_close(one[0, 0], whole[b, s], atol=1e-10, rtol=1e-10)
    order = torch.tensor([2, 0, 1])
    turned = velocities(model, model.encode_prefix(c), clean[:, order], noisy[:, order], time)
    torch.testing.assert_close(turned, whole[:, order], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("lost", range(4))
@pytest.mark.parametrize("lead", [None, 0, 12])
def test_an_absent_modality_is_as_if_it_had_never_been(model, lost, lead):
    c = conditions()
    rest = {
        "clean": normal(2, 1, 5, 4, seed=5),
        "noisy": normal(2, 1, 6, 4, seed=6),
        "time": torch.zeros(6).double(),
    }
    present = torch.ones(2, 4, dtype=torch.bool)
    present[:, lost] = False
    without = velocities(
        model, model.encode_prefix(replace(c, **{MODALITIES[lost]: None}), lead), **rest
    )
    rubbish = {MODALITIES[lost]: torch.full_like(getattr(c, MODALITIES[lost]), torch.nan)}
    masked = velocities(
        model, model.encode_prefix(replace(c, present=present, **rubbish), lead), **rest
    )
    torch.testing.assert_close(masked, without, atol=1e-10, rtol=1e-10)
    whole = velocities(model, model.encode_prefix(c, lead), **rest)
    assert (whole - without).abs().max() > 1e-4
    present[1] = True  # the other sample has it, and does not notice
    mixed = velocities(model, model.encode_prefix(replace(c, present=present), lead), **rest)
    torch.testing.assert_close(mixed[0], without[0], atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(mixed[1], whole[1], atol=1e-10, rtol=1e-10)


def test_unconditional_slots_are_those_of_a_prompt_without_conditions(model):
    clean, noisy, time = (
        normal(2, 2, 5, 4, seed=5),
        normal(2, 2, 6, 4, seed=6),
        torch.zeros(6).double(),
    )
    number = torch.arange(6)
    half, _ = model(
        model.encode_prefix(conditions()),
        clean,
        noisy,
        time,
        number,
        sight=Sight(conditioned=torch.tensor([True, False])),
    )
    nothing = Conditions(present=torch.zeros(2, 4, dtype=torch.bool))
    empty = velocities(model, model.encode_prefix(nothing), clean, noisy, time)
    full = velocities(model, model.encode_prefix(conditions()), clean, noisy, time)
    torch.testing.assert_close(half[:, 0], full[:, 0], atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(half[:, 1], empty[:, 1], atol=1e-10, rtol=1e-10)


def test_partner_and_actor_audio_are_told_apart(model):
    c = conditions()
    swapped = replace(c, partner_audio=c.actor_audio, actor_audio=c.partner_audio)
    rest = {
        "clean": normal(2, 1, 5, 4, seed=5),
        "noisy": normal(2, 1, 6, 4, seed=6),
        "time": torch.zeros(6).double(),
    }
    a, b = (velocities(model, model.encode_prefix(x), **rest) for x in (c, swapped))
    assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["partner_audio", "partner_motion", "actor_audio"])
@pytest.mark.parametrize("lead", [0, 4, 8, 12, None])
def test_a_latent_hears_what_comes_before_its_lead_and_no_more(model, name, lead):
    """One frame is changed; motion is complete with the last frame of a latent."""
    c = conditions()
    for latent in range(6):
        frame = 8 * latent + (7 if name == "partner_motion" else 3)
        other = getattr(c, name).clone()
        other[:, latent if name == "partner_motion" else frame] += 1
        a, b = (
            velocities(model, model.encode_prefix(x, lead), **noisy_latents())
            for x in (c, replace(c, **{name: other}))
        )
        change = (a - b).abs().amax((0, 1, 3))
        hears = torch.tensor([lead is None or frame < 8 * l + lead for l in range(6)])  # noqa: E741
        assert (change[~hears] == 0).all() and (change[hears] > 1e-7).all(), latent


def noisy_latents(count=6):
    """The input of a pass over all latents."""
    clean = normal(2, 1, count - 1, 4, seed=5)
    noisy = normal(2, 1, count, 4, seed=6)
    return {"clean": clean, "noisy": noisy, "time": torch.zeros(count).double()}


def test_each_sample_of_a_batch_has_a_lead_of_its_own(model):
    c = conditions()
    mixed = velocities(
        model, model.encode_prefix(c, torch.tensor([4, lead_frames(None)])), **noisy_latents()
    )
    for row, lead in enumerate((4, None)):
        alone = velocities(model, model.encode_prefix(c, lead), **noisy_latents())
        torch.testing.assert_close(mixed[row], alone[row], atol=1e-10, rtol=1e-10)


def test_a_lead_that_is_not_trained_is_refused(model):
    with pytest.raises(
        ValueError, match=r"a lead of 3 frames: .*\(0, 4, 8, 12\) frames, and with None"
    ):
        model.encode_prefix(conditions(), 3)


def test_leads_are_drawn_alike_and_the_whole_window_as_often_as_asked():
    drawn = draw_leads(5000, 0.2, torch.Generator().manual_seed(0))
    shares = [(drawn == lead).double().mean().item() for lead in (*LEADS, WHOLE)]
    assert shares == pytest.approx([0.2] * 5, abs=0.02)
    assert (draw_leads(9, 1.0, torch.Generator()) == WHOLE).all()
    assert (draw_leads(99, 0.0, torch.Generator()) <= 12).all()


def test_the_prompt_sees_itself_alone_and_nobody_but_latents_sees_it(model):
    c = conditions()
    prefix = model.encode_prefix(c)
    other = {name: getattr(c, name) + 1 for name in MODALITIES[1:]}
    elsewhere = model.encode_prefix(replace(c, **other))
    silent = model.encode_prefix(Conditions(text=c.text))
    for layer in range(2):
        assert torch.equal(elsewhere.text.keys[layer], prefix.text.keys[layer])
        assert torch.equal(silent.text.values[layer], prefix.text.values[layer])
    told = model.encode_prefix(replace(c, text=c.text + 1))
    assert torch.equal(told.scene.keys[1], prefix.scene.keys[1])
    change = velocities(model, told, **noisy_latents()) - velocities(
        model, prefix, **noisy_latents()
    )
    assert (change.abs().amax((0, 1, 3)) > 1e-6).all()


def test_the_prompt_is_as_near_after_an_hour(model):
    """Latent 16 and latent 11,250, after the same history."""
    prefix = model.encode_prefix(Conditions(text=conditions().text))
    noisy = normal(2, 1, 1, 4, seed=6)
    low = (torch.full((2, 1, 4, 16, 8), 0.0).double(),) * 2
    past = History(low, low, first=11_250 - 16)
    hour = model(prefix, noisy[:, :, :0], noisy, torch.zeros(1), torch.tensor([11_250]), past)[0]
    early = History(low, low)
    soon = model(prefix, noisy[:, :, :0], noisy, torch.zeros(1), torch.tensor([16]), early)[0]
    torch.testing.assert_close(hour, soon, atol=1e-10, rtol=1e-10)
    other = model.encode_prefix(Conditions(text=conditions(seed=9).text))
    told = model(other, noisy[:, :, :0], noisy, torch.zeros(1), torch.tensor([11_250]), past)[0]
    assert (told - hour).abs().max() > 1e-4


def test_a_latent_looks_back_at_its_span_and_no_further(model):
    """One layer, so that nothing comes round by others."""
    config = replace(CONFIG, layers=1, span=3)
    short = initialised(config, seed=0).double().eval()
    c, given = conditions(), noisy_latents()
    before = velocities(short, short.encode_prefix(c, 0), **given)
    clean = given["clean"].clone()
    clean[:, :, 1] += 1
    after = velocities(short, short.encode_prefix(c, 0), **given | {"clean": clean})
    change = (after - before).abs().amax((0, 1, 3))
    assert (change > 1e-7).tolist() == [False, False, True, True, True, False]
    for name in ("partner_audio", "partner_motion"):
        other = getattr(c, name).clone()
        other[:, 1 if name == "partner_motion" else slice(8, 16)] += 1
        after = velocities(short, short.encode_prefix(replace(c, **{name: other}), 0), **given)
        change = (after - before).abs().amax((0, 1, 3))
        assert (change > 1e-9).tolist() == [False, False, True, True, True, False], name


@pytest.mark.parametrize("voice", [None, VoiceSizes(16, look_back=9)])
def test_a_prefix_may_grow_and_forget(voice):
    """Keys and values that are computed latent by latent are those of one pass over all, and what
    is older than the span may go.
    """
    config = replace(CONFIG, span=3, voice=voice)
    built = initialised(config, seed=0).double().eval()
    c = conditions(latents=12)
    whole = built.encode_prefix(c, 8)
    grown = built.encode_prefix(replace(c.window(0, 1, 8), text=c.text), 8)
    for latent in range(1, 12):
        grown = grown.since((latent - 3) * 8)
        grown = built.encode_prefix(replace(c.window(latent, 1, 8), text=None), past=grown)
    of_a_latent = 17 if voice is None else 5
    assert grown.frames == whole.frames == 96 and len(grown.heard) == 4 * of_a_latent
    for layer in range(2):
        for token, heard in enumerate(grown.heard.tolist()):
            same = (whole.heard == heard).nonzero().flatten()
            keys = whole.scene.keys[layer][..., same]
            gap = (keys - grown.scene.keys[layer][..., token : token + 1]).abs().amax((0, 1, 2))
            assert gap.min() < 1e-10
    with pytest.raises(ValueError, match="prompt cannot change"):
        built.encode_prefix(c.window(0, 1, 8), past=grown)


def test_condition_dropout():
    generator = torch.Generator().manual_seed(0)
    kept = dropout_mask(4000, each=0.2, every=0.1, generator=generator).double()
    assert kept.mean(0).tolist() == pytest.approx([0.72] * 4, abs=0.03)
    assert (kept.sum(1) == 0).double().mean().item() == pytest.approx(0.1 + 0.9 * 0.2**4, abs=0.02)
    assert dropout_mask(9, 0, 0, generator).all() and not dropout_mask(9, 0, 1, generator).any()


def test_windows_of_conditions():
    window = conditions().window(2, 3, 8)
    assert torch.equal(window.partner_audio, conditions().partner_audio[:, 16:40])
    assert torch.equal(window.partner_motion, conditions().partner_motion[:, 2:5])
    assert torch.equal(window.text, conditions().text)


class Linear(torch.nn.Module):
    """A field known in advance: v = a m_t + b, whatever the conditions."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b, self.config = a, b, CONFIG

    def expect(self, prefix, number, conditioned=None):
        return torch.zeros(1, 1, len(number), 0)

    def forward(self, prefix, clean, noisy, time, number, past=None, sight=None):
        return self.a * noisy + self.b, past


def test_loss_by_hand_on_a_linear_field():
    latents = torch.tensor([1.0, 2.0]).reshape(1, 1, 1, 2)
    noise = torch.tensor([[0.0, -2.0], [1.0, 0.0]]).reshape(1, 1, 1, 2, 2)
    time = torch.tensor([0.5, 0.25]).reshape(1, 1, 1, 2)
    # m_t = (0.5, 0) and (1, 0.5); goal (1, 4) and (0, 2); v = 2 m_t + 1 = (2, 1) and (3, 2)
    errors = flow_errors(Linear(2, 1), None, latents, noise, time)
    assert errors.flatten().tolist() == pytest.approx([(1 + 9) / 2, (9 + 0) / 2])
    # the field of a single latent, (m - m_t) / (1 - t) with m = 1: at t = 0.5 it is 2 - 2 m_t,
    # without error
    exact = flow_errors(
        Linear(-2, 2),
        None,
        torch.ones(1, 1, 1, 1),
        torch.randn(1, 1, 1, 9, 1),
        torch.full((1, 1, 1, 9), 0.5),
    )
    assert exact.abs().max() < 1e-10


def test_float32_and_float64_agree(model):
    single = deepcopy(model).float()
    c = conditions()
    rest = {
        "clean": normal(2, 1, 5, 4, seed=5),
        "noisy": normal(2, 1, 6, 4, seed=6),
        "time": torch.linspace(0, 0.9, 6).double(),
    }
    prefix = single.encode_prefix(Conditions(*(getattr(c, name).float() for name in MODALITIES)))
    a = velocities(single, prefix, **{name: value.float() for name, value in rest.items()})
    torch.testing.assert_close(
        a.double(), velocities(model, model.encode_prefix(c), **rest), atol=1e-4, rtol=1e-4
    )


def test_what_does_not_fit_is_refused(model):
    c = conditions()
    for wrong, message in [
        ({"text": normal(2, 7)}, r"text must be \(2, 5\), got \(2, 7\)"),
        ({"actor_audio": normal(2, 40, 6)}, "same frames.*actor_audio': 40"),
        (
            {"partner_audio": c.partner_audio.index_fill(1, torch.tensor([3]), torch.nan)},
            "partner_audio holds NaN",
        ),
        ({"present": torch.ones(2, 3, dtype=torch.bool)}, "present must be bool"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.encode_prefix(replace(c, **wrong))
    with pytest.raises(ValueError, match="without any modality"):
        model.encode_prefix(Conditions())
    prefix = model.encode_prefix(c)
    with pytest.raises(ValueError, match="from 0 to 1: latents 0 to 0 are known"):
        model(prefix, normal(2, 1, 1, 4), normal(2, 1, 1, 4), torch.zeros(1), torch.tensor([2]))
    dropped = History(*[(normal(2, 1, 4, 3, 8),) * 2] * 2, first=9)  # latents 9 to 11
    with pytest.raises(
        ValueError, match="latents 9 to 11 are known, each of which looks back at 16"
    ):
        model(
            prefix,
            normal(2, 1, 0, 4),
            normal(2, 1, 1, 4),
            torch.zeros(1),
            torch.tensor([12]),
            dropped,
        )
    with pytest.raises(ValueError, match="agree in batch and slots"):
        model(prefix, normal(3, 1, 1, 4), normal(3, 1, 1, 4), torch.zeros(1), torch.tensor([0]))
    with pytest.raises(ValueError, match="clean latents must be"):
        model(prefix, normal(2, 1, 1, 5), normal(2, 1, 1, 4), torch.zeros(1), torch.tensor([0]))


def test_who_does_not_remember_sees_nothing_of_its_past(model):
    """And whoever does is answered as without the mask."""
    c, noisy, time = conditions(2, 3), normal(2, 1, 3, 4, seed=5), torch.rand(3)
    number = torch.arange(3)
    prefix = model.encode_prefix(c)

    def velocity(seed, remembers=None):
        clean = normal(2, 1, 2, 4, seed=seed)
        return model(prefix, clean, noisy, time, number, sight=Sight(remembers=remembers))[0]

    remembers = torch.tensor([True, False])
    one, other = velocity(1, remembers), velocity(2, remembers)
    torch.testing.assert_close(one[1], other[1])
    assert (one[0, :, 1:] - other[0, :, 1:]).abs().min() > 0
    torch.testing.assert_close(one[0], velocity(1)[0])
