"""Published protocols on held-out clips of a corpus: what `rank` ranks methods by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np

from rapport.pipeline.data.flow import windows
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.steps.movement import PROTOCOLS, Faces
from rapport.policies.motion import Layout, LayoutError, Motion
from rapport.rewards.affect import AffectEstimator
from rapport.rewards.metrics import evaluate, named
from rapport.rewards.metrics.measures.tlcc import MAX_LAG
from rapport.rewards.metrics.protocols import dualtalk, l2l, lm_listener, react
from rapport.rewards.metrics.protocols.protocol import Protocol, Variant

Reactions = Sequence[Sequence[Motion]]  # some to each clip
Scores = dict[str, float]
Scorer = Callable[["HeldOut", Reactions, Variant], Scores]

FILE_FRAMES = 750  # of DualTalk's files, about
HEAD = ("rot", "neck")
NEVER = {
    "react2023, react2024": "they take 25 emotion channels (AUs, valence, arousal, expression probabilities) of a "
    "recogniser; the corpora here have motion. The same metrics, on motion, are those of reactface",
    "vbench": "it judges rendered video; here all methods drive the same head, so it would judge the renderer",
}


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out clips, item by item.

    Args:
        target: the recorded listener, (frames, dim).
        partner: the speaker in the listener's layout, None where the corpus lacks them.
        speech: (2, frames) bool: where the listener and where the speaker speaks.
    """

    ids: Sequence[str]
    target: Sequence[Motion]
    partner: Sequence[Motion | None]
    speech: Sequence[np.ndarray]

    @classmethod
    def of(cls, corpus: Corpus, ids: Sequence[str], layout: Layout, frames: int) -> HeldOut:
        """The first `frames` of clips, the groups of `layout`."""
        target, partner, speech = [], [], []
        for clip_id in ids:
            clip = corpus.clip(clip_id)
            window = next(windows(clip, downsample=1, both=False))
            target.append(clip.listener.subset(layout).window(0, frames))
            partner.append(
                None if clip.speaker is None else clip.speaker.subset(layout).window(0, frames)
            )
            speech.append(np.stack([window.actor_speaks, window.partner_speaks])[:, :frames])
        return cls(ids, target, partner, speech)

    @property
    def layout(self) -> Layout:
        return self.target[0].layout

    @property
    def frames(self) -> int:
        return len(self.target[0])

    @property
    def partners(self) -> Sequence[Motion] | None:
        """Everybody's partner, or None where one lacks."""
        return None if any(s is None for s in self.partner) else self.partner

    def part(self, clips: slice) -> HeldOut:
        return HeldOut(self.ids[clips], self.target[clips], self.partner[clips], self.speech[clips])


def common_frames(answers: Mapping[str, np.ndarray]) -> int:
    """Frames that the reactions of every method have."""
    return min(reactions.shape[2] for reactions in answers.values())


def cut(reactions: np.ndarray, layout: Layout, frames: int) -> Reactions:
    """The first `frames` of (clips, samples, time, dim) as typed motion."""
    return [[Motion(values[:frames], layout) for values in samples] for samples in reactions]


