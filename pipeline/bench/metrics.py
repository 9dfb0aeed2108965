"""How fast the REACT metrics are, beside textbook implementations timed in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter1d

from rapport.actors.metrics import evaluate_react
from rapport.pipeline.bench import textbook
from rapport.pipeline.bench.workload import process
from rapport.pipeline.settings import BenchConfig
from rapport.rewards.metrics.protocols.react import fr_corr, fr_dist, fr_syn

FRAMES, SAMPLES, NEIGHBOURS = 750, 10, 50
TEST_SPLIT = 1612  # speakers of REACT's


def emotions(rng: np.random.Generator, clips: int) -> np.ndarray:
    """(clips, 750, 25) float32 like REACT's: binary AUs, smooth valence and arousal, expression
    probabilities.

    AUs that never change within a clip occur, as they do in the corpus.
    """
    noise = rng.normal(size=(clips, FRAMES + 200, 25))
    smooth = [
        gaussian_filter1d(noise[..., a:b], width, axis=1)[:, 100:-100]
        for a, b, width in ((0, 15, 12), (15, 17, 25), (17, 25, 25))
    ]
    au, affect, logits = (
        s / s.std(axis=1, keepdims=True) + 0.8 * rng.normal(size=(clips, 1, s.shape[2]))
        for s in smooth
    )
    probabilities = np.exp(1.5 * logits)
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    return np.concatenate([au > 1, np.tanh(0.25 * affect), probabilities], axis=-1).astype(
        np.float32
    )


def random_walks(rng: np.random.Generator, clips: int) -> np.ndarray:
    """(clips, 750, 25) float32."""
    return np.cumsum(0.05 * rng.normal(size=(clips, FRAMES, 25)), axis=1).astype(np.float32)


@ray.remote
class OneCore:
    """A process with one thread."""

    def measure(self, seed: int) -> dict[str, Any]:
        return bench_metrics(seed=seed)


def measure(config: BenchConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """`bench_metrics`, and `bench_split` of `bench.speakers` where there are any."""
    with process(OneCore, 1) as call:
        result = call("measure", config.seed)
    print_bench(result)
    if config.bench.speakers:
        workers = int(ray.cluster_resources()["CPU"])
        result["split"] = bench_split(config.bench.speakers, workers, config.seed, say)
        say(
            f"{config.bench.speakers} speakers on {workers} processes: "
            f"{result['split']['minutes']:.1f} minutes"
        )
    return result


def bench_metrics(speakers: int = 2, textbook_pairs: int = 12, seed: int = 0) -> dict[str, Any]:
    """Milliseconds a pair on one core, ours and the textbook's, by data and metric.

    A pair is a sample with a neighbour for FRCorr and FRDist, a sample with its speaker for FRSyn.
    Ours scores `speakers` with 10 samples against 50 neighbours each, the least of three rounds;
    the textbook its first pairs, which must agree. `full_split_minutes_2_cores` extrapolates ours
    to N = 1612.
    """
    data = {
        name: _measure(name, draw, speakers, textbook_pairs, np.random.default_rng(seed))
        for name, draw in (("emotions", emotions), ("random walks", random_walks))
    }
    return {"frames": FRAMES, "samples": SAMPLES, "neighbours": NEIGHBOURS, "data": data}


def bench_split(
    speakers: int = TEST_SPLIT,
    workers: int = 2,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Really scores a split of that many speakers, 10 samples and about 50 neighbours each, on a
    running Ray.
    """
    rng = np.random.default_rng(seed)
    target, partner = emotions(rng, speakers), emotions(rng, speakers)
    pred = np.empty((speakers, SAMPLES, FRAMES, 25), np.float32)
    for k in range(speakers):
        pred[k] = emotions(rng, SAMPLES)
    near = rng.random((speakers, speakers)) < NEIGHBOURS / speakers
    np.fill_diagonal(near, True)
    start_s = time.monotonic()
    values = evaluate_react(
        "react2024",
        pred,
        target,
        partner,
        neighbours=near,
        variant="corrected",
        workers=workers,
        say=say,
    )
    return {
        "speakers": speakers,
        "samples": SAMPLES,
        "neighbours_mean": float(near.sum(axis=1).mean()),
        "workers": workers,
        "minutes": (time.monotonic() - start_s) / 60,
        "values": values,
    }


