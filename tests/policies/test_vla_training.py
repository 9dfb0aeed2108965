"""Batches, and windows of an action sequence."""

import numpy as np
import pytest
import torch

from rapport.policies.motion import Layout
from rapport.policies.vla.actions import ActionSpace
from rapport.policies.vla.loading import build_tiny, tiny_config
from rapport.policies.vla.prompt import build_prompt
from rapport.policies.vla.text import build_text_tokenizer
from rapport.policies.vla.training import ActionLogits, collate_prompts, policy_state

SPACE = ActionSpace(
    Layout((("expr", 2), ("rot", 1)), 25, "builtin"), rate=5, seconds=1
)  # 5 steps x 3
CONFIG = tiny_config(
    build_text_tokenizer(["hi"], text_vocabulary=300),
    SPACE,
    frames=1,
    image_size=28,
    text_tokens=2,
    hidden=32,
    layers=2,
    heads=2,
    tower_hidden=16,
)


@pytest.fixture(scope="module")
def model():
    return build_tiny(CONFIG, seed=0).eval()


def row(name, frames=True):
    pixels = np.random.default_rng(len(name)).integers(0, 256, (1, 28, 28, 3), dtype=np.uint8)
    return {
        "prompt_id": name,
        "prompt": build_prompt(CONFIG, [9], frames).tolist(),
        "frames": pixels.tobytes() if frames else None,
    }


def test_absent_frames_are_blank_and_do_not_change_the_logits(model):
    prompts, frames = collate_prompts([row("a"), row("bb", frames=False)], CONFIG)
    assert prompts.shape == (2, CONFIG.prompt_length) and frames.shape == (2, 1, 28, 28, 3)
    np.testing.assert_array_equal(frames[0].numpy().tobytes(), row("a")["frames"])
    assert frames[1].max() == 0
    actions = torch.arange(300, 330).reshape(2, 15)
    other = frames.clone()
    other[1] = 200
    with torch.no_grad():
        shown, blanked = (model.action_logits(prompts, f, actions) for f in (frames, other))
        alone = model.action_logits(prompts[1:], None, actions[1:])
    torch.testing.assert_close(shown, blanked, rtol=0, atol=1e-6)
    torch.testing.assert_close(shown[1:], alone, rtol=0, atol=1e-5)


def hand_built_window(model, prompt, frames, actions, first):
    """Logits of a window by the definition: one sequence in which an action sees those before it,
    the first the prompt.

    Tokens stand at their own positions, which RoPE does not need.
    """
    dims, length = CONFIG.action_dims, CONFIG.prompt_length
    table = model.get_input_embeddings()
    inputs = torch.cat([table(prompt), table(actions[:, :-1])], dim=1)
    seen = model.vision(frames.flatten(0, 1)).reshape(len(prompt), CONFIG.image_tokens, -1)
    inputs[:, 1 : 1 + CONFIG.image_tokens] = seen
    for j in range(actions.shape[1]):  # the input at <act>, then each action but the last
        ahead = first * dims + j
        slot = model.slots.next.weight[ahead % dims] + model.slots.step.weight[ahead // dims]
        # <act> stands before the first action, whichever it is, and holds none.
        held = model.slots.own.weight[(ahead - 1) % dims] if j else 0
        inputs[:, length - 1 + j] += slot + held
    positions = [*range(length), *(length + first * dims + j for j in range(actions.shape[1] - 1))]
    mask = torch.ones(len(positions), len(positions), dtype=torch.bool).tril()
    mask[length:, :length] = False
    out = model.language_model.model(
        inputs_embeds=inputs,
        attention_mask=mask[None, None],
        position_ids=torch.tensor([positions]),
        use_cache=False,
    )
    logits = out.last_hidden_state[:, length - 1 :] @ model.language_model.lm_head.weight.T
    return logits[..., CONFIG.action_token_start : CONFIG.action_token_start + CONFIG.action_bins]


@pytest.mark.parametrize("first", [0, 1, 3])
def test_logits_of_a_window_are_those_of_a_hand_built_call(model, first):
    prompts, frames = collate_prompts([row("a"), row("ccc")], CONFIG)
    actions = 300 + torch.randint(0, 256, (2, 6), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = ActionLogits(model)(prompts, frames, actions, first)
        wanted = hand_built_window(model, prompts, frames, actions, first)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_the_first_action_of_a_window_is_told_by_the_prompt_and_the_others_by_it(model):
    prompts, frames = collate_prompts([row("a")], CONFIG)
    actions = 300 + torch.arange(6)[None]
    with torch.no_grad():
        shown, turned = (
            model.window_logits(prompts, f, actions, 2) for f in (frames, 255 - frames)
        )
        whole = model.action_logits(prompts, frames, actions)
        start = model.window_logits(prompts, frames, actions, 0)
    assert (shown[:, 0] - turned[:, 0]).abs().max() > 1e-6 and torch.equal(
        shown[:, 1:], turned[:, 1:]
    )
    torch.testing.assert_close(start[:, 0], whole[:, 0], rtol=0, atol=1e-5)


def test_the_trained_module_wraps_the_policy_by_name_only(model):
    state = policy_state(ActionLogits(model).state_dict())
    assert state.keys() == model.state_dict().keys()
