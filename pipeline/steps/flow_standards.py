"""What AR-Flow is held against: its code, other people, a regression on the same inputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from rapport.log import logger
from rapport.pipeline.data.flow import Window
from rapport.pipeline.data.regression import RegressionError, RegressionListener
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.settings import JudgedOfFlow
from rapport.pipeline.steps.imitation_flow import people
from rapport.policies.clip import AUDIO_RATE, Clip
from rapport.policies.motion import Motion

REGRESSED = 2048  # windows of a role at most: enough for the 500 or so weights of a channel


@dataclass(frozen=True, eq=False)
class Regressions:
    """Ridge regression on what AR-Flow hears and sees of a window, one for each role.

    It is deterministic and so answers with the mean of what people may do, which collapses: it has
    a small error and moves too little. It reads both voices and the partner's motion, no prompt,
    and nothing of before the window, as AR-Flow does not either.

    Args:
        by_role: role of the actor -> the regression.
    """

    by_role: Mapping[str, RegressionListener]

    @classmethod
    def fit(cls, config: JudgedOfFlow, corpus: Corpus, roles: Iterable[str]) -> Self:
        """Fit to the training windows; of a larger corpus to every n-th.

        Args:
            config: says whose motion is learnt.
            corpus: that AR-Flow learnt from.
            roles: of those who shall be answered for.

        Raises:
            RegressionError: there is too little to regress on.
        """
        step = -(-corpus.count("train") // REGRESSED)
        by_role = {}
        for role in roles:
            windows = (window for window in people(config, corpus, "train") if window.role == role)
            some = itertools.islice(windows, 0, None, step)
            by_role[role] = RegressionListener.fit(map(_as_clip, some), corpus.layout)
        return cls(by_role)

    def answers(self, windows: Sequence[Window]) -> list[Motion]:
        """What is least wrong on average, a motion of each window."""
        answers = []
        for window in windows:
            answer = self.by_role[window.role](_as_clip(window))
            # The frames after the last whole block of 0.2 s.
            rest = len(window.motion) - len(answer)
            values = np.pad(answer.values, ((0, rest), (0, 0)), mode="edge")
            answers.append(Motion(values, answer.layout))
        return answers

    def means(self, windows: Sequence[Window]) -> list[Motion]:
        """The mean face of the role in training, motionless."""
        answers = []
        for window in windows:
            mean = self.by_role[window.role].mean
            values = np.tile(mean, (len(window.motion), 1))
            answers.append(Motion(values, window.motion.layout))
        return answers


def deterministic(
    config: JudgedOfFlow, corpus: Corpus, windows: Sequence[Window]
) -> dict[str, list[Motion]]:
    """`Regression` and `mean face`: a motion of each window; {} where there is too little to learn.

    Args:
        config: of the recipe.
        corpus: whose training windows are learnt from.
        windows: to be answered.
    """
    roles = list(dict.fromkeys(window.role for window in windows))
    try:
        regressions = Regressions.fit(config, corpus, roles)
    except RegressionError as error:
        logger.info(f"[judge] Regression and mean face are left out: {error}")
        return {}
    return {"Regression": regressions.answers(windows), "mean face": regressions.means(windows)}


def _as_clip(window: Window) -> Clip:
    """The actor of a window as the listener of a clip, with their own voice."""
    seconds = len(window.motion) / window.motion.layout.fps
    samples = round(seconds * AUDIO_RATE)

    def within(audio: np.ndarray | None) -> np.ndarray | None:
        return None if audio is None else audio[:samples]

    return Clip(
        clip_id=window.window_id,
        dyad_id=window.conversation,
        split="",
        listener=window.motion,
        speaker=window.partner,
        speaker_audio=within(window.partner_audio),
        listener_audio=within(window.actor_audio),
    )
