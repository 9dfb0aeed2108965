"""Everything that a config names is looked at before a run directory is made and Ray starts.

A name that is mistyped then costs seconds, and leaves nothing behind. What a resumed run needs it
has in its directory: it does not look again.

What reads an input is imported when there is one: `prepare` shall not wait for torch, nor `serve`
for the readers of corpora.
"""

from __future__ import annotations

from pathlib import Path

from rapport.pipeline.config import RecipeConfig
from rapport.pipeline.rundir import RunError
from rapport.pipeline.settings import (
    BridgeConfig,
    Evaluated,
    ExportConfig,
    FilesConfig,
    Judged,
    Learning,
    ListenConfig,
    OfFlow,
    OfOther,
    OfVla,
    Preferences,
    PreflightConfig,
    PrepareConfig,
    RankConfig,
    RateConfig,
    ServeConfig,
    SmoothConfig,
)
from rapport.policies.head.settings import HeadConfig


def look_at_inputs(config: RecipeConfig) -> None:
    """Read or open whatever a recipe will read.

    Raises:
        RunError: names the key, what is wrong with what it names, and the way out. So do the other
            errors of the readers (`rapport.pipeline.explained.explained_errors`).
    """
    if isinstance(config, Evaluated) and config.files.pred is not None:
        _files(config.files)
        return
    if isinstance(config, Evaluated) and config.reactions is not None:
        _head(config.head)
        _reactions(config, config.reactions)
        return
    if isinstance(config, PreflightConfig) and config.plan.nodes is not None:
        _benches(config)
        return
    if isinstance(config, ListenConfig):
        _recording(config)
    if isinstance(config, ServeConfig) and config.serve.watch:
        from rapport.pipeline.data.video.landmarks import require_tracker

        require_tracker()
    if isinstance(config, BridgeConfig):
        _bridge(config)
    if isinstance(config, ExportConfig):
        _exported(config)
    if isinstance(config, SmoothConfig):
        _smoothed(config)
    if isinstance(config, RankConfig):
        _runs(config)
    if isinstance(config, RateConfig):
        _rated(config)
    if isinstance(config, PrepareConfig):
        _head(config.head)
    if isinstance(config, Preferences) and config.live:
        from rapport.pipeline.steps.rating import require_consent, require_raters

        require_consent(config.rate)
        require_raters(config.rate)
    if isinstance(config, Preferences) and config.candidates is not None:
        _candidates(config, config.candidates)
    elif isinstance(config, OfFlow) and config.imitation is not None:
        _imitation(config, config.imitation)
    elif isinstance(config, PrepareConfig):
        _corpus(config)
        if isinstance(config, Learning):
            _policy(config)


def _corpus(config: PrepareConfig) -> None:
    """The corpus, its prompts, and the splits that are judged."""
    from rapport.pipeline.data.corpora import look_at_corpus, look_at_prompts
    from rapport.pipeline.data.store import Corpus
    from rapport.pipeline.steps.corpus import perceived, require_splits

    look_at_corpus(config.corpus)
    look_at_prompts(config.corpus, config.head, perceived(config))
    if isinstance(config, Judged) and config.corpus.kind == "parquet" and config.corpus.root:
        require_splits(Corpus(config.corpus.root), config.judged_splits)


def _files(files: FilesConfig) -> None:
    from rapport.pipeline.steps.scoring import protocol_of, read_inputs

    protocol_of(files)
    read_inputs(files)


def _benches(config: PreflightConfig) -> None:
    from rapport.pipeline.plan import CPU, with_bench

    for file in config.plan.bench:
        with_bench(CPU, file, config.rollout.dtype)


def _reactions(config: Evaluated, path: Path) -> None:
    """Kept reactions, the corpus of their run, and what people say of them."""
    from rapport.pipeline.data.corpora import look_at_corpus
    from rapport.pipeline.data.reactions import read_reactions
    from rapport.pipeline.data.store import Corpus
    from rapport.pipeline.steps.rejudging import Source
    from rapport.pipeline.steps.study import check_study, methods_of

    source = Source.at(path)
    kept = read_reactions(source.file)
    if source.corpus is None:
        look_at_corpus(config.corpus)
    else:
        kept.require_corpus(Corpus(source.corpus), str(source.file))
    if config.study.prompts:
        methods_of(config, kept)
    check_study(config)


