"""DPO samples a second: our learner against TRL's DPOTrainer, each alone on the same cores.

The same LLaMA, vocabulary, lengths, batch, precision and optimiser; reference log-probs cached by
both before the clock starts. Ours computes the prompt once for chosen and rejected, and logits over
the bins at action tokens only.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from rapport.actors.learner import start_engine, train_step
from rapport.actors.settings import LearnerConfig
from rapport.log import logger
from rapport.pipeline.bench.workload import (
    BINS,
    action_space,
    median_and_range,
    process,
    random_policy,
    random_prompts,
)
from rapport.pipeline.bench_settings import DpoBench, DpoWorkload
from rapport.pipeline.objectives.dpo import NAMES, Dpo, pair_schema
from rapport.pipeline.objectives.settings import VlaDpoConfig
from rapport.pipeline.rundir import RunError
from rapport.policies.tables import write_table
from rapport.policies.vla.actions import ActionSpace
from rapport.policies.vla.config import FaceVLAConfig
from rapport.policies.vla.loading import SequenceSizes, load_checkpoint
from rapport.policies.vla.policy import VlaPolicy
from rapport.policies.vla.sequence import context_ids, seen_of
from rapport.policies.vla.settings import VlaConfig
from rapport.policies.vla.training import prompt_of_row, row_of

DIMS = 32  # action dimensions: any that divide the response
BETA = 0.1
LEARNING_RATE = 1e-4
IMAGE_SIZE = 56

Row = dict[str, Any]
Text = dict[str, str]


class OurLearner:
    """One ZeRO learner, as the pipeline trains."""

    def __init__(self, checkpoint: Path, table: Path, dpo: VlaDpoConfig, threads: int) -> None:
        torch.set_num_threads(threads)
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
        }
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        self.objective = Dpo(
            initial=checkpoint,
            reference=checkpoint,
            table=table,
            config=dpo,
            seed=0,
            reference_file=table.with_name("reference.parquet"),
            policy_config=VlaConfig(),
        )
        self.engine = start_engine(self.objective, LearnerConfig(world_size=1, threads=threads))
        self.objective.prepare(self.engine.__call__, rank=0, world_size=1)
        self.step = 0

    def train(self) -> None:
        """One step."""
        train_step(self.engine, self.objective, self.step, rank=0, world_size=1)
        self.step += 1


class TrlLearner:
    """TRL's trainer on the LLaMA inside the same checkpoint."""

    def __init__(
        self, checkpoint: Path, rows: Sequence[Text], folder: str, batch_size: int, threads: int
    ) -> None:
        from datasets import Dataset
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast, TrainerCallback
        from trl import DPOConfig, DPOTrainer

        torch.set_num_threads(threads)
        model = load_checkpoint(checkpoint).model.language_model
        vocabulary = {_word(token): token for token in range(model.config.vocab_size)}
        words = Tokenizer(models.WordLevel(vocabulary, unk_token=_word(0)))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, eos_token=_word(1), pad_token=_word(2), padding_side="left"
        )
        dataset = Dataset.from_list(list(rows))
        stamps: list[float] = []
        self.stamps = stamps

        class Clock(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                stamps.append(time.perf_counter())

        arguments = DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            max_length=None,
            beta=BETA,
            learning_rate=LEARNING_RATE,
            weight_decay=0.0,
            precompute_ref_log_probs=True,
            precompute_ref_batch_size=batch_size,
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


def _as_text(sizes: FaceVLAConfig, row: Row) -> Text:
    # TRL appends an end token of its own, so the responses are given one token short.
    seen = seen_of(sizes, [prompt_of_row(row, sizes)])
    tokens = {
        "prompt": context_ids(sizes, seen, torch.zeros((1, 0), dtype=torch.long))[0].tolist(),
        "chosen": row["chosen"][:-1],
        "rejected": row["rejected"][:-1],
    }
    return {name: " ".join(map(_word, ids)) + " " for name, ids in tokens.items()}


def _word(token: int) -> str:
    """None is part of another, so that end and pad are not found within words."""
    return f"w{token}."


def measure(config: DpoBench) -> dict[str, Any]:
    """Both on the same pairs.

    Raises:
        RunError: TRL is not installed.
    """
    try:
        import trl
    except ImportError:
        raise RunError(
            "bench dpo compares with TRL, which only it needs: pip install --no-deps -r "
            "infra/requirements/bench.lock"
        ) from None
    workload = config.bench
    space = action_space(DIMS - 6, rate=1, seconds=workload.response_tokens // DIMS)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "policy"
        table = Path(scratch) / "pairs.arrow"
        sizes = random_policy(
            checkpoint,
            config.vla,
            space,
            vocabulary=workload.vocabulary,
            seed=config.seed,
            sequence=_one_chunk(workload, space),
            image_size=IMAGE_SIZE,
        )
        rows = list(_pairs(sizes, space.tokens, workload, seed=config.seed))
        texts = [_as_text(sizes, row) for row in rows]
        write_table(table, rows, pair_schema(VlaPolicy))
        ours = _ours(checkpoint, table, workload)
        logger.info(f"[dpo] ours {ours['median']:.2f} pairs/s")
        with process(
            TrlLearner,
            checkpoint,
            texts,
            f"{scratch}/trl",
            workload.batch_size,
            workload.threads,
            threads=workload.threads,
        ) as call:
            lengths, taken = call("train")
    if lengths != [sizes.prompt_length, space.tokens, space.tokens]:
        raise AssertionError(
            f"TRL trains on {lengths} tokens, ours on {sizes.prompt_length} and {space.tokens}"
        )
    theirs = median_and_range([workload.batch_size / duration for duration in taken])
    ratio = ours["median"] / theirs["median"]
    logger.info(f"[dpo] TRL {trl.__version__} {theirs['median']:.2f} pairs/s; {ratio:.2f} times")
    return {
        "workload": {
            "vocabulary": workload.vocabulary,
            "prompt_tokens": sizes.prompt_length,
            "batch_size": workload.batch_size,
            "response_tokens": space.tokens,
            "hidden": config.vla.hidden,
            "layers": config.vla.layers,
            "threads": workload.threads,
        },
        "ours": {"pairs_per_s": ours},
        "trl": {"version": trl.__version__, "pairs_per_s": theirs},
        "ratio": ratio,
    }


def _one_chunk(workload: DpoWorkload, space: ActionSpace) -> SequenceSizes:
    """A prompt of the workload's length and then all actions, as TRL has it."""
    sizes = SequenceSizes(
        frames=1,
        voice=False,
        chunk=space.seconds,
        context=space.seconds,
        history=0.0,
        text_tokens=workload.prompt_tokens - len(space.pose) - 4,  # <s>, a picture, a word, <act>
        chunk_text=1,
    )
    return sizes


def _pairs(sizes: FaceVLAConfig, tokens: int, workload: DpoWorkload, seed: int) -> Iterator[Row]:
    """One batch to warm up, and one for each measurement."""
    rng = np.random.default_rng(seed)
    count = (workload.repeats + 1) * workload.batch_size
    start = sizes.action_token_start
    for prompt in random_prompts(sizes, count, seed=seed, filmed=False):
        reactions = {name: rng.integers(start, start + BINS, tokens).tolist() for name in NAMES}
        scores = {"chosen_score": 1.0, "rejected_score": 0.0}
        yield row_of(prompt) | scores | reactions


def _ours(checkpoint: Path, table: Path, workload: DpoWorkload) -> dict[str, float]:
    dpo = VlaDpoConfig(
        train="all",
        first_steps=None,
        batch_size=workload.batch_size,
        epochs=1,
        beta=BETA,
        learning_rate=LEARNING_RATE,
    )
    rates = []
    with process(
        OurLearner, checkpoint, table, dpo, workload.threads, threads=workload.threads
    ) as call:
        call("train")  # warm
        for _ in range(workload.repeats):
            started = time.perf_counter()
            call("train")
            rates.append(workload.batch_size / (time.perf_counter() - started))
    return median_and_range(rates)
