"""The loop closes by itself: candidates, people on a page, alignment, the next candidates."""

import csv
import json
import random
import re
import signal
import threading
import time
from pathlib import Path
from subprocess import CompletedProcess

import httpx
import numpy as np
import pytest

from rapport.actors.rater import Viewer
from rapport.pipeline.config import load_config
from rapport.pipeline.data.candidates import read_candidates
from rapport.pipeline.data.rating_package import read_manifest
from rapport.pipeline.settings import DpoOfVla
from rapport.pipeline.steps.preferences import check_ratings
from rapport.pipeline.steps.sampling import earlier, earlier_imitation, motions_of_group
from rapport.policies.head.settings import HeadConfig
from rapport.policies.tables import read_table
from rapport.rewards.ratings.ratings import CRITERIA, read_ratings
from rapport.rewards.reward_model import LEARNT
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
    """Somebody who rates whatever the page shows, and comes back for the next round.

    Args:
        link: of theirs.
        form: of the page.
        likes: video -> grade; None = whatever comes to their mind.
    """

    def __init__(self, link: str, form: str, likes: dict[bytes, int] | None = None) -> None:
        super().__init__(daemon=True)
        self.rater = link.replace("/?key=", "/raters/")
        self.page = link.partition("?")[0]
        self.form = form
        self.likes = likes
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
                if self.likes:
                    video = client.get(self.page + said["item"]["videos"][0]).content
                    answer = dict.fromkeys(CRITERIA, self.likes[video])
                answered = client.post(f"{self.rater}/answers/{place}", json=answer)
                said = (
                    client.get(f"{self.rater}/turn").json()
                    if answered.is_error
                    else (answered.json())
                )


def rolled_out(folder, groups, *keys):
    """A `rollout` run of so many groups of three."""
    finished_run(
        "rollout",
        folder,
        *TINY,
        *LEAN,
        f"rollout.prompts={groups}",
        f"render.videos={3 * groups}",
        "learner.world_size=1",
        *keys,
    )
    return folder


@pytest.fixture(scope="module")
def candidates(tmp_path_factory):
    return rolled_out(tmp_path_factory.mktemp("runs") / "candidates", 8)


def at_its_end(process, run_dir, told=""):
    """The summary of a run, of whose output `told` was read."""
    output = told + process.stdout.read()
    return finished(CompletedProcess(process.args, process.wait(60), output), run_dir)


def align_live(candidates, run_dir, *keys, form="scales", rounds=2, likes=None):
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
        raters = [Rater(link, form, likes) for link in told]
        for rater in raters:
            rater.start()
        return at_its_end(process, run_dir), raters
    finally:
        for rater in raters:
            rater.over.set()
        process.kill()


@pytest.mark.parametrize("form", ["scales", "pairs"])
def test_people_rate_two_rounds_on_one_page(candidates, tmp_path, form):
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


def smiles(candidates):
    """Video of a `rollout` run -> grade, of somebody who likes corners of the mouth that are up."""
    viewer, imitated = Viewer(HeadConfig()), earlier_imitation(candidates)
    lifted = {
        (prompt_id, candidate_id): viewer(motion).expression.mouth_lift.mean()
        for prompt_id, group in read_candidates(earlier(candidates, "candidates")).items()
        for candidate_id, motion in motions_of_group(imitated, group).items()
    }
    fifths = np.quantile(list(lifted.values()), [0.2, 0.4, 0.6, 0.8])
    manifest = earlier(candidates, "manifest")
    return {
        (manifest.parent / "for_raters" / "videos" / f"{name}.mp4").read_bytes(): grade
        for name, shown in read_manifest(manifest).items()
        for grade in [1 + int(np.searchsorted(fifths, lifted[shown]))]
    }


def test_a_model_rates_what_people_had_no_time_for(tmp_path):
    """One rater, who likes smiles, is given 21 of 26 groups; then `rate.hours` are over."""
    candidates = rolled_out(tmp_path / "candidates", 26, "corpus.train_clips=64")
    few = ["rate.raters=1", "rate.per_group=1", "rate.groups=21", "rate.mismatched=0"]
    summary, _ = align_live(
        candidates,
        tmp_path / "dpo",
        "score.learnt=true",
        "rate.hours=0.04",
        *few,
        rounds=1,
        likes=smiles(candidates),
    )
    counts = {name: n for name, n in summary["counts"].items() if name.startswith("learnt")}
    assert counts == {"learnt_groups": 5, "learnt_candidates": 15, "learnt_pairs": 5}
    assert summary["engines"]["reward_model"].endswith("people's ratings of 21 groups")
    assert "reward model" in summary["metrics"]["reward_model"]["agreement"]
    people = read_ratings(tmp_path / "dpo" / "rate" / "ratings.parquet")
    model = read_ratings(tmp_path / "dpo" / "reward_model" / "learnt.parquet")
    assert {each.rater for each in people} == {"rater-1"}
    assert {each.rater for each in model} == {LEARNT}
    rows = read_table(tmp_path / "dpo" / "pair" / "pairs.arrow").to_list()
    learnt = {row["prompt_id"] for row in rows if row["learnt"]}
    assert learnt == {each.prompt_id for each in model} and len(learnt) == 5
    assert learnt.isdisjoint(each.prompt_id for each in people)
    report = (tmp_path / "dpo" / "report.html").read_text()
    assert "5 groups that people had no time for are rated by a model" in report
    assert "<em>learnt</em>: of groups that people" in report


# -- The page alone --


def first_link(process):
    """Of the links that a page's terminal names, and all that was printed until then."""
    told = ""
    while "the studio: " not in told:
        line = process.stdout.readline()
        assert line, told
        told += line
    links = Path(re.search("raters: the links in (.+)", told)[1])
    return links.read_text().splitlines()[0].partition(",")[2], told


def answer(link, answers):
    """A rater comes, and answers so often."""
    rater = link.replace("/?key=", "/raters/")
    said = httpx.post(f"{rater}/consent", timeout=60).json()
    for _ in range(answers):
        place = f"{rater}/answers/{said['item']['place']}"
        said = httpx.post(place, json=dict.fromkeys(CRITERIA, 4), timeout=60).json()


def test_what_was_said_on_the_page_until_it_was_interrupted_is_read_by_dpo(candidates, tmp_path):
    """Killed after two answers, opened again with `--resume`, ended by Ctrl-C after four more."""
    folder = tmp_path / "ratings"
    process = started(
        "rate", f"candidates={candidates}", f"rate.port={free_port()}", "--run-dir", folder
    )
    try:
        link, _ = first_link(process)
        answer(link, 2)
    finally:
        process.kill()
        process.communicate()
    process = started("rate", "--resume", "--run-dir", folder)
    try:
        same, told = first_link(process)
        answer(same, 4)
        process.send_signal(signal.SIGINT)
        summary = at_its_end(process, folder, told)
    finally:
        process.kill()
    assert same == link
    with (folder / "rating" / "answers.csv").open() as file:
        kinds = [row["kind"] for row in csv.DictReader(file)]
    sheet = folder / "ratings.csv"
    said = read_ratings(sheet)
    assert len(kinds) == 6 and len(said) == kinds.count("plain") > 0
    controls = len(list((folder / summary["artifacts"]["controls"]).glob("*.mp4")))
    assert summary["counts"] == {"controls": controls, "ratings": len(said), "raters": 1}
    check_ratings(load_config(DpoOfVla, None, [f"candidates={candidates}", f"ratings={sheet}"]))
