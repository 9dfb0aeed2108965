"""What each recipe takes: the sections of its components, put together.

A recipe has one config for each kind of policy. `OfVla`, `OfFlow`, `OfReactFace` and `OfOther` say
how a policy comes to be; the recipe's own half says what is done with it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from rapport.actors.settings import (
    CandidateEngineConfig,
    CandidateFleetConfig,
    CandidateFlowConfig,
    CandidateRenderConfig,
    ClusterConfig,
    EngineConfig,
    FleetConfig,
    LearnerConfig,
    RatersConfig,
    RenderConfig,
)
from rapport.pipeline.config import RecipeConfig
from rapport.pipeline.data.settings import By, CorpusConfig
from rapport.pipeline.objectives.settings import (
    DistilTraining,
    DpoConfig,
    FlowDpoConfig,
    FlowGdpoConfig,
    FlowTraining,
    GdpoConfig,
    ImitationConfig,
    PerceptionTraining,
    ReactFaceDpoConfig,
    ReactFaceTraining,
    SftConfig,
    VaeTraining,
    VlaDpoConfig,
    VlaGdpoConfig,
)
from rapport.pipeline.plan_settings import PlanConfig
from rapport.pipeline.rating.settings import RateSection
from rapport.pipeline.serve.settings import ServeSection
from rapport.pipeline.steps.settings import (
    BootstrapConfig,
    ComparisonConfig,
    CurveConfig,
    EvaluationConfig,
    HeldOutConfig,
    MovementConfig,
    SmoothSection,
    StudyConfig,
)
from rapport.policies.flow.settings import EncodersConfig, check_window
from rapport.policies.head.settings import HeadConfig
from rapport.policies.posnet_settings import PosNetTraining
from rapport.policies.vla.settings import VlaConfig
from rapport.rewards.ratings.scores import ScoreConfig
from rapport.rewards.settings import GroupWeightsConfig, RewardConfig
from rapport.settings import Section

DRAWN = ("size", "supersample", "codec", "crf")  # how a video is drawn
OF_PAIRS = ("score.rater_scales", "score.minimum_margin", "score.learnt")
CONCLUDED = ("judge.ablations", "judge.omegas", "judge.long_frames")  # said of two policies
# What answers held-out prompts, where answers are there already.
REACTED = (
    *(
        "pretraining",
        "vla",
        "sft",
        "imitate",
        "imitation",
        "roles",
        "encoders",
        "vae",
        "flow",
        "reactface",
    ),
    *("learner", "rollout", "judge", "evaluation.split", "evaluation.prompts"),
    *("evaluation.samples", "evaluation.clips"),
)
STAGE_ONE = ("corpus", "roles", "encoders", "vae", "flow")  # how AR-Flow is trained


def require_equal_shares(config: Learning, *sections: str, key: str = "batch_size") -> None:
    """Raise `ValueError` where a batch cannot be shared equally by the learners."""
    for section in sections:
        batch_size = getattr(getattr(config, section), key)
        if batch_size % config.learner.world_size:
            raise ValueError(
                f"{section}.{key}={batch_size} must be a multiple of "
                f"learner.world_size={config.learner.world_size}"
            )


def refuse_gradient_checkpointing(config: Learning) -> None:
    """Raise `ValueError` where a policy without blocks is told to compute them twice."""
    if config.learner.gradient_checkpointing:
        raise ValueError("learner.gradient_checkpointing is for policy=vla; leave it out")


def is_default(config: RecipeConfig, name: str) -> bool:
    """Whether a section or key was left as it is."""
    return bool(getattr(config, name) == type(config).model_fields[name].default)


class PrepareConfig(RecipeConfig):
    """`prepare`, and what all recipes take that read a corpus."""

    corpus: CorpusConfig = CorpusConfig()
    head: HeadConfig = HeadConfig()

    def moot(self) -> dict[str, tuple[str, ...]]:
        """`prepare` itself draws no numbers; what head is drawn, where none is."""
        keys = super().moot()
        if type(self) is PrepareConfig:
            keys["prepare draws nothing: corpus.seed"] = ("seed",)
        if self.corpus.kind not in ("dualtalk", "video") and not isinstance(
            self, Judged | Rated | RankConfig
        ):
            keys["no head is drawn here; corpus.kind=dualtalk and video need one"] = ("head",)
        return keys


class Learning(PrepareConfig):
    """What recipes take that train something."""

    policy: str
    """which policy: vla, flow, reactface, or module:Class of your own; each has keys of its own"""
    cluster: ClusterConfig = ClusterConfig()
    learner: LearnerConfig = LearnerConfig()

    @property
    def perception_clips(self) -> int:
        """Validation clips on which is asked what the policy perceives; 0 = it is not asked."""
        return 0


class Sampling(PrepareConfig):
    """What recipes take that sample reactions."""

    cluster: ClusterConfig = ClusterConfig()
    rollout: FleetConfig = FleetConfig()


# -- Policies --


class OfVla(Learning):
    """A VLA, imitating."""

    policy: Literal["vla"] = "vla"
    """which policy: vla, flow, reactface, or module:Class of your own; each has keys of its own"""
    vla: VlaConfig = VlaConfig()
    pretraining: PerceptionTraining = PerceptionTraining()
    sft: SftConfig = SftConfig()

    @property
    def perception_clips(self) -> int:
        """Validation clips on which is asked what the policy perceives; 0 = it is not asked."""
        return self.sft.perceived

    def moot(self) -> dict[str, tuple[str, ...]]:
        """Published encoders are trained already; so is a policy that is there."""
        keys = super().moot()
        every = tuple(f"pretraining.{name}" for name in PerceptionTraining.model_fields)
        if self.vla.size == "pretrained":
            keys["vla.size=pretrained has encoders that were trained"] = every
        if self.sft.checkpoint is not None:
            keys["sft.checkpoint brings its encoders"] = every
        return keys

    @model_validator(mode="after")
    def _sft_batches_can_be_shared(self) -> Self:
        require_equal_shares(self, "pretraining", "sft")
        return self


class OfFlow(Learning):
    """An AR-Flow, supervised. Its clips have the paper's 200 frames, and it sees no video."""

    corpus: CorpusConfig = CorpusConfig(seconds=8.0, frames=0, train_clips=1536)
    policy: Literal["flow"] = "flow"
    """which policy: vla, flow, reactface, or module:Class of your own; each has keys of its own"""
    imitation: Path | None = None
    """folder of a run of an AR-Flow whose corpus, encoded windows, motion VAE and supervised
    AR-Flow are used; empty = made anew"""
    aligned: bool = False
    """whether the policy that the run in `imitation` aligned is used, not its supervised one: to
    align it further, by people after `gdpo`, say"""
    learner: LearnerConfig = LearnerConfig(checkpoint_every=80)
    roles: Literal["both", "listener"] = "both"
    """whose motion is learnt: of both people of a clip, or of its listener (DualTalk's clips
    come once for each person already)"""
    encoders: EncodersConfig = EncodersConfig()
    vae: VaeTraining = VaeTraining()
    flow: FlowTraining = FlowTraining()

    @property
    def perception_clips(self) -> int:
        """Validation clips on which is asked what the policy perceives; 0 = it is not asked."""
        return self.flow.perceived

    @model_validator(mode="after")
    def _one_imitation(self) -> Self:
        given = [name for name in STAGE_ONE if not is_default(self, name)]
        if self.imitation is not None and given:
            raise ValueError(
                f"imitation=RUN_DIR brings its own {', '.join(STAGE_ONE)}: "
                f"leave {', '.join(given)} out"
            )
        if self.aligned and self.imitation is None:
            raise ValueError("aligned=true needs imitation=RUN_DIR, the run that aligned a policy")
        return self

    @model_validator(mode="after")
    def _nothing_is_computed_twice(self) -> Self:
        refuse_gradient_checkpointing(self)
        return self

    @model_validator(mode="after")
    def _stage_one_batches_can_be_shared(self) -> Self:
        require_equal_shares(self, "vae", "flow")
        return self


