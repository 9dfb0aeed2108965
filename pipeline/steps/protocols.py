"""Published protocols on held-out clips of a corpus: what `rank` ranks methods by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple, Self, get_args

import numpy as np

from rapport.files import atomic
from rapport.pipeline.data.flow import windows
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.report.ranking import GROUND_TRUTH
from rapport.pipeline.rundir import Phase, PhaseResult, Run, RunError, phase
from rapport.pipeline.steps.faces import PROTOCOLS, Faces
from rapport.policies.motion import Layout, LayoutError, Motion
from rapport.rewards.affect import AffectEstimator
from rapport.rewards.metrics import evaluate
from rapport.rewards.metrics.measures.tlcc import MAX_LAG
from rapport.rewards.metrics.protocols import dualtalk, l2l, lm_listener, react
from rapport.rewards.metrics.protocols.protocol import Protocol, Variant

Reactions = Sequence[Sequence[Motion]]  # some to each clip
MetricScores = dict[str, float]
Scorer = Callable[["RankedClips", Reactions, Variant], MetricScores]
# Part of the clips ("all", "first half", "second half") -> variant -> method -> scores.
ScoresByPart = dict[str, dict[str, dict[str, MetricScores]]]

VARIANTS: tuple[Variant, ...] = get_args(Variant)
FILE_FRAMES = 750  # of DualTalk's files, about
HEAD = ("rot", "neck")
NEVER = {
    "react2023, react2024": (
        "they take 25 emotion channels (AUs, valence, arousal, expression probabilities) of a "
        "recogniser; the corpora here have motion. The same metrics, on motion, are those of "
        "reactface"
    ),
    "vbench": (
        "it judges rendered video; here all methods drive the same head, so it would judge the "
        "renderer"
    ),
}


class Targets(NamedTuple):
    """What reactions are compared with.

    Args:
        listeners: recorded ones, those of the answered clips first.
        appropriate: (clips, listeners) of 0 and 1.
    """

    listeners: list[Motion]
    appropriate: np.ndarray


@dataclass(frozen=True, eq=False)
class RankedClips:
    """Held-out clips that every method answers.

    Args:
        ids: of the clips.
        recorded: the listener of each, (frames, dim).
        speakers: each speaker in the listener's layout, None where the corpus lacks them.
        speech: (2, frames) bool for each: where the listener and where the speaker speaks.
        appropriate: clip id -> ids of the clips whose listeners are appropriate.
        others: clip id -> listener, of the appropriate ones that are not answered.
    """

    ids: Sequence[str]
    recorded: Sequence[Motion]
    speakers: Sequence[Motion | None]
    speech: Sequence[np.ndarray]
    appropriate: Mapping[str, Sequence[str]]
    others: Mapping[str, Motion]

    @classmethod
    def from_corpus(
        cls,
        corpus: Corpus,
        ids: Sequence[str],
        layout: Layout,
        frames: int,
        appropriate: Mapping[str, Sequence[str]],
    ) -> Self:
        """The first `frames` of some clips, the groups of `layout`.

        Args:
            corpus: whose clips.
            ids: of the clips.
            layout: groups.
            frames: of each.
            appropriate: of each clip the clips whose listeners are appropriate.
        """
        recorded = []
        speakers = []
        speech = []
        for clip_id in ids:
            clip = corpus.clip(clip_id)
            speaker = clip.speaker
            window = next(windows(clip, downsample=1, both=False))
            masks = np.stack([window.actor_speaks, window.partner_speaks])
            recorded.append(clip.listener.subset(layout).window(0, frames))
            speakers.append(None if speaker is None else speaker.subset(layout).window(0, frames))
            speech.append(masks[:, :frames])
        others = {
            clip_id: corpus.clip(clip_id, ()).listener.subset(layout).window(0, frames)
            for clip_id in _beside(ids, appropriate)
        }
        return cls(ids, recorded, speakers, speech=speech, appropriate=appropriate, others=others)

    @property
    def layout(self) -> Layout:
        """Groups that are compared."""
        return self.recorded[0].layout

    @property
    def frames(self) -> int:
        """Of every clip."""
        return len(self.recorded[0])

    @property
    def partners(self) -> list[Motion] | None:
        """Everybody's speaker, or None where one lacks."""
        present = [speaker for speaker in self.speakers if speaker is not None]
        return present if len(present) == len(self.speakers) else None

    def part(self, clips: slice) -> RankedClips:
        """Some of the clips."""
        ids = self.ids[clips]
        listeners = {**self.others, **dict(zip(self.ids, self.recorded, strict=True))}
        return RankedClips(
            ids,
            self.recorded[clips],
            self.speakers[clips],
            speech=self.speech[clips],
            appropriate=self.appropriate,
            others={clip_id: listeners[clip_id] for clip_id in _beside(ids, self.appropriate)},
        )

    @property
    def targets(self) -> Targets:
        """All appropriate reactions, those that are answered first."""
        order = [*self.ids, *self.others]
        places = {clip_id: place for place, clip_id in enumerate(order)}
        matrix = np.zeros((len(self.ids), len(order)), dtype=np.uint8)
        for row, clip_id in enumerate(self.ids):
            matrix[row, [places[other] for other in self.appropriate[clip_id]]] = 1
        return Targets([*self.recorded, *self.others.values()], matrix)


