"""Imitation: from a corpus to a policy that moves like its listeners.

What a policy needs before any preference is its own business: the VLA an action space and SFT
(VLA + DPO, III-C3), AR-Flow a motion VAE, encoded windows and rectified flow (GDPO-Listener, stage
1), a policy of one's own its likelihood. All leave the same: a corpus and a policy's folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import torch
from datasets import Dataset

from rapport.actors.learner import Milestones, Objective, fit
from rapport.actors.settings import LearnerConfig
from rapport.log import logger
from rapport.pipeline.config import read_yaml
from rapport.pipeline.data.flow import (
    WINDOW_SCHEMA,
    Window,
    motion_rows,
    whole_latents,
    window_rows,
    windows,
)
from rapport.pipeline.data.store import LABELS, Corpus, load_labels
from rapport.pipeline.data.vla import examples
from rapport.pipeline.objectives.flow import RectifiedFlow
from rapport.pipeline.objectives.imitation import Imitation
from rapport.pipeline.objectives.sft import Sft
from rapport.pipeline.objectives.vae import MotionCode
from rapport.pipeline.rundir import Phase, PhaseResult, RunError, Workspace, phase, still_there
from rapport.pipeline.settings import STAGE_ONE, Learning, OfFlow, OfOther, OfVla, Preferences
from rapport.pipeline.steps.corpus import prepare
from rapport.policies.flow import checkpoint
from rapport.policies.flow.config import VaeSizes, flow_config, vae_config
from rapport.policies.flow.features import Features
from rapport.policies.flow.model import initialised
from rapport.policies.flow.policy import VAE_FOLDER, FlowPolicy
from rapport.policies.flow.training import MOTION_SCHEMA, fit_features
from rapport.policies.flow.vae import MotionVAE
from rapport.policies.motion import Layout
from rapport.policies.policy import Policy, load_policy, policy_class
from rapport.policies.tables import read_table, write_table
from rapport.policies.vla.actions import ActionSpace, ActionTokenizer, fit_bounds
from rapport.policies.vla.loading import build_tiny, tiny_config
from rapport.policies.vla.openvla import load_openvla, read_weights
from rapport.policies.vla.policy import VlaPolicy
from rapport.policies.vla.pretrained import PublishedParts, load_pretrained
from rapport.policies.vla.settings import ActionConfig, VlaConfig
from rapport.policies.vla.text import build_text_tokenizer
from rapport.policies.vla.training import SFT_SCHEMA

Config = TypeVar("Config", bound=Learning)


@dataclass(frozen=True)
class Imitated:
    """What imitation leaves.

    Args:
        corpus: whose listeners are imitated.
        policy_path: folder of the policy.
        windows: folder with a table of encoded windows for each split, where prompts are made in
            advance (AR-Flow); None = they are made of a clip when they are needed.
    """

    corpus: Corpus
    policy_path: Path
    windows: Path | None = None

    @cached_property
    def policy(self) -> Policy:
        """The imitating policy, loaded."""
        return load_policy(self.policy_path)

    def encoded(self, split: str) -> Dataset | None:
        """The encoded windows of a split, where there are any."""
        return None if self.windows is None else read_table(self.windows / f"{split}.arrow")


def imitate(run: Workspace, config: Learning) -> Imitated:
    """Train a policy to imitate, or take the one that the config names."""
    if isinstance(config, OfFlow):
        return _imitate_by_flow(run, config)
    corpus = prepare(run, config.corpus)
    if isinstance(config, OfVla):
        return Imitated(corpus, _vla(run, config, corpus))
    if isinstance(config, OfOther):
        return Imitated(corpus, _other(run, config, corpus).artifacts["imitate_policy"])
    raise TypeError(f"{type(config).__name__} does not say how its policy imitates")


def of_checkpoint(run: Workspace, config: Learning, path: Path) -> Imitated:
    """A policy that is there already, on the corpus of the config.

    Raises:
        CheckpointError: the folder holds no policy.
        RunError: it is another kind of policy than the config is for.
    """
    path = path.absolute()
    policy = load_policy(path)
    if policy.kind != config.policy:
        raise RunError(
            f"checkpoint={path} holds a policy of kind {policy.kind}, this is policy="
            f"{config.policy}: say policy={policy.kind}"
        )
    corpus = prepare(run, config.corpus)
    if not isinstance(config, OfFlow):
        return Imitated(corpus, path)
    folder = run.directory / "features"
    encoded = _encode(run, config, corpus, vae=path / VAE_FOLDER, features=folder)
    return Imitated(corpus, path, encoded.artifacts["encode_tables"])


def learn(
    objective: Objective, config: LearnerConfig, step: Phase, milestones: Milestones | None = None
) -> PhaseResult:
    """Train an objective on the learners; returns the phase's result."""
    result = fit(
        objective, config, step.directory, log=step.logger.log, say=step.say, milestones=milestones
    )
    return learnt(result, step)


