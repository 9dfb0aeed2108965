"""The methods that `rank` ranks: baselines, and the policies of finished runs.

All of them answer the same held-out clips.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rapport.actors.rater import Viewer
from rapport.arrays import load_array
from rapport.pipeline.config import read_yaml
from rapport.pipeline.data.regression import RegressionListener
from rapport.pipeline.data.store import (
    PAST,
    TRUTH,
    Corpus,
    CorpusError,
    Listeners,
    load_truth,
)
from rapport.pipeline.report.ranking import GROUND_TRUTH
from rapport.pipeline.rundir import (
    Phase,
    PhaseResult,
    Run,
    RunError,
    found,
    noted,
    phase,
    still_there,
)
from rapport.pipeline.settings import RankConfig
from rapport.pipeline.steps.checks import cluster_of
from rapport.pipeline.steps.corpus import choose
from rapport.pipeline.steps.flow_studies import ode_sampler
from rapport.pipeline.steps.imitation import begins_aligned
from rapport.pipeline.steps.imitation_vla import action_layout
from rapport.pipeline.steps.jury import ALIGNED_BEFORE
from rapport.pipeline.steps.learning import Imitated
from rapport.pipeline.steps.rules import Rules
from rapport.pipeline.steps.sampling import Prompts, fleet_of
from rapport.pipeline.steps.settings import MovementConfig
from rapport.pipeline.tracking import metric_key
from rapport.policies.clip import Clip
from rapport.policies.flow.policy import FlowPolicy
from rapport.policies.motion import Layout, Motion
from rapport.policies.policy import Policy, load_policy
from rapport.policies.vla.policy import VlaPolicy
from rapport.policies.vla.settings import ActionConfig
from rapport.rewards.metrics.baselines import (
    NearestNeighbour,
    SpeakerInput,
    draw_listener,
    mirror,
)

ALGORITHMS = ("dpo", "gdpo", "sft")
RECIPES = {"sft": ("sft", "reactface")}  # that leave no more than an imitating policy
IMITATORS = {"vla": "sft_policy", "flow": "flow_policy"}  # others: imitate_policy
# Names in the usual cases; see `TrainedRun.methods` for the others.
METHODS: dict[tuple[str, str], tuple[str, ...]] = {
    ("dpo", "vla"): ("SFT", "SFT + DPO"),
    ("gdpo", "flow"): ("AR-Flow", "GDPO"),
    ("sft", "reactface"): ("ReactFace",),
}
Answers = dict[str, list[Motion]]  # clip id -> reactions


# -- Runs --


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A finished run whose policies are ranked.

    Args:
        algorithm: of ALGORITHMS.
        kind: of policy.
        imitated: corpus and imitating policy.
        aligned: folder of the aligned policy; None = nothing was aligned.
        judge: how the run judged AR-Flow; None for other policies.
        further: whether the policy that it began with was aligned before.
    """

    algorithm: str
    kind: str
    imitated: Imitated
    aligned: Path | None
    judge: MovementConfig | None = None
    further: bool = False

    @classmethod
    def of_folder(cls, algorithm: str, folder: Path) -> TrainedRun:
        """The run that `rank.ALGORITHM` names.

        Raises:
            RunError: it is none, it is of another version, or something of it is gone.
        """
        summary = _finished(algorithm, folder)
        where = f"rank.{algorithm}={folder}"
        try:
            settings = read_yaml(folder / "config.yaml")
            kind = str(settings["policy"])
            judge = MovementConfig(**settings.get("judge", {})) if kind == "flow" else None
            further = begins_aligned(settings)
        except (KeyError, ValueError) as error:
            raise RunError(
                f"{where}: its config.yaml is of another version ({error}); run `{algorithm}` again"
            ) from error
        # A run on earlier candidates says sft_policy whatever the policy.
        imitator = IMITATORS.get(kind, "imitate_policy")
        if imitator not in summary["artifacts"]:
            imitator = "sft_policy"
        aligned = None if algorithm == "sft" else f"{algorithm}_policy"
        names = ["corpus", imitator, *filter(None, [aligned])]
        if "encode_tables" in summary["artifacts"]:
            names.append("encode_tables")
        artifacts, gone = still_there(folder, summary, names)
        if gone:
            raise RunError(
                f"{where}: its {', '.join(gone)} is no longer where its summary.json says; run "
                f"`{algorithm}` again"
            )
        imitated = Imitated(
            Corpus(artifacts["corpus"]), artifacts[imitator], artifacts.get("encode_tables")
        )
        folder_of = None if aligned is None else artifacts[aligned]
        return cls(algorithm, kind, imitated, aligned=folder_of, judge=judge, further=further)

    @property
    def policies(self) -> list[Policy]:
        """Before alignment, and after it where there was any."""
        before = self.imitated.policy
        return [before] if self.aligned is None else [before, load_policy(self.aligned)]

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of its policies in the ranking, other than those of any other run."""
        usual = METHODS.get((self.algorithm, self.kind))
        if usual is not None and not self.further:
            return usual
        policy = self.imitated.policy
        kind = self.kind.rpartition(":")[2]  # a class of one's own without its module
        names = [ALIGNED_BEFORE if self.further else policy.supervised]
        if self.aligned is not None:
            names.append(policy.aligned[self.algorithm])
        return tuple(f"{name} ({self.algorithm}, {kind})" for name in names)


def _finished(algorithm: str, folder: Path) -> dict[str, Any]:
    """The summary of a finished run of an algorithm."""
    where = f"rank.{algorithm}={folder}"
    file = folder / "summary.json"
    if not file.is_file():
        raise RunError(
            f"{where}: no summary.json there; it must be the folder of a finished `{algorithm}` run"
        )
    summary: dict[str, Any] = json.loads(file.read_text())
    recipes = RECIPES.get(algorithm, (algorithm,))
    if summary["recipe"] not in recipes or summary["status"] != "finished":
        raise RunError(
            f"{where}: a {summary['status']} `{summary['recipe']}` run, not a finished "
            f"`{algorithm}` run"
        )
    return summary


def common_corpus(corpora: Mapping[str, Corpus]) -> Corpus | None:
    """The corpus of all runs, None without a run.

    Raises:
        CorpusError: they were trained on unlike ones.
    """
    digests = {corpus.digest for corpus in corpora.values()}
    if len(digests) > 1:
        lines = [
            f"\n  rank.{algorithm}: {corpus.path}, digest {corpus.digest[:12]}"
            for algorithm, corpus in corpora.items()
        ]
        raise CorpusError(
            f"the runs to be ranked have unlike corpora:{''.join(lines)}\nTrain one of them again "
            "on the other's: corpus.kind=parquet corpus.root=THAT_FOLDER"
        )
    return next(iter(corpora.values()), None)


def ranked_layout(runs: Sequence[TrainedRun], corpus: Corpus) -> Layout:
    """A VLA's own groups; without a VLA, those that it has by default."""
    for run in runs:
        if isinstance(run.imitated.policy, VlaPolicy):
            return run.imitated.policy.layout
    return action_layout(ActionConfig(), corpus.layout)


