"""The motion VAE: shapes, units, what a latent and a frame may depend on, and that it learns."""

import numpy as np
import pytest
import torch

from rapport.policies.flow import vae as vae_module
from rapport.policies.flow.config import PAPER_GROUPS, VaeSizes, vae_config
from rapport.policies.flow.vae import MotionVAE, cosine_basis, vae_loss
from rapport.policies.motion import Layout, LayoutError, Motion

LAYOUT = Layout((("expr", 4), ("jaw", 2)), 25, "builtin")


def build(seed=0, **sizes):
    torch.manual_seed(seed)
    vae = MotionVAE(VaeSizes(LAYOUT, **{"latent_dim": 8, "hidden": 32, "layers": 2} | sizes)).eval()
    for layer in (vae.posterior, vae.patch_out):  # as if it had learnt something
        layer.reset_parameters()
    return vae


def frames(batch=2, time=48, seed=0):
    return torch.randn(batch, time, 6, generator=torch.Generator().manual_seed(seed))


def test_200_frames_of_67_numbers_are_25_latents():
    layout = Layout(PAPER_GROUPS, 25, "flame2020")
    vae = MotionVAE(vae_config("paper", layout))
    assert layout.dim == 67
    latents = vae.encode(torch.randn(2, 200, 67))
    assert latents.shape == (2, 25, 64)
    assert vae.decode(latents).shape == (2, 200, 67)
    assert VaeSizes.from_json(vae.config.to_json()) == vae.config


def test_channels_are_normalised_one_by_one():
    vae = build()
    values = np.random.default_rng(0).normal(size=(500, 6)) * [1, 10, 0.1, 1, 1, 0] + [
        0,
        5,
        0,
        -3,
        0,
        2,
    ]
    motions = [Motion(values[:200], LAYOUT), Motion(values[200:], LAYOUT)]
    vae.fit_channels(motions)
    normal = vae.standardise(torch.from_numpy(values.astype(np.float32)))
    torch.testing.assert_close(normal.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        normal.std(0, correction=0), torch.tensor([1.0, 1, 1, 1, 1, 0]), atol=1e-4, rtol=0
    )
    with pytest.raises(LayoutError, match="unlike"):
        vae.fit_channels([Motion(values, Layout((("expr", 4), ("jaw", 2)), 30, "builtin"))])


def test_units_of_the_corpus_do_not_reach_the_network():
    vae, other, scale = build(), build(), torch.tensor([2.0, 5, 0.1, 1, 1, 3])
    x = frames()
    vae.fit_channels([Motion(x[0].numpy(), LAYOUT)])
    other.fit_channels([Motion((x[0] * scale).numpy(), LAYOUT)])
    torch.testing.assert_close(vae.encode(x), other.encode(x * scale), atol=1e-4, rtol=1e-4)


