"""People's sheets, which a resumed run must not have read otherwise than they are."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from rapport.files import file_digest
from rapport.pipeline.rundir import RunError
from rapport.rewards.ratings.sheets import SUFFIXES, files_of


def digest_of(sheets: Path) -> str:
    """The same for the same sheets, wherever they are; what lies beside them is not read."""
    files = [sheets] if sheets.is_file() else files_of(sheets)
    read = (file for file in files if file == sheets or file.suffix.lower() in SUFFIXES)
    names = {str(file.relative_to(sheets)): file_digest(file) for file in read}
    return sha256(json.dumps(names).encode()).hexdigest()


def require_read(sheets: Path | None, digest: str) -> None:
    """Raise `RunError` where sheets have changed since a run read them; what is gone was read.

    Args:
        sheets: as they are now.
        digest: of those that were read.
    """
    if sheets is not None and sheets.exists() and digest_of(sheets) != digest:
        raise RunError(
            f"ratings={sheets} has changed since this run read it, and --resume would go on with "
            "what was read: start a new --run-dir, or put the files back as they were"
        )
