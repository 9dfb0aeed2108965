"""The learning tasks of VAE and AR-Flow without Ray: batches, losses, and that Eq. 10 makes a
reward rise.
"""

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rapport.pipeline.data.flow import WINDOW_SCHEMA
from rapport.pipeline.objectives.dpo import Dpo, pair_schema
from rapport.pipeline.objectives.flow import RectifiedFlow
from rapport.pipeline.objectives.gdpo import Gdpo
from rapport.pipeline.objectives.pathwise import Pathwise, RewardTerms
from rapport.pipeline.objectives.settings import (
    FlowDpoConfig,
    FlowGdpoConfig,
    FlowTraining,
    VaeTraining,
)
from rapport.pipeline.objectives.vae import MotionCode
from rapport.pipeline.rundir import RunError
from rapport.pipeline.settings import GdpoOfFlow
from rapport.pipeline.steps.alignment import OneAhead, sampled_by
from rapport.pipeline.steps.learning import Imitated
from rapport.pipeline.steps.rewarding import (
    Scenes,
    advantages_of,
    reward_weights,
    scenes_of,
)
from rapport.pipeline.steps.sampling import fleet_sampler
from rapport.pipeline.steps.settings import MovementConfig
from rapport.policies.flow import checkpoint, config
from rapport.policies.flow.conditions import MODALITIES, Conditions
from rapport.policies.flow.loss import flow_errors
from rapport.policies.flow.model import initialised
from rapport.policies.flow.policy import FlowPolicy
from rapport.policies.flow.rollouts import PaperSde, log_probs, replay_means, rollout, step_kl
from rapport.policies.flow.sampling import draw_noise
from rapport.policies.flow.settings import EncodersConfig
from rapport.policies.flow.training import (
    FLOW_SCHEMA,
    MOTION_SCHEMA,
    from_bytes,
    to_bytes,
)
from rapport.policies.flow.vae import MotionVAE
from rapport.policies.motion import Motion
from rapport.policies.policy import CheckpointError, load_policy
from rapport.policies.tables import write_table
from rapport.rewards.advantage import decoupled_advantages
from rapport.rewards.policy_loss import PolicyActions, clipped_policy_loss
from rapport.rewards.settings import EnergyWeights, GroupWeightsConfig, RewardConfig
from tests.pipeline.descent import descend
from tests.pipeline.iterations import LocalFleet, experience_of
from tests.small_flow import LAYOUT, SHAPES, SIZES


def condition_row(rng, index, absent=()):
    features = {name: to_bytes(rng.normal(size=shape)) for name, shape in SHAPES.items()}
    return {"prompt_id": f"clip-{index}"} | features | dict.fromkeys(absent)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    path = tmp_path_factory.mktemp("policy") / "flow"
    torch.manual_seed(0)
    vae = MotionVAE(config.VaeSizes(LAYOUT, downsample=4, latent_dim=4, hidden=32))
    FlowPolicy(initialised(SIZES, seed=0), vae, EncodersConfig()).save(path)
    return path


def vae_task(tmp_path, **keys):
    torch.manual_seed(0)
    checkpoint.save(
        MotionVAE(config.VaeSizes(LAYOUT, downsample=4, latent_dim=4, hidden=32)), tmp_path / "vae"
    )
    rng = np.random.default_rng(0)
    rows = (
        {
            "clip_id": str(i),
            "frames": to_bytes(np.sin(rng.normal(size=(1, 6)) * np.arange(16)[:, None] / 5)),
        }
        for i in range(6)
    )
    write_table(tmp_path / "motion.arrow", rows, MOTION_SCHEMA)
    return MotionCode(
        tmp_path / "vae", tmp_path / "motion.arrow", VaeTraining(batch_size=4, **keys), 3
    )


def flow_task(policy, tmp_path, **keys):
    rng = np.random.default_rng(0)
    rows = (
        condition_row(rng, i, ("text",) if i % 2 else ())
        | {"latents": to_bytes(rng.normal(size=(12, 4)))}
        for i in range(6)
    )
    write_table(tmp_path / "flow.arrow", rows, FLOW_SCHEMA)
    return RectifiedFlow(
        policy, tmp_path / "flow.arrow", FlowTraining(batch_size=4, draws=2, **keys), 3
    )


