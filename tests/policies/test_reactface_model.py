"""The parts of ReactFace against small cases worked out by hand; and as a policy."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributions import Normal, kl_divergence

from rapport.policies.motion import Layout
from rapport.policies.policy import CheckpointError, load_policy
from rapport.policies.reactface.config import ReactFaceSizes, reactface_config
from rapport.policies.reactface.model import (
    Axes,
    Channels,
    Gaussian,
    ReactFace,
    Scene,
    alignment_bias,
    calmed,
    interpolated,
)
from rapport.policies.reactface.policy import ReactFacePolicy
from tests.small_reactface import WINDOWS, W, changed_from, shown, small_reactface, talking


@pytest.fixture(scope="module")
def policy():
    return small_reactface()


@pytest.fixture(scope="module")
def clip(policy):
    return talking(policy.layout)


# -- Parts --


def test_interpolation_ends_where_z_is():
    z = interpolated(torch.tensor([[1.0]]), torch.tensor([[5.0]]), window=4)
    assert z.flatten().tolist() == [2, 3, 4, 5]  # Eq. 11


def test_momentum_of_the_first_window_is_what_was_drawn(policy):
    model = policy.model
    drawn = torch.full((1, 4), 2.0)
    before = model.nothing(1)
    gaussian = Gaussian(torch.full((1, 4), 0.5), torch.zeros(1, 4))
    assert model.momentum(before, gaussian, drawn).tolist() == drawn.tolist()
    begun = replace(before, begun=torch.tensor([True]), latent=torch.full((1, 4), -1.0))
    mood = 0.98 * -1 + 0.02 * 0.5 + (1 - 0.98**2) ** 0.5 * (2 - 0.5)
    fades = 0.9 * -1.0 + 0.1 * 2.0  # Eq. 10
    expected = torch.tensor([[mood, mood, fades, fades]])
    torch.testing.assert_close(model.momentum(begun, gaussian, drawn), expected)


def test_moods_do_not_fade(policy):
    """After 1,000 windows they are spread as at first, and what has momentum is not."""
    model = policy.model
    gaussian = Gaussian(torch.full((5000, 4), 3.0), torch.full((5000, 4), 2.0).log())
    generator = torch.Generator().manual_seed(0)
    past = model.nothing(5000)
    for _ in range(1000):
        drawn = gaussian.sample(torch.randn(5000, 4, generator=generator))
        latent = model.momentum(past, gaussian, drawn)
        past = replace(past, latent=latent, begun=torch.ones_like(past.begun))
    torch.testing.assert_close(latent.mean(0), torch.full((4,), 3.0), atol=0.15, rtol=0)
    fades = 2 * (0.1 / 1.9) ** 0.5
    torch.testing.assert_close(
        latent.std(0), torch.tensor([2.0, 2.0, fades, fades]), rtol=0.05, atol=0
    )


def test_what_is_drawn_is_kept_as_long_as_momentum_says(policy, clip):
    """The first draw's share of z is alpha^n, of two moods, and of the rest."""
    model = policy.model
    scene = Scene(**policy.collate([policy.prompt_row(policy.encode(clip))]))
    noise = torch.zeros(1, 2, WINDOWS, 4)
    made, _ = model.react(scene, noise)
    alpha = torch.tensor([0.98, 0.98, 0.9, 0.9])
    z = [made.drawn[0, 0]]
    for drawn in made.drawn[0, 1:]:
        z.append(alpha * z[-1] + (1 - alpha) * drawn)
    past = model.nothing(1)
    heard = model.encode(scene)
    for number in range(WINDOWS):
        past = model.listen(past, heard.window(number, W))
        gaussian = model.distribution(past)
        past = model.make(past, model.momentum(past, gaussian, gaussian.mean))
        torch.testing.assert_close(past.latent[0], z[number], atol=1e-5, rtol=1e-5)


def test_the_alignment_bias_is_that_of_the_paper():
    """Figure 4: units of p frames, and nothing of what is still to come."""
    i, j = torch.arange(5)[:, None], torch.arange(5)
    low = -torch.inf
    expected = [
        [0, low, low, low, low],
        [0, 0, low, low, low],
        [-1, 0, 0, low, low],
        [-1, -1, 0, 0, low],
        [low, -1, -1, 0, 0],  # beyond the span of 3
    ]
    assert alignment_bias(i - j, period=2, span=3).tolist() == expected


