"""The faces of a film as motion: found, followed from picture to picture, read, laid on a clock.

A picture in which no face is seen says nothing of the motion. Up to `BRIDGED_S` between two that do
are bridged by straight lines; the rest is not there, and no clip is cut from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter1d

from rapport.arrays import ArrayFileError, load_named, save_named
from rapport.pipeline.data.pfl import cropped
from rapport.pipeline.data.recording import Film, Media, Recording, RecordingError
from rapport.pipeline.data.store import CorpusError
from rapport.pipeline.data.video.faces import SIZE
from rapport.pipeline.data.video.landmarks import Face, Landmarker
from rapport.pipeline.data.video.regressor import Regressor
from rapport.policies.motion import Layout, LayoutError, Motion

Part = Literal["whole", "left", "right"]
HEIGHT = 720  # pixels that films are decoded to: faces are looked at in SIZE of them
BRIDGED_S = 0.2
# Of what a face's landmarks cover of a crop, as in the faces that were learnt from: their height,
# and where the middle of it is, from the top.
_FACE_HEIGHT = 0.60
_FACE_MIDDLE = 0.578
# A crop stays where it is until the face is so far from its place, or from its size.
_OFF = 0.10
_UNLIKE = 1.25
_AT_ONCE = 64  # faces whose features are computed together
_SPARE = 0.75  # of a frame: pictures that follow sooner are not looked at
# Standard deviation of a Gaussian in time that takes out the landmarks' noise. Lids, which blink
# within .1 s, are left as they are.
SMOOTHED_S = 0.03
_QUICK = ("eyelid",)


@dataclass(frozen=True, eq=False)
class Track:
    """A face through a recording.

    Args:
        motion: what of it is not `there` means nothing.
        there: (time,) bool, tracked or bridged.
        seen: (time,) bool, tracked.
        boxes: (time, 3) where the face is in its part of the film: left, top and edge of a square,
            in heights of the film; as it was last where nothing is seen.
        share: of the pictures, in which the face was found.
    """

    motion: Motion
    there: np.ndarray
    seen: np.ndarray
    boxes: np.ndarray
    share: float

    def __len__(self) -> int:
        return len(self.motion)

    def save(self, path: Path) -> None:
        """Write an `.npz`, whole or not at all."""
        content = {
            "values": self.motion.values,
            "layout": np.array(self.motion.layout.to_json()),
            "there": self.there,
            "seen": self.seen,
            "boxes": self.boxes,
            "share": np.array(self.share),
        }
        save_named(path, content)

    @classmethod
    def load(cls, path: Path) -> Track:
        """Read what `save` wrote.

        Raises:
            CorpusError: the file is damaged.
        """
        try:
            arrays = load_named(path)
            layout = Layout.from_json(str(arrays["layout"]))
            motion = Motion(arrays["values"], layout)
            masks = arrays["there"], arrays["seen"], arrays["boxes"]
            return cls(motion, *masks, share=float(arrays["share"]))
        except (ArrayFileError, KeyError, LayoutError) as error:
            raise CorpusError(f"{path} is no track ({error}): remove it") from error


@dataclass(eq=False)
class Finder:
    """Finds the face of one person in picture after picture, near the place where it was.

    Args:
        landmarker: that sees it.
        box: left, top and edge of the square that is looked at, pixels; None = none was found yet.
    """

    landmarker: Landmarker
    box: np.ndarray | None = None

    def find(self, shown: np.ndarray) -> Face | None:
        """The face in a crop around the place where it was, else in all that is shown."""
        if self.box is not None:
            face = self.landmarker(cropped(shown, self.box, SIZE))
            if face is not None:
                box = self._around(face, self.box)
                if _alike(box, self.box):
                    return face
                self.box = box
                return self.landmarker(cropped(shown, box, SIZE)) or face
        face = self.landmarker(shown)
        if face is None:
            return None
        self.box = self._around(face, np.array([0.0, 0.0, SIZE]))
        return self.landmarker(cropped(shown, self.box, SIZE))

    @staticmethod
    def _around(face: Face, box: np.ndarray) -> np.ndarray:
        """Left, top and edge of the crop that a face asks for, seen in the crop `box`."""
        scale = box[2] / SIZE
        low = face.points[:, :2].min(axis=0) * scale + box[:2]
        high = face.points[:, :2].max(axis=0) * scale + box[:2]
        edge = (high[1] - low[1]) / _FACE_HEIGHT
        middle = (low + high) / 2
        return np.array([middle[0] - edge / 2, middle[1] - _FACE_MIDDLE * edge, edge])


@dataclass(eq=False)
class Follower:
    """Follows the face of one person.

    Args:
        landmarker: that sees it.
        regressor: that reads it.
        part: of the film that shows the person.
    """

    landmarker: InitVar[Landmarker]
    regressor: Regressor
    part: Part = "whole"
    times: list[float] = field(default_factory=list)  # of pictures
    found: list[bool] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)  # pixels
    _faces: list[Face] = field(default_factory=list)
    _components: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self, landmarker: Landmarker) -> None:
        self._finder = Finder(landmarker)

    def look(self, time: float, picture: np.ndarray) -> None:
        """Look at the next picture of the film, (height, width, 3)."""
        face = self._finder.find(part_of(picture, self.part))
        box = self._finder.box
        self.times.append(time)
        self.found.append(face is not None)
        self.boxes.append(np.zeros(3) if box is None else box / len(picture))
        if face is not None:
            self._faces.append(face)
        if len(self._faces) >= _AT_ONCE:
            self._read()

    def track(self, fps: float, frames: int) -> Track:
        """All of it on a clock of `frames` frames.

        Raises:
            RecordingError: there was never a face.
        """
        self._read()
        if not self._components:
            raise RecordingError(f"no face in any of {len(self.times)} pictures ({self.part})")
        seen = np.concatenate(self._components)
        values = self.regressor(seen, np.median(seen, axis=0))
        times = np.array(self.times)
        found = np.array(self.found)
        layout = Layout(self.regressor.layout.groups, fps, self.regressor.layout.topology)
        smooth = smoothed(times[found], values, layout)
        return on_clock(
            times, found, smooth, boxes=np.stack(self.boxes), layout=layout, frames=frames
        )

    def _read(self) -> None:
        if self._faces:
            self._components.append(self.regressor.features(self._faces))
            self._faces = []


def part_of(picture: np.ndarray, part: Part) -> np.ndarray:
    """The half of a picture that shows one of two people, or all of it."""
    middle = picture.shape[1] // 2
    columns = {"whole": slice(None), "left": slice(0, middle), "right": slice(middle, None)}
    return picture[:, columns[part]]


def face_of(picture: np.ndarray, part: Part, box: np.ndarray, size: int) -> np.ndarray:
    """The crop of a person's face, (size, size, 3) uint8.

    Args:
        picture: of the film.
        part: that shows the person.
        box: of `Track.boxes`; an edge of 0 is not known, and the middle square is taken.
        size: of the answer.
    """
    shown = part_of(picture, part)
    if box[2]:
        return cropped(shown, box * len(picture), size)
    height, width = shown.shape[:2]
    edge = min(height, width)
    return cropped(shown, np.array([(width - edge) / 2, (height - edge) / 2, edge]), size)


def _alike(box: np.ndarray, other: np.ndarray) -> bool:
    off = np.abs(box[:2] + box[2] / 2 - other[:2] - other[2] / 2).max()
    ratio = box[2] / other[2]
    return bool(off < _OFF * other[2] and 1 / _UNLIKE < ratio < _UNLIKE)


def film_of(media: Media) -> Film:
    """The pictures of a film as faces are looked for in them.

    Raises:
        RecordingError: it has none, or they cannot be decoded; names the file.
    """
    film = Recording(media.path, media).film(HEIGHT, square=False, enlarged=False)
    if film is None:
        raise RecordingError(f"{media.path} has no pictures")
    return film


def follow(media: Media, followers: Sequence[Follower], fps: float) -> list[Track]:
    """Track the people in a film, which is decoded once.

    Args:
        media: the film.
        followers: one for each person.
        fps: frames per second of the motion.

    Raises:
        RecordingError: there are no pictures, they cannot be decoded, or one of the people is never
            seen; names the file.
    """
    film = film_of(media)
    due = -np.inf
    for time, picture in film.rest():
        if time >= due:
            due = time + _SPARE / fps
            for follower in followers:
                follower.look(time, picture)
    frames = int(film.seconds * fps)
    try:
        return [follower.track(fps, frames) for follower in followers]
    except RecordingError as error:
        raise RecordingError(f"{media.path}: {error}") from error


def smoothed(times: np.ndarray, values: np.ndarray, layout: Layout) -> np.ndarray:
    """Coefficients without the landmarks' noise, (n, dim).

    Args:
        times: (n,) seconds of the pictures with a face.
        values: (n, dim).
        layout: of the motion.
    """
    if len(times) < 2:
        return values
    step = float(np.median(np.diff(times)))
    cuts = np.flatnonzero(np.diff(times) > BRIDGED_S) + 1
    smooth = values.copy()
    for piece in np.split(np.arange(len(times)), cuts):
        for name in layout.names:
            if name not in _QUICK:
                columns = layout.columns(name)
                smooth[piece, columns] = gaussian_filter1d(
                    values[piece, columns], SMOOTHED_S / step, axis=0, mode="nearest"
                )
    return smooth


def on_clock(
    times: np.ndarray,
    found: np.ndarray,
    values: np.ndarray,
    *,
    boxes: np.ndarray,
    layout: Layout,
    frames: int,
) -> Track:
    """Pictures, which come when they come, as frames at the layout's rate.

    Args:
        times: (pictures,) seconds, rising.
        found: (pictures,) whether there is a face.
        values: (faces, dim), of those that have one.
        boxes: (pictures, 3).
        layout: of the motion.
        frames: how many.
    """
    clock = np.arange(frames) / layout.fps
    moments = times[found]
    after = np.searchsorted(moments, clock)
    before = np.clip(after - 1, 0, len(moments) - 1)
    after = np.clip(after, 0, len(moments) - 1)
    gap = moments[after] - moments[before]
    # The first and last face are seen for a moment before and after.
    outside = np.maximum(moments[before] - clock, clock - moments[after])
    picture = np.searchsorted(times, clock, side="right") - 1
    lasts = 1.5 * float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    near = np.maximum(gap, outside)
    rows = np.stack([np.interp(clock, moments, column) for column in values.T], axis=1)
    return Track(
        Motion(rows.astype(np.float32), layout),
        there=near <= BRIDGED_S,
        seen=near <= max(lasts, 1.5 / layout.fps),
        boxes=boxes[np.clip(picture, 0, len(times) - 1)],
        share=float(found.mean()),
    )
