"""Judging what was answered before: neither a policy nor an engine is needed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from rapport.files import atomic, strict_json, write_atomic
from rapport.log import logger
from rapport.pipeline.data.neighbours import appropriate_to, in_words
from rapport.pipeline.data.reactions import (
    GROUND_TRUTH,
    REACTIONS,
    KeptReactions,
    read_reactions,
)
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.rundir import Run, RunError, found
from rapport.pipeline.settings import Evaluated, FilesConfig
from rapport.pipeline.steps.corpus import prepare
from rapport.pipeline.steps.faces import faces_of
from rapport.pipeline.steps.judging import Judge, compare, fit_affect, tabulate
from rapport.pipeline.steps.preferences import reward_pool
from rapport.pipeline.steps.protocols import RankedClips, scorers
from rapport.rewards.metrics.baselines import random_listener
from rapport.rewards.metrics.protocols.react import SETTINGS


@dataclass(frozen=True)
class Source:
    """Where kept reactions and what belongs to them lie.

    Args:
        file: of the reactions.
        corpus: whose clips they answer; None = a file by itself does not say where that is.
        package: folder of the rating package that was made of them, where there is one.
    """

    file: Path
    corpus: Path | None = None
    package: Path | None = None

    @classmethod
    def at(cls, path: Path) -> Source:
        """What `reactions=` names: a file, or the folder of a run.

        Raises:
            RunError: the folder is no run's, or the run judged no policy.
        """
        if not path.is_dir():
            return cls(path)
        summary = path / "summary.json"
        if not summary.is_file():
            raise RunError(
                f"reactions={path}: no summary.json there; it must be the folder of a run that "
                f"judged a policy, or its {REACTIONS}"
            )
        names = json.loads(summary.read_text())["artifacts"]
        artifacts = {name: found(text, path) for name, text in names.items()}
        if "reactions" not in artifacts or "corpus" not in artifacts:
            raise RunError(f"reactions={path}: that run kept no reactions, only {sorted(names)}")
        package = artifacts.get("study")
        return cls(artifacts["reactions"], artifacts["corpus"], package)

    def read(self, corpus: Corpus) -> KeptReactions:
        """The reactions; their prompts are clips of the corpus.

        Raises:
            ReactionError: they cannot be read, or belong to another corpus.
        """
        kept = read_reactions(self.file)
        kept.require_corpus(corpus, str(self.file))
        return kept


def judge_again(run: Run, config: Evaluated, path: Path) -> None:
    """Every method's row, by the raters and the protocol of this config.

    Args:
        run: takes the table, and a copy of the reactions.
        config: of the recipe.
        path: of the reactions.
    """
    source = Source.at(path)
    corpus = prepare(run, config) if source.corpus is None else Corpus(source.corpus)
    kept = source.read(corpus)
    own = run.directory / REACTIONS
    with atomic(own) as partial:
        shutil.copyfile(source.file, partial)
    run.leave({"reactions": own, "corpus": corpus.path})
    policies = [method for method in kept.methods if method != GROUND_TRUTH]
    logger.info(
        f"[evaluate] {source.file}: {', '.join(policies)}; {len(kept.prompt_ids)} prompts of the "
        f"{kept.split} split"
    )
    usual = FilesConfig()  # of the table, too
    if (config.files.protocol, config.files.variant) != (usual.protocol, usual.variant):
        score_again(run, config, corpus, kept)
    with reward_pool(config) as raters:
        judge = Judge.from_corpus(
            run, config, corpus, layout=kept.compared, clip_ids=kept.prompt_ids, raters=raters
        )
        rows = judge.baselines()
        for name in policies:
            answers = kept.answers(name)
            rows[name] = judge(answers)
            if name == policies[0]:
                rows |= judge.controls(name, answers)
    bootstrap = config.evaluation.bootstrap
    if len(policies) > 1:
        compare(rows, run, before=policies[0], after=policies[-1], bootstrap=bootstrap)
    else:
        tabulate(rows, run, bootstrap=bootstrap)


def score_again(run: Run, config: Evaluated, corpus: Corpus, kept: KeptReactions) -> None:
    """Every method by one published protocol: `metrics.json`, the terminal, the summary.

    Protocols that score one reaction a clip take the first.

    Raises:
        RunError: the protocol does not apply to this motion; says why.
    """
    protocol = config.files.protocol
    motions = {method: kept.answers(method) for method in kept.methods}
    frames = min(
        len(m) for answers in motions.values() for group in answers.values() for m in group
    )
    appropriate = appropriate_to(corpus, kept.split)
    clips = RankedClips.from_corpus(
        corpus, kept.prompt_ids, kept.compared, frames, appropriate=appropriate
    )
    train = [listener.subset(kept.compared) for _, listener in corpus.listeners("train")]
    faces = faces_of(config.head, kept.compared.topology)
    applied, left_out = scorers(clips, train, fit_affect(corpus, kept.compared), faces=faces)
    if protocol not in applied:
        why = next(why for names, why in left_out.items() if protocol in names.split(", "))
        raise RunError(f"protocol {protocol} does not apply to these reactions: {why}")
    reactions = {
        method: [
            [motion.subset(kept.compared).window(0, frames) for motion in answers[prompt_id]]
            for prompt_id in kept.prompt_ids
        ]
        for method, answers in motions.items()
    }
    content: dict[str, str] = {"protocol": protocol, "variant": config.files.variant}
    if protocol in SETTINGS:
        # FRCorr takes the best of many: whoever reads it must see what heeding nobody has.
        rng = np.random.default_rng(config.seed)
        samples = max(len(group) for groups in reactions.values() for group in groups)
        reactions["Random"] = [
            [random_listener(train, frames, rng) for _ in range(samples)] for _ in kept.prompt_ids
        ]
        content["appropriate"] = in_words("corpus", appropriate, kept.prompt_ids)
        logger.info(f"[evaluate] appropriate: {content['appropriate']}")
    scores = {}
    for method, groups in reactions.items():
        try:
            scores[method] = applied[protocol](clips, groups, config.files.variant)
        except ValueError as error:
            raise RunError(f"protocol {protocol}, {method}: {error}") from error
    _show(protocol, config.files.variant, scores)
    file = run.directory / "metrics.json"
    write_atomic(file, strict_json(content | {"methods": scores}, indent=2) + "\n")
    run.leave({"metrics": file})
    run.summary["metrics"][protocol] = scores


def _show(protocol: str, variant: str, scores: Mapping[str, Mapping[str, float]]) -> None:
    table = Table(title=f"{protocol} ({variant})")
    for column in ("metric", *scores):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for metric in dict.fromkeys(metric for row in scores.values() for metric in row):
        values = [row.get(metric) for row in scores.values()]
        table.add_row(metric, *("-" if value is None else f"{value:.4f}" for value in values))
    Console(width=140).print(table)