def scorers(
    held_out: HeldOut, train: Sequence[Motion], affect: AffectEstimator | None, faces: Faces | None
) -> tuple[dict[str, Scorer], dict[str, str]]:
    """The protocols that apply to these clips, by name, and why the others are left out.

    Protocols that score one reaction a clip take the first.

    Args:
        train: training listeners in the same layout, for the z-scores of `l2l`.
        affect: reads valence off motion, for L2 Affect.
        faces: turns motion into vertices, for `unils` and `gdpo_paper`.
    """
    found: dict[str, Scorer] = {"lm_listener": partial(_by_clip, lm_listener.with_affect(affect))}
    left_out = dict(NEVER)
    if held_out.frames > l2l.CONTEXT:
        found["l2l"] = partial(_by_clip, l2l.with_training(train))
    else:
        left_out["l2l"] = (
            f"clips of {held_out.frames} frames: it judges those after the first {l2l.CONTEXT}"
        )
    found["dim"] = _dim
    if held_out.frames * (len(held_out.ids) // 2) > dualtalk.PAIRS:
        found["dualtalk"] = _dualtalk
    else:
        left_out["dualtalk"] = f"its Diversity needs files of more than {dualtalk.PAIRS} frames"
    if faces is not None:
        of_clip = cache(partial(_faces_of_clip, faces))
        found |= {name: partial(_on_vertices, of_clip, name) for name in PROTOCOLS}
    else:
        left_out[", ".join(PROTOCOLS)] = "no head for this corpus: give head.path"
    if held_out.layout.fps == react.FPS and held_out.frames >= MAX_LAG + 2:
        found["reactface"] = partial(_reactface, on_motion(held_out.layout))
    else:
        left_out["reactface"] = (
            f"it takes {MAX_LAG + 2} frames or more at {react.FPS} fps, clips have "
            f"{held_out.frames} at {held_out.layout.fps:g}"
        )
    return found, left_out


def on_motion(layout: Layout) -> Protocol:
    """ReactFace's metrics on these coefficients, in place of its 58 of FaceVerse."""
    setting = replace(react.REACTFACE, dim=layout.dim, groups=((slice(0, layout.dim), 1.0),))
    return replace(named("reactface"), score=partial(react.score, setting))


def with_head_as(name: str, motion: Motion) -> Motion:
    """The head's rotation under the name that a protocol has for it: corpora carry it in `rot` or
    in `neck`.
    """
    groups = tuple(
        (name if group in HEAD else group, width) for group, width in motion.layout.groups
    )
    if sum(group == name for group, _ in groups) != 1:
        raise LayoutError(f"expected one of {HEAD} in a motion of {motion.layout}")
    return Motion(motion.values, replace(motion.layout, groups=groups))


def _by_clip(protocol: Protocol, clips: HeldOut, answers: Reactions, variant: Variant) -> Scores:
    partner = clips.partner if protocol.name == "lm_listener" else None
    return evaluate(
        protocol, [samples[0] for samples in answers], clips.target, partner, variant=variant
    )


def _dim(clips: HeldOut, answers: Reactions, variant: Variant) -> Scores:
    return evaluate("dim", *_roles("rot", clips, answers), variant=variant)


def _dualtalk(clips: HeldOut, answers: Reactions, variant: Variant) -> Scores:
    """On files as long as DualTalk's, each of some clips in a row."""
    roles = [role and list(_files(role)) for role in _roles("neck", clips, answers)]
    return evaluate("dualtalk", *roles, variant=variant)


def _roles(head: str, clips: HeldOut, answers: Reactions) -> list[list[Motion] | None]:
    """Prediction, target and partner of each clip."""
    roles = ([samples[0] for samples in answers], clips.target, clips.partners)
    return [role and [with_head_as(head, motion) for motion in role] for role in roles]


def _files(clips: Sequence[Motion]) -> Iterator[Motion]:
    count = -(-len(clips) * len(clips[0]) // FILE_FRAMES)
    for part in np.array_split(np.arange(len(clips)), count):
        yield Motion(np.concatenate([clips[i].values for i in part]), clips[0].layout)


def _on_vertices(
    of_clip: Callable[..., dict[tuple[str, str], Scores]],
    protocol: str,
    clips: HeldOut,
    answers: Reactions,
    variant: Variant,
) -> Scores:
    """Means over clips, as `score` of these protocols takes them; one clip's vertices in memory at
    a time.
    """
    found: dict[str, list[float]] = {}
    for samples, target, speech in zip(answers, clips.target, clips.speech, strict=True):
        for name, value in of_clip(samples[0], target, speech.tobytes())[protocol, variant].items():
            found.setdefault(name, []).append(value)
    return {name: float(np.mean(given)) for name, given in found.items()}


def _faces_of_clip(
    faces: Faces, pred: Motion, target: Motion, speech: bytes
) -> dict[tuple[str, str], Scores]:
    """Both protocols on vertices, in both variants: making the vertices takes the time."""
    masks = np.frombuffer(speech, bool).reshape(2, -1)
    whole = bool(masks[0].any())  # only then distances over the whole head are asked for
    x, y = faces(pred, whole), faces(target, whole)
    return {
        (name, variant): evaluate(
            name, x, y, speech_mask=masks if people == 2 else masks[0], variant=variant
        )
        for name, people in PROTOCOLS.items()
        for variant in ("reference", "corrected")
    }


def _reactface(protocol: Protocol, clips: HeldOut, answers: Reactions, variant: Variant) -> Scores:
    """All reactions to a clip; the only one known to be appropriate is the recorded one."""
    neighbours: Any = np.eye(len(clips.ids), dtype=int)
    return evaluate(
        protocol, answers, clips.target, clips.partners, neighbours=neighbours, variant=variant
    )
