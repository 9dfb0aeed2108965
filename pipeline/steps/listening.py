"""A policy that listens to a recording: whose it is, what it hears, and what it does."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rapport.pipeline.data.prompts import NAMES
from rapport.pipeline.data.recording import Recording, open_recording
from rapport.pipeline.rundir import RunError, left_in
from rapport.pipeline.settings import ListenConfig
from rapport.policies.flow.policy import FlowPolicy
from rapport.policies.head.asset import HeadAsset, load_head
from rapport.policies.live import Chunk, Listener, LiveError
from rapport.policies.motion import Layout, Motion
from rapport.policies.policy import POLICY_FILE, Policy, load_policy
from rapport.policies.posnet import ByPosNet, PosNet
from rapport.policies.seams import SMOOTHERS, Joints, Smoother

# Of what a run leaves, the first that is there.
POLICIES = (
    *("best_policy", "distil_policy", "gdpo_policy", "dpo_policy"),
    *("flow_policy", "sft_policy", "imitate_policy"),
)
SAY_EVERY_S = 60  # of the recording
MOST_NOTHING = 100  # chunks after the end in which the rest of an answer must come


@dataclass(frozen=True, eq=False)
class Session:
    """A recording, and who listens to it.

    Args:
        name: of the policy, to whoever asked for it.
        policy: sampled as it is asked for.
        listener: the policy, live.
        recording: of the speaker.
        watched: the head whose motion the speaker's face is read as; None = it is not read.
    """

    name: str
    policy: Policy
    listener: Listener
    recording: Recording
    watched: HeadAsset | None = None

    @property
    def hears(self) -> list[str]:
        """The streams of the recording that the policy reads."""
        read = [] if self.watched is None else ["speaker"]
        return [name for name in read + self.recording.streams if name in self.policy.reads]

    @property
    def frames(self) -> int:
        """Frames of a motion that is as long as the recording."""
        return max(round(self.recording.seconds * self.policy.layout.fps), 1)

    def chunks(self) -> Iterator[Chunk]:
        """All that is heard, and seen of the speaker's face.

        Raises:
            RecordingError: the recording is damaged.
            CorpusError: MediaPipe cannot be had.
        """
        chunks = self.recording.chunks(self.listener.chunk, self.hears)
        if self.watched is None:
            return chunks
        from rapport.pipeline.data.video.watching import watched

        assert self.recording.media is not None
        media, layout = self.recording.media, self.policy.layout
        return watched(chunks, media, self.watched, layout, self.listener.chunk)


@dataclass(frozen=True, eq=False)
class Answer:
    """What a recording was answered.

    Args:
        motions: of the samples. A frame stands at the moment of the recording that it belongs to,
            as listeners of a corpus do.
        delay: seconds by which a live session would show a frame later, at most, as it has to hear
            more first; what computing takes comes on top.
    """

    motions: list[Motion]
    delay: float


def open_session(config: ListenConfig) -> Session:
    """The policy and the recording that a config names, once all that can be refused was looked at.

    Raises:
        RunError: a key is missing, or asks for what the policy cannot do. So do the errors of what
            is read (`rapport.pipeline.explained.explained_errors`).
    """
    if config.speaker is None:
        raise RunError("listen needs speaker=RECORDING, whom it listens to")
    if config.out is not None:
        require_place(config.out)
    folder = policy_folder(config.policy)
    return session_of(load_policy(folder), str(folder), config.speaker, config)


def session_of(policy: Policy, name: str, speaker: Path, config: ListenConfig) -> Session:
    """A policy, and the recording of a speaker, once all that can be refused was looked at.

    Args:
        policy: that listens.
        name: of the policy, to whoever asked for it.
        speaker: the recording.
        config: what else is asked for; its policy, speaker and files are not read.

    Raises:
        RunError: it asks for what the policy cannot do. So do the errors of what is read.
    """
    if config.text is not None and not policy.takes_text:
        raise RunError(f"text: a policy of kind {policy.kind} takes none, leave it out")
    if config.lead is not None:
        if not isinstance(policy, FlowPolicy):
            raise RunError(f"lead is for AR-Flow, this policy is of kind {policy.kind}")
        policy = policy.with_sampler(lead=config.lead)
    layout = policy.layout if "speaker" in policy.reads else None
    recording = open_recording(speaker, config.audio, layout)
    watched = _watched(config, policy, recording)
    session = Session(name, policy, policy.live(), recording, watched)
    if not session.hears:
        shows = "speaker_frames" in recording.streams and "speaker" in policy.reads
        raise RunError(
            f"{speaker} has {_named(recording.streams)}, and this policy of kind "
            f"{policy.kind} perceives {_named(policy.reads)} only"
            + ("; watch=true reads the speaker's face off the frames" if shows else "")
        )
    return session


def _watched(config: ListenConfig, policy: Policy, recording: Recording) -> HeadAsset | None:
    """The head that the speaker's face is read as.

    Raises:
        RunError: there is no face to read, or nobody who would want it.
        CorpusError: MediaPipe is not there, or the policy perceives motion of another head.
    """
    if not config.watch:
        return None
    from rapport.pipeline.data.video.landmarks import require_tracker
    from rapport.pipeline.data.video.watching import require_readable

    if "speaker" not in policy.reads:
        raise RunError(f"watch: a policy of kind {policy.kind} perceives no motion, leave it out")
    if "speaker_frames" not in recording.streams:
        raise RunError(f"watch: {recording.path} has no pictures, leave it out")
    head = load_head(config.head.path, config.head.topology)
    require_readable(policy.layout, head.topology)
    require_tracker()
    return head


def shipped() -> Path:
    """The folder of the small AR-Flow that comes with the project (infra/ship_listener.py)."""
    return Path(str(resources.files("rapport.policies.flow") / "assets" / "listener"))


def policy_folder(path: Path | None) -> Path:
    """The folder of a policy, which `path` is, or the policy that the run in `path` ended with.

    None = that of the policy that comes with the project.

    Raises:
        RunError: it is neither.
    """
    if path is None:
        return shipped()
    if (path / POLICY_FILE).is_file() or (path / "action_space.json").is_file():
        return path
    artifacts = left_in(path)
    if artifacts is None:
        raise RunError(
            f"policy={path}: neither {POLICY_FILE} nor summary.json there; name the folder of a "
            "policy, or that of a run"
        )
    for name in POLICIES:
        if name in artifacts:
            return artifacts[name]
    raise RunError(f"policy={path}: that run left no policy, only {sorted(artifacts)}")


def on_synthetic_people(path: Path | None) -> bool:
    """Whether a policy, as of `policy_folder`, was trained on people who were made up.

    A run's config says so; nothing is known of a folder that is not in one.
    """
    if path is None:
        return True
    for folder in (path, *path.absolute().parents):
        config = folder / "config.yaml"
        if config.is_file():
            corpus = yaml.safe_load(config.read_text()).get("corpus") or {}
            return bool(corpus.get("kind", "synthetic") == "synthetic")
    return False


def begin(session: Session, config: ListenConfig) -> list[Any]:
    """A session for every sample: each has a seed of its own, and they are told the same."""
    prompt = None if config.text is None else session.policy.told(config.text)
    return [session.listener.start(config.seed + k, prompt) for k in range(config.samples)]


def smoother_of(named: str | Path, layout: Layout) -> Smoother | None:
    """What joins the pieces of an answer in a layout; None = nothing.

    Args:
        named: as `listen` and `serve` take it.
        layout: of the answer.

    Raises:
        CheckpointError: the folder holds no PosNet.
        RunError: the run left none.
        LayoutError: the smoother is of another layout, or no head turns there.
    """
    if named == "none":
        return None
    smoother = _by_posnet(named) if isinstance(named, Path) else SMOOTHERS[named]
    smoother(None, Motion(np.zeros((1, layout.dim), np.float32), layout))  # refuses what it cannot
    return smoother


def _by_posnet(folder: Path) -> Smoother:
    """The PosNet in a folder, or of a run."""
    artifacts = left_in(folder)
    if artifacts is not None and "posnet" not in artifacts:
        raise RunError(f"smoother={folder}: that run left no PosNet; `smooth` leaves one")
    return ByPosNet(PosNet.load(folder if artifacts is None else artifacts["posnet"]))


def answer(
    session: Session,
    states: Sequence[Any],
    say: Callable[[str], None],
    smoother: Smoother | None = None,
) -> Answer:
    """What sessions do that hear a recording, all in one batch.

    Where it ends before its last frame is settled, nothing more is heard.

    Args:
        session: what is heard, and who listens.
        states: of the listeners, as they begin.
        say: takes progress.
        smoother: joins what is settled in a step to what was before; None = nothing does.
    """
    layout = session.policy.layout
    listener = session.listener
    pieces: list[list[np.ndarray]] = [[] for _ in states]
    joints = [Joints(smoother) for _ in states]
    settled = 0
    delay = 0.0
    for now, motions, after in _steps(listener, states, _said(session, say)):
        if len(motions[0]):
            delay = max(delay, now - settled / layout.fps)
        settled += len(motions[0])
        _append(pieces, motions, joints)
        if settled + listener.chunk * layout.fps < session.frames:
            continue
        ends = [listener.finish(state) for state in after]
        if settled + len(ends[0]) >= session.frames:
            _append(pieces, ends, joints)
            return Answer([_joined(each, layout, session.frames) for each in pieces], delay)
    raise LiveError(
        f"{type(listener).__name__} gave {settled} of {session.frames} frames, and no more after "
        f"{MOST_NOTHING} chunks of nothing"
    )


def _steps(
    listener: Listener, states: Sequence[Any], chunks: Iterable[Chunk]
) -> Iterator[tuple[float, list[Motion], list[Any]]]:
    """Seconds heard, what is settled by then and the states, step by step."""
    before: list[Chunk | None] = [None] if states[0].waits else []
    nothing = itertools.repeat(Chunk(), MOST_NOTHING)
    for number, heard in enumerate(itertools.chain(before, chunks, nothing), 1 - len(before)):
        motions, states = listener.step(states, [heard] * len(states))
        yield number * listener.chunk, motions, states


def _said(session: Session, say: Callable[[str], None]) -> Iterator[Chunk]:
    """All chunks, with progress."""
    for number, chunk in enumerate(session.chunks()):
        begins = number * session.listener.chunk
        if begins % SAY_EVERY_S < session.listener.chunk and begins >= SAY_EVERY_S:
            say(f"{begins:.0f} s of {session.recording.seconds:.0f} s heard")
        yield chunk


def _append(
    pieces: list[list[np.ndarray]], motions: Sequence[Motion], joints: Sequence[Joints]
) -> None:
    for piece, motion, joint in zip(pieces, motions, joints, strict=True):
        piece.append(joint.join(motion).values)


def _joined(pieces: Sequence[np.ndarray], layout: Layout, frames: int) -> Motion:
    return Motion(np.concatenate(pieces)[:frames], layout)


def _named(streams: Iterable[str]) -> str:
    return ", ".join(NAMES[name] for name in streams)


def require_place(out: Path) -> None:
    """Raise `RunError` unless a folder can be written there."""
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise RunError(f"out={out}: nothing may be written to {place}")