def learnt(result: dict[str, Any], step: Phase, **counts: int) -> PhaseResult:
    """What learners left, as a phase's result: NAME_policy is the folder.

    Args:
        result: of the learners.
        step: the phase.
        counts: of what was done besides.
    """
    policy = step.directory / "policy"
    return PhaseResult(
        artifacts={f"{step.name}_policy": policy},
        counts={f"{step.name}_steps": result["steps"], **counts},
        engines={f"{step.name}_learner": result["engine"]},
        metrics=result["final"],
        value={"seconds_per_step": result["seconds_per_step"]},
    )


# -- VLA --


def _vla(run: Workspace, config: OfVla, corpus: Corpus) -> Path:
    checkpoint_path = config.sft.checkpoint
    if checkpoint_path is None:
        return _sft(run, config, corpus).artifacts["sft_policy"]
    checkpoint_path = checkpoint_path.absolute()
    load_policy(checkpoint_path)  # complains now rather than after the rollout
    run.summary["artifacts"]["sft_policy"] = str(checkpoint_path)
    return checkpoint_path


@phase("sft")
def _sft(step: Phase, config: OfVla, corpus: Corpus) -> PhaseResult:
    initial = step.directory / "initial"
    untrained_vla(config, corpus).save(initial)
    policy = VlaPolicy.load(initial)
    table = step.directory / "examples.arrow"
    rows = write_table(table, examples(corpus.clips("train"), policy), SFT_SCHEMA)
    objective = Sft(initial, table, config.sft, seed=config.seed, policy_config=config.vla)
    step.say(
        f"{rows} clips, {policy.actions.space.tokens} action tokens each, "
        f"{sum(p.numel() for p in policy.model.parameters()) / 1e6:.2f} M parameters, "
        f"{objective.steps} steps"
    )
    return learn(objective, config.learner, step)


def untrained_vla(config: OfVla, corpus: Corpus) -> VlaPolicy:
    """A VLA before training: tiny random weights, or the pretrained parts the config names."""
    vla = config.vla
    layout = action_layout(vla.action, corpus.layout)
    space = ActionSpace(layout, vla.action.rate, config.corpus.seconds)
    knots = (space.to_knots(listener.subset(layout)) for _, listener in corpus.listeners("train"))
    low, high = fit_bounds(knots, tail=100 * vla.action.truncation)
    clip = corpus.at("train", 0)
    frames = {}
    if clip.speaker_frames is not None:
        frames = {"frames": len(clip.speaker_frames), "image_size": clip.speaker_frames.shape[1]}
    dtype = getattr(torch, vla.dtype)
    if vla.size == "pretrained":
        model, tokenizer = load_pretrained(
            published_parts(vla),
            space,
            dtype=dtype,
            text_tokens=vla.text_tokens,
            frames=frames.get("frames", 1),
        )
        if vla.openvla is not None:
            logger.info(f"[sft] {load_openvla(model, read_weights(Path(vla.openvla)))}")
    else:
        texts = (clip.text for clip in corpus.clips("train") if clip.text is not None)
        tokenizer = build_text_tokenizer(
            texts,
            text_vocabulary=vla.vocabulary - vla.action.bins,
            action_bins=vla.action.bins,
        )
        sizes = tiny_config(
            tokenizer,
            space,
            text_tokens=vla.text_tokens,
            hidden=vla.hidden,
            layers=vla.layers,
            heads=vla.heads,
            kv_heads=vla.kv_heads,
            tower_hidden=vla.vision_hidden,
            tower_layers=vla.vision_layers,
            action_bins=vla.action.bins,
            **frames,
        )
        model = build_tiny(sizes, seed=config.seed).to(dtype)
    actions = ActionTokenizer(
        space, low, high, first_token=model.config.action_token_start, bins=vla.action.bins
    )
    return VlaPolicy(model, tokenizer, actions)


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


