"""Initial weights of small policies: repeatable, bins in order, slots that attention can find."""

import pytest
import torch

from rapport.policies.motion import Layout
from rapport.policies.policy import weight_digest
from rapport.policies.vla.actions import ActionError, ActionSpace
from rapport.policies.vla.init import CODE_NORM, init_small
from rapport.policies.vla.loading import SequenceSizes, build_tiny, tiny_config
from rapport.policies.vla.model import FaceVLA
from rapport.policies.vla.text import build_text_tokenizer

DIMS, STEPS = 6, 5
SPACE = ActionSpace(Layout((("expr", 3), ("rot", 3)), 25, "builtin"), rate=5, seconds=1)
CONFIG = tiny_config(
    build_text_tokenizer(["hi"], text_vocabulary=300),
    SPACE,
    SequenceSizes(text_tokens=2),
    image_size=28,
    hidden=64,
    layers=2,
    heads=2,
    tower_hidden=16,
)


def test_a_head_of_half_a_chunk_is_refused():
    with pytest.raises(ActionError, match=r"vla.history 0.5 s / vla.chunk 1 s"):
        SequenceSizes(chunk=1.0, history=0.5).fields(SPACE)


@pytest.fixture(scope="module")
def model():
    return build_tiny(CONFIG, seed=0).eval()


def test_the_same_seed_gives_the_same_weights_whatever_was_there(model):
    torch.manual_seed(99)
    other = FaceVLA(CONFIG)
    with torch.no_grad():
        for parameter in other.language_model.model.layers.parameters():
            parameter.add_(1.0)
        for layer in other.language_model.model.layers:  # norms are not init_small's business
            layer.input_layernorm.weight.fill_(1.0)
            layer.post_attention_layernorm.weight.fill_(1.0)
    init_small(other, seed=0)
    language = {
        k: v for k, v in other.state_dict().items() if k.startswith(("language_model", "slots"))
    }
    assert weight_digest(language) == weight_digest({k: model.state_dict()[k] for k in language})
    assert weight_digest(build_tiny(CONFIG, seed=1).state_dict()) != weight_digest(
        model.state_dict()
    )


def test_building_leaves_the_callers_random_state_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    build_tiny(CONFIG, seed=1)
    assert torch.equal(torch.rand(3), wanted)


def test_neighbouring_bins_are_neighbours(model):
    rows = slice(CONFIG.action_token_start, CONFIG.action_token_start + CONFIG.action_bins)
    for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        bins = torch.nn.functional.normalize(table[rows], dim=1)
        near, far = (bins[:-1] * bins[1:]).sum(1), (bins[:128] * bins[128:]).sum(1)
        assert near.min() > 0.7 and near.mean() > far.mean() + 0.5


def test_a_slot_and_the_one_it_predicts_share_a_code_unlike_all_others(model):
    own, following = model.slots.own.weight, model.slots.next.weight
    torch.testing.assert_close(own, following)
    torch.testing.assert_close(own @ own.T, CODE_NORM**2 * torch.eye(DIMS), rtol=0, atol=1e-5)


def test_the_first_block_looks_at_earlier_tokens_of_its_slot_and_its_neighbours():
    """Attention of the first block, rotary positions included, averaged over random actions and
    both heads.
    """
    model = build_tiny(CONFIG, seed=0).eval()
    model.language_model.set_attn_implementation("eager")
    actions = 300 + torch.randint(
        0, 256, (16, DIMS * STEPS), generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        out = model.language_model.model(
            inputs_embeds=model.with_slots(
                model.get_input_embeddings()(actions),
                start=CONFIG.head_length + CONFIG.observation_length,
            ),
            output_attentions=True,
        )
    query = DIMS * (STEPS - 1) + 1  # holds dimension 1 of the last step, predicts dimension 2
    seen = (
        out.attentions[0].mean((0, 1))[query, : DIMS * (STEPS - 1)].reshape(STEPS - 1, DIMS).mean(0)
    )
    assert seen.argmax() == 1, seen  # same slot: it holds 1, predicts 2
    assert seen[2] > 1.5 * seen[3:].max(), seen  # holds 2, which is wanted
