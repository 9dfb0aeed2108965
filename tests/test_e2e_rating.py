"""The loop closes by itself: candidates, people on a page, alignment, the next candidates."""

import json
import random
import threading
import time

import httpx
import pytest

from rapport.rewards.ratings.ratings import CRITERIA
from tests.runs import finished, finished_run, free_port, started

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(1800)]
TINY = [
    "corpus.train_clips=16",
    "corpus.validation_clips=4",
    "corpus.test_clips=4",
    "corpus.listeners=1",
    "corpus.seconds=2",
    "pretraining.steps=4",
    "sft.steps=4",
    "sft.perceived=0",
]
LEAN = [
    "rollout.engine=hf",
    "rollout.workers=1",
    "rollout.samples=2",
    "render.size=64",
    "tracking.system_metrics=false",
]


class Rater(threading.Thread):
    """Somebody who rates whatever the page shows, and comes back for the next round."""

    def __init__(self, link: str, form: str) -> None:
        super().__init__(daemon=True)
        self.rater = link.replace("/?key=", "/raters/")
        self.form = form
        self.over = threading.Event()
        self.rounds: set[str] = set()

    def run(self) -> None:
        with httpx.Client(timeout=60) as client:
            said = client.post(f"{self.rater}/consent").json()
            while not self.over.is_set():
                if said["item"] is None:
                    time.sleep(0.5)
                    said = client.get(f"{self.rater}/turn").json()
                    continue
                place = said["item"]["place"]
                self.rounds.add(place[0])
                rng = random.Random(place)
                answer = {name: rng.randint(1, 5) for name in CRITERIA}
                if self.form == "pairs":
                    answer = {"preferred": rng.choice(["first", "second"])}
                answered = client.post(f"{self.rater}/answers/{place}", json=answer)
                said = (
                    client.get(f"{self.rater}/turn").json()
                    if answered.is_error
                    else (answered.json())
                )


def align_live(candidates, run_dir, *keys, form="scales", rounds=2):
    """`dpo ratings=live` with raters of the test; its summary, and rounds that raters saw."""
    process = started(
        "dpo",
        f"candidates={candidates}",
        "ratings=live",
        f"rate.form={form}",
        f"rate.port={free_port()}",
        "rate.per_group=2",
        "rate.raters=3",
        "rate.hours=0.4",
        "rate.mismatched=0.5",
        f"dpo.rounds={rounds}",
        "dpo.batch_size=4",
        "dpo.epochs=1",
        "dpo.contrast=0.5",
        "evaluation.prompts=2",
        "evaluation.samples=1",
        "evaluation.clips=0",
        "curve.points=0",
        "raters.count=2",
        "raters.workers=1",
        "render.workers=1",
        "learner.world_size=1",
        "cluster.preflight=false",
        *LEAN[:2],
        *keys,
        "--run-dir",
        run_dir,
    )
    raters = []
    try:
        links = run_dir / "rating" / "links.csv"
        while not links.is_file() and process.poll() is None:
            time.sleep(0.2)
        told = [line.partition(",")[2] for line in links.read_text().splitlines()]
        raters = [Rater(link, form) for link in told]
        for rater in raters:
            rater.start()
        process.stdout, output = None, process.stdout.read()
        process.returncode = process.wait(60)
        process.stdout = output
    finally:
        for rater in raters:
            rater.over.set()
        process.kill()
    return finished(process, run_dir), raters


@pytest.mark.parametrize("form", ["scales", "pairs"])
def test_people_rate_two_rounds_on_one_page(tmp_path, form):
    candidates = tmp_path / "candidates"
    finished_run(
        "rollout",
        candidates,
        *TINY,
        *LEAN,
        "rollout.prompts=8",
        "render.videos=24",
        "learner.world_size=1",
    )
    keys = ["rollout.prompts=8", "render.videos=24", *LEAN[2:]]
    summary, raters = align_live(candidates, tmp_path / "dpo", *keys, form=form)
    check_two_rounds(summary, raters, tmp_path / "dpo", form)


def check_two_rounds(summary, raters, run_dir, form):
    assert summary["status"] == "finished" and "(live)" in summary["engines"]["raters"]
    assert list(summary["surveys"]) == ["rate, round 1", "rate, round 2"]
    assert set.union(*(rater.rounds for rater in raters)) == {"1", "2"}
    for survey in summary["surveys"].values():
        assert survey["rated"] == 24 and set(survey["matched"]) == {"recorded_listener", "policy"}
        assert bool(survey["strengths"]) == (form == "pairs")
    assert summary["counts"]["rated_pairs"] >= 4
    report = (run_dir / "report.html").read_text()
    assert "Listeners of this speaker against listeners of another" in report
    assert ("Bradley-Terry" in report) == (form == "pairs")
    assert json.loads((run_dir / "phases" / "rate-2.json").read_text())["result"]["counts"]
