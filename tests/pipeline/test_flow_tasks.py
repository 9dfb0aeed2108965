"""The learning tasks of VAE and AR-Flow without Ray: batches, losses, and that Eq. 10 makes a reward rise."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pipeline.config import FlowConfig, GdpoConfig, VaeConfig
from pipeline.tasks.flow import FlowTask
from pipeline.tasks.gdpo import GdpoTask
from pipeline.tasks.vae import VaeTask
from policies.flow import checkpoint, config
from policies.flow.conditions import MODALITIES, Conditions
from policies.flow.model import initialised
from policies.flow.sampling import draw_noise
from policies.flow.sde import replay_velocities, rollout, step_kl, step_log_probs
from policies.flow.training import (
    FLOW_SCHEMA,
    MOTION_SCHEMA,
    ROLLOUT_SCHEMA,
    collate_conditions,
    from_bytes,
    to_bytes,
)
from policies.flow.vae import MotionVAE
from policies.motion import Layout
from policies.vla.training import write_table
from rewards.advantage import decoupled_advantages
from rewards.policy_loss import clipped_policy_loss

LAYOUT = Layout((("expr", 4), ("jaw", 2)), 25, "builtin")
SIZES = config.FlowConfig(latent_dim=4, downsample=4, text_dim=5, audio_dim=6, hidden=32, layers=2, heads=4, mlp=48,
                          window=3)
SHAPES = {"text": (5,), "partner_audio": (12, 6), "partner_motion": (3, 4), "actor_audio": (12, 6)}


def condition_row(rng, index, absent=()):
    features = {name: to_bytes(rng.normal(size=shape)) for name, shape in SHAPES.items()}
    return {"clip_id": f"clip-{index}"} | features | {name: None for name in absent}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A process group of this process, for what is collective."""
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    path = tmp_path_factory.mktemp("policy") / "flow"
    checkpoint.save(initialised(SIZES, seed=0), path)
    return path


def vae_task(tmp_path, **keys):
    torch.manual_seed(0)
    checkpoint.save(MotionVAE(config.VAEConfig(LAYOUT, downsample=4, latent_dim=4, hidden=32)), tmp_path / "vae")
    rng = np.random.default_rng(0)
    rows = ({"clip_id": str(i), "frames": to_bytes(np.sin(rng.normal(size=(1, 6)) * np.arange(16)[:, None] / 5))}
            for i in range(6))
    write_table(tmp_path / "motion.arrow", rows, MOTION_SCHEMA)
    return VaeTask(str(tmp_path / "vae"), str(tmp_path / "motion.arrow"), 3, VaeConfig(batch_size=4, **keys))


def flow_task(policy, tmp_path, **keys):
    rng = np.random.default_rng(0)
    rows = (condition_row(rng, i, ("text",) if i % 2 else ()) | {"latents": to_bytes(rng.normal(size=(3, 4)))}
            for i in range(6))
    write_table(tmp_path / "flow.arrow", rows, FLOW_SCHEMA)
    return FlowTask(str(policy), str(tmp_path / "flow.arrow"), 3, FlowConfig(batch_size=4, draws=2, **keys))


def gdpo_task(policy, tmp_path, prompts=4, reference=None, **keys):
    settings = GdpoConfig(**{"batch_size": 2, "group_size": 3, "steps": 2} | keys)
    rng, flow, rows = np.random.default_rng(0), checkpoint.load_flow(policy), []
    for i in range(prompts):
        row = condition_row(rng, i)
        noise = draw_noise([i], settings.group_size, SIZES.window, settings.steps + 1, SIZES.latent_dim)
        sampled = rollout(flow, Conditions(**collate_conditions([row], SIZES)), noise, settings.sigma)
        rows.append(row | {"states": to_bytes(sampled.states), "advantages": rng.normal(size=3).tolist(),
                           "listening": [True, False, True]})
    write_table(tmp_path / "rollouts.arrow", rows, ROLLOUT_SCHEMA)
    return GdpoTask(str(policy), str(reference or policy), str(tmp_path / "rollouts.arrow"), 3, settings)


