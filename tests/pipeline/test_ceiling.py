"""What there is to perceive: known shares of nats are found, and none where there is nothing."""

import numpy as np
import pytest

from rapport.pipeline.steps.ceiling import Seconds, explained

CLASSES = 4


def seconds(seed, told, count=1600):
    """Faces that show the class in `told` of the seconds, and anything in the others."""
    rng = np.random.default_rng(seed)
    fitting = rng.integers(CLASSES, size=count)
    shown = np.where(rng.random(count) < told, fitting, rng.integers(CLASSES, size=count))
    faces = rng.normal(size=(count, 6)) * 0.1
    faces[:, 2] += shown
    return Seconds(faces, fitting, np.array([f"{n % 16}" for n in range(count)]))


@pytest.mark.parametrize("told", [0.0, 0.5, 1.0])
def test_nats_are_those_of_the_channel(told):
    right = told + (1 - told) / CLASSES
    wrong = (1 - told) / CLASSES
    entropy = -right * np.log(right) - (CLASSES - 1) * (wrong * np.log(wrong) if wrong else 0)
    known = np.log(CLASSES) - entropy
    found = explained(seconds(0, told), seconds(1, told))
    assert found.mean == pytest.approx(known, abs=0.1)
    assert found.mean < known + 0.05, "a bound from below"
    assert (found.low > 0) == (told > 0)
