"""Protocols l2l, dim and dualtalk against textbook versions of their references; each named quirk
on an input.
"""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from rapport.policies.motion import Layout, LayoutError, Motion
from rapport.rewards.metrics import PROTOCOLS, evaluate
from rapport.rewards.metrics.measures.diversity import sid
from rapport.rewards.metrics.measures.frechet import fd, p_fd
from rapport.rewards.metrics.protocols.l2l import Normaliser, with_training

RNG = np.random.default_rng(1)
EXP, NECK, JAW = slice(0, 50), slice(50, 53), slice(53, 56)  # of DualTalk's files


def clips(*frames, scale=1.0):
    return [scale * RNG.normal(size=(n, 56)) for n in frames]


def swap(x):
    """DualTalk's two orders, one into the other."""
    return np.concatenate([x[:, :50], x[:, 53:], x[:, 50:53]], axis=1)


def textbook_sid(fitted, predicted, k):
    labels = KMeans(n_clusters=k, random_state=0, n_init="auto").fit(fitted).predict(predicted)
    total = 0.0
    for cluster in range(k):
        p = np.mean(labels == cluster)
        total += p * np.log2(p + 1e-6)
    return -total


# l2l


def test_l2l_is_a_mean_distance_after_32_frames():
    x, y = np.zeros((2, 40, 56))
    y[:32] = 9.0  # the given past is not judged
    y[32:36, :2] = 3, 4
    assert evaluate("l2l", x, y) == {"L2": pytest.approx(5 * 4 / 8)}
    longer = np.zeros((64, 56))
    assert evaluate("l2l", [x, longer], [y, longer])["L2"] == pytest.approx(5 * 4 / 40), (
        "frames weigh alike"
    )
    with pytest.raises(
        ValueError, match="clip 0: l2l judges the frames after the first 32, the clip has 32"
    ):
        evaluate("l2l", x[:32], y[:32])
    with pytest.raises(ValueError, match="makes no use of partner"):
        evaluate("l2l", x, y, x)


def test_l2l_quirk_of_the_std_of_stds():
    """Clips that vary alike have no std of stds: the reference divides by 1e-10."""
    train = [np.tile([[-1.0], [1.0]], (20, 56)), np.tile([[-3.0], [3.0]], (20, 56))]
    reference, corrected = (
        Normaliser.fit(train, variant) for variant in ("reference", "corrected")
    )
    assert reference.std == pytest.approx(
        np.full(56, np.std([1, 3]))
    ) and reference.mean == pytest.approx(np.zeros(56))
    assert corrected.std == pytest.approx(np.full(56, np.sqrt((1 + 9) / 2)))
    x, y = np.zeros((40, 56)), np.ones((40, 56))
    values = [
        evaluate(with_training(train), x, y, variant=v)["L2"] for v in ("reference", "corrected")
    ]
    assert values == pytest.approx([np.sqrt(56) / 1, np.sqrt(56) / np.sqrt(5)])
    assert evaluate(with_training(train[:1] * 2), x, y)["L2"] > 1e9


# dim


def test_dim_reference_equals_the_textbook_script():
    x, y, s = (clips(40, 60) for _ in range(3))
    pose, exp = slice(0, 6), slice(6, 56)
    scores = evaluate("dim", x, y, s)
    whole_x, whole_y, whole_s = map(np.concatenate, (x, y, s))
    for name, columns, k in (("pose", pose, 20), ("exp", exp, 40)):
        expected = {
            "FD": np.mean([fd(a[:, columns], b[:, columns]) for a, b in zip(x, y, strict=True)]),
            "P-FD": np.mean(
                [
                    p_fd(a[:, columns], b[:, columns], c[:, columns])
                    for a, b, c in zip(x, y, s, strict=True)
                ]
            ),
            "MSE": np.mean(
                [np.mean((a[:, columns] - b[:, columns]) ** 2) for a, b in zip(x, y, strict=True)]
            ),
            "SID": textbook_sid(whole_y[:, columns], whole_x[:, columns], k),
            "Variation": np.var(whole_x[:, columns].reshape(-1)),
            "rPCC": abs(
                np.corrcoef(whole_y[:, columns].reshape(-1), whole_s[:, columns].reshape(-1))[0, 1]
                - np.corrcoef(whole_x[:, columns].reshape(-1), whole_s[:, columns].reshape(-1))[
                    0, 1
                ]
            ),
            "STS": np.sqrt(
                sum(
                    (
                        (whole_x[t] - whole_x[t - 1] - whole_y[t] + whole_y[t - 1])[columns] ** 2
                    ).sum()
                    / 0.1
                    for t in range(1, 100)
                )
            ),
        }
        assert {m: scores[f"{m}_{name}"] for m in expected} == pytest.approx(expected)
    assert len(scores) == 14
    assert set(evaluate("dim", x, y)) == {k for k in scores if not k.startswith(("P-FD", "rPCC"))}


