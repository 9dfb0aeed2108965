"""The rollout fleet: trajectories that can be trusted, and a stop when the engines hold other
weights.
"""

from dataclasses import replace

import numpy as np
import pytest
import ray
import torch

from rapport.actors.fleet import Fleet, FleetOptions, StaleWeightsError, log_prob_gap, prompt_seed
from rapport.pipeline.data.vla import prompt_of
from rapport.policies.vla.loading import load_checkpoint

pytestmark = pytest.mark.engine
OPTIONS = FleetOptions(
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
    old, new = load_checkpoint(tiny_checkpoint), load_checkpoint(tiny_checkpoint)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in new.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return old, new


@pytest.fixture(scope="module", params=["vllm", "hf"])
def fleet(request, local_ray, tiny_corpus, tiny_checkpoint, policies):
    canary = prompt_of(tiny_corpus.at("train", 0), policies[0])
    with Fleet(
        tiny_checkpoint, policies[0].model, replace(OPTIONS, engine=request.param), canary, 1
    ) as fleet:
        fleet.info = fleet.ready()
        yield fleet


@pytest.fixture(scope="module")
def prompts(tiny_corpus, policies):
    """Three with video, one without."""
    clips = list(tiny_corpus.clips("test"))
    made = [prompt_of(clip, policies[0]) for clip in clips[:3]]
    return [*made, prompt_of(replace(clips[3], speaker_frames=None), policies[0])]


def sample(fleet, prompts, seed=5, samples=2):
    """(prompt id, sample) -> trajectory."""
    batches = list(fleet.generate(iter(prompts), samples, seed))
    found = {(t.prompt_id, t.sample): t for batch in batches for t in batch}
    assert len(found) == sum(map(len, batches)) == samples * len(prompts)
    return found


def gap(policy, prompts, found):
    by_id = {p.prompt_id: p for p in prompts}
    return max(
        log_prob_gap(policy.model, by_id[t.prompt_id], t, OPTIONS.temperature)
        for t in found.values()
    )


def test_the_fleet_says_what_runs(fleet):
    assert (
        fleet.info["name"] == fleet.options.engine
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
        assert t.tokens.shape == t.log_probs.shape == (45,) and t.log_probs.dtype == np.float32
        assert t.tokens.min() >= 344 and t.tokens.max() < 600 and (t.log_probs <= 0).all()
        assert t.weight_version == fleet.version and t.seed == prompt_seed(5, prompt)
    assert gap(policies[0], prompts, found) < 1e-4


def test_tokens_follow_the_seed_whatever_the_batches(fleet, prompts):
    first, again = sample(fleet, prompts), sample(fleet, prompts[::-1])
    other = sample(fleet, prompts, seed=6)
    for key, t in first.items():
        np.testing.assert_array_equal(t.tokens, again[key].tokens)
        assert not np.array_equal(t.tokens, other[key].tokens)
    name = prompts[0].prompt_id
    assert not np.array_equal(first[name, 0].tokens, first[name, 1].tokens), "candidates differ"


def test_an_update_changes_what_is_sampled_and_is_checked(fleet, prompts, policies):
    old, new = policies
    version = fleet.version
    try:
        assert fleet.update(new.model) < 1e-4 and fleet.version == version + 1
        found = sample(fleet, prompts)
        assert {t.weight_version for t in found.values()} == {version + 1}
        assert gap(new, prompts, found) < 1e-4 < 1e-2 < gap(old, prompts, found)
    finally:
        fleet.update(old.model)


def test_engines_with_other_weights_than_the_policy_stop_the_run(fleet, policies):
    fleet._policy = policies[1].model
    try:
        with pytest.raises(StaleWeightsError, match="disagree by .* nats.*canary_tolerance"):
            fleet.ready()
    finally:
        fleet._policy = policies[0].model


def test_an_update_that_does_not_arrive_stops_the_run(fleet, policies):
    """The policy says one thing and hands on another: as if the engine had kept its weights."""

    class Deceiving:
        config = policies[1].model.config
        action_logits = staticmethod(policies[1].model.action_logits)
        state_dict = staticmethod(policies[0].model.state_dict)

    try:
        with pytest.raises(StaleWeightsError, match="disagree"):
            fleet.update(Deceiving())
    finally:
        fleet.update(policies[0].model)


def test_an_engine_killed_in_the_middle_comes_back_with_the_current_weights(
    fleet, prompts, policies
):
    """Before an update its successor would load the checkpoint; after one, that would be stale."""
    old, new = policies
    fleet.update(new.model)
    try:
        found = {}
        for batch in fleet.generate(iter(prompts), 2, 5):
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
            np.testing.assert_array_equal(t.tokens, found[key].tokens)
    finally:
        fleet.update(old.model)


def test_trajectories_of_another_version_stop_the_run(fleet, prompts):
    fleet.version += 1
    try:
        with pytest.raises(StaleWeightsError, match="another weight version"):
            sample(fleet, prompts)
    finally:
        fleet.version -= 1


def test_the_hf_engine_has_no_tensor_parallelism(tiny_checkpoint):
    from rapport.policies.vla.hf_engine import HfEngine

    with pytest.raises(ValueError, match="tensor_parallel=1"):
        HfEngine(tiny_checkpoint, "float32", 1.0, 0.25, tensor_parallel=2)
