"""People who rate on a page: what they are offered, controls, and what they said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from rapport.actors.renderer import RenderPool
from rapport.actors.settings import RenderConfig
from rapport.files import write_atomic
from rapport.log import logger
from rapport.pipeline.config import read_yaml
from rapport.pipeline.data.candidates import GROUND_TRUTH, Candidate
from rapport.pipeline.data.rating_package import read_manifest, video_of_face
from rapport.pipeline.rating.app import answers_csv, consent_text, write_opinions
from rapport.pipeline.rating.offers import Control, Offer, read_offer, write_controls
from rapport.pipeline.rating.page import Page
from rapport.pipeline.rating.plan import drawn_by
from rapport.pipeline.rating.quality import Opinions, strengths_of, surveyed
from rapport.pipeline.rating.settings import RateSection
from rapport.pipeline.rundir import Phase, PhaseResult, RunError, Workspace, phase
from rapport.pipeline.settings import Preferences, RateConfig
from rapport.pipeline.steps.learning import Imitated
from rapport.pipeline.steps.sampling import CandidateGroups, earlier, package, video_of
from rapport.pipeline.steps.showing import render_videos
from rapport.policies.head.settings import HeadConfig
from rapport.rewards.ratings.comparisons import holds_comparisons, read_comparisons
from rapport.rewards.ratings.ratings import read_ratings

RECORDED = "recorded_listener"
FOLDER = "rating"  # of links and answers, in the run directory


@dataclass(frozen=True)
class Drawing:
    """How the videos of candidates are drawn, so that controls look like them.

    Args:
        render: size and codec.
        head: whose face.
        losses: lost renderers that are replaced.
    """

    render: RenderConfig
    head: HeadConfig
    losses: int

    @classmethod
    def of_run(cls, folder: Path, losses: int) -> Drawing:
        """As a `rollout` run drew its candidates."""
        values = read_yaml(folder / "config.yaml")
        render = {name: values["render"][name] for name in RenderConfig.model_fields}
        return cls(RenderConfig(**render), HeadConfig(**values["head"]), losses)


@contextmanager
def rating_page(run: Workspace, config: Preferences) -> Iterator[Page | None]:
    """The page of `ratings=live`, at one address through all rounds; None where nobody is asked."""
    if not config.live:
        yield None
        return
    with Page(run.directory / FOLDER, config.rate, config.seed, run.mirror) as page:
        say_where(page)
        yield page


def say_where(page: Page) -> None:
    """Where raters and the studio go."""
    logger.info(f"  raters: the links in {page.folder / 'links.csv'}\n  the studio: {page.studio}")


def asked_live(
    run: Workspace,
    config: Preferences,
    imitated: Imitated,
    groups: CandidateGroups,
    page: Page,
    *,
    round_index: int,
) -> Opinions:
    """Put candidates on the page and wait for enough ratings; see `Page.wait`."""
    if config.candidates is not None and round_index == 1:
        manifest = earlier(config.candidates, "manifest")
        drawing = Drawing.of_run(config.candidates, config.cluster.lost_workers)
    else:
        handed_out = package(run, config, imitated, groups=groups, round_index=round_index)
        manifest = handed_out.artifacts["manifest"]
        drawing = Drawing(config.render, config.head, config.cluster.lost_workers)
    offer = offered(
        run,
        config,
        imitated,
        groups=groups,
        manifest=manifest,
        drawing=drawing,
        round_index=round_index,
    )
    result = _asked(run, page, offer, round_index=round_index)
    page.rest(more=round_index < config.dpo.rounds)
    run.summary.setdefault("surveys", {})[f"rate, round {round_index}"] = result.value
    return read_said(result.artifacts["ratings"])


@phase("rate")
def _asked(step: Phase, page: Page, offer: Offer, *, round_index: int) -> PhaseResult:
    page.open(offer)
    step.say(f"{len(offer.groups)} groups wait for raters until {page.config.hours:g} h are over")
    page.wait(offer, step.say)
    said = page.said(offer)
    raters = {each.rater for each in said}
    described = described_opinions(page, offer, said)
    for warning in described["warnings"]:
        step.say(f"WARNING: {warning}")
    file = write_said(step.directory, page, said)
    step.say(f"{len(said)} answers by {len(raters)} people")
    return PhaseResult(
        artifacts={"ratings": file},
        counts={"ratings": len(said), "raters": len(raters)},
        engines={"raters": f"{len(raters)} people (live)"},
        value=described,
    )


def described_opinions(page: Page, offer: Offer, said: Opinions) -> dict[str, Any]:
    """Coverage and agreement of a round, its warnings, who listens better, and the control."""
    survey = surveyed(said, offer)
    return asdict(survey) | {
        "warnings": survey.warnings,
        "strengths": strengths_of(said, offer),
        "matched": page.matched(offer),
    }


def write_said(folder: Path, page: Page, said: Opinions) -> Path:
    """Write what counts, for `dpo ratings=`, and beside the page's own file all answers.

    Returns:
        the Parquet of what counts.
    """
    for suffix in ("csv", "parquet"):
        write_opinions(folder / f"ratings.{suffix}", said, page.config.form)
    # What Prolific calls somebody stays where nobody else may look.
    write_atomic(page.folder / "answers.csv", answers_csv(page.store))
    return folder / "ratings.parquet"


def read_said(file: Path) -> Opinions:
    """Ratings or choices of a phase's file, which may be none."""
    if not pq.read_metadata(file).num_rows:
        return []
    return read_comparisons(file) if holds_comparisons(file) else read_ratings(file)


