"""The judge of AR-Flow: perfect answers, what counts as listening, what stands beside policies,
what is left out without a head, prompts and guidance, the tables.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from rapport.actors.settings import LearnerConfig
from rapport.pipeline.config import load_config, to_yaml
from rapport.pipeline.data.flow import WINDOW_SCHEMA, window_rows, windows
from rapport.pipeline.data.synthetic.generate import Design, generate_corpus
from rapport.pipeline.objectives.settings import FlowGdpoConfig, FlowTraining
from rapport.pipeline.rundir import Run, RunError
from rapport.pipeline.settings import AblateOfFlow, DpoOfFlow, GdpoOfFlow, RolloutOfFlow
from rapport.pipeline.steps import flow_standards, flow_studies
from rapport.pipeline.steps.faces import faces_of
from rapport.pipeline.steps.flow_standards import Regressions, deterministic
from rapport.pipeline.steps.imitation import as_trained, begins_aligned
from rapport.pipeline.steps.imitation_flow import earlier_flow
from rapport.pipeline.steps.learning import Imitated, own_device
from rapport.pipeline.steps.movement import (
    HeldOut,
    Movement,
    MovementJudge,
    motions_of,
)
from rapport.pipeline.steps.movement_tables import tabulate_movement
from rapport.pipeline.steps.sampling import starting_point
from rapport.pipeline.steps.settings import MovementConfig
from rapport.policies.flow import config
from rapport.policies.flow.encoders import FeatureCache, LogMel, TextEncoder
from rapport.policies.flow.features import Features
from rapport.policies.flow.model import initialised
from rapport.policies.flow.policy import FlowPolicy, FlowPrompt
from rapport.policies.flow.settings import EncodersConfig
from rapport.policies.flow.vae import MotionVAE
from rapport.policies.head.settings import HeadConfig
from rapport.policies.motion import LayoutError, Motion
from rapport.policies.tables import write_table
from rapport.rewards.dynamics import LEAST_FRAMES
from rapport.rewards.metrics import evaluate
from rapport.settings import ConfigError
from tests.pipeline.bare import bare_run

JUDGE = MovementConfig(evaluations=2, windows=16, omegas=[3.0], long_frames=60)
RECIPE = GdpoOfFlow(judge=JUDGE, gdpo=FlowGdpoConfig(estimator="pathwise"))  # no noisy steps


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Clips of 2 s: in those of 1 s nobody listens long enough to be judged."""
    folder = tmp_path_factory.mktemp("corpus") / "flow"
    design = Design(seconds=2, past=1, listeners=1, frames=1, image_size=28)
    return generate_corpus(folder, 12, 1, 8, design=design, workers=0)


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    """Test windows, a judge of them, and a policy with random weights."""
    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(0)
    vae = MotionVAE(config.VaeSizes(corpus.layout, hidden=32, latent_dim=4)).eval()
    vae.fit_channels(clip.listener for clip in corpus.clips("train"))
    text = TextEncoder.tiny(8)
    features = Features(text, LogMel(), FeatureCache(folder, text.name))
    held_out = [window for clip in corpus.clips("test") for window in windows(clip, 8)]
    write_table(folder / "test.arrow", window_rows(held_out, features, vae), WINDOW_SCHEMA)
    sizes = config.FlowSizes(
        latent_dim=4, text_dim=8, audio_dim=64, hidden=32, layers=1, mlp=48, window=6
    )
    FlowPolicy(initialised(sizes, 0), vae, EncodersConfig()).save(folder / "flow")
    imitated = Imitated(corpus, folder / "flow", folder)
    held_out = HeldOut.from_corpus(RECIPE, imitated)
    faces = faces_of(RECIPE.head, corpus.layout.topology)
    policy = imitated.policy.with_sampler(flow_studies.ode_sampler(RECIPE.judge))
    return held_out, MovementJudge(held_out.windows, held_out.both_roles, faces), policy


def generate(held_out, policy, **changes):
    changed = policy.with_sampler(**changes)
    return held_out.flat(motions_of(changed, held_out.ask(changed)))


