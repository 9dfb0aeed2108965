"""What hostile clients cost a server in memory and places; `tests.bench_hostile` says how much."""

import numpy as np
import pytest

from tests.bench_hostile import FLOODS, flood, noise, served, vanish

pytestmark = pytest.mark.long
MOST_MIB = 64  # less than what a message of 16 MiB costs, which uvicorn takes in first


@pytest.fixture(scope="module")
def server():
    with served() as server:
        flood(server, *FLOODS["sound"])  # what is made once is there
        yield server


@pytest.mark.parametrize("name", ["sound", "acks", "64 KiB"])
def test_a_flood_is_closed_and_does_not_fill_the_memory(server, name):
    found = flood(server, *FLOODS[name])
    assert found.closed_s < 10 and found.ended_s < 60
    assert found.grown_mib <= MOST_MIB


def test_noise_on_a_thousand_sockets_leaves_the_memory_as_it_was(server):
    assert noise(server, 1000, np.random.default_rng(0)) <= MOST_MIB


def test_two_hundred_who_vanished_give_their_places_back(server):
    found = vanish(server, 200)
    assert found.most > 0 and found.gone_s < 30 and found.grown_mib <= MOST_MIB
