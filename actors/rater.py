"""The reward pool: groups of candidates in, ratings out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import ray

from rapport.actors.cluster import on_nodes, worker_environment
from rapport.actors.pool import Pool
from rapport.actors.settings import RatersConfig
from rapport.actors.timeline import Worker
from rapport.policies.head.asset import load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.landmarks import face_landmarks
from rapport.policies.head.settings import HeadConfig
from rapport.policies.motion import Motion
from rapport.rewards.ratings.ratings import Rating
from rapport.rewards.ratings.simulated import SimulatedPanel
from rapport.rewards.ratings.speaker_cues import SpeakerCues
from rapport.rewards.ratings.visible import VisibleMotion, watch


@dataclass(frozen=True, eq=False)
class RatedPrompt:
    """A prompt with its candidate reactions, and what raters see and hear of the speaker.

    What is absent is None.
    """

    prompt_id: str
    candidates: Mapping[str, Motion]
    speaker: Motion | None
    speaker_shape: np.ndarray | None
    words: tuple[tuple[str, float, float], ...] | None
    audio: np.ndarray | None


class Viewer:
    """Looks at motion on one head: landmarks of the face, or only the head's pose.

    The pose is all there is to see where the motion is of another topology than the head.
    """

    def __init__(self, head: HeadConfig) -> None:
        self.asset = load_head(head.path, head.topology)
        self.head = FlameHead(self.asset)
        self.landmarks = face_landmarks(self.asset)

    def __call__(self, motion: Motion, shape: np.ndarray | None = None) -> VisibleMotion:
        if motion.layout.topology == self.asset.topology:
            return watch(self.head, self.landmarks, motion, shape=shape)
        turning = "rot" if "rot" in motion.layout.names else "neck"
        return VisibleMotion(motion.layout.fps, motion.group(turning), expression=None)


class RewardWorker(Worker):
    """Simulated panels that watch the candidates of one group at a time."""

    def __init__(self, raters: int, lexicon: Mapping[str, float], head: HeadConfig) -> None:
        self.viewer = Viewer(head)
        self.raters = raters
        self.lexicon = lexicon

    def rate(self, asked: tuple[int, RatedPrompt]) -> list[Rating]:
        """Every rater's opinion of every candidate of one prompt.

        Args:
            asked: the seed that says who rates, and what they watch.
        """
        seed, prompt = asked
        speaker = None
        if prompt.speaker is not None:
            speaker = self.viewer(prompt.speaker, prompt.speaker_shape)
        seen = {candidate: self.viewer(motion) for candidate, motion in prompt.candidates.items()}
        panel = SimulatedPanel(self.raters, seed, self.lexicon)
        cues = SpeakerCues(speaker, prompt.words, prompt.audio)
        return panel.rate(prompt.prompt_id, cues, seen)


class RewardPool(Pool):
    """Workers that ask any panel."""

    def __init__(
        self,
        config: RatersConfig,
        head: HeadConfig,
        lexicon: Mapping[str, float],
        *,
        losses: int,
    ) -> None:
        worker = ray.remote(RewardWorker).options(
            num_cpus=config.cpus,
            resources=on_nodes(config.nodes),
            runtime_env={"env_vars": worker_environment(1)},
        )
        super().__init__(
            "reward pool",
            "reward",
            lambda _: worker.remote(config.count, lexicon, head),
            workers=config.workers,
            in_flight=2,
            timeout_s=config.timeout_s,
            losses=losses,
        )

    def rate(
        self, prompts: Iterable[RatedPrompt], panel: int
    ) -> Iterator[tuple[RatedPrompt, list[Rating]]]:
        """Ratings of each prompt's candidates, in the order the workers finish.

        Args:
            prompts: with their candidates.
            panel: the seed that says who rates.
        """
        asked = ((panel, prompt) for prompt in prompts)
        for (_, prompt), ratings in self.stream("rate", asked):
            yield prompt, ratings
