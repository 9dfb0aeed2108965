"""`rank`: methods by every published protocol that takes a corpus' motion, as published and
corrected.

Policies come from finished `dpo` and `gdpo` runs of one corpus; baselines are made here. All
methods answer the same held-out clips and are cut to the frames and groups that all of them have.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rapport.actors.cluster import cluster
from rapport.log import logger
from rapport.pipeline.config import read_yaml
from rapport.pipeline.data.regression import RegressionListener
from rapport.pipeline.data.store import Corpus, CorpusError
from rapport.pipeline.report.ranking import GROUND_TRUTH, Ranking, report
from rapport.pipeline.rundir import Phase, PhaseResult, Run, RunError, phase, still_there
from rapport.pipeline.settings import RankConfig
from rapport.pipeline.steps.corpus import choose, prepare
from rapport.pipeline.steps.flow_studies import sampler_of
from rapport.pipeline.steps.imitation import Imitated, action_layout
from rapport.pipeline.steps.judging import fit_affect
from rapport.pipeline.steps.movement import faces_of
from rapport.pipeline.steps.protocols import (
    HeldOut,
    Reactions,
    Scorer,
    Scores,
    common_frames,
    cut,
    scorers,
)
from rapport.pipeline.steps.sampling import Prompts, fleet_of
from rapport.pipeline.steps.settings import MovementConfig
from rapport.pipeline.tracking import metric_key
from rapport.policies.flow.policy import FlowPolicy
from rapport.policies.motion import Layout, Motion
from rapport.policies.policy import load_policy
from rapport.policies.vla.policy import TokenSampler, VlaPolicy
from rapport.policies.vla.settings import ActionConfig
from rapport.rewards.metrics.baselines import (
    NearestNeighbour,
    SpeakerInput,
    mirror,
    random_listener,
)

VARIANTS = ("reference", "corrected")
ALGORITHMS = ("dpo", "gdpo")
IMITATORS = {"vla": "sft_policy", "flow": "flow_policy"}  # others: imitate_policy
# Of the two usual cases; others are called as their policy calls itself, with the algorithm.
METHODS = {
    ("dpo", "vla"): ("SFT", "SFT + DPO"),
    ("gdpo", "flow"): ("AR-Flow", "GDPO"),
}
Answers = dict[str, list[Motion]]  # clip id -> reactions


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished run whose policies are ranked.

    Args:
        algorithm: `dpo` or `gdpo`.
        kind: of policy.
        imitated: corpus and imitating policy.
        aligned: folder of the aligned policy.
        judge: how the run judged AR-Flow; None for others.
    """

    algorithm: str
    kind: str
    imitated: Imitated
    aligned: Path
    judge: MovementConfig | None

    @property
    def methods(self) -> tuple[str, str]:
        """Names of both policies in the ranking."""
        policy = self.imitated.policy
        other = (
            f"{policy.supervised} ({self.algorithm}, {self.kind})",
            f"{policy.aligned[self.algorithm]} ({self.kind})",
        )
        return METHODS.get((self.algorithm, self.kind), other)


def run(config: RankConfig, run: Run) -> None:
    """Answer held-out clips by every method, then score them by every protocol."""
    folders = {name: getattr(config.rank, name) for name in ALGORITHMS}
    trained = [trained_by(name, folder) for name, folder in folders.items() if folder is not None]
    absent = [
        f"rank.{name} is empty: its policies are left out"
        for name, folder in folders.items()
        if folder is None
    ]
    corpus = common_corpus({each.algorithm: each.imitated.corpus for each in trained})
    if corpus is None:
        corpus = prepare(run, config.corpus)
    chosen = set(choose(corpus, "test", config.rank.prompts, config.seed))
    ids = [clip_id for clip_id in corpus.clip_ids("test") if clip_id in chosen]  # dyads in a row
    if len(ids) < 2:
        raise RunError(f"{corpus.path} has {len(ids)} held-out clips, a ranking needs 2 or more")
    layout = compared_layout(trained, corpus)
    answers = answered(
        run, "baselines", ids, layout, lambda: baselines(config, corpus, ids, layout)
    )
    for each in trained:
        answers |= answered(
            run, each.algorithm, ids, layout, lambda each=each: reactions_of(run, config, each, ids)
        )
    frames = common_frames(answers)
    held_out = HeldOut.of(corpus, ids, layout, frames)
    train = [listener.subset(layout) for _, listener in corpus.listeners("train")]
    affect = fit_affect(corpus, layout)
    protocols, left_out = scorers(held_out, train, affect, faces_of(config.head, layout.topology))
    reactions = {method: cut(motions, layout, frames) for method, motions in answers.items()}
    values = {
        name: scored(run, name, scorer, held_out, reactions) for name, scorer in protocols.items()
    }
    report(
        Ranking(
            corpus.digest,
            str(layout),
            len(ids),
            frames,
            config.rank.samples,
            values,
            left_out,
            absent,
        ),
        run,
    )


