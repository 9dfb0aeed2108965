"""Sound files of all sorts, and who speaks when."""

import warnings

import numpy as np
import pytest
from scipy.io import wavfile

from rapport.pipeline.data.audio import AudioError, odd_level, read_wav
from rapport.policies.clip import AUDIO_RATE


def tone(
    seconds: float, rate: int = AUDIO_RATE, hz: float = 200.0, level: float = 0.5
) -> np.ndarray:
    return level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize(
    ("encode", "tolerance"),
    [
        (lambda x: x.astype(np.float32), 1e-6),
        (lambda x: (x * 32768).astype(np.int16), 1e-4),
        (lambda x: (x * 2**31).astype(np.int32), 1e-6),
        (lambda x: (x * 128 + 128).astype(np.uint8), 1e-2),
        (lambda x: np.stack([x + 0.1, x - 0.1], axis=1).astype(np.float32), 1e-6),
    ],
)
def test_sample_formats_agree(tmp_path, encode, tolerance):
    wavfile.write(tmp_path / "a.wav", AUDIO_RATE, encode(tone(0.1)))
    signal, rate, _ = read_wav(tmp_path / "a.wav")
    assert rate == AUDIO_RATE and signal.dtype == np.float32
    assert np.abs(signal - tone(0.1)).max() < tolerance


def test_other_rates_are_resampled(tmp_path):
    wavfile.write(tmp_path / "a.wav", 44_100, tone(0.5, 44_100).astype(np.float32))
    signal, rate, _ = read_wav(tmp_path / "a.wav")
    assert rate == 44_100 and len(signal) == AUDIO_RATE // 2
    assert np.abs(signal[800:-800] - tone(0.5)[800:-800]).max() < 0.01


def test_bad_files_are_named(tmp_path):
    (tmp_path / "junk.wav").write_bytes(b"no wav at all")
    with pytest.raises(AudioError, match="junk.wav"):
        read_wav(tmp_path / "junk.wav")
    wavfile.write(tmp_path / "nan.wav", AUDIO_RATE, np.full(10, np.nan, np.float32))
    with pytest.raises(AudioError, match="nan.wav"):
        read_wav(tmp_path / "nan.wav")


@pytest.mark.parametrize("scale", [32767, 128])
def test_float_samples_in_another_unit_are_refused(tmp_path, scale):
    wavfile.write(tmp_path / "a.wav", AUDIO_RATE, (scale * tone(0.1)).astype(np.float32))
    with pytest.raises(AudioError, match=r"a.wav has float samples up to .*full scale is 1"):
        read_wav(tmp_path / "a.wav")
    loud = 1.5 / 0.5 * tone(0.1)  # a mix may exceed full scale by a little
    wavfile.write(tmp_path / "a.wav", AUDIO_RATE, loud.astype(np.float32))
    assert read_wav(tmp_path / "a.wav")[0].max() > 1.4


def test_levels_that_no_voice_has_are_said():
    assert odd_level(tone(0.5)) is None
    assert "is silent" in odd_level(np.zeros(100)) and "is silent" in odd_level(np.full(100, 0.5))
    assert "nearly silent" in odd_level(1e-4 * tone(0.5))  # 16 bits in 32 without scaling
    assert "is clipped" in odd_level(np.clip(9 * tone(0.5), -1, 1))


def test_a_wav_that_is_cut_or_flipped_anywhere_is_read_or_named(tmp_path):
    wavfile.write(tmp_path / "a.wav", 8000, (9000 * tone(0.02, 8000)).astype(np.int16))
    intact = (tmp_path / "a.wav").read_bytes()
    header = 60
    damaged = [intact[:size] for size in range(header)]
    for place in range(header):
        for flip in (0x01, 0x80, 0xFF):
            damaged.append(intact[:place] + bytes([intact[place] ^ flip]) + intact[place + 1 :])
    refused = 0
    for content in damaged:
        (tmp_path / "a.wav").write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                signal, _, _ = read_wav(tmp_path / "a.wav")
            except AudioError as error:
                refused += 1
                assert "a.wav" in str(error) and "\n" not in str(error)
            else:
                assert np.isfinite(signal).all()
    assert refused > 80


def test_what_is_no_file_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere.wav"):
        with pytest.raises(AudioError, match=f"{path.name} cannot be opened"):
            read_wav(path)
