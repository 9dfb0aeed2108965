"""What somebody recorded of a person who talks, in the chunks in which a live listener is given it.

A recording is a film, a sound, or tracked motion with its sound beside it. It may be of any length:
it is decoded as it is listened to, and what has been heard is forgotten.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from rapport.pipeline.data.readers.motion_files import read_clips
from rapport.pipeline.data.store import CorpusError
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.live import Chunk
from rapport.policies.motion import Layout, LayoutError, Motion

PIXELS = 224  # height and width of frames, unless told otherwise
MOTION_FILES = (".npz", ".npy", ".parquet")
_SAME_S = 1e-6  # moments nearer than this are one
# Containers of FFmpeg that are read. It knows many more, among them lists of other files and pages
# of the network, which would be read for whoever handed the list in.
CONTAINERS = (
    "3gp,aac,ac3,adts,aiff,amr,ape,asf,au,avi,caf,dv,eac3,flac,flv,matroska,mov,mp3,mp4,mpeg,mpegts,"
    "mxf,nut,ogg,rm,tta,voc,w64,wav,webm,wv"
)
_GAP_S = 0.1  # time stamps of sound that are further off than this mean it
_PADDED_S = 0.1  # by which sound is longer than what was recorded, at most
Picture = tuple[float, np.ndarray]  # when it was taken, and (height, width, 3) uint8


class RecordingError(ValueError):
    """A recording cannot be listened to; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Track:
    """One stream of a media file.

    Args:
        index: of the stream in its file.
        start: seconds, on the clock of the file.
        end: seconds.
    """

    index: int
    start: float
    end: float


@dataclass(frozen=True, eq=False)
class Media:
    """A media file, and which of its streams are read.

    Args:
        path: of the file.
        sound: None where it has none.
        film: None where it has none.
    """

    path: Path
    sound: Track | None
    film: Track | None

    @property
    def tracks(self) -> list[Track]:
        """Those that are there."""
        return [track for track in (self.sound, self.film) if track is not None]

    @property
    def origin(self) -> float:
        """When it begins, on the clock of the file."""
        return min(track.start for track in self.tracks)

    @property
    def seconds(self) -> float:
        """Its length: of the longer stream, but for what an encoder of sound adds at the end."""
        end = max(track.end for track in self.tracks)
        if self.film is not None and end - self.film.end < _PADDED_S:
            end = self.film.end
        return end - self.origin


@dataclass(frozen=True, eq=False)
class Recording:
    """What was recorded of one person.

    Args:
        path: its file.
        media: with sound or pictures; None where there is motion alone.
        motion: of the person, where that was tracked.
    """

    path: Path
    media: Media | None
    motion: Motion | None = None

    @property
    def streams(self) -> list[str]:
        """What it has, by the names of `Clip`."""
        has = {
            "speaker": self.motion is not None,
            "speaker_frames": self.media is not None and self.media.film is not None,
            "speaker_audio": self.media is not None and self.media.sound is not None,
        }
        return [name for name, there in has.items() if there]

    @property
    def seconds(self) -> float:
        """Its length, that of its longest stream."""
        motion = 0.0 if self.motion is None else self.motion.seconds
        return motion if self.media is None else max(self.media.seconds, motion)

    def chunks(
        self, seconds: float, reads: Collection[str], pixels: int = PIXELS
    ) -> Iterator[Chunk]:
        """All of it, chunk by chunk.

        A stream that ends within a chunk is silent, or keeps still, to the end of the chunk; after
        that it is absent. A picture that was taken at the border of two chunks is of the first.

        Args:
            seconds: of a chunk.
            reads: streams that are wanted, names of `Clip`.
            pixels: height and width of frames.

        Raises:
            RecordingError: the file is damaged.
        """
        wanted = [name for name in self.streams if name in reads]
        sound = self.sound() if "speaker_audio" in wanted else None
        film = self.film(pixels) if "speaker_frames" in wanted else None
        motion = self.motion if "speaker" in wanted else None
        for number in range(int(np.ceil(self.seconds / seconds - _SAME_S))):
            start, end = number * seconds, (number + 1) * seconds
            pictures = None if film is None else film.until(end)
            yield Chunk(
                frames=None if pictures is None else _stacked(pictures, pixels),
                taken=None if pictures is None else np.array([t - start for t, _ in pictures]),
                audio=None if sound is None else sound.until(round(end * AUDIO_RATE)),
                motion=None if motion is None else _frames_between(motion, start, end),
            )

    def sound(self) -> Sound | None:
        """Its sound from the beginning on; None where it has none."""
        if self.media is None or self.media.sound is None:
            return None
        return Sound(_sound_blocks(self.media, self.media.sound))

    def film(
        self, pixels: int | None, *, square: bool = True, enlarged: bool = True
    ) -> Film | None:
        """Its pictures from the beginning on; None where it has none.

        Args:
            pixels: their height; None = as they were taken, but for an odd row or column.
            square: whether the middle square is taken, as of the corpora's videos, or all.
            enlarged: whether lower pictures are made as high; else they are as they are.
        """
        if self.media is None or self.media.film is None:
            return None
        pictures = _pictures(self.media, self.media.film, pixels, square, enlarged)
        film = Film(pictures, self.media.film.end - self.media.origin)
        if film.first is None:
            raise RecordingError(f"{self.media.path}: none of its pictures can be decoded")
        return film