def changed(motion, group, factor):
    """The motion with one group scaled about its mean."""
    values = motion.values.copy()
    columns = motion.layout.columns(group)
    mean = values[:, columns].mean(axis=0)
    values[:, columns] = mean + factor * (values[:, columns] - mean)
    return Motion(values, motion.layout)


def recorded_of(judge):
    return [window.motion for window in judge.windows]


def test_the_recorded_motion_is_perfect(made):
    held_out, judge, policy = made
    coded = flow_studies.coded(held_out, policy)
    values = judge.score({"coded": coded, "recorded": recorded_of(judge)}).rows["recorded"]
    for name, value in values.items():
        part, metric, *_ = name.split("/")
        if part in ("likeness", "bands") or metric.endswith("_ratio"):
            assert value == pytest.approx(1), name
        elif metric in ("MSE", "FD", "P-FD", "rPCC", "unils", "gdpo_paper"):
            assert value == pytest.approx(0, abs=1e-6), name
    assert {
        "likeness/expr/position",
        "likeness/rot/velocity",
        "bands/expr/between",
        "bands/rot/fast",
        "listen/unils/FDD",
        "listen/unils/FDD_lids_apart",
        "listen/gdpo_paper/FDD_lids_apart",
        "listen/gdpo_paper/JDD",
        "listen/MSE",
        "speak/unils/LVE",
        "speak/gdpo_paper/MHD",
        "speak/MSE/jaw",
    } <= set(values)


def test_a_speakers_pauses_are_no_listening(made):
    """Their windows have frames in which only the partner speaks, too."""
    _, judge, _ = made
    windows = []
    for window in judge.windows:
        pauses = np.arange(len(window.motion)) % 2 == 0
        if window.role == "speaker":
            window = replace(window, actor_speaks=~pauses, partner_speaks=pauses)
        windows.append(window)
    turns = replace(judge, windows=windows)
    motions = [
        changed(window.motion, "jaw", 5 if window.role == "speaker" else 1) for window in windows
    ]
    values = turns.score({"": motions}).rows[""]
    for name in ("listen/unils/JDD", "listen/gdpo_paper/JDD", "listen/MSE"):
        assert values[name] == pytest.approx(0, abs=1e-6), name
    assert values["listen/variance_ratio/jaw"] == pytest.approx(1)
    assert values["likeness/jaw/position"] == pytest.approx(1)
    assert values["speak/unils/JDD"] > 0
    assert turns.listeners == judge.listeners
    assert all(windows[i].role == "listener" for i in turns.listeners)


def test_who_hardly_listens_is_left_out_and_counted(made):
    _, judge, _ = made
    first, *others = judge.windows
    assert first.role == "listener"
    few = np.zeros(len(first.motion), bool)
    few[: LEAST_FRAMES - 1] = True
    fewer = replace(judge, windows=[replace(first, partner_speaks=few), *others])
    assert judge.listeners[0] == 0 and fewer.left_out == judge.left_out + 1
    assert fewer.listeners == judge.listeners[1:]
    by_window = fewer.score({"": recorded_of(judge)}).by_window[""]
    assert first.window_id not in by_window["listen/unils/FDD"]
    assert len(by_window["listen/unils/FDD"]) == len(fewer.listeners)


def test_lids_are_taken_apart_from_the_rest_of_the_face(made):
    _, judge, _ = made
    blinking = [changed(window.motion, "eyelid", 3) for window in judge.windows]
    smiling = [changed(window.motion, "expr", 2) for window in judge.windows]
    rows = judge.score({"blinking": blinking, "smiling": smiling}).rows
    for protocol in ("unils", "gdpo_paper"):
        assert rows["blinking"][f"listen/{protocol}/FDD"] > 0.1
        assert rows["blinking"][f"listen/{protocol}/FDD_lids_apart"] == pytest.approx(0, abs=1e-6)
        assert rows["smiling"][f"listen/{protocol}/FDD_lids_apart"] > 0.1


