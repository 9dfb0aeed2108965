"""A vision-language model of an architecture that vLLM runs on a CPU (Idefics3), untrained."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedTokenizerFast,
)

SIDE, PATCH = 64, 16
TEMPLATE = (
    "{% for m in messages %}{{m['role']}}: {% if m['content'] is string %}{{m['content']}}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'text' %}{{c['text']}}"
    "{% else %}<image>{% endif %}{% endfor %}{% endif %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def tokenizer():
    """A token for every byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    cells = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    return PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        bos_token="<s>",
        eos_token="<end_of_utterance>",
        pad_token="<pad>",
        additional_special_tokens=["<image>", "<fake_token_around_image>", "<global-img>", *cells],
    )


def save_tiny_vlm(folder):
    """Write it as its users have it; returns the folder."""
    tokens = tokenizer()
    width = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
    config = Idefics3Config(
        image_token_id=tokens.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokens.pad_token_id,
        tie_word_embeddings=False,
        vision_config={
            **width,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": PATCH,
        },
        text_config={
            **width,
            **heads,
            "model_type": "llama",
            "vocab_size": len(tokens),
            "max_position_embeddings": 2048,
            "bos_token_id": tokens.bos_token_id,
            "eos_token_id": tokens.eos_token_id,
            "pad_token_id": tokens.pad_token_id,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    size = {"longest_edge": SIDE}
    images = Idefics3ImageProcessorPil(size=size, max_image_size=size, do_image_splitting=False)
    Idefics3Processor(
        images, tokens, image_seq_len=(SIDE // PATCH) ** 2 // 4, chat_template=TEMPLATE
    ).save_pretrained(folder)
    return folder
