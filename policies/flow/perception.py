"""What AR-Flow makes of a speaker: errors of its velocities with streams that are not its own.

Asked without the own past, which explains most of the next latent: as if every latent were the
first. Noise and flow times are the same for all that is compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rapport.policies.flow.conditions import MODALITIES, Conditions
from rapport.policies.flow.loss import flow_errors
from rapport.policies.flow.model import ARFlow
from rapport.policies.perception import Cost

BATCH = 64  # windows at once
DRAWS = 4  # flow times of a latent, evenly spread
SEED = 0  # of the noise
# What is asked: all of the speaker, each of their streams alone, and the prompt alone, which is of
# the listener.
ASKED: Mapping[str, tuple[str, ...]] = {
    "all": ("partner_audio", "partner_motion"),
    "motion": ("partner_motion",),
    "voice": ("partner_audio",),
    "prompt": ("text",),
}


def perception(
    flow: ARFlow,
    conditions: Mapping[str, Tensor],
    latents: Tensor,
    others: np.ndarray,
    lead: int | None,
) -> dict[str, Cost]:
    """What each stream is worth, in the loss's unit (Eq. 4): squared errors, means over dims.

    Args:
        flow: the AR-Flow.
        conditions: the fields of `Conditions` of windows, each given.
        latents: (windows, window, latent_dim), what recorded listeners did.
        others: (windows, n) numbers of windows of other conversations.
        lead: as in `ARFlow.encode_prefix`.

    Returns:
        Those of `ASKED` of which some window has all.
    """
    present = conditions["present"]
    everybody = np.arange(len(latents))
    nothing = _errors(flow, conditions, latents, everybody, shown=(), lead=lead)
    costs = {}
    for name, shown in ASKED.items():
        if not present[:, [MODALITIES.index(stream) for stream in shown]].all(1).any():
            continue
        own = _errors(flow, conditions, latents, everybody, shown, lead)
        foreign = [
            _errors(flow, conditions, latents, others[:, n], shown, lead)
            for n in range(others.shape[1])
        ]
        costs[name] = Cost(own, np.mean(foreign, axis=0) - own, nothing - own)
    return costs


@torch.no_grad()
def _errors(
    flow: ARFlow,
    conditions: Mapping[str, Tensor],
    latents: Tensor,
    speakers: np.ndarray,
    shown: Sequence[str],
    lead: int | None,
) -> np.ndarray:
    """(windows,) error of the velocities, mean over latents, dims and draws.

    Args:
        flow: the AR-Flow.
        conditions: of the windows.
        latents: of the windows.
        speakers: (windows,) the window whose streams each of them is shown.
        shown: streams that are not absent.
        lead: how much of them is heard.
    """
    seen = torch.tensor([name in shown for name in MODALITIES], device=latents.device)
    generator = torch.Generator().manual_seed(SEED)
    time = (torch.arange(DRAWS, device=latents.device) + 0.5) / DRAWS
    found = []
    for start in range(0, len(latents), BATCH):
        rows = slice(start, start + BATCH)
        part = latents[rows].unsqueeze(1)
        speaker = torch.from_numpy(speakers[rows]).to(latents.device)
        streams = {name: values[speaker] for name, values in conditions.items()}
        heard = Conditions(**streams | {"present": streams["present"] & seen})
        noise = torch.randn(*part.shape[:3], DRAWS, part.shape[-1], generator=generator)
        errors = flow_errors(
            flow,
            flow.encode_prefix(heard, lead),
            part,
            noise.to(part),
            time.expand(*part.shape[:3], -1).to(part),
            remembers=torch.zeros(len(part), dtype=torch.bool, device=part.device),
        )
        found.append(errors.mean((1, 2, 3)).double().cpu())
    return torch.cat(found).numpy()
