"""What the policy is shown of a clip: which frames, sounds and words belong to which chunk."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rapport.policies.clip import AUDIO_RATE
from rapport.policies.pictures import resized
from rapport.policies.sound import BANDS
from rapport.policies.vla.config import FaceVLAConfig
from rapport.policies.vla.prompt import Heard, pictures, text_region, voice_of
from rapport.policies.vla.sequence import context_ids, seen_of
from rapport.policies.vla.sound import log_mel, sound_before, voice_frames
from rapport.policies.vla.text import (
    SPECIALS,
    build_text_tokenizer,
    encode_text,
    encode_word,
    load_llama_tokenizer,
    special_ids,
)
from tests.talking import small_policy, talking

TEXTS = ["i was so happy about it", "that is really sad", "what happened then"] * 10
ABSENT, BLANK = 3, 4


@pytest.fixture(scope="module")
def tokenizer():
    return build_text_tokenizer(TEXTS, text_vocabulary=768)


@pytest.fixture(scope="module")
def policy():
    return small_policy()


def numbered(start, end, count):
    """Frames that show their number, from 100 on where there are earlier ones."""
    first = 0 if start < 0 else 100
    frames = np.zeros((count, 28, 28, 3), np.uint8) + np.arange(
        first, first + count, dtype=np.uint8
    ).reshape(-1, 1, 1, 1)
    return Heard(start, end, frames, None, None)


def config(**changes):
    return FaceVLAConfig(image_size=28, **changes)


def test_a_chunk_shows_its_own_frames():
    streams = [numbered(-4.0, 0.0, 8), numbered(0.0, 4.0, 8)]
    shown = {end: pictures(streams, end, config())[:, 0, 0, 0].tolist() for end in (-1, 0, 1, 4)}
    assert shown == {-1: [4, 5], 0: [6, 7], 1: [100, 101], 4: [106, 107]}


def test_a_short_chunk_shows_the_newest_frame_again_and_none_from_the_future():
    streams = [numbered(0.0, 4.0, 8)]  # at .25, .75, 1.25, ...
    short = config(chunk_seconds=0.4, frames=1, chunk_steps=2)
    ends = [0.2, 0.4, 0.8, 1.2, 1.6]
    shown = [pictures(streams, end, short) for end in ends]
    assert shown[0] is None
    assert [int(frame[0, 0, 0, 0]) for frame in shown[1:]] == [100, 101, 101, 102]


def test_the_voice_of_a_chunk_is_that_of_its_samples():
    clip = talking(past=1.2)
    known = np.concatenate([clip.past.speaker_audio, clip.speaker_audio])
    streams = [
        Heard(-1.2, 0.0, None, clip.past.speaker_audio, None),
        Heard(0.0, 1.6, None, clip.speaker_audio, None),
    ]
    small = small_policy().model.config
    for end in (-0.4, 0.0, 0.4, 1.6):
        last = round((end + 1.2) * AUDIO_RATE)
        np.testing.assert_array_equal(voice_of(streams, end, small), log_mel(known[:last], 0.4))
    assert voice_of(streams, -1.2, small) is None and voice_of(streams, 2.0, small) is None
    assert voice_of([streams[0], replace(streams[1], audio=None)], 0.4, small) is None


def test_bands_by_hand():
    seconds = 1.0
    samples = np.sin(2 * np.pi * 1000 * np.arange(2 * AUDIO_RATE) / AUDIO_RATE).astype(np.float32)
    bands = log_mel(samples, seconds)
    assert bands.shape == (voice_frames(seconds), BANDS) == (120, 32) and bands.dtype == np.uint8
    edges = np.linspace(2595 * np.log10(1 + 60 / 700), 2595 * np.log10(1 + 7600 / 700), 34)
    loudest = np.abs(edges[1:-1] - 2595 * np.log10(1 + 1000 / 700)).argmin()
    assert (np.abs(bands.argmax(axis=1) - loudest) <= 1).all()
    bands, quieter = (log_mel(samples / share, seconds) for share in (10, 100))  # 20 dB of 90
    step = bands[:, loudest].astype(float) - quieter[:, loudest]
    assert np.abs(step - 255 * 20 / 90).max() <= 1
    assert (log_mel(np.zeros(AUDIO_RATE), seconds) == 0).all()


def test_bands_depend_on_the_chunk_and_the_little_before_it_alone():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=3 * AUDIO_RATE).astype(np.float32) / 10
    needed = AUDIO_RATE + sound_before(1.0)
    np.testing.assert_array_equal(log_mel(samples, 1.0), log_mel(samples[-needed:], 1.0))
    changed = samples.copy()
    changed[: -needed + 100] = 0
    assert (log_mel(samples, 1.0) != log_mel(changed, 1.0)).any()


def test_what_a_clip_lacks_is_absent_and_silence_is_not(policy):
    clip, sizes = talking(past=0), policy.model.config
    prompt = policy.encode(clip)
    assert prompt.present[: sizes.history + 1].sum() == 0  # nothing is known of before
    assert prompt.present[sizes.history + 1 :].all()
    assert prompt.own.tolist() == [ABSENT] * 3 and (prompt.said[0] == ABSENT).all()
    assert (prompt.heard[:2] == ABSENT).all() and not (prompt.heard[2:] == ABSENT).any()
    mute = policy.encode(replace(clip, words=()))
    assert (mute.said[1:] == BLANK).all()
    unknown = policy.encode(replace(clip, words=None))
    assert (unknown.said == ABSENT).all() and (unknown.heard == ABSENT).all()
    blind = policy.encode(replace(clip, speaker_frames=None))
    assert blind.frames is None and not blind.present[:, 0].any() and blind.present[:, 1].any()
    deaf = policy.encode(replace(clip, speaker_audio=None))
    assert deaf.voice is None and not deaf.present[:, 1].any() and deaf.present[:, 0].any()


def test_a_past_fills_the_head(policy):
    prompt = policy.encode(talking(past=1.2))
    assert prompt.present.all() and not (prompt.heard == ABSENT).any()
    assert len(prompt.own) == 3 and (prompt.own >= policy.model.config.action_token_start).all()


def test_of_the_own_past_a_prompt_tells_the_pose_from_the_face_at_rest(policy):
    clip, sizes = talking(past=1.2), policy.model.config
    assert sizes.pose_dims == [3, 4, 5], "the rotation of the head"
    knot = policy.actions.space.last_knot(clip.past.listener)
    prompt = policy.encode(clip)
    np.testing.assert_array_equal(prompt.rest, clip.rest.values[0])
    bins = np.floor((knot - prompt.rest + 2) / 4 * 256)[3:]  # they go from -2 to 2
    assert (prompt.own - sizes.action_token_start).tolist() == bins.tolist()
    unknown = policy.encode(replace(clip, rest=None))
    np.testing.assert_array_equal(unknown.rest, policy.actions.rest)


def mirrored(clip, columns):
    """A clip before which a listener's columns were as far on the other side of rest."""
    past = clip.past.listener
    values = past.values.copy()
    values[:, columns] = 2 * clip.rest.values[0, columns] - values[:, columns]
    return replace(clip, past=replace(clip.past, listener=replace(past, values=values)))


