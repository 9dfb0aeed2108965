"""Typed configuration: one section per part of the system, one recipe config that names its
sections.

A value is looked up in this order: `key=value` on the command line, the file given with `--config`,
the default written here. The defaults are the `tiny` size, which needs no asset and no GPU.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MAPPING = "mapping"  # type of a key that has keys of the user's own below it


class ConfigError(ValueError):
    """The configuration cannot be used; the message says which key and what would be valid."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _keep_own_defaults(cls, values: Any) -> Any:
        """A section of which some keys are given keeps the defaults that `cls` has for the others."""
        if not isinstance(values, dict):
            return values
        own = {
            name: field.default.model_dump(exclude_unset=True)
            for name, field in cls.model_fields.items()
            if isinstance(field.default, Section) and isinstance(values.get(name), dict)
        }
        return values | {name: defaults | values[name] for name, defaults in own.items()}


class CorpusConfig(Section):
    kind: Literal["synthetic", "dualtalk", "lm_listener", "parquet"] = Field(
        "synthetic",
        description="synthetic dyads, DualTalk's or lm-listener's published files, or a corpus `prepare` wrote",
    )
    root: Path | None = Field(
        None,
        description="folder of the files (dualtalk, lm_listener, parquet); not used by synthetic",
    )
    seconds: float = Field(4.0, gt=0, description="length of a clip, seconds")
    stride: float = Field(
        1.0,
        gt=0,
        description="seconds between starts of clips cut from a recording (dualtalk, lm_listener)",
    )
    train_clips: int = Field(1024, ge=1, description="training clips to generate (synthetic)")
    test_clips: int = Field(96, ge=1, description="held-out clips to generate (synthetic)")
    image_size: int = Field(56, ge=14, description="speaker frames: height and width, pixels")
    frames: int = Field(4, ge=0, description="speaker frames per clip, evenly spaced; 0 = none")
    seed: int = Field(0, description="seed of the generator (synthetic)")


class HeadConfig(Section):
    path: Path | None = Field(
        None, description="FLAME 2020/2023 model file; empty = the built-in CC0 head"
    )
    topology: Literal["flame2020", "flame2023"] | None = Field(
        None, description="which FLAME the file is, when it does not say so itself"
    )


class RenderConfig(Section):
    workers: int = Field(2, ge=1, description="render actors")
    cpus: float = Field(
        0.05,
        gt=0,
        description="CPU share Ray reserves per actor (phases alternate, so less than 1)",
    )
    nodes: str | None = Field(
        None,
        description="custom Ray resource of the nodes that renderers may run on, e.g. render; empty = any node",
    )
    size: int = Field(256, ge=64, description="height and width of one panel, pixels")
    supersample: Literal[1, 2] = Field(
        1, description="samples per pixel side; 2 = clean edges, a third of the speed"
    )
    codec: Literal["libx264", "libvpx-vp9"] = Field(
        "libx264", description="video codec (VP9 is free of patents)"
    )
    crf: int = Field(23, ge=0, le=51, description="constant rate factor: lower = larger and better")
    timeout_s: float = Field(300, gt=0, description="deadline of one clip")


class CandidateRenderConfig(RenderConfig):
    videos: int = Field(
        10, ge=0, description="candidate videos to write; for people to rate, as many as candidates"
    )


class ActionConfig(Section):
    expr_dims: int = Field(
        50, ge=1, le=100, description="leading expression coefficients in the action"
    )
    head: Literal["auto", "rot", "neck"] = Field(
        "auto",
        description="group that carries head rotation; auto = rot, or neck where the corpus has no rot",
    )
    rate: float = Field(
        5.0, gt=0, description="actions per second; splined to the corpus frame rate"
    )
    bins: int = Field(256, ge=2, le=256, description="bins per action dimension (Eq. 5)")
    truncation: float = Field(
        0.01, ge=0, lt=0.5, description="share of values cut off at each end before binning"
    )


class PolicyConfig(Section):
    size: Literal["tiny", "pretrained"] = Field(
        "tiny",
        description="tiny = small random weights of the same classes; pretrained = the checkpoints below",
    )
    action: ActionConfig = ActionConfig()
    text_tokens: int = Field(
        16, ge=1, description="text tokens in the prompt; longer text keeps its end"
    )
    hidden: int = Field(128, ge=32, description="LLaMA width (tiny)")
    layers: int = Field(3, ge=1, description="LLaMA layers (tiny)")
    heads: int = Field(4, ge=1, description="LLaMA attention heads (tiny)")
    kv_heads: int = Field(
        2, ge=1, description="LLaMA key-value heads (tiny); the fewer, the faster the rollouts"
    )
    vision_hidden: int = Field(64, ge=16, description="width of each vision tower (tiny)")
    vision_layers: int = Field(2, ge=2, description="layers of each vision tower (tiny)")
    vocabulary: int = Field(
        1536,
        ge=600,
        description="vocabulary, action ids included (tiny); large enough that common words stay whole",
    )
    llama: str | None = Field(
        None, description="LLaMA checkpoint: local path or hub name (pretrained)"
    )
    dino: str | None = Field(None, description="DINOv2 checkpoint (pretrained)")
    siglip: str | None = Field(None, description="SigLIP checkpoint (pretrained)")
    openvla: str | None = Field(
        None, description="OpenVLA-lineage checkpoint to start from, where shapes allow"
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="dtype of the weights")
    lora_rank: int = Field(
        0, ge=0, description="rank of LoRA adapters on the language model; 0 = full fine-tuning"
    )
    freeze_vision: bool = Field(False, description="keep both vision towers fixed")

    @model_validator(mode="after")
    def _heads_share_keys(self) -> PolicyConfig:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"policy.heads={self.heads} must be a multiple of policy.kv_heads={self.kv_heads}"
            )
        return self

    @model_validator(mode="after")
    def _pretrained_needs_parts(self) -> PolicyConfig:
        missing = [name for name in ("llama", "dino", "siglip") if getattr(self, name) is None]
        if self.size == "pretrained" and missing:
            raise ValueError(
                f"policy.size=pretrained needs {', '.join('policy.' + name for name in missing)}"
            )
        return self


