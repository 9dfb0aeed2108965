"""The dataset card of a corpus: what is in it, for people and for `datasets.load_dataset(FOLDER)`.

It names the files of clips, so that nobody takes labels or hidden truth for clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CARD = "README.md"


def card(manifest: Mapping[str, Any]) -> str:
    """The text of the card.

    Args:
        manifest: of `corpus.json`.
    """
    clips = manifest["clips"]
    files = "\n".join(f"  - split: {split}\n    path: {split}-*.parquet" for split in clips)
    counts = "\n".join(f"| {split} | {count} |" for split, count in clips.items())
    present = ", ".join(f"{name} {count}" for name, count in manifest["present"].items())
    layout = manifest["layout"]
    groups = ", ".join(f"{name} {width}" for name, width in layout["groups"])
    return f"""---
configs:
- config_name: default
  data_files:
{files}
---
# Listeners, and whom they listen to

| split | clips |
| --- | --- |
{counts}

Motion is {groups} at {layout["fps"]:g} fps on the {layout["topology"]} head. Of the clips so many
have: {present}. Columns: docs/formats.md of Rapport; how the corpus was made: `corpus.json`.

{_origin(manifest["source"])}
"""


def _origin(source: Mapping[str, Any]) -> str:
    kind = source.get("kind")
    if kind == "synthetic":
        return "Made, not recorded: nobody is in it, and it says nothing about people."
    said = ""
    if kind == "video":
        tracker = source["tracker"].get("tracker", "a tracker whose tracks were brought")
        counts = source["counts"]
        said = (
            f"{counts['recordings']} recordings, {counts['hours']:.2f} hours, of "
            f"{counts['people']} filmed people. Motion was read off the pictures, not measured, "
            f"by {tracker}.\nSmall movements of lips and brows may be the tracker's own noise; "
            "`tracking.csv` of the run has both.\n"
        )
    elif kind:
        said = (
            f"Read from files of `corpus.kind={kind}`: the terms of whoever made these hold for it "
            "too.\n"
        )
    return said + "Faces and voices are people's: whoever passes this on needs their consent."
