"""The bench of the metrics compares like with like. No times are asserted."""

import numpy as np

from rapport.pipeline.bench import metrics, textbook


def test_data_are_like_the_corpus():
    clips = metrics.emotions(np.random.default_rng(0), 6)
    assert clips.shape == (6, 750, 25) and clips.dtype == np.float32
    assert set(np.unique(clips[..., :15])) == {0, 1}
    assert np.abs(clips[..., 15:17]).max() <= 1
    np.testing.assert_allclose(clips[..., 17:].sum(axis=-1), 1, rtol=1e-5)


def test_bench_reports_every_metric_and_prints(capsys):
    result = metrics.bench_metrics(speakers=1, textbook_pairs=1)
    for data in result["data"].values():
        assert set(data["speed_up"]) == {"FRCorr", "FRDist", "FRSyn"}
        assert all(value > 0 for value in data["ms_per_pair"].values())
    metrics.print_bench(result)
    assert "FRDist" in capsys.readouterr().out


def test_textbook_by_hand():
    x = np.array([[0.0], [1.0], [2.0]])
    assert abs(textbook.ccc(x, 2 * x) - (8 / 3) / (2 / 3 + 8 / 3 + 1)) < 1e-8
    wide = np.zeros((3, 25))
    wide[:, 15] = [0, 1, 2]
    assert abs(textbook.weighted_dtw(wide, wide + 3 * (np.arange(25) == 15)) - 26**0.5) < 1e-12