# -- Their answers --


def answered(
    run: Run,
    name: str,
    ids: Sequence[str],
    layout: Layout,
    answer: Callable[[], Mapping[str, Answers]],
) -> dict[str, np.ndarray]:
    """Method -> its reactions (clips, samples, time, dim) in `layout`.

    They are kept as npy files, which `evaluate` takes.

    Args:
        run: the recipe's.
        name: of the phase.
        ids: of the clips.
        layout: groups that are compared.
        answer: asks the methods; not called again where a resumed run has their answers.
    """

    @phase(f"answers-{name}")
    def answers(step: Phase) -> PhaseResult:
        files = {}
        for method, by_clip in answer().items():
            file = step.directory / f"{metric_key(method)}.npy"
            files[method] = noted(file, run.root)
            values = [[motion.subset(layout).values for motion in by_clip[i]] for i in ids]
            np.save(file, values)
        step.say(f"{', '.join(files)}: {len(ids)} clips")
        return PhaseResult(value=files)

    files = answers(run).value
    return {method: load_array(found(file, run.root)) for method, file in files.items()}


def answers_of(
    run: Run, config: RankConfig, trained: TrainedRun, ids: Sequence[str]
) -> dict[str, Answers]:
    """Those of the policies of a run, before and after alignment."""
    policies = trained.policies
    vlas = [policy for policy in policies if isinstance(policy, VlaPolicy)]
    if vlas:
        answers = by_fleet(run, config, trained.imitated, policies=vlas)
    else:
        answers = [in_process(config, trained, policy, ids=ids) for policy in policies]
    return dict(zip(trained.methods, answers, strict=True))


def by_fleet(
    run: Run, config: RankConfig, imitated: Imitated, policies: Sequence[VlaPolicy]
) -> list[Answers]:
    """Sampled by engines that take the weights of one VLA after the other.

    Args:
        run: the recipe's.
        config: of the recipe.
        imitated: corpus and first policy.
        policies: who answers; engines hold the first one when they start.
    """
    prompts = Prompts(imitated, "test")
    asked = choose(imitated.corpus, "test", config.rank.prompts, seed=config.seed)
    answers = []
    with (
        cluster_of(config),
        fleet_of(run, config, imitated) as fleet,
    ):
        for policy in policies:
            if policy is not policies[0]:
                fleet.update(policy.weights(), policy)
            seeds = policy.seeds("held out", config.seed, 0, prompt_ids=asked)
            groups = fleet.groups([prompts[i] for i in asked], config.rank.samples, seeds)
            by_clip: Answers = {}
            for clip_id, group in zip(asked, groups, strict=True):
                by_clip[clip_id] = [policy.to_motion(reaction) for reaction in group]
            answers.append(by_clip)
    return answers


