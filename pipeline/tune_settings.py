"""What `tune dpo` and `tune gdpo` take: every key of the recipe that is swept, and the sweep."""

from __future__ import annotations

import importlib.util
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from rapport.actors.settings import EngineConfig, FleetConfig
from rapport.pipeline.config import RecipeConfig, flatten, near_keys, set_key
from rapport.pipeline.data.settings import CorpusConfig
from rapport.pipeline.objectives.settings import FlowGdpoConfig, FlowTraining
from rapport.pipeline.search_space import Domain, parse_domain
from rapport.pipeline.settings import (
    CONCLUDED,
    DRAWN,
    STAGE_ONE,
    DpoOfFlow,
    DpoOfReactFace,
    DpoOfVla,
    GdpoOfFlow,
    GdpoOfReactFace,
    GdpoOfVla,
    Judged,
    JudgedOfFlow,
    Preferences,
)
from rapport.pipeline.steps.settings import BootstrapConfig, EvaluationConfig
from rapport.settings import Section


class TuneConfig(Section):
    """A sweep: what is varied, how it is searched, what decides."""

    space: dict[str, str]
    """what is swept: tune.space.KEY=FORM, FORM one of uniform(LOW, HIGH); loguniform(LOW, HIGH),
    LOW > 0; randint(LOW, HIGH), HIGH left out; choice(A, B, ...); grid(A, B, ...)"""
    search: Literal["grid", "random", "optuna"] = "grid"
    """grid = every combination of grid(...); random = independent draws; optuna = TPE"""
    trials: int = Field(8, ge=1)
    """trials of random and optuna (a grid has one for every combination)"""
    scheduler: Literal["none", "asha"] = "none"
    """asha = trials that fall behind at a judgement end there (Li et al. 2020)"""
    judgements: int = Field(1, ge=1)
    """times that a trial is judged, after equal parts of its steps; asha needs at least 2"""
    concurrent: int = Field(1, ge=1)
    """trials that learn at once; they are judged one after the other"""
    metric: str
    """which metric of the trials decides, by its name in tune.json"""
    mode: Literal["min", "max"]
    """whether a low or a high one is good"""
    model: str | None
    """registered MLflow model that gets the best policy; empty = none"""
    timeout_s: float = Field(3600, gt=0)
    """deadline of a judgement, waiting for those of other trials included"""

    @field_validator("space", mode="before")
    @classmethod
    def _sections_may_be_nested(cls, space: Any) -> Any:
        return flatten(space) if isinstance(space, dict) else space

    @model_validator(mode="after")
    def _space_can_be_searched(self) -> Self:
        if not self.space:
            raise ValueError("the space is empty; for example tune.space.KEY='loguniform(0.01, 1)'")
        grids = [key for key, domain in self.domains.items() if domain.kind == "grid"]
        if self.search == "grid" and len(grids) < len(self.space):
            key = next(key for key in self.space if key not in grids)
            raise ValueError(
                f"tune.search=grid takes grid(A, B, ...) for every key, not {key}="
                f"{self.space[key]}; or tune.search=random"
            )
        if self.search != "grid" and grids:
            raise ValueError(
                f"{grids[0]}={self.space[grids[0]]} is for tune.search=grid; "
                f"tune.search={self.search} draws from choice(A, B, ...)"
            )
        if self.search == "optuna" and importlib.util.find_spec("optuna") is None:
            raise ValueError(
                "tune.search=optuna needs the package optuna: pip install --no-deps -r the lock "
                "file of infra/requirements, or tune.search=random"
            )
        return self

    @model_validator(mode="after")
    def _asha_compares_on_the_way(self) -> Self:
        if self.scheduler == "asha" and self.judgements < 2:
            raise ValueError(
                "tune.scheduler=asha compares trials on the way: tune.judgements must be 2 or more"
            )
        return self

    def moot(self) -> dict[str, tuple[str, ...]]:
        """A grid says itself how many trials it has."""
        if self.search == "grid":
            return {"tune.search=grid has a trial for every combination": ("trials",)}
        return {}

    @property
    def domains(self) -> dict[str, Domain]:
        """Swept key -> the values it may take."""
        return {key: parse_domain(key, text) for key, text in self.space.items()}


