"""The folder of an exported listener: its step, what belongs to it, the page and its parts.

The page is the served one. What it asks a server for lies here as files: `v1/policies`,
`head.glb`, and in place of the session that talks to a server one that computes by itself.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rapport.pipeline.rundir import RunError
from rapport.pipeline.serve.settings import PAGE
from rapport.pipeline.settings import ExportConfig
from rapport.pipeline.steps.listening import on_synthetic_people, policy_folder, require_place
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.flow.export import beginnings, difference, require_packages, write_onnx
from rapport.policies.flow.live import LiveFlow
from rapport.policies.flow.policy import FlowPolicy
from rapport.policies.head.arkit import NAMES, ArkitRig
from rapport.policies.head.asset import HeadAsset, TopologyError, load_head
from rapport.policies.head.gltf import write_glb
from rapport.policies.head.livelink import CHANNELS
from rapport.policies.live import LiveError
from rapport.policies.motion import Motion
from rapport.policies.policy import load_policy

RUNTIME = PAGE / "vendor" / "ort"
RUNTIME_FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
NAME = "listener"  # of the policy, on the page
FACTS = "listener.json"
STEP = "step.onnx"
SESSION = 'export { Session } from "./alone/session.js";\n'
# The page may load from its own host and talk to it, to nobody else.
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; "
    "connect-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:"
)
MOST_OFF = 1e-3  # standard deviations, between ONNX Runtime's frames and PyTorch's
CHECKED_S = 20.0


@dataclass(frozen=True, eq=False)
class Exported:
    """What is exported.

    Args:
        folder: of the policy.
        policy: in it, sampled as it is asked for.
        live: the policy, live.
        head: that shows it.
        texts: what it can be told.
        runtime: folder of onnxruntime-web's files.
        simulated: whether it was trained on synthetic people, as far as its run says.
    """

    folder: Path
    policy: FlowPolicy
    live: LiveFlow
    head: HeadAsset
    texts: tuple[str, ...]
    runtime: Path
    simulated: bool


def open_export(config: ExportConfig) -> Exported:
    """What a config asks for, once all that can be refused was looked at.

    Raises:
        RunError: a key is missing or names nothing, or the policy is no AR-Flow. So do the errors
            of what is read (`rapport.pipeline.explained.explained_errors`).
    """
    if config.out is not None:
        require_place(config.out)
        if config.out.is_dir() and any(config.out.iterdir()) and not (config.out / FACTS).is_file():
            raise RunError(f"out={config.out}: a folder of other things; name a new one")
    folder = policy_folder(config.policy)
    policy = load_policy(folder)
    if not isinstance(policy, FlowPolicy):
        raise RunError(
            f"{folder} is a policy of kind {policy.kind}, and only an AR-Flow (flow) is small "
            "enough for a browser: serve this one"
        )
    live = _live(policy, config)
    require_packages()
    head = load_head(config.head.path, config.head.topology)
    if head.topology != policy.layout.topology:
        raise TopologyError(
            f"a policy of {policy.layout.topology} faces and a {head.topology} head: head.path "
            "names a head of its own"
        )
    return Exported(
        folder=folder,
        policy=policy,
        live=live,
        head=head,
        texts=tuple(config.texts),
        runtime=_runtime(config.runtime),
        simulated=on_synthetic_people(config.policy),
    )


def write_folder(exported: Exported, folder: Path) -> None:
    """Write all files into a folder that is not there yet."""
    shutil.copytree(PAGE, folder, ignore=shutil.ignore_patterns("ort"))
    for name in RUNTIME_FILES:
        _copy(exported.runtime / name, folder / "vendor" / "ort" / name)
    write_onnx(exported.live, folder / STEP)
    (folder / FACTS).write_text(json.dumps(facts(exported)))
    (folder / "session.js").write_text(SESSION)
    at_rest = np.zeros((1, exported.policy.layout.dim))
    write_glb(folder / "head.glb", Motion(at_rest, exported.policy.layout), exported.head)
    index = folder / "index.html"
    forbidding = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    index.write_text(index.read_text().replace("<head>", f"<head>\n  {forbidding}", 1))
    (folder / "v1").mkdir()
    (folder / "v1" / "policies").write_text(json.dumps({"policies": [_listed(exported)]}))


def check_step(exported: Exported, folder: Path, seed: int) -> float:
    """How far ONNX Runtime's frames are from PyTorch's, in standard deviations.

    Raises:
        RunError: farther than rounding explains.
    """
    steps = round(CHECKED_S / exported.live.chunk)
    off = difference(folder / STEP, exported.live, steps, seed)
    if not off < MOST_OFF:
        raise RunError(
            f"the exported step gives other frames than PyTorch, by {off:.1e} standard deviations: "
            "nothing was written; please report this with the versions of torch and onnxruntime"
        )
    return off


def facts(exported: Exported) -> dict[str, Any]:
    """What the page's listener reads, for JSON."""
    policy = exported.policy
    layout = policy.layout
    width = layout.width("expr") if "expr" in layout.names else 0
    order = [NAMES.index(name[0].lower() + name[1:]) for name in CHANNELS[: len(NAMES)]]
    prompts = {text: policy.told(text) for text in exported.texts}
    return {
        "policy": NAME,
        "simulated": exported.simulated,
        "rate": AUDIO_RATE,
        "frames": policy.flow.config.downsample,
        "latent_dim": policy.flow.config.latent_dim,
        "layout": json.loads(layout.to_json()),
        "lead": exported.live.lead,
        "arkit": ArkitRig(exported.head).plain(width) | {"order": order},
        **beginnings(exported.live, prompts),
    }


def _listed(exported: Exported) -> dict[str, Any]:
    """The policy as `GET /v1/policies` of a server lists it."""
    return {
        "name": NAME,
        "reads": ["speaker_audio"],
        "takes_text": bool(exported.texts),
        "texts": exported.texts,
        "simulated": exported.simulated,
    }


def _live(policy: FlowPolicy, config: ExportConfig) -> LiveFlow:
    """The listener, with the sampler that the config asks for.

    Raises:
        RunError: so many evaluations make no whole step.
    """
    given = {
        name: value
        for name in ("lead", "evaluations")
        if (value := getattr(config, name)) is not None
    }
    try:
        return LiveFlow(policy.with_sampler(**given))
    except LiveError:
        raise
    except ValueError as error:
        raise RunError(f"evaluations={config.evaluations}: {error}") from error


def _runtime(named: Path | None) -> Path:
    """The folder of onnxruntime-web's files.

    Raises:
        RunError: some are missing.
    """
    folder = RUNTIME if named is None else named
    missing = [name for name in RUNTIME_FILES if not (folder / name).is_file()]
    if not missing:
        return folder
    if named is None:
        raise RunError(
            f"the export needs onnxruntime-web, and {folder} lacks {missing[0]}: run `make web` "
            "(needs npm), or name the folder dist of that npm package by runtime=DIR"
        )
    raise RunError(
        f"runtime={named} lacks {', '.join(missing)}: name the folder dist of the npm "
        "package onnxruntime-web"
    )


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
