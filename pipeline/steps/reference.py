"""What raters and the independent judge say of rules and of recorded listeners, before any policy.

    python -m rapport.pipeline.steps.reference runs/.../prepare/corpus

They are fixed on this table: whoever answers what is meant must stand above every rule, and a
constant must earn nothing, before a policy is judged by them. It needs no Ray; a minute or two.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from rapport import log
from rapport.actors.rater import RatedPrompt, RewardPool, RewardWorker
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.data.synthetic.words import LEXICON
from rapport.pipeline.rundir import Workspace
from rapport.pipeline.settings import JudgedOfVla
from rapport.pipeline.steps.corpus import choose
from rapport.pipeline.steps.imitation_vla import action_layout
from rapport.pipeline.steps.judging import SHOWN, YARDSTICKS, Judge, MethodRow, print_rows
from rapport.policies.motion import Motion
from rapport.policies.vla.settings import ActionConfig
from rapport.rewards.ratings.beside import Beside


class LocalPool:
    """The reward pool in this process."""

    def __init__(self, config: JudgedOfVla) -> None:
        self.worker = RewardWorker(config.raters.count, LEXICON, config.head)

    def rate_beside(
        self, prompts: Iterable[RatedPrompt], panel: int
    ) -> Iterator[tuple[RatedPrompt, Beside]]:
        """As `RewardPool.rate_beside`."""
        for prompt in prompts:
            yield prompt, self.worker.rate_beside((panel, prompt))


def reference_rows(judge: Judge, split: str) -> dict[str, MethodRow]:
    """Rows of baselines, rules and the oracle, and of recorded listeners by their manner.

    Args:
        judge: of some moments of a split, one clip each.
        split: of the corpus.
    """
    rows = judge.baselines()
    by_manner = recorded_by_manner(judge, split)
    rows |= {f"recorded, {manner}": judge(answers) for manner, answers in by_manner.items()}
    return rows


def recorded_by_manner(judge: Judge, split: str) -> dict[str, dict[str, list[Motion]]]:
    """Manner -> judged clip -> the recorded listeners to its speaker who were so."""
    if judge.truth is None:
        return {}
    asked = {clip.moment: clip_id for clip_id, clip in judge.clips.items()}
    moments = judge.corpus.moments(split)
    found: dict[str, dict[str, list[Motion]]] = {}
    for clip_id, motion in judge.corpus.listeners(split):
        if moments[clip_id] in asked:
            of_manner = found.setdefault(judge.truth[clip_id].manner, {})
            of_clip = of_manner.setdefault(asked[moments[clip_id]], [])
            of_clip.append(motion.subset(judge.layout))
    return dict(sorted(found.items()))


def main(arguments: list[str] | None = None) -> Mapping[str, Mapping[str, Any]]:
    """Print the table of a corpus; its rows as `evaluation.json` has them."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--prompts", type=int, default=128)
    given = parser.parse_args(arguments)
    log.show()
    config = JudgedOfVla()
    corpus = Corpus(given.corpus)
    with tempfile.TemporaryDirectory() as folder:
        run = SimpleNamespace(directory=Path(folder), summary={"metrics": {}})
        judge = Judge.from_corpus(
            cast(Workspace, run),
            config,
            corpus,
            layout=action_layout(ActionConfig(), corpus.layout),
            clip_ids=choose(corpus, given.split, given.prompts, seed=config.seed),
            raters=cast(RewardPool, LocalPool(config)),
        )
    rows = reference_rows(judge, given.split)
    values = {name: row.summary(config.evaluation.bootstrap) for name, row in rows.items()}
    title = f"{corpus.path}, {given.split}"
    print_rows(title, ("simulated_rating", *SHOWN), values)
    print_rows(title, [name for name in YARDSTICKS if name not in SHOWN], values)
    for name, trust in (run.summary["metrics"]["independent_judge"] or {}).items():
        bounds = f"[{trust['low']:.2f}, {trust['high']:.2f}]"
        print(f"independent judge, {name.replace('_', ' ')}: {trust['mean']:.2f} {bounds}")
    return values


if __name__ == "__main__":
    main()
