"""AR-Flow as a `Policy`: conditions of text, voices and partner motion, reactions of latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from rapport.files import atomic
from rapport.policies.clip import Clip
from rapport.policies.flow import checkpoint
from rapport.policies.flow.conditions import LEAD, MODALITIES, Conditions, lead_frames
from rapport.policies.flow.model import ARFlow
from rapport.policies.flow.perception import perception
from rapport.policies.flow.rollouts import Exploration, log_probs, rollout, step_kl
from rapport.policies.flow.sampling import (
    draw_noise,
    generate,
    guidance_scale,
    ode,
    window_noise,
)
from rapport.policies.flow.settings import (
    EncodersConfig,
    Solver,
    read_encoders,
    write_encoders,
)
from rapport.policies.flow.training import (
    CONDITION_COLUMNS,
    FlowModule,
    collate_conditions,
    flow_state,
    to_bytes,
)
from rapport.policies.flow.vae import MotionVAE
from rapport.policies.motion import LayoutError, Motion
from rapport.policies.perception import Cost
from rapport.policies.policy import (
    CheckpointError,
    Forward,
    Likelihood,
    Policy,
    Reaction,
    Row,
    Stage,
    write_kind,
)

if TYPE_CHECKING:
    from rapport.policies.flow.features import Features
    from rapport.policies.flow.live import LiveFlow

BATCH = 32  # windows answered at once
GPU_BATCH = 512  # where launching takes as long for one as for hundreds
VAE_FOLDER = "vae"


@dataclass(frozen=True)
class Sampler:
    """How a window is sampled.

    Args:
        solver: of the ODE.
        evaluations: of the velocity, for a latent.
        exploration: of rollouts, which have log-probs; None = the ODE.
        omega_speak: guidance scale where the actor speaks (ODE).
        omega_listen: guidance scale elsewhere (ODE).
        lead: frames of a latent that are heard before it is generated, one of `LEADS`; None = all
            of the window, the future too.
        without_text: prompts are left out (ODE).
        chunk: drawn steps of a rollout that are replayed at once; None = all of them.
    """

    solver: Solver = "midpoint"
    evaluations: int = 10
    exploration: Exploration | None = None
    omega_speak: float = 1.0
    omega_listen: float = 1.0
    lead: int | None = LEAD
    without_text: bool = False
    chunk: int | None = None


@dataclass(frozen=True, eq=False)
class FlowPrompt:
    """Conditions of one window.

    Args:
        prompt_id: of the window.
        row: CONDITION_COLUMNS: features as float32 bytes, None where absent; `speaking` (frames,)
            bool, where it is known, for guidance.
    """

    prompt_id: str
    row: Row


class FlowPolicy(Policy):
    """Latents by auto-regressive flow matching, decoded by a motion VAE.

    Args:
        flow: AR-Flow.
        vae: the motion VAE.
        encoders: which frozen encoders its conditions come from.
    """

    kind = "flow"
    reads = ("speaker", "speaker_audio")
    takes_text = True
    supervised = "supervised"
    aligned = {"dpo": "Flow-DPO", "gdpo": "GDPO"}
    prompt_columns = CONDITION_COLUMNS
    action_type = pa.list_(pa.list_(pa.float32()))
    likelihood_draws = True
    perception_unit = "flow_error"
    seed_per_prompt = False

    def __init__(self, flow: ARFlow, vae: MotionVAE, encoders: EncodersConfig) -> None:
        self.flow = flow
        self.vae = vae
        self.encoders = encoders
        self.layout = vae.config.layout
        self.sampler = Sampler(evaluations=flow.config.evaluations)
        self._module = FlowModule(flow)

    @cached_property
    def features(self) -> Features:
        """The frozen encoders, loaded when a clip is first encoded."""
        # Imported here: learners never encode, and transformers takes seconds.
        from rapport.policies.flow.features import scratch_features

        return scratch_features(self.encoders, self._device)

    # -- Reacting --

    def encode(self, clip: Clip) -> FlowPrompt:
        """The listener of a clip as the actor: both voices, the partner's motion, `clip.manner`."""
        config = self.flow.config
        fps = self.layout.fps
        frames = config.frames
        if len(clip.listener) < frames:
            raise LayoutError(
                f"clip {clip.clip_id!r} has {len(clip.listener)} frames, a window of this policy "
                f"{frames}; raise corpus.seconds"
            )
        voice = self.features.of_voice
        partner = self._partner(clip)
        encoded = {
            "text": self.features.of_text(clip.manner),
            "partner_audio": voice(clip.clip_id, "speaker", clip.speaker_audio, frames, fps),
            "partner_motion": None if partner is None else self.latents(partner.window(0, frames)),
            "actor_audio": voice(clip.clip_id, "listener", clip.listener_audio, frames, fps),
        }
        row = {name: to_bytes(value) for name, value in encoded.items()}
        return FlowPrompt(clip.clip_id, {"prompt_id": clip.clip_id} | row)

    def sample(
        self, prompts: Sequence[FlowPrompt], samples: int, seeds: Sequence[int]
    ) -> list[list[Reaction]]:
        """By the ODE, or as `sampler` explores; the prefix of a prompt is computed once."""
        groups: list[list[Reaction]] = []
        size = GPU_BATCH if self._device.type == "cuda" else BATCH
        for first in range(0, len(prompts), size):
            batch = slice(first, first + size)
            by = self._by_ode if self.sampler.exploration is None else self._explored
            groups += by(prompts[batch], samples, seeds[batch])
        return groups

    def _by_ode(
        self, prompts: Sequence[FlowPrompt], samples: int, seeds: Sequence[int]
    ) -> list[list[Reaction]]:
        sizes = self.flow.config
        sampler = self.sampler
        conditions = self.collate([prompt.row for prompt in prompts])
        if sampler.without_text:
            conditions["present"][:, MODALITIES.index("text")] = False
        noise = window_noise(seeds, samples, sizes.window, sizes.latent_dim)
        self.flow.eval()
        latents = generate(
            self.flow,
            Conditions(**conditions),
            noise.to(self._device),
            ode(sampler.solver, sampler.evaluations),
            omega=self._guidance(prompts),
            lead=sampler.lead,
        ).cpu()
        return [
            [
                Reaction(prompt.prompt_id, k, latents[i, k].numpy(), seed=seed)
                for k in range(samples)
            ]
            for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]

    def _guidance(self, prompts: Sequence[FlowPrompt]) -> Tensor | None:
        sampler = self.sampler
        if sampler.omega_speak == sampler.omega_listen == 1:
            return None
        speaking = torch.tensor([prompt.row["speaking"] for prompt in prompts]).to(self._device)
        return guidance_scale(
            speaking,
            sampler.omega_speak,
            sampler.omega_listen,
            downsample=self.flow.config.downsample,
        )

    def _explored(
        self, prompts: Sequence[FlowPrompt], samples: int, seeds: Sequence[int]
    ) -> list[list[Reaction]]:
        sizes = self.flow.config
        exploration = self._exploration
        conditions = self.collate([prompt.row for prompt in prompts])
        shape = (samples, sizes.window, exploration.noisy + 1, sizes.latent_dim)
        self.flow.eval()
        path = rollout(
            self.flow,
            Conditions(**conditions),
            draw_noise(seeds, *shape).to(self._device),
            exploration,
            exploration.first(seeds),
            lead=self.sampler.lead,
        )
        states = path.states
        log_probs = path.log_probs.cpu().numpy()
        with torch.no_grad():
            decoded = self.vae.decode(path.latents.flatten(0, 1))
        frames = decoded.reshape(*states.shape[:2], *decoded.shape[1:]).cpu().numpy()
        actions = states.nan_to_num().cpu().numpy()
        return [
            [
                Reaction(
                    prompt.prompt_id,
                    k,
                    actions[i, k],
                    log_probs=log_probs[i, k],
                    seed=seed,
                    **self._decoded(frames[i, k]),
                )
                for k in range(samples)
            ]
            for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]

    @property
    def _exploration(self) -> Exploration:
        """How its rollouts are drawn.

        Raises:
            ValueError: they are those of the ODE, whose steps have no probability.
        """
        exploration: Exploration | None = self.sampler.exploration
        if exploration is None:
            raise ValueError("reactions by the ODE have no log-probs: Sampler.exploration is None")
        return exploration

    def _decoded(self, frames: np.ndarray) -> dict[str, Any]:
        if np.isfinite(frames).all():
            return {"motion": Motion(frames, self.layout)}
        return {"failed": True}

    def to_motion(self, reaction: Reaction) -> Motion:
        """Latents (window, latent_dim), or a path that ends in them, through the VAE."""
        return self.to_motions([reaction])[0]

    def to_motions(self, reactions: Sequence[Reaction]) -> list[Motion]:
        """The same of many, in batches; what was decoded where it was sampled stays as it is."""
        missing = [_latents(reaction) for reaction in reactions if reaction.motion is None]
        decoded = iter(self.vae.to_motions(missing))
        return [
            next(decoded) if reaction.motion is None else reaction.motion for reaction in reactions
        ]

    def live(self) -> LiveFlow:
        """See `rapport.policies.flow.live`."""
        from rapport.policies.flow.live import LiveFlow  # which imports this module

        return LiveFlow(self)

    def told(self, text: str) -> FlowPrompt:
        """As of a clip whose `manner` is the text, and that lacks all else."""
        row = dict.fromkeys(CONDITION_COLUMNS) | {"text": to_bytes(self.features.text([text])[0])}
        return FlowPrompt("", row)

    def recorded(self, clip: Clip) -> Reaction:
        """The recorded listener as latents, of as many whole ones as there are."""
        return Reaction(clip.clip_id, 0, self.coded(clip.listener.subset(self.layout)))

    def coded(self, motion: Motion) -> np.ndarray:
        """A motion as latents, of as many whole ones as there are."""
        frames = len(motion) // self.vae.config.downsample * self.vae.config.downsample
        return self.latents(motion.window(0, frames)).cpu().numpy()

    def latents(self, motion: Motion) -> Tensor:
        """(time / r, latent_dim) of a motion of whole latents."""
        return self.vae.latents_of([motion])[0]

    def seeds(self, stage: Stage, seed: int, index: int, prompt_ids: Sequence[str]) -> list[int]:
        """By place in the batch, or counted up for held-out prompts."""
        count = len(prompt_ids)
        if stage == "held out":
            return list(range(seed + 1, seed + 1 + count))
        root = count if stage == "candidates" else index
        entropy = [seed, root] if stage == "iteration" or not index else [seed, root, index]
        states = np.random.SeedSequence(entropy).generate_state(count)
        return [int(state) for state in states]

    def candidate_id(self, reaction: Reaction) -> str:
        """Its number: rating packages show neutral names anyway."""
        return str(reaction.sample)

    def recorded_id(self, prompt_id: str) -> str:
        """The recorded listener."""
        return "ground_truth"

    def perception(
        self, prompts: Sequence[FlowPrompt], reactions: Sequence[Reaction], others: np.ndarray
    ) -> dict[str, Cost]:
        """See `rapport.policies.flow.perception`."""
        window = self.flow.config.window
        latents = np.stack([reaction.actions[:window] for reaction in reactions])
        self.flow.eval()
        return perception(
            self.flow,
            self.collate([prompt.row for prompt in prompts]),
            torch.from_numpy(latents).to(self._device),
            others,
            lead=self.sampler.lead,
        )

    def _partner(self, clip: Clip) -> Motion | None:
        if clip.speaker is None:
            return None
        try:
            return clip.speaker.subset(self.layout)
        except LayoutError as error:
            raise LayoutError(f"clip {clip.clip_id!r}, its speaker: {error}") from error

    # -- Learning --

    def prepare_training(self, config: Any, part: str = "all") -> None:
        """All of AR-Flow learns, the VAE never does."""
        self.flow.train()

    def module(self) -> nn.Module:
        """AR-Flow with its errors, or replayed velocities, as forward pass."""
        return self._module

    def decoder(self) -> MotionVAE:
        """The motion VAE where AR-Flow is; learners move AR-Flow alone to their device."""
        return self.vae.to(self._device)

    def prompt_row(self, prompt: FlowPrompt) -> dict[str, Any]:
        """Features as bytes."""
        return {name: prompt.row[name] for name in CONDITION_COLUMNS}

    def prompt_of(self, row: Row) -> FlowPrompt:
        """The prompt of a row of a table of windows."""
        columns = [*CONDITION_COLUMNS, "speaking"]
        return FlowPrompt(row["prompt_id"], {name: row[name] for name in columns if name in row})

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The fields of `Conditions`."""
        conditions = collate_conditions(rows, self.flow.config)
        return {name: value.to(self._device) for name, value in conditions.items()}

    def draws(self, prompts: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Noise (prompts, 1, window, draws, latent_dim) and flow times (prompts, 1, window, draws).

        Both reactions of a pair meet the same ones. And who knows their own past, (prompts,).
        """
        sizes = self.flow.config
        shape = (prompts, 1, sizes.window, self.draw_count)
        noise = torch.randn(*shape, sizes.latent_dim, generator=generator)
        return {
            "noise": noise,
            "time": torch.rand(shape, generator=generator),
            "remembers": torch.rand(prompts, generator=generator) >= self.forget_share,
        }

    def log_likelihood(self, forward: Forward, batch: Mapping[str, Tensor]) -> Tensor:
        """-e / 2 of every reaction, (prompts, reactions): e is its rectified-flow error (Eq. 4).

        Averaged over latents, their dims and the draws (Liu et al. 2025, arXiv 2501.13918).
        """
        actions = batch["actions"]
        reactions = actions.shape[1]
        errors: Tensor = forward(
            "errors",
            _conditions(batch),
            torch.full((len(actions),), lead_frames(self.sampler.lead), device=actions.device),
            actions,
            batch["noise"].expand(-1, reactions, -1, -1, -1),
            batch["time"].expand(-1, reactions, -1, -1),
            batch["remembers"],
        )
        return -errors.mean((2, 3)) / 2

    def collate_group(self, reactions: Sequence[Reaction]) -> dict[str, Tensor]:
        """Paths (1, samples, latents, states, latent_dim), and the first drawn step (1,)."""
        group = super().collate_group(reactions)
        if self.sampler.exploration is None:
            return group
        return group | {"first": self.sampler.exploration.first([reactions[0].seed])}

    def likelihood(self, forward: Forward, batch: Mapping[str, Tensor]) -> Likelihood:
        """Log-probs of every drawn denoise step, (samples, latents, steps)."""
        states = batch["actions"]
        exploration = self._exploration
        first = batch["first"]
        how = (self.sampler.chunk, self.sampler.lead)
        means = forward("means", _conditions(batch), states, exploration, first, *how)
        return Likelihood(log_probs(states, means, exploration, first)[0], means)

    def kl(self, policy: Likelihood, reference: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Exact, step by step: both are Gaussians of one width."""
        return step_kl(policy.density, reference, self._exploration, batch["first"])[0]

    def replayed(self, forward: Forward, batch: Mapping[str, Tensor], seed: int) -> Tensor:
        """Latents (samples, window, latent_dim) of reactions by the ODE, made again with gradients.

        Args:
            forward: the module's forward pass.
            batch: of `collate` and `collate_group`, of one prompt.
            seed: that the reactions were sampled with.
        """
        latents = batch["actions"]
        noise = window_noise([seed], *latents.shape[1:]).to(latents)
        denoise = ode(self.sampler.solver, self.sampler.evaluations)
        lead = self.sampler.lead
        again: Tensor = forward("latents", _conditions(batch), latents, noise, denoise, lead)
        return again[0]

    def of_actions(self, frames: np.ndarray) -> Tensor:
        """(..., latents, 1): means over the frames of each latent."""
        r = self.flow.config.downsample
        values = torch.as_tensor(frames, dtype=torch.float64)
        return torch.unflatten(values, -1, (-1, r)).mean(-1, keepdim=True)

    @property
    def _device(self) -> torch.device:
        return next(self.flow.parameters()).device

    # -- Files --

    def save(self, path: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """A folder with AR-Flow, its VAE and the names of its encoders."""
        weights = None if state is None else flow_state(dict(state))
        with atomic(path) as partial:
            checkpoint.write(self.flow, partial, weights)
            checkpoint.write(self.vae, partial / VAE_FOLDER)
            write_encoders(partial, self.encoders)
            write_kind(partial, self.kind)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The policy in a folder."""
        vae = path / VAE_FOLDER
        if not vae.is_dir():
            raise CheckpointError(
                f"{path} is no complete AR-Flow: it has no folder {VAE_FOLDER}; save it again"
            )
        return cls(checkpoint.load_flow(path), checkpoint.load_vae(vae), read_encoders(path))

    def weights(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """AR-Flow's weights; the VAE stays as it is."""
        if state is not None:
            return flow_state(dict(state))
        return {name: value.detach().cpu() for name, value in self.flow.state_dict().items()}

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Take over AR-Flow's weights."""
        self.flow.load_state_dict(state)

    def to(self, device: torch.device | str) -> Self:
        """AR-Flow and the VAE."""
        self.flow.to(device)
        self.vae.to(device)
        return self

    def with_sampler(self, sampler: Sampler | None = None, **changes: Any) -> Self:
        """The same policy, sampled otherwise; weights are shared, those of encoders too.

        Args:
            sampler: in place of the present one.
            changes: of single fields.
        """
        other = type(self)(self.flow, self.vae, self.encoders)
        other.sampler = replace(sampler or self.sampler, **changes)
        if "features" in vars(self):
            other.features = self.features  # loaded already
        return other


def _latents(reaction: Reaction) -> Tensor:
    """(window, latent_dim): the actions, or what a path of denoise steps ends in."""
    actions = torch.from_numpy(np.array(reaction.actions, np.float32))
    return actions if actions.ndim == 2 else actions[:, -1]


def _conditions(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch[name] for name in (*MODALITIES, "present")}
