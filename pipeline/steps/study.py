"""A study of results: people rate methods side by side and blind (VLA + DPO, IV-D, Table III)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rapport.actors.renderer import Panel, VideoJob
from rapport.files import file_digest, strict_json, write_atomic
from rapport.log import logger
from rapport.pipeline.data.rating_package import (
    HAND_OUT,
    faces_of_form,
    instructions_side_by_side,
    read_manifest,
    video_of_face,
    write_form,
    write_manifest,
)
from rapport.pipeline.data.reactions import (
    REACTIONS,
    KeptReactions,
    read_reactions,
)
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.rundir import Phase, PhaseResult, Run, RunError, found, phase
from rapport.pipeline.settings import Evaluated
from rapport.pipeline.steps.corpus import chosen
from rapport.pipeline.steps.rejudging import Source
from rapport.pipeline.steps.sheets import digest_of, require_read
from rapport.pipeline.steps.showing import render_pool, render_videos, speaker_panel
from rapport.rewards.ratings.raters import anonymous, survey
from rapport.rewards.ratings.ratings import CRITERIA, Rating, Remark, read_ratings
from rapport.rewards.ratings.results import Estimate, method_means, preference_shares

STUDY = "study.json"
MANIFEST = "manifest.csv"
OVERALL = "overall"

# -- Handed out --


def hand_out(run: Run, config: Evaluated) -> None:
    """Write the package of this run's reactions."""
    reactions = run.directory / REACTIONS
    corpus = Corpus(found(run.summary["artifacts"]["corpus"], run.root))
    _package(run, config, reactions, corpus)


@phase("study")
def _package(step: Phase, config: Evaluated, reactions: Path, corpus: Corpus) -> PhaseResult:
    kept = read_reactions(reactions)
    methods = methods_of(config, kept)
    shared = [i for i in kept.prompt_ids if all(i in kept.methods[method] for method in methods)]
    prompts = chosen(shared, config.study.prompts, seed=config.seed)
    faces: dict[str, tuple[str, str]] = {}
    for form in range(1, config.study.forms + 1):
        names = faces_of_form(methods, prompts, form, config.seed)
        folder = step.directory / HAND_OUT / f"form-{form}"
        (folder / "videos").mkdir(parents=True, exist_ok=True)
        write_form(folder, names, instructions_side_by_side())
        faces |= names
    write_manifest(step.directory, faces)
    with render_pool(config) as renderers:
        jobs = _videos(step.directory / HAND_OUT, faces, kept, methods=methods, corpus=corpus)
        drawn = render_videos(config.render, jobs, renderers, step=step)
    about = {
        "reactions": file_digest(reactions),
        "manifest": file_digest(step.directory / MANIFEST),
        "corpus": kept.corpus,
        "split": kept.split,
        "methods": methods,
        "prompts": len(prompts),
        "forms": config.study.forms,
        "seed": config.seed,
    }
    write_atomic(step.directory / STUDY, strict_json(about, indent=2) + "\n")
    step.say(
        f"{len(prompts)} prompts x {len(methods)} methods in {config.study.forms} forms; hand out "
        f"one folder of {step.directory / HAND_OUT} to each rater, keep the rest"
    )
    return PhaseResult(
        artifacts={"study": step.directory},
        counts=drawn.counts,
        engines=drawn.engines,
    )


def methods_of(config: Evaluated, kept: KeptReactions) -> list[str]:
    """Who is rated, in the order of the table.

    Raises:
        RunError: a method that answered nothing, or fewer than two.
    """
    methods = config.study.methods or list(kept.methods)
    unknown = [method for method in methods if method not in kept.methods]
    if unknown:
        raise RunError(
            f"study.methods names {unknown[0]!r}; reactions are there of {', '.join(kept.methods)}"
        )
    if len(set(methods)) < 2:
        raise RunError("study.methods: two methods or more can be compared")
    return methods


def _videos(
    folder: Path,
    faces: dict[str, tuple[str, str]],
    kept: KeptReactions,
    *,
    methods: Sequence[str],
    corpus: Corpus,
) -> Iterator[VideoJob]:
    """One for each prompt and form: the speaker, then the faces in the form's order.

    All faces have the same groups and the same length, so that neither says whose they are.
    """
    by_video: dict[str, list[str]] = {}
    for face in faces:
        by_video.setdefault(video_of_face(face), []).append(face)
    layouts = [next(iter(kept.methods[method].values()))[0].motion.layout for method in methods]
    layout = min(layouts, key=lambda layout: layout.dim)
    for video, names in by_video.items():
        prompt_id = faces[names[0]][0]
        motions = [kept.methods[faces[name][1]][prompt_id][0].motion for name in names]
        frames = min(map(len, motions))
        clip = corpus.clip(prompt_id)
        panels = [speaker_panel(clip, frames)]
        for name, motion in zip(names, motions, strict=True):
            letter = name.rpartition("-")[2]
            panels.append(Panel(letter, motion.subset(layout).window(0, frames)))
        form = video.partition("-")[0]
        path = folder / f"form-{form}" / "videos" / f"{video}.mp4"
        yield VideoJob(path, tuple(panels), clip.speaker_audio)


