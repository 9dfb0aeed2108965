"""A face that shows a wanted valence: how rules, which know what to show, come to motion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rapport.policies.head.asset import HeadAsset
from rapport.policies.head.flame import FlameHead
from rapport.policies.motion import Layout, Motion
from rapport.rewards.ratings.visible import displayed_valence, watch

SMILE = {"mouthSmile": 1.0, "cheekSquint": 0.45}
CONCERN = {"mouthFrown": 1.0, "browInnerUp": 0.7}
UNPAIRED = ("browInnerUp",)  # ARKit shapes of both sides at once
STEPS = 41  # amounts at which it is looked what a face shows


@dataclass(frozen=True, eq=False)
class Actor:
    """Expression coefficients that show a wanted valence on one head.

    Args:
        valence: (steps,) displayed valence at each amount, rising.
        amount: (steps,) from -1, all concern, to 1, all smile.
        smile: (expr,) coefficients of a whole smile.
        concern: (expr,) the same of concern.
    """

    valence: np.ndarray
    amount: np.ndarray
    smile: np.ndarray
    concern: np.ndarray

    @classmethod
    def of_head(
        cls, asset: HeadAsset, landmarks: Mapping[str, np.ndarray], layout: Layout
    ) -> Actor:
        """Looks at smiles and frowns of a head.

        Args:
            asset: a head with a table of ARKit shapes.
            landmarks: of that head, see `watch`.
            layout: of the motion that is wanted, with the head's topology.

        Raises:
            TopologyError: the head has no ARKit shapes, or the layout is of another head.
        """
        width = layout.width("expr")
        smile, concern = (asset.expr(**_both_sides(shapes))[:width] for shapes in (SMILE, CONCERN))
        amount = np.linspace(-1, 1, STEPS)
        expr = _expr(amount, smile, concern)
        only = Layout((("expr", width),), layout.fps, layout.topology)
        seen = watch(FlameHead(asset), landmarks, Motion(expr.astype(np.float32), only))
        assert seen.expression is not None, "watch sees expressions"
        # Skin that folds could make a stronger shape look weaker; it does not count as stronger.
        valence = np.maximum.accumulate(displayed_valence(seen.expression))
        return cls(valence, amount, smile=smile, concern=concern)

    def __call__(self, wanted: np.ndarray) -> np.ndarray:
        """(time, expr) coefficients from a valence over time (time,) in [-1, 1].

        What no face of this head shows is shown as far as it goes.
        """
        amount = np.interp(wanted, self.valence, self.amount)
        return _expr(amount, self.smile, self.concern)


def _expr(amount: np.ndarray, smile: np.ndarray, concern: np.ndarray) -> np.ndarray:
    return np.outer(np.maximum(amount, 0), smile) + np.outer(np.maximum(-amount, 0), concern)


def _both_sides(shapes: Mapping[str, float]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for name, weight in shapes.items():
        sides = ("",) if name in UNPAIRED else ("Left", "Right")
        weights |= {f"{name}{side}": weight for side in sides}
    return weights
