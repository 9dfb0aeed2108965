"""`evaluate`: judge a policy and the baselines on held-out clips (paper IV, protocol of
lm-listener).

With `--pred` it scores files by any protocol instead, see `evaluate_files`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rapport.actors.cluster import cluster
from rapport.actors.fleet import Fleet
from rapport.actors.rater import Group, PanelOptions, RewardPool
from rapport.actors.renderer import Panel, RenderPool, VideoJob
from rapport.pipeline.config import (
    EvaluateConfig,
    HeldOutConfig,
    JudgedRecipeConfig,
    RenderConfig,
)
from rapport.pipeline.data.columns import Truth
from rapport.pipeline.data.store import LABELS, TRUTH, Corpus, load_labels, load_truth
from rapport.pipeline.data.synthetic.words import LEXICON
from rapport.pipeline.recipes.evaluate_files import score_files
from rapport.pipeline.recipes.prepare import prepare
from rapport.pipeline.recipes.rollout import (
    choose,
    prompts,
    render_pool,
    render_videos,
    speaker_panel,
    start_fleet,
)
from rapport.pipeline.recipes.sft import train_sft
from rapport.pipeline.report.page import write_report
from rapport.pipeline.report.paper import METRICS
from rapport.pipeline.report.videos import HELD_OUT, Shown, write_shown
from rapport.pipeline.rundir import Phase, Run, write_atomic
from rapport.pipeline.tracking import metric_key
from rapport.policies.clip import Clip
from rapport.policies.motion import Layout, Motion
from rapport.policies.vla.loading import Checkpoint, load_checkpoint
from rapport.rewards import metrics
from rapport.rewards.affect import RidgeAffectEstimator
from rapport.rewards.metrics.baselines import (
    NearestNeighbour,
    SpeakerInput,
    mirror,
    random_listener,
)
from rapport.rewards.metrics.protocols import lm_listener
from rapport.rewards.metrics.statistics import Interval, mean_interval, prompt_means
from rapport.rewards.ratings.ratings import CRITERIA, Rating
from rapport.rewards.ratings.scores import overall

Answers = dict[str, list[Motion]]  # prompt id -> reactions
Video = tuple[Shown, tuple[Panel, ...], np.ndarray | None]  # with the speaker's voice
JUDGES = 1000  # added to the seed of a panel: other people than those whose ratings make pairs


def run(config: EvaluateConfig, run: Run) -> None:
    if config.files.pred is not None:
        score_files(config, run)
        return
    corpus = prepare(config.corpus, run)
    with cluster(config.cluster.address, config.cluster.cpus) as where:
        print(f"  {where}", flush=True)
        checkpoint = (
            train_sft(config, corpus, run)
            if config.checkpoint is None
            else config.checkpoint.absolute()
        )
        policy = load_checkpoint(checkpoint)
        with start_fleet(config, checkpoint, policy, corpus, run) as fleet:
            answers = sample_held_out(config.evaluation, config.seed, corpus, policy, fleet)
        with reward_pool(config) as rewards:
            judge = Judge.of(config, corpus, policy.actions.space.layout, rewards, run)
            rows = {"policy": judge(answers)} | judge.baselines()
        report(rows, run)
        show(config, corpus, {"policy": answers}, run)
    write_report(run)


def sample_held_out(
    config: HeldOutConfig, seed: int, corpus: Corpus, policy: Checkpoint, fleet: Fleet
) -> Answers:
    """`config.samples` reactions to each held-out prompt; the same seeds whatever the weights."""
    return to_answers(held_out_tokens(config, seed, corpus, policy, fleet), policy)


def held_out_tokens(
    config: HeldOutConfig, seed: int, corpus: Corpus, policy: Checkpoint, fleet: Fleet
) -> dict[str, list[np.ndarray]]:
    """The same as action tokens: prompt id -> samples, each (steps * dims,)."""
    ids = choose(corpus, "test", config.prompts, seed)
    tokens: dict[str, list[np.ndarray]] = {clip_id: [] for clip_id in ids}
    for trajectories in fleet.generate(prompts(corpus, ids, policy), config.samples, seed + 1):
        for t in trajectories:
            tokens[t.prompt_id].append(t.tokens)
    return tokens


def to_answers(tokens: Mapping[str, list[np.ndarray]], policy: Checkpoint) -> Answers:
    return {
        clip_id: [policy.actions.to_motion(t) for t in sampled]
        for clip_id, sampled in tokens.items()
    }


@dataclass(frozen=True)
class Row:
    """One method's line in the table; None = could not be computed on this corpus, which is not
    zero.

    Args:
        metrics: by name.
        scores: prompt id -> mean simulated rating, 1 to 5.
        truth_error: prompt id -> hidden-truth affect error.
    """

    metrics: dict[str, float | None]
    scores: dict[str, float]
    truth_errors: dict[str, float]

    def summary(self, bootstrap: int) -> dict[str, Any]:
        return self.metrics | {
            "simulated_rating": _interval(self.scores, bootstrap),
            "truth_affect_error": mean_given(self.truth_errors.values()),
        }


@dataclass(frozen=True, eq=False)
class Judge:
    """Everything reactions are judged with; nothing here was trained on a held-out clip or on the
    hidden truth.
    """

    seed: int
    weights: Mapping[str, float]
    corpus: Corpus
    layout: Layout
    rewards: RewardPool
    clips: dict[str, Clip]
    affect: RidgeAffectEstimator | None
    truth: dict[str, Truth] | None

    @classmethod
    def of(
        cls,
        config: JudgedRecipeConfig,
        corpus: Corpus,
        layout: Layout,
        rewards: RewardPool,
        run: Run,
    ) -> Judge:
        clips = {
            i: corpus.clip(i)
            for i in choose(corpus, "test", config.evaluation.prompts, config.seed)
        }
        truth = load_truth(corpus.path) if (corpus.path / TRUTH).is_file() else None
        affect = fit_affect(corpus, layout, run)
        return cls(config.seed, config.score.weights, corpus, layout, rewards, clips, affect, truth)

    def __call__(self, answers: Answers) -> Row:
        """Metrics are averaged over all reactions; scores and errors over the reactions of a
        prompt.
        """
        flat = [(i, motion) for i, motions in answers.items() for motion in motions]
        speakers = [self._speaker(i) for i, _ in flat]
        published = metrics.evaluate(
            lm_listener.with_affect(self.affect),
            [motion for _, motion in flat],
            [self.clips[i].listener.subset(self.layout) for i, _ in flat],
            speakers,
        )
        values = {key: published.get(name) for key, name in METRICS.items()}
        counts = {
            "clips": len(flat),
            "p_fd_clips": sum(speaker is not None for speaker in speakers),
        }
        ratings = self._rate(answers)
        criteria = {
            f"simulated_{name}": mean_given(getattr(r, name) for r in ratings) for name in CRITERIA
        }
        scores = prompt_means((r.prompt_id, overall(r, self.weights)) for r in ratings)
        return Row(values | counts | criteria, scores, prompt_means(self._truth_errors(flat)))

    def baselines(self) -> dict[str, Row]:
        """Ground truth, Random, Nearest Neighbour, Mirror; a baseline the corpus cannot give is
        left out.
        """
        train = list(self.corpus.clips("train"))
        listeners = [clip.listener.subset(self.layout) for clip in train]
        rng = np.random.default_rng(self.seed)
        nearest = NearestNeighbour([_input(clip) for clip in train], listeners)
        rows = {
            "ground truth": self(
                {i: [c.listener.subset(self.layout)] for i, c in self.clips.items()}
            ),
            "Random": self(
                {
                    i: [random_listener(listeners, len(c.listener), rng)]
                    for i, c in self.clips.items()
                }
            ),
            "Nearest Neighbour": self(
                {i: [nearest(_input(c), len(c.listener))] for i, c in self.clips.items()}
            ),
        }
        mirrored = {
            i: [m]
            for i, c in self.clips.items()
            if (m := mirror(c.speaker, self.layout)) is not None
        }
        return rows | ({"Mirror": self(mirrored)} if mirrored else {})

    def _speaker(self, clip_id: str) -> Motion | None:
        speaker = self.clips[clip_id].speaker
        return None if speaker is None else speaker.subset(self.layout)

    def _rate(self, answers: Answers) -> list[Rating]:
        groups = [
            group_of(self.clips[i], {f"{i}/{k}": m for k, m in enumerate(motions)})
            for i, motions in answers.items()
        ]
        return [
            rating
            for _, ratings in self.rewards.rate(groups, self.seed + JUDGES)
            for rating in ratings
        ]

    def _truth_errors(self, flat: list[tuple[str, Motion]]) -> list[tuple[str, float | None]]:
        """Root mean square distance of the reaction's estimated affect to the hidden truth, over
        time.
        """
        if self.affect is None or self.truth is None:
            return []
        return [
            (
                i,
                float(
                    np.sqrt(
                        np.mean(
                            (self.affect(m)[:, 0] - self.truth[i].appropriate_affect[:, 0]) ** 2
                        )
                    )
                ),
            )
            for i, m in flat
        ]


def fit_affect(corpus: Corpus, layout: Layout, run: Run) -> RidgeAffectEstimator | None:
    """The built-in affect estimator, fitted on the training clips' labels; None where the corpus
    has none.
    """
    if not (corpus.path / LABELS).is_file():
        print("[evaluate] the corpus has no affect labels: L2 Affect is missing", flush=True)
        return None
    labels = load_labels(corpus.path)
    clips = [
        (listener.subset(layout), labels[clip_id])
        for clip_id, listener in corpus.listeners("train")
    ]
    estimator = RidgeAffectEstimator.fit(
        [m for m, _ in clips], [a for _, a in clips], groups=layout.names
    )
    estimator.save(run.directory / "affect_estimator.npz")
    return estimator


def group_of(clip: Clip, candidates: Mapping[str, Motion]) -> Group:
    """Candidates with what raters see and hear of the clip's speaker."""
    words = None if clip.words is None else tuple((w.text, w.start, w.end) for w in clip.words)
    return Group(
        clip.clip_id, candidates, clip.speaker, clip.speaker_shape, words, clip.speaker_audio
    )


