"""Judging held-out reactions: do they answer this speaker, and how do they compare with recordings.

Every reaction is rated by simulated raters beside its own speaker and beside speakers of other
conversations, held against the points that were made, and shown to a judge that is not the raters;
then the protocol of lm-listener and the hidden truth. Written once for any policy; nothing here was
trained on a held-out clip or on the hidden truth.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rapport.actors import timeline
from rapport.actors.rater import RatedPrompt, RewardPool, Viewer
from rapport.files import strict_json, write_atomic
from rapport.log import logger
from rapport.pipeline.data.columns import Truth
from rapport.pipeline.data.store import (
    LABELS,
    PAST,
    TRUTH,
    Corpus,
    Listeners,
    load_labels,
    load_truth,
)
from rapport.pipeline.report.paper import METRICS
from rapport.pipeline.rundir import Workspace
from rapport.pipeline.settings import Judged
from rapport.pipeline.steps.independent import IndependentJudge
from rapport.pipeline.steps.preferences import watched
from rapport.pipeline.steps.rules import CONSTANTS, SHUFFLED, Rules
from rapport.pipeline.steps.yardsticks import Listening, shuffled, strangers
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
    mean_interval,
    paired_interval,
    prompt_means,
)
from rapport.rewards.ratings.beside import Beside
from rapport.rewards.ratings.ratings import CRITERIA
from rapport.rewards.ratings.scores import overall

Answers = Mapping[str, list[Motion]]  # clip id -> reactions
ANOTHER = "another listener"
COMPARED = ("speaker", "speaker_audio", "words")  # what Nearest Neighbour knows of a clip
WATCHED = (*COMPARED, PAST)  # what raters, rules and the independent judge know of one
AFFECT_CLIPS = 4096  # enough for the 60 or so weights of the estimator
JUDGES = 1000  # added to the seed of a panel: other people than those whose ratings make pairs
STRANGERS = 4  # speakers of other conversations beside whom every reaction is rated
# What is said of answering this speaker, in the order of the table.
YARDSTICKS = (
    "own_minus_another",
    "matched",
    "right",
    "right_known",
    "right_held_out",
    "independent",
    "independent_own_minus_another",
)
# Of those, what a terminal has room for; the report has all.
SHOWN = ("own_minus_another", "matched", "right", "independent_own_minus_another")
HEADLINE = ("own_minus_another", "matched", "right", "independent")  # of a summary's metrics


@dataclass(frozen=True)
class MethodRow:
    """One method's line in the table; None = could not be computed on this corpus, which is not 0.

    Args:
        metrics: by name.
        scores: clip id -> mean simulated rating, 1 to 5.
        truth_errors: clip id -> hidden-truth affect error.
        yardsticks: name -> clip id, or clip id and point -> value; see `YARDSTICKS`.
        conversations: clip id, or clip id and point -> the conversation that it is of, over which
            intervals are taken.
        right_by_kind: share of points answered right by how they were told.
    """

    metrics: dict[str, float | None]
    scores: dict[str, float]
    truth_errors: dict[str, float]
    yardsticks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    conversations: Mapping[str, str] = field(default_factory=dict)
    right_by_kind: Mapping[str, float] = field(default_factory=dict)

    def summary(self, bootstrap: int) -> dict[str, Any]:
        """As `evaluation.json` has it."""
        values = {name: self.interval(name, bootstrap) for name in YARDSTICKS}
        return (
            self.metrics
            | {
                "simulated_rating": self.interval("scores", bootstrap),
                "truth_affect_error": mean_of(self.truth_errors.values()),
            }
            | values
            | {"right_by_kind": dict(self.right_by_kind)}
        )

    def change(self, before: MethodRow, name: str, bootstrap: int) -> dict[str, Any] | None:
        """By how much a yardstick, or `scores` or `truth_errors`, is above another row's."""
        first, last = before.values(name), self.values(name)
        if len(first.keys() & last.keys()) < 2:
            return None
        groups = self.conversations or None
        return paired_interval(first, last, resamples=bootstrap, groups=groups).to_json()

    def values(self, name: str) -> Mapping[str, float]:
        """Those of a yardstick, of `scores` or of `truth_errors`; {} of none."""
        own = {"scores": self.scores, "truth_errors": self.truth_errors}
        return own[name] if name in own else self.yardsticks.get(name, {})

    def interval(self, name: str, bootstrap: int) -> dict[str, Any] | None:
        """Mean of a yardstick or of `scores`, with its interval; None of less than two values."""
        values = self.values(name)
        if len(values) < 2:
            return None
        groups = self.conversations or None
        return mean_interval(values, resamples=bootstrap, groups=groups).to_json()


