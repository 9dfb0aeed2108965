"""Imitation: from a corpus to a policy that moves like its listeners.

What a policy needs before any preference is its own business: the VLA an action space and SFT
(VLA + DPO, III-C3), AR-Flow a motion VAE, encoded windows and rectified flow (GDPO-Listener, stage
1), ReactFace the reactions that fit, a policy of one's own its likelihood. All leave the same: a
corpus and a policy's folder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from rapport.pipeline.config import read_yaml
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.objectives.imitation import Imitation
from rapport.pipeline.rundir import Phase, PhaseResult, RunError, Workspace, phase
from rapport.pipeline.settings import (
    STAGE_ONE,
    Judged,
    Learning,
    OfFlow,
    OfOther,
    OfReactFace,
    OfVla,
    Preferences,
)
from rapport.pipeline.steps.corpus import prepared
from rapport.pipeline.steps.imitation_flow import encode, imitate_flow
from rapport.pipeline.steps.imitation_reactface import imitate_reactface, pictures_a_second
from rapport.pipeline.steps.imitation_vla import imitate_vla
from rapport.pipeline.steps.learning import Imitated, learn
from rapport.policies.flow.policy import VAE_FOLDER
from rapport.policies.policy import Policy, load_policy, policy_class
from rapport.policies.reactface.policy import ReactFacePolicy
from rapport.policies.tables import write_table

MOST_FASTER = 1.5  # times as many pictures as in training
Config = TypeVar("Config", bound=Learning)


def imitate(run: Workspace, config: Learning) -> Imitated:
    """Train a policy to imitate, or take the one that the config names."""
    if isinstance(config, OfFlow):
        return imitate_flow(run, config)
    corpus = prepared(run, config)
    if isinstance(config, OfVla):
        return Imitated(corpus, imitate_vla(run, config, corpus))
    if isinstance(config, OfReactFace):
        return Imitated(corpus, imitate_reactface(run, config, corpus))
    if isinstance(config, OfOther):
        return Imitated(corpus, _other(run, config, corpus).artifacts["imitate_policy"])
    raise TypeError(f"{type(config).__name__} does not say how its policy imitates")


def of_checkpoint(run: Workspace, config: Learning, path: Path) -> Imitated:
    """A policy that is there already, on the corpus of the config.

    Raises:
        CheckpointError: the folder holds no policy.
        RunError: it is another kind of policy than the config is for.
    """
    path = path.absolute()
    policy = policy_at(path, config.policy)
    corpus = prepared(run, config)
    splits = config.judged_splits if isinstance(config, Judged) else corpus.splits
    require_pictures(policy, corpus, splits, path)
    if not isinstance(config, OfFlow):
        return Imitated(corpus, path)
    folder = run.directory / "features"
    encoded = encode(run, config, corpus, vae=path / VAE_FOLDER, features=folder)
    return Imitated(corpus, path, encoded.artifacts["encode_tables"])


def require_pictures(policy: Policy, corpus: Corpus, splits: Collection[str], path: Path) -> None:
    """Raise `RunError` where a ReactFace that sees pictures would be shown none, or far more.

    Args:
        policy: of any kind.
        corpus: that it is asked about.
        splits: of it.
        path: of the policy.
    """
    if not isinstance(policy, ReactFacePolicy) or "speaker_frames" not in policy.reads:
        return
    trained = policy.model.sizes.rate
    for split in splits:
        shown = pictures_a_second(corpus, split)
        if shown and not (trained and shown > MOST_FASTER * trained):
            continue
        so_many = f"{shown:.3g} a second" if shown else "none"
        raise RunError(
            f"{path} was trained on pictures of the speaker, {trained:.3g} a second, and {split} "
            f"of {corpus.path} has {so_many}: prepare it with corpus.frames={trained or 5:.3g}"
        )


def policy_at(checkpoint: Path, kind: str) -> Policy:
    """The policy in a folder.

    Raises:
        CheckpointError: the folder holds none.
        RunError: it is of another kind.
    """
    policy = load_policy(checkpoint)
    if policy.kind != kind:
        raise RunError(
            f"checkpoint={checkpoint} holds a policy of kind {policy.kind}, this is policy={kind}: "
            f"say policy={policy.kind}"
        )
    return policy


def as_trained(config: Config) -> Config:
    """The config with the stage 1 of the run whose AR-Flow is used, where it names one."""
    if not isinstance(config, OfFlow):
        return config
    if config.imitation is not None:
        trained = _stage_one("imitation", config.imitation)
    elif isinstance(config, Preferences) and config.candidates is not None:
        trained = _stage_one("candidates", config.candidates)
    else:
        return config
    return config.model_copy(update={name: getattr(trained, name) for name in STAGE_ONE})


def begins_aligned(settings: Mapping[str, Any]) -> bool:
    """Whether a run begins with a policy that an earlier one aligned.

    Args:
        settings: its config, by key.
    """
    if settings.get("aligned"):
        return True
    earlier = settings.get("imitation") or settings.get("candidates")
    return earlier is not None and begins_aligned(read_yaml(Path(earlier) / "config.yaml"))


def _stage_one(key: str, folder: Path) -> OfFlow:
    """How the AR-Flow of a run was trained, or of the run that it took it from."""
    file = folder / "config.yaml"
    if not file.is_file():
        raise RunError(
            f"{key}={folder}: no config.yaml there; it must be the folder of a run of an AR-Flow, "
            "e.g. of `gdpo` or `dpo policy=flow`"
        )
    try:
        values = read_yaml(file)
        earlier = values.get("imitation") or values.get("candidates")
        if earlier is not None:
            return _stage_one(key, Path(earlier))
        return OfFlow.model_validate({name: values[name] for name in STAGE_ONE})
    except (KeyError, ValueError) as error:
        raise RunError(f"{file}: {error}\nThat run is of another recipe or version") from error


@phase("imitate")
def _other(step: Phase, config: OfOther, corpus: Corpus) -> PhaseResult:
    initial = step.directory / "initial"
    table = step.directory / "examples.arrow"
    kind = policy_class(config.policy)
    kind.untrained(corpus.layout, corpus.clips("train"), config.seed).save(initial)
    policy = load_policy(initial)
    schema = pa.schema(dict(policy.prompt_columns) | {"actions": policy.action_type})
    rows = write_table(table, _recorded(policy, corpus), schema)
    step.say(f"{rows} clips, {config.imitate.steps} steps")
    return learn(Imitation(initial, table, config.imitate, seed=config.seed), config.learner, step)


def _recorded(policy: Policy, corpus: Corpus) -> Iterator[dict[str, Any]]:
    for clip in corpus.clips("train"):
        actions = policy.pack(policy.recorded(clip).actions)
        yield policy.prompt_row(policy.encode(clip)) | {"actions": actions}
