"""Takes of Epic's Live Link Face: CSV files of ARKit's weights, as the phone's app writes them.

    Timecode,BlendShapeCount,EyeBlinkLeft,EyeLookDownLeft, ... ,TongueOut,HeadYaw, ... ,RightEyeRoll
    12:24:24:19.960,61,0.0179804321,0.2226290256, ...

The 52 weights are followed by nine angles in radians. An angle triple is a turn about Unreal's
axes: yaw to the person's right, then pitch downwards, then roll with the crown to the person's
left. That units, signs and order are so was found on the eyes of a real take, which by them have
no twist. The head is taken to be written alike: in that take it does not move.

A timecode is hours:minutes:seconds:frames, with parts of a frame behind a dot. How many frames a
second has is not written: it is the smallest usual rate that the frames' numbers fit in. Of a take
within one second it is taken to be 60.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from rapport.files import atomic
from rapport.policies.head.arkit import NAMES, arkit_layout
from rapport.policies.motion import HALF_TURN, LayoutError, Motion
from rapport.wording import first_few

ANGLES = tuple(
    f"{what}{angle}"
    for what in ("Head", "LeftEye", "RightEye")
    for angle in ("Yaw", "Pitch", "Roll")
)
# The file's order is ARKit's but for two pairs.
_SWAPPED = {
    "jawLeft": "jawRight",
    "jawRight": "jawLeft",
    "mouthLeft": "mouthRight",
    "mouthRight": "mouthLeft",
}
_IN_FILE_ORDER = tuple(_SWAPPED.get(name, name) for name in NAMES)
CHANNELS = tuple(name[0].upper() + name[1:] for name in _IN_FILE_ORDER) + ANGLES
COLUMNS = ("Timecode", "BlendShapeCount", *CHANNELS)

GAP_S = 0.25  # from here on a time without rows, or without a face in them, is a gap
_TIMECODE = re.compile(r"(\d{1,2}):(\d{1,2}):(\d{1,2})[:;](\d{1,2}(?:\.\d+)?)")
_RATES = (24, 25, 30, 50, 60)  # frames of a timecode's second
_WRITTEN_RATE = 60
_ROUNDING = 1e-3  # frames; timecodes have thousandths of theirs
_DAY_S = 24 * 3600.0
# Solvers leave [0, 1] by little; beyond these a number is no weight.
_LEAST = -1.0
_MOST = 2.0


class LiveLinkError(ValueError):
    """A take cannot be read; the message names file and line, and the way out."""


@dataclass(frozen=True, eq=False)
class Take:
    """What a phone saw.

    Args:
        start: timecode of the first row, in seconds since midnight.
        seconds: (rows,) of the rows with a face, ascending, from the first row.
        values: (rows, 61) in the order of `arkit_layout`; turns in axis-angle radians.
    """

    start: float
    seconds: np.ndarray
    values: np.ndarray

    def motion(self, fps: float, begin: float = 0.0) -> Motion:
        """The take at an even rate, in `arkit_layout(fps)`, straight from row to row.

        Gaps are bridged, see `gaps`.

        Args:
            fps: frames per second.
            begin: of the first frame, in seconds from the take's first row.
        """
        count = math.floor((self.seconds[-1] - begin) * fps + _ROUNDING) + 1
        moments = begin + np.arange(count) / fps
        columns = [np.interp(moments, self.seconds, column) for column in self.values.T]
        return Motion(np.stack(columns, axis=1), arkit_layout(fps))

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """Begin and end of what the phone missed, in seconds from the first row."""
        seen = np.append(0.0, self.seconds)
        last = np.flatnonzero(np.diff(seen) > GAP_S)
        return [(float(seen[row]), float(seen[row + 1])) for row in last]


def read_livelink(path: str | Path) -> Take:
    """Read a take. Columns are told by their names, whatever their order.

    Rows with a BlendShapeCount of 0 have no face. Of rows with the same timecode the first counts.

    Raises:
        LiveLinkError: the file cannot be read, lacks a column, or a row is damaged; names the line.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *lines = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LiveLinkError(f"{path} cannot be read as a CSV file: {error}") from error
    columns = _columns(header, path)
    times: list[tuple[int, float]] = []
    rows: list[list[float]] = []
    for number, line in enumerate(lines, 2):
        if not any(field.strip() for field in line):
            continue
        where = f"{path}, line {number}"
        if len(line) < len(header) and (len(line) < 2 or line[1].strip() != "0"):
            raise LiveLinkError(
                f"{where} has {len(line)} fields, the header {len(header)}: the line is cut. Take "
                "it out or export the take again"
            )
        times.append(_timecode(line[columns["timecode"]], where))
        rows.append(_weights(line, columns, where))
    face = [bool(row) for row in rows]
    if not any(face):
        raise LiveLinkError(f"{path} has no row with a face: export the take again")
    seconds = _seconds(times, path)
    kept = np.append(True, np.diff(seconds) > 0) & face
    values = np.array([row for row, keep in zip(rows, kept, strict=True) if keep])
    return Take(float(seconds[0]), (seconds - seconds[0])[kept], _ordered(values))


