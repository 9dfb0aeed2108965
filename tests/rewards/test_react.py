"""The REACT protocols against textbook implementations, hand values, and their own bugs."""

from functools import partial

import numpy as np
import pytest

from rapport.policies.motion import Layout, LayoutError, Motion
from rapport.rewards.metrics import evaluate
from rapport.rewards.metrics.protocols import react
from rapport.rewards.metrics.protocols.protocol import Inputs
from rapport.rewards.metrics.protocols.react import (
    PROTOCOLS,
    fr_corr,
    fr_dist,
    fr_dvs,
    fr_syn,
    neighbour_lists,
    prepare,
    share,
)

N, M, T = 4, 3, 90
NEIGHBOURS = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 1]])
SCORE = {protocol.name: partial(evaluate, protocol.name) for protocol in PROTOCOLS}


def emotions(rng, *shape):
    """Binary AUs, smooth valence and arousal, expression probabilities; (*shape, T, 25) float32."""
    smooth = np.cumsum(rng.normal(size=(*shape, T, 25)), axis=-2) / 5
    expression = np.exp(smooth[..., 17:])
    return np.concatenate(
        [
            smooth[..., :15] > rng.normal(size=(*shape, 1, 15)) / 2,
            np.tanh(smooth[..., 15:17]),
            expression / expression.sum(-1, keepdims=True),
        ],
        axis=-1,
    ).astype(np.float32)


@pytest.fixture(scope="module")
def corpus():
    rng = np.random.default_rng(0)
    pred, target, partner = emotions(rng, N, M), emotions(rng, N), emotions(rng, N)
    pred[..., 3], target[:2, :, 4] = 0, 1  # AUs that never fire, or always
    return pred, target, partner


# Textbook implementations: one loop for every sum.


def ccc_by_the_book(x, y, epsilon):
    values = []
    for a, b in zip(x.T.astype(float), y.T.astype(float), strict=True):
        rho = 0.0 if a.std() == 0 or b.std() == 0 else np.corrcoef(a, b)[0, 1]
        values.append(
            2 * rho * a.std() * b.std() / (a.var() + b.var() + (a.mean() - b.mean()) ** 2 + epsilon)
        )
    return np.mean(values)


def dtw_by_the_book(x, y):
    table = np.full((len(x) + 1, len(y) + 1), np.inf)
    table[0, 0] = 0
    for i in range(len(x)):
        for j in range(len(y)):
            cost = sum((x[i].astype(float) - y[j]) ** 2)
            table[i + 1, j + 1] = cost + min(table[i, j], table[i, j + 1], table[i + 1, j])
    return np.sqrt(table[-1, -1])


def lag_by_the_book(x, y):
    means = []
    for lag in range(-49, 50):
        a, b = (x[lag:], y[: len(y) - lag]) if lag >= 0 else (x[:lag], y[-lag:])
        with np.errstate(invalid="ignore"):
            means.append(
                np.mean(
                    np.float32([np.corrcoef(a[:, c], b[:, c])[0, 1] for c in range(x.shape[1])])
                )
            )
    return abs(49 - int(np.argmax(means)))


def mean_over_pairs(items):
    pairs = [(i, k) for i in range(len(items)) for k in range(len(items)) if i != k]
    return np.mean([np.mean((items[i].astype(float) - items[k]) ** 2) for i, k in pairs])