# -- What is offered --


def offered(
    run: Workspace,
    config: RateConfig | Preferences,
    imitated: Imitated,
    groups: CandidateGroups,
    *,
    manifest: Path,
    drawing: Drawing,
    round_index: int = 1,
) -> Offer:
    """The groups of a package, with controls, which are drawn here.

    Args:
        run: where controls are kept.
        config: of the recipe.
        imitated: corpus and policy of the candidates.
        groups: all candidates.
        manifest: of the package.
        drawing: how its videos were drawn.
        round_index: of the loop.
    """
    names = read_manifest(manifest)
    folder = None
    if config.rate.mismatched:
        folder = controls(
            run,
            config,
            imitated,
            groups=groups,
            names=names,
            drawing=drawing,
            round_index=round_index,
        ).artifacts["controls"]
    offer = read_offer(round_index, manifest, folder, sources_of(groups))
    if isinstance(config, Preferences):
        offer = replace(offer, weights=config.score.weights)
    return offer


@phase("controls")
def controls(
    step: Phase,
    config: RateConfig | Preferences,
    imitated: Imitated,
    groups: CandidateGroups,
    names: Mapping[str, tuple[str, str]],
    *,
    drawing: Drawing,
    round_index: int,
) -> PhaseResult:
    """Videos of listeners beside speakers to whom they were not listening."""
    rng = drawn_by(config.seed, "controls", round_index)
    chosen = choose_controls(imitated, groups, names, share=config.rate.mismatched, rng=rng)
    if not chosen:
        step.say("no control: all groups are of one speaker, or of clips of unlike length")
    by_id = {(c.prompt_id, c.candidate_id): c for group in groups.values() for c in group}
    jobs = (
        video_of(
            by_id[control.other_prompt, control.candidate_id],
            step.directory / f"{control.video}.mp4",
            imitated,
            beside=control.prompt_id,
        )
        for control in chosen
    )
    if chosen:
        with RenderPool(drawing.render, drawing.head, losses=drawing.losses) as renderers:
            render_videos(drawing.render, jobs, renderers, step=step)
    write_controls(step.directory, chosen)
    return PhaseResult(artifacts={"controls": step.directory}, counts={"controls": len(chosen)})