def test_nothing_of_the_own_expression_before_reaches_the_sequence(policy):
    clip = talking(past=1.2)
    other = mirrored(clip, slice(0, 3))
    assert np.abs(other.past.listener.values - clip.past.listener.values)[-5:, :3].max() > 0.05
    first, second = (policy.encode(shown) for shown in (clip, other))
    np.testing.assert_allclose(second.rest, first.rest, atol=1e-6)
    none = torch.zeros((1, 0), dtype=torch.long)
    ids = [
        context_ids(policy.model.config, seen_of(policy.model.config, [prompt]), none)
        for prompt in (first, second, policy.encode(mirrored(clip, slice(3, 6))))
    ]
    assert torch.equal(ids[0], ids[1])
    assert not torch.equal(ids[0], ids[2]), "the pose reaches it"


def test_a_reaction_that_does_not_say_on_which_face_is_refused(policy):
    clip = talking()
    reaction = policy.recorded(clip)
    np.testing.assert_array_equal(reaction.rest, policy.rest_of(clip))
    [[sampled]] = policy.sample([policy.encode(clip)], 1, [0])
    np.testing.assert_array_equal(sampled.rest, reaction.rest)
    moved = policy.to_motion(replace(reaction, rest=reaction.rest + 1)).values
    np.testing.assert_allclose(moved, policy.to_motion(reaction).values + 1, atol=1e-5)
    with pytest.raises(ValueError, match=r"'talking-0' does not say on which face.*rest_of"):
        policy.to_motion(replace(reaction, rest=None))


