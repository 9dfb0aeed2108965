"""The report's sections of videos: held-out clips, where the policy got worse, chosen against
rejected.
"""

from __future__ import annotations

from base64 import b64encode

from rapport.pipeline.report.facts import Facts
from rapport.pipeline.report.html import Html, element, join, missing, paragraph, table
from rapport.pipeline.report.videos import HELD_OUT, PAIR, WORSE, Shown, fallen

LISTED = 10  # prompts in the table of those that fell most
HEIGHT = 1.4  # of a video's element, in panels: room for the controls below the faces
NO_VIDEOS = "the videos. This run rendered none (evaluation.clips=0; of AR-Flow, judge.clips=0)."


def held_out(facts: Facts) -> Html:
    return _videos(facts, HELD_OUT) or missing(NO_VIDEOS)


def pairs(facts: Facts) -> Html | None:
    """Pairs that were learnt from, from the clearest preference to the faintest."""
    if "pairs" not in facts.summary["counts"]:
        return None
    return join(
        paragraph(
            "Training pairs of the last round, evenly spaced from the widest margin to the "
            "narrowest. Scores "
            f"are Eq. 10's, 0 to 1, by {facts.summary['engines']['raters']}. The recorded "
            "listener is a "
            "candidate like the others."
        ),
        _videos(facts, PAIR) or missing(NO_VIDEOS),
    )


def worse(facts: Facts) -> Html | None:
    """The held-out prompts whose simulated rating fell most."""
    if "change" not in facts.summary["metrics"]:
        return None
    before, after = (facts.prompts.get(name, {}).get("scores", {}) for name in ("SFT", "SFT + DPO"))
    shared = before.keys() & after.keys()
    if not shared:
        return missing("this part. The run kept no ratings of single prompts.")
    fell = fallen(before, after)
    rose = sum(after[prompt] > before[prompt] for prompt in shared)
    rows = [
        [
            prompt,
            *_before_after(facts, "scores", prompt, 2),
            *_before_after(facts, "truth_errors", prompt, 3),
        ]
        for prompt in fell[:LISTED]
    ]
    counts = paragraph(
        f"From SFT to SFT + DPO the SIMULATED rating fell on {len(fell)} of {len(shared)} "
        "held-out prompts, rose on "
        f"{rose} and stayed the same on {len(shared) - len(fell) - rose}. Some fall by chance: a "
        "prompt's rating is "
        "the mean over a few sampled reactions, of which the videos show the first."
    )
    if not fell:
        return counts
    columns = (
        "prompt",
        "rating, SFT",
        "rating, SFT + DPO",
        "change",
        "truth affect error, SFT",
        "truth affect error, SFT + DPO",
        "change",
    )
    return join(
        counts,
        table("The largest falls of the SIMULATED rating", columns, rows),
        _videos(facts, WORSE) or missing(NO_VIDEOS),
    )


def _before_after(facts: Facts, kind: str, prompt: str, digits: int) -> tuple[str | None, ...]:
    before, after = (
        facts.prompts.get(name, {}).get(kind, {}).get(prompt) for name in ("SFT", "SFT + DPO")
    )
    change = None if before is None or after is None else f"{after - before:+.{digits}f}"
    return tuple(None if v is None else f"{v:.{digits}f}" for v in (before, after)) + (change,)


def _videos(facts: Facts, kind: str) -> Html | None:
    figures = [_figure(facts, shown, data) for shown, data in facts.videos if shown.kind == kind]
    return element("div", *figures, class_="videos") if figures else None


def _figure(facts: Facts, shown: Shown, data: bytes) -> Html:
    """The video with what can be seen, what is said, and its numbers, all as text too."""
    says = (
        "no transcript"
        if shown.words is None
        else f"“{shown.words}”"
        if shown.words
        else "says nothing"
    )
    panels = ", ".join(shown.panels)
    video = element(
        "video",
        controls=True,
        playsinline=True,
        preload="metadata",
        style=f"aspect-ratio: {len(shown.panels)} / {HEIGHT}",
        aria_label=f"{shown.clip_id}, side by side: {panels}. Speaker: {says}",
        src=f"data:video/mp4;base64,{b64encode(data).decode()}",
    )
    caption = element(
        "figcaption",
        element("b", shown.clip_id),
        f" ({panels}). ",
        element("q", shown.words) if shown.words else f"Speaker: {says}.",
        element("br"),
        _said(facts, shown),
    )
    return element("figure", video, caption)


def _said(facts: Facts, shown: Shown) -> str:
    if shown.scores:
        return "; ".join(f"{panel} {score:.3f}" for panel, score in shown.scores.items())
    numbers = (("SIMULATED rating", "scores", 2), ("truth affect error", "truth_errors", 3))
    parts = []
    for name, kind, digits in numbers:
        before, after, change = _before_after(facts, kind, shown.clip_id, digits)
        if change is not None:
            parts.append(f"{name} {before} to {after} ({change})")
    return "; ".join(parts)
