"""What a rater is asked, in which order: drawn from a seed, so the same after a reload."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rapport.pipeline.rating.offers import Offer, Shown
from rapport.pipeline.rating.settings import RateSection
from rapport.rewards.ratings.comparisons import Choice
from rapport.rewards.ratings.ratings import CRITERIA

Kind = Literal["plain", "control", "repeated", "instructed"]
TOLD = (1, 2, 4, 5)  # the middle is what somebody gives who does not look
SIDES: tuple[Choice, Choice] = ("first", "second")


@dataclass(frozen=True)
class Item:
    """One screen.

    Args:
        kind: what it is for; a rater is told of "instructed" only.
        videos: names of the one to be rated, or of the two to be compared.
        told: what is to be chosen, of "instructed" ones: 1 to 5, or a side.
    """

    kind: Kind
    videos: tuple[str, ...]
    told: int | Choice | None = None

    @property
    def instruction(self) -> str | None:
        """What a rater reads in place of the question."""
        if self.told is None:
            return None
        if isinstance(self.told, int):
            return f"This one checks that you are there: please choose {self.told} on every scale."
        side = {"first": "A", "second": "B"}[self.told]
        return f"This one checks that you are there: please choose {side}."

    def obeyed(self, answer: dict[str, Any]) -> bool:
        """Whether an answer is what was told."""
        if isinstance(self.told, int):
            return all(answer[name] == self.told for name in CRITERIA)
        return bool(answer["preferred"] == self.told)


def drawn_by(*parts: object) -> np.random.Generator:
    """A generator whose draws depend on nothing but `parts`."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(list(digest))


def order_of_groups(offer: Offer, rater: int, seed: int) -> list[str]:
    """The order in which a rater would be given groups that are equally wanted."""
    names = sorted(offer.groups)
    order = drawn_by(seed, "groups", offer.number, rater).permutation(len(names))
    return [names[place] for place in order]


def items_of(
    offer: Offer, config: RateSection, rater: int, groups: Sequence[str], seed: int
) -> list[Item]:
    """The screens of a rater's group, after those that they had before.

    Args:
        offer: the round.
        config: of the page.
        rater: their number.
        groups: of this rater in this round, in their order; asked for are the items of the last.
        seed: of the page.
    """
    place = len(groups) - 1
    rng = drawn_by(seed, "items", offer.number, rater, groups[-1])
    items = _whole_group(offer, config.form, rater, group=groups[-1], seed=seed)
    most = min(config.groups or len(offer.groups), len(offer.groups))
    every = config.instruct_every
    if every and place % every == min(1, every - 1, most - 1):
        told = TOLD[rng.integers(len(TOLD))] if config.form == "scales" else SIDES[rng.integers(2)]
        # Of a clip that was rated before: one that is rated later must not have been seen.
        position = int(rng.integers(1, len(items) + 1))
        seen = items[rng.integers(position)]
        items.insert(position, Item("instructed", seen.videos, told))
    every = min(config.repeat_every, most)
    if every and place % every == every - 1:
        earlier = groups[place - every + 1]
        plain = [
            item
            for item in _whole_group(offer, config.form, rater, group=earlier, seed=seed)
            if item.kind == "plain"
        ]
        items.append(Item("repeated", plain[rng.integers(len(plain))].videos[::-1]))  # sides turned
    return items


def _whole_group(offer: Offer, form: str, rater: int, *, group: str, seed: int) -> list[Item]:
    """Every video of a group once; or couples, in which every candidate stands twice.

    A rater compares each candidate with its two neighbours in a ring, drawn anew for each rater, so
    that together they compare all with all.
    """
    rng = drawn_by(seed, "group", offer.number, rater, group)
    videos: Sequence[Shown] = offer.groups[group]
    if form == "scales":
        shown = [videos[place] for place in rng.permutation(len(videos))]
        return [Item("control" if v.candidate_id is None else "plain", (v.name,)) for v in shown]
    names = [video.name for video in videos if video.candidate_id is not None]
    ring = [names[place] for place in rng.permutation(len(names))]
    couples = list(zip(ring, [*ring[1:], ring[0]], strict=True))[: 1 if len(ring) == 2 else None]
    items = [Item("plain", _turned(couple, rng)) for couple in couples]
    by_candidate = {video.candidate_id: video.name for video in videos}
    for video in videos:
        if video.candidate_id is None:
            own = by_candidate[offer.controls[video.name].counterpart]
            items.append(Item("control", _turned((own, video.name), rng)))
    return [items[place] for place in rng.permutation(len(items))]


def _turned(couple: tuple[str, str], rng: np.random.Generator) -> tuple[str, str]:
    return couple if rng.random() < 0.5 else (couple[1], couple[0])
