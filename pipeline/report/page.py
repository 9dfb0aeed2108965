"""The report of a run: one HTML file to be read without network and sent by mail, videos inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from markupsafe import Markup

from rapport.files import write_atomic
from rapport.log import logger
from rapport.pipeline.report.agreement import rater_agreement
from rapport.pipeline.report.change import in_short
from rapport.pipeline.report.clips import got_worse, held_out_clips, pairs
from rapport.pipeline.report.curves import training_curves, while_learning
from rapport.pipeline.report.dynamics import how_listeners_move
from rapport.pipeline.report.facts import Facts, read_facts
from rapport.pipeline.report.people import as_people_rate
from rapport.pipeline.report.perceived import what_it_perceives
from rapport.pipeline.report.ran import what_ran
from rapport.pipeline.report.results import results_by_method
from rapport.pipeline.report.templates import FOLDER, render
from rapport.pipeline.rundir import Run

# The file carries everything: a browser is told to fetch nothing and to run nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; media-src data:"
# Anchor -> title, and what the template's section of this name is given. None: no such section.
Content = Mapping[str, object]
SECTIONS: dict[str, tuple[str, Callable[[Facts], Content | None]]] = {
    "short": ("In short", in_short),
    "moves": ("How listeners move", how_listeners_move),
    "held-out": ("Held-out clips", held_out_clips),
    "worse": ("Where the policy got worse", got_worse),
    "tables": ("Results by method", results_by_method),
    "people": ("As people rate them", as_people_rate),
    "pairs": ("Chosen against rejected", pairs),
    "agreement": ("Do the raters agree?", rater_agreement),
    "curves": ("Training curves", training_curves),
    "curve": ("While it learnt", while_learning),
    "perceives": ("What it perceives", what_it_perceives),
    "ran": ("What ran", what_ran),
}


def write_report(run: Run) -> Path:
    """Write `report.html` of a run that has judged its policy, name it in the summary, log it."""
    path = run.directory / "report.html"
    write_atomic(path, page(read_facts(run.directory, run.summary, run.config)))
    run.leave({"report": path})
    run.tracker.log_artifact(path)
    logger.info(f"[report] {path}, {path.stat().st_size / 1e6:.1f} MB")
    return path


def page(facts: Facts) -> str:
    """The whole document."""
    contents = {anchor: content(facts) for anchor, (_, content) in SECTIONS.items()}
    return render(
        "report.html.j2",
        name=facts.name,
        summary=facts.summary,
        policy=POLICY,
        style=Markup((FOLDER / "style.css").read_text()),
        titles={anchor: title for anchor, (title, _) in SECTIONS.items()},
        sections={anchor: content for anchor, content in contents.items() if content is not None},
    )
