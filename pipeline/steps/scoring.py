"""`evaluate --pred`: score files by a published protocol, beside what papers printed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray
from rich.console import Console
from rich.table import Table

from rapport.actors.cluster import cluster
from rapport.actors.metrics import MetricWorkers, evaluate_react
from rapport.files import strict_json, write_atomic
from rapport.log import logger
from rapport.pipeline.data.readers.motion_files import kind_of, read_clips, together
from rapport.pipeline.data.store import MANIFEST, Corpus
from rapport.pipeline.rundir import Run, RunError
from rapport.pipeline.settings import Evaluated, FilesConfig
from rapport.policies.motion import HALF_TURN, Motion
from rapport.rewards import metrics
from rapport.rewards.affect import RidgeAffectEstimator
from rapport.rewards.metrics.protocols import lm_listener
from rapport.rewards.metrics.protocols.protocol import Protocol
from rapport.rewards.metrics.protocols.react import SETTINGS, require_fps
from rapport.rewards.metrics.published import MotionFacts, PublishedTable, ordered, tables_of

# Columns of plain arrays that are rotations, where a protocol takes them raw.
ROTATIONS = {"lm_listener": slice(50, 56), "dim": slice(0, 6), "dualtalk": slice(50, 56)}
_COLUMNS = 56  # of those protocols


def score_files(config: Evaluated, run: Run) -> None:
    """Read, score, then report on the terminal, as JSON and to MLflow."""
    files = config.files
    protocol = protocol_of(files)
    logger.info(f"[evaluate] {protocol.name}, {files.variant}: {protocol.source}")
    inputs = read_inputs(files)
    data = facts_of(files, inputs)
    for name in ("pred", "target", "partner"):
        if inputs.get(name) is not None:
            say_what_was_read(protocol.name, getattr(files, name), inputs[name])
    try:
        if protocol.name in SETTINGS:
            scores = on_many_processes(config, inputs)
        else:
            scores = metrics.evaluate(
                protocol, **inputs, fps=files.fps, variant=files.variant, seed=config.seed
            )
    except ValueError as error:
        raise RunError(f"protocol {protocol.name}: {error}") from error
    report(protocol, files, scores, data, run=run)


def protocol_of(files: FilesConfig) -> Protocol:
    """The protocol by its name, with the affect estimator that a file holds where there is one."""
    if files.affect is None:
        return metrics.named(files.protocol)
    try:
        return lm_listener.with_affect(RidgeAffectEstimator.load(files.affect))
    except (OSError, ValueError) as error:
        raise RunError(f"files.affect={files.affect}: {error}") from error


def on_many_processes(config: Evaluated, inputs: dict[str, Any]) -> dict[str, float]:
    """The REACT protocols, on one process for each CPU of the cluster.

    They compare every prediction with many targets.
    """
    require_fps(SETTINGS[config.files.protocol], config.files.fps)
    with cluster(config.cluster.address, config.cluster.cpus):
        return evaluate_react(
            config.files.protocol,
            **inputs,
            variant=config.files.variant,
            workers=MetricWorkers(
                count=max(1, int(ray.cluster_resources().get("CPU", 1))),
                losses=config.cluster.lost_workers,
                report=lambda text: logger.info(f"[evaluate] {text}"),
            ),
        )


def read_inputs(files: FilesConfig) -> dict[str, Any]:
    """What `evaluate` takes, in the order of the predictions.

    Raises:
        CorpusError: names the file that cannot be read, or does not fit the predictions.
    """
    if files.pred is None:
        raise ValueError("files.pred says what is scored")
    pred = read_clips(files.pred, "listener", files.fps)
    inputs: dict[str, Any] = {
        "pred": list(pred.values()) if isinstance(pred, Mapping) else pred,
        "target": None,
    }
    if files.target is not None:
        inputs["target"] = together(
            pred, read_clips(files.target, "listener", files.fps), str(files.target)
        )
    if files.partner is not None:
        partner = read_clips(files.partner, "speaker", files.fps)
        inputs["partner"] = together(pred, partner, str(files.partner), partner=True)
    if files.speech_mask is not None:
        inputs["speech_mask"] = together(
            pred, read_clips(files.speech_mask), str(files.speech_mask)
        )
    if files.neighbours is not None:
        inputs["neighbours"] = read_clips(files.neighbours)
    return inputs


def facts_of(files: FilesConfig, inputs: Mapping[str, Any]) -> MotionFacts:
    """What is known of the motion that is scored, by which published rows are told apart."""
    content = inputs["target"] if inputs["target"] is not None else inputs["pred"]
    clips = [clip for clip in as_clips(content) if clip is not None]
    first = clips[0] if clips else None
    layout = first.layout if isinstance(first, Motion) else None
    values = first.values if isinstance(first, Motion) else first
    width = None
    frames = set()
    if isinstance(values, np.ndarray) and values.ndim == 2:
        width = values.shape[1]
        frames = {len(clip) for clip in clips}
    return MotionFacts(
        groups=None if layout is None else layout.groups,
        width=width,
        fps=files.fps if layout is None else layout.fps,
        clips=len(clips),
        frames=frames.pop() if len(frames) == 1 else None,
        reader=reader_of(files.target or files.pred),
    )


def reader_of(path: Path | None) -> str | None:
    """`corpus.kind` of the files that are scored; None where they do not say it."""
    if path is None or path.suffix == ".pth":
        return None if path is None else "lm_listener"
    kind = Corpus(path).manifest["source"].get("kind") if (path / MANIFEST).is_file() else None
    return None if kind is None else str(kind)


def as_clips(content: Any) -> list[Any]:
    """One item a clip, of whatever was read; a whole array of (clips, time, dim) is its clips."""
    if isinstance(content, np.ndarray):
        return [content] if content.ndim < 3 else list(content)
    return list(content) if isinstance(content, list) else [content]


def say_what_was_read(protocol: str, path: Path, content: Any) -> None:
    """A line about an input, and a warning where rotations of plain arrays are no radians."""
    clips = [clip for clip in as_clips(content) if clip is not None]
    kinds = sorted({kind_of(clip) for clip in clips})
    logger.info(f"[evaluate] {path}: {len(clips)} clips, {', '.join(kinds[:3])}")
    columns = ROTATIONS.get(protocol)
    plain = [c for c in clips if isinstance(c, np.ndarray) and c.shape[1:] == (_COLUMNS,)]
    if columns is None or not plain:
        return
    largest = max(float(np.abs(clip[:, columns]).max()) for clip in plain)
    if largest > HALF_TURN:
        logger.warning(
            f"[evaluate] {path}: columns {columns.start} to {columns.stop - 1} are rotations in "
            f"radians for protocol {protocol}, and one turns by {largest:.4g}, more than half a "
            "turn: are they degrees, or columns in another order?"
        )


def report(
    protocol: Protocol, files: FilesConfig, scores: dict[str, float], data: MotionFacts, run: Run
) -> None:
    """Tables on the terminal, JSON in the run directory and at `files.out`, numbers in MLflow."""
    published = ordered(tables_of(protocol.name), data)
    console = Console(width=160)
    if not published:
        console.print(
            _table(
                f"{protocol.name} ({files.variant}); no published rows are known",
                scores,
                {},
                scale={},
            )
        )
    for table, reasons in published:
        title = f"{protocol.name} ({files.variant}) beside {table.source}: {table.data}"
        if reasons:
            title += f"; other data: {'; '.join(reasons)}"
        console.print(_table(title, scores, table.rows, scale=table.scale))
        if table.remark:
            logger.info(f"  {table.remark}")
    if published and all(reasons for _, reasons in published):
        logger.warning("[evaluate] none of these published rows is of this data")
    found = {
        name: value if math.isfinite(value) else None for name, value in scores.items()
    }  # NaN is no JSON
    result = {
        "protocol": protocol.name,
        "source": protocol.source,
        "variant": files.variant,
        "corrections": protocol.corrections if files.variant == "corrected" else {},
        "seed": run.config.seed,
        "files": {
            name: str(path)
            for name in ("pred", "target", "partner", "neighbours", "speech_mask", "affect")
            if (path := getattr(files, name)) is not None
        },
        "metrics": found,
        "published": [_json(table) | {"unlike": reasons} for table, reasons in published],
    }
    for path in [run.directory / "metrics.json"] + ([] if files.out is None else [files.out]):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, strict_json(result, indent=2) + "\n")
        logger.info(f"[evaluate] {path}")
    run.summary["metrics"][protocol.name] = found
    run.leave({"metrics": run.directory / "metrics.json"})
    run.tracker.log({name: value for name, value in found.items() if value is not None})


def _table(
    title: str,
    scores: Mapping[str, float],
    rows: Mapping[str, Mapping[str, float]],
    scale: Mapping[str, float],
) -> Table:
    """Metrics down, this run and the published methods across, all in the paper's unit."""
    table = Table(title=title)
    for column in ("metric", "this run", *rows):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, value in scores.items():
        factor = scale.get(name, 1.0)
        printed = [f"{row[name]:g}" if name in row else "-" for row in rows.values()]
        table.add_row(
            name if factor == 1 else f"{name} x {factor:g}", f"{factor * value:.4f}", *printed
        )
    return table


def _json(table: PublishedTable) -> dict[str, Any]:
    return {
        "source": table.source,
        "data": table.data,
        "remark": table.remark,
        "scale": table.scale,
        "rows": table.rows,
    }
