"""How far a reward model of ratings can be trusted, before `score.learnt` is set.

    python -m rapport.pipeline.steps.reward_model_table runs/candidates ratings.csv
    python -m rapport.pipeline.steps.reward_model_table runs/candidates
    python -m rapport.pipeline.steps.reward_model_table runs/prepared/prepare/corpus --groups 300

Of the candidates of a `rollout` run and people's ratings of them; without ratings SIMULATED raters
rate. Of a corpus in which several people listen to each speaker, the recorded listeners of a moment
and one who was listening to somebody else are the candidates. It needs no Ray.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rapport.actors.rater import RewardWorker, Viewer
from rapport.actors.settings import RatersConfig
from rapport.pipeline.data.candidates import read_candidates
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.data.synthetic.words import LEXICON
from rapport.pipeline.rundir import RunError
from rapport.pipeline.steps.preferences import watched
from rapport.pipeline.steps.reward_model import (
    SHUFFLES,
    Learnt,
    People,
    learn_ratings,
    seen_by_model,
)
from rapport.pipeline.steps.sampling import earlier, earlier_imitation, motions_of_group
from rapport.policies.head.settings import HeadConfig
from rapport.policies.motion import Motion
from rapport.rewards.ratings.raters import RaterScales
from rapport.rewards.ratings.ratings import Rating, read_ratings
from rapport.rewards.ratings.scores import ScoreConfig
from rapport.rewards.reward_agreement import Agreement

Motions = dict[str, dict[str, Motion]]  # prompt id -> candidate id -> motion
BOOTSTRAP = 2000


def candidates_of(run: Path, count: int | None) -> tuple[Corpus, Motions]:
    """Corpus and candidates of a `rollout` run, of its first `count` prompts."""
    imitated = earlier_imitation(run)
    groups = read_candidates(earlier(run, "candidates"))
    motions = {
        prompt_id: motions_of_group(imitated, groups[prompt_id])
        for prompt_id in list(groups)[:count]
    }
    return imitated.corpus, motions


def listeners_of(corpus: Corpus, count: int | None, seed: int) -> Motions:
    """Recorded listeners of some moments of training, and one each who listened to another."""
    rng = np.random.default_rng(seed)
    of_moment: dict[tuple[str, float], list[str]] = {}
    for clip_id, moment in corpus.moments("train").items():
        of_moment.setdefault(moment, []).append(clip_id)
    names = corpus.conversations("train")
    conversation_of = {moment: names[clip_ids[0]] for moment, clip_ids in of_moment.items()}
    moments = list(of_moment)
    chosen = [moments[n] for n in rng.permutation(len(moments))[:count]]
    groups = {}
    for moment in chosen:
        own = conversation_of[moment]
        others = [other for other in chosen if conversation_of[other] != own]
        foreign = of_moment[others[rng.integers(len(others))]][:1] if others else []
        groups[of_moment[moment][0]] = [*of_moment[moment], *foreign]
    recorded = dict(corpus.listeners("train"))
    return {prompt: {name: recorded[name] for name in names} for prompt, names in groups.items()}


def simulated(corpus: Corpus, groups: Motions, raters: int, seed: int) -> list[Rating]:
    """What SIMULATED raters say of all of them."""
    worker = RewardWorker(raters, LEXICON, HeadConfig())
    ratings: list[Rating] = []
    for prompt_id, motions in groups.items():
        prompt = watched(corpus.clip(prompt_id), motions, corpus.points)
        ratings += worker.rate((seed, prompt))
    return ratings


def lines(table: Mapping[str, Agreement]) -> list[str]:
    """The table, as Markdown."""
    head = "| who rates | couples in the raters' order | Spearman within groups | over all |"
    rows = []
    for name, row in table.items():
        a = row.accuracy
        rows.append(
            f"| {name} | {a.mean:.3f} [{a.low:.3f}, {a.high:.3f}] | {row.within:.2f} | "
            f"{row.over_all:.2f} |"
        )
    return [head, "| --- | --- | --- | --- |", *rows]


def main(arguments: list[str] | None = None) -> Learnt:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a rollout run, or a corpus")
    parser.add_argument("ratings", type=Path, nargs="?", help="people's; none = SIMULATED raters")
    parser.add_argument("--groups", type=int, help="how many are rated; all where left out")
    parser.add_argument("--raters", type=int, default=RatersConfig().count, help="SIMULATED ones")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if (given.folder / "summary.json").is_file():
        corpus, groups = candidates_of(given.folder, given.groups)
    else:
        corpus = Corpus(given.folder)
        groups = listeners_of(corpus, given.groups, given.seed)
    if given.ratings is None:
        who = f"{given.raters} SIMULATED raters"
        people = People(simulated(corpus, groups, given.raters, given.seed), ScoreConfig(), None)
    else:
        who = f"people ({given.ratings.name})"
        ratings = [each for each in read_ratings(given.ratings) if each.prompt_id in groups]
        people = People(ratings, ScoreConfig(), RaterScales.fit(ratings))
    seen = seen_by_model(corpus, groups, Viewer(HeadConfig()), given.seed)
    try:
        learnt = learn_ratings(seen, people, bootstrap=BOOTSTRAP, seed=given.seed)
    except RunError as error:
        parser.error(str(error))
    print(f"{len(people.scores)} groups rated by {who}; {len(seen.names)} features")
    print("\n".join(lines(learnt.table)))
    print(
        f"by luck: {learnt.by_luck:.3f}, the best of {SHUFFLES} that were taught shuffled ratings"
    )
    return learnt


if __name__ == "__main__":
    main()