def test_vertices_of_the_frames_that_count_give_what_all_vertices_would(made):
    """Frames of a part, windows of one after the other, the regions' vertices alone: no matter."""
    held_out, judge, policy = made
    motions = generate(held_out, policy)
    by_window = judge.on_vertices({"": motions})[""]
    place = next(i for i, window in enumerate(judge.windows) if window.actor_speaks.any())
    for index in (judge.listeners[0], place):
        window = judge.windows[index]
        [generated] = judge.faces([motions[index]], whole=True)
        [recorded] = judge.faces([window.motion], whole=True)
        part = "listen" if index == judge.listeners[0] else "speak"
        speech = np.stack([window.actor_speaks, window.partner_speaks])
        expected = {
            "unils": evaluate(
                "unils",
                generated,
                recorded,
                # There, listening is all that is not speaking.
                speech_mask=~window.listening if part == "listen" else window.actor_speaks,
            ),
            "gdpo_paper": evaluate("gdpo_paper", generated, recorded, speech_mask=speech),
        }
        for protocol, values in expected.items():
            for name in ("FDD", "PDD", "JDD"):
                found = by_window[f"{part}/{protocol}/{name}"][window.window_id]
                assert found == pytest.approx(values[f"{name}_{part}"], rel=1e-4), (protocol, name)


def test_changes_are_resampled_by_conversation():
    """Windows of one conversation that change alike are one change."""
    before = {f"w{i}": 0.0 for i in range(40)}
    after = {f"w{i}": 1.0 if i < 20 else -1.0 for i in range(40)}
    by_window = {
        "a": {"FDD": before, "once": {"w0": 1.0}},
        "b": {"FDD": after, "once": {"w0": 2.0}},
    }

    def change(conversations):
        return Movement({}, by_window, conversations).changes("a", "b", bootstrap=2000)

    alike = change({f"w{i}": f"c{i // 20}" for i in range(40)})
    alone = change({f"w{i}": f"c{i}" for i in range(40)})
    assert list(alike) == ["FDD"], "a single window has no interval"
    assert alike["FDD"]["mean"] == alone["FDD"]["mean"] == 0 and alone["FDD"]["n"] == 40
    assert alike["FDD"]["high"] == 1 and alike["FDD"]["low"] == -1
    assert alone["FDD"]["high"] < 0.4


def test_people_of_one_conversation_cannot_be_told_from_each_other(made):
    _, judge, _ = made
    together = [replace(window, conversation="one") for window in judge.windows]
    alone = replace(judge, windows=together, faces=None)
    values = alone.score({"": recorded_of(judge)}).rows[""]
    assert not any(name.startswith(("likeness", "bands")) for name in values)
    assert "listen/MSE" in values


def test_others_deviate_as_people_do_and_are_people_taken_together(made):
    _, judge, _ = made
    values = replace(judge, faces=None).score({"others": judge.others()}).rows["others"]
    assert values["listen/MSE"] > 0
    assert not any(name.startswith(("likeness", "bands")) for name in values)


def test_where_the_head_is_does_not_move_the_face(made):
    _, judge, _ = made
    motion = judge.windows[0].motion
    moved = motion
    for name in ("rot", "neck", "trans"):
        moved = changed(moved, name, 3)
    still, turned = judge.faces([motion, moved], whole=False)
    np.testing.assert_array_equal(still.vertices, turned.vertices)
    assert not np.array_equal(still.rot, turned.rot)


def test_a_regression_answers_every_window_with_too_little_motion(made, corpus):
    _, judge, _ = made
    answers = deterministic(RECIPE, corpus, judge.windows)
    assert list(answers) == ["Regression", "mean face"]
    for motions in answers.values():
        assert [len(motion) for motion in motions] == [len(w.motion) for w in judge.windows]
    assert all((np.ptp(motion.values, axis=0) == 0).all() for motion in answers["mean face"])
    means = {w.role: m.values[0] for w, m in zip(judge.windows, answers["mean face"], strict=True)}
    assert not np.allclose(means["listener"], means["speaker"])
    rows = judge.score(answers).rows
    for method in answers:
        assert rows[method]["bands/expr/between"] < 0.8
        assert rows[method]["listen/jerk_ratio/expr"] < 0.3


