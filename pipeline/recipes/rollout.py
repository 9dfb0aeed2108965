"""`rollout`: generate candidate reactions on the fleet and render them for people to rate (paper
III-D).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rapport.actors.cluster import cluster
from rapport.actors.fleet import Fleet, FleetOptions
from rapport.actors.renderer import Panel, RenderOptions, RenderPool, VideoJob
from rapport.pipeline.config import (
    FlowRecipeConfig,
    HeadConfig,
    RenderConfig,
    RolloutConfig,
    RolloutRecipeConfig,
)
from rapport.pipeline.data.candidates import (
    Candidate,
    read_candidates,
    recorded,
    sampled,
    write_candidates,
)
from rapport.pipeline.data.rating_package import HAND_OUT, neutral_names, write_package
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.data.vla import prompt_of
from rapport.pipeline.recipes.prepare import prepare
from rapport.pipeline.recipes.sft import train_sft
from rapport.pipeline.rundir import Phase, Run, RunError
from rapport.policies.clip import Clip
from rapport.policies.motion import Motion
from rapport.policies.vla.loading import Checkpoint, load_checkpoint

Groups = dict[str, list[Candidate]]


def run(config: RolloutRecipeConfig, run: Run) -> None:
    corpus = prepare(config.corpus, run)
    with cluster(config.cluster.address, config.cluster.cpus) as where:
        print(f"  {where}", flush=True)
        checkpoint = train_sft(config, corpus, run)
        policy = load_checkpoint(checkpoint)
        with start_fleet(config, checkpoint, policy, corpus, run) as fleet:
            groups = roll_out(config, corpus, policy, fleet, run)
        package(config, corpus, policy, groups, run)


def fleet_options(config: RolloutConfig) -> FleetOptions:
    names = FleetOptions.__dataclass_fields__
    return FleetOptions(**{k: v for k, v in config.model_dump().items() if k in names})


def start_fleet(
    config: RolloutRecipeConfig, checkpoint: Path, policy: Checkpoint, corpus: Corpus, run: Run
) -> Fleet:
    """Engines that hold the checkpoint, checked against a plain forward pass."""
    started = time.monotonic()
    options = fleet_options(config.rollout)
    canary = prompt_of(corpus.at("train", 0), policy)
    fleet = Fleet(checkpoint, policy.model, options, canary, config.cluster.lost_workers)
    try:
        engine = fleet.ready()
    except BaseException:
        fleet.__exit__()
        raise
    seconds = time.monotonic() - started
    run.summary["engines"]["rollout"] = engine
    run.summary["timings_s"]["fleet_start"] = round(seconds, 1)
    print(
        f"[fleet] {engine['workers']} x {engine['name']} {engine['version']}, "
        f"{engine['device']}, {engine['dtype']}, "
        f"canary gap {engine['canary_gap']:.1e} nats, {seconds:.1f} s",
        flush=True,
    )
    return fleet


def roll_out(
    config: RolloutRecipeConfig,
    corpus: Corpus,
    policy: Checkpoint,
    fleet: Fleet,
    run: Run,
    round_: int = 1,
) -> Groups:
    """K samples of the policy and the ground truth for each of `rollout.prompts` training prompts.

    Every round takes other prompts, as long as there are any.
    """
    count, samples = config.rollout.prompts, config.rollout.samples

    def work(phase: Phase) -> dict[str, Any]:
        ids = choose(corpus, "train", count, config.seed, skip=(round_ - 1) * count)
        started, tokens, candidates = time.monotonic(), 0, []
        phase.say(f"started: {len(ids)} prompts x {samples} samples")
        for trajectories in fleet.generate(
            prompts(corpus, ids, policy), samples, config.seed + 1000 * (round_ - 1)
        ):
            candidates += [sampled(t) for t in trajectories]
            tokens += sum(len(t.tokens) for t in trajectories)
            done, seconds = len(candidates), time.monotonic() - started
            phase.logger.log({"trajectories": done, "tokens_per_s": tokens / seconds}, done)
        seconds = time.monotonic() - started
        layout = policy.actions.space.layout
        candidates += [
            recorded(i, policy.actions.to_tokens(corpus.clip(i).listener.subset(layout)))
            for i in ids
        ]
        write_candidates(phase.directory / "candidates.parquet", candidates)
        phase.say(f"{tokens} action tokens, {tokens / seconds:.0f} tokens/s")
        return {
            "counts": {
                "rollout_prompts": len(ids),
                "trajectories": len(ids) * samples,
                "action_tokens": tokens,
            },
            "tokens_per_s": round(tokens / seconds),
            "artifacts": {"candidates": str(phase.directory / "candidates.parquet")},
        }

    result = run.once("rollout", work, round_)
    run.summary["metrics"]["rollout_tokens_per_s"] = result["tokens_per_s"]
    return read_candidates(Path(result["artifacts"]["candidates"]))


def render_candidates(
    config: RolloutRecipeConfig,
    corpus: Corpus,
    policy: Checkpoint,
    groups: Groups,
    renderers: RenderPool,
    run: Run,
    round_: int = 1,
) -> None:
    """Side-by-side videos of the candidates of the first prompts, the speaker's voice with them."""

    def work(phase: Phase) -> dict[str, Any]:
        chosen = [c for group in groups.values() for c in group][: config.render.videos]
        jobs = (
            video_of(c, phase.directory / f"{c.prompt_id}_{c.candidate_id}.mp4", corpus, policy)
            for c in chosen
        )
        return render_videos(config.render, jobs, renderers, phase)

    run.once("render", work, round_)