@pytest.mark.parametrize("name", ["react2023", "react2024"])
def test_reference_agrees_with_the_textbook(corpus, name):
    pred, target, partner = corpus
    pred, target, partner = pred[:, :2, :56], target[:, :56], partner[:, :56]
    result = SCORE[name](pred, target, partner, neighbours=NEIGHBOURS)
    near = [np.flatnonzero(row) for row in NEIGHBOURS]
    corr = sum(
        np.mean(
            [max(ccc_by_the_book(pred[k, m], target[j], 1e-8) for j in near[k]) for k in range(N)]
        )
        for m in range(2)
    )
    dist = sum(
        np.mean(
            [
                min(
                    sum(
                        w * dtw_by_the_book(pred[k, m][:, a:b], target[j][:, a:b])
                        for a, b, w in ((0, 15, 1 / 15), (15, 17, 1), (17, 25, 1 / 8))
                    )
                    for j in near[k]
                )
                for k in range(N)
            ]
        )
        for m in range(2)
    )
    assert set(result) == {"FRCorr", "FRDist", "FRSyn", "FRVar", "FRDiv", "FRDvs"}
    assert result["FRCorr"] == pytest.approx(corr, rel=1e-6)
    assert result["FRDist"] == pytest.approx(dist, abs=1e-9)
    assert result["FRSyn"] == np.mean([lag_by_the_book(pred[k, 0], partner[k]) for k in range(N)])
    assert result["FRVar"] == pytest.approx(
        np.mean([pred[k, m].astype(float).var(axis=0, ddof=1) for k in range(N) for m in range(2)])
    )
    assert result["FRDiv"] == pytest.approx(np.mean([mean_over_pairs(samples) for samples in pred]))
    assert result["FRDvs"] == pytest.approx(
        np.mean([mean_over_pairs(pred[:, m]) for m in range(2)])
    )


def test_reactface_is_ten_times_the_sum_over_samples_unweighted():
    rng = np.random.default_rng(1)
    pred, target, partner = (
        rng.normal(size=(2, 3, 55, 58)),
        rng.normal(size=(2, 55, 58)),
        rng.normal(size=(2, 55, 58)),
    )
    result = SCORE["reactface"](pred, target, partner, neighbours=[[0, 1], [1]])
    corr = [
        max(ccc_by_the_book(x, target[j], 0) for j in near)
        for k, near in enumerate(([0, 1], [1]))
        for x in pred[k]
    ]
    dist = [
        min(dtw_by_the_book(x, target[j]) for j in near)
        for k, near in enumerate(([0, 1], [1]))
        for x in pred[k]
    ]
    assert result["FRCorr"] == pytest.approx(10 * 3 * np.mean(corr))
    assert result["FRDist"] == pytest.approx(10 * 3 * np.mean(dist))
    corrected = SCORE["reactface"](
        pred, target, partner, neighbours=[[0, 1], [1]], variant="corrected"
    )
    assert corrected["FRCorr"] == pytest.approx(np.mean(corr))
    assert corrected["FRDist"] == pytest.approx(np.mean(dist))


def test_single_values_by_hand():
    x = np.zeros((2, 2, 3, 1))
    x[0, 0, :, 0], x[0, 1, :, 0] = [0, 1, 2], [0, 1, 5]
    x[1, 0, :, 0] = [3, 3, 3]
    one_channel = react.Setting("one", 1, [(slice(0, 1), 1.0)], epsilon=0.0, factor=1.0)
    scores = react.score(one_channel, Inputs(pred=x, target=x[:, 0]))
    assert scores["FRVar"] == pytest.approx((1 + 7 + 0 + 0) / 4)
    assert scores["FRDiv"] == pytest.approx((9 / 3 + 9) / 2)
    assert fr_dvs(x) == pytest.approx(((9 + 4 + 1) / 3 + (0 + 1 + 25) / 3) / 2)
    y = np.array([[[0.0], [2.0], [4.0]], [[0.0], [1.0], [2.0]]])
    # CCC of 0 1 2 with 0 2 4: covariance 4/3, variances 2/3 and 8/3, means 1 and 2; DTW: 1 to 0 or
    # 2, 2 to 4
    assert fr_corr(x[:1, :1], y, [[0]]) == pytest.approx((8 / 3) / (2 / 3 + 8 / 3 + 1))
    assert fr_corr(x[:1, :1], y, [[0, 1]]) == pytest.approx(1)
    assert fr_dist(x[:1, :1], y, [[0]], [(slice(0, 1), 2.0)]) == pytest.approx(2 * np.sqrt(1 + 4))
    assert fr_dist(x[:1, :1], y, [[0, 1]], [(slice(0, 1), 2.0)]) == 0


def test_a_reaction_that_is_recorded_agrees_with_itself_in_corrected_only(corpus):
    _, target, _ = corpus
    pred = np.repeat(target[:, None], M, axis=1)
    own = np.eye(N)
    reference = SCORE["react2024"](pred, target, target, neighbours=own)
    corrected = SCORE["react2024"](pred, target, target, neighbours=own, variant="corrected")
    assert (
        corrected["FRCorr"] == pytest.approx(1) and reference["FRCorr"] < M - 0.05
    )  # AU 4 of two clips is constant
    assert reference["FRDist"] == corrected["FRDist"] == 0


