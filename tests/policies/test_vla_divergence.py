"""KL of whole reactions: zero of a policy to itself, and the mean log-ratio of samples where there
are many.
"""

import numpy as np
import pytest
import torch

from rapport.policies.policy import Reaction
from rapport.policies.vla.divergence import sequence_kl
from rapport.policies.vla.policy import VlaPolicy
from rapport.policies.vla.sequence import seen_of


@pytest.fixture
def policies(tiny_checkpoint, other_checkpoint):
    return [VlaPolicy.load(path) for path in (tiny_checkpoint, other_checkpoint)]


def test_zero_to_itself_and_positive_to_another(policies, tiny_corpus):
    ours, theirs = policies
    prompt = ours.encode(tiny_corpus.at("train", 0))
    config = ours.model.config
    tokens = config.action_token_start + np.random.default_rng(0).integers(
        0, 256, (2, config.action_tokens)
    )
    assert sequence_kl(ours.model, ours.model, prompt, tokens) == pytest.approx(0, abs=1e-6)
    assert sequence_kl(ours.model, theirs.model, prompt, tokens) > 0


def test_it_is_the_sum_over_positions_averaged_over_samples(policies, tiny_corpus):
    ours, theirs = policies
    prompt = ours.encode(tiny_corpus.at("train", 0))
    config = ours.model.config
    tokens = config.action_token_start + np.random.default_rng(0).integers(
        0, 256, (3, config.action_tokens)
    )
    each = [sequence_kl(ours.model, theirs.model, prompt, tokens[i : i + 1]) for i in range(3)]
    assert sequence_kl(ours.model, theirs.model, prompt, tokens) == pytest.approx(
        np.mean(each), rel=1e-5
    )
    with torch.inference_mode():
        seen = seen_of(config, [prompt])
        p, q = (
            torch.distributions.Categorical(
                logits=c.model.action_logits(seen, torch.as_tensor(tokens[:1]))
            )
            for c in (ours, theirs)
        )
        expected = torch.distributions.kl_divergence(p, q).sum().item()
    assert each[0] == pytest.approx(expected, rel=1e-5)


def test_a_policy_tells_its_distance_to_another(policies, tiny_corpus):
    ours, theirs = policies
    prompt = ours.encode(tiny_corpus.at("train", 0))
    config = ours.model.config
    tokens = config.action_token_start + np.random.default_rng(0).integers(
        0, 256, (2, config.action_tokens)
    )
    reactions = [Reaction(prompt.prompt_id, k, each) for k, each in enumerate(tokens)]
    expected = sequence_kl(ours.model, theirs.model, prompt, tokens)
    assert ours.divergence(theirs, prompt, reactions) == expected
