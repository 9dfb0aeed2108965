"""`sft`: train the VLA policy to imitate listeners (paper III-C3, Eq. 7-9)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.cluster import cluster
from actors.learner import LearnerOptions, fit
from pipeline.config import ActionConfig, LearnerConfig, PolicyConfig, SftConfig, SftRecipeConfig
from pipeline.data.store import Corpus
from pipeline.data.vla import examples
from pipeline.recipes.prepare import prepare
from pipeline.rundir import Phase, Run
from policies.motion import Layout
from policies.vla.actions import ActionSpace, ActionTokenizer, fit_bounds
from policies.vla.loading import Checkpoint, build_tiny, load_checkpoint, save_checkpoint, tiny_config
from policies.vla.lora import add_lora
from policies.vla.loss import sft_loss
from policies.vla.pretrained import freeze_streams, load_pretrained
from policies.vla.text import build_text_tokenizer
from policies.vla.training import (
    SFT_SCHEMA,
    ActionLogits,
    batch_rows,
    collate_prompts,
    policy_state,
    rank_share,
    read_table,
    write_table,
)


def run(config: SftRecipeConfig, run: Run) -> None:
    corpus = prepare(config.corpus, run)
    with cluster(config.cluster.address, config.cluster.cpus) as where:
        print(f"  {where}", flush=True)
        train_sft(config, corpus, run)


def train_sft(config: SftRecipeConfig, corpus: Corpus, run: Run) -> Path:
    """The SFT policy's checkpoint: trained here, or the one `sft.checkpoint` names."""
    if config.sft.checkpoint is not None:
        load_checkpoint(config.sft.checkpoint)  # complains now rather than after the rollout
        return config.sft.checkpoint

    def work(phase: Phase) -> dict[str, Any]:
        initial = phase.directory / "initial"
        save_checkpoint(*_parts(initial_policy(config.policy, config.corpus.seconds, corpus, config.seed)), initial)
        policy = load_checkpoint(initial)
        table = phase.directory / "examples.arrow"
        rows = write_table(table, examples(corpus.clips("train"), policy), SFT_SCHEMA)
        task = SftTask(str(initial), str(table), config.sft, config.policy, config.seed)
        phase.say(f"{rows} clips, {policy.actions.space.tokens} action tokens each, "
                  f"{sum(p.numel() for p in policy.model.parameters()) / 1e6:.2f} M parameters, {task.steps} steps")
        result = fit(task, learner_options(config.learner), phase.directory, phase.logger.log, phase.say)
        return {
            "policy": str(phase.directory / "policy"),
            "counts": {"sft_steps": result["steps"]},
            "engines": {"sft_learner": result["engine"]},
            "artifacts": {"sft_policy": str(phase.directory / "policy")},
            "final": result["final"],
        }

    result = run.once("sft", work)
    run.summary["metrics"]["sft"] = result["final"]
    return Path(result["policy"])


