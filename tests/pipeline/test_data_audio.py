"""Sound files of all sorts, and who speaks when."""

import numpy as np
import pytest
from scipy.io import wavfile

from rapport.pipeline.data.audio import AudioError, read_wav
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
    signal, rate = read_wav(tmp_path / "a.wav")
    assert rate == AUDIO_RATE and signal.dtype == np.float32
    assert np.abs(signal - tone(0.1)).max() < tolerance


def test_other_rates_are_resampled(tmp_path):
    wavfile.write(tmp_path / "a.wav", 44_100, tone(0.5, 44_100).astype(np.float32))
    signal, rate = read_wav(tmp_path / "a.wav")
    assert rate == 44_100 and len(signal) == AUDIO_RATE // 2
    assert np.abs(signal[800:-800] - tone(0.5)[800:-800]).max() < 0.01


def test_bad_files_are_named(tmp_path):
    (tmp_path / "junk.wav").write_bytes(b"no wav at all")
    with pytest.raises(AudioError, match="junk.wav"):
        read_wav(tmp_path / "junk.wav")
    wavfile.write(tmp_path / "nan.wav", AUDIO_RATE, np.full(10, np.nan, np.float32))
    with pytest.raises(AudioError, match="nan.wav"):
        read_wav(tmp_path / "nan.wav")