def test_each_correction_has_an_input_that_shows_it(corpus):
    pred, target, partner = corpus
    own = np.eye(N)

    def both(x, y, s=None, near=own, name="react2024"):
        return [
            SCORE[name](x, y, s, neighbours=near, variant=v) for v in ("reference", "corrected")
        ]

    # mean_over_samples
    reference, corrected = both(pred, target)
    assert reference["FRDist"] == pytest.approx(M * corrected["FRDist"])
    # no_epsilon: a whisper of motion, equal to the truth
    whisper = np.random.default_rng(2).normal(scale=1e-5, size=(2, 1, 60, 25))
    reference, corrected = both(whisper, whisper[:, 0], near=np.eye(2))
    assert reference["FRCorr"] < 0.1 and corrected["FRCorr"] == pytest.approx(1)
    # constant_channel_ccc
    still = whisper.copy()
    still[..., 5:] = 1
    reference, corrected = both(1e5 * still, 1e5 * still[:, 0], near=np.eye(2))
    assert reference["FRCorr"] == pytest.approx(5 / 25) and corrected["FRCorr"] == pytest.approx(1)
    # nan_safe_synchrony: Mirror, with an AU that never fires
    reference, corrected = both(
        np.repeat(partner[:, None], 2, axis=1) * (np.arange(25) != 3), target, partner
    )
    assert reference["FRSyn"] == 49 and corrected["FRSyn"] == 0
    # all_samples: sample 0 is the speaker, sample 1 follows by 7 frames
    walk = np.cumsum(np.random.default_rng(3).normal(size=(2, T, 25)), axis=1)
    late = np.stack([walk, np.roll(walk, 7, axis=1)], axis=1)
    reference, corrected = both(late, walk, walk, near=np.eye(2))
    assert reference["FRSyn"] == 0 and corrected["FRSyn"] == pytest.approx(3.5, abs=0.5)
    # nearest_peak: a ramp goes with itself at any lag
    ramp = np.broadcast_to(np.linspace(0, 1, T)[:, None], (2, T, 25))
    reference, corrected = both(ramp[:, None], ramp, ramp, near=np.eye(2))
    assert reference["FRSyn"] == 49 and corrected["FRSyn"] == 0
    # one_sample_diversity
    reference, corrected = both(pred[:, :1], target)
    assert reference["FRDiv"] == 0 and "FRDiv" not in corrected


def test_mirror_is_in_synchrony_and_a_frozen_face_is_not(corpus):
    _, _, partner = corpus
    assert fr_syn(np.repeat(partner[:, None], M, axis=1), partner) == 0
    assert fr_syn(np.zeros((N, M, T, 25)), partner) == 49


def test_float32_and_float64_agree(corpus):
    for variant in ("reference", "corrected"):
        single, double = (
            SCORE["react2024"](
                *(a.astype(kind) for a in corpus), neighbours=NEIGHBOURS, variant=variant
            )
            for kind in (np.float32, np.float64)
        )
        assert single == pytest.approx(double, rel=1e-6)


def test_order_of_speakers_samples_and_frames(corpus):
    pred, target, partner = corpus
    base = SCORE["react2024"](pred, target, partner, neighbours=NEIGHBOURS, variant="corrected")
    turn = np.array([2, 0, 3, 1])
    turned = SCORE["react2024"](
        pred[turn][:, ::-1],
        target[turn],
        partner[turn],
        neighbours=NEIGHBOURS[turn][:, turn],
        variant="corrected",
    )
    assert turned == pytest.approx(base)
    backwards = SCORE["react2024"](
        pred[:, :, ::-1],
        target[:, ::-1],
        partner[:, ::-1],
        neighbours=NEIGHBOURS,
        variant="corrected",
    )
    assert backwards == pytest.approx(base)
    more = SCORE["react2024"](pred, target, neighbours=np.ones((N, N)), variant="corrected")
    assert more["FRCorr"] >= base["FRCorr"] and more["FRDist"] <= base["FRDist"]


