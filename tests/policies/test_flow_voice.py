"""The encoder of voices: causal, and it reaches back exactly as far as it says."""

import pytest
import torch

from rapport.policies.flow.config import VoiceSizes
from rapport.policies.flow.voice import VoiceEncoder

SIZES = VoiceSizes(16, convolutions=2, kernel=3, layers=2, heads=4, look_back=5, stride=2)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return VoiceEncoder(6, SIZES, out=8).double()


def features(frames=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, frames, 6, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("frame", [10, 11])
def test_a_frame_is_felt_from_its_own_token_on_and_for_as_long_as_the_reach(encoder, frame):
    changed = features()
    changed[:, frame] += 1
    change = (encoder(changed) - encoder(features())).abs().amax((0, 2))
    assert encoder.reach == 2 * 2 + 2 * 5
    first = torch.arange(0, 40, 2)
    felt = (first + 1 >= frame) & (first - encoder.reach <= frame)
    assert (change[felt] > 0).all() and (change[~felt] < 1e-12).all()


def test_the_last_tokens_need_only_the_reach_before_them(encoder):
    whole = encoder(features())[:, -4:]
    alone = encoder(features()[:, -8 - encoder.reach :])[:, -4:]
    torch.testing.assert_close(alone, whole, atol=1e-12, rtol=1e-12)
    short = encoder(features()[:, -6 - encoder.reach :])[:, -4:]
    assert (short - whole).abs().max() > 1e-9


def test_a_voice_may_be_encoded_as_it_comes_in(encoder):
    """Two frames at a time, from a memory as large as any; who was silent is as if just begun."""
    whole = encoder(features())
    before, tokens = encoder.nothing(2), []
    for first in range(0, 40, 2):
        token, before = encoder.follow(features()[:, first : first + 2], before)
        tokens.append(token)
        if first == 18:
            paused = before.where(torch.tensor([True, False]))
    torch.testing.assert_close(torch.cat(tokens, 1), whole, atol=1e-12, rtol=1e-12)
    after, _ = encoder.follow(features()[:, 20:], paused)
    torch.testing.assert_close(after[0], whole[0, 10:], atol=1e-12, rtol=1e-12)
    anew = encoder(features()[:, 20:])
    torch.testing.assert_close(after[1], anew[1], atol=1e-12, rtol=1e-12)
    assert (anew[1] - whole[1, 10:]).abs().max() > 1e-3
