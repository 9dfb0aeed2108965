"""Score motion files by published metrics: needs neither a model, nor torch, nor a GPU.

    python docs/examples/score_files.py [FOLDER]

FOLDER has predicted/, recorded/ and partner/ with one (frames, 56) array a clip, here random ones.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from rapport import evaluate
from rapport.arrays import load_array
from rapport.files import visible

COLUMNS = 56  # lm-listener's: 50 of expression, 3 of head rotation, 3 of the jaw


def write_clips(folder: Path, seed: int = 0) -> None:
    """Files to have something to score; yours come from your model."""
    rng = np.random.default_rng(seed)
    for index in range(8):
        recorded = np.cumsum(rng.normal(scale=0.02, size=(120, COLUMNS)), axis=0)
        clips = {
            "recorded": recorded,
            "predicted": recorded + rng.normal(scale=0.05, size=recorded.shape),
            "partner": np.cumsum(rng.normal(scale=0.02, size=recorded.shape), axis=0),
        }
        for name, values in clips.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            np.save(folder / name / f"clip-{index}.npy", values)


def read_clips(folder: Path) -> list[np.ndarray]:
    return [load_array(file) for file in visible(folder, "*.npy")]


def main(folder: Path) -> None:
    if not (folder / "predicted").is_dir():
        write_clips(folder)
    predicted = read_clips(folder / "predicted")
    recorded = read_clips(folder / "recorded")
    partner = read_clips(folder / "partner")
    for variant in ("reference", "corrected"):
        # "reference" is the published number, bug for bug; "corrected" has its bugs mended.
        scores = evaluate("lm_listener", predicted, recorded, partner, variant=variant)
        print(variant)
        for name, value in scores.items():
            print(f"  {name:<12} {value:.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()))
