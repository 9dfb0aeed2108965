"""The reward pool: groups of candidates in, ratings out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import ray

from rapport.actors.cluster import on_nodes, worker_environment
from rapport.actors.pool import Pool
from rapport.actors.timeline import Worker
from rapport.policies.head.asset import load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.landmarks import face_landmarks
from rapport.policies.motion import Motion
from rapport.rewards.ratings.ratings import Rating
from rapport.rewards.ratings.simulated import SimulatedPanel
from rapport.rewards.ratings.speaker_cues import SpeakerCues
from rapport.rewards.ratings.visible import VisibleMotion, watch


@dataclass(frozen=True, eq=False)
class Group:
    """A prompt with its candidate reactions, and what raters see and hear of the speaker; None =
    absent.
    """

    prompt_id: str
    candidates: Mapping[str, Motion]
    speaker: Motion | None
    speaker_shape: np.ndarray | None
    words: tuple[tuple[str, float, float], ...] | None
    audio: np.ndarray | None


@dataclass(frozen=True)
class PanelOptions:
    """Panels of SIMULATED raters, and the head on which they see every candidate."""

    raters: int
    lexicon: Mapping[str, float]
    head: str | None
    topology: str | None


class Viewer:
    """Looks at motion on one head: landmarks of the rendered face, or only the head's pose where it
    does not fit.
    """

    def __init__(self, head: str | None, topology: str | None):
        self.asset = load_head(head, topology)
        self.head = FlameHead(self.asset)
        self.landmarks = face_landmarks(self.asset) if self.asset.arkit else None

    def __call__(self, motion: Motion, shape: np.ndarray | None = None) -> VisibleMotion:
        if self.landmarks is not None and motion.layout.topology == self.asset.topology:
            return watch(self.head, self.landmarks, motion, shape)
        turning = "rot" if "rot" in motion.layout.names else "neck"
        return VisibleMotion(motion.layout.fps, motion.group(turning), expression=None)


@ray.remote
class RewardWorker(Worker):
    """Simulated panels that watch the candidates of one group at a time."""

    def __init__(self, options: PanelOptions):
        self.viewer = Viewer(options.head, options.topology)
        self.options = options

    def rate(self, asked: tuple[int, Group]) -> list[Rating]:
        seed, group = asked
        speaker = None if group.speaker is None else self.viewer(group.speaker, group.speaker_shape)
        seen = {candidate: self.viewer(motion) for candidate, motion in group.candidates.items()}
        panel = SimulatedPanel(self.options.raters, seed, self.options.lexicon)
        return panel.rate(group.prompt_id, SpeakerCues(speaker, group.words, group.audio), seen)


class RewardPool(Pool):
    """Workers that ask any panel."""

    def __init__(
        self,
        options: PanelOptions,
        workers: int,
        cpus: float,
        timeout_s: float,
        losses: int,
        nodes: str | None = None,
    ):
        worker = RewardWorker.options(
            num_cpus=cpus,
            resources=on_nodes(nodes),
            runtime_env={"env_vars": worker_environment(1)},
        )
        super().__init__(
            "reward pool", "reward", lambda _: worker.remote(options), workers, 2, timeout_s, losses
        )

    def rate(self, groups: Iterable[Group], panel: int) -> Iterator[tuple[Group, list[Rating]]]:
        """Ratings of each group, in the order the workers finish.

        Args:
            panel: the seed that says who rates.
        """
        for (_, group), ratings in self.stream("rate", ((panel, group) for group in groups)):
            yield group, ratings
