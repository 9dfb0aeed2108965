"""The report's sections of numbers: what ran, what came out, tables, curves, agreement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rapport.pipeline.report.charts import Line, Point, interval_chart, line_chart
from rapport.pipeline.report.facts import Facts
from rapport.pipeline.report.html import Html, element, folded, join, missing, paragraph, table
from rapport.pipeline.report.paper import (
    ABLATION,
    AFTER,
    BEFORE,
    L2L_TREVOR,
    METRICS,
    REALTALK,
    TITLE,
    USER_STUDY,
    PaperTable,
)

Rows = Mapping[str, Mapping[str, Any]]  # of the table: method -> metric -> value or interval
IMITATING, ALIGNED = "SFT", "SFT + DPO"
FULL = "Full (Ours)"
PERCENT = "\N{NO-BREAK SPACE}%"

NAMES = {"l2": "L2", "fd": "FD", "p_fd": "P-FD", "l2_affect": "L2 Affect"}
INCOMPARABLE = (
    "The paper's numbers are on other data and in other units: this run's are raw coefficients "
    "of its own "
    "corpus and head, and its affect does not come from EMOCA, as the paper's does. At most the "
    "order of "
    "the rows and the direction of a change can be compared."
)
SIMULATED = (
    "Simulated raters are a program. They show that the pipeline follows a preference. They say "
    "nothing about "
    "people."
)
# Title of a chart -> keys of steps.jsonl.
CURVES: dict[str, dict[str, tuple[str, ...]]] = {
    "sft": {
        "loss": ("loss",),
        "cross-entropy, nats": ("ce_expression", "ce_pose"),
        "regularisers": ("temporal", "identity"),
        "gradient norm": ("gradient_norm",),
    },
    "dpo": {
        "loss": ("loss",),
        "share of pairs ordered as rated": ("accuracy",),
        "reward against the reference": ("chosen_reward", "rejected_reward"),
        "divergence, nats per token": ("kl_per_token",),
        "gradient norm": ("gradient_norm",),
    },
    "vae": {
        "loss": ("loss",),
        "errors": ("reconstruction", "velocity"),
        "divergence from N(0, I), nats per number": ("kl",),
    },
    "flow": {"loss": ("loss",), "gradient norm": ("gradient_norm",)},
    "gdpo": {
        "reward, mean of the groups": ("reward",),
        "reward, face": ("reward/expr", "reward/eyelid", "reward/eyepose"),
        "reward, head and jaw": ("reward/rot", "reward/neck", "reward/jaw"),
        "divergence from the supervised policy": ("kl",),
        "share of clipped ratios": ("clip_fraction",),
        "gradient norm": ("gradient_norm",),
    },
}
ROUND_CURVES = {
    "simulated_rating": "SIMULATED rating, 1 to 5",
    "truth_affect_error": "truth affect error",
    "l2": "L2",
    "fd": "FD",
}


def in_short(facts: Facts) -> Html | None:
    """What alignment changed, where there was any."""
    change = facts.summary["metrics"].get("change")
    if change is None:
        return None
    before, after = (facts.summary["metrics"][moment] for moment in ("before", "after"))
    said = [
        _sentence(
            "SIMULATED rating (1 to 5, higher is better)",
            change["simulated_rating_change"],
            _mean(before["simulated_rating"]),
            _mean(after["simulated_rating"]),
        )
    ]
    absent = None
    if "truth_affect_error_change" in change:
        said.append(
            _sentence(
                "Truth affect error (lower is better; nothing trains on it)",
                change["truth_affect_error_change"],
                before["truth_affect_error"],
                after["truth_affect_error"],
            )
        )
    else:
        absent = missing(
            "the truth affect error. This corpus has no affect labels or no hidden truth."
        )
    said.append(
        f"Distance to the recorded listener: L2 {change['l2_change_percent']:+.1f}{PERCENT}, "
        f"FD {change['fd_change_percent']:+.1f}{PERCENT}."
    )
    return join(
        paragraph("From SFT to SFT + DPO, on held-out prompts:"),
        element("ul", *(element("li", text) for text in said)),
        absent,
        paragraph(SIMULATED),
    )


def what_ran(facts: Facts) -> Html:
    s = facts.summary
    engines = [[part.replace("_", " "), _engine(engine)] for part, engine in s["engines"].items()]
    seconds = [[phase, f"{value:.1f}"] for phase, value in s["timings_s"].items()]
    seconds.append(["all of these", f"{sum(s['timings_s'].values()):.1f}"])
    counts = [[what.replace("_", " "), f"{count:,}"] for what, count in s["counts"].items()]
    changed = [[key, str(value)] for key, value in facts.changed.items()]
    return join(
        element(
            "div",
            table("Engines", ("part", "what ran"), engines, words=True),
            table("Time", ("phase", "seconds"), seconds),
            class_="grid",
        ),
        table("Keys that differ from their defaults", ("key", "value"), changed, words=True)
        if changed
        else paragraph("Every key has its default value."),
        folded("Counts", table("Counts", ("what", "how many"), counts)),
        folded("Versions", table("Versions", ("package", "version"), list(s["versions"].items()))),
        folded(
            "Configuration",
            element(
                "pre", facts.config, tabindex=0, role="region", aria_label="configuration as YAML"
            ),
        ),
    )


def tables(facts: Facts) -> Html | None:
    """This run's table, and the paper's beside it; none of a policy that was not judged so."""
    rows: Rows | None = facts.summary["metrics"].get("evaluation")
    if rows is None:
        return None
    columns = (*METRICS, "truth_affect_error")
    cells = [
        [name, *(_number(row[c]) for c in columns), _interval(row["simulated_rating"])]
        for name, row in rows.items()
    ]
    rated = [
        (name, r["mean"], r["low"], r["high"])
        for name, row in rows.items()
        if (r := row["simulated_rating"])
    ]
    lacking = ", ".join(_name(c) for c in columns if all(row[c] is None for row in rows.values()))
    return join(
        table(
            "This run: held-out clips",
            ("method", *map(_name, columns), "SIMULATED rating, 1 to 5"),
            cells,
            ALIGNED,
        ),
        missing(f"{lacking}: could not be computed on this corpus. Missing is not zero.")
        if lacking
        else None,
        interval_chart(
            "SIMULATED rating by method, with 95 % bootstrap intervals over prompts", rated
        )
        if rated
        else missing(
            "intervals of the simulated rating: fewer than two held-out prompts were rated."
        ),
        element("h3", "The paper's benchmarks"),
        element(
            "p",
            element("strong", "Not comparable in size. "),
            INCOMPARABLE,
            " Source: ",
            element("cite", TITLE),
            ", Tables I to IV.",
            class_="note",
        ),
        element("div", _paper_table(L2L_TREVOR), _paper_table(REALTALK), class_="grid tables"),
        _directions(rows),
        element("h3", "The four criteria"),
        element("div", _criteria(rows), _paper_table(USER_STUDY, 1), class_="grid tables"),
        element("h3", "Ablation"),
        element("div", _ablation(rows), _paper_table(ABLATION, marked=FULL), class_="grid tables"),
    )


def curves(facts: Facts) -> Html:
    """Learning curves by phase."""
    parts: list[Html] = []
    for label, steps in facts.steps.items():
        charts = (
            line_chart(
                title,
                "step",
                [Line(key.replace("_", " "), _points(steps, "step", key)) for key in keys],
            )
            for title, keys in CURVES[label.partition("-")[0]].items()
        )
        parts += [element("h3", label), element("div", *charts, class_="grid charts")]
    if not facts.steps.keys() & {"sft", "flow"}:
        parts.append(
            missing("the curve of imitation. This run began with a policy that was trained before.")
        )
    return join(*parts)


def rounds(facts: Facts) -> Html | None:
    """What the policy came to after every round."""
    reached = facts.summary["metrics"].get("rounds")
    if reached is None:
        return None
    charts = (
        line_chart(title, "round", [Line(title, _points(reached, "round", key))])
        for key, title in ROUND_CURVES.items()
    )
    rows = [[str(row["round"]), *(_number(row[key]) for key in ROUND_CURVES)] for row in reached]
    return join(
        paragraph("On held-out prompts; round 0 is SFT. The ratings are SIMULATED."),
        element("div", *charts, class_="grid charts"),
        table("After every round", ("round", *ROUND_CURVES.values()), rows),
    )


def agreement(facts: Facts) -> Html | None:
    """How far the raters agreed whose ratings became pairs; a recipe that makes no pairs has none."""
    if "raters" not in facts.summary["engines"]:
        return None
    source = facts.summary["engines"]["raters"]
    raters = "SIMULATED raters" if "SIMULATED" in source else "people"
    parts: list[Html] = []
    for label, found in facts.surveys.items():
        rows = [
            [name, _number(alpha, 2), _number(found["reliability"][name], 2)]
            for name, alpha in found["alpha"].items()
        ]
        columns = ("criterion", "Krippendorff's alpha (ordinal)", "reliability of the raters' mean")
        parts += [
            paragraph(
                f"{len(found['raters'])} {raters}, {found['raters_per_candidate']:.1f} for each of "
                f"{found['rated']} rated candidates, of {found['candidates']} that there are."
            ),
            table(f"How far the {raters} agree ({label})", columns, rows),
            element("ul", *(element("li", text) for text in found["warnings"])),
        ]
    return join(
        paragraph(
            f"The pairs come from ratings by {source}. Alpha 1 = they agree perfectly, 0 = as by "
            "chance."
        ),
        paragraph(SIMULATED) if raters != "people" else None,
        *(parts or [missing("agreement. This run holds no ratings.")]),
    )


def _directions(rows: Rows) -> Html | None:
    """Change from SFT to the aligned policy, here and there."""
    if not {IMITATING, ALIGNED} <= rows.keys():
        return None
    ours = [_percent(rows[IMITATING][name], rows[ALIGNED][name]) for name in METRICS]
    theirs = [
        [_percent(b, a) for b, a in zip(t.rows[BEFORE], t.rows[AFTER], strict=True)]
        for t in (L2L_TREVOR, REALTALK)
    ]
    return table(
        "From SFT to the aligned policy: compare directions, not sizes",
        ("metric", "this run", "paper, L2L-trevor", "paper, RealTalk"),
        [[_name(name), *cells] for name, *cells in zip(METRICS, ours, *theirs, strict=True)],
    )


def _criteria(rows: Rows) -> Html:
    cells = [
        [name, *(_number(row[f"simulated_{c}"], 2) for c in USER_STUDY.columns)]
        for name, row in rows.items()
    ]
    return table(
        "This run: SIMULATED raters, 1 to 5", ("method", *USER_STUDY.columns), cells, ALIGNED
    )


def _ablation(rows: Rows) -> Html:
    """The two of Table IV's four rows that every run has."""
    cells = [
        [kind, *(_number(rows[name][c]) if name in rows else None for c in ABLATION.columns)]
        for kind, name in (
            (FULL, ALIGNED),
            ("Random-Prefer", ""),
            ("SFT-Preferred", ""),
            ("SFT-Only", IMITATING),
        )
    ]
    return table(
        "This run, as in Table IV (a dash: not run)",
        ("method", *map(_name, ABLATION.columns)),
        cells,
        FULL,
    )


