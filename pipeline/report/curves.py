"""Curves: of learning, step by step, and of what the policy came to meanwhile."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rapport.pipeline.report.charts import Chart, Line, line_chart
from rapport.pipeline.report.facts import Facts, phase_of
from rapport.pipeline.report.svg import Point
from rapport.pipeline.report.tables import Table, number

# Title of a chart -> keys of steps.jsonl. Those that a phase did not write are left out.
ANY_PHASE = {"loss": ("loss",), "gradient norm": ("gradient_norm",)}
CURVES: dict[str, dict[str, tuple[str, ...]]] = {
    "pretraining": {
        "share of what faces do that is not told": ("pictures", "voice"),
        "gradient norm": ("gradient_norm",),
    },
    "sft": {
        "loss": ("loss",),
        "cross-entropy, nats": ("ce_expression", "ce_pose"),
        "regularisers": ("temporal", "identity"),
        "gradient norm": ("gradient_norm",),
    },
    "dpo": {
        "loss": ("loss",),
        "share of pairs ordered as chosen": ("accuracy",),
        "reward against the reference": ("chosen_reward", "rejected_reward"),
        "divergence from the reference, nats per token": ("kl/reference",),
        "gradient norm": ("gradient_norm",),
    },
    "vae": {
        "loss": ("loss",),
        "errors": ("reconstruction", "velocity"),
        "divergence from N(0, I), nats per number": ("kl/prior",),
    },
    "flow": {
        "error of the velocity": ("velocity",),
        "error of the path that is expected": ("path",),
        "gradient norm": ("gradient_norm",),
    },
    "expect": {
        "error of the path that is expected": ("expect",),
        "error of the speaker's motion as it is read off": ("speaker",),
        "gradient norm": ("gradient_norm",),
    },
    "imitate": {
        "loss": ("loss",),
        "distance to reactions that fit, and minus that of two samples": (
            *("appropriate", "diversity"),
        ),
        "gradient norm": ("gradient_norm",),
    },
    "gdpo": {
        "reward, mean of the groups": ("reward",),
        "reward, face": ("reward/expr", "reward/eyelid", "reward/eyepose"),
        "reward, head and jaw": ("reward/rot", "reward/neck", "reward/jaw"),
        "divergence from the supervised policy": ("kl/reference",),
        "share of clipped ratios": ("clip_fraction",),
        "gradient norm": ("gradient_norm",),
    },
}
NO_IMITATION = {"vae", "dpo", "gdpo"}
# What was optimised, then what nothing trained on.
PROXY = "simulated_rating"
JUDGED = {
    PROXY: "SIMULATED rating, 1 to 5: of the kind that pairs were made by",
    "own_minus_another": "the same, own speaker's minus another's",
    "independent": "independent judge, nats",
    "independent_own_minus_another": "independent judge, own speaker's minus another's, nats",
    "right": "share of points answered right",
    "truth_affect_error": "truth affect error",
    "l2": "L2",
    "fd": "FD",
    "kl": "divergence from the imitating policy, nats",
}


def training_curves(facts: Facts) -> dict[str, object]:
    """Charts of every phase that learnt."""
    charts: dict[str, list[Chart | None]] = {}
    for label, steps in facts.steps.items():
        titles = CURVES.get(phase_of(label), ANY_PHASE)
        charts[label] = [
            line_chart(title, "step", [_line(steps, "step", key) for key in keys])
            for title, keys in titles.items()
        ]
    return {
        "charts": {label: list(filter(None, drawn)) for label, drawn in charts.items()},
        "lacks_imitation": {phase_of(label) for label in facts.steps} <= NO_IMITATION,
    }


def while_learning(facts: Facts) -> dict[str, object] | None:
    """What the policy came to on the way, on validation prompts; None where nobody looked."""
    rows = facts.summary.curve
    if not rows:
        return None
    names = [name for name in JUDGED if any(row.get(name) is not None for row in rows)]
    charts = [
        line_chart(JUDGED[name], "step", [Line(JUDGED[name], _points(rows, "step", name))])
        for name in names
    ]
    cells = [
        [f"{row['step']:g}", f"{row['round']:g}", *(number(row.get(name)) for name in names)]
        for row in rows
    ]
    columns = ("step", "round", *(JUDGED[name] for name in names))
    return {
        "start": facts.summary.compared[0] if facts.summary.compared else "the first policy",
        "charts": list(filter(None, charts)),
        "table": Table("While it learnt", columns, cells),
    }


def _line(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> Line:
    return Line(y.replace("_", " "), _points(rows, x, y))


def _points(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> list[Point]:
    """What can be drawn: a value that is missing or not finite is no point."""
    return [(row[x], row[y]) for row in rows if row.get(y) is not None and math.isfinite(row[y])]