@dataclass(frozen=True)
class SftTask:
    """L_SFT over the examples in `table`, from the weights in `initial` (a `learner.Task`)."""

    initial: str
    table: str
    config: SftConfig
    policy: PolicyConfig
    seed: int

    @property
    def steps(self) -> int:
        return self.config.steps

    @property
    def learning_rate(self) -> float:
        return self.config.learning_rate

    @property
    def weight_decay(self) -> float:
        return self.config.weight_decay

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return trainable(Path(self.initial), self.policy)

    @cached_property
    def rows(self) -> Any:
        return read_table(Path(self.table))

    def module(self) -> torch.nn.Module:
        return ActionLogits(self.checkpoint.model)

    def prepare(self, forward: Callable[..., Any], rank: int, world_size: int) -> None:
        pass

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        """Whole clips; before them, in the first `window_share` of the steps, more clips cut to short windows.

        In a window the past is unknown and the prompt must tell; a whole clip is mostly told by its own past
        (the copycat problem of imitation). Both hold about as many tokens.
        """
        model = self.checkpoint.model.config
        steps, first = model.action_steps, 0
        batch_size = self.config.batch_size
        if step < self.config.window_share * self.config.steps:
            steps = min(self.config.window_steps, model.action_steps)
            first = int(np.random.default_rng([self.seed, step]).integers(model.action_steps - steps + 1))
            batch_size *= max(1, (model.prompt_length + model.action_tokens)
                              // (model.prompt_length + steps * model.action_dims))
        order = batch_rows(step, batch_size, len(self.rows), self.seed)
        rows = [self.rows[int(i)] for i in rank_share(order, rank, world_size)]
        prompts, frames = collate_prompts(rows, model)
        window = slice(first * model.action_dims, (first + steps) * model.action_dims)
        return {"prompts": prompts, "frames": frames, "first_step": first,
                "actions": torch.tensor([r["actions"][window] for r in rows])}

    def loss(self, forward: Callable[..., Any], batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits = forward(batch["prompts"], batch["frames"], batch["actions"], batch["first_step"])
        c = self.config
        return sft_loss(logits, batch["actions"], self.checkpoint.actions, c.lambda_exp, c.lambda_pose, c.lambda_reg)

    def save(self, state: dict[str, torch.Tensor], directory: Path) -> None:
        save_checkpoint(*_parts(self.checkpoint), directory, policy_state(state))


def initial_policy(config: PolicyConfig, seconds: float, corpus: Corpus, seed: int) -> Checkpoint:
    """A policy before training: tiny random weights, or the pretrained checkpoints the config names."""
    space = ActionSpace(action_layout(config.action, corpus.layout), config.action.rate, seconds)
    knots = (space.to_knots(clip.listener.subset(space.layout)) for clip in corpus.clips("train"))
    low, high = fit_bounds(knots, tail=100 * config.action.truncation)
    clip = corpus.at("train", 0)
    frames = {} if clip.speaker_frames is None else {
        "frames": len(clip.speaker_frames), "image_size": clip.speaker_frames.shape[1]}
    dtype = getattr(torch, config.dtype)
    if config.size == "pretrained":
        model, tokenizer = load_pretrained(config.llama, config.dino, config.siglip, space, dtype=dtype,
                                           text_tokens=config.text_tokens, **frames)
    else:
        texts: Iterator[str] = (c.text for c in corpus.clips("train") if c.text is not None)
        tokenizer = build_text_tokenizer(texts, text_vocabulary=config.vocabulary - config.action.bins,
                                         action_bins=config.action.bins)
        model = build_tiny(
            tiny_config(tokenizer, space, text_tokens=config.text_tokens, hidden=config.hidden, layers=config.layers,
                        heads=config.heads, tower_hidden=config.vision_hidden, tower_layers=config.vision_layers,
                        action_bins=config.action.bins, **frames),
            seed=seed,
        ).to(dtype)
    actions = ActionTokenizer(space, low, high, model.config.action_token_start, config.action.bins)
    return Checkpoint(model, tokenizer, actions)


def action_layout(config: ActionConfig, corpus: Layout) -> Layout:
    """The groups of an action: expression, head rotation, jaw (paper III-A)."""
    head = config.head if config.head != "auto" else "rot" if "rot" in corpus.names else "neck"
    return corpus.subset({"expr": config.expr_dims, head: 3, "jaw": 3})


def trainable(path: Path, config: PolicyConfig) -> Checkpoint:
    """A checkpoint with adapters added and towers frozen as the config says."""
    checkpoint = load_checkpoint(path)
    if config.lora_rank:
        add_lora(checkpoint.model, config.lora_rank, alpha=2.0 * config.lora_rank)
    if config.freeze_vision:
        freeze_streams(checkpoint.model)
    checkpoint.model.train()
    return checkpoint


def learner_options(config: LearnerConfig) -> LearnerOptions:
    return LearnerOptions(**config.model_dump())


def _parts(checkpoint: Checkpoint) -> tuple[Any, Any, ActionTokenizer]:
    return checkpoint.model, checkpoint.tokenizer, checkpoint.actions