def _beside(ids: Sequence[str], appropriate: Mapping[str, Sequence[str]]) -> list[str]:
    """Clips whose listeners are appropriate to some clips, without these."""
    answered = set(ids)
    named = dict.fromkeys(other for clip_id in ids for other in appropriate[clip_id])
    return [clip_id for clip_id in named if clip_id not in answered]


def common_frames(answers: Mapping[str, np.ndarray]) -> int:
    """Frames that the reactions of every method have."""
    return min(reactions.shape[2] for reactions in answers.values())


def cut_reactions(reactions: np.ndarray, layout: Layout, frames: int) -> Reactions:
    """The first `frames` of (clips, samples, time, dim) as typed motion."""
    return [[Motion(values[:frames], layout) for values in samples] for samples in reactions]


def score(
    run: Run,
    protocol: str,
    scorer: Scorer,
    clips: RankedClips,
    reactions: Mapping[str, Reactions],
) -> ScoresByPart:
    """Every method by one protocol: a phase of the run.

    Args:
        run: the recipe's.
        protocol: its name.
        scorer: of `scorers`.
        clips: that are answered.
        reactions: method -> its own.

    Raises:
        RunError: the protocol refuses its input.
    """

    @phase(protocol)
    def scored(step: Phase) -> PhaseResult:
        try:
            scores = scores_by_part(scorer, clips, reactions)
        except ValueError as error:
            raise RunError(f"protocol {protocol}: {error}") from error
        step.say(f"{len(scores['all']['corrected'][GROUND_TRUTH])} metrics, both variants")
        return PhaseResult(value=scores)

    by_part: ScoresByPart = scored(run).value
    return by_part


def scores_by_part(
    scorer: Scorer, clips: RankedClips, reactions: Mapping[str, Reactions]
) -> ScoresByPart:
    """Scores of all clips, and of either half by itself.

    Args:
        scorer: of a protocol.
        clips: that are answered.
        reactions: method -> its own.
    """
    middle = len(clips.ids) // 2
    parts = {"all": slice(None), "first half": slice(middle), "second half": slice(middle, None)}
    scores: ScoresByPart = {}
    for name, part in parts.items():
        scores[name] = {}
        for variant in VARIANTS:
            scores[name][variant] = {
                method: scorer(clips.part(part), answers[part], variant)
                for method, answers in reactions.items()
            }
    return scores


