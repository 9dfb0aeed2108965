"""The VLA as a `Policy`: it sees, hears, reads and acts in chunks of tokens (paper III)."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rapport.policies.clip import Clip
from rapport.policies.motion import Motion
from rapport.policies.perception import Cost
from rapport.policies.policy import Forward, Likelihood, Policy, Reaction, Row, Stage
from rapport.policies.vla.actions import ActionTokenizer
from rapport.policies.vla.divergence import sequence_kl
from rapport.policies.vla.loading import (
    Checkpoint,
    load_checkpoint,
    load_unmerged,
    save_checkpoint,
    serving_state_dict,
)
from rapport.policies.vla.lora import add_lora, arrived_share, merge_lora
from rapport.policies.vla.model import FaceVLA, action_log_probs
from rapport.policies.vla.perception import perception
from rapport.policies.vla.pretrained import (
    freeze_language_model,
    freeze_perception,
    freeze_streams,
)
from rapport.policies.vla.prompt import build_prompt
from rapport.policies.vla.sampling import sample_prompt
from rapport.policies.vla.sequence import seen_in, seen_of
from rapport.policies.vla.settings import VlaConfig
from rapport.policies.vla.text import encode_word
from rapport.policies.vla.training import (
    PROMPT_COLUMNS,
    ActionLogits,
    policy_state,
    prompt_of_row,
    row_of,
)
from rapport.policies.vla.vla_prompt import VlaPrompt

if TYPE_CHECKING:
    from rapport.policies.vla.live import LiveVla

LORA_SCALING = 2.0  # alpha / rank of adapters


@dataclass(frozen=True)
class TokenSampler:
    """How action tokens are sampled: from all bins, without top-p or top-k.

    Args:
        temperature: of sampling, and of the log-probs that are compared with those of engines.
    """

    temperature: float = 1.0


class VlaPolicy(Policy):
    """Action tokens by LLaMA behind encoders of pictures and voice.

    Args:
        model: the policy's network.
        tokenizer: of what the speaker says.
        actions: what action tokens mean.
    """

    kind = "vla"
    reads = ("speaker_frames", "speaker_audio", "words")
    prompt_columns = PROMPT_COLUMNS
    action_type = pa.list_(pa.int32())
    perception_unit = "nats_per_chunk"

    def __init__(
        self, model: FaceVLA, tokenizer: PreTrainedTokenizerBase, actions: ActionTokenizer
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.actions = actions
        self.layout = actions.space.layout
        self.sampler = TokenSampler()
        self._module = ActionLogits(model)
        self._word_ids: dict[str, Sequence[int]] = {}
        self._folder: Path | None = None  # that the weights come from
        self._unmerged: FaceVLA | None = None

    # -- Reacting --

    def encode(self, clip: Clip) -> VlaPrompt:
        """What is seen, heard and said, chunk by chunk; what the clip lacks is marked absent."""
        config = self.model.config
        return build_prompt(
            config, clip, self.word_ids, own=self.pose_of(clip), rest=self.rest_of(clip)
        )

    def word_ids(self, word: str) -> Sequence[int]:
        """Ids of a word of a sentence."""
        if word not in self._word_ids:
            config = self.model.config
            self._word_ids[word] = encode_word(
                self.tokenizer, word, config.action_token_start, action_bins=config.action_bins
            )
        return self._word_ids[word]

    def pose_of(self, clip: Clip) -> np.ndarray:
        """The listener's pose before a clip, (n,) ids; <absent> where it is not known."""
        config = self.model.config
        knot = None
        if clip.past is not None:
            knot = self.actions.space.last_knot(clip.past.listener.subset(self.layout))
        if knot is None:
            return np.full(len(config.pose_dims), config.absent_token_id)
        return self.actions.encode(knot[None], self.rest_of(clip))[config.pose_dims]

    def rest_of(self, clip: Clip) -> np.ndarray:
        """The listener's face at rest, (dims,); where it is not known, that of training."""
        if clip.rest is None:
            return np.asarray(self.actions.rest)
        rest: np.ndarray = clip.rest.subset(self.layout).values[0].astype(np.float64)
        return rest

    def canary(self, clip: Clip) -> VlaPrompt:
        """A prompt whose answer has begun, so that few actions reach beyond a chunk's end."""
        config = self.model.config
        prompt = self.encode(clip)
        if config.chunks == 1:
            return prompt
        begun = self.recorded(clip).actions[: config.chunk_tokens - config.action_dims]
        return replace(prompt, begun=begun)

    def sample(
        self, prompts: Sequence[VlaPrompt], samples: int, seeds: Sequence[int]
    ) -> list[list[Reaction]]:
        """With plain transformers, one prompt at a time; fleets sample with vLLM."""
        groups = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            tokens, log_probs = sample_prompt(
                self.model, prompt, samples=samples, seed=seed, temperature=self.sampler.temperature
            )
            groups.append(
                [
                    Reaction(
                        prompt.prompt_id,
                        k,
                        tokens[k],
                        log_probs=log_probs[k],
                        seed=seed,
                        rest=prompt.rest,
                    )
                    for k in range(samples)
                ]
            )
        return groups

    def to_motion(self, reaction: Reaction) -> Motion:
        """Tokens to knots on the face at rest to a spline at the corpus' frame rate."""
        if reaction.rest is None:
            raise ValueError(
                f"a reaction to {reaction.prompt_id!r} does not say on which face at rest it is "
                "made: `rest_of` its clip does"
            )
        return self.actions.to_motion(reaction.actions, reaction.rest)

    def live(self) -> LiveVla:
        """See `rapport.policies.vla.live`."""
        from rapport.policies.vla.live import LiveVla  # which imports this module

        return LiveVla(self)

    def recorded(self, clip: Clip) -> Reaction:
        """The recorded listener as action tokens, (steps * dims,)."""
        rest = self.rest_of(clip)
        tokens = self.actions.to_tokens(clip.listener.subset(self.layout), rest)
        return Reaction(clip.clip_id, 0, tokens, rest=rest)

    def seeds(self, stage: Stage, seed: int, index: int, prompt_ids: Sequence[str]) -> list[int]:
        """A function of the stage's root and the prompt's id."""
        root = {"candidates": seed + 1000 * index, "held out": seed + 1}.get(stage)
        if root is None:
            root = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
        return [prompt_seed(root, prompt_id) for prompt_id in prompt_ids]

    def perception(
        self, prompts: Sequence[VlaPrompt], reactions: Sequence[Reaction], others: np.ndarray
    ) -> dict[str, Cost]:
        """See `rapport.policies.vla.perception`."""
        actions = np.stack([reaction.actions for reaction in reactions])
        return perception(self.model, prompts, actions, others)

    # -- Learning --

    def prepare_training(self, config: VlaConfig, part: str = "all") -> None:
        """Add adapters and freeze what stays as it is.

        Args:
            config: with `lora_rank` and `freeze_vision`.
            part: "inputs" = vision, projector and embeddings only; "all".
        """
        if config.lora_rank:
            add_lora(self.model, config.lora_rank, alpha=LORA_SCALING * config.lora_rank)
        if config.freeze_vision:
            freeze_streams(self.model)
        if self.model.config.perception_trained:
            freeze_perception(self.model)
        if part == "inputs":
            freeze_language_model(self.model)
        self.model.train()

    def checkpoint_gradients(self) -> None:
        """Of LLaMA's blocks and of those towers that learn."""
        self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def module(self) -> nn.Module:
        """The network with its action logits as forward pass."""
        return self._module

    def prompt_row(self, prompt: VlaPrompt) -> dict[str, Any]:
        """All that is shown, see `PROMPT_COLUMNS`."""
        return row_of(prompt)

    def prompt_of(self, row: Row) -> VlaPrompt:
        """The prompt of a row."""
        return prompt_of_row(row, self.model.config)

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The tensors of `seen_of`."""
        config = self.model.config
        return seen_of(config, [prompt_of_row(row, config) for row in rows])

    def collate_actions(self, rows: Sequence[Row], names: Sequence[str]) -> Tensor:
        """Token ids (batch, names, tokens)."""
        return torch.tensor([[row[name] for name in names] for row in rows])

    def collate_group(self, reactions: Sequence[Reaction]) -> dict[str, Tensor]:
        """Token ids (1, samples, tokens)."""
        tokens = np.stack([reaction.actions for reaction in reactions]).astype(np.int64)
        return {"actions": torch.from_numpy(tokens)[None]}

    def counted(self, value: Any, steps: int | None) -> Any:
        """The tokens of the first `steps` action steps of a reaction in a table; None = all."""
        return value if steps is None else value[: steps * self.model.config.action_dims]

    @property
    def action_digest(self) -> str:
        """Of the action tokenizer."""
        return self.actions.digest

    def log_likelihood(self, forward: Forward, batch: Mapping[str, Tensor]) -> Tensor:
        """Log-probs over the bins, summed over the tokens given, (batch, reactions) (Eq. 11)."""
        return self._log_probs(forward, batch, 1.0).sum(-1)

    def likelihood(self, forward: Forward, batch: Mapping[str, Tensor]) -> Likelihood:
        """Log-probs of every token at the temperature of the rollouts, (samples, tokens)."""
        log_probs = self._log_probs(forward, batch, self.sampler.temperature)[0]
        return Likelihood(log_probs, log_probs)

    def divergence(
        self, reference: VlaPolicy, prompt: VlaPrompt, reactions: Sequence[Reaction]
    ) -> float:
        """KL(this policy || reference) of whole reactions to a prompt, nats, see `sequence_kl`.

        Args:
            reference: the policy that this one is compared with.
            prompt: what was answered.
            reactions: what this policy sampled at temperature 1.
        """
        tokens = np.stack([reaction.actions for reaction in reactions])
        return sequence_kl(self.model, reference.model, prompt, tokens=tokens)

    def of_actions(self, frames: np.ndarray) -> Tensor:
        """(..., tokens): of the frame at a token's knot."""
        space = self.actions.space
        at_knots = ((np.arange(space.steps) + 0.5) * space.frames / space.steps).astype(int)
        values = np.asarray(frames, np.float64)[..., at_knots]
        return torch.from_numpy(np.repeat(values, space.dims, axis=-1))

    def _log_probs(
        self, forward: Forward, batch: Mapping[str, Tensor], temperature: float
    ) -> Tensor:
        actions = batch["actions"]
        logits = forward(seen_in(batch), actions)
        return action_log_probs(
            logits, actions, self.model.config.action_token_start, temperature=temperature
        )

    # -- Files --

    def save(self, path: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """A folder that vLLM and `load` read; adapters are merged."""
        weights = None if state is None else policy_state(dict(state))
        save_checkpoint(
            self.model,
            self.tokenizer,
            self.actions,
            path=path,
            state_dict=weights,
            base=self._folder,
        )

    def rounding(self, state: Mapping[str, Tensor]) -> dict[str, float]:
        """`adapters/arrived`: the share of what adapters learnt that merged weights hold."""
        if self.model.lora_scaling is None:
            return {}
        share = arrived_share(policy_state(dict(state)), self.model.lora_scaling)
        return {"adapters/arrived": share}

    @classmethod
    def load(cls, path: Path) -> Self:
        """The policy in a folder."""
        policy = cls.of(load_checkpoint(path))
        policy._folder = Path(path)
        return policy

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Self:
        """The policy of a loaded checkpoint."""
        return cls(checkpoint.model, checkpoint.tokenizer, checkpoint.actions)

    def weights(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """As vLLM takes them: adapters merged, names those of a plain `FaceVLA`."""
        if state is None:
            return serving_state_dict(self.model)
        # By names alone: the learner that `state` comes from may have adapters where this has none.
        return merge_lora(policy_state(dict(state)), LORA_SCALING)

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Take over served weights."""
        self.model.load_state_dict(state)
        self._folder = None

    def load_learnt(self, state: Mapping[str, Tensor]) -> None:
        """Take over a learner's weights with its adapters, which are put on here first."""
        weights = policy_state(dict(state))
        ranks = [value.shape[0] for name, value in weights.items() if ".lora_A." in name]
        if ranks and self.model.lora_scaling is None:
            add_lora(self.model, ranks[0], alpha=LORA_SCALING * ranks[0])
        self.load_weights(weights)

    def log_prob_gaps(self, prompt: VlaPrompt, reaction: Reaction) -> np.ndarray:
        """|difference| of token log-probs of an engine from a plain forward pass, (tokens,), nats.

        Where the weights were learnt as adapters, the forward pass has these beside them, as the
        learner had: what their sum lost in rounding is seen.

        Args:
            prompt: what was asked.
            reaction: what an engine answered, with its log-probs; it may be a beginning only.
        """
        begun = np.zeros(0, np.int64) if prompt.begun is None else prompt.begun
        tokens = np.concatenate([begun, reaction.actions.astype(np.int64)])
        model = self._as_learnt()
        with torch.inference_mode():
            expected = model.action_log_probs(
                seen_of(model.config, [prompt]),
                torch.from_numpy(tokens)[None],
                temperature=self.sampler.temperature,
            )[0, len(begun) :]
        gaps: np.ndarray = np.abs(expected.float().numpy() - reaction.log_probs)
        return gaps

    def _as_learnt(self) -> FaceVLA:
        if self._folder is None:
            return self.model
        if self._unmerged is None:
            self._unmerged = load_unmerged(self._folder, self.model) or self.model
        return self._unmerged


def prompt_seed(seed: int, prompt_id: str) -> int:
    """The same for a prompt whichever engine, batch or order it is sampled in."""
    return zlib.crc32(f"{seed}/{prompt_id}".encode())
