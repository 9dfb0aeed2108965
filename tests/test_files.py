"""What of a folder is looked at, and JSON that every reader takes."""

import json
from pathlib import Path

import numpy as np

from rapport.files import strict_json, visible


def test_hidden_files_and_folders_are_not_seen(tmp_path):
    seen = ("b.npy", "a.npy", "sub/c.npy")
    hidden = ("._a.npy", ".DS_Store", ".cache/d.npy", "sub/.e.npy")
    for name in (*seen, *hidden):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in visible(tmp_path)] == ["a.npy", "b.npy", "sub"]
    assert [path.name for path in visible(tmp_path, "*.npy")] == ["a.npy", "b.npy"]
    assert [path.name for path in visible(tmp_path, "*/*.npy")] == ["c.npy"]
    # Only what lies below the folder counts: it may itself be in a hidden one.
    assert visible(tmp_path / ".cache") == [tmp_path / ".cache" / "d.npy"]
    assert visible(tmp_path / "nowhere", "*.npy") == []


def test_numbers_that_are_none_become_null():
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    values = {
        "nan": float("nan"),
        "nested": [{"inf": float("inf")}, (np.float32("-inf"), np.float32(0.5), np.int64(3))],
        "kept": [1, 0.25, True, None, "text"],
        "path": Path("a/b"),
        1: "one",
    }
    assert json.loads(strict_json(values), parse_constant=refuse) == {
        "nan": None,
        "nested": [{"inf": None}, [None, 0.5, 3]],
        "kept": [1, 0.25, True, None, "text"],
        "path": "a/b",
        "1": "one",
    }
    assert json.loads(strict_json(values))["kept"][2] is True
