"""Videos: held-out clips, where the policy got worse, chosen against rejected."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass

from rapport.pipeline.report.facts import Facts
from rapport.pipeline.report.tables import Table, number
from rapport.pipeline.report.videos import HELD_OUT, PAIR, WORSE, Shown, fallen

LISTED = 10  # prompts in the table of those that fell most


@dataclass(frozen=True)
class Measure:
    """What is known of single prompts.

    Args:
        key: in `Facts.prompts`.
        heading: of its columns.
        form: how its values are written.
    """

    key: str
    name: str
    heading: str
    form: str


RATING = Measure("scores", "SIMULATED rating", "rating", ".2f")
TRUTH = Measure("truth_errors", "truth affect error", "truth affect error", ".3f")


@dataclass(frozen=True)
class PageVideo:
    """A video of the page, with what can be seen and heard, and its numbers, as text.

    Args:
        panels: captions from left to right.
        words: what the speaker says; empty where that is nothing or unknown.
        speaker: the same as a sentence says it.
        data: base64.
    """

    clip_id: str
    panels: list[str]
    words: str
    speaker: str
    numbers: str
    data: str


def held_out_clips(facts: Facts) -> dict[str, object]:
    """Every method's answer to some held-out clips."""
    return {"videos": _videos(facts, HELD_OUT)}


def pairs(facts: Facts) -> dict[str, object] | None:
    """Pairs that were learnt from, clearest preference first; None where there are no pairs."""
    if "pairs" not in facts.summary.counts:
        return None
    counts = facts.summary.counts
    return {
        "raters": facts.summary.engines.get("raters"),
        "rated": counts.get("rated_pairs", counts["pairs"]),
        "contrast": counts.get("contrast_pairs", 0),
        "learnt": counts.get("learnt_pairs", 0),
        "all": counts["pairs"],
        "videos": _videos(facts, PAIR),
    }


def got_worse(facts: Facts) -> dict[str, object] | None:
    """The held-out prompts whose simulated rating fell most; None where nothing was compared."""
    compared = facts.summary.compared
    if compared is None or not facts.summary.change:
        return None
    before, after = (facts.prompts.get(method, {}).get("scores", {}) for method in compared)
    shared = before.keys() & after.keys()
    fell = fallen(before, after)
    rose = sum(after[prompt] > before[prompt] for prompt in shared)
    rows = [
        [prompt, *_before_after(facts, RATING, prompt), *_before_after(facts, TRUTH, prompt)]
        for prompt in fell[:LISTED]
    ]
    columns = ["prompt"]
    for measure in (RATING, TRUTH):
        columns += [*(f"{measure.heading}, {method}" for method in compared), "change"]
    return {
        "compared": compared,
        "shared": len(shared),
        "fell": len(fell),
        "rose": rose,
        "stayed": len(shared) - len(fell) - rose,
        "table": Table("The largest falls of the SIMULATED rating", columns, rows),
        "videos": _videos(facts, WORSE),
    }


def _before_after(facts: Facts, measure: Measure, prompt: str) -> list[str | None]:
    """A prompt's value before and after alignment, and the change."""
    before, after = (
        facts.prompts.get(method, {}).get(measure.key, {}).get(prompt)
        for method in facts.summary.compared or ("", "")
    )
    change = None if before is None or after is None else after - before
    return [
        number(before, measure.form),
        number(after, measure.form),
        number(change, f"+{measure.form}"),
    ]


def _videos(facts: Facts, kind: str) -> list[PageVideo]:
    return [_video(facts, shown, data) for shown, data in facts.videos if shown.kind == kind]


def _video(facts: Facts, shown: Shown, data: bytes) -> PageVideo:
    if shown.words:
        speaker = f"“{shown.words}”"
    else:
        speaker = "no transcript" if shown.words is None else "says nothing"
    return PageVideo(
        clip_id=shown.clip_id,
        panels=shown.panels,
        words=shown.words or "",
        speaker=speaker,
        numbers=_numbers(facts, shown),
        data=b64encode(data).decode(),
    )


def _numbers(facts: Facts, shown: Shown) -> str:
    """Of a pair its scores, of another video what alignment changed."""
    if shown.scores:
        return "; ".join(f"{panel} {score:.3f}" for panel, score in shown.scores.items())
    parts = []
    for measure in (RATING, TRUTH):
        before, after, change = _before_after(facts, measure, shown.clip_id)
        if change is not None:
            parts.append(f"{measure.name} {before} to {after} ({change})")
    return "; ".join(parts)
