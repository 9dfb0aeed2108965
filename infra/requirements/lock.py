"""Write the hashes of every pinned file into the locks: `make lock` after a pin was changed.

A lock is the list of its pins, `name==version`, under a comment that says what it is for. The
versions are chosen by hand; this asks the package index (through `uv`) which wheels each of them
has for Linux on x86_64 and the Pythons we run on, and writes their SHA-256 under the pin. An
archive of sources is listed only where there is no wheel.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

PYTHONS = ("3.11", "3.12", "3.13")
PLATFORM = "x86_64-manylinux_2_35"


def hashes_by_pin(pins: list[str], python: str) -> dict[str, list[str]]:
    """SHA-256 of the files that fit one Python, under `name==version` with the name normalised."""
    with tempfile.TemporaryDirectory() as scratch:
        requirements = Path(scratch, "pins.in")
        requirements.write_text("\n".join(pins))
        output = Path(scratch, "pylock.toml")
        command = ["uv", "pip", "compile", "--quiet", "--no-deps", "--format", "pylock.toml"]
        command += ["--python-version", python, "--python-platform", PLATFORM]
        subprocess.run([*command, "--output-file", output, requirements], check=True)
        packages = tomllib.loads(output.read_text()).get("packages", [])
    hashes = {}
    for package in packages:
        files = package.get("wheels") or [package["sdist"]]
        pin = f"{package['name']}=={package['version']}"
        hashes[pin] = [file["hashes"]["sha256"] for file in files]
    return hashes


def normalised(pin: str) -> str:
    name, version = pin.split("==")
    return f"{name.lower().replace('_', '-').replace('.', '-')}=={version}"


def read(lock: Path) -> tuple[list[str], dict[str, list[str]]]:
    """The comment at the top of a lock, and the hashes that stand under each pin."""
    comment = []
    hashes: dict[str, list[str]] = {}
    pin = ""
    for line in lock.read_text().splitlines():
        text = line.strip().removesuffix("\\").strip()
        if text.startswith("#"):
            comment.append(line)
        elif text.startswith("--hash=sha256:"):
            hashes[pin].append(text.removeprefix("--hash=sha256:"))
        elif text:
            pin = text
            hashes[pin] = []
    return comment, hashes


def main(locks: list[str]) -> None:
    for lock in map(Path, locks):
        comment, hashes = read(lock)
        # A local version, torch's +cpu, is on its project's own index only: its hashes are kept.
        pins = [pin for pin in hashes if "+" not in pin]
        for pin in pins:
            hashes[pin] = []
        for python in PYTHONS:
            try:
                wheels = hashes_by_pin(pins, python)
            except subprocess.CalledProcessError:
                print(f"{lock}: not for Python {python}")
                continue
            for pin in pins:
                hashes[pin] += wheels[normalised(pin)]
        lines = list(comment)
        for pin in sorted(hashes, key=lambda pin: pin.lower().split("==")):
            digests = sorted(set(hashes[pin]))
            lines.append(
                " \\\n".join([pin, *(f"    --hash=sha256:{digest}" for digest in digests)])
            )
        lock.write_text("\n".join(lines) + "\n")
        print(f"{lock}: {len(hashes)} pins")


if __name__ == "__main__":
    main(sys.argv[1:])
