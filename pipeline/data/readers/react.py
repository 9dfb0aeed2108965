"""Reader of the REACT challenges' files: FaceVerse's coefficients, attributes, sound and video.

`corpus.kind=react`: REACT 2023 and 2024 (Song et al.; NoXI, RECOLA and UDIVA), 25 fps.

    root/{train,val,test}.csv                         pairs: a header, then `n,SPEAKER,LISTENER`
    root/SPLIT/3D_FV_files/RECORDING.npy              (time, 58) or (time, 1, 58)
    root/SPLIT/Emotion/RECORDING.csv                  a header, then 25 columns
    root/SPLIT/Audio_files/RECORDING.wav
    root/SPLIT/Video_files/RECORDING/1.png ...        or RECORDING.mp4
    root/neighbour_emotion_SPLIT.npy                  0/1, as the challenge's tool cuts it, or
    root/Approprirate_facial_reaction.npy (sic), data_indices.csv     the same of all splits

A RECORDING is SITE/CHAT/PERSON/NUMBER. ReactFace's own layout is read, too: no folders SPLIT, lists
in `paper-list`, video in `SL-crop/Video_files`.

`corpus.kind=mars`: REACT 2025 (MARS), 30 fps. Recordings of one name are a pair.

    root/{train,val,test}/MODALITY/{speaker,listener}/SESSION/RECORDING
    with coefficients .npy, facial-attributes .npy (time, 25), audio .wav, video-face-crop .mp4

Everybody is once the listener, as in the challenges' own loaders: of n pairs directions 0 to n - 1
are the pairs as listed, n to 2n - 1 the same with roles swapped. In this order stand the rows
(speakers) and columns (listeners) of the matrix of appropriate reactions. MARS has none: all who
listen in a session are appropriate to whoever speaks in it. Where a clip is a part of a recording,
the appropriate ones are the same part of the others.

Coefficients are kept as they are: the challenges take a mean face from them, which is not among the
files and changes no metric. Of the 25 attributes the listener's valence and arousal become the
corpus' affect labels; action units and expressions are checked and not kept.

A modality whose folder is not there is absent. One file missing in a folder that is there is an
error.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from rapport.arrays import ArrayFileError, load_array
from rapport.files import visible
from rapport.log import logger
from rapport.pipeline.data.lengths import rate_of
from rapport.pipeline.data.neighbours import matrix_rows, session_rows
from rapport.pipeline.data.readers.dyads import (
    Cutting,
    ReadCounts,
    cut_role,
    read_sound,
    transcripts_beside,
)
from rapport.pipeline.data.readers.pictures import Filming, Look, Stills, with_frames
from rapport.pipeline.data.readers.splits import (
    VALIDATION_SHARE,
    Stretch,
    by_recording,
    hold_out,
    require_splits,
)
from rapport.pipeline.data.readers.transcripts import Transcripts
from rapport.pipeline.data.store import Corpus, CorpusError, CorpusWriter
from rapport.policies.clip import AUDIO_RATE, Clip
from rapport.policies.motion import Layout, LayoutError, Motion, require_radians
from rapport.wording import first_few

Kind = Literal["react", "mars"]
FPS: dict[Kind, float] = {"react": 25.0, "mars": 30.0}
COEFFICIENTS = 58
ATTRIBUTES = 25
AFFECT = slice(15, 17)  # valence and arousal, after 15 action units, before 8 expressions
WHOLE_MATRIX = "Approprirate_facial_reaction.npy"  # as the challenge spells it
INDICES = "data_indices.csv"
SPLITS = ("train", "val", "test")  # as published
CUTTING = Cutting()
# Of valence and arousal: recognisers go a little beyond 1, columns in another order far.
_MOST = 1.5

# Modality -> its folders, of which one may be there, and the ending of its files.
_MODALITIES: dict[Kind, dict[str, tuple[tuple[str, ...], str]]] = {
    "react": {
        "motion": (("3D_FV_files",), ".npy"),
        "attributes": (("Emotion",), ".csv"),
        "sound": (("Audio_files",), ".wav"),
        "video": (("Video_files", "SL-crop/Video_files"), ".mp4"),
    },
    "mars": {
        "motion": (("coefficients",), ".npy"),
        "attributes": (("facial-attributes",), ".npy"),
        "sound": (("audio",), ".wav"),
        "video": (("video-face-crop",), ".mp4"),
    },
}


def react_layout(kind: Kind) -> Layout:
    """FaceVerse v2: 52 blend shapes with ARKit's names, three angles, a translation."""
    return Layout((("expr", 52), ("rot", 3), ("trans", 3)), FPS[kind], "faceverse")