def test_a_policy_without_a_voice_hears_none():
    from tests.talking import SEQUENCE

    mute = small_policy(sequence=replace(SEQUENCE, voice=False))
    assert mute.model.voice is None and mute.model.config.item_tokens == 1
    prompt = mute.encode(talking())
    assert prompt.voice is None and not prompt.present[:, 1].any()
    assert len(mute.sample([prompt], 1, [0])[0][0].actions) == 48


def test_words_are_right_aligned_and_what_is_too_long_keeps_its_end(policy):
    words = talking().words
    sizes = policy.model.config
    spelt = {word.text: [10 + i] for i, word in enumerate(words)}
    region = text_region(sizes, words[:2], spelt.__getitem__, head=False)
    assert region == [BLANK, spelt[words[0].text][0], spelt[words[1].text][0]]
    long = text_region(sizes, words[:1] * 9, lambda _: [7, 8], head=True)
    assert long == [7, 8, 7, 8, 7, 8]


def test_a_clip_too_short_for_the_policy_is_named(policy):
    with pytest.raises(ValueError, match="'talking-0' has 0.8 s, this policy reacts to 1.6 s"):
        policy.encode(talking(seconds=0.8))


def test_frames_are_resized_by_averaging():
    checker = np.indices((112, 112)).sum(axis=0) % 2 * 200
    frames = np.repeat(checker[None, :, :, None], 3, axis=3).astype(np.uint8)
    small = resized(frames, 56)
    assert small.shape == (1, 56, 56, 3) and small.dtype == np.uint8
    assert (np.abs(small[:, 2:-2, 2:-2].astype(int) - 100) <= 1).all()


def test_bad_frames_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        resized(np.zeros((4, 56, 56, 3), dtype=np.float32), 56)


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


@pytest.mark.parametrize(
    "splits",
    [
        pre_tokenizers.Metaspace(prepend_scheme="first"),  # LLaMA 2
        pre_tokenizers.ByteLevel(add_prefix_space=False),  # LLaMA 3, Qwen
        pre_tokenizers.ByteLevel(add_prefix_space=True),  # the tiny one
    ],
)
def test_words_one_by_one_are_the_sentence(splits):
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = splits
    alphabet = [*pre_tokenizers.ByteLevel.alphabet(), "▁"]
    words = ["so", "happy", "a", "day"]
    inner.train_from_iterator(
        [" ".join(words)] * 9, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    one_by_one = [token for word in words for token in encode_word(tokenizer, word, 1000)]
    begun = encode_text(tokenizer, " ".join(["a", *words]), 1000)
    assert one_by_one == begun[len(encode_text(tokenizer, "a", 1000)) :]


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
        ({"context_chunks": 20}, "positions"),
        ({"action_token_start": 1300}, "vocabulary"),
        ({"dino_config": {"image_size": 84, "patch_size": 14}}, "patch grid"),
        ({"chunk_steps": 3}, "no whole number of chunks"),
        ({"tokens_per_frame": 2}, "square"),
        ({"tokens_per_frame": 25}, "16 patches"),
        ({"pose_dims": [55, 56]}, r"pose_dims \[55, 56\] are not among 56"),
    ],
)
def test_config_that_cannot_work_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        FaceVLAConfig(**change)
