"""The built wheel in another project, one that has its own `rewards`, `policies` and `pipeline`."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("pipeline", "actors", "policies", "rewards")
DOOR = ("Corpus", "Motion", "evaluate", "load_head", "load_policy")
# What `pip install rapport-rlhf` without extras leaves out, as far as our code imports it.
HEAVY = ("torch", "ray", "vllm", "transformers", "pydantic", "pyarrow", "mlflow", "datasets", "av")


def packages_on_disk() -> set[str]:
    """Names inside the wheel of all packages of the checkout; benches stay in the checkout."""
    folders = {init.parent.relative_to(ROOT) for top in FOLDERS for init in inits(top)}
    names = {"rapport." + ".".join(folder.parts) for folder in folders}
    return {"rapport"} | {name for name in names if "rapport.pipeline.bench" not in name}


def inits(top: str) -> list[Path]:
    return sorted((ROOT / top).rglob("__init__.py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that neither old builds come in nor this build stays."""
    source = tmp_path_factory.mktemp("source")
    bytecode = shutil.ignore_patterns("__pycache__")
    for folder in ("rapport", *FOLDERS):
        shutil.copytree(ROOT / folder, source / folder, ignore=bytecode)
    for file in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / file, source)
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def project(wheel, tmp_path_factory):
    """A folder with packages of our folders' names, and a fresh environment with the wheel.

    The dependencies are those of the running environment. Its own `.pth` files are not read, so
    that the editable install of the checkout is not among them.
    """
    folder = tmp_path_factory.mktemp("project")
    for name in FOLDERS:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("OWNER = 'the project'\n")
    venv.create(folder / "env")
    python = folder / "env" / "bin" / "python"
    pip("--python", python, "install", "--no-deps", wheel)
    [packages] = (folder / "env").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def pip(*arguments) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True)


def run(project: Path, *command: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [project / "env" / "bin" / command[0], *command[1:]],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def python(project: Path, code: str) -> str:
    """What a script prints that runs in the project."""
    ended = run(project, "python", "-c", code)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_pyproject_lists_the_packages_that_are_on_disk():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(listed) == packages_on_disk()
    assert len(set(listed)) == len(listed)


def test_every_folder_with_modules_is_a_package():
    modules = {module for top in FOLDERS for module in (ROOT / top).rglob("*.py")}
    without = {module.parent for module in modules if not (module.parent / "__init__.py").exists()}
    assert not without


def test_only_rapport_is_at_the_top_of_the_wheel(wheel):
    files = zipfile.ZipFile(wheel).namelist()
    tops = {Path(file).parts[0] for file in files}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rapport"}
    assert "rapport/py.typed" in files
    assert "rapport/policies/head/assets/builtin_head.npz" in files
    assert "rapport/pipeline/data/video/assets/builtin_face.npz" in files
    for folder in ("policies/flow/assets/listener", "pipeline/serve/web"):  # it listens, and a page
        on_disk = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        assert len(on_disk) > 5
        assert {f"rapport/{path.relative_to(ROOT)}" for path in on_disk} <= set(files)
    assert not [file for file in files if "bench/" in file]


def test_the_door_opens_beside_folders_of_the_same_names(project):
    names = ", ".join(DOOR)
    code = f"""
import rewards, policies, pipeline, rapport
from rapport import {names}
assert set(rapport.__all__) == set({DOOR!r}), rapport.__all__
assert {{rewards.OWNER, policies.OWNER, pipeline.OWNER}} == {{"the project"}}
assert load_head().topology == "builtin"
print(rapport.__file__)
"""
    assert Path(python(project, code)).is_relative_to(project / "env")


def test_metrics_import_nothing_heavy(project):
    code = f"""
import sys
for name in {HEAVY!r}:
    sys.modules[name] = None  # importing it fails now
import numpy as np
from rapport import evaluate
rng = np.random.default_rng(0)
recorded = [rng.normal(size=(64, 56)) for _ in range(3)]
predicted = [clip + 0.1 for clip in recorded]
scores = evaluate("lm_listener", predicted, recorded, partner=recorded)
print(sorted(scores))
"""
    assert "L2" in python(project, code)


def test_vllm_finds_the_plugin(project):
    code = """
from importlib.metadata import entry_points
[plugin] = [p for p in entry_points(group="vllm.general_plugins") if p.name.startswith("rapport")]
register = plugin.load()
print(register.__module__)
"""
    assert python(project, code) == "rapport.policies.vla.vllm_plugin"


def test_the_command_line_works_from_anywhere(project):
    ended = run(project, "rapport", "--help")
    assert ended.returncode == 0, ended.stderr
    assert "dpo" in ended.stdout and "gdpo" in ended.stdout


@pytest.mark.long
def test_bench_says_in_one_line_that_it_needs_a_checkout(project):
    ended = run(project, "rapport", "bench", "metrics")
    assert ended.returncode == 2
    assert "checkout" in ended.stderr.strip().splitlines()[-1]
    assert "Traceback" not in ended.stderr