class OfReactFace(Learning):
    """A ReactFace, imitating. It sees no video unless told to."""

    corpus: CorpusConfig = CorpusConfig(frames=0)
    policy: Literal["reactface"] = "reactface"
    """which policy: vla, flow, reactface, or module:Class of your own; each has keys of its own"""
    # Its steps are many and small: two learners of one thread take half the time of one of two.
    learner: LearnerConfig = LearnerConfig(world_size=2, threads=1)
    reactface: ReactFaceTraining = ReactFaceTraining()

    @model_validator(mode="after")
    def _reactface_batches_can_be_shared(self) -> Self:
        require_equal_shares(self, "reactface")
        if self.reactface.listening:
            require_equal_shares(self, "reactface", key="heard")
        return self

    @model_validator(mode="after")
    def _pictures_are_there(self) -> Self:
        made_here = self.corpus.kind != "parquet"
        if self.reactface.sees == "frames" and made_here and not self.corpus.frames:
            raise ValueError(
                "reactface.sees=frames needs pictures: corpus.frames=5, so many a second"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_computed_twice(self) -> Self:
        refuse_gradient_checkpointing(self)
        return self


class OfOther(Learning):
    """A policy of your own, imitating by its likelihood."""

    policy: str
    """module:Class of a `rapport.policies.policy.Policy`"""
    imitate: ImitationConfig = ImitationConfig()

    @model_validator(mode="after")
    def _imitation_batches_can_be_shared(self) -> Self:
        require_equal_shares(self, "imitate")
        return self


# -- What is done with them --


class Judged(Learning, Sampling):
    """What recipes take that end in a table of held-out reactions."""

    render: RenderConfig = RenderConfig()
    score: ScoreConfig = ScoreConfig()
    raters: RatersConfig = RatersConfig()
    evaluation: BootstrapConfig = BootstrapConfig()

    @property
    def clips(self) -> int:
        """Held-out clips that videos are made of."""
        return 0

    @property
    def videos(self) -> int:
        """All that videos are made of."""
        return self.clips

    @property
    def judged_splits(self) -> set[str]:
        """Splits of the corpus on which a policy is judged."""
        return {self.evaluation.split}

    def moot(self) -> dict[str, tuple[str, ...]]:
        """How videos are drawn, where none are; how pairs are made, where none are."""
        keys = super().moot()
        if not self.videos:
            keys["no video is drawn"] = tuple(f"render.{name}" for name in DRAWN)
        if not isinstance(self, Preferences):
            keys["no pairs are made here"] = OF_PAIRS
        return keys


class JudgedOfVla(OfVla, Judged):
    """How a VLA is judged."""

    rollout: EngineConfig = EngineConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def clips(self) -> int:
        """Held-out clips that videos are made of."""
        return self.evaluation.clips


class JudgedOfFlow(OfFlow, Judged):
    """How an AR-Flow is judged."""

    judge: MovementConfig = MovementConfig()

    @property
    def clips(self) -> int:
        """Held-out clips that videos are made of."""
        return self.judge.clips


class JudgedOfReactFace(OfReactFace, Judged):
    """How a ReactFace is judged."""

    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def clips(self) -> int:
        """Held-out clips that videos are made of."""
        return self.evaluation.clips


class JudgedOfOther(OfOther, Judged):
    """How a policy of your own is judged."""

    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def clips(self) -> int:
        """Held-out clips that videos are made of."""
        return self.evaluation.clips


class Rated(Learning, Sampling):
    """What recipes take that offer candidates to be watched and rated."""

    render: CandidateRenderConfig = CandidateRenderConfig()
    rollout: CandidateFleetConfig = CandidateFleetConfig()


class RolloutOfVla(OfVla, Rated):
    """`rollout`."""

    rollout: CandidateEngineConfig = CandidateEngineConfig()


class RolloutOfFlow(OfFlow, Rated):
    """`rollout policy=flow`."""

    rollout: CandidateFlowConfig = CandidateFlowConfig()


class RolloutOfReactFace(OfReactFace, Rated):
    """`rollout policy=reactface`."""


class RolloutOfOther(OfOther, Rated):
    """`rollout policy=module:Class`."""


class Preferences(Judged, Rated):
    """What recipes take that align a policy with preferences."""

    ratings: Literal["live"] | Path | None = None
    """people's ratings of `candidates`, a sheet, a folder of them or that of a `rate` run; live =
    people are asked on a page (rate.*); empty = simulated raters"""
    candidates: Path | None = None
    """folder of a `rollout` run whose candidates (and policy) are used; needed with sheets in
    `ratings`; with ratings=live they are those of the first round"""
    rate: RateSection = RateSection()
    render: CandidateRenderConfig = CandidateRenderConfig()
    rollout: CandidateFleetConfig = CandidateFleetConfig()
    dpo: DpoConfig = DpoConfig()
    curve: CurveConfig = CurveConfig()

    @property
    def judged_splits(self) -> set[str]:
        """Splits of the corpus on which a policy is judged."""
        return super().judged_splits | ({"validation"} if self.curve.points else set())

    @property
    def videos(self) -> int:
        """All that videos are made of: held-out clips, and candidates."""
        return self.clips + self.render.videos

    @property
    def asks_raters(self) -> bool:
        """Whether anybody is asked for ratings that make pairs."""
        return self.dpo.contrast < 1

    @property
    def live(self) -> bool:
        """Whether people are asked on a page, while the run waits."""
        return self.ratings == "live"

    @property
    def sheets(self) -> Path | None:
        """What people wrote before the run."""
        return self.ratings if isinstance(self.ratings, Path) else None

    @property
    def learns_ratings(self) -> bool:
        """Whether a model rates what people had no time for."""
        graded = self.ratings is not None and not (self.live and self.rate.form == "pairs")
        return self.score.learnt and self.asks_raters and graded

    @property
    def samples_candidates(self) -> bool:
        """Whether pairs are made of anything that the policy samples."""
        return self.asks_raters or self.dpo.contrast_of == "sampled"

    def moot(self) -> dict[str, tuple[str, ...]]:
        """What candidates of an earlier run bring; what is asked of people, where nobody is."""
        keys = super().moot()
        if not self.asks_raters:
            keys["dpo.contrast=1 asks no rater for pairs"] = ("ratings", *OF_PAIRS)
        if not self.samples_candidates:
            keys["recorded listeners make all pairs"] = ("rollout.samples", "render.videos")
        if not self.live:
            keys["only ratings=live opens a page"] = ("rate",)
        elif self.rate.form == "pairs":
            keys["rate.form=pairs has no scale"] = ("score.rater_scales", "score.learnt")
        if self.ratings is None:
            keys["simulated raters have one scale"] = ("score.rater_scales",)
            keys["simulated raters rate everything"] = ("score.learnt",)
        if self.candidates is not None:
            # Adapters and frozen parts are of the training here.
            here = ("lora_rank", "freeze_vision")
            vla = tuple(f"vla.{name}" for name in VlaConfig.model_fields if name not in here)
            brought = ("corpus", "pretraining", "sft", "imitate", "reactface", *vla)
            keys["candidates=RUN_DIR brings its own corpus and policy"] = brought
        if self.candidates is not None and self.dpo.rounds == 1:
            asked = ("rollout.prompts", "rollout.samples", "rollout.evaluations", "render.videos")
            keys["candidates=RUN_DIR brings them"] = asked
        return keys

    @model_validator(mode="after")
    def _ratings_need_candidates(self) -> Self:
        if self.sheets is not None and self.candidates is None:
            raise ValueError(
                "ratings=FILE needs candidates=RUN_DIR, the rollout run that the ratings are about"
            )
        if self.candidates is not None and self.dpo.rounds > 1 and not self.live:
            raise ValueError(
                f"candidates=RUN_DIR is one round, dpo.rounds={self.dpo.rounds} must be 1"
            )
        return self

    @model_validator(mode="after")
    def _dpo_batches_can_be_shared(self) -> Self:
        require_equal_shares(self, "dpo")
        return self


class DpoOfVla(JudgedOfVla, Preferences):
    """`dpo`."""

    render: CandidateRenderConfig = CandidateRenderConfig()
    rollout: CandidateEngineConfig = CandidateEngineConfig()
    dpo: VlaDpoConfig = VlaDpoConfig()

    @model_validator(mode="after")
    def _adapters_train(self) -> Self:
        if self.dpo.train == "inputs" and self.vla.lora_rank:
            raise ValueError(
                "dpo.train=inputs would leave the adapters of vla.lora_rank untrained; "
                "dpo.train=all"
            )
        return self


class DpoOfFlow(JudgedOfFlow, Preferences):
    """`dpo policy=flow`."""

    render: CandidateRenderConfig = CandidateRenderConfig()
    rollout: CandidateFlowConfig = CandidateFlowConfig()
    dpo: FlowDpoConfig = FlowDpoConfig()

    def moot(self) -> dict[str, tuple[str, ...]]:
        """A window is answered once."""
        return super().moot() | {"AR-Flow answers a window once": ("curve.samples",)}

    @model_validator(mode="after")
    def _candidates_bring_their_policy(self) -> Self:
        given = [name for name in ("imitation", *STAGE_ONE) if not is_default(self, name)]
        if self.candidates is not None and given:
            raise ValueError(
                f"candidates=RUN_DIR brings its own policy and corpus: leave {', '.join(given)} out"
            )
        return self


class DpoOfReactFace(JudgedOfReactFace, Preferences):
    """`dpo policy=reactface`."""

    render: CandidateRenderConfig = CandidateRenderConfig()
    rollout: CandidateFleetConfig = CandidateFleetConfig()
    dpo: ReactFaceDpoConfig = ReactFaceDpoConfig()


class DpoOfOther(JudgedOfOther, Preferences):
    """`dpo policy=module:Class`."""

    render: CandidateRenderConfig = CandidateRenderConfig()
    rollout: CandidateFleetConfig = CandidateFleetConfig()


class Rewarded(Judged):
    """What recipes take that reward dynamics."""

    reward: RewardConfig = RewardConfig()
    groups: GroupWeightsConfig = GroupWeightsConfig()
    gdpo: GdpoConfig = GdpoConfig()

    @model_validator(mode="after")
    def _gdpo_batches_can_be_shared(self) -> Self:
        require_equal_shares(self, "gdpo")
        return self

    @model_validator(mode="after")
    def _checkpoints_between_iterations(self) -> Self:
        if self.learner.checkpoint_every % self.gdpo.sync_every:
            raise ValueError(
                f"learner.checkpoint_every={self.learner.checkpoint_every} must be a multiple of "
                f"gdpo.sync_every={self.gdpo.sync_every}: a learner restarts with a new rollout"
            )
        return self

    @model_validator(mode="after")
    def _something_is_rewarded(self) -> Self:
        if not any(self.groups.model_dump().values()):
            raise ValueError("groups: all weights are 0, so nothing is rewarded")
        return self


class GdpoOfFlow(JudgedOfFlow, Rewarded):
    """`gdpo`."""

    gdpo: FlowGdpoConfig = FlowGdpoConfig()

    @model_validator(mode="after")
    def _rollouts_can_be_drawn(self) -> Self:
        gdpo = self.gdpo
        if gdpo.estimator != "pathwise" and gdpo.rollouts == "window":
            check_window(self.judge.solver, self.judge.evaluations, gdpo.sigma, gdpo.noisy_steps)
        return self


class GdpoOfVla(JudgedOfVla, Rewarded):
    """`gdpo policy=vla`."""

    learner: LearnerConfig = LearnerConfig(checkpoint_every=8)
    gdpo: VlaGdpoConfig = VlaGdpoConfig()


class GdpoOfReactFace(JudgedOfReactFace, Rewarded):
    """`gdpo policy=reactface`."""

    learner: LearnerConfig = LearnerConfig(world_size=2, threads=1, checkpoint_every=8)


class GdpoOfOther(JudgedOfOther, Rewarded):
    """`gdpo policy=module:Class`."""

    learner: LearnerConfig = LearnerConfig(checkpoint_every=8)


class PreflightConfig(DpoOfVla):
    """`preflight`."""

    plan: PlanConfig = PlanConfig()

    def unheeded(self) -> dict[str, str]:
        """None: it is asked about other runs, and sizes them by all that it is told."""
        return {}


def _require_place(file: Path) -> None:
    """Raise `ValueError` unless a file can be written there, before hours are spent on it."""
    if os.path.isdir(file):
        raise ValueError(f"files.out={file} (--json) is a folder: name the file to write")
    parent = next(folder for folder in file.absolute().parents if os.path.exists(folder))
    if not os.path.isdir(parent) or not os.access(parent, os.W_OK):
        raise ValueError(f"files.out={file} (--json): nothing may be written to {parent}")


class FilesConfig(Section):
    pred: Path | None = None
    """predictions to score; empty = judge a policy. A file or a folder (docs/metrics.md)"""
    target: Path | None = None
    """recorded motion of the same clips"""
    partner: Path | None = None
    """motion of the person they listen to, for the metrics that need it"""
    neighbours: Path | None = None
    """matrix of appropriate reactions (REACT protocols)"""
    speech_mask: Path | None = None
    """who speaks in which frame (unils, gdpo_paper)"""
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
    ] = "lm_listener"
    """whose numbers to reproduce"""
    variant: Literal["reference", "corrected"] = "reference"
    """the published number bug for bug, or with the corrections of docs/metrics.md"""
    fps: float | None = Field(None, gt=0)
    """frames per second of plain arrays; empty = the protocol's own"""
    affect: Path | None = None
    """affect_estimator.npz of an earlier run, for L2 Affect (lm_listener, typed motion)"""
    out: Path | None = None
    """JSON to write; metrics.json in the run directory holds the same"""

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
        if self.out is not None:
            _require_place(self.out)
        return self