def _paper_table(paper: PaperTable, digits: int = 4, marked: str = AFTER) -> Html:
    cells = [
        [name, *(_number(value, digits) for value in values)] for name, values in paper.rows.items()
    ]
    return table(paper.caption, ("method", *map(_name, paper.columns)), cells, marked)


def _points(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> list[Point]:
    return [(row[x], row[y]) for row in rows if row.get(y) is not None and math.isfinite(row[y])]


def _sentence(
    what: str, change: Mapping[str, float], before: float | None, after: float | None
) -> str:
    chance = (
        " The interval holds 0, so it may be chance."
        if change["low"] <= 0 <= change["high"]
        else ""
    )
    return (
        f"{what}: {_number(before, 3)} to {_number(after, 3)}, by {change['mean']:+.3f} "
        f"[{change['low']:+.3f}, {change['high']:+.3f}] (95{PERCENT}, {change['n']} "
        f"prompts).{chance}"
    )


def _engine(engine: Mapping[str, Any] | str) -> str:
    return (
        engine
        if isinstance(engine, str)
        else ", ".join(
            str(v)
            if k == "name"
            else f"{k.replace('_', ' ')} {v:.3g}"
            if isinstance(v, float)
            else f"{k.replace('_', ' ')} {v}"
            for k, v in engine.items()
        )
    )


def _mean(interval: Mapping[str, float] | None) -> float | None:
    return None if interval is None else interval["mean"]


def _interval(interval: Mapping[str, float] | None) -> str | None:
    return (
        None
        if interval is None
        else f"{interval['mean']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"
    )


def _number(value: float | None, digits: int = 4) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _percent(before: float | None, after: float | None) -> str | None:
    return f"{100 * (after / before - 1):+.1f}{PERCENT}" if before and after is not None else None


def _name(column: str) -> str:
    return NAMES.get(column, column.replace("_", " "))
