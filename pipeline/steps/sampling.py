"""Sampling: the fleet, candidates of training prompts, and what people are given to rate."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rapport.actors.engines import InProcess, TokenEngine, canary_tolerance, engine_environment
from rapport.actors.fleet import CANARY_TOKENS, Canary, Fleet, Request
from rapport.actors.renderer import Panel, RenderPool, VideoJob
from rapport.actors.settings import CandidateFlowConfig, EngineConfig, FleetConfig
from rapport.log import logger
from rapport.pipeline.data.candidates import (
    Answered,
    Candidate,
    read_candidates,
    recorded,
    sampled,
    write_candidates,
)
from rapport.pipeline.data.rating_package import HAND_OUT, neutral_names, write_package
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.objectives.settings import FlowGdpoConfig
from rapport.pipeline.rundir import Phase, PhaseResult, RunError, Workspace, left_in, phase
from rapport.pipeline.settings import (
    GdpoOfFlow,
    JudgedOfFlow,
    Preferences,
    Rated,
    Sampling,
)
from rapport.pipeline.steps import flow_studies
from rapport.pipeline.steps.corpus import chosen
from rapport.pipeline.steps.imitation import imitate
from rapport.pipeline.steps.learning import Imitated
from rapport.pipeline.steps.showing import render_pool, render_videos, speaker_panel
from rapport.policies.flow.policy import Sampler
from rapport.policies.flow.rollouts import Exploration, NoisyWindow, PaperSde
from rapport.policies.motion import Motion
from rapport.policies.policy import Policy, Prompt
from rapport.policies.vla.policy import TokenSampler, VlaPolicy

CandidateGroups = dict[str, list[Candidate]]


@contextmanager
def fleet_of(
    run: Workspace, config: Sampling, imitated: Imitated, *, sampler: Any = None
) -> Iterator[Fleet]:
    """Engines that hold the imitating policy, checked against a plain forward pass.

    Args:
        run: its summary says what runs.
        config: of the recipe.
        imitated: the policy and its corpus.
        sampler: how it samples; None = as the recipe does, see `fleet_sampler`.
    """
    started = time.monotonic()
    policy = imitated.policy
    policy.sampler = sampler or fleet_sampler(config, policy)
    with start_fleet(config.rollout, config.cluster.lost_workers, imitated) as fleet:
        engine = fleet.ready()
        seconds = time.monotonic() - started
        run.summary["engines"]["rollout"] = engine
        run.summary["timings_s"]["fleet_start"] = round(seconds, 1)
        gap = ""
        if "canary_gap" in engine:
            largest, mean = engine["canary_gap"], engine["canary_gap_mean"]
            gap = f", canary gap {largest:.1e} nats (mean {mean:.1e})"
        logger.info(
            f"[fleet] {engine['workers']} x {engine['name']} {engine['version']}, "
            f"{engine['device']}, {engine['dtype']}{gap}, {seconds:.1f} s"
        )
        yield fleet


def start_fleet(config: FleetConfig, losses: int, imitated: Imitated) -> Fleet:
    """The fleet of a policy, which samples as `imitated.policy.sampler` says.

    The VLA has engines, vLLM or transformers; others run in their actors.
    """
    policy = imitated.policy
    checkpoint = str(imitated.policy_path)
    if not isinstance(config, EngineConfig) or not isinstance(policy, VlaPolicy):
        start = partial(InProcess, checkpoint, policy.sampler, config.gpus)
        return Fleet(start, config, losses=losses)
    canary = Canary(
        prompt=policy.canary(imitated.corpus.at("train", 0)),
        tolerance=canary_tolerance(config),
        actions=min(CANARY_TOKENS, policy.model.config.action_tokens),
    )
    return Fleet(
        partial(TokenEngine, checkpoint, config),
        config,
        losses=losses,
        environment=engine_environment(config),
        policy=policy,
        canary=canary,
    )


def fleet_sampler(config: Sampling, policy: Policy) -> Any:
    """How a recipe's fleet samples: candidates, rollouts to be rewarded, reactions to be judged."""
    if isinstance(config.rollout, CandidateFlowConfig):
        return Sampler(evaluations=config.rollout.evaluations)
    if isinstance(config, GdpoOfFlow):
        judged = flow_studies.ode_sampler(config.judge, guided=False)
        return replace(
            judged, exploration=exploration_of(config.gdpo, judged), chunk=config.gdpo.chunk
        )
    return judged_sampler(config, policy)