def scorers(
    clips: RankedClips,
    train: Sequence[Motion],
    affect: AffectEstimator | None,
    faces: Faces | None,
) -> tuple[dict[str, Scorer], dict[str, str]]:
    """The protocols that apply to these clips, by name, and why the others are left out.

    Protocols that score one reaction a clip take the first.

    Args:
        clips: that are answered.
        train: training listeners in the same layout, for the z-scores of `l2l`.
        affect: reads valence off motion, for L2 Affect.
        faces: turns motion into vertices, for `unils` and `gdpo_paper`.
    """
    applied: dict[str, Scorer] = {"lm_listener": partial(_by_clip, lm_listener.with_affect(affect))}
    left_out = dict(NEVER)
    if clips.frames > l2l.CONTEXT:
        applied["l2l"] = partial(_by_clip, l2l.with_training(train))
    else:
        left_out["l2l"] = (
            f"clips of {clips.frames} frames: it judges those after the first {l2l.CONTEXT}"
        )
    applied["dim"] = _dim
    if clips.frames * (len(clips.ids) // 2) > dualtalk.PAIRS:
        applied["dualtalk"] = _dualtalk
    else:
        left_out["dualtalk"] = f"its Diversity needs files of more than {dualtalk.PAIRS} frames"
    if faces is not None:
        of_clip = cache(partial(_scores_of_faces, faces))
        for name in PROTOCOLS:
            applied[name] = partial(_on_vertices, of_clip, name)
    else:
        left_out[", ".join(PROTOCOLS)] = "no head for this corpus: give head.path"
    if clips.layout.fps == react.FPS and clips.frames >= MAX_LAG + 2:
        applied["reactface"] = _reactface
    else:
        left_out["reactface"] = (
            f"it takes {MAX_LAG + 2} frames or more at {react.FPS} fps, clips have "
            f"{clips.frames} at {clips.layout.fps:g}"
        )
    return applied, left_out


def with_head_as(name: str, motion: Motion) -> Motion:
    """The head's rotation under the name that a protocol has for it.

    Corpora carry it in `rot` or in `neck`.
    """
    groups = tuple(
        (name if group in HEAD else group, width) for group, width in motion.layout.groups
    )
    if sum(group == name for group, _ in groups) != 1:
        raise LayoutError(f"expected one of {HEAD} in a motion of {motion.layout}")
    return Motion(motion.values, replace(motion.layout, groups=groups))


def _first(reactions: Reactions) -> list[Motion]:
    return [samples[0] for samples in reactions]


def _by_clip(
    protocol: Protocol, clips: RankedClips, reactions: Reactions, variant: Variant
) -> MetricScores:
    partner = clips.speakers if protocol.name == "lm_listener" else None
    return evaluate(protocol, _first(reactions), clips.recorded, partner=partner, variant=variant)


def _dim(clips: RankedClips, reactions: Reactions, variant: Variant) -> MetricScores:
    roles = _roles("rot", clips, reactions)
    return evaluate("dim", *roles, variant=variant)


def _dualtalk(clips: RankedClips, reactions: Reactions, variant: Variant) -> MetricScores:
    """On files as long as DualTalk's, each of some clips in a row."""
    roles = _roles("neck", clips, reactions)
    files = [None if motions is None else list(_files(motions)) for motions in roles]
    return evaluate("dualtalk", *files, variant=variant)


def _roles(head: str, clips: RankedClips, reactions: Reactions) -> list[list[Motion] | None]:
    """Reaction, recorded listener and speaker of each clip; None where there are no speakers."""
    roles = (_first(reactions), clips.recorded, clips.partners)
    return [
        None if motions is None else [with_head_as(head, motion) for motion in motions]
        for motions in roles
    ]


def _files(clips: Sequence[Motion]) -> Iterator[Motion]:
    count = -(-len(clips) * len(clips[0]) // FILE_FRAMES)
    for part in np.array_split(np.arange(len(clips)), count):
        yield Motion(np.concatenate([clips[i].values for i in part]), clips[0].layout)


def _on_vertices(
    of_clip: Callable[..., dict[tuple[str, str], MetricScores]],
    protocol: str,
    clips: RankedClips,
    reactions: Reactions,
    variant: Variant,
) -> MetricScores:
    """Means over clips, as `score` of these protocols takes them.

    The vertices of one clip are in memory at a time.
    """
    values: dict[str, list[float]] = {}
    for samples, recorded, speech in zip(reactions, clips.recorded, clips.speech, strict=True):
        scores = of_clip(samples[0], recorded, speech.tobytes())[protocol, variant]
        for name, value in scores.items():
            values.setdefault(name, []).append(value)
    return {name: float(np.mean(by_clip)) for name, by_clip in values.items()}


def _scores_of_faces(
    faces: Faces, reaction: Motion, recorded: Motion, speech: bytes
) -> dict[tuple[str, str], MetricScores]:
    """Both protocols on vertices, in both variants: making the vertices takes the time."""
    masks = np.frombuffer(speech, bool).reshape(2, -1)
    # Only where somebody speaks are distances over the whole head asked for.
    whole = bool(masks[0].any())
    predicted_face, recorded_face = faces([reaction, recorded], whole=whole)
    scores = {}
    for name, people in PROTOCOLS.items():
        mask = masks if people == 2 else masks[0]
        for variant in VARIANTS:
            scores[name, str(variant)] = evaluate(
                name, predicted_face, recorded_face, speech_mask=mask, variant=variant
            )
    return scores


def _reactface(clips: RankedClips, reactions: Reactions, variant: Variant) -> MetricScores:
    """All reactions to a clip against all that are appropriate."""
    targets = clips.targets
    return evaluate(
        "reactface",
        reactions,
        targets.listeners,
        partner=clips.partners,
        neighbours=targets.appropriate,
        variant=variant,
    )


def keep_targets(clips: RankedClips, folder: Path) -> Path:
    """Write what `evaluate --protocol reactface` takes beside a method's reactions.

    `target.npy` (listeners, frames, dim), `neighbours.npy` (clips, listeners) and, where the clips
    have speakers, `partner.npy` (clips, frames, dim).
    """
    targets = clips.targets
    with atomic(folder) as partial_folder:
        partial_folder.mkdir()
        np.save(partial_folder / "target.npy", [motion.values for motion in targets.listeners])
        np.save(partial_folder / "neighbours.npy", targets.appropriate)
        if clips.partners is not None:
            np.save(partial_folder / "partner.npy", [motion.values for motion in clips.partners])
    return folder
