"""Held-out reactions on disk, so that they can be judged again without the policy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rapport.files import atomic
from rapport.pipeline.data.store import Corpus
from rapport.policies.motion import Layout, LayoutError, Motion
from rapport.policies.policy import Reaction

REACTIONS = "reactions.parquet"
GROUND_TRUTH = "ground truth"  # the recorded listeners, as a method among the others
SCHEMA = pa.schema(
    {
        "method": pa.string(),
        "prompt_id": pa.string(),
        "sample": pa.int32(),
        "frames": pa.int32(),
        "motion": pa.list_(pa.float32()),  # frame by frame
        "seed": pa.int64(),
        "weight_version": pa.int32(),
        "actions": pa.list_(pa.int32()),  # tokens; null where actions are as large as motion
    }
)
_ABOUT = b"rapport.reactions"


class ReactionError(ValueError):
    """A file of reactions is missing, damaged or of another corpus; says what and the way out."""


@dataclass(frozen=True, eq=False)
class KeptReaction:
    """One answer of a method.

    Args:
        sample: which of its answers to the prompt.
        motion: (time, dim), all that was answered, in the method's layout.
        seed: of the sampler; None of a recorded listener.
        weight_version: of the sampler; None likewise.
        actions: tokens; None where the policy's actions are none.
    """

    sample: int
    motion: Motion
    seed: int | None = None
    weight_version: int | None = None
    actions: np.ndarray | None = None

    @classmethod
    def of(cls, reaction: Reaction, motion: Motion) -> Self:
        """What a policy answered."""
        actions = np.asarray(reaction.actions)
        tokens = actions if actions.ndim == 1 and np.issubdtype(actions.dtype, np.integer) else None
        return cls(
            reaction.sample,
            motion,
            seed=reaction.seed,
            weight_version=reaction.weight_version,
            actions=tokens,
        )


Groups = dict[str, list[KeptReaction]]  # prompt id -> answers, by sample


@dataclass(frozen=True, eq=False)
class KeptReactions:
    """The answers of several methods to the same prompts of one corpus.

    Args:
        corpus: its digest.
        split: of the prompts.
        compared: groups of the motion that methods are compared in.
        methods: by name.
    """

    corpus: str
    split: str
    compared: Layout
    methods: dict[str, Groups] = field(default_factory=dict)

    @property
    def prompt_ids(self) -> list[str]:
        """Prompts that some method answers, in the order of the file."""
        return list(dict.fromkeys(i for groups in self.methods.values() for i in groups))

    def answers(self, method: str) -> dict[str, list[Motion]]:
        """Prompt id -> motions of a method."""
        groups = self.methods[method]
        return {i: [reaction.motion for reaction in group] for i, group in groups.items()}

    def write(self, path: Path) -> None:
        """One Parquet file; it appears whole or not at all."""
        layouts = {}
        rows: list[dict[str, Any]] = []
        for method, groups in self.methods.items():
            for prompt_id, group in groups.items():
                for kept in group:
                    layouts[method] = kept.motion.layout.to_json()
                    rows.append({"method": method, "prompt_id": prompt_id} | _row(kept))
        about = {
            "corpus": self.corpus,
            "split": self.split,
            "compared": self.compared.to_json(),
            "layouts": layouts,
        }
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        table = table.replace_schema_metadata({_ABOUT: json.dumps(about).encode()})
        with atomic(path) as partial:
            # zstd has no checksum: a flipped byte would come back as another motion.
            pq.write_table(table, partial, compression="zstd", write_page_checksum=True)

    def require_corpus(self, corpus: Corpus, where: str) -> None:
        """Raise `ReactionError` unless the prompts are clips of this corpus."""
        if self.corpus != corpus.digest:
            raise ReactionError(
                f"{where} answers clips of another corpus (digest {self.corpus[:12]}) than "
                f"{corpus.path} (digest {corpus.digest[:12]}): name that one, "
                "corpus.kind=parquet corpus.root=FOLDER, or the run directory instead of the file"
            )
        known = set(corpus.clip_ids(self.split))
        unknown = [prompt_id for prompt_id in self.prompt_ids if prompt_id not in known]
        if unknown:
            raise ReactionError(
                f"{where}: {len(unknown)} prompts, first {unknown[0]!r}, are not in the "
                f"{self.split} split of {corpus.path}"
            )


def read_reactions(path: Path) -> KeptReactions:
    """The reactions in a file.

    Raises:
        ReactionError: it is missing, damaged or something else.
    """
    if not path.is_file():
        raise ReactionError(
            f"no reactions at {path}; recipes that judge a policy write {REACTIONS}"
        )
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ReactionError(f"{path} cannot be read as reactions: {error}") from error
    about = json.loads((table.schema.metadata or {}).get(_ABOUT, b"null"))
    if about is None or not table.schema.remove_metadata().equals(SCHEMA):
        raise ReactionError(
            f"{path} holds no reactions: its columns are {', '.join(table.column_names)}"
        )
    layouts = {method: Layout.from_json(text) for method, text in about["layouts"].items()}
    methods: dict[str, Groups] = {method: {} for method in layouts}
    motions = table["motion"].combine_chunks()
    columns = [name for name in SCHEMA.names if name != "motion"]
    for place, row in enumerate(table.select(columns).to_pylist()):
        method, prompt_id, frames = row.pop("method"), row.pop("prompt_id"), row.pop("frames")
        values = motions[place].values.to_numpy(zero_copy_only=False).reshape(frames, -1)
        try:
            motion = Motion(values.copy(), layouts[method])
        except LayoutError as error:
            raise ReactionError(f"{path}, {method}, prompt {prompt_id!r}: {error}") from error
        actions = row.pop("actions")
        kept = KeptReaction(
            motion=motion,
            actions=None if actions is None else np.array(actions, np.int64),
            **row,
        )
        methods[method].setdefault(prompt_id, []).append(kept)
    return KeptReactions(
        about["corpus"], about["split"], Layout.from_json(about["compared"]), methods
    )


def recorded(motions: Mapping[str, Motion]) -> Groups:
    """Recorded listeners as a method's answers, one to each prompt."""
    return {prompt_id: [KeptReaction(0, motion)] for prompt_id, motion in motions.items()}


def answered(
    groups: Mapping[str, Sequence[Reaction]], motions: Mapping[str, list[Motion]]
) -> Groups:
    """What a policy answered, prompt by prompt."""
    return {
        prompt_id: [
            KeptReaction.of(reaction, motion)
            for reaction, motion in zip(groups[prompt_id], motions[prompt_id], strict=True)
        ]
        for prompt_id in motions
    }


def _row(kept: KeptReaction) -> dict[str, Any]:
    values = np.asarray(kept.motion.values, np.float32)
    return {
        "sample": kept.sample,
        "frames": len(values),
        "motion": values.ravel().tolist(),
        "seed": kept.seed,
        "weight_version": kept.weight_version,
        "actions": None if kept.actions is None else kept.actions.tolist(),
    }
