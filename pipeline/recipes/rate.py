"""`rate`: people rate the candidates of a `rollout` run on a page, until it is interrupted."""

from __future__ import annotations

from contextlib import nullcontext

from rapport.actors.cluster import cluster
from rapport.pipeline.data.candidates import read_candidates
from rapport.pipeline.ports import until_interrupted
from rapport.pipeline.rating.offers import Offer
from rapport.pipeline.rating.page import Page
from rapport.pipeline.rundir import Run
from rapport.pipeline.settings import RateConfig
from rapport.pipeline.steps.rating import (
    FOLDER,
    Drawing,
    described_opinions,
    offered,
    require_package,
    say_where,
    write_said,
)
from rapport.pipeline.steps.sampling import earlier, earlier_imitation


def run(config: RateConfig, run: Run) -> None:
    """Offer, listen; at Ctrl-C write what was said. `--resume` opens the page again."""
    with Page(run.directory / FOLDER, config.rate, config.seed, run.mirror) as page:
        offer = _offer(config, run)
        page.open(offer)
        say_where(page)
        until_interrupted()
        said = page.said(offer)
        file = write_said(run.directory, page, said)
        run.summary["survey"] = described_opinions(page, offer, said)
    run.summary["counts"] |= {"ratings": len(said), "raters": len({each.rater for each in said})}
    run.leave({"ratings": file, "ratings_csv": file.with_suffix(".csv")})


def _offer(config: RateConfig, run: Run) -> Offer:
    assert config.candidates is not None, "look_at_inputs asks for it"
    # Controls are drawn once, by Ray; a page that is opened again needs none.
    drawn = not config.rate.mismatched or run.finished("controls")
    with nullcontext() if drawn else cluster(config.cluster.address, config.cluster.cpus):
        return offered(
            run,
            config,
            earlier_imitation(config.candidates),
            groups=read_candidates(earlier(config.candidates, "candidates")),
            manifest=require_package(config.candidates),
            drawing=Drawing.of_run(config.candidates, config.cluster.lost_workers),
        )
