"""Who speaks when, on the sound of a recording.

Silero's detector knows speech from other sounds; it is used where the extra `video` is installed.
Else the project's own follows the loudness, `rapport.rewards.ratings.voice`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rapport.pipeline.data.store import CorpusError
from rapport.pipeline.data.video.landmarks import INSTALL
from rapport.policies.clip import AUDIO_RATE
from rapport.rewards.ratings.voice import RECORDING, STEP, bridge, step_levels, voice_activity

WINDOW = 512  # samples that Silero hears at once
CONTEXT = 64  # samples of the window before, which it hears again
SPEECH = 0.5  # probability from which on a window is speech
Ear = Callable[[np.ndarray], np.ndarray]  # (samples,) at AUDIO_RATE -> (samples // 160,) bool


def best_voices() -> str:
    """Name of the detector to use: "silero" where it is there, else "loudness"."""
    return "loudness" if _silero() is None else "silero"


def ear_of(name: str) -> Ear:
    """The detector of that name.

    Raises:
        CorpusError: Silero is not there.
    """
    if name == "loudness":
        return by_loudness
    model = _silero()
    if model is None:
        raise CorpusError(
            f"corpus.voices=silero: the package silero-vad or onnxruntime is not there: {INSTALL}; "
            "onnxruntime is in the extra `export`. corpus.voices=loudness needs neither"
        )
    return Silero(model)


def _silero() -> Path | None:
    """The model in the package, which is not imported: it would want torchaudio."""
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or importlib.util.find_spec("onnxruntime") is None:
        return None
    models = [
        Path(folder, "data", "silero_vad.onnx") for folder in spec.submodule_search_locations or ()
    ]
    return next((model for model in models if model.is_file()), None)


def by_loudness(audio: np.ndarray) -> np.ndarray:
    """Speech by loudness, (samples // 160,) bool."""
    return voice_activity(step_levels(audio), RECORDING)


class Silero:
    """Silero VAD by its ONNX model (github.com/snakers4/silero-vad, MIT).

    Args:
        model: file.
    """

    def __init__(self, model: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        """Speech, (samples // 160,) bool."""
        chances = self._chances(audio)
        steps = np.arange(len(audio) // STEP)
        # A step belongs to the window that has its middle.
        windows = ((steps + 0.5) * STEP // WINDOW).astype(int)
        return bridge(chances[windows] >= SPEECH, RECORDING.bridge, mirrored=False)

    def _chances(self, audio: np.ndarray) -> np.ndarray:
        """Probability of speech of every window, the last one filled up with silence."""
        count = -(-len(audio) // WINDOW)
        heard = np.zeros(CONTEXT + count * WINDOW, np.float32)
        heard[CONTEXT : CONTEXT + len(audio)] = audio
        state: Any = np.zeros((2, 1, 128), np.float32)
        rate = np.array(AUDIO_RATE, np.int64)
        chances = np.zeros(count, np.float32)
        for number in range(count):
            part = heard[None, number * WINDOW : (number + 1) * WINDOW + CONTEXT]
            chance, state = self._session.run(None, {"input": part, "state": state, "sr": rate})
            chances[number] = chance[0, 0]
        return chances
