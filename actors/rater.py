"""The reward pool: groups of candidates in, ratings out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from rapport.rewards.ratings.beside import Beside
from rapport.rewards.ratings.points import Point
from rapport.rewards.ratings.ratings import Rating
from rapport.rewards.ratings.simulated import SimulatedPanel
from rapport.rewards.ratings.speaker_cues import SpeakerCues
from rapport.rewards.ratings.visible import VisibleMotion, watch

SPEAKERS_KEPT = 1000  # faces of speakers that a worker remembers, 10 KB each


@dataclass(frozen=True, eq=False)
class RatedPrompt:
    """A prompt with its candidate reactions, and what raters see and hear of the speaker.

    What is absent is None.

    Args:
        points: what the speaker means, for raters who understand speech.
        others: prompts of other speakers, beside whom the candidates are rated as well; their own
            candidates are not looked at.
    """

    prompt_id: str
    candidates: Mapping[str, Motion]
    speaker: Motion | None
    speaker_shape: np.ndarray | None
    words: tuple[tuple[str, float, float], ...] | None
    audio: np.ndarray | None
    points: tuple[Point, ...] | None = None
    others: tuple[RatedPrompt, ...] = ()


class Viewer:
    """Looks at motion on one head: landmarks of the face, or only the head's pose.

    The pose is all there is to see where the motion is of another topology than the head.
    """

    def __init__(self, head: HeadConfig) -> None:
        self.asset = load_head(head.path, head.topology)
        self.head = FlameHead(self.asset)
        self.landmarks = face_landmarks(self.asset) if self.asset.arkit else None

    def __call__(self, motion: Motion, shape: np.ndarray | None = None) -> VisibleMotion:
        if self.landmarks is not None and motion.layout.topology == self.asset.topology:
            return watch(self.head, self.landmarks, motion, shape=shape)
        turning = "rot" if "rot" in motion.layout.names else "neck"
        return VisibleMotion(motion.layout.fps, motion.group(turning), expression=None)

    def many(self, motions: Sequence[Motion]) -> list[VisibleMotion]:
        """What is seen of motions on the neutral head; those of one layout in one go."""
        seen: dict[int, VisibleMotion] = {}
        for layout in dict.fromkeys(motion.layout for motion in motions):
            alike = [i for i, motion in enumerate(motions) if motion.layout == layout]
            whole = self(Motion(np.concatenate([motions[i].values for i in alike]), layout))
            start = 0
            for i in alike:
                seen[i] = whole.window(start, len(motions[i]))
                start += len(motions[i])
        return [seen[i] for i in range(len(motions))]


class RewardWorker(Worker):
    """Simulated panels that watch the candidates of one group at a time."""

    def __init__(self, raters: int, lexicon: Mapping[str, float], head: HeadConfig) -> None:
        self.viewer = Viewer(head)
        self.raters = raters
        self.lexicon = lexicon
        self._speakers: dict[tuple[str, int], VisibleMotion] = {}  # seen already

    def rate(self, asked: tuple[int, RatedPrompt]) -> list[Rating]:
        """Every rater's opinion of every candidate of one prompt.

        Args:
            asked: the seed that says who rates, and what they watch.
        """
        return self.rate_beside(asked).own

    def rate_beside(self, asked: tuple[int, RatedPrompt]) -> Beside:
        """The same, and what they think of the candidates beside the other speakers.

        They grade with the same hand, so that only the speaker makes a difference.
        """
        seed, prompt = asked
        motions = list(prompt.candidates.values())
        seen = dict(zip(prompt.candidates, self.viewer.many(motions), strict=True))
        panel = SimulatedPanel(self.raters, seed, self.lexicon)
        speakers = [self._cues(speaker) for speaker in (prompt, *prompt.others)]
        own, *others = panel.rate_beside(prompt.prompt_id, speakers, seen)
        return Beside(own, others, seen)

    def _cues(self, prompt: RatedPrompt) -> SpeakerCues:
        """What is seen and heard of a prompt's speaker; faces are looked at once."""
        face = None
        if prompt.speaker is not None:
            key = (prompt.prompt_id, len(prompt.speaker))
            if key not in self._speakers:
                if len(self._speakers) >= SPEAKERS_KEPT:
                    self._speakers.clear()
                self._speakers[key] = self.viewer(prompt.speaker, prompt.speaker_shape)
            face = self._speakers[key]
        return SpeakerCues(
            face, prompt.words, prompt.audio, points=prompt.points, name=prompt.prompt_id
        )


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

    def rate_beside(
        self, prompts: Iterable[RatedPrompt], panel: int
    ) -> Iterator[tuple[RatedPrompt, Beside]]:
        """The same, and ratings beside the prompts' other speakers.

        Args:
            prompts: with their candidates and other speakers.
            panel: the seed that says who rates.
        """
        asked = ((panel, prompt) for prompt in prompts)
        for (_, prompt), beside in self.stream("rate_beside", asked):
            yield prompt, beside