def test_a_regression_hears_the_actors_own_voice(made, corpus):
    _, judge, _ = made
    regressions = Regressions.fit(RECIPE, corpus, ["speaker"])
    window = next(window for window in judge.windows if window.role == "speaker")
    silent = replace(window, actor_audio=np.zeros_like(window.actor_audio))
    [spoken], [unspoken] = (regressions.answers([each]) for each in (window, silent))
    assert not np.allclose(spoken.group("jaw"), unspoken.group("jaw"), atol=1e-3)


def test_where_there_is_too_little_to_regress_on_it_is_left_out_and_said(
    made, corpus, capsys, monkeypatch
):
    _, judge, _ = made
    monkeypatch.setattr(flow_standards, "people", lambda *_: iter(judge.windows[:6]))
    assert deterministic(RECIPE, corpus, judge.windows) == {}
    said = capsys.readouterr().out
    assert "Regression and mean face are left out: 3 training clips" in said


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
    assert others(listeners) == [4, 5, 6, 7, 0, 1, 2, 3], "each once, of the other conversation"


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
    together = judge.score(answers).rows
    for method, motions in answers.items():
        alone = judge.score({method: motions}).rows[method]
        assert together[method] == pytest.approx(alone, nan_ok=True)
    assert together["coded"]["listen/unils/FDD"] != together["sampled"]["listen/unils/FDD"]


def test_the_same_noise_whatever_the_policy_and_as_many_windows_as_asked(made):
    held_out, _, policy = made
    assert len(held_out.windows) == len(held_out.prompts) == 16
    assert [prompt.prompt_id for prompt in held_out.prompts] == [
        window.window_id for window in held_out.windows
    ]
    first, again = generate(held_out, policy), generate(held_out, policy)
    assert all(np.array_equal(a.values, b.values) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0].values, first[1].values) and len(first[0]) == 48


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
    for way in ({"lead": 0}, {"lead": None}, {"evaluations": 4}, {"without_text": True}):
        other = generate(held_out, policy, **way)
        assert any(
            not np.array_equal(a.values, b.values) for a, b in zip(plain, other, strict=True)
        ), way
    same = generate(held_out, policy, evaluations=JUDGE.evaluations)
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


def test_the_files_have_all_numbers_and_the_terminal_the_main_ones(tmp_path, capsys):
    run = bare_run(tmp_path)
    fdd, lve = "listen/unils/FDD_lids_apart", "speak/gdpo_paper/LVE"
    alike = {"likeness/jaw/position": 1.25, "likeness/jaw/velocity": 2.5, "bands/jaw/between": 0.75}
    change = {"mean": -1.0, "low": -1.5, "high": -0.5, "n": 8}
    tabulate_movement(
        {
            "VAE": {fdd: 1.0},
            "supervised": alike | {fdd: 4.0, "speak/SID/jaw": 2.0, lve: 7.0},
            "GDPO": alike | {fdd: 3.0, "speak/SID/jaw": 2.0},
            "GDPO lead 0": {fdd: 5.0},
        },
        run,
        before="supervised",
        after="GDPO",
        changes={fdd: change},
    )
    shown = capsys.readouterr().out
    for text in ("1.25 / 2.50", "0.75", "FDD, lids apart", "-1 [-1.5, -0.5]", "LVE speaking"):
        assert text in shown, text
    assert "lead 0" not in shown and "SID" not in shown and "PDD" not in shown
    written = json.loads((tmp_path / "judgement.json").read_text())
    assert written["change_percent"][fdd] == -25 and written["change"] == {fdd: change}
    table = (tmp_path / "judgement.md").read_text()
    assert "| speak/SID/jaw | - | 2 | 2 | +0 % | - | - |" in table
    assert f"| {fdd} | 1 | 4 | 3 | -25 % | -1 [-1.5, -0.5] | 5 |" in table
    metrics = run.summary["metrics"]
    assert metrics["likeness"]["GDPO"] == {"jaw": {"position": 1.25, "velocity": 2.5}}
    assert metrics["bands"] == {name: {"jaw": {"between": 0.75}} for name in ("supervised", "GDPO")}
    assert metrics["judgement_change"] == {fdd: change}
    assert metrics["after"][fdd] == 3
    assert {"GDPO/speak/SID/jaw": 2.0}.items() <= run.logged[2].items()


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


