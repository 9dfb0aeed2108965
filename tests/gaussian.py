"""A third policy: knots of motion around a learnt mean, which follows how loud the speaker is."""

import json
from collections import namedtuple
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file

from rapport.files import atomic
from rapport.policies.motion import Layout, Motion
from rapport.policies.policy import Policy, Reaction, write_kind

KNOTS, WIDTH = 4, 0.02  # of a clip; standard deviation of every number
LoudnessPrompt = namedtuple("LoudnessPrompt", ["prompt_id", "loudness"])


class Gaussian(Policy):
    kind = "tests.gaussian:Gaussian"
    prompt_columns = {"prompt_id": pa.string(), "loudness": pa.float32()}

    def __init__(self, layout: Layout, frames: int, mean: torch.Tensor):
        self.layout, self.frames = layout, frames
        self.mean = torch.nn.Linear(1, mean.numel())
        torch.nn.init.zeros_(self.mean.weight)
        self.mean.bias.data.copy_(mean.flatten())

    @classmethod
    def untrained(cls, layout, clips, seed):
        motions = [clip.listener.values for clip in clips]
        knots = np.mean([cls._knots(values) for values in motions], axis=0)
        return cls(layout, len(motions[0]), torch.from_numpy(knots).float())

    @staticmethod
    def _knots(values):
        return values[np.linspace(0, len(values) - 1, KNOTS).round().astype(int)]

    def encode(self, clip):
        audio = clip.speaker_audio
        return LoudnessPrompt(clip.clip_id, 0.0 if audio is None else float(np.abs(audio).mean()))

    @torch.no_grad()
    def sample(self, prompts, samples, seeds):
        groups = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            mean = self.mean(torch.tensor([prompt.loudness]))
            generator = torch.Generator().manual_seed(seed)
            actions = mean + WIDTH * torch.randn(samples, len(mean), generator=generator)
            sampled = zip(actions.numpy(), self._density(mean, actions).numpy(), strict=True)
            groups.append([Reaction(prompt.prompt_id, k, *ab) for k, ab in enumerate(sampled)])
        return groups

    @staticmethod
    def _density(mean, actions):
        return torch.distributions.Normal(mean, WIDTH).log_prob(actions)

    def to_motion(self, reaction):
        knots = np.asarray(reaction.actions, np.float32).reshape(KNOTS, self.layout.dim)
        place = np.linspace(0, KNOTS - 1, self.frames)
        columns = [np.interp(place, np.arange(KNOTS), column) for column in knots.T]
        return Motion(np.stack(columns, axis=1), self.layout)

    def recorded(self, clip):
        knots = self._knots(clip.listener.subset(self.layout).values)
        return Reaction(clip.clip_id, 0, knots.ravel())

    def module(self):
        return self.mean

    def prompt_row(self, prompt):
        return prompt._asdict()

    def prompt_of(self, row):
        return LoudnessPrompt(row["prompt_id"], row["loudness"])

    def collate(self, rows):
        return {"loudness": torch.tensor([[[row["loudness"]]] for row in rows])}

    def action_log_probs(self, forward, batch):
        return self._density(forward(batch["loudness"]), batch["actions"])

    def of_actions(self, frames):
        return torch.from_numpy(np.repeat(self._knots(frames.T).T * 1.0, self.layout.dim, axis=-1))

    def save(self, path, state=None):
        with atomic(path) as partial:
            partial.mkdir()
            save_file(self.weights(state), partial / "model.safetensors")
            (partial / "config.json").write_text(json.dumps([self.layout.to_json(), self.frames]))
            write_kind(partial, self.kind)

    @classmethod
    def load(cls, path):
        layout, frames = json.loads((Path(path) / "config.json").read_text())
        weights = load_file(Path(path) / "model.safetensors")
        policy = cls(Layout.from_json(layout), frames, weights["bias"])
        policy.load_weights(weights)
        return policy