def package(
    config: RolloutRecipeConfig, corpus: Corpus, policy: Checkpoint, groups: Groups, run: Run
) -> None:
    """What people are given to rate: whole groups, as many as `render.videos` holds, under neutral
    names.
    """

    def work(phase: Phase) -> dict[str, Any]:
        chosen = whole_groups(groups, config.render.videos)
        names = neutral_names(
            {i: [c.candidate_id for c in group] for i, group in chosen.items()}, config.seed
        )
        write_package(phase.directory, names)
        videos = phase.directory / HAND_OUT / "videos"
        videos.mkdir(exist_ok=True)
        by_id = {(c.prompt_id, c.candidate_id): c for group in chosen.values() for c in group}
        jobs = (
            video_of(by_id[shown], videos / f"{name}.mp4", corpus, policy)
            for name, shown in names.items()
        )
        with render_pool(config) as renderers:
            result = render_videos(config.render, jobs, renderers, phase)
        phase.say(f"{len(chosen)} groups; hand out {phase.directory / HAND_OUT}, keep manifest.csv")
        manifest = {"manifest": str(phase.directory / "manifest.csv")}
        return result | {"artifacts": result["artifacts"] | manifest}

    run.once("package", work)


def whole_groups(groups: Groups, videos: int) -> Groups:
    """The first groups that `videos` videos hold; a group is rated as a whole or not at all."""
    chosen: Groups = {}
    for prompt_id, group in groups.items():
        if sum(map(len, chosen.values())) + len(group) > videos:
            break
        chosen[prompt_id] = group
    if not chosen:
        size = len(next(iter(groups.values())))
        raise RunError(
            f"render.videos={videos} is less than one group of {size} candidates; raise it"
        )
    return chosen


def video_of(candidate: Candidate, path: Path, corpus: Corpus, policy: Checkpoint) -> VideoJob:
    clip = corpus.clip(candidate.prompt_id)
    listener = Panel("listener", policy.actions.to_motion(candidate.tokens))
    return VideoJob(path, (speaker_panel(clip), listener), clip.speaker_audio)


def render_pool(config: RolloutRecipeConfig | FlowRecipeConfig) -> RenderPool:
    c = config.render
    return RenderPool(
        render_options(c, config.head),
        c.workers,
        c.cpus,
        c.timeout_s,
        config.cluster.lost_workers,
        c.nodes,
    )


def render_videos(
    config: RenderConfig, jobs: Iterable[VideoJob], renderers: RenderPool, phase: Phase
) -> dict[str, Any]:
    """Render jobs on the pool; returns the phase's result."""
    started, frames, videos = time.monotonic(), 0, 0
    for _, drawn in renderers.render(jobs):
        frames, videos = frames + drawn, videos + 1
    phase.say(
        f"{videos} videos, {frames} panel frames, {frames / (time.monotonic() - started):.0f} "
        "frames/s"
    )
    return {
        "counts": {f"{phase.name}_videos": videos},
        "artifacts": {f"{phase.name}_videos": str(phase.directory)},
        "engines": {
            "render": {"name": "numba z-buffer", "workers": config.workers, "codec": config.codec}
        },
    }


def render_options(config: RenderConfig, head: HeadConfig) -> RenderOptions:
    return RenderOptions(
        None if head.path is None else str(head.path),
        head.topology,
        config.size,
        config.supersample,
        config.codec,
        config.crf,
    )


def speaker_panel(clip: Clip) -> Panel:
    return Panel("speaker", clip.speaker, clip.speaker_shape)


def choose(corpus: Corpus, split: str, count: int, seed: int, skip: int = 0) -> list[str]:
    """`count` clip ids of a split (all, if it has fewer), in an order that the seed decides.

    The first `skip` are left for later: past the end of the order it starts again.
    """
    ids = corpus.clip_ids(split)
    order = np.roll(np.random.default_rng([seed, len(ids)]).permutation(len(ids)), -skip)
    return [ids[i] for i in order[:count]]


def prompts(corpus: Corpus, ids: Iterable[str], policy: Checkpoint) -> Iterator[Any]:
    return (prompt_of(corpus.clip(clip_id), policy) for clip_id in ids)


def to_motions(policy: Checkpoint, candidates: Iterable[Candidate]) -> dict[str, Motion]:
    """Candidate id -> motion at the corpus frame rate."""
    return {c.candidate_id: policy.actions.to_motion(c.tokens) for c in candidates}
