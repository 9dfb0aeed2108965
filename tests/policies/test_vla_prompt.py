import numpy as np
import pytest

from rapport.policies.vla.config import FaceVLAConfig
from rapport.policies.vla.prompt import build_prompt, collapse_images, select_frames
from rapport.policies.vla.text import (
    SPECIALS,
    build_text_tokenizer,
    encode_text,
    load_llama_tokenizer,
    special_ids,
)

TEXTS = ["i was so happy about it", "that is really sad", "what happened then"] * 10
CONFIG = FaceVLAConfig(frames=2, text_tokens=4)  # 16 patches a frame
BOS, IMAGE, ABSENT, BLANK, ACT = 0, 2, 3, 4, 5


@pytest.fixture(scope="module")
def tokenizer():
    return build_text_tokenizer(TEXTS, text_vocabulary=768)


def test_layout_of_the_prompt():
    prompt = build_prompt(CONFIG, [300, 301], has_frames=True)
    assert prompt.tolist() == [BOS] + [IMAGE] * 32 + [BLANK, BLANK, 300, 301] + [ACT]
    assert len(prompt) == CONFIG.prompt_length == 38


def test_long_text_keeps_its_end():
    assert build_prompt(CONFIG, list(range(300, 310)), True)[33:37].tolist() == [306, 307, 308, 309]


def test_absent_is_not_silence_and_every_prompt_has_the_same_length():
    silent = build_prompt(CONFIG, [], False)
    unknown = build_prompt(CONFIG, None, False)
    assert silent.tolist() == [BOS] + [ABSENT] * 32 + [BLANK] * 4 + [ACT]
    assert unknown.tolist() == [BOS] + [ABSENT] * 36 + [ACT]


def test_one_placeholder_per_frame_for_vllm():
    shown = collapse_images(CONFIG, build_prompt(CONFIG, [300], True).tolist())
    assert shown == [BOS, IMAGE, IMAGE, BLANK, BLANK, BLANK, 300, ACT]
    hidden = build_prompt(CONFIG, [300], False).tolist()
    assert collapse_images(CONFIG, hidden) == hidden


def test_frames_are_taken_from_the_middle_of_equal_parts():
    frames = (
        np.zeros((8, 56, 56, 3), dtype=np.uint8) + np.arange(8, dtype=np.uint8)[:, None, None, None]
    )
    assert select_frames(frames, 4, 56)[:, 0, 0, 0].tolist() == [1, 3, 5, 7]
    assert select_frames(frames[:4], 4, 56)[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_frames_are_resized_by_averaging():
    checker = np.indices((112, 112)).sum(axis=0) % 2 * 200
    frames = np.repeat(checker[None, :, :, None], 3, axis=3).astype(np.uint8)
    small = select_frames(frames, 1, 56)
    assert small.shape == (1, 56, 56, 3) and small.dtype == np.uint8
    assert (np.abs(small[:, 2:-2, 2:-2].astype(int) - 100) <= 1).all()


def test_bad_frames_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        select_frames(np.zeros((4, 56, 56, 3), dtype=np.float32), 4, 56)
    with pytest.raises(ValueError, match="4 speaker frames are needed, this clip has 3"):
        select_frames(np.zeros((3, 56, 56, 3), dtype=np.uint8), 4, 56)


def test_tokenizer_ids_do_not_depend_on_the_corpus(tokenizer):
    assert len(tokenizer) == 1024
    assert special_ids(tokenizer) == special_ids(build_text_tokenizer(["hm"], text_vocabulary=768))
    assert sorted(special_ids(tokenizer).values()) == list(range(len(SPECIALS)))
    assert tokenizer.convert_tokens_to_ids("<action_0>") == 768
    assert tokenizer.convert_tokens_to_ids("<action_255>") == 1023


@pytest.mark.parametrize("text", ["i was so happy", "¿qué pasó? 你好 🙂", "HAPPY   sad", ""])
def test_any_text_survives_the_round_trip(tokenizer, text):
    ids = encode_text(tokenizer, text, 768)
    assert tokenizer.decode(ids).strip() == text.strip()
    assert all(len(SPECIALS) <= i < 768 for i in ids)


def test_words_of_the_corpus_are_shorter_than_bytes(tokenizer):
    assert len(encode_text(tokenizer, "happy", 768)) < len("happy")


@pytest.mark.parametrize("text", ["<image>", "<s>", "<absent> <act>", "<action_7>", "<unused_700>"])
def test_text_never_becomes_special_or_action_tokens(tokenizer, text):
    assert all(len(SPECIALS) <= i < 768 for i in encode_text(tokenizer, text, 768))


def test_saved_tokenizer_reads_alike(tmp_path, tokenizer):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "so happy <image>"
    assert encode_text(again, text, 768) == encode_text(tokenizer, text, 768)
    assert special_ids(again) == special_ids(tokenizer)


def llama_like(path):
    """A byte-level tokenizer of 300 words without our special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>"] + sorted(pre_tokenizers.ByteLevel.alphabet())
    words += [f"<rare{i}>" for i in range(300 - len(words))]
    inner = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(path)


def test_llama_tokenizer_gives_its_last_ids_to_actions_and_gains_special_tokens(tmp_path):
    llama_like(tmp_path)
    tokenizer, start = load_llama_tokenizer(str(tmp_path), action_bins=60)
    assert start == 300 - 60 and len(tokenizer) == 304
    ids = special_ids(tokenizer)
    assert ids["bos_token_id"] == 1
    assert sorted(
        ids[k] for k in ("image_token_id", "absent_token_id", "blank_token_id", "act_token_id")
    ) == [
        300,
        301,
        302,
        303,
    ]
    # ids 240-258 are bytes that now belong to the actions: text that hits them drops them
    everything = encode_text(tokenizer, "".join(chr(c) for c in range(32, 1000)), start, 60)
    assert everything and not any(start <= i < start + 60 for i in everything)


def test_tokenizer_without_special_tokens_is_refused(tmp_path):
    from transformers import AutoTokenizer

    llama_like(tmp_path)
    with pytest.raises(ValueError, match="image_token_id"):
        special_ids(AutoTokenizer.from_pretrained(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 20}, "positions"),
        ({"action_token_start": 1300}, "vocabulary"),
        ({"dino_config": {"image_size": 84, "patch_size": 14}}, "patch grid"),
    ],
)
def test_config_that_cannot_work_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        FaceVLAConfig(**change)