# -- AR-Flow --


def as_trained(config: Config) -> Config:
    """The config with the stage 1 of the run whose AR-Flow is used, where it names one."""
    if not isinstance(config, OfFlow):
        return config
    if config.imitation is not None:
        trained = _stage_one("imitation", config.imitation)
    elif isinstance(config, Preferences) and config.candidates is not None:
        trained = _stage_one("candidates", config.candidates)
    else:
        return config
    return config.model_copy(update={name: getattr(trained, name) for name in STAGE_ONE})


def _stage_one(key: str, folder: Path) -> OfFlow:
    """How the AR-Flow of a run was trained, or of the run that it took it from."""
    file = folder / "config.yaml"
    if not file.is_file():
        raise RunError(
            f"{key}={folder}: no config.yaml there; it must be the folder of a run of an AR-Flow, "
            "e.g. of `gdpo` or `dpo policy=flow`"
        )
    try:
        values = read_yaml(file)
        earlier = values.get("imitation") or values.get("candidates")
        if earlier is not None:
            return _stage_one(key, Path(earlier))
        return OfFlow.model_validate({name: values[name] for name in STAGE_ONE})
    except (KeyError, ValueError) as error:
        raise RunError(f"{file}: {error}\nThat run is of another recipe or version") from error


def _imitate_by_flow(run: Workspace, config: OfFlow) -> Imitated:
    if config.imitation is not None:
        return earlier_flow(config.imitation, run)
    corpus = prepare(run, config.corpus)
    vae = _vae(run, config, corpus).artifacts["vae_policy"]
    encoded = _encode(run, config, corpus, vae=vae, features=run.directory / "features")
    tables = encoded.artifacts["encode_tables"]
    trained = _flow(run, config, corpus, vae=vae, tables=tables)
    return Imitated(corpus, trained.artifacts["flow_policy"], tables)


def earlier_flow(directory: Path, run: Workspace) -> Imitated:
    """What stage 1 of an earlier run left."""
    file = directory / "summary.json"
    summary = json.loads(file.read_text()) if file.is_file() else {"artifacts": {}}
    names = ("corpus", "encode_tables", "flow_policy")
    artifacts, gone = still_there(summary, names)
    if gone:
        raise RunError(
            f"imitation={directory}: that run has no {', '.join(gone)}; it must be a finished one "
            "of `gdpo` or `dpo policy=flow`"
        )
    run.summary["artifacts"] |= {name: str(path) for name, path in artifacts.items()}
    return Imitated(
        Corpus(artifacts["corpus"]), artifacts["flow_policy"], artifacts["encode_tables"]
    )