def open_recording(
    path: Path, audio: Path | None = None, layout: Layout | None = None
) -> Recording:
    """Look at a recording: what is in it, and how long it is.

    Args:
        path: a media file of any kind that FFmpeg reads, or motion: `listener.npz` of `listen`, a
            track, or Parquet of one clip.
        audio: the sound that belongs to motion.
        layout: that motion is needed in; groups that it has besides are left out.

    Raises:
        RecordingError: there is no such file, it has neither sound nor pictures nor motion, is
            empty, or its motion does not fit the layout.
    """
    if path.suffix.lower() not in MOTION_FILES:
        if audio is not None:
            raise RecordingError(f"{path} has its own sound: leave {audio} out")
        return Recording(path, open_media(path))
    motion = _tracked(path)
    if layout is not None:
        try:
            motion = motion.subset(layout)
        except LayoutError as error:
            raise RecordingError(f"{path} does not fit the policy: {error}") from error
    media = None if audio is None else open_media(audio)
    if media is not None and media.sound is None:
        raise RecordingError(f"{audio} has no sound")
    sound_alone = None if media is None else Media(media.path, media.sound, None)
    return Recording(path, sound_alone, motion)


def open_media(path: Path) -> Media:
    """Look at a media file.

    All of its packets are looked at, and none is decoded: what containers say of their length is
    often wrong or missing.

    Raises:
        RecordingError: as of `open_recording`.
    """
    _require_file(path)
    with _opened(path) as container:
        sound, film = container.streams.best("audio"), _film_of(container)
        spans = _spans(container, [stream for stream in (sound, film) if stream is not None])
        media = Media(path, _track(sound, spans), _track(film, spans))
    if not spans:
        raise RecordingError(f"{path} has neither sound nor pictures")
    if media.seconds <= 0:
        raise RecordingError(f"{path} is empty: nothing was recorded")
    return media


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise RecordingError(f"{path} is a folder; name the recording in it")
    if not path.is_file():
        raise RecordingError(f"no recording {path}")


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    """A media file; what is wrong with it names it."""
    try:
        with _container(path) as container:
            yield container
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or error
        raise RecordingError(f"{path} cannot be read as sound or film: {reason}") from error


def _container(path: Path) -> InputContainer:
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        return av.open(str(path), options=options)
    except av.ArgumentError as error:  # so FFmpeg refuses what is not on the list
        raise RecordingError(
            f"{path} is a text or a picture, in which nothing lasts, or of a kind that is not read"
        ) from error


