"""Candidate reactions on disk: what was sampled for each prompt, and the recorded listener among
them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rapport.policies.vla.trajectory import Trajectory

GROUND_TRUTH = "ground_truth"
POLICY = "policy"
SCHEMA = pa.schema(
    {
        "prompt_id": pa.string(),
        "candidate_id": pa.string(),
        "source": pa.string(),
        "tokens": pa.list_(pa.int32()),
        "log_probs": pa.list_(pa.float32()),
        "weight_version": pa.int32(),
        "seed": pa.int64(),
    }
)


class CandidateError(ValueError):
    """A file of candidates is missing, damaged or does not belong here."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One reaction of a group.

    Args:
        candidate_id: neutral: raters who read it cannot tell a sample from the recorded listener.
        source: `POLICY` or `GROUND_TRUTH`.
        tokens: (steps * dims,) action ids.
        log_probs: (steps * dims,) of the sampler; None for the recorded listener, whom nobody
            sampled.
        weight_version, seed: of the sampler; None likewise.
    """

    prompt_id: str
    candidate_id: str
    source: str
    tokens: np.ndarray
    log_probs: np.ndarray | None = None
    weight_version: int | None = None
    seed: int | None = None


def sampled(trajectory: Trajectory) -> Candidate:
    t = trajectory
    return Candidate(
        t.prompt_id,
        _neutral(t.prompt_id, f"{t.weight_version}/{t.seed}/{t.sample}"),
        POLICY,
        t.tokens,
        t.log_probs,
        t.weight_version,
        t.seed,
    )


def recorded(prompt_id: str, tokens: np.ndarray) -> Candidate:
    """The ground truth, through the same tokens as every sample so that nothing else gives it away."""
    return Candidate(prompt_id, _neutral(prompt_id, GROUND_TRUTH), GROUND_TRUTH, tokens)


def write_candidates(path: Path, candidates: Iterable[Candidate]) -> int:
    """Write all candidates, sorted by prompt and id; returns how many. Atomic."""
    rows = sorted(
        (vars(c) for c in candidates), key=lambda row: (row["prompt_id"], row["candidate_id"])
    )
    partial = path.with_name(path.name + ".tmp")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), partial)
    os.replace(partial, path)
    return len(rows)


def read_candidates(path: Path) -> dict[str, list[Candidate]]:
    """Groups by prompt id."""
    if not path.is_file():
        raise CandidateError(
            f"no candidates at {path}; is that the folder of a finished `rollout` run?"
        )
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise CandidateError(f"{path} cannot be read as candidates: {error}") from error
    if table.schema != SCHEMA:
        raise CandidateError(
            f"{path} holds no candidates: its columns are {table.schema.names}, not {SCHEMA.names}"
        )
    groups: dict[str, list[Candidate]] = {}
    for row in table.to_pylist():
        row["tokens"] = np.array(row["tokens"], np.int64)
        row["log_probs"] = (
            None if row["log_probs"] is None else np.array(row["log_probs"], np.float32)
        )
        groups.setdefault(row["prompt_id"], []).append(Candidate(**row))
    return groups


def _neutral(prompt_id: str, what: str) -> str:
    return hashlib.sha256(f"{prompt_id}/{what}".encode()).hexdigest()[:10]