def exploration_of(gdpo: FlowGdpoConfig, judged: Sampler) -> Exploration | None:
    """How rollouts of GDPO leave the sampler that is judged; None = they do not."""
    if gdpo.estimator == "pathwise":
        return None
    if gdpo.rollouts == "sde":
        return PaperSde(gdpo.steps, gdpo.sigma)
    return NoisyWindow(judged.solver, judged.evaluations, gdpo.sigma, noisy=gdpo.noisy_steps)


def judged_sampler(config: Sampling, policy: Policy) -> Any:
    """How held-out reactions are sampled."""
    if isinstance(config.rollout, EngineConfig):
        return TokenSampler(temperature=config.rollout.temperature)
    if isinstance(config, JudgedOfFlow):
        return flow_studies.ode_sampler(config.judge)
    return policy.sampler


class Prompts(Mapping[str, Prompt]):
    """The prompts of a split by clip id, made when they are asked for.

    Args:
        imitated: the policy, its corpus, and prompts made in advance where there are any.
        split: of the corpus.
    """

    def __init__(self, imitated: Imitated, split: str) -> None:
        self.imitated = imitated
        self.clip_ids = imitated.corpus.clip_ids(split)
        self._table = imitated.encoded(split)
        self._rows: dict[str, int] = {}
        if self._table is not None:
            listeners = {f"{clip_id}/listener" for clip_id in self.clip_ids}
            for index, window_id in enumerate(self._table["prompt_id"]):
                if window_id in listeners:
                    self._rows[window_id.removesuffix("/listener")] = index

    def __getitem__(self, clip_id: str) -> Prompt:
        policy = self.imitated.policy
        if self._table is None:
            return policy.encode(self.imitated.corpus.clip(clip_id))
        return policy.prompt_of(self._table[self._rows[clip_id]] | {"prompt_id": clip_id})

    def __iter__(self) -> Iterator[str]:
        return iter(self.clip_ids)

    def __len__(self) -> int:
        return len(self.clip_ids)


def starting_point(run: Workspace, config: Preferences) -> Imitated:
    """Corpus and imitating policy: trained here, or those of an earlier `rollout` run."""
    if config.candidates is None:
        imitated = imitate(run, config)
    else:
        imitated = earlier_imitation(config.candidates)
    run.leave({"corpus": imitated.corpus.path, "sft_policy": imitated.policy_path})
    if imitated.windows is not None:
        run.leave({"encode_tables": imitated.windows})
    return imitated


def candidates(
    run: Workspace,
    config: Preferences,
    imitated: Imitated,
    fleet: Fleet,
    renderers: RenderPool | None,
    *,
    round_index: int = 1,
) -> CandidateGroups:
    """Sampled here and rendered where there are renderers, or those of an earlier `rollout` run.

    Where recorded listeners make all pairs, prompts are chosen and nothing is sampled for them.
    """
    if config.candidates is not None and round_index == 1:
        return read_candidates(earlier(config.candidates, "candidates"))
    if not config.samples_candidates:
        clip_ids = imitated.corpus.clip_ids("train")
        ids = prompts_of_round(config, imitated.policy, clip_ids, round_index=round_index)
        return {clip_id: [] for clip_id in ids}
    groups = roll_out(run, config, imitated, fleet=fleet, round_index=round_index)
    if renderers is not None and not config.live:  # people are shown all of them
        render_candidates(
            run, config, imitated, groups=groups, renderers=renderers, round_index=round_index
        )
    return groups


