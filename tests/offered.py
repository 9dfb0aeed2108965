"""A small package of videos to be rated, and its page in a process of its own, to be killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from functools import cache
from pathlib import Path

import numpy as np

from rapport.pipeline.data.rating_package import HAND_OUT, neutral_names, write_package
from rapport.pipeline.rating.offers import Control, Offer, read_offer, write_controls
from rapport.pipeline.rating.page import Page
from rapport.pipeline.rating.settings import RateSection
from rapport.policies.head.video import write_mp4
from tests.runs import ROOT

FPS = 25
STUDIO = "a token of the studio"
START_S = 300  # beside twenty browsers, on two cores


@cache
def _film(folder: Path, seconds: float) -> Path:
    """Left half dark, right half brighter and brighter, with a sound."""
    frames = np.full((round(seconds * FPS), 64, 128, 3), 40, np.uint8)
    frames[:, :, 64:] = np.linspace(80, 220, len(frames), dtype=np.uint8)[:, None, None, None]
    sound = 0.1 * np.sin(np.arange(round(seconds * 16000)) / 10).astype(np.float32)
    return write_mp4(folder / "film.mp4", frames, FPS, audio=sound)


def write_offer(folder: Path, groups: int = 4, members: int = 3, seconds: float = 0.4) -> Path:
    """A package of `groups` groups, its first with a control; returns its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = {f"clip-{n}": [f"c{m}" for m in range(members)] for n in range(groups)}
    names = neutral_names(ids, seed=0)
    write_package(folder / "package", names)
    film = _film(folder, seconds)
    (folder / "package" / HAND_OUT / "videos").mkdir()
    (folder / "controls").mkdir()
    for name in names:
        shutil.copy(film, folder / "package" / HAND_OUT / "videos" / f"{name}.mp4")
    by_group = {name.partition("-")[0]: prompt for name, (prompt, _) in names.items()}
    control = Control("0001-control", by_group["0001"], "policy", "c1", by_group["0002"], "c1")
    shutil.copy(film, folder / "controls" / "0001-control.mp4")
    write_controls(folder / "controls", [control])
    return folder / "package" / "manifest.csv"


def offer_at(folder: Path, number: int = 1) -> Offer:
    """What `write_offer` wrote."""
    manifest = folder / "package" / "manifest.csv"
    offer = read_offer(number, manifest, folder / "controls")
    sources = {
        (prompt, candidate): "recorded_listener" if candidate == "c0" else "policy"
        for prompt, candidates in offer.members.items()
        for candidate in candidates
    }
    return Offer(offer.number, offer.groups, offer.controls, sources)


class Served:
    """A page in a process of its own.

    Args:
        folder: where `write_offer` wrote.
        config: of the page.
    """

    def __init__(self, folder: Path, config: RateSection) -> None:
        self.folder = folder
        self.config = config
        self.url = config.url
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.offered", str(self.folder)]
        self._process = subprocess.Popen(
            [*command, self.config.model_dump_json()],
            cwd=ROOT,
            env=os.environ | {"RAPPORT_TOKEN": STUDIO},
        )
        until = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/healthz", timeout=5).close()
                return
            except OSError:
                assert self._process.poll() is None, "the page ended before it was ready"
                if time.monotonic() > until:
                    self.kill()
                    raise AssertionError(f"the page was not ready after {START_S} s") from None
                time.sleep(0.05)

    def kill(self) -> None:
        """As if the machine had lost its power, as far as a process can."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def links(self) -> list[str]:
        """Of the raters."""
        lines = (self.folder / "rating" / "links.csv").read_text().splitlines()
        return [line.partition(",")[2] for line in lines]


def serve() -> None:
    folder, config = Path(sys.argv[1]), RateSection.model_validate_json(sys.argv[2])
    with Page(folder / "rating", config, seed=0) as page:
        page.open(offer_at(folder))
        signal.pause()


if __name__ == "__main__":
    serve()
