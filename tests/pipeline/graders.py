"""A reward pool without Ray, whose raters grade by a rule of the test's."""

from rapport.rewards.ratings.beside import Beside
from rapport.rewards.ratings.ratings import Rating
from rapport.rewards.ratings.visible import VisibleMotion


class Graders:
    """`grade(prompt, motion)` gives the four grades, beside any speaker; faces show no expression.

    `panels` has the seeds of those who were asked.
    """

    def __init__(self, grade):
        self.grade, self.panels = grade, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def rate_beside(self, prompts, panel):
        self.panels.append(panel)
        for prompt in prompts:
            own, seen = [], {}
            for name, motion in prompt.candidates.items():
                own.append(Rating(prompt.prompt_id, name, "r", *self.grade(prompt, motion)))
                seen[name] = VisibleMotion(motion.layout.fps, motion.group("rot"), expression=None)
            yield prompt, Beside(own, [own for _ in prompt.others], seen)
