"""Folders that hold a motion VAE or an AR-Flow: its configuration and its weights."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from rapport.policies.flow.config import FlowConfig, VAEConfig
from rapport.policies.flow.model import ARFlow
from rapport.policies.flow.vae import MotionVAE

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def save(model: MotionVAE | ARFlow, path: Path, state: dict[str, Tensor] | None = None) -> None:
    """Write a folder that `load_vae` or `load_flow` reads; it appears whole or not at all, over an
    old one.

    Args:
        state: the full weights where `model` holds only a shard of them (ZeRO-3).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    weights = model.state_dict() if state is None else state
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in weights.items()},
        partial / WEIGHTS_FILE,
    )
    (partial / CONFIG_FILE).write_text(model.config.to_json())
    partial.chmod(0o755)
    replaced = partial.with_name(f"{partial.name}.replaced")
    if path.exists():
        path.rename(replaced)
    partial.rename(path)
    shutil.rmtree(replaced, ignore_errors=True)


def load_vae(path: Path) -> MotionVAE:
    """A frozen VAE, ready to encode and decode."""
    vae = MotionVAE(VAEConfig.from_json(_read(path)))
    vae.load_state_dict(load_file(path / WEIGHTS_FILE))
    return vae.eval().requires_grad_(False)


def load_flow(path: Path) -> ARFlow:
    flow = ARFlow(FlowConfig.from_json(_read(path)))
    flow.load_state_dict(load_file(path / WEIGHTS_FILE))
    return flow


def _read(path: Path) -> str:
    file = path / CONFIG_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} is no checkpoint of a VAE or AR-Flow: it has no {CONFIG_FILE}"
        )
    return file.read_text()
