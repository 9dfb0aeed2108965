"""What only AR-Flow is asked about: its code, prompts, guidance, fewer steps, endless sequences.

GDPO-Listener, Table 4 and supplement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from rapport.pipeline.steps.movement import HeldOut, motions_of
from rapport.pipeline.steps.settings import MovementConfig
from rapport.policies.flow.conditions import LEAD, LEADS, MODALITIES, Conditions
from rapport.policies.flow.policy import FlowPolicy, FlowPrompt, Sampler
from rapport.policies.flow.sampling import draw_noise, generate_long, ode
from rapport.policies.flow.training import to_bytes
from rapport.policies.motion import Motion
from rapport.rewards.affect import AffectEstimator
from rapport.rewards.metrics.measures import flame_groups

LONG_SAMPLES = 8
# The aligned policy with less than it was trained with (Table 4).
WAYS: dict[str, dict[str, Any]] = {
    "without text": {"without_text": True},
    "4 evaluations": {"evaluations": 4},
}
# Quality against delay: both policies with every lead but the default, which all others have.
DELAYS: dict[str, dict[str, Any]] = {
    f"lead {lead}": {"lead": lead} for lead in LEADS if lead != LEAD
} | {"whole": {"lead": None}}
# Whose effect on the face is measured; see `describe_face`.
PROMPTS = {
    "happy": "happy and excited, looking ahead, nodding",
    "sad": "sad and calm, looking ahead, with a still head",
}


def ode_sampler(judge: MovementConfig, *, guided: bool = True) -> Sampler:
    """The ODE that held-out windows are answered by; `guided` = with the judge's guidance."""
    sampler = Sampler(judge.solver, judge.evaluations)
    if not guided:
        return sampler
    return replace(sampler, omega_speak=judge.omega_speak, omega_listen=judge.omega_listen)


def coded(held_out: HeldOut, policy: FlowPolicy) -> list[Motion]:
    """The recorded motion through the VAE: what coding alone costs."""
    latents = policy.vae.latents_of(window.motion for window in held_out.windows)
    return policy.vae.to_motions(latents)


def ways(held_out: HeldOut, policies: Mapping[str, FlowPolicy]) -> dict[str, list[Motion]]:
    """The last policy in each of `WAYS`, and all with each of `DELAYS`."""
    last = list(policies)[-1]
    answers = {}
    for name, policy in policies.items():
        changed = DELAYS if name != last else WAYS | DELAYS
        for way, changes in changed.items():
            answers[f"{name} {way}"] = answered(held_out, policy.with_sampler(**changes))
    return answers


def by_euler(held_out: HeldOut, policy: FlowPolicy) -> list[Motion]:
    """What a policy answers by the paper's rule, with as many evaluations."""
    return answered(held_out, policy.with_sampler(solver="euler"))


def controls(
    listeners: HeldOut,
    policy: FlowPolicy,
    texts: Mapping[str, Tensor],
    affect: AffectEstimator | None,
    omegas: list[float],
) -> dict[str, float]:
    """What prompts and guidance do.

    `text/valence/NAME` is the valence that the generated faces show on average when everybody is
    given the prompt of that name (where there is an estimator); `omega_X/variance_ratio/GROUP`
    rises with X if guidance is a slider.

    Args:
        listeners: windows whose actor listens.
        policy: the policy.
        texts: name of a prompt -> its features (text_dim,).
        affect: estimator.
        omegas: guidance scales where nobody speaks.
    """
    listening = [window.listening for window in listeners.windows]
    recorded = [window.motion for window in listeners.windows]
    values: dict[str, float] = {}
    if affect is not None:
        for name, features in texts.items():
            motions = answered(_told(listeners, features), policy)
            valences = [
                affect(motion)[mask, 0].mean()
                for motion, mask in zip(motions, listening, strict=True)
                if mask.any()
            ]
            values[f"text/valence/{name}"] = float(np.mean(valences))
    for omega in omegas:
        motions = answered(listeners, policy.with_sampler(omega_listen=omega))
        ratios = flame_groups.variance_ratio(motions, recorded, listening)
        for group, ratio in ratios.items():
            values[f"omega_{omega:g}/variance_ratio/{group}"] = ratio
    return values


def _told(held_out: HeldOut, features: Tensor) -> HeldOut:
    """Everybody has the same prompt."""
    text = {"text": to_bytes(features)}
    prompts = [FlowPrompt(prompt.prompt_id, dict(prompt.row) | text) for prompt in held_out.prompts]
    return HeldOut(held_out.windows, prompts, held_out.seeds, samples=held_out.samples)


def answered(held_out: HeldOut, policy: FlowPolicy) -> list[Motion]:
    """A motion of each window, as the policy's sampler has it."""
    return held_out.flat(motions_of(policy, held_out.ask(policy)))


def endless(listeners: HeldOut, policy: FlowPolicy, long_frames: int) -> dict[str, float]:
    """Whether one sequence of `long_frames` frames dies down or runs away.

    `long/variance_ratio/GROUP` is the variance of its last window against that of its first, each
    over `LONG_SAMPLES` samples. Conditions are those of the held-out windows, one after the other,
    again and again.
    """
    flow = policy.flow.eval()
    sizes = flow.config
    count = -(-long_frames // sizes.frames)
    prompts = listeners.prompts
    parts = policy.collate([prompts[i % len(prompts)].row for i in range(count)])
    joined = {name: parts[name].flatten(0, 1)[None] for name in MODALITIES if name != "text"}
    conditions = Conditions(text=parts["text"][:1], present=parts["present"][:1], **joined)
    noise = draw_noise(
        listeners.seeds[:1], LONG_SAMPLES, count * sizes.window, sizes.latent_dim
    ).to(parts["text"].device)
    denoise = ode(policy.sampler.solver, policy.sampler.evaluations)
    latents = generate_long(flow, conditions, noise, denoise)[0]
    motions = policy.vae.to_motions(latents.unbind())
    first = [motion.window(0, sizes.frames) for motion in motions]
    last = [motion.window((count - 1) * sizes.frames, sizes.frames) for motion in motions]
    everywhere = [np.ones(sizes.frames, bool)] * LONG_SAMPLES
    ratios = flame_groups.variance_ratio(last, first, everywhere)
    return {f"long/variance_ratio/{group}": ratio for group, ratio in ratios.items()}


def text_features(policy: FlowPolicy) -> dict[str, Tensor]:
    """The features of `PROMPTS`."""
    encoder = policy.features.text
    return dict(zip(PROMPTS, encoder(list(PROMPTS.values())), strict=True))
