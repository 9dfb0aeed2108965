"""Transcripts of the forms that recognisers write, and what is no transcript of a recording."""

import json

import numpy as np
import pytest

from rapport.pipeline.data.readers.transcripts import (
    KINDS,
    Transcripts,
    load_transcriber,
    read_transcript,
)
from rapport.pipeline.data.store import CorpusError
from rapport.policies.clip import AUDIO_RATE, Word

SPOKEN = [("we", 1.0, 1.2), ("won", 1.25, 1.75)]
WORDS = [{"word": f" {text}", "start": start, "end": end} for text, start, end in SPOKEN]
SENTENCE = {"text": " we won", "start": 1.0, "end": 1.7}
CUES = "{a} --> {b}\nwe won"
FORMS = {
    "whisper.json": json.dumps({"text": "", "segments": [SENTENCE | {"words": WORDS}]}),
    "words.json": json.dumps({"words": WORDS}),
    "list.json": json.dumps([{"text": w, "start": a, "end": b} for w, a, b in SPOKEN]),
    "sentence.json": json.dumps({"segments": [SENTENCE]}),
    # WhisperX has no times for numbers: the sentence has.
    "partial.json": json.dumps({"segments": [SENTENCE | {"words": [{"word": "we"}, WORDS[1]]}]}),
    "a.srt": "1\r\n" + CUES.format(a="00:00:01,000", b="00:00:01,700") + "\r\n\r\n",
    "a.vtt": "WEBVTT\n\nNOTE hello\n\n" + CUES.format(a="00:01.000", b="00:01.700 align:left"),
    "tags.vtt": "WEBVTT\n\n00:00:01.000 --> 00:00:01.700\n<v Ann>we</v> <b>won</b>\n",
    "a.txt": "1.0\t1.7\twe won\n\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_words(tmp_path, name):
    (tmp_path / name).write_bytes(FORMS[name].encode())
    words = read_transcript(tmp_path / name, seconds=3.0)
    assert [word.text for word in words] == ["we", "won"]
    assert words[0].start == 1.0 and words[0].end <= words[1].start < words[1].end <= 1.75
    # A sentence's time is shared by letters: three sevenths to "we ", four to "won ".
    if "words" not in FORMS[name] and name != "list.json":
        assert words[0].end == pytest.approx(1.3) == words[1].start


def test_nobody_speaking_is_silence_not_absence(tmp_path):
    for name, text in (("a.json", '{"segments": []}'), ("a.vtt", "WEBVTT\n"), ("a.txt", "")):
        (tmp_path / name).write_text(text)
        assert read_transcript(tmp_path / name, 3.0) == ()


BAD = {
    "plain.txt": ("we won the cup", "could not convert string"),
    "short.txt": ("1.0 1.7", "is not: start end text"),
    "broken.json": ("{", "no transcript with times"),
    "other.json": ('{"text": "we won"}', "neither a list nor whisper's segments"),
    "untimed.json": ('[{"text": "we"}]', "no transcript with times: 'start'"),
    "number.json": ('[{"text": 7, "start": 0, "end": 1}]', "7 is no text"),
    "backwards.json": ('[{"text": "we", "start": 2, "end": 1}]', "'we' from 2.0 to 1.0 s: these"),
    "nan.json": ('[{"text": "we", "start": NaN, "end": 1}]', "these are no times"),
    "early.txt": ("-1 1 we", "'we' from -1.0 to 1.0 s"),
    "late.txt": ("2.9 4.1 we", r"'we' ends at 4.10 s, its recording after 3.00 s"),
    "milliseconds.json": ('[{"text": "we", "start": 1000, "end": 1200}]', "no seconds"),
    "bad.srt": ("1\n00:00:aa --> 00:00:02,000\nwe", "has no times|no time"),
    "prose.srt": ("we won", "no line with -->"),
    "bytes.vtt": (b"\xff\xfe\x00", "cannot be read as text"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_transcript_of_the_recording_is_named(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CorpusError, match=f"{name}.*{message}"):
        read_transcript(tmp_path / name, seconds=3.0)


def test_a_word_may_end_a_little_after_the_sound_and_is_cut_there(tmp_path):
    (tmp_path / "a.txt").write_text("2.8 3.3 we")
    assert read_transcript(tmp_path / "a.txt", 3.0)[0].end == 3.0


class Loud:
    """Hears a word wherever it is loud, and counts how often it was asked."""

    asked = 0

    def __call__(self, audio, rate):
        Loud.asked += 1
        return [Word("loud", float(np.argmax(audio) / rate), len(audio) / rate)]


class Broken:
    def __call__(self, audio, rate):
        raise RuntimeError("no model here")


class Careless:
    def __call__(self, audio, rate):
        return [Word("late", 0.0, 99.0)]


def test_answers_of_a_transcriber_are_kept_and_not_asked_for_again(tmp_path):
    Loud.asked = 0
    audio = np.zeros(2 * AUDIO_RATE, np.float32)
    audio[AUDIO_RATE] = 1
    for _ in range(2):
        ask = Transcripts(f"{__name__}:Loud", tmp_path / "transcripts")
        assert ask(audio, "a_speaker1") == (Word("loud", 1.0, 2.0),)
    assert Loud.asked == 1
    assert ask(audio[::-1].copy(), "a_speaker1")[0].start < 1 and Loud.asked == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.to:Find", "corpus.transcriber=nowhere.to:Find cannot be used: ModuleNotFound"),
        (f"{__name__}:Missing", "AttributeError.*module:Class"),
        ("json", "cannot be used"),
        (f"{__name__}:KINDS", "cannot be used: TypeError"),
        ("pathlib:Path", r"cannot be called: it needs __call__\(audio, rate\)"),
    ],
)
def test_a_transcriber_that_is_none_is_named(name, message):
    assert KINDS
    with pytest.raises(CorpusError, match=message):
        load_transcriber(name)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("Broken", "RuntimeError: no model here"), ("Careless", "'late' ends at 99.00 s")],
)
def test_a_transcriber_that_fails_is_named_with_the_recording(tmp_path, kind, message):
    ask = Transcripts(f"{__name__}:{kind}", tmp_path / "transcripts")
    with pytest.raises(CorpusError, match=f"{kind} on a_speaker1: {message}"):
        ask(np.zeros(AUDIO_RATE, np.float32), "a_speaker1")
    assert not (tmp_path / "transcripts").exists()
