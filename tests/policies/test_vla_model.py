"""The network: one interleaved pass, slots by position, sampling as teacher forcing says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rapport.policies.vla.encoders import standardise_pixels
from rapport.policies.vla.loading import build_tiny
from rapport.policies.vla.model import action_log_probs
from rapport.policies.vla.pretrained import freeze_streams
from rapport.policies.vla.sampling import chunk_noise, sample_prompt
from rapport.policies.vla.sequence import (
    context_ids,
    context_of,
    later,
    seen_of,
    without,
)
from tests.talking import SEQUENCE, small_policy, talking

POLICY = small_policy()
CONFIG = POLICY.model.config
FIRST = CONFIG.action_token_start


@pytest.fixture(scope="module")
def model():
    return POLICY.model


def batch(policy=POLICY, size=2, **changes):
    clips = [replace(talking(seed=seed), **changes) for seed in range(size)]
    actions = np.stack([policy.recorded(clip).actions for clip in clips])
    return seen_of(policy.model.config, [policy.encode(c) for c in clips]), torch.from_numpy(
        actions
    )


def test_the_sequence_by_hand():
    seen, actions = batch(size=1)
    ids = context_ids(CONFIG, seen, actions[:, :12])[0].tolist()  # the second chunk is to be acted
    image, act = CONFIG.image_token_id, CONFIG.act_token_id
    prompt = POLICY.encode(talking())
    item = [image] * 3  # a frame, two of voice
    head = [CONFIG.bos_token_id, *item, *item, *prompt.heard[0], *prompt.own]
    chunks = [*item, *prompt.said[0], act, *actions[0, :12].tolist(), *item, *prompt.said[1], act]
    assert ids == head + chunks
    assert len(head) == CONFIG.head_length and len(chunks) == 2 * CONFIG.period - 12


def test_a_second_context_begins_with_the_last_pose_and_what_was_known_then():
    seen, actions = batch(size=1)
    shown, before = context_of(CONFIG, seen, actions[:, :24])  # two chunks of 12 make a context
    assert before.shape == (1, 0) and torch.equal(shown["own"], actions[:, 21:24])
    prompt = POLICY.encode(talking())
    ids = context_ids(CONFIG, shown, before)[0].tolist()
    head = ids[: CONFIG.head_length]
    assert head[7:13] == prompt.heard[2].tolist() and head[13:] == actions[0, 21:24].tolist()
    np.testing.assert_array_equal(shown["frames"][0, 0], prompt.frames[2])


def test_action_logits_are_the_slice_of_the_full_forward(model):
    seen, actions = batch()
    perceived = model.perceive(seen)
    logits = model.action_logits(seen, actions)
    assert logits.shape == (2, 48, 256)
    for start in (0, 2):
        part = slice(12 * start, 12 * start + 24)
        shown = later(seen, start, actions[:, 21:24] if start else seen["own"])
        ids = context_ids(CONFIG, shown, actions[:, part][:, :-1])
        full = model(ids, perceived[:, start:])
        # Behind <act>, and behind every action but the last of a chunk.
        acts = (ids[0] == CONFIG.act_token_id).nonzero().flatten().tolist()
        places = [act + step for act in acts for step in range(12)]
        expected = full[:, places, FIRST : FIRST + 256]
        torch.testing.assert_close(logits[:, part], expected, atol=1e-5, rtol=0)


def test_log_probs_are_over_the_bins_only_and_follow_the_temperature(model):
    seen, actions = batch()
    logits = model.action_logits(seen, actions)
    chosen = torch.nn.functional.one_hot(actions - FIRST, 256)
    for temperature in (1.0, 0.7):
        expected = ((logits / temperature).softmax(-1) * chosen).sum(-1).log()
        found = model.action_log_probs(seen, actions, temperature)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_log_prob_of_an_action_is_to_the_bit_what_a_loss_would_write_out(model):
    seen, actions = batch()
    pairs = torch.stack([actions, actions.flip(-1)], dim=1)
    logits = model.action_logits(seen, pairs)
    bins = (pairs - FIRST).unsqueeze(-1)
    for temperature in (1.0, 0.7):
        expected = torch.log_softmax(logits.float() / temperature, -1).gather(-1, bins).squeeze(-1)
        assert action_log_probs(logits, pairs, FIRST, temperature).equal(expected)
        assert model.action_log_probs(seen, pairs, temperature).equal(expected)
    half = action_log_probs(logits.bfloat16(), pairs, FIRST)
    assert half.dtype == torch.float32 and half.shape == pairs.shape


def test_an_action_does_not_see_itself_or_what_follows(model):
    seen, actions = batch()
    changed = actions.clone()
    changed[:, 30:] = FIRST
    before, after = (model.action_logits(seen, a) for a in (actions, changed))
    assert torch.equal(before[:, :31], after[:, :31])
    assert not torch.allclose(before[:, 31:], after[:, 31:], atol=1e-4)


def test_a_beginning_is_likely_as_it_is_in_the_whole(model):
    seen, actions = batch()
    whole = model.action_log_probs(seen, actions)
    for count in (1, 12, 13, 24, 25, 40):
        found = model.action_log_probs(seen, actions[:, :count])
        torch.testing.assert_close(found, whole[:, :count], atol=1e-5, rtol=0)


def test_several_reactions_to_a_prompt_equal_one_by_one():
    """Values and gradients: the prompt is looked at once, its gradient is the sum over them."""
    policy = small_policy()
    model = policy.model.train()
    seen, actions = batch(policy)
    several = torch.stack([actions, actions.flip(1), actions.flip(0)], dim=1)  # (2, 3, n)
    weight = torch.linspace(-1, 1, several.numel()).reshape(several.shape)

    def gradients(values):
        model.zero_grad()
        (values * weight).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    together = model.action_log_probs(seen, several)
    assert together.shape == several.shape
    shared = gradients(together)
    one_by_one = torch.stack([model.action_log_probs(seen, several[:, k]) for k in range(3)], dim=1)
    torch.testing.assert_close(together, one_by_one)
    for name, gradient in gradients(one_by_one).items():
        torch.testing.assert_close(
            shared[name], gradient, atol=1e-4 * gradient.abs().max().item() + 1e-6, rtol=0
        )


def test_gradient_checkpointing_changes_no_number():
    policy = small_policy()
    model = policy.model.train()
    seen, actions = batch(policy)
    pairs = torch.stack([actions, actions.flip(1)], dim=1)
    plain = model.action_log_probs(seen, pairs)
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(model.action_log_probs(seen, pairs), plain)


def test_what_is_absent_is_never_looked_at(model):
    seen, actions = batch()
    hidden = {"frames": torch.tensor([False, True]), "voice": torch.tensor([True, False])}
    blank = without(CONFIG, seen, hidden)
    other = dict(blank)
    other["frames"] = blank["frames"].clone()
    other["frames"][1] = 255 - other["frames"][1]
    other["voice"] = blank["voice"].clone()
    other["voice"][0] = 255 - other["voice"][0]
    assert torch.equal(model.action_logits(blank, actions), model.action_logits(other, actions))
    shown = model.action_logits(seen, actions)
    assert not torch.allclose(model.action_logits(blank, actions), shown, atol=1e-4)


@pytest.mark.parametrize("stream", ["frames", "voice", "words"])
def test_a_stream_set_absent_is_a_clip_that_lacks_it(model, stream):
    seen, actions = batch()
    lacking = {"frames": "speaker_frames", "voice": "speaker_audio", "words": "words"}[stream]
    clips = []
    for seed in range(2):
        clip = talking(seed=seed)
        past = {"frames": "speaker_frames", "voice": "speaker_audio", "words": "words"}[stream]
        clips.append(replace(clip, **{lacking: None, "past": replace(clip.past, **{past: None})}))
    lacks = seen_of(CONFIG, [POLICY.encode(clip) for clip in clips])
    everywhere = torch.ones(2, dtype=torch.bool)
    found = model.action_logits(without(CONFIG, seen, {stream: everywhere}), actions)
    torch.testing.assert_close(found, model.action_logits(lacks, actions), atol=1e-5, rtol=0)


@pytest.mark.parametrize("stream", ["frames", "voice", "said", "heard", "own"])
def test_all_that_is_shown_reaches_the_actions(model, stream):
    seen, actions = batch(size=1)
    base = model.action_logits(seen, actions)
    other = dict(seen)
    other[stream] = seen[stream].clone()
    if stream in ("frames", "voice"):
        other[stream][0] = 255 - other[stream][0]
    else:
        other[stream][0, ..., -1] += 1
    # `own` is replaced by the pose of the policy's own action in the second context.
    until = 24 if stream == "own" else 48
    assert ((model.action_logits(other, actions) - base)[:, :until].abs().amax(-1) > 0).all()


def test_absent_frames_differ_from_black_frames(model):
    seen, actions = batch(size=1)
    black = dict(seen) | {"frames": torch.zeros_like(seen["frames"])}
    absent = without(CONFIG, black, {"frames": torch.tensor([True])})
    found = [model.action_logits(shown, actions) for shown in (black, absent)]
    assert not torch.allclose(*found, atol=1e-4)


def test_wrong_shapes_are_refused(model):
    seen, actions = batch()
    with pytest.raises(ValueError, match="build_prompt"):
        model.action_logits(dict(seen) | {"frames": seen["frames"][..., :20, :]}, actions)
    with pytest.raises(TypeError, match="uint8"):
        model.action_logits(dict(seen) | {"frames": seen["frames"].float()}, actions)


def test_perception_tokens_have_the_size_of_text(model):
    seen, _ = batch()
    rms = model.perceive(seen).square().mean(-1).sqrt()
    torch.testing.assert_close(
        rms, torch.full_like(rms, CONFIG.perception_scale), atol=1e-3, rtol=0
    )
    text = model.get_input_embeddings().weight.square().mean().sqrt()
    assert 0.3 < rms.mean() / text < 3


def test_patches_are_averaged_to_the_tokens_of_a_frame():
    policy = small_policy(sequence=replace(SEQUENCE, tokens_per_frame=4))
    seen, actions = batch(policy)
    assert policy.model.config.item_tokens == 6
    assert policy.model.perceive(seen).shape == (2, policy.model.config.items, 6, 32)
    assert policy.model.action_logits(seen, actions).shape == (2, 48, 256)


def test_sampling_returns_the_log_probs_that_teacher_forcing_gives(model):
    prompt = POLICY.encode(talking())
    ids, log_probs = sample_prompt(model, prompt, samples=3, seed=1, temperature=0.8)
    assert ids.shape == (3, 48) and ids.min() >= FIRST and ids.max() < FIRST + 256
    assert (ids[0] != ids[1]).any()
    seen = seen_of(CONFIG, [prompt])
    again = model.action_log_probs(seen, torch.from_numpy(ids)[None], temperature=0.8)[0]
    torch.testing.assert_close(again.detach(), torch.from_numpy(log_probs), atol=1e-4, rtol=0)


def test_an_answer_that_has_begun_goes_on_as_it_would_have(model):
    prompt = POLICY.encode(talking())
    whole, log_probs = sample_prompt(model, prompt, samples=1, seed=1, temperature=1.0)
    for begun in (7, 12, 30):
        later_prompt = replace(prompt, begun=whole[0, :begun])
        rest, probs = sample_prompt(
            model, later_prompt, samples=1, seed=1, temperature=1.0, tokens=15
        )
        np.testing.assert_array_equal(rest[0], whole[0, begun : begun + 15])
        np.testing.assert_allclose(probs[0], log_probs[0, begun : begun + 15], atol=1e-4)


def test_sampling_follows_the_model(model):
    prompt = POLICY.encode(talking())
    actions = torch.full((1, 1), FIRST)
    probs = model.action_logits(seen_of(CONFIG, [prompt]), actions)[0, 0].detach().softmax(-1)
    ids, _ = sample_prompt(model, prompt, samples=500, seed=0, temperature=1.0, tokens=1)
    mean = (probs * torch.arange(256)).sum().item()
    assert abs((ids - FIRST).mean() - mean) < 4 * 74 / 500**0.5


def test_every_chunk_and_sample_has_noise_of_its_own():
    noises = [
        chunk_noise(seed, name, sample, chunk, 8)
        for seed in (0, 1)
        for name in ("a", "b")
        for sample in (0, 1)
        for chunk in (0, 1)
    ]
    assert len({tuple(noise) for noise in noises}) == len(noises)


def test_slots_by_hand(model):
    table = model.slots
    with torch.no_grad():
        plain = small_policy(slot_embeddings=False).model
        plain.load_state_dict(model.state_dict(), strict=False)
        seen, actions = batch(size=1)
        ids = context_ids(CONFIG, seen, actions[:, :23])
        perceived = model.perceive(seen)
        added = (model.embed(ids, perceived) - plain.embed(ids, perceived))[0]
        own, ahead, step = (t.weight for t in (table.own, table.next, table.step))
        expected = torch.zeros_like(added)
        expected[CONFIG.head_length - 3 : CONFIG.head_length] = own[3:]  # of the pose
        for chunk in range(2):
            act = CONFIG.head_length + chunk * CONFIG.period + CONFIG.observation_length - 1
            for action in range(12):
                if act + action < len(added):
                    expected[act + action] += ahead[action % 6] + step[action // 6]
                if act + action + 1 < len(added):
                    expected[act + action + 1] += own[action % 6]
    torch.testing.assert_close(added, expected, atol=1e-6, rtol=0)


def test_every_parameter_learns():
    policy = small_policy()
    seen, actions = batch(policy)
    seen = without(policy.model.config, seen, {"words": torch.tensor([True, False])})
    policy.model.action_log_probs(seen, actions).sum().backward()
    named = policy.model.named_parameters()
    dead = [n for n, p in named if p.grad is None or (p.grad == 0).all()]
    # a key bias shifts all scores of a query alike, so softmax never feels it
    assert [n for n in dead if not n.endswith("k_proj.bias")] == []


def test_frozen_streams_get_no_gradient_but_the_projector_does():
    policy = small_policy()
    model = policy.model
    freeze_streams(model)
    model.action_log_probs(*batch(policy)).sum().backward()
    assert all(p.grad is None for p in model.vision.dino.parameters())
    assert all(p.grad is None for p in model.vision.siglip.parameters())
    assert all(p.grad is not None for p in model.vision.projector.parameters())


def test_each_stream_has_its_own_normalisation_and_size():
    frames = torch.full((1, 8, 8, 3), 255, dtype=torch.uint8)
    pixels = standardise_pixels(frames, (0.5, 0.5, 0.0), (0.5, 0.25, 1.0), 4)
    assert pixels.shape == (1, 3, 4, 4)
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([1.0, 2.0, 1.0]))


def test_features_are_the_normed_output_of_the_last_kept_block(model):
    frames = torch.randint(0, 256, (1, 28, 28, 3), dtype=torch.uint8)
    vision = model.vision
    features = []
    hook = vision.projector.register_forward_pre_hook(lambda _, args: features.append(args[0]))
    vision(frames)
    hook.remove()
    hidden = vision.dino.embeddings(
        standardise_pixels(frames, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 28)
    )
    for layer in vision.dino.encoder.layer:
        hidden = layer(hidden)
    patches = hidden[:, 1:]
    normed = (patches - patches.mean(-1, keepdim=True)) / patches.std(
        -1, correction=0, keepdim=True
    )
    torch.testing.assert_close(features[0][..., :16], normed, atol=1e-3, rtol=0)
    assert features[0].shape == (1, 4, 32)


def test_a_silent_chunk_has_a_slope():
    policy = small_policy()
    bands = torch.zeros((1, 60, 32), dtype=torch.uint8)
    policy.model.voice(bands).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.model.voice.parameters())


def test_neighbouring_bins_start_alike(model):
    tables = (model.get_input_embeddings().weight, 0.5), (model.get_output_embeddings().weight, 1.0)
    for table, norm in tables:
        rows = table[FIRST : FIRST + 256].detach()
        near = torch.cosine_similarity(rows[:-1], rows[1:]).mean()
        far = torch.cosine_similarity(rows[:128], rows[128:]).mean()
        assert near > 0.95 and far < 0.5
        assert rows.norm(dim=1).mean() == pytest.approx(norm, rel=1e-5)


def test_same_seed_same_weights_and_no_trace_on_the_callers_random_state():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, second, third = (build_tiny(CONFIG, seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert not torch.equal(first.vision.projector.fc1.weight, third.vision.projector.fc1.weight)
