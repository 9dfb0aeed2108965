"""The rollout fleet: trajectories that can be trusted, and a stop when the engines hold other
weights.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import ray
import torch

from rapport.actors.engines import TokenEngine, engine_environment
from rapport.actors.fleet import Canary, Fleet, StaleWeightsError
from rapport.actors.settings import EngineConfig
from rapport.policies.vla.policy import TokenSampler, VlaPolicy, prompt_seed

pytestmark = pytest.mark.engine
OPTIONS = EngineConfig(
    engine="vllm",
    workers=1,
    cpus=0.4,
    gpus=0,
    threads=1,
    tensor_parallel=1,
    dtype="float32",
    kv_cache_gib=0.25,
    batch_prompts=2,
    in_flight=2,
    temperature=0.8,
    canary_tolerance=1e-3,
    start_timeout_s=300,
    timeout_s=300,
)


@pytest.fixture(scope="module")
def policies(tiny_corpus, tiny_checkpoint, tmp_path_factory):
    """The fleet's policy and another one of the same shape."""
    old, new = VlaPolicy.load(tiny_checkpoint), VlaPolicy.load(tiny_checkpoint)
    for policy in (old, new):
        policy.sampler = TokenSampler(OPTIONS.temperature)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in new.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return old, new


@pytest.fixture(scope="module", params=["vllm", "hf"])
def fleet(request, local_ray, tiny_corpus, tiny_checkpoint, policies):
    config = OPTIONS.model_copy(update={"engine": request.param})
    prompt = policies[0].encode(tiny_corpus.at("train", 0))
    with Fleet(
        partial(TokenEngine, str(tiny_checkpoint), config),
        config,
        losses=1,
        environment=engine_environment(config),
        policy=policies[0],
        canary=Canary(prompt, config.canary_tolerance, actions=45),
    ) as fleet:
        fleet.info = fleet.ready()
        yield fleet


@pytest.fixture(scope="module")
def prompts(tiny_corpus, policies):
    """Three with video, one without."""
    clips = list(tiny_corpus.clips("test"))
    made = [policies[0].encode(clip) for clip in clips[:3]]
    return [*made, policies[0].encode(replace(clips[3], speaker_frames=None))]


def sample(fleet, prompts, seed=5, samples=2):
    """(prompt id, sample) -> trajectory."""
    seeds = [prompt_seed(seed, prompt.prompt_id) for prompt in prompts]
    batches = [
        [reaction for group in groups for reaction in group]
        for groups in fleet.sample(iter(prompts), samples, iter(seeds))
    ]
    found = {(t.prompt_id, t.sample): t for batch in batches for t in batch}
    assert len(found) == sum(map(len, batches)) == samples * len(prompts)
    return found


def gap(policy, prompts, found):
    by_id = {p.prompt_id: p for p in prompts}
    return max(policy.log_prob_gaps(by_id[t.prompt_id], t).max() for t in found.values())


def test_the_fleet_says_what_runs(fleet):
    assert (
        fleet.info["name"] == fleet.config.engine
        and fleet.info["version"]
        and fleet.info["workers"] == 1
    )
    assert (
        fleet.info["device"] == "cpu"
        and fleet.info["dtype"] == "float32"
        and fleet.info["canary_gap"] < 1e-4
    )


def test_trajectories_carry_what_trust_needs(fleet, prompts, policies):
    found = sample(fleet, prompts)
    assert set(found) == {(p.prompt_id, k) for p in prompts for k in range(2)}
    for (prompt, _), t in found.items():
        assert t.actions.shape == t.log_probs.shape == (45,) and t.log_probs.dtype == np.float32
        assert t.actions.min() >= 344 and t.actions.max() < 600 and (t.log_probs <= 0).all()
        assert t.weight_version == fleet.version and t.seed == prompt_seed(5, prompt)
        assert t.versions == (fleet.version,) * 5  # chunks
    assert gap(policies[0], prompts, found) < 1e-4


def test_tokens_follow_the_seed_whatever_the_batches(fleet, prompts):
    first, again = sample(fleet, prompts), sample(fleet, prompts[::-1])
    other = sample(fleet, prompts, seed=6)
    for key, t in first.items():
        np.testing.assert_array_equal(t.actions, again[key].actions)
        assert not np.array_equal(t.actions, other[key].actions)
    name = prompts[0].prompt_id
    assert not np.array_equal(first[name, 0].actions, first[name, 1].actions), "candidates differ"


def test_an_update_changes_what_is_sampled_and_is_checked(fleet, prompts, policies):
    old, new = policies
    version = fleet.version
    try:
        assert fleet.update(new.weights(), new) < 1e-4 and fleet.version == version + 1
        found = sample(fleet, prompts)
        assert {t.weight_version for t in found.values()} == {version + 1}
        assert gap(new, prompts, found) < 1e-4 < 1e-2 < gap(old, prompts, found)
    finally:
        fleet.update(old.weights(), old)


def test_engines_with_other_weights_than_the_policy_stop_the_run(fleet, policies):
    fleet._policy = policies[1]
    try:
        with pytest.raises(StaleWeightsError, match="disagree by .* nats.*canary_tolerance"):
            fleet.ready()
    finally:
        fleet._policy = policies[0]


def test_an_update_that_does_not_arrive_stops_the_run(fleet, policies):
    """The policy says one thing and hands on another: as if the engine had kept its weights."""

    try:
        with pytest.raises(StaleWeightsError, match="disagree"):
            fleet.update(policies[0].weights(), policies[1])
    finally:
        fleet.update(policies[0].weights(), policies[0])


def test_an_engine_killed_in_the_middle_comes_back_with_the_current_weights(
    fleet, prompts, policies
):
    """Before an update its successor would load the checkpoint; after one, that would be stale."""
    old, new = policies
    fleet.update(new.weights(), new)
    try:
        found = {}
        seeds = [prompt_seed(5, prompt.prompt_id) for prompt in prompts]
        for groups in fleet.sample(iter(prompts), 2, iter(seeds)):
            batch = [reaction for group in groups for reaction in group]
            if not found:
                ray.kill(fleet._actors[0])
            found |= {(t.prompt_id, t.sample): t for t in batch}
        assert fleet.lost == 1
        fleet.lost = 0
        assert set(found) == {(p.prompt_id, k) for p in prompts for k in range(2)}
        assert {t.weight_version for t in found.values()} == {fleet.version}
        assert gap(new, prompts, found) < 1e-4
        again = sample(fleet, prompts)  # by the successor alone
        for key, t in again.items():
            np.testing.assert_array_equal(t.actions, found[key].actions)
    finally:
        fleet.update(old.weights(), old)


def test_trajectories_of_another_version_stop_the_run(fleet, prompts):
    fleet.version += 1
    try:
        with pytest.raises(StaleWeightsError, match="another weight version"):
            sample(fleet, prompts)
    finally:
        fleet.version -= 1


def test_the_hf_engine_has_no_tensor_parallelism():
    with pytest.raises(ValueError, match="tensor_parallel=1"):
        EngineConfig(engine="hf", tensor_parallel=2)
