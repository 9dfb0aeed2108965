"""Assembly from published parts and from OpenVLA-lineage checkpoints, on small generated ones."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from rapport.policies.motion import Layout
from rapport.policies.vla.actions import ActionSpace
from rapport.policies.vla.config import FaceVLAConfig
from rapport.policies.vla.model import FaceVLA, standardise_pixels
from rapport.policies.vla.openvla import load_openvla, read_weights
from rapport.policies.vla.pretrained import PublishedParts, load_pretrained, resize_positions
from rapport.policies.vla.prompt import build_prompt

SPACE = ActionSpace(Layout((("expr", 3), ("rot", 3)), 25, "flame2020"), rate=5, seconds=2)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
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
        "action_steps": 10,
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
    tokens = model.vision(frames)
    expected = torch.cat(
        [
            timm_features(dino, standardise_pixels(frames, *IMAGENET, 56), 2, 2, 4, scale),
            timm_features(siglip, standardise_pixels(frames, *HALF, 56), 2, 2, 0, None),
        ],
        dim=-1,
    )
    torch.testing.assert_close(seen[0], expected, atol=1e-4, rtol=1e-4)
    inner = F.gelu(
        F.linear(expected, weights["projector.fc1.weight"], weights["projector.fc1.bias"])
    )
    inner = F.gelu(F.linear(inner, weights["projector.fc2.weight"], weights["projector.fc2.bias"]))
    projected = F.linear(inner, weights["projector.fc3.weight"], weights["projector.fc3.bias"])
    torch.testing.assert_close(tokens, projected, atol=1e-3, rtol=1e-4)


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
    assert sorted(report.missing) == ["slots.next.weight", "slots.own.weight", "slots.step.weight"]
    assert set(report.loaded) | set(report.missing) == {
        name for name, _ in model.named_parameters()
    }
    left = {name.split("featurizer.")[1].rsplit(".", 1)[0] for name in report.unused}
    assert {n for n in left if not n.startswith("blocks.2")} == {"norm", "attn_pool"}
    assert "3 missing: slots.own.weight" in str(report)


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
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3, "patch_size": 14}
    Dinov2Model(Dinov2Config(**tower, image_size=112, mlp_ratio=2)).save_pretrained(
        tmp_path / "dino"
    )
    siglip = SiglipVisionConfig(**tower, image_size=56, intermediate_size=32)
    SiglipVisionModel(siglip).save_pretrained(tmp_path / "siglip")
    llama = LlamaConfig(
        vocab_size=600,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(llama).save_pretrained(tmp_path / "llama")
    words = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"<rare{i}>" for i in range(600 - len(words))]
    inner = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(tmp_path / "llama")
    return PublishedParts(*(str(tmp_path / name) for name in ("llama", "dino", "siglip")))


def test_published_parts_become_one_policy(parts):
    model, tokenizer = load_pretrained(parts, SPACE, frames=2, text_tokens=4, dtype=torch.float32)
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

    prompt = torch.from_numpy(build_prompt(config, [70, 71], True))[None]
    log_probs = model.action_log_probs(prompt, frames[None], torch.full((1, 60), 400))
    assert log_probs.shape == (1, 60) and torch.isfinite(log_probs).all()


def test_slots_start_as_if_they_were_not_there(parts):
    model, _ = load_pretrained(parts, SPACE, frames=2, text_tokens=4, dtype=torch.float32)
    assert all((p == 0).all() and p.requires_grad for p in model.slots.parameters())


def test_same_seed_same_projector(parts):
    first, second = (
        load_pretrained(parts, SPACE, frames=2, text_tokens=4, seed=3)[0] for _ in range(2)
    )
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
