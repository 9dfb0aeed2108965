"""A face cut out of a film by one rectangle that stands still, so that it is seen where it goes.

Pose-aware Face Behavior Localization: Xie et al., "Smooth Online Multiple Appropriate Facial
Reaction Generation", MM 2025, section 4.1. A crop that follows the face shows how it turns and
hides where it is; one rectangle for the whole film, by Eq. 7 and 8, keeps both. From the boxes of
the face comes also where the head is, which no tracker of faces has to be asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from rapport.pipeline.data.recording import Film, Recording, RecordingError
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.head.video import Part, write_movie

# A picture (height, width, 3) uint8 -> faces in it, (faces, 4): left, top, width, height in pixels.
Detector = Callable[[np.ndarray], np.ndarray]
Crop = Literal["fixed", "floating"]

FPS = 25.0
EVERY = 5  # frames from one that is searched to the next: faces are slow, and searching is, too
SEARCHED = 480  # pixels of the longer side of a picture that is searched
PIXELS = 256  # of a crop, as in the paper
SMOOTHED = 5  # boxes in a row
CASCADE = "haarcascade_frontalface_default.xml"
_CASCADES_HELP = (
    "OpenCV 4 has them and OpenCV 5 has not; pip install 'rapport-rlhf[faces]', or give a detector "
    "of your own"
)
_LOST_S = 1.0  # a face that is not found for longer was away; where it was is not known
_SAME = 0.1  # overlap of the boxes of one face in two pictures that were searched, at least
_PART = 50  # frames that are cut out at once


@dataclass(frozen=True, eq=False)
class Face:
    """Where one face is in a film.

    Args:
        boxes: (frames, 4) left, top, width, height in pixels of the film; NaN where it is not seen.
        fps: frames a second; the film itself may have another rate, or none that is steady.
        width: of the film, pixels, as it is meant to be seen.
        height: likewise.
    """

    boxes: np.ndarray
    fps: float
    width: int
    height: int

    @property
    def seen(self) -> np.ndarray:
        """(frames,) bool, where it is seen."""
        there: np.ndarray = np.isfinite(self.boxes[:, 0])
        return there

    @property
    def centres(self) -> np.ndarray:
        """(frames, 2) of the boxes, pixels."""
        middle: np.ndarray = self.boxes[:, :2] + self.boxes[:, 2:] / 2
        return middle

    @property
    def sizes(self) -> np.ndarray:
        """(frames,) edge of a square as large as the box, pixels."""
        edge: np.ndarray = np.sqrt(self.boxes[:, 2] * self.boxes[:, 3])
        return edge


class Square(NamedTuple):
    """A part of a picture, pixels."""

    left: float
    top: float
    side: float


def haar() -> Detector:
    """OpenCV's frontal faces by Haar cascades, with the settings of the paper's code.

    Raises:
        RecordingError: there is no OpenCV, or one without them.
    """
    try:
        import cv2
        from cv2.data import haarcascades

        cascade = cv2.CascadeClassifier(str(Path(haarcascades, CASCADE)))
    except (ImportError, AttributeError) as error:
        raise RecordingError(f"no Haar cascades: {_CASCADES_HELP}") from error
    if cascade.empty():
        raise RecordingError(f"this OpenCV comes without {CASCADE}: {_CASCADES_HELP}")

    def detect(picture: np.ndarray) -> np.ndarray:
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        least = max(24, min(grey.shape) // 8)  # a cascade is of 24 x 24 pixels
        found = cascade.detectMultiScale(grey, 1.1, 6, minSize=(least, least))
        return np.asarray(found, float).reshape(-1, 4)

    return detect


def find_face(
    recording: Recording,
    detector: Detector,
    *,
    fps: float = FPS,
    every: int = EVERY,
    smoothed: int = SMOOTHED,
) -> Face:
    """Where the face of a film is, frame by frame, whatever its size, turn and rate of pictures.

    Where there are several, it is the one that is largest and longest there (`follow`). Boxes lie
    on straight lines between the pictures that are searched. A face that is not found for more than
    a second is missing there.

    Args:
        recording: with pictures.
        detector: of faces in a picture.
        fps: of the boxes.
        every: how many frames from one that is searched to the next.
        smoothed: boxes in a row whose median is taken, an odd number; with 5, what is over within
            half a second is not seen.

    Raises:
        RecordingError: the recording has no pictures, or there is no face in them.
    """
    size = _film(recording, None).first
    assert size is not None
    height, width = size.shape[:2]
    scale = max(width, height) / SEARCHED if max(width, height) > SEARCHED else 1.0
    found = []
    for number, picture in enumerate(_frames(recording, round(height / scale), fps)):
        if number % every == 0:
            boxes = np.asarray(detector(picture), float).reshape(-1, 4)
            found.append(boxes * (width / picture.shape[1]))
    boxes = follow(found)
    if not len(boxes) or not np.isfinite(boxes).any():
        raise RecordingError(
            f"{recording.path}: no face found in {len(found)} pictures; is it lit, upright and "
            "not turned away?"
        )
    medians = _medians(boxes, smoothed)
    filled = _filled(medians, every, frames=number + 1, gap=_LOST_S * fps)
    return Face(filled, fps, width, height)


def follow(found: Sequence[np.ndarray]) -> np.ndarray:
    """The boxes of one face, (pictures, 4), NaN where it is not found.

    A box that overlaps the last one of a face is of this face. That face is taken whose boxes are
    the widest, added up over all pictures: a large one that is seen once is none.

    Args:
        found: (faces, 4) of each picture.
    """
    faces: list[dict[int, np.ndarray]] = []
    for number, boxes in enumerate(found):
        for box in sorted(boxes, key=lambda box: -box[2] * box[3]):
            others = [face for face in faces if number not in face]
            likeness = [_overlap(box, face[max(face)]) for face in others]
            if likeness and max(likeness) >= _SAME:
                others[int(np.argmax(likeness))][number] = box
            else:
                faces.append({number: box})
    followed = np.full((len(found), 4), np.nan)
    if faces:
        largest = max(faces, key=lambda face: sum(box[2] for box in face.values()))
        followed[list(largest)] = np.stack(list(largest.values()))
    return followed


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Area of what two boxes share over that of what they cover."""
    low = np.maximum(a[:2], b[:2])
    high = np.minimum(a[:2] + a[2:], b[:2] + b[2:])
    shared = float(np.prod(np.maximum(high - low, 0)))
    return shared / (float(np.prod(a[2:]) + np.prod(b[2:])) - shared)