class Evaluated(Judged):
    """What `evaluate` takes beside a policy's own."""

    checkpoint: Path | None = None
    """policy checkpoint to judge; empty = train one and judge that"""
    reactions: Path | None = None
    """reactions.parquet of a run, or the run's folder: judged again, without a policy or engines"""
    ratings: Path | None = None
    """people's ratings of the results in `reactions`, a sheet or a folder of them; then
    `reactions` is the folder of the run that wrote the package (study.prompts)"""
    files: FilesConfig = FilesConfig()
    study: StudyConfig = StudyConfig()

    @property
    def videos(self) -> int:
        """All that videos are made of: held-out clips, and results for people."""
        return (0 if self.reactions is not None else self.clips) + self.study.prompts

    @property
    def judged_splits(self) -> set[str]:
        """Splits of the corpus on which a policy is judged; kept reactions say theirs."""
        return set() if self.reactions is not None else super().judged_splits

    def moot(self) -> dict[str, tuple[str, ...]]:
        """Files need no policy; a checkpoint is not trained, and one policy not compared."""
        keys = super().moot() | {"evaluate judges one policy": CONCLUDED}
        if self.files.pred is not None:
            read = {"files", "seed", "cluster", "tracking", "storage"}
            others = tuple(name for name in type(self).model_fields if name not in read)
            keys["files.pred (--pred) is scored, no policy"] = others
        elif self.reactions is None:
            of_files = ("files.protocol", "files.variant", "files.fps")
            keys["without files.pred (--pred) or reactions a policy is judged"] = of_files
        else:
            keys["reactions are there already"] = REACTED
            if self.reactions.is_dir():
                keys["reactions=RUN_DIR brings its own corpus"] = ("corpus",)
        if self.checkpoint is not None:
            # The corpus is encoded by a motion VAE of this size.
            vae = tuple(f"vae.{name}" for name in VaeTraining.model_fields if name != "size")
            # The judge computes where learners do.
            learner = tuple(
                f"learner.{name}" for name in LearnerConfig.model_fields if name != "gpus"
            )
            trained = ("pretraining", "vla", "sft", "imitate", "flow", "reactface", *vae, *learner)
            keys["checkpoint is trained already"] = trained
        return keys

    @model_validator(mode="after")
    def _reactions_stand_alone(self) -> Self:
        others = {"checkpoint": self.checkpoint, "files.pred": self.files.pred}
        given = [name for name, value in others.items() if value is not None]
        if self.reactions is not None and given:
            raise ValueError(
                f"reactions judges what was answered before: leave {given[0]} out, or reactions"
            )
        if self.ratings is not None and self.reactions is None:
            raise ValueError(
                "ratings=SHEETS needs reactions=RUN_DIR, the run whose package (study.prompts) was "
                "rated"
            )
        if self.ratings is not None and self.study.prompts:
            raise ValueError("ratings=SHEETS reads a package, study.prompts writes one: not both")
        if self.files.pred is not None and self.study.prompts:
            raise ValueError("files.pred are scored, nobody rates them: leave study.prompts out")
        return self

    @model_validator(mode="after")
    def _files_or_a_policy(self) -> Self:
        if self.files.pred is not None and self.checkpoint is not None:
            raise ValueError(
                "files.pred scores files, checkpoint judges a policy: give one of them"
            )
        return self