@dataclass
class ReactCounts(ReadCounts):
    """What became of the files; kept in the corpus manifest."""

    # Pairs of whom nothing says who else is appropriate.
    without_neighbours: int = 0
    affect_beyond_1: int = 0  # recordings whose valence or arousal was cut to [-1, 1]


class Files(NamedTuple):
    """What one person of a recording has; None where the modality has no folder."""

    name: str
    motion: Path
    attributes: Path | None = None
    sound: Path | None = None
    video: Path | None = None  # a file, or a folder of pictures


class Pair(NamedTuple):
    """Two people who were recorded together.

    Args:
        split: as its publishers call it.
        people: the speaker, as listed, and the listener.
        who: a name of each that is the same in all recordings of their conversation.
        conversation: its name.
    """

    split: str
    people: tuple[Files, Files]
    who: tuple[str, str]
    conversation: str


class Direction(NamedTuple):
    """A pair with one of its people as the listener, 1 as listed, 0 with roles swapped."""

    pair: int
    listener: int


class _Side(NamedTuple):
    """What one person of a recording shows and says."""

    motion: Motion
    affect: np.ndarray | None  # (time, 2)
    audio: np.ndarray | None


def import_react(
    root: str | Path,
    path: str | Path,
    kind: Kind,
    cutting: Cutting = CUTTING,
    frames: int = 2,
    image_size: int = 56,
    transcriber: str | None = None,
) -> Corpus:
    """Read the files and write them as a corpus.

    Args:
        root: folder as published.
        path: folder of the corpus to create; answers of a transcriber are kept beside it.
        kind: of the layout.
        cutting: how clips are cut; the challenges take recordings whole.
        frames: of the speaker a second; 0 = none.
        image_size: height and width of a frame, pixels.
        transcriber: "module:Class" of a `Transcriber`; nobody has written down what is said.

    Raises:
        CorpusError: no such files, damaged ones, or lists and matrices that do not fit them; names
            the file.
    """
    source = {"kind": kind, **asdict(cutting), "transcriber": transcriber}
    transcripts = transcripts_beside(path, transcriber)
    reader = ReactReader(Path(root), kind, cutting, frames, image_size, transcripts)
    with CorpusWriter(path, source) as writer:
        for clip, affect in reader:
            writer.add(clip, affect)
        require_splits(writer.splits, root, cutting.seconds)
        writer.name_appropriate(reader.appropriate())
        writer.source["counts"] = asdict(reader.counts)
    return Corpus(path)


