"""The reward model: it finds a reward that is known, never peeks, and is kept without pickles."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from rapport.arrays import ArrayFileError, load_named, save_named
from rapport.rewards import reward_model
from rapport.rewards.ratings.ratings import CRITERIA
from rapport.rewards.reward_model import (
    LEARNT,
    Examples,
    RewardModel,
    RewardModelError,
    cross_validated,
)

FEATURES = 12
NAMES = tuple(f"feature {n}" for n in range(FEATURES))
TRUE = np.zeros((FEATURES, len(CRITERIA)))
TRUE[0] = 0.1
TRUE[1, 2] = -0.05


def examples(seed=0, conversations=20, each=15, noise=0.02):
    """Grades that are linear in two of the features, and some noise of the raters."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(conversations * each, FEATURES))
    grades = 0.5 + features @ TRUE + noise * rng.normal(size=(len(features), len(CRITERIA)))
    of = np.repeat([f"c{n}" for n in range(conversations)], each)
    return Examples(features, grades, of, NAMES)


def test_a_known_reward_is_found():
    model = RewardModel.fit(examples())
    assert model.criteria == tuple(CRITERIA)
    assert model.weights / model.scale[:, None] == pytest.approx(TRUE, abs=0.01)
    new = examples(seed=1, noise=0)
    kept = np.abs(new.grades - 0.5) < 0.4  # beyond 0 and 1 there are no grades
    assert model(new.features)[kept] == pytest.approx(new.grades[kept], abs=0.02)


@pytest.mark.parametrize("penalty", [1.0, 100.0])
def test_weights_are_those_of_scikit_learn(monkeypatch, penalty):
    monkeypatch.setattr(reward_model, "PENALTIES", np.array([penalty]))
    data = examples()
    data.grades[:40, 2] = np.nan  # fitted by itself
    model = RewardModel.fit(data)
    for place in (0, 2):
        rated = np.isfinite(data.grades[:, place])
        x = reward_model.standardised(data.features, model.mean, model.scale)[rated]
        ridge = Ridge(penalty).fit(x, data.grades[rated, place])
        assert model.weights[:, place] == pytest.approx(ridge.coef_, abs=1e-10)
        assert model.bias[place] == pytest.approx(ridge.intercept_, abs=1e-10)


def test_ratings_are_from_1_to_5_and_called_learnt():
    learnt = RewardModel.fit(examples())
    extreme = np.zeros((2, FEATURES))
    extreme[:, 0] = (-100, 100)
    extreme[:, 1] = (100, -100)
    low, high = learnt.ratings(extreme, [("p", "a"), ("p", "b")])
    assert (low.candidate_id, high.candidate_id) == ("a", "b")
    assert low.rater == high.rater == LEARNT
    assert low.engagement == 1 and high.engagement == 5
    assert low.empathy == pytest.approx(1, abs=0.2) and 4.8 < high.empathy <= 5


def test_whoever_speaks_is_never_on_both_sides_of_a_fold():
    # A feature of one conversation each foretells its grades, and nothing of another's.
    rng = np.random.default_rng(0)
    of = np.repeat([f"c{n}" for n in range(20)], 10)
    level = np.repeat(rng.normal(size=20), 10)
    features = (of[:, None] == np.unique(of)).astype(float)
    grades = np.repeat(0.5 + 0.1 * level[:, None], len(CRITERIA), axis=1)
    names = tuple(np.unique(of))
    known = RewardModel.fit(Examples(features, grades, of, names))
    assert np.corrcoef(known(features)[:, 0], level)[0, 1] > 0.9
    own, another = cross_validated(Examples(features, grades, of, names))
    assert np.corrcoef(own[:, 0], level)[0, 1] < 0.2
    assert np.array_equal(own, another)


def test_what_is_not_seen_counts_as_usual_and_what_nobody_rated_is_not_taught():
    data = examples()
    data.grades[:, 1] = np.nan
    data.features[::3, 5] = np.nan
    data.features[:, 6] = np.nan
    model = RewardModel.fit(data)
    assert "appropriateness" not in model.criteria and len(model.criteria) == 3
    unseen = np.full((1, FEATURES), np.nan)
    assert model(unseen) == pytest.approx(model(model.mean[None]))
    own, _ = cross_validated(data)
    assert np.isnan(own[:, 1]).all() and np.isfinite(own[:, [0, 2, 3]]).all()


def test_beside_another_speaker_the_same_model_is_asked():
    data = examples()
    others = data.features.copy()
    others[:, 0] = 0  # what is learnt stands in a feature of the own speaker
    own, another = cross_validated(data, others)
    assert np.corrcoef(own[:, 0], data.grades[:, 0])[0, 1] > 0.95
    assert abs(np.corrcoef(another[:, 0], data.grades[:, 0])[0, 1]) < 0.2


def test_few_conversations_are_refused():
    with pytest.raises(RewardModelError, match="4 conversations: .* which takes 5"):
        cross_validated(examples(conversations=4))
    with pytest.raises(RewardModelError, match="no criterion was rated in two conversations"):
        RewardModel.fit(examples(conversations=1))


def test_a_kept_model_is_the_same(tmp_path):
    model = RewardModel.fit(examples())
    model.save(tmp_path / "m.npz")
    kept = RewardModel.load(tmp_path / "m.npz")
    assert (kept.names, kept.criteria) == (model.names, model.criteria)
    features = examples(seed=2).features
    assert np.array_equal(kept(features), model(features))


def test_a_file_that_holds_no_model_is_named(tmp_path):
    file = tmp_path / "m.npz"
    RewardModel.fit(examples()).save(file)
    content = load_named(file)
    wrong = {
        "of format 1": {"format": 2},
        "weights must be finite": {"weights": content["weights"][:-1]},
        "scale must be finite": {"scale": np.full(FEATURES, np.nan)},
        "known are empathy": {"criteria": np.array([*CRITERIA][:3] + ["charm"])},
    }
    for says, changed in wrong.items():
        save_named(file, content | changed)
        with pytest.raises(RewardModelError, match=says):
            RewardModel.load(file)
    save_named(file, {"values": np.zeros(3)})
    with pytest.raises(RewardModelError, match="no reward model of format 1; fit it again"):
        RewardModel.load(file)
    file.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ArrayFileError, match="damaged or cut short"):
        RewardModel.load(file)
