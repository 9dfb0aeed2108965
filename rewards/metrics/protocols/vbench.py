"""Protocol `vbench`: six dimensions of video quality, as PFLPosNet's Tables 1-3 use them.

Source: Huang et al. 2024. Temporal flickering needs nothing but the frames. The other five are
distances between what networks see, and their weights are yours to bring:
`with_models(dino=..., ...)` takes the networks as functions, and what VBench does with their
outputs is here.

Dynamic degree is a share of videos that cross a threshold, and a frozen face is perfect in
smoothness and flickering: read them beside a measure of how much the face moves (FRVar, FDD,
Variation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np

from rapport.rewards.metrics.protocols.protocol import Inputs, Protocol, Variant

FLOW_RATE = 8.0  # frames per second that dynamic degree looks at

OfVideo = Callable[[np.ndarray], np.ndarray]  # (time, H, W, 3) uint8 -> what a network sees
OfTwoFrames = Callable[[np.ndarray, np.ndarray], np.ndarray]  # two of (H, W, 3) uint8 -> likewise


@dataclass(frozen=True)
class Models:
    """The networks; None = that dimension cannot be measured.

    Args:
        dino: (frames) -> (time, dim) features of DINO ViT-B/16, for subject consistency.
        clip: (frames) -> (time, dim) image features of CLIP ViT-B/32, for background consistency.
        interpolate: (frame, frame) -> the frame between them by AMT-S, for motion smoothness.
        flow: (frame, frame) -> (H, W, 2) RAFT's optical flow in pixels, for dynamic degree.
        quality: (frames) -> (time,) MUSIQ-SPAQ's quality, 0 to 100, for imaging quality.
    """

    dino: OfVideo | None = None
    clip: OfVideo | None = None
    interpolate: OfTwoFrames | None = None
    flow: OfTwoFrames | None = None
    quality: OfVideo | None = None


# Dimension -> field of `Models`, and the weights that VBench takes for it.
WEIGHTS = {
    "subject_consistency": ("dino", "DINO ViT-B/16"),
    "background_consistency": ("clip", "CLIP ViT-B/32"),
    "motion_smoothness": ("interpolate", "AMT-S (amt-s.pth)"),
    "dynamic_degree": ("flow", "RAFT (raft-things.pth)"),
    "imaging_quality": ("quality", "MUSIQ-SPAQ"),
}


def temporal_flickering(frames: np.ndarray) -> float:
    """Likeness of consecutive frames, of (time, H, W, 3) uint8; 1 = frozen.

    (255 - mean absolute difference) / 255.
    """
    differences = [
        np.abs(a.astype(np.float64) - b).mean()
        for a, b in zip(frames[:-1], frames[1:], strict=True)
    ]
    return float((255 - np.mean(differences)) / 255)


def consistency(features: np.ndarray) -> np.ndarray:
    """How much each frame but the first looks like the one before and like the first, (time - 1,).

    The mean of the two cosines.

    Args:
        features: (time, dim). Negative cosines count as 0.
    """
    features = np.asarray(features, np.float64)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    with_previous = np.sum(unit[1:] * unit[:-1], axis=1)
    with_first = unit[1:] @ unit[0]
    mean: np.ndarray = (np.maximum(with_previous, 0) + np.maximum(with_first, 0)) / 2
    return mean


def motion_smoothness(frames: np.ndarray, interpolate: OfTwoFrames) -> float:
    """1 - mean absolute error / 255 of every second frame, re-created from its neighbours.

    Raises:
        ValueError: fewer than 3 frames.
    """
    between = range(1, len(frames) - 1, 2)
    if not between:
        raise ValueError(
            f"motion smoothness re-creates every second frame, the video has {len(frames)}"
        )
    errors = [
        np.abs(np.asarray(interpolate(frames[t - 1], frames[t + 1]), np.float64) - frames[t]).mean()
        for t in between
    ]
    return float(1 - np.mean(errors) / 255)


def moves(frames: np.ndarray, flow: OfTwoFrames, fps: float) -> bool:
    """Dynamic degree of one video: do enough pairs of frames, at about 8 fps, have a large flow?

    Large: the mean of the largest 5 % of magnitudes exceeds 6 min(H, W) / 256 pixels. Enough:
    round(4 n / 16) pairs of n frames.
    """
    frames = frames[:: max(1, round(fps / FLOW_RATE))]
    height, width = frames.shape[1:3]
    top = max(1, int(0.05 * height * width))
    large = 0
    for a, b in zip(frames[:-1], frames[1:], strict=True):
        magnitude = np.linalg.norm(np.asarray(flow(a, b), np.float64), axis=-1).ravel()
        large += np.partition(magnitude, -top)[-top:].mean() > 6 * min(height, width) / 256
    return bool(large >= round(4 * len(frames) / 16))


def score(inputs: Inputs, models: Models = Models()) -> dict[str, float]:
    """Temporal flickering, and the dimensions whose network is there; all from 0 to 1.

    A dimension without its network is left out here; `score_dimension` says what it would take.

    Args:
        inputs: `pred`: videos (time, H, W, 3) uint8 of 2 frames or more, one or a list; there is no
            target. `fps`: needed by dynamic degree.
        models: the networks, see `with_models`.

    Raises:
        ValueError: no videos, or of another form.
    """
    inputs.refuse("vbench", "target", "partner", "neighbours", "speech_mask")
    videos = _videos(inputs.pred)
    present = [name for name, (field, _) in WEIGHTS.items() if getattr(models, field) is not None]
    return {
        name: score_dimension(name, videos, models, fps=inputs.fps, variant=inputs.variant)
        for name in ("temporal_flickering", *present)
    }


def score_dimension(
    name: str,
    videos: Sequence[np.ndarray],
    models: Models,
    fps: float | None = None,
    variant: Variant = "reference",
) -> float:
    """One dimension over all videos.

    Args:
        name: of the dimension.
        videos: (time, H, W, 3) uint8 each.
        models: the networks.
        fps: frames per second, for dynamic degree.
        variant: see `Inputs`.

    Raises:
        ValueError: an unknown dimension, or one whose network or frame rate is missing; names them.
    """
    videos = _videos(videos)
    if name == "temporal_flickering":
        return float(np.mean([temporal_flickering(video) for video in videos]))
    if name not in WEIGHTS:
        raise ValueError(
            f"unknown dimension {name!r}, expected one of {['temporal_flickering', *WEIGHTS]}"
        )
    field, weights = WEIGHTS[name]
    network = getattr(models, field)
    if network is None:
        raise ValueError(
            f"{name} needs the weights of {weights}: load them and give the network as a function "
            f"to vbench.with_models({field}=...)"
        )
    if name == "motion_smoothness":
        return float(np.mean([motion_smoothness(video, network) for video in videos]))
    if name == "dynamic_degree":
        if fps is None:
            raise ValueError("dynamic_degree looks at about 8 frames a second: say fps")
        return float(np.mean([moves(video, network, fps) for video in videos]))
    if name == "imaging_quality":
        return float(np.mean([np.mean(network(video)) for video in videos]) / 100)
    values = [consistency(network(video)) for video in videos]
    if variant == "corrected":
        return float(np.mean([v.mean() for v in values]))
    return float(np.concatenate(values).mean())


def with_models(**models: Callable[..., np.ndarray]) -> Protocol:
    """The protocol with these networks, see `Models`.

    Raises:
        ValueError: a network that `Models` does not know.
    """
    known = [field.name for field in fields(Models)]
    unknown = sorted(set(models) - set(known))
    if unknown:
        raise ValueError(f"unknown models {unknown}, expected some of {known}")
    return replace(PROTOCOL, score=partial(score, models=Models(**models)))


def _videos(data: Any) -> list[np.ndarray]:
    videos = [data] if isinstance(data, np.ndarray) and data.ndim == 4 else list(data)
    if not videos:
        raise ValueError("pred has no video")
    for index, video in enumerate(videos):
        shape = np.shape(video)
        dtype = getattr(video, "dtype", type(video).__name__)
        if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8 or shape[0] < 2:
            raise ValueError(
                f"video {index} is {dtype} of shape {shape}, expected uint8 (time, H, W, 3) with "
                "2 frames or more"
            )
    return videos


PROTOCOL = Protocol(
    name="vbench",
    source="Vchitect/VBench: vbench/*.py (Huang et al., CVPR 2024)",
    corrections={
        "videos_weigh_alike": (
            "subject and background consistency are means over videos of their means; the "
            "reference takes all frames together, so that long videos weigh more"
        ),
    },
    score=score,
)