@pytest.mark.parametrize("synchronise", ["both", "face", "voice", "none"])
def test_a_window_is_held_against_what_it_should_be(synchronise, clip):
    """VIM and MIM; what else is heard of the speaker comes by z."""
    model = small_reactface(synchronise=synchronise, expects=False).model
    policy = ReactFacePolicy(model)
    heard = model.encode(Scene(**policy.collate([policy.prompt_row(policy.encode(clip))])))
    past = model.listen(model.nothing(1), heard.window(0, W))
    face, voice = past.tokens.shown

    def frames(*shown):
        after = replace(past, tokens=replace(past.tokens, shown=shown))
        return model.make(after, torch.ones(1, 4)).frames

    found = {
        "face": not torch.equal(frames(face, voice), frames(face + 1, voice)),
        "voice": not torch.equal(frames(face, voice), frames(face, voice + 1)),
    }
    assert found == {name: synchronise in ("both", name) for name in found}


def people(frames=4000):
    """A smile of three channels, which is one number and some noise; two lids, which are one."""
    generator = torch.Generator().manual_seed(0)
    smile, lids = torch.randn(2, frames, 1, generator=generator)
    noise = 0.3 * torch.randn(frames, 3, generator=generator)
    faces = torch.cat([smile * torch.tensor([1.0, 2.0, -1.0]) + noise, lids, lids], dim=1)
    return faces * 5 + 7


