"""The whole loop of GDPO on people whose distribution is known: where does it lead?

A frame has one number, and a latent is four frames as they are, so that nothing is lost in coding.
"""

import numpy as np
import pytest
import torch
from torch import nn

from rapport.pipeline.data.flow import WINDOW_SCHEMA
from rapport.pipeline.objectives.gdpo import Gdpo
from rapport.pipeline.objectives.pathwise import Pathwise, RewardTerms
from rapport.pipeline.objectives.settings import FlowGdpoConfig
from rapport.pipeline.settings import GdpoOfFlow
from rapport.pipeline.steps.alignment import sampled_by
from rapport.pipeline.steps.rewarding import Scenes, reward_weights
from rapport.pipeline.steps.sampling import fleet_sampler
from rapport.pipeline.steps.settings import MovementConfig
from rapport.policies.flow import config
from rapport.policies.flow.conditions import Conditions
from rapport.policies.flow.loss import flow_errors
from rapport.policies.flow.model import initialised
from rapport.policies.flow.policy import FlowPolicy
from rapport.policies.flow.settings import EncodersConfig
from rapport.policies.flow.training import to_bytes
from rapport.policies.flow.vae import MotionVAE
from rapport.policies.motion import Layout, Motion
from rapport.policies.policy import load_policy
from rapport.policies.tables import write_table
from rapport.rewards.settings import EnergyWeights, PaperWeights, RewardConfig
from tests.pipeline.iterations import LocalFleet, experience_of

LAYOUT = Layout((("expr", 1),), 25, "builtin")
SIZES = config.FlowSizes(
    latent_dim=4,
    downsample=4,
    text_dim=2,
    audio_dim=2,
    hidden=32,
    layers=2,
    heads=4,
    mlp=48,
    window=12,
)
FRAMES = 48
LIMITS = Motion(np.array([[-9.0], [9.0]]), LAYOUT)
ABSENT = dict.fromkeys(("text", "partner_audio", "partner_motion", "actor_audio"))
PROMPTS = 32


class AsItIs(nn.Module):
    """A motion code that changes nothing but the shape."""

    def __init__(self):
        super().__init__()
        self.config = config.VaeSizes(LAYOUT, downsample=4, latent_dim=4, hidden=32)

    def decode(self, latents):
        return latents.flatten(-2).unsqueeze(-1)

    def to_motions(self, latents):
        return [Motion(self.decode(each).numpy(), LAYOUT) for each in latents]


