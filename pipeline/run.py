"""The command line: `rapport RECIPE [key=value ...] [--config FILE] [--run-dir DIR] [--resume]`."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # before the imports, which take a second that may be interrupted
    from rapport.__main__ import main as rapport

    sys.exit(rapport())

import argparse
import errno
import importlib
import itertools
import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from rapport import interrupts, log
from rapport.pipeline import config as cfg
from rapport.pipeline import settings
from rapport.pipeline.bench_settings import BENCHED
from rapport.pipeline.config import RecipeConfig
from rapport.pipeline.explained import explained_errors
from rapport.pipeline.storage import Mirror, StorageError
from rapport.pipeline.tune_settings import TUNED
from rapport.settings import ConfigError

OTHER = "module:Class"  # stands for any policy of one's own
Configs = dict[str, type[RecipeConfig]]


@dataclass(frozen=True)
class Recipe:
    """A command.

    Args:
        summary: what it does, in a line.
        configs: what it takes, by kind of policy, its own first; "" where there is no choice.
        subjects: the same for each subject that it may be about, where it has one.
    """

    summary: str
    configs: Configs = field(default_factory=dict)
    subjects: dict[str, Configs] = field(default_factory=dict)

    def configs_of(self, subject: str | None) -> Configs:
        """What it takes about a subject; None where it has none."""
        return self.configs if subject is None else self.subjects[subject]


RECIPES = {
    "prepare": Recipe(
        "read or generate a corpus and store it as Parquet clips", {"": settings.PrepareConfig}
    ),
    "sft": Recipe(
        "train a policy to imitate listeners",
        {
            "vla": settings.OfVla,
            "flow": settings.OfFlow,
            "reactface": settings.OfReactFace,
            OTHER: settings.OfOther,
        },
    ),
    "rollout": Recipe(
        "generate and render candidate reactions for people to rate",
        {
            "vla": settings.RolloutOfVla,
            "flow": settings.RolloutOfFlow,
            "reactface": settings.RolloutOfReactFace,
            OTHER: settings.RolloutOfOther,
        },
    ),
    "dpo": Recipe(
        "the main job: imitate, roll out, rate, pair, align with DPO, judge",
        {
            "vla": settings.DpoOfVla,
            "flow": settings.DpoOfFlow,
            "reactface": settings.DpoOfReactFace,
            OTHER: settings.DpoOfOther,
        },
    ),
    "gdpo": Recipe(
        "align with automatic rewards of how a listener moves, by FLAME group; judge",
        {
            "flow": settings.GdpoOfFlow,
            "vla": settings.GdpoOfVla,
            "reactface": settings.GdpoOfReactFace,
            OTHER: settings.GdpoOfOther,
        },
    ),
    "reactface": Recipe(
        "train a ReactFace and judge ten of its reactions to each speaker",
        {"": settings.ReactFaceConfig},
    ),
    "ablate": Recipe(
        "what makes the difference, over several seeds: labels and loss (Table IV), or a part",
        {
            "vla": settings.AblateOfVla,
            "flow": settings.AblateOfFlow,
            "reactface": settings.AblateOfReactFace,
        },
    ),
    "tune": Recipe(
        "sweep keys of dpo or gdpo",
        subjects=TUNED,
    ),
    "preflight": Recipe(
        "check whether the main job would get through on this cluster, or plan one",
        {"": settings.PreflightConfig},
    ),
    "evaluate": Recipe(
        "judge a policy and the baselines on held-out clips, or score files (--pred)",
        {
            "vla": settings.EvaluateOfVla,
            "flow": settings.EvaluateOfFlow,
            "reactface": settings.EvaluateOfReactFace,
            OTHER: settings.EvaluateOfOther,
        },
    ),
    "listen": Recipe("let a policy listen to a recording of your own", {"": settings.ListenConfig}),
    "rate": Recipe(
        "let people rate the candidates of a rollout on a page", {"": settings.RateConfig}
    ),
    "serve": Recipe(
        "talk to listeners on a page, or through an endpoint", {"": settings.ServeConfig}
    ),
    "bridge": Recipe(
        "let a server's listener hear a recording or a microphone, and send its face to Unreal, "
        "VMC or OSC",
        {"": settings.BridgeConfig},
    ),
    "distil": Recipe(
        "teach an AR-Flow to answer in a fifth of the time", {"": settings.DistilConfig}
    ),
    "smooth": Recipe(
        "hold smoothers of a policy's windows side by side: none, average, inertialisation, PosNet",
        {"": settings.SmoothConfig},
    ),
    "export": Recipe(
        "write a folder to host: an AR-Flow that listens in its visitors' browsers",
        {"": settings.ExportConfig},
    ),
    "rank": Recipe(
        "rank methods by every published protocol, reference against corrected",
        {"": settings.RankConfig},
    ),
    "bench": Recipe(
        f"measure speed beside a baseline: {', '.join(BENCHED)}",
        subjects=BENCHED,
    ),
}
# Options that stand for a key, by recipe.
OPTIONS: dict[str, dict[str, str]] = {
    "evaluate": {
        "--json" if name == "out" else "--" + name.replace("_", "-"): f"files.{name}"
        for name in settings.FilesConfig.model_fields
    },
}


def main(arguments: list[str] | None = None) -> int:
    """Run a recipe; returns the exit status."""
    log.show()
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)  # key=value may also stand after an option
    unknown = [text for text in rest if text.startswith("-")]
    if unknown:
        parser.error(f"unknown option {' '.join(unknown)}")
    if args.resume and args.run_dir is None:
        parser.error("--resume needs --run-dir")
    overrides = [] if args.subject is None else [f"subject={args.subject}"]
    overrides += args.overrides + rest + _options(args) + args.plan
    file = args.config or (args.run_dir / "config.yaml" if args.resume else None)
    try:
        if args.resume and not args.run_dir.exists():
            _fetch(args.run_dir.absolute(), cfg.chosen_storage(args.config, overrides))
        config_type = config_of(args.recipe, args.subject, file, overrides=overrides)
        config = cfg.load_config(config_type, file, overrides)
    except (ConfigError, StorageError) as error:
        return _refused(args.recipe, str(error))

    if args.print_config:
        print(cfg.commented_yaml(config), end="")
        return 0
    return _run(args.recipe, config, args.run_dir, resume=args.resume)


def _options(args: argparse.Namespace) -> list[str]:
    """Options as `key=value`; a JSON string is YAML, whatever is in it."""
    keys = OPTIONS.get(args.recipe, {}).values()
    return [f"{key}={json.dumps(value)}" for key in keys if (value := getattr(args, key))]


def _run(recipe: str, config: RecipeConfig, run_dir: Path | None, *, resume: bool) -> int:
    from rapport.pipeline.rundir import Run
    from rapport.pipeline.steps.inputs import look_at_inputs

    module = importlib.import_module(f"rapport.pipeline.recipes.{recipe}")
    say_unheeded(config)
    try:
        if not resume:
            look_at_inputs(config)
        run_dir = run_dir or _new_directory(recipe)
        with Run(recipe, config, run_dir.absolute(), resume=resume) as run:
            module.run(config, run)
    except KeyboardInterrupt as error:  # first: what the next line names takes seconds to import
        _refused(recipe, f"interrupted ({error or 'Ctrl-C'})" + _way_on(run_dir))
        return interrupts.status(error)
    except explained_errors() as error:
        return _refused(recipe, str(error))
    except OSError as error:
        return _refused(recipe, _of_system(error) + _way_on(run_dir))
    print(f"summary: {run.summary_path}")
    return 0


def _new_directory(recipe: str) -> Path:
    """runs/RECIPE-TIME, numbered where another run began in the same second."""
    name = f"{recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    for directory in (Path("runs") / name for name in names):
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        return directory
    raise AssertionError("names do not end")


def _of_system(error: OSError) -> str:
    """What the system refused, in a line."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error}); nothing is half written: free some space"
    return f"the system refused something: {error}"