@dataclass(frozen=True, eq=False)
class Judge:
    """Everything that held-out reactions are judged with.

    Args:
        seed: of the panel, of Random and of the strangers.
        weights: of the criteria.
        corpus: for baselines.
        layout: in which reactions are compared.
        raters: SIMULATED ones.
        clips: that are answered, by id, with their past.
        affect: the affect estimator; None where the corpus has no labels.
        truth: the affect that would have fitted; None where nobody knows.
        independent: the judge that is not the raters; None where there is too little to fit one.
        viewer: sees faces.
    """

    seed: int
    weights: Mapping[str, float]
    corpus: Corpus
    layout: Layout
    raters: RewardPool
    clips: Mapping[str, Clip]
    affect: RidgeAffectEstimator | None
    truth: Mapping[str, Truth] | None
    independent: IndependentJudge | None
    viewer: Viewer

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
        """A judge of some held-out clips; what it cannot judge by is said."""
        truth = load_truth(corpus.path) if (corpus.path / TRUTH).is_file() else None
        affect = fit_affect(corpus, layout)
        if affect is not None:
            affect.save(run.directory / "affect_estimator.npz")
        viewer = Viewer(config.head)
        with timeline.noted("judge"):
            independent = IndependentJudge.of_corpus(
                corpus, config.head, seed=config.seed, bootstrap=config.evaluation.bootstrap
            )
        understands = corpus.points is not None
        if not understands:
            logger.warning(
                "WARNING: simulated raters do not understand speech on this corpus, which does not "
                "say what its speakers mean: they go by faces and by single words"
            )
        run.summary["metrics"] |= {
            "raters_understand_speech": understands,
            "independent_judge": None if independent is None else dict(independent.trust),
        }
        return cls(
            seed=config.seed,
            weights=config.score.weights,
            corpus=corpus,
            layout=layout,
            raters=raters,
            clips={clip_id: corpus.clip(clip_id, WATCHED) for clip_id in clip_ids},
            affect=affect,
            truth=truth,
            independent=independent,
            viewer=viewer,
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
        opinions = self._rate(answers)
        ratings = [rating for beside in opinions.values() for rating in beside.own]
        criteria = {
            f"simulated_{name}": mean_of(getattr(rating, name) for rating in ratings)
            for name in CRITERIA
        }
        overalls = ((rating.prompt_id, overall(rating, self.weights)) for rating in ratings)
        listening = self._listening(opinions)
        return MethodRow(
            metrics=values | counts | criteria,
            scores=prompt_means(overalls),
            truth_errors=prompt_means(self.truth_errors(reactions)),
            yardsticks=listening.yardsticks,
            conversations=listening.conversations,
            right_by_kind=listening.right_by_kind,
        )

    def _listening(self, opinions: Mapping[str, Beside]) -> Listening:
        listening = Listening()
        for clip_id, beside in opinions.items():
            conversation = self._conversations[clip_id]
            listening.add_differences(clip_id, conversation, beside.differences(self.weights))
            points = (self.corpus.points or {}).get(clip_id, ())
            listening.add_points(clip_id, conversation, points, beside.seen.values())
            if self.independent is not None:
                heard = [self._heard[i] for i in (clip_id, *self._strangers[clip_id])]
                evidence = [self.independent(heard, seen) for seen in beside.seen.values()]
                listening.add_evidence(clip_id, conversation, evidence)
        return listening

    @cached_property
    def _heard(self) -> dict[str, np.ndarray]:
        """What the independent judge makes of each clip's speaker."""
        assert self.independent is not None, "asked for only where there is one"
        return {clip_id: self.independent.heard(clip) for clip_id, clip in self.clips.items()}

    @cached_property
    def _strangers(self) -> dict[str, list[str]]:
        """For each clip some clips of other conversations, as long; none where there is but one."""
        return strangers(self.clips, self._conversations, STRANGERS, seed=self.seed)

    @cached_property
    def _conversations(self) -> dict[str, str]:
        """Of each clip; of those that are not judged, too."""
        return {
            clip_id: name
            for split in {clip.split for clip in self.clips.values()}
            for clip_id, name in self.corpus.conversations(split).items()
        }

    def baselines(self) -> dict[str, MethodRow]:
        """Ground truth and listeners that learn nothing; those that the corpus can give."""
        return {name: self(answers) for name, answers in self.answers_of_baselines().items()}

    def answers_of_baselines(self) -> dict[str, dict[str, list[Motion]]]:
        """Ground truth, who else listened, Random, Nearest Neighbour, Mirror, rules, the oracle."""
        train = self.corpus.clips("train", COMPARED)
        nearest = NearestNeighbour(map(_input, train), self._listeners)
        clips = self.clips.items()
        answers = {"ground truth": {i: [clip.listener.subset(self.layout)] for i, clip in clips}}
        another = self._another_listener()
        if another.keys() == self.clips.keys():
            answers[ANOTHER] = another
        answers["Random"] = self.random(1)
        answers["Nearest Neighbour"] = {
            i: [nearest(_input(clip), len(clip.listener))] for i, clip in clips
        }
        mirrored = {i: mirror(clip.speaker, self.layout) for i, clip in clips}
        shown = {i: [motion] for i, motion in mirrored.items() if motion is not None}
        if shown:
            answers["Mirror"] = shown
        for name, by_clip in self.rules.answers().items():
            answers[name] = {i: [motion] for i, motion in by_clip.items()}
        return answers

    def random(self, samples: int) -> dict[str, list[Motion]]:
        """Training listeners whoever speaks, so many to each clip; the first ones are `Random`."""
        listeners = self._listeners
        drawn: dict[str, list[Motion]] = {clip_id: [] for clip_id in self.clips}
        rng = np.random.default_rng(self.seed)
        for _ in range(samples):
            for clip_id, clip in self.clips.items():
                frames = len(clip.listener)
                motion = listeners[draw_listener(listeners.lengths, frames, rng)]
                drawn[clip_id].append(motion.window(0, frames))
        return drawn

    def _another_listener(self) -> dict[str, list[Motion]]:
        """Somebody else who listened to the same moment, with this listener's face at rest.

        So far from what was recorded is a policy that does what people do. {} of clips to which
        nobody else listened.
        """
        here: dict[tuple[str, float], list[str]] = {}
        for split in {clip.split for clip in self.clips.values()}:
            for clip_id, moment in self.corpus.moments(split).items():
                here.setdefault(moment, []).append(clip_id)
        found = {}
        for clip_id, clip in self.clips.items():
            others = [other for other in here[clip.moment] if other != clip_id]
            if others and clip.rest is not None:
                other = self.corpus.clip(others[0], ()).listener.subset(self.layout)
                rests = (clip.rest, self.corpus.rest_of(others[0]))
                own, theirs = (rest.subset(self.layout).values for rest in rests)
                found[clip_id] = [Motion(other.values + own - theirs, self.layout)]
        return found

    @cached_property
    def _listeners(self) -> Listeners:
        """Those of the training clips."""
        return Listeners(self.corpus, "train", self.layout)

    @cached_property
    def rules(self) -> Rules:
        """Listeners that follow one rule."""
        return Rules.of_corpus(
            self._listeners,
            self.clips,
            viewer=self.viewer,
            truth=self.truth,
            seed=self.seed,
        )

    def controls(self, name: str, answers: Answers) -> dict[str, MethodRow]:
        """What a policy's answers are worth that no speaker asked for.

        Two constants are changed in each; and each is given to the speaker of another conversation.
        The first answer to each prompt is taken: it is one more rating of every answer else.

        Args:
            name: of the policy in the table.
            answers: its own.
        """
        answers = {clip_id: motions[:1] for clip_id, motions in answers.items()}
        rows = {}
        if self.rules.actor is not None:
            changed = {
                clip_id: [self.rules.two_constants(motion) for motion in motions]
                for clip_id, motions in answers.items()
            }
            rows[f"{name}, {CONSTANTS}"] = self(changed)
        turned = shuffled({clip_id: self._conversations[clip_id] for clip_id in answers})
        rows[f"{name}, {SHUFFLED}"] = self(
            {clip_id: list(answers[other]) for clip_id, other in turned.items()}
        )
        return rows

    def _recorded(self, clip_id: str, frames: int) -> Motion:
        return self.clips[clip_id].listener.subset(self.layout).window(0, frames)

    def _speaker(self, clip_id: str, frames: int) -> Motion | None:
        speaker = self.clips[clip_id].speaker
        return None if speaker is None else speaker.subset(self.layout).window(0, frames)

    def _rate(self, answers: Answers) -> dict[str, Beside]:
        """Raters watch the whole reaction, also what is not compared."""
        prompts = (self._prompt(clip_id, motions) for clip_id, motions in answers.items())
        opinions = self.raters.rate_beside(prompts, self.seed + JUDGES)
        by_clip = {prompt.prompt_id: beside for prompt, beside in opinions}
        return {clip_id: by_clip[clip_id] for clip_id in answers}

    def _prompt(self, clip_id: str, motions: Sequence[Motion]) -> RatedPrompt:
        points = self.corpus.points
        candidates = {f"{clip_id}/{k}": motion for k, motion in enumerate(motions)}
        others = tuple(
            watched(self.clips[other], candidates, points) for other in self._strangers[clip_id]
        )
        # Of the others only the speakers are looked at.
        others = tuple(replace(other, candidates={}) for other in others)
        return replace(watched(self.clips[clip_id], candidates, points), others=others)

    def truth_errors(self, reactions: Iterable[tuple[str, Motion]]) -> list[tuple[str, float]]:
        """Root mean square distance over time of the affect shown to the one that had fitted.

        Args:
            reactions: clip id and reaction.

        Returns:
            As many; none where no truth is known.
        """
        if self.affect is None or self.truth is None:
            return []
        errors = []
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
    print_rows(
        "held-out clips: what was answered to this speaker (simulated raters, 1 to 5)",
        ("simulated_rating", *SHOWN),
        values,
    )
    print_rows(
        "held-out clips: distance from what was recorded (lm-listener protocol)",
        (*METRICS, "truth_affect_error"),
        values,
    )
    by_clip = {
        name: {"scores": row.scores, "truth_errors": row.truth_errors} | dict(row.yardsticks)
        for name, row in rows.items()
    }
    for name, content in {"evaluation": values, "evaluation_prompts": by_clip}.items():
        file = run.directory / f"{name}.json"
        write_atomic(file, strict_json(content, indent=2))
        run.leave({name: file})
    run.summary["metrics"]["evaluation"] = values
    for yardstick in HEADLINE:
        run.summary["metrics"][yardstick] = {name: row[yardstick] for name, row in values.items()}
    for name, row in values.items():
        by_kind = {f"right/{kind}": value for kind, value in row["right_by_kind"].items()}
        flat = {key: _mean(value) for key, value in row.items() if key != "right_by_kind"} | by_kind
        given = {f"{metric_key(name)}/{key}": v for key, v in flat.items() if v is not None}
        run.tracker.log(given)
    return values


def print_rows(title: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> None:
    """A table on the terminal, without the columns that no row has."""
    table = Table(title=title)
    table.add_column("method", no_wrap=True)
    present = [name for name in columns if any(row[name] is not None for row in rows.values())]
    for name in present:
        table.add_column(name.replace("_", " "), justify="right")
    for method, row in rows.items():
        table.add_row(method, *(_cell(row[name]) for name in present))
    Console(width=140).print(table)


def _mean(value: Any) -> Any:
    return value["mean"] if isinstance(value, dict) else value


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
    names = {
        "simulated_rating": "scores",
        "truth_affect_error": "truth_errors",
        **{name: name for name in YARDSTICKS},
    }
    for key, name in names.items():
        change = last.change(first, name, bootstrap)
        if change is not None:
            changes[f"{key}_change"] = change
    for name in ("l2", "fd"):
        ratio = values[after][name] / values[before][name]
        changes[f"{name}_change_percent"] = 100 * (ratio - 1)
    run.summary["metrics"] |= {
        "compared": [before, after],
        "before": values[before],
        "after": values[after],
        "change": changes,
    }
    for key, what in (
        ("own_minus_another_change", "own minus another's rating"),
        ("independent_own_minus_another_change", "the same by the independent judge, nats"),
        ("simulated_rating_change", "simulated raters, of 5"),
    ):
        if key in changes:
            of = changes[key]
            logger.info(f"{what}: {of['mean']:+.2f} [{of['low']:+.2f}, {of['high']:+.2f}]")


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
