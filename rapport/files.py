"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRATCH = ".*.tmp"  # what a writer that died leaves is called


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A name to write to; what stands there at the end of the block replaces `path` at once.

        with atomic(folder / "policy") as partial:     # a file or a folder
            partial.mkdir()
            save_file(weights, partial / "model.safetensors")

    Readers see the old one or the new one, never half of it, also when several processes write the
    same name. An error in the block leaves `path` as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own, so that two writers of one name never meet.
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    partial = scratch / path.name
    try:
        yield partial
        if partial.is_dir() and path.exists():
            path.rename(scratch / "replaced")  # a folder cannot be renamed onto a full one
        os.replace(partial, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_atomic(path: Path, text: str) -> None:
    """Write a text file by `atomic`."""
    with atomic(path) as partial:
        partial.write_text(text)
