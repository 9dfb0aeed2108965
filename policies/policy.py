"""What an algorithm may ask of a policy, and what travels between them.

A policy is one folder in `policies/` with one class of `Policy`. DPO, GDPO, sampling, rating,
judging, sweeps and the report ask for nothing else, so a new policy changes none of them.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from rapport.policies.clip import Clip
from rapport.policies.live import Listener, LiveError
from rapport.policies.motion import Layout, Motion
from rapport.policies.perception import Cost

POLICY_FILE = "policy.json"  # which class a checkpoint folder is of
BUILT_IN = {
    "vla": "rapport.policies.vla.policy:VlaPolicy",
    "flow": "rapport.policies.flow.policy:FlowPolicy",
    "reactface": "rapport.policies.reactface.policy:ReactFacePolicy",
}
Row = Mapping[str, Any]  # of a training table
Stage = Literal["candidates", "iteration", "held out"]
Forward = Callable[..., Any]  # the module's forward pass, through whatever shards it


class CheckpointError(RuntimeError):
    """A checkpoint folder is incomplete, damaged or of another model."""


class Prompt(Protocol):
    """What a policy is shown of a clip, ready to be answered.

    Each policy has its own kind, and is only asked about prompts that it made itself: where the
    types below say `Any`, that kind is meant.
    """

    @property
    def prompt_id(self) -> str:
        """The clip it was made from, or the row of a table."""


@dataclass(frozen=True, eq=False)
class Reaction:
    """One reaction to a prompt, with everything needed to trust it later.

    Args:
        prompt_id: which prompt.
        sample: which of its K reactions.
        actions: in the policy's own terms: action tokens, latents, a path of denoise steps.
        log_probs: of the actions under the weights that sampled them, nats; None = not known.
        weight_version: version of the weights that sampled it, the last of them.
        seed: of the sampler.
        motion: decoded where it was sampled, because that is done in batches; None = not yet.
        failed: whether the sampler ran into numbers that are none.
        versions: of the weights of each chunk, where it was sampled chunk by chunk.
        rest: (dims,) the face at rest that its actions are told from, where they are told so.
    """

    prompt_id: str
    sample: int
    actions: np.ndarray
    log_probs: np.ndarray | None = None
    weight_version: int = 0
    seed: int = 0
    motion: Motion | None = None
    failed: bool = False
    versions: tuple[int, ...] = ()
    rest: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Likelihood:
    """How likely actions are under a policy.

    Args:
        log_probs: (samples, ...actions), nats.
        density: what the KL to another policy is computed from: log-probs, means of Gaussians.
    """

    log_probs: Tensor
    density: Tensor


class Policy(ABC):
    """A listener that can be asked, sampled and aligned.

    What is given here suits a policy whose actions are a vector of numbers; see `policies/vla`
    and `policies/flow` for others.
    """

    kind: ClassVar[str]  # "vla", "flow", "reactface", or "module:Class" of a policy of your own
    supervised: ClassVar[str] = "SFT"  # its name in tables before alignment
    aligned: ClassVar[Mapping[str, str]] = {"dpo": "SFT + DPO", "gdpo": "GDPO"}  # ... and after
    prompt_columns: ClassVar[Mapping[str, pa.DataType]]  # of a prompt in a training table
    action_type: ClassVar[pa.DataType] = pa.list_(pa.float32())  # of a reaction in a table
    likelihood_draws: ClassVar[bool] = False  # whether `log_likelihood` is of drawn noise
    seed_per_prompt: ClassVar[bool] = True  # whether one prompt, asked twice, is answered alike
    # Modalities of a speaker that `encode` reads, names of `Clip`.
    reads: tuple[str, ...] = ("speaker", "speaker_frames", "speaker_audio", "words")
    layout: Layout
    sampler: Any = None  # how it samples, where there are several ways; the policy's own kind
    takes_text: ClassVar[bool] = False  # whether `told` knows what to do with a text
    tells_recorded: ClassVar[bool] = True  # whether `recorded` can tell what a listener did
    perception_unit: ClassVar[str] = ""  # of `perception`
    forget_share: float = 0.0  # of draws of `log_likelihood` that do not know the own past
    draw_count: int = 1  # draws of `log_likelihood` for each reaction, where it is of drawn noise

    # -- Reacting --

    @abstractmethod
    def encode(self, clip: Clip) -> Prompt:
        """What the policy sees and hears of a clip. What the clip lacks is absent, never zeros."""

    @abstractmethod
    def sample(
        self, prompts: Sequence[Any], samples: int, seeds: Sequence[int]
    ) -> list[list[Reaction]]:
        """`samples` reactions to each prompt; a prompt's depend on its seed, not on the batch."""

    @abstractmethod
    def to_motion(self, reaction: Reaction) -> Motion:
        """How the face moves, in `layout`."""

    def to_motions(self, reactions: Sequence[Reaction]) -> list[Motion]:
        """The same of many: a policy with a decoder runs it in batches."""
        return [self.to_motion(reaction) for reaction in reactions]

    @abstractmethod
    def recorded(self, clip: Clip) -> Reaction:
        """The recorded listener in the policy's own terms, to stand among its samples."""

    def live(self) -> Listener:
        """The same policy, listening as long as somebody talks.

        Raises:
            LiveError: it has no such form, or not with this sampler.
        """
        raise LiveError(
            f"a policy of kind {self.kind} has no live form: {type(self).__name__}.live() must "
            "return a `rapport.policies.live.Listener`"
        )

    def told(self, text: str) -> Prompt:
        """The prompt of a live session that is told in advance what to be like.

        Raises:
            LiveError: the policy takes no text.
        """
        raise LiveError(f"a policy of kind {self.kind} takes no text")

    def rest_of(self, clip: Clip) -> np.ndarray | None:
        """The face at rest that reactions to a clip are told from; None = they are not."""
        return None

    def perception(
        self, prompts: Sequence[Any], reactions: Sequence[Reaction], others: np.ndarray
    ) -> Mapping[str, Cost]:
        """What each stream of a speaker is worth to the policy; {} = it cannot say.

        Args:
            prompts: of clips.
            reactions: what recorded listeners did.
            others: (clips, n) numbers of clips of other conversations.

        Returns:
            `all`, and each stream alone that some clip has, in `perception_unit`.
        """
        return {}

    def seeds(self, stage: Stage, seed: int, index: int, prompt_ids: Sequence[str]) -> list[int]:
        """A seed for each prompt, the same whichever engine, batch or order it is sampled in.

        Args:
            stage: what is sampled.
            seed: the run's.
            index: number of the round or iteration.
            prompt_ids: whose seeds are asked for.
        """
        return [zlib.crc32(f"{stage}/{seed}/{index}/{name}".encode()) for name in prompt_ids]

    def candidate_id(self, reaction: Reaction) -> str:
        """Neutral: who reads it cannot tell what was sampled from what was recorded."""
        return neutral_id(
            reaction.prompt_id, f"{reaction.weight_version}/{reaction.seed}/{reaction.sample}"
        )

    def recorded_id(self, prompt_id: str) -> str:
        """The same for the recorded listener."""
        return neutral_id(prompt_id, "ground_truth")

    def log_prob_gaps(self, prompt: Any, reaction: Reaction) -> np.ndarray:
        """|difference|, nats, of an engine's log-probs from those of these weights, by action.

        Only asked where the fleet's engine is another program than the policy's own `sample`.
        """
        raise NotImplementedError(f"{type(self).__name__} is sampled by its own code only")

    # -- Learning --

    @abstractmethod
    def module(self) -> nn.Module:
        """The module to train, the same one at every call; `likelihood` runs its forward pass."""

    def prepare_training(self, config: Any, part: str = "all") -> None:
        """Make the weights that shall learn ready to.

        Args:
            config: the policy's own section, e.g. with adapters; None = it has none.
            part: which weights learn, a word of the policy's own; "all".
        """
        self.module().train()

    def checkpoint_gradients(self) -> None:
        """Have the module keep inputs of its blocks only, and compute the rest once more."""
        raise NotImplementedError(
            f"{type(self).__name__} has no blocks to compute twice; leave "
            "learner.gradient_checkpointing=false"
        )

    @abstractmethod
    def prompt_row(self, prompt: Any) -> dict[str, Any]:
        """The prompt as `prompt_columns` of a training table."""

    @abstractmethod
    def prompt_of(self, row: Row) -> Prompt:
        """The prompt of a row of a training table."""

    @abstractmethod
    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The prompts of some rows as a batch of tensors."""

    def action_log_probs(self, forward: Forward, batch: Mapping[str, Tensor]) -> Tensor:
        """Log pi of every action, (prompts, reactions, ...actions), nats.

        Args:
            forward: the module's forward pass.
            batch: of `collate` and `draws`, and `actions`: of `collate_actions`, or of
                `collate_group` where there is one prompt.
        """
        raise NotImplementedError(f"{type(self).__name__} has no likelihood of single actions")

    def log_likelihood(self, forward: Forward, batch: Mapping[str, Tensor]) -> Tensor:
        """Log-likelihood of whole reactions, (prompts, reactions), nats or up to a constant."""
        return self.action_log_probs(forward, batch).sum(-1)

    def likelihood(self, forward: Forward, batch: Mapping[str, Tensor]) -> Likelihood:
        """How likely each action of a group is: one prompt, (samples, ...actions)."""
        log_probs = self.action_log_probs(forward, batch)[0]
        return Likelihood(log_probs, log_probs)

    def kl(self, policy: Likelihood, reference: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """KL to the reference, action by action, like `policy.log_probs`.

        By default the estimate from samples that is never negative and without bias on policy
        (Schulman 2020).

        Args:
            policy: what `likelihood` gave.
            reference: the `density` that `likelihood` gives of the same group under the reference.
            batch: of the group.
        """
        apart = reference - policy.density
        return apart.exp() - apart - 1

    def draws(self, prompts: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Noise of `log_likelihood` for a whole batch, the same however it is shared."""
        return {}

    def collate_actions(self, rows: Sequence[Row], names: Sequence[str]) -> Tensor:
        """Reactions in the columns `names`, (rows, names, ...actions)."""
        actions = [[row[name] for name in names] for row in rows]
        return torch.from_numpy(np.array(actions, np.float32))

    def collate_group(self, reactions: Sequence[Reaction]) -> dict[str, Tensor]:
        """What a batch has of the reactions to its one prompt: `actions` (1, samples, ...)."""
        actions = np.stack([reaction.actions for reaction in reactions])
        return {"actions": torch.from_numpy(actions)[None]}

    def counted(self, value: Any, steps: int | None) -> Any:
        """The first `steps` action steps of a reaction in a table; None = all of it."""
        return value if steps is None else value[:steps]

    def pack(self, actions: np.ndarray) -> Any:
        """Actions as a value of `action_type`."""
        return np.asarray(actions).tolist()

    def of_actions(self, frames: np.ndarray) -> Tensor:
        """Numbers of frames, (..., frames), as numbers of actions.

        They fit a sample's `log_probs` after (...), or broadcast to it. A mask becomes the share of
        an action's frames in it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no likelihood of single actions")

    @property
    def action_digest(self) -> str:
        """What gives actions their meaning beside the weights (a tokenizer); "" = nothing does."""
        return ""

    # -- Files --

    @classmethod
    def untrained(cls, layout: Layout, clips: Iterable[Clip], seed: int) -> Self:
        """A policy before imitation. `vla` and `flow` have steps of their own for this.

        Args:
            layout: of the motion to make.
            clips: of training.
            seed: of the initial weights.
        """
        raise NotImplementedError(f"{cls.__name__}.untrained: how does it look before training?")

    @abstractmethod
    def save(self, path: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write a folder that `load` reads; it appears whole or not at all.

        Args:
            path: of the folder.
            state: the full weights of `module()`, where it holds only a shard of them (ZeRO-3).
        """

    @classmethod
    @abstractmethod
    def load(cls, path: Path) -> Self:
        """The policy in a folder. Raises `CheckpointError` that says what is wrong with it."""

    def to(self, device: torch.device | str) -> Self:
        """Move what is computed with to a device."""
        self.module().to(device)
        return self

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `weights` of another one gave."""
        self.module().load_state_dict(state)

    def load_learnt(self, state: Mapping[str, Tensor]) -> None:
        """Take over a learner's weights: those of its `module()`."""
        self.load_weights(self.weights(state))

    def rounding(self, state: Mapping[str, Tensor]) -> dict[str, float]:
        """What `save` loses of a learner's weights, as metrics; {} = nothing."""
        return {}

    def weights(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The weights as engines take them.

        Args:
            state: of `module()`, in place of the present ones.
        """
        present = self.module().state_dict() if state is None else state
        return {name: value.detach().cpu().contiguous() for name, value in present.items()}


def neutral_id(prompt_id: str, what: str) -> str:
    """Ten hexadecimal digits that say nothing about `what`."""
    return hashlib.sha256(f"{prompt_id}/{what}".encode()).hexdigest()[:10]


def weight_digest(weights: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes; does not depend on the order of the entries."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def policy_class(kind: str) -> type[Policy]:
    """The class of "vla", "flow", "reactface" or "module:Class".

    Raises:
        CheckpointError: there is none.
    """
    module, colon, name = BUILT_IN.get(kind, kind).partition(":")
    if not colon:
        raise CheckpointError(
            f"policy={kind} is none of {', '.join(BUILT_IN)}, nor module:Class of your own"
        )
    try:
        found: type[Policy] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"policy={kind} cannot be imported: {error}") from error
    return found


def write_kind(folder: Path, kind: str) -> None:
    """Say in a checkpoint folder whose it is."""
    (folder / POLICY_FILE).write_text(json.dumps({"policy": kind}) + "\n")


def load_policy(path: str | Path) -> Policy:
    """The policy that a checkpoint folder holds, whatever its kind.

    Raises:
        CheckpointError: the folder is no complete checkpoint.
    """
    folder = Path(path)
    file = folder / POLICY_FILE
    if not file.is_file() and (folder / "action_space.json").is_file():
        return policy_class("vla").load(folder)  # written before there were several policies
    if not file.is_file():
        raise CheckpointError(
            f"{folder} is no policy: it has no {POLICY_FILE}; name the folder of a policy that "
            "a recipe wrote, or save it again"
        )
    try:
        kind = json.loads(file.read_text())["policy"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} does not say which policy this is: {error!r}") from error
    return policy_class(kind).load(folder)
