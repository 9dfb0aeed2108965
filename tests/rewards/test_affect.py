"""The affect estimator: what it learns, what it refuses, what it keeps on disk."""

import numpy as np
import pytest

from rapport.policies.motion import Layout, LayoutError, Motion
from rapport.rewards.affect import RidgeAffectEstimator, affect_features
from rapport.rewards.metrics.measures.ccc import concordance

LAYOUT = Layout((("expr", 5), ("jaw", 3), ("eyelid", 2), ("rot", 3)), 25, "builtin")


def labelled(seed, n=12, frames=100):
    """Motions whose first coefficient shows valence and whose head moves faster with arousal."""
    rng = np.random.default_rng(seed)
    motions, affects = [], []
    for _ in range(n):
        valence, arousal = rng.uniform(-0.8, 0.8, size=2)
        values = 0.1 * rng.normal(size=(frames, LAYOUT.dim))
        values[:, 0] += 2 * valence
        values[:, 10] += 0.3 * (1 + arousal) * np.sin(np.arange(frames) * 0.6)
        motions.append(Motion(values, LAYOUT))
        affects.append(np.tile([valence, arousal], (frames, 1)))
    return motions, affects


@pytest.fixture(scope="module")
def estimator():
    return RidgeAffectEstimator.fit(*labelled(0, n=40))


def test_it_learns_valence_from_shape_and_arousal_from_speed(estimator):
    motions, affects = labelled(1)
    estimate, truth = np.concatenate([estimator(m) for m in motions]), np.concatenate(affects)
    agreement = concordance(estimate[None], truth[None])[0, 0]
    assert agreement[0] > 0.95
    assert agreement[1] > 0.7
    assert estimate.shape == (1200, 2) and np.abs(estimate).max() <= 1


def test_speeds_are_per_second_and_by_group():
    values = np.zeros((50, LAYOUT.dim))
    values[:, 0] = 0.1 * np.arange(50)  # one of five expr channels at 2.5 per second
    features = affect_features(Motion(values, LAYOUT))
    assert features.shape == (50, LAYOUT.dim + 4)
    assert features[25, LAYOUT.dim] == pytest.approx(2.5 / np.sqrt(5), rel=1e-4)
    assert features[25, LAYOUT.dim + 1 :] == pytest.approx([0, 0, 0])


def test_what_stands_still_after_it_moved_has_a_speed_of_about_0():
    values = np.random.default_rng(0).normal(size=(200, LAYOUT.dim))
    values[40:] = values[40]
    features = affect_features(Motion(values, LAYOUT))
    assert np.isfinite(features).all() and np.abs(features[80:, LAYOUT.dim :]).max() < 1e-5


def test_it_reads_its_groups_from_any_layout_that_has_them(estimator):
    (motion,), _ = labelled(2, n=1)
    narrow = motion.subset(LAYOUT.subset({"rot": 3, "expr": 5, "jaw": 3}))
    assert np.array_equal(estimator(narrow), estimator(motion))


def test_it_refuses_other_heads_rates_and_groups(estimator):
    (motion,), _ = labelled(2, n=1)
    for layout in (Layout(LAYOUT.groups, 25, "flame2020"), Layout(LAYOUT.groups, 30, "builtin")):
        with pytest.raises(LayoutError, match="frame rate or topology"):
            estimator(Motion(motion.values, layout))
    with pytest.raises(LayoutError, match="rot"):
        estimator(motion.subset(LAYOUT.subset({"expr": 5, "jaw": 3})))


def test_save_and_load(estimator, tmp_path):
    path = tmp_path / "affect.npz"
    estimator.save(path)
    (motion,), _ = labelled(3, n=1)
    assert np.array_equal(RidgeAffectEstimator.load(path)(motion), estimator(motion))
    assert [p.name for p in tmp_path.iterdir()] == ["affect.npz"]
    np.savez(path, something=1)
    with pytest.raises(ValueError, match="no affect estimator"):
        RidgeAffectEstimator.load(path)


def test_bad_labels():
    motions, affects = labelled(0, n=2)
    with pytest.raises(ValueError, match="1 affect labels for 2"):
        RidgeAffectEstimator.fit(motions, affects[:1])
    with pytest.raises(ValueError, match="affect 1 has shape"):
        RidgeAffectEstimator.fit(motions, [affects[0], affects[1][:50]])
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        RidgeAffectEstimator.fit(motions, [a * 3 for a in affects])
    with pytest.raises(LayoutError):
        RidgeAffectEstimator.fit(motions, affects, groups=("neck",))