def roll_out(
    run: Workspace, config: Rated, imitated: Imitated, fleet: Fleet, *, round_index: int = 1
) -> CandidateGroups:
    """K samples of the policy and the recorded listener for each of `rollout.prompts` prompts.

    The recorded one is left out where the policy cannot tell what it did.
    Every round takes other prompts, as long as there are any.
    """
    result = _rollout(run, config, imitated, fleet=fleet, round_index=round_index)
    run.summary["metrics"]["rollout_tokens_per_s"] = result.value["tokens_per_s"]
    return read_candidates(result.artifacts["candidates"])


@phase("rollout")
def _rollout(
    step: Phase, config: Rated, imitated: Imitated, fleet: Fleet, *, round_index: int
) -> PhaseResult:
    policy = imitated.policy
    samples = config.rollout.samples
    prompts = Prompts(imitated, "train")
    ids = prompts_of_round(config, policy, prompts.clip_ids, round_index=round_index)
    seeds = policy.seeds("candidates", config.seed, round_index - 1, prompt_ids=ids)
    answered = Answered(step.directory / "answered", ids, size=config.rollout.batch_prompts)
    left = answered.left(samples)
    before = "" if len(left) == len(answered) else f", {len(left)} of {len(answered)} batches left"
    step.say(f"started: {len(ids)} prompts x {samples} samples{before}")
    requests = (
        Request(
            number,
            prompts=[prompts[clip_id] for clip_id in ids[answered.places(number)]],
            seeds=seeds[answered.places(number)],
            samples=samples,
        )
        for number in left
    )
    rate = _ask(step, fleet, requests, policy=policy, answered=answered)
    whole = answered.candidates()
    actions = sum(len(candidate.actions) for candidate in whole)
    for clip_id in ids if policy.tells_recorded else ():
        whole.append(recorded(policy.recorded(imitated.corpus.clip(clip_id, ())), policy))
    file = step.directory / "candidates.parquet"
    count = write_candidates(file, whole, policy)
    answered.forget()
    step.say(f"{actions} actions, {rate:.0f} a second")
    return PhaseResult(
        artifacts={"candidates": file},
        counts={
            "rollout_prompts": len(ids),
            "trajectories": len(ids) * samples,
            "action_tokens": actions,
            "candidates": count,
        },
        value={"tokens_per_s": round(rate)},
    )


def _ask(
    step: Phase, fleet: Fleet, requests: Iterable[Request], *, policy: Policy, answered: Answered
) -> float:
    """Actions a second. Each answer is kept at once: a run that is killed asks for the others only.

    Args:
        step: the phase.
        fleet: who answers.
        requests: batches without an answer.
        policy: whose actions they are.
        answered: takes the answers.
    """
    started = time.monotonic()
    rate = 0.0
    trajectories = actions = 0
    for request, groups in fleet.answers(requests):
        reactions = [reaction for group in groups for reaction in group]
        candidates = [sampled(reaction, policy) for reaction in reactions]
        write_candidates(answered.file(request.number), candidates, policy)
        trajectories += len(reactions)
        actions += sum(len(reaction.actions) for reaction in reactions)
        rate = actions / (time.monotonic() - started)
        step.logger.log({"trajectories": trajectories, "tokens_per_s": rate}, trajectories)
    return rate


def prompts_of_round(
    config: Rated, policy: Policy, clip_ids: list[str], round_index: int
) -> list[str]:
    """The clips whose prompts are answered."""
    count = config.rollout.prompts
    skip = (round_index - 1) * count
    if policy.seed_per_prompt:
        return chosen(clip_ids, count, seed=config.seed, skip=skip)
    # Seeds go by place in the batch: the clips stand in the order of the corpus.
    order = np.roll(np.random.default_rng(config.seed).permutation(len(clip_ids)), -skip)
    return [clip_ids[index] for index in sorted(order[:count])]


# -- For people --


@phase("render")
def render_candidates(
    step: Phase,
    config: Rated,
    imitated: Imitated,
    groups: CandidateGroups,
    renderers: RenderPool,
    *,
    round_index: int,
) -> PhaseResult:
    """Side-by-side videos of the candidates of the first prompts, with the speaker's voice."""
    first = [candidate for group in groups.values() for candidate in group][: config.render.videos]
    jobs = (
        video_of(c, step.directory / f"{c.prompt_id}_{c.candidate_id}.mp4", imitated) for c in first
    )
    return render_videos(config.render, jobs, renderers, step=step)