def compared_layout(trained: Sequence[Trained], corpus: Corpus) -> Layout:
    """A VLA's own groups, the default ones without it."""
    for each in trained:
        if isinstance(each.imitated.policy, VlaPolicy):
            return each.imitated.policy.layout
    return action_layout(ActionConfig(), corpus.layout)


def trained_by(algorithm: str, directory: Path) -> Trained:
    """The policies of the finished run that `rank.ALGORITHM` names."""
    found = artifacts(algorithm, directory)
    settings = read_yaml(directory / "config.yaml")
    kind = settings["policy"]
    imitated = Imitated(
        Corpus(found["corpus"]),
        found[IMITATORS.get(kind, "imitate_policy")],
        found.get("encode_tables"),
    )
    judge = MovementConfig(**settings["judge"]) if kind == "flow" else None
    return Trained(algorithm, kind, imitated, found[f"{algorithm}_policy"], judge)


def artifacts(algorithm: str, directory: Path) -> dict[str, Path]:
    """What a finished run has left that a ranking needs.

    Raises:
        RunError: it is none, or something of it is gone.
    """
    where = f"rank.{algorithm}={directory}"
    file = directory / "summary.json"
    if not file.is_file():
        raise RunError(
            f"{where}: no summary.json there; it must be the folder of a finished `{algorithm}` run"
        )
    summary = json.loads(file.read_text())
    if (summary["recipe"], summary["status"]) != (algorithm, "finished"):
        raise RunError(
            f"{where}: a {summary['status']} `{summary['recipe']}` run, not a finished "
            f"`{algorithm}` run"
        )
    kind = read_yaml(directory / "config.yaml").get("policy")
    needed = ["corpus", IMITATORS.get(kind, "imitate_policy"), f"{algorithm}_policy"]
    if kind == "flow":
        needed.append("encode_tables")
    found, gone = still_there(summary, needed)
    if gone:
        raise RunError(
            f"{where}: its {', '.join(gone)} is no longer where its summary.json says; run "
            f"`{algorithm}` again"
        )
    return found


def common_corpus(corpora: Mapping[str, Corpus]) -> Corpus | None:
    """The corpus of all runs, None without a run.

    Raises:
        CorpusError: they were trained on unlike ones.
    """
    if len({corpus.digest for corpus in corpora.values()}) > 1:
        lines = "".join(
            f"\n  rank.{recipe}: {corpus.path}, digest {corpus.digest[:12]}"
            for recipe, corpus in corpora.items()
        )
        raise CorpusError(
            f"the runs to be ranked have unlike corpora:{lines}\nTrain one of them again on the "
            "other's: corpus.kind=parquet corpus.root=THAT_FOLDER"
        )
    return next(iter(corpora.values()), None)


def answered(
    run: Run,
    name: str,
    ids: Sequence[str],
    layout: Layout,
    answer: Callable[[], dict[str, Answers]],
) -> dict[str, np.ndarray]:
    """Method -> its reactions (clips, samples, time, dim) in `layout`.

    Kept as npy files, which `evaluate` takes.
    """

    @phase(f"answers-{name}")
    def answers(step: Phase) -> PhaseResult:
        files = {}
        for method, by_clip in answer().items():
            files[method] = str(step.directory / f"{metric_key(method)}.npy")
            motions = [[motion.subset(layout).values for motion in by_clip[i]] for i in ids]
            np.save(files[method], motions)
        step.say(f"{', '.join(files)}: {len(ids)} clips")
        return PhaseResult(value=files)

    return {method: np.load(file) for method, file in answers(run).value.items()}


def reactions_of(
    run: Run, config: RankConfig, trained: Trained, ids: Sequence[str]
) -> dict[str, Answers]:
    """Both policies of a run, with the settings that it judged them by."""
    policies = (trained.imitated.policy, load_policy(trained.aligned))
    if isinstance(policies[0], FlowPolicy):
        answers = [by_ode(config, trained, policy, ids) for policy in policies]
    elif isinstance(policies[0], VlaPolicy):
        answers = list(by_fleet(run, config, trained, policies, ids))
    else:
        answers = [in_process(config, trained, policy, ids) for policy in policies]
    return dict(zip(trained.methods, answers, strict=True))


