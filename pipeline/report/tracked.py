"""How well the faces of films were tracked: a page with figures and the films beside what was read.

The films lie beside the page, and are not inside it: there is one for each recording.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rapport.files import write_atomic
from rapport.pipeline.data.readers.video import FIGURES, TRACKED
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.data.video.making import REJECTED
from rapport.pipeline.data.video.shards import BESIDE, RECORD
from rapport.pipeline.report.tables import Table
from rapport.pipeline.report.templates import FOLDER, render

PAGE = "tracking.html"
_FIGURES = {
    "tracked": "pictures with the face",
    "there": "frames used or bridged",
    "jitter_lips": "jitter, lips (mm)",
    "quiet_lips": "quiet, lips (mm)",
    "jitter_brows": "jitter, brows (mm)",
    "quiet_brows": "quiet, brows (mm)",
    "talks": "talks",
}


def write_tracked(corpus: Corpus) -> Path:
    """Write `tracking.html` beside a corpus of films; returns its path."""
    folder = corpus.path.with_name(TRACKED)
    with corpus.path.with_name(FIGURES).open(newline="") as file:  # shards of others may lie there
        names = dict.fromkeys(row["recording"] for row in csv.DictReader(file))
    records = [json.loads((folder / name / RECORD).read_text()) for name in names]
    with (folder / REJECTED).open(newline="") as file:
        rejected = [(row["recording"], row["reason"]) for row in csv.DictReader(file)]
    source = corpus.manifest["source"]
    counts = source["counts"]
    lead = (
        f"{counts['hours']:.2f} hours, for which a core worked {counts['cpu_hours']:.2f} hours. Of "
        f"{counts['windows']} windows {counts['clips']} became clips; {counts['lost_face']} lost a "
        f"face, in {counts['not_spoken']} the speaker does not talk, as {source['voices']} tells."
    )
    page = render(
        "tracked.html.j2",
        style=Markup((FOLDER / "style.css").read_text()),
        lead=lead,
        errors=_errors(source["tracker"].get("errors", {})),
        people=_people(records),
        rejected=Table("Rejected", ("recording", "why"), rejected, words=True)
        if rejected
        else None,
        films=[
            (record["recording"], f"{TRACKED}/{record['recording']}/{BESIDE}") for record in records
        ],
    )
    path = corpus.path.with_name(PAGE)
    write_atomic(path, page)
    return path


def _people(records: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for record in records:
        for side, figures in record["people"].items():
            numbers = [figures.get(name) for name in _FIGURES]
            cells = [None if number is None else f"{number:.2f}" for number in numbers]
            rows.append((f"{record['recording']} {side}: {figures['person']}", *cells))
    return Table("Who was tracked, and how well", ("who", *_FIGURES.values()), rows)


def _errors(errors: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table | None:
    if not errors:
        return None
    rows: list[tuple[str | None, ...]] = []
    for who, parts in errors.items():
        for part, figures in parts.items():
            if "mm" in figures:
                cells = (f"{figures['mm']:.2f} mm", f"{figures['still_mm']:.2f} mm")
                rows.append((f"{who}: {part}", *cells, f"{figures['r2']:.2f}"))
            else:
                cells = (f"{figures['degrees']:.2f}°", f"{figures['still_degrees']:.2f}°")
                rows.append((f"{who}: turn", *cells, None))
    return Table("Errors", ("part", "error", "a face that keeps still", "r2"), rows)
