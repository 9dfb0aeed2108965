"""Assembly from published parts and from OpenVLA-lineage checkpoints, on small generated ones."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionModel

from rapport.policies.motion import Layout
from rapport.policies.policy import CheckpointError
from rapport.policies.vla.actions import ActionSpace, ActionTokenizer
from rapport.policies.vla.config import FaceVLAConfig
from rapport.policies.vla.encoders import standardise_pixels
from rapport.policies.vla.loading import SequenceSizes, load_checkpoint, save_checkpoint
from rapport.policies.vla.lora import add_lora
from rapport.policies.vla.model import FaceVLA
from rapport.policies.vla.openvla import load_openvla, read_weights
from rapport.policies.vla.pretrained import load_pretrained, resize_positions
from rapport.policies.vla.text import encode_text, load_llama_tokenizer, special_ids
from tests.published import LLAMA_2, LLAMA_3, QWEN, save_parts, save_tokenizer, shards
from tests.talking import made_up

SPACE = ActionSpace(Layout((("expr", 3), ("rot", 3)), 25, "flame2020"), rate=5, seconds=2)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SEQUENCE = SequenceSizes(context=2.0, text_tokens=4)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


# A vision transformer in timm's parameter names, written out independently of transformers.


def timm_weights(width, depth, grid, registers, scale, generator):
    def rand(*shape):
        return torch.randn(*shape, generator=generator) * 0.2

    weights = {
        "pos_embed": rand(1, grid * grid, width),
        "patch_embed.proj.weight": rand(width, 3, 14, 14),
    }
    weights |= {
        "patch_embed.proj.bias": rand(width),
        "norm.weight": rand(width),
        "norm.bias": rand(width),
    }
    if registers:
        weights |= {"cls_token": rand(1, 1, width), "reg_token": rand(1, registers, width)}
    shapes = {
        "norm1": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width),
        "norm2": (width,), "mlp.fc1": (2 * width, width), "mlp.fc2": (width, 2 * width),
    }  # fmt: skip
    for i in range(depth):
        for name, shape in shapes.items():
            weights[f"blocks.{i}.{name}.weight"] = rand(*shape)
            weights[f"blocks.{i}.{name}.bias"] = rand(shape[0])
        if scale:
            weights |= {
                f"blocks.{i}.ls1.{scale}": rand(width),
                f"blocks.{i}.ls2.{scale}": rand(width),
            }
    return weights


def timm_features(w, pixels, heads, blocks, registers, scale):
    """Output of block number `blocks`, without class and register tokens: timm's
    get_intermediate_layers.
    """

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    x = (
        F.conv2d(pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=14)
        .flatten(2)
        .transpose(1, 2)
    )
    x = x + w["pos_embed"]
    if registers:
        x = torch.cat(
            [w["cls_token"].expand(len(x), -1, -1), w["reg_token"].expand(len(x), -1, -1), x], dim=1
        )
    for i in range(blocks):
        block = f"blocks.{i}"
        q, k, v = (
            linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
            .unflatten(-1, (3, heads, -1))
            .unbind(2)
        )
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2)
        x = x + linear(mixed, f"{block}.attn.proj") * (w[f"{block}.ls1.{scale}"] if scale else 1)
        inner = linear(
            F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2"
        )
        x = x + inner * (w[f"{block}.ls2.{scale}"] if scale else 1)
    return x[:, 1 + registers :] if registers else x


def lineage_config(**changes):
    tower = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "image_size": 56,
        "patch_size": 14,
    }
    text = {
        "vocab_size": 520,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    dino = {
        **tower,
        "model_type": "dinov2_with_registers",
        "mlp_ratio": 2,
        "num_register_tokens": 4,
    }
    siglip = {**tower, "intermediate_size": 32, "hidden_act": "gelu"}
    config = {
        "text_config": text,
        "dino_config": dino,
        "siglip_config": siglip,
        "frames": 2,
        "text_tokens": 4,
        "action_dims": 6,
        "pose_dims": [3, 4, 5],
        "action_steps": 10,
        "context_chunks": 2,
        "tokens_per_frame": 16,
        "voice_tokens": 0,
        "action_token_start": 256,
    }
    return FaceVLAConfig(**{**config, **changes})


@pytest.fixture(params=["scale_factor", "gamma"])
def prismatic(request):
    """A checkpoint in OpenVLA's naming: three timm blocks, of which the last is not used; and its
    language model.
    """
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    dino = timm_weights(16, 3, 4, 4, request.param, generator)
    siglip = timm_weights(16, 3, 4, 0, None, generator) | {
        "attn_pool.latent": torch.zeros(1, 1, 16)
    }
    llama = LlamaForCausalLM(
        LlamaConfig(**{**lineage_config().text_config.to_dict(), "vocab_size": 512})
    )
    projector = {
        f"fc{i}.{leaf}": torch.randn(shape if leaf == "weight" else shape[:1], generator=generator)
        for i, shape in ((1, (128, 32)), (2, (32, 128)), (3, (32, 32)))
        for leaf in ("weight", "bias")
    }
    weights = {f"vision_backbone.featurizer.{k}": v for k, v in dino.items()}
    weights |= {f"vision_backbone.fused_featurizer.{k}": v for k, v in siglip.items()}
    weights |= {f"projector.{k}": v for k, v in projector.items()}
    weights |= {f"language_model.{k}": v.detach() for k, v in llama.state_dict().items()}
    return weights, dino, siglip, llama, request.param


def test_openvla_streams_give_the_features_of_timm(prismatic):
    weights, dino, siglip, _, scale = prismatic
    model = FaceVLA(lineage_config()).eval()
    load_openvla(model, weights.items())
    frames = torch.randint(0, 256, (3, 56, 56, 3), dtype=torch.uint8)
    seen = []
    model.vision.projector.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tokens = model.vision.features(frames)
    expected = torch.cat(
        [
            F.layer_norm(features, (16,))
            for features in (
                timm_features(dino, standardise_pixels(frames, *IMAGENET, 56), 2, 2, 4, scale),
                timm_features(siglip, standardise_pixels(frames, *HALF, 56), 2, 2, 0, None),
            )
        ],
        dim=-1,
    )
    torch.testing.assert_close(seen[0], expected, atol=1e-4, rtol=1e-4)
    inner = F.gelu(
        F.linear(expected, weights["projector.fc1.weight"], weights["projector.fc1.bias"])
    )
    inner = F.gelu(F.linear(inner, weights["projector.fc2.weight"], weights["projector.fc2.bias"]))
    projected = F.linear(inner, weights["projector.fc3.weight"], weights["projector.fc3.bias"])
    normed = projected / projected.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(tokens, normed, atol=1e-3, rtol=1e-4)


def test_openvla_language_model_gives_the_same_logits(prismatic):
    weights, _, _, llama, _ = prismatic
    model = FaceVLA(lineage_config()).eval()
    load_openvla(model, weights.items())
    ids = torch.randint(0, 512, (2, 20))
    torch.testing.assert_close(
        model.language_model(ids).logits[..., :512], llama.eval()(ids).logits
    )


def test_openvla_report_says_what_was_not_taken(prismatic):
    weights, *_ = prismatic
    model = FaceVLA(lineage_config())
    report = load_openvla(model, weights.items())
    assert report.mismatched == []
    ours = ["slots.next.weight", "slots.own.weight", "slots.step.weight"]
    assert sorted(report.missing) == [*ours, "vision.adapter.bias", "vision.adapter.weight"]
    assert set(report.loaded) | set(report.missing) == {
        name for name, _ in model.named_parameters()
    }
    left = {name.split("featurizer.")[1].rsplit(".", 1)[0] for name in report.unused}
    assert {n for n in left if not n.startswith("blocks.2")} == {"norm", "attn_pool"}
    assert "5 missing: vision.adapter.weight" in str(report)


def test_openvla_of_another_size_is_reported_and_not_forced(prismatic):
    weights, *_ = prismatic
    config = lineage_config()
    wider = lineage_config(
        siglip_config={**config.siglip_config.to_dict(), "intermediate_size": 48}
    )
    model = FaceVLA(wider)
    before = model.vision.siglip.encoder.layers[0].mlp.fc1.weight.clone()
    report = load_openvla(model, weights.items())
    assert (
        "vision.siglip.encoder.layers.0.mlp.fc1.weight (48, 16) here, (32, 16) there"
        in report.mismatched
    )
    assert torch.equal(model.vision.siglip.encoder.layers[0].mlp.fc1.weight, before)
    assert not any(
        ".mlp.fc1." in name and "siglip" in name for name in report.loaded + report.missing
    )


def test_shards_are_read_one_after_the_other(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(1)}, tmp_path / "model-00002-of-00002.safetensors")
    assert {name: value.item() for name, value in read_weights(tmp_path)} == {"a": 1.0, "b": 0.0}
    with pytest.raises(FileNotFoundError, match="safetensors"):
        list(read_weights(tmp_path / "nowhere"))


@pytest.fixture
def parts(tmp_path):
    """Small published models: three blocks each, DINOv2 at another resolution."""
    return save_parts(tmp_path)


def test_published_parts_become_one_policy(parts):
    model, tokenizer = load_pretrained(parts, SPACE, SEQUENCE, dtype=torch.float32)
    config = model.config
    assert (
        config.action_token_start == 600 - 256 and config.text_config.vocab_size == 640
    )  # 604 padded to 64s
    assert config.bos_token_id == 1 and config.image_token_id == 600 and len(tokenizer) == 604
    assert len(model.vision.dino.encoder.layer) == len(model.vision.siglip.encoder.layers) == 2
    assert not any(p.is_meta for p in model.parameters())

    llama = LlamaForCausalLM.from_pretrained(parts.llama)
    ids = torch.randint(0, 600, (1, 12))
    torch.testing.assert_close(model.language_model(ids).logits[..., :600], llama(ids).logits)

    siglip = SiglipVisionModel.from_pretrained(parts.siglip)
    frames = torch.randint(0, 256, (2, 56, 56, 3), dtype=torch.uint8)
    pixels = standardise_pixels(frames, *HALF, 56)
    expected = siglip(pixels, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(model.vision.siglip(pixels).last_hidden_state, expected)

    seen, _ = made_up(config)
    log_probs = model.action_log_probs(seen, torch.full((1, 60), 400))
    text = model.get_input_embeddings().weight.square().mean().sqrt()
    assert config.perception_scale == pytest.approx(text.item(), rel=0.1)
    assert log_probs.shape == (1, 60) and torch.isfinite(log_probs).all()


# -- Tokenizers of several lineages, at their real sizes --


@pytest.mark.parametrize(
    ("layout", "ordinary", "start"),
    [
        (LLAMA_2, 31_997, 31_744),  # OpenVLA's
        (LLAMA_2 | {"last": ("[PAD]",)}, 31_997, 31_744),  # a fine-tune with one token more
        (LLAMA_3, 128_000, 127_744),
        (QWEN, 151_643, 151_387),
    ],
)
def test_actions_are_the_last_ids_below_the_special_ones(tmp_path, layout, ordinary, start):
    count = save_tokenizer(tmp_path, ordinary, **layout)
    tokenizer, first = load_llama_tokenizer(str(tmp_path))
    actions = range(first, first + 256)
    assert first == start
    for word in (*layout.get("first", ()), *layout.get("last", ())):
        assert tokenizer.convert_tokens_to_ids(word) not in actions, word
    ids = special_ids(tokenizer)
    assert not set(ids.values()) & set(actions)
    assert ids["image_token_id"] == count, "ours come after all that was there"
    assert not set(encode_text(tokenizer, "hello <s> <|im_end|> <image>", first)) & {
        *ids.values(),
        *actions,
    }


def test_where_there_is_no_bos_a_text_begins_with_eos(tmp_path):
    save_tokenizer(tmp_path, 600, **QWEN)
    tokenizer, _ = load_llama_tokenizer(str(tmp_path))
    assert tokenizer.convert_ids_to_tokens(special_ids(tokenizer)["bos_token_id"]) == "<|im_end|>"
    save_tokenizer(tmp_path / "neither", 600, last=("<|endoftext|>",))
    with pytest.raises(CheckpointError, match="neither has no end-of-text token"):
        load_llama_tokenizer(str(tmp_path / "neither"))


def test_a_tokenizer_too_small_for_actions_is_refused(tmp_path):
    save_tokenizer(tmp_path, 256, **LLAMA_2)
    with pytest.raises(CheckpointError, match="256 ordinary ids, and no 300 of them in a row"):
        load_llama_tokenizer(str(tmp_path), action_bins=300)


@pytest.mark.parametrize(("layout", "padding"), [(LLAMA_2, 0), (LLAMA_3, 0), (QWEN, 271)])
def test_every_lineage_becomes_a_policy_that_is_saved_and_loaded(tmp_path, layout, padding):
    parts = save_parts(tmp_path, layout, padding=padding)
    policy = saved_and_loaded(parts, tmp_path / "policy")
    llama = LlamaForCausalLM.from_pretrained(parts.llama)
    ids = torch.randint(0, 597, (1, 12))
    logits = policy.language_model(ids).logits[..., :600]
    torch.testing.assert_close(logits, llama(ids).logits[..., :600])


def saved_and_loaded(parts, folder):
    model, tokenizer = load_pretrained(parts, SPACE, SEQUENCE, dtype=torch.float32)
    start = model.config.action_token_start
    actions = ActionTokenizer(SPACE, np.full(6, -1.0), np.ones(6), first_token=start)
    save_checkpoint(model, tokenizer, actions, folder)
    return load_checkpoint(folder).model


# -- Tied embeddings --


def test_a_tied_head_becomes_a_table_of_its_own(tmp_path):
    parts = save_parts(tmp_path, LLAMA_3, tie_word_embeddings=True)
    policy = saved_and_loaded(parts, tmp_path / "policy")
    table = policy.get_input_embeddings().weight
    head = policy.get_output_embeddings().weight
    assert torch.equal(table, head) and table.data_ptr() != head.data_ptr()
    assert not policy.config.text_config.tie_word_embeddings
    llama = LlamaForCausalLM.from_pretrained(parts.llama)
    assert llama.config.tie_word_embeddings, "or nothing was tested"
    ids = torch.randint(0, 597, (1, 12))
    torch.testing.assert_close(policy.language_model(ids).logits[..., :853], llama(ids).logits)


def test_what_was_tied_learns_and_is_saved_apart(tmp_path):
    parts = save_parts(tmp_path, LLAMA_3, tie_word_embeddings=True)
    model, tokenizer = load_pretrained(parts, SPACE, SEQUENCE, dtype=torch.float32)
    add_lora(model, rank=2, alpha=4.0)
    with torch.no_grad():
        model.get_output_embeddings().weight.add_(1.0)
        model.language_model.model.layers[0].self_attn.q_proj.lora_B["default"].weight.fill_(0.1)
    ids = torch.randint(0, 597, (1, 12))
    expected = model.eval().language_model(ids).logits
    start = model.config.action_token_start
    actions = ActionTokenizer(SPACE, np.full(6, -1.0), np.ones(6), first_token=start)
    save_checkpoint(model, tokenizer, actions, tmp_path / "policy")
    loaded = load_checkpoint(tmp_path / "policy").model
    torch.testing.assert_close(loaded.language_model(ids).logits, expected)


def test_a_config_with_a_tied_head_is_refused():
    text = lineage_config().text_config.to_dict() | {"tie_word_embeddings": True}
    with pytest.raises(ValueError, match="a table of its own"):
        lineage_config(text_config=text)


# -- Checkpoints that cannot be used --


def broken(parts, what):
    """Do to a checkpoint what downloads and people do; returns what the error must name."""
    llama = Path(parts.llama)
    match what:
        case "missing shard":
            (llama / shards(llama)[1]).unlink()
            return parts, shards(llama)[1]
        case "truncated shard":
            shard = llama / shards(llama)[-1]
            shard.write_bytes(shard.read_bytes()[:-10])
            return parts, shard.name
        case "missing config":
            (llama / "config.json").unlink()
            return parts, f"vla.llama={llama} has no config.json"
        case "broken config":
            (Path(parts.dino) / "config.json").write_text("{")
            return parts, "vla.dino="
        case "no weights":
            (Path(parts.siglip) / "model.safetensors").unlink()
            return parts, f"vla.siglip={parts.siglip} has no weights"
        case "missing tokenizer":
            for file in llama.glob("tokenizer*"):
                file.unlink()
            return parts, "tokenizer.json"
        case "broken tokenizer":
            (llama / "tokenizer.json").write_text("{}")
            return parts, "the tokenizer of"
        case "another tokenizer":
            save_tokenizer(llama, 3000, **LLAMA_2)
            return parts, "one of the two is another model's"
        case "another model":
            config = json.loads((llama / "config.json").read_text())
            (llama / "config.json").write_text(json.dumps(config | {"model_type": "qwen2"}))
            return parts, "a 'qwen2' checkpoint, it must be a 'llama' one"
        case "swapped":
            return replace(parts, dino=parts.siglip), "a 'siglip_vision_model' checkpoint"
        case "nowhere":
            return replace(parts, dino="/nowhere"), "vla.dino=/nowhere"
        case "another size":
            config = json.loads((llama / "config.json").read_text())
            (llama / "config.json").write_text(json.dumps(config | {"intermediate_size": 80}))
            return parts, f"vla.llama={llama} cannot be loaded"
        case "too few positions":
            config = json.loads((llama / "config.json").read_text())
            (llama / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
            return parts, "do not go together: a context of 2 chunks needs 106 positions"
        case "a layer too few":
            config = json.loads((llama / "config.json").read_text())
            (llama / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
            return parts, "weights, e.g. model.layers.2"


@pytest.mark.parametrize(
    "what",
    [
        "missing shard",
        "truncated shard",
        "missing config",
        "broken config",
        "no weights",
        "missing tokenizer",
        "broken tokenizer",
        "another tokenizer",
        "another model",
        "swapped",
        "nowhere",
        "another size",
        "too few positions",
        "a layer too few",
    ],
)
def test_a_part_that_cannot_be_used_is_named_in_one_line(parts, what):
    broken_parts, named = broken(parts, what)
    with pytest.raises(CheckpointError) as raised:
        load_pretrained(broken_parts, SPACE, SEQUENCE)
    assert named in str(raised.value) and "\n" not in str(raised.value)


def test_slots_start_as_if_they_were_not_there(parts):
    model, _ = load_pretrained(parts, SPACE, SEQUENCE, dtype=torch.float32)
    assert all((p == 0).all() and p.requires_grad for p in model.slots.parameters())


def test_same_seed_same_projector(parts):
    first, second = (load_pretrained(parts, SPACE, SEQUENCE, seed=3)[0] for _ in range(2))
    assert first.dtype == torch.bfloat16
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_positions_are_interpolated_smoothly():
    row = torch.arange(8.0)
    table = torch.cat([torch.full((1, 1, 1), -9.0), row.repeat(8, 1).reshape(1, 64, 1)], dim=1)
    name = "embeddings.position_embeddings"
    small = resize_positions({name: table}, 4)[name]
    assert small[0, 0, 0] == -9.0
    columns = small[0, 1:, 0].reshape(4, 4)
    torch.testing.assert_close(columns[0], torch.tensor([0.5, 2.5, 4.5, 6.5]), atol=0.2, rtol=0)
    torch.testing.assert_close(columns, columns[:1].expand(4, 4))
    assert resize_positions({name: table}, 8)[name] is table
