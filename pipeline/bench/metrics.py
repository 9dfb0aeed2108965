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

from rapport.actors.metrics import MetricWorkers, evaluate_react
from rapport.log import logger
from rapport.pipeline.bench import textbook
from rapport.pipeline.bench.workload import process
from rapport.pipeline.bench_settings import MetricsBench
from rapport.rewards.metrics.protocols.react import fr_corr, fr_dist, fr_syn

FRAMES = 750
CHANNELS = 25
SAMPLES = 10
NEIGHBOURS = 50
TEST_SPLIT = 1612  # speakers of REACT's
TEXTBOOK_PAIRS = 12  # that the textbook is timed on


def emotions(rng: np.random.Generator, clips: int) -> np.ndarray:
    """Like REACT's: binary AUs, smooth valence and arousal, expression probabilities.

    AUs that never change within a clip occur, as they do in the corpus.

    Args:
        rng: of the draws.
        clips: how many.

    Returns:
        (clips, 750, 25) float32.
    """
    noise = rng.normal(size=(clips, FRAMES + 200, CHANNELS))
    # AUs, valence and arousal, expressions: their channels, and how smooth they are.
    kinds = ((0, 15, 12), (15, 17, 25), (17, 25, 25))
    standardised = []
    for first, last, width in kinds:
        smooth = gaussian_filter1d(noise[..., first:last], width, axis=1)[:, 100:-100]
        offsets = 0.8 * rng.normal(size=(clips, 1, smooth.shape[2]))
        standardised.append(smooth / smooth.std(axis=1, keepdims=True) + offsets)
    units, affect, logits = standardised
    probabilities = np.exp(1.5 * logits)
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    parts = [units > 1, np.tanh(0.25 * affect), probabilities]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def random_walks(rng: np.random.Generator, clips: int) -> np.ndarray:
    """(clips, 750, 25) float32."""
    return np.cumsum(0.05 * rng.normal(size=(clips, FRAMES, CHANNELS)), axis=1).astype(np.float32)


class OneCore:
    """A process with one thread."""

    def measure(self, seed: int) -> dict[str, Any]:
        """`bench_metrics`."""
        return bench_metrics(seed=seed)


def measure(config: MetricsBench) -> dict[str, Any]:
    """`bench_metrics`, and `bench_split` of `bench.speakers` where there are any."""
    with process(OneCore) as call:
        result = call("measure", config.seed)
    print_bench(result)
    speakers = config.bench.speakers
    if speakers:
        workers = MetricWorkers(
            int(ray.cluster_resources()["CPU"]),
            report=lambda text: logger.info(f"[metrics] {text}"),
        )
        result["split"] = bench_split(speakers, workers, config.seed)
        logger.info(
            f"[metrics] {speakers} speakers on {workers.count} processes: "
            f"{result['split']['minutes']:.1f} minutes"
        )
    return result


def bench_metrics(
    speakers: int = 2, textbook_pairs: int = TEXTBOOK_PAIRS, seed: int = 0
) -> dict[str, Any]:
    """Milliseconds a pair on one core, ours and the textbook's, by data and metric.

    A pair is a sample with a neighbour for FRCorr and FRDist, a sample with its speaker for FRSyn.
    Ours is the least of three rounds; the textbook's first pairs must agree with it.
    `full_split_minutes_2_cores` extrapolates ours to N = 1612.

    Args:
        speakers: whom ours scores, with 10 samples against 50 neighbours each.
        textbook_pairs: that the textbook scores.
        seed: of the data.
    """
    data = {}
    for name, draw in (("emotions", emotions), ("random walks", random_walks)):
        clips = TimedClips(draw, speakers, np.random.default_rng(seed))
        require_agreement(name, clips)
        data[name] = _times(clips, textbook_pairs)
    return {"frames": FRAMES, "samples": SAMPLES, "neighbours": NEIGHBOURS, "data": data}


def bench_split(speakers: int, workers: MetricWorkers, seed: int) -> dict[str, Any]:
    """Really scores a split, 10 samples and about 50 neighbours each, on a running Ray.

    Args:
        speakers: of the split.
        workers: the processes.
        seed: of the data.
    """
    rng = np.random.default_rng(seed)
    target = emotions(rng, speakers)
    partner = emotions(rng, speakers)
    pred = np.empty((speakers, SAMPLES, FRAMES, CHANNELS), np.float32)
    for speaker in range(speakers):
        pred[speaker] = emotions(rng, SAMPLES)
    near = rng.random((speakers, speakers)) < NEIGHBOURS / speakers
    np.fill_diagonal(near, True)
    started = time.monotonic()
    values = evaluate_react(
        "react2024",
        pred,
        target,
        partner=partner,
        neighbours=near,
        variant="corrected",
        workers=workers,
    )
    return {
        "speakers": speakers,
        "samples": SAMPLES,
        "neighbours_mean": float(near.sum(axis=1).mean()),
        "workers": workers.count,
        "minutes": (time.monotonic() - started) / 60,
        "values": values,
    }


