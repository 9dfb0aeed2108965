"""How AR-Flow is judged: held-out windows by the ODE, listening and speaking apart (supplement,
section 1).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from rapport.actors import timeline
from rapport.pipeline.config import FlowJudgeConfig, FlowRecipeConfig, HeadConfig
from rapport.pipeline.data.flow import LISTENER, Window
from rapport.pipeline.report.videos import spread
from rapport.pipeline.rundir import Run, write_atomic
from rapport.policies.flow import checkpoint
from rapport.policies.flow.conditions import MODALITIES, Conditions
from rapport.policies.flow.sampling import draw_noise, generate, generate_long, guidance_scale
from rapport.policies.flow.training import collate_conditions
from rapport.policies.flow.vae import MotionVAE
from rapport.policies.head.asset import HeadAsset, load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.landmarks import face_regions
from rapport.policies.motion import Motion
from rapport.policies.tables import read_table
from rapport.rewards.affect import AffectEstimator
from rapport.rewards.metrics import evaluate
from rapport.rewards.metrics.measures import flame_groups
from rapport.rewards.metrics.measures.mesh import Face, Regions

BATCH = 32  # windows generated at once
LONG_SAMPLES = 8
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
PROTOCOLS = {"unils": 1, "gdpo_paper": 2}  # whose speech masks: of the actor, or of both


@dataclass(frozen=True, eq=False)
class FlowJudge:
    """Held-out windows and all they are judged with.

    Args:
        windows: what was recorded.
        rows: the same windows' conditions.
        seeds: of their noise: a window is answered alike whatever others are judged with it.
        faces: turns motion into vertices; None where there is no head for the corpus.
    """

    config: FlowJudgeConfig
    windows: Sequence[Window]
    rows: Sequence[Mapping[str, Any]]
    seeds: Sequence[int]
    vae: MotionVAE
    faces: Faces | None

    @classmethod
    def of(
        cls, config: FlowRecipeConfig, windows: Sequence[Window], table: Path, vae: Path
    ) -> FlowJudge:
        count = min(config.judge.windows, len(windows))
        chosen = np.linspace(0, len(windows) - 1, count).astype(int).tolist()
        rows, coder = read_table(table), checkpoint.load_vae(vae)
        faces = faces_of(config.head, coder.config.layout.topology)
        seeds = range(config.seed + 1, config.seed + 1 + count)
        return cls(
            config.judge,
            [windows[i] for i in chosen],
            [rows[i] for i in chosen],
            seeds,
            coder,
            faces,
        )

    def coded(self) -> list[Motion]:
        """The recorded motion through the VAE: what coding alone costs."""
        return [
            self.vae.to_motion(self.vae.encode(torch.from_numpy(w.motion.values)[None])[0])
            for w in self.windows
        ]

    def others(self) -> list[Motion]:
        """For each window the recorded motion of somebody else in the same role: how far apart real
        people are.

        A policy that moves like people, and knows nothing of the recorded one, deviates as much.
        Who is alone in a role stands for themselves.
        """
        roles: dict[str, list[int]] = {}
        for i, window in enumerate(self.windows):
            roles.setdefault(window.clip_id.rsplit("/", 1)[1], []).append(i)
        found = {}
        for members in roles.values():
            half = len(members) // 2  # of another dyad, where there are two
            found |= dict(zip(members, members[half:] + members[:half], strict=True))
        return [self.windows[found[i]].motion for i in range(len(self.windows))]

    def listeners(self) -> FlowJudge:
        """Of those windows only whose actor listens in at least half of the frames."""
        return self._only(lambda window: window.listening.mean() >= 0.5)

    def of_listeners(self) -> FlowJudge:
        """Of those windows only whose actor is the listener of a clip, whom raters watch."""
        return self._only(lambda window: window.clip_id.endswith(LISTENER))

    def some(self, count: int) -> FlowJudge:
        """Of `count` of those windows, at even distances (of all, if there are fewer)."""
        return self._at(spread(range(len(self.windows)), count))

    def _only(self, wanted: Callable[[Window], bool]) -> FlowJudge:
        return self._at([i for i, window in enumerate(self.windows) if wanted(window)])

    def _at(self, kept: Sequence[int]) -> FlowJudge:
        return replace(
            self,
            **{
                name: [getattr(self, name)[i] for i in kept]
                for name in ("windows", "rows", "seeds")
            },
        )

    def controls(
        self, policy: Path, texts: Mapping[str, Tensor], affect: AffectEstimator | None
    ) -> dict[str, float]:
        """What prompts and guidance do.

        `text/valence/NAME` is the valence that the generated faces show on average when everybody
        is given the prompt of that name (where there is an estimator);
        `omega_X/variance_ratio/GROUP` rises with X if guidance is a slider.

        Args:
            texts: name of a prompt -> its features (text_dim,).
        """
        listening, recorded = [w.listening for w in self.windows], [w.motion for w in self.windows]
        values: dict[str, float] = {}
        for name, features in texts.items() if affect is not None else ():
            shown = [
                affect(motion)[mask, 0].mean()
                for motion, mask in zip(
                    self.generate(policy, text=features), listening, strict=True
                )
                if mask.any()
            ]
            values[f"text/valence/{name}"] = float(np.mean(shown))
        for omega in self.config.omegas:
            ratios = flame_groups.variance_ratio(
                self.generate(policy, omega=omega), recorded, listening
            )
            values |= {
                f"omega_{omega:g}/variance_ratio/{group}": ratio for group, ratio in ratios.items()
            }
        return values

    def endless(self, policy: Path) -> dict[str, float]:
        """Whether one sequence of `judge.long_frames` frames dies down or runs away.

        `long/variance_ratio/GROUP` is the variance of its last window against that of its first,
        each over `LONG_SAMPLES` samples. Conditions are those of the held-out windows, one after
        the other, again and again.
        """
        flow = checkpoint.load_flow(policy).eval()
        sizes = flow.config
        count = -(-self.config.long_frames // sizes.frames)
        parts = collate_conditions([self.rows[i % len(self.rows)] for i in range(count)], sizes)
        joined = {name: parts[name].flatten(0, 1)[None] for name in MODALITIES if name != "text"}
        conditions = Conditions(text=parts["text"][:1], present=parts["present"][:1], **joined)
        noise = draw_noise(self.seeds[:1], LONG_SAMPLES, count * sizes.window, sizes.latent_dim)
        latents = generate_long(flow, conditions, noise, self.config.steps)[0]
        motions = [self.vae.to_motion(sampled) for sampled in latents]
        first, last = (
            [motion.window(start, sizes.frames) for motion in motions]
            for start in (0, (count - 1) * sizes.frames)
        )
        ratios = flame_groups.variance_ratio(
            last, first, [np.ones(sizes.frames, bool)] * LONG_SAMPLES
        )
        return {f"long/variance_ratio/{group}": ratio for group, ratio in ratios.items()}

    def generate(
        self,
        policy: Path,
        text: Tensor | None = None,
        omega: float | None = None,
        steps: int | None = None,
        streaming: bool = False,
        without_text: bool = False,
    ) -> list[Motion]:
        """One motion of each window by the ODE, the same noise whatever the policy.

        Args:
            text: features (text_dim,) that stand for everybody's prompt.
            omega: guidance scale where nobody speaks, in place of `judge.omega_listen`.
            steps: denoise steps, in place of `judge.steps`.
            streaming: nothing after the present frame is heard or seen.
            without_text: nobody has a prompt.
        """
        flow = checkpoint.load_flow(policy).eval()
        sizes, c, motions = flow.config, self.config, []
        listen = c.omega_listen if omega is None else omega
        for first in range(0, len(self.rows), BATCH):
            rows = self.rows[first : first + BATCH]
            seeds = self.seeds[first : first + BATCH]
            speaking = torch.tensor([row["speaking"] for row in rows])
            conditions = collate_conditions(rows, sizes)
            if text is not None:
                conditions["text"] = text.expand(len(rows), -1)
                conditions["present"][:, MODALITIES.index("text")] = True
            if without_text:
                conditions["present"][:, MODALITIES.index("text")] = False
            latents = generate(
                flow,
                Conditions(**conditions),
                draw_noise(seeds, 1, sizes.window, sizes.latent_dim),
                steps or c.steps,
                guidance_scale(speaking, c.omega_speak, listen, sizes.downsample),
                streaming,
            )
            motions += [self.vae.to_motion(sampled) for sampled in latents[:, 0]]
        return motions

    def score(self, answers: Mapping[str, Sequence[Motion]]) -> dict[str, dict[str, float]]:
        """Method -> `PART/NAME/GROUP` of `flame_groups`, and `PART/PROTOCOL/NAME` on vertices where
        there is a head.

        Args:
            answers: method -> a motion of each window.
        """
        with timeline.noted("judge"):
            rows = {method: self.by_group(motions) for method, motions in answers.items()}
            if self.faces is not None:
                for method, found in self.on_vertices(answers).items():
                    rows[method] |= {
                        name: float(np.mean(list(given.values()))) for name, given in found.items()
                    }
        return rows

    def by_group(self, motions: Sequence[Motion]) -> dict[str, float]:
        parts = {
            "listen": [w.listening for w in self.windows],
            "speak": [w.actor_speaks for w in self.windows],
        }
        recorded, partners = [w.motion for w in self.windows], [w.partner for w in self.windows]
        return {
            f"{part}/{name}": value
            for part, masks in parts.items()
            for name, value in flame_groups.score(motions, recorded, partners, masks).items()
        }

    def on_vertices(
        self, answers: Mapping[str, Sequence[Motion]]
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Both definitions of LVE, MHD, FDD, PDD, JDD: method -> `PART/PROTOCOL/NAME` -> window ->
        value.

        Window by window, so that the recorded face is made once, whatever the number of methods.
        """
        found: dict[str, dict[str, dict[str, float]]] = {method: {} for method in answers}
        for i, window in enumerate(self.windows):
            whole = bool(
                window.actor_speaks.any()
            )  # only then distances over the whole head are asked for
            recorded = self.faces(window.motion, whole)
            speech = np.stack([window.actor_speaks, window.partner_speaks])
            for method, motions in answers.items():
                face = self.faces(motions[i], whole)
                for protocol, people in PROTOCOLS.items():
                    scores = evaluate(
                        protocol, face, recorded, speech_mask=speech if people == 2 else speech[0]
                    )
                    for name, value in scores.items():
                        metric, part = name.rsplit("_", 1)
                        found[method].setdefault(f"{part}/{protocol}/{metric}", {})[
                            window.clip_id
                        ] = value
        return found