class Sweep(Judged):
    """What a sweep takes beside the keys of the recipe that it sweeps."""

    RECIPE: ClassVar[type[RecipeConfig]]
    # A trial may differ from the others in the keys of these sections ...
    SECTIONS: ClassVar[tuple[str, ...]]
    # ... but not in these, on which something depends that trials share.
    SHARED_KEYS: ClassVar[tuple[str, ...]] = ()
    # Must not get worse while `tune.metric` gets better; low is good.
    GUARD_METRIC: ClassVar[str]
    subject: Literal["dpo", "gdpo"]
    """the recipe whose keys are swept"""
    tune: TuneConfig

    def moot(self) -> dict[str, tuple[str, ...]]:
        """What a trial sets itself, and what a sweep does not show."""
        keys = super().moot() | {f"tune.space.{key} sweeps it": (key,) for key in self.tune.space}
        drawn = ("render.videos", *(f"render.{name}" for name in DRAWN))
        shown = ("evaluation.clips", "judge.clips", "curve", *CONCLUDED)
        return keys | {"a sweep draws no videos and compares numbers": (*drawn, *shown)}

    @property
    def judged_splits(self) -> set[str]:
        """Splits of the corpus on which a policy is judged."""
        return {self.evaluation.split}

    @model_validator(mode="after")
    def _the_test_split_is_not_seen(self) -> Self:
        if self.evaluation.split == "test":
            raise ValueError(
                "evaluation.split=test: a sweep chooses, and what was chosen on the test split "
                "cannot be reported on it. Leave it out, then judge the best on the test split: "
                "--config best.yaml"
            )
        return self

    @model_validator(mode="after")
    def _every_value_gives_a_config(self) -> Self:
        known = list(flatten(self.of_trial({}).model_dump()))
        for key, domain in self.tune.domains.items():
            if key not in known:
                raise ValueError(f"unknown key {key!r} in tune.space; {near_keys(key, known)}")
            if key.split(".")[0] not in self.SECTIONS or key in self.SHARED_KEYS:
                but = f" except {self.SHARED_KEYS}" if self.SHARED_KEYS else ""
                raise ValueError(
                    f"tune.space.{key}: what trials share depends on it (corpus, models before "
                    "alignment, candidates, judges), so it cannot differ between them. Sweep keys "
                    f"of {', '.join(self.SECTIONS)}{but}, and run a sweep for each value of {key}"
                )
            for value in domain.extremes:
                try:
                    self.of_trial({key: value})
                except ValidationError as error:
                    raise ValueError(
                        f"tune.space.{key}={self.tune.space[key]}: the recipe refuses {value!r}: "
                        f"{error.errors()[0]['msg']}"
                    ) from None
        return self

    def of_trial(self, values: dict[str, Any]) -> Any:
        """The recipe's config with `values` in place.

        Args:
            values: dotted key -> value.

        Raises:
            ValidationError: the recipe refuses a value.
        """
        plain = self.model_dump(include=set(self.RECIPE.model_fields))
        if plain.get("imitation") is not None:
            # An earlier run brings its own; the recipe takes no second one beside it.
            for name in STAGE_ONE:
                del plain[name]
        for key, value in values.items():
            set_key(plain, key, value)
        return self.RECIPE.model_validate(plain)


class SweptPreferences(Sweep, Preferences):
    """A sweep of `dpo`, whatever the policy."""

    SECTIONS = ("dpo",)
    SHARED_KEYS = ("dpo.rounds", "dpo.reference", "dpo.contrast", "dpo.contrast_of")
    GUARD_METRIC = "fd"
    subject: Literal["dpo"] = "dpo"
    """the recipe whose keys are swept"""

    @model_validator(mode="after")
    def _one_round(self) -> Self:
        if self.dpo.rounds > 1:
            raise ValueError(
                "the trials of a sweep learn from the same candidates: dpo.rounds must be 1"
            )
        if self.live:
            raise ValueError(
                "a sweep has no page for raters: give it what a run of `rate` has asked them, "
                "candidates=RUN ratings=RUN/ratings.csv"
            )
        return self


class SweptRewards(Sweep):
    """A sweep of `gdpo`, whatever the policy."""

    SECTIONS = ("gdpo", "reward", "groups")
    GUARD_METRIC = "MSE"
    subject: Literal["gdpo"] = "gdpo"
    """the recipe whose keys are swept"""

    def moot(self) -> dict[str, tuple[str, ...]]:
        """Nobody watches AR-Flow in a sweep of `gdpo`."""
        if not isinstance(self, JudgedOfFlow):
            return super().moot()
        return super().moot() | {"judged by how it moves alone": ("raters", "score")}


