"""An engine of two shards, under Ray, is the engine of one; its LLaMA has a head that was tied."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rapport.actors.engines import TokenEngine, canary_tolerance, engine_environment
from rapport.actors.fleet import Canary, Fleet
from rapport.actors.settings import EngineConfig
from rapport.pipeline.bench.workload import random_prompts
from rapport.policies.motion import Layout
from rapport.policies.vla.actions import ActionSpace, ActionTokenizer
from rapport.policies.vla.loading import SequenceSizes, save_checkpoint
from rapport.policies.vla.policy import VlaPolicy
from rapport.policies.vla.pretrained import load_pretrained
from tests.published import LLAMA_3, save_parts

pytestmark = [pytest.mark.engine, pytest.mark.long]
SPACE = ActionSpace(Layout((("expr", 3), ("rot", 3)), 25, "flame2020"), rate=5, seconds=2)


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """A policy of a tied LLaMA in a folder, and the same with other weights."""
    folder = tmp_path_factory.mktemp("tied")
    parts = save_parts(folder, LLAMA_3, width=64, heads=2, tie_word_embeddings=True)
    model, tokenizer = load_pretrained(
        parts, SPACE, SequenceSizes(context=2.0, text_tokens=4), dtype=torch.float32
    )
    start = model.config.action_token_start
    actions = ActionTokenizer(SPACE, np.full(6, -1.0), np.ones(6), first_token=start)
    save_checkpoint(model, tokenizer, actions, folder / "policy")
    old = VlaPolicy.load(folder / "policy")
    new = VlaPolicy.load(folder / "policy")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in new.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return old, new


def prompts(config):
    """Three, of which the last shows no frames and no voice."""
    return [
        *random_prompts(config, 2, seed=0),
        *random_prompts(config, 3, seed=1, filmed=False)[2:],
    ]


def answered(policies, shards):
    """What a fleet says of itself and answers, before and after an update, each checked by the
    canary against a forward pass in torch.
    """
    old, new = policies
    config = EngineConfig(workers=1, threads=1, kv_cache_gib=0.25, tensor_parallel=shards)
    asked = prompts(old.model.config)
    with Fleet(
        partial(TokenEngine, str(old._folder), config),
        config,
        losses=0,
        environment=engine_environment(config),
        policy=old,
        canary=Canary(asked[0], canary_tolerance(config), actions=60),
    ) as fleet:
        info = fleet.ready()
        before = fleet.groups(asked, 2, [1, 2, 3])
        fleet.update(new.weights(), new)
        after = fleet.groups(asked, 2, [1, 2, 3])
    return SimpleNamespace(info=info, before=before, after=after)


def test_two_shards_answer_as_one_also_after_an_update(local_ray, policies):
    one = answered(policies, shards=1)
    two = answered(policies, shards=2)
    assert (one.info["tensor_parallel"], two.info["tensor_parallel"]) == (1, 2)
    assert one.info["eager"] and two.info["canary_gap"] < 1e-4
    assert two.info["kv_blocks"] == 2 * one.info["kv_blocks"], "each shard holds half of the heads"
    for ours, theirs in ((one.before, two.before), (one.after, two.after)):
        for group, expected in zip(ours, theirs, strict=True):
            for reaction, same in zip(group, expected, strict=True):
                np.testing.assert_array_equal(reaction.actions, same.actions)
                np.testing.assert_allclose(reaction.log_probs, same.log_probs, rtol=0, atol=1e-4)
    changed = (one.before[0][0].actions != one.after[0][0].actions).any()
    assert changed, "or the update was not seen"
