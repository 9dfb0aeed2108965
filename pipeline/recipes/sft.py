"""`sft`: train the VLA policy to imitate listeners (paper III-C3, Eq. 7-9)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rapport.actors.cluster import cluster
from rapport.actors.learner import LearnerOptions, Milestones, Task, fit
from rapport.pipeline.config import ActionConfig, LearnerConfig, PolicyConfig, SftRecipeConfig
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.data.vla import examples
from rapport.pipeline.objectives.sft import SftTask
from rapport.pipeline.recipes.prepare import prepare
from rapport.pipeline.rundir import Phase, Run
from rapport.policies.motion import Layout
from rapport.policies.tables import write_table
from rapport.policies.vla.actions import ActionSpace, ActionTokenizer, fit_bounds
from rapport.policies.vla.loading import build_tiny, load_checkpoint, save_checkpoint, tiny_config
from rapport.policies.vla.model import FaceVLA
from rapport.policies.vla.openvla import load_openvla, read_weights
from rapport.policies.vla.pretrained import load_pretrained
from rapport.policies.vla.text import build_text_tokenizer
from rapport.policies.vla.training import SFT_SCHEMA


def run(config: SftRecipeConfig, run: Run) -> None:
    corpus = prepare(config.corpus, run)
    with cluster(config.cluster.address, config.cluster.cpus) as where:
        print(f"  {where}", flush=True)
        train_sft(config, corpus, run)


def train_sft(config: SftRecipeConfig, corpus: Corpus, run: Run) -> Path:
    """The SFT policy's checkpoint: trained here, or the one `sft.checkpoint` names."""
    if config.sft.checkpoint is not None:
        load_checkpoint(config.sft.checkpoint)  # complains now rather than after the rollout
        run.summary["artifacts"]["sft_policy"] = str(config.sft.checkpoint.absolute())
        return config.sft.checkpoint.absolute()

    def work(phase: Phase) -> dict[str, Any]:
        initial = phase.directory / "initial"
        save_checkpoint(
            *initial_policy(config.policy, config.corpus.seconds, corpus, config.seed), initial
        )
        policy = load_checkpoint(initial)
        table = phase.directory / "examples.arrow"
        rows = write_table(table, examples(corpus.clips("train"), policy), SFT_SCHEMA)
        task = SftTask(str(initial), str(table), config.policy, config.seed, config.sft)
        phase.say(
            f"{rows} clips, {policy.actions.space.tokens} action tokens each, "
            f"{sum(p.numel() for p in policy.model.parameters()) / 1e6:.2f} M parameters, "
            f"{task.steps} steps"
        )
        return learn(task, config.learner, phase)

    result = run.once("sft", work)
    run.summary["metrics"]["sft"] = result["final"]
    return Path(result["policy"])


def initial_policy(
    config: PolicyConfig, seconds: float, corpus: Corpus, seed: int
) -> tuple[FaceVLA, PreTrainedTokenizerBase, ActionTokenizer]:
    """A policy before training: tiny random weights, or the pretrained checkpoints the config
    names.
    """
    space = ActionSpace(action_layout(config.action, corpus.layout), config.action.rate, seconds)
    knots = (
        space.to_knots(listener.subset(space.layout)) for _, listener in corpus.listeners("train")
    )
    low, high = fit_bounds(knots, tail=100 * config.action.truncation)
    clip = corpus.at("train", 0)
    frames = (
        {}
        if clip.speaker_frames is None
        else {"frames": len(clip.speaker_frames), "image_size": clip.speaker_frames.shape[1]}
    )
    dtype = getattr(torch, config.dtype)
    if config.size == "pretrained":
        model, tokenizer = load_pretrained(
            config.llama,
            config.dino,
            config.siglip,
            space,
            dtype=dtype,
            text_tokens=config.text_tokens,
            frames=frames.get("frames", 1),
        )
        if config.openvla is not None:
            print(f"[sft] {load_openvla(model, read_weights(Path(config.openvla)))}", flush=True)
    else:
        texts: Iterator[str] = (c.text for c in corpus.clips("train") if c.text is not None)
        tokenizer = build_text_tokenizer(
            texts,
            text_vocabulary=config.vocabulary - config.action.bins,
            action_bins=config.action.bins,
        )
        model = build_tiny(
            tiny_config(
                tokenizer,
                space,
                text_tokens=config.text_tokens,
                hidden=config.hidden,
                layers=config.layers,
                heads=config.heads,
                kv_heads=config.kv_heads,
                tower_hidden=config.vision_hidden,
                tower_layers=config.vision_layers,
                action_bins=config.action.bins,
                **frames,
            ),
            seed=seed,
        ).to(dtype)
    actions = ActionTokenizer(space, low, high, model.config.action_token_start, config.action.bins)
    return model, tokenizer, actions


def action_layout(config: ActionConfig, corpus: Layout) -> Layout:
    """The groups of an action: expression, head rotation, jaw (paper III-A)."""
    head = config.head if config.head != "auto" else "rot" if "rot" in corpus.names else "neck"
    return corpus.subset({"expr": config.expr_dims, head: 3, "jaw": 3})


def learn(
    task: Task, config: LearnerConfig, phase: Phase, milestones: Milestones | None = None
) -> dict[str, Any]:
    """Train a task on the learners; returns the phase's result."""
    options = LearnerOptions(**config.model_dump())
    result = fit(task, options, phase.directory, phase.logger.log, phase.say, milestones)
    policy = str(phase.directory / "policy")
    return {
        "policy": policy,
        "counts": {f"{phase.name}_steps": result["steps"]},
        "engines": {f"{phase.name}_learner": result["engine"]},
        "artifacts": {f"{phase.name}_policy": policy},
        "final": result["final"],
        "seconds_per_step": result["seconds_per_step"],
    }
