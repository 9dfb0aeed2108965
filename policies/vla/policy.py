"""The VLA as a `Policy`: prompts of frames and words, reactions of action tokens (paper III)."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rapport.policies.clip import Clip
from rapport.policies.motion import Motion
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
from rapport.policies.vla.pretrained import freeze_language_model, freeze_streams
from rapport.policies.vla.prompt import build_prompt, select_frames
from rapport.policies.vla.settings import VlaConfig
from rapport.policies.vla.text import encode_text
from rapport.policies.vla.training import (
    PROMPT_COLUMNS,
    ActionLogits,
    collate_prompts,
    policy_state,
)
from rapport.policies.vla.vla_prompt import VlaPrompt

LORA_SCALING = 2.0  # alpha / rank of adapters


@dataclass(frozen=True)
class TokenSampler:
    """How action tokens are sampled: from all bins, without top-p or top-k.

    Args:
        temperature: of sampling, and of the log-probs that are compared with those of engines.
    """

    temperature: float = 1.0


class VlaPolicy(Policy):
    """Action tokens by LLaMA behind two visual streams.

    Args:
        model: the policy's network.
        tokenizer: of what the speaker says.
        actions: what action tokens mean.
    """

    kind = "vla"
    reads = ("speaker_frames", "speaker_audio", "words")
    prompt_columns = PROMPT_COLUMNS
    action_type = pa.list_(pa.int32())

    def __init__(
        self, model: FaceVLA, tokenizer: PreTrainedTokenizerBase, actions: ActionTokenizer
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.actions = actions
        self.layout = actions.space.layout
        self.sampler = TokenSampler()
        self._module = ActionLogits(model)
        self._folder: Path | None = None  # that the weights come from
        self._unmerged: FaceVLA | None = None

    # -- Reacting --

    def encode(self, clip: Clip) -> VlaPrompt:
        """Frames and words of the speaker; modalities the clip lacks are marked absent."""
        config = self.model.config
        text_ids = None
        if clip.text is not None:
            text_ids = encode_text(
                self.tokenizer, clip.text, config.action_token_start, action_bins=config.action_bins
            )
        frames = None
        if clip.speaker_frames is not None:
            frames = select_frames(clip.speaker_frames, config.frames, config.image_size)
        ids = build_prompt(config, text_ids, frames is not None)
        return VlaPrompt(clip.clip_id, ids, frames)

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
                    Reaction(prompt.prompt_id, k, tokens[k], log_probs=log_probs[k], seed=seed)
                    for k in range(samples)
                ]
            )
        return groups

    def to_motion(self, reaction: Reaction) -> Motion:
        """Tokens to knots to a spline at the corpus' frame rate."""
        return self.actions.to_motion(reaction.actions)

    def actions_of(self, motion: Motion) -> np.ndarray:
        """A recorded motion as action tokens, (steps * dims,)."""
        return self.actions.to_tokens(motion.subset(self.layout))

    def seeds(self, stage: Stage, seed: int, index: int, prompt_ids: Sequence[str]) -> list[int]:
        """A function of the stage's root and the prompt's id."""
        root = {"candidates": seed + 1000 * index, "held out": seed + 1}.get(stage)
        if root is None:
            root = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
        return [prompt_seed(root, prompt_id) for prompt_id in prompt_ids]

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
        """Ids and frames of the prompt."""
        frames = None
        if prompt.frames is not None:
            frames = np.ascontiguousarray(prompt.frames).tobytes()
        return {"prompt_id": prompt.prompt_id, "prompt": prompt.ids.tolist(), "frames": frames}

    def prompt_of(self, row: Row) -> VlaPrompt:
        """The prompt of a row."""
        config = self.model.config
        frames = None
        if row["frames"] is not None:
            shape = (config.frames, config.image_size, config.image_size, 3)
            frames = np.frombuffer(row["frames"], np.uint8).reshape(shape).copy()
        return VlaPrompt(row["prompt_id"], np.array(row["prompt"]), frames)

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """`prompts` (batch, prompt_length) and `frames` (batch, frames, size, size, 3) uint8."""
        prompts, frames = collate_prompts(rows, self.model.config)
        return {"prompts": prompts, "frames": frames}

    def collate_actions(self, rows: Sequence[Row], names: Sequence[str]) -> Tensor:
        """Token ids (batch, names, tokens)."""
        return torch.tensor([[row[name] for name in names] for row in rows])

    def collate_group(self, reactions: Sequence[Reaction]) -> Tensor:
        """Token ids (1, samples, tokens)."""
        tokens = np.stack([reaction.actions for reaction in reactions]).astype(np.int64)
        return torch.from_numpy(tokens)[None]

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
        """(tokens,) bool: what the frame at a token's knot is."""
        space = self.actions.space
        at_knots = np.round(np.linspace(0, space.frames - 1, space.steps)).astype(int)
        return torch.from_numpy(np.repeat(np.asarray(frames)[at_knots], space.dims))

    def _log_probs(
        self, forward: Forward, batch: Mapping[str, Tensor], temperature: float
    ) -> Tensor:
        actions = batch["actions"]
        logits = forward(batch["prompts"], batch["frames"], actions)
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
        frames = None if prompt.frames is None else torch.as_tensor(prompt.frames)[None]
        tokens = torch.as_tensor(reaction.actions.astype(np.int64))
        with torch.inference_mode():
            expected = self._as_learnt().action_log_probs(
                torch.as_tensor(prompt.ids)[None],
                frames,
                tokens[None],
                temperature=self.sampler.temperature,
            )[0]
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


def sample_prompt(
    model: FaceVLA,
    prompt: VlaPrompt,
    *,
    samples: int,
    seed: int,
    temperature: float,
    tokens: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Reactions to one prompt by transformers: token ids and log-probs, each (samples, tokens).

    Args:
        model: the policy's network.
        prompt: what to answer.
        samples: how many.
        seed: of the sampler.
        temperature: of sampling.
        tokens: how many tokens of a reaction; None = all.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    ids = torch.as_tensor(prompt.ids, device=device).expand(samples, -1)
    frames = None
    if prompt.frames is not None:
        frames = torch.as_tensor(prompt.frames, device=device).expand(samples, *prompt.frames.shape)
    sampled, log_probs = model.sample_actions(
        ids, frames, temperature, generator=generator, tokens=tokens
    )
    return sampled.cpu().numpy(), log_probs.float().cpu().numpy()
