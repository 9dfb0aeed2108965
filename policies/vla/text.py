"""Text tokenizers: a small byte-level BPE trained on the corpus (tiny) or LLaMA's own (paper)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rapport.policies.policy import CheckpointError
from rapport.wording import first_line

BOS, EOS, IMAGE, ABSENT, BLANK, ACT = "<s>", "</s>", "<image>", "<absent>", "<blank>", "<act>"
SPECIALS = (BOS, EOS, IMAGE, ABSENT, BLANK, ACT)


def build_text_tokenizer(
    texts: Iterable[str],
    path: Path | None = None,
    text_vocabulary: int = 1280,
    action_bins: int = 256,
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE; the last `action_bins` ids, from `text_vocabulary` on, are actions.

    Action tokens are in the vocabulary but no merge makes them, so that no text can. A corpus with
    too few words for `text_vocabulary` merges leaves unused ids: action ids do not depend on the
    corpus.

    Args:
        texts: transcripts of the training split.
        path: folder to save into, if given.
        text_vocabulary: special tokens, 256 bytes and merges together; at least 262.
        action_bins: action tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(SPECIALS) + len(alphabet)
    if text_vocabulary < least:
        raise ValueError(f"text_vocabulary must be at least {least}, got {text_vocabulary}")
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trained.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=text_vocabulary,
            special_tokens=list(SPECIALS),
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        ),
    )
    model = json.loads(trained.to_str())["model"]
    vocabulary = dict(model["vocab"])
    vocabulary |= {f"<unused_{i}>": i for i in range(len(vocabulary), text_vocabulary)}
    vocabulary |= {f"<action_{i}>": text_vocabulary + i for i in range(action_bins)}

    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[tuple(merge) for merge in model["merges"]])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers has no types
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=BLANK,
        additional_special_tokens=[IMAGE, ABSENT, ACT],
    )
    if path is not None:
        fast.save_pretrained(path)
    return fast


def load_llama_tokenizer(
    name_or_path: str, action_bins: int = 256
) -> tuple[PreTrainedTokenizerBase, int]:
    """A LLaMA tokenizer with our special tokens appended, and the first action id.

    The last `action_bins` ids of the ordinary vocabulary become the actions: its rarest tokens.
    These are 31744-31999 of LLaMA 2, as in OpenVLA, and 127744-127999 of LLaMA 3, whose special
    tokens stand at the end of the vocabulary. Ours come after all of them, so embeddings must be
    resized.

    A tokenizer without BOS (Qwen's) has its EOS take that place, which is what stood before a text
    when such models were trained.

    Raises:
        CheckpointError: there is no such tokenizer, or it leaves no room for actions.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name_or_path)
    except Exception as error:  # `tokenizers` raises bare ones
        raise CheckpointError(
            f"the tokenizer of {name_or_path} cannot be loaded ({first_line(error)}): copy "
            "tokenizer.json and tokenizer_config.json of the checkpoint there"
        ) from error
    if tokenizer.eos_token_id is None:
        raise CheckpointError(
            f"the tokenizer of {name_or_path} has no end-of-text token: name it as eos_token in "
            "its tokenizer_config.json"
        )
    if tokenizer.bos_token_id is None:
        tokenizer.bos_token = tokenizer.eos_token
    start = _last_ordinary_ids(tokenizer, action_bins)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE, ABSENT, BLANK, ACT]})
    return tokenizer, start


def _last_ordinary_ids(tokenizer: PreTrainedTokenizerBase, count: int) -> int:
    """First of the last `count` ids in a row that are neither special nor added to the vocabulary.

    Raises:
        CheckpointError: there are no such ids.
    """
    reserved = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ordinary = set(tokenizer.get_vocab().values()) - reserved
    in_a_row = 0
    for token in range(max(ordinary, default=-1), -1, -1):
        in_a_row = in_a_row + 1 if token in ordinary else 0
        if in_a_row == count:
            return token
    raise CheckpointError(
        f"the tokenizer of {tokenizer.name_or_path} has {len(ordinary)} ordinary ids, and no "
        f"{count} of them in a row that could stand for actions: this is no language model's"
    )


def special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The ids that `FaceVLAConfig` names, by its field names.

    Raises:
        ValueError: the tokenizer lacks some of the special tokens.
    """
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE),
        "absent_token_id": tokenizer.convert_tokens_to_ids(ABSENT),
        "blank_token_id": tokenizer.convert_tokens_to_ids(BLANK),
        "act_token_id": tokenizer.convert_tokens_to_ids(ACT),
    }
    missing = [
        name for name, value in ids.items() if value is None or value == tokenizer.unk_token_id
    ]
    if missing:
        raise ValueError(
            f"the tokenizer has no {missing}; build it with build_text_tokenizer or "
            "load_llama_tokenizer"
        )
    return ids


def encode_text(
    tokenizer: PreTrainedTokenizerBase, text: str, action_token_start: int, action_bins: int = 256
) -> list[int]:
    """Token ids of a transcript, free of special and action tokens.

    A literal "<image>" in a transcript is encoded letter by letter. Of LLaMA's overwritten ids the
    few that a text can hit (rare characters) are dropped: the model reads them as actions.
    """
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    actions = range(action_token_start, action_token_start + action_bins)
    return [token for token in ids if token not in actions]


def encode_word(
    tokenizer: PreTrainedTokenizerBase, word: str, action_token_start: int, action_bins: int = 256
) -> list[int]:
    """Token ids of a word as it stands in a sentence: after a space.

    Of a text of one word LLaMA 2's tokenizer thinks the space by itself; those of LLaMA 3 and Qwen
    read the word as if it went on from the one before.
    """
    alone = tokenizer("a", add_special_tokens=False)["input_ids"]
    twice = tokenizer("a a", add_special_tokens=False)["input_ids"]
    space = "" if twice == alone * 2 else " "
    return encode_text(tokenizer, space + word, action_token_start, action_bins)
