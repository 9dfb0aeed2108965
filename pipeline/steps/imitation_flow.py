"""Stage 1 of AR-Flow: motion VAE, encoded windows, rectified flow (GDPO-Listener, 3.1 and 3.2)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from rapport.pipeline.data.flow import (
    WINDOW_SCHEMA,
    Window,
    motion_rows,
    whole_latents,
    window_rows,
    windows,
)
from rapport.pipeline.data.store import CAPTIONS, LABELS, Corpus, load_captions, load_labels
from rapport.pipeline.objectives.flow import RectifiedFlow
from rapport.pipeline.objectives.vae import MotionCode
from rapport.pipeline.rundir import Phase, PhaseResult, RunError, Workspace, phase, still_there
from rapport.pipeline.settings import OfFlow
from rapport.pipeline.steps.corpus import prepared
from rapport.pipeline.steps.learning import Imitated, learn, own_device
from rapport.pipeline.steps.perceiving import perceive
from rapport.policies.flow import checkpoint
from rapport.policies.flow.config import VaeSizes, flow_config, vae_config
from rapport.policies.flow.features import Features
from rapport.policies.flow.model import initialised
from rapport.policies.flow.policy import FlowPolicy
from rapport.policies.flow.training import MOTION_SCHEMA, fit_features
from rapport.policies.flow.vae import MotionVAE
from rapport.policies.tables import read_table, write_table


def imitate_flow(run: Workspace, config: OfFlow) -> Imitated:
    if config.imitation is not None:
        earlier = earlier_flow(config.imitation, aligned=config.aligned)
        assert earlier.windows is not None
        run.leave({"corpus": earlier.corpus.path, "flow_policy": earlier.policy_path})
        run.leave({"encode_tables": earlier.windows})
        perceive(run, config, earlier.corpus, earlier.policy_path)
        return earlier
    corpus = prepared(run, config)
    vae = _vae(run, config, corpus).artifacts["vae_policy"]
    encoded = encode(run, config, corpus, vae=vae, features=run.directory / "features")
    policy = _flow(run, config, corpus, vae=vae, encoded=encoded).artifacts["flow_policy"]
    perceive(run, config, corpus, policy)
    return Imitated(corpus, policy, encoded.artifacts["encode_tables"])


def earlier_flow(directory: Path, *, aligned: bool = False) -> Imitated:
    """What stage 1 of an earlier run left, with its AR-Flow or the one that it was aligned to.

    Raises:
        RunError: something of it is not there.
    """
    file = directory / "summary.json"
    summary = json.loads(file.read_text()) if file.is_file() else {"artifacts": {}}
    there = summary["artifacts"]
    if aligned:
        policy_name = "dpo_policy" if "dpo_policy" in there else "gdpo_policy"
    else:  # a run on earlier candidates says sft_policy
        policy_name = "sft_policy" if "sft_policy" in there else "flow_policy"
    names = ("corpus", "encode_tables", policy_name)
    artifacts, gone = still_there(directory, summary, names)
    if gone:
        raise RunError(
            f"imitation={directory}: that run has no {', '.join(gone)}; it must be a finished one "
            "of `gdpo` or `dpo policy=flow`"
        )
    corpus, windows, policy = (artifacts[name] for name in names)
    return Imitated(Corpus(corpus), policy, windows)


def people(config: OfFlow, corpus: Corpus, split: str) -> Iterator[Window]:
    """Everybody of a split whose motion is learnt, clip by clip; a speaker once a moment."""
    files = corpus.manifest["files"]
    affect = load_labels(corpus.path) if LABELS in files else None
    captions = load_captions(corpus.path) if CAPTIONS in files else None
    downsample = vae_config(config.vae.size, corpus.layout).downsample
    conversations = corpus.conversations(split)
    spoken: set[tuple[str, float]] = set()
    for clip in corpus.clips(split, ("speaker", "speaker_audio", "listener_audio")):
        both = config.roles == "both" and clip.moment not in spoken
        spoken.add(clip.moment)
        yield from windows(
            clip,
            downsample,
            both=both,
            affect=affect,
            captions=captions,
            conversation=conversations[clip.clip_id],
        )


@phase("vae")
def _vae(step: Phase, config: OfFlow, corpus: Corpus) -> PhaseResult:
    """The motion VAE of all training windows; its latents are then scaled to unit variance."""
    initial = step.directory / "initial"
    table = step.directory / "motion.arrow"
    motions = {window.window_id: window.motion for window in people(config, corpus, "train")}
    write_table(table, motion_rows(motions), MOTION_SCHEMA)
    vae = untrained_vae(vae_config(config.vae.size, corpus.layout), config.seed)
    vae.fit_channels(motions.values())
    checkpoint.save(vae, initial)
    step.say(f"{len(motions)} windows, {corpus.layout}, {config.vae.steps} steps")
    result = learn(MotionCode(initial, table, config.vae, seed=config.seed), config.learner, step)
    trained = checkpoint.load_vae(result.artifacts["vae_policy"]).to(own_device(config.learner))
    trained.fit_latents(motions.values())
    checkpoint.save(trained, result.artifacts["vae_policy"])
    return result


def untrained_vae(config: VaeSizes, seed: int) -> MotionVAE:
    """The same weights for the same seed; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MotionVAE(config)