@pytest.mark.parametrize("last", ["gdpo_policy", "dpo_policy"])
def test_what_a_run_aligned_is_aligned_further(corpus, tmp_path, last):
    for name in ("encode", "flow", "last"):
        (tmp_path / name).mkdir()
    artifacts = {"corpus": str(corpus.path), "encode_tables": "encode", "flow_policy": "flow"}
    file = tmp_path / "summary.json"
    file.write_text(json.dumps({"artifacts": artifacts}))
    assert earlier_flow(tmp_path).policy_path == tmp_path / "flow"
    with pytest.raises(RunError, match="has no gdpo_policy"):
        earlier_flow(tmp_path, aligned=True)
    file.write_text(json.dumps({"artifacts": artifacts | {last: "last"}}))
    assert earlier_flow(tmp_path, aligned=True).policy_path == tmp_path / "last"
    file.write_text(json.dumps({"artifacts": artifacts | {"sft_policy": "flow"}}))
    (tmp_path / "config.yaml").write_text("policy: flow\n")
    first = DpoOfFlow(candidates=tmp_path)
    run = Run("dpo", first, tmp_path / "run")
    starting_point(run, first)
    left = run.summary["artifacts"]
    assert left["sft_policy"] == str(tmp_path / "flow")
    assert left["encode_tables"] == str(tmp_path / "encode"), "so it can be aligned further"


def test_who_was_aligned_before_is_known_through_all_runs_between(tmp_path):
    def began(**keys):
        return begins_aligned({name: str(value) for name, value in keys.items()})

    for name, text in {
        "imitated": "aligned: false\nimitation: null\n",
        "further": f"aligned: true\nimitation: {tmp_path}/imitated\n",
        "candidates": f"aligned: false\nimitation: {tmp_path}/further\n",
        "others": f"aligned: false\nimitation: {tmp_path}/imitated\n",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
    assert began(candidates=tmp_path / "candidates") and began(imitation=tmp_path / "further")
    assert not began(candidates=tmp_path / "others") and not began(imitation=tmp_path / "imitated")


def test_an_imitation_brings_its_own_settings():
    with pytest.raises(ConfigError, match="leave vae out"):
        load_config(GdpoOfFlow, None, ["imitation=somewhere", "vae.steps=3"])
    with pytest.raises(ConfigError, match="aligned=true needs imitation=RUN_DIR"):
        load_config(GdpoOfFlow, None, ["aligned=true"])
    with pytest.raises(ConfigError, match="against imitation alone: leave aligned out"):
        load_config(AblateOfFlow, None, ["imitation=somewhere", "aligned=true"])


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


def test_the_motion_vae_follows_ar_flow_which_learners_move(made):
    _, _, policy = made
    sizes = policy.flow.config
    learnt = FlowPolicy(initialised(sizes, 0), MotionVAE(policy.vae.config), EncodersConfig())
    learnt.module().to("meta")
    latents = torch.zeros(1, 2, sizes.latent_dim, device="meta")
    assert learnt.decoder().decode(latents).device.type == "meta"


def test_a_clip_in_another_layout_is_named(made, corpus):
    *_, policy = made
    clip = next(iter(corpus.clips("test")))
    layout = replace(clip.speaker.layout, fps=50)
    faster = replace(clip, speaker=Motion(clip.speaker.values, layout))
    with pytest.raises(LayoutError, match=f"clip '{clip.clip_id}', its speaker"):
        policy.encode(faster)
    with pytest.raises(LayoutError, match="motion VAE"):
        policy.latents(Motion(clip.listener.values, layout))


def test_a_text_that_is_told_leaves_no_file(made):
    *_, policy = made
    folder = policy.features.text_cache.directory
    before = sorted(folder.glob("**/*"))
    policy.told("a text that nobody has told it before")
    assert sorted(folder.glob("**/*")) == before


def test_a_process_computes_on_a_gpu_where_learners_do_and_where_it_sees_one(monkeypatch):
    shared = LearnerConfig(gpus=0.5)
    for seen, learner, device in (
        (True, shared, "cuda"),
        (False, shared, "cpu"),
        (True, LearnerConfig(), "cpu"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda seen=seen: seen)
        assert own_device(learner) == device
