"""Protocol lm_listener against hand values and a textbook version of its reference script."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from rapport.policies.motion import Layout, LayoutError, Motion
from rapport.rewards.metrics import PROTOCOLS, evaluate
from rapport.rewards.metrics.measures.distance import mse
from rapport.rewards.metrics.measures.frechet import fd, p_fd
from rapport.rewards.metrics.protocols.lm_listener import l2_affect, with_affect

RNG = np.random.default_rng(0)
LAYOUT = Layout((("expr", 3), ("jaw", 1)), 25, "builtin")


def motion(values, fps=25):
    return Motion(np.asarray(values, np.float32), Layout(LAYOUT.groups, fps, "builtin"))


def valence_of_first_channel(m):
    return np.stack([m.values[:, 0], np.zeros(len(m))], axis=1)


def textbook(preds, targets, speakers):
    """The reference's loop, seeded with numpy's global seed."""
    np.random.seed(7)

    def statistics(x):
        return x.mean(axis=0), np.cov(x, rowvar=False)

    def frechet(a, b):
        (m, s), (n, t) = statistics(a), statistics(b)
        return (m - n) @ (m - n) + np.trace(s) + np.trace(t) - 2 * np.trace(sqrtm(s @ t).real)

    def spread(x):
        count = 30 if len(x) > 30 else 10
        first = np.random.choice(len(x), count, replace=False)
        second = np.random.choice(len(x), count, replace=False)
        return np.linalg.norm(x[first] - x[second], axis=1).mean()

    rows = []
    for x, y, s in zip(preds, targets, speakers, strict=True):
        spread(y)
        rows.append(
            [
                ((y - x) ** 2).mean(),
                frechet(y, x),
                frechet(np.hstack([s, y]), np.hstack([s, x])),
                np.mean(np.var(x, axis=0)),
                spread(x),
            ]
        )
    return dict(
        zip(("L2", "FD", "P-FD", "Variation", "Diversity"), np.mean(rows, axis=0), strict=True)
    )


@pytest.mark.parametrize("frames, dim", [((90, 25, 120), 6), ((40, 35, 50), 56)])
def test_reference_equals_the_textbook_script(frames, dim):
    """The second case is rank-deficient: fewer frames than channels, as in the published clips."""
    preds, targets, speakers = (
        [RNG.normal(size=(n, dim)) @ np.diag(RNG.uniform(0.1, 2, dim)) for n in frames]
        for _ in range(3)
    )
    ours = evaluate("lm_listener", preds, targets, speakers, seed=7)
    assert ours == pytest.approx(textbook(preds, targets, speakers), rel=1e-4)
    assert list(ours) == ["L2", "FD", "Variation", "Diversity", "P-FD"]


def test_quirk_of_diversity_drawn_from_one_stream():
    """In the reference a clip's pairs depend on the clips before it; corrected, on the clip and the
    seed only.
    """
    clips = [RNG.normal(size=(n, 4)) for n in (50, 80, 20)]
    turned = clips[::-1]
    assert (
        evaluate("lm_listener", clips, clips)["Diversity"]
        != evaluate("lm_listener", turned, turned)["Diversity"]
    )
    one, other = (
        evaluate("lm_listener", c, c, variant="corrected")["Diversity"] for c in (clips, turned)
    )
    assert one == pytest.approx(other)
    for variant in ("reference", "corrected"):
        values = [
            evaluate("lm_listener", clips, clips, variant=variant, seed=s)["Diversity"]
            for s in (1, 1, 2)
        ]
        assert values[0] == values[1] != values[2]


def test_quirk_of_a_frame_paired_with_itself():
    """With one-hot frames every distance is sqrt 2 unless a frame meets itself."""
    x = np.eye(31)
    assert evaluate("lm_listener", x, x, variant="corrected")["Diversity"] == pytest.approx(
        np.sqrt(2)
    )
    assert (
        min(evaluate("lm_listener", x, x, seed=s)["Diversity"] for s in range(5))
        < np.sqrt(2) - 0.01
    )


def test_quirk_of_the_first_240_frames():
    x, y = RNG.normal(size=(2, 300, 4))
    assert evaluate("lm_listener", x, y)["L2"] == pytest.approx(mse(x[:240], y[:240]))
    assert evaluate("lm_listener", x, y, variant="corrected")["L2"] == pytest.approx(mse(x, y))


def test_quirk_of_windows_of_30_frames_whatever_the_rate():
    x = np.zeros((60, 4))
    x[:25, 0], x[25:50, 0] = 0.4, -0.4  # seconds of 25 frames; windows of 30 mix them
    affect = with_affect(valence_of_first_channel)
    pred, target = motion(x), motion(np.zeros((60, 4)))
    reference = evaluate(affect, pred, target)["L2 Affect"]
    assert reference == pytest.approx(
        np.mean([((25 * 0.4 - 5 * 0.4) / 30) ** 2, (20 * -0.4 / 30) ** 2])
    )
    assert evaluate(affect, pred, target, variant="corrected")["L2 Affect"] == pytest.approx(0.4**2)


def test_l2_affect_by_hand():
    x, y = np.zeros(70), np.zeros(70)
    x[:30] = 0.5  # first window differs by .5, second by 0, the tail of 10 frames is dropped
    x[60:] = 9
    assert l2_affect(x, y, 30) == pytest.approx(0.25 / 2)
    wiggle = np.tile([1.0, -1.0], 15)
    assert l2_affect(wiggle, np.zeros(30), 30) == 0, "windows are averaged before they are squared"
    assert l2_affect(x[:20], y[:20], 30) == pytest.approx(0.25), (
        "a clip shorter than a window is one"
    )
    with pytest.raises(ValueError, match=r"\(70,\) and \(69,\)"):
        l2_affect(x, y[1:], 30)


def test_averages_over_clips_and_leaves_out_what_is_absent():
    a, b = RNG.normal(size=(2, 60, 4))
    short = RNG.normal(size=(20, 4))
    speaker = motion(RNG.normal(size=(60, 4)))
    preds, targets = [motion(a), motion(short)], [motion(b), motion(short)]
    result = evaluate(with_affect(valence_of_first_channel), preds, targets, [speaker, None])
    assert result["L2"] == pytest.approx(mse(a, b) / 2, rel=1e-5)
    assert result["FD"] == pytest.approx(fd(a, b) / 2, rel=1e-5)
    assert result["P-FD"] == pytest.approx(p_fd(a, b, speaker.values), rel=1e-5)
    assert result["L2 Affect"] == pytest.approx(l2_affect(a[:, 0], b[:, 0], 30) / 2, rel=1e-5)
    without = evaluate("lm_listener", preds, targets, [None, None])
    assert set(without) == {"L2", "FD", "Variation", "Diversity"}, "missing is not zero"


def test_the_target_against_itself_is_the_ground_truth_row():
    y = [RNG.normal(size=(60, 5)) for _ in range(3)]
    row = evaluate("lm_listener", y, y, y)
    assert (row["L2"], row["FD"], row["P-FD"]) == pytest.approx((0, 0, 0), abs=1e-9)
    assert (
        row["Variation"] == pytest.approx(np.mean([c.var(axis=0).mean() for c in y]))
        and row["Diversity"] > 0
    )


@pytest.mark.parametrize("variant", ["reference", "corrected"])
def test_scaling_and_one_clip_in_any_form(variant):
    x, y = RNG.normal(size=(2, 50, 4))
    once, thrice = (evaluate("lm_listener", k * x, k * y, variant=variant) for k in (1, 3))
    power = {"L2": 2, "FD": 2, "Variation": 2, "Diversity": 1}
    assert thrice == pytest.approx({name: 3 ** power[name] * value for name, value in once.items()})
    assert evaluate("lm_listener", [x], [y], variant=variant) == once
    assert evaluate("lm_listener", x[None], y[None], variant=variant) == once
    assert evaluate("lm_listener", motion(x), motion(y), variant=variant) == pytest.approx(
        once, rel=1e-5
    )


def test_unlike_clips_are_refused():
    x = motion(np.ones((40, 4)))
    with pytest.raises(LayoutError, match="pred against target of clip 0"):
        evaluate("lm_listener", x, motion(x.values, 30))
    with pytest.raises(LayoutError, match="partner against target of clip 0"):
        evaluate("lm_listener", x, x, motion(x.values, 30))
    with pytest.raises(ValueError, match=r"clip 0: pred has shape \(39, 4\), target \(40, 4\)"):
        evaluate("lm_listener", x.window(0, 39), x)
    with pytest.raises(ValueError, match="clip 0: 39 frames of the partner for 40"):
        evaluate("lm_listener", x, x, x.window(0, 39))
    with pytest.raises(ValueError, match="1 clips in pred for 2 in target"):
        evaluate("lm_listener", x, [x, x])
    with pytest.raises(ValueError, match="Diversity draws 10 frames, the clip has 9"):
        evaluate("lm_listener", x.window(0, 9), x.window(0, 9))
    with pytest.raises(ValueError, match="makes no use of neighbours"):
        evaluate("lm_listener", x, x, neighbours=np.eye(1))
    with pytest.raises(ValueError, match="fps=30 was given for motion of 25"):
        evaluate("lm_listener", x, x, fps=30, variant="corrected")
    with pytest.raises(ValueError, match="typed motion"):
        evaluate(with_affect(valence_of_first_channel), x.values, x.values)
    assert set(PROTOCOLS["lm_listener"].corrections) == {
        "seeded_diversity",
        "all_frames",
        "one_second_windows",
    }