def test_dim_quirk_of_a_variance_of_everything():
    still = np.tile(np.arange(56.0), (60, 1))
    moving = still + RNG.normal(size=(60, 56))
    reference, corrected = (
        evaluate("dim", still, moving, variant=v) for v in ("reference", "corrected")
    )
    assert reference["Variation_exp"] == pytest.approx(np.var(np.arange(6, 56)))
    assert corrected["Variation_exp"] == 0, "a frozen face does not vary"


def test_dim_quirk_of_steps_between_clips():
    """Two clips, each predicted up to a constant: all of STS is the seam."""
    y = clips(40, 40)
    x = [y[0] + 1, y[1] - 1]
    assert evaluate("dim", x, y)["STS_pose"] == pytest.approx(np.sqrt(6 * 2**2 / 0.1))
    assert evaluate("dim", x, y, variant="corrected")["STS_pose"] == pytest.approx(0, abs=1e-9)


def test_dim_quirk_of_offsets_in_rpcc():
    offsets = np.arange(56) * 100.0
    s = RNG.normal(size=(60, 56))
    x, y, s = -s + offsets, s + offsets, s + offsets
    assert evaluate("dim", x, y, s)["rPCC_exp"] < 1e-3
    assert evaluate("dim", x, y, s, variant="corrected")["rPCC_exp"] == pytest.approx(2)


def test_dim_takes_typed_motion_by_its_groups_and_refuses_unlike_ones():
    layout = Layout((("expr", 50), ("rot", 3), ("jaw", 3)), 30, "flame2020")
    x, y = (RNG.normal(size=(50, 56)).astype(np.float32) for _ in range(2))
    typed = evaluate("dim", Motion(x, layout), Motion(y, layout))
    plain = evaluate("dim", np.roll(x, 6, axis=1), np.roll(y, 6, axis=1))
    assert typed == pytest.approx(plain, rel=1e-6)
    with pytest.raises(LayoutError, match="pred against target of clip 0"):
        evaluate("dim", Motion(x, layout), Motion(y, Layout(layout.groups, 25, "flame2020")))
    with pytest.raises(ValueError, match="pred clip 0 has 55 columns.*rot 3 \\+ jaw 3 \\+ expr 50"):
        evaluate("dim", x[:, 1:], y)
    with pytest.raises(ValueError, match="clip 0: pred has .*49.*target .*50"):
        evaluate("dim", x[:49], y)


# dualtalk


def test_dualtalk_reference_equals_the_textbook_script():
    truth, partner = clips(120, 150), clips(130, 150)
    pred = clips(140, 110)
    np.random.seed(3)
    rows = []
    for x, y, s in zip(pred, truth, partner, strict=True):
        n = min(len(x), len(y), len(s))
        x, y, s = x[:n], y[:n], s[:n]
        groups = {
            "exp": (x[:, :50], y[:, EXP], s[:, EXP], 40),
            "jaw": (x[:, 50:53], y[:, JAW], s[:, JAW], 10),
            "neck": (x[:, 53:], y[:, NECK], s[:, NECK], 10),
        }
        row = {}
        for g, (a, b, c, k) in groups.items():
            row |= {
                f"FD_{g}": fd(a, b),
                f"P-FD_{g}": p_fd(a, b, c),
                f"MSE_{g}": np.mean((a - b) ** 2),
                f"SID_{g}": textbook_sid(a, b, k),
                f"Variation_{g}": np.mean(np.var(a, axis=0)),
                f"STS_{g}": np.sqrt(np.sum(np.diff(a - b, axis=0) ** 2) / 0.1),
                f"rPCC_{g}": abs(
                    np.corrcoef(b.ravel(), c.ravel())[0, 1]
                    - np.corrcoef(a.ravel(), c.ravel())[0, 1]
                ),
            }
        for role in (0, 1):  # the reference draws for the prediction, then for the truth
            for g, group in groups.items():
                first, second = (np.random.choice(n, 100, replace=False) for _ in range(2))
                if role == 0:
                    row[f"Diversity_{g}"] = np.linalg.norm(
                        group[0][first] - group[0][second], axis=1
                    ).mean()
        rows.append(row)
    expected = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
    assert evaluate("dualtalk", pred, truth, partner, seed=3) == pytest.approx(expected)
    assert len(expected) == 24


def test_dualtalk_files_and_predictions_have_jaw_and_neck_the_other_way_round():
    truth = clips(110)[0]
    scores = evaluate("dualtalk", swap(truth), truth)
    assert [scores[f"MSE_{g}"] for g in ("exp", "jaw", "neck")] == [0, 0, 0]
    assert evaluate("dualtalk", truth, truth)["MSE_jaw"] > 0.1, (
        "a prediction in the order of the files is wrong"
    )
    layout = Layout((("expr", 50), ("neck", 3), ("jaw", 3)), 25, "flame2020")
    typed = Motion(truth, layout)
    assert evaluate("dualtalk", typed, typed)["MSE_jaw"] == 0