def people(config: OfFlow, corpus: Corpus, split: str) -> Iterator[Window]:
    """Everybody of a split whose motion is learnt, clip by clip."""
    affect = load_labels(corpus.path) if LABELS in corpus.manifest["files"] else None
    downsample = vae_config(config.vae.size, corpus.layout).downsample
    for clip in corpus.clips(split):
        yield from windows(clip, downsample, both=config.roles == "both", affect=affect)


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
    trained = checkpoint.load_vae(result.artifacts["vae_policy"])
    trained.fit_latents(torch.from_numpy(motion.values)[None] for motion in motions.values())
    checkpoint.save(trained, result.artifacts["vae_policy"])
    return result


def untrained_vae(config: VaeSizes, seed: int) -> MotionVAE:
    """The same weights for the same seed; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MotionVAE(config)


@phase("encode")
def _encode(
    step: Phase, config: OfFlow, corpus: Corpus, vae: Path, *, features: Path
) -> PhaseResult:
    """Tables of windows, one a split: features (Eq. 1), latents, who listens when."""
    encoders = Features.load(config.encoders, features)
    coder = checkpoint.load_vae(vae)
    counts = {}
    for split in ("train", "test"):
        rows = window_rows(people(config, corpus, split), encoders, coder)
        table = step.directory / f"{split}.arrow"
        counts[f"{split}_windows"] = write_table(table, rows, WINDOW_SCHEMA)
    clip = corpus.at("train", 0)
    kept = whole_latents(len(clip.listener), coder.config.downsample)
    names = {"text": encoders.text.name, "audio": encoders.audio.name}
    step.say(
        f"{counts} of {kept} of {len(clip.listener)} frames; text by {names['text']}, audio by "
        f"{names['audio']}"
    )
    if clip.listener_audio is None or clip.speaker_audio is None:
        step.say(
            "no sound of both people: who has none speaks as the corpus' roles say, the speaker "
            "throughout"
        )
    return PhaseResult(
        artifacts={"encode_tables": step.directory}, counts=counts, engines={"encoders": names}
    )


@phase("flow")
def _flow(step: Phase, config: OfFlow, corpus: Corpus, vae: Path, tables: Path) -> PhaseResult:
    """AR-Flow by the rectified-flow loss (Eq. 4)."""
    initial = step.directory / "initial"
    table = tables / "train.arrow"
    coder = checkpoint.load_vae(vae)
    encoders = Features.load(config.encoders, step.directory)
    frames = whole_latents(len(corpus.at("train", 0).listener), coder.config.downsample)
    sizes = flow_config(
        config.flow.size,
        coder.config,
        encoders.text.dim,
        audio_dim=encoders.audio.dim,
        window=frames // coder.config.downsample,
    )
    flow = initialised(sizes, config.seed)
    fit_features(flow, read_table(table))
    FlowPolicy(flow, coder, config.encoders).save(initial)
    step.say(
        f"{sum(p.numel() for p in flow.parameters()) / 1e6:.2f} M parameters, windows of "
        f"{sizes.window} latents, {config.flow.steps} steps"
    )
    return learn(RectifiedFlow(initial, table, config.flow, seed=config.seed), config.learner, step)


# -- Any other --


@phase("imitate")
def _other(step: Phase, config: OfOther, corpus: Corpus) -> PhaseResult:
    initial = step.directory / "initial"
    table = step.directory / "examples.arrow"
    kind = policy_class(config.policy)
    kind.untrained(corpus.layout, corpus.clips("train"), config.seed).save(initial)
    policy = load_policy(initial)
    schema = pa.schema(dict(policy.prompt_columns) | {"actions": policy.action_type})
    rows = write_table(table, _recorded(policy, corpus), schema)
    step.say(f"{rows} clips, {config.imitate.steps} steps")
    return learn(Imitation(initial, table, config.imitate, seed=config.seed), config.learner, step)


def _recorded(policy: Policy, corpus: Corpus) -> Iterator[dict[str, Any]]:
    for clip in corpus.clips("train"):
        actions = policy.actions_of(clip.listener.subset(policy.layout))
        yield policy.prompt_row(policy.encode(clip)) | {"actions": policy.pack(actions)}
