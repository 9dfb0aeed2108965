"""The VLA live, with its LLaMA in vLLM.

vLLM's `LLMEngine` runs in this process and is stepped here, not its asynchronous `AsyncLLM`. The
engine of a replica asks for all sessions whose chunk is complete at once, and sessions keep one
beat, so there is one batch that begins and ends together and nobody to be asynchronous for.
`AsyncLLM` would be a process of its own beside the replica's, on the same cores; in a trial on a
loaded machine it took 1.1 to 1.8 times as long for a chunk.

A chunk of a session is a request, and its prompt is the context so far. What vLLM computed of it
in earlier chunks lies in the prefix cache, which has room for a context of every session; where it
does not, it is computed again. Between two chunks vLLM holds no session: who leaves has nothing to
give back, and who comes from a lost replica brings all that is asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from rapport.policies.vla.live import LiveVla, State
from rapport.policies.vla.policy import VlaPolicy
from rapport.policies.vla.vllm_plugin import (
    cache_gib,
    chosen_by,
    create_engine,
    engine_prompt,
    perceived_items,
)

if TYPE_CHECKING:
    from vllm import RequestOutput

CHOSEN_BY_NOISE = "rapport.policies.vla.vllm_noise:ChosenByNoise"
# vLLM keeps the pass that it is in as a global: engines of one process take turns. Health checks
# and a policy that is being measured step theirs in other threads than the sessions'.
PASSES = threading.Lock()


class VllmLiveVla(LiveVla):
    """A listener of any number of sessions that does what `LiveVla` does.

    Encoders, words and motion are those of `LiveVla`, and so are states: a session may go on in the
    other one.

    Args:
        policy: whose encoders and sampler it has.
        checkpoint: the folder that the policy was loaded from.
        sessions: that share a pass at most; with more, some wait.
    """

    def __init__(self, policy: VlaPolicy, checkpoint: Path, sessions: int) -> None:
        super().__init__(policy)
        dtype = policy.model.dtype
        self.llm = create_engine(
            checkpoint,
            dtype=str(dtype).removeprefix("torch."),
            max_num_seqs=sessions,
            kv_cache_gib=cache_gib(self.config, sessions, dtype),
            logits_processors=[CHOSEN_BY_NOISE],
        )

    def choose(self, states: Sequence[State]) -> list[np.ndarray]:
        """One pass for all, wherever they are in their contexts.

        Sessions that fail end the pass, and nothing of it is left behind.
        """
        engine = self.llm.llm_engine
        chosen: dict[str, np.ndarray] = {}
        with PASSES:
            try:
                for place, state in enumerate(states):
                    self._ask(str(place), state)
                while len(chosen) < len(states):
                    for output in engine.step():
                        (sample,) = cast("RequestOutput", output).outputs
                        chosen[output.request_id] = np.array(sample.token_ids, np.int64)
            finally:
                left = {str(place) for place in range(len(states))} - chosen.keys()
                engine.abort_request(list(left))
        return [chosen[str(place)] for place in range(len(states))]

    def _ask(self, name: str, state: State) -> None:
        """Ask for the next chunk of a session."""
        items = perceived_items(
            self.config, torch.from_numpy(state.tokens), torch.from_numpy(state.present)
        )
        actions = torch.from_numpy(state.actions)[None]
        self.llm.llm_engine.add_request(
            name,
            engine_prompt(self.config, self.seen_by([state]), items, actions),
            chosen_by(self.noise_of(state), self.policy.sampler.temperature),
        )