@phase("encode")
def encode(
    step: Phase, config: OfFlow, corpus: Corpus, vae: Path, *, features: Path
) -> PhaseResult:
    """Tables of windows, one a split: features (Eq. 1), latents, who listens when."""
    device = own_device(config.learner)
    encoders = Features.load(config.encoders, features, device)
    coder = checkpoint.load_vae(vae).to(device)
    counts = {}
    for split in corpus.splits:
        rows = window_rows(people(config, corpus, split), encoders, coder)
        table = step.directory / f"{split}.arrow"
        counts[f"{split}_windows"] = write_table(table, rows, WINDOW_SCHEMA)
    clip = corpus.at("train", 0)
    kept = whole_latents(len(clip.listener), coder.config.downsample)
    names = {"text": encoders.text.name, "audio": encoders.audio.name}
    step.say(
        f"{counts} of {kept} of {len(clip.listener)} frames; text by {names['text']}, audio by "
        f"{names['audio']}, on {device}"
    )
    if clip.listener_audio is None or clip.speaker_audio is None:
        step.say(
            "no sound of both people: who has none speaks as the corpus' roles say, the speaker "
            "throughout"
        )
    return PhaseResult(
        artifacts={"encode_tables": step.directory},
        counts=counts,
        engines={"encoders": names},
        value={
            "text_dim": encoders.text.dim,
            "audio_dim": encoders.audio.dim,
            "learns_to_hear": config.encoders.audio is None,
        },
    )


@phase("flow")
def _flow(
    step: Phase, config: OfFlow, corpus: Corpus, vae: Path, encoded: PhaseResult
) -> PhaseResult:
    """AR-Flow by the rectified-flow loss (Eq. 4)."""
    initial = step.directory / "initial"
    table = encoded.artifacts["encode_tables"] / "train.arrow"
    coder = checkpoint.load_vae(vae)
    frames = whole_latents(len(corpus.at("train", 0).listener), coder.config.downsample)
    sizes = flow_config(
        config.flow.size,
        coder.config,
        encoded.value["text_dim"],
        audio_dim=encoded.value["audio_dim"],
        window=frames // coder.config.downsample,
        learns_to_hear=encoded.value["learns_to_hear"],
        expects=config.flow.expect > 0,
    )
    flow = initialised(replace(sizes, heed=config.flow.heed), config.seed)
    fit_features(flow, read_table(table))
    FlowPolicy(flow, coder, config.encoders).save(initial)
    step.say(
        f"{sum(p.numel() for p in flow.parameters()) / 1e6:.2f} M parameters, windows of "
        f"{sizes.window} latents, {config.flow.steps} steps"
    )
    return learn(RectifiedFlow(initial, table, config.flow, seed=config.seed), config.learner, step)
