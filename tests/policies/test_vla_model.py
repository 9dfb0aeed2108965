import numpy as np
import pytest
import torch

from rapport.policies.motion import Layout
from rapport.policies.vla.actions import ActionSpace
from rapport.policies.vla.loading import build_tiny, tiny_config
from rapport.policies.vla.model import SlotEmbedding, action_log_probs, standardise_pixels
from rapport.policies.vla.pretrained import freeze_streams
from rapport.policies.vla.prompt import build_prompt
from rapport.policies.vla.text import build_text_tokenizer

SPACE = ActionSpace(
    Layout((("expr", 3), ("rot", 3)), 25, "flame2020"), rate=5, seconds=2
)  # 10 steps x 6 dims
TOKENIZER = build_text_tokenizer(["hello there"], text_vocabulary=768)


def small_config(**changes):
    sizes = {
        "frames": 2,
        "text_tokens": 4,
        "hidden": 32,
        "layers": 2,
        "heads": 2,
        "tower_hidden": 16,
    }
    return tiny_config(TOKENIZER, SPACE, **{**sizes, **changes})


@pytest.fixture(scope="module")
def model():
    return build_tiny(small_config()).eval()


def batch(config, size=2, has_frames=True, seed=0):
    rng = np.random.default_rng(seed)
    prompt = np.stack([build_prompt(config, [300 + i, 301], has_frames) for i in range(size)])
    frames = rng.integers(0, 256, (size, config.frames, 56, 56, 3), dtype=np.uint8)
    actions = rng.integers(768, 1024, (size, SPACE.tokens))
    return torch.from_numpy(prompt), torch.from_numpy(frames), torch.from_numpy(actions)


def test_action_logits_are_the_slice_of_the_full_forward(model):
    prompt, frames, actions = batch(model.config)
    full = model(torch.cat([prompt, actions], dim=1), frames)
    start = model.config.prompt_length
    assert full.shape == (2, start + 60, 1024)
    expected = full[:, start - 1 : -1, 768:1024]
    torch.testing.assert_close(
        model.action_logits(prompt, frames, actions), expected, atol=1e-5, rtol=0
    )


def test_log_probs_are_over_the_bins_only_and_follow_the_temperature(model):
    prompt, frames, actions = batch(model.config)
    logits = model.action_logits(prompt, frames, actions)
    chosen = torch.nn.functional.one_hot(actions - 768, 256)
    for temperature in (1.0, 0.7):
        expected = ((logits / temperature).softmax(-1) * chosen).sum(-1).log()
        found = model.action_log_probs(prompt, frames, actions, temperature)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_log_prob_of_an_action_is_to_the_bit_what_a_loss_would_write_out(model):
    prompt, frames, actions = batch(model.config)
    pairs = torch.stack([actions, actions.flip(-1)], dim=1)
    logits = model.action_logits(prompt, frames, pairs)
    bins = (pairs - 768).unsqueeze(-1)
    for temperature in (1.0, 0.7):
        scaled = logits.float() / temperature
        expected = torch.log_softmax(scaled, dim=-1).gather(-1, bins).squeeze(-1)
        assert action_log_probs(logits, pairs, 768, temperature).equal(expected)
        assert model.action_log_probs(prompt, frames, pairs, temperature).equal(expected)
    half = action_log_probs(logits.bfloat16(), pairs, 768)
    assert half.dtype == torch.float32 and half.shape == pairs.shape


def test_an_action_does_not_see_itself_or_what_follows(model):
    prompt, frames, actions = batch(model.config)
    changed = actions.clone()
    changed[:, 30:] = 768
    before, after = (model.action_logits(prompt, frames, a) for a in (actions, changed))
    torch.testing.assert_close(before[:, :31], after[:, :31], atol=1e-6, rtol=0)
    assert not torch.allclose(before[:, 31:], after[:, 31:], atol=1e-4)


