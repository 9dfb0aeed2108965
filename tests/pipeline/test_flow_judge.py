"""The judge of AR-Flow: perfect answers, what is left out without a head, prompts and guidance, the
report.
"""

import json

import numpy as np
import pytest
import torch

from rapport.actors.settings import LearnerConfig
from rapport.pipeline.config import load_config, to_yaml
from rapport.pipeline.data.flow import WINDOW_SCHEMA, window_rows, windows
from rapport.pipeline.objectives.settings import FlowTraining
from rapport.pipeline.rundir import RunError
from rapport.pipeline.settings import DpoOfFlow, GdpoOfFlow, RolloutOfFlow
from rapport.pipeline.steps import flow_studies
from rapport.pipeline.steps.imitation import as_trained
from rapport.pipeline.steps.imitation_flow import earlier_flow
from rapport.pipeline.steps.learning import Imitated, own_device
from rapport.pipeline.steps.movement import (
    HeldOut,
    MovementJudge,
    faces_of,
    motions_of,
    tabulate_movement,
)
from rapport.pipeline.steps.settings import MovementConfig
from rapport.policies.flow import config
from rapport.policies.flow.encoders import FeatureCache, LogMel, TextEncoder
from rapport.policies.flow.features import Features
from rapport.policies.flow.model import initialised
from rapport.policies.flow.policy import FlowPolicy, FlowPrompt
from rapport.policies.flow.settings import EncodersConfig
from rapport.policies.flow.vae import MotionVAE
from rapport.policies.head.settings import HeadConfig
from rapport.policies.tables import write_table
from rapport.settings import ConfigError
from tests.pipeline.bare import bare_run

JUDGE = MovementConfig(steps=2, windows=4, omegas=[3.0], long_frames=60)


@pytest.fixture(scope="module")
def made(tiny_corpus, tmp_path_factory):
    """A judge of the tiny corpus' test windows, and a policy with random weights."""
    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(0)
    vae = MotionVAE(config.VaeSizes(tiny_corpus.layout, hidden=32, latent_dim=4)).eval()
    vae.fit_channels(clip.listener for clip in tiny_corpus.clips("train"))
    text = TextEncoder.tiny(8)
    features = Features(text, LogMel(), FeatureCache(folder, text.name))
    held_out = [window for clip in tiny_corpus.clips("test") for window in windows(clip, 8)]
    write_table(folder / "test.arrow", window_rows(held_out, features, vae), WINDOW_SCHEMA)
    sizes = config.FlowSizes(
        latent_dim=4, text_dim=8, audio_dim=64, hidden=32, layers=1, mlp=48, window=3
    )
    FlowPolicy(initialised(sizes, 0), vae, EncodersConfig()).save(folder / "flow")
    imitated = Imitated(tiny_corpus, folder / "flow", folder)
    recipe = GdpoOfFlow(judge=JUDGE)
    held_out = HeldOut.from_corpus(recipe, imitated)
    faces = faces_of(recipe.head, tiny_corpus.layout.topology)
    policy = imitated.policy.with_sampler(flow_studies.ode_sampler(recipe.judge))
    return held_out, MovementJudge(held_out.windows, held_out.both_roles, faces), policy


def generate(held_out, policy, **changes):
    changed = policy.with_sampler(**changes)
    return held_out.flat(motions_of(changed, held_out.ask(changed)))


def test_the_recorded_motion_is_perfect(made):
    held_out, judge, policy = made
    recorded = [window.motion for window in judge.windows]
    coded = flow_studies.coded(held_out, policy)
    values = judge.score({"coded": coded, "recorded": recorded})["recorded"]
    for name, value in values.items():
        if name.split("/")[1] in ("MSE", "FD", "P-FD", "rPCC", "unils", "gdpo_paper"):
            assert value == pytest.approx(0, abs=1e-6), name
        elif name.split("/")[1].endswith("_ratio"):
            assert value == pytest.approx(1), name
    assert {"listen/unils/FDD", "listen/gdpo_paper/JDD", "speak/unils/LVE", "speak/MSE/jaw"} <= set(
        values
    )


