"""Folders that hold a ReactFace: its sizes and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rapport.policies.policy import CheckpointError
from rapport.policies.reactface.config import ReactFaceSizes
from rapport.policies.reactface.model import ReactFace

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
AGAIN = "copy the whole folder again, or save the policy again"


def write(sizes: ReactFaceSizes, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write sizes and weights into a folder that is there."""
    save_file(dict(weights), folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(sizes.to_json())


def read(folder: Path) -> ReactFace:
    """The ReactFace in a folder.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights are of other sizes or of an
            earlier version.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is no ReactFace: it has no {name}; {AGAIN}")
    try:
        model = ReactFace(ReactFaceSizes.from_json((folder / CONFIG_FILE).read_text()))
        weights = load_file(folder / WEIGHTS_FILE)
        earlier = "prior" in weights and "axes.axes" not in weights
        if not earlier:
            model.load_state_dict(weights)
    except (ValueError, TypeError, KeyError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{folder} holds no ReactFace: {error}; {AGAIN}") from error
    if earlier:
        raise CheckpointError(
            f"{folder} is a ReactFace of an earlier version, whose lids moved apart; train it again"
        )
    return model
