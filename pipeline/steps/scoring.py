"""`evaluate --pred`: score files by a published protocol, beside what papers printed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

from rapport.actors.cluster import cluster
from rapport.actors.metrics import MetricWorkers, evaluate_react
from rapport.files import write_atomic
from rapport.log import logger
from rapport.pipeline.data.readers.motion_files import read_clips, together
from rapport.pipeline.rundir import Run, RunError
from rapport.pipeline.settings import Evaluated, FilesConfig
from rapport.rewards import metrics
from rapport.rewards.affect import RidgeAffectEstimator
from rapport.rewards.metrics.protocols import lm_listener
from rapport.rewards.metrics.protocols.protocol import Protocol
from rapport.rewards.metrics.protocols.react import SETTINGS, require_fps
from rapport.rewards.metrics.published import PublishedTable, tables_of


def score_files(config: Evaluated, run: Run) -> None:
    """Read, score, then report on the terminal, as JSON and to MLflow."""
    files = config.files
    protocol = protocol_of(files)
    logger.info(f"[evaluate] {protocol.name}, {files.variant}: {protocol.source}")
    inputs = read_inputs(files)
    try:
        if protocol.name in SETTINGS:
            scores = on_many_processes(config, inputs)
        else:
            scores = metrics.evaluate(
                protocol, **inputs, fps=files.fps, variant=files.variant, seed=config.seed
            )
    except ValueError as error:
        raise RunError(f"protocol {protocol.name}: {error}") from error
    report(protocol, files, scores, run=run)


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


def report(protocol: Protocol, files: FilesConfig, scores: dict[str, float], run: Run) -> None:
    """Tables on the terminal, JSON in the run directory and at `files.out`, numbers in MLflow."""
    published = tables_of(protocol.name)
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
    for table in published:
        title = f"{protocol.name} ({files.variant}) beside {table.source}: {table.data}"
        console.print(_table(title, scores, table.rows, scale=table.scale))
        if table.remark:
            logger.info(f"  {table.remark}")
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
        "published": [_json(table) for table in published],
    }
    for path in [run.directory / "metrics.json"] + ([] if files.out is None else [files.out]):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(result, indent=2) + "\n")
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
