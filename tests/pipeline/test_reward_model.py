"""What people had no time for is rated by a model of their ratings, and is called so."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest

from rapport.actors.rater import Viewer
from rapport.pipeline.data.candidates import POLICY, Candidate, write_candidates
from rapport.pipeline.data.synthetic.generate import Design, generate_corpus
from rapport.pipeline.rundir import Phase, RunError
from rapport.pipeline.settings import DpoOfOther
from rapport.pipeline.steps import preferences
from rapport.pipeline.steps.learning import Imitated
from rapport.pipeline.steps.reward_model import MODEL, SHUFFLED, SWAPPED, seen_by_model
from rapport.policies.head.settings import HeadConfig
from rapport.policies.tables import read_table
from rapport.rewards.ratings.ratings import CRITERIA, read_ratings
from rapport.rewards.reward_model import FEWEST_GROUPS, LEARNT, RewardModel
from tests.gaussian import Gaussian

GROUPS, UNRATED, EACH = 48, 6, 3


@pytest.fixture(scope="module")
def imitated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learnt")
    design = Design(seconds=1, past=1, listeners=1, frames=0, image_size=28)
    corpus = generate_corpus(folder / "corpus", GROUPS, 1, 1, design=design, workers=0)
    policy = Gaussian.untrained(corpus.layout, corpus.clips("train"), 0)
    policy.save(folder / "policy")
    return Imitated(corpus, folder / "policy")


@pytest.fixture(scope="module")
def groups(imitated):
    """Three samples for every prompt."""
    policy = imitated.policy
    made = {}
    for clip in imitated.corpus.clips("train"):
        [reactions] = policy.sample([policy.encode(clip)], EACH, [len(made)])
        made[clip.clip_id] = [
            Candidate(clip.clip_id, f"{clip.clip_id}-{k}", POLICY, reaction.actions)
            for k, reaction in enumerate(reactions)
        ]
    return made


@pytest.fixture(scope="module")
def smiles(imitated, groups):
    """Prompt -> candidate -> how far the corners of the mouth are up, in mm."""
    viewer = Viewer(HeadConfig())
    to_motion = imitated.policy.to_motion
    return {
        prompt: {
            each.candidate_id: float(viewer(to_motion(each.reaction)).expression.mouth_lift.mean())
            for each in group
        }
        for prompt, group in groups.items()
    }


@pytest.fixture
def rated(imitated, groups, smiles, tmp_path):
    """A config with sheets of two people who like smiles, and a run to rate in."""

    def make(prompts, like=True, **keys):
        rng = np.random.default_rng(0)
        every = [value for group in smiles.values() for value in group.values()]
        rows = []
        for prompt in prompts:
            for candidate, smile in smiles[prompt].items():
                place = (smile - np.mean(every)) / np.std(every) if like else rng.normal()
                for rater in ("Ann", "Bob"):
                    grades = np.clip(3 + place + 0.1 * rng.normal(size=4), 1, 5).round(2)
                    rows.append([prompt, candidate, rater, *grades])
        sheets = tmp_path / "sheets.csv"
        with sheets.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["prompt_id", "candidate_id", "rater", *CRITERIA])
            writer.writerows(rows)
        folder = tmp_path / "candidates"
        folder.mkdir()
        file = folder / "candidates.parquet"
        write_candidates(file, [c for group in groups.values() for c in group], imitated.policy)
        (folder / "summary.json").write_text('{"artifacts": {"candidates": "candidates.parquet"}}')
        return DpoOfOther(
            policy=Gaussian.kind,
            candidates=folder,
            ratings=sheets,
            score={"learnt": True} | keys,
            evaluation={"bootstrap": 200},
        )

    return make


@pytest.fixture
def run(tmp_path):
    """Phases run at once; what they log is kept."""
    logged = []
    summary = {"metrics": {}}

    def once(name, work, round_index=1):
        folder = tmp_path / name
        folder.mkdir()
        phase = Phase(name, name, folder, SimpleNamespace(log=logged.append))
        result = work(phase)
        summary.setdefault("counts", {}).update(result["counts"])
        summary.setdefault("engines", {}).update(result["engines"])
        return result

    places = {"root": tmp_path, "directory": tmp_path}
    return SimpleNamespace(once=once, **places, summary=summary, logged=logged)


def test_beside_another_speaker_the_same_listener_has_another_answer(imitated, groups):
    """Swapped are speakers, of another conversation; the listener's manner stays."""
    corpus = imitated.corpus
    moments = corpus.moments("train")
    first = next(iter(groups))
    second = next(p for p in groups if moments[p][0] != moments[first][0])
    chosen = {p: preferences.motions_of_group(imitated, groups[p]) for p in (first, second)}
    viewer = Viewer(HeadConfig())
    seen = seen_by_model(corpus, chosen, viewer, seed=0)
    manner = [n for n, name in enumerate(seen.names) if name.endswith((": mean", ": slow"))]
    answer = [n for n, name in enumerate(seen.names) if ": follows by" in name]
    np.testing.assert_array_equal(seen.own[:, manner], seen.another[:, manner])
    assert not np.isclose(seen.own[:, answer], seen.another[:, answer]).all(axis=1).any()
    told = seen_by_model(corpus, {first: chosen[second]} | {second: chosen[first]}, viewer, seed=0)
    np.testing.assert_allclose(told.own[EACH:], seen.another[:EACH])


