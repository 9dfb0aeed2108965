"""The configuration: what is accepted, what is refused and how the refusal reads."""

from pathlib import Path

import pytest
import yaml

from rapport.pipeline import config as cfg
from rapport.pipeline import settings
from rapport.pipeline.config import describe, load_config
from rapport.pipeline.run import OTHER, RECIPES, config_of, main, say_unheeded
from rapport.pipeline.settings import DpoOfVla, GdpoOfFlow, PrepareConfig
from rapport.pipeline.steps.outcomes import reported
from rapport.pipeline.tune_settings import TUNED, TuneDpoOfVla
from rapport.rewards.settings import GroupWeightsConfig
from rapport.settings import ConfigError

SNAPSHOTS = Path(__file__).parent / "snapshots"
CONFIGS = Path(__file__).parents[2] / "configs"


def all_configs():
    """Command -> config of every recipe, subject and built-in policy."""
    for name, recipe in RECIPES.items():
        for subject, configs in (recipe.subjects or {"": recipe.configs}).items():
            for policy, config_type in configs.items():
                if policy != OTHER:
                    chosen = f"policy={policy}" if policy else ""
                    yield " ".join(filter(None, [name, subject, chosen])), config_type


TYPES = [config_type for _, config_type in all_configs()]
FIRST = {
    name: next(iter(recipe.configs_of(next(iter(recipe.subjects), None)).values()))
    for name, recipe in RECIPES.items()
}


def load(*overrides, recipe=DpoOfVla, file=None):
    return load_config(recipe, file, list(overrides))


