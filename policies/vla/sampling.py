"""Sampling with plain torch, chunk by chunk: what live listeners and the engine `hf` do.

Every chunk is a question of its own: the context so far, and then its actions. So an answer depends
on ids, items and noise alone, and not on who else is asked, or on what a cache holds.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from rapport.policies.vla.model import FaceVLA
from rapport.policies.vla.sequence import Seen, context_ids, context_of, seen_of
from rapport.policies.vla.vla_prompt import VlaPrompt


def chunk_seed(seed: int, prompt_id: str, sample: int, chunk: int) -> int:
    """Of the noise that a chunk of a reaction is sampled with; every chunk has its own."""
    return zlib.crc32(f"{seed}/{prompt_id}/{sample}/{chunk}".encode())


def chunk_noise(seed: int, prompt_id: str, sample: int, chunk: int, tokens: int) -> np.ndarray:
    """Numbers in [0, 1) that decide the actions of a chunk, (tokens,)."""
    rng = np.random.default_rng(chunk_seed(seed, prompt_id, sample, chunk))
    return rng.random(tokens)


def decided(scores: Tensor, noise: Tensor) -> Tensor:
    """The bin in whose share of [0, 1) a number lies, (rows, 1) int64.

    Args:
        scores: (rows, bins) log-probs.
        noise: (rows, 1) in [0, 1).

    Raises:
        ArithmeticError: a score is NaN, which would lie below any number.
    """
    if scores.isnan().any():
        raise ArithmeticError("LLaMA gave NaN for an action: its weights are damaged, or overflow")
    below = scores.double().exp().cumsum(-1) < noise
    return below.sum(-1, keepdim=True).clamp(max=scores.shape[-1] - 1)


@torch.no_grad()
def next_actions(
    model: FaceVLA,
    seen: Seen,
    perceived: Tensor,
    actions: Tensor,
    noise: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """The actions that follow within a chunk.

    Args:
        model: the policy's network.
        seen: of contexts (rows, ...).
        perceived: of their items, see `FaceVLA.perceive`.
        actions: (rows, k) ids of the contexts' actions so far.
        noise: (rows, n) in [0, 1), one for each action that is asked for.
        temperature: of the softmax over the bins.

    Returns:
        Ids (rows, n) int64 and their log-probs (rows, n) float32.
    """
    config = model.config
    cache = DynamicCache(config=config.text_config)
    ids = context_ids(config, seen, actions)
    embeddings = model.embed(ids, perceived)
    position = ids.shape[1]
    chosen: list[Tensor] = []
    log_probs: list[Tensor] = []
    for number in range(noise.shape[1]):
        logits = model.bin_logits(model.hidden(embeddings, cache)[:, -1])
        scores = torch.log_softmax(logits.float() / temperature, dim=-1)
        bins = decided(scores, noise[:, number, None])
        chosen.append(bins + config.action_token_start)
        log_probs.append(scores.gather(-1, bins))
        token = model.get_input_embeddings()(chosen[-1])
        embeddings = model.with_slots(token, start=position + number)
    return torch.cat(chosen, dim=1), torch.cat(log_probs, dim=1)


def sample_prompt(
    model: FaceVLA,
    prompt: VlaPrompt,
    *,
    samples: int,
    seed: int,
    temperature: float,
    tokens: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Reactions to one prompt: token ids and log-probs, each (samples, tokens).

    Args:
        model: the policy's network.
        prompt: what to answer, and what the answer begins with.
        samples: how many.
        seed: of the noise.
        temperature: of sampling.
        tokens: how many tokens of a reaction, after those that are there; None = all.
    """
    config = model.config
    device = next(model.parameters()).device
    seen = {name: value.to(device) for name, value in seen_of(config, [prompt]).items()}
    with torch.no_grad():
        perceived = model.perceive(seen)
    perceived = perceived.expand(samples, *perceived.shape[1:])
    seen = {name: value.expand(samples, *value.shape[1:]) for name, value in seen.items()}
    begun = np.zeros(0, np.int64) if prompt.begun is None else prompt.begun
    actions = torch.as_tensor(begun, device=device).expand(samples, -1)
    end = config.action_tokens if tokens is None else len(begun) + tokens
    found: list[Tensor] = []
    while actions.shape[1] < end:
        chunk, within = divmod(actions.shape[1], config.chunk_tokens)
        asked = slice(within, within + min(config.chunk_tokens - within, end - actions.shape[1]))
        noise = np.stack(
            [
                chunk_noise(seed, prompt.prompt_id, sample, chunk, config.chunk_tokens)[asked]
                for sample in range(samples)
            ]
        )
        shown, before = context_of(config, seen, actions)
        chosen, log_probs = next_actions(
            model,
            shown,
            perceived[:, -shown["present"].shape[1] :],
            before,
            torch.from_numpy(noise).to(device),
            temperature,
        )
        actions = torch.cat([actions, chosen], dim=1)
        found.append(log_probs)
    ids: np.ndarray = actions[:, len(begun) :].cpu().numpy()
    return ids, torch.cat(found, dim=1).float().cpu().numpy()
