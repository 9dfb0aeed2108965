"""Render a motion on the built-in head as a video.

python docs/examples/render_motion.py [nod.mp4]
"""

import sys
from pathlib import Path

import numpy as np

from rapport import Motion, load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.raster import Rasterizer
from rapport.policies.head.video import render_motion, write_mp4
from rapport.policies.motion import Layout


def nod_and_blink(seconds: float, topology: str) -> Motion:
    """Two nods and a blink. A motion always says what its columns mean."""
    layout = Layout((("rot", 3), ("jaw", 3), ("eyelid", 2)), fps=25, topology=topology)
    time = np.arange(int(seconds * layout.fps)) / layout.fps
    values = np.zeros((len(time), layout.dim), np.float32)
    # Rotations are axis-angle vectors in radians; turning about x lowers and lifts the chin.
    values[:, layout.columns("rot")][:, 0] = 0.15 * np.sin(2 * np.pi * time)
    values[:, layout.columns("jaw")][:, 0] = 0.05
    blink = np.exp(-(((time - seconds / 2) / 0.08) ** 2))
    values[:, layout.columns("eyelid")] = blink[:, None]
    return Motion(values, layout)


def main(path: Path) -> None:
    asset = load_head()  # or load_head("FLAME2020.pkl"), if you have FLAME
    motion = nod_and_blink(seconds=2, topology=asset.topology)
    frames = render_motion(FlameHead(asset), Rasterizer(asset, size=256), motion)
    write_mp4(path, frames, fps=motion.layout.fps)
    print(f"{path}: {len(frames)} frames")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("nod.mp4"))
