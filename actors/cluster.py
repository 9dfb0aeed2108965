"""Joining or starting a Ray cluster, and finding a place in it."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Ray reads these when it is imported and its processes when they start, so they are set first.
for _name, _value in {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a report waits for the controller's next poll
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    # A killed sweep forgets at most this many seconds; the finished phases of its trials are kept.
    "TUNE_GLOBAL_CHECKPOINT_S": "2",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has the numbers
    "RAY_AIR_NEW_OUTPUT": "0",  # no tables of Tune's: trials print their own progress
    # Without a share of a GPU a process sees all, so that preflight can look at them. Those that
    # compute get `worker_environment`.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray.util.placement_group import (  # noqa: E402
    PlacementGroup,
    placement_group,
    remove_placement_group,
)

from rapport import interrupts  # noqa: E402
from rapport.actors import timeline  # noqa: E402
from rapport.log import logger  # noqa: E402


class ClusterError(RuntimeError):
    """The cluster lacks what was asked for; the message says what was wanted and what is there."""


def worker_environment(threads: int, gpus: float = 0) -> dict[str, str]:
    """Environment of a worker that computes with `threads` CPU threads.

    Without a share of a GPU it sees none, whatever the machine has: torch would take one that Ray
    has given to somebody else, and DeepSpeed one that does not exist (learner 1 asks for cuda:1).

    Args:
        threads: of the CPU.
        gpus: share that the worker asks Ray for.
    """
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "NUMBA_NUM_THREADS": str(threads),
    }
    if not gpus:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return environment


def vllm_environment(gpus: float, enforce_eager: bool | None = None) -> dict[str, str]:
    """Environment of a process that vLLM runs in, beside its threads."""
    environment = {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    if not gpus and enforce_eager is not False:
        # 12 s of C++ compilation for one small function of the sampler.
        environment["TORCHDYNAMO_DISABLE"] = "1"
    return environment


@contextmanager
def some_cluster() -> Iterator[None]:
    """The cluster that this process is in; where it is in none, `cluster` until the end."""
    if ray.is_initialized():
        yield
        return
    with cluster(None, None):
        yield


def on_nodes(mark: str | None) -> dict[str, float]:
    """0.001 of a custom resource, which pins an actor to labelled nodes.

    Keeps renderers from filling the CPUs that learners need, and engines from the learners' GPUs.

    Args:
        mark: name of the resource that the nodes were started with; None = any node.
    """
    return {} if mark is None else {mark: 0.001}


def know_own_cluster() -> None:
    """Tell a process of a run which cluster it is in; Ray calls this when the process starts.

    Ray Train looks for the cluster in this variable, and else among all that run on the machine.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


@contextmanager
def cluster(address: str | None, cpus: int | None) -> Iterator[str]:
    """Join the cluster at `address` or that of this Ray job, else start a local one until the end.

    Yields, and logs, a line that says which.
    """
    common: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": True,
        "runtime_env": {"worker_process_setup_hook": know_own_cluster},
    }
    address = address or os.environ.get("RAY_ADDRESS")
    scratch = None
    began = time.time()
    if address:
        with interrupts.kept():
            ray.init(address=address, **common)
        name = f"ray {ray.__version__} cluster at {ray.get_runtime_context().gcs_address}"
    else:
        # A short path, because Linux cuts the names of sockets at 107 characters.
        scratch = tempfile.mkdtemp(prefix="rapport-")
        cpus = cpus or max(2, os.cpu_count() or 2)
        with interrupts.kept():
            ray.init(
                address="local", num_cpus=cpus, _temp_dir=scratch, include_dashboard=True, **common
            )
        name = f"ray {ray.__version__}, local cluster of {cpus} CPUs"
    timeline.note(timeline.START, began, time.time())
    logger.info(f"  {name}")
    try:
        yield name
    finally:
        _leave()
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def _leave() -> None:
    """Leave the cluster.

    A reference to an object that is collected while Ray ends, by whatever thread, ends the process
    with exit code 1 (Ray 2.60). So all garbage goes first, and the rest waits.
    """
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if collects:
            gc.enable()


def reserve(bundles: list[dict[str, float]], what: str, timeout_s: float) -> list[PlacementGroup]:
    """A ready placement group for each bundle, all or none.

    Each group holds one bundle: when a group loses a node and cannot be placed again, Ray (2.60)
    keeps the head node busy for as long as it exists, and a group of one can be removed.

    Raises:
        ClusterError: no place within `timeout_s`; names what was wanted and what the nodes have.
    """
    groups = [placement_group([bundle]) for bundle in bundles]
    try:
        ray.get([group.ready() for group in groups], timeout=timeout_s)
    except ray.exceptions.GetTimeoutError:
        for group in groups:
            remove_placement_group(group)
        raise ClusterError(
            f"{what}: no place for bundles {bundles} within {timeout_s:g} s.\n"
            f"  cluster total: {_resources(ray.cluster_resources(), bundles)}\n"
            f"  free now:      {_resources(ray.available_resources(), bundles)}\n"
            f"  nodes: {[n['NodeManagerHostname'] for n in ray.nodes() if n['Alive']]}\n"
            "  Ask for fewer workers or smaller shares (the `workers` and `cpus` keys), or add "
            "nodes."
        ) from None
    return groups


def _resources(resources: dict[str, float], bundles: list[dict[str, float]]) -> dict[str, float]:
    kinds = {"CPU", "GPU", "memory"}.union(*bundles)
    return {kind: round(amount, 2) for kind, amount in resources.items() if kind in kinds}