def test_groups_that_people_had_no_time_for_are_learnt(
    imitated, groups, smiles, rated, run, tmp_path, capsys
):
    prompts = list(groups)
    config = rated(prompts[UNRATED:])
    preferences.check_ratings(config)
    ratings = preferences.rate(run, config, imitated, groups=groups, raters=None)
    learnt = [each for each in ratings if each.rater == LEARNT]
    assert {each.prompt_id for each in learnt} == set(prompts[:UNRATED])
    assert len(learnt) == UNRATED * EACH
    shown = [smiles[each.prompt_id][each.candidate_id] for each in learnt]
    assert np.corrcoef(shown, [each.empathy for each in learnt])[0, 1] > 0.9

    # Apart from people's on the disk, counted, and said.
    people = read_ratings(tmp_path / "rate" / "ratings.parquet")
    assert {each.rater for each in people} == {"rater-1", "rater-2"}
    assert read_ratings(tmp_path / "reward_model" / "learnt.parquet") == learnt
    assert run.summary["counts"] == {"learnt_groups": UNRATED, "learnt_candidates": len(learnt)}
    table = run.summary["metrics"]["reward_model"]["agreement"]
    assert table[MODEL]["accuracy"]["mean"] > 0.9 > table[SHUFFLED]["accuracy"]["high"]
    assert table[SWAPPED]["accuracy"]["mean"] > 0.8, "a smile is one whoever speaks"
    told = capsys.readouterr().out
    assert "18 candidates of 6 groups that people had no time for are rated by a model" in told
    assert "of what the model gains over chance stays when another speaks" in told
    assert run.logged[-1]["accuracy"] == table[MODEL]["accuracy"]["mean"]
    model = RewardModel.load(tmp_path / "reward_model" / "reward_model.npz")
    assert set(model.criteria) == set(CRITERIA)

    pairs = preferences.pair(run, config, imitated, groups=groups, ratings=ratings)
    rows = read_table(pairs).to_list()
    assert {row["prompt_id"] for row in rows if row["learnt"]} == set(prompts[:UNRATED])
    assert run.summary["counts"]["rated_pairs"] == GROUPS - UNRATED
    assert run.summary["counts"]["learnt_pairs"] == UNRATED
    assert run.summary["counts"]["pairs"] == len(rows) == GROUPS
    best = {name: max(group, key=group.get) for name, group in smiles.items()}
    by_id = {c.candidate_id: c for group in groups.values() for c in group}
    chosen = [
        np.allclose(row["chosen"], by_id[best[row["prompt_id"]]].actions)
        for row in rows
        if row["learnt"]
    ]
    assert np.mean(chosen) > 0.8


def test_where_people_rated_all_nothing_is_learnt(imitated, groups, rated, run, capsys):
    config = rated(list(groups))
    ratings = preferences.rate(run, config, imitated, groups=groups, raters=None)
    assert not [each for each in ratings if each.rater == LEARNT]
    assert "nothing is left to a model" in capsys.readouterr().out
    assert run.summary["counts"] == {"learnt_groups": 0}


def test_ratings_that_nothing_foretells_are_refused(imitated, groups, rated, run):
    config = rated(list(groups)[UNRATED:], like=False)
    refused = r"people's order is 0\.\d+ \[.*does not exceed chance.* is kept in .*rate$"
    with pytest.raises(RunError, match=refused):
        preferences.rate(run, config, imitated, groups=groups, raters=None)


def test_too_few_rated_groups_are_refused_before_anything_starts(groups, rated):
    config = rated(list(groups)[: FEWEST_GROUPS - 1])
    with pytest.raises(RunError, match=r"people rated 19 groups .* learns from 20: have more"):
        preferences.check_ratings(config)


def test_choices_between_two_are_refused_before_anything_starts(groups, rated):
    config = rated(list(groups))
    first, second = (each.candidate_id for each in next(iter(groups.values()))[:2])
    config.ratings.write_text(
        "prompt_id,first_id,second_id,rater,preferred\n"
        f"{next(iter(groups))},{first},{second},Ann,first\n"
    )
    with pytest.raises(RunError, match=r"score.learnt learns from grades .* leave it out"):
        preferences.check_ratings(config)
