"""How many actors there are, what each asks Ray for, and how long anything may take."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rapport.settings import Section


class ClusterConfig(Section):
    address: str | None = None
    """Ray address; empty = the job's cluster, or a local one"""
    cpus: int | None = Field(None, ge=1)
    """logical CPUs of a local cluster; empty = the machine's"""
    preflight: bool = True
    """check the cluster before anything expensive starts (dpo)"""
    lost_workers: int = Field(3, ge=0)
    """lost workers that the fleet and each pool replace; one more ends the run"""


class LearnerConfig(Section):
    world_size: int = Field(1, ge=1)
    """learner processes; on CPUs one with several threads is quicker than several with one"""
    cpus: float = Field(0.4, gt=0)
    """CPU share Ray reserves per learner"""
    gpus: float = Field(0, ge=0)
    """GPUs per learner"""
    nodes: str | None = None
    """custom Ray resource of the nodes that learners may run on, e.g. learner; empty = any node"""
    threads: int = Field(2, ge=1)
    """torch threads per learner on CPU"""
    zero_stage: Literal[1, 2, 3] = 2
    """DeepSpeed ZeRO stage"""
    gradient_clipping: float = Field(1.0, gt=0)
    """global gradient norm"""
    micro_batch: int | None = Field(None, ge=1)
    """rows of a batch that a learner computes at once (clips; pairs in DPO, prompts in GDPO), their
    gradients added up; empty = all of its share. Fewer need less memory"""
    gradient_checkpointing: bool = False
    """keep only what enters each block, and compute the rest a second time (VLA): a third of the
    memory, half as much time again"""
    max_failures: int = Field(1, ge=0)
    """restarts from the last checkpoint after a lost learner"""
    checkpoint_every: int = Field(100, ge=1)
    """optimiser steps between checkpoints"""
    timeout_s: float = Field(3600, gt=0)
    """deadline of one learning phase"""


class FleetConfig(Section):
    """A rollout fleet whose engines are the policy itself, in the actor's process."""

    workers: int = Field(2, ge=1)
    """rollout actors"""
    cpus: float = Field(0.1, gt=0)
    """CPU share Ray reserves per actor (learners wait while they sample)"""
    gpus: float = Field(0, ge=0)
    """GPUs per actor"""
    nodes: str | None = None
    """custom Ray resource of the nodes that actors may run on, e.g. rollout; empty = any node"""
    threads: int = Field(1, ge=1)
    """torch threads per actor on CPU"""
    batch_prompts: int = Field(4, ge=1)
    """prompts sampled at once, all samples of a prompt with it"""
    in_flight: int = Field(2, ge=1)
    """calls queued per actor: back-pressure"""
    start_timeout_s: float = Field(300, gt=0)
    """deadline for placement and start"""
    timeout_s: float = Field(600, gt=0)
    """deadline of one call to an actor"""

    @property
    def gpus_per_actor(self) -> float:
        """GPUs that one actor asks Ray for."""
        return self.gpus


class EngineConfig(FleetConfig):
    """A rollout fleet of the VLA: vLLM or transformers."""

    engine: Literal["vllm", "hf"] = "vllm"
    """sampling engine; hf = transformers, for debugging"""
    cpus: float = Field(0.4, gt=0)
    """CPU share Ray reserves per engine"""
    gpus: float = Field(0, ge=0)
    """GPUs per engine (times tensor_parallel)"""
    batch_prompts: int = Field(32, ge=1)
    """prompts per call to an engine"""
    tensor_parallel: int = Field(1, ge=1)
    """shards of one engine"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """dtype of the engine"""
    kv_cache_gib: float = Field(0.5, gt=0)
    """key-value cache of a shard of an engine, GiB"""
    max_num_seqs: int = Field(128, ge=1)
    """sequences decoded together, as far as the cache holds them; others wait"""
    enforce_eager: bool | None = None
    """compute step by step, without captured graphs; empty = on CPUs only"""
    temperature: float = Field(1.0, gt=0)
    """sampling temperature; there is no top-p or top-k"""
    canary_tolerance: float | None = Field(None, gt=0)
    """largest log-prob gap of a token between engine and learner after a weight update, nats;
    empty = 0.001 in float32, 0.1 in bfloat16"""

    def moot(self) -> dict[str, tuple[str, ...]]:
        """What belongs to vLLM."""
        if self.engine == "vllm":
            return {}
        keys = ("kv_cache_gib", "max_num_seqs", "enforce_eager")
        return {"rollout.engine=hf samples a call at once, as it is": keys}

    @property
    def gpus_per_actor(self) -> float:
        """GPUs that one actor asks Ray for: a share for each shard of its engine."""
        return self.gpus * self.tensor_parallel

    @model_validator(mode="after")
    def _shards_are_vllms(self) -> Self:
        if self.engine == "hf" and self.tensor_parallel > 1:
            raise ValueError(
                "rollout.engine=hf has no tensor parallelism; set rollout.tensor_parallel=1"
            )
        return self


class CandidateFleetConfig(FleetConfig):
    """A fleet of policies in their actors' processes, with the candidates asked of it."""

    prompts: int = Field(384, ge=1)
    """training listeners to answer for (fewer if the corpus has fewer)"""
    samples: int = Field(4, ge=1)
    """candidates per prompt (K), beside the recorded listener"""


class CandidateEngineConfig(EngineConfig, CandidateFleetConfig):
    """The same of the VLA."""

    prompts: int = Field(64, ge=1)
    """training prompts to roll out (fewer if the corpus has fewer)"""


class CandidateFlowConfig(CandidateFleetConfig):
    """The same of AR-Flow."""

    prompts: int = Field(64, ge=1)
    """training listeners to answer for (fewer if the corpus has fewer)"""
    evaluations: int = Field(10, ge=2, multiple_of=2)
    """evaluations of the velocity a latent, by the midpoint rule"""


class RenderConfig(Section):
    workers: int = Field(2, ge=1)
    """render actors"""
    cpus: float = Field(0.05, gt=0)
    """CPU share Ray reserves per actor (phases alternate, so less than 1)"""
    nodes: str | None = None
    """custom Ray resource of the nodes that renderers may run on, e.g. render; empty = any node"""
    size: int = Field(256, ge=64)
    """height and width of one panel, pixels"""
    supersample: Literal[1, 2] = 1
    """samples per pixel side; 2 = clean edges, a third of the speed"""
    codec: Literal["libx264", "libvpx-vp9"] = "libx264"
    """video codec (VP9 is free of patents)"""
    crf: int = Field(23, ge=0, le=51)
    """constant rate factor: lower = larger and better"""
    timeout_s: float = Field(300, gt=0)
    """deadline of one clip"""


class CandidateRenderConfig(RenderConfig):
    videos: int = Field(10, ge=0)
    """candidate videos to write; for people to rate, as many as candidates"""


class RatersConfig(Section):
    count: int = Field(5, ge=1)
    """simulated raters in the panel"""
    workers: int = Field(2, ge=1)
    """reward actors"""
    cpus: float = Field(0.05, gt=0)
    """CPU share Ray reserves per reward actor"""
    nodes: str | None = None
    """custom Ray resource of the nodes that raters may run on, e.g. render; empty = any node"""
    timeout_s: float = Field(120, gt=0)
    """deadline of one group of candidates"""
