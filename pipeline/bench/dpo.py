"""DPO samples a second: our learner against TRL's DPOTrainer, each alone on the same cores.

The same LLaMA, vocabulary, lengths, batch, precision and optimiser; reference log-probs cached by
both before the clock starts. Ours computes the prompt once for chosen and rejected, and logits over
the bins at action tokens only.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist

from rapport.actors.learner import start_engine, train_step
from rapport.actors.settings import LearnerConfig
from rapport.pipeline.bench.workload import process, random_policy, random_prompts, spread
from rapport.pipeline.objectives.dpo import Dpo, pair_schema
from rapport.pipeline.objectives.settings import VlaDpoConfig
from rapport.pipeline.rundir import RunError
from rapport.pipeline.settings import BenchConfig
from rapport.policies.motion import Layout
from rapport.policies.tables import write_table
from rapport.policies.vla.actions import ActionSpace
from rapport.policies.vla.loading import load_checkpoint
from rapport.policies.vla.policy import VlaPolicy
from rapport.policies.vla.settings import VlaConfig

DIMS = 32  # action dimensions: any that divide the response


@ray.remote
class OurLearner:
    """One ZeRO learner, as the pipeline trains."""

    def __init__(self, checkpoint: str, table: str, dpo: VlaDpoConfig, learner: LearnerConfig):
        torch.set_num_threads(learner.threads)
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
        }
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        reference = str(Path(table).with_name("reference.parquet"))
        self.task = Dpo(checkpoint, checkpoint, table, dpo, 0, reference, VlaConfig())
        self.engine = start_engine(self.task, learner)
        self.task.prepare(self.engine.__call__, 0, 1)
        self.step = 0

    def train(self) -> None:
        train_step(self.engine, self.task, self.step, 0, 1)
        self.step += 1


@ray.remote
class TrlLearner:
    """TRL's trainer on the LLaMA inside the same checkpoint."""

    def __init__(
        self,
        checkpoint: str,
        rows: list[dict[str, list[int]]],
        directory: str,
        batch: int,
        threads: int,
    ):
        from datasets import Dataset
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast, TrainerCallback
        from trl import DPOConfig, DPOTrainer

        torch.set_num_threads(threads)
        model = load_checkpoint(Path(checkpoint)).model.language_model
        words = Tokenizer(
            models.WordLevel(
                {_word(i): i for i in range(model.config.vocab_size)}, unk_token=_word(0)
            )
        )
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, eos_token=_word(1), pad_token=_word(2), padding_side="left"
        )

        def text(ids: list[int]) -> str:
            return " ".join(map(_word, ids))

        # It appends an end token of its own, so the responses are given one token short.
        dataset = Dataset.from_list(
            [
                {
                    "prompt": text(r["prompt"]) + " ",
                    "chosen": text(r["chosen"][:-1]) + " ",
                    "rejected": text(r["rejected"][:-1]) + " ",
                }
                for r in rows
            ]
        )
        stamps = self.stamps = []

        class Clock(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                stamps.append(time.perf_counter())

        arguments = DPOConfig(
            output_dir=directory,
            per_device_train_batch_size=batch,
            max_length=None,
            beta=0.1,
            learning_rate=1e-4,
            weight_decay=0.0,
            precompute_ref_log_probs=True,
            precompute_ref_batch_size=batch,
            num_train_epochs=1,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            optim="adamw_torch",
        )
        self.trainer = DPOTrainer(
            model=model,
            args=arguments,
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        first = self.trainer.train_dataset[0]
        self.lengths = [len(first[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")]

    def train(self) -> tuple[list[int], list[float]]:
        """Token counts of the first pair, and the seconds of every step but the first."""
        self.trainer.train()
        return self.lengths, np.diff(self.stamps).tolist()


def _word(token: int) -> str:
    """None is part of another, so that end and pad are not found within words."""
    return f"w{token}."


def measure(config: BenchConfig, say: Callable[[str], None]) -> dict[str, Any]:
    try:
        import trl
    except ImportError:
        raise RunError(
            "bench dpo compares with TRL, which only it needs: pip install --no-deps -r "
            "infra/requirements/bench.lock"
        ) from None
    b, rng = config.bench, np.random.default_rng(config.seed)
    steps = b.repeats + 1  # the first warms up
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, table = f"{scratch}/policy", Path(scratch) / "pairs.arrow"
        layout = Layout((("expr", DIMS - 6), ("rot", 3), ("jaw", 3)), 25.0, "builtin")
        space = ActionSpace(layout, rate=1, seconds=b.response_tokens // DIMS)
        patches = (56 // 14) ** 2
        policy = random_policy(
            config,
            Path(checkpoint),
            space=space,
            vocabulary=b.vocabulary,
            frames=1,
            image_size=56,
            text_tokens=b.prompt_tokens - patches - 2,
        )
        start = policy.action_token_start
        prompts = random_prompts(policy, steps * b.batch_size, config.seed, has_frames=False)
        rows = [
            {
                "prompt_id": p.prompt_id,
                "prompt": p.ids.tolist(),
                "frames": None,
                "chosen_score": 1.0,
                "rejected_score": 0.0,
            }
            | {
                name: rng.integers(start, start + 256, space.tokens).tolist()
                for name in ("chosen", "rejected")
            }
            for p in prompts
        ]
        write_table(table, rows, pair_schema(VlaPolicy))
        dpo = VlaDpoConfig(
            train="all",
            first_steps=None,
            batch_size=b.batch_size,
            epochs=1,
            beta=0.1,
            learning_rate=1e-4,
        )
        learner = LearnerConfig(world_size=1, threads=b.threads)
        with process(OurLearner, b.threads, checkpoint, str(table), dpo, learner) as call:
            call("train")
            ours = []
            for _ in range(b.repeats):
                started = time.perf_counter()
                call("train")
                ours.append(b.batch_size / (time.perf_counter() - started))
        say(f"ours {spread(ours)['median']:.2f} pairs/s")
        with process(
            TrlLearner, b.threads, checkpoint, rows, f"{scratch}/trl", b.batch_size, b.threads
        ) as call:
            lengths, taken = call("train")
        if lengths != [policy.prompt_length, space.tokens, space.tokens]:
            raise AssertionError(
                f"TRL trains on {lengths} tokens, ours on {policy.prompt_length} and {space.tokens}"
            )
        theirs = [b.batch_size / s for s in taken]
    ratio = spread(ours)["median"] / spread(theirs)["median"]
    say(f"TRL {trl.__version__} {spread(theirs)['median']:.2f} pairs/s; {ratio:.2f} times")
    return {
        "workload": {
            "vocabulary": b.vocabulary,
            "prompt_tokens": policy.prompt_length,
            "batch_size": b.batch_size,
            "response_tokens": space.tokens,
            "hidden": config.vla.hidden,
            "layers": config.vla.layers,
            "threads": b.threads,
        },
        "ours": {"pairs_per_s": spread(ours)},
        "trl": {"version": trl.__version__, "pairs_per_s": spread(theirs)},
        "ratio": ratio,
    }
