"""Both people of a recording on one clock: motion, voices, who talks, and what was said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d

from rapport.arrays import ArrayFileError, load_named
from rapport.pipeline.data.audio import odd_level
from rapport.pipeline.data.readers.trackers import TRACKERS, read_track, tracker_of
from rapport.pipeline.data.readers.transcripts import Transcripts, read_transcript
from rapport.pipeline.data.recording import Media, Recording, RecordingError, open_media
from rapport.pipeline.data.store import CorpusError
from rapport.pipeline.data.video.landmarks import Landmarker
from rapport.pipeline.data.video.regressor import Regressor
from rapport.pipeline.data.video.table import ALONE, Person, Recorded
from rapport.pipeline.data.video.tracking import Follower, Track, follow, on_clock
from rapport.pipeline.data.video.voices import Ear
from rapport.pipeline.data.windows import words_between
from rapport.policies.clip import AUDIO_RATE, Word
from rapport.policies.motion import Layout
from rapport.rewards.ratings.voice import STEP

_LIPS_S = 0.4  # over which it is asked whose lips move


@dataclass(frozen=True, eq=False)
class Side:
    """One person of a recording, from its first moment to its last.

    Args:
        person: who it is.
        track: of the face; None = not filmed.
        sound: (samples,) float32; None = not recorded.
        speech: (frames,) bool, when this person talks; None = not known.
        words: None = nobody has written them down.
        media: the film.
        skipped: seconds of the film before the recording begins.
    """

    person: Person
    track: Track | None = None
    sound: np.ndarray | None = None
    speech: np.ndarray | None = None
    words: tuple[Word, ...] | None = None
    media: Media | None = None
    skipped: float = 0.0


@dataclass(frozen=True, eq=False)
class Eyes:
    """What faces are tracked by; both None where all tracks come from elsewhere."""

    landmarker: Landmarker | None
    regressor: Regressor | None


def read_sides(
    recorded: Recorded, fps: float, eyes: Eyes, ear: Ear, transcripts: Transcripts | None
) -> dict[str, Side]:
    """All that a recording shows and says, cut to the time that both sides have.

    Args:
        recorded: which one.
        fps: frames per second of motion.
        eyes: that track.
        ear: that hears who talks.
        transcripts: write down what nobody has.

    Raises:
        RecordingError: a film or a sound cannot be read, or has no face, which is named; or there
            is one person alone.
        CorpusError: a track or a transcript does not fit; names it.
    """
    if len(recorded.people) < 2:
        raise RecordingError(ALONE)
    films = {
        person.file: open_media(person.file) for person in recorded.people.values() if person.file
    }
    tracks = _tracks(recorded, films, fps, eyes)
    sounds = {side: _sound(person, films) for side, person in recorded.people.items()}
    skipped = {"a": max(recorded.later_b, 0.0), "b": max(-recorded.later_b, 0.0)}
    lengths = [len(track) / fps - skipped[side] for side, track in tracks.items()]
    lengths += [
        len(sound) / AUDIO_RATE - skipped[side]
        for side, sound in sounds.items()
        if sound is not None
    ]
    frames = int(min(lengths) * fps + 1e-6)
    if frames < 1:
        raise RecordingError(f"{recorded.name}: its files have no time in common (later_b)")
    sides = {}
    for side, person in recorded.people.items():
        begin = round(skipped[side] * fps)
        track = tracks.get(side)
        sound = sounds[side]
        if sound is not None:
            first = round(skipped[side] * AUDIO_RATE)
            sound = sound[first : first + round(frames / fps * AUDIO_RATE)]
        sides[side] = Side(
            person,
            track=None if track is None else _cut(track, begin, frames),
            sound=sound,
            media=None if person.file is None else films[person.file],
            skipped=begin / fps,
        )
    sides = _heard(recorded, sides, fps, frames, ear)
    return {
        side: replace(known, words=_words(recorded, side, known, sounds[side], transcripts))
        for side, known in sides.items()
    }


def _tracks(
    recorded: Recorded, films: Mapping[Path, Media], fps: float, eyes: Eyes
) -> dict[str, Track]:
    """Tracks of the filmed people; a film that shows both is decoded once."""
    tracks = {}
    shown: dict[Path, list[str]] = {}
    for side, person in recorded.people.items():
        if person.file is None:
            continue
        if person.track is not None:
            tracks[side] = brought(person.track, films[person.file], fps)
        else:
            shown.setdefault(person.file, []).append(side)
    for file, there in shown.items():
        assert eyes.landmarker is not None and eyes.regressor is not None
        followers = [
            Follower(eyes.landmarker, eyes.regressor, recorded.people[side].part) for side in there
        ]
        tracks |= dict(zip(there, follow(films[file], followers, fps), strict=True))
    return tracks


def brought(path: Path, media: Media, fps: float) -> Track:
    """A track of SMIRK, EMOCA, DECA or VHAP, of whose rows each is a picture of the film.

    Rows with a number that is none are pictures without a face.

    Raises:
        CorpusError: it is no such track, or not of this film; says what is needed.
        RecordingError: there is no face in any picture.
    """
    try:
        arrays = load_named(path)
    except ArrayFileError as error:
        raise CorpusError(str(error)) from error
    tracker = tracker_of(arrays)
    if tracker is None or media.film is None:
        forms = "; ".join(f"{known.name}: {known}" for known in TRACKERS)
        raise CorpusError(f"{path} is a track of no tracker that is known here: {forms}")
    keys = [key for key in tracker.keys if key in arrays]
    if any(arrays[key].ndim != 2 for key in keys):
        read_track(tracker, arrays, path, fps)  # says what is wrong with its shapes
    rows = min(len(arrays[key]) for key in keys)
    found = np.all([np.isfinite(arrays[key][:rows]).all(axis=1) for key in keys], axis=0)
    if not found.any():
        raise RecordingError(f"{path}: no face in any of {rows} pictures, all rows have a NaN")
    tracked = {key: arrays[key][:rows][found] for key in keys}
    motion = read_track(tracker, tracked, path, fps)
    times = _picture_times(media)
    if abs(len(times) - rows) > 1:
        raise CorpusError(
            f"{path} has {rows} rows, its film {media.path} {len(times)} pictures: each row is a "
            "picture"
        )
    rows = min(rows, len(times))
    values = motion.values[: int(found[:rows].sum())]
    layout = Layout(motion.layout.groups, fps, motion.layout.topology)
    return on_clock(
        times[:rows],
        found[:rows],
        values,
        boxes=np.zeros((rows, 3)),
        layout=layout,
        frames=int((media.film.end - media.origin) * fps),
    )


def _picture_times(media: Media) -> np.ndarray:
    film = Recording(media.path, media).film(16, square=False)
    assert film is not None
    return np.array([time for time, _ in film.rest()])


def _sound(person: Person, films: Mapping[Path, Media]) -> np.ndarray | None:
    """All that is heard of a person, (samples,); None where nothing was recorded."""
    media = open_media(person.sound) if person.sound else films.get(person.file)  # type: ignore[arg-type]
    if media is None or media.sound is None:
        if person.sound:
            raise RecordingError(f"{person.sound} has no sound")
        return None
    sound = Recording(media.path, media).sound()
    assert sound is not None
    samples = sound.until(round(media.seconds * AUDIO_RATE))
    # Silence all along is a microphone that was off: absent, and not a silent person.
    if samples is None or (odd_level(samples) or "").startswith("is silent"):
        return None
    return samples


def _cut(track: Track, first: int, frames: int) -> Track:
    span = slice(first, first + frames)
    return replace(
        track,
        motion=track.motion.window(first, frames),
        there=track.there[span],
        seen=track.seen[span],
        boxes=track.boxes[span],
    )


def _heard(
    recorded: Recorded, sides: dict[str, Side], fps: float, frames: int, ear: Ear
) -> dict[str, Side]:
    """The sides with when each of them talks.

    Where both voices are in one sound, whoever moves the lips more is the one who talks.
    """
    talks = {
        side: _by_frame(ear(known.sound), fps, frames)
        for side, known in sides.items()
        if known.sound is not None
    }
    if recorded.shared_sound and len(talks) == 2:
        lips = {side: _lips(known.track, fps) for side, known in sides.items()}
        mine = lips["a"] > lips["b"]
        talks = {"a": talks["a"] & mine, "b": talks["b"] & ~mine}
    return {side: replace(known, speech=talks.get(side)) for side, known in sides.items()}


def _by_frame(speech: np.ndarray, fps: float, frames: int) -> np.ndarray:
    """Speech of 10 ms steps as of the frame in whose middle it is, (frames,) bool."""
    middles = (np.arange(frames) + 0.5) / fps * AUDIO_RATE / STEP
    padded = np.concatenate([speech, np.zeros(1, bool)])
    return padded[np.minimum(middles.astype(int), len(speech))]


def _lips(track: Track | None, fps: float) -> np.ndarray:
    """How much somebody's jaw moves, (time,)."""
    assert track is not None, "a sound that two share belongs to a film of both"
    jaw = track.motion.group("jaw")[:, 0].astype(np.float64)
    speed = np.abs(np.gradient(jaw)) if len(jaw) > 1 else np.zeros(len(jaw))
    return np.asarray(gaussian_filter1d(np.where(track.there, speed, 0.0), _LIPS_S * fps))


def _words(
    recorded: Recorded,
    side: str,
    known: Side,
    sound: np.ndarray | None,
    transcripts: Transcripts | None,
) -> tuple[Word, ...] | None:
    """What a side says, from a transcript beside its sound or film, or from a transcriber.

    Nobody is asked to write down two voices at once.

    Args:
        recorded: the recording.
        side: "a" or "b".
        known: of it.
        sound: all of its file, to which a transcript belongs.
        transcripts: of a transcriber.
    """
    if sound is None or known.sound is None:
        return None
    files = recorded.transcripts(side)
    if files:
        end = known.skipped + len(known.sound) / AUDIO_RATE
        words = read_transcript(files[0], len(sound) / AUDIO_RATE)
        return words_between(words, known.skipped, end)
    if transcripts is None or recorded.shared_sound:
        return None
    return transcripts(known.sound, f"{recorded.name}_{side}")
