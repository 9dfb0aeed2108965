"""The documentation builds without a warning and names what is there."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "infra" / "README.md"]
CODE = re.compile(r"`((?:actors|configs|infra|pipeline|policies|rewards|tests)/[\w./]+)`")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "WARNING" not in ended.stderr, ended.stderr
    return folder


def test_the_site_builds_without_a_warning(site):
    assert (site / "index.html").is_file()


def test_the_api_pages_come_from_docstrings(site):
    page = (site / "api" / "policies.html").read_text()
    assert "What an algorithm may ask of a policy" in page
    assert 'id="rapport.policies.policy.load_policy"' in page


def test_the_examples_stand_in_their_page(site):
    text = re.sub(r"<[^>]+>", "", (site / "examples.html").read_text())
    examples = sorted((ROOT / "docs" / "examples").glob("*.py"))
    missing = [file.name for file in examples if f"python docs/examples/{file.name}" not in text]
    assert examples and missing == []


def test_pages_load_nothing_from_elsewhere(site):
    loaded = re.compile(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?:|//)")
    pages = sorted(site.rglob("*.html"))
    assert [page for page in pages if loaded.search(page.read_text())] == []


def test_every_page_stands_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    names = [str(page.relative_to(ROOT / "docs")) for page in PAGES]
    assert [name for name in names if f": {name}\n" not in navigation] == []


# NAME stands for a name of the reader's.
@pytest.mark.parametrize("text", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_text_names_are_there(text):
    names = {name for name in CODE.findall(text.read_text()) if "NAME" not in name}
    assert sorted(name for name in names if not (ROOT / name).exists()) == []


def columns_after(start: str) -> list[str]:
    """Names in the first column of the table that follows a piece of docs/formats.md."""
    text = (ROOT / "docs" / "formats.md").read_text()
    assert text.count(start) == 1, start
    rows = text.partition(start)[2].partition("| --- ")[2].splitlines()[1:]
    cells = [
        row.split("|")[1] for row in itertools.takewhile(lambda row: row.startswith("|"), rows)
    ]
    return [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]


def test_the_columns_of_tables_are_those_of_the_code():
    from rapport.pipeline.data import candidates
    from rapport.pipeline.data.columns import clip_schema
    from rapport.pipeline.objectives.dpo import pair_schema
    from rapport.policies.motion import Layout
    from rapport.policies.vla.policy import VlaPolicy
    from rapport.rewards.ratings import comparisons, ratings

    pairs = [name for name in pair_schema(VlaPolicy).names if name not in VlaPolicy.prompt_columns]
    clips = clip_schema(Layout((("rot", 3),), 25, "builtin")).names
    assert sorted(columns_after("## Clips")) == sorted(clips)
    assert columns_after("`rollout/candidates.parquet`:") == list(candidates.COLUMNS)
    assert columns_after("`rate/ratings.parquet` (or") == list(ratings.COLUMNS)
    assert columns_after("The same with `rate.form=pairs`") == list(comparisons.COLUMNS)
    assert columns_after("`pair/pairs.arrow`:") == pairs
