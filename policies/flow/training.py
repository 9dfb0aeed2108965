"""What learners of VAE and AR-Flow share: tables, batches of their rows, trained modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from rapport.policies.flow.conditions import MODALITIES, Conditions
from rapport.policies.flow.config import FlowSizes
from rapport.policies.flow.loss import flow_errors
from rapport.policies.flow.model import ARFlow
from rapport.policies.flow.rollouts import Exploration, replay_latents, replay_means
from rapport.policies.flow.sampling import Denoise

if TYPE_CHECKING:
    from datasets import Dataset

# Arrays travel as float32 bytes; what a clip lacks is null.
MOTION_SCHEMA = pa.schema({"clip_id": pa.string(), "frames": pa.binary()})
CONDITION_COLUMNS = {"prompt_id": pa.string()} | {name: pa.binary() for name in MODALITIES}
FLOW_SCHEMA = pa.schema(CONDITION_COLUMNS | {"latents": pa.binary()})
# Answers, with the noise that each latent came of, and how much was heard of it.
ANSWER_SCHEMA = pa.schema([*FLOW_SCHEMA, ("noise", pa.binary()), ("lead", pa.int64())])


def to_bytes(values: Tensor | np.ndarray | None) -> bytes | None:
    if isinstance(values, Tensor):
        values = values.cpu()
    return None if values is None else np.ascontiguousarray(values, dtype=np.float32).tobytes()


def from_bytes(values: bytes, *shape: int) -> Tensor:
    """float32 tensor of `shape` (one -1 is allowed)."""
    return torch.from_numpy(np.frombuffer(values, np.float32).copy()).reshape(shape)


def collate_conditions(rows: Sequence[Mapping[str, Any]], config: FlowSizes) -> dict[str, Tensor]:
    """The fields of `Conditions` for rows of one window each.

    Zeros stand where a clip lacks a modality.

    Every modality is there, so that every rank trains the same parameters in the same order.
    """
    audio = (config.frames, config.audio_dim)
    shapes = {
        "text": (config.text_dim,),
        "partner_audio": audio,
        "partner_motion": (config.window, config.latent_dim),
        "actor_audio": audio,
    }
    batch = {
        name: torch.stack(
            [
                torch.zeros(shape) if row[name] is None else from_bytes(row[name], *shape)
                for row in rows
            ]
        )
        for name, shape in shapes.items()
    }
    return batch | {
        "present": torch.tensor([[row[name] is not None for name in MODALITIES] for row in rows])
    }


def fit_features(flow: ARFlow, table: Dataset) -> None:
    """`ARFlow.fit_features` on the conditions in a table of windows (FLOW_SCHEMA)."""

    def features(dim: int, *columns: str) -> Iterator[Tensor]:
        for row in table.select_columns(list(columns)):
            yield from (from_bytes(value, -1, dim) for value in row.values() if value is not None)

    dims = flow.config
    flow.fit_features(
        features(dims.text_dim, "text"), features(dims.audio_dim, "partner_audio", "actor_audio")
    )


class FlowModule(nn.Module):
    """AR-Flow whose forward pass is what learners ask of it: sharded training hooks into that."""

    def __init__(self, flow: ARFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(
        self,
        asked: Literal["errors", "imitation", "straightened", "means", "latents"],
        *arguments: Any,
    ) -> Tensor:
        """The errors of Eq. 4, both losses, the means of drawn steps, or latents along the ODE."""
        answer: Tensor = getattr(self, asked)(*arguments)
        return answer

    def errors(
        self,
        conditions: Mapping[str, Tensor],
        lead: Tensor,
        latents: Tensor,
        noise: Tensor,
        time: Tensor,
        remembers: Tensor | None,
    ) -> Tensor:
        """See `flow_errors`."""
        prefix = self.flow.encode_prefix(Conditions(**conditions), lead)
        return flow_errors(self.flow, prefix, latents, noise, time, remembers)

    def imitation(
        self,
        conditions: Mapping[str, Tensor],
        lead: Tensor,
        latents: Tensor,
        noise: Tensor,
        time: Tensor,
        remembers: Tensor,
        path: Tensor | None,
    ) -> Tensor:
        """(2,): mean error of Eq. 4, and of what is expected against `path` (`loss.paths`).

        Without a path the latter is 0: the policy expects nothing.
        """
        flow = self.flow
        prefix = flow.encode_prefix(Conditions(**conditions), lead)
        expected = flow.expect(prefix, torch.arange(latents.shape[2], device=latents.device))
        errors = flow_errors(flow, prefix, latents, noise, time, remembers, expected)
        surprise = errors.new_zeros(())
        if path is not None:
            surprise = (expected.squeeze(1) - path).square().mean()
        return torch.stack([errors.mean(), surprise])

    def straightened(
        self,
        conditions: Mapping[str, Tensor],
        lead: Tensor,
        latents: Tensor,
        noise: Tensor,
        time: Tensor,
    ) -> Tensor:
        """The errors of Eq. 4 where each latent comes of its own noise, told as samplers are."""
        prefix = self.flow.encode_prefix(Conditions(**conditions), lead)
        numbers = torch.arange(latents.shape[2], device=latents.device)
        heeded = self.flow.heeded(prefix, numbers)
        return flow_errors(self.flow, prefix, latents, noise, time, None, heeded)

    def means(
        self,
        conditions: Mapping[str, Tensor],
        states: Tensor,
        exploration: Exploration,
        first: Tensor,
        *how: int | None,
    ) -> Tensor:
        """See `replay_means`; `how` = its chunk and its lead."""
        chunk, lead = how
        heard = Conditions(**conditions)
        return replay_means(self.flow, heard, states, exploration, first, lead=lead, chunk=chunk)

    def latents(
        self,
        conditions: Mapping[str, Tensor],
        latents: Tensor,
        noise: Tensor,
        denoise: Denoise,
        lead: int | None,
    ) -> Tensor:
        """See `replay_latents`."""
        return replay_latents(self.flow, Conditions(**conditions), latents, noise, denoise, lead)


def flow_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of `FlowModule` -> names of AR-Flow."""
    return {name.removeprefix("flow."): tensor for name, tensor in state.items()}
