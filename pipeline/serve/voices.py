"""Policies that can be talked to, from where they lie."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from rapport.pipeline.rundir import RunError
from rapport.pipeline.serve.engine import Voice, delay_of, in_silence, measure
from rapport.pipeline.serve.settings import ServeSection
from rapport.pipeline.steps.listening import on_synthetic_people, policy_folder, smoother_of
from rapport.policies.flow.conditions import LEADS
from rapport.policies.flow.policy import FlowPolicy
from rapport.policies.head.arkit import ArkitRig
from rapport.policies.head.asset import HeadAsset
from rapport.policies.live import Listener
from rapport.policies.policy import Policy, load_policy

SHIPPED = "listener"  # the name of the policy that comes with the project
REGISTRY = "models:/"
LIVE_EVALUATIONS = 4  # of the velocity, for a latent, unless a policy needs fewer


def load_voice(name: str, source: str | None, config: ServeSection, head: HeadAsset) -> Voice:
    """Load a policy, and measure how many sessions fit.

    Args:
        name: by which clients ask for it.
        source: as `ServeSection.policies` has it; None = the policy that comes with the project.
        config: of the server.
        head: that is animated; a policy of another has no ARKit weights.

    Raises:
        RunError: there is no policy. So do the errors of what is read
            (`rapport.pipeline.explained.explained_errors`).
    """
    folder, simulated = _found(source)
    policy = load_policy(folder)
    if isinstance(policy, FlowPolicy):
        evaluations = config.evaluations or min(LIVE_EVALUATIONS, policy.sampler.evaluations)
        policy = policy.with_sampler(lead=config.lead, evaluations=evaluations)
    listener = _live(policy, folder, config)
    start = functools.partial(start_of, listener, isinstance(policy, FlowPolicy))
    delay: dict[int | None, float]
    if isinstance(policy, FlowPolicy):
        delay = {lead: delay_of(listener, start(0, lead=lead)) for lead in LEADS}
        delay[None] = delay[config.lead]
    else:
        delay = {None: delay_of(listener, start(0))}
    rig = ArkitRig(head) if policy.layout.topology == head.topology else None
    [(_, state, _)] = in_silence(listener, start(0), 1)
    return Voice(
        name=name,
        policy=policy,
        listener=listener,
        rig=rig,
        start=start,
        delay=delay,
        act_type="<i4" if np.issubdtype(listener.act(state).dtype, np.integer) else "<f4",
        costs=measure(listener, start, rig, config.sessions, sees="speaker_frames" in policy.reads),
        smoother=smoother_of(config.smoother, policy.layout),
        simulated=simulated,
    )


def _live(policy: Policy, folder: Path, config: ServeSection) -> Listener:
    """The policy of a folder, live.

    Raises:
        RunError: vLLM cannot run it.
    """
    if config.engine == "torch":
        return policy.live()
    # Seconds of imports that a replica without vLLM does not wait for.
    from rapport.policies.vla.policy import VlaPolicy
    from rapport.policies.vla.vllm_live import VllmLiveVla
    from rapport.policies.vla.vllm_plugin import EngineError

    if not isinstance(policy, VlaPolicy):
        return policy.live()
    try:
        return VllmLiveVla(policy, folder, config.sessions)
    except EngineError as error:
        raise RunError(f"serve.engine=vllm: {error}; or take serve.engine=torch") from error


def _found(source: str | None) -> tuple[Path, bool]:
    """The folder of a policy, and whether it was trained on people who were made up.

    It is fetched where it lies in MLflow's registry.
    """
    if source is None or not source.startswith(REGISTRY):
        path = None if source is None else Path(source)
        return policy_folder(path), on_synthetic_people(path)
    import mlflow
    from mlflow.models import Model

    from rapport.pipeline import served_model

    try:
        folder = Path(mlflow.artifacts.download_artifacts(source))
    except mlflow.MlflowException as error:
        raise RunError(
            f"policy {source}, in the registry {mlflow.get_tracking_uri()}: {error}; another "
            "registry is named by tracking.uri, or MLFLOW_TRACKING_URI in the environment"
        ) from error
    model = Model.load(folder)
    policy = model.flavors["python_function"]["artifacts"][served_model.POLICY]
    return folder / policy["path"], bool((model.metadata or {}).get(served_model.SIMULATED))


def start_of(
    listener: Any,
    leads: bool,
    seed: int,
    prompt: Any = None,
    lead: int | None = None,
    first: int = 0,
) -> Any:
    """A session of a listener, which has a lead or has none."""
    if leads:
        return listener.start(seed, prompt, lead, first=first)
    if lead is not None:
        raise ValueError("lead is for AR-Flow, leave it out")
    return listener.start(seed, prompt, first=first)
