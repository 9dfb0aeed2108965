"""What tells a listener from a pleasant face: whether this speaker was answered, or anybody."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rapport.policies.clip import Clip
from rapport.rewards.ratings.answers import answers
from rapport.rewards.ratings.beside import share_matched
from rapport.rewards.ratings.points import Point
from rapport.rewards.ratings.visible import VisibleMotion, displayed_valence


@dataclass(eq=False)
class Listening:
    """Yardsticks of one method, gathered clip by clip.

    Args:
        yardsticks: name -> clip id, or clip id and number of a point -> value.
        conversations: the same keys -> conversation.
        by_kind: how points were told -> how they were answered.
    """

    yardsticks: dict[str, dict[str, float]] = field(default_factory=dict)
    conversations: dict[str, str] = field(default_factory=dict)
    by_kind: dict[str, list[float]] = field(default_factory=dict)

    @property
    def right_by_kind(self) -> dict[str, float]:
        """Share of points answered right by how they were told."""
        return {kind: float(np.mean(self.by_kind[kind])) for kind in sorted(self.by_kind)}

    def add_differences(
        self, clip_id: str, conversation: str, differences: Sequence[float]
    ) -> None:
        """Ratings beside the own speaker less those beside others (`Beside.differences`)."""
        self.conversations[clip_id] = conversation
        matched = share_matched(differences)
        if matched is not None:
            self._put("own_minus_another", clip_id, float(np.mean(differences)))
            self._put("matched", clip_id, matched)

    def add_points(
        self,
        clip_id: str,
        conversation: str,
        points: Sequence[Point],
        reactions: Iterable[VisibleMotion],
    ) -> None:
        """How the points were answered, each a mean over the reactions."""
        rights: dict[Point, list[float]] = {}
        for seen in reactions:
            if seen.expression is None:
                continue
            for answer in answers(displayed_valence(seen.expression), points, seen.fps):
                rights.setdefault(answer.point, []).append(answer.right)
        for number, (point, values) in enumerate(rights.items()):
            key = f"{clip_id}#{number}"
            right = float(np.mean(values))
            self.conversations[key] = conversation
            self._put("right", key, right)
            self._put("right_known" if point.known else "right_held_out", key, right)
            self.by_kind.setdefault(point.kind, []).append(right)

    def add_evidence(self, clip_id: str, conversation: str, evidence: Sequence[np.ndarray]) -> None:
        """What the independent judge says of each reaction: (own, then others) in nats."""
        self.conversations[clip_id] = conversation
        scores = np.stack(evidence)
        self._put("independent", clip_id, float(scores[:, 0].mean()))
        if scores.shape[1] > 1:
            difference = scores[:, :1] - scores[:, 1:]
            self._put("independent_own_minus_another", clip_id, float(difference.mean()))

    def _put(self, name: str, key: str, value: float) -> None:
        self.yardsticks.setdefault(name, {})[key] = value


def strangers(
    clips: Mapping[str, Clip], conversations: Mapping[str, str], count: int, *, seed: int
) -> dict[str, list[str]]:
    """For each clip `count` clips of other conversations, which last as long or longer.

    Each of another conversation, as far as there are so many; [] where there is but one.

    Args:
        clips: by id.
        conversations: of each of them.
        count: of strangers.
        seed: of the draw.
    """
    rng = np.random.default_rng([seed, 2])
    chosen: dict[str, list[str]] = {}
    for clip_id, clip in clips.items():
        by_conversation: dict[str, list[str]] = {}
        for other_id, other in clips.items():
            name = conversations[other_id]
            if name != conversations[clip_id] and len(other.listener) >= len(clip.listener):
                by_conversation.setdefault(name, []).append(other_id)
        names = list(by_conversation)
        drawn = [names[i] for i in rng.permutation(len(names))[:count]]
        chosen[clip_id] = [str(rng.choice(by_conversation[name])) for name in drawn]
    return chosen


def shuffled(conversations: Mapping[str, str]) -> dict[str, str]:
    """For each clip another one, of another conversation where no conversation has half of them.

    Args:
        conversations: of each clip.
    """
    by_conversation: dict[str, list[str]] = {}
    for clip_id, name in conversations.items():
        by_conversation.setdefault(name, []).append(clip_id)
    in_order = [clip_id for ids in by_conversation.values() for clip_id in ids]
    shift = max(map(len, by_conversation.values())) % len(in_order) or 1
    turned = in_order[shift:] + in_order[:shift]
    return dict(zip(in_order, turned, strict=True))