class LearnerConfig(Section):
    world_size: int = Field(2, ge=1, description="learner processes")
    cpus: float = Field(0.4, gt=0, description="CPU share Ray reserves per learner")
    gpus: float = Field(0, ge=0, description="GPUs per learner")
    nodes: str | None = Field(
        None,
        description="custom Ray resource of the nodes that learners may run on, e.g. learner; empty = any node",
    )
    threads: int = Field(1, ge=1, description="torch threads per learner on CPU")
    zero_stage: Literal[1, 2, 3] = Field(2, description="DeepSpeed ZeRO stage")
    gradient_clipping: float = Field(1.0, gt=0, description="global gradient norm")
    max_failures: int = Field(
        1, ge=0, description="restarts from the last checkpoint after a lost learner"
    )
    checkpoint_every: int = Field(100, ge=1, description="optimiser steps between checkpoints")
    timeout_s: float = Field(3600, gt=0, description="deadline of one learning phase")


class SftConfig(Section):
    checkpoint: Path | None = Field(
        None, description="skip SFT and start from this policy checkpoint"
    )
    steps: int = Field(240, ge=1, description="optimiser steps")
    batch_size: int = Field(8, ge=1, description="clips per step over all learners")
    window_steps: int = Field(
        2,
        ge=1,
        description="action steps of a window in the first phase: as much data in many short pieces",
    )
    window_share: float = Field(
        0.6,
        ge=0,
        lt=1,
        description="share of the steps on windows, before those on whole clips; 0 = whole clips only",
    )
    learning_rate: float = Field(
        3e-3, gt=0, description="peak; linear warm-up over 5 % of steps, then cosine to 10 %"
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay")
    lambda_exp: float = Field(1.0, ge=0, description="weight of the expression tokens (Eq. 7)")
    lambda_pose: float = Field(1.0, ge=0, description="weight of the pose tokens (Eq. 7)")
    lambda_reg: float = Field(
        0.1, ge=0, description="weight of temporal coherence and identity (Eq. 8-9)"
    )


class RolloutConfig(Section):
    engine: Literal["vllm", "hf"] = Field(
        "vllm", description="sampling engine; hf = transformers, for debugging"
    )
    workers: int = Field(2, ge=1, description="engines in the fleet, one actor each")
    cpus: float = Field(0.4, gt=0, description="CPU share Ray reserves per engine")
    gpus: float = Field(0, ge=0, description="GPUs per engine (times tensor_parallel)")
    nodes: str | None = Field(
        None,
        description="custom Ray resource of the nodes that engines may run on, e.g. rollout; empty = any node",
    )
    threads: int = Field(1, ge=1, description="torch threads per engine on CPU")
    tensor_parallel: int = Field(1, ge=1, description="shards of one engine")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="dtype of the engine")
    kv_cache_gib: float = Field(0.5, gt=0, description="key-value cache per engine, GiB (CPU)")
    prompts: int = Field(192, ge=1, description="training prompts to roll out")
    samples: int = Field(4, ge=1, description="candidates per prompt (K)")
    batch_prompts: int = Field(16, ge=1, description="prompts per call to an engine")
    in_flight: int = Field(2, ge=1, description="calls queued per engine: back-pressure")
    temperature: float = Field(
        1.0, gt=0, description="sampling temperature; there is no top-p or top-k"
    )
    canary_tolerance: float = Field(
        1e-3, gt=0, description="largest log-prob gap allowed after a weight update"
    )
    start_timeout_s: float = Field(300, gt=0, description="deadline for placement and engine start")
    timeout_s: float = Field(600, gt=0, description="deadline of one call to an engine")


