"""`rank`: methods by every published protocol that takes a corpus' motion, as published and
corrected.

Policies come from finished `dpo` and `gdpo` runs of one corpus; baselines are made here. All
methods answer the same held-out clips and are cut to the frames and groups that all of them have.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rapport.actors.cluster import cluster
from rapport.pipeline.config import (
    ActionConfig,
    ConfigError,
    GdpoRecipeConfig,
    RankConfig,
    load_config,
)
from rapport.pipeline.data.flow import LISTENER
from rapport.pipeline.data.regression import RegressionListener
from rapport.pipeline.data.store import Corpus, CorpusError
from rapport.pipeline.recipes.evaluate import Answers, fit_affect, sample_held_out
from rapport.pipeline.recipes.flow import TABLE
from rapport.pipeline.recipes.flow_judge import FlowJudge, faces_of
from rapport.pipeline.recipes.prepare import prepare
from rapport.pipeline.recipes.rank_protocols import (
    HeldOut,
    Reactions,
    Scorer,
    Scores,
    common_frames,
    cut,
    scorers,
)
from rapport.pipeline.recipes.rollout import choose, start_fleet
from rapport.pipeline.recipes.sft import action_layout
from rapport.pipeline.report.ranking import GROUND_TRUTH, Ranking, report
from rapport.pipeline.rundir import Phase, Run, RunError, still_there
from rapport.pipeline.tracking import metric_key
from rapport.policies.flow import checkpoint
from rapport.policies.motion import Layout
from rapport.policies.tables import read_table
from rapport.policies.vla.loading import Checkpoint, load_checkpoint
from rapport.rewards.metrics.baselines import (
    NearestNeighbour,
    SpeakerInput,
    mirror,
    random_listener,
)

VARIANTS = ("reference", "corrected")
METHODS = {"dpo": ("SFT", "SFT + DPO"), "gdpo": ("AR-Flow", "GDPO")}
NEEDS = {
    "dpo": ("corpus", "sft_policy", "dpo_policy"),
    "gdpo": ("corpus", "encode_tables", "vae_policy", "flow_policy", "gdpo_policy"),
}


def run(config: RankConfig, run: Run) -> None:
    given = {
        recipe: artifacts(recipe, folder)
        for recipe in NEEDS
        if (folder := getattr(config.rank, recipe)) is not None
    }
    absent = [
        f"rank.{recipe} is empty: {' and '.join(methods)} are left out"
        for recipe, methods in METHODS.items()
        if recipe not in given
    ]
    corpus = common_corpus({recipe: found["corpus"] for recipe, found in given.items()})
    if corpus is None:
        corpus = prepare(config.corpus, run)
    chosen = set(choose(corpus, "test", config.rank.prompts, config.seed))
    ids = [
        clip_id for clip_id in corpus.clip_ids("test") if clip_id in chosen
    ]  # a dyad's clips in a row
    if len(ids) < 2:
        raise RunError(f"{corpus.path} has {len(ids)} held-out clips, a ranking needs 2 or more")
    policy = load_checkpoint(given["dpo"]["sft_policy"]) if "dpo" in given else None
    layout = (
        action_layout(ActionConfig(), corpus.layout)
        if policy is None
        else policy.actions.space.layout
    )
    answers = answered(
        "baselines", ids, layout, lambda: baselines(config, corpus, ids, layout), run
    )
    if policy is not None:
        answers |= answered(
            "dpo", ids, layout, lambda: by_fleet(config, corpus, policy, given["dpo"], run), run
        )
    if "gdpo" in given:
        answers |= answered("gdpo", ids, layout, lambda: by_ode(config, ids, given["gdpo"]), run)
    frames = common_frames(answers)
    held_out = HeldOut.of(corpus, ids, layout, frames)
    train = [listener.subset(layout) for _, listener in corpus.listeners("train")]
    affect, faces = fit_affect(corpus, layout, run), faces_of(config.head, layout.topology)
    protocols, left_out = scorers(held_out, train, affect, faces)
    reactions = {method: cut(found, layout, frames) for method, found in answers.items()}
    values = {
        name: scored(name, scorer, held_out, reactions, run) for name, scorer in protocols.items()
    }
    report(
        Ranking(
            corpus.digest,
            str(layout),
            len(ids),
            frames,
            config.rank.samples,
            values,
            left_out,
            absent,
        ),
        run,
    )


def artifacts(recipe: str, directory: Path) -> dict[str, Path]:
    """What the finished run that `rank.RECIPE` names has left. Raises `RunError` when it is none."""
    where, file = f"rank.{recipe}={directory}", directory / "summary.json"
    if not file.is_file():
        raise RunError(
            f"{where}: no summary.json there; it must be the folder of a finished `{recipe}` run"
        )
    summary = json.loads(file.read_text())
    if (summary["recipe"], summary["status"]) != (recipe, "finished"):
        raise RunError(
            f"{where}: a {summary['status']} `{summary['recipe']}` run, not a finished "
            f"`{recipe}` run"
        )
    found, gone = still_there(summary, NEEDS[recipe])
    if gone:
        raise RunError(
            f"{where}: its {', '.join(gone)} is no longer where its summary.json says; run "
            f"`{recipe}` again"
        )
    return found | {"directory": directory}


def common_corpus(corpora: dict[str, Path]) -> Corpus | None:
    """The corpus of all runs, None without a run. Raises `CorpusError` where they were trained on
    unlike ones.
    """
    opened = {recipe: Corpus(path) for recipe, path in corpora.items()}
    if len({corpus.digest for corpus in opened.values()}) > 1:
        lines = "".join(
            f"\n  rank.{recipe}: {corpus.path}, digest {corpus.digest[:12]}"
            for recipe, corpus in opened.items()
        )
        raise CorpusError(
            f"the runs to be ranked have unlike corpora:{lines}\nTrain one of them again on the "
            "other's: "
            "corpus.kind=parquet corpus.root=THAT_FOLDER"
        )
    return next(iter(opened.values()), None)


def answered(
    name: str,
    ids: Sequence[str],
    layout: Layout,
    answer: Callable[[], dict[str, Answers]],
    run: Run,
) -> dict[str, np.ndarray]:
    """Method -> its reactions (clips, samples, time, dim) in `layout`; kept as npy files, which
    `evaluate` takes.
    """

    def work(phase: Phase) -> dict[str, Any]:
        files = {}
        for method, found in answer().items():
            files[method] = str(phase.directory / f"{metric_key(method)}.npy")
            np.save(
                files[method], [[motion.subset(layout).values for motion in found[i]] for i in ids]
            )
        phase.say(f"{', '.join(files)}: {len(ids)} clips")
        return {"files": files}

    return {
        method: np.load(file) for method, file in run.once(f"answers-{name}", work)["files"].items()
    }


def by_fleet(
    config: RankConfig, corpus: Corpus, policy: Checkpoint, given: dict[str, Path], run: Run
) -> dict[str, Answers]:
    """SFT and SFT + DPO, sampled by engines that take the weights of one after the other."""
    with cluster(config.cluster.address, config.cluster.cpus) as where:
        print(f"  {where}", flush=True)
        with start_fleet(config, given["sft_policy"], policy, corpus, run) as fleet:
            before = sample_held_out(config.rank, config.seed, corpus, policy, fleet)
            aligned = load_checkpoint(given["dpo_policy"])
            fleet.update(aligned.model)
            after = sample_held_out(config.rank, config.seed, corpus, aligned, fleet)
    return dict(zip(METHODS["dpo"], (before, after), strict=True))


def by_ode(config: RankConfig, ids: Sequence[str], given: dict[str, Path]) -> dict[str, Answers]:
    """Supervised AR-Flow and GDPO on the listeners' windows, with the settings that their run
    judged them by.

    Without prompts: those describe the recorded face, which no other method is told of.
    """
    directory = given["directory"]
    try:
        trained = load_config(GdpoRecipeConfig, directory / "config.yaml", [])
    except ConfigError as error:
        raise RunError(
            f"rank.gdpo={directory}: {error}\nThat run is of another version; run `gdpo` again"
        ) from error
    rows = {
        row["clip_id"]: row for row in read_table(given["encode_tables"] / TABLE.format("test"))
    }
    listeners = [rows[f"{clip_id}{LISTENER}"] for clip_id in ids]
    judge = FlowJudge(
        trained.judge, [], listeners, [], checkpoint.load_vae(given["vae_policy"]), None
    )
    answers: dict[str, Answers] = {}
    for name, policy in zip(
        METHODS["gdpo"], (given["flow_policy"], given["gdpo_policy"]), strict=True
    ):
        seeds = config.seed + 1 + np.arange(config.rank.samples * len(ids)).reshape(-1, len(ids))
        samples = [
            replace(judge, seeds=row).generate(policy, without_text=True) for row in seeds.tolist()
        ]
        answers[name] = dict(zip(ids, map(list, zip(*samples, strict=True)), strict=True))
    return answers


def baselines(
    config: RankConfig, corpus: Corpus, ids: Sequence[str], layout: Layout
) -> dict[str, Answers]:
    """Ground truth, Random, Mirror, both Nearest Neighbours, regression; one that the corpus cannot
    give is left out.

    All but Random are deterministic: their samples are one reaction, again and again.
    """
    train, clips = list(corpus.clips("train")), [corpus.clip(clip_id) for clip_id in ids]
    samples, rng = config.rank.samples, np.random.default_rng(config.seed)
    listeners = [clip.listener.subset(layout) for clip in train]
    found: dict[str, Answers] = {
        GROUND_TRUTH: {c.clip_id: [c.listener.subset(layout)] * samples for c in clips},
        "Random": {
            c.clip_id: [random_listener(listeners, len(c.listener), rng) for _ in range(samples)]
            for c in clips
        },
    }
    speakers = {
        "motion": lambda c: SpeakerInput(motion=c.speaker),
        "audio": lambda c: SpeakerInput(audio=c.speaker_audio),
    }
    given = [
        name
        for name, of in speakers.items()
        if all(getattr(of(c), name) is not None for c in (*train, *clips))
    ]
    if "motion" in given:
        found["Mirror"] = {c.clip_id: [mirror(c.speaker, layout)] * samples for c in clips}
    for name in given:
        nearest = NearestNeighbour([speakers[name](c) for c in train], listeners)
        found[f"NN {name}"] = {
            c.clip_id: [nearest(speakers[name](c), len(c.listener))] * samples for c in clips
        }
    if given:
        regression = RegressionListener.fit(train, layout)
        found["Regression"] = {c.clip_id: [regression(c)] * samples for c in clips}
    return found


def scored(
    protocol: str, scorer: Scorer, held_out: HeldOut, reactions: Mapping[str, Reactions], run: Run
) -> dict[str, dict[str, dict[str, Scores]]]:
    """Part of the held-out clips -> variant -> method -> metrics: of all clips, and of either half
    by itself.
    """

    def work(phase: Phase) -> dict[str, Any]:
        try:
            values = by_part(scorer, held_out, reactions)
        except ValueError as error:
            raise RunError(f"protocol {protocol}: {error}") from error
        phase.say(f"{len(values['all']['corrected'][GROUND_TRUTH])} metrics, both variants")
        return {"values": values}

    return run.once(protocol, work)["values"]


def by_part(
    scorer: Scorer, held_out: HeldOut, reactions: Mapping[str, Reactions]
) -> dict[str, dict[str, dict[str, Scores]]]:
    """What `scored` returns."""
    middle = len(held_out.ids) // 2
    parts = {"all": slice(None), "first half": slice(middle), "second half": slice(middle, None)}
    return {
        part: {
            variant: {
                method: scorer(held_out.part(clips), found[clips], variant)
                for method, found in reactions.items()
            }
            for variant in VARIANTS
        }
        for part, clips in parts.items()
    }
