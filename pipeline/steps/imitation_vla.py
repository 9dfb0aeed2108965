"""Imitation by the VLA: its network before training, its encoders, and SFT (VLA + DPO, III)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from rapport.log import logger
from rapport.pipeline.data.perception import PERCEPTION_SCHEMA, Channels, perceived_chunks
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.data.vla import examples
from rapport.pipeline.objectives.perception import Perception
from rapport.pipeline.objectives.sft import Sft
from rapport.pipeline.rundir import Phase, PhaseResult, Workspace, phase
from rapport.pipeline.settings import OfVla
from rapport.pipeline.steps.learning import learn
from rapport.pipeline.steps.perceiving import perceive
from rapport.policies.head.asset import load_head
from rapport.policies.motion import Layout, Motion
from rapport.policies.tables import write_table
from rapport.policies.vla.actions import ActionSpace, ActionTokenizer, fit_bounds
from rapport.policies.vla.loading import (
    build_tiny,
    cast_weights,
    network_sizes,
    sequence_sizes,
    tiny_config,
)
from rapport.policies.vla.openvla import load_openvla, read_weights
from rapport.policies.vla.policy import VlaPolicy
from rapport.policies.vla.pretrained import PublishedParts, load_pretrained
from rapport.policies.vla.settings import ActionConfig, VlaConfig
from rapport.policies.vla.text import build_text_tokenizer
from rapport.policies.vla.training import SFT_SCHEMA


def imitate_vla(run: Workspace, config: OfVla, corpus: Corpus) -> Path:
    checkpoint_path = config.sft.checkpoint
    if checkpoint_path is None:
        start = None
        if config.vla.size == "tiny" and config.pretraining.steps:
            start = _pretraining(run, config, corpus).artifacts.get("pretraining_policy")
        policy = _sft(run, config, corpus, start).artifacts["sft_policy"]
    else:
        policy = checkpoint_path.absolute()
        run.leave({"sft_policy": policy})
    perceive(run, config, corpus, policy)
    return policy


@phase("pretraining")
def _pretraining(step: Phase, config: OfVla, corpus: Corpus) -> PhaseResult:
    """Encoders of pictures and voice; leaves nothing where a corpus has neither or no motion."""
    initial = step.directory / "initial"
    untrained_vla(config, corpus).save(initial)
    policy = VlaPolicy.load(initial)
    layout = corpus.layout
    head = load_head() if layout.topology == "builtin" else None
    width = layout.width("expr") if "expr" in layout.names else 0
    table = step.directory / "chunks.arrow"
    channels = Channels.of(head, width)
    # A clip is dear to decode, and one listener to each moment is enough to know its speaker.
    clips = corpus.clips("train", only=corpus.first_listeners("train"))
    chunks = perceived_chunks(clips, policy.model.config, channels, limit=config.pretraining.chunks)
    rows = write_table(table, chunks, PERCEPTION_SCHEMA)
    if not rows:
        step.say("skipped: the corpus has neither frames nor voice beside its speakers' motion")
        return PhaseResult()
    groups = channels.groups(layout)
    objective = Perception(initial, table, groups, config.pretraining, seed=config.seed)
    step.say(f"{rows} chunks, {objective.steps} steps")
    return learn(objective, config.learner, step)


@phase("sft")
def _sft(step: Phase, config: OfVla, corpus: Corpus, start: Path | None) -> PhaseResult:
    initial = start
    if initial is None:
        initial = step.directory / "initial"
        untrained_vla(config, corpus).save(initial)
    policy = VlaPolicy.load(initial)
    table = step.directory / "examples.arrow"
    rows = write_table(table, examples(corpus.clips("train"), policy), SFT_SCHEMA)
    objective = Sft(initial, table, config.sft, seed=config.seed, policy_config=config.vla)
    sizes = policy.model.config
    step.say(
        f"{rows} clips, {policy.actions.space.tokens} action tokens each, contexts of "
        f"{sizes.context_length} tokens, "
        f"{sum(p.numel() for p in policy.model.parameters()) / 1e6:.2f} M parameters, "
        f"{objective.steps} steps"
    )
    return learn(objective, config.learner, step)


def untrained_vla(config: OfVla, corpus: Corpus) -> VlaPolicy:
    """A VLA before training: tiny random weights, or the pretrained parts the config names."""
    vla = config.vla
    layout = action_layout(vla.action, corpus.layout)
    space = ActionSpace(layout, vla.action.rate, config.corpus.seconds)
    low, high = fit_bounds(_from_rest(corpus, space), tail=100 * vla.action.truncation)
    mostly = np.median([corpus.rests[clip_id] for clip_id in corpus.clip_ids("train")], axis=0)
    clip = corpus.at("train", 0)
    frames = clip.speaker_frames
    sequence = sequence_sizes(vla, 0 if frames is None else len(frames) / clip.seconds)
    dtype = getattr(torch, vla.dtype)
    if vla.size == "pretrained":
        model, tokenizer = load_pretrained(
            published_parts(vla),
            space,
            sequence,
            dtype=dtype,
            action_bins=vla.action.bins,
        )
        if vla.openvla is not None:
            logger.info(f"[sft] {load_openvla(model, read_weights(Path(vla.openvla)))}")
    else:
        clips = corpus.clips("train", ("words",))
        texts = (clip.text for clip in clips if clip.text is not None)
        tokenizer = build_text_tokenizer(
            texts,
            text_vocabulary=vla.vocabulary - vla.action.bins,
            action_bins=vla.action.bins,
        )
        image = {} if frames is None else {"image_size": frames.shape[1]}
        sizes = tiny_config(
            tokenizer, space, sequence, **network_sizes(vla), action_bins=vla.action.bins, **image
        )
        model = build_tiny(sizes, seed=config.seed)
        cast_weights(model, dtype)
    actions = ActionTokenizer(
        space,
        low,
        high,
        first_token=model.config.action_token_start,
        bins=vla.action.bins,
        rest=Motion(mostly[None], corpus.layout).subset(layout).values[0],
    )
    return VlaPolicy(model, tokenizer, actions)


def _from_rest(corpus: Corpus, space: ActionSpace) -> Iterator[np.ndarray]:
    """Knots of training listeners, each from their own face at rest."""
    for clip_id, listener in corpus.listeners("train"):
        rest = corpus.rest_of(clip_id).subset(space.layout)
        yield space.to_knots(listener.subset(space.layout)) - rest.values


def published_parts(config: VlaConfig) -> PublishedParts:
    """The checkpoints that a pretrained VLA is put together from."""
    if config.llama is None or config.dino is None or config.siglip is None:
        raise ValueError("vla.size=pretrained needs vla.llama, vla.dino and vla.siglip")
    return PublishedParts(config.llama, config.dino, config.siglip)


def action_layout(config: ActionConfig, corpus: Layout) -> Layout:
    """The groups of an action: expression, head rotation, jaw (paper III-A)."""
    head = config.head
    if head == "auto":
        head = "rot" if "rot" in corpus.names else "neck"
    return corpus.subset({"expr": config.expr_dims, head: 3, "jaw": 3})
