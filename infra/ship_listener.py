"""Put the AR-Flow of a run into the package, as the listener that works right after the install.

    python infra/ship_listener.py runs/dpo-...

Weights are kept in half precision, which halves the wheel; they are computed with in float32.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

from rapport.pipeline.steps.listening import policy_folder, shipped

CARD = """# The listener that comes with the project

A small AR-Flow ({parameters:.2f} M parameters with its motion VAE), trained on synthetic people and
aligned by simulated raters, by

{commands}

and put here by infra/ship_listener.py. Nobody's voice or face is in it. It shows that everything
works; a listener for people is trained on people.
"""


def ship(run: Path) -> Path:
    """Copy the policy that a run ended with; returns where it is."""
    folder = shipped()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(policy_folder(run), folder)
    parameters = 0
    for path in folder.rglob("*.safetensors"):
        weights = load_file(path)
        parameters += sum(tensor.numel() for tensor in weights.values())
        halves = {name: t.half() if t.is_floating_point() else t for name, t in weights.items()}
        large = [name for name, t in halves.items() if not torch.isfinite(t.float()).all()]
        if large:
            sys.exit(f"{path}: {large} do not fit half precision")
        save_file(halves, path)
    commands = "\n".join(f"    python -m pipeline.run {each}" for each in made_by(run))
    (folder / "README.md").write_text(CARD.format(parameters=parameters / 1e6, commands=commands))
    return folder


def made_by(run: Path) -> list[str]:
    """The recipes with their seeds, that of the imitation first."""
    summary = json.loads((run / "summary.json").read_text())
    config = yaml.safe_load((run / "config.yaml").read_text())
    seed = f" seed={summary['seed']}" if summary["seed"] else ""
    if config.get("imitation") is None:
        return [f"{summary['recipe']} policy=flow{seed}"]
    return [
        *made_by(Path(config["imitation"])),
        f"{summary['recipe']} policy=flow imitation=RUN{seed}  # RUN: of the line above",
    ]


if __name__ == "__main__":
    print(ship(Path(sys.argv[1])))