class ReactReader:
    """Clips of all pairs, one pair in memory at a time; each clip with its listener's affect.

    Args:
        root: folder as published.
        kind: of the layout.
        cutting: how clips are cut.
        frames: of the speaker a second; 0 = none.
        image_size: height and width of a frame, pixels.
        transcripts: writes down what is said.

    Raises:
        CorpusError: lists, files or matrices are missing or do not fit each other; nothing large
            has been read by then.
    """

    def __init__(
        self,
        root: Path,
        kind: Kind,
        cutting: Cutting = CUTTING,
        frames: int = 2,
        image_size: int = 56,
        transcripts: Transcripts | None = None,
    ) -> None:
        self.root = root
        self.kind = kind
        self.counts = ReactCounts()
        self.pairs = list(_pairs(root, kind))
        self.rows = _rows(root, kind, self.pairs, self.counts)
        self._frames = cutting.frames(FPS[kind])
        self._rate = frames
        self._size = image_size
        self._transcripts = transcripts
        self._clips: dict[Direction, dict[int, tuple[str, str]]] = {}

    def __iter__(self) -> Iterator[tuple[Clip, np.ndarray | None]]:
        stretches = _stretches(self.pairs)
        told: dict[str, float] = {}  # conversation -> seconds of its recordings before
        for number, pair in enumerate(self.pairs):
            self.counts.recordings += 1
            sides = [self._side(files) for files in pair.people]
            longest = self._add_lengths(pair, sides)
            start = told.get(pair.conversation, 0.0)
            told[pair.conversation] = start + longest
            for listener in (1, 0):
                role = self._role(pair, sides, listener, start)
                clips = cut_role(role, stretches[number], self._frames, lost=(), counts=self.counts)
                looked_at = self._with_frames(clips, role, pair.people[1 - listener].video)
                affect = sides[listener].affect
                for clip in looked_at:
                    first = round((clip.start - start) * FPS[self.kind])
                    places = self._clips.setdefault(Direction(number, listener), {})
                    places[first] = (clip.clip_id, clip.split)
                    span = slice(first, first + len(clip.listener))
                    yield clip, None if affect is None else affect[span]
        self.counts.lengths.require_small(self.root)

    def appropriate(self) -> dict[str, list[str]]:
        """Of each clip read so far the same part of the appropriate recordings of its split."""
        fitting: dict[str, list[str]] = {}
        for direction, places in self._clips.items():
            for first, (clip_id, split) in places.items():
                others = (self._clips.get(row, {}).get(first) for row in self.rows[direction])
                fitting[clip_id] = [
                    other[0] for other in others if other is not None and other[1] == split
                ]
        return fitting

    def _side(self, files: Files) -> _Side:
        motion = read_coefficients(files.motion, self.kind)
        affect = audio = None
        if files.attributes is not None:
            affect = read_attributes(files.attributes)[:, AFFECT]
            self.counts.affect_beyond_1 += bool(np.abs(affect).max() > 1)
            affect = np.clip(affect, -1, 1)
        if files.sound is not None:
            audio = read_sound(files.sound, self.counts)
            seconds = len(audio) / AUDIO_RATE
            rate = rate_of(len(motion), motion.layout.fps, seconds)
            if rate is not None:
                raise CorpusError(
                    f"{files.motion}: {len(motion)} frames are {motion.seconds:.2f} s at "
                    f"{motion.layout.fps:g} fps, its sound lasts {seconds:.2f} s. Is it at "
                    f"{rate:g} fps? corpus.kind=react has 25, corpus.kind=mars 30"
                )
        return _Side(motion, affect, audio)

    def _add_lengths(self, pair: Pair, sides: Sequence[_Side]) -> float:
        """Count how long the files of a pair last; the longest, in seconds."""
        lasting = {}
        for files, side in zip(pair.people, sides, strict=True):
            lasting[str(files.motion)] = side.motion.seconds
            if side.affect is not None:
                lasting[str(files.attributes)] = len(side.affect) / FPS[self.kind]
            if side.audio is not None:
                lasting[str(files.sound)] = len(side.audio) / AUDIO_RATE
        self.counts.lengths.add(lasting)
        return max(lasting.values())

    def _role(self, pair: Pair, sides: Sequence[_Side], listener: int, start: float) -> Clip:
        """The whole recording, cut to its shortest modality, before it is cut into clips."""
        fps = FPS[self.kind]
        lengths = [len(side.motion) for side in sides]
        lengths += [len(side.affect) for side in sides if side.affect is not None]
        sounds = [side.audio for side in sides if side.audio is not None]
        lengths += [int(len(audio) / AUDIO_RATE * fps) for audio in sounds]
        frames = min(lengths)
        samples = round(frames / fps * AUDIO_RATE)
        own = sides[listener]
        partner = sides[1 - listener]
        words = None
        if self._transcripts is not None and partner.audio is not None:
            name = _plain(pair.people[1 - listener].name)
            words = self._transcripts(partner.audio, name)
        self.counts.roles += 1
        self.counts.without_voice += partner.audio is None
        self.counts.without_words += words is None
        return Clip(
            clip_id=_plain(pair.people[listener].name),
            dyad_id=_plain(pair.who[listener]),
            split="train",
            listener=own.motion.window(0, frames),
            speaker=partner.motion.window(0, frames),
            speaker_audio=None if partner.audio is None else partner.audio[:samples],
            listener_audio=None if own.audio is None else own.audio[:samples],
            words=words,
            speaker_id=_plain(pair.who[1 - listener]),
            start=start,
        )

    def _with_frames(self, clips: list[Clip], role: Clip, video: Path | None) -> list[Clip]:
        if video is None or not self._rate:
            self.counts.without_frames += 1
            return clips
        look: Look
        if video.is_dir():
            look = Stills(FPS[self.kind], self._size).of(video)
        else:
            look = Filming(video.parent, rate=self._rate, size=self._size).of(video, begin=0.0)
        return with_frames(clips, role, self._rate, look)


