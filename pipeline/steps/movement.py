"""How held-out people move, listening and speaking apart (GDPO-Listener, supplement, 1).

Somebody listens where the partner speaks and they do not, in windows of a clip's listener. A
speaker's pauses are no listening.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self, TypeVar

import numpy as np

from rapport.actors import timeline
from rapport.actors.fleet import Fleet
from rapport.pipeline.data.flow import Window, windows
from rapport.pipeline.report.videos import evenly_spaced
from rapport.pipeline.settings import Judged, JudgedOfFlow
from rapport.pipeline.steps.corpus import choose, require_splits
from rapport.pipeline.steps.faces import PROTOCOLS, Faces, faces_of
from rapport.pipeline.steps.imitation_flow import people
from rapport.pipeline.steps.learning import Imitated, own_device
from rapport.pipeline.steps.settings import ComparisonConfig
from rapport.policies.motion import Motion
from rapport.policies.policy import Policy, Reaction
from rapport.rewards.dynamics import LEAST_FRAMES
from rapport.rewards.metrics import evaluate
from rapport.rewards.metrics.measures import flame_groups
from rapport.rewards.metrics.measures.bands import bands
from rapport.rewards.metrics.measures.distance import mse
from rapport.rewards.metrics.measures.flame_groups import FEWEST
from rapport.rewards.metrics.measures.likeness import likeness
from rapport.rewards.metrics.statistics import paired_interval, prompt_means

# A method: the recorded motion of somebody else.
OTHERS = "others"
AT_ONCE = min(4, os.cpu_count() or 1)  # windows whose vertices are made: 200 MB each


Answer = TypeVar("Answer")  # a reaction, or its motion


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out prompts with what was recorded.

    Args:
        windows: what was recorded; those of a clip's listener can be rated, too.
        prompts: what a policy is shown of them.
        seeds: of the answers: a window is answered alike whatever others are judged with it.
        samples: answers to each.
        both_roles: whether speakers are among the actors.
    """

    windows: Sequence[Window]
    prompts: Sequence[Any]
    seeds: Sequence[int]
    samples: int = 1
    both_roles: bool = False

    @classmethod
    def from_corpus(cls, config: Judged, imitated: Imitated) -> Self:
        """The held-out prompts that the config names.

        Raises:
            RunError: the corpus lacks their split.
        """
        split = config.evaluation.split
        require_splits(imitated.corpus, [split])
        if isinstance(config, JudgedOfFlow):
            return cls._of_windows(config, imitated)
        assert isinstance(config.evaluation, ComparisonConfig)  # of all but AR-Flow
        policy = imitated.policy
        clip_ids = choose(imitated.corpus, split, config.evaluation.prompts, seed=config.seed)
        conversations = imitated.corpus.conversations(split)
        recorded = []
        prompts = []
        for clip in map(imitated.corpus.clip, clip_ids):
            of = conversations[clip.clip_id]
            window = next(windows(clip, 1, both=False, conversation=of))
            recorded.append(_in_layout(window, policy))
            prompts.append(policy.encode(clip))
        return cls(
            windows=recorded,
            prompts=prompts,
            seeds=policy.seeds("held out", config.seed, 0, prompt_ids=clip_ids),
            samples=config.evaluation.samples,
        )

    @classmethod
    def _of_windows(cls, config: JudgedOfFlow, imitated: Imitated) -> Self:
        split = config.evaluation.split
        table = imitated.encoded(split)
        assert table is not None  # AR-Flow has prompts made in advance
        count = min(config.judge.windows, len(table))
        places = np.linspace(0, len(table) - 1, count).astype(int).tolist()
        wanted = set(places)
        everybody = enumerate(people(config, imitated.corpus, split))
        judged = {place: window for place, window in everybody if place in wanted}
        prompts = [imitated.policy.prompt_of(table[place]) for place in places]
        ids = [prompt.prompt_id for prompt in prompts]
        return cls(
            windows=[judged[place] for place in places],
            prompts=prompts,
            seeds=imitated.policy.seeds("held out", config.seed, 0, prompt_ids=ids),
            both_roles=True,
        )

    def ask(self, policy: Policy | Fleet) -> list[list[Reaction]]:
        """A group of reactions to each prompt."""
        if isinstance(policy, Fleet):
            return policy.groups(self.prompts, self.samples, self.seeds)
        return policy.sample(self.prompts, self.samples, self.seeds)

    def by_clip(self, answers: Sequence[list[Answer]]) -> dict[str, list[Answer]]:
        """Those of a clip's listener, whom raters can watch."""
        return {
            window.clip_id: group
            for window, group in zip(self.windows, answers, strict=True)
            if window.role == "listener"
        }

    def flat(self, answers: Sequence[list[Motion]]) -> list[Motion]:
        """All of them, window by window, as `repeated` windows stand."""
        return [motion for motions in answers for motion in motions]

    @property
    def repeated(self) -> list[Window]:
        """Each window as often as it is answered."""
        return [window for window in self.windows for _ in range(self.samples)]

    def listeners(self) -> Self:
        """Of those windows of a listener only who listens in at least half of the frames."""
        return self.of_listeners()._only(lambda window: window.listening.mean() >= 0.5)

    def of_listeners(self) -> Self:
        """Of those windows only whose actor is the listener of a clip."""
        return self._only(lambda window: window.role == "listener")

    def some(self, count: int) -> Self:
        """Of `count` of those windows, at even distances (of all, if there are fewer)."""
        return self._at(evenly_spaced(range(len(self.windows)), count))

    def _only(self, wanted: Callable[[Window], bool]) -> Self:
        return self._at([i for i, window in enumerate(self.windows) if wanted(window)])

    def _at(self, kept: Iterable[int]) -> Self:
        kept = list(kept)
        return replace(
            self,
            windows=[self.windows[i] for i in kept],
            prompts=[self.prompts[i] for i in kept],
            seeds=[self.seeds[i] for i in kept],
        )


