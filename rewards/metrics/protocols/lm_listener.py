"""Protocol `lm_listener`: L2, FD, P-FD, Variation, Diversity, L2 Affect.

As `evaluate_listener.py` of sanjayss34/lm-listener computes them (Ng et al. 2023); columns and
scale are those of the VLA + DPO paper's tables I, II and IV.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from rapport.policies.motion import Motion
from rapport.rewards.affect import AffectEstimator
from rapport.rewards.metrics.clips import as_list, frame_rate, paired, with_partner
from rapport.rewards.metrics.measures.distance import mse
from rapport.rewards.metrics.measures.diversity import diversity, seeded_diversity, variation
from rapport.rewards.metrics.measures.frechet import fd, p_fd
from rapport.rewards.metrics.protocols.protocol import Inputs, Protocol

MAX_FRAMES = 240  # of a clip; 8 s of the reference's 30 fps
FPS = 30.0  # of the reference's corpora


def l2_affect(valence_x: np.ndarray, valence_y: np.ndarray, window: int) -> float:
    """Mean squared difference of window means of valence, (time,) each.

    The tail short of a window is dropped; a clip shorter than a window is one window. The papers
    print the number times 100. Ours depends on the estimator, so it compares with other numbers of
    that estimator only, never with the papers'.

    Args:
        valence_x: (time,).
        valence_y: (time,).
        window: frames.

    Raises:
        ValueError: unlike or empty arrays.
    """
    valence_x = np.asarray(valence_x, np.float64)
    valence_y = np.asarray(valence_y, np.float64)
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


def score(inputs: Inputs, affect: AffectEstimator | None = None) -> dict[str, float]:
    """All metrics per clip in raw coefficient units, then the mean over clips.

    Args:
        inputs: `pred`, `target`: clips (time, dim), alike in length and width; the papers' are
            expression 50, rotation 3, jaw 3. The target as `pred` gives the papers' ground-truth
            row. `partner`: the speaker's motion per clip, None where the corpus lacks it; P-FD is
            the mean over the clips that have it, and left out where none has. `fps`: of plain
            arrays (30 if not there); `corrected` needs it to know a second. `seed`: of Diversity.
            The reference never seeds numpy; `reference` gives what its script would have printed
            after `numpy.random.seed(seed)`, with its draws for the ground truth in between.
        affect: reads valence off typed motion, see `with_affect`; L2 Affect is left out without
            one.

    Raises:
        ValueError: clips that do not go together.
        LayoutError: typed motion of unlike layouts.
    """
    inputs.refuse("lm_listener", "neighbours", "speech_mask")
    pairs = paired(inputs.pred, inputs.target)
    partners = with_partner(inputs.target, inputs.partner)
    end = None if inputs.is_corrected else MAX_FRAMES
    # The windows of L2 Affect: 30 frames in the reference, whatever the frame rate.
    window = round(FPS)
    if inputs.is_corrected:
        window = round(frame_rate(as_list(inputs.pred, "pred"), inputs.fps, FPS))
    rng = np.random.RandomState(inputs.seed)
    values_by_name: dict[str, list[float]] = {}
    for (whole_x, whole_y), s in zip(pairs, partners, strict=True):
        x = whole_x[:end]
        y = whole_y[:end]
        count = diversity_pairs(len(x))
        if inputs.is_corrected:
            distance = seeded_diversity(x, count, inputs.seed)
        else:
            # The reference draws for the ground truth first, so later draws depend on it.
            diversity(y, count, rng)
            distance = diversity(x, count, rng)
        scores = {
            "L2": mse(x, y),
            "FD": fd(x, y),
            "Variation": variation(x),
            "Diversity": distance,
        }
        if s is not None:
            scores["P-FD"] = p_fd(x, y, s[:end])
        for name, value in scores.items():
            values_by_name.setdefault(name, []).append(value)
    if affect is not None:
        values_by_name["L2 Affect"] = [
            l2_affect(_valence(x, affect)[:end], _valence(y, affect)[:end], window)
            for x, y in zip(
                as_list(inputs.pred, "pred"), as_list(inputs.target, "target"), strict=True
            )
        ]
    return {name: float(np.mean(values)) for name, values in values_by_name.items()}


def _valence(clip: Any, affect: AffectEstimator) -> np.ndarray:
    if not isinstance(clip, Motion):
        raise ValueError(
            "L2 Affect is read off typed motion: give rapport.policies.motion.Motion instead of "
            "arrays"
        )
    return affect(clip)[:, 0]


def with_affect(affect: AffectEstimator | None) -> Protocol:
    """The protocol with L2 Affect by this estimator.

    The papers' is EMOCA's, which is given the target's shape.
    """
    return replace(PROTOCOL, score=partial(score, affect=affect))


PROTOCOL = Protocol(
    name="lm_listener",
    source="sanjayss34/lm-listener: evaluate_listener.py (Ng et al., ICCV 2023)",
    corrections={
        "seeded_diversity": (
            "Diversity draws from a generator of `seed` for each clip, so that neither the order "
            "of clips nor earlier draws matter, and never pairs a frame with itself"
        ),
        "all_frames": "frames after the 240th count, too",
        "one_second_windows": "the windows of L2 Affect last a second at `fps`, not 30 frames",
    },
    score=score,
)
