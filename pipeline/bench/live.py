"""What a chunk of a live VLA takes, with its LLaMA in torch and in vLLM.

Both answer the same sessions in turn, in one process. Sessions that keep step are at the same place
of their contexts, as if all had begun at once; others are spread over all places, as people come
when they come. Beside the time by the clock stands that of the processor, which others on the
machine disturb less.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from rapport.actors.cluster import vllm_environment
from rapport.log import logger
from rapport.pipeline.bench.workload import process, sampled_policy
from rapport.pipeline.bench_settings import LiveBench
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.live import Chunk
from rapport.policies.policy import load_policy
from rapport.policies.vla.live import LiveVla, State
from rapport.policies.vla.policy import VlaPolicy
from rapport.policies.vla.vllm_live import VllmLiveVla


class Listeners:
    """Both, in a process of their own.

    Args:
        checkpoint: folder of the policy.
        sessions: at most.
    """

    def __init__(self, checkpoint: str, sessions: int) -> None:
        policy = load_policy(checkpoint)
        assert isinstance(policy, VlaPolicy)
        self.live: dict[str, LiveVla] = {
            "torch": policy.live(),
            "vllm": VllmLiveVla(policy, Path(checkpoint), sessions),
        }

    def costs(self, sessions: int, keep_step: bool, repeats: int) -> dict[str, dict[str, float]]:
        """Milliseconds of a chunk of all sessions, mean over a context, median of `repeats`."""
        states = self._begun(sessions, keep_step)
        places = self.live["torch"].beat
        clock: dict[str, list[float]] = defaultdict(list)
        processor: dict[str, list[float]] = defaultdict(list)
        for number in range((repeats + 1) * places):
            heard = [heard_in(self.live["torch"], number, seed) for seed in range(sessions)]
            for name, live in self.live.items():
                began, used = time.perf_counter(), time.process_time()
                _, after = live.step(states, heard)
                clock[name].append(time.perf_counter() - began)
                processor[name].append(time.process_time() - used)
            states = after
        return {
            name: {
                "ms": _median_of_means(clock[name], places),
                "cpu_ms": _median_of_means(processor[name], places),
            }
            for name in self.live
        }

    def _begun(self, sessions: int, keep_step: bool) -> list[State]:
        """Sessions that have acted once, or up to a whole context more than once."""
        live = self.live["torch"]
        states = []
        for seed in range(sessions):
            _, [state] = live.step([live.start(seed)], [None])
            for number in range(0 if keep_step else seed % live.beat):
                _, [state] = live.step([state], [heard_in(live, number, seed)])
            states.append(state)
        return states


def heard_in(live: LiveVla, number: int, seed: int) -> Chunk:
    """A chunk of pictures and sound, both noise."""
    rng = np.random.default_rng([number, seed])
    config = live.config
    size = (config.frames, config.image_size, config.image_size, 3)
    taken = config.chunk_seconds * (np.arange(config.frames) + 1) / config.frames
    sound = rng.standard_normal(round(live.chunk * AUDIO_RATE)).astype(np.float32) / 10
    return Chunk(rng.integers(0, 256, size, dtype=np.uint8), taken, sound)


def _median_of_means(seconds: list[float], places: int) -> float:
    """Milliseconds; the first context is warm-up."""
    means = np.reshape(seconds, (-1, places)).mean(axis=1)
    return float(1000 * np.median(means[1:]))


def measure(config: LiveBench) -> dict[str, Any]:
    """By number of sessions."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        sizes = sampled_policy(config, Path(scratch))
        with process(
            Listeners,
            scratch,
            max(config.bench.sessions),
            threads=config.bench.threads,
            environment=vllm_environment(gpus=0),
        ) as call:
            for keep_step in (True, False):
                if not keep_step and sizes.context_chunks == 1:
                    break  # there is one place
                for sessions in config.bench.sessions:
                    name = f"{sessions}_{'in_step' if keep_step else 'spread'}"
                    found[name] = call("costs", sessions, keep_step, config.bench.repeats)
                    logger.info(f"[live] {name}: {_said(found[name])}")
    return {"chunk_s": sizes.chunk_seconds, "tokens_of_a_chunk": sizes.chunk_tokens} | found


def _said(costs: dict[str, dict[str, float]]) -> str:
    return ", ".join(
        f"{name} {cost['ms']:.0f} ms, {cost['cpu_ms']:.0f} of a core"
        for name, cost in costs.items()
    )