def test_what_goes_together_in_people_goes_together_in_what_is_made():
    layout = Layout((("expr", 3), ("eyelid", 2)), 25, "builtin")
    channels, axes = Channels(layout.dim), Axes(layout)
    faces = people()
    channels.fit([faces[:1000], faces[1000:]])
    standardised = channels(faces)
    axes.fit([standardised[:1000], standardised[1000:]])

    made = axes(torch.randn(100_000, layout.dim, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(made[:, 3], made[:, 4], atol=1e-3, rtol=0)
    of_people, of_made = (np.corrcoef(x.numpy().T) for x in (faces, made))
    np.testing.assert_allclose(of_made[:3, :3], of_people[:3, :3], atol=0.02)
    np.testing.assert_allclose(of_made[:3, 3:], 0, atol=0.02)  # axes are of one group
    np.testing.assert_allclose(made.std(0), np.ones(layout.dim), atol=0.02)


def test_lids_that_are_one_in_people_are_one_in_whatever_is_made_and_expected():
    groups = (("expr", 4), ("eyelid", 2))
    people = []
    for seed in range(3):
        clip = talking(Layout(groups, 25, "builtin"), seed)
        faces = clip.listener.values.copy()
        faces[:, 5] = 2 * faces[:, 4]
        people.append(replace(clip, listener=replace(clip.listener, values=faces)))
    policy = small_reactface(clips=people, groups=groups)
    made, read = policy.model.react(scene_of(policy, people[0]), torch.randn(1, 4, WINDOWS, 4))
    for frames in (made.frames, read.expected):
        assert frames[..., 4].std() > 0.1
        torch.testing.assert_close(frames[..., 4], frames[..., 5], atol=1e-2, rtol=1e-2)


def test_axes_of_nobody_are_the_channels():
    layout = Layout((("expr", 3),), 25, "builtin")
    axes = Axes(layout)
    axes.fit([])
    assert axes(torch.eye(3)).tolist() == torch.eye(3).tolist()


def test_sizes():
    groups = (("expr", 50), ("jaw", 3), ("neck", 3), ("eyelid", 2), ("eyepose", 6), ("rot", 3))
    layout = Layout(groups, 25, "builtin")
    counts = {}
    for size in ("tiny", "paper", "printed"):
        sizes = reactface_config(size, layout, audio_dim=64)
        assert ReactFaceSizes.from_json(sizes.to_json()) == sizes
        counts[size] = sum(p.numel() for p in ReactFace(sizes).parameters()) / 1e6
    assert 0.4 < counts["tiny"] < 0.7
    assert 1 < counts["paper"] < 5.2 and 5 < counts["printed"] < 19.2
    with pytest.raises(ValueError, match="nothing is ever drawn anew"):
        replace(sizes, momentum=1.0)
    with pytest.raises(ValueError, match="window is 0"):
        replace(sizes, window=0)
    with pytest.raises(ValueError, match="multiple of twice heads"):
        replace(sizes, hidden=20)


# -- Causal --


def heard_before(frame, delay):
    """Frames that are made of what was heard before a frame."""
    return frame if delay == "w" else (frame // W + 1) * W


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("delay", ["w", 0])
@pytest.mark.parametrize("frame", [8, 21, 40])
def test_frames_do_not_know_what_comes_after(delay, frame, training):
    """To the bit, and every frame after does."""
    policy = small_reactface(delay=delay)
    module = policy.module().train(training)
    noise = torch.randn(1, 2, WINDOWS, 4, generator=torch.Generator().manual_seed(0))
    frames, means = [], []
    for clip in (talking(policy.layout), changed_from(talking(policy.layout), frame)):
        batch = policy.collate([policy.prompt_row(policy.encode(clip))])
        made, read = module("react", Scene(**batch), noise)
        frames.append(made.frames)
        means.append(made.mean)
        assert read.motion.shape == read.expected.shape == (1, WINDOWS * W, 6)
    known = heard_before(frame, delay)
    assert torch.equal(frames[0][:, :known], frames[1][:, :known])
    assert (frames[0][:, known] != frames[1][:, known]).all()
    # The CIE hears up to the window before the one it is about (Eq. 7).
    distributed = frame // W + 1
    assert torch.equal(means[0][:, :distributed], means[1][:, :distributed])
    assert (means[0][:, distributed] != means[1][:, distributed]).all()


def test_likelihoods_do_not_know_what_comes_after(policy, clip):
    [reactions] = policy.sample([policy.encode(clip)], 2, [3])
    found = []
    for heard in (clip, changed_from(clip, 24)):
        batch = policy.collate([policy.prompt_row(policy.encode(heard))])
        batch |= policy.collate_group(reactions)
        found.append(policy.action_log_probs(policy.module(), batch)[0])
    assert torch.equal(found[0][:, :4], found[1][:, :4])
    assert (found[0][:, 5:] != found[1][:, 5:]).all()


def test_pictures_are_not_seen_before_they_are_taken():
    """To the bit; and those of others in the batch change nothing."""
    policy = small_reactface(sees="frames", pixels=16)
    clip = shown(talking(policy.layout))
    other = shown(clip, seed=1).speaker_frames
    changed = np.concatenate([clip.speaker_frames[:6], other[6:]])  # taken at 6.5 / 13 of it
    noise = torch.randn(1, 2, WINDOWS, 4, generator=torch.Generator().manual_seed(0))
    frames, features = [], []
    for pictures in (clip.speaker_frames, changed):
        scene = scene_of(policy, replace(clip, speaker_frames=pictures))
        features.append(policy.model.face(scene)[0])
        frames.append(policy.model.react(scene, noise)[0].frames)
    first = int((features[0] != features[1]).any(-1).nonzero()[0])
    assert first == WINDOWS * W / 2 - 1, "the frame at whose end it is taken"
    known = first // W * W
    assert torch.equal(frames[0][:, :known], frames[1][:, :known])
    assert (frames[0][:, known + W] != frames[1][:, known + W]).all()
    assert not features[0][0].any(), "before the first picture nothing is seen"
    rows = [policy.encode(c) for c in (clip, shown(clip, 2, count=40), talking(policy.layout))]
    beside = collated(policy, rows)
    alone, among = scene_of(policy, clip), Scene(**beside)
    assert among.present.tolist() == [[True, True], [True, True], [False, True]]
    torch.testing.assert_close(policy.model.face(among)[:1], policy.model.face(alone))


def test_one_that_sees_pictures_learns_to_look(tmp_path):
    policy = small_reactface(sees="frames", pixels=16)
    policy.save(tmp_path / "saved")
    same = ReactFacePolicy.load(tmp_path / "saved")
    assert same.model.sizes == policy.model.sizes and same.reads == policy.reads
    clip = shown(talking(policy.layout))
    noise = torch.randn(1, 2, WINDOWS, 4, generator=torch.Generator().manual_seed(0))
    made, read = same.model.react(scene_of(same, clip), noise)
    (made.frames.square().mean() + read.motion.square().mean()).backward()
    assert all(p.grad is not None and p.grad.any() for p in same.model.sight.parameters())


# -- What is expected --


def collated(policy, prompts):
    return policy.collate([policy.prompt_row(prompt) for prompt in prompts])


def scene_of(policy, clip):
    return Scene(**collated(policy, [policy.encode(clip)]))


def test_what_is_drawn_departs_from_what_is_expected():
    policy = small_reactface(groups=(("expr", 4), ("jaw", 1), ("neck", 3), ("rot", 3)))
    scene = scene_of(policy, talking(policy.layout))
    noise = torch.zeros(1, 2, WINDOWS, 4)
    (taught, read), (louder, _) = (policy.model.react(scene, noise, heed=h) for h in (1.0, 3.0))
    # Later windows also hear what was done before. A frame follows the mean of the last ones.
    expected = read.expected[:, :W].expand(2, -1, -1)
    more = louder.frames[:, :W] - taught.frames[:, :W]
    torch.testing.assert_close(more[..., :4], 2 * (expected.cumsum(1) / W)[..., :4])
    assert not more[..., 4:].any(), "of jaws and heads what is expected is noise"


def test_what_is_expected_is_calmed_over_the_last_frames():
    path = torch.randn(3, 4 * W, 5, generator=torch.Generator().manual_seed(0))
    windows = [torch.zeros(3, W, 5), *path.split(W, dim=1)]
    found = torch.cat([calmed(a, b) for a, b in pairwise(windows)], dim=1)
    padded = torch.cat(windows, dim=1)
    for frame in range(4 * W):
        expected = padded[:, frame + 1 : frame + 1 + W].mean(1)
        torch.testing.assert_close(found[:, frame], expected)


def test_what_is_drawn_does_not_teach_what_is_expected(clip):
    policy = small_reactface()
    made, _ = policy.model.react(scene_of(policy, clip), torch.zeros(1, 2, WINDOWS, 4))
    made.frames.square().mean().backward()
    assert all(p.grad is None or not p.grad.any() for p in policy.model.expectation.parameters())
    assert policy.model.decode[0].weight.grad.any()


@pytest.mark.parametrize("expects", [True, False])
def test_nothing_is_expected_of_silence_in_the_dark(clip, expects):
    policy = small_reactface(expects=expects)
    scene = scene_of(policy, clip)
    assert policy.model.encode(scene).expected.any() == expects
    nobody = replace(scene, present=torch.zeros_like(scene.present))
    assert not policy.model.encode(nobody).expected.any()
    assert any("expect" in name for name in policy.model.state_dict()) == expects


# -- A policy --


def test_reactions_have_the_frames_of_their_clip(policy):
    """Windows need not fit: what the last is too long by is left out."""
    clip = talking(policy.layout)
    short = replace(
        clip,
        listener=clip.listener.window(0, 61),
        speaker=clip.speaker.window(0, 61),
        speaker_audio=clip.speaker_audio[: 61 * 640],
    )
    [[whole], [cut]] = policy.sample([policy.encode(c) for c in (clip, short)], 1, [5, 5])
    assert len(policy.to_motion(cut)) == 61 and cut.log_probs.shape == (8,)
    shared = policy.to_motion(whole).values[:61]
    np.testing.assert_allclose(policy.to_motion(cut).values, shared, atol=1e-5)
    assert policy.of_actions(np.arange(61.0)).tolist()[-2:] == [51.5, 58.0]
    packed = policy.pack(cut.actions)
    again = policy.to_motion(replace(cut, actions=np.array(packed, np.float32)))
    np.testing.assert_array_equal(again.values, policy.to_motion(cut).values)


def test_noise_is_of_seed_and_window_whatever_the_batch(policy, clip):
    others = [policy.encode(talking(policy.layout, n)) for n in range(3)]
    [[_, alone]] = policy.sample([policy.encode(clip)], 2, [7])
    among = policy.sample([*others, policy.encode(clip)], 2, [1, 2, 3, 7])[3][1]
    np.testing.assert_allclose(alone.actions, among.actions, atol=3e-5)
    [[other]] = policy.sample([policy.encode(clip)], 1, [8])
    assert np.abs(alone.actions - other.actions).max() > 0.1


def test_log_probs_are_those_of_torch(policy, clip):
    prompts = [policy.encode(talking(policy.layout, n)) for n in range(2)]
    groups = policy.sample(prompts, 3, [1, 2])
    batch = policy.collate([policy.prompt_row(prompt) for prompt in prompts])
    batch["actions"] = torch.stack([policy.collate_group(group)["actions"][0] for group in groups])
    log_probs = policy.action_log_probs(policy.module(), batch)
    sampled = torch.tensor(np.array([[r.log_probs for r in group] for group in groups]))
    torch.testing.assert_close(log_probs, sampled, atol=1e-4, rtol=1e-4)
    # By the distribution that free running met, once more.
    noise = torch.zeros(1, 1, WINDOWS, 4)
    made, _ = policy.model.react(Scene(**policy.collate([policy.prompt_row(prompts[0])])), noise)
    at_mean = Normal(made.mean, made.log_std.exp()).log_prob(made.mean).sum(-1)
    closed = -(made.log_std + 0.5 * np.log(2 * np.pi)).sum(-1)
    torch.testing.assert_close(at_mean, closed)


def test_kl_is_closed_and_of_itself_nothing(policy, clip):
    other = small_reactface(seed=1)
    [group] = policy.sample([policy.encode(clip)], 3, [1])
    batch = policy.collate([policy.prompt_row(policy.encode(clip))]) | policy.collate_group(group)
    own = policy.likelihood(policy.module(), batch)
    reference = other.likelihood(other.module(), batch).density
    kl = policy.kl(own, reference, batch)
    assert kl.shape == own.log_probs.shape == (3, WINDOWS)
    p, q = (Normal(d[..., 0, :], d[..., 1, :].exp()) for d in (own.density, reference))
    torch.testing.assert_close(kl, kl_divergence(p, q).sum(-1))
    assert (kl > 0).all() and (policy.kl(own, own.density, batch) == 0).all()
    # Against the mean of log p - log q over many draws of it.
    torch.manual_seed(0)
    drawn = p.sample((20_000,))
    estimate = (p.log_prob(drawn) - q.log_prob(drawn)).sum(-1).mean(0)
    torch.testing.assert_close(kl, estimate, rtol=0.05, atol=0.2)


def test_only_how_z_is_distributed_learns_from_likelihoods(policy, clip):
    [group] = policy.sample([policy.encode(clip)], 2, [1])
    batch = policy.collate([policy.prompt_row(policy.encode(clip))]) | policy.collate_group(group)
    policy.module().zero_grad()
    policy.likelihood(policy.module(), batch).log_probs.sum().backward()
    moved = {
        name.split(".")[0] for name, p in policy.model.named_parameters() if p.grad is not None
    }
    cie = {"own", "own_synchronisation", "remember", "prior", "mean", "log_std"}
    assert moved == cie  # what encodes and what decodes stays as it is
    policy.module().zero_grad()


LACKS = [{"speaker": None}, {"speaker_audio": None}, {"speaker": None, "speaker_audio": None}]


@pytest.mark.parametrize("lacks", LACKS)
def test_an_absent_stream_is_masked_and_not_zeros(policy, clip, lacks):
    batch = policy.collate([policy.prompt_row(policy.encode(replace(clip, **lacks)))])
    noise = torch.zeros(1, 1, WINDOWS, 4)
    absent, _ = policy.model.react(Scene(**batch), noise)
    filled = {
        name: batch[name] if there else torch.randn_like(batch[name])
        for name, there in zip(("motion", "voice"), batch["present"][0].tolist(), strict=True)
    }
    same, _ = policy.model.react(Scene(**filled, present=batch["present"]), noise)
    torch.testing.assert_close(same.frames, absent.frames, atol=0, rtol=0)
    zeros, _ = policy.model.react(replace(Scene(**batch), present=torch.ones(1, 2) > 0), noise)
    assert (zeros.frames - absent.frames).abs().max() > 1e-2


def test_a_recorded_listener_has_no_latents(policy, clip):
    with pytest.raises(ValueError, match=r"no z\*, and no probability"):
        policy.recorded(clip)


# -- Files --


def test_a_policy_comes_back_as_it_was(policy, clip, tmp_path):
    policy.save(tmp_path / "policy")
    again = load_policy(tmp_path / "policy")
    assert isinstance(again, ReactFacePolicy) and again.model.sizes == policy.model.sizes
    [[before]], [[after]] = (p.sample([p.encode(clip)], 1, [1]) for p in (policy, again))
    np.testing.assert_array_equal(before.actions, after.actions)


def test_damaged_checkpoints_are_named(policy, tmp_path):
    folder = tmp_path / "policy"
    for name in ("config.json", "model.safetensors"):
        policy.save(folder)
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match=f"has no {name}"):
            load_policy(folder)
    policy.save(folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match="holds no ReactFace"):
        load_policy(folder)
    save_file({"head.weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds no ReactFace"):
        load_policy(folder)
    policy.save(folder)
    sizes = json.loads((folder / "config.json").read_text())
    for damaged in ("{", json.dumps(sizes | {"hidden": 64}), json.dumps(sizes | {"width": 3})):
        (folder / "config.json").write_text(damaged)
        with pytest.raises(CheckpointError, match="holds no ReactFace"):
            load_policy(folder)
    assert load_file(folder / "model.safetensors").keys() == policy.weights().keys()


def test_a_policy_of_an_earlier_version_is_refused(policy, tmp_path):
    folder = tmp_path / "policy"
    policy.save(folder)
    weights = load_file(folder / "model.safetensors")
    del weights["axes.axes"]
    weights = {name: weight for name, weight in weights.items() if "decode" not in name}
    weights["widen.weight"] = torch.zeros(2, 2)  # of the decoder that it had
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="earlier version, .* train it again"):
        load_policy(folder)
