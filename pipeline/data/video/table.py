"""Which recordings there are: a table, or the files of a folder.

A table is a CSV with a row for each recording:

    recording                its name
    file_a, file_b           film of each person; the same file twice = split screen
    part_a, part_b           whole, left or right: where in the picture the person is
    sound_a, sound_b         what that person says, if it is in a file of its own
    person_a, person_b       who it is: nobody is in two splits
    track_a, track_b         what another tracker made of the film
    later_b                  seconds by which b's files begin after a's

Only `recording` and `file_a` must be there; paths count from the table's folder. Of a folder, files
`NAME_speaker1.mp4` and `NAME_speaker2.mp4` are two people, any other film is two beside each other,
or one person alone, who listens to nobody.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from rapport.files import visible
from rapport.log import logger
from rapport.pipeline.data.readers.splits import Stretch, by_recording, hold_out_both
from rapport.pipeline.data.readers.transcripts import KINDS
from rapport.pipeline.data.store import CorpusError
from rapport.pipeline.data.video.tracking import Part
from rapport.wording import first_few

# Of films in the containers that `recording` reads.
FILMS = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".flv", ".f4v"),
    *(".mpg", ".mpeg", ".mpe", ".vob", ".ts", ".m2t", ".mts", ".m2ts", ".wmv", ".asf"),
    *(".ogv", ".ogm", ".mxf", ".dv", ".nut", ".rm", ".rmvb"),
)
SIDES = ("a", "b")
PER_SIDE = ("file", "part", "sound", "person", "track")
COLUMNS = ("recording", *(f"{what}_{side}" for side in SIDES for what in PER_SIDE), "later_b")
ALONE = (
    "one person alone listens to nobody. Two beside each other in a film: "
    "corpus.split_screen=true; a film each: NAME_speaker1.mp4 and NAME_speaker2.mp4; else a table, "
    "with file_b or sound_b"
)
_NAME = re.compile(r"[\w .()+-]+")
_SIDE_OF_FILE = re.compile(r"(?P<recording>.+)_speaker(?P<side>[12])", re.I)


@dataclass(frozen=True)
class Person:
    """Where one person of a recording is to be seen and heard.

    Args:
        name: the same wherever the same person is.
        file: the film; None = only heard.
        part: of the picture.
        sound: a file of its own; None = the film's.
        track: of another tracker.
    """

    name: str
    file: Path | None = None
    part: Part = "whole"
    sound: Path | None = None
    track: Path | None = None

    @property
    def files(self) -> list[Path]:
        """All that are named."""
        return [path for path in (self.file, self.sound, self.track) if path is not None]

    @property
    def heard(self) -> Path:
        """The file in which this person's voice is, if it was recorded."""
        heard = self.sound or self.file
        assert heard is not None, "a person is seen or heard"
        return heard


@dataclass(frozen=True)
class Recorded:
    """A row of the table.

    Args:
        name: of the recording.
        people: by side, "a" and "b".
        later_b: seconds by which b's files begin later.
    """

    name: str
    people: Mapping[str, Person]
    later_b: float = 0.0

    @property
    def shared_sound(self) -> bool:
        """Whether both voices are in one sound."""
        heard = {person.heard for person in self.people.values()}
        return len(self.people) == 2 and len(heard) == 1

    def transcripts(self, side: str) -> list[Path]:
        """Files beside a side's sound that say what that side says, the first to be read.

        Where both voices are in one sound, only `RECORDING_speaker1.json` says whose words it has.
        """
        heard = self.people[side].heard
        stems = [f"{self.name}_speaker{SIDES.index(side) + 1}"]
        if not self.shared_sound:
            stems.append(heard.stem)
        return _there(heard, stems)

    @property
    def files(self) -> list[Path]:
        """All that are named, and the transcripts that are there."""
        named = [file for person in self.people.values() for file in person.files]
        return named + [file for side in self.people for file in self.transcripts(side)]

    @property
    def undivided(self) -> list[Path]:
        """Transcripts of a sound of both, which do not say who says what: they are not read."""
        heard = self.people["a"].heard
        return _there(heard, [heard.stem]) if self.shared_sound else []


def _there(beside: Path, stems: Iterable[str]) -> list[Path]:
    files = (beside.with_name(f"{stem}.{kind}") for stem in stems for kind in KINDS)
    return [file for file in files if file.is_file()]


def read_recordings(root: Path, split_screen: bool, tracks: Path | None) -> list[Recorded]:
    """The recordings of a table or a folder.

    Args:
        root: a CSV, or a folder.
        split_screen: of a folder: films that are not named as one person's show two.
        tracks: folder of tracks, `RECORDING_speaker1.npz`; None = faces are tracked here.

    Raises:
        CorpusError: there is none, or the table is no such table; names row and column.
    """
    if root.is_dir():
        recordings = list(_of_folder(root, split_screen))
    elif root.is_file():
        recordings = list(_of_table(root))
    else:
        raise CorpusError(f"corpus.root={root}: neither a folder of films nor a table of them")
    names = [recording.name for recording in recordings]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CorpusError(
            f"{root}: recordings have names of their own, {first_few(twice)} is twice"
        )
    if not recordings:
        raise CorpusError(f"{root} has no recording: films are {', '.join(FILMS)}")
    return [_with_tracks(recording, tracks) for recording in recordings]


