"""What `bench SUBJECT` takes: for each subject the keys that it heeds, and no others.

It stands beside `pipeline/bench` because that folder is not in the wheel, and the command line
lists these keys also where there is nothing to measure with.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rapport.actors.settings import CandidateEngineConfig, ClusterConfig, EngineConfig, RenderConfig
from rapport.pipeline.config import RecipeConfig
from rapport.pipeline.data.settings import CorpusConfig
from rapport.policies.head.settings import HeadConfig
from rapport.policies.vla.settings import ActionConfig, SequenceConfig, VlaConfig
from rapport.settings import Section


def default(section: type[Section], name: str) -> Any:
    """The default of a key where it is at home, so that a bench measures what recipes run."""
    return section.model_fields[name].default


class MachineConfig(Section):
    """The Ray that a bench runs on."""

    address: str | None = default(ClusterConfig, "address")
    """Ray address; empty = the job's cluster, or a local one"""
    cpus: int | None = Field(default(ClusterConfig, "cpus"), ge=1)
    """logical CPUs of a local cluster; empty = the machine's"""


class BenchConfig(RecipeConfig):
    """What every subject takes."""

    seed: int = 0
    """seeds weights, prompts and data, all of them at random"""
    cluster: MachineConfig = MachineConfig()


# -- What is measured on --


class LengthConfig(Section):
    """How long a clip is."""

    seconds: float = Field(default(CorpusConfig, "seconds"), gt=0)
    """length of a clip, seconds"""


class FilmedConfig(LengthConfig):
    """What a policy is shown of a clip."""

    image_size: int = Field(default(CorpusConfig, "image_size"), ge=14)
    """speaker frames: height and width, pixels"""
    frames: int = Field(default(CorpusConfig, "frames"), ge=1)
    """speaker frames per clip"""


class NetworkConfig(Section):
    """Sizes of a VLA with random weights."""

    hidden: int = Field(default(VlaConfig, "hidden"), ge=32)
    """LLaMA width"""
    layers: int = Field(default(VlaConfig, "layers"), ge=1)
    """LLaMA layers"""
    heads: int = Field(default(VlaConfig, "heads"), ge=1)
    """LLaMA attention heads"""
    kv_heads: int = Field(default(VlaConfig, "kv_heads"), ge=1)
    """LLaMA key-value heads; the fewer, the faster the rollouts"""
    vision_hidden: int = Field(default(VlaConfig, "vision_hidden"), ge=16)
    """width of each vision tower"""
    vision_layers: int = Field(default(VlaConfig, "vision_layers"), ge=2)
    """layers of each vision tower"""

    @model_validator(mode="after")
    def _heads_share_keys(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"vla.heads={self.heads} must be a multiple of vla.kv_heads={self.kv_heads}"
            )
        return self


class MotionConfig(Section):
    """How much a policy says of a second."""

    expr_dims: int = Field(default(ActionConfig, "expr_dims"), ge=1, le=100)
    """leading expression coefficients in the action"""
    rate: float = Field(default(ActionConfig, "rate"), gt=0)
    """actions per second"""


class SampledNetworkConfig(NetworkConfig, SequenceConfig):
    """The same, with its prompts and its actions."""

    action: MotionConfig = MotionConfig()
    vocabulary: int = Field(default(VlaConfig, "vocabulary"), ge=600)
    """vocabulary, action ids included"""


# -- Subjects --


class RepeatedConfig(Section):
    """How often is measured."""

    repeats: int = Field(3, ge=1)
    """measurements after a warm-up; the median counts"""


class ThreadedConfig(RepeatedConfig):
    """The same, and on how many cores."""

    threads: int = Field(1, ge=1)
    """CPU threads of each process that is measured"""


class RolloutWorkload(ThreadedConfig):
    prompts: int = Field(16, ge=1)
    """prompts sampled at once, rollout.samples each"""
    batch_sizes: list[int] = [16, 32, 64]
    """of transformers' generate; its best counts"""
    chunks: list[float] = [1.0, 0.4]
    """seconds of a chunk that are compared with one chunk for all of the clip (float32)"""


class SampledEngineConfig(Section):
    """An engine of the fleet, without the fleet."""

    samples: int = Field(default(CandidateEngineConfig, "samples"), ge=1)
    """candidates per prompt (K)"""
    gpus: float = Field(default(EngineConfig, "gpus"), ge=0)
    """0 = the engine computes on the CPU"""
    kv_cache_gib: float = Field(default(EngineConfig, "kv_cache_gib"), gt=0)
    """key-value cache, GiB (CPU)"""
    temperature: float = Field(default(EngineConfig, "temperature"), gt=0)
    """sampling temperature; there is no top-p or top-k"""


