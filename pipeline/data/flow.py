"""Clips as AR-Flow takes them: one person of a clip (the actor), what they react to, and who speaks
when.

Names are those of GDPO-Listener: the actor is who is generated, the partner the other one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rapport.pipeline.data.audio import voice_activity
from rapport.pipeline.data.statistics import count_nods, head_rotation
from rapport.policies.clip import AUDIO_RATE, Clip
from rapport.policies.flow.encoders import AudioEncoder, FeatureCache, TextEncoder
from rapport.policies.flow.training import FLOW_SCHEMA, MOTION_SCHEMA, to_bytes
from rapport.policies.flow.vae import MotionVAE
from rapport.policies.motion import LayoutError, Motion
from rapport.rewards.dynamics import listening_frames

# What a learner and a rollout worker need of a window: conditions, latents, and what rewards
# compare with.
WINDOW_SCHEMA = pa.schema(
    [
        *FLOW_SCHEMA,
        *(f for f in MOTION_SCHEMA if f.name not in FLOW_SCHEMA.names),
        pa.field("listening", pa.list_(pa.bool_())),
        pa.field("speaking", pa.list_(pa.bool_())),
    ]
)

LISTENER = "/listener"  # ends the ids of windows whose actor is the listener of a clip

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
        clip_id: the clip's, with `/listener` or `/speaker`: whose motion it is.
        motion: the actor's, (frames, dim).
        partner: the other one's motion.
        text: the prompt.
        actor_audio, partner_audio: (samples,) at 16 kHz, of the whole clip.
        actor_speaks, partner_speaks: (frames,) bool.
    """

    clip_id: str
    motion: Motion
    partner: Motion | None
    text: str | None
    actor_audio: np.ndarray | None
    partner_audio: np.ndarray | None
    actor_speaks: np.ndarray
    partner_speaks: np.ndarray

    @property
    def listening(self) -> np.ndarray:
        """(frames,) bool: the partner speaks, the actor does not."""
        return listening_frames(self.actor_speaks, self.partner_speaks)


def whole_latents(frames: int, downsample: int) -> int:
    """Frames of the longest window of whole latents in a clip: 96 of 100 with r = 8. The rest of
    the clip is left out.

    Raises `LayoutError` when there is none: padding would teach the policy to stand still.
    """
    if frames < downsample:
        raise LayoutError(
            f"a clip of {frames} frames holds no latent of {downsample}; raise corpus.seconds"
        )
    return frames // downsample * downsample


def windows(
    clip: Clip, downsample: int, both: bool = True, affect: Mapping[str, np.ndarray] | None = None
) -> Iterator[Window]:
    """The listener of a clip as the actor, then, with `both`, the speaker where the clip has their
    motion.

    Args:
        affect: clip id -> (time, 2) valence and arousal that the listener shows, where the corpus
            has labels.
    """
    frames = whole_latents(len(clip.listener), downsample)
    layout = clip.listener.layout
    # Of a person without sound we know the role that the corpus gives them.
    listener = _speaks(clip.listener_audio, frames, layout.fps, otherwise=False)
    speaker = _speaks(clip.speaker_audio, frames, layout.fps, otherwise=True)
    motion = clip.listener.window(0, frames)
    other = None if clip.speaker is None else clip.speaker.window(0, frames)
    label = None if affect is None else affect.get(clip.clip_id)
    yield Window(
        f"{clip.clip_id}{LISTENER}",
        motion,
        other,
        describe_face(motion, label),
        clip.listener_audio,
        clip.speaker_audio,
        listener,
        speaker,
    )
    if both and other is not None:
        yield Window(
            f"{clip.clip_id}/speaker",
            other,
            motion,
            describe_face(other),
            clip.speaker_audio,
            clip.listener_audio,
            speaker,
            listener,
        )


def describe_face(motion: Motion, affect: np.ndarray | None = None) -> str | None:
    """A prompt as the paper's: "happy and excited, looking ahead, nodding".

    There a vision model looks at the actor's face and names emotion, gaze and head, nothing of what
    is said (supplement, section 6 and Table 7). Here the words come from labels and motion; None
    where there is neither a label nor a head that turns.

    Args:
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


@dataclass(frozen=True, eq=False)
class Features:
    """Frozen encoders whose features are computed once per clip (GDPO-Listener, Eq. 1).

    Args:
        caches: of text and audio.
    """

    text: TextEncoder
    audio: AudioEncoder
    caches: tuple[FeatureCache, FeatureCache]

    def of(self, window: Window) -> dict[str, Tensor | None]:
        """`text` (text_dim,), `partner_audio` and `actor_audio` (frames, audio_dim); None where
        absent.
        """
        return {
            "text": self._text(window.text),
            "partner_audio": self._sound(window, window.partner_audio, actor=False),
            "actor_audio": self._sound(window, window.actor_audio, actor=True),
        }

    def _text(self, text: str | None) -> Tensor | None:
        return None if text is None else self.caches[0].get(text, lambda: self.text([text])[0])

    def _sound(self, window: Window, audio: np.ndarray | None, actor: bool) -> Tensor | None:
        if audio is None:
            return None
        frames, fps = len(window.motion), window.motion.layout.fps
        samples = round(frames * AUDIO_RATE / fps)
        clip, role = window.clip_id.rsplit("/", 1)
        whose = role if actor else {"listener": "speaker", "speaker": "listener"}[role]
        return self.caches[1].get(
            f"{clip}/{whose}", lambda: self.audio(audio[:samples], frames, fps)
        )


def motion_rows(motions: Mapping[str, Motion]) -> Iterator[dict[str, Any]]:
    """Rows of MOTION_SCHEMA, from motions by window id."""
    for clip_id, motion in motions.items():
        yield {"clip_id": clip_id, "frames": to_bytes(motion.values)}


def window_rows(
    given: Iterable[Window],
    features: Callable[[Window], Mapping[str, Tensor | None]],
    vae: MotionVAE,
) -> Iterator[dict[str, Any]]:
    """Rows of WINDOW_SCHEMA."""
    for window in given:
        encoded = {name: to_bytes(value) for name, value in features(window).items()}
        yield encoded | {
            "clip_id": window.clip_id,
            "partner_motion": None
            if window.partner is None
            else to_bytes(_latents(vae, window.partner)),
            "latents": to_bytes(_latents(vae, window.motion)),
            "frames": to_bytes(window.motion.values),
            "listening": window.listening.tolist(),
            "speaking": window.actor_speaks.tolist(),
        }


def _latents(vae: MotionVAE, motion: Motion) -> Tensor:
    with torch.no_grad():
        return vae.encode(torch.from_numpy(motion.values)[None])[0]


def _speaks(audio: np.ndarray | None, frames: int, fps: float, otherwise: bool) -> np.ndarray:
    """(frames,) bool: in which frames more than half of the time is speech."""
    if audio is None:
        return np.full(frames, otherwise)
    activity = voice_activity(audio)
    edges = np.round(np.arange(frames + 1) * 100 / fps).astype(int).clip(max=len(activity))
    heard = np.concatenate([[0], np.cumsum(activity)])
    length = np.diff(edges)
    return (heard[edges[1:]] - heard[edges[:-1]]) > length / 2
