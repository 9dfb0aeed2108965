"""The report of a run: one HTML file with its videos inside, to be read without network and sent by
mail.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rapport.pipeline.report import moves, numbers, watch
from rapport.pipeline.report.facts import Facts, read_facts
from rapport.pipeline.report.html import Html, element, join
from rapport.pipeline.report.style import STYLE
from rapport.pipeline.rundir import Run, write_atomic

# The file carries everything: a browser is told to fetch nothing and to run nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; media-src data:"
# Anchor -> title and what makes it; a section that makes nothing does not concern this recipe.
SECTIONS: dict[str, tuple[str, Callable[[Facts], Html | None]]] = {
    "short": ("In short", numbers.in_short),
    "moves": ("How listeners move", moves.moves),
    "held-out": ("Held-out clips", watch.held_out),
    "worse": ("Where the policy got worse", watch.worse),
    "tables": ("Tables beside the paper's", numbers.tables),
    "pairs": ("Chosen against rejected", watch.pairs),
    "agreement": ("Do the raters agree?", numbers.agreement),
    "curves": ("Training curves", numbers.curves),
    "rounds": ("Round by round", numbers.rounds),
    "ran": ("What ran", numbers.what_ran),
}


def write_report(run: Run) -> Path:
    """Write `report.html` of a run that has judged its policy; named in the summary, logged to
    MLflow.
    """
    path = run.directory / "report.html"
    write_atomic(path, page(read_facts(run.directory, run.summary, run.config)))
    run.summary["artifacts"]["report"] = str(path)
    run.tracker.log_artifact(path)
    print(f"[report] {path}, {path.stat().st_size / 1e6:.1f} MB", flush=True)
    return path


def page(facts: Facts) -> Html:
    """The whole document."""
    made = {
        anchor: (title, content)
        for anchor, (title, make) in SECTIONS.items()
        if (content := make(facts)) is not None
    }
    name = f"{facts.summary['recipe']}: {facts.name}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name_="color-scheme", content="light dark"),
        element("title", f"Rapport {name}"),
        element("style", Html(STYLE)),
    )
    links = (element("a", title, href=f"#{anchor}") for anchor, (title, _) in made.items())
    header = element(
        "header",
        element("h1", name),
        element(
            "p",
            f"Rapport aligns a listening face with people's preferences. "
            f"Seed {facts.summary['seed']}.",
        ),
        element("nav", *links, aria_label="Sections"),
    )
    main = element(
        "main", *(_section(anchor, *part) for anchor, part in made.items()), id="main", tabindex=-1
    )
    skip = element("a", "Skip to the content", href="#main", class_="skip")
    return join(
        Html("<!DOCTYPE html>\n"),
        element("html", head, element("body", skip, header, main), lang="en"),
    )


def _section(anchor: str, title: str, content: Html) -> Html:
    heading = element("h2", title, id=f"{anchor}-title")
    return element("section", heading, content, id=anchor, aria_labelledby=f"{anchor}-title")
