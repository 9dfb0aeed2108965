"""Search spaces: what people write is what is swept, and what cannot be swept is refused with the
way out.
"""

import pytest
import yaml

from rapport.pipeline.config import (
    ConfigError,
    DpoRecipeConfig,
    GdpoRecipeConfig,
    load_config,
    to_yaml,
)
from rapport.pipeline.run import main
from rapport.pipeline.search_space import (
    SpaceError,
    grid_points,
    parse_domain,
    rounded,
    trial_name,
)
from rapport.pipeline.tune_config import TuneDpoConfig, TuneGdpoConfig


@pytest.mark.parametrize(
    ("text", "kind", "values"),
    [
        ("uniform(0, 1.5)", "uniform", (0, 1.5)),
        (" loguniform(0.01,1) ", "loguniform", (0.01, 1)),
        ("randint(2, 9)", "randint", (2, 9)),
        ("choice(sigmoid, ipo)", "choice", ("sigmoid", "ipo")),
        ("grid(1, null, 5)", "grid", (1, None, 5)),
        ("choice(1e-4, 3e-4)", "choice", (1e-4, 3e-4)),
    ],
)
def test_a_domain_is_read(text, kind, values):
    domain = parse_domain("k", text)
    assert (domain.kind, domain.values) == (kind, values)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("normal(0, 1)", "expected one of uniform(LOW, HIGH)"),
        ("0.1", "expected one of"),
        ("", "expected one of"),
        ("uniform(1, 0)", "empty"),
        ("uniform(1, 1)", "empty"),
        ("loguniform(0, 1)", "LOW > 0"),
        ("uniform(1)", "two numbers"),
        ("uniform(a, b)", "two numbers"),
        ("randint(0.5, 2)", "two whole numbers"),
        ("choice()", "at least one value"),
        ("grid(1, 1)", "each once"),
        ("choice([1], [2])", "at least one value"),
        ("grid(1, [)", "cannot be read"),
    ],
)
def test_a_bad_domain_is_named_with_what_would_be_valid(text, part):
    with pytest.raises(SpaceError) as error:
        parse_domain("dpo.beta", text)
    assert f"tune.space.dpo.beta={text}" in str(error.value) and part in str(error.value)


def test_samplers_stay_within_their_domain():
    for text in ("uniform(1, 2)", "loguniform(1, 2)", "randint(1, 3)", "choice(1, 2)"):
        domain = parse_domain("k", text)
        drawn = [domain.sampler().sample() for _ in range(50)]
        assert all(1 <= value <= 2 for value in drawn) and len(set(drawn)) > 1


def test_a_grid_has_every_combination_and_names_tell_trials_apart():
    points = list(
        grid_points(
            {"a.x": parse_domain("a.x", "grid(1, 2)"), "b": parse_domain("b", "grid(u, v)")}
        )
    )
    assert points == [
        {"a.x": 1, "b": "u"},
        {"a.x": 1, "b": "v"},
        {"a.x": 2, "b": "u"},
        {"a.x": 2, "b": "v"},
    ]
    assert [trial_name(p) for p in points] == ["a.x=1,b=u", "a.x=1,b=v", "a.x=2,b=u", "a.x=2,b=v"]
    assert rounded({"x": 0.123456, "n": 7, "s": "ipo"}) == {"x": 0.1235, "n": 7, "s": "ipo"}
    assert trial_name({"x": 1e-5}) == trial_name({"x": 0.00001}) == "x=1e-05"


def load(*overrides, recipe=TuneDpoConfig, file=None):
    return load_config(recipe, file, list(overrides))


def test_the_command_line_names_any_key_and_replaces_the_default_space(tmp_path):
    config = load(
        "tune.search=random",
        "tune.space.dpo.beta=loguniform(0.01, 1)",
        "tune.space.dpo.loss=choice(ipo)",
    )
    assert list(config.tune.space) == ["dpo.beta", "dpo.loss"]
    file = tmp_path / "sweep.yaml"
    file.write_text(to_yaml(config))
    assert load(file=file) == config
    again = load("tune.space.dpo.beta=loguniform(1, 2)", file=file)
    assert again.tune.space == {"dpo.beta": "loguniform(1, 2)", "dpo.loss": "choice(ipo)"}


def test_default_spaces_are_eight_trials():
    for recipe in (TuneDpoConfig, TuneGdpoConfig):
        assert len(list(grid_points(recipe().tune.domains))) == 8