def test_cosines_are_scipys():
    from scipy.fft import dct

    x = np.random.default_rng(0).normal(size=(8, 3))
    expected = torch.from_numpy(dct(x, axis=0, norm="ortho"))
    torch.testing.assert_close(
        cosine_basis(8).double() @ torch.from_numpy(x), expected, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(cosine_basis(8) @ cosine_basis(8).T, torch.eye(8), atol=1e-6, rtol=0)


def test_a_decoder_moves_as_smoothly_as_the_corpus_before_it_has_learnt_anything():
    vae, time = build(), torch.arange(200) / 25
    smooth = torch.stack([(time * (1 + j)).sin() for j in range(6)], -1)
    plain = vae.standardise(vae.decode(torch.randn(1, 6, 8)))
    vae.fit_channels([Motion(smooth.numpy(), LAYOUT)])
    assert (vae.spectrum[0] > 10 * vae.spectrum[8]).all()
    fitted = vae.standardise(vae.decode(torch.randn(1, 6, 8)))

    def jerk(frames):
        return frames.diff(n=3, dim=1).square().mean().sqrt() / frames.std()

    assert jerk(fitted) < 0.1 * jerk(plain)
    still = np.zeros((64, 6), np.float32)
    vae.fit_channels([Motion(still, LAYOUT)])
    assert (vae.spectrum == 0).all() and torch.equal(
        vae.decode(torch.randn(1, 2, 8)), torch.zeros(1, 16, 6)
    )


def test_it_begins_as_a_linear_code():
    torch.manual_seed(0)
    vae, a, b = (
        MotionVAE(VaeSizes(LAYOUT, latent_dim=8, hidden=32)).eval(),
        frames(),
        frames(seed=1),
    )
    torch.testing.assert_close(vae.encode(2 * a - b), 2 * vae.encode(a) - vae.encode(b))
    torch.testing.assert_close(
        vae.decode(vae.encode(2 * a - b)), vae.decode(2 * vae.encode(a) - vae.encode(b))
    )
    x, y = vae.encode(a), vae.encode(b)
    torch.testing.assert_close(vae.decode(x + y), vae.decode(x) + vae.decode(y))
    assert vae.decode(x).abs().max() > 0.01


def test_latents_are_standardised_and_decoding_takes_it_back():
    vae, x = build(), frames(8, 80)
    before = vae.decode(vae.encode(x))
    vae.fit_latents(Motion(each.numpy(), LAYOUT) for each in x)
    latents = vae.encode(x)
    torch.testing.assert_close(latents.mean((0, 1)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        latents.flatten(0, 1).std(0, correction=0), torch.ones(8), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(vae.decode(latents), before, atol=1e-4, rtol=1e-4)


def test_a_batch_codes_each_as_if_it_were_alone(monkeypatch):
    vae = build()
    motions = [
        Motion(clip.numpy(), LAYOUT)
        for clip in (*frames(5, 48), *frames(1, 80, seed=1), *frames(1, 48, seed=2))
    ]
    monkeypatch.setattr(vae_module, "BATCH", 2)
    latents = vae.latents_of(motions)
    coded = vae.to_motions(latents)
    assert len(latents) == len(coded) == 7
    for motion, own, again in zip(motions, latents, coded, strict=True):
        expected = vae.encode(torch.from_numpy(motion.values)[None])
        torch.testing.assert_close(own, expected[0], atol=1e-5, rtol=0)
        decoded = vae.decode(expected)[0].detach()
        np.testing.assert_allclose(again.values, decoded, atol=1e-5, rtol=0)
    vae.fit_latents(motions)
    pooled = torch.cat(latents)
    torch.testing.assert_close(vae.latent_mean, pooled.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(vae.latent_std, pooled.std(0, correction=0), atol=1e-5, rtol=0)
    assert vae.to_motions([]) == vae.latents_of([]) == []
    with pytest.raises(ValueError, match="no motions"):
        vae.fit_latents([])


def test_no_latent_needs_a_later_frame_and_no_frame_more_than_half_a_window_of_latents():
    vae, x = build(), frames()
    later = x.clone()
    later[:, 24:] += 1
    a, b = vae.encode(x), vae.encode(later)
    torch.testing.assert_close(a[:, :3], b[:, :3])
    assert (a[:, 3] - b[:, 3]).abs().min() > 0
    change = (vae.decode(a) - vae.decode(torch.cat([a[:, :3], b[:, 3:]], 1))).abs().amax((0, 2))
    assert (change[:20] == 0).all() and (change[20:] > 0).all()
    torch.testing.assert_close(vae.decode(a[:, :3])[:, :20], vae.decode(a)[:, :20])


def test_a_long_sequence_is_coded_as_its_windows_are():
    vae, x = build(layers=2, look_back=2), frames(1, 160)
    # 2 layers of 2 latents: 4 latents back
    torch.testing.assert_close(
        vae.encode(x)[:, 9:], vae.encode(x[:, 40:])[:, 4:], atol=1e-5, rtol=1e-4
    )
    assert (vae.encode(x)[:, 5:7] - vae.encode(x[:, 40:])[:, :2]).abs().max() > 1e-3


@pytest.mark.parametrize("downsample", [8, 3])
def test_a_sequence_may_be_coded_as_it_comes_in(downsample):
    """Latent by latent; the frames come half a latent later, and the last ones at the end."""
    vae, x = build(downsample=downsample), frames()
    whole = vae.encode(x)
    decoded = vae.decode(whole)
    memory, shown = vae.encoder.nothing(2), vae.nothing_shown(2)
    latents, pieces = [], []
    for first in range(0, 48, downsample):
        latent, memory = vae.encode_next(x[:, first : first + downsample], memory)
        settled, shown = vae.decode_next(latent, shown)
        latents.append(latent)
        pieces.append(settled)
    pieces[0] = pieces[0][:, downsample // 2 :]
    pieces.append(vae.decode_end(shown))
    torch.testing.assert_close(torch.cat(latents, 1), whole, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(torch.cat(pieces, 1), decoded, atol=1e-6, rtol=1e-5)


def test_loss_by_hand():
    target = torch.tensor([[[0.0], [0.0], [0.0]]])
    decoded = torch.tensor([[[0.0], [3.0], [0.0]]])
    mean, log_variance = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    loss, parts = vae_loss(decoded, target, mean, log_variance, velocity_weight=0.5, kl_weight=0.1)
    kl = 0.5 * (4 + (torch.e - 2)) / 2
    assert parts["reconstruction"].item() == pytest.approx(1 + 3)
    assert parts["velocity"].item() == pytest.approx(3 + 9)
    assert parts["kl"].item() == pytest.approx(kl)
    assert loss.item() == pytest.approx(4 + 6 + 0.1 * kl)


def test_it_learns():
    vae = build().train()
    time = torch.arange(160) / 25
    clips = torch.stack(
        [torch.stack([(time * (1 + i + j)).sin() for j in range(6)], -1) for i in range(4)]
    )
    vae.fit_channels([Motion(clip.numpy(), LAYOUT) for clip in clips])
    optimiser = torch.optim.Adam(vae.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        noise = torch.randn(4, 20, 8, generator=generator)
        loss, parts = vae_loss(*vae(clips, noise), velocity_weight=1.0, kl_weight=1e-4)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert parts["reconstruction"] < 0.1  # of a variance of 1
    [motion] = vae.eval().to_motions(vae.encode(clips[:1]))
    assert motion.layout == LAYOUT and len(motion) == 160
    assert np.square(motion.values - clips[0].numpy()).mean() < 0.1


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"multiple of 8, got \(2, 47, 6\)"):
        build().encode(frames(time=47))
    with pytest.raises(ValueError, match="shorter than 16 frames"):
        build().fit_channels([Motion(np.zeros((15, 6)), LAYOUT)])
    with pytest.raises(ValueError, match="layers is 0"):
        build(layers=0)
    with pytest.raises(ValueError, match="twice heads"):
        build(heads=3)
