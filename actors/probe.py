"""What the nodes of a cluster are like, and whether their processes can talk to each other."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from rapport.actors.cluster import ClusterError, on_nodes, reserve, worker_environment


@dataclass(frozen=True)
class Node:
    """One node, as a process on it sees it; sizes in bytes.

    Args:
        name: its host name.
        resources: as Ray counts them.
        versions: of Python and the packages asked for; None = not installed.
        memory: of the machine, total.
        gpu_memory: total of the smallest GPU; 0 without any.
        object_store: size of Ray's.
        scratch: free disk where Ray and Python put temporary files.
        sees_run: whether it can read the run directory.
        recompiles: whether every process compiles all it imports: no bytecode is there, and none
            may be written.
    """

    name: str
    resources: dict[str, float]
    versions: dict[str, str | None]
    memory: int
    gpu_memory: int
    object_store: int
    scratch: int
    sees_run: bool
    recompiles: bool


def probe_nodes(run_directory: Path, packages: tuple[str, ...], timeout_s: float) -> list[Node]:
    """Look at every living node.

    Args:
        run_directory: what each node should be able to read.
        packages: whose versions are asked for.
        timeout_s: for all nodes together.

    Raises:
        ClusterError: some nodes do not answer; names them.
    """
    marker = run_directory / ".seen"
    marker.write_text("preflight")
    alive = [node for node in ray.nodes() if node["Alive"]]
    try:
        answers = {
            _look.options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote(str(marker), packages): node
            for node in alive
        }
        done, missing = ray.wait(list(answers), num_returns=len(answers), timeout=timeout_s)
        if missing:
            names = [answers[answer]["NodeManagerHostname"] for answer in missing]
            raise ClusterError(f"preflight: no answer from nodes {names} within {timeout_s:g} s")
        return [
            Node(
                name=node["NodeManagerHostname"],
                resources=node["Resources"],
                object_store=int(node["Resources"].get("object_store_memory", 0)),
                **ray.get(answer),
            )
            for answer, node in answers.items()
        ]
    finally:
        marker.unlink(missing_ok=True)


@ray.remote
def _look(marker: str, packages: tuple[str, ...]) -> dict[str, Any]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    gpu_count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpu_memory = [torch.cuda.get_device_properties(i).total_memory for i in range(gpu_count)]
    return {
        "versions": versions,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu_memory": min(gpu_memory, default=0),
        "scratch": shutil.disk_usage(tempfile.gettempdir()).free,
        "sees_run": Path(marker).is_file(),
        "recompiles": recompiles(torch.__file__),
    }


def recompiles(source: str) -> bool:
    """Whether each import of the module in the file `source` compiles it anew."""
    return sys.dont_write_bytecode and not Path(cache_from_source(source)).is_file()


class _Peer:
    """One of the processes that sum a tensor."""

    def address(self) -> str:
        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def all_reduce(
        self, address: str, rank: int, world_size: int, backend: str, floats: int, timeout_s: float
    ) -> float:
        device = "cuda" if backend == "nccl" else "cpu"
        dist.init_process_group(
            backend,
            init_method=address,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
        )
        dist.all_reduce(torch.zeros(1, device=device))  # connects, which is not timed
        values = torch.full((floats,), float(rank + 1), device=device)
        started = time.monotonic()
        dist.all_reduce(values)
        total = values[-1].item()
        seconds = time.monotonic() - started
        dist.destroy_process_group()
        if total != world_size * (world_size + 1) / 2:
            raise ArithmeticError(f"all-reduce over {world_size} learners gave {total}")
        return seconds


def all_reduce(
    world_size: int,
    cpus: float,
    gpus: float,
    megabytes: int,
    timeout_s: float,
    nodes: str | None = None,
) -> float:
    """Seconds that a sum over as many processes as there are learners takes.

    Args:
        world_size: processes.
        cpus: that each takes; `gpus` alike.
        gpus: 0 = the sum is taken on CPUs, by Gloo.
        megabytes: size of the tensor.
        timeout_s: to place the processes, and again for their sum.
        nodes: mark of the nodes that they run on; None = any.

    Raises:
        ClusterError: they cannot be placed or do not find each other in time.
    """
    marked = on_nodes(nodes)
    bundle = {"CPU": cpus} | ({"GPU": gpus} if gpus else {}) | marked
    groups = reserve([bundle] * world_size, "all-reduce between learners", timeout_s)
    peers: list[Any] = []
    try:
        peers = [
            ray.remote(_Peer)
            .options(
                num_cpus=cpus,
                num_gpus=gpus,
                resources=marked,
                runtime_env={"env_vars": worker_environment(1, gpus)},
                scheduling_strategy=PlacementGroupSchedulingStrategy(group),
            )
            .remote()
            for group in groups
        ]
        address = ray.get(peers[0].address.remote(), timeout=timeout_s)
        backend = "nccl" if gpus else "gloo"
        floats = megabytes * 2**20 // 4
        calls = [
            peer.all_reduce.remote(address, rank, world_size, backend, floats, timeout_s)
            for rank, peer in enumerate(peers)
        ]
        return max(ray.get(calls, timeout=timeout_s))
    except (ray.exceptions.GetTimeoutError, dist.DistBackendError, RuntimeError) as error:
        raise ClusterError(
            f"all-reduce between {world_size} learners failed within {timeout_s:g} s: {error}\n"
            "  Nodes must reach each other on all ports; on machines with several networks set "
            "GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME."
        ) from error
    finally:
        for peer in peers:
            ray.kill(peer)
        for group in groups:
            remove_placement_group(group)