@pytest.mark.parametrize("recipe", TYPES)
def test_every_key_has_a_type_and_a_meaning(recipe):
    rows = describe(recipe)
    assert len(rows) == len({key for key, *_ in rows}) and len(rows) >= 9
    assert all(kind and meaning for _, kind, _, meaning in rows), [
        r for r in rows if not (r[1] and r[3])
    ]


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_help_lists_every_key_with_type_default_and_meaning(recipe, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([recipe, "--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    for key, kind, default, meaning in describe(FIRST[recipe]):
        assert (
            f"{kind}, default {default or 'empty'}\n" in shown.partition(f"\n  {key} ")[2][:200]
        ), key
        assert meaning in shown


def test_types_and_defaults_are_written_for_people():
    rows = {key: (kind, default) for key, kind, default, _ in describe(DpoOfVla)}
    assert rows["learner.zero_stage"] == ("1|2|3", "2")
    assert rows["corpus.root"] == ("path or empty", "")
    assert rows["tracking.system_metrics"] == ("bool", "true")
    assert rows["dpo.beta"] == ("float", "0.1")


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("seed: 3\ndpo:\n  beta: 0.5\n  epochs: 7\n")
    config = load("dpo.beta=0.2", file=file)
    assert (config.seed, config.dpo.beta, config.dpo.epochs) == (3, 0.2, 7)
    assert config.dpo.batch_size == DpoOfVla().dpo.batch_size


@pytest.mark.parametrize("recipe", TYPES)
def test_a_key_set_to_its_default_changes_nothing_else(recipe):
    """Not the recipe's own defaults for other keys of the section either."""
    for key, kind, default, _ in describe(recipe):
        if kind != cfg.MAPPING:
            assert load(f"{key}={default}", recipe=recipe) == recipe(), key


def test_a_recipe_keeps_its_own_defaults_for_the_rest_of_a_section(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("corpus:\n  seed: 1\n")
    for config in (
        load("corpus.seed=1", recipe=GdpoOfFlow),
        load(recipe=GdpoOfFlow, file=file),
    ):
        assert (config.corpus.seed, config.corpus.seconds, config.corpus.frames) == (1, 8.0, 0)
    assert load("corpus.seconds=2", recipe=GdpoOfFlow).corpus.seconds == 2
    assert ("corpus.seconds", "float", "8.0") in [row[:3] for row in describe(GdpoOfFlow)]


def test_values_are_read_as_yaml():
    config = load(
        "corpus.root=/data/x",
        "corpus.kind=parquet",
        "learner.zero_stage=3",
        "sft.learning_rate=1e-4",
        "tracking.system_metrics=false",
        "vla.llama=",
        recipe=settings.RolloutOfVla,
    )
    assert str(config.corpus.root) == "/data/x" and config.learner.zero_stage == 3
    assert config.sft.learning_rate == 1e-4 and config.tracking.system_metrics is False
    assert config.vla.llama is None


def test_ablate_takes_no_videos_as_it_renders_none():
    with pytest.raises(ConfigError, match="unknown key 'evaluation.clips'"):
        load("evaluation.clips=0", recipe=settings.AblateOfVla)


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (settings.AblateOfVla, "ablate samples its own candidates"),
        (settings.AblateOfFlow, "ablate samples its own candidates"),
        (TuneDpoOfVla, "a sweep has no page for raters"),
    ],
)
def test_where_there_is_no_page_people_are_not_waited_for(recipe, says):
    """Simulated raters would answer in their stead."""
    with pytest.raises(ConfigError, match=says):
        load("ratings=live", recipe=recipe)


def test_a_reactface_computes_nothing_twice_and_shares_what_it_hears():
    three = ("learner.world_size=3", "reactface.batch_size=9", "dpo.batch_size=9")
    with pytest.raises(ConfigError, match="reactface.heard=64 must be a multiple"):
        load(*three, recipe=settings.DpoOfReactFace)
    load(*three, "reactface.listening=0", recipe=settings.DpoOfReactFace)
    with pytest.raises(ConfigError, match="gradient_checkpointing is for policy=vla"):
        load("learner.gradient_checkpointing=true", recipe=settings.DpoOfReactFace)


def test_given_candidates_are_one_round():
    with pytest.raises(
        ConfigError, match="candidates=RUN_DIR is one round, dpo.rounds=2 must be 1"
    ):
        load("candidates=runs/c", "dpo.rounds=2")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("dpo.bata=1", ["unknown key 'dpo.bata'", "dpo.beta", "command line"]),
        ("beta=1", ["unknown key 'beta'", "dpo.beta"]),
        ("corpus=1", ["unknown key 'corpus'"]),
        ("dpo.beta", ["'dpo.beta' is not key=value"]),
        ("dpo.beta=much", ["dpo.beta", "number", "'much'"]),
        ("dpo.beta=-1", ["dpo.beta", "greater than 0", "-1"]),
        ("dpo.beta=[1", ["dpo.beta", "YAML"]),
        ("learner.zero_stage=4", ["learner.zero_stage", "1, 2 or 3"]),
        ("seed=1.5", ["seed", "1.5"]),
        ("score.empathy=0.5", ["score", "sum to 1", "1.25"]),
        ("ratings=r.csv", ["ratings=FILE needs candidates=RUN_DIR"]),
        ("policy.lora_rank=4 dpo.train=inputs", ["dpo.train=all"]),
        (
            "sft.batch_size=7 learner.world_size=2",
            ["sft.batch_size=7 must be a multiple of learner.world_size=2"],
        ),
        (
            "dpo.batch_size=5 learner.world_size=2",
            ["dpo.batch_size=5 must be a multiple of learner.world_size=2"],
        ),
        ("policy.size=pretrained", ["vla.llama", "vla.dino", "vla.siglip"]),
    ],
)
def test_a_bad_override_is_named_with_the_way_out(override, parts):
    with pytest.raises(ConfigError) as error:
        load(*override.split())
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_pictures_that_are_to_be_seen_must_be_there(capsys):
    assert main(["sft", "policy=reactface", "reactface.sees=frames", "--print-config"]) == 2
    assert "corpus.frames=5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("dpo:\n  bata: 1\n", ["unknown key 'dpo.bata'", "dpo.beta", "c.yaml"]),
        ("dpo: [", ["c.yaml", "not YAML"]),
        ("- 1\n", ["c.yaml", "mapping"]),
        ("dpo: 3\n", ["unknown key 'dpo'"]),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, parts):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(file=file)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no config file .*nowhere.yaml"):
        load(file=tmp_path / "nowhere.yaml")