def _runs(config: RankConfig) -> None:
    from rapport.pipeline.steps.methods import ALGORITHMS, TrainedRun, common_corpus

    folders = {name: getattr(config.rank, name) for name in ALGORITHMS}
    runs = {name: TrainedRun.of_folder(name, path) for name, path in folders.items() if path}
    common_corpus({name: trained.imitated.corpus for name, trained in runs.items()})


def _recording(config: ListenConfig) -> None:
    """The policy, the recording, and whether they fit."""
    from rapport.pipeline.steps.listening import open_session, smoother_of

    session = open_session(config)
    smoother_of(config.smoother, session.policy.layout)
    _head(config.head)


def _bridge(config: BridgeConfig) -> None:
    """The recording, and whom packets go to. The server is asked when all else is there."""
    from rapport.pipeline.serve.bridge import open_places, open_speaker

    open_speaker(config)
    open_places(config)


def _exported(config: ExportConfig) -> None:
    """The policy, and all that goes with it."""
    from rapport.pipeline.steps.exporting import open_export

    open_export(config)


def _smoothed(config: SmoothConfig) -> None:
    """The policy, and the corpus that its run left."""
    from rapport.pipeline.steps.smoothing import corpus_of, opened

    opened(config)
    corpus_of(config.policy)


def _rated(config: RateConfig) -> None:
    """The candidates, their videos, and what raters agree to."""
    from rapport.pipeline.data.candidates import read_candidates
    from rapport.pipeline.steps.rating import require_consent, require_package
    from rapport.pipeline.steps.sampling import earlier, earlier_imitation
    from rapport.policies.policy import load_policy

    if config.candidates is None:
        raise RunError("candidates=RUN_DIR is needed, the folder of a `rollout` run")
    require_package(config.candidates)
    require_consent(config.rate)
    load_policy(earlier_imitation(config.candidates).policy_path)
    read_candidates(earlier(config.candidates, "candidates"))


def _head(config: HeadConfig) -> None:
    from rapport.policies.head.asset import load_head

    if config.path is not None:
        load_head(config.path, config.topology)


def _candidates(config: Preferences, folder: Path) -> None:
    from rapport.pipeline.data.candidates import read_candidates
    from rapport.pipeline.steps.imitation import as_trained
    from rapport.pipeline.steps.preferences import check_ratings
    from rapport.pipeline.steps.sampling import earlier, earlier_imitation
    from rapport.policies.policy import load_policy

    as_trained(config)
    load_policy(earlier_imitation(folder).policy_path)
    read_candidates(earlier(folder, "candidates"))
    check_ratings(config)


def _imitation(config: OfFlow, folder: Path) -> None:
    from rapport.pipeline.steps.imitation import as_trained
    from rapport.pipeline.steps.imitation_flow import earlier_flow
    from rapport.policies.policy import load_policy

    as_trained(config)
    load_policy(earlier_flow(folder, aligned=config.aligned).policy_path)


def _policy(config: Learning) -> None:
    """A policy that is there already, or what a new one is made of."""
    from rapport.pipeline.steps.imitation import policy_at
    from rapport.policies.policy import load_policy, policy_class

    checkpoint = config.checkpoint if isinstance(config, Evaluated) else None
    if checkpoint is not None:
        policy_at(checkpoint, config.policy)
    elif isinstance(config, OfVla) and config.sft.checkpoint is not None:
        load_policy(config.sft.checkpoint)
    elif isinstance(config, OfOther):
        policy_class(config.policy)
    else:
        _published(config)


def _published(config: Learning) -> None:
    """Checkpoints of others, which a new policy is put together from."""
    from rapport.pipeline.steps.imitation_vla import published_parts
    from rapport.pipeline.steps.sizing import require_published
    from rapport.policies.vla.pretrained import check_parts

    if isinstance(config, OfFlow):
        for key in ("text", "audio"):
            require_published(f"encoders.{key}", getattr(config.encoders, key))
    if isinstance(config, OfVla):
        vla = config.vla
        if vla.size == "pretrained":
            check_parts(published_parts(vla))
        if vla.openvla is not None and not Path(vla.openvla).is_dir():
            raise RunError(f"vla.openvla={vla.openvla}: no such folder")
