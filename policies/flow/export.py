"""AR-Flow for where there is no PyTorch: its step as ONNX, and what a session begins with as JSON.

The step is `FlowStep` for one session. Its state is a list of named tensors: what comes out under
`next.NAME` goes in under `NAME` at the next step. ONNX Runtime does with them what PyTorch does,
in Python, in a browser and elsewhere; noise and bands of sound are given by whoever runs it.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rapport.files import atomic
from rapport.policies.flow.conditions import LEADS
from rapport.policies.flow.live import LiveFlow, State
from rapport.policies.flow.policy import FlowPrompt
from rapport.policies.flow.step import FlowStep, Given, Sessions
from rapport.policies.live import LiveError

OPSET = 23  # the first with RMSNormalization and Attention
NEXT = "next."  # before the name of a tensor of the state, where it comes out
FRAMES = "frames"  # the name of what a step settles
TOLD = ("prefix.text", "prefix.told")  # tensors of what a listener was told begin so
NEEDED = ("onnx", "onnxscript", "onnxruntime")

Tensors = dict[str, np.ndarray]


class ExportError(LiveError):
    """A policy cannot be exported; the message says why."""


@dataclass(frozen=True, eq=False)
class Flat:
    """The tensors of a session by name, and back.

    Args:
        names: of all tensors, in the order of the session's leaves.
        changing: those that a step changes; the others are what the listener was told.
        structure: of the session.
    """

    names: tuple[str, ...]
    changing: tuple[str, ...]
    structure: pytree.TreeSpec

    @classmethod
    def of(cls, step: FlowStep) -> Flat:
        """Of the sessions of a step."""
        before = step.start(None, lead=max(LEADS))
        _, after = step(before, nothing_given(step))
        paths, structure = pytree.tree_flatten_with_path(before)
        names = tuple(pytree.keystr(path).replace("[", ".").strip(".") for path, _ in paths)
        names = tuple(name.replace("]", "").replace("'", "") for name in names)
        leaves = zip(names, pytree.tree_leaves(before), pytree.tree_leaves(after), strict=True)
        changing = tuple(name for name, old, new in leaves if old is not new)
        return cls(names, changing, structure)

    def named(self, sessions: Sessions) -> dict[str, Tensor]:
        """The tensors of a session."""
        return dict(zip(self.names, pytree.tree_leaves(sessions), strict=True))

    def session(self, tensors: Sequence[Tensor]) -> Sessions:
        """The session of tensors in the order of `names`."""
        return cast(Sessions, pytree.tree_unflatten(list(tensors), self.structure))


class NamedStep(nn.Module):
    """A step whose arguments and results are tensors, one after the other.

    Arguments are the session's, in the order of `Flat.names`, then the fields of `Given`. Results
    are the frames, then what the step changes.
    """

    def __init__(self, step: FlowStep, flat: Flat) -> None:
        super().__init__()
        self.flow = step.flow
        self.vae = step.vae
        self.step = step
        self.flat = flat

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        count = len(self.flat.names)
        frames, after = self.step(self.flat.session(tensors[:count]), Given(*tensors[count:]))
        changed = self.flat.named(after)
        return (frames, *(changed[name] for name in self.flat.changing))


def nothing_given(step: FlowStep) -> Given:
    """What one session is given where every stream is absent, and its noise is 0."""
    config = step.flow.config
    r = config.downsample
    like = step.flow.velocity.weight
    return Given(
        present=torch.zeros(1, 4, dtype=torch.bool),
        partner_audio=like.new_zeros(1, r, config.audio_dim),
        partner_motion=step.vae.channel_mean.new_zeros(1, r, step.vae.config.layout.dim),
        actor_audio=like.new_zeros(1, r, config.audio_dim),
        noise=like.new_zeros(1, 1, config.latent_dim),
    )


def require_packages() -> None:
    """Raise `ExportError` unless all packages that an export needs are there."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"an export needs {', '.join(missing)}: pip install 'rapport-rlhf[export]'"
        )