def _of_table(path: Path) -> Iterator[Recorded]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(f"{path} cannot be read as a CSV: {error}") from error
    missing = [name for name in ("recording", "file_a") if name not in columns]
    unknown = [name for name in columns if name not in COLUMNS]
    if missing or unknown:
        wrong = f"lacks {', '.join(missing)}" if missing else f"has {first_few(unknown)}"
        raise CorpusError(f"{path} {wrong}; a table of recordings has {', '.join(COLUMNS)}")
    for number, row in enumerate(rows, 2):
        if None in row:
            raise CorpusError(f"{path}, row {number} has more cells than there are columns")
        yield _of_row({name: (row[name] or "").strip() for name in columns}, path, number)


def _of_row(row: Mapping[str, str], path: Path, number: int) -> Recorded:
    where = f"{path}, row {number}"
    name = row["recording"]
    if not _NAME.fullmatch(name):
        raise CorpusError(f"{where}: recording {name!r} is no name for a file")
    people = {}
    for side in SIDES:
        given = {what: row.get(f"{what}_{side}", "") for what in PER_SIDE}
        if not any(given.values()):
            continue
        part = given["part"] or "whole"
        if part not in get_args(Part):
            raise CorpusError(f"{where}: part_{side} {part!r} is not whole, left or right")
        paths = {
            what: path.parent / given[what] if given[what] else None
            for what in ("file", "sound", "track")
        }
        if paths["file"] is None and paths["sound"] is None:
            raise CorpusError(f"{where}: side {side} has neither file_{side} nor sound_{side}")
        people[side] = Person(given["person"] or f"{name}-{side}", part=part, **paths)  # type: ignore[arg-type]
    if not any(person.file for person in people.values()):
        raise CorpusError(f"{where}: no film, file_a or file_b")
    places = [(person.file, person.part) for person in people.values() if person.file]
    if len(set(places)) < len(places):
        raise CorpusError(
            f"{where}: both people are in the {places[0][1]} picture of {places[0][0]}; of a split "
            "screen one is part_a=left, the other part_b=right"
        )
    recorded = Recorded(name, people)
    if recorded.shared_sound and not all(person.file for person in people.values()):
        raise CorpusError(
            f"{where}: both voices are in {people['a'].heard}. Whose is heard when is told by the "
            "lips of both: name the film of each, or a sound of each one's own"
        )
    try:
        later = float(row.get("later_b") or 0)
    except ValueError:
        later = math.nan
    if not math.isfinite(later):
        raise CorpusError(f"{where}: later_b {row['later_b']!r} is no number of seconds")
    return replace(recorded, later_b=later)


def _of_folder(root: Path, split_screen: bool) -> Iterator[Recorded]:
    pairs: dict[str, dict[str, Person]] = {}
    others = []
    for path in visible(root):
        if path.suffix.lower() not in FILMS:
            continue
        match = _SIDE_OF_FILE.fullmatch(path.stem)
        if match is None:
            others.append(path)
            continue
        side = SIDES[int(match["side"]) - 1]
        people = pairs.setdefault(match["recording"], {})
        if side in people:
            raise CorpusError(f"{path} and {people[side].file} are one side's: take one out")
        people[side] = Person(f"{match['recording']}-{side}", path)
    for name, people in pairs.items():
        yield Recorded(name, dict(sorted(people.items())))
    for path in others:
        name = path.stem
        if split_screen:
            left = Person(f"{name}-a", path, "left")
            right = Person(f"{name}-b", path, "right")
            yield Recorded(name, {"a": left, "b": right})
        else:
            yield Recorded(name, {"a": Person(f"{name}-a", path)})


def not_read(root: Path, recordings: Sequence[Recorded]) -> list[str]:
    """Names of the files and folders of a folder of films that belong to no recording."""
    if not root.is_dir():
        return []
    known = {file for each in recordings for file in (*each.files, *each.undivided)}
    return [path.name for path in visible(root) if path not in known]


def _with_tracks(recording: Recorded, folder: Path | None) -> Recorded:
    """The recording with the tracks that a folder has of it."""
    if folder is None:
        return recording
    people = {}
    for side, person in recording.people.items():
        path = folder / f"{recording.name}_speaker{SIDES.index(side) + 1}.npz"
        if person.track is None and person.file is not None:
            if not path.is_file():
                raise CorpusError(
                    f"corpus.tracks={folder} has no {path.name}, the track of {person.file}"
                )
            person = Person(person.name, person.file, person.part, person.sound, path)
        people[side] = person
    return Recorded(recording.name, people, recording.later_b)


def split_by_person(recordings: list[Recorded]) -> dict[str | int, list[Stretch]]:
    """Which parts of the recordings belong to which split; nobody is in two.

    Recordings that share a person, or share them with a third one, belong together.

    Returns:
        By recording.
    """
    together: dict[str, str] = {}  # person -> one who stands for all that they are together with

    def root_of(person: str) -> str:
        while together.setdefault(person, person) != person:
            person = together[person]
        return person

    for recording in recordings:
        first, *rest = (root_of(person.name) for person in recording.people.values())
        for other in rest:
            together[other] = first
    stretches = []
    for recording in recordings:
        people = root_of(next(iter(recording.people.values())).name)
        stretches.append(Stretch(recording.name, people, "train"))
    if len({stretch.people for stretch in stretches}) == 1 and len(stretches) > 1:
        logger.warning("  all recordings are connected by people whom they share")
    return by_recording(hold_out_both(stretches))