@dataclass(frozen=True, eq=False)
class Faces:
    """Motion as vertices, the head's rotation apart.

    Args:
        used: the vertices of the regions, sorted.
    """

    head: FlameHead
    regions: Regions
    used: np.ndarray

    def __call__(self, motion: Motion, whole: bool) -> Face:
        """All vertices, or a fifth of the work: only those of the regions."""
        still, layout, regions = motion.values.copy(), motion.layout, self.regions
        turning = [name for name in ("rot", "neck") if name in layout.names]
        for name in turning:
            still[:, layout.columns(name)] = 0
        if not whole:
            regions = Regions(
                *(tuple(np.searchsorted(self.used, part)) for part in (regions.lip, regions.upper))
            )
        vertices = self.head.vertices_of(
            Motion(still, layout), vertices=None if whole else self.used
        )
        return Face(vertices, motion.group(turning[0]), motion.group("jaw"), regions)


def faces_of(config: HeadConfig, topology: str) -> Faces | None:
    """The configured head, if motion of this topology and its own regions of the face mean
    something on it.
    """
    asset: HeadAsset = load_head(config.path, config.topology)
    if asset.topology != topology or not asset.arkit:
        print(
            f"[judge] no vertices of {topology} motion on the {asset.topology} head: LVE, MHD, "
            "FDD, PDD, JDD are "
            "left out; give head.path=FILE",
            flush=True,
        )
        return None
    regions = face_regions(asset)
    return Faces(
        FlameHead(asset), Regions(**regions), np.unique(np.concatenate(list(regions.values())))
    )