class ScoreConfig(Section):
    empathy: float = Field(0.25, ge=0, description="w_E (Eq. 10)")
    appropriateness: float = Field(0.25, ge=0, description="w_A (Eq. 10)")
    engagement: float = Field(0.25, ge=0, description="w_En (Eq. 10)")
    naturalness: float = Field(0.25, ge=0, description="w_N (Eq. 10); the four sum to 1")
    rater_scales: bool = Field(
        True,
        description="take out how lenient each person is and how much of the scale they use (people's ratings)",
    )
    minimum_margin: float = Field(
        0.0, ge=0, description="pairs whose scores (0 to 1) differ by less are dropped"
    )

    @model_validator(mode="after")
    def _sums_to_one(self) -> ScoreConfig:
        total = sum(self.weights.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the four weights must sum to 1, they sum to {total:g}")
        return self

    @property
    def weights(self) -> dict[str, float]:
        return {
            name: getattr(self, name)
            for name in ("empathy", "appropriateness", "engagement", "naturalness")
        }


class RatersConfig(Section):
    count: int = Field(5, ge=1, description="simulated raters in the panel")
    workers: int = Field(2, ge=1, description="reward actors")
    cpus: float = Field(0.05, gt=0, description="CPU share Ray reserves per reward actor")
    nodes: str | None = Field(
        None,
        description="custom Ray resource of the nodes that raters may run on, e.g. render; empty = any node",
    )
    timeout_s: float = Field(120, gt=0, description="deadline of one group of candidates")


class DpoConfig(Section):
    beta: float = Field(1.0, gt=0, description="strength of the tie to the reference (Eq. 11)")
    train: Literal["inputs", "all"] = Field(
        "inputs",
        description="inputs = vision, projector and embeddings: LLaMA's blocks and head stay as SFT left "
        "them, so that what the policy makes of the speaker changes more than what it does with "
        "everyone; "
        "all = everything that policy.* lets train",
    )
    first_steps: int | None = Field(
        5,
        ge=1,
        description="action steps whose log-probs count: a reaction is decided early, and the noise of a "
        "thousand later tokens drowns it; empty = all of them, the paper's Eq. 11",
    )
    loss: Literal["sigmoid", "ipo", "robust", "margin"] = Field(
        "sigmoid", description="sigmoid is the paper's"
    )
    label_smoothing: float = Field(
        0.1, ge=0, lt=0.5, description="share of flipped labels assumed by `robust`"
    )
    epochs: int = Field(2, ge=1, description="passes over the pairs")
    rounds: int = Field(
        1,
        ge=1,
        description="times that the policy of the round before is rolled out, rated and aligned anew",
    )
    reference: Literal["sft", "previous"] = Field(
        "sft",
        description="what every round is tied to: the SFT policy, or the policy that the round began with",
    )
    batch_size: int = Field(8, ge=1, description="pairs per step over all learners")
    learning_rate: float = Field(
        7e-4, gt=0, description="peak; same schedule as SFT (train=all wants about a fifth)"
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")


class EncodersConfig(Section):
    text: str | None = Field(
        None, description="T5 checkpoint, path or hub name; empty = tiny, random weights"
    )
    audio: str | None = Field(
        None, description="wav2vec2 checkpoint, path or hub name; empty = tiny, random weights"
    )
    cache: Path | None = Field(
        None, description="folder of their features, a file per clip; empty = in the run folder"
    )


class VaeConfig(Section):
    size: Literal["tiny", "paper"] = Field("tiny", description="size of the motion VAE")
    steps: int = Field(1200, ge=1, description="optimiser steps")
    batch_size: int = Field(16, ge=1, description="clips per step over all learners")
    learning_rate: float = Field(2e-3, gt=0, description="peak; same schedule as SFT")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    velocity_weight: float = Field(
        10.0, ge=0, description="weight of frame-to-frame differences in the reconstruction"
    )
    kl_weight: float = Field(
        0.01,
        ge=0,
        description="weight of the KL to N(0, I); more = blurred blinks, less = latents so precise that "
        "the noise that AR-Flow leaves in them makes faces tremble",
    )


class FlowConfig(Section):
    size: Literal["tiny", "paper"] = Field(
        "tiny",
        description="size of AR-Flow; paper = 6 layers, 16 heads, 512 wide, 19.3 M parameters",
    )
    steps: int = Field(1000, ge=1, description="optimiser steps")
    batch_size: int = Field(
        8, ge=1, description="clips per step over all learners (the paper's is 32)"
    )
    draws: int = Field(
        4, ge=1, description="noise and flow times drawn per latent; they share prefix and history"
    )
    learning_rate: float = Field(
        1e-3, gt=0, description="peak; same schedule as SFT (the paper's is 1e-4)"
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay")
    drop_each: float = Field(
        0.1, ge=0, lt=1, description="probability that a clip loses a modality, one by one"
    )
    drop_all: float = Field(
        0.1, ge=0, lt=1, description="probability that it loses all, for guidance (Eq. 6)"
    )
    streaming_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the clips trained without anything after the present frame",
    )


class RewardConfig(Section):
    """Weights of the penalties in the reward of a FLAME group."""

    positional_variance: float = Field(
        1.0, ge=0, description="of standard deviations over time, against the recorded"
    )
    velocity_variance: float = Field(
        8.0,
        ge=0,
        description="of those of frame-to-frame differences, which are about an eighth as large",
    )
    mean_drift: float = Field(0.03, ge=0, description="of the distance of the means over time")
    mse: float = Field(0.05, ge=0, description="of the mean squared error")
    jerk: float = Field(
        8.0, ge=0, description="of third differences against the recorded: guards against trembling"
    )
    range: float = Field(
        1.0, ge=0, description="of what lies outside the corpus' limits: guards against grimaces"
    )


class GroupWeightsConfig(Section):
    """lambda_i of the FLAME groups (Eq. 9); one that the corpus lacks has no reward."""

    expr: float = Field(1.0, ge=0, description="expression coefficients")
    jaw: float = Field(1.0, ge=0, description="jaw rotation")
    neck: float = Field(1.0, ge=0, description="neck rotation")
    eyelid: float = Field(
        1.0,
        ge=0,
        description="eyelid closure; in clips so short that most have no blink, the penalty is least without",
    )
    eyepose: float = Field(1.0, ge=0, description="eye rotations")
    rot: float = Field(1.0, ge=0, description="global head rotation")


class FlowRolloutConfig(Section):
    workers: int = Field(2, ge=1, description="rollout actors")
    cpus: float = Field(
        0.1, gt=0, description="CPU share Ray reserves per actor (learners wait while they sample)"
    )
    gpus: float = Field(0, ge=0, description="GPUs per actor")
    nodes: str | None = Field(
        None,
        description="custom Ray resource of the nodes that actors may run on, e.g. rollout; empty = any node",
    )
    threads: int = Field(1, ge=1, description="torch threads per actor on CPU")
    batch_prompts: int = Field(
        4, ge=1, description="prompts sampled at once, gdpo.group_size samples each"
    )
    timeout_s: float = Field(600, gt=0, description="deadline of one call to an actor")


class GdpoConfig(Section):
    iterations: int = Field(
        150, ge=1, description="times that the behaviour policy is renewed and rolled out"
    )
    sync_every: int = Field(
        2, ge=1, description="optimiser steps on rollouts of one behaviour policy (the paper's 8)"
    )
    batch_size: int = Field(4, ge=1, description="prompts per step over all learners")
    group_size: int = Field(8, ge=2, description="rollouts per prompt, G (the paper's 4)")
    asynchronous: bool = Field(
        False,
        description="sample the next iteration while this one is learnt, with weights one iteration old; a "
        "resumed run then differs from one that went through",
    )
    steps: int = Field(4, ge=1, description="SDE denoise steps of a rollout")
    sigma: float = Field(0.5, gt=0, description="noise scale of the SDE (Eq. 7)")
    corrected: bool = Field(
        True,
        description="with Flow-GRPO's drift correction, so that rollouts are no more spread than what the ODE "
        "gives (the paper leaves it out)",
    )
    shared_start: bool = Field(
        True,
        description="rollouts of a prompt start from the same noise (DanceGRPO): they differ by their SDE steps "
        "alone, which is all that log-probs know of",
    )
    reduction: Literal["sum", "mean"] = Field(
        "sum", description="log-probs over latent dims; mean wants a small clip"
    )
    clip: float = Field(0.2, gt=0, lt=1, description="clip range of the probability ratio (Eq. 10)")
    beta: float = Field(0.01, ge=0, description="weight of the KL to the reference (Eq. 10)")
    hold: float = Field(
        0.02,
        ge=0,
        description="weight of the same KL where the actor speaks, so that speaking stays what it was",
    )
    anchor_share: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="share of prompts in which the actor never listens, for `hold` (fewer if the "
        "corpus has fewer)",
    )
    chunk: int = Field(
        100,
        ge=1,
        description="denoise steps of a rollout replayed at once, over all latents; fewer need less memory "
        "and more time (the paper's 2 steps of 25 latents are 50)",
    )
    learning_rate: float = Field(
        3e-4, gt=0, description="peak; same schedule as SFT (the paper's 5e-6)"
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    estimator: Literal["gdpo", "grpo"] = Field(
        "gdpo", description="rewards normalised one by one, or summed first"
    )
    batch_norm: bool = Field(False, description="the batch-level step of the original GDPO")


class HeldOutConfig(Section):
    prompts: int = Field(96, ge=1, description="held-out prompts (fewer if the corpus has fewer)")
    samples: int = Field(1, ge=1, description="candidates per prompt")


class ComparisonConfig(HeldOutConfig):
    bootstrap: int = Field(
        2000, ge=100, description="bootstrap resamples of the confidence intervals"
    )


class EvaluationConfig(ComparisonConfig):
    clips: int = Field(
        4,
        ge=0,
        description="videos of held-out clips: speaker, ground truth and policies side by side; 0 = none",
    )


class AblationConfig(Section):
    seeds: int = Field(3, ge=1, description="runs from SFT on, with seeds counted up from `seed`")


class BenchSettings(Section):
    repeats: int = Field(3, ge=1, description="measurements after a warm-up; the median counts")
    threads: int = Field(
        1, ge=1, description="CPU threads of each engine and learner (rollout, dpo)"
    )
    prompts: int = Field(
        16, ge=1, description="prompts sampled at once, rollout.samples each (rollout)"
    )
    batch_sizes: list[int] = Field(
        [16, 32, 64], description="of transformers' generate; its best counts (rollout)"
    )
    prompt_tokens: int = Field(512, ge=32, description="tokens of a prompt (dpo)")
    response_tokens: int = Field(
        256, ge=32, multiple_of=32, description="tokens of a response (dpo)"
    )
    vocabulary: int = Field(32000, ge=600, description="vocabulary of the LLaMA (dpo)")
    batch_size: int = Field(4, ge=1, description="pairs per step (dpo)")
    speakers: int = Field(
        0,
        ge=0,
        description="speakers of a REACT split that is really scored; its test split has 1612 (metrics)",
    )


class TrackingConfig(Section):
    uri: str | None = Field(
        None, description="MLflow URI; empty = runs/mlflow.db beside the run folders (SQLite)"
    )
    experiment: str = Field("rapport", description="MLflow experiment")
    system_metrics: bool = Field(True, description="log CPU, memory and disk during the run")


class StorageConfig(Section):
    uri: str | None = Field(
        None,
        description="where finished phases are copied, under the run directory's name: s3://bucket/runs, a "
        "folder, anything fsspec knows (s3 needs s3fs); `--resume` fetches a run directory that "
        "is not there",
    )


class ClusterConfig(Section):
    address: str | None = Field(
        None, description="Ray address; empty = the job's cluster, or a local one"
    )
    cpus: int | None = Field(
        None, ge=1, description="logical CPUs of a local cluster; empty = the machine's"
    )
    preflight: bool = Field(
        True, description="check the cluster before anything expensive starts (dpo)"
    )
    lost_workers: int = Field(
        3,
        ge=0,
        description="lost workers that the fleet and each pool replace; one more ends the run",
    )


class PlanConfig(Section):
    """An imaginary cluster of equal nodes."""

    nodes: int | None = Field(
        None, ge=1, description="number of nodes; empty = no plan, look at the real cluster"
    )
    gpus: int = Field(0, ge=0, description="GPUs of a node")
    cpus: int | None = Field(
        None, ge=1, description="CPU cores of a node; empty = 16 for each GPU, 2 without"
    )
    memory_gib: float = Field(
        24, gt=0, description="memory of a node, GiB; counts where there are no GPUs"
    )
    gpu_memory_gib: float = Field(80, gt=0, description="memory of a GPU, GiB")
    device: Literal["a100", "h100"] = Field("h100", description="GPU whose speed is assumed")
    bench: list[Path] = Field(
        [],
        description="bench.json files of `bench rollout`, `dpo`, `render` on such a machine, instead of defaults",
    )

    @model_validator(mode="after")
    def _has_nodes(self) -> PlanConfig:
        given = self.model_dump(exclude_defaults=True)
        if self.nodes is None and given:
            raise ValueError(
                f"plan.{next(iter(given))} describes nodes, plan.nodes must say how many"
            )
        return self


class RecipeConfig(Section):
    """What every recipe takes."""

    seed: int = Field(
        0, description="seeds data order, initial weights, sampling and simulated raters"
    )
    corpus: CorpusConfig = CorpusConfig()
    tracking: TrackingConfig = TrackingConfig()
    storage: StorageConfig = StorageConfig()


class PrepareConfig(RecipeConfig):
    pass


class SftRecipeConfig(RecipeConfig):
    policy: PolicyConfig = PolicyConfig()
    learner: LearnerConfig = LearnerConfig()
    sft: SftConfig = SftConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _sft_batches_can_be_shared(self) -> SftRecipeConfig:
        _require_equal_shares("sft.batch_size", self.sft.batch_size, self.learner)
        return self


class RolloutRecipeConfig(SftRecipeConfig):
    head: HeadConfig = HeadConfig()
    render: CandidateRenderConfig = CandidateRenderConfig()
    rollout: RolloutConfig = RolloutConfig()


class JudgedRecipeConfig(RolloutRecipeConfig):
    """What recipes take that end in a table of held-out clips."""

    score: ScoreConfig = ScoreConfig()
    raters: RatersConfig = RatersConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


class BenchConfig(RolloutRecipeConfig):
    subject: Literal["rollout", "dpo", "sync", "render", "metrics", "flow"] = Field(
        "rollout", description="what is measured"
    )
    bench: BenchSettings = BenchSettings()


class FilesConfig(Section):
    pred: Path | None = Field(
        None,
        description="predictions to score; empty = judge a policy. A file or a folder (docs/metrics.md)",
    )
    target: Path | None = Field(None, description="recorded motion of the same clips")
    partner: Path | None = Field(
        None, description="motion of the person they listen to, for the metrics that need it"
    )
    neighbours: Path | None = Field(
        None, description="matrix of appropriate reactions (REACT protocols)"
    )
    speech_mask: Path | None = Field(
        None, description="who speaks in which frame (unils, gdpo_paper)"
    )
    protocol: Literal[
        "lm_listener",
        "l2l",
        "dim",
        "dualtalk",
        "unils",
        "gdpo_paper",
        "react2023",
        "react2024",
        "reactface",
        "vbench",
    ] = Field("lm_listener", description="whose numbers to reproduce")
    variant: Literal["reference", "corrected"] = Field(
        "reference",
        description="the published number bug for bug, or with the corrections of docs/metrics.md",
    )
    fps: float | None = Field(
        None, gt=0, description="frames per second of plain arrays; empty = the protocol's own"
    )
    affect: Path | None = Field(
        None,
        description="affect_estimator.npz of an earlier run, for L2 Affect (lm_listener, typed motion)",
    )
    out: Path | None = Field(
        None, description="JSON to write; metrics.json in the run directory holds the same"
    )

    @model_validator(mode="after")
    def _go_together(self) -> FilesConfig:
        given = [
            name
            for name in ("target", "partner", "neighbours", "speech_mask", "affect", "out")
            if getattr(self, name) is not None
        ]
        if self.pred is None and given:
            raise ValueError(
                f"files.{given[0]} needs files.pred (--pred), the predictions to score"
            )
        if self.pred is not None and (self.target is None) != (self.protocol == "vbench"):
            raise ValueError(
                "protocol vbench has no files.target"
                if self.target is not None
                else f"protocol {self.protocol} needs files.target (--target)"
            )
        if self.affect is not None and self.protocol != "lm_listener":
            raise ValueError(f"files.affect is for protocol lm_listener, not {self.protocol}")
        return self


class EvaluateConfig(JudgedRecipeConfig):
    checkpoint: Path | None = Field(
        None, description="policy checkpoint to judge; empty = train SFT and judge that"
    )
    files: FilesConfig = FilesConfig()

    @model_validator(mode="after")
    def _files_or_a_policy(self) -> EvaluateConfig:
        if self.files.pred is not None and self.checkpoint is not None:
            raise ValueError(
                "files.pred scores files, checkpoint judges a policy: give one of them"
            )
        return self


class RankSettings(HeldOutConfig):
    prompts: int = Field(96, ge=2, description="held-out prompts (fewer if the corpus has fewer)")
    samples: int = Field(
        2,
        ge=1,
        description="reactions per prompt and method; all of them for ReactFace's metrics, "
        "the first for the others, as in the papers",
    )
    dpo: Path | None = Field(
        None, description="folder of a finished `dpo` run: SFT, SFT + DPO; empty = left out"
    )
    gdpo: Path | None = Field(
        None, description="folder of a finished `gdpo` run: AR-Flow, GDPO; empty = left out"
    )


class RankConfig(RecipeConfig):
    cluster: ClusterConfig = ClusterConfig()
    head: HeadConfig = HeadConfig()
    rollout: RolloutConfig = RolloutConfig()
    rank: RankSettings = RankSettings()

    @model_validator(mode="after")
    def _one_corpus(self) -> RankConfig:
        if (self.rank.dpo or self.rank.gdpo) and self.corpus != CorpusConfig():
            raise ValueError(
                "methods are ranked on the corpus of the runs in rank.dpo and rank.gdpo: leave "
                "corpus.* "
                "out, it is for ranking without a run"
            )
        return self


class DpoRecipeConfig(JudgedRecipeConfig):
    ratings: Path | None = Field(
        None,
        description="people's ratings (CSV, JSONL or Parquet) of `candidates`; empty = simulated raters",
    )
    candidates: Path | None = Field(
        None,
        description="folder of a `rollout` run whose candidates (and policy) are used; needed with `ratings`",
    )
    dpo: DpoConfig = DpoConfig()

    @model_validator(mode="after")
    def _ratings_need_candidates(self) -> DpoRecipeConfig:
        if self.ratings is not None and self.candidates is None:
            raise ValueError(
                "ratings=FILE needs candidates=RUN_DIR, the rollout run that the ratings are about"
            )
        if self.candidates is not None and self.dpo.rounds > 1:
            raise ValueError(
                f"candidates=RUN_DIR is one round, dpo.rounds={self.dpo.rounds} must be 1"
            )
        return self

    @model_validator(mode="after")
    def _adapters_train(self) -> DpoRecipeConfig:
        if self.dpo.train == "inputs" and self.policy.lora_rank:
            raise ValueError(
                "dpo.train=inputs would leave the adapters of policy.lora_rank untrained; "
                "dpo.train=all"
            )
        return self

    @model_validator(mode="after")
    def _dpo_batches_can_be_shared(self) -> DpoRecipeConfig:
        _require_equal_shares("dpo.batch_size", self.dpo.batch_size, self.learner)
        return self


class PreflightConfig(DpoRecipeConfig):
    plan: PlanConfig = PlanConfig()


class FlowJudgeConfig(Section):
    steps: int = Field(
        10, ge=1, description="denoise steps of the ODE that held-out windows are generated with"
    )
    omega_speak: float = Field(
        1.0, ge=0, description="guidance where the actor speaks (Eq. 6); 1 = none"
    )
    omega_listen: float = Field(
        1.0, ge=0, description="guidance elsewhere: the expressiveness slider"
    )
    ablations: bool = Field(
        True,
        description="also judge the aligned policy without text, with 4 denoise steps, and without anything "
        "after the present frame (as in Table 4)",
    )
    omegas: list[float] = Field(
        [3.0], description="guidance scales whose effect on listeners is measured"
    )
    long_frames: int = Field(
        3600,
        ge=1,
        description="frames of the sequence whose last window is compared with its first (the paper's)",
    )
    windows: int = Field(192, ge=1, description="held-out windows (fewer if the corpus has fewer)")
    clips: int = Field(
        6, ge=0, description="held-out listeners in the report, before and after; 0 = none"
    )


STAGE_ONE = (
    "corpus",
    "roles",
    "encoders",
    "vae",
    "flow",
)  # keys and sections that say how AR-Flow is trained


class FlowRecipeConfig(RecipeConfig):
    """What recipes take that train AR-Flow. Its clips have the paper's 200 frames, and it sees no
    video.
    """

    corpus: CorpusConfig = CorpusConfig(seconds=8.0, frames=0)
    policy: Literal["flow"] = Field(
        "flow", description="the policy; vla = another recipe with other keys"
    )
    imitation: Path | None = Field(
        None,
        description="folder of a run of `gdpo` or `dpo policy=flow` whose corpus, encoded windows, motion VAE "
        "and supervised AR-Flow are used; empty = made anew",
    )
    cluster: ClusterConfig = ClusterConfig()
    head: HeadConfig = HeadConfig()
    learner: LearnerConfig = LearnerConfig(checkpoint_every=80)
    roles: Literal["both", "listener"] = Field(
        "both",
        description="whose motion is learnt: of both people of a clip, or of its listener (DualTalk's clips "
        "come once for each person already)",
    )
    encoders: EncodersConfig = EncodersConfig()
    vae: VaeConfig = VaeConfig()
    flow: FlowConfig = FlowConfig()
    rollout: FlowRolloutConfig = FlowRolloutConfig()
    render: RenderConfig = RenderConfig()
    judge: FlowJudgeConfig = FlowJudgeConfig()

    @model_validator(mode="after")
    def _one_imitation(self) -> FlowRecipeConfig:
        given = [
            name
            for name in STAGE_ONE
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        if self.imitation is not None and given:
            raise ValueError(
                f"imitation=RUN_DIR brings its own {', '.join(STAGE_ONE)}: leave "
                f"{', '.join(given)} out"
            )
        return self

    @model_validator(mode="after")
    def _stage_one_batches_can_be_shared(self) -> FlowRecipeConfig:
        for name in ("vae", "flow"):
            _require_equal_shares(
                f"{name}.batch_size", getattr(self, name).batch_size, self.learner
            )
        return self


class RewardedRecipeConfig(RecipeConfig):
    """What recipes take that reward dynamics, beside their `gdpo` and `learner`. The last of the
    bases: pydantic takes a default that several bases give from the first."""

    reward: RewardConfig = RewardConfig()
    groups: GroupWeightsConfig = GroupWeightsConfig()

    @model_validator(mode="after")
    def _gdpo_batches_can_be_shared(self) -> RewardedRecipeConfig:
        _require_equal_shares("gdpo.batch_size", self.gdpo.batch_size, self.learner)
        return self

    @model_validator(mode="after")
    def _checkpoints_between_iterations(self) -> RewardedRecipeConfig:
        if self.learner.checkpoint_every % self.gdpo.sync_every:
            raise ValueError(
                f"learner.checkpoint_every={self.learner.checkpoint_every} must be a multiple of "
                f"gdpo.sync_every={self.gdpo.sync_every}: a learner restarts with a new rollout"
            )
        return self

    @model_validator(mode="after")
    def _something_is_rewarded(self) -> RewardedRecipeConfig:
        for name in ("reward", "groups"):
            if not any(getattr(self, name).model_dump().values()):
                raise ValueError(f"{name}: all weights are 0, so nothing is rewarded")
        return self


class GdpoRecipeConfig(FlowRecipeConfig, RewardedRecipeConfig):
    gdpo: GdpoConfig = GdpoConfig()


class FlowCandidatesConfig(FlowRolloutConfig):
    prompts: int = Field(
        384, ge=1, description="training listeners to answer for (fewer if the corpus has fewer)"
    )
    samples: int = Field(
        4, ge=1, description="candidates per prompt (K), beside the recorded listener"
    )
    steps: int = Field(10, ge=1, description="denoise steps of the ODE")


class FlowDpoConfig(Section):
    beta: float = Field(
        1000.0,
        gt=0,
        description="strength of the tie to the reference, of errors averaged over a window (for images"
        " 2000 to 5000, Wallace et al. 2024)",
    )
    draws: int = Field(
        8,
        ge=1,
        description="noise and flow times drawn per latent, the same for chosen and rejected",
    )
    epochs: int = Field(2, ge=1, description="passes over the pairs")
    batch_size: int = Field(8, ge=1, description="pairs per step over all learners")
    learning_rate: float = Field(
        3e-5,
        gt=0,
        description="peak; same schedule as SFT. Ten times as much, and jaws tremble whatever beta is",
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")


class FlowDpoRecipeConfig(FlowRecipeConfig):
    rollout: FlowCandidatesConfig = FlowCandidatesConfig()
    score: ScoreConfig = ScoreConfig()
    raters: RatersConfig = RatersConfig()
    dpo: FlowDpoConfig = FlowDpoConfig()

    @model_validator(mode="after")
    def _dpo_batches_can_be_shared(self) -> FlowDpoRecipeConfig:
        _require_equal_shares("dpo.batch_size", self.dpo.batch_size, self.learner)
        return self


class VlaGdpoConfig(Section):
    iterations: int = Field(
        24, ge=1, description="times that the behaviour policy is renewed and answers new prompts"
    )
    sync_every: int = Field(
        2, ge=1, description="optimiser steps on answers of one behaviour policy"
    )
    batch_size: int = Field(4, ge=1, description="prompts per step over all learners")
    group_size: int = Field(4, ge=2, description="answers per prompt, G")
    clip: float = Field(
        0.2, gt=0, lt=1, description="clip range of the probability ratio of a token (Eq. 10)"
    )
    beta: float = Field(0.01, ge=0, description="weight of the KL to the reference (Eq. 10)")
    asynchronous: bool = Field(
        False,
        description="sample the next iteration while this one is learnt, with weights one iteration old; a "
        "resumed run then differs from one that went through",
    )
    truncation: float = Field(
        2.0,
        ge=1,
        description="largest importance weight of a token, for what engine and learner differ in",
    )
    learning_rate: float = Field(3e-4, gt=0, description="peak; same schedule as SFT")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    estimator: Literal["gdpo", "grpo"] = Field(
        "gdpo", description="rewards normalised one by one, or summed first"
    )
    batch_norm: bool = Field(False, description="the batch-level step of the original GDPO")


class VlaGdpoRecipeConfig(JudgedRecipeConfig, RewardedRecipeConfig):
    learner: LearnerConfig = LearnerConfig(checkpoint_every=8)
    gdpo: VlaGdpoConfig = VlaGdpoConfig()


class AblateConfig(DpoRecipeConfig):
    evaluation: ComparisonConfig = ComparisonConfig()  # it shows no clips
    ablation: AblationConfig = AblationConfig()

    @model_validator(mode="after")
    def _one_round_of_its_own(self) -> AblateConfig:
        if self.candidates is not None or self.dpo.rounds > 1:
            raise ValueError(
                "ablate samples its own candidates, once: no `candidates`, no `ratings`, "
                "dpo.rounds=1"
            )
        return self


def _require_equal_shares(key: str, batch_size: int, learner: LearnerConfig) -> None:
    if batch_size % learner.world_size:
        raise ValueError(
            f"{key}={batch_size} must be a multiple of learner.world_size={learner.world_size}"
        )


def load_config(
    recipe: type[RecipeConfig], file: Path | None, overrides: list[str]
) -> RecipeConfig:
    """Defaults, then `file`, then `key=value` overrides. Raises `ConfigError` naming key and
    remedy.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values = read_yaml(file)
        for key in flatten(values):
            _require_known(recipe, key, f"in {file}")
    for text in overrides:
        key, equals, raw = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} is not key=value")
        _require_known(recipe, key, "on the command line")
        set_key(values, key, _read_value(key, raw))
    try:
        return recipe.model_validate(values)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, e['loc'])) or recipe.__name__}: {e['msg']} (got "
            f"{_short(e['input'])})"
            for e in error.errors()
        ]
        raise ConfigError("invalid configuration:\n" + "\n".join(lines)) from None


def given_policy(file: Path | None, overrides: list[str]) -> str | None:
    """Which policy `policy=NAME` or `file` asks for, None = neither. The VLA's sizes are a section
    `policy`.
    """
    named = [text.partition("=")[2] for text in overrides if text.startswith("policy=")]
    policy = named[-1] if named else None if file is None else read_yaml(file).get("policy")
    return "vla" if isinstance(policy, dict) else policy


def describe(
    recipe: type[BaseModel], prefix: str = "", own: Section | None = None
) -> list[tuple[str, str, str, str]]:
    """`(key, type, default, meaning)` of every leaf key, in order; defaults are those of `own`,
    where it is given.
    """
    rows = []
    for name, field in recipe.model_fields.items():
        default = field.default if own is None else getattr(own, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            rows += describe(field.annotation, f"{prefix}{name}.", default)
        else:
            rows.append(
                (
                    prefix + name,
                    _type_name(field.annotation),
                    _scalar(default),
                    field.description or "",
                )
            )
    return rows


def to_yaml(config: RecipeConfig) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def commented_yaml(config: BaseModel, indent: str = "") -> str:
    """The config as YAML with every key's meaning beside it; `load_config` reads it back."""
    lines = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Section):
            lines.append(f"{indent}{name}:\n{commented_yaml(value, indent + '  ')}")
        else:
            style = (
                None if isinstance(value, (list, dict)) else False
            )  # in one line: a comment follows
            plain = yaml.safe_dump(
                config.model_dump(mode="json", include={name}), default_flow_style=style
            ).strip()
            lines.append(f"{indent}{plain}  # {field.description}\n")
    return "".join(lines)


def _read_value(key: str, raw: str) -> Any:
    try:
        return yaml.safe_load(raw)  # nothing after the = means empty
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}={raw} is not YAML: {error}") from None


def read_yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(f"no config file {file}")
    try:
        values = yaml.safe_load(file.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file} must hold a mapping of keys to values")
    return values


def _require_known(recipe: type[RecipeConfig], key: str, where: str) -> None:
    rows = describe(recipe)
    if any(
        key == known or (kind == MAPPING and key.startswith(known + "."))
        for known, kind, *_ in rows
    ):
        return
    raise ConfigError(f"unknown key {key!r} {where}; {near_keys(key, [row[0] for row in rows])}")


def near_keys(key: str, known: list[str]) -> str:
    """What somebody who wrote `key` may have meant."""
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    near = near or [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    return f"nearest: {', '.join(near)}" if near else "run with --help for the list"


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one mapping of dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= (
            flatten(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {f"{prefix}{name}": value}
        )
    return flat


def set_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested sections."""
    *parents, leaf = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    values[leaf] = value


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    if get_origin(annotation) is dict:
        return MAPPING
    parts = [a for a in get_args(annotation) if a is not type(None)]
    if parts:
        return "|".join(_type_name(p) for p in parts) + (
            " or empty" if len(parts) < len(get_args(annotation)) else ""
        )
    return annotation.__name__.lower()


def _scalar(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."
