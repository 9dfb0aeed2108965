"""What raters wait for: `python -m tests.bench_rating`, on a machine with nothing else to do.

Twenty raters by HTTP, each with the page's requests (turn, video, answer); then one in Chromium,
from opening the link to a playable clip, and from Next to the next one.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from rapport.pipeline.rating.settings import RateSection
from tests.chromium import CHROMIUM, Chromium
from tests.offered import Served, write_offer
from tests.pipeline.test_rating_page import play, press, watch
from tests.runs import free_port

SECONDS = 4.0  # of a clip


async def twenty(links: list[str]) -> list[float]:
    """Seconds of every request of raters who do not watch."""
    seen: list[float] = []
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=40)) as client:
        await asyncio.gather(*(play(client, link, n, seen=seen) for n, link in enumerate(links)))
    return seen


def in_browser(link: str) -> tuple[float, list[float]]:
    """Seconds to the first playable clip, and to each one after it."""
    ready = "['ready', 'playing'].includes(document.getElementById('frame').dataset.state)"
    following = []
    with tempfile.TemporaryDirectory() as profile, Chromium(Path(profile)) as browser:
        browser.open("about:blank")  # a browser that is there
        tab = browser.open(link)
        tab.wait_for("!document.getElementById('consent').hidden")
        tab.click("#agree")
        tab.wait_for(ready)
        tab.ask("Page.reload")
        began = time.monotonic()
        tab.wait_for(f"document.readyState === 'complete' && {ready}")
        first = time.monotonic() - began
        for _ in range(4):
            watch(tab)
            for key in "3333":
                press(tab, key)
            # Timed within the page: the debugger's own way takes 50 ms.
            tab.value(
                "window.began = performance.now(); window.took = null;"
                "new MutationObserver((_, seen) => { const is = document.getElementById('frame')"
                ".dataset.state; if (is === 'ready' || is === 'playing') { window.took ??= "
                "performance.now() - window.began; seen.disconnect(); } })"
                ".observe(document.getElementById('frame'), { attributes: true });"
                "document.getElementById('next').click()"
            )
            following.append(tab.wait_for("window.took") / 1000)
    return first, following


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        write_offer(Path(name), groups=16, members=4, seconds=SECONDS)
        config = RateSection(port=free_port(), per_group=20, raters=21, groups=4)
        served = Served(Path(name), config)
        try:
            began = time.monotonic()
            seen = np.array(asyncio.run(twenty(served.links()[:20])))
            print(
                f"{len(seen)} requests of 20 raters in {time.monotonic() - began:.1f} s: "
                f"p50 {np.quantile(seen, 0.5) * 1000:.0f} ms, p99 "
                f"{np.quantile(seen, 0.99) * 1000:.0f} ms, most {seen.max() * 1000:.0f} ms"
            )
            if CHROMIUM:
                first, following = in_browser(served.links()[20])
                told = ", ".join(f"{1000 * seconds:.0f}" for seconds in following)
                print(f"first clip playable after {first:.2f} s, the next after {told} ms")
        finally:
            served.kill()


if __name__ == "__main__":
    main()
