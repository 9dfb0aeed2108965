"""Protocol `lm_listener`: L2, FD, P-FD, Variation, Diversity, L2 Affect (Ng et al. 2023).

As `evaluate_listener.py` of sanjayss34/lm-listener computes them; columns and scale are those of
the VLA + DPO paper's tables I, II and IV."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from rapport.policies.motion import Motion
from rapport.rewards.affect import AffectEstimator
from rapport.rewards.metrics.clips import Clips, as_list, frame_rate, paired, with_partner
from rapport.rewards.metrics.measures.distance import mse
from rapport.rewards.metrics.measures.diversity import diversity, seeded_diversity, variation
from rapport.rewards.metrics.measures.frechet import fd, p_fd
from rapport.rewards.metrics.protocols.protocol import Protocol, refuse, require_variant

MAX_FRAMES = 240  # of a clip; 8 s of the reference's 30 fps
FPS = 30.0  # of the reference's corpora


def l2_affect(valence_x: np.ndarray, valence_y: np.ndarray, window: int) -> float:
    """Mean squared difference of window means of valence, (time,) each; the tail short of a window
    is dropped.

    A clip shorter than a window is one window. The papers print the number times 100. Ours depends
    on the estimator, so it compares with other numbers of that estimator only, never with the
    papers'."""
    valence_x, valence_y = np.asarray(valence_x, np.float64), np.asarray(valence_y, np.float64)
    if valence_x.shape != valence_y.shape or valence_x.ndim != 1 or not len(valence_x):
        raise ValueError(
            f"L2 Affect needs two valences of shape (time,), got {valence_x.shape} and "
            f"{valence_y.shape}"
        )
    window = min(window, len(valence_x))
    windows = len(valence_x) // window
    difference = (valence_x - valence_y)[: windows * window].reshape(windows, window).mean(axis=1)
    return float(np.mean(difference**2))


def diversity_pairs(frames: int) -> int:
    """Pairs of frames that the reference draws from a clip of that many."""
    return 30 if frames > 30 else 10


def score(
    pred: Clips,
    target: Clips,
    partner: Any = None,
    *,
    neighbours: None = None,
    speech_mask: None = None,
    fps: float | None = None,
    variant: str = "reference",
    seed: int = 0,
    affect: AffectEstimator | None = None,
) -> dict[str, float]:
    """All metrics per clip in raw coefficient units, then the mean over clips.

    Args:
        pred, target: clips (time, dim), alike in length and width; the papers' are expression 50,
            rotation 3, jaw 3. The target as `pred` gives the papers' ground-truth row.
        partner: the speaker's motion per clip, None where the corpus lacks it. P-FD is the mean
            over the clips that have it, and left out where none has.
        fps: of plain arrays (30 if not given); `corrected` needs it to know a second.
        seed: of Diversity. The reference never seeds numpy; `reference` gives what its script would
            have printed after `numpy.random.seed(seed)`, with its draws for the ground truth in
            between.
        affect: reads valence off typed motion, see `with_affect`; L2 Affect is left out without
            one.
    """
    require_variant(variant)
    refuse("lm_listener", neighbours=neighbours, speech_mask=speech_mask)
    pairs, partners = paired(pred, target), with_partner(target, partner)
    corrected = variant == "corrected"
    end = None if corrected else MAX_FRAMES
    window = round(frame_rate(as_list(pred, "pred"), fps, FPS) if corrected else FPS)
    rng = np.random.RandomState(seed)
    values: dict[str, list[float]] = {}
    for (x, y), s in zip(pairs, partners, strict=True):
        x, y = x[:end], y[:end]
        n = diversity_pairs(len(x))
        if not corrected:
            diversity(y, n, rng)  # the reference's own, whose draws come first
        clip = {
            "L2": mse(x, y),
            "FD": fd(x, y),
            "Variation": variation(x),
            "Diversity": seeded_diversity(x, n, seed) if corrected else diversity(x, n, rng),
        }
        if s is not None:
            clip["P-FD"] = p_fd(x, y, s[:end])
        for name, value in clip.items():
            values.setdefault(name, []).append(value)
    if affect is not None:
        valences = [
            [_valence(clip, affect)[:end] for clip in as_list(clips, "pred")]
            for clips in (pred, target)
        ]
        values["L2 Affect"] = [l2_affect(x, y, window) for x, y in zip(*valences, strict=True)]
    return {name: float(np.mean(given)) for name, given in values.items()}


def _valence(clip: Any, affect: AffectEstimator) -> np.ndarray:
    if not isinstance(clip, Motion):
        raise ValueError(
            "L2 Affect is read off typed motion: give rapport.policies.motion.Motion instead of "
            "arrays"
        )
    return affect(clip)[:, 0]


def with_affect(affect: AffectEstimator | None) -> Protocol:
    """The protocol with L2 Affect by this estimator. The papers' is EMOCA's, given the target's
    shape.
    """
    return Protocol(
        PROTOCOL.name, PROTOCOL.source, PROTOCOL.corrections, partial(score, affect=affect)
    )


PROTOCOL = Protocol(
    name="lm_listener",
    source="sanjayss34/lm-listener: evaluate_listener.py (Ng et al., ICCV 2023)",
    corrections={
        "seeded_diversity": "Diversity draws from a generator of `seed` for each clip, so that neither the order of "
        "clips nor earlier draws matter, and never pairs a frame with itself",
        "all_frames": "frames after the 240th count, too",
        "one_second_windows": "the windows of L2 Affect last a second at `fps`, not 30 frames",
    },
    score=score,
)