class TuneDpoOfVla(DpoOfVla, SweptPreferences):
    """`tune dpo`."""

    RECIPE = DpoOfVla
    evaluation: EvaluationConfig = EvaluationConfig(split="validation")
    tune: TuneConfig = TuneConfig(
        space={"dpo.beta": "grid(0.03, 0.1, 0.3, 1, 3, 10, 30, 100)"},
        metric="simulated_rating",
        mode="max",
        model="rapport-dpo",
    )


class TuneDpoOfFlow(DpoOfFlow, SweptPreferences):
    """`tune dpo policy=flow`."""

    RECIPE = DpoOfFlow
    evaluation: BootstrapConfig = BootstrapConfig(split="validation")
    tune: TuneConfig = TuneConfig(
        space={"dpo.beta": "grid(100, 300, 1000, 3000)", "dpo.learning_rate": "grid(1e-5, 3e-5)"},
        metric="simulated_rating",
        mode="max",
        model="rapport-dpo-flow",
    )


class TuneDpoOfReactFace(DpoOfReactFace, SweptPreferences):
    """`tune dpo policy=reactface`."""

    RECIPE = DpoOfReactFace
    evaluation: EvaluationConfig = EvaluationConfig(split="validation")
    tune: TuneConfig = TuneConfig(
        space={"dpo.beta": "grid(0.03, 0.1, 0.3, 1)", "dpo.learning_rate": "grid(3e-4, 1e-3)"},
        metric="simulated_rating",
        mode="max",
        model="rapport-dpo-reactface",
    )


class TuneGdpoOfFlow(GdpoOfFlow, SweptRewards):
    """`tune gdpo`. Enough to tell settings apart, and eight trials in 25 minutes on two cores."""

    RECIPE = GdpoOfFlow
    evaluation: BootstrapConfig = BootstrapConfig(split="validation")
    corpus: CorpusConfig = CorpusConfig(seconds=4.0, frames=0, train_clips=512)
    flow: FlowTraining = FlowTraining(steps=1000)
    gdpo: FlowGdpoConfig = FlowGdpoConfig(estimator="gdpo", iterations=40, learning_rate=3e-4)
    tune: TuneConfig = TuneConfig(
        space={"gdpo.sigma": "grid(0.25, 0.5, 0.75, 1.0)", "gdpo.group_size": "grid(4, 8)"},
        metric="likeness",
        mode="min",
        model="rapport-gdpo",
    )


class TuneGdpoOfVla(GdpoOfVla, SweptRewards):
    """`tune gdpo policy=vla`."""

    RECIPE = GdpoOfVla
    evaluation: EvaluationConfig = EvaluationConfig(split="validation")
    # Two fleets stand at once, a trial's and the one that policies are judged with, and find room
    # on two cores.
    rollout: EngineConfig = EngineConfig(cpus=0.2)
    tune: TuneConfig = TuneConfig(
        space={
            "gdpo.learning_rate": "grid(1e-4, 3e-4, 1e-3, 3e-3)",
            "gdpo.group_size": "grid(4, 8)",
        },
        metric="simulated_rating",
        mode="max",
        model="rapport-gdpo-vla",
    )


class TuneGdpoOfReactFace(GdpoOfReactFace, SweptRewards):
    """`tune gdpo policy=reactface`."""

    RECIPE = GdpoOfReactFace
    evaluation: EvaluationConfig = EvaluationConfig(split="validation")
    rollout: FleetConfig = FleetConfig(cpus=0.2)  # two fleets at once, as of the VLA
    tune: TuneConfig = TuneConfig(
        space={"gdpo.learning_rate": "grid(1e-4, 3e-4, 1e-3)", "gdpo.group_size": "grid(4, 8)"},
        metric="simulated_rating",
        mode="max",
        model="rapport-gdpo-reactface",
    )


# Algorithm -> policy -> config, the algorithm's own policy first.
TUNED: dict[str, dict[str, type[RecipeConfig]]] = {
    "dpo": {"vla": TuneDpoOfVla, "flow": TuneDpoOfFlow, "reactface": TuneDpoOfReactFace},
    "gdpo": {"flow": TuneGdpoOfFlow, "vla": TuneGdpoOfVla, "reactface": TuneGdpoOfReactFace},
}
