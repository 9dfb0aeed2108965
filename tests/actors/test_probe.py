"""Probes on a real Ray: what a node says of itself, and learners that find each other or do not."""

import pytest

from rapport.actors.cluster import ClusterError
from rapport.actors.probe import all_reduce, probe_nodes

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("local_ray")]


def test_a_node_says_what_it_has(tmp_path):
    [node] = probe_nodes(tmp_path, ("ray", "no-such-package"), timeout_s=60)
    assert (
        node.resources["CPU"] == 4
        and node.sees_run
        and node.memory > 2**30
        and node.object_store > 2**20
    )
    assert (
        node.versions["ray"]
        and node.versions["no-such-package"] is None
        and node.versions["python"]
    )
    assert not list(tmp_path.iterdir()), "nothing is left in the run directory"


def test_learners_sum_what_they_hold():
    assert 0 < all_reduce(2, cpus=0.5, gpus=0, megabytes=1, timeout_s=60) < 60


def test_learners_without_a_place_say_so():
    with pytest.raises(ClusterError, match="all-reduce between learners: no place"):
        all_reduce(2, cpus=3, gpus=0, megabytes=1, timeout_s=2)
    with pytest.raises(ClusterError, match="all-reduce between learners: no place"):
        all_reduce(2, cpus=0.5, gpus=0, megabytes=1, timeout_s=2, nodes="absent")