def test_several_continuations_of_a_prompt_equal_one_by_one():
    """Values and gradients: the prompt they share is computed once, its gradient is the sum over
    them.
    """
    model = build_tiny(small_config()).train()
    prompt, frames, actions = batch(model.config, size=2)
    several = torch.stack([actions, actions.flip(1), actions.flip(0)], dim=1)  # (2, 3, n)
    weight = torch.linspace(-1, 1, several.numel()).reshape(several.shape)

    def log_probs(ids):
        logits = model.action_logits(prompt, frames, ids)
        return logits.log_softmax(-1).gather(-1, (ids - 768).unsqueeze(-1)).squeeze(-1)

    def gradients(values):
        model.zero_grad()
        (values * weight).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    together = log_probs(several)
    assert together.shape == several.shape
    shared = gradients(together)
    one_by_one = torch.stack([log_probs(several[:, k]) for k in range(3)], dim=1)
    torch.testing.assert_close(together, one_by_one)
    for name, gradient in gradients(one_by_one).items():
        torch.testing.assert_close(
            shared[name], gradient, atol=1e-4 * gradient.abs().max().item() + 1e-6, rtol=0
        )


def test_gradient_checkpointing_changes_no_number():
    model = build_tiny(small_config()).train()
    prompt, frames, actions = batch(model.config, size=2)
    pairs = torch.stack([actions, actions.flip(1)], dim=1)
    plain = model.action_log_probs(prompt, frames, pairs)
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(model.action_log_probs(prompt, frames, pairs), plain)


def test_clips_with_and_without_frames_share_a_batch(model):
    prompt, frames, actions = batch(model.config)
    prompt[1] = torch.from_numpy(build_prompt(model.config, [301], has_frames=False))
    mixed = model.action_logits(prompt, frames, actions)
    alone = model.action_logits(prompt[1:], None, actions[1:])
    torch.testing.assert_close(mixed[1:], alone, atol=1e-5, rtol=0)
    other = frames.clone()
    other[1] = 255 - other[1]
    torch.testing.assert_close(model.action_logits(prompt, other, actions), mixed)


def test_frames_and_text_reach_every_action(model):
    prompt, frames, actions = batch(model.config, size=1)
    with torch.no_grad():
        base = model.action_logits(prompt, frames, actions)
        other = frames.clone()
        other[0, 1] = 0
        assert ((model.action_logits(prompt, other, actions) - base).abs().amax(-1) > 0).all()
        prompt[0, -2] += 1
        assert ((model.action_logits(prompt, frames, actions) - base).abs().amax(-1) > 0).all()


def test_absent_frames_differ_from_black_frames(model):
    prompt, frames, actions = batch(model.config, size=1)
    absent = torch.from_numpy(build_prompt(model.config, [300, 301], has_frames=False))[None]
    black = model.action_logits(prompt, torch.zeros_like(frames), actions)
    assert not torch.allclose(model.action_logits(absent, None, actions), black, atol=1e-4)


def test_image_tokens_without_frames_and_wrong_shapes_are_refused(model):
    prompt, frames, actions = batch(model.config)
    with pytest.raises(ValueError, match="no frames were given"):
        model.action_logits(prompt, None, actions)
    with pytest.raises(ValueError, match="select_frames"):
        model.action_logits(prompt, frames[:, :1], actions)
    with pytest.raises(TypeError, match="uint8"):
        model.action_logits(prompt, frames.float(), actions)
    with pytest.raises(ValueError, match="build_prompt"):
        model.action_logits(prompt[:, 1:], frames, actions)


def test_sampling_returns_the_log_probs_that_teacher_forcing_gives(model):
    prompt, frames, _ = batch(model.config, size=3)
    generator = torch.Generator().manual_seed(1)
    ids, log_probs = model.sample_actions(prompt, frames, temperature=0.8, generator=generator)
    assert ids.shape == (3, 60) and ids.min() >= 768 and ids.max() < 1024
    again = model.action_log_probs(prompt, frames, ids, temperature=0.8)
    torch.testing.assert_close(again, log_probs, atol=1e-4, rtol=0)


def test_sampling_follows_the_model(model):
    prompt, frames, _ = batch(model.config, size=1)
    with torch.no_grad():
        probs = model.action_logits(prompt, frames, torch.tensor([[768]]))[0, 0].softmax(-1)
    many = prompt.expand(2000, -1)
    generator = torch.Generator().manual_seed(0)
    ids, _ = model.sample_actions(
        many[:500], frames.expand(500, -1, -1, -1, -1), generator=generator, tokens=1
    )
    assert (
        abs(((ids - 768).float().mean() - (probs * torch.arange(256)).sum()).item())
        < 4 * 74 / 500**0.5
    )