def choose_controls(
    imitated: Imitated,
    groups: CandidateGroups,
    names: Mapping[str, tuple[str, str]],
    *,
    share: float,
    rng: np.random.Generator,
) -> list[Control]:
    """One listener more for a share of the groups, by recorded people and the policy in turn.

    They were listening in another conversation, in a clip as long.

    Args:
        imitated: corpus and policy.
        groups: all candidates.
        names: of the package's videos -> prompt id, candidate id.
        share: of the package's groups.
        rng: of all draws.
    """
    prompts = {video_of_face(name): prompt_id for name, (prompt_id, _) in sorted(names.items())}
    offered = set(names.values())
    conversations = imitated.corpus.conversations("train")

    def answers_of(prompt_id: str, recorded: bool) -> list[Candidate]:
        return [
            candidate
            for candidate in groups[prompt_id]
            if (prompt_id, candidate.candidate_id) in offered
            and (candidate.source == GROUND_TRUTH) == recorded
        ]

    def frames(candidate: Candidate) -> int:
        return len(imitated.policy.to_motion(candidate.reaction))

    there = [kind for kind in (True, False) if any(answers_of(p, kind) for p in prompts.values())]
    chosen: list[Control] = []
    wanted = max(round(share * len(prompts)), 1)
    for group in [sorted(prompts)[place] for place in rng.permutation(len(prompts))]:
        prompt_id = prompts[group]
        recorded = there[len(chosen) % len(there)]
        of = conversations[prompt_id]
        others = [p for p in prompts.values() if conversations[p] != of]
        rng.shuffle(others)
        rivals = (each for other in others for each in answers_of(other, recorded)[:1])
        own = answers_of(prompt_id, recorded)
        if len(chosen) == wanted or not own:
            continue
        counterpart = own[rng.integers(len(own))]
        rival = next((each for each in rivals if frames(each) == frames(counterpart)), None)
        if rival is not None:
            chosen.append(
                Control(
                    video=f"{group}-control",
                    prompt_id=prompt_id,
                    source=source_of(counterpart),
                    counterpart=counterpart.candidate_id,
                    other_prompt=rival.prompt_id,
                    candidate_id=rival.candidate_id,
                )
            )
    return chosen


def source_of(candidate: Candidate) -> str:
    """Who answered: recorded people, or a policy."""
    return RECORDED if candidate.source == GROUND_TRUTH else candidate.source


def sources_of(groups: CandidateGroups) -> dict[tuple[str, str], str]:
    """Prompt and candidate id -> who answered."""
    return {(c.prompt_id, c.candidate_id): source_of(c) for group in groups.values() for c in group}


def require_consent(config: RateSection) -> None:
    """Raise `RunError` where the text that raters agree to cannot be read, or is empty."""
    try:
        text = consent_text(config.consent)
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"rate.consent={config.consent} cannot be read as text: {error}") from error
    if not text.strip():
        raise RunError(f"rate.consent={config.consent} is empty: say what raters agree to")


def require_raters(config: RateSection) -> None:
    """Raise `RunError` where a run would wait for more raters of a group than there are links."""
    if config.recruit == "links" and config.raters < config.per_group:
        raise RunError(
            f"rate.raters={config.raters} links are fewer than the raters that every group waits "
            f"for, rate.per_group={config.per_group}: raise the one or lower the other"
        )


def require_package(candidates: Path) -> Path:
    """The manifest of a `rollout` run's package, whose videos are there.

    Raises:
        RunError: the run left none.
    """
    manifest = earlier(candidates, "manifest")
    videos = manifest.parent / "for_raters" / "videos"
    absent = [name for name in read_manifest(manifest) if not (videos / f"{name}.mp4").is_file()]
    if absent:
        raise RunError(
            f"candidates={candidates}: {len(absent)} videos of its package are missing, such as "
            f"{absent[0]}.mp4: put them back to {videos}, or run `rollout` again"
        )
    return manifest