def test_dualtalk_quirk_of_swapped_sid():
    truth = clips(150)[0]
    nearly_frozen = 1e-3 * RNG.normal(size=(150, 56)) + truth.mean(axis=0)[None]
    reference, corrected = (
        evaluate("dualtalk", swap(nearly_frozen), truth, variant=v)
        for v in ("reference", "corrected")
    )
    assert corrected["SID_jaw"] == pytest.approx(0, abs=1e-3)
    assert reference["SID_jaw"] > 1, "the spread of the truth, not of the prediction"
    assert reference["SID_jaw"] == sid(truth[:, JAW], nearly_frozen[:, JAW], 10)


def test_dualtalk_quirk_of_a_constant_group():
    """A jaw that never moves: NaN in the reference."""
    truth, partner = clips(110, 110)
    pred = swap(truth)
    pred[:, 50:53] = 0.25
    assert np.isnan(evaluate("dualtalk", pred, truth, partner)["rPCC_jaw"])
    per_channel = [abs(np.corrcoef(truth[:, c], partner[:, c])[0, 1]) for c in (53, 54, 55)]
    corrected = evaluate("dualtalk", pred, truth, partner, variant="corrected")
    assert corrected["rPCC_jaw"] == pytest.approx(np.mean(per_channel))


def test_dualtalk_quirks_of_diversity_and_length():
    truth = clips(110, 130)
    pred = [swap(x) + 0.1 * RNG.normal(size=x.shape) for x in truth]
    for variant, alike in (("reference", False), ("corrected", True)):
        one = evaluate("dualtalk", pred, truth, variant=variant)
        other = evaluate("dualtalk", pred[::-1], truth[::-1], variant=variant)
        assert (one["Diversity_exp"] == pytest.approx(other["Diversity_exp"])) is alike, (
            "permutation of clips"
        )
        others = {k: v for k, v in one.items() if not k.startswith("Diversity")}
        assert others == pytest.approx({k: other[k] for k in others})
    ramp = np.arange(401.0)[:, None] * np.ones(56)
    ramp += 1e-9 * RNG.normal(size=ramp.shape)
    for variant, ratio in (("reference", 2), ("corrected", 1)):
        short, long = (
            evaluate("dualtalk", 1.1 * ramp[:n], ramp[:n], variant=variant) for n in (101, 401)
        )
        assert long["STS_exp"] / short["STS_exp"] == pytest.approx(ratio, rel=1e-4)


def test_dualtalk_names_what_does_not_fit():
    truth = clips(110)[0]
    with pytest.raises(
        ValueError, match="clip 0 has 100 frames in common; Diversity needs more than 100"
    ):
        evaluate("dualtalk", truth[:100], truth)
    with pytest.raises(
        ValueError, match="target clip 0 has 55 columns, this protocol takes 56: expr 50"
    ):
        evaluate("dualtalk", truth, truth[:, :55])
    layout = Layout((("expr", 50), ("neck", 3), ("jaw", 3)), 25, "flame2020")
    with pytest.raises(LayoutError, match="pred against target of clip 0: unlike frame rate"):
        evaluate(
            "dualtalk", Motion(truth, layout), Motion(truth, Layout(layout.groups, 30, "flame2020"))
        )
    other_order = Layout((("jaw", 3), ("neck", 3), ("expr", 50)), 25, "flame2020")
    turned = Motion(
        np.concatenate([truth[:, 53:], truth[:, 50:53], truth[:, :50]], axis=1), other_order
    )
    assert evaluate("dualtalk", turned, Motion(truth, layout))["MSE_neck"] == 0
    with pytest.raises(ValueError, match="2 clips in partner for 1 in pred"):
        evaluate("dualtalk", truth, truth, [truth, truth])
    with pytest.raises(LayoutError, match="no group 'neck'"):
        evaluate(
            "dualtalk",
            Motion(truth, Layout((("expr", 50), ("rot", 3), ("jaw", 3)), 25, "flame2020")),
            truth,
        )


@pytest.mark.parametrize("protocol", ["l2l", "dim", "dualtalk"])
@pytest.mark.parametrize("variant", ["reference", "corrected"])
def test_float32_and_float64_agree(protocol, variant):
    x, y, s = (RNG.normal(size=(120, 56)).astype(np.float32) for _ in range(3))
    partner = () if protocol == "l2l" else (s,)
    single = evaluate(protocol, x, y, *partner, variant=variant)
    double = evaluate(protocol, *(a.astype(np.float64) for a in (x, y, *partner)), variant=variant)
    assert single == pytest.approx(double, rel=1e-6)
    assert PROTOCOLS[protocol].corrections
