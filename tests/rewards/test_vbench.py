"""Protocol vbench: flickering by hand, the other dimensions with networks made for the test."""

import numpy as np
import pytest

from rapport.rewards.metrics import evaluate
from rapport.rewards.metrics.protocols.vbench import (
    WEIGHTS,
    Models,
    consistency,
    motion_smoothness,
    moves,
    score_dimension,
    with_models,
)

RNG = np.random.default_rng(3)


def video(*levels, size=4):
    return np.stack([np.full((size, size, 3), level, np.uint8) for level in levels])


def test_flickering_by_hand():
    assert evaluate("vbench", video(0, 51, 51), None) == {
        "temporal_flickering": pytest.approx((255 - 25.5) / 255)
    }
    assert evaluate("vbench", [video(9, 9), video(0, 255)], None)[
        "temporal_flickering"
    ] == pytest.approx(0.5)
    backwards = evaluate("vbench", video(200, 10, 90)[::-1], None)
    assert backwards == pytest.approx(evaluate("vbench", video(200, 10, 90), None)), (
        "uint8 does not wrap around"
    )


def test_consistency_by_hand():
    features = np.array([[1.0, 0], [0, 2], [-1, 0]])
    assert consistency(features) == pytest.approx([0, 0])
    diagonal = np.array([[1.0, 0], [1, 1], [0, 1]])
    half = np.sqrt(0.5)
    assert consistency(diagonal) == pytest.approx([half, (half + 0) / 2])


def test_quirk_of_long_videos_that_weigh_more():
    def looks(frames):
        return np.stack([[1.0, 0] if frame.mean() < 128 else [0, 1.0] for frame in frames])

    videos = [video(0, 0, 0, 0, 0), video(0, 255)]  # 4 pairs of cosine 1; one of cosine 0
    protocol = with_models(dino=looks)
    assert evaluate(protocol, videos, None)["subject_consistency"] == pytest.approx(4 / 5)
    assert evaluate(protocol, videos, None, variant="corrected")[
        "subject_consistency"
    ] == pytest.approx(1 / 2)


def test_motion_smoothness_re_creates_every_second_frame():
    def middle(a, b):
        return (a.astype(float) + b) / 2

    assert motion_smoothness(video(0, 10, 20, 30, 40), middle) == 1
    assert motion_smoothness(video(0, 61, 20, 30, 40), middle) == pytest.approx(1 - 51 / 2 / 255)
    assert motion_smoothness(video(0, 10, 20, 200), middle) == 1, (
        "a last odd frame has no neighbour"
    )
    with pytest.raises(ValueError, match="the video has 2"):
        motion_smoothness(video(0, 1), middle)


def test_dynamic_degree_counts_pairs_over_the_threshold():
    def flow(a, b):
        field = np.zeros((*a.shape[:2], 2))
        field[0, 0] = float(b[0, 0, 0]) - float(a[0, 0, 0]), 0  # one pixel of 16 is the top 5 %
        return field

    threshold = 6 * 4 / 256
    assert threshold < 1
    frames = video(0, 1, 1, 1, 1, 1, 1, 1)  # 8 frames: 2 pairs are needed
    assert not moves(frames, flow, 8)
    assert moves(video(0, 1, 2, 2, 2, 2, 2, 2), flow, 8)
    every_third = np.repeat(video(0, 0, 0, 0), 3, axis=0)
    every_third[1::3] = 200  # between the frames that are looked at
    assert not moves(every_third, flow, 24)
    protocol = with_models(flow=flow)
    videos = [frames, video(0, 1, 2, 2, 2, 2, 2, 2)]
    assert evaluate(protocol, videos, None, fps=8)["dynamic_degree"] == 0.5
    with pytest.raises(ValueError, match="say fps"):
        evaluate(protocol, videos, None)


def test_imaging_quality_is_per_video_then_over_videos():
    protocol = with_models(quality=lambda frames: frames.mean(axis=(1, 2, 3)))
    scores = evaluate(protocol, [video(10, 30), video(80, 80, 80, 80)], None)
    assert scores["imaging_quality"] == pytest.approx((0.2 + 0.8) / 2)


@pytest.mark.parametrize("dimension", list(WEIGHTS))
def test_a_dimension_without_its_network_names_the_weights(dimension):
    with pytest.raises(ValueError, match=WEIGHTS[dimension][1].split(" ")[0]):
        score_dimension(dimension, [video(0, 1)], Models())


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"video 0 is float64 of shape \(2, 4, 4, 3\)"):
        evaluate("vbench", video(0, 1).astype(float), None)
    with pytest.raises(ValueError, match=r"video 1 is uint8 of shape \(1, 4, 4, 3\)"):
        evaluate("vbench", [video(0, 1), video(0)], None)
    with pytest.raises(ValueError, match="makes no use of target"):
        evaluate("vbench", video(0, 1), video(0, 1))
    with pytest.raises(ValueError, match=r"unknown models \['vit'\]"):
        with_models(vit=len)
    with pytest.raises(ValueError, match="unknown dimension 'beauty'"):
        score_dimension("beauty", [video(0, 1)], Models())
