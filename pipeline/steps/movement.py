"""How held-out people move, by FLAME group, listening and speaking apart (supplement, 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from rapport.actors import timeline
from rapport.actors.fleet import Fleet
from rapport.files import strict_json, write_atomic
from rapport.log import logger
from rapport.pipeline.data.flow import Window, windows
from rapport.pipeline.report.videos import evenly_spaced
from rapport.pipeline.rundir import Workspace
from rapport.pipeline.settings import Judged, JudgedOfFlow
from rapport.pipeline.steps.corpus import choose, require_splits
from rapport.pipeline.steps.imitation_flow import people
from rapport.pipeline.steps.learning import Imitated
from rapport.pipeline.steps.settings import ComparisonConfig
from rapport.policies.head.asset import HeadAsset, load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.landmarks import face_regions
from rapport.policies.head.settings import HeadConfig
from rapport.policies.motion import Motion
from rapport.policies.policy import Policy, Reaction
from rapport.rewards.metrics import evaluate
from rapport.rewards.metrics.measures import flame_groups
from rapport.rewards.metrics.measures.mesh import Face, Regions

# On the terminal; the files have all.
HEADLINES = (
    "text",
    "long",
    "omega",
    "unils",
    "gdpo_paper",
    "listen/MSE",
    "listen/variance_ratio",
    "listen/jerk_ratio",
)
# Rows that say how much is much.
STANDARDS = {
    "VAE": "VAE = the recorded motion, coded and decoded",
    "others": "others = somebody else's recorded motion",
}
PROTOCOLS = {"unils": 1, "gdpo_paper": 2}  # whose speech masks: of the actor, or of both


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
        recorded = []
        prompts = []
        for clip in map(imitated.corpus.clip, clip_ids):
            recorded.append(_in_layout(next(windows(clip, 1, both=False)), policy))
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
        """Of those windows only whose actor listens in at least half of the frames."""
        return self._only(lambda window: window.listening.mean() >= 0.5)

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


def motions_of(policy: Policy, groups: Iterable[Sequence[Reaction]]) -> list[list[Motion]]:
    """The motion of every reaction."""
    return [[policy.to_motion(reaction) for reaction in group] for group in groups]


def _in_layout(window: Window, policy: Policy) -> Window:
    partner = window.partner
    return replace(
        window,
        motion=window.motion.subset(policy.layout),
        partner=None if partner is None else partner.subset(policy.layout),
    )


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
            faces = faces_of(config.head, imitated.corpus.layout.topology)
        return cls(held_out.repeated, held_out.both_roles, faces)

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

    def score(self, answers: Mapping[str, Sequence[Motion]]) -> dict[str, dict[str, float]]:
        """Method -> `PART/NAME/GROUP` of `flame_groups`, and `PART/PROTOCOL/NAME` on vertices.

        Args:
            answers: method -> a motion of each window.
        """
        with timeline.noted("judge"):
            rows = {method: self.by_group(motions) for method, motions in answers.items()}
            if self.faces is not None:
                for method, by_name in self.on_vertices(answers).items():
                    for name, by_window in by_name.items():
                        rows[method][name] = float(np.mean(list(by_window.values())))
        return rows

    def by_group(self, motions: Sequence[Motion]) -> dict[str, float]:
        """What `flame_groups` says of one method."""
        recorded = [window.motion for window in self.windows]
        partners = [window.partner for window in self.windows]
        parts = {"listen": [window.listening for window in self.windows]}
        if self.both_roles:
            parts["speak"] = [window.actor_speaks for window in self.windows]
        values = {}
        for part, masks in parts.items():
            for name, value in flame_groups.score(motions, recorded, partners, parts=masks).items():
                values[f"{part}/{name}"] = value
        return values

    def on_vertices(
        self, answers: Mapping[str, Sequence[Motion]]
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Both definitions of LVE, MHD, FDD, PDD, JDD.

        Method -> `PART/PROTOCOL/NAME` -> window -> value. Window by window, so that the recorded
        face is made once, whatever the number of methods.
        """
        faces = self.faces
        if faces is None:
            raise ValueError("motion of this topology has no vertices: `faces` is needed")
        values: dict[str, dict[str, dict[str, float]]] = {method: {} for method in answers}
        for place, window in enumerate(self.windows):
            # Only where somebody speaks are distances over the whole head asked for.
            whole = bool(window.actor_speaks.any())
            recorded = faces(window.motion, whole)
            speech = np.stack([window.actor_speaks, window.partner_speaks])
            for method, motions in answers.items():
                face = faces(motions[place], whole)
                for protocol, who in PROTOCOLS.items():
                    mask = speech if who == 2 else speech[0]
                    for name, value in evaluate(protocol, face, recorded, speech_mask=mask).items():
                        metric, part = name.rsplit("_", 1)
                        by_window = values[method].setdefault(f"{part}/{protocol}/{metric}", {})
                        by_window[window.window_id] = value
        return values