def report(rows: dict[str, dict[str, float]], first: str, last: str, run: Run) -> None:
    """What matters most on the terminal, all of it as a table and as JSON in the run folder,
    numbers in MLflow.

    Args:
        rows: method -> metric -> value; the terminal shows those up to `last`.
        first, last: methods that are compared.
    """
    before, after = rows[first], rows[last]
    sizes = {
        name: value for name, value in before.items() if value > 0 and not name.startswith("text")
    }
    change = {
        name: 100 * (after[name] / value - 1) for name, value in sizes.items() if name in after
    }
    shown = Table(
        title="how held-out people move; VAE = the recorded motion, coded and decoded; others = somebody "
        "else's recorded motion"
    )
    main = 2 + list(rows).index(last)
    heading = ["", *rows]
    heading.insert(main, "change")
    for column in heading[: main + 1]:
        shown.add_column(column, justify="right" if column else "left")
    lines = []
    for metric in before:
        line = [metric, *(f"{row[metric]:.4g}" if metric in row else "-" for row in rows.values())]
        line.insert(main, f"{change[metric]:+.0f} %" if metric in change else "-")
        lines.append(line)
        if any(part in metric for part in HEADLINES):
            shown.add_row(*line[: main + 1])
    Console(width=120).print(shown)
    table = "\n".join(
        "| " + " | ".join(line) + " |" for line in [heading, ["---"] * len(heading), *lines]
    )
    write_atomic(run.directory / "judgement.md", table + "\n")
    write_atomic(
        run.directory / "judgement.json", json.dumps(rows | {"change_percent": change}, indent=2)
    )
    for kind in ("md", "json"):
        run.summary["artifacts"][f"judgement_{kind}"] = str(run.directory / f"judgement.{kind}")
    run.summary["metrics"] |= {
        "judgement": rows,
        "compared": [first, last],
        "before": before,
        "after": after,
        "change_percent": change,
    }
    for name, row in rows.items():
        run.tracker.log({f"{name}/{metric}": value for metric, value in row.items()})