def _medians(boxes: np.ndarray, count: int) -> np.ndarray:
    """Each box as the median of `count` around it; one that was not found stays missing."""
    reach = count // 2
    padded = np.pad(boxes, ((reach, reach), (0, 0)), constant_values=np.nan)
    there = np.isfinite(boxes[:, 0])
    around = np.lib.stride_tricks.sliding_window_view(padded, count, axis=0)
    smoothed = boxes.copy()
    smoothed[there] = np.nanmedian(around[there], axis=-1)
    return smoothed


def _filled(boxes: np.ndarray, every: int, *, frames: int, gap: float) -> np.ndarray:
    """Boxes of every frame: between two that are `gap` frames apart or less, on a straight line.

    Before the first and after the last one stay as these are, as long as nothing else was searched.
    """
    searched = np.flatnonzero(np.isfinite(boxes[:, 0]))
    places = searched * every
    clock = np.arange(frames)
    lines = [np.interp(clock, places, column) for column in boxes[searched].T]
    filled = np.stack(lines, axis=1)
    after = np.searchsorted(places, clock)  # the first box that is not earlier
    before = np.searchsorted(places, clock, side="right") - 1
    inside = (after < len(places)) & (before >= 0)
    apart = np.zeros(frames)
    apart[inside] = (places[after[inside]] - places[before[inside]]).astype(float)
    away = inside & (apart > gap)
    away |= (after == len(places)) & (clock - places[-1] >= every)
    away |= (before < 0) & (places[0] - clock >= every)
    filled[away] = np.nan
    return filled


def fixed_square(face: Face, limit: int | None = None) -> Square:
    """The part of the picture that is shown of all frames, PFL's Eq. 7 and 8.

    Its middle is the mean of the boxes' middles, and it is as wide and as high as all boxes
    together, if they are no more than `limit`. Ours beyond that: it is a square, so that faces stay
    as broad as they are, is never larger than the picture, and is pushed inside it.

    Args:
        face: that is shown.
        limit: of the edge, pixels; the paper's is 256. None = the picture's.
    """
    middle, extent = standing(face.boxes[face.seen])
    largest = min(face.width, face.height)
    side = min(extent, largest if limit is None else min(limit, largest))
    return _inside(face, middle, side)


def standing(boxes: np.ndarray) -> tuple[np.ndarray, float]:
    """Middle (2,) and edge of one square for boxes (n, 4), by PFL's Eq. 7 and 8."""
    low = boxes[:, :2]
    high = low + boxes[:, 2:]
    extent = high.max(axis=0) - low.min(axis=0)
    return (low + high).mean(axis=0) / 2, float(extent.max())