def test_a_config_written_as_yaml_reads_back_the_same(tmp_path):
    folder = ["corpus.kind=dualtalk", "corpus.root=/data/a folder"]
    config = load(*folder, "dpo.beta=0.3", "policy.action.expr_dims=7")
    for text in (cfg.to_yaml(config), cfg.commented_yaml(config)):
        file = tmp_path / "c.yaml"
        file.write_text(text)
        assert load(file=file) == config


FILES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_every_file_of_configs_is_a_recipe_and_a_size(file):
    recipe, size = file.stem.split("_")
    config = load_config(FIRST[recipe], file, [])
    assert size in ("tiny", "paper")
    if size == "tiny":
        assert config == FIRST[recipe](), (
            f"stale: python -m pipeline.run {recipe} --print-config writes it"
        )


def test_a_recipe_aligns_its_own_policy_or_the_one_named(capsys, tmp_path):
    def printed(*arguments):
        assert main([*arguments, "--print-config"]) == 0
        return yaml.safe_load(capsys.readouterr().out)

    assert printed("dpo") == printed("dpo", "policy=vla") and printed("gdpo") == printed(
        "gdpo", "policy=flow"
    )
    flow, vla = (
        printed("dpo", "policy=flow", "dpo.beta=7"),
        printed("gdpo", "policy=vla", "policy.hidden=64"),
    )
    assert flow["policy"] == "flow" and flow["dpo"]["beta"] == 7 and "score" in flow
    assert vla["vla"]["hidden"] == 64 and "truncation" in vla["gdpo"] and "reward" in vla
    for recipe, values in (("dpo", flow), ("gdpo", vla)):  # what a run has kept says which it was
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
        assert printed(recipe, "--config", str(tmp_path / "config.yaml")) == values
    assert main(["gdpo", "policy=gan", "--print-config"]) == 2
    assert "policy=gan: gdpo takes flow or vla" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("policy: 3")
    assert main(["gdpo", "--config", str(tmp_path / "config.yaml"), "--print-config"]) == 2
    assert "config.yaml: policy is a name, and not 3" in capsys.readouterr().err


def test_an_unknown_key_ends_with_code_2_and_a_message(capsys, tmp_path):
    assert main(["prepare", "corpus.train_clip=3", "--run-dir", str(tmp_path / "run")]) == 2
    assert "corpus.train_clips" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "invalid choice"),
        (["prepare", "--fast"], "--fast"),
        (["prepare", "--resume"], "--run-dir"),
        ([], ""),
    ],
)
def test_bad_usage_ends_with_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2 and message in capsys.readouterr().err


def test_keys_may_stand_before_and_after_options(capsys):
    assert main(["sft", "corpus.seed=4", "--print-config", "seed=5"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["seed"] == 5 and printed["corpus"]["seed"] == 4


def test_configs_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        PrepareConfig().seed = 1


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("gdpo.sync_every=7", ["learner.checkpoint_every=80", "gdpo.sync_every=7"]),
        ("gdpo.batch_size=3 learner.world_size=2", ["gdpo.batch_size=3", "learner.world_size=2"]),
        ("vae.batch_size=5 learner.world_size=2", ["vae.batch_size=5", "learner.world_size=2"]),
        ("gdpo.group_size=1", ["gdpo.group_size", "greater than or equal to 2"]),
        ("gdpo.sigme=1", ["unknown key 'gdpo.sigme'", "gdpo.sigma"]),
    ],
)
def test_gdpo_refuses_what_cannot_work(override, parts):
    with pytest.raises(ConfigError) as error:
        load(*override.split(), recipe=GdpoOfFlow)
    assert all(part in str(error.value) for part in parts)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "gdpo.estimator=gdpo gdpo.sigma=1.5",
            "sigma is 1.5; it is the share of the remaining noise",
        ),
        (
            "gdpo.estimator=gdpo gdpo.noisy_steps=5",
            "5 noisy steps of 5: at least 1, and the last one has none",
        ),
        ("judge.evaluations=5", "5 evaluations make no whole denoise steps of the midpoint rule"),
    ],
)
def test_rollouts_that_cannot_be_drawn_are_refused_before_anything_starts(override, says):
    with pytest.raises(ConfigError, match=says):
        load_config(GdpoOfFlow, None, override.split())


