"""Judging held-out reactions: the protocol of lm-listener, simulated raters, the hidden truth.

Written once for any policy; nothing here was trained on a held-out clip or on the hidden truth.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rapport.actors.rater import RewardPool
from rapport.files import strict_json, write_atomic
from rapport.log import logger
from rapport.pipeline.data.columns import Truth
from rapport.pipeline.data.store import (
    LABELS,
    TRUTH,
    Corpus,
    Listeners,
    load_labels,
    load_truth,
)
from rapport.pipeline.report.paper import METRICS
from rapport.pipeline.rundir import Workspace
from rapport.pipeline.settings import Judged
from rapport.pipeline.steps.preferences import simulated_ratings, watched
from rapport.pipeline.tracking import metric_key
from rapport.policies.clip import Clip
from rapport.policies.motion import Layout, Motion
from rapport.rewards import metrics
from rapport.rewards.affect import RidgeAffectEstimator
from rapport.rewards.metrics.baselines import (
    NearestNeighbour,
    SpeakerInput,
    draw_listener,
    mirror,
)
from rapport.rewards.metrics.protocols import lm_listener
from rapport.rewards.metrics.statistics import (
    Interval,
    mean_interval,
    paired_interval,
    prompt_means,
)
from rapport.rewards.ratings.ratings import CRITERIA, Rating
from rapport.rewards.ratings.scores import overall

Answers = Mapping[str, list[Motion]]  # clip id -> reactions
WATCHED = ("speaker", "speaker_audio", "words")  # what raters and baselines know of a clip
AFFECT_CLIPS = 4096  # enough for the 60 or so weights of the estimator
JUDGES = 1000  # added to the seed of a panel: other people than those whose ratings make pairs


@dataclass(frozen=True)
class MethodRow:
    """One method's line in the table; None = could not be computed on this corpus, which is not 0.

    Args:
        metrics: by name.
        scores: clip id -> mean simulated rating, 1 to 5.
        truth_errors: clip id -> hidden-truth affect error.
    """

    metrics: dict[str, float | None]
    scores: dict[str, float]
    truth_errors: dict[str, float]

    def summary(self, bootstrap: int) -> dict[str, Any]:
        """As `evaluation.json` has it."""
        rating = None
        if len(self.scores) > 1:
            rating = interval_json(mean_interval(self.scores, resamples=bootstrap))
        return self.metrics | {
            "simulated_rating": rating,
            "truth_affect_error": mean_of(self.truth_errors.values()),
        }


@dataclass(frozen=True, eq=False)
class Judge:
    """Everything that held-out reactions are judged with.

    Args:
        seed: of the panel and of Random.
        weights: of the criteria.
        corpus: for baselines.
        layout: in which reactions are compared.
        raters: SIMULATED ones.
        clips: that are answered, by id.
        affect: the affect estimator; None where the corpus has no labels.
        truth: the affect that would have fitted; None where nobody knows.
    """

    seed: int
    weights: Mapping[str, float]
    corpus: Corpus
    layout: Layout
    raters: RewardPool
    clips: Mapping[str, Clip]
    affect: RidgeAffectEstimator | None
    truth: Mapping[str, Truth] | None

    @classmethod
    def from_corpus(
        cls,
        run: Workspace,
        config: Judged,
        corpus: Corpus,
        layout: Layout,
        clip_ids: Iterable[str],
        raters: RewardPool,
    ) -> Judge:
        """A judge of some held-out clips."""
        truth = load_truth(corpus.path) if (corpus.path / TRUTH).is_file() else None
        affect = fit_affect(corpus, layout)
        if affect is not None:
            affect.save(run.directory / "affect_estimator.npz")
        return cls(
            seed=config.seed,
            weights=config.score.weights,
            corpus=corpus,
            layout=layout,
            raters=raters,
            clips={clip_id: corpus.clip(clip_id, WATCHED) for clip_id in clip_ids},
            affect=affect,
            truth=truth,
        )

    def __call__(self, answers: Answers) -> MethodRow:
        """Metrics are averaged over all reactions; scores and errors over those of a clip."""
        reactions = [
            (clip_id, motion.subset(self.layout))
            for clip_id, motions in answers.items()
            for motion in motions
        ]
        predicted = [motion for _, motion in reactions]
        recorded = [self._recorded(clip_id, len(motion)) for clip_id, motion in reactions]
        speakers = [self._speaker(clip_id, len(motion)) for clip_id, motion in reactions]
        published = metrics.evaluate(
            lm_listener.with_affect(self.affect), predicted, recorded, speakers
        )
        values = {key: published.get(name) for key, name in METRICS.items()}
        counts = {
            "clips": len(reactions),
            "p_fd_clips": sum(speaker is not None for speaker in speakers),
        }
        ratings = self._rate(answers)
        criteria = {
            f"simulated_{name}": mean_of(getattr(rating, name) for rating in ratings)
            for name in CRITERIA
        }
        overalls = ((rating.prompt_id, overall(rating, self.weights)) for rating in ratings)
        return MethodRow(
            metrics=values | counts | criteria,
            scores=prompt_means(overalls),
            truth_errors=prompt_means(self._truth_errors(reactions)),
        )

    def baselines(self) -> dict[str, MethodRow]:
        """Ground truth, Random, Nearest Neighbour, Mirror; those that the corpus can give."""
        listeners = Listeners(self.corpus, "train", self.layout)
        rng = np.random.default_rng(self.seed)
        train = self.corpus.clips("train", WATCHED)
        nearest = NearestNeighbour(map(_input, train), listeners)
        clips = self.clips.items()
        recorded = {i: [clip.listener.subset(self.layout)] for i, clip in clips}
        rows = {"ground truth": self(recorded)}
        drawn = {}
        for clip_id, clip in clips:
            frames = len(clip.listener)
            motion = listeners[draw_listener(listeners.lengths, frames, rng)]
            drawn[clip_id] = [motion.window(0, frames)]
        rows["Random"] = self(drawn)
        found = {i: [nearest(_input(clip), len(clip.listener))] for i, clip in clips}
        rows["Nearest Neighbour"] = self(found)
        mirrored = {i: mirror(clip.speaker, self.layout) for i, clip in clips}
        shown = {i: [motion] for i, motion in mirrored.items() if motion is not None}
        if shown:
            rows["Mirror"] = self(shown)
        return rows

    def _recorded(self, clip_id: str, frames: int) -> Motion:
        return self.clips[clip_id].listener.subset(self.layout).window(0, frames)

    def _speaker(self, clip_id: str, frames: int) -> Motion | None:
        speaker = self.clips[clip_id].speaker
        return None if speaker is None else speaker.subset(self.layout).window(0, frames)

    def _rate(self, answers: Answers) -> list[Rating]:
        """Raters watch the whole reaction, also what is not compared."""
        prompts = (
            watched(self.clips[i], {f"{i}/{k}": motion for k, motion in enumerate(motions)})
            for i, motions in answers.items()
        )
        return simulated_ratings(prompts, self.raters, self.seed + JUDGES)

    def _truth_errors(
        self, reactions: Iterable[tuple[str, Motion]]
    ) -> list[tuple[str, float | None]]:
        """Root mean square distance over time of the affect shown to the one that had fitted."""
        if self.affect is None or self.truth is None:
            return []
        errors: list[tuple[str, float | None]] = []
        for clip_id, motion in reactions:
            shown = self.affect(motion)[:, 0]
            fitting = self.truth[clip_id].appropriate_affect[: len(shown), 0]
            errors.append((clip_id, float(np.sqrt(np.mean((shown - fitting) ** 2)))))
        return errors


def fit_affect(corpus: Corpus, layout: Layout) -> RidgeAffectEstimator | None:
    """The built-in affect estimator, fitted on training labels; None where the corpus has none.

    Of a larger corpus every n-th clip is taken, so that there are at most `AFFECT_CLIPS`.
    """
    if not (corpus.path / LABELS).is_file():
        logger.info("[evaluate] the corpus has no affect labels: L2 Affect is missing")
        return None
    labels = load_labels(corpus.path)
    step = -(-corpus.count("train") // AFFECT_CLIPS)
    some = itertools.islice(corpus.listeners("train"), 0, None, step)
    listeners = [(listener.subset(layout), labels[i]) for i, listener in some]
    return RidgeAffectEstimator.fit(
        [motion for motion, _ in listeners],
        [affect for _, affect in listeners],
        groups=layout.names,
    )


def tabulate(rows: Mapping[str, MethodRow], run: Workspace, *, bootstrap: int) -> dict[str, Any]:
    """Table on the terminal, JSON in the run directory (by clip, too), numbers in MLflow.

    Returns what `evaluation.json` holds.
    """
    values = {name: row.summary(bootstrap) for name, row in rows.items()}
    columns = (*METRICS, "truth_affect_error", "simulated_rating")
    table = Table(title="held-out clips (lm-listener protocol; simulated raters, 1 to 5)")
    table.add_column("method")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for name, row in values.items():
        table.add_row(name, *(_cell(row[column]) for column in columns))
    Console(width=140).print(table)
    by_clip = {
        name: {"scores": row.scores, "truth_errors": row.truth_errors} for name, row in rows.items()
    }
    for name, content in {"evaluation": values, "evaluation_prompts": by_clip}.items():
        file = run.directory / f"{name}.json"
        write_atomic(file, strict_json(content, indent=2))
        run.leave({name: file})
    run.summary["metrics"]["evaluation"] = values
    for name, row in values.items():
        flat = {key: v["mean"] if isinstance(v, dict) else v for key, v in row.items()}
        given = {f"{metric_key(name)}/{key}": v for key, v in flat.items() if v is not None}
        run.tracker.log(given)
    return values


def compare(
    rows: Mapping[str, MethodRow], run: Workspace, *, before: str, after: str, bootstrap: int
) -> None:
    """The table, and what alignment changed on held-out clips.

    Args:
        rows: by method.
        run: takes the table and the change.
        before: method that is aligned.
        after: what has become of it.
        bootstrap: resamples of the intervals.
    """
    values = tabulate(rows, run, bootstrap=bootstrap)
    first = rows[before]
    last = rows[after]
    changes: dict[str, Any] = {}
    if first.scores:
        change = paired_interval(first.scores, last.scores, resamples=bootstrap)
        changes["simulated_rating_change"] = interval_json(change)
    if first.truth_errors and last.truth_errors:
        error = paired_interval(first.truth_errors, last.truth_errors, resamples=bootstrap)
        changes["truth_affect_error_change"] = interval_json(error)
    for name in ("l2", "fd"):
        ratio = values[after][name] / values[before][name]
        changes[f"{name}_change_percent"] = 100 * (ratio - 1)
    run.summary["metrics"] |= {
        "compared": [before, after],
        "before": values[before],
        "after": values[after],
        "change": changes,
    }
    if first.scores:
        logger.info(
            f"simulated raters: {change.mean:+.2f} of 5, 95 % interval "
            f"[{change.low:+.2f}, {change.high:+.2f}]; L2 {changes['l2_change_percent']:+.0f} %, "
            f"FD {changes['fd_change_percent']:+.0f} %"
        )


def interval_json(interval: Interval) -> dict[str, float]:
    """An interval as JSON."""
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n}


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are there; None of none."""
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


def _input(clip: Clip) -> SpeakerInput:
    return SpeakerInput(clip.speaker, clip.speaker_audio, clip.text)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
    return f"{value:.4f}"
