"""Imports point one way: policies < rewards < actors < pipeline; the two lower ones know nothing of
Ray.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ("policies", "rewards", "actors", "pipeline")


def imported_packages(source: str) -> set[str]:
    """Top-level names of all imports of a module, also of those inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            names.add(node.module)
    return {name.removeprefix("rapport.").partition(".")[0] for name in names}


@pytest.mark.parametrize("package", ORDER)
def test_packages_import_only_what_stands_below_them(package):
    forbidden = set(ORDER[ORDER.index(package) + 1 :]) | (
        {"ray"} if package in ("policies", "rewards") else set()
    )
    modules = list((ROOT / package).rglob("*.py"))
    assert modules
    wrong = {
        str(m.relative_to(ROOT)): bad
        for m in modules
        if (bad := imported_packages(m.read_text()) & forbidden)
    }
    assert not wrong


def test_the_walk_sees_imports_inside_functions():
    assert imported_packages(
        "def f():\n    from rapport.pipeline.config import X\n    import ray.train as r"
    ) == {"pipeline", "ray"}