def read_coefficients(path: Path, kind: Kind) -> Motion:
    """FaceVerse's coefficients of one recording.

    Raises:
        CorpusError: the file is no (time, 58) or (time, 1, 58) of finite numbers, or it turns
            further than a head can.
    """
    values = _array(path)
    if values.ndim == 3 and values.shape[1] == 1:
        values = values[:, 0]
    _require_shape(path, values, COEFFICIENTS, "52 expressions, 3 angles, 3 of translation")
    try:
        motion = Motion(values, react_layout(kind))
        require_radians(motion)
    except LayoutError as error:
        raise CorpusError(f"{path}: {error}. Repair the track or take the pair out") from error
    return motion


def read_attributes(path: Path) -> np.ndarray:
    """Occurrences of 15 action units, valence, arousal, 8 expression probabilities, (time, 25).

    Raises:
        CorpusError: the file has other columns, values that are none of these, or a csv no header.
    """
    values = _array(path) if path.suffix == ".npy" else _table(path)
    _require_shape(path, values, ATTRIBUTES, "15 action units, valence, arousal, 8 expressions")
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise CorpusError(
            f"{path} has NaN or infinity, first at frame {row}, column {column}: repair it"
        )
    others = np.delete(values, AFFECT, axis=1)
    if np.abs(values[:, AFFECT]).max() > _MOST or others.min() < -0.01 or others.max() > 1.01:
        raise CorpusError(
            f"{path}: action units and expressions are from 0 to 1, valence and arousal (columns "
            f"{AFFECT.start} and {AFFECT.start + 1}) from -1 to 1, and these are not. Are the "
            "columns in another order?"
        )
    return values


# -- Which pairs there are --


def _pairs(root: Path, kind: Kind) -> list[Pair]:
    """All pairs of all splits, each with its files.

    Raises:
        CorpusError: a list or a file is missing.
    """
    if not root.is_dir():
        raise CorpusError(f"no folder {root}: corpus.root must hold the files of {kind}")
    listed = _listed_pairs(root) if kind == "react" else _found_pairs(root)
    missing: list[Path] = []
    pairs = []
    for split, speaker, listener in listed:
        folders = _folders(root, split, kind)
        people = (
            _files(speaker, folders, kind, missing),
            _files(listener, folders, kind, missing),
        )
        who = (speaker, listener)
        conversation = speaker.partition("/")[2]
        if kind == "react":  # in MARS nothing says who it is
            who = (speaker.rpartition("/")[0], listener.rpartition("/")[0])
            conversation = who[0].rpartition("/")[0]
        pairs.append(Pair(split, people, who, conversation))
    if missing:
        raise CorpusError(
            f"{len(missing)} files of the pairs in {root} are missing, first "
            f"{first_few([str(file) for file in missing], 3)}: copy them, or take the pairs out of "
            "their list and of the matrix"
        )
    named = Counter(files.name for pair in pairs for files in pair.people)
    name, count = named.most_common(1)[0]
    if count > 1:
        raise CorpusError(f"{root}: recording {name} is in {count} pairs: keep one in its list")
    return pairs


def _listed_pairs(root: Path) -> Iterator[tuple[str, str, str]]:
    """Split, speaker and listener of each pair, as the lists of REACT have them."""
    folders = (root, root / "paper-list")
    lists = {
        split: file
        for split in SPLITS
        for file in (folder / f"{split}.csv" for folder in folders)
        if file.is_file()
    }
    for split in SPLITS[:2]:
        if split not in lists:
            raise CorpusError(
                f"{root} has no {split}.csv, which lists its pairs (nor has paper-list/ there): is "
                "it the challenge's data folder?"
            )
    for split, file in lists.items():
        header, *rows = _lines(file)
        if len(header) > 1 and "/" in header[1]:
            raise CorpusError(f"{file} has no header: its first pair would be lost")
        for number, row in enumerate(rows, 2):
            if len(row) < 3 or not row[1] or not row[2]:
                raise CorpusError(
                    f"{file}, line {number}: {','.join(row)!r} names no pair: number, speaker and "
                    "listener are needed"
                )
            yield split, row[1], row[2]


