"""Several listeners to one moment: which clips are taken, and that a speaker is learnt once."""

from collections import Counter
from types import SimpleNamespace

import pytest

from rapport.pipeline.data.store import Corpus
from rapport.pipeline.data.synthetic.generate import Design, generate_corpus
from rapport.pipeline.settings import GdpoOfFlow
from rapport.pipeline.steps.corpus import choose
from rapport.pipeline.steps.imitation_flow import people
from rapport.pipeline.steps.perceiving import asked_clips

LISTENERS = 3


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    """10 moments of 2 conversations (8 and 2) and 6 of 2 (4 and 2), 3 listeners each."""
    path = tmp_path_factory.mktemp("moments") / "c"
    design = Design(seconds=1, past=0, listeners=LISTENERS, frames=0)
    return generate_corpus(path, 10, 1, 6, design=design, workers=0)


def test_a_corpus_knows_who_speaks_when(corpus):
    moments = corpus.moments("train")
    assert list(moments) == corpus.clip_ids("train")
    assert moments == {clip.clip_id: clip.moment for clip in corpus.clips("train", ())}
    assert set(Counter(moments.values()).values()) == {LISTENERS}


def test_moments_come_evenly_from_all_conversations_with_one_listener_each(corpus):
    moments = corpus.moments("test")
    for seed in range(5):
        few = choose(corpus, "test", 4, seed=seed)
        assert Counter(moments[i][0] for i in few) == {"test-0000": 2, "test-0001": 2}
        every = choose(corpus, "test", 6, seed=seed)
        assert every[:4] == few and len({moments[i] for i in every}) == 6
    listeners = {i.split("-")[2] for seed in range(5) for i in choose(corpus, "test", 6, seed=seed)}
    assert listeners == {"0", "1", "2"}, "not always the same one"
    assert len({tuple(choose(corpus, "test", 6, seed=seed)) for seed in range(5)}) == 5


def test_further_listeners_come_when_all_moments_are_taken(corpus):
    moments = corpus.moments("test")
    everybody = choose(corpus, "test", 99, seed=0)
    assert sorted(everybody) == sorted(moments)
    for turn in range(LISTENERS):
        assert len({moments[i] for i in everybody[6 * turn : 6 * (turn + 1)]}) == 6
    assert choose(corpus, "test", 6, seed=0, skip=6) == everybody[6:12]
    assert choose(corpus, "test", 4, seed=0, skip=16) == [*everybody[16:], *everybody[:2]]


@pytest.mark.parametrize(("roles", "speakers"), [("both", 10), ("listener", 0)])
def test_a_speaker_is_learnt_once_a_moment(corpus, roles, speakers):
    config = SimpleNamespace(vae=GdpoOfFlow().vae, roles=roles)
    learnt = Counter(window.role for window in people(config, corpus, "train"))
    assert learnt["listener"] == 10 * LISTENERS and learnt["speaker"] == speakers


def test_one_listener_to_each_moment_is_enough_to_know_its_speaker(corpus):
    first = corpus.first_listeners("train")
    assert list(first) == [i for i in corpus.clip_ids("train") if i.split("-")[2] == "0"]
    assert first == {i: moment for i, moment in corpus.moments("train").items() if i in first}
    read = list(corpus.clips("train", (), only=first))
    assert {clip.clip_id: clip.moment for clip in read} == first


@pytest.mark.parametrize(("limit", "places"), [(99, range(18)), (3, [0, 8, 17])])
def test_what_a_policy_perceives_is_asked_of_all_who_listened(monkeypatch, corpus, limit, places):
    monkeypatch.setattr("rapport.pipeline.steps.perceiving.SPLIT", "test")
    everybody = list(corpus.moments("test").items())
    wanted = {everybody[place][0]: everybody[place][1][0] for place in places}
    assert asked_clips(corpus, limit) == wanted
