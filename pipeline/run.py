"""The command line: `python -m pipeline.run RECIPE [key=value ...] [--config FILE] [--run-dir DIR]
[--resume]`.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import sys
from datetime import datetime
from pathlib import Path

from rapport.pipeline import config as cfg
from rapport.pipeline.storage import Mirror, StorageError
from rapport.pipeline.tune_config import SUBJECTS as TUNED
from rapport.pipeline.tune_config import TuneDpoConfig

RECIPES: dict[str, tuple[type[cfg.RecipeConfig], str]] = {
    "prepare": (cfg.PrepareConfig, "read or generate a corpus and store it as Parquet clips"),
    "sft": (cfg.SftRecipeConfig, "train the VLA policy to imitate listeners (Eq. 7-9)"),
    "rollout": (
        cfg.RolloutRecipeConfig,
        "generate and render candidate reactions for people to rate",
    ),
    "dpo": (
        cfg.DpoRecipeConfig,
        "the main job: imitate, roll out, rate, pair, align with DPO, judge",
    ),
    "gdpo": (
        cfg.GdpoRecipeConfig,
        "AR-Flow post-trained with GDPO on dynamics rewards by FLAME group",
    ),
    "ablate": (
        cfg.AblateConfig,
        "Full, Random-Prefer, SFT-Preferred and SFT-Only over several seeds (Table IV)",
    ),
    "tune": (
        TuneDpoConfig,
        "sweep keys of dpo or gdpo (`tune gdpo` takes the keys of gdpo in place of dpo's)",
    ),
    "preflight": (
        cfg.PreflightConfig,
        "check whether the main job would get through on this cluster, or plan one",
    ),
    "evaluate": (
        cfg.EvaluateConfig,
        "judge a policy and the baselines on held-out clips, or score files (--pred)",
    ),
    "rank": (
        cfg.RankConfig,
        "rank methods by every published protocol, reference against corrected",
    ),
    "bench": (
        cfg.BenchConfig,
        "measure speed beside a baseline: rollout, dpo, sync, render, metrics or flow",
    ),
}
# Policies that a recipe can align, its own first: module and config. `dpo policy=flow`, `gdpo
# policy=vla`.
POLICIES: dict[str, dict[str, tuple[str, type[cfg.RecipeConfig]]]] = {
    "dpo": {"vla": ("dpo", cfg.DpoRecipeConfig), "flow": ("dpo_flow", cfg.FlowDpoRecipeConfig)},
    "gdpo": {"flow": ("gdpo", cfg.GdpoRecipeConfig), "vla": ("gdpo_vla", cfg.VlaGdpoRecipeConfig)},
}
# Recipes with a subject, and which there are.
SUBJECTS = {
    "bench": ("rollout", "dpo", "sync", "render", "metrics", "flow"),
    "tune": tuple(TUNED),
}
# Options that stand for a key, by recipe.
OPTIONS: dict[str, dict[str, str]] = {
    "evaluate": {
        "--json" if name == "out" else "--" + name.replace("_", "-"): f"files.{name}"
        for name in cfg.FilesConfig.model_fields
    },
}


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)  # key=value may also stand after an option
    options = [
        f"{key}={json.dumps(value)}"
        for key in OPTIONS.get(args.recipe, {}).values()
        if (value := getattr(args, key)) is not None
    ]  # a JSON string is YAML, whatever is in it
    options += args.plan
    if any(text.startswith("-") for text in rest):
        parser.error(f"unknown option {' '.join(t for t in rest if t.startswith('-'))}")
    if args.resume and args.run_dir is None:
        parser.error("--resume needs --run-dir")
    run_dir = args.run_dir or Path("runs") / f"{args.recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    subject = [] if args.subject is None else [f"subject={args.subject}"]
    overrides = subject + args.overrides + rest + options
    file = args.config or (run_dir / "config.yaml" if args.resume else None)
    try:
        if args.resume and not run_dir.exists():
            _fetch(run_dir.absolute(), overrides)
        module, config_type, overrides = _recipe_of(args.recipe, args.subject, file, overrides)
        config = cfg.load_config(config_type, file, overrides)
    except (cfg.ConfigError, StorageError) as error:
        print(f"rapport {args.recipe}: {error}", file=sys.stderr)
        return 2

    if args.print_config:
        print(cfg.commented_yaml(config), end="")
        return 0

    from rapport.pipeline.rundir import Run

    recipe = importlib.import_module(f"rapport.pipeline.recipes.{module}")
    try:
        with Run(args.recipe, config, run_dir.absolute(), resume=args.resume) as run:
            recipe.run(config, run)
    except explained_errors() as error:
        print(f"rapport {args.recipe}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"rapport {args.recipe}: the disk is full ({error}); nothing is half written: free "
            "some space and "
            f"continue with --resume --run-dir {run_dir}",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(
            f"rapport {args.recipe}: interrupted; continue with --resume --run-dir {run_dir}",
            file=sys.stderr,
        )
        return 130
    print(f"summary: {run.summary_path}")
    return 0


def _fetch(run_dir: Path, overrides: list[str]) -> None:
    """A run directory that is not there, from the storage that `storage.uri=URI` names."""
    for text in overrides:
        key, _, uri = text.partition("=")
        if key == "storage.uri" and not Mirror(uri, run_dir).fetch():
            raise StorageError(
                f"nothing to resume: neither {run_dir} nor {uri} has a run {run_dir.name}"
            )


def _recipe_of(
    recipe: str, subject: str | None, file: Path | None, overrides: list[str]
) -> tuple[str, type[cfg.RecipeConfig], list[str]]:
    """The recipe's module and config, and the overrides but for `policy=NAME`, which chooses among
    `POLICIES`.
    """
    policies = POLICIES.get(recipe)
    if policies is None:
        return recipe, TUNED[subject] if recipe == "tune" else RECIPES[recipe][0], overrides
    name = cfg.given_policy(file, overrides) or next(iter(policies))
    if name not in policies:
        raise cfg.ConfigError(f"policy={name}: {recipe} aligns {' or '.join(policies)}")
    return *policies[name], [text for text in overrides if not text.startswith("policy=")]


def explained_errors() -> tuple[type[Exception], ...]:
    """Those whose message says what is wrong and what to do; a traceback would only bury it."""
    from rapport.pipeline.data.audio import AudioError
    from rapport.pipeline.data.candidates import CandidateError
    from rapport.pipeline.data.store import CorpusError
    from rapport.pipeline.rundir import RunError
    from rapport.pipeline.tracking import TrackingError
    from rapport.policies.head.asset import AssetError
    from rapport.policies.motion import LayoutError
    from rapport.policies.vla.loading import CheckpointError
    from rapport.rewards.ratings.ratings import RatingError

    return (
        RunError,
        StorageError,
        TrackingError,
        CorpusError,
        CheckpointError,
        LayoutError,
        AssetError,
        AudioError,
        CandidateError,
        RatingError,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.run",
        description="Rapport: align a listening face with people's preferences.",
    )
    recipes = parser.add_subparsers(dest="recipe", required=True, metavar="RECIPE")
    for name, (config_type, summary) in RECIPES.items():
        sub = recipes.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=_key_table(config_type),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in SUBJECTS:
            sub.add_argument(
                "subject",
                choices=SUBJECTS[name],
                metavar="SUBJECT",
                help=" or ".join(SUBJECTS[name]),
            )
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
                help="look at an imaginary cluster: nodes=2 gpus=8 is short for plan.nodes=2 plan.gpus=8",
            )
        for option, key in OPTIONS.get(name, {}).items():
            sub.add_argument(option, dest=key, metavar="VALUE", help=f"the same as {key}=VALUE")
    return parser


def _plan_key(text: str) -> str:
    """A key of the section `plan` without its name; others are written out."""
    return text if "." in text.partition("=")[0] else f"plan.{text}"


def _key_table(config_type: type[cfg.RecipeConfig]) -> str:
    rows = cfg.describe(config_type)
    width = max(len(row[0]) for row in rows)
    lines = [
        f"  {key:<{width}}  {kind}, default {default or 'empty'}\n  {'':<{width}}  {meaning}"
        for key, kind, default, meaning in rows
    ]
    return "keys:\n" + "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
