"""Windows take what belongs to their span and nothing else."""

import numpy as np
import pytest

from rapport.pipeline.data.windows import cut, window_starts
from rapport.policies.clip import AUDIO_RATE, Clip, Word
from rapport.policies.motion import Layout, Motion

LAYOUT = Layout(groups=(("jaw", 3),), fps=25, topology="builtin")


def recording(frames: int = 100, **extra) -> Clip:
    ramp = np.repeat(np.arange(frames, dtype=np.float32)[:, None], 3, axis=1)
    return Clip(clip_id="r", dyad_id="r", split="train", listener=Motion(ramp, LAYOUT), **extra)


def test_motion_and_audio_stay_together():
    audio = np.arange(4 * AUDIO_RATE, dtype=np.float32)
    clip = cut(recording(speaker_audio=audio), 25, 50, "w")
    assert clip.listener.values[0, 0] == 25 and len(clip.listener) == 50
    assert clip.speaker_audio[0] == AUDIO_RATE and len(clip.speaker_audio) == 2 * AUDIO_RATE
    assert clip.listener_audio is None and clip.words is None


def test_words_belong_to_the_window_of_their_middle():
    words = (
        Word("before", 0.5, 1.2),
        Word("across", 0.9, 1.5),
        Word("in", 2.0, 2.2),
        Word("out", 2.9, 3.4),
    )
    clip = cut(recording(words=words), 25, 50, "w")  # 1 s to 3 s
    assert clip.text == "across in"
    assert clip.words[0].start == 0.0 and clip.words[0].end == pytest.approx(0.5)
    assert clip.words[1].start == pytest.approx(1.0)
    assert cut(recording(words=words), 80, 20, "w").words == ()


def test_windows_cover_the_recording_without_a_short_tail():
    assert list(window_starts(100, length=50, stride=38)) == [0, 38]
    assert list(window_starts(100, length=50, stride=25)) == [0, 25, 50]
    assert list(window_starts(49, length=50, stride=25)) == []


def test_bad_requests():
    with pytest.raises(ValueError, match="cut first"):
        cut(recording(speaker_frames=np.zeros((1, 2, 2, 3), np.uint8)), 0, 10, "w")
    with pytest.raises(ValueError, match="ends before"):
        cut(recording(speaker_audio=np.zeros(100, np.float32)), 0, 50, "w")


def test_a_window_at_the_end_has_all_its_sound_where_a_frame_is_no_whole_number_of_samples():
    layout = Layout((("expr", 1),), 30, "builtin")
    motion = Motion(np.zeros((367, 1)), layout)
    audio = np.zeros(round(367 / 30 * AUDIO_RATE), np.float32)
    talk = Clip("c", "d", "train", listener=motion, speaker_audio=audio)
    assert len(cut(talk, 275, 92, "w").speaker_audio) == round(92 / 30 * AUDIO_RATE)
    short = Clip("c", "d", "train", listener=motion, speaker_audio=audio[:-1])
    with pytest.raises(ValueError, match="ends before sample"):
        cut(short, 0, 367, "w")