def test_gdpo_needs_something_to_reward():
    nothing = [f"groups.{name}=0" for name in GroupWeightsConfig.model_fields]
    with pytest.raises(ConfigError, match="groups: all weights are 0, so nothing is rewarded"):
        load(*nothing, recipe=GdpoOfFlow)


@pytest.mark.parametrize(("command", "recipe"), list(all_configs()))
def test_printed_configs_are_those_of_the_snapshots(command, recipe):
    """Keys, defaults and meanings change on purpose only: tests/pipeline/snapshots has them."""
    file = SNAPSHOTS / f"{command.replace(' policy=', '-').replace(' ', '-')}.yaml"
    assert cfg.commented_yaml(recipe()) == file.read_text(), (
        f"rapport {command} --print-config > {file}"
    )


CHOOSING = {"ablate", "tune"}


@pytest.mark.parametrize(("command", "recipe"), list(all_configs()))
def test_what_is_chosen_is_judged_on_validation_and_what_is_reported_on_test(command, recipe):
    if not issubclass(recipe, settings.Judged):
        return
    chooses = command.split()[0] in CHOOSING
    assert recipe().evaluation.split == ("validation" if chooses else "test")
    assert recipe().judged_splits >= {recipe().evaluation.split}


@pytest.mark.parametrize("subject", ["dpo", "dpo policy=flow", "gdpo", "gdpo policy=vla"])
def test_a_sweep_cannot_see_the_test_split(subject, capsys):
    assert main(["tune", *subject.split(), "evaluation.split=test", "--print-config"]) == 2
    refused = capsys.readouterr().err
    assert "a sweep chooses" in refused and "--config best.yaml" in refused


def test_the_best_of_a_sweep_is_reported_on_the_test_split():
    sweep = TUNED["dpo"]["vla"]()
    assert sweep.of_trial({"dpo.beta": 3.0}).evaluation.split == "validation"
    best = reported(sweep.of_trial({"dpo.beta": 3.0}))
    assert (best.evaluation.split, best.dpo.beta) == ("test", 3.0)


def test_pairs_that_trials_share_cannot_be_swept(capsys):
    assert main(["tune", "dpo", "tune.space.dpo.contrast=grid(0, 0.5)", "--print-config"]) == 2
    assert "what trials share depends on it" in capsys.readouterr().err


def test_sections_of_earlier_versions_are_still_read(tmp_path):
    """`policy` was the section of the VLA's sizes; it now says which policy there is."""
    file = tmp_path / "c.yaml"
    file.write_text("policy:\n  hidden: 64\n  action:\n    bins: 128\n")
    config = load(file=file)
    assert (config.policy, config.vla.hidden, config.vla.action.bins) == ("vla", 64, 128)
    assert load("policy.layers=2").vla.layers == 2