def test_others_are_other_people_of_the_same_role(made):
    held_out, judge, _ = made

    def others(judge):
        return [
            next(i for i, w in enumerate(judge.windows) if w.motion is motion)
            for motion in judge.others()
        ]

    roles = [window.role for window in judge.windows]
    assert [roles[i] for i in others(judge)] == roles and len(set(roles)) == 2
    listeners = MovementJudge(held_out.of_listeners().windows, both_roles=True)
    assert others(listeners) == [1, 2, 0], "each once, nobody themselves"


def test_some_windows_are_evenly_spread_and_keep_their_conditions(made):
    held_out, _, _ = made
    few = held_out.some(2)
    assert (
        [w.window_id for w in few.windows]
        == [prompt.prompt_id for prompt in few.prompts]
        == [held_out.windows[0].window_id, held_out.windows[-1].window_id]
    )
    assert len(held_out.some(99).windows) == len(held_out.windows)


def test_a_window_is_answered_alike_whatever_others_are_judged_with_it(made):
    """Videos show what was judged."""
    held_out, _, policy = made
    [_, last], whole = generate(held_out.some(2), policy), generate(held_out, policy)
    np.testing.assert_allclose(last.values, whole[-1].values, atol=1e-5)
    assert not np.allclose(last.values, whole[1].values, atol=1e-3)


def test_a_method_is_scored_as_if_it_were_alone(made):
    held_out, judge, policy = made
    answers = {
        "coded": flow_studies.coded(held_out, policy),
        "sampled": generate(held_out, policy),
    }
    together = judge.score(answers)
    for method, motions in answers.items():
        assert together[method] == pytest.approx(
            judge.score({method: motions})[method], nan_ok=True
        )
    assert together["coded"]["listen/unils/FDD"] != together["sampled"]["listen/unils/FDD"]


def test_the_same_noise_whatever_the_policy_and_as_many_windows_as_asked(made):
    held_out, _, policy = made
    assert len(held_out.windows) == len(held_out.prompts) == 4
    assert [prompt.prompt_id for prompt in held_out.prompts] == [
        window.window_id for window in held_out.windows
    ]
    first, again = generate(held_out, policy), generate(held_out, policy)
    assert all(np.array_equal(a.values, b.values) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0].values, first[1].values) and len(first[0]) == 24


def test_prompts_and_guidance_change_what_is_generated(made):
    held_out, _, policy = made
    told = generate(flow_studies._told(held_out, torch.full((8,), 9.0)), policy)
    plain = generate(held_out, policy)
    assert not np.array_equal(plain[0].values, told[0].values)
    texts = {"a": torch.ones(8), "b": -torch.ones(8)}
    values = flow_studies.controls(
        held_out, policy, texts, lambda motion: motion.values[:, :2], JUDGE.omegas
    )
    assert {"text/valence/a", "text/valence/b", "omega_3/variance_ratio/rot"} <= set(values)
    assert values["text/valence/a"] != values["text/valence/b"]
    silent = flow_studies.controls(held_out, policy, texts, None, JUDGE.omegas)
    assert not any(name.startswith("text") for name in silent)


def test_less_can_be_given_than_was_trained_with(made):
    held_out, _, policy = made
    plain = generate(held_out, policy)
    for way in ({"lead": 0}, {"lead": None}, {"steps": 1}, {"without_text": True}):
        other = generate(held_out, policy, **way)
        assert any(
            not np.array_equal(a.values, b.values) for a, b in zip(plain, other, strict=True)
        ), way
    same = generate(held_out, policy, steps=JUDGE.steps)
    assert all(np.array_equal(a.values, b.values) for a, b in zip(plain, same, strict=True))


def test_one_long_sequence_is_compared_with_its_own_beginning(made):
    held_out, _, policy = made
    values = flow_studies.endless(held_out, policy, JUDGE.long_frames)
    assert set(values) == {f"long/variance_ratio/{name}" for name in policy.layout.names}
    assert all(value > 0 for value in values.values())
    assert values == flow_studies.endless(held_out, policy, JUDGE.long_frames)


def test_without_a_head_for_the_corpus_vertices_are_left_out_and_it_is_said(made, capsys):
    assert faces_of(HeadConfig(), "flame2020") is None
    assert "LVE, MHD, FDD, PDD, JDD are left out; give head.path" in capsys.readouterr().out