def descend(task, module, steps, rate):
    optimiser = torch.optim.Adam(module.parameters(), rate)
    values = []
    for step in range(steps):
        loss, metrics = task.loss(module, task.batch(step, 0, 1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(loss.item())
    return values, metrics


def assert_batches_are_shared(task, names):
    for step in (0, 5):
        whole, parts = task.batch(step, 0, 1), [task.batch(step, rank, 2) for rank in range(2)]
        for name in names:
            got = torch.stack([parts[i % 2][name][i // 2] for i in range(4)])
            assert torch.equal(got, whole[name]), name
        again = task.batch(step, 0, 1)
        assert all(torch.equal(again[name], whole[name]) for name in names)
    assert not torch.equal(task.batch(0, 0, 1)["noise"], task.batch(1, 0, 1)["noise"])


def test_arrays_travel_as_bytes():
    values = np.arange(6.0).reshape(2, 3)
    assert from_bytes(to_bytes(values), 2, 3).tolist() == values.tolist()
    assert from_bytes(to_bytes(torch.ones(2, 3)), -1, 3).shape == (2, 3)
    assert to_bytes(None) is None


def test_the_vae_learns_and_is_saved(tmp_path):
    task = vae_task(tmp_path)
    assert_batches_are_shared(task, ["frames", "noise"])
    values, parts = descend(task, task.module(), 40, 3e-3)
    assert values[-1] < 0.5 * values[0] and set(parts) == {"reconstruction", "velocity", "kl"}
    task.save(task.module().state_dict(), tmp_path / "policy")
    frames = task.batch(0, 0, 1)["frames"]
    torch.testing.assert_close(checkpoint.load_vae(tmp_path / "policy").encode(frames), task.vae.encode(frames))


def test_a_clip_without_text_trains_without(policy, tmp_path):
    batch = flow_task(policy, tmp_path, drop_each=0, drop_all=0).batch(0, 0, 1)
    assert batch["present"].sum(0).tolist() == [2, 4, 4, 4]
    assert (batch["text"][~batch["present"][:, 0]] == 0).all()


def test_ar_flow_learns_and_is_saved(policy, tmp_path):
    task = flow_task(policy, tmp_path)
    names = ["latents", "noise", "time", "streaming", "present", *MODALITIES]
    assert_batches_are_shared(task, names)
    module = task.module()
    values, _ = descend(task, module, 80, 5e-3)
    assert np.mean(values[-10:]) < 0.8 * np.mean(values[:10])
    assert all(p.grad is not None for p in module.parameters())
    task.save(module.state_dict(), tmp_path / "policy")
    saved = checkpoint.load_flow(tmp_path / "policy").state_dict()
    assert all(torch.equal(saved[name], value) for name, value in task.flow.state_dict().items())


def test_the_loss_of_shares_is_that_of_the_batch(policy, tmp_path):
    task = flow_task(policy, tmp_path)
    module = task.module()
    whole = task.loss(module, task.batch(0, 0, 1))[0]
    parts = [task.loss(module, task.batch(0, rank, 2))[0] for rank in range(2)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_on_policy_the_ratio_is_exactly_1(policy, tmp_path, alone):
    task = gdpo_task(policy, tmp_path)
    module = task.module()
    task.prepare(module, 0, 1)
    loss, metrics = task.loss(module, task.batch(0, 0, 1))
    assert metrics["ratio"].item() == pytest.approx(1, abs=1e-7) and metrics["approx_kl"].item() == 0
    assert metrics["clip_fraction"] == 0 and metrics["kl"].item() < 1e-9
    # Eq. 10 at ratio 1 is minus the mean advantage
    rows = task.batch(0, 0, 1)["rows"]
    assert loss.item() == pytest.approx(-torch.cat([row["advantages"] for row in rows]).mean().item(), abs=1e-6)


def test_good_rollouts_become_likelier_where_they_listen(policy, tmp_path, alone):
    task = gdpo_task(policy, tmp_path, beta=0.0, clip=0.9)
    module = task.module()
    task.prepare(module, 0, 1)
    descend(task, module, 6, 1e-3)
    gains = []
    for index, (old, _) in enumerate(task.replayed):
        row = task._row(index)
        velocities = module({name: row[name] for name in (*MODALITIES, "present")}, row["states"], None)
        gain = (step_log_probs(row["states"], velocities, task.config.sigma, "sum") - old)[0]
        gains.append((gain[:, [0, 2]].sum((1, 2)) * row["advantages"]).sum())
    assert torch.stack(gains).sum() > 0


def test_the_reference_holds_the_policy_back(policy, tmp_path, alone):
    far = tmp_path / "far"
    checkpoint.save(initialised(SIZES, seed=1), far)
    task = gdpo_task(policy, tmp_path, reference=far, beta=1.0)
    module = task.module()
    task.prepare(module, 0, 1)
    before = task.loss(module, task.batch(0, 0, 1))[1]["kl"]
    descend(task, module, 10, 1e-3)
    assert task.loss(module, task.batch(0, 0, 1))[1]["kl"] < before


def test_a_reward_rises():
    """Flow-GRPO's third check: without KL, on-policy, the mean reward goes up."""
    flow = initialised(SIZES, seed=0)
    optimiser = torch.optim.Adam(flow.parameters(), 2e-3)
    conditions = Conditions(present=torch.zeros(8, 4, dtype=torch.bool))
    rewards = []
    for iteration in range(25):
        noise = draw_noise(range(100 * iteration, 100 * iteration + 8), 8, 3, 3, 4)
        sampled = rollout(flow, conditions, noise, sigma=0.5)
        reward = -(sampled.latents - 1).square().mean((2, 3))
        advantages = decoupled_advantages(reward.unsqueeze(-1), [1.0]).flatten()
        velocities = replay_velocities(flow, conditions, sampled.states, chunk=1)
        log_probs = step_log_probs(sampled.states, velocities, 0.5, "sum").flatten(0, 1)
        kl = step_kl(velocities, velocities.detach(), 0.5, "sum").flatten(0, 1)
        loss, _ = clipped_policy_loss(log_probs, log_probs.detach(), advantages, kl, 0.2, 0.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rewards.append(reward.mean().item())
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.1