class EvaluateOfVla(JudgedOfVla, Evaluated):
    """`evaluate`."""


class EvaluateOfFlow(JudgedOfFlow, Evaluated):
    """`evaluate policy=flow`."""


class EvaluateOfReactFace(JudgedOfReactFace, Evaluated):
    """`evaluate policy=reactface`."""


class ReactFaceConfig(JudgedOfReactFace):
    """`reactface`. A speaker is answered ten times, as in its section 5.2."""

    evaluation: EvaluationConfig = EvaluationConfig(samples=10)


class EvaluateOfOther(JudgedOfOther, Evaluated):
    """`evaluate policy=module:Class`."""


class AblationConfig(Section):
    seeds: int = Field(3, ge=1)
    """runs from SFT on, with seeds counted up from `seed`"""


class Ablated(Preferences):
    """What `ablate` takes beside a policy's own."""

    ablation: AblationConfig = AblationConfig()

    @property
    def videos(self) -> int:
        """Of candidates alone."""
        return self.render.videos

    @property
    def judged_splits(self) -> set[str]:
        """Splits of the corpus on which a policy is judged."""
        return {self.evaluation.split}

    def moot(self) -> dict[str, tuple[str, ...]]:
        """What is said of two policies."""
        return super().moot() | {"ablate compares numbers": (*CONCLUDED, "judge.clips", "curve")}

    @model_validator(mode="after")
    def _one_round_of_its_own(self) -> Self:
        if self.candidates is not None or self.live or self.dpo.rounds > 1:
            raise ValueError(
                "ablate samples its own candidates, once: no `candidates`, no `ratings`, "
                "dpo.rounds=1"
            )
        return self