def _found_pairs(root: Path) -> Iterator[tuple[str, str, str]]:
    """Split, speaker and listener of each pair: recordings of MARS that have the same name."""
    there = [split for split in SPLITS if (root / split).is_dir()]
    for split in SPLITS[:2]:
        if split not in there:
            raise CorpusError(f"{root} has no folder {split}: is it MARS' data folder?")
    for split in there:
        folder = root / split / "coefficients"
        named: dict[str, set[str]] = {}
        for role in ("speaker", "listener"):
            files = visible(folder / role, "*/*.npy")
            named[role] = {
                file.relative_to(folder / role).with_suffix("").as_posix() for file in files
            }
        if alone := sorted(named["speaker"] ^ named["listener"]):
            role = "speaker" if alone[0] in named["speaker"] else "listener"
            raise CorpusError(
                f"{folder}: {len(alone)} recordings have no partner of their name, first "
                f"{role}/{alone[0]}.npy: copy it, or take the recording out"
            )
        if not named["speaker"]:
            raise CorpusError(f"{folder} has no speaker/SESSION/RECORDING.npy")
        for name in sorted(named["speaker"]):
            yield split, f"speaker/{name}", f"listener/{name}"


def _folders(root: Path, split: str, kind: Kind) -> dict[str, Path | None]:
    """Where each modality of a split is; None where it is not there.

    Raises:
        CorpusError: there are no coefficients.
    """
    folders: dict[str, Path | None] = {}
    for modality, (names, _) in _MODALITIES[kind].items():
        places = [base / name for base in (root / split, root) for name in names]
        folders[modality] = next((place for place in places if place.is_dir()), None)
    if folders["motion"] is None:
        [name] = _MODALITIES[kind]["motion"][0]
        raise CorpusError(f"{root} has no folder {split}/{name}, nor {name}: no motion to learn")
    return folders


def _files(name: str, folders: Mapping[str, Path | None], kind: Kind, missing: list[Path]) -> Files:
    """The files of a recording; those that are not there go to `missing`."""
    files: dict[str, Path] = {}
    for modality, folder in folders.items():
        if folder is None:
            continue
        file = folder / f"{name}{_MODALITIES[kind][modality][1]}"
        if modality == "video" and not file.is_file():
            file = folder / name  # of pictures
        if not file.exists():
            missing.append(file)
        files[modality] = file
    return Files(name, **files)


def _stretches(pairs: Sequence[Pair]) -> dict[str | int, list[Stretch]]:
    """Which parts of each pair belong to which split.

    Without a test split validation becomes it, and validation is held out of training.
    """
    published = {"train": "train", "val": "validation", "test": "test"}
    whole = any(pair.split == "test" for pair in pairs)
    if not whole:
        published["val"] = "test"
        logger.warning("  no test split: val is taken for it, validation is the last of train")
    stretches = [
        Stretch(number, pair.conversation, published[pair.split])
        for number, pair in enumerate(pairs)
    ]
    if not whole:
        stretches = hold_out(stretches, "validation", VALIDATION_SHARE)
    return by_recording(stretches)


# -- Who is appropriate to whom --


def _rows(
    root: Path, kind: Kind, pairs: Sequence[Pair], counts: ReactCounts
) -> dict[Direction, list[Direction]]:
    """Of each direction the directions of its split whose listeners are appropriate."""
    rows: dict[Direction, list[Direction]] = {}
    for split in dict.fromkeys(pair.split for pair in pairs):
        numbers = [number for number, pair in enumerate(pairs) if pair.split == split]
        # The pairs as they are listed, then the same with roles swapped.
        order = [Direction(number, 1) for number in numbers]
        order += [Direction(number, 0) for number in numbers]
        if kind == "mars":
            names = [pairs[number].people[listener].name for number, listener in order]
            found = session_rows([name.rpartition("/")[0] for name in names])
        else:
            speakers = [pairs[number].people[0].name for number in numbers]
            found = _matrix(root, split, speakers, counts)
        rows |= {order[k]: [order[j] for j in row] for k, row in enumerate(found)}
    return rows