def _film_of(container: InputContainer) -> VideoStream | None:
    """The first stream of pictures that is no cover of a record."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    return None


def _spans(container: InputContainer, streams: Sequence[Stream]) -> dict[int, tuple[float, float]]:
    """When streams begin and end, seconds, by their index; empty ones are left out."""
    spans: dict[int, tuple[float, float]] = {}
    for packet in container.demux(*streams):
        if packet.pts is None or packet.time_base is None:
            continue
        start = float(packet.pts * packet.time_base)
        end = start + float((packet.duration or 0) * packet.time_base)
        earliest, latest = spans.get(packet.stream.index, (start, end))
        spans[packet.stream.index] = min(earliest, start), max(latest, end)
    for stream in streams:
        # What an encoder puts before the beginning is decoded, and not heard.
        if stream.index in spans and stream.start_time is not None and stream.time_base is not None:
            begins = float(stream.start_time * stream.time_base)
            spans[stream.index] = begins, spans[stream.index][1]
    return spans


def _track(stream: Stream | None, spans: Mapping[int, tuple[float, float]]) -> Track | None:
    if stream is None or stream.index not in spans:
        return None
    return Track(stream.index, *spans[stream.index])


def _tracked(path: Path) -> Motion:
    """The one motion that a file holds."""
    try:
        content = read_clips(path, side="speaker")
    except CorpusError as error:
        raise RecordingError(str(error)) from error
    clips = list(content.values()) if isinstance(content, dict) else [content]
    if len(clips) != 1:
        raise RecordingError(f"{path} holds {len(clips)} clips; one person's motion is needed")
    if not isinstance(clips[0], Motion):
        raise RecordingError(
            f"{path} does not say what its columns are; save it by `Motion.save`, which does"
        )
    if not len(clips[0]):
        raise RecordingError(f"{path} is empty: its motion has no frame")
    return clips[0]


class Sound:
    """Sound that is heard from the beginning to the end, mono at `AUDIO_RATE`.

    Args:
        blocks: (samples,) float32 each, one after the other.
    """

    def __init__(self, blocks: Iterator[np.ndarray]) -> None:
        self._blocks = blocks
        self._held = np.zeros(0, np.float32)
        self._given = 0

    def until(self, end: int) -> np.ndarray | None:
        """The samples before number `end` that were not given yet.

        Where it ends before, silence follows; None where it had ended already.
        """
        wanted = end - self._given
        parts = [self._held]
        there = len(self._held)
        while there < wanted and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            there += len(block)
        samples = np.concatenate(parts)
        self._held = samples[wanted:]
        self._given = end
        if not there:
            return None
        return np.pad(samples[:wanted], (0, max(wanted - there, 0)))


class Film:
    """Pictures that are seen from the beginning to the end.

    Args:
        pictures: with the seconds at which they were taken, rising. `first` is the first of them.
        seconds: when the last one is gone.
    """

    def __init__(self, pictures: Iterator[Picture], seconds: float) -> None:
        self.seconds = seconds
        self._pictures = pictures
        self._next = next(pictures, None)
        self.first = None if self._next is None else self._next[1]
        self._given = 0.0

    def until(self, end: float) -> list[Picture] | None:
        """The pictures taken by then that were not given yet; None where it had ended already."""
        if self._given > self.seconds - _SAME_S:
            return None
        self._given = end
        taken = []
        while self._next is not None and self._next[0] <= end + _SAME_S:
            taken.append(self._next)
            self._next = next(self._pictures, None)
        return taken

    def rest(self) -> Iterator[Picture]:
        """All pictures that were not given yet, one by one."""
        while self._next is not None:
            picture = self._next
            self._next = next(self._pictures, None)
            yield picture

    def newest(self, rate: float) -> Iterator[np.ndarray]:
        """What is seen `rate` times a second from the beginning on; the last picture stays.

        Before the first one was taken, it is seen already.
        """
        shown = self.first
        for number in itertools.count():
            taken = self.until(number / rate)
            if taken:
                shown = taken[-1][1]
            if shown is None:
                return
            yield shown


def _sound_blocks(media: Media, track: Track) -> Iterator[np.ndarray]:
    """Sound as it is decoded: channels averaged, resampled, with silence where none was kept."""
    resampler = av.AudioResampler(format="fltp", rate=AUDIO_RATE)
    due = media.origin  # when the next frame begins, if none is missing
    first = True
    with _opened(media.path) as container:
        for frame in container.decode(container.streams[track.index]):
            assert isinstance(frame, av.AudioFrame)
            begins = due if frame.time is None else frame.time
            if begins < due - _GAP_S:
                continue  # it is said again
            if first or begins > due + _GAP_S:
                yield np.zeros(max(round((begins - due) * AUDIO_RATE), 0), np.float32)
            due = begins + frame.samples / frame.sample_rate
            first = False
            frame.pts = None  # the resampler would look for gaps of its own
            for part in resampler.resample(frame):
                yield _mono(part, media.path)
        for part in resampler.resample(None):
            yield _mono(part, media.path)


def _mono(part: av.AudioFrame, path: Path) -> np.ndarray:
    samples: np.ndarray = part.to_ndarray().mean(axis=0, dtype=np.float32)
    if not np.isfinite(samples).all():
        raise RecordingError(f"{path} holds NaN or infinite samples")
    return samples


def _pictures(
    media: Media, track: Track, pixels: int | None, square: bool, enlarged: bool
) -> Iterator[Picture]:
    with _opened(media.path) as container:
        for frame in container.decode(container.streams[track.index]):
            assert isinstance(frame, av.VideoFrame)
            if frame.time is not None:
                height = pixels
                if pixels is not None and not enlarged:
                    height = min(pixels, frame.height, frame.width)
                yield max(frame.time - media.origin, 0.0), _image(frame, height, square)


def _image(frame: av.VideoFrame, pixels: int | None, square: bool) -> np.ndarray:
    """A picture as it is meant to be seen, `pixels` high: a phone's film may lie on its side."""
    turns = round(frame.rotation / 90)
    height = frame.width if turns % 2 else frame.height
    edge = min(frame.width, frame.height) if square else height
    pixels = 2 * (edge // 2) if pixels is None else pixels
    width, height = (2 * round(side * pixels / edge / 2) for side in (frame.width, frame.height))
    shown = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
    image: np.ndarray = np.rot90(shown, turns)
    if square:
        top, left = ((side - pixels) // 2 for side in image.shape[:2])
        image = image[top : top + pixels, left : left + pixels]
    return np.ascontiguousarray(image)


def _stacked(pictures: Sequence[Picture], pixels: int) -> np.ndarray:
    if not pictures:
        return np.zeros((0, pixels, pixels, 3), np.uint8)
    return np.stack([image for _, image in pictures])


def _frames_between(motion: Motion, start: float, end: float) -> Motion | None:
    """The frames of a chunk; the last one stays to the end of its chunk."""
    fps = motion.layout.fps
    numbers = np.arange(round(start * fps), round(end * fps))
    if numbers[0] >= len(motion):
        return None
    return Motion(motion.values[numbers.clip(max=len(motion) - 1)], motion.layout)
