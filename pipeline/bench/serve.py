"""The live server: how soon a listener answers, how many fit, and what the loss of a replica costs.

Two AR-Flows, the small one that comes with the project and one of the paper's size with random
weights, on a real Ray Serve with one core a replica. Clients talk in real time, in this process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import ray
from ray import serve
from ray.util.state import list_actors

from rapport.log import logger
from rapport.pipeline.bench_settings import ServeBench
from rapport.pipeline.recipes.serve import listen_at
from rapport.pipeline.serve.client import Client, Wanted, in_real_time
from rapport.pipeline.serve.deployment import APPLICATION, built
from rapport.pipeline.serve.settings import LimitsConfig, ServeSection
from rapport.pipeline.steps.listening import shipped
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.flow.config import PAPER_GROUPS, flow_config, vae_config
from rapport.policies.flow.encoders import LogMel
from rapport.policies.flow.model import initialised
from rapport.policies.flow.policy import FlowPolicy
from rapport.policies.flow.settings import EncodersConfig
from rapport.policies.flow.vae import MotionVAE
from rapport.policies.head.settings import HeadConfig
from rapport.policies.live import Chunk
from rapport.policies.motion import Layout
from rapport.settings import url_of

TEXT_DIM = 32  # of the tiny text encoder
SAID_S = 8.0  # before a replica is killed
LIMITS = LimitsConfig(requests=100_000, sessions=10_000)


def measure(config: ServeBench) -> dict[str, Any]:
    """Each policy alone and at its capacity, then a replica killed."""
    with TemporaryDirectory(prefix="rapport-bench-") as folder:
        policies = {"tiny": shipped(), "paper": paper_size(Path(folder) / "paper", config.seed)}
        return {name: _served(name, path, config) for name, path in policies.items()}


def paper_size(folder: Path, seed: int) -> Path:
    """An AR-Flow of the paper's size that hears log-mel bands, with random weights."""
    vae = vae_config("paper", Layout(PAPER_GROUPS, 25.0, "builtin"))
    sizes = flow_config("paper", vae, TEXT_DIM, LogMel().dim, learns_to_hear=True, expects=True)
    FlowPolicy(initialised(sizes, seed), MotionVAE(vae), EncodersConfig()).save(folder)
    return folder


def _served(name: str, policy: Path, config: ServeBench) -> dict[str, Any]:
    """All figures of a policy."""
    section = ServeSection(
        policies={name: str(policy)},
        port=_free_port(),
        replicas=2,
        sessions=config.bench.sessions,
        limits=LIMITS,
    )
    url = url_of(section.host, section.port)
    began = time.monotonic()
    listen_at(section.host, section.port)
    try:
        serve.run(built(section, HeadConfig()), name=APPLICATION, route_prefix="/")
        result: dict[str, Any] = {"start_s": time.monotonic() - began}
        fits = int(httpx.get(f"{url}/v1/policies").json()["policies"][0]["sessions"])
        result["sessions_of_a_replica"] = fits
        for sessions in sorted({1, fits, 2 * fits}):
            result[f"sessions_{sessions}"] = asyncio.run(_talked(url, sessions, config))
        result["refused"] = asyncio.run(_refused(url, 2 * fits))
        result["goes_on_s"] = asyncio.run(_killed(url))
    finally:
        serve.shutdown()
    logger.info(
        f"[serve] {name}: {fits} sessions a replica; "
        + ", ".join(
            f"{key}: p50 {value['p50_ms']:.0f}, p99 {value['p99_ms']:.0f} ms"
            for key, value in result.items()
            if key.startswith("sessions_") and key[-1].isdigit()
        )
        + f"; goes on after {result['goes_on_s']:.2f} s"
    )
    return result


async def _talked(url: str, sessions: int, config: ServeBench) -> dict[str, float]:
    """Clients talk in real time, all at once."""
    answers: list[float] = []
    missed = lost = 0

    async def one(seed: int) -> None:
        nonlocal missed, lost
        async with Client(url, Wanted(seed=seed), patience_s=60) as client:
            said = in_real_time(_speech(config.bench.seconds, client.session.chunk_s), client)
            async for answer in client.converse(said):
                if answer.chunk is not None and np.isfinite(answer.after_s):
                    answers.append(answer.after_s)
                    missed += answer.after_s > client.session.chunk_s
            lost += client.sessions - 1

    await asyncio.gather(*[one(seed) for seed in range(sessions)])
    delays = 1000 * np.array(answers)
    return {
        "answers": len(answers),
        "p50_ms": float(np.percentile(delays, 50)),
        "p99_ms": float(np.percentile(delays, 99)),
        "longest_ms": float(delays.max()),
        "missed_share": missed / len(answers),
        "lost": lost,
    }


async def _refused(url: str, sessions: int) -> dict[str, Any]:
    """What one client too many is told, while all the others hold their places."""
    held: list[Client] = []
    told: dict[str, Any] = {"status": None}
    async with httpx.AsyncClient(base_url=url) as http:
        try:
            for seed in range(2 * sessions):
                answer = await http.post("/v1/sessions", json={"seed": seed})
                if answer.status_code != 201:
                    told = {
                        "status": answer.status_code,
                        "retry_after_s": float(answer.headers["retry-after"]),
                    }
                    break
                client = Client(url, Wanted(seed=seed), patience_s=60)
                held.append(await client.__aenter__())
        finally:
            for client in held:
                await client.__aexit__(None, None, None)
    return told | {"held": len(held)}


async def _killed(url: str) -> float:
    """Seconds from the loss of a session's replica to its next answer."""
    killed = gone_on = None
    async with Client(url, Wanted(), patience_s=60) as client:
        said = in_real_time(_speech(2 * SAID_S, client.session.chunk_s), client)
        async for answer in client.converse(said):
            if answer.chunk is None:
                continue
            if killed is None and answer.chunk * client.session.chunk_s > SAID_S:
                os.kill(process_of(client.name), signal.SIGKILL)
                killed = time.monotonic()
            elif killed is not None and gone_on is None and client.sessions > 1:
                gone_on = time.monotonic()
    assert killed is not None and gone_on is not None
    return gone_on - killed


def process_of(session: str) -> int:
    """The replica that a session is in; its name begins the session's."""
    replica = session.partition(".")[0]
    for actor in list_actors(
        ray.get_runtime_context().gcs_address,
        filters=[("state", "=", "ALIVE")],
        detail=True,
        limit=1000,
    ):
        if (actor.name or "").endswith(f"#{replica}") and actor.pid is not None:
            return int(actor.pid)
    raise LookupError(f"no replica {replica}")


def _speech(seconds: float, chunk_s: float) -> Iterable[Chunk]:
    """Noise: speed does not depend on what is said."""
    rng = np.random.default_rng(0)
    samples = round(chunk_s * AUDIO_RATE)
    for _ in range(round(seconds / chunk_s)):
        yield Chunk(audio=(rng.standard_normal(samples) / 10).astype(np.float32))


def _free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])