def _matrix(
    root: Path, split: str, speakers: Sequence[str], counts: ReactCounts
) -> list[np.ndarray]:
    """Rows of REACT's matrix of a split, of the recorded reactions alone where there is none."""
    cut = [root / f"neighbour_emotion_{name}{split}.npy" for name in ("", "new_")]
    file = next((file for file in cut if file.is_file()), None)
    if file is not None:
        return matrix_rows(_array(file), len(speakers), str(file))
    whole = root / WHOLE_MATRIX
    if whole.is_file():
        matrix = _cut_matrix(whole, speakers, counts)
        return matrix_rows(matrix, len(speakers), f"{whole}, cut to {split}")
    logger.warning(
        f"  {split}: neither {cut[0].name} nor {WHOLE_MATRIX} is in {root}: only the recorded "
        "reactions are appropriate"
    )
    counts.without_neighbours += len(speakers)
    return [np.array([k]) for k in range(2 * len(speakers))]


def _cut_matrix(whole: Path, speakers: Sequence[str], counts: ReactCounts) -> np.ndarray:
    """The rows and columns of some pairs, of the matrix of all that `data_indices.csv` lists.

    That has site, chat and number of each pair; UDIVA, whose names have more parts, is not in it.
    """
    _, *rows = _lines(whole.with_name(INDICES))
    places = {(row[0].upper(), *row[1:3]): number for number, row in enumerate(rows)}
    matrix = _array(whole)
    if matrix.shape != (2 * len(rows), 2 * len(rows)):
        raise CorpusError(
            f"{whole} has shape {matrix.shape}, {INDICES} beside it lists {len(rows)} pairs: it "
            f"must be ({2 * len(rows)}, {2 * len(rows)})"
        )
    pairs = len(speakers)
    found: dict[int, int] = {}
    for number, speaker in enumerate(speakers):
        site, chat, *_, clip = speaker.split("/")
        place = places.get((site.upper(), chat, clip))
        if place is not None and speaker.count("/") == 3:
            found[number] = place
    counts.without_neighbours += pairs - len(found)
    if len(found) < pairs:
        logger.warning(
            f"  {INDICES} lacks {pairs - len(found)} of {pairs} pairs: of them only the recorded "
            "reactions are appropriate"
        )
    here = np.array([*found, *(number + pairs for number in found)], dtype=int)
    there = np.array([*found.values(), *(place + len(rows) for place in found.values())], dtype=int)
    cut = np.eye(2 * pairs)
    cut[np.ix_(here, here)] = matrix[np.ix_(there, there)]
    return cut


# -- Files --


def _plain(name: str) -> str:
    """A name of a recording as a part of an id."""
    return name.replace("/", "-")


def _array(path: Path) -> np.ndarray:
    try:
        array = load_array(path)
    except ArrayFileError as error:
        raise CorpusError(str(error)) from error
    if array.dtype.kind not in "biuf":
        raise CorpusError(f"{path} holds {array.dtype}, no real numbers")
    return array


def _lines(path: Path) -> list[list[str]]:
    """Cells of a csv, line by line; at least one."""
    try:
        with path.open(newline="") as file:
            lines = [line for line in csv.reader(file) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(f"{path} cannot be read as csv: {error}") from error
    if not lines:
        raise CorpusError(f"{path} is empty")
    return lines


def _table(path: Path) -> np.ndarray:
    """The numbers of a csv below its header, (rows, columns)."""
    header, *rows = _lines(path)
    try:
        [float(cell) for cell in header]
    except ValueError:
        pass
    else:
        raise CorpusError(f"{path} has no header: its first frame would be lost")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise CorpusError(
                f"{path}, line {number}: {len(row)} cells, {len(header)} in its header"
            )
    try:
        return np.array(rows, dtype=np.float64)
    except ValueError as error:
        raise CorpusError(f"{path}: {error}") from error


def _require_shape(path: Path, values: np.ndarray, width: int, what: str) -> None:
    if values.ndim != 2 or values.shape[1] != width or not len(values):
        raise CorpusError(
            f"{path}: expected (time, {width}) = {what}, got {values.shape}. Is it of another kind?"
        )