SETTINGS = {
    "estimator": "gdpo",
    "anchor_share": 0.0,
    "batch_size": 2,
    "sync_every": 2,
    "iterations": 2,
    "group_size": 3,
}
JUDGE = MovementConfig(evaluations=4)
LIMITS = Motion(np.stack([np.full(6, -3.0), np.full(6, 3.0)]), LAYOUT)


def gdpo_task(policy, tmp_path, prompts=4, **keys):
    """The learner's objective with `scenes`, the driver's side of it."""
    rng = np.random.default_rng(0)
    listening = np.repeat([True] * 6 + [False] * 2 + [True] * 4, 4).tolist()
    rows = (
        condition_row(rng, i)
        | {
            "latents": to_bytes(rng.normal(size=(12, 4))),
            "recorded": to_bytes(rng.normal(size=(48, 6))),
            "listening": listening if i < prompts else [False] * 48,
            "speaking": [False] * 48,
        }
        for i in range(prompts + 2)
    )
    table = tmp_path / "windows.arrow"
    write_table(table, rows, WINDOW_SCHEMA)
    settings = FlowGdpoConfig(**SETTINGS | keys)
    recipe = GdpoOfFlow(gdpo=settings, judge=JUDGE)
    sampler = fleet_sampler(recipe, load_policy(policy))
    task = Gdpo(policy, table, settings, 3, sampler)
    task.recipe = recipe
    task.scenes = Scenes(table, load_policy(policy), policy, settings, 3)
    task.scenes.__dict__["limits"] = LIMITS
    return task


def local_fleet(task):
    return LocalFleet(load_policy(task.initial), task.sampler)


def refreshed(task, step=0):
    """The task's module, with the data of an iteration."""
    module = task.module()
    index = step // task.config.sync_every
    with sampled_by(local_fleet(task), task.scenes, task.recipe) as roll_out:
        groups = roll_out(module.state_dict(), index)
    given = experience_of(task, groups, index)
    task.refresh(module, given.data, 0, 1)
    return module, given.metrics


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
    values, parts = descend(task, task.module(), range(40), 3e-3)
    assert values[-1] < 0.5 * values[0] and set(parts) == {"reconstruction", "velocity", "kl/prior"}
    task.save(task.module().state_dict(), tmp_path / "policy")
    frames = task.batch(0, 0, 1)["frames"]
    torch.testing.assert_close(
        checkpoint.load_vae(tmp_path / "policy").encode(frames), task.vae.encode(frames)
    )


def test_a_clip_without_text_trains_without(policy, tmp_path):
    batch = flow_task(policy, tmp_path, drop_each=0, drop_all=0).batch(0, 0, 1)
    assert batch["present"].sum(0).tolist() == [2, 4, 4, 4]
    assert (batch["text"][~batch["present"][:, 0]] == 0).all()


def test_ar_flow_learns_and_is_saved(policy, tmp_path):
    task = flow_task(policy, tmp_path)
    names = ["latents", "noise", "time", "lead", "remembers", "present", *MODALITIES]
    assert_batches_are_shared(task, names)
    module = task.module()
    values, _ = descend(task, module, range(80), 5e-3)
    assert np.mean(values[-10:]) < 0.8 * np.mean(values[:10])
    assert all(p.grad is not None for p in module.parameters())
    task.save(module.state_dict(), tmp_path / "policy")
    saved = checkpoint.load_flow(tmp_path / "policy").state_dict()
    assert all(
        torch.equal(saved[name], value) for name, value in task.policy.flow.state_dict().items()
    )


def test_a_policy_of_an_earlier_version_is_refused(policy, tmp_path):
    folder = tmp_path / "old"
    checkpoint.save(checkpoint.load_flow(policy), folder)
    file = folder / checkpoint.CONFIG_FILE
    old = json.loads(file.read_text())
    del old["span"], old["voice"]
    file.write_text(json.dumps(old))
    with pytest.raises(CheckpointError, match="earlier version, .* train it again"):
        checkpoint.load_flow(folder)