def motions_of(policy: Policy, groups: Sequence[Sequence[Reaction]]) -> list[list[Motion]]:
    """The motion of every reaction."""
    motions = iter(policy.to_motions([reaction for group in groups for reaction in group]))
    return [[next(motions) for _ in group] for group in groups]


def _in_layout(window: Window, policy: Policy) -> Window:
    partner = window.partner
    return replace(
        window,
        motion=window.motion.subset(policy.layout),
        partner=None if partner is None else partner.subset(policy.layout),
    )


@dataclass(frozen=True, eq=False)
class Movement:
    """How some methods move.

    Args:
        rows: method -> metric -> value.
        by_window: method -> metric -> window -> value, of those metrics that windows have.
        conversations: window -> the conversation that it is of.
    """

    rows: Mapping[str, dict[str, float]]
    by_window: Mapping[str, Mapping[str, Mapping[str, float]]]
    conversations: Mapping[str, str]

    def changes(self, before: str, after: str, bootstrap: int) -> dict[str, dict[str, float]]:
        """Metric -> by how much `after` is above `before`, `{mean, low, high, n}`.

        Over the windows that both have, resampled by conversation; nothing of a single window.

        Args:
            before: method to compare with.
            after: method that is compared.
            bootstrap: resamples of the intervals.
        """
        first = self.by_window[before]
        last = self.by_window[after]
        return {
            name: paired_interval(
                first[name], last[name], resamples=bootstrap, groups=self.conversations
            ).to_json()
            for name in first
            if name in last and len(first[name].keys() & last[name].keys()) > 1
        }


