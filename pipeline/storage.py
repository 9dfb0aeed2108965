"""A copy of a run elsewhere: in any storage that fsspec knows (S3, GCS, NFS, a folder)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


class StorageError(RuntimeError):
    """The storage cannot be reached as asked."""


class Mirror:
    """The copy of a run directory below `uri`, under the directory's name.

    A phase is copied file by file and its marker (`phases/NAME.json`) last, so that a copy that was
    cut off is not taken for a finished phase.

    Args:
        uri: of the storage.
        directory: the run directory.

    Raises:
        StorageError: there is no such storage, or no way to it.
    """

    def __init__(self, uri: str, directory: Path):
        import fsspec  # most runs have no storage: not at the start of every command

        try:
            self._files, root = fsspec.core.url_to_fs(uri)
            self._files.makedirs(root, exist_ok=True)
        except (ImportError, ValueError, OSError) as error:
            raise StorageError(f"storage.uri={uri}: {error}") from error
        self.uri = f"{uri.rstrip('/')}/{directory.name}"
        self._directory = directory
        self._root = f"{root.rstrip('/')}/{directory.name}"

    def push(self, path: Path) -> None:
        """Copy a file of the run directory, or all files of a folder in it but hidden ones."""
        candidates = [path] if path.is_file() else sorted(path.rglob("*"))
        for file in candidates:
            name = file.relative_to(self._directory)
            if not file.is_file() or any(part.startswith(".") for part in name.parts):
                continue
            target = f"{self._root}/{name.as_posix()}"
            self._files.makedirs(os.path.dirname(target), exist_ok=True)
            self._files.put_file(str(file), target)

    def replace(self, file: Path, path: Path) -> None:
        """Copy `file` in the place of `path` of the run directory.

        What was copied there before stays until the new copy is whole.
        """
        target = f"{self._root}/{path.relative_to(self._directory).as_posix()}"
        self._files.makedirs(os.path.dirname(target), exist_ok=True)
        self._files.put_file(str(file), f"{target}.part")
        self._files.mv(f"{target}.part", target)

    def fetch(self) -> bool:
        """Fill the missing run directory from the copy; False when there is no copy."""
        if not self._files.exists(f"{self._root}/config.yaml"):
            return False
        partial = self._directory.with_name(f".{self._directory.name}.fetched")
        shutil.rmtree(partial, ignore_errors=True)
        for name in self._files.find(self._root):
            target = partial / os.path.relpath(name, self._root)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._files.get_file(name, str(target))
        partial.rename(self._directory)
        return True