def test_only_the_first_750_frames_count():
    rng = np.random.default_rng(4)
    pred, target = rng.normal(size=(2, 2, 760, 25)), rng.normal(size=(2, 760, 25))
    long, cut = (
        SCORE["react2024"](pred[:, :, :t], target[:, :t], target[:, :t]) for t in (760, 750)
    )
    assert long == cut


def test_what_is_absent_is_left_out(corpus):
    pred, target, partner = corpus
    assert set(SCORE["react2024"](pred, target)) == {"FRVar", "FRDiv", "FRDvs"}
    assert "FRSyn" in SCORE["react2024"](pred, target, partner)
    assert "FRDvs" not in SCORE["react2024"](pred[:1], target[:1])


def test_typed_motion_equals_arrays():
    layout = Layout((("expr", 52), ("rot", 3), ("trans", 3)), 25, "faceverse")
    values = np.random.default_rng(5).normal(size=(2, 2, 60, 58)).astype(np.float32)
    typed = [[Motion(sample, layout) for sample in samples] for samples in values]
    target = [Motion(clip, layout) for clip in values[:, 1]]
    own = [[0], [1]]
    assert SCORE["reactface"](typed, target, target, neighbours=own) == SCORE["reactface"](
        values, values[:, 1], values[:, 1], neighbours=own
    )
    other = [Motion(clip, Layout(layout.groups, 30, "faceverse")) for clip in values[:, 1]]
    with pytest.raises(LayoutError, match="target"):
        prepare(react.REACTFACE, typed, other)
    with pytest.raises(ValueError, match="30: resample"):
        prepare(react.REACTFACE, [[clip] for clip in other], other)


def test_bad_input_is_named(corpus):
    pred, target, partner = corpus
    score = SCORE["react2024"]
    broken = pred.copy()
    broken[2, 1, 7, 4] = np.nan
    for arguments, message in (
        ((broken, target), "speaker 2, sample 1, frame 7, channel 4"),
        ((pred[..., :24], target), r"\(N, M, T, 25\)"),
        ((pred, target[:, :-1]), r"target has shape \(4, 89, 25\), expected \(4, 90, 25\)"),
        ((pred, target, partner[:3]), r"partner has shape \(3, 90, 25\)"),
        ((pred, None), "needs target"),
        (([[np.ones((60, 25)), np.ones((61, 25))]], target), "pred: clips of unlike shapes"),
    ):
        with pytest.raises(ValueError, match=message):
            score(*arguments)
    for keywords, message in (
        ({"neighbours": np.eye(8)}, "roles swapped"),
        ({"neighbours": np.zeros((4, 4))}, "speaker 0 has no appropriate reaction"),
        ({"neighbours": [[0], [1], [2], [4]]}, "speaker 3: expected indices below 4"),
        ({"neighbours": [[0]]}, "1 lists for 4 speakers"),
        ({"speech_mask": np.ones(T)}, "speech_mask"),
        ({"fps": 30}, "25 fps, not 30"),
        ({"variant": "fixed"}, "unknown variant"),
    ):
        with pytest.raises(ValueError, match=message):
            score(pred, target, **keywords)
    with pytest.raises(ValueError, match="at least 51, the clip has 40"):
        score(pred[:, :, :40], target[:, :40], partner[:, :40])
    with pytest.raises(ValueError, match="there is one"):
        fr_dvs(pred[:1])


def test_neighbours_as_matrix_or_lists():
    lists = neighbour_lists(NEIGHBOURS, N, N)
    assert [list(indices) for indices in lists] == [[0, 1], [1, 3], [0, 1, 2, 3], [3]]
    assert all(map(np.array_equal, lists, neighbour_lists(NEIGHBOURS.astype(bool), N, N)))
    assert all(map(np.array_equal, lists, neighbour_lists(lists, N, N)))


def test_uniform_noise_has_the_values_that_react_prints():
    """FRVar 1/12, FRDiv and FRDvs 1/6 (REACT 2024 prints .0833, .1666, .1666), and no share."""
    pred = np.random.default_rng(0).random((20, 6, 300, 25))
    scores = SCORE["react2024"](pred, pred[:, 0], variant="corrected")
    assert scores["FRVar"] == pytest.approx(1 / 12, rel=5e-3)
    assert scores["FRDiv"] == pytest.approx(1 / 6, rel=5e-3)
    assert scores["FRDvs"] == pytest.approx(1 / 6, rel=5e-3)
    assert scores["share"] == pytest.approx(0, abs=5e-3)