@pytest.mark.parametrize(
    ("recipe", "overrides", "parts"),
    [
        (TuneDpoConfig, ["tune.space.dpo.bata=grid(1)"], ["unknown key 'dpo.bata'", "dpo.beta"]),
        (TuneDpoConfig, ["tune.space.gdpo.sigma=grid(1)"], ["unknown key 'gdpo.sigma'"]),
        (TuneDpoConfig, ["tune.spaces.dpo.beta=grid(1)"], ["unknown key 'tune.spaces.dpo.beta'"]),
        (
            TuneDpoConfig,
            ["tune.space.dpo.beta=grid(1, -1)"],
            ["dpo.beta=grid(1, -1)", "refuses -1", "greater than 0"],
        ),
        (
            TuneDpoConfig,
            ["tune.space.dpo.batch_size=grid(8, 5)"],
            ["refuses 5", "learner.world_size=2"],
        ),
        (
            TuneDpoConfig,
            ["tune.space.dpo.rounds=grid(1, 2)"],
            ["dpo.rounds", "cannot differ between them"],
        ),
        (TuneDpoConfig, ["tune.space={}"], ["space is empty"]),
        (TuneDpoConfig, ["tune.space.dpo.beta=choice(1)"], ["tune.search=grid takes grid"]),
        (TuneDpoConfig, ["tune.search=optuna"], ["is for tune.search=grid"]),
        (TuneDpoConfig, ["tune.scheduler=asha"], ["tune.judgements must be 2 or more"]),
        (TuneDpoConfig, ["dpo.rounds=2"], ["dpo.rounds must be 1"]),
        (TuneGdpoConfig, ["tune.space.gdpo.group_size=grid(1, 4)"], ["refuses 1"]),
        *(
            (
                recipe,
                [f"tune.space.{key}=grid(1, 2)"],
                [key, "what trials share depends on it", "sweep for each value"],
            )
            for recipe, keys in (
                (
                    TuneDpoConfig,
                    (
                        "seed",
                        "sft.steps",
                        "corpus.train_clips",
                        "evaluation.prompts",
                        "rollout.samples",
                        "policy.layers",
                        "learner.world_size",
                    ),
                ),
                (TuneGdpoConfig, ("flow.steps", "vae.steps", "judge.windows")),
            )
            for key in keys
        ),
    ],
)
def test_what_cannot_be_swept_is_refused(recipe, overrides, parts):
    with pytest.raises(ConfigError) as error:
        load(*overrides, recipe=recipe)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_optuna_that_is_not_installed_is_an_error(monkeypatch):
    space = ["tune.search=optuna", "tune.space.dpo.beta=loguniform(0.01, 1)"]
    assert load(*space).tune.search == "optuna"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package optuna.*tune.search=random"):
        load(*space)


@pytest.mark.parametrize(
    ("sweep", "recipe", "given", "values"),
    [
        (
            TuneDpoConfig,
            DpoRecipeConfig,
            ["corpus.seconds=2"],
            {"dpo.beta": 0.3, "dpo.first_steps": None},
        ),
        (
            TuneGdpoConfig,
            GdpoRecipeConfig,
            ["corpus.seconds=2", "gdpo.iterations=40"],
            {"gdpo.sigma": 0.7, "groups.eyelid": 0.1},
        ),
    ],
)
def test_a_trial_is_a_config_of_the_recipe_and_best_yaml_reads_back(
    tmp_path, sweep, recipe, given, values
):
    config = load("corpus.seconds=2", recipe=sweep)
    trial = config.of_trial(values)
    assert type(trial) is recipe and trial.corpus.seconds == 2
    assert config.of_trial({}) == load_config(recipe, None, given)
    (tmp_path / "best.yaml").write_text(to_yaml(trial))
    assert load_config(recipe, tmp_path / "best.yaml", []) == trial
    overrides = [f"{k}={'' if v is None else v}" for k, v in values.items()]
    assert load_config(recipe, None, given + overrides) == trial


@pytest.mark.parametrize("subject", ["dpo", "gdpo"])
def test_each_subject_takes_its_own_keys(capsys, subject):
    assert main(["tune", subject, "--print-config", "tune.timeout_s=5"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (
        printed["subject"] == subject and subject in printed and printed["tune"]["timeout_s"] == 5
    )
    assert all(key.startswith(f"{subject}.") for key in printed["tune"]["space"])