def reward_pool(config: JudgedRecipeConfig) -> RewardPool:
    """Workers with panels of SIMULATED raters."""
    c, head = config.raters, config.head
    options = PanelOptions(
        c.count, LEXICON, None if head.path is None else str(head.path), head.topology
    )
    return RewardPool(options, c.workers, c.cpus, c.timeout_s, config.cluster.lost_workers, c.nodes)


def report(rows: Mapping[str, Row], run: Run) -> dict[str, Any]:
    """Table on the terminal, JSON in the run directory (by prompt, too), numbers in MLflow; returns
    the JSON.
    """
    bootstrap = run.config.evaluation.bootstrap
    values = {name: row.summary(bootstrap) for name, row in rows.items()}
    columns = (*METRICS, "truth_affect_error", "simulated_rating")
    table = Table(title="held-out clips (lm-listener protocol; simulated raters, 1 to 5)")
    table.add_column("method")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for name, row in values.items():
        table.add_row(name, *(_cell(row[column]) for column in columns))
    Console(width=140).print(table)
    write_atomic(run.directory / "evaluation.json", json.dumps(values, indent=2))
    run.summary["metrics"]["evaluation"] = values
    run.summary["artifacts"]["evaluation"] = str(run.directory / "evaluation.json")
    by_prompt = {
        name: {"scores": row.scores, "truth_errors": row.truth_errors} for name, row in rows.items()
    }
    write_atomic(run.directory / "evaluation_prompts.json", json.dumps(by_prompt, indent=2))
    run.summary["artifacts"]["evaluation_prompts"] = str(run.directory / "evaluation_prompts.json")
    for name, row in values.items():
        flat = {k: v["mean"] if isinstance(v, dict) else v for k, v in row.items()}
        run.tracker.log({f"{metric_key(name)}/{k}": v for k, v in flat.items() if v is not None})
    return values