def imitating(people, steps=300):
    """AR-Flow that has learnt people (n, FRAMES, 1)."""
    flow = initialised(SIZES, seed=0)
    optimiser = torch.optim.Adam(flow.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(len(people), (32,), generator=generator)
        latents = people[rows].reshape(32, 1, 12, 4)
        noise = torch.randn(32, 1, 12, 2, 4, generator=generator)
        time = torch.rand(32, 1, 12, 2, generator=generator)
        prefix = flow.encode_prefix(Conditions(present=torch.zeros(32, 4, dtype=torch.bool)))
        optimiser.zero_grad()
        flow_errors(flow, prefix, latents, noise, time).mean().backward()
        optimiser.step()
        schedule.step()
    return flow


def plain(folder):
    policy = load_policy(folder)
    policy.vae = AsItIs()
    return policy


def aligned(folder, flow, people, reward, **keys):
    """The policy after GDPO from `flow` with people (n, FRAMES, 1) as the recorded ones."""
    vae = MotionVAE(config.VaeSizes(LAYOUT, downsample=4, latent_dim=4, hidden=32))
    FlowPolicy(flow, vae, EncodersConfig()).save(folder / "flow")
    rows = (
        {"prompt_id": str(i), "latents": to_bytes(np.zeros((12, 4)))}
        | ABSENT
        | {
            "recorded": to_bytes(people[i]),
            "listening": [True] * FRAMES,
            "speaking": [False] * FRAMES,
        }
        for i in range(PROMPTS)
    )
    write_table(folder / "windows.arrow", rows, WINDOW_SCHEMA)
    settings = FlowGdpoConfig(
        anchor_share=0, beta=0.0, hold=0.0, group_size=8, batch_size=8, sync_every=1, **keys
    )
    recipe = GdpoOfFlow(gdpo=settings, judge=MovementConfig(evaluations=4), reward=reward)
    table = folder / "windows.arrow"
    scenes = Scenes(table, plain(folder / "flow"), folder / "flow", settings, 3)
    scenes.__dict__["limits"] = LIMITS
    sampler = fleet_sampler(recipe, scenes.policy)
    if settings.estimator == "pathwise":
        weights = reward_weights(reward, recipe.groups, LAYOUT.names)
        terms = RewardTerms(reward, weights, LIMITS)
        task = Pathwise(folder / "flow", table, settings, seed=3, sampler=sampler, terms=terms)
    else:
        task = Gdpo(folder / "flow", table, settings, 3, sampler)
    task.recipe, task.scenes = recipe, scenes
    task.policy.vae = AsItIs()
    task.reference.vae = AsItIs()
    module = task.module()
    optimiser = torch.optim.Adam(module.parameters(), settings.learning_rate)
    fleet = LocalFleet(plain(folder / "flow"), sampler)
    with sampled_by(fleet, scenes, recipe) as roll_out:
        for index in range(settings.iterations):
            groups = roll_out(module.state_dict(), index)
            task.refresh(module, experience_of(task, groups, index).data, 0, 1)
            loss, _ = task.loss(module, task.batch(index, 0, 1))
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
    return task.policy


def answers(flow, count=64):
    """(count, FRAMES) by the ODE, four evaluations."""
    policy = FlowPolicy(flow, AsItIs(), EncodersConfig())
    policy.sampler = fleet_sampler(
        GdpoOfFlow(gdpo=FlowGdpoConfig(estimator="pathwise"), judge=MovementConfig(evaluations=4)),
        policy,
    )
    prompt = policy.prompt_of({"prompt_id": "0"} | ABSENT)
    [group] = policy.sample([prompt], count, [7])
    return np.stack([policy.to_motion(reaction).values[:, 0] for reaction in group])


def only(form, *names):
    """A reward of some components."""
    section = EnergyWeights if form == "energy" else PaperWeights
    weights = {name: float(name in names) for name in section.model_fields}
    return RewardConfig(form=form, **{form: section(**weights)})


@pytest.fixture(scope="module")
def too_still():
    """It has learnt people who move .6 of what the recorded ones do."""
    generator = torch.Generator().manual_seed(1)
    return imitating(0.6 * torch.randn(512, FRAMES, 1, generator=generator))


@pytest.mark.parametrize("estimator", [pytest.param("gdpo", marks=pytest.mark.long), "pathwise"])
def test_who_moves_too_little_comes_to_move_as_people_do(too_still, tmp_path, alone, estimator):
    people = np.random.default_rng(2).normal(size=(PROMPTS, FRAMES, 1)).astype(np.float32)
    before = answers(too_still).std()
    assert before == pytest.approx(0.6, abs=0.1)
    keys = {"iterations": 60, "learning_rate": 1e-3, "estimator": estimator}
    policy = aligned(tmp_path, too_still, people, only("energy", "fast"), **keys)
    after = answers(policy.flow).std()
    assert before + 0.15 < after < 1.15


@pytest.fixture(scope="module")
def two_kinds():
    """Half of people rest at 1, half at -1."""
    rng = np.random.default_rng(3)
    rest = rng.choice([-1.0, 1.0], size=(512, 1, 1))
    return torch.from_numpy(rest + 0.2 * rng.normal(size=(512, FRAMES, 1))).float()


def kept_apart(people, folder, form, component):
    """How far apart two kinds of people are before, and after GDPO by one component."""
    flow = imitating(people, steps=600)
    keys = {"iterations": 40, "learning_rate": 1e-3, "estimator": "pathwise"}
    recorded = people[:PROMPTS].numpy()
    policy = aligned(folder, flow, recorded, only(form, component), **keys)
    return [answers(each).mean(1).std() for each in (flow, policy.flow)]


def test_two_kinds_of_people_stay_apart(two_kinds, tmp_path, alone):
    before, after = kept_apart(two_kinds, tmp_path, "energy", "mean")
    assert before > 0.7
    assert after > 0.7


@pytest.mark.long
def test_by_the_papers_form_two_kinds_of_people_come_nearer(two_kinds, tmp_path, alone):
    apart = {}
    for form, component in (("energy", "mean"), ("paper", "mean_drift")):
        folder = tmp_path / form
        folder.mkdir()
        _, apart[form] = kept_apart(two_kinds, folder, form, component)
    assert apart["energy"] > apart["paper"] + 0.1