def test_slots_by_hand():
    slots = SlotEmbedding(dims=2, steps=2, hidden=1)
    with torch.no_grad():
        slots.own.weight.copy_(torch.tensor([[1.0], [2.0]]))
        slots.next.weight.copy_(torch.tensor([[10.0], [20.0]]))
        slots.step.weight.copy_(torch.tensor([[100.0], [200.0]]))
    # before <act>, <act>, actions (0,0) (0,1) (1,0), last action (1,1), beyond
    found = slots(torch.tensor([-1, 0, 1, 2, 3, 4, 5])).squeeze(-1)
    assert found.tolist() == [0, 110, 121, 212, 221, 2, 0]


def test_slots_start_at_the_act_token(model):
    prompt, frames, actions = batch(model.config, size=1)
    with torch.no_grad():
        plain = build_tiny(small_config(slot_embeddings=False)).eval()
        plain.load_state_dict(model.state_dict(), strict=False)
        difference = model.embed_prompt(prompt, frames) - plain.embed_prompt(prompt, frames)
        expected = model.slots.next.weight[0] + model.slots.step.weight[0]
    assert (difference[0, :-1] == 0).all()
    torch.testing.assert_close(difference[0, -1], expected)
    difference = model.embed_actions(actions) - plain.embed_actions(actions)
    torch.testing.assert_close(difference[0], model.slots(torch.arange(1, 61)))


def test_every_parameter_learns_from_a_batch_with_frames():
    model = build_tiny(small_config())
    prompt, frames, actions = batch(model.config)
    prompt[1] = torch.from_numpy(build_prompt(model.config, None, has_frames=False))
    model.action_log_probs(prompt, frames, actions).sum().backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or (p.grad == 0).all()]
    # a key bias shifts all scores of a query alike, so softmax never feels it
    assert [n for n in dead if not n.endswith("k_proj.bias")] == []


def test_frozen_streams_get_no_gradient_but_the_projector_does():
    model = build_tiny(small_config())
    freeze_streams(model)
    prompt, frames, actions = batch(model.config)
    model.action_log_probs(prompt, frames, actions).sum().backward()
    assert all(p.grad is None for p in model.vision.dino.parameters())
    assert all(p.grad is None for p in model.vision.siglip.parameters())
    assert all(p.grad is not None for p in model.vision.projector.parameters())


def test_each_stream_has_its_own_normalisation_and_size():
    frames = torch.full((1, 8, 8, 3), 255, dtype=torch.uint8)
    pixels = standardise_pixels(frames, (0.5, 0.5, 0.0), (0.5, 0.25, 1.0), 4)
    assert pixels.shape == (1, 3, 4, 4)
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([1.0, 2.0, 1.0]))


def test_features_come_from_the_last_kept_block_without_the_final_norm(model):
    frames = torch.randint(0, 256, (1, 56, 56, 3), dtype=torch.uint8)
    vision = model.vision
    features = []
    hook = vision.projector.register_forward_pre_hook(lambda _, args: features.append(args[0]))
    vision(frames)
    hook.remove()
    dino = standardise_pixels(frames, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 56)
    hidden = vision.dino.embeddings(dino)
    for layer in vision.dino.encoder.layer:
        hidden = layer(hidden)
    torch.testing.assert_close(features[0][..., :16], hidden[:, 1:])
    assert features[0].shape == (1, 16, 32)


def test_neighbouring_bins_start_alike(model):
    tables = (model.get_input_embeddings().weight, 0.5), (model.get_output_embeddings().weight, 1.0)
    for table, norm in tables:
        rows = table[768:1024].detach()
        near = torch.cosine_similarity(rows[:-1], rows[1:]).mean()
        far = torch.cosine_similarity(rows[:128], rows[128:]).mean()
        assert near > 0.95 and far < 0.5
        assert rows.norm(dim=1).mean() == pytest.approx(norm, rel=1e-5)


def test_same_seed_same_weights_and_no_trace_on_the_callers_random_state():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, second, third = (build_tiny(small_config(), seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert not torch.equal(first.vision.projector.fc1.weight, third.vision.projector.fc1.weight)