def print_bench(result: dict[str, Any], console: Console | None = None) -> None:
    """The table of `bench_metrics`."""
    columns = ("data", "metric", "textbook ms", "ours ms", "times faster")
    table = Table(*columns, title="one core, T = 750, 25 channels")
    for name, data in result["data"].items():
        for metric, ours in data["ms_per_pair"].items():
            theirs = data["textbook_ms_per_pair"][metric]
            speed_up = data["speed_up"][metric]
            table.add_row(name, metric, f"{theirs:.2f}", f"{ours:.4f}", f"{speed_up:.1f}")
        minutes = f"{data['full_split_minutes_2_cores']:.1f} min on 2 cores"
        table.add_row(name, "REACT test split", "", minutes, "")
    (console or Console()).print(table)


class TimedClips:
    """What ours and the textbook's are timed on.

    Args:
        draw: a kind of data.
        speakers: who are answered.
        rng: of the draws.
    """

    def __init__(
        self,
        draw: Callable[[np.random.Generator, int], np.ndarray],
        speakers: int,
        rng: np.random.Generator,
    ) -> None:
        self.speakers = speakers
        self.pred = draw(rng, speakers * SAMPLES).reshape(speakers, SAMPLES, FRAMES, CHANNELS)
        self.partner = draw(rng, speakers)
        self.target = draw(rng, NEIGHBOURS)
        self.near = [np.arange(NEIGHBOURS)] * speakers


def require_agreement(name: str, clips: TimedClips) -> None:
    """Ours and the textbook's must give the same for the first pairs.

    Raises:
        AssertionError: they do not.
    """
    sample = clips.pred[0, 0]
    one = clips.pred[:1, :1]
    pair = clips.target[:2]
    corr = max(textbook.ccc(sample, recorded) for recorded in pair)
    _agree(f"{name}: FRCorr", fr_corr(one, pair, [[0, 1]], 1e-8, 0.0), book=corr, tolerance=1e-6)
    dist = min(textbook.weighted_dtw(sample, recorded) for recorded in pair)
    _agree(f"{name}: FRDist", fr_dist(one, pair, [[0, 1]]), book=dist, tolerance=1e-9)
    lag = textbook.lag(sample, clips.partner[0])
    ours = fr_syn(one, clips.partner[:1], "reference")
    _agree(f"{name}: FRSyn", ours, book=lag, tolerance=0)


def _times(clips: TimedClips, textbook_pairs: int) -> dict[str, Any]:
    pred = clips.pred
    target = clips.target
    near = clips.near
    samples = clips.speakers * SAMPLES
    pairs = samples * NEIGHBOURS
    ours = {
        "FRCorr": _ms(lambda: fr_corr(pred, target, near, 1e-8, 0.0)) / pairs,
        "FRDist": _ms(lambda: fr_dist(pred, target, near)) / pairs,
        "FRSyn": _ms(lambda: fr_syn(pred, clips.partner, "corrected")) / samples,
    }
    sample = pred[0, 0]
    some = target[:textbook_pairs]
    book = {
        "FRCorr": _ms(lambda: [textbook.ccc(sample, recorded) for recorded in some]) / len(some),
        "FRDist": _ms(lambda: [textbook.weighted_dtw(sample, recorded) for recorded in some])
        / len(some),
        "FRSyn": _ms(lambda: textbook.lag(sample, clips.partner[0])),
    }
    pairs_of_sample = {"FRCorr": NEIGHBOURS, "FRDist": NEIGHBOURS, "FRSyn": 1}
    sample_ms = sum(ours[metric] * pairs_of_sample[metric] for metric in ours)
    return {
        "ms_per_pair": ours,
        "textbook_ms_per_pair": book,
        "speed_up": {metric: book[metric] / ours[metric] for metric in ours},
        "full_split_minutes_2_cores": sample_ms * SAMPLES * TEST_SPLIT / 2 / 60_000,
    }


def _ms(call: Callable[[], Any]) -> float:
    """Milliseconds of the fastest of three calls."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def _agree(what: str, ours: float, *, book: float, tolerance: float) -> None:
    if not abs(ours - book) <= tolerance:
        raise AssertionError(f"{what}: ours is {ours!r}, the textbook's {book!r}")