def test_the_loss_of_shares_is_that_of_the_batch(policy, tmp_path):
    task = flow_task(policy, tmp_path)
    module = task.module()
    whole = task.loss(module, task.batch(0, 0, 1))[0]
    parts = [task.loss(module, task.batch(0, rank, 2))[0] for rank in range(2)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def flow_dpo_task(policy, tmp_path, **keys):
    rng = np.random.default_rng(0)
    rows = (
        condition_row(rng, i)
        | {name: rng.normal(size=(12, 4)).tolist() for name in ("chosen", "rejected")}
        | {"chosen_score": 0.8, "rejected_score": 0.3}
        for i in range(6)
    )
    write_table(tmp_path / "pairs.arrow", rows, pair_schema(FlowPolicy))
    return Dpo(
        policy,
        policy,
        tmp_path / "pairs.arrow",
        FlowDpoConfig(batch_size=4, draws=2, **keys),
        3,
        tmp_path / "reference.parquet",
    )


def test_flow_dpo_begins_at_log_2_and_learns_who_was_preferred(policy, tmp_path):
    task = flow_dpo_task(policy, tmp_path, beta=50.0)
    assert_batches_are_shared(task, ["actions", "noise", "time", "remembers"])
    batch, module = task.batch(0, 0, 1), task.module()
    for name in ("noise", "time", "remembers"):
        assert torch.equal(batch[name][0::2], batch[name][1::2]), "twins meet the same"
    assert batch["noise"].shape[1] == batch["time"].shape[1] == 1, (
        "chosen and rejected meet the same noise"
    )
    loss, metrics = task.loss(module, batch)
    # Two modules of the same weights, elsewhere in memory: one or two units of rounding apart.
    rounding = 50.0 * 2 * float(np.finfo(np.float32).eps)
    assert loss.item() == pytest.approx(np.log(2), abs=rounding)
    assert abs(metrics["margin"].item()) <= rounding
    values, metrics = descend(task, module, range(60), 1e-3)
    assert np.mean(values[-5:]) < 0.4 and metrics["accuracy"] == 1
    assert all(p.grad is None for p in task.reference_policy.module().parameters())


def test_flow_dpo_is_its_formula(policy, tmp_path):
    """-log sigmoid(-beta / 2 [(e_w - e_w,ref) - (e_l - e_l,ref)]), errors computed one by one."""
    task = flow_dpo_task(policy, tmp_path, beta=50.0)
    module, other = task.module(), initialised(SIZES, seed=9)
    module.flow.load_state_dict(other.state_dict())
    batch = task.batch(0, 0, 1)
    assert set(batch["remembers"].tolist()) == {True, False}

    def error(flow, i, k):
        conditions = Conditions(
            **{name: batch[name][i : i + 1] for name in (*MODALITIES, "present")}
        )
        with torch.no_grad():
            errors = flow_errors(
                flow,
                flow.encode_prefix(conditions),
                batch["actions"][i : i + 1, k : k + 1],
                batch["noise"][i : i + 1],
                batch["time"][i : i + 1],
                batch["remembers"][i : i + 1],
            )
        return errors.mean().item()

    start = checkpoint.load_flow(policy)
    inside = [
        -25.0
        * ((error(other, i, 0) - error(start, i, 0)) - (error(other, i, 1) - error(start, i, 1)))
        for i in range(4)
    ]
    assert task.loss(module, batch)[0].item() == pytest.approx(
        np.mean(np.log1p(np.exp(-np.array(inside)))), rel=1e-4
    )


def test_on_policy_the_ratio_is_exactly_1(policy, tmp_path, alone):
    task = gdpo_task(policy, tmp_path)
    module, _ = refreshed(task)
    loss, metrics = task.loss(module, task.batch(0, 0, 1))
    assert (
        metrics["ratio"].item() == pytest.approx(1, abs=1e-7) and metrics["approx_kl"].item() == 0
    )
    assert metrics["clip_fraction"] == 0 and metrics["kl/reference"].item() < 1e-9
    # Eq. 10 at ratio 1 is minus the mean advantage, and advantages are centred within a group
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_where_there_is_no_reward_the_policy_is_held(policy, tmp_path, alone):
    kl = {}
    for hold in (0.0, 10.0):
        task = gdpo_task(policy, tmp_path, hold=hold, beta=0.0, clip=0.9)
        module, _ = refreshed(task)
        descend(task, module, range(10), 1e-3)
        kl[hold] = task.loss(module, task.batch(0, 0, 1))[1]["kl_unrewarded"].item()
    assert 0 < kl[10.0] < kl[0.0]


def test_only_who_listens_is_a_prompt_but_for_the_anchors(policy, tmp_path):
    assert gdpo_task(policy, tmp_path).scenes.prompts == [0, 1, 2, 3]
    assert gdpo_task(policy, tmp_path, anchor_share=0.2).scenes.prompts == [0, 1, 2, 3, 4]


def test_a_latent_is_what_its_frames_are_on_average(policy):
    frames = np.repeat([[1.0, 1, 0, 0], [1, 0, 0, 0]], 6, axis=0).ravel()
    actions = load_policy(policy).of_actions(np.stack([frames, -frames]))
    assert actions.shape == (2, 12, 1)
    assert actions[0, :, 0].tolist() == [0.5] * 6 + [0.25] * 6
    assert torch.equal(actions[1], -actions[0])


def test_a_corpus_in_which_nobody_listens_is_refused(policy, tmp_path):
    gdpo_task(policy, tmp_path, prompts=0)
    (tmp_path / "windows.arrow").rename(tmp_path / "train.arrow")
    imitated = Imitated(SimpleNamespace(layout=LAYOUT), policy, tmp_path)
    with pytest.raises(RunError, match="nobody listens in .*train.arrow"):
        scenes_of(SimpleNamespace(directory=tmp_path), GdpoOfFlow(), imitated)


def test_weights_of_groups_that_the_motion_lacks_reward_nothing(policy, tmp_path):
    gdpo_task(policy, tmp_path)
    (tmp_path / "windows.arrow").rename(tmp_path / "train.arrow")
    imitated = Imitated(SimpleNamespace(layout=LAYOUT), policy, tmp_path)
    weights = dict.fromkeys(GroupWeightsConfig.model_fields, 0.0) | {"trans": 1.0}
    config = GdpoOfFlow(groups=GroupWeightsConfig(**weights))
    with pytest.raises(RunError, match="this motion has expr.*nothing is rewarded"):
        scenes_of(SimpleNamespace(directory=tmp_path), config, imitated)


def test_steps_of_an_iteration_share_its_prompts_and_a_restart_samples_the_same(
    policy, tmp_path, alone
):
    task = gdpo_task(policy, tmp_path)
    _, metrics = refreshed(task, step=2)
    batches = [task.batch(step, 0, 1)["prompts_of_step"] for step in (2, 3)]
    assert [len(rows) for rows in batches] == [2, 2] and task.steps == 4 and task.refresh_every == 2
    again = gdpo_task(policy, tmp_path)
    _, others = refreshed(again, step=2)
    for rows, same in zip(
        batches, (again.batch(step, 0, 1)["prompts_of_step"] for step in (2, 3)), strict=True
    ):
        for row, other in zip(rows, same, strict=True):
            assert all(torch.equal(row[name], other[name]) for name in row)
    assert all(metrics[name] == others[name] for name in metrics)
    refreshed(again, step=0)
    assert not torch.equal(
        again.batch(0, 0, 1)["prompts_of_step"][0]["actions"], batches[0][0]["actions"]
    )


def test_every_component_and_group_has_a_metric(policy, tmp_path, alone):
    _, metrics = refreshed(gdpo_task(policy, tmp_path))
    components = EnergyWeights.model_fields
    wanted = {f"reward/{component}/{group}" for component in components for group in LAYOUT.names}
    assert wanted | {"reward/expr", "zero_std/jaw", "failed"} <= set(metrics)
    assert metrics["failed"] == 0
    assert all(np.isfinite(value) for value in metrics.values())


def test_rollouts_ahead_are_one_iteration_old_and_count_as_what_they_are(policy, tmp_path, alone):
    task = gdpo_task(policy, tmp_path, asynchronous=True, clip=0.9, learning_rate=1e-3)
    module = task.module()

    def refresh(roll_out, index):
        weights = {name: value.clone() for name, value in module.state_dict().items()}
        groups = roll_out(weights, index)
        given = experience_of(task, groups, index)
        task.refresh(module, given.data, 0, 1)

    with sampled_by(local_fleet(task), task.scenes, task.recipe) as roll_out:
        refresh(roll_out, 0)
        ratio = task.loss(module, task.batch(0, 0, 1))[1]["ratio"].item()
        assert ratio == pytest.approx(1, abs=1e-4)
        descend(task, module, range(2), 1e-2)
        refresh(roll_out, 1)
    _, metrics = task.loss(module, task.batch(2, 0, 1))
    assert metrics["approx_kl"].item() > 1e-4, (
        "sampled before the last two steps, and so they are weighted"
    )
    old = gdpo_task(policy, tmp_path)
    refreshed(old, step=2)
    assert torch.equal(task.replay[0]["actions"], old.replay[0]["actions"]), (
        "of the weights of the iteration before"
    )
    assert roll_out._begun is None, "nothing is begun after the last iteration"


def test_what_was_begun_ahead_ends_before_the_fleet_does():
    done = []

    def work(weights, index):
        time.sleep(0.2 * index)
        done.append(index)

    with pytest.raises(KeyError), OneAhead(work, iterations=3) as ahead:
        ahead({}, 0)
        raise KeyError("in the loop")
    assert done == [0, 1]


def test_a_failed_rollout_changes_only_its_own_sample(policy, tmp_path, alone):
    """Its rewards are missing: the others are normalised without it, and its own weight is 0."""
    task = gdpo_task(policy, tmp_path, scale="group")
    batch = task.scenes.of_iteration(0)
    groups = local_fleet(task).groups(batch.prompts, 3, batch.seeds)

    def advantages():
        rewards = task.scenes.rewards(batch, groups, task.recipe.reward)
        return advantages_of(rewards, task.recipe, LAYOUT.names)

    whole = advantages()
    groups[1][2] = replace(groups[1][2], motion=None, failed=True)
    broken = advantages()
    others = [i for i in range(len(groups)) if i != 1]
    assert torch.equal(whole[others], broken[others])
    assert (broken[1, 2] == 0).all() and (broken[1, :2] != 0).any()
    assert broken.isfinite().all() and broken[1, :2].sum(0).abs().max() < 1e-9


def test_reactions_that_nobody_decoded_get_the_same_rewards(policy, tmp_path):
    """They go through the VAE together, beside decoded ones and failed ones."""
    task = gdpo_task(policy, tmp_path)
    batch = task.scenes.of_iteration(0)
    groups = local_fleet(task).groups(batch.prompts, 3, batch.seeds)
    groups[1][2] = replace(groups[1][2], motion=None, failed=True)
    bare = [[replace(reaction, motion=None) for reaction in group] for group in groups]
    bare[0][1] = groups[0][1]
    assert task.scenes.policy.to_motions(bare[0])[1] is groups[0][1].motion
    rewards = [task.scenes.rewards(batch, g, task.recipe.reward) for g in (groups, bare)]
    torch.testing.assert_close(*rewards, atol=1e-5, rtol=0, equal_nan=True)
    assert rewards[0][1, 2].isnan().all() and not rewards[0].isnan().all()


def test_a_rollout_that_is_not_finite_has_failed(policy, tmp_path):
    scenes = gdpo_task(policy, tmp_path).scenes
    frames = np.ones((48, 6), np.float32)
    frames[3, 2] = np.nan
    assert scenes.policy._decoded(frames) == {"failed": True}
    frames[3, 2] = 1
    assert np.array_equal(scenes.policy._decoded(frames)["motion"].values, frames)


def test_samples_of_a_prompt_start_from_noise_of_their_own(policy, tmp_path):
    """Or their spread would not be that of the policy's answers, which the energy score needs."""
    task = gdpo_task(policy, tmp_path)
    prompts = [task.scenes.policy.prompt_of(task.scenes.rows[row]) for row in (0, 1)]
    for group in local_fleet(task).groups(prompts, 3, [5, 6]):
        assert not np.array_equal(group[0].actions, group[1].actions)


def test_estimators():
    """One frame, one component, two FLAME groups."""
    rewards = torch.tensor([[[1.0, 10.0], [2.0, 10.0], [3.0, 40.0]]])[:, :, None, None]
    only = RewardConfig(energy=EnergyWeights(path=0, slow=0, middle=0, fast=0, range=0))

    def advantages(**keys):
        recipe = GdpoOfFlow(reward=only, gdpo=FlowGdpoConfig(**keys))
        return advantages_of(rewards, recipe, LAYOUT.names)[0, :, 0]

    assert advantages().tolist() == pytest.approx(
        [(-1 - 3**-0.5) / 2, (0 - 3**-0.5) / 2, (1 + 2 * 3**-0.5) / 2]
    )
    total = np.array([11.0, 12.0, 43.0])
    assert advantages(estimator="grpo").tolist() == pytest.approx(
        ((total - total.mean()) / total.std(ddof=1)).tolist()
    )


def test_good_rollouts_become_likelier_where_they_listen(policy, tmp_path, alone):
    task = gdpo_task(policy, tmp_path, beta=0.0, clip=0.9)
    module, _ = refreshed(task)
    descend(task, module, range(6), 1e-3)
    gains = []
    task.policy.sampler = task.sampler
    for row in task.replay:
        assert row["rewarded"][:, 0].tolist() == [True] * 6 + [False] * 2 + [True] * 4
        gain = task.policy.likelihood(module, row).log_probs - row["old"]
        gains.append((gain * row["advantages"]).sum())
    assert torch.stack(gains).sum() > 0


def pathwise_task(policy, tmp_path, **keys):
    """The same prompts, learnt from by gradients of the rewards."""
    task = gdpo_task(policy, tmp_path, estimator="pathwise", **keys)
    terms = RewardTerms(
        RewardConfig(), reward_weights(RewardConfig(), GroupWeightsConfig(), LAYOUT.names), LIMITS
    )
    learner = Pathwise(policy, task.table, task.config, seed=3, sampler=task.sampler, terms=terms)
    learner.recipe = task.recipe
    learner.scenes = task.scenes
    return learner


def test_pathwise_begins_where_it_was_sampled_and_its_rewards_rise(policy, tmp_path, alone):
    task = pathwise_task(policy, tmp_path, beta=0.0, hold=0.0)
    module, _ = refreshed(task)
    loss, metrics = task.loss(module, task.batch(0, 0, 1))
    assert metrics["moved"].item() < 1e-5 and metrics["kl/reference"].item() < 1e-9
    values, metrics = descend(task, module, range(20), 1e-3)
    assert values[-1] < values[0] == pytest.approx(loss.item(), abs=1e-5)
    assert metrics["moved"].item() > 1e-3


def test_pathwise_is_tied_to_the_reference(policy, tmp_path, alone):
    kl = {}
    for beta in (0.0, 10.0):
        task = pathwise_task(policy, tmp_path, beta=beta, hold=beta)
        module, _ = refreshed(task)
        descend(task, module, range(10), 1e-3)
        metrics = task.loss(module, task.batch(0, 0, 1))[1]
        kl[beta] = (metrics["kl/reference"].item(), metrics["kl_unrewarded"].item())
    assert all(0 < tied < free for tied, free in zip(kl[10.0], kl[0.0], strict=True))


def test_the_reference_holds_the_policy_back(policy, tmp_path, alone):
    free, tied = (gdpo_task(policy, tmp_path, beta=beta, clip=0.9) for beta in (0.0, 1.0))
    kl = {}
    for task in (free, tied):
        module, _ = refreshed(task)
        descend(task, module, range(10), 1e-3)
        kl[task] = task.loss(module, task.batch(0, 0, 1))[1]["kl/reference"].item()
    assert 0 < kl[tied] < kl[free]


def test_a_reward_rises():
    """Flow-GRPO's third check: without KL, on-policy, the mean reward goes up."""
    flow = initialised(SIZES, seed=0)
    optimiser = torch.optim.Adam(flow.parameters(), 2e-3)
    conditions = Conditions(present=torch.zeros(8, 4, dtype=torch.bool))
    rewards = []
    for iteration in range(25):
        noise = draw_noise(range(100 * iteration, 100 * iteration + 8), 8, 3, 3, 4)
        sde, first = PaperSde(2, 0.5), torch.zeros(8, dtype=torch.int64)
        sampled = rollout(flow, conditions, noise, sde, first)
        reward = -(sampled.latents - 1).square().mean((2, 3))
        advantages = decoupled_advantages(reward[:, :, None, None], [1.0]).flatten()[:, None, None]
        means = replay_means(flow, conditions, sampled.states, sde, first, chunk=1)
        likely = log_probs(sampled.states, means, sde, first).flatten(0, 1)
        kl = step_kl(means, means.detach(), sde, first).flatten(0, 1)
        actions = PolicyActions(likely, likely.detach(), advantages, kl)
        optimiser.zero_grad()
        clipped_policy_loss(actions, clip=0.2, beta=0.0).loss.backward()
        optimiser.step()
        rewards.append(reward.mean().item())
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.1