@dataclass(frozen=True, eq=False)
class Faces:
    """Motion as vertices, the head's rotation apart.

    Args:
        head: the FLAME layer.
        regions: of the face.
        used: the vertices of the regions, sorted.
    """

    head: FlameHead
    regions: Regions
    used: np.ndarray

    def __call__(self, motion: Motion, whole: bool) -> Face:
        """All vertices, or a fifth of the work: only those of the regions."""
        layout = motion.layout
        still = motion.values.copy()
        turning = [name for name in ("rot", "neck") if name in layout.names]
        for name in turning:
            still[:, layout.columns(name)] = 0
        regions = self.regions
        if not whole:
            parts = (regions.lip, regions.upper)
            regions = Regions(*(tuple(np.searchsorted(self.used, part)) for part in parts))
        vertices = self.head.vertices_of(
            Motion(still, layout), vertices=None if whole else self.used
        )
        return Face(vertices, motion.group(turning[0]), motion.group("jaw"), regions=regions)


def faces_of(config: HeadConfig, topology: str) -> Faces | None:
    """The configured head, if motion of this topology means something on it."""
    asset: HeadAsset = load_head(config.path, config.topology)
    if asset.topology != topology or not asset.arkit:
        logger.info(
            f"[judge] no vertices of {topology} motion on the {asset.topology} head: LVE, MHD, "
            "FDD, PDD, JDD are left out; give head.path=FILE"
        )
        return None
    regions = face_regions(asset)
    used = np.unique(np.concatenate(list(regions.values())))
    lip, upper = (tuple(regions[name].tolist()) for name in ("lip", "upper"))
    return Faces(FlameHead(asset), Regions(lip, upper), used)


def tabulate_movement(
    rows: Mapping[str, Mapping[str, float]], run: Workspace, *, before: str, after: str
) -> None:
    """What matters most on the terminal, all of it as a table and as JSON, numbers in MLflow.

    Args:
        rows: method -> metric -> value; the terminal shows those up to `after`.
        run: takes the summary.
        before: method to compare with.
        after: method that is compared.
    """
    first = rows[before]
    last = rows[after]
    sizes = {
        name: value for name, value in first.items() if value > 0 and not name.startswith("text")
    }
    change = {name: 100 * (last[name] / value - 1) for name, value in sizes.items() if name in last}
    title = ["how held-out people move"]
    title += [meaning for name, meaning in STANDARDS.items() if name in rows]
    shown = Table(title="; ".join(title))
    main = 2 + list(rows).index(after)
    heading = ["", *rows]
    heading.insert(main, "change")
    for column in heading[: main + 1]:
        shown.add_column(column, justify="right" if column else "left")
    lines = []
    for metric in first:
        line = [metric]
        line += [f"{row[metric]:.4g}" if metric in row else "-" for row in rows.values()]
        line.insert(main, f"{change[metric]:+.0f} %" if metric in change else "-")
        lines.append(line)
        if any(part in metric for part in HEADLINES):
            shown.add_row(*line[: main + 1])
    Console(width=120).print(shown)
    table = [heading, ["---"] * len(heading), *lines]
    text = "\n".join("| " + " | ".join(line) + " |" for line in table)
    write_atomic(run.directory / "judgement.md", text + "\n")
    content = dict(rows) | {"change_percent": change}
    write_atomic(run.directory / "judgement.json", strict_json(content, indent=2))
    for kind in ("md", "json"):
        run.leave({f"judgement_{kind}": run.directory / f"judgement.{kind}"})
    summary = run.summary["metrics"]
    summary |= {"judgement": rows, "compared": [before, after], "change_percent": change}
    summary["before"] = summary.get("before", {}) | dict(first)
    summary["after"] = summary.get("after", {}) | dict(last)
    for name, row in rows.items():
        run.tracker.log(
            {f"{name.replace(' + ', '_')}/{metric}": value for metric, value in row.items()}
        )
