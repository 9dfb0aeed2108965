"""Candidate reactions on disk: what was sampled for each prompt, and the recorded listener."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rapport.files import atomic
from rapport.policies.policy import Policy, Reaction

GROUND_TRUTH = "ground_truth"
POLICY = "policy"
COLUMNS = (
    "prompt_id",
    "candidate_id",
    "source",
    "actions",
    "log_probs",
    "weight_version",
    "seed",
    "rest",
)


class CandidateError(ValueError):
    """A file of candidates is missing, damaged or does not belong here."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One reaction of a group.

    Args:
        prompt_id: which prompt.
        candidate_id: neutral, so that raters who read it cannot tell a sample from the recorded
            listener.
        source: `POLICY` or `GROUND_TRUTH`.
        actions: in the policy's own terms.
        log_probs: of the sampler; None for the recorded listener, whom nobody sampled.
        weight_version: of the sampler; None likewise.
        seed: of the sampler; None likewise.
        rest: see `Reaction`.
    """

    prompt_id: str
    candidate_id: str
    source: str
    actions: np.ndarray
    log_probs: np.ndarray | None = None
    weight_version: int | None = None
    seed: int | None = None
    rest: np.ndarray | None = None

    @property
    def reaction(self) -> Reaction:
        """As the policy takes it."""
        return Reaction(self.prompt_id, 0, self.actions, rest=self.rest)


def sampled(reaction: Reaction, policy: Policy) -> Candidate:
    """A reaction that the policy sampled."""
    log_probs = reaction.log_probs
    if log_probs is not None and not np.isfinite(log_probs).all():
        log_probs = None  # of a sampler whose steps have no density
    return Candidate(
        reaction.prompt_id,
        policy.candidate_id(reaction),
        POLICY,
        actions=reaction.actions,
        log_probs=log_probs,
        weight_version=reaction.weight_version,
        seed=reaction.seed,
        rest=reaction.rest,
    )


def recorded(reaction: Reaction, policy: Policy) -> Candidate:
    """The ground truth, through the policy's own terms so that nothing else gives it away."""
    prompt_id = reaction.prompt_id
    return Candidate(
        prompt_id,
        policy.recorded_id(prompt_id),
        GROUND_TRUTH,
        actions=reaction.actions,
        rest=reaction.rest,
    )


def candidate_schema(policy: Policy) -> pa.Schema:
    """Columns of a file of candidates."""
    types = (
        pa.string(),
        pa.string(),
        pa.string(),
        policy.action_type,
        pa.list_(pa.float32()),
        pa.int32(),
        pa.int64(),
        pa.list_(pa.float64()),
    )
    return pa.schema(dict(zip(COLUMNS, types, strict=True)))


def write_candidates(path: Path, candidates: Iterable[Candidate], policy: Policy) -> int:
    """Write all candidates, sorted by prompt and id; returns how many. Atomic."""
    rows = [_row(candidate, policy) for candidate in candidates]
    rows.sort(key=lambda row: (row["prompt_id"], row["candidate_id"]))
    with atomic(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=candidate_schema(policy)), partial)
    return len(rows)


def _row(candidate: Candidate, policy: Policy) -> dict[str, Any]:
    log_probs = candidate.log_probs
    return vars(candidate) | {
        "actions": policy.pack(candidate.actions),
        "log_probs": None if log_probs is None else np.ravel(log_probs).tolist(),
        "rest": None if candidate.rest is None else candidate.rest.tolist(),
    }


def read_candidates(path: Path) -> dict[str, list[Candidate]]:
    """Groups by prompt id.

    Raises:
        CandidateError: the file is missing or holds something else.
    """
    table = _table(path)
    dtype = np.int64 if _innermost(table.schema.field("actions").type) == pa.int32() else np.float32
    groups: dict[str, list[Candidate]] = {}
    for row in table.to_pylist():
        row["actions"] = np.array(row["actions"], dtype)
        if row["log_probs"] is not None:
            row["log_probs"] = np.array(row["log_probs"], np.float32)
        if row["rest"] is not None:
            row["rest"] = np.array(row["rest"])
        groups.setdefault(row["prompt_id"], []).append(Candidate(**row))
    return groups


def read_members(path: Path) -> dict[str, list[str]]:
    """Ids of the candidates of every prompt, without what they are.

    Raises:
        CandidateError: the file is missing or holds something else.
    """
    members: dict[str, list[str]] = {}
    for row in _table(path, ("prompt_id", "candidate_id")).to_pylist():
        members.setdefault(row["prompt_id"], []).append(row["candidate_id"])
    return members


def _table(path: Path, columns: Sequence[str] = COLUMNS) -> pa.Table:
    if not path.is_file():
        raise CandidateError(
            f"no candidates at {path}; is that the folder of a finished `rollout` run?"
        )
    try:
        names = pq.read_schema(path).names
        if tuple(names) == COLUMNS:
            return pq.read_table(path, columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise CandidateError(f"{path} cannot be read as candidates: {error}") from error
    raise CandidateError(
        f"{path} holds no candidates: its columns are {names}, not {list(COLUMNS)}"
    )


class Answered:
    """What engines have answered so far, a file for each batch of prompts.

    Batches are those of a run that nobody interrupts, as numbers may differ in their last digits
    with what stands beside a prompt.

    Args:
        folder: of the files.
        prompt_ids: of all prompts, in their order.
        size: prompts in a batch.
    """

    def __init__(self, folder: Path, prompt_ids: Sequence[str], size: int) -> None:
        self.folder = folder
        self.prompt_ids = prompt_ids
        self.size = size

    def __len__(self) -> int:
        return -(-len(self.prompt_ids) // self.size)

    def places(self, number: int) -> slice:
        """Where the prompts of a batch stand."""
        return slice(number * self.size, (number + 1) * self.size)

    def file(self, number: int) -> Path:
        """Of a batch."""
        return self.folder / f"{number:06d}.parquet"

    def left(self, samples: int) -> list[int]:
        """Batches without an answer, or with one of other prompts or another number of samples."""
        wanted = {
            number: dict.fromkeys(self.prompt_ids[self.places(number)], samples)
            for number in range(len(self))
        }
        return [number for number, counts in wanted.items() if self._counts(number) != counts]

    def _counts(self, number: int) -> dict[str, int]:
        if not self.file(number).is_file():
            return {}
        members = read_members(self.file(number))
        return {prompt_id: len(group) for prompt_id, group in members.items()}

    def candidates(self) -> list[Candidate]:
        """All of them."""
        return [
            candidate
            for number in range(len(self))
            for group in read_candidates(self.file(number)).values()
            for candidate in group
        ]

    def forget(self) -> None:
        """They stand in one file now."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _innermost(kind: pa.DataType) -> pa.DataType:
    return _innermost(kind.value_type) if pa.types.is_list(kind) else kind
