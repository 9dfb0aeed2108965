"""Clips as AR-Flow takes them: one person of a clip, what they react to, and who speaks when.

Names are those of GDPO-Listener: the actor is who is generated, the partner the other one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from rapport.pipeline.data.statistics import count_nods, head_rotation
from rapport.policies.clip import Clip
from rapport.policies.flow.features import Features, Role
from rapport.policies.flow.training import FLOW_SCHEMA, to_bytes
from rapport.policies.flow.vae import MotionVAE
from rapport.policies.motion import LayoutError, Motion
from rapport.rewards.dynamics import listening_frames
from rapport.rewards.ratings.voice import RECORDING, step_levels, voice_activity

# What rewards compare with, and where they count.
SCENE_COLUMNS = {
    "recorded": pa.binary(),
    "listening": pa.list_(pa.bool_()),
    "speaking": pa.list_(pa.bool_()),
}
# What learners need of a window: conditions, latents, and the scene.
WINDOW_SCHEMA = pa.schema([*FLOW_SCHEMA, *pa.schema(SCENE_COLUMNS)])

BATCH = 64  # windows whose faces are encoded at once; their sound takes 64 MB

# Words for a face. By its mean valence and arousal in [-1, 1]:
VALENCE_WORDS, AROUSAL_WORDS, NEUTRAL = (
    ("sad", "neutral", "happy"),
    ("calm", "attentive", "excited"),
    0.15,
)
# by the share of the time that eyes and head together point further than `AWAY` (radians) from
# straight ahead:
GAZE_WORDS, GAZE_SHARES, AWAY = ("looking ahead", "glancing away", "looking away"), (0.2, 0.6), 0.15
# by nods a minute, see `count_nods`.
NOD_WORDS, NODS = ("with a still head", "with a slight nod", "nodding"), (5, 10)


@dataclass(frozen=True, eq=False)
class Window:
    """One person of a clip over a whole number of latents. What the corpus lacks is None.

    Args:
        clip_id: the clip's.
        role: whose motion it is: of the listener or the speaker of the clip.
        motion: the actor's, (frames, dim).
        partner: the other one's motion.
        text: the prompt.
        actor_audio, partner_audio: (samples,) at 16 kHz, of the whole clip.
        actor_speaks, partner_speaks: (frames,) bool.
        conversation: that it is of; windows of one are not independent.
    """

    clip_id: str
    role: Role
    motion: Motion
    partner: Motion | None
    text: str | None
    actor_audio: np.ndarray | None
    partner_audio: np.ndarray | None
    actor_speaks: np.ndarray
    partner_speaks: np.ndarray
    conversation: str

    @property
    def window_id(self) -> str:
        """Of the window in tables."""
        return f"{self.clip_id}/{self.role}"

    @property
    def listening(self) -> np.ndarray:
        """(frames,) bool: the partner speaks, the actor does not."""
        return listening_frames(self.actor_speaks, self.partner_speaks)


def whole_latents(frames: int, downsample: int) -> int:
    """Frames of the longest window of whole latents in a clip: 96 of 100 with r = 8.

    The rest of the clip is left out.

    Raises:
        LayoutError: there is none. Padding would teach the policy to stand still.
    """
    if frames < downsample:
        raise LayoutError(
            f"a clip of {frames} frames holds no latent of {downsample}; raise corpus.seconds"
        )
    return frames // downsample * downsample


def windows(
    clip: Clip,
    downsample: int,
    *,
    both: bool = True,
    affect: Mapping[str, np.ndarray] | None = None,
    captions: Mapping[tuple[str, str], str] | None = None,
    conversation: str | None = None,
) -> Iterator[Window]:
    """The listener of a clip as the actor, then the speaker where the clip has their motion.

    Args:
        clip: the clip.
        downsample: frames of a latent.
        both: whether the speaker is wanted.
        affect: clip id -> (time, 2) valence and arousal that the listener shows, where the corpus
            has labels.
        captions: what faces show, by clip id and role, where the corpus has them; they are the
            prompts, and `describe_face` where there is none.
        conversation: that the clip is of; None = whatever has the same speaker.
    """
    told = captions or {}
    conversation = conversation or clip.moment[0]
    frames = whole_latents(len(clip.listener), downsample)
    layout = clip.listener.layout
    # Of a person without sound we know the role that the corpus gives them.
    listener = _speaks(clip.listener_audio, frames, layout.fps, otherwise=False)
    speaker = _speaks(clip.speaker_audio, frames, layout.fps, otherwise=True)
    motion = clip.listener.window(0, frames)
    other = None if clip.speaker is None else clip.speaker.window(0, frames)
    label = None if affect is None else affect.get(clip.clip_id)
    yield Window(
        clip.clip_id,
        "listener",
        motion,
        partner=other,
        text=told.get((clip.clip_id, "listener")) or describe_face(motion, label),
        actor_audio=clip.listener_audio,
        partner_audio=clip.speaker_audio,
        actor_speaks=listener,
        partner_speaks=speaker,
        conversation=conversation,
    )
    if both and other is not None:
        yield Window(
            clip.clip_id,
            "speaker",
            other,
            partner=motion,
            text=told.get((clip.clip_id, "speaker")) or describe_face(other),
            actor_audio=clip.speaker_audio,
            partner_audio=clip.listener_audio,
            actor_speaks=speaker,
            partner_speaks=listener,
            conversation=conversation,
        )


def describe_face(motion: Motion, affect: np.ndarray | None = None) -> str | None:
    """A prompt as the paper's: "happy and excited, looking ahead, nodding".

    There a vision model looks at the actor's face and names emotion, gaze and head, nothing of what
    is said (supplement, section 6 and Table 7). Here the words come from labels and motion; None
    where there is neither a label nor a head that turns.

    Args:
        motion: of the actor.
        affect: (time, 2) valence and arousal that the actor shows, where the corpus has labels.
    """
    words = []
    if affect is not None:
        valence, arousal = (
            int(np.digitize(value, (-NEUTRAL, NEUTRAL))) for value in np.mean(affect, axis=0)
        )
        words.append(f"{VALENCE_WORDS[valence]} and {AROUSAL_WORDS[arousal]}")
    if (head := head_rotation(motion)) is not None:
        eyes = (
            motion.group("eyepose")
            if "eyepose" in motion.layout.names
            else np.zeros((len(head), 6))
        )
        away = np.linalg.norm(head[:, :2] + (eyes[:, 0:2] + eyes[:, 3:5]) / 2, axis=1) > AWAY
        nods = count_nods(head[:, 0], motion.layout.fps) / motion.seconds * 60
        words += [
            GAZE_WORDS[np.digitize(away.mean(), GAZE_SHARES)],
            NOD_WORDS[np.digitize(nods, NODS)],
        ]
    return ", ".join(words) or None


def motion_rows(motions: Mapping[str, Motion]) -> Iterator[dict[str, Any]]:
    """Rows of MOTION_SCHEMA, from motions by window id."""
    for window_id, motion in motions.items():
        yield {"clip_id": window_id, "frames": to_bytes(motion.values)}


def window_rows(
    all_windows: Iterable[Window], features: Features, vae: MotionVAE
) -> Iterator[dict[str, Any]]:
    """Rows of WINDOW_SCHEMA."""
    remaining = iter(all_windows)
    while some := list(islice(remaining, BATCH)):
        # A face once, though it is an actor's and a partner's.
        faces = dict.fromkeys(
            face for window in some for face in (window.motion, window.partner) if face is not None
        )
        latents = dict(zip(faces, vae.latents_of(faces), strict=True))
        for window in some:
            partner = None if window.partner is None else latents[window.partner]
            yield condition_row(window, features, partner) | {
                "latents": to_bytes(latents[window.motion]),
                **scene_row(window),
            }


def condition_row(window: Window, features: Features, partner: Tensor | None) -> dict[str, Any]:
    """What the actor of a window reacts to, CONDITION_COLUMNS.

    Args:
        window: the window.
        features: encoders of text and sound.
        partner: (time / r, latent_dim) latents of the partner's motion, where there is any.
    """
    frames = len(window.motion)
    fps = window.motion.layout.fps
    other: Role = "speaker" if window.role == "listener" else "listener"
    partner_audio = features.of_voice(
        window.clip_id, other, window.partner_audio, frames=frames, fps=fps
    )
    actor_audio = features.of_voice(
        window.clip_id, window.role, window.actor_audio, frames=frames, fps=fps
    )
    return {
        "prompt_id": window.window_id,
        "text": to_bytes(features.of_text(window.text)),
        "partner_audio": to_bytes(partner_audio),
        "partner_motion": to_bytes(partner),
        "actor_audio": to_bytes(actor_audio),
    }


def scene_row(window: Window) -> dict[str, Any]:
    """What rewards compare with and where they count, SCENE_COLUMNS."""
    return {
        "recorded": to_bytes(window.motion.values),
        "listening": window.listening.tolist(),
        "speaking": window.actor_speaks.tolist(),
    }


def _speaks(audio: np.ndarray | None, frames: int, fps: float, otherwise: bool) -> np.ndarray:
    """(frames,) bool: in which frames more than half of the time is speech."""
    if audio is None:
        return np.full(frames, otherwise)
    activity = voice_activity(step_levels(audio), RECORDING)
    edges = np.round(np.arange(frames + 1) * 100 / fps).astype(int).clip(max=len(activity))
    heard = np.concatenate([[0], np.cumsum(activity)])
    length = np.diff(edges)
    return (heard[edges[1:]] - heard[edges[:-1]]) > length / 2
