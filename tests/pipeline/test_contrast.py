"""Contrast pairs on a corpus: who is chosen from, what is written, what is counted."""

from types import SimpleNamespace

import pytest

from rapport.pipeline.data.candidates import GROUND_TRUTH, POLICY, Candidate
from rapport.pipeline.data.store import load_appropriate
from rapport.pipeline.data.synthetic.generate import Design, generate_corpus
from rapport.pipeline.rundir import Phase, RunError
from rapport.pipeline.settings import DpoOfOther, DpoOfVla
from rapport.pipeline.steps import preferences
from rapport.pipeline.steps.contrast import (
    contrast_rows,
    contrasted,
    recorded_pool,
    sampled_pool,
)
from rapport.pipeline.steps.learning import Imitated
from rapport.pipeline.steps.sampling import candidates
from rapport.policies.tables import read_table
from rapport.rewards.ratings.ratings import Rating
from tests.gaussian import Gaussian


@pytest.fixture(scope="module")
def imitated(tmp_path_factory):
    """Six moments of training, each with three listeners, and a policy for them."""
    folder = tmp_path_factory.mktemp("contrast")
    design = Design(seconds=1, past=1, listeners=3, frames=0, image_size=28)
    corpus = generate_corpus(folder / "corpus", 24, 1, 1, design=design, workers=0)
    Gaussian.untrained(corpus.layout, corpus.clips("train"), 0).save(folder / "policy")
    return Imitated(corpus, folder / "policy")


@pytest.fixture
def groups(imitated):
    """Two samples and the recorded listener for each prompt."""
    made = {}
    policy = imitated.policy
    for clip in imitated.corpus.clips("train"):
        [reactions] = policy.sample([policy.encode(clip)], 2, [len(made)])
        names = [f"{clip.clip_id}-{k}" for k in range(2)]
        made[clip.clip_id] = [
            Candidate(clip.clip_id, name, POLICY, reaction.actions)
            for name, reaction in zip(names, reactions, strict=True)
        ]
        actions = policy.recorded(clip).actions
        made[clip.clip_id].append(Candidate(clip.clip_id, "truth", GROUND_TRUTH, actions))
    return made


@pytest.fixture
def phase(tmp_path):
    logged = []
    return Phase("pair", "pair", tmp_path, SimpleNamespace(log=logged.append, logged=logged))


def config_of(**dpo):
    return DpoOfOther(policy=Gaussian.kind, dpo={"batch_size": 2} | dpo)


def test_recorded_ones_fit_the_speaker_and_none_goes_on_from_the_prompts_own_past(imitated):
    corpus = imitated.corpus
    ids = corpus.clip_ids("train")
    pool = recorded_pool(imitated, ids)
    fitting = load_appropriate(corpus.path)
    assert set(pool.groups) == {i for i in ids if fitting[i]}
    for prompt_id, group in pool.groups.items():
        names = {reaction.candidate_id for reaction in group}
        assert names <= set(fitting[prompt_id])
        assert prompt_id not in names or fitting[prompt_id] == [prompt_id]
        assert {corpus.clip(name).moment for name in names} == {corpus.clip(prompt_id).moment}


def test_of_a_rated_group_the_best_sample_is_taken_and_never_the_recorded_listener(
    imitated, groups
):
    prompt_id = next(iter(groups))
    scores = {prompt_id: {f"{prompt_id}-0": 0.2, f"{prompt_id}-1": 0.7, "truth": 0.9}}
    pool = sampled_pool(imitated, groups, scores)
    assert [r.candidate_id for r in pool.groups[prompt_id]] == [f"{prompt_id}-1"]
    others = [group for name, group in pool.groups.items() if name != prompt_id]
    assert all(len(group) == 2 for group in others), "of groups that nobody rated, all samples"


@pytest.mark.parametrize("kind", ["recorded", "sampled"])
def test_rows_hold_both_reactions_and_whose_the_rejected_one_is(imitated, groups, phase, kind):
    corpus = imitated.corpus
    config = config_of(contrast=1, contrast_of=kind)
    pairs, pool, counts = contrasted(
        phase, config, imitated, groups, rated=0, scores={}, round_index=1
    )
    assert counts["contrast_pairs"] == len(pairs) == len(pool.groups)
    for pair, row in zip(pairs, contrast_rows(pairs, pool, imitated), strict=True):
        assert row["chosen"] == pool.actions[pair.chosen].tolist()
        assert row["rejected"] == pool.actions[pair.rejected].tolist()
        assert row["chosen_score"] is None and row["rejected_score"] is None
        speakers = [corpus.clip(i).speaker_id for i in (row["prompt_id"], row["made_for"])]
        assert speakers[0] != speakers[1]


def test_recordings_are_not_only_of_the_moments_that_were_rolled_out(imitated, groups, phase):
    few = dict(list(groups.items())[:4])
    pairs, pool, counts = contrasted(
        phase, config_of(contrast=0.75), imitated, few, rated=4, scores={}, round_index=1
    )
    assert counts["contrast_pairs"] == len(pairs) == 12
    assert len(pool.groups) > 4 and not set(pool.groups) <= set(few)


def test_all_of_one_speaker_are_an_error(imitated, groups, phase):
    one = next(iter(groups))
    with pytest.raises(RunError, match="dpo.contrast=1: 1 prompts .* all of one speaker"):
        contrasted(
            phase,
            config_of(contrast=1, contrast_of="sampled"),
            imitated,
            {one: groups[one]},
            rated=0,
            scores={},
            round_index=1,
        )


def test_mixed_with_ratings_no_rated_pair_is_left_out(imitated, groups, phase):
    ratings = [
        Rating(prompt_id, candidate.candidate_id, "r", *[1 + place] * 4)
        for prompt_id, group in list(groups.items())[:6]
        for place, candidate in enumerate(group)
    ]
    config = config_of(contrast=0.5)
    result = preferences._paired.__wrapped__(
        phase, config, imitated, groups=groups, ratings=ratings, round_index=1
    )
    rows = read_table(result.artifacts["pairs"]).to_list()
    assert (result.counts["rated_pairs"], result.counts["contrast_pairs"]) == (6, 6)
    assert result.metrics == {"contrast_share": 0.5} and len(rows) == result.counts["pairs"] == 12
    assert [row["made_for"] is None for row in rows] == [False] * 6 + [True] * 6, "twins first"


def test_without_raters_no_pair_is_a_rated_one(imitated, groups, phase):
    result = preferences._paired.__wrapped__(
        phase, config_of(contrast=1), imitated, groups=groups, ratings=[], round_index=1
    )
    assert result.counts["rated_pairs"] == 0 and result.metrics == {"contrast_share": 1.0}
    assert all(row["made_for"] for row in read_table(result.artifacts["pairs"]).to_list())


def test_without_raters_nothing_is_rated_and_of_recorded_ones_nothing_sampled(imitated, groups):
    config = config_of(contrast=1)
    run = SimpleNamespace()  # nothing is asked of it
    assert preferences.rate(run, config, imitated, groups=groups, raters=None) == []
    prompts = candidates(run, config, imitated, fleet=None, renderers=None)
    assert set(prompts) == set(imitated.corpus.clip_ids("train"))
    assert not any(prompts.values())


def test_a_margin_of_scores_needs_scores():
    with pytest.raises(ValueError, match="dpo.loss=margin needs scores"):
        DpoOfVla(dpo={"loss": "margin", "contrast": 0.3})