def _interval(scores: dict[str, float], bootstrap: int) -> dict[str, float] | None:
    return interval_json(mean_interval(scores, resamples=bootstrap)) if len(scores) > 1 else None


def interval_json(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n}


def mean_given(values: Iterable[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return float(np.mean(given)) if given else None


def _input(clip: Clip) -> SpeakerInput:
    return SpeakerInput(clip.speaker, clip.speaker_audio, clip.text)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
    return f"{value:.4f}"


def show(
    config: JudgedRecipeConfig, corpus: Corpus, answers: Mapping[str, Answers], run: Run
) -> None:
    """Videos of `evaluation.clips` held-out clips: speaker, recorded listener, the first answer of
    each method.
    """

    def work(phase: Phase) -> dict[str, Any]:
        chosen = list(next(iter(answers.values())))[: config.evaluation.clips]
        videos = [
            compared(
                corpus.clip(i),
                f"{i}.mp4",
                HELD_OUT,
                {name: given[i][0] for name, given in answers.items()},
            )
            for i in chosen
        ]
        with render_pool(config) as renderers:
            return render_shown(config.render, videos, renderers, phase)

    if config.evaluation.clips:
        run.once("clips", work)


def compared(clip: Clip, file: str, kind: str, answers: Mapping[str, Motion]) -> Video:
    """A video of the speaker, the recorded listener, and what each method answers.

    Args:
        file, kind: as in `Shown`.
        answers: of one layout, by method.
    """
    layout = next(iter(answers.values())).layout
    listeners = {"ground truth": clip.listener.subset(layout)} | dict(answers)
    panels = (
        speaker_panel(clip),
        *(Panel(caption, motion) for caption, motion in listeners.items()),
    )
    return (
        Shown(kind, file, clip.clip_id, clip.text, [p.caption for p in panels]),
        panels,
        clip.speaker_audio,
    )


def render_shown(
    config: RenderConfig, videos: Sequence[Video], renderers: RenderPool, phase: Phase
) -> dict[str, Any]:
    """Videos for the report, with the speaker's voice; returns the phase's result."""
    jobs = [
        VideoJob(phase.directory / shown.file, panels, audio) for shown, panels, audio in videos
    ]
    for job in jobs:
        job.path.parent.mkdir(exist_ok=True)
    result = render_videos(config, jobs, renderers, phase)
    write_shown(phase.directory, [shown for shown, *_ in videos])
    return result
