"""A rollout or a rating that is killed keeps what was answered, and asks only for the rest."""

from types import SimpleNamespace

import pytest

from rapport.actors.rater import RewardWorker
from rapport.pipeline.data.synthetic.words import LEXICON
from rapport.pipeline.rundir import Phase
from rapport.pipeline.settings import DpoOfOther
from rapport.pipeline.steps.learning import Imitated
from rapport.pipeline.steps.preferences import rate
from rapport.pipeline.steps.sampling import roll_out
from rapport.policies.head.settings import HeadConfig
from rapport.policies.policy import load_policy
from rapport.rewards.ratings.ratings import read_ratings
from tests.gaussian import Gaussian

CONFIG = DpoOfOther(
    policy="tests.gaussian:Gaussian",
    rollout={"prompts": 8, "samples": 2, "batch_prompts": 3},
    raters={"count": 2},
)


class Killed(BaseException):
    """As a signal would end the run."""


class Here:
    """A fleet and a reward pool without Ray; `dies_after` answers it is killed."""

    def __init__(self, policy, dies_after=None):
        self.policy = policy
        self.worker = RewardWorker(CONFIG.raters.count, LEXICON, HeadConfig())
        self.dies_after = dies_after
        self.asked = []

    def answers(self, requests):
        for request in requests:
            self._ask([prompt.prompt_id for prompt in request.prompts])
            yield request, self.policy.sample(request.prompts, request.samples, request.seeds)

    def rate(self, prompts, panel):
        for prompt in prompts:
            self._ask(prompt.prompt_id)
            yield prompt, self.worker.rate((panel, prompt))

    def _ask(self, what):
        if len(self.asked) == self.dies_after:
            raise Killed
        self.asked.append(what)


@pytest.fixture(scope="module")
def imitated(tiny_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy") / "policy"
    Gaussian.untrained(tiny_corpus.layout, tiny_corpus.clips("train"), seed=0).save(folder)
    return Imitated(tiny_corpus, folder)


def workspace(folder):
    """A run without MLflow."""
    folder.mkdir(exist_ok=True)

    def once(name, work, round_index=1):
        return work(Phase(name, name, folder, SimpleNamespace(log=lambda *values: None)))

    return SimpleNamespace(once=once, summary={"metrics": {}}, root=folder)


def here(imitated, **kills):
    return Here(load_policy(imitated.policy_path), **kills)


def test_a_resumed_rollout_gives_the_file_of_one_that_nobody_killed(imitated, tmp_path):
    whole = here(imitated)
    roll_out(workspace(tmp_path / "whole"), CONFIG, imitated, fleet=whole)
    assert [len(batch) for batch in whole.asked] == [3, 3, 2]

    run = workspace(tmp_path / "killed")
    with pytest.raises(Killed):
        roll_out(run, CONFIG, imitated, fleet=here(imitated, dies_after=2))
    rest = here(imitated)
    roll_out(run, CONFIG, imitated, fleet=rest)
    assert rest.asked == whole.asked[2:]
    files = [tmp_path / name / "candidates.parquet" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["candidates.parquet"]


def test_answers_to_other_questions_are_asked_for_again(imitated, tmp_path):
    run = workspace(tmp_path / "run")
    with pytest.raises(Killed):
        roll_out(run, CONFIG, imitated, fleet=here(imitated, dies_after=2))
    more = CONFIG.model_copy(update={"rollout": CONFIG.rollout.model_copy(update={"samples": 3})})
    again = here(imitated)
    groups = roll_out(run, more, imitated, fleet=again)
    assert len(again.asked) == 3 and {len(group) for group in groups.values()} == {4}


def test_a_resumed_rating_gives_the_file_of_one_that_nobody_killed(imitated, tmp_path):
    groups = roll_out(workspace(tmp_path / "rollout"), CONFIG, imitated, fleet=here(imitated))
    whole = here(imitated)
    rated = rate(workspace(tmp_path / "whole"), CONFIG, imitated, groups=groups, raters=whole)
    assert len(rated) == 8 * 3 * 2 and sorted(whole.asked) == sorted(groups)

    run = workspace(tmp_path / "killed")
    with pytest.raises(Killed):
        rate(run, CONFIG, imitated, groups=groups, raters=here(imitated, dies_after=3))
    answered = tmp_path / "killed" / "answered.jsonl"
    kept = answered.read_text()
    answered.write_text(kept + '["half a li')
    rest = here(imitated)
    rate(run, CONFIG, imitated, groups=groups, raters=rest)
    assert rest.asked == whole.asked[3:]
    files = [tmp_path / name / "ratings.parquet" for name in ("whole", "killed")]
    assert read_ratings(files[0]) == read_ratings(files[1])
    assert files[0].read_bytes() == files[1].read_bytes()