def in_process(
    config: RankConfig, trained: TrainedRun, policy: Policy, ids: Sequence[str]
) -> Answers:
    """Sampled by the policy itself; AR-Flow by the ODE that its run judged it by.

    AR-Flow has no text prompt: those describe the recorded face, which no other method is told of.

    Args:
        config: of the recipe.
        trained: the policy's run.
        policy: who answers.
        ids: of the clips.
    """
    samples = config.rank.samples
    seeds = [policy.seeds("held out", config.seed, 0, prompt_ids=ids)]
    if isinstance(policy, FlowPolicy):
        assert trained.judge is not None
        policy = policy.with_sampler(ode_sampler(trained.judge), without_text=True)
        # Every sample of a clip has noise of its own, as if it alone were asked for.
        count = samples * len(ids)
        seeds = (config.seed + 1 + np.arange(count)).reshape(-1, len(ids)).tolist()
        samples = 1
    prompts = Prompts(trained.imitated, "test")
    listeners = [prompts[clip_id] for clip_id in ids]
    answers: Answers = {clip_id: [] for clip_id in ids}
    for seeds_of_pass in seeds:
        groups = policy.sample(listeners, samples, seeds_of_pass)
        for clip_id, group in zip(ids, groups, strict=True):
            answers[clip_id] += [policy.to_motion(reaction) for reaction in group]
    return answers


# -- Baselines --


def baselines(
    config: RankConfig, corpus: Corpus, ids: Sequence[str], layout: Layout
) -> dict[str, Answers]:
    """Ground truth, Random, Mirror, both Nearest Neighbours, regression, rules, the oracle.

    One that the corpus or the head cannot give is left out. All but Random are deterministic: their
    samples are one reaction, again and again.

    Args:
        config: of the recipe.
        corpus: whose training clips are learnt from.
        ids: of the clips to answer.
        layout: groups that are compared.
    """
    heard = ("speaker", "speaker_audio")
    clips = [corpus.clip(clip_id, (*heard, "words", PAST)) for clip_id in ids]
    samples = config.rank.samples
    listeners = Listeners(corpus, "train", layout)

    def every(react: Callable[[Clip], Motion]) -> Answers:
        return {clip.clip_id: [react(clip)] * samples for clip in clips}

    rng = np.random.default_rng(config.seed)
    drawn: Answers = {}
    for clip in clips:
        frames = len(clip.listener)
        chosen = [draw_listener(listeners.lengths, frames, rng) for _ in range(samples)]
        drawn[clip.clip_id] = [listeners[index].window(0, frames) for index in chosen]
    answers = {GROUND_TRUTH: every(lambda clip: clip.listener.subset(layout)), "Random": drawn}
    present = _present(itertools.chain(clips, corpus.clips("train", heard)))
    if "motion" in present:
        answers["Mirror"] = every(lambda clip: _mirrored(clip, layout))
    for modality in present:
        train = corpus.clips("train", heard)
        nearest = NearestNeighbour((_only(clip, modality) for clip in train), listeners)
        answers[f"NN {modality}"] = every(partial(_nearest, nearest, modality))
    if present:
        # It has seen in training what it is shown here, the past included, as the policies have.
        train = corpus.clips("train", (*heard, PAST))
        answers["Regression"] = every(RegressionListener.fit(train, layout))
    rules = Rules.of_corpus(
        listeners,
        {clip.clip_id: clip for clip in clips},
        viewer=Viewer(config.head),
        truth=load_truth(corpus.path) if (corpus.path / TRUTH).is_file() else None,
        seed=config.seed,
    )
    for name, by_clip in rules.answers().items():
        answers[name] = {clip_id: [motion] * samples for clip_id, motion in by_clip.items()}
    return answers


def _present(clips: Iterable[Clip]) -> list[str]:
    """What every clip has of its speaker."""
    present = ["motion", "audio"]
    for clip in clips:
        present = [name for name in present if getattr(_only(clip, name), name) is not None]
    return present


def _only(clip: Clip, modality: str) -> SpeakerInput:
    """A clip's speaker by one modality."""
    if modality == "motion":
        return SpeakerInput(motion=clip.speaker)
    return SpeakerInput(audio=clip.speaker_audio)


def _nearest(nearest: NearestNeighbour, modality: str, clip: Clip) -> Motion:
    return nearest(_only(clip, modality), len(clip.listener))


def _mirrored(clip: Clip, layout: Layout) -> Motion:
    motion = mirror(clip.speaker, layout)
    assert motion is not None, "asked for only where every clip has it"
    return motion