@phase("package")
def package(
    step: Phase,
    config: Rated,
    imitated: Imitated,
    groups: CandidateGroups,
    *,
    round_index: int = 1,
) -> PhaseResult:
    """What people are given to rate: whole groups under neutral names."""
    whole = whole_groups(groups, config.render.videos)
    members = {i: [candidate.candidate_id for candidate in group] for i, group in whole.items()}
    names = neutral_names(members, config.seed)
    write_package(step.directory, names)
    videos = step.directory / HAND_OUT / "videos"
    videos.mkdir(exist_ok=True)
    by_id = {(c.prompt_id, c.candidate_id): c for group in whole.values() for c in group}
    jobs = (
        video_of(by_id[shown], videos / f"{name}.mp4", imitated) for name, shown in names.items()
    )
    with render_pool(config) as renderers:
        result = render_videos(config.render, jobs, renderers, step=step)
    step.say(f"{len(whole)} groups; hand out {step.directory / HAND_OUT}, keep manifest.csv")
    manifest = {"manifest": step.directory / "manifest.csv"}
    return PhaseResult(
        artifacts=dict(result.artifacts) | manifest, counts=result.counts, engines=result.engines
    )


def whole_groups(groups: CandidateGroups, videos: int) -> CandidateGroups:
    """The first groups that `videos` videos hold; a group is rated as a whole or not at all."""
    whole: CandidateGroups = {}
    for prompt_id, group in groups.items():
        if sum(map(len, whole.values())) + len(group) > videos:
            break
        whole[prompt_id] = group
    if not whole:
        size = len(next(iter(groups.values())))
        raise RunError(
            f"render.videos={videos} is less than one group of {size} candidates; raise it"
        )
    return whole


def video_of(
    candidate: Candidate, path: Path, imitated: Imitated, *, beside: str | None = None
) -> VideoJob:
    """Speaker and listener side by side; `beside` is the prompt of another speaker."""
    clip = imitated.corpus.clip(beside or candidate.prompt_id)
    motion = imitated.policy.to_motion(candidate.reaction)
    panels = (speaker_panel(clip, len(motion)), Panel("listener", motion))
    return VideoJob(path, panels, clip.speaker_audio)


# -- Earlier runs --


def artifacts_of(directory: Path) -> dict[str, Path]:
    """What an earlier `rollout` run left, and where."""
    artifacts = left_in(directory)
    if artifacts is None:
        raise RunError(
            f"candidates={directory}: no summary.json there; it must be the folder of a "
            "`rollout` run"
        )
    return artifacts


def motions_of_group(imitated: Imitated, group: Iterable[Candidate]) -> dict[str, Motion]:
    """Candidate id -> motion, of the candidates of a prompt."""
    policy = imitated.policy
    return {candidate.candidate_id: policy.to_motion(candidate.reaction) for candidate in group}


def earlier(directory: Path, artifact: str) -> Path:
    """Where an earlier `rollout` run left an artefact."""
    artifacts = artifacts_of(directory)
    if artifact not in artifacts:
        raise RunError(
            f"candidates={directory}: that run left no {artifact!r}, only {sorted(artifacts)}"
        )
    path = artifacts[artifact]
    if not path.exists():
        raise RunError(
            f"candidates={directory}: its {artifact} is no longer at {path}; put it back there, or "
            "run `rollout` again"
        )
    return path


def earlier_imitation(directory: Path) -> Imitated:
    """Corpus and policy of an earlier `rollout` run."""
    artifacts = artifacts_of(directory)
    names = [name for name in ("sft_policy", "flow_policy", "imitate_policy") if name in artifacts]
    return Imitated(
        Corpus(earlier(directory, "corpus")),
        earlier(directory, names[0] if names else "sft_policy"),
        artifacts.get("encode_tables"),
    )