def write_onnx(live: LiveFlow, path: Path) -> None:
    """Write the step of a listener, float32.

    Args:
        live: the listener; its policy must be on the CPU.
        path: of the `.onnx` file; it appears whole or not at all.

    Raises:
        ExportError: a package is missing, or its weights are no float32.
    """
    require_packages()
    if live.advance.flow.velocity.weight.dtype != torch.float32:
        raise ExportError("an export is of float32 weights: load the policy in float32")
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    flat = Flat.of(live.advance)
    given = nothing_given(live.advance)
    # In the beginning layers share their zeros, and the exporter would take them for one argument.
    begun = pytree.tree_leaves(live.advance.start(None, live.lead))
    arguments = [tensor.clone() for tensor in begun]
    arguments += [getattr(given, field.name) for field in fields(Given)]
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            NamedStep(live.advance, flat).eval(),
            tuple(arguments),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[*flat.names, *(field.name for field in fields(Given))],
            output_names=[FRAMES, *(NEXT + name for name in flat.changing)],
        )
    assert program is not None
    # It has the traces of where every node comes from, with paths of this machine.
    ClearMetadataAndDocStringPass()(program.model)
    with atomic(path) as unfinished:
        program.save(unfinished, external_data=False)


def beginnings(live: LiveFlow, texts: Mapping[str, FlowPrompt]) -> dict[str, Any]:
    """What sessions begin with and are given, for JSON.

    Args:
        live: the listener.
        texts: what it may be told, by text.

    Returns:
        `state`: name, type and shape of each tensor, whether a step changes it, and whether it is
        of what the listener was told; `leads`: for
        each, the number of its first latent, how many latents later than the latest latent are
        heard by then, and what of the state is not 0; `texts`: what is not 0 once the listener is
        told one.
    """
    flat = Flat.of(live.advance)
    tensors = flat.named(live.start(0).kept)
    state = [
        {
            "name": name,
            "type": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "changes": name in flat.changing,
            "told": name.startswith(TOLD),
        }
        for name, tensor in tensors.items()
    ]
    leads = {}
    for lead in LEADS:
        begun = live.start(0, lead=lead)
        leads[str(lead)] = {
            "number": begun.number,
            "ahead": live.advance.ahead(lead),
            "begins": _not_zero(flat, begun, told=False),
        }
    told = {
        text: _not_zero(flat, live.start(0, prompt), told=True) for text, prompt in texts.items()
    }
    return {"state": state, "leads": leads, "texts": told}


class OnnxListener:
    """A listener by ONNX Runtime: what a browser does, in Python. One session.

    Args:
        path: of the step, as `write_onnx` writes it.
        live: the listener that it was written of; bands, noise and the beginning are its own.
    """

    def __init__(self, path: Path, live: LiveFlow) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options)
        self._live = live
        self._flat = Flat.of(live.advance)

    def start(self, state: State) -> Tensors:
        """The tensors of a session."""
        return {name: tensor.numpy() for name, tensor in self._flat.named(state.kept).items()}

    def step(self, tensors: Tensors, given: Given) -> tuple[np.ndarray, Tensors]:
        """What `FlowStep` answers: frames (1, r, dim), and the tensors after the step."""
        feeds = {field.name: getattr(given, field.name).numpy() for field in fields(Given)}
        names = [FRAMES, *(NEXT + name for name in self._flat.changing)]
        frames, *changed = self._session.run(names, tensors | feeds)
        after = dict(zip(self._flat.changing, changed, strict=True))
        return frames, tensors | after


def difference(path: Path, live: LiveFlow, steps: int, seed: int = 0) -> float:
    """How far the frames of a written step are from PyTorch's at most, in standard deviations.

    Streams come and go, as they do in a session.

    Args:
        path: of the step.
        live: the listener that it was written of.
        steps: of the session.
        seed: of what is heard.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator)
    written = OnnxListener(path, live)
    begun = live.start(seed, lead=max(LEADS))
    tensors = written.start(begun)
    sessions = begun.kept
    flow, vae = live.advance.flow, live.advance.vae
    furthest = 0.0
    for _ in range(steps):
        nothing = nothing_given(live.advance)
        given = Given(
            present=torch.rand(1, 4, generator=generator) < 0.9,
            partner_audio=draw(nothing.partner_audio.shape) * flow.audio_std + flow.audio_mean,
            partner_motion=draw(nothing.partner_motion.shape) * vae.channel_std + vae.channel_mean,
            actor_audio=draw(nothing.actor_audio.shape) * flow.audio_std + flow.audio_mean,
            noise=draw(nothing.noise.shape),
        )
        expected, sessions = live.advance(sessions, given)
        frames, tensors = written.step(tensors, given)
        off = (torch.from_numpy(frames) - expected) / vae.channel_std
        furthest = max(furthest, float(off.abs().max()))
    return furthest


def _not_zero(flat: Flat, state: State, *, told: bool) -> dict[str, list[Any]]:
    """The tensors of a session that are not 0, flattened: of what it was told, or all others."""
    tensors = flat.named(state.kept)
    return {
        name: value.flatten().tolist()
        for name, value in tensors.items()
        if value.any() and name.startswith(TOLD) == told
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