def by_fleet(
    run: Run,
    config: RankConfig,
    trained: Trained,
    policies: Sequence[VlaPolicy],
    ids: Sequence[str],
) -> Iterator[Answers]:
    """Sampled by engines that take the weights of one after the other."""
    prompts = Prompts(trained.imitated, "test")
    asked = choose(trained.imitated.corpus, "test", config.rank.prompts, config.seed)
    with cluster(config.cluster.address, config.cluster.cpus) as where:
        logger.info(f"  {where}")
        sampler = TokenSampler(config.rollout.temperature)
        with fleet_of(run, config, trained.imitated, sampler) as fleet:
            for number, policy in enumerate(policies):
                if number:
                    fleet.update(policy.weights(), policy)
                seeds = policy.seeds("held out", config.seed, 0, asked)
                groups = fleet.groups([prompts[i] for i in asked], config.rank.samples, seeds)
                yield {
                    clip_id: [policy.to_motion(reaction) for reaction in group]
                    for clip_id, group in zip(asked, groups, strict=True)
                }


def by_ode(config: RankConfig, trained: Trained, policy: FlowPolicy, ids: Sequence[str]) -> Answers:
    """AR-Flow on the listeners' windows.

    Without prompts: those describe the recorded face, which no other method is told of.
    """
    prompts = Prompts(trained.imitated, "test")
    listeners = [prompts[clip_id] for clip_id in ids]
    silent = policy.with_sampler(sampler_of(trained.judge), without_text=True)
    samples = config.rank.samples
    seeds = config.seed + 1 + np.arange(samples * len(ids)).reshape(-1, len(ids))
    answers: Answers = {clip_id: [] for clip_id in ids}
    for row in seeds.tolist():
        for clip_id, group in zip(ids, silent.sample(listeners, 1, row), strict=True):
            answers[clip_id].append(silent.to_motion(group[0]))
    return answers


def in_process(config: RankConfig, trained: Trained, policy: Any, ids: Sequence[str]) -> Answers:
    """A policy of one's own, in this process."""
    prompts = Prompts(trained.imitated, "test")
    seeds = policy.seeds("held out", config.seed, 0, ids)
    groups = policy.sample([prompts[i] for i in ids], config.rank.samples, seeds)
    return {
        clip_id: [policy.to_motion(reaction) for reaction in group]
        for clip_id, group in zip(ids, groups, strict=True)
    }


def baselines(
    config: RankConfig, corpus: Corpus, ids: Sequence[str], layout: Layout
) -> dict[str, Answers]:
    """Ground truth, Random, Mirror, both Nearest Neighbours, regression; one that the corpus cannot
    give is left out.

    All but Random are deterministic: their samples are one reaction, again and again.
    """
    train, clips = list(corpus.clips("train")), [corpus.clip(clip_id) for clip_id in ids]
    samples, rng = config.rank.samples, np.random.default_rng(config.seed)
    listeners = [clip.listener.subset(layout) for clip in train]
    found: dict[str, Answers] = {
        GROUND_TRUTH: {c.clip_id: [c.listener.subset(layout)] * samples for c in clips},
        "Random": {
            c.clip_id: [random_listener(listeners, len(c.listener), rng) for _ in range(samples)]
            for c in clips
        },
    }
    speakers = {
        "motion": lambda c: SpeakerInput(motion=c.speaker),
        "audio": lambda c: SpeakerInput(audio=c.speaker_audio),
    }
    given = [
        name
        for name, of in speakers.items()
        if all(getattr(of(c), name) is not None for c in (*train, *clips))
    ]
    if "motion" in given:
        found["Mirror"] = {c.clip_id: [mirror(c.speaker, layout)] * samples for c in clips}
    for name in given:
        nearest = NearestNeighbour([speakers[name](c) for c in train], listeners)
        found[f"NN {name}"] = {
            c.clip_id: [nearest(speakers[name](c), len(c.listener))] * samples for c in clips
        }
    if given:
        regression = RegressionListener.fit(train, layout)
        found["Regression"] = {c.clip_id: [regression(c)] * samples for c in clips}
    return found


def scored(
    run: Run, protocol: str, scorer: Scorer, held_out: HeldOut, reactions: Mapping[str, Reactions]
) -> dict[str, dict[str, dict[str, Scores]]]:
    """Part of the held-out clips -> variant -> method -> metrics: of all, and of either half."""

    @phase(protocol)
    def scores(step: Phase) -> PhaseResult:
        try:
            values = by_part(scorer, held_out, reactions)
        except ValueError as error:
            raise RunError(f"protocol {protocol}: {error}") from error
        step.say(f"{len(values['all']['corrected'][GROUND_TRUTH])} metrics, both variants")
        return PhaseResult(value=values)

    return scores(run).value


def by_part(
    scorer: Scorer, held_out: HeldOut, reactions: Mapping[str, Reactions]
) -> dict[str, dict[str, dict[str, Scores]]]:
    """What `scored` returns."""
    middle = len(held_out.ids) // 2
    parts = {"all": slice(None), "first half": slice(middle), "second half": slice(middle, None)}
    return {
        part: {
            variant: {
                method: scorer(held_out.part(clips), found[clips], variant)
                for method, found in reactions.items()
            }
            for variant in VARIANTS
        }
        for part, clips in parts.items()
    }