def print_bench(result: dict[str, Any], console: Console | None = None) -> None:
    """The table of `bench_metrics`."""
    table = Table(
        "data",
        "metric",
        "textbook ms",
        "ours ms",
        "times faster",
        title="one core, T = 750, 25 channels",
    )
    for name, data in result["data"].items():
        for metric, ours in data["ms_per_pair"].items():
            table.add_row(
                name,
                metric,
                f"{data['textbook_ms_per_pair'][metric]:.2f}",
                f"{ours:.4f}",
                f"{data['speed_up'][metric]:.1f}",
            )
        table.add_row(
            name,
            "REACT test split",
            "",
            f"{data['full_split_minutes_2_cores']:.1f} min on 2 cores",
            "",
        )
    (console or Console()).print(table)


def _measure(
    name: str,
    draw: Callable[..., np.ndarray],
    speakers: int,
    textbook_pairs: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    pred = draw(rng, speakers * SAMPLES).reshape(speakers, SAMPLES, FRAMES, 25)
    partner, target = draw(rng, speakers), draw(rng, NEIGHBOURS)
    near = [np.arange(NEIGHBOURS)] * speakers
    x, one = pred[0, 0], pred[:1, :1]
    corr, dist = (
        [function(x, y) for y in target[:2]] for function in (textbook.ccc, textbook.weighted_dtw)
    )
    _agree(f"{name}: FRCorr", fr_corr(one, target[:2], [[0, 1]], 1e-8, 0.0), max(corr), 1e-6)
    _agree(f"{name}: FRDist", fr_dist(one, target[:2], [[0, 1]]), min(dist), 1e-9)
    _agree(f"{name}: FRSyn", fr_syn(one, partner[:1], "reference"), textbook.lag(x, partner[0]), 0)
    ours = {
        "FRCorr": _ms(lambda: fr_corr(pred, target, near, 1e-8, 0.0))
        / (speakers * SAMPLES * NEIGHBOURS),
        "FRDist": _ms(lambda: fr_dist(pred, target, near)) / (speakers * SAMPLES * NEIGHBOURS),
        "FRSyn": _ms(lambda: fr_syn(pred, partner, "corrected")) / (speakers * SAMPLES),
    }
    some = target[:textbook_pairs]
    book = {
        "FRCorr": _ms(lambda: [textbook.ccc(x, y) for y in some]) / len(some),
        "FRDist": _ms(lambda: [textbook.weighted_dtw(x, y) for y in some]) / len(some),
        "FRSyn": _ms(lambda: textbook.lag(x, partner[0])),
    }
    pairs = {"FRCorr": NEIGHBOURS, "FRDist": NEIGHBOURS, "FRSyn": 1}
    minutes = (
        sum(ours[metric] * pairs[metric] for metric in ours) * SAMPLES * TEST_SPLIT / 2 / 60_000
    )
    return {
        "ms_per_pair": ours,
        "textbook_ms_per_pair": book,
        "speed_up": {metric: book[metric] / ours[metric] for metric in ours},
        "full_split_minutes_2_cores": minutes,
    }


def _ms(call: Callable[[], Any]) -> float:
    """Milliseconds of the fastest of three calls."""
    times = []
    for _ in range(3):
        start_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - start_s)
    return 1000 * min(times)


def _agree(what: str, ours: float, book: float, tolerance: float) -> None:
    if not abs(ours - book) <= tolerance:
        raise AssertionError(f"{what}: ours is {ours!r}, the textbook's {book!r}")
