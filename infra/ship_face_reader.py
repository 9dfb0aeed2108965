"""Put the reader of the built-in head's faces into the package, so that nobody waits for it.

    python infra/ship_face_reader.py

It is learnt from drawn faces alone, in minutes (`pipeline/data/video/regressor.py`). Its matrices
are kept in half precision, and are computed with in float32.
"""

from __future__ import annotations

import numpy as np

from rapport.pipeline.data.video.landmarks import Landmarker
from rapport.pipeline.data.video.regressor import SHIPPED, Regressor, learnt
from rapport.policies.head.asset import load_head

MATRICES = ("components", "direct", "weight1", "weight2", "weight3")


def ship() -> None:
    """Learn it anew, or take it from the cache, and write it."""
    SHIPPED.unlink(missing_ok=True)
    with Landmarker() as landmarker:
        regressor = learnt(load_head(), landmarker)
    arrays = {
        name: array.astype(np.float16) if name in MATRICES else array
        for name, array in regressor.arrays.items()
    }
    SHIPPED.parent.mkdir(exist_ok=True)
    Regressor(arrays, regressor.layout, regressor.about).save(SHIPPED)


if __name__ == "__main__":
    ship()
    print(SHIPPED, SHIPPED.stat().st_size)
