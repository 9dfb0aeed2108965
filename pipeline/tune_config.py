"""The config of `tune dpo` and `tune gdpo`: every key of the recipe that is swept, and the sweep."""

from __future__ import annotations

import importlib.util
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from rapport.pipeline.config import (
    CorpusConfig,
    DpoRecipeConfig,
    GdpoConfig,
    GdpoRecipeConfig,
    RecipeConfig,
    Section,
    flatten,
    near_keys,
    set_key,
)
from rapport.pipeline.search_space import FORMS, Domain, parse_domain


class TuneConfig(Section):
    space: dict[str, str] = Field(
        description="what is swept: tune.space.KEY=FORM, FORM one of " + "; ".join(FORMS.values())
    )
    search: Literal["grid", "random", "optuna"] = Field(
        "grid",
        description="grid = every combination of grid(...); random = independent draws; optuna = TPE",
    )
    trials: int = Field(
        8, ge=1, description="trials of random and optuna (a grid has one for every combination)"
    )
    scheduler: Literal["none", "asha"] = Field(
        "none",
        description="asha = trials that fall behind at a judgement end there (Li et al. 2020)",
    )
    judgements: int = Field(
        1,
        ge=1,
        description="times that a trial is judged, after equal parts of its steps; asha needs at least 2",
    )
    concurrent: int = Field(
        1, ge=1, description="trials that learn at once; they are judged one after the other"
    )
    metric: str = Field(description="which metric of the trials decides, by its name in tune.json")
    mode: Literal["min", "max"] = Field(description="whether a low or a high one is good")
    model: str | None = Field(
        description="registered MLflow model that gets the best policy; empty = none"
    )
    timeout_s: float = Field(
        3600,
        gt=0,
        description="deadline of a judgement, waiting for those of other trials included",
    )

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
                "tune.search=grid takes grid(A, B, ...) for every key, not "
                f"{key}={self.space[key]}; "
                "or tune.search=random"
            )
        if self.search != "grid" and grids:
            raise ValueError(
                f"{grids[0]}={self.space[grids[0]]} is for tune.search=grid; "
                f"tune.search={self.search} "
                "draws from choice(A, B, ...)"
            )
        if self.search == "optuna" and importlib.util.find_spec("optuna") is None:
            raise ValueError(
                "tune.search=optuna needs the package optuna: pip install --no-deps -r the lock "
                "file of "
                "infra/requirements, or tune.search=random"
            )
        return self

    @model_validator(mode="after")
    def _asha_compares_on_the_way(self) -> Self:
        if self.scheduler == "asha" and self.judgements < 2:
            raise ValueError(
                "tune.scheduler=asha compares trials on the way: tune.judgements must be 2 or more"
            )
        return self

    @property
    def domains(self) -> dict[str, Domain]:
        return {key: parse_domain(key, text) for key, text in self.space.items()}


class DpoTune(TuneConfig):
    space: dict[str, str] = Field(
        {"dpo.beta": "grid(0.03, 0.1, 0.3, 1, 3, 10, 30, 100)"},
        description=TuneConfig.model_fields["space"].description,
    )
    metric: str = Field(
        "simulated_rating", description=TuneConfig.model_fields["metric"].description
    )
    mode: Literal["min", "max"] = Field(
        "max", description=TuneConfig.model_fields["mode"].description
    )
    model: str | None = Field(
        "rapport-dpo", description=TuneConfig.model_fields["model"].description
    )


class GdpoTune(TuneConfig):
    space: dict[str, str] = Field(
        {"gdpo.sigma": "grid(0.25, 0.5, 0.75, 1.0)", "gdpo.group_size": "grid(4, 8)"},
        description=TuneConfig.model_fields["space"].description,
    )
    metric: str = Field("FDD", description=TuneConfig.model_fields["metric"].description)
    mode: Literal["min", "max"] = Field(
        "min", description=TuneConfig.model_fields["mode"].description
    )
    model: str | None = Field(
        "rapport-gdpo", description=TuneConfig.model_fields["model"].description
    )


class Sweep(RecipeConfig):
    """Half of a config, the other is a recipe's: keys that trials may differ in, and how they come
    into its config.
    """

    RECIPE: ClassVar[type[RecipeConfig]]
    SECTIONS: ClassVar[tuple[str, ...]]  # what a trial does by itself depends on these sections ...
    SHARED_KEYS: ClassVar[tuple[str, ...]] = ()  # ... these keys of them left out
    tune: TuneConfig

    @model_validator(mode="after")
    def _every_value_gives_a_config(self) -> Self:
        known = list(flatten(self.of_trial({}).model_dump()))
        for key, domain in self.tune.domains.items():
            if key not in known:
                raise ValueError(f"unknown key {key!r} in tune.space; {near_keys(key, known)}")
            if key.split(".")[0] not in self.SECTIONS or key in self.SHARED_KEYS:
                raise ValueError(
                    f"tune.space.{key}: what trials share depends on it (corpus, models before "
                    "alignment, candidates, "
                    "judges), so it cannot differ between them. Sweep keys of "
                    f"{', '.join(self.SECTIONS)}"
                    f"{f' except {self.SHARED_KEYS}' if self.SHARED_KEYS else ''}, and run a "
                    "sweep for each value of "
                    f"{key}"
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
        """The recipe's config with `values` in place; raises `ValidationError` where it refuses
        one.
        """
        plain = self.model_dump(include=set(self.RECIPE.model_fields))
        for key, value in values.items():
            set_key(plain, key, value)
        return self.RECIPE.model_validate(plain)


class TuneDpoConfig(DpoRecipeConfig, Sweep):
    RECIPE: ClassVar = DpoRecipeConfig
    SECTIONS: ClassVar = ("dpo",)
    SHARED_KEYS: ClassVar = ("dpo.rounds", "dpo.reference")
    subject: Literal["dpo"] = Field("dpo", description="the recipe whose keys are swept")
    tune: DpoTune = DpoTune()

    @model_validator(mode="after")
    def _one_round(self) -> Self:
        if self.dpo.rounds > 1:
            raise ValueError(
                "the trials of a sweep learn from the same candidates: dpo.rounds must be 1"
            )
        return self


class TuneGdpoConfig(GdpoRecipeConfig, Sweep):
    RECIPE: ClassVar = GdpoRecipeConfig
    SECTIONS: ClassVar = ("gdpo", "reward", "groups")
    subject: Literal["gdpo"] = Field("gdpo", description="the recipe whose keys are swept")
    # Enough to tell settings apart, and eight trials in 25 minutes on two cores.
    corpus: CorpusConfig = CorpusConfig(seconds=4.0, frames=0)
    gdpo: GdpoConfig = GdpoConfig(iterations=40)
    tune: GdpoTune = GdpoTune()


SUBJECTS = {"dpo": TuneDpoConfig, "gdpo": TuneGdpoConfig}