class AblateOfVla(DpoOfVla, Ablated):
    """`ablate`."""

    # It shows no clips, so it does not take their number.
    evaluation: ComparisonConfig = ComparisonConfig(  # type: ignore[assignment]
        split="validation"
    )


class AblateOfFlow(DpoOfFlow, Ablated):
    """`ablate policy=flow`."""

    evaluation: BootstrapConfig = BootstrapConfig(split="validation")

    @model_validator(mode="after")
    def _imitation_comes_first(self) -> Self:
        if self.aligned:
            raise ValueError("ablate holds variants against imitation alone: leave aligned out")
        return self


# A part of ReactFace that is not there, or who is imitated in its stead.
Variant = Literal[
    "L_div",
    "no L_div",
    "no momentum",
    "no moods",
    "no L_s",
    "no L_smo",
    "no SLBS",
    "no expectation",
    "nearest",
    "recorded",
    "random",
    "cover",
]


class PartsConfig(AblationConfig):
    variants: list[Variant] = Field(
        [name for name in get_args(Variant) if name != "random"], min_length=1
    )
    """which are held against the full one; each imitates anew"""


class AblateOfReactFace(JudgedOfReactFace):
    """`ablate policy=reactface`. A variant is not aligned, it imitates without a part."""

    ablation: PartsConfig = PartsConfig()
    # It shows no clips, so it does not take their number.
    evaluation: ComparisonConfig = ComparisonConfig(  # type: ignore[assignment]
        split="validation"
    )

    @property
    def clips(self) -> int:
        """None."""
        return 0

    def moot(self) -> dict[str, tuple[str, ...]]:
        """What draws."""
        drawn = tuple(f"render.{name}" for name in RenderConfig.model_fields)
        return super().moot() | {"ablate policy=reactface shows no clips": drawn}

    @model_validator(mode="after")
    def _reactions_can_be_compared(self) -> Self:
        if self.evaluation.samples < 2:
            raise ValueError(
                f"evaluation.samples={self.evaluation.samples}: how far reactions to one speaker "
                "are apart takes two or more"
            )
        return self


