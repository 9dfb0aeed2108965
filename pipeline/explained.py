"""Errors that explain themselves, to people at a command line and to clients of a server."""

from __future__ import annotations


def explained_errors() -> tuple[type[Exception], ...]:
    """Those whose message says what is wrong and what to do; a traceback would only bury it."""
    from rapport.arrays import ArrayFileError
    from rapport.pipeline.data.audio import AudioError
    from rapport.pipeline.data.candidates import CandidateError
    from rapport.pipeline.data.reactions import ReactionError
    from rapport.pipeline.data.recording import RecordingError
    from rapport.pipeline.data.store import CorpusError
    from rapport.pipeline.holding import HeldError
    from rapport.pipeline.rundir import RunError
    from rapport.pipeline.serve.client import ClientError
    from rapport.pipeline.storage import StorageError
    from rapport.pipeline.tracking import TrackingError
    from rapport.policies.head.asset import AssetError
    from rapport.policies.live import LiveError
    from rapport.policies.motion import LayoutError
    from rapport.policies.policy import CheckpointError
    from rapport.rewards.ratings.ratings import RatingError

    return (
        RunError,
        HeldError,
        StorageError,
        TrackingError,
        CorpusError,
        CheckpointError,
        LayoutError,
        AssetError,
        ArrayFileError,
        AudioError,
        CandidateError,
        ReactionError,
        RatingError,
        RecordingError,
        LiveError,
        ClientError,
    )