class RolloutBench(BenchConfig):
    """`bench rollout`."""

    subject: Literal["rollout"] = "rollout"
    """what is measured"""
    corpus: FilmedConfig = FilmedConfig()
    vla: SampledNetworkConfig = SampledNetworkConfig()
    rollout: SampledEngineConfig = SampledEngineConfig()
    bench: RolloutWorkload = RolloutWorkload()


class DpoWorkload(ThreadedConfig):
    prompt_tokens: int = Field(512, ge=32)
    """tokens of a prompt"""
    response_tokens: int = Field(256, ge=32, multiple_of=32)
    """tokens of a response"""
    vocabulary: int = Field(32000, ge=600)
    """vocabulary of the LLaMA"""
    batch_size: int = Field(4, ge=1)
    """pairs per step"""


class DpoBench(BenchConfig):
    """`bench dpo`."""

    subject: Literal["dpo"] = "dpo"
    """what is measured"""
    vla: NetworkConfig = NetworkConfig()
    bench: DpoWorkload = DpoWorkload()


class ReplacingMachineConfig(MachineConfig):
    """The Ray of a fleet."""

    lost_workers: int = Field(default(ClusterConfig, "lost_workers"), ge=0)
    """lost workers that the fleet replaces; one more ends the run"""


class SyncBench(BenchConfig):
    """`bench sync`."""

    subject: Literal["sync"] = "sync"
    """what is measured"""
    cluster: ReplacingMachineConfig = ReplacingMachineConfig()
    corpus: FilmedConfig = FilmedConfig()
    vla: SampledNetworkConfig = SampledNetworkConfig()
    rollout: EngineConfig = EngineConfig()
    bench: RepeatedConfig = RepeatedConfig()


class DrawnConfig(Section):
    """How a video is drawn and coded."""

    size: int = Field(default(RenderConfig, "size"), ge=64)
    """height and width of one panel, pixels"""
    supersample: Literal[1, 2] = default(RenderConfig, "supersample")
    """samples per pixel side; 2 = clean edges, a third of the speed"""
    codec: Literal["libx264", "libvpx-vp9"] = default(RenderConfig, "codec")
    """video codec (VP9 is free of patents)"""
    crf: int = Field(default(RenderConfig, "crf"), ge=0, le=51)
    """constant rate factor: lower = larger and better"""


class RenderBench(BenchConfig):
    """`bench render`."""

    subject: Literal["render"] = "render"
    """what is measured"""
    corpus: LengthConfig = LengthConfig()
    head: HeadConfig = HeadConfig()
    render: DrawnConfig = DrawnConfig()
    bench: RepeatedConfig = RepeatedConfig()


class MetricsWorkload(Section):
    speakers: int = Field(0, ge=0)
    """speakers of a REACT split that is really scored; its test split has 1612"""


class MetricsBench(BenchConfig):
    """`bench metrics`."""

    subject: Literal["metrics"] = "metrics"
    """what is measured"""
    bench: MetricsWorkload = MetricsWorkload()


class FlowBench(BenchConfig):
    """`bench flow`."""

    subject: Literal["flow"] = "flow"
    """what is measured"""
    bench: ThreadedConfig = ThreadedConfig()


class SessionsConfig(ThreadedConfig):
    windows: int = Field(200, ge=50)
    """of a live session, 320 ms each"""


class ReactFaceBench(BenchConfig):
    """`bench reactface`."""

    subject: Literal["reactface"] = "reactface"
    """what is measured"""
    bench: SessionsConfig = SessionsConfig()


class LiveWorkload(ThreadedConfig):
    sessions: list[int] = [1, 4, 16]
    """that share a step"""


class LiveBench(BenchConfig):
    """`bench live`."""

    subject: Literal["live"] = "live"
    """what is measured"""
    corpus: FilmedConfig = FilmedConfig()
    vla: SampledNetworkConfig = SampledNetworkConfig()
    bench: LiveWorkload = LiveWorkload()


class ServedConfig(Section):
    seconds: float = Field(30.0, ge=5)
    """that clients talk for; 900 is a soak"""
    sessions: int = Field(64, ge=1)
    """of a replica at most"""


class ServeBench(BenchConfig):
    """`bench serve`."""

    subject: Literal["serve"] = "serve"
    """what is measured"""
    bench: ServedConfig = ServedConfig()


# Subject -> its config. There is no choice of a policy; `TUNED` of a sweep has the same shape.
BENCHED: dict[str, dict[str, type[RecipeConfig]]] = {
    "rollout": {"": RolloutBench},
    "dpo": {"": DpoBench},
    "sync": {"": SyncBench},
    "render": {"": RenderBench},
    "metrics": {"": MetricsBench},
    "flow": {"": FlowBench},
    "reactface": {"": ReactFaceBench},
    "live": {"": LiveBench},
    "serve": {"": ServeBench},
}
