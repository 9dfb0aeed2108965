"""`rank`: methods by every published protocol that takes a corpus' motion, as published and fixed.

Policies come from finished `dpo`, `gdpo`, `sft` and `reactface` runs of one corpus, each of any
policy; baselines are made here. All methods answer the same held-out clips and are cut to the
frames and groups that all of them have.
"""

from __future__ import annotations

from functools import partial

from rapport.pipeline.data.neighbours import appropriate_to, in_words, precisions
from rapport.pipeline.data.store import LABELS, TRUTH
from rapport.pipeline.report.ranking import GROUND_TRUTH, Ranking, write_ranking
from rapport.pipeline.rundir import Run, RunError
from rapport.pipeline.settings import RankConfig
from rapport.pipeline.steps.corpus import choose, prepare
from rapport.pipeline.steps.faces import faces_of
from rapport.pipeline.steps.judging import fit_affect
from rapport.pipeline.steps.methods import (
    ALGORITHMS,
    TrainedRun,
    answered,
    answers_of,
    baselines,
    common_corpus,
    ranked_layout,
)
from rapport.pipeline.steps.protocols import (
    RankedClips,
    common_frames,
    cut_reactions,
    keep_targets,
    score,
    scorers,
)
from rapport.pipeline.steps.spread import PEOPLE, people, shares


def run(config: RankConfig, run: Run) -> None:
    """Answer held-out clips by every method, then score them by every protocol."""
    folders = {algorithm: getattr(config.rank, algorithm) for algorithm in ALGORITHMS}
    runs = [TrainedRun.of_folder(name, folder) for name, folder in folders.items() if folder]
    absent = [
        f"rank.{name} is empty: its policies are left out"
        for name, folder in folders.items()
        if not folder
    ]
    corpus = common_corpus({trained.algorithm: trained.imitated.corpus for trained in runs})
    if corpus is None:
        corpus = prepare(run, config)
    chosen = set(choose(corpus, "test", config.rank.prompts, seed=config.seed))
    # In the order of the corpus, so that the clips of a dyad stand in a row.
    ids = [clip_id for clip_id in corpus.clip_ids("test") if clip_id in chosen]
    if len(ids) < 2:
        raise RunError(f"{corpus.path} has {len(ids)} held-out clips, a ranking needs 2 or more")

    layout = ranked_layout(runs, corpus)
    ask_baselines = partial(baselines, config, corpus, ids, layout=layout)
    answers = answered(run, "baselines", ids, layout=layout, answer=ask_baselines)
    for trained in runs:
        ask_policies = partial(answers_of, run, config, trained, ids=ids)
        answers |= answered(run, trained.algorithm, ids, layout=layout, answer=ask_policies)

    frames = common_frames(answers)
    by = config.rank.neighbours
    appropriate = appropriate_to(corpus, "test", by, seed=config.seed)
    clips = RankedClips.from_corpus(corpus, ids, layout, frames, appropriate=appropriate)
    listeners = [listener.subset(layout) for _, listener in corpus.listeners("train")]
    affect = fit_affect(corpus, layout)
    faces = faces_of(config.head, layout.topology)
    protocols, left_out = scorers(clips, listeners, affect, faces=faces)
    reactions = {
        method: cut_reactions(motions, layout, frames) for method, motions in answers.items()
    }
    values = {
        name: score(run, name, scorer, clips=clips, reactions=reactions)
        for name, scorer in protocols.items()
    }
    several = {method: motions for method, motions in reactions.items() if method != GROUND_TRUTH}
    several[PEOPLE] = people(corpus, ids, layout, frames)
    known = all((corpus.path / name).is_file() for name in (LABELS, TRUTH))
    if "reactface" in protocols:
        run.leave({"reactface": keep_targets(clips, run.directory / "reactface")})
    ranking = Ranking(
        corpus=corpus.digest,
        layout=str(layout),
        clips=len(ids),
        frames=frames,
        samples=config.rank.samples,
        values=values,
        left_out=left_out,
        absent=absent,
        appropriate=in_words(by, appropriate, ids),
        precisions=precisions(corpus, "test", seed=config.seed) if known else {},
        shares=shares(several, affect),
    )
    write_ranking(ranking, run)