@dataclass(frozen=True, eq=False)
class MovementJudge:
    """Recorded windows and what they are compared by.

    Args:
        windows: what was recorded.
        both_roles: whether speaking is judged, too.
        faces: turns motion into vertices; None where there is no head for it.
    """

    windows: Sequence[Window]
    both_roles: bool
    faces: Faces | None = None

    @classmethod
    def of_run(cls, config: Judged, imitated: Imitated, held_out: HeldOut) -> Self:
        """The judge of a recipe; it looks at a head where AR-Flow is judged.

        Args:
            config: of the recipe.
            imitated: corpus and imitating policy.
            held_out: the prompts; a window counts as often as it is answered.
        """
        faces = None
        if isinstance(config, JudgedOfFlow):
            device = own_device(config.learner)
            faces = faces_of(config.head, imitated.corpus.layout.topology, device)
        return cls(held_out.repeated, held_out.both_roles, faces)

    @cached_property
    def listening(self) -> list[np.ndarray]:
        """(frames,) bool of each window: where the listener of a clip listens."""
        return [
            window.listening if window.role == "listener" else np.zeros(len(window.motion), bool)
            for window in self.windows
        ]

    @cached_property
    def listeners(self) -> list[int]:
        """Places of the windows in which somebody listens for `LEAST_FRAMES` frames."""
        return [
            place
            for place, frames in enumerate(self.listening)
            if np.count_nonzero(frames) >= LEAST_FRAMES
        ]

    @property
    def left_out(self) -> int:
        """Windows of a listener who listens for fewer frames."""
        of_listeners = sum(window.role == "listener" for window in self.windows)
        return of_listeners - len(self.listeners)

    @property
    def conversations(self) -> dict[str, str]:
        """Window -> the conversation that it is of."""
        return {window.window_id: window.conversation for window in self.windows}

    def others(self) -> list[Motion]:
        """For each window the recorded motion of somebody else in the same role.

        A policy that moves like people, and knows nothing of the recorded one, deviates as much. A
        role with one member is compared with itself.
        """
        roles: dict[str, list[int]] = {}
        for place, window in enumerate(self.windows):
            roles.setdefault(window.role, []).append(place)
        partner_of: dict[int, int] = {}
        for members in roles.values():
            half = len(members) // 2  # of another dyad, where there are two
            partner_of |= dict(zip(members, members[half:] + members[:half], strict=True))
        return [self.windows[partner_of[place]].motion for place in range(len(self.windows))]

    def score(self, answers: Mapping[str, Sequence[Motion]]) -> Movement:
        """All that is measured of some methods.

        Metrics are `PART/NAME/GROUP` of `flame_groups`, `PART/PROTOCOL/NAME` on vertices,
        `listen/MSE` over all channels, `likeness/GROUP/KIND` and `bands/GROUP/NAME`.

        Args:
            answers: method -> a motion of each window.
        """
        with timeline.noted("judge"):
            by_window = {method: self.errors(motions) for method, motions in answers.items()}
            if self.faces is not None:
                for method, by_name in self.on_vertices(answers).items():
                    by_window[method] |= by_name
            rows = {}
            for method, motions in answers.items():
                means = {
                    name: float(np.mean(list(values.values())))
                    for name, values in by_window[method].items()
                }
                # Others are people in another order: taken together, they are as people.
                crowd = {} if method == OTHERS else self.as_crowd(motions)
                rows[method] = crowd | means | self.by_group(motions)
        return Movement(rows, by_window, self.conversations)

    def as_crowd(self, motions: Sequence[Motion]) -> dict[str, float]:
        """How alike people the listeners of one method move, taken together.

        Nothing where there are no two conversations to tell people from people.
        """
        places = self.listeners
        conversations = [self.windows[place].conversation for place in places]
        if len(set(conversations)) < 2:
            return {}
        generated = [motions[place] for place in places]
        recorded = [self.windows[place].motion for place in places]
        frames = [self.listening[place] for place in places]
        parts = {
            "likeness": likeness(generated, recorded, frames, conversations),
            "bands": bands(generated, recorded, frames),
        }
        return {
            f"{part}/{group}/{name}": value
            for part, groups in parts.items()
            for group, values in groups.items()
            for name, value in values.items()
        }

    def by_group(self, motions: Sequence[Motion]) -> dict[str, float]:
        """What `flame_groups` says of one method."""
        recorded = [window.motion for window in self.windows]
        partners = [window.partner for window in self.windows]
        parts = {"listen": self.listening}
        if self.both_roles:
            parts["speak"] = [window.actor_speaks for window in self.windows]
        values = {}
        for part, masks in parts.items():
            for name, value in flame_groups.score(motions, recorded, partners, parts=masks).items():
                values[f"{part}/{name}"] = value
        return values

    def errors(self, motions: Sequence[Motion]) -> dict[str, dict[str, float]]:
        """`listen/MSE` -> window -> mean squared error over all channels, while somebody listens.

        {} where nobody listens for the 4 frames that `flame_groups` asks for.
        """
        errors = prompt_means(
            (window.window_id, mse(motion.values[frames], window.motion.values[frames]))
            for motion, window, frames in zip(motions, self.windows, self.listening, strict=True)
            if np.count_nonzero(frames) >= FEWEST
        )
        return {"listen/MSE": errors} if errors else {}

    def on_vertices(
        self, answers: Mapping[str, Sequence[Motion]]
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Both definitions of LVE, MHD, FDD, PDD, JDD.

        Method -> `PART/PROTOCOL/NAME` -> window -> value. Listening is that of `listeners`, where
        `FDD_lids_apart` is FDD with all lids open: how many blinks fall into a window is chance,
        and they outweigh all the rest. Frames of a part are taken as if they followed each other,
        as both protocols have it. Vertices are made of those frames only, and window by window, so
        that the recorded face is made once, whatever the number of methods.
        """
        values: dict[str, dict[str, list[tuple[str, float]]]] = {name: {} for name in answers}
        places = range(len(self.windows))
        shown = [[motions[place] for motions in answers.values()] for place in places]
        with ThreadPoolExecutor(AT_ONCE) as threads:  # numpy and torch let others run meanwhile
            measured = threads.map(self._of_window, places, shown)
            for window, rows in zip(self.windows, measured, strict=True):
                for method, row in zip(answers, rows, strict=True):
                    for name, value in row.items():
                        values[method].setdefault(name, []).append((window.window_id, value))
        return {
            method: {name: prompt_means(pairs) for name, pairs in by_name.items()}
            for method, by_name in values.items()
        }

    def _of_window(self, place: int, motions: Sequence[Motion]) -> list[dict[str, float]]:
        """`PART/PROTOCOL/NAME` -> value of every motion, in the parts that the window has."""
        window = self.windows[place]
        shown = [window.motion, *motions]
        rows: list[dict[str, float]] = [{} for _ in motions]
        if place in self.listeners:
            listening = self._of_part("listen", shown, window.listening)
            apart = self._of_part("listen", shown, window.listening, lids=False)
            for row, as_it_is, open_lids in zip(rows, listening, apart, strict=True):
                row |= as_it_is
                row |= {f"{n}_lids_apart": v for n, v in open_lids.items() if n.endswith("FDD")}
        if self.both_roles and window.actor_speaks.any():
            speaking = self._of_part("speak", shown, window.actor_speaks)
            for row, as_it_is in zip(rows, speaking, strict=True):
                row |= as_it_is
        return rows

    def _of_part(
        self, part: str, motions: Sequence[Motion], frames: np.ndarray, lids: bool = True
    ) -> list[dict[str, float]]:
        """`PART/PROTOCOL/NAME` -> value of every motion but the first, against the first.

        Args:
            part: `listen` or `speak`; only the latter has distances over the whole head.
            motions: the recorded one, and those that are compared with it.
            frames: (time,) bool, frames of the part.
            lids: whether they move.
        """
        if self.faces is None:
            raise ValueError("motion of this topology has no vertices: `faces` is needed")
        speaks = np.full(np.count_nonzero(frames), part == "speak")
        cut = [Motion(motion.values[frames], motion.layout) for motion in motions]
        recorded, *generated = self.faces(cut, whole=part == "speak", lids=lids)
        rows = []
        for face in generated:
            row = {}
            for protocol, who in PROTOCOLS.items():
                mask = np.stack([speaks, ~speaks]) if who == 2 else speaks
                for name, value in evaluate(protocol, face, recorded, speech_mask=mask).items():
                    row[f"{part}/{protocol}/{name.removesuffix(f'_{part}')}"] = value
            rows.append(row)
        return rows