def floating_squares(face: Face) -> list[Square]:
    """A part of each frame about its own box, as most corpora are cut: it hides where the head is.

    Where the face is not seen, that of the nearest frame in which it is.
    """
    seen = np.flatnonzero(face.seen)
    frames = np.arange(len(face.boxes))
    after = np.searchsorted(seen, frames).clip(max=len(seen) - 1)
    before = (after - 1).clip(min=0)
    nearer = np.abs(seen[before] - frames) < np.abs(seen[after] - frames)
    largest = min(face.width, face.height)
    return [
        _inside(face, face.centres[number], min(float(face.boxes[number, 2:].max()), largest))
        for number in seen[np.where(nearer, before, after)]
    ]


def _inside(face: Face, middle: np.ndarray, side: float) -> Square:
    left, top = (middle - side / 2).clip(0, np.array([face.width, face.height]) - side)
    return Square(float(left), float(top), side)


def translation(face: Face) -> np.ndarray:
    """Where the head is, (frames, 3), NaN where it is not seen.

    How far it is to the right of its mean place, as it is seen, and above it, both in widths of its
    mean box; and by what share of it the box is larger than that, which is nearer. A head that
    turns or nods moves its face as well: this is where the face is. PFL's Eq. 9 without rotation.
    """
    unit = np.nanmean(face.sizes)
    right, down = ((face.centres - np.nanmean(face.centres, axis=0)) / unit).T
    track: np.ndarray = np.stack([right, -down, face.sizes / unit - 1], axis=1)
    return track


def write_crop(
    recording: Recording,
    face: Face,
    to: Path,
    *,
    crop: Crop = "fixed",
    pixels: int = PIXELS,
    limit: int | None = None,
) -> None:
    """Cut a face out of its film; the sound is kept.

    Args:
        recording: the film.
        face: that was found in it.
        to: `.mp4`, which appears whole or not at all.
        crop: `fixed`, PFL's; `floating` goes with the face, for comparison.
        pixels: height and width of what is written, an even number.
        limit: as of `fixed_square`.

    Raises:
        RecordingError: the film is damaged.
        ValueError: `to` or `pixels` do not fit a film.
    """
    if crop == "fixed":
        squares = [fixed_square(face, limit)] * len(face.boxes)
    else:
        squares = floating_squares(face)
    parts = _parts(recording, squares, pixels, face.fps)
    write_movie(to, parts, face.fps, sample_rate=AUDIO_RATE)


def _parts(
    recording: Recording, squares: Sequence[Square], pixels: int, fps: float
) -> Iterator[Part]:
    """What is written, `_PART` frames at a time, with its sound."""
    sound = recording.sound()
    frames = _frames(recording, None, fps)
    for start in range(0, len(squares), _PART):
        shown = squares[start : start + _PART]
        images = [cropped(next(frames), square, pixels) for square in shown]
        end = round((start + len(shown)) / fps * AUDIO_RATE)
        yield np.stack(images), None if sound is None else sound.until(end)


def cropped(picture: np.ndarray, square: Square | np.ndarray, pixels: int) -> np.ndarray:
    """A square of a picture, black beyond its borders, (pixels, pixels, 3) uint8.

    Args:
        picture: (height, width, 3).
        square: left, top and edge in pixels.
        pixels: of the answer.
    """
    left, top, edge = (float(number) for number in square)
    image = Image.fromarray(picture)
    extent = (left, top, left + edge, top + edge)
    if edge > 2 * pixels:  # every pixel counts
        return np.asarray(image.crop(extent).resize((pixels, pixels), Image.Resampling.BOX))
    shown = image.transform(
        (pixels, pixels), Image.Transform.EXTENT, extent, Image.Resampling.BILINEAR
    )
    return np.asarray(shown)


def _film(recording: Recording, pixels: int | None) -> Film:
    """Its pictures, whole, `pixels` high.

    Raises:
        RecordingError: it has none.
    """
    film = recording.film(pixels, square=False)
    if film is None:
        raise RecordingError(f"{recording.path} has no pictures to look for a face in")
    return film


def _frames(recording: Recording, pixels: int | None, fps: float) -> Iterator[np.ndarray]:
    """What is seen at each frame, whatever the film's own rate is."""
    film = _film(recording, pixels)
    frames = film.newest(fps)
    for _ in range(max(1, round(film.seconds * fps))):
        yield next(frames)