def test_a_policy_of_ones_own_has_keys_too(capsys):
    assert main(["gdpo", "policy=my.listeners:Quiet", "--print-config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["policy"] == "my.listeners:Quiet" and printed["imitate"]["steps"] == 240
    assert main(["dpo", "policy=my.listeners:Quiet", "sft.steps=1", "--print-config"]) == 2
    assert "unknown key 'sft.steps'" in capsys.readouterr().err


def prompts_at_once(config) -> int:
    """How many engines are asked for before anything else happens, at least."""
    if isinstance(config, settings.Rewarded):
        return config.gdpo.sync_every * config.gdpo.batch_size
    return min(config.rollout.prompts, config.evaluation.prompts)


@pytest.mark.parametrize("name", ["dpo_paper", "gdpo_paper"])
def test_the_sizes_of_the_papers_give_every_engine_work(name):
    file = CONFIGS / f"{name}.yaml"
    config = load_config(FIRST[name.partition("_")[0]], file, [])
    batches = -(-prompts_at_once(config) // config.rollout.batch_prompts)
    assert batches >= config.rollout.workers


# -- Keys that a run does not heed --

MOOT = {
    "rate.port=8009": "dpo",
    "rate.raters=3": "rate rate.recruit=prolific rate.completion_code=C",
    "rate.completion_code=C": "rate",
    "rate.hours=3": "rate",
    "aligned=true": "distil imitation=x",
    "reactface.neighbours=5": "sft policy=reactface reactface.assign=recorded",
    "reactface.diversity=2": "reactface",
    "reactface.heard=8": "reactface reactface.listening=0",
    "reactface.diversity_scale=2": "reactface reactface.spread=paper reactface.diversity=0",
    "reactface.span=3": "dpo policy=reactface candidates=x",
    "reactface.momentum=0.5": "evaluate policy=reactface checkpoint=x",
    "corpus.stride=2": "dpo",
    "corpus.root=there": "prepare",
    "corpus.train_clips=5": "sft corpus.kind=dualtalk corpus.root=x",
    "corpus.frames=3": "sft corpus.kind=lm_listener corpus.root=x",
    "corpus.seed=2": "sft corpus.kind=parquet corpus.root=x",
    "corpus.seconds=2": "dpo candidates=x",
    "vla.hidden=64": "dpo candidates=x",
    "sft.steps=5": "dpo candidates=x",
    "rollout.samples=3": "dpo policy=flow candidates=x",
    "seed=3": "prepare",
    "vla.layers=3": "sft vla.size=pretrained vla.llama=a vla.dino=b vla.siglip=c",
    "vla.llama=a": "sft",
    "vla.action.rate=4": "evaluate checkpoint=x",
    "pretraining.steps=7": "evaluate checkpoint=x",
    "cluster.lost_workers=9": "serve",
    "vae.steps=5": "evaluate policy=flow checkpoint=x",
    "learner.world_size=2": "evaluate checkpoint=x",
    "rollout.workers=3": "evaluate --pred a --target b",
    "files.protocol=dim": "evaluate",
    "rollout.samples=2": "dpo dpo.contrast=1",
    "score.minimum_margin=0.2": "dpo dpo.contrast=1",
    "dpo.contrast_of=sampled": "dpo dpo.contrast=0",
    "curve.prompts=8": "dpo curve.points=0",
    "curve.points=4": "ablate",
    "study.forms=3": "evaluate",
    "sft.steps=3": "evaluate reactions=x",
    "evaluation.prompts=9": "evaluate reactions=x",
    "evaluation.clips=2": "evaluate reactions=x",
    "rollout.kv_cache_gib=1": "rollout rollout.engine=hf",
    "rollout.batch_prompts=2": "rank",
    "head.topology=flame2020": "dpo",
    "sft.window_steps=2": "sft sft.window_share=0",
    "sft.lambda_exp=2": "sft sft.checkpoint=x",
    "dpo.label_smoothing=0.2": "dpo",
    "dpo.reference=previous": "dpo policy=flow",
    "score.rater_scales=false": "dpo",
    "score.minimum_margin=0.1": "gdpo",
    "score.learnt=true": "dpo",
    "render.crf=20": "dpo evaluation.clips=0 render.videos=0",
    "render.size=128": "tune gdpo",
    "size=128": "listen formats=npz",
    "judge.omegas=[2.0]": "evaluate policy=flow",
    "judge.clips=2": "ablate policy=flow",
    "tune.trials=2": "tune dpo",
    "dpo.beta=4": "tune dpo",
    "gdpo.sigma=0.4": "tune gdpo",
    "raters.count=3": "tune gdpo",
}


@pytest.mark.parametrize("moot", MOOT)
def test_a_key_that_would_do_nothing_is_refused(moot, capsys):
    command = MOOT[moot].split()
    assert main([*command, "--print-config"]) == 0, "without it"
    capsys.readouterr()
    assert main([*command, moot, "--print-config"]) == 2
    refused = capsys.readouterr().err
    assert f"{moot.partition('=')[0]} would not be heeded: " in refused and refused.count("\n") == 1


@pytest.mark.parametrize(
    "heeded",
    [
        "sft corpus.kind=dualtalk corpus.root=x corpus.stride=2",
        "sft corpus.kind=parquet corpus.root=x corpus.seconds=2",
        "dpo candidates=x vla.lora_rank=2 dpo.train=all",
        "dpo candidates=x ratings=y score.rater_scales=false raters.count=3",
        "dpo ratings=live dpo.rounds=2 candidates=x rollout.prompts=3 rate.hours=2 rate.alpha=0.5",
        "dpo ratings=live rate.hours=2 score.learnt=true",
        "rate candidates=x rate.form=pairs rate.recruit=prolific rate.completion_code=C",
        "dpo dpo.loss=robust dpo.label_smoothing=0.2",
        "dpo dpo.rounds=2 dpo.reference=previous",
        "dpo dpo.contrast=1 dpo.contrast_of=sampled rollout.samples=2",
        "dpo dpo.contrast=0.5 score.minimum_margin=0.1",
        "evaluate reactions=x files.protocol=dim files.variant=corrected raters.count=3",
        "evaluate reactions=x corpus.kind=parquet corpus.root=y",
        "evaluate study.prompts=8 study.methods=[policy,x]",
        "tune dpo evaluation.prompts=9",
        "dpo render.videos=0 render.crf=20",
        "evaluate policy=flow checkpoint=x vae.size=paper learner.gpus=1",
        "tune dpo tune.search=random tune.trials=2 tune.space.dpo.beta=uniform(1,2)",
        "tune dpo dpo.learning_rate=1e-4",
        "tune gdpo policy=vla raters.count=3",
        "rank rank.dpo=x rollout.workers=1",
        "preflight corpus.kind=dualtalk corpus.frames=3",
        "sft policy=reactface reactface.assign=nearest reactface.neighbours=5",
        "sft policy=reactface reactface.sees=frames corpus.frames=5 corpus.image_size=40",
        "sft policy=reactface reactface.sees=frames corpus.kind=parquet corpus.root=y",
        "reactface reactface.spread=paper reactface.diversity=2 reactface.diversity_scale=2",
    ],
)
def test_a_key_that_does_something_is_taken(heeded, capsys):
    assert main([*heeded.split(), "--print-config"]) == 0


def test_a_file_may_serve_several_runs_and_what_is_not_heeded_of_it_is_said(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text("corpus:\n  seconds: 2.0\n  train_clips: 1536\nsft:\n  steps: 5\n")
    assert load(file=file).unheeded() == {}
    config = load("candidates=x", file=file)
    assert set(config.unheeded()) == {"corpus.seconds", "sft.steps"}, "train_clips has its default"
    say_unheeded(config)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and said[0].startswith("corpus.seconds is not heeded: candidates=RUN_DIR")


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_files_that_come_with_the_project_are_heeded_as_a_whole(file):
    config_type = config_of(file.stem.partition("_")[0], None, file, [])
    assert load_config(config_type, file, []).unheeded() == {}


@pytest.mark.parametrize("recipe", TYPES)
def test_what_is_moot_names_keys(recipe):
    """Of this recipe or of a sibling: what they share says so once for all of them."""
    known = {key for kind in TYPES for key, *_ in describe(kind)} | {"imitate"}
    for key, why in cfg._moot_keys(recipe()):
        assert why and any(f"{name}.".startswith(f"{key}.") for name in known), key