def _way_on(run_dir: Path | None) -> str:
    """How to continue a run that has begun."""
    if run_dir is None or not (run_dir / "config.yaml").is_file():
        return ""
    return f"; continue with --resume --run-dir {run_dir}"


def say_unheeded(config: RecipeConfig) -> None:
    """Name the keys of a file that this run will not read."""
    for key, why in config.unheeded().items():
        log.logger.warning(f"{key} is not heeded: {why}")


def _refused(recipe: str, why: str) -> int:
    print(f"rapport {recipe}: {why}", file=sys.stderr)
    return 2


def _fetch(run_dir: Path, uri: str | None) -> None:
    """A run directory that is not there, from the storage that it was copied to."""
    if uri is not None and not Mirror(uri, run_dir).fetch():
        raise StorageError(
            f"nothing to resume: neither {run_dir} nor {uri} has a run {run_dir.name}"
        )


def config_of(
    recipe: str, subject: str | None, file: Path | None, overrides: list[str]
) -> type[RecipeConfig]:
    """What a recipe takes, for the policy that `policy=NAME` or the file asks for.

    Raises:
        ConfigError: the recipe does not take this policy.
    """
    configs = RECIPES[recipe].configs_of(subject)
    if "" in configs:
        return configs[""]
    name = cfg.chosen_policy(file, overrides) or next(iter(configs))
    if name in configs:
        return configs[name]
    if ":" in name and OTHER in configs:
        return configs[OTHER]
    raise ConfigError(f"policy={name}: {recipe} takes {' or '.join(configs)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rapport", description="Rapport: align a listening face with people's preferences."
    )
    recipes = parser.add_subparsers(dest="recipe", required=True, metavar="RECIPE")
    for name, recipe in RECIPES.items():
        sub = recipes.add_parser(
            name,
            help=recipe.summary,
            description=recipe.summary,
            epilog=_keys(name, recipe),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if recipe.subjects:
            about = " or ".join(recipe.subjects)
            sub.add_argument("subject", choices=recipe.subjects, metavar="SUBJECT", help=about)
        else:
            sub.set_defaults(subject=None)
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="set a key (list below)")
        sub.add_argument(
            "--config", type=Path, metavar="FILE", help="YAML with any of the keys below"
        )
        sub.add_argument(
            "--run-dir", type=Path, metavar="DIR", help="where to write (default: runs/RECIPE-TIME)"
        )
        sub.add_argument("--resume", action="store_true", help="continue the run in --run-dir")
        sub.add_argument(
            "--print-config", action="store_true", help="print the resolved config as YAML and stop"
        )
        sub.set_defaults(plan=[])
        if name == "preflight":
            sub.add_argument(
                "--plan",
                nargs="+",
                metavar="key=value",
                action="extend",
                type=_plan_key,
                default=[],
                help="look at an imaginary cluster: nodes=2 gpus=8 is short for plan.nodes=2 "
                "plan.gpus=8",
            )
        for option, key in OPTIONS.get(name, {}).items():
            sub.add_argument(option, dest=key, metavar="VALUE", help=f"the same as {key}=VALUE")
    return parser


def _plan_key(text: str) -> str:
    """A key of the section `plan` without its name; others are written out."""
    return text if "." in text.partition("=")[0] else f"plan.{text}"


def _keys(name: str, recipe: Recipe) -> str:
    """The keys of a recipe; with another subject or policy, those that differ."""
    kinds = {
        " ".join([name, *filter(None, [subject, policy and f"policy={policy}"])]): config
        for subject, configs in (recipe.subjects or {"": recipe.configs}).items()
        for policy, config in configs.items()
    }
    (first, config), *others = kinds.items()
    known = cfg.describe(config)
    text = f"keys of {first}:\n{_key_table(known)}"
    for command, other in others:
        rows = [row for row in cfg.describe(other) if row not in known]
        text += f"\n\nkeys that {command} has besides, or with another default:\n"
        text += _key_table(rows)
    return text


def _key_table(rows: list[tuple[str, str, str, str]]) -> str:
    width = max(len(row[0]) for row in rows)
    return "\n".join(
        f"  {key:<{width}}  {kind}, default {default or 'empty'}\n  {'':<{width}}  {meaning}"
        for key, kind, default, meaning in rows
    )
