"""Put an AR-Flow into the package, as the listener that works right after the install.

    python infra/ship_listener.py RUN "gdpo seed=2" "dpo policy=flow imitation=RUN seed=2"

The first argument is a run, or the folder of a policy; the others are the recipes that made it, for
its card. Weights are kept in half precision, which halves the wheel; they are computed with in
float32.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from rapport.pipeline.steps.listening import policy_folder, shipped

CARD = """# The listener that comes with the project

A small AR-Flow ({parameters:.2f} M parameters with its motion VAE), trained on synthetic people and
aligned by simulated raters, by

{commands}

and put here by infra/ship_listener.py. Nobody's voice or face is in it. It shows that everything
works; a listener for people is trained on people.
"""


def ship(path: Path, recipes: list[str]) -> Path:
    """Copy the policy in `path`, or that its run ended with; returns where it is."""
    folder = shipped()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(policy_folder(path), folder)
    parameters = 0
    for file in folder.rglob("*.safetensors"):
        weights = load_file(file)
        parameters += sum(tensor.numel() for tensor in weights.values())
        halves = {name: t.half() if t.is_floating_point() else t for name, t in weights.items()}
        large = [name for name, t in halves.items() if not torch.isfinite(t.float()).all()]
        if large:
            sys.exit(f"{file}: {large} do not fit half precision")
        save_file(halves, file)
    commands = "\n".join(f"    python -m pipeline.run {each}" for each in recipes)
    (folder / "README.md").write_text(CARD.format(parameters=parameters / 1e6, commands=commands))
    return folder


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    print(ship(Path(sys.argv[1]), sys.argv[2:]))
