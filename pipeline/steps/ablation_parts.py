"""ReactFace less one of its parts: what each is for (Luo et al. 2024, Tables 4 to 7).

Each variant imitates anew, on the same corpus and from the same seed. Its reactions are judged as
any, and for how they move: parts of a loss that keeps samples apart, or joints smooth, show there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from rapport.pipeline.data.neighbours import named
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.rundir import RunError
from rapport.pipeline.settings import AblateOfReactFace, Variant
from rapport.pipeline.steps.ablation import VARIANTS
from rapport.pipeline.steps.judging import Answers, MethodRow
from rapport.policies.motion import Motion
from rapport.policies.reactface.config import ReactFaceSizes
from rapport.rewards.metrics.measures.seams import jump

FULL = VARIANTS[0]
WINDOW = ReactFaceSizes.window
# Variant -> keys of `reactface` in which it differs.
PARTS: dict[Variant, dict[str, Any]] = {
    "L_div": {"spread": "paper"},
    "no L_div": {"spread": "paper", "diversity": 0.0},
    "no momentum": {"momentum": 0.0, "mood": 0.0},
    "no moods": {"mood": 0.0},
    "no L_s": {"speaker": 0.0},
    "no L_smo": {"smooth": 0.0},
    "no SLBS": {"synchronise": "none"},
    "no expectation": {"listening": 0},  # as in the paper, all is learnt at once
    "nearest": {"assign": "nearest"},
    "recorded": {"assign": "recorded"},
    "random": {"assign": "random"},
    "cover": {"assign": "cover"},
}
MOVES = ("apart", "lively", "jerk", "jump")
JUDGED_BY = (
    *("fd", "truth_affect_error", "simulated_rating", "own_minus_another", "right"),
    *("independent_own_minus_another", *MOVES),
)


def left_out(config: AblateOfReactFace) -> dict[str, AblateOfReactFace]:
    """Variant -> its config; first the one that lacks nothing.

    Raises:
        RunError: a variant is the full one again.
    """
    own = config.reactface
    variants = {FULL: config} | {
        name: config.model_copy(update={"reactface": own.model_copy(update=PARTS[name])})
        for name in config.ablation.variants
    }
    same = [name for name, each in variants.items() if name != FULL and each == config]
    if same:
        raise RunError(f"{', '.join(same)} would be the full one again: {_without(same, config)}")
    return variants


def check_assigned(config: AblateOfReactFace, corpus: Corpus) -> None:
    """Variants that imitate somebody else need somebody else.

    Raises:
        RunError: the corpus names nobody but recorded listeners.
    """
    others = [name for name in config.ablation.variants if "assign" in PARTS[name]]
    several = any(set(names) - {clip} for clip, names in named(corpus, "train").items())
    if others and not several:
        raise RunError(
            f"{corpus.path} names nobody but recorded listeners, so {', '.join(others)} would be "
            f"the full one again: {_without(others, config)}"
        )


def _without(names: Sequence[str], config: AblateOfReactFace) -> str:
    """How to leave some variants out."""
    left = [name for name in config.ablation.variants if name not in names]
    return f"'ablation.variants=[{', '.join(left)}]'" if left else "name others, such as no L_s"


def with_moves(row: MethodRow, answers: Answers, recorded: Mapping[str, Motion]) -> MethodRow:
    """The row of a variant, and of each clip how its reactions move.

    - `apart`: mean squared difference of two reactions to one speaker, over twice the variance of
      recorded listeners: 1 = as two people who do not know of the speaker.
    - `lively`: variance over time, over recorded listeners'.
    - `jerk`: mean square of the third difference, over recorded listeners'.
    - `jump`: mean step over a joint of windows, over the mean step elsewhere; 1 = no joint.

    The first three are of expressions, the last of how the head turns.

    Args:
        row: of the variant.
        answers: clip id -> reactions.
        recorded: clip id -> the recorded listener.
    """
    people = [_expressions(motion) for motion in recorded.values()]
    spread = _variance(np.concatenate(people))
    over_time, trembling = _mean(_variance, people), _mean(_jerk, people)
    moves: dict[str, dict[str, float]] = {name: {} for name in MOVES}
    for clip_id, motions in answers.items():
        faces = [_expressions(motion) for motion in motions]
        moves["apart"][clip_id] = _apart(faces) / (2 * spread)
        moves["lively"][clip_id] = _mean(_variance, faces) / over_time
        moves["jerk"][clip_id] = _mean(_jerk, faces) / trembling
        moves["jump"][clip_id] = jump([motion.group("rot") for motion in motions], WINDOW)
    return replace(row, yardsticks={**row.yardsticks, **moves})


def _expressions(motion: Motion) -> np.ndarray:
    return motion.group("expr").astype(np.float64)


def _apart(faces: Sequence[np.ndarray]) -> float:
    pairs = [np.square(a - b).mean() for a, b in combinations(faces, 2)]
    return float(np.mean(pairs))


def _variance(face: np.ndarray) -> float:
    return float(face.var(axis=0).mean())


def _jerk(face: np.ndarray) -> float:
    return float(np.square(np.diff(face, n=3, axis=0)).mean())


def _mean(of: Callable[[np.ndarray], float], faces: Sequence[np.ndarray]) -> float:
    return float(np.mean([of(face) for face in faces]))
