"""Moving means; on its own, so that metrics can smooth without importing torch."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import uniform_filter1d


def moving_mean(x: np.ndarray, frames: float) -> np.ndarray:
    """Mean of the `frames` frames around each one, along the first axis.

    Args:
        x: (time, ...). Beyond its ends the first and the last frame repeat.
        frames: width of the window, rounded to a whole number of at least 1.
    """
    mean: np.ndarray = uniform_filter1d(x, size=max(1, round(frames)), axis=0, mode="nearest")
    return mean
