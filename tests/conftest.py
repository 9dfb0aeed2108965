"""What several tests share: a tiny corpus, a tiny policy on it, one local Ray, a Ray of separate
nodes.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rapport import log
from tests.runs import command

ROOT = Path(__file__).parents[1]
log.show()  # what recipes say goes to the terminal, as on the command line
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch: learners, engines and tests share few cores


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory):
    """8 training, 4 validation and 4 test clips of 1 s, with one 28-pixel frame and 1 s of past.

    One listens to each speaker.
    """
    from rapport.pipeline.data.synthetic.generate import Design, generate_corpus

    return generate_corpus(
        tmp_path_factory.mktemp("corpus") / "tiny",
        8,
        4,
        4,
        design=Design(seconds=1, past=1, listeners=1, frames=1, image_size=28),
        workers=0,
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_corpus, tmp_path_factory):
    """Folder of an untrained policy for `tiny_corpus`: 32 wide, one block, 5 chunks of one step of
    9 action dimensions; a context has 3 chunks.
    """
    return save_tiny_policy(tmp_path_factory.mktemp("policy") / "tiny", tiny_corpus, seed=0)


def save_tiny_policy(path, corpus, seed):
    from rapport.policies.vla.actions import ActionSpace, ActionTokenizer, fit_bounds
    from rapport.policies.vla.loading import (
        SequenceSizes,
        build_tiny,
        save_checkpoint,
        tiny_config,
    )
    from rapport.policies.vla.text import build_text_tokenizer

    clips = list(corpus.clips("train"))
    space = ActionSpace(corpus.layout.subset({"expr": 3, "rot": 3, "jaw": 3}), rate=5, seconds=1)
    rests = np.concatenate([clip.rest.subset(space.layout).values for clip in clips])
    knots = [space.to_knots(clip.listener.subset(space.layout)) for clip in clips]
    low, high = fit_bounds(each - rest for each, rest in zip(knots, rests, strict=True))
    tokenizer = build_text_tokenizer([clip.text for clip in clips], text_vocabulary=344)
    config = tiny_config(
        tokenizer,
        space,
        SequenceSizes(frames=1, chunk=0.2, context=0.6, history=0.4, text_tokens=4, chunk_text=2),
        image_size=28,
        hidden=32,
        layers=1,
        heads=1,
        kv_heads=1,
        tower_hidden=16,
        tower_layers=2,
    )
    start = config.action_token_start
    actions = ActionTokenizer(space, low, high, start, rest=np.median(rests, axis=0))
    save_checkpoint(build_tiny(config, seed), tokenizer, actions, path)
    return path


@pytest.fixture
def other_checkpoint(tiny_corpus, tmp_path):
    """Like `tiny_checkpoint`, with other weights."""
    return save_tiny_policy(tmp_path / "other", tiny_corpus, seed=1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A process group of this process, for what is collective."""
    import torch.distributed as dist

    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory):
    """A Ray of four logical CPUs that ends with the session."""
    from rapport.actors.cluster import cluster

    with cluster(address=None, cpus=4) as name:
        yield name


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class RayCluster:
    """A Ray of its own on free ports, with a token; every node is a process group that can be
    killed.
    """

    def __init__(self, cpus: int):
        self.folder = Path(
            tempfile.mkdtemp(prefix="ray-")
        )  # short: socket paths end at 107 characters
        token = self.folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.bin = Path(sys.executable).parent
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
        }
        self.environment.pop("RAY_ADDRESS", None)
        self.nodes: list[int] = []
        gcs, self.dashboard, agent, client = free_ports(4)
        self.address = f"127.0.0.1:{gcs}"
        self.add(
            "--head",
            f"--port={gcs}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard}",
            f"--dashboard-agent-listen-port={agent}",
            f"--ray-client-server-port={client}",
            f"--num-cpus={cpus}",
            "--node-ip-address=127.0.0.1",
            f"--temp-dir={self.folder / 'ray'}",
            "--disable-usage-stats",
        )

    def add(self, *options: str) -> int:
        """Start a node; returns its process group."""
        log = self.folder / f"node-{len(self.nodes)}.log"
        with log.open("w") as out:
            starting = subprocess.Popen(
                [self.bin / "ray", "start", *options],
                env=self.environment,
                start_new_session=True,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.nodes.append(starting.pid)
        assert starting.wait(timeout=180) == 0, log.read_text()
        return starting.pid

    def kill(self, node: int) -> None:
        os.killpg(node, signal.SIGKILL)  # the raylet and all its workers
        self.nodes.remove(node)

    def close(self) -> None:
        for node in list(self.nodes):
            self.kill(node)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run_and_kill(self, node: int, when: Callable[[str], bool], *arguments: str) -> str:
        """What a recipe prints that ends well on this cluster, though a node is killed.

        Args:
            node: of `add`.
            when: the line that was printed last says so.
            arguments: of `python -m pipeline.run`.
        """
        process = subprocess.Popen(
            command(*arguments),
            cwd=ROOT,
            env=self.environment | {"RAY_ADDRESS": self.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        printed = []
        for line in process.stdout or ():
            printed.append(line)
            if when(line):
                self.kill(node)
        text = "".join(printed)
        assert process.wait(timeout=60) == 0, text[-6000:]
        return text

    def submit(
        self, *entrypoint: str, options: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess:
        return self.job("submit", "--working-dir", ".", *options, "--", *entrypoint)

    def job(self, command: str, *arguments: str) -> subprocess.CompletedProcess:
        """`ray job COMMAND`."""
        return subprocess.run(
            [
                self.bin / "ray",
                "job",
                command,
                "--address",
                f"http://127.0.0.1:{self.dashboard}",
                *arguments,
            ],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=800,
        )


@pytest.fixture(scope="module")
def ray_cluster():
    cluster = RayCluster(cpus=2)
    yield cluster
    cluster.close()
