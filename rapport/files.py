"""Files and folders that appear whole or not at all, what of a folder is looked at, and JSON."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any

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


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def visible(folder: Path, pattern: str = "*") -> list[Path]:
    """Files and folders of `pattern` in a folder, sorted, without hidden ones.

    Copies from a Mac have a `._name` beside each file, which is no file of that kind.

    Args:
        folder: where to look.
        pattern: as of `Path.glob`; no part of a match below `folder` may be hidden.

    Raises:
        OSError: the folder may not be read.
    """
    if folder.is_dir():
        os.scandir(folder).close()  # raises where it may not be read, of which glob says nothing
    return sorted(
        path
        for path in folder.glob(pattern)
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def strict_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: a number that is none (NaN, infinity) becomes null.

    What JSON does not know, say a path, becomes its text.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, Integral):
        return value if isinstance(value, bool) else int(value)
    if isinstance(value, Real):  # numpy's, too
        return float(value) if math.isfinite(value) else None
    return value
