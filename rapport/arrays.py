"""numpy's files: written whole, and read without ever running what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rapport.files import atomic

_NPY = b"\x93NUMPY"
_ZIP = b"PK\x03\x04"
_EMPTY_ZIP = b"PK\x05\x06"


class ArrayFileError(ValueError):
    """A file holds no arrays that can be read; the message is one line and names it."""


def load_arrays(path: str | Path) -> np.ndarray | dict[str, np.ndarray]:
    """What an `.npy` or `.npz` file holds. The bytes decide which it is, not the name.

    Returns:
        The array, or name -> array.

    Raises:
        ArrayFileError: there is no such file, it may not be read, is empty, cut short, of another
            kind, or holds Python objects, whose loading could run code.
    """
    path = Path(path)
    if path.is_dir():
        raise ArrayFileError(f"{path} is a folder, a file of arrays (.npy, .npz) is needed")
    try:
        with path.open("rb") as file:
            head = file.read(len(_NPY))
    except FileNotFoundError:
        raise ArrayFileError(f"no file {path}") from None
    except OSError as error:
        raise ArrayFileError(f"{path} cannot be opened: {error.strerror}") from None
    if not head:
        raise ArrayFileError(f"{path} is empty (0 bytes): copy it again")
    if head != _NPY and head[:4] not in (_ZIP, _EMPTY_ZIP):
        raise ArrayFileError(
            f"{path} is no array file: it starts with {head!r}, not as .npy or .npz do"
        )
    try:
        return _load(path)
    except ArrayFileError:
        raise
    except MemoryError:
        raise ArrayFileError(
            f"{path} announces more than fits into memory: it is damaged, or must be cut up"
        ) from None
    except Exception as error:  # damaged files raise nearly anything
        # Not chained: numpy's own text recommends to switch the protection off.
        if "pickle" in str(error):
            raise ArrayFileError(
                f"{path} holds Python objects, and loading those could run code: save arrays of "
                "numbers, all rows of one length, with np.save or np.savez"
            ) from None
        raise ArrayFileError(
            f"{path} is damaged or cut short ({type(error).__name__}): copy it again"
        ) from None


def load_array(path: str | Path) -> np.ndarray:
    """The one array of a file.

    Raises:
        ArrayFileError: as of `load_arrays`, or the file holds several.
    """
    arrays = load_arrays(path)
    if isinstance(arrays, dict):
        raise ArrayFileError(f"{path} holds {described(arrays)}: one array (.npy) is needed")
    return arrays


def load_named(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file by their names.

    Raises:
        ArrayFileError: as of `load_arrays`, or the file holds one without a name.
    """
    arrays = load_arrays(path)
    if not isinstance(arrays, dict):
        raise ArrayFileError(f"{path} holds one array of {arrays.shape}, named ones are needed")
    return arrays


def save_named(path: str | Path, arrays: Mapping[str, Any]) -> None:
    """Write an `.npz` that `load_named` reads, whole or not at all, by whatever name it has."""
    with atomic(Path(path)) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def described(arrays: dict[str, np.ndarray], most: int = 12) -> str:
    """Names and shapes, for messages: `exp (120, 50), pose (120, 6)`."""
    texts = [f"{name} {array.shape}" for name, array in arrays.items()]
    more = f", ... {len(texts) - most} more" if len(texts) > most else ""
    return (", ".join(texts[:most]) + more) or "nothing"


def _load(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    content = np.load(path, allow_pickle=False)
    if isinstance(content, np.ndarray):
        return content
    with content:
        names = [name for name in content.files if not _hidden(name)]
        if len(set(names)) < len(names):
            raise ArrayFileError(f"{path} has two arrays of one name: save it again")
        arrays = {name: content[name] for name in names}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy gives other members as bytes
            raise ArrayFileError(f"{path} is no .npz: its member {name!r} is no array")
    if not arrays:
        raise ArrayFileError(f"{path} holds no array")
    return arrays


def _hidden(member: str) -> bool:
    """What a Mac adds to an archive."""
    return member.startswith("__MACOSX/") or member.rpartition("/")[2].startswith(".")