def channels(weights: Motion) -> np.ndarray:
    """ARKit's weights, in `arkit_layout`, as the app has them: (time, 61), of `CHANNELS`."""
    order = [NAMES.index(name) for name in _IN_FILE_ORDER]
    eyes = weights.group("eyepose")
    angles = [_angles(turn) for turn in (weights.group("rot"), eyes[:, :3], eyes[:, 3:])]
    return np.concatenate([weights.group("expr")[:, order], *angles], axis=1)


def write_livelink(path: str | Path, motion: Motion) -> None:
    """Write ARKit's weights as a take, in the app's columns, from timecode 00:00:00:00 on.

    Args:
        path: of the file; it appears whole or not at all.
        motion: in `arkit_layout` (`ArkitRig.weights`), with a frame at least.

    Raises:
        LayoutError: it is in another layout, or has no frame.
    """
    if motion.layout != arkit_layout(motion.layout.fps) or not len(motion):
        raise LayoutError(
            f"a take of {len(motion)} frames in {motion.layout}: it needs ARKit's weights, "
            f"{arkit_layout(motion.layout.fps)}. ArkitRig(load_head()).weights(motion) gives them"
        )
    values = channels(motion)
    with atomic(Path(path)) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for frame, row in enumerate(values):
            time = _as_timecode(frame / motion.layout.fps)
            writer.writerow([time, len(CHANNELS), *(f"{value:.10f}" for value in row)])


def _columns(header: Sequence[str], path: Path) -> dict[str, int]:
    """Place of each column by its name in small letters."""
    if not any(header):
        raise LiveLinkError(f"{path} is empty: export the take again")
    columns = {name.strip().lower(): place for place, name in enumerate(header)}
    missing = [name for name in COLUMNS if name.lower() not in columns]
    if not missing:
        return columns
    if len(header) == 1 and re.search(r"[;\t]", header[0]):
        raise LiveLinkError(
            f"{path}, line 1: columns are parted by something else than commas, as spreadsheets "
            "do. Export the take again, or save it with commas and points"
        )
    raise LiveLinkError(
        f"{path}, line 1: no column {first_few(missing)}: a take of Live Link Face has "
        f"{len(COLUMNS)} columns, Timecode to {COLUMNS[-1]}. Record in the mode 'Live Link (ARKit)'"
    )


def _weights(line: Sequence[str], columns: Mapping[str, int], where: str) -> list[float]:
    """The 61 numbers of a row in the file's order; none where it has no face."""
    count = line[columns["blendshapecount"]].strip()
    if count == "0":
        return []
    if count != str(len(CHANNELS)) or len(line) > len(columns):
        raise LiveLinkError(
            f"{where}: BlendShapeCount is {count!r} in {len(line)} fields, not {len(CHANNELS)} in "
            f"{len(columns)} (or 0 = no face). Take the line out or export the take again"
        )
    return [_number(line[columns[name.lower()]], name, where) for name in CHANNELS]