MotionFormat = Literal["npz", "parquet", "csv", "glb", "mp4"]


class ListenConfig(RecipeConfig):
    """`listen`."""

    seed: int = 0
    """of the first sample; the next ones have the numbers after it"""
    policy: Path | None = None
    """folder of a policy, or of a run: its aligned policy, else its imitating one; empty = the
    small AR-Flow that comes with the project, trained on synthetic people"""
    speaker: Path | None = None
    """whom it listens to: a film or a sound of any kind, or motion (`listener.npz`, Parquet of one
    clip, a track); needed"""
    audio: Path | None = None
    """the speaker's sound, where `speaker` is motion"""
    watch: bool = False
    """whether the speaker's face is read off a film, for a policy that perceives motion (AR-Flow,
    ReactFace); needs the extra `video`"""
    out: Path | None = None
    """folder of the files; empty = in the run directory"""
    formats: list[MotionFormat] = Field(["npz", "csv", "glb", "mp4"], min_length=1)
    """files to write: npz (values, layout), parquet (clip_id, motion), csv (ARKit's weights, as
    Live Link Face has them), glb (the head and its animation), mp4 (beside the speaker, with their
    sound)"""
    samples: int = Field(1, ge=1)
    """listeners, each with noise of its own"""
    text: str | None = None
    """what the listener is told to be like, where the policy takes a text (AR-Flow); empty =
    nothing"""
    lead: Literal[0, 4, 8, 12] | None = None
    """frames of a latent that AR-Flow hears before it moves; empty = 8"""
    smoother: Literal["none", "average", "inertialise"] | Path = "none"
    """what joins the frames of a step to those before: nothing, a moving average, inertialisation,
    or the PosNet that a `smooth` run left (its folder)"""
    head: HeadConfig = HeadConfig()
    size: int = Field(256, ge=64, multiple_of=2)
    """height of the mp4, pixels"""

    def moot(self) -> dict[str, tuple[str, ...]]:
        """What a head is asked for, where no file has one."""
        keys = super().moot()
        if not {"csv", "glb", "mp4"} & set(self.formats):
            keys["formats has no csv, glb or mp4"] = ("head",)
        if "mp4" not in self.formats:
            keys["formats has no mp4"] = ("size",)
        return keys

    @field_validator("formats", mode="before")
    @classmethod
    def _written_with_commas(cls, formats: Any) -> Any:
        return formats.split(",") if isinstance(formats, str) else formats

    @model_validator(mode="after")
    def _formats_differ(self) -> Self:
        if len(set(self.formats)) < len(self.formats):
            raise ValueError(f"formats={','.join(self.formats)} names one twice")
        return self


