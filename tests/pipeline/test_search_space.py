"""Search spaces: what people write is what is swept, and what cannot be swept is refused with the
way out.
"""

import pytest
import yaml

from rapport.pipeline.config import describe, load_config, to_yaml
from rapport.pipeline.run import main
from rapport.pipeline.search_space import (
    FORMS,
    SpaceError,
    grid_points,
    parse_domain,
    rounded,
    trial_name,
)
from rapport.pipeline.settings import DpoOfFlow, DpoOfVla, GdpoOfFlow, GdpoOfVla
from rapport.pipeline.tune_settings import (
    TUNED,
    TuneDpoOfFlow,
    TuneDpoOfVla,
    TuneGdpoOfFlow,
    TuneGdpoOfVla,
)
from rapport.settings import ConfigError


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


def load(*overrides, recipe=TuneDpoOfVla, file=None):
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
    for recipe in (TuneDpoOfVla, TuneDpoOfFlow, TuneGdpoOfFlow, TuneGdpoOfVla):
        assert len(list(grid_points(recipe().tune.domains))) == 8


@pytest.mark.parametrize(
    ("recipe", "overrides", "parts"),
    [
        (TuneDpoOfVla, ["tune.space.dpo.bata=grid(1)"], ["unknown key 'dpo.bata'", "dpo.beta"]),
        (TuneDpoOfVla, ["tune.space.gdpo.sigma=grid(1)"], ["unknown key 'gdpo.sigma'"]),
        (TuneDpoOfVla, ["tune.spaces.dpo.beta=grid(1)"], ["unknown key 'tune.spaces.dpo.beta'"]),
        (
            TuneDpoOfVla,
            ["tune.space.dpo.beta=grid(1, -1)"],
            ["dpo.beta=grid(1, -1)", "refuses -1", "greater than 0"],
        ),
        (
            TuneDpoOfVla,
            ["tune.space.dpo.batch_size=grid(8, 5)", "learner.world_size=2"],
            ["refuses 5", "learner.world_size=2"],
        ),
        (
            TuneDpoOfVla,
            ["tune.space.dpo.rounds=grid(1, 2)"],
            ["dpo.rounds", "cannot differ between them"],
        ),
        (TuneDpoOfVla, ["tune.space={}"], ["space is empty"]),
        (TuneDpoOfVla, ["tune.space.dpo.beta=choice(1)"], ["tune.search=grid takes grid"]),
        (TuneDpoOfVla, ["tune.search=optuna"], ["is for tune.search=grid"]),
        (TuneDpoOfVla, ["tune.scheduler=asha"], ["tune.judgements must be 2 or more"]),
        (TuneDpoOfVla, ["dpo.rounds=2"], ["dpo.rounds must be 1"]),
        (TuneGdpoOfFlow, ["tune.space.gdpo.group_size=grid(1, 4)"], ["refuses 1"]),
        *(
            (
                recipe,
                [f"tune.space.{key}=grid(1, 2)"],
                [key, "what trials share depends on it", "sweep for each value"],
            )
            for recipe, keys in (
                (
                    TuneDpoOfVla,
                    (
                        "seed",
                        "sft.steps",
                        "corpus.train_clips",
                        "evaluation.prompts",
                        "rollout.samples",
                        "vla.layers",
                        "learner.world_size",
                    ),
                ),
                (TuneGdpoOfFlow, ("flow.steps", "vae.steps", "judge.windows")),
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
            TuneDpoOfVla,
            DpoOfVla,
            ["corpus.seconds=2"],
            {"dpo.beta": 0.3, "dpo.first_steps": None},
        ),
        (
            TuneGdpoOfFlow,
            GdpoOfFlow,
            [
                "corpus.seconds=2",
                "corpus.train_clips=512",
                "flow.steps=1000",
                "gdpo.estimator=gdpo",
                "gdpo.iterations=40",
                "gdpo.learning_rate=3e-4",
            ],
            {"gdpo.sigma": 0.7, "groups.eyelid": 0.1},
        ),
        (
            TuneDpoOfFlow,
            DpoOfFlow,
            ["corpus.seconds=2"],
            {"dpo.beta": 300.0, "dpo.draws": 4},
        ),
        (
            TuneGdpoOfVla,
            GdpoOfVla,
            ["corpus.seconds=2", "rollout.cpus=0.2"],
            {"gdpo.truncation": 3.0, "reward.energy.fast": 2.0},
        ),
    ],
)
def test_a_trial_is_a_config_of_the_recipe_and_best_yaml_reads_back(
    tmp_path, sweep, recipe, given, values
):
    given = [*given, "evaluation.split=validation"]
    config = load("corpus.seconds=2", recipe=sweep)
    trial = config.of_trial(values)
    assert type(trial) is recipe and trial.corpus.seconds == 2
    assert config.of_trial({}) == load_config(recipe, None, given)
    (tmp_path / "best.yaml").write_text(to_yaml(trial))
    assert load_config(recipe, tmp_path / "best.yaml", []) == trial
    overrides = [f"{k}={'' if v is None else v}" for k, v in values.items()]
    assert load_config(recipe, None, given + overrides) == trial


def test_a_sweep_from_an_earlier_imitation_leaves_its_stage_one_alone(tmp_path):
    config = load(f"imitation={tmp_path}", recipe=TuneGdpoOfFlow)
    trial = config.of_trial({"gdpo.sigma": 0.25})
    assert (trial.imitation, trial.gdpo.sigma, trial.gdpo.iterations) == (tmp_path, 0.25, 40)
    (tmp_path / "best.yaml").write_text(to_yaml(trial))
    assert load_config(GdpoOfFlow, tmp_path / "best.yaml", []) == trial


@pytest.mark.parametrize(
    ("subject", "policy", "config_type"),
    [(subject, policy, kind) for subject, of in TUNED.items() for policy, kind in of.items()],
)
def test_each_algorithm_sweeps_each_policy(capsys, tmp_path, subject, policy, config_type):
    assert main(["tune", subject, f"policy={policy}", "--print-config"]) == 0
    file = tmp_path / "sweep.yaml"
    file.write_text(capsys.readouterr().out)
    config = load(recipe=config_type, file=file)
    assert config == config_type()
    assert (config.subject, config.policy) == (subject, policy)
    assert config_type.__name__.lower() == f"tune{subject}of{policy}"
    assert all(key.startswith(f"{subject}.") for key in config.tune.space)


@pytest.mark.parametrize("command", [["tune", "dpo"], ["tune", "gdpo"], ["ablate"]])
@pytest.mark.parametrize("policy", ["nobody", "module:Class"])
def test_an_unknown_policy_is_refused_with_those_there_are(capsys, command, policy):
    assert main([*command, f"policy={policy}", "--print-config"]) == 2
    said = capsys.readouterr().err
    assert f"policy={policy}" in said and "vla" in said and "flow" in said


def test_help_names_every_form_of_a_space():
    [meaning] = [row[3] for row in describe(TuneDpoOfVla) if row[0] == "tune.space"]
    assert all(form in meaning for form in FORMS.values())


@pytest.mark.parametrize("subject", ["dpo", "gdpo"])
def test_each_subject_takes_its_own_keys(capsys, subject):
    assert main(["tune", subject, "--print-config", "tune.timeout_s=5"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (
        printed["subject"] == subject and subject in printed and printed["tune"]["timeout_s"] == 5
    )
    assert all(key.startswith(f"{subject}.") for key in printed["tune"]["space"])