def _number(text: str, name: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise LiveLinkError(f"{where}: {name} is {text!r}, no finite number. Take the line out")
    if name in ANGLES and abs(value) > HALF_TURN:
        raise LiveLinkError(
            f"{where}: {name} is {value:g}, angles are radians, at most 3.14. Are these degrees?"
        )
    if name not in ANGLES and not _LEAST <= value <= _MOST:
        raise LiveLinkError(
            f"{where}: {name} is {value:g}, weights are 0 to 1. Are these percent? Divide by 100"
        )
    return value


def _timecode(text: str, where: str) -> tuple[int, float]:
    """Whole seconds since midnight, and frames."""
    match = _TIMECODE.fullmatch(text.strip())
    if match is None:
        raise LiveLinkError(
            f"{where}: {text!r} is no timecode hours:minutes:seconds:frames, say 12:24:24:19.960"
        )
    hours, minutes, seconds = (int(part) for part in match.groups()[:3])
    return 3600 * hours + 60 * minutes + seconds, float(match[4])


def _seconds(times: Sequence[tuple[int, float]], path: Path) -> np.ndarray:
    """Seconds of timecodes since the midnight before the first of them, (rows,)."""
    whole = np.array([seconds for seconds, _ in times], float)
    frames = np.array([frame for _, frame in times])
    rate = _WRITTEN_RATE
    if whole[0] != whole[-1]:
        rate = next((rate for rate in _RATES if frames.max() < rate), 0)
    if not rate:
        raise LiveLinkError(
            f"{path}: timecodes count up to frame {frames.max():g}; {_RATES[-1]} a second are the "
            "most. Are these milliseconds? Export the take again"
        )
    seconds = whole + frames / rate
    steps = np.diff(seconds, prepend=seconds[0])
    midnight = steps < -_DAY_S / 2
    back = (steps < 0) & ~midnight
    if back.any():
        row = int(np.argmax(back))
        raise LiveLinkError(
            f"{path}: time goes back by {-steps[row]:.3f} s at row {row + 1}: are two takes in one "
            "file? Cut it there"
        )
    ascending: np.ndarray = seconds + _DAY_S * np.cumsum(midnight)
    return ascending


def _ordered(rows: np.ndarray) -> np.ndarray:
    """Rows (n, 61) of the file in the order of `arkit_layout`, angles as axis-angle."""
    weights = rows[:, [_IN_FILE_ORDER.index(name) for name in NAMES]]
    turns = [_turn(rows[:, start : start + 3]) for start in range(len(NAMES), len(CHANNELS), 3)]
    return np.concatenate([weights, *turns], axis=1)


def _turn(angles: np.ndarray) -> np.ndarray:
    """Axis-angle (n, 3) of yaw, pitch and roll (n, 3), all in radians."""
    vectors: np.ndarray = Rotation.from_euler("YXZ", angles * (-1, 1, -1)).as_rotvec()
    return vectors


def _angles(turn: np.ndarray) -> np.ndarray:
    """Yaw, pitch and roll (n, 3) of axis-angle (n, 3)."""
    angles: np.ndarray = Rotation.from_rotvec(turn).as_euler("YXZ") * (-1, 1, -1)
    return angles


def _as_timecode(seconds: float) -> str:
    """The timecode so many seconds after midnight, in thousandths of a frame."""
    whole, thousandths = divmod(round(seconds * _WRITTEN_RATE * 1000), _WRITTEN_RATE * 1000)
    hours, minutes = whole // 3600 % 24, whole // 60 % 60
    return f"{hours:02d}:{minutes:02d}:{whole % 60:02d}:{thousandths / 1000:06.3f}"
