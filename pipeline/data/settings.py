"""Which corpus, and how its clips are cut."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from rapport.settings import Section

By = Literal["corpus", "alike", "random", "recorded"]  # who says what is appropriate: `neighbours`


class CorpusConfig(Section):
    kind: Literal[
        "synthetic", "dualtalk", "lm_listener", "livelink", "video", "react", "mars", "parquet"
    ] = "synthetic"
    """synthetic dyads, DualTalk's, lm-listener's or the REACT challenges' published files (react:
    2023 and 2024, mars: 2025), takes of Live Link Face, films of people, or a corpus `prepare`
    wrote"""
    root: Path | None = None
    """folder of the files, of films or a table of them (video); not used by synthetic"""
    seconds: float = Field(4.0, gt=0)
    """length of a clip, seconds"""
    stride: float = Field(1.0, gt=0)
    """seconds between starts of clips cut from a recording (not of synthetic, parquet)"""
    past: float = Field(4.0, ge=0)
    """seconds before each clip that are kept with it, where there are so many; 0 = none"""
    fps: float | None = Field(None, gt=0)
    """frames of motion per second, where the files do not say: RealTalk 25, L2L-trevor 30; empty =
    as they say, else 30 (lm_listener); takes are resampled to it, empty = 30 (livelink); films
    are tracked at it, empty = 25 (video)"""
    videos: Path | None = None
    """folder of videos of the speakers, named as the recordings; empty = no frames (lm_listener)"""
    speaker_side: Literal["whole", "left", "right"] = "whole"
    """part of each video that shows the speaker and nobody else; of RealTalk's the right half
    (lm_listener)"""
    transcriber: str | None = None
    """module:Class that writes down what is said where no transcript is beside the sound; empty =
    nobody does (dualtalk, livelink, video, react, mars)"""
    captioner: Path | None = None
    """folder of a vision-language model, such as Qwen3-VL, that vLLM runs: it says what faces show,
    by which AR-Flow is prompted; empty = words from their motion (video)"""
    split_screen: bool = False
    """films of a folder show two people, left and right, unless they are named as one's (video)"""
    landmarker: Path | None = None
    """weights of MediaPipe's face landmarker; empty = those of the extra `video` (video)"""
    tracks: Path | None = None
    """folder of tracks that SMIRK, EMOCA, DECA or VHAP made of the films, RECORDING_speaker1.npz;
    empty = faces are tracked here (video)"""
    tracked: float = Field(0.95, gt=0, le=1)
    """least share of a clip's frames in which both faces were seen; gaps of .2 s at most are
    bridged, longer ones are in no clip (video)"""
    spoken: float = Field(0.25, ge=0, le=1)
    """least share of a clip in which its speaker talks, where there is sound; the listener talks
    no more (video)"""
    voices: Literal["silero", "loudness"] | None = None
    """what tells who talks; empty = silero where the extra `video` has it, else loudness (video)"""
    workers: int | None = Field(None, ge=0)
    """processes that track; empty = as many as the cluster has processors, 0 = none but the run's
    own (video)"""
    train_clips: int = Field(1536, ge=1)
    """moments to train on, each listened to by corpus.listeners (synthetic)"""
    validation_clips: int = Field(128, ge=1)
    """moments on which choices are made, of other people (synthetic)"""
    test_clips: int = Field(128, ge=1)
    """moments that results are reported on, of other people (synthetic)"""
    listeners: int = Field(4, ge=1)
    """people who listen to each speaker, each for themselves (synthetic)"""
    riddles: float = Field(0.5, ge=0, le=1)
    """how often words, face and voice disagree: 0 = never (synthetic)"""
    image_size: int = Field(56, ge=14)
    """speaker frames: height and width, pixels"""
    frames: int = Field(2, ge=0)
    """speaker frames per second, evenly spaced; 0 = none"""
    seed: int = 0
    """seed of the generator (synthetic)"""

    def moot(self) -> dict[str, tuple[str, ...]]:
        """What is generated is not cut, and the other way round."""
        generated = (
            "train_clips",
            "validation_clips",
            "test_clips",
            "listeners",
            "riddles",
            "seed",
        )
        pictures = ("image_size", "frames")
        filmed = ("videos", "speaker_side")
        tracking = (
            "captioner",
            "split_screen",
            "landmarker",
            "tracks",
            "tracked",
            "spoken",
            "voices",
            "workers",
        )
        kind = f"corpus.kind={self.kind}"
        if self.kind == "synthetic":
            read = ("root", "stride", "fps", *filmed, *tracking, "transcriber")
            return {f"{kind} is generated, not read": read}
        if self.kind == "parquet":
            cut = (
                "stride",
                "past",
                "fps",
                *filmed,
                *tracking,
                "transcriber",
                *pictures,
                *generated,
            )
            return {f"{kind} takes the clips as they are there": cut}
        what = f"{kind} takes what the files have"
        if self.kind in ("dualtalk", "react", "mars"):
            return {what: (*generated, "fps", *filmed, *tracking)}
        if self.kind == "livelink":
            return {what: (*generated, *filmed, *tracking)}
        if self.kind == "video":
            return {what: (*generated, *filmed)}
        if self.videos is None:
            return {
                what: (*generated, *tracking, "transcriber"),
                "without corpus.videos there are no frames": ("speaker_side", *pictures),
            }
        return {what: (*generated, *tracking, "transcriber")}
