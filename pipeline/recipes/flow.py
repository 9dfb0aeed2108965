"""AR-Flow before any preference: corpus, motion VAE, encoded windows, supervised policy
(GDPO-Listener, stage 1).

What `gdpo` and `dpo policy=flow` start from, and how both are judged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from rapport.actors.flow_rollout import FlowFleetOptions
from rapport.pipeline.config import STAGE_ONE, EncodersConfig, FlowRecipeConfig, read_yaml
from rapport.pipeline.data.flow import (
    LISTENER,
    WINDOW_SCHEMA,
    Features,
    Window,
    motion_rows,
    whole_latents,
    window_rows,
    windows,
)
from rapport.pipeline.data.store import LABELS, Corpus, load_labels
from rapport.pipeline.objectives.flow import FlowTask
from rapport.pipeline.objectives.vae import VaeTask
from rapport.pipeline.recipes.evaluate import compared, fit_affect, render_shown
from rapport.pipeline.recipes.flow_judge import FlowJudge, report
from rapport.pipeline.recipes.prepare import prepare
from rapport.pipeline.recipes.rollout import render_pool
from rapport.pipeline.recipes.sft import learn
from rapport.pipeline.report.videos import HELD_OUT
from rapport.pipeline.rundir import Phase, Run, RunError, still_there
from rapport.policies.flow import checkpoint
from rapport.policies.flow.config import VAEConfig, flow_config, vae_config
from rapport.policies.flow.encoders import AudioEncoder, FeatureCache, TextEncoder
from rapport.policies.flow.model import initialised
from rapport.policies.flow.training import MOTION_SCHEMA, fit_features
from rapport.policies.flow.vae import MotionVAE
from rapport.policies.tables import read_table, write_table

RecipeOfFlow = TypeVar("RecipeOfFlow", bound=FlowRecipeConfig)
TABLE = "{}.arrow"  # windows of a split
SUPERVISED = "supervised"  # name of the policy of this stage
# The aligned policy with less than it was trained with (GDPO-Listener, Table 4), and without
# look-ahead.
WAYS: dict[str, dict[str, Any]] = {
    "without text": {"without_text": True},
    "4 steps": {"steps": 4},
    "streaming": {"streaming": True},
}
# Whose effect on the face is measured; see `describe_face`.
PROMPTS = {
    "happy": "happy and excited, looking ahead, nodding",
    "sad": "sad and calm, looking ahead, with a still head",
}


class Imitation(NamedTuple):
    """What stage 1 leaves.

    Args:
        vae, policy: checkpoints.
        tables: folder of the encoded windows, see `table_of`.
    """

    corpus: Corpus
    vae: Path
    tables: Path
    policy: Path

    def table_of(self, split: str) -> Path:
        return self.tables / TABLE.format(split)


def as_trained(config: RecipeOfFlow) -> RecipeOfFlow:
    """The config with the stage 1 of the run that `imitation` names, where it names one."""
    if config.imitation is None:
        return config
    file = config.imitation / "config.yaml"
    if not file.is_file():
        raise RunError(
            f"imitation={config.imitation}: no config.yaml there; it must be the folder of a run "
            "of `gdpo` "
            "or `dpo policy=flow`"
        )
    try:
        given = read_yaml(file)
        trained = FlowRecipeConfig.model_validate({name: given[name] for name in STAGE_ONE})
    except (KeyError, ValueError) as error:
        raise RunError(f"{file}: {error}\nThat run is of another recipe or version") from error
    return config.model_copy(update={name: getattr(trained, name) for name in STAGE_ONE})


def imitate(config: FlowRecipeConfig, run: Run) -> Imitation:
    """Stage 1, or that of the run that `imitation` names."""
    if config.imitation is not None:
        return earlier(config.imitation, run)
    corpus = prepare(config.corpus, run)
    vae = train_vae(config, corpus, run)
    tables = encode(config, corpus, vae, run)
    return Imitation(corpus, vae, tables, train_flow(config, corpus, vae, tables, run))


def earlier(directory: Path, run: Run) -> Imitation:
    """What stage 1 of an earlier run left."""
    file = directory / "summary.json"
    summary = json.loads(file.read_text()) if file.is_file() else {"artifacts": {}}
    found, gone = still_there(summary, ("corpus", "vae_policy", "encode_tables", "flow_policy"))
    if gone:
        raise RunError(
            f"imitation={directory}: that run has no {', '.join(gone)}; it must be a finished "
            "one of `gdpo` "
            "or `dpo policy=flow`"
        )
    run.summary["artifacts"] |= {name: str(path) for name, path in found.items()}
    corpus, vae, tables, policy = found.values()
    return Imitation(Corpus(corpus), vae, tables, policy)


def people(config: FlowRecipeConfig, corpus: Corpus, split: str) -> Iterator[Window]:
    """Everybody of a split whose motion is learnt, clip by clip."""
    affect = load_labels(corpus.path) if LABELS in corpus.manifest["files"] else None
    downsample = vae_config(config.vae.size, corpus.layout).downsample
    for clip in corpus.clips(split):
        yield from windows(clip, downsample, config.roles == "both", affect)


def train_vae(config: FlowRecipeConfig, corpus: Corpus, run: Run) -> Path:
    """The motion VAE (section 3.1) of all training windows; its latents are then scaled to unit
    variance.
    """

    def work(phase: Phase) -> dict[str, Any]:
        initial, table = phase.directory / "initial", phase.directory / "motion.arrow"
        motions = {window.clip_id: window.motion for window in people(config, corpus, "train")}
        write_table(table, motion_rows(motions), MOTION_SCHEMA)
        vae = initial_vae(vae_config(config.vae.size, corpus.layout), config.seed)
        vae.fit_channels(motions.values())
        checkpoint.save(vae, initial)
        phase.say(f"{len(motions)} windows, {corpus.layout}, {config.vae.steps} steps")
        result = learn(
            VaeTask(str(initial), str(table), config.seed, config.vae), config.learner, phase
        )
        trained = checkpoint.load_vae(Path(result["policy"]))
        trained.fit_latents(torch.from_numpy(motion.values)[None] for motion in motions.values())
        checkpoint.save(trained, Path(result["policy"]))
        return result

    result = run.once("vae", work)
    run.summary["metrics"]["vae"] = result["final"]
    return Path(result["policy"])


def initial_vae(config: VAEConfig, seed: int) -> MotionVAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MotionVAE(config)


def encode(config: FlowRecipeConfig, corpus: Corpus, vae: Path, run: Run) -> Path:
    """Tables of windows, one a split: features of the frozen encoders (Eq. 1), latents, who listens
    when.
    """

    def work(phase: Phase) -> dict[str, Any]:
        features = load_encoders(config.encoders, run.directory / "features")
        coder, counts = checkpoint.load_vae(vae), {}
        for split in ("train", "test"):
            rows = window_rows(people(config, corpus, split), features.of, coder)
            counts[f"{split}_windows"] = write_table(
                phase.directory / TABLE.format(split), rows, WINDOW_SCHEMA
            )
        clip = corpus.at("train", 0)
        kept = whole_latents(len(clip.listener), coder.config.downsample)
        phase.say(
            f"{counts} of {kept} of {len(clip.listener)} frames; text by {features.text.name}, "
            "audio by "
            f"{features.audio.name}"
        )
        if clip.listener_audio is None or clip.speaker_audio is None:
            phase.say(
                "no sound of both people: who has none speaks as the corpus' roles say, the "
                "speaker throughout"
            )
        encoders = {"text": features.text.name, "audio": features.audio.name}
        made = {"encode_tables": str(phase.directory)}
        return {"counts": counts, "engines": {"encoders": encoders}, "artifacts": made}

    return Path(run.once("encode", work)["artifacts"]["encode_tables"])


def load_encoders(config: EncodersConfig, cache: Path) -> Features:
    text = TextEncoder.tiny() if config.text is None else TextEncoder.from_pretrained(config.text)
    audio = (
        AudioEncoder.tiny() if config.audio is None else AudioEncoder.from_pretrained(config.audio)
    )
    folder = cache if config.cache is None else config.cache
    return Features(
        text, audio, (FeatureCache(folder, text.name), FeatureCache(folder, audio.name))
    )


def train_flow(config: FlowRecipeConfig, corpus: Corpus, vae: Path, tables: Path, run: Run) -> Path:
    """Stage 1: AR-Flow by the rectified-flow loss (Eq. 4)."""

    def work(phase: Phase) -> dict[str, Any]:
        initial, coder = phase.directory / "initial", checkpoint.load_vae(vae)
        encoders = load_encoders(config.encoders, run.directory / "features")
        frames = whole_latents(len(corpus.at("train", 0).listener), coder.config.downsample)
        sizes = flow_config(
            config.flow.size,
            coder.config,
            encoders.text.dim,
            encoders.audio.dim,
            frames // coder.config.downsample,
        )
        flow, table = initialised(sizes, config.seed), tables / TABLE.format("train")
        fit_features(flow, read_table(table))
        checkpoint.save(flow, initial)
        phase.say(
            f"{sum(p.numel() for p in flow.parameters()) / 1e6:.2f} M parameters, windows of "
            f"{sizes.window} "
            f"latents, {config.flow.steps} steps"
        )
        task = FlowTask(str(initial), str(table), config.seed, config.flow)
        return learn(task, config.learner, phase)

    result = run.once("flow", work)
    run.summary["metrics"]["flow"] = result["final"]
    return Path(result["policy"])


def fleet_options(config: FlowRecipeConfig) -> FlowFleetOptions:
    given = config.rollout.model_dump(include={field.name for field in fields(FlowFleetOptions)})
    return FlowFleetOptions(**given, losses=config.cluster.lost_workers)


def judge(config: FlowRecipeConfig, made: Imitation, name: str, aligned: Path, run: Run) -> None:
    """Held-out windows before and after, beside what the VAE makes of the recorded motion and what
    others did.

    Args:
        name: of the policy in `aligned`, in the table.
    """

    def work(phase: Phase) -> dict[str, Any]:
        judge = judge_of(config, made)
        encoder = load_encoders(config.encoders, run.directory / "features").text
        texts = dict(zip(PROMPTS, encoder(list(PROMPTS.values())), strict=True))
        affect = fit_affect(made.corpus, made.corpus.layout, run)
        policies = {SUPERVISED: made.policy, name: aligned}
        answers = {"VAE": judge.coded(), "others": judge.others()}
        answers |= {method: judge.generate(policy) for method, policy in policies.items()}
        if config.judge.ablations:
            answers |= {
                f"{name} {way}": judge.generate(aligned, **keys) for way, keys in WAYS.items()
            }
            answers[f"{SUPERVISED} streaming"] = judge.generate(made.policy, streaming=True)
        rows = judge.score(answers)
        listeners = judge.listeners()
        if listeners.windows:
            for method, policy in policies.items():
                rows[method] |= listeners.controls(policy, texts, affect) | listeners.endless(
                    policy
                )
        else:
            phase.say(
                "nobody listens for half of a held-out window: prompts, guidance, long sequences "
                "are not judged"
            )
        phase.say(f"{len(judge.windows)} windows, {config.judge.steps} steps of the ODE")
        return {"rows": rows, "counts": {"judged_windows": len(judge.windows)}}

    report(run.once("judge", work)["rows"], SUPERVISED, name, run)


def show(config: FlowRecipeConfig, made: Imitation, name: str, aligned: Path, run: Run) -> None:
    """Videos of `judge.clips` held-out listeners: speaker, recorded listener, before and after,
    with the speaker's voice.
    """

    def work(phase: Phase) -> dict[str, Any]:
        judge = judge_of(config, made).of_listeners().some(config.judge.clips)
        answers = {
            method: judge.generate(policy)
            for method, policy in ((SUPERVISED, made.policy), (name, aligned))
        }
        videos = []
        for window, *given in zip(judge.windows, *answers.values(), strict=True):
            clip = made.corpus.clip(window.clip_id.removesuffix(LISTENER))
            clip = replace(
                clip,
                listener=window.motion,
                speaker=window.partner,
                speaker_audio=window.partner_audio,
            )
            videos.append(
                compared(
                    clip, f"{clip.clip_id}.mp4", HELD_OUT, dict(zip(answers, given, strict=True))
                )
            )
        with render_pool(config) as renderers:
            return render_shown(config.render, videos, renderers, phase)

    if config.judge.clips:
        run.once("clips", work)


def judge_of(config: FlowRecipeConfig, made: Imitation) -> FlowJudge:
    """Of held-out windows."""
    return FlowJudge.of(
        config, list(people(config, made.corpus, "test")), made.table_of("test"), made.vae
    )