class SmoothConfig(PrepareConfig):
    """`smooth`."""

    # As long as a window of AR-Flow; no policy that needs pictures comes without a run.
    corpus: CorpusConfig = CorpusConfig(seconds=8.0, frames=0, train_clips=512)
    policy: Path | None = None
    """folder of a policy, or of a run: its aligned policy, else its imitating one, and its corpus;
    empty = the small AR-Flow that comes with the project"""
    smooth: SmoothSection = SmoothSection()
    posnet: PosNetTraining = PosNetTraining()

    def moot(self) -> dict[str, tuple[str, ...]]:
        """What a run brings."""
        keys = super().moot()
        if self.policy is not None and (self.policy / "summary.json").is_file():
            keys["policy=RUN_DIR brings its own corpus"] = ("corpus",)
        return keys


class ServeConfig(RecipeConfig):
    """`serve`."""

    serve: ServeSection = ServeSection()
    head: HeadConfig = HeadConfig()
    cluster: ClusterConfig = ClusterConfig()

    def moot(self) -> dict[str, tuple[str, ...]]:
        """Ray Serve looks after its replicas itself."""
        workers = {"serve has no such workers": ("cluster.preflight", "cluster.lost_workers")}
        return super().moot() | workers


class BridgeConfig(RecipeConfig):
    """`bridge`. The server's token, where it wants one, is in the environment: RAPPORT_TOKEN."""

    seed: int = 0
    """of the listener's noise"""
    server: str = "http://127.0.0.1:8000"
    """URL of a server (`rapport serve`)"""
    speaker: Path | None = None
    """whom it listens to: a film or a sound of any kind, or motion; - = sound from a pipe, int16
    little endian, 16 kHz, mono; needed"""
    audio: Path | None = None
    """the speaker's sound, where `speaker` is motion"""
    osc: str | None = None
    """HOST:PORT that gets /rapport/arkit/NAME; this, vmc or livelink is needed"""
    vmc: str | None = None
    """HOST:PORT of a program that takes VMC; 39539 is usual, 39540 for one that passes it on"""
    livelink: str | None = None
    """HOST:PORT of Unreal's Live Link Face; 11111 is usual"""
    name: str = Field("Rapport", min_length=1, max_length=64)
    """of the face among Live Link's subjects"""
    policy: str | None = None
    """which of the server's policies; empty = its first"""
    text: str | None = None
    """what the listener is told to be like, where the policy takes a text; empty = nothing"""
    lead: Literal[0, 4, 8, 12] | None = None
    """frames of a latent that AR-Flow hears before it moves; empty = as the server has it"""
    buffer_s: float = Field(0.1, ge=0, le=5)
    """by how much later than possible frames are sent, so that answers may take that long"""

    @property
    def addresses(self) -> dict[str, str]:
        """HOST:PORT of those that get packets, by the name of their key."""
        asked = {"osc": self.osc, "vmc": self.vmc, "livelink": self.livelink}
        return {name: address for name, address in asked.items() if address is not None}

    @field_validator("osc", "vmc", "livelink", mode="before")
    @classmethod
    def _port_alone_is_a_text(cls, address: Any) -> Any:
        return str(address) if isinstance(address, int) else address

    @field_validator("speaker", mode="before")
    @classmethod
    def _dash_is_a_pipe(cls, speaker: Any) -> Any:
        return "-" if speaker == [None] else speaker  # to YAML a dash is a list

    @model_validator(mode="after")
    def _places_have_ports(self) -> Self:
        for name, address in self.addresses.items():
            host, _, port = address.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise ValueError(f"{name}={address} is no HOST:PORT, such as 127.0.0.1:11111")
        return self


