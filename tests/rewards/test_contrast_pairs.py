"""Pairs that no rater makes: of two speakers, as lively, nothing preferred that all get alike."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from rapport.rewards.dpo_loss import PairLogProbs, dpo_loss
from rapport.rewards.ratings.pairs import (
    ReactionId,
    amplitude,
    contrast_count,
    contrast_pairs,
    spread,
)

PROMPTS = [f"p{i}" for i in range(24)]
SPEAKERS = {prompt: f"s{i // 2}" for i, prompt in enumerate(PROMPTS)}  # two prompts of each


def groups(seed=0):
    rng = np.random.default_rng(seed)
    return {
        prompt: {ReactionId(prompt, f"{prompt}-{k}"): float(rng.lognormal()) for k in range(3)}
        for prompt in PROMPTS
    }


def test_the_rejected_one_was_made_for_somebody_else():
    pairs = contrast_pairs(groups(), SPEAKERS, 480)  # a speaker's other prompt would be drawn, too
    assert Counter(pair.prompt_id for pair in pairs[::2]) == dict.fromkeys(PROMPTS, 10)
    for pair in pairs:
        assert pair.chosen.prompt_id == pair.prompt_id
        assert SPEAKERS[pair.rejected.prompt_id] != SPEAKERS[pair.prompt_id]


def test_every_pair_has_its_twin_in_which_the_reactions_change_places():
    pairs = contrast_pairs(groups(), SPEAKERS, 96)
    assert len(pairs) == 96
    for pair, twin in zip(pairs[::2], pairs[1::2], strict=True):
        assert (twin.chosen, twin.rejected, twin.gap) == (pair.rejected, pair.chosen, pair.gap)
        assert (
            twin.prompt_id == pair.rejected.prompt_id and pair.prompt_id == twin.rejected.prompt_id
        )
    assert Counter(pair.chosen for pair in pairs) == Counter(pair.rejected for pair in pairs)


def test_what_is_likelier_whoever_speaks_cancels_between_twins():
    """log p(y | x) = habit[y] + heard[x, y]: at the reference, only what is heard is learnt."""
    habit = torch.tensor([0.3, -1.2], requires_grad=True)
    heard = torch.tensor([[0.5, 0.1], [-0.4, 0.9]], requires_grad=True)

    def gradients(pairs):
        speaker, chosen, rejected = torch.tensor(pairs).T
        likely = habit + heard
        pair = PairLogProbs(
            policy_chosen=likely[speaker, chosen],
            policy_rejected=likely[speaker, rejected],
            reference_chosen=likely[speaker, chosen].detach(),
            reference_rejected=likely[speaker, rejected].detach(),
            num_tokens=1,
        )
        return torch.autograd.grad(dpo_loss(pair, 0.1, "sigmoid").losses.mean(), [habit, heard])

    alone, _ = gradients([(0, 0, 1)])
    assert alone.abs().min() > 0.01
    twins, listening = gradients([(0, 0, 1), (1, 1, 0)])
    assert twins.abs().max() < 1e-7
    assert torch.equal(listening.sign(), torch.tensor([[-1.0, 1.0], [1.0, -1.0]]))


def test_both_are_as_lively_the_more_there_are_to_choose_from():
    gaps = [
        np.median([pair.gap for pair in contrast_pairs(groups(), SPEAKERS, 96, drawn=drawn)])
        for drawn in (1, 4, 16)
    ]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]


def test_the_gap_is_that_of_the_amplitudes():
    made = groups()
    for pair in contrast_pairs(made, SPEAKERS, 24):
        own, other = made[pair.prompt_id][pair.chosen], made[pair.rejected.prompt_id][pair.rejected]
        assert pair.gap == pytest.approx(abs(math.log(own / other)))


def test_amplitude_alone_tells_nothing():
    """Chosen and rejected ones are alike on average: there is no lively face to be preferred."""
    made = groups()
    pairs = contrast_pairs(made, SPEAKERS, 480, seed=1)
    apart = [
        math.log(made[p.prompt_id][p.chosen] / made[p.rejected.prompt_id][p.rejected])
        for p in pairs
    ]
    assert abs(np.mean(apart)) < 0.05 and 0.4 < np.mean(np.array(apart) > 0) < 0.6


def test_the_same_seed_gives_the_same_pairs_whatever_the_order():
    turned = dict(reversed(groups().items()))
    assert contrast_pairs(groups(), SPEAKERS, 30) == contrast_pairs(turned, SPEAKERS, 30)
    assert contrast_pairs(groups(), SPEAKERS, 30) != contrast_pairs(groups(), SPEAKERS, 30, seed=1)


def test_one_speaker_is_no_contrast():
    with pytest.raises(ValueError, match="all of one speaker"):
        contrast_pairs(groups(), dict.fromkeys(PROMPTS, "s"), 4)


def test_the_share_is_of_all_pairs():
    assert contrast_count(rated=60, prompts=64, share=0.25) == 20
    assert contrast_count(rated=60, prompts=64, share=0.5) == 60
    assert contrast_count(rated=0, prompts=64, share=1.0) == 64
    assert contrast_count(rated=61, prompts=64, share=0.25) == 20, "twins are two"


def test_amplitude_is_the_deviation_in_units_of_the_people():
    time = np.linspace(0, 2 * np.pi, 100, endpoint=False)
    wide = np.stack([10 * np.sin(time), 0.1 * np.cos(time), np.zeros(100)], axis=1)
    scale = spread([wide, wide])
    np.testing.assert_allclose(scale, [10 / np.sqrt(2), 0.1 / np.sqrt(2), 0], atol=1e-12)
    assert amplitude(wide, scale) == pytest.approx(1)
    assert amplitude(wide * 0.5 + 7, scale) == pytest.approx(0.5), (
        "where it rests counts for nothing"
    )
    assert amplitude(wide, np.zeros(3)) == 0
