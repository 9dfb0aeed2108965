"""Folders that hold a motion VAE or an AR-Flow: its configuration and its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from rapport.files import atomic
from rapport.policies.flow.config import FlowSizes, VaeSizes
from rapport.policies.flow.model import ARFlow
from rapport.policies.flow.vae import MotionVAE
from rapport.policies.policy import CheckpointError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def save(model: MotionVAE | ARFlow, path: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write a folder that `load_vae` or `load_flow` reads; it appears whole or not at all.

    Args:
        model: VAE or AR-Flow.
        path: of the folder; an old one is replaced.
        state: the full weights where `model` holds only a shard of them (ZeRO-3).
    """
    with atomic(path) as partial:
        write(model, partial, state)


def write(
    model: MotionVAE | ARFlow, folder: Path, state: Mapping[str, Tensor] | None = None
) -> None:
    """The same into a folder that need not appear at once; it may be there already."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = model.state_dict() if state is None else state
    plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(plain, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(model.config.to_json())


def load_vae(path: Path) -> MotionVAE:
    """A frozen VAE, ready to encode and decode."""
    vae = MotionVAE(VaeSizes.from_json(_config(path)))
    vae.load_state_dict(load_file(path / WEIGHTS_FILE))
    return vae.eval().requires_grad_(False)


def load_flow(path: Path) -> ARFlow:
    """An AR-Flow, ready to train or to sample."""
    config = _config(path)
    if "span" not in json.loads(config):
        raise CheckpointError(
            f"{path} is an AR-Flow of an earlier version, which heard the future; train it again"
        )
    flow = ARFlow(FlowSizes.from_json(config))
    flow.load_state_dict(load_file(path / WEIGHTS_FILE))
    return flow


def _config(path: Path) -> str:
    file = path / CONFIG_FILE
    if not file.is_file():
        raise CheckpointError(
            f"{path} is no checkpoint of a VAE or AR-Flow: it has no {CONFIG_FILE}"
        )
    return file.read_text()