def test_the_report_has_all_numbers_and_the_terminal_the_main_ones(tmp_path, capsys):
    run = bare_run(tmp_path)
    tabulate_movement(
        {
            "VAE": {"listen/unils/FDD": 1.0},
            "supervised": {"listen/unils/FDD": 4.0, "speak/SID/jaw": 2.0},
            "GDPO": {"listen/unils/FDD": 3.0, "speak/SID/jaw": 2.0},
            "GDPO lead 0": {"listen/unils/FDD": 5.0},
        },
        run,
        before="supervised",
        after="GDPO",
    )
    shown = capsys.readouterr().out
    assert "listen/unils/FDD" in shown and "-25 %" in shown
    assert "lead 0" not in shown and "speak/SID/jaw" not in shown
    assert json.loads((tmp_path / "judgement.json").read_text())["change_percent"] == {
        "listen/unils/FDD": -25.0,
        "speak/SID/jaw": 0.0,
    }
    assert "| speak/SID/jaw | - | 2 | 2 | +0 % | - |" in (tmp_path / "judgement.md").read_text()
    assert (
        run.summary["metrics"]["after"]["listen/unils/FDD"] == 3.0
        and {"GDPO/speak/SID/jaw": 2.0}.items() <= run.logged[2].items()
    )


def test_an_imitation_is_taken_as_it_was_trained(tmp_path):
    trained = GdpoOfFlow(roles="listener", flow=FlowTraining(steps=3))
    (tmp_path / "config.yaml").write_text(to_yaml(trained))
    config = as_trained(DpoOfFlow(imitation=tmp_path, seed=5))
    assert config.roles == "listener" and config.flow.steps == 3 and config.seed == 5
    assert as_trained(DpoOfFlow()) == DpoOfFlow()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no config.yaml there"),
        ("seed: 1", "another recipe or version"),
        ("{}", "another recipe or version"),
    ],
)
def test_a_folder_without_an_imitation_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(RunError, match=message):
        as_trained(DpoOfFlow(imitation=tmp_path))


def test_an_unfinished_imitation_is_named(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"artifacts": {"corpus": str(tmp_path)}}))
    with pytest.raises(RunError, match="has no encode_tables, flow_policy"):
        earlier_flow(tmp_path)


def test_an_imitation_brings_its_own_settings():
    with pytest.raises(ConfigError, match="leave vae out"):
        load_config(GdpoOfFlow, None, ["imitation=somewhere", "vae.steps=3"])


def test_candidates_bring_the_settings_of_their_run_or_of_the_one_it_took_its_policy_from(tmp_path):
    trained = GdpoOfFlow(roles="listener", flow=FlowTraining(steps=3))
    taken = RolloutOfFlow(imitation=tmp_path / "first")
    for name, of_run in {"first": trained, "rollout": taken}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(to_yaml(of_run))
    config = as_trained(DpoOfFlow(candidates=tmp_path / "rollout"))
    assert config.roles == "listener" and config.flow.steps == 3
    for key, section in (("imitation=b", "imitation"), ("vae.steps=3", "vae")):
        with pytest.raises(ConfigError, match=f"leave {section} out"):
            load_config(DpoOfFlow, None, ["candidates=a", key])


def test_what_the_judge_computes_stays_on_the_device_of_the_policy(made):
    """On `meta`, which has shapes and no numbers: mixing it with the CPU is an error."""
    held_out, _, policy = made
    window = held_out.windows[0]
    sizes = policy.flow.config
    moved = FlowPolicy(initialised(sizes, 0), MotionVAE(policy.vae.config), EncodersConfig()).to(
        "meta"
    )
    assert moved.latents(window.motion).device.type == "meta"
    assert moved.features.text.model.device.type == "meta"
    guided = moved.with_sampler(omega_listen=2.0)
    row = dict(held_out.prompts[0].row) | {"speaking": window.actor_speaks.tolist()}
    omega = guided._guidance([FlowPrompt("p", row)])
    assert omega.device.type == "meta" and omega.shape == (1, sizes.window)


def test_a_process_computes_on_a_gpu_where_learners_do_and_where_it_sees_one(monkeypatch):
    shared = LearnerConfig(gpus=0.5)
    for seen, learner, device in (
        (True, shared, "cuda"),
        (False, shared, "cpu"),
        (True, LearnerConfig(), "cpu"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda seen=seen: seen)
        assert own_device(learner) == device