def test_share_by_hand():
    x = np.zeros((2, 2, 1, 1))
    # Samples of one speaker differ by 2; of two speakers, sample by sample, by 3 and 5.
    x[0, :, 0, 0] = [0, 2]
    x[1, :, 0, 0] = [3, -3]
    within, between = (4 + 36) / 2, (9 + 25) / 2
    assert share(x) == pytest.approx(1 - within / between)
    assert np.isnan(share(np.ones((3, 2, 4, 1))))
    with pytest.raises(ValueError, match="one each"):
        share(x[:, :1])
    with pytest.raises(ValueError, match="there is one"):
        share(x[:1])


@pytest.mark.parametrize(("speaker", "expected"), [(0.0, 0.0), (1.0, 0.5), (2.0, 0.8)])
def test_share_is_the_part_of_the_variance_that_is_due_to_the_speaker(speaker, expected):
    """Reactions of a part of the speaker and one of their own, of variance 1."""
    rng = np.random.default_rng(0)
    pred = rng.normal(size=(300, 8, 20, 4)) + speaker * rng.normal(size=(300, 1, 20, 4))
    assert share(pred) == pytest.approx(expected, abs=0.01)


def test_who_answers_one_speaker_one_way_has_a_share_of_1():
    pred = np.repeat(np.random.default_rng(0).normal(size=(5, 1, 60, 3)), 4, axis=1)
    scores = SCORE["reactface"](pred, pred[:, 0], variant="corrected")
    assert scores["share"] == 1 and scores["FRDiv"] == 0
    assert "share" not in SCORE["reactface"](pred[:, :1], pred[:, 0], variant="corrected")


def test_a_different_still_face_each_time_is_diverse_and_does_not_move():
    rng = np.random.default_rng(0)
    moving = np.broadcast_to(rng.normal(size=(3, 1, 80, 6)), (3, 4, 80, 6))
    pred = moving + rng.normal(size=(3, 4, 1, 6))
    scores = SCORE["reactface"](pred, pred[:, 0], variant="corrected")
    assert scores["FRDiv"] > 1 and scores["FRDiv_moving"] == pytest.approx(0, abs=1e-12)
    free = rng.normal(size=(3, 4, 400, 6))
    scores = SCORE["reactface"](free, free[:, 0], variant="corrected")
    assert scores["FRDiv_moving"] == pytest.approx(scores["FRDiv"], rel=0.02)


def test_frcorr_of_others_leaves_the_recorded_reaction_out_of_its_own_neighbours():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(4, 70, 3))
    pred = np.repeat(target[:, None], 2, axis=1)  # the recording itself
    near = [[0, 1], [1], [0, 1, 2, 3], [3, 0]]
    scores = SCORE["reactface"](pred, target, neighbours=near, variant="corrected")
    assert scores["FRCorr"] == pytest.approx(1)
    others = [
        max(ccc_by_the_book(target[k], target[j], 0) for j in row if j != k)
        for k, row in enumerate(near)
        if row != [k]
    ]
    assert scores["FRCorr_others"] == pytest.approx(np.mean(others))
    assert "FRCorr_others" not in SCORE["reactface"](pred, target, neighbours=near)


def test_appropriate_reactions_need_not_be_among_those_predicted():
    rng = np.random.default_rng(0)
    pred, target = rng.normal(size=(2, 2, 60, 5)), rng.normal(size=(4, 60, 5))
    near = np.array([[1, 0, 1, 0], [0, 1, 0, 1]])
    scores = SCORE["reactface"](pred, target, neighbours=near, variant="corrected")
    by_the_book = [
        max(ccc_by_the_book(x, target[j], 0) for j in (k, k + 2)) for k in range(2) for x in pred[k]
    ]
    assert scores["FRCorr"] == pytest.approx(np.mean(by_the_book))
    with pytest.raises(ValueError, match=r"target has shape \(4, 60, 5\)"):
        SCORE["reactface"](pred, target)
    with pytest.raises(ValueError, match=r"target has shape \(1, 60, 5\)"):
        SCORE["reactface"](pred, target[:1], neighbours=np.ones((2, 1)))
