"""Protocol `vbench`: six dimensions of video quality (Huang et al. 2024), as PFLPosNet's Tables 1-3
use them.

Temporal flickering needs nothing but the frames. The other five are distances between what networks
see, and their weights are yours to bring: `with_models(dino=..., ...)` takes the networks as
functions, and what VBench does with their outputs is here.

Dynamic degree is a share of videos that cross a threshold, and a frozen face is perfect in
smoothness and flickering: read them beside a measure of how much the face moves (FRVar, FDD,
Variation)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np

from rapport.rewards.metrics.protocols.protocol import Protocol, refuse, require_variant

FLOW_RATE = 8.0  # frames per second that dynamic degree looks at


@dataclass(frozen=True)
class Models:
    """The networks, each a function of frames (H, W, 3) uint8; None = that dimension cannot be
    measured.

    Args:
        dino: (frames) -> (time, dim) features of DINO ViT-B/16, for subject consistency.
        clip: (frames) -> (time, dim) image features of CLIP ViT-B/32, for background consistency.
        interpolate: (frame, frame) -> the frame between them by AMT-S, for motion smoothness.
        flow: (frame, frame) -> (H, W, 2) RAFT's optical flow in pixels, for dynamic degree.
        quality: (frames) -> (time,) MUSIQ-SPAQ's quality, 0 to 100, for imaging quality.
    """

    dino: Callable | None = None
    clip: Callable | None = None
    interpolate: Callable | None = None
    flow: Callable | None = None
    quality: Callable | None = None


WEIGHTS = {
    "subject_consistency": ("dino", "DINO ViT-B/16"),
    "background_consistency": ("clip", "CLIP ViT-B/32"),
    "motion_smoothness": ("interpolate", "AMT-S (amt-s.pth)"),
    "dynamic_degree": ("flow", "RAFT (raft-things.pth)"),
    "imaging_quality": ("quality", "MUSIQ-SPAQ"),
}


def temporal_flickering(frames: np.ndarray) -> float:
    """(255 - mean absolute difference of consecutive frames) / 255, frames (time, H, W, 3) uint8; 1
    = frozen.
    """
    differences = [
        np.abs(a.astype(np.float64) - b).mean()
        for a, b in zip(frames[:-1], frames[1:], strict=True)
    ]
    return float((255 - np.mean(differences)) / 255)


def consistency(features: np.ndarray) -> np.ndarray:
    """(time - 1,): for each frame but the first, the mean of its cosines with the frame before and
    with the first.

    Args:
        features: (time, dim). Negative cosines count as 0.
    """
    features = np.asarray(features, np.float64)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    before, first = np.sum(unit[1:] * unit[:-1], axis=1), unit[1:] @ unit[0]
    return (np.maximum(before, 0) + np.maximum(first, 0)) / 2


def motion_smoothness(frames: np.ndarray, interpolate: Callable) -> float:
    """1 - mean absolute error / 255 of every second frame, re-created from its neighbours."""
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


def moves(frames: np.ndarray, flow: Callable, fps: float) -> bool:
    """Dynamic degree of one video: do enough pairs of frames, at about 8 fps, have a large flow?

    Large: the mean of the largest 5 % of magnitudes exceeds 6 min(H, W) / 256 pixels. Enough:
    round(4 n / 16) pairs of n frames."""
    frames = frames[:: max(1, round(fps / FLOW_RATE))]
    height, width = frames.shape[1:3]
    top = max(1, int(0.05 * height * width))
    large = 0
    for a, b in zip(frames[:-1], frames[1:], strict=True):
        magnitude = np.linalg.norm(np.asarray(flow(a, b), np.float64), axis=-1).ravel()
        large += np.partition(magnitude, -top)[-top:].mean() > 6 * min(height, width) / 256
    return bool(large >= round(4 * len(frames) / 16))


def score(
    pred: np.ndarray | Sequence[np.ndarray],
    target: None = None,
    partner: None = None,
    *,
    neighbours: None = None,
    speech_mask: None = None,
    fps: float | None = None,
    variant: str = "reference",
    seed: int = 0,
    models: Models | None = None,
) -> dict[str, float]:
    """Temporal flickering, and the dimensions whose network `with_models` was given; all from 0 to
    1.

    Args:
        pred: videos (time, H, W, 3) uint8 of 2 frames or more, one or a list; there is no target.
        fps: needed by dynamic degree.

    A dimension without its network is left out here; `score_dimension` says what it would take.
    """
    require_variant(variant)
    refuse("vbench", target=target, partner=partner, neighbours=neighbours, speech_mask=speech_mask)
    videos = _videos(pred)
    models = models or Models()
    present = [name for name, (field, _) in WEIGHTS.items() if getattr(models, field) is not None]
    return {
        name: score_dimension(name, videos, models, fps, variant)
        for name in ("temporal_flickering", *present)
    }


def score_dimension(
    name: str,
    videos: Sequence[np.ndarray],
    models: Models,
    fps: float | None = None,
    variant: str = "reference",
) -> float:
    """One dimension over all videos. Raises `ValueError` naming the weights that it lacks."""
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
            f"{name} needs the weights of {weights}: load them and give the network as a "
            "function to "
            f"vbench.with_models({field}=...)"
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
    return float(
        np.mean([v.mean() for v in values])
        if variant == "corrected"
        else np.concatenate(values).mean()
    )


def with_models(**models: Callable) -> Protocol:
    """The protocol with these networks, see `Models`."""
    known = [field.name for field in fields(Models)]
    unknown = sorted(set(models) - set(known))
    if unknown:
        raise ValueError(f"unknown models {unknown}, expected some of {known}")
    return Protocol(
        PROTOCOL.name,
        PROTOCOL.source,
        PROTOCOL.corrections,
        partial(score, models=Models(**models)),
    )


def _videos(data: Any) -> list[np.ndarray]:
    videos = [data] if isinstance(data, np.ndarray) and data.ndim == 4 else list(data)
    if not videos:
        raise ValueError("pred has no video")
    for index, video in enumerate(videos):
        shape, dtype = np.shape(video), getattr(video, "dtype", type(video).__name__)
        if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8 or shape[0] < 2:
            raise ValueError(
                f"video {index} is {dtype} of shape {shape}, expected uint8 (time, H, W, 3) with "
                "2 frames "
                "or more"
            )
    return videos


PROTOCOL = Protocol(
    name="vbench",
    source="Vchitect/VBench: vbench/*.py (Huang et al., CVPR 2024)",
    corrections={
        "videos_weigh_alike": "subject and background consistency are means over videos of their means; the reference "
        "takes all frames together, so that long videos weigh more",
    },
    score=score,
)