# -- Handed in --


def check_study(config: Evaluated) -> None:
    """Read people's sheets and compare them with the package, before anything is started.

    Raises:
        RunError: there is no package, or it is of other reactions.
        RatingError: of `read_ratings`.
    """
    if config.reactions is None or config.ratings is None:
        return
    _, remarks = _sheets(config.reactions, config.ratings)
    for remark in remarks:
        logger.warning(f"WARNING: {config.ratings}: {remark}")


def read_study(run: Run, config: Evaluated) -> None:
    """What people think of each method: the terminal, `study_results.json`, the summary."""
    assert config.reactions is not None and config.ratings is not None
    results = _read(run, config, config.reactions, config.ratings).value
    require_read(config.ratings, results.pop("sheets"))
    _show(results)
    file = run.directory / "study_results.json"
    write_atomic(file, strict_json(results, indent=2) + "\n")
    run.leave({"study_results": file})
    run.summary["metrics"]["study"] = results


@phase("people")
def _read(step: Phase, config: Evaluated, reactions: Path, sheets: Path) -> PhaseResult:
    named, remarks = _sheets(reactions, sheets)
    package = _package_of(reactions)
    methods = json.loads((package / STUDY).read_text())["methods"]
    ratings = anonymous(named)
    results = results_of(ratings, read_manifest(package / MANIFEST), methods, config)
    results["survey"]["warnings"] = [r.anonymous for r in remarks] + results["survey"]["warnings"]
    for warning in results["survey"]["warnings"]:
        step.say(f"WARNING: {warning}")
    raters = len(results["survey"]["raters"])
    step.say(f"{len(ratings)} ratings by {raters} people")
    return PhaseResult(
        value=results | {"sheets": digest_of(sheets)},
        counts={"result_ratings": len(ratings)},
        engines={"result_raters": f"{raters} people"},
    )


def results_of(
    ratings: Sequence[Rating],
    faces: dict[str, tuple[str, str]],
    methods: Sequence[str],
    config: Evaluated,
) -> dict[str, Any]:
    """Means, preferences and agreement, as JSON.

    Args:
        ratings: candidate ids are methods.
        faces: what was handed out.
        methods: in the order of the table.
        config: of the recipe.
    """
    options = {"resamples": config.evaluation.bootstrap, "seed": config.seed}
    means = method_means(ratings, config.score.weights, **options)
    shares = preference_shares(ratings, config.score.weights, **options)
    handed_out: dict[str, set[str]] = {}
    for prompt_id, method in faces.values():
        handed_out.setdefault(prompt_id, set()).add(method)
    surveyed = survey(ratings, handed_out)
    return {
        "means": {
            method: {name: _json(value) for name, value in means[method].items()}
            for method in methods
            if method in means
        },
        "preferred": [
            {"method": one, "to": other} | asdict(share) for (one, other), share in shares.items()
        ],
        "survey": asdict(surveyed) | {"warnings": surveyed.warnings},
    }


def _json(value: Estimate | None) -> dict[str, Any] | None:
    return None if value is None else asdict(value)


def _sheets(reactions: Path, sheets: Path) -> tuple[list[Rating], list[Remark]]:
    """People's ratings by method, and what was left out of their sheets."""
    package = _package_of(reactions)
    remarks: list[Remark] = []
    faces = read_manifest(package / MANIFEST)
    return read_ratings(sheets, faces, say=remarks.append), remarks


def _package_of(reactions: Path) -> Path:
    """The folder of the package, which is of these reactions and as it was written.

    Raises:
        RunError: it is not.
    """
    source = Source.at(reactions)
    if source.package is None or not (source.package / STUDY).is_file():
        raise RunError(
            f"ratings need reactions=RUN_DIR of an `evaluate` run that wrote a package "
            f"(study.prompts); {reactions} has none"
        )
    about = json.loads((source.package / STUDY).read_text())
    files = {"reactions": source.file, "manifest": source.package / MANIFEST}
    changed = [name for name, file in files.items() if file_digest(file) != about[name]]
    if changed:
        raise RunError(
            f"{source.package}: its {' and '.join(changed)} changed after the package was written, "
            "so nobody knows any more whom people rated; restore what was there"
        )
    return source.package


def _show(results: dict[str, Any]) -> None:
    table = Table(title="results as people rate them, 1 to 5 [95 % over raters and prompts]")
    table.add_column("method")
    for column in (*CRITERIA, OVERALL):
        table.add_column(column, justify="right")
    for method, row in results["means"].items():
        table.add_row(method, *(_cell(row[column]) for column in (*CRITERIA, OVERALL)))
    console = Console(width=140)
    console.print(table)
    for pair in results["preferred"]:
        if pair["mean"] >= 0.5:
            console.print(
                f"{pair['method']} is rated above {pair['to']} in {_cell(pair)} of "
                f"{pair['ratings']} comparisons"
            )


def _cell(value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    if value["low"] is None:
        return f"{value['mean']:.2f}"
    return f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
