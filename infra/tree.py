"""Put the packages together in `.types/rapport`, as they are inside the wheel.

In a checkout `rapport/__init__.py` extends its path at run time. What reads code without running it
does not see that: mypy and the documentation read this folder of links.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def build() -> None:
    """Make the links anew."""
    tree = ROOT / ".types" / "rapport"
    shutil.rmtree(tree.parent, ignore_errors=True)
    tree.mkdir(parents=True)
    folders = [ROOT / name for name in ("pipeline", "actors", "policies", "rewards")]
    for path in (*folders, *(ROOT / "rapport").glob("*.py")):
        (tree / path.name).symlink_to(path)


def on_startup(**_: Any) -> None:
    """What MkDocs calls before it reads anything."""
    build()


if __name__ == "__main__":
    build()