class DistilConfig(OfFlow):
    """`distil`. With `imitation`, the policy that its run ended with is the teacher."""

    distil: DistilTraining = DistilTraining()

    def moot(self) -> dict[str, tuple[str, ...]]:
        """The teacher is the best that a run has."""
        return super().moot() | {"distil takes the policy that a run ended with": ("aligned",)}

    @model_validator(mode="after")
    def _distil_batches_can_be_shared(self) -> Self:
        require_equal_shares(self, "distil")
        return self


class ExportConfig(RecipeConfig):
    """`export`."""

    seed: int = 0
    """of the sound by which the written step is held against PyTorch's"""
    policy: Path | None = None
    """folder of an AR-Flow, or of a run: its aligned policy, else its imitating one; empty = the
    small one that comes with the project, trained on synthetic people"""
    out: Path | None = None
    """folder to host; empty = in the run directory"""
    texts: list[str] = []
    """what visitors can tell the listener to be like, [happy, sad]; empty = nothing"""
    lead: Literal[0, 4, 8, 12] | None = None
    """frames of a latent that it hears before it moves; empty = 8"""
    evaluations: int | None = Field(None, ge=1)
    """of the velocity, for a latent: 4 are quicker than 10, and stiller; empty = the policy's own,
    which a distilled one was taught"""
    head: HeadConfig = HeadConfig()
    runtime: Path | None = None
    """folder of onnxruntime-web's files; empty = what `make web` fetched"""


class RateConfig(RecipeConfig):
    """`rate`."""

    candidates: Path | None = None
    """folder of a `rollout` run whose candidates are rated; needed"""
    rate: RateSection = RateSection()
    cluster: ClusterConfig = ClusterConfig()

    def moot(self) -> dict[str, tuple[str, ...]]:
        """The page stays until it is interrupted."""
        waits = ("rate.alpha", "rate.hours")
        return super().moot() | {"only dpo ratings=live waits for enough ratings": waits}


class RankSettings(HeldOutConfig):
    prompts: int = Field(96, ge=2)
    """held-out prompts (fewer if the corpus has fewer)"""
    samples: int = Field(2, ge=1)
    """reactions per prompt and method; all of them for ReactFace's metrics, the first for the
    others, as in the papers"""
    neighbours: By = "corpus"
    """whose reactions are appropriate, too, for ReactFace's FRCorr and FRDist: those that the
    corpus names, those to speakers alike, to any at random, or the recorded one alone"""
    dpo: Path | None = None
    """folder of a finished `dpo` run: SFT, SFT + DPO; empty = left out"""
    gdpo: Path | None = None
    """folder of a finished `gdpo` run: AR-Flow, GDPO; empty = left out"""
    sft: Path | None = None
    """folder of a finished `sft` or `reactface` run: its policy; empty = left out"""

    @property
    def of_runs(self) -> bool:
        """Whether policies of runs are ranked, too."""
        return any((self.dpo, self.gdpo, self.sft))


class RankConfig(Sampling):
    """`rank`."""

    rollout: EngineConfig = EngineConfig()
    rank: RankSettings = RankSettings()

    def moot(self) -> dict[str, tuple[str, ...]]:
        """Baselines are computed here."""
        if self.rank.of_runs:
            return super().moot()
        return super().moot() | {"without rank.dpo, gdpo or sft": ("rollout", "cluster")}

    @model_validator(mode="after")
    def _one_corpus(self) -> Self:
        if self.rank.of_runs and self.corpus != CorpusConfig():
            raise ValueError(
                "methods are ranked on the corpus of the runs in rank.dpo, gdpo and sft: leave "
                "corpus.* out, it is for ranking without a run"
            )
        return self
