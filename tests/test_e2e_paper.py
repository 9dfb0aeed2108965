"""The paper's configuration with LLaMA 2's, DINOv2's and SigLIP's kinds of parts, but small."""

import json
from pathlib import Path

import numpy as np
import pytest

from rapport.policies.vla.loading import ADAPTERS_FILE, load_checkpoint
from tests.published import LLAMA_2, save_parts
from tests.runs import finished_run

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parents[1]
# What there is less of here: hardware, clips, steps.
SMALL = [
    "corpus.kind=synthetic",
    "corpus.seconds=2",
    "corpus.train_clips=12",
    "corpus.validation_clips=4",
    "corpus.test_clips=6",
    "corpus.listeners=1",
    "sft.steps=2",
    "sft.batch_size=4",
    "learner.world_size=2",
    "learner.cpus=0.4",
    "learner.gpus=0",
    "learner.micro_batch=1",
    "learner.gradient_checkpointing=true",
    "rollout.workers=1",
    "rollout.cpus=0.4",
    "rollout.gpus=0",
    "rollout.tensor_parallel=2",
    "rollout.kv_cache_gib=0.25",
    "rollout.prompts=4",
    "rollout.samples=2",
    "render.workers=1",
    "render.cpus=0.05",
    "render.videos=1",
    "render.size=64",
    "raters.workers=1",
    "raters.cpus=0.05",
    "dpo.batch_size=2",
    "evaluation.prompts=4",
    "evaluation.samples=1",
    "evaluation.clips=1",
]


def test_the_papers_recipe_runs_through_zero_3_adapters_two_shards_and_bfloat16(tmp_path):
    parts = save_parts(
        tmp_path, LLAMA_2, ordinary=997, width=64, heads=2, max_position_embeddings=1024
    )
    summary = finished_run(
        "dpo",
        tmp_path / "run",
        "--config",
        ROOT / "configs" / "dpo_paper.yaml",
        *(f"vla.{name}={folder}" for name, folder in vars(parts).items()),
        *SMALL,
        timeout=1400,
    )
    engine = summary["engines"]["rollout"]
    assert (engine["name"], engine["dtype"], engine["tensor_parallel"]) == ("vllm", "bfloat16", 2)
    assert 0 < engine["canary_gap_mean"] <= engine["canary_gap_p95"] <= engine["canary_gap"] < 0.1
    for learner in ("sft_learner", "dpo_learner"):
        assert summary["engines"][learner]["zero_stage"] == 3
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "lora_rank: 32" in config and "freeze_vision: true" in config
    aligned = load_checkpoint(tmp_path / "run" / "dpo" / "policy")
    assert str(aligned.model.dtype) == "torch.bfloat16"
    assert aligned.model.config.action_token_start == 1000 - 256
    assert (tmp_path / "run" / "dpo" / "policy" / ADAPTERS_FILE).is_file()
    assert np.isfinite(summary["metrics"]["after"]["l2"])
    assert json.dumps(summary).count("NaN") == 0
