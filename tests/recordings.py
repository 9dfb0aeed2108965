"""Recordings made by hand: a tone for a voice, and pictures that tell when they were taken."""

import wave
from fractions import Fraction

import av
import numpy as np

from rapport.policies.clip import AUDIO_RATE

NTSC = Fraction(30000, 1001)
HERTZ = 220.0
SOUNDS = {".mp4": "aac", ".mkv": "flac", ".wav": "pcm_s16le", ".flac": "flac", ".mp3": "libmp3lame"}
SOUNDS |= {".mov": "pcm_s16le", ".webm": "libopus"}
PICTURES = {".webm": "libvpx", ".ogv": "libvpx", ".wmv": "wmv2"}
PICTURES |= {".mxf": "mpeg2video", ".vob": "mpeg2video"}


def tone(seconds, rate, loud=0.5):
    """A sine that grows louder from nothing, (samples,) float32."""
    moments = np.arange(round(seconds * rate)) / rate
    sine = loud * moments / seconds * np.sin(2 * np.pi * HERTZ * moments)
    return sine.astype(np.float32)


def write_wav(path, samples, rate=AUDIO_RATE):
    """A WAV of int16 samples, mono; returns its path."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.asarray(samples, "<i2").tobytes())
    return path


def record(
    path, seconds=2.0, fps=None, rate=None, layout="mono", size=(64, 48), turned=0, late=0.0
):
    """A media file; its container is told by its name.

    Args:
        path: of the file.
        seconds: of both streams.
        fps: of pictures that grow brighter from black to white; None = none.
        rate: of the tone, Hz; None = none.
        layout: of its channels.
        size: width and height of pictures, whose left half is red.
        turned: degrees by which a phone was turned.
        late: seconds by which the sound begins later.
    """
    with av.open(str(path), "w") as container:
        film = sound = None
        if fps is not None:
            film = container.add_stream(PICTURES.get(path.suffix, "libx264"), rate=fps)
            film.width, film.height = size
            film.pix_fmt = "yuv420p"
            if turned:
                film.set_display_rotation(turned)
        if rate is not None:
            sound = container.add_stream(SOUNDS[path.suffix], rate=rate, layout=layout)
        if film is not None:
            _film(container, film, seconds, fps)
        if sound is not None:
            _sound(container, sound, tone(seconds, rate), late)
    return path


def brightness(number, count):
    return round(30 + 190 * number / count)


def _film(container, film, seconds, fps):
    count = round(seconds * fps)
    for number in range(count):
        image = np.full((film.height, film.width, 3), brightness(number, count), np.uint8)
        image[:, : film.width // 2, 1:] = 0
        container.mux(film.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
    container.mux(film.encode(None))


def _sound(container, sound, samples, late):
    channels = sound.codec_context.layout.nb_channels
    planes = np.tile(samples, (channels, 1))
    if channels == 2:
        planes *= [[1.5], [0.5]]  # their mean is the tone
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(planes), format="fltp", layout=sound.codec_context.layout.name
    )
    frame.sample_rate = sound.rate
    frame.time_base = Fraction(1, sound.rate)
    frame.pts = round(late * sound.rate)
    container.mux(sound.encode(frame))
    container.mux(sound.encode(None))
