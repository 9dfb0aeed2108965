"""A judge that is not the raters: whether a listener listens to this speaker or to somebody else.

It is a small net fitted on recordings. Of a listener and some speakers it has to tell to whom the
listener was listening, and of a speaker and some listeners, who was there. No rater's formula, no
point and no valence goes in: it has all landmarks of the listener's face, the speaker's face, the
sound of the voice and the words, each word as a number of its own. What it learns is

    score = log p(listener | speaker) / p(listener),

the evidence in nats that this speaker was listened to (InfoNCE, van den Oord et al. 2018, symmetric
as in Radford et al. 2021), where p(listener) is the mean over speakers of the training. What a face
looks like whoever speaks cancels. 0 = says nothing, as a face does that never moves; below 0 = fits
other speakers better. It knows nothing of how natural a motion looks.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from rapport.policies.clip import AUDIO_RATE
from rapport.rewards.ratings.speaker_cues import bare_word
from rapport.rewards.ratings.visible import VisibleMotion

STEP_S = 0.2  # time is read in steps of that length
BUCKETS = 256  # words are told apart by a hash of that many values
REMEMBERED_S = 8.0  # what was said fades within about that time
LOWEST_HZ, HIGHEST_HZ = 70, 400  # of a voice's pitch
WIDTH = 48
LIVELINESS = 0.3  # how far people differ in the strength of an answer, logarithmic
RESTING = 1.0  # and in their resting faces, in standard deviations
NOISE = 1.0  # of what is seen, in standard deviations: faces that no camera saw are judged, too
MISTAKEN = 0.1  # how likely the judge takes it that it is mistaken: no evidence is overwhelming
BATCH = 32  # conversations that are told apart at once
EPOCHS = 60  # at most
PATIENCE = 12  # epochs without a better guess on conversations that are kept back
KEPT_BACK = 8  # one of so many conversations
FEWEST = 4  # conversations to learn from
REFERENCES = 64  # speakers of the training, each of another conversation, that stand for anybody


class JudgeError(ValueError):
    """There is too little to fit a judge on."""


@dataclass(frozen=True, eq=False)
class Speaker:
    """What the judge has of a speaker, through what came before the clip and the clip.

    Args:
        seconds: of both together.
        face: what is seen; None = not seen.
        words: text and end, in seconds from the start of what came before; None = no transcript.
        audio: (samples,) at `AUDIO_RATE`; None = not heard.
    """

    seconds: float
    face: VisibleMotion | None
    words: tuple[tuple[str, float], ...] | None
    audio: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Pair:
    """A recorded listener and the speaker who was listened to.

    Args:
        conversation: whose other listeners and speakers are no strangers to this one.
        speaker: number of the speaker's features.
        listener: (steps, features).
        fits: whether the listener is known to fit the speaker.
    """

    conversation: str
    speaker: int
    listener: np.ndarray
    fits: bool


# -- What it is told --


def steps_of(seconds: float) -> int:
    """Steps that hold so much time."""
    return math.ceil(seconds / STEP_S - 1e-6)


def listener_features(seen: VisibleMotion) -> np.ndarray:
    """Landmarks and head of a listener, and how fast they move, (steps, features)."""
    parts = _landmarks(seen)
    speed = np.abs(np.gradient(parts, 1 / seen.fps, axis=0)) if len(parts) > 1 else 0 * parts
    steps = steps_of(len(seen) / seen.fps)
    both = np.concatenate([parts, speed], axis=1)
    return _in_steps(both, seen.fps, steps)


def speaker_features(speaker: Speaker) -> np.ndarray:
    """Face, voice and words of a speaker, (steps, features), and which of them there are."""
    steps = steps_of(speaker.seconds)
    face = np.zeros((steps, LANDMARKS))
    if speaker.face is not None:
        face = _in_steps(_landmarks(speaker.face), speaker.face.fps, steps)
    voice = np.zeros((steps, VOICE))
    if speaker.audio is not None:
        voice = voice_features(speaker.audio, steps)
    said = np.zeros((steps, BUCKETS))
    for text, end in speaker.words or ():
        bucket = zlib.crc32(bare_word(text).encode()) % BUCKETS
        # What was said long before is remembered from the start on.
        fading = math.exp(min(end, 0.0) / REMEMBERED_S)
        place = min(max(math.floor(end / STEP_S), 0), steps - 1)
        said[place, bucket] += fading
    remembered = np.zeros_like(said)
    memory = np.zeros(BUCKETS)
    for step in range(steps):
        memory = memory * math.exp(-STEP_S / REMEMBERED_S) + said[step]
        remembered[step] = memory
    cues = (speaker.face, speaker.audio, speaker.words)
    present = np.tile([cue is not None for cue in cues], (steps, 1)).astype(float)
    return np.concatenate([face, voice, present, said, remembered], axis=1)


def voice_features(audio: np.ndarray, steps: int) -> np.ndarray:
    """Energy, its flutter, brightness, pitch and its clarity, (steps, 5).

    After the end of the sound there is silence.

    Args:
        audio: (samples,) at `AUDIO_RATE`.
        steps: of `STEP_S`.
    """
    samples = round(STEP_S * AUDIO_RATE)
    padded = np.zeros(steps * samples)
    padded[: len(audio)] = audio[: len(padded)]
    frames = padded.reshape(steps, samples)
    energy = np.log(np.mean(frames**2, axis=1) + 1e-8)
    bursts = np.log(np.mean(frames.reshape(steps, 8, -1) ** 2, axis=2) + 1e-8).std(axis=1)
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(samples), axis=1)) ** 2
    hz = np.fft.rfftfreq(samples, 1 / AUDIO_RATE)
    brightness = np.log((spectrum @ hz + 1e-3) / (spectrum.sum(axis=1) + 1e-5) + 1)
    correlation = np.fft.irfft(np.abs(np.fft.rfft(frames, 2 * samples, axis=1)) ** 2, axis=1)
    lags = slice(AUDIO_RATE // HIGHEST_HZ, AUDIO_RATE // LOWEST_HZ)
    peaks = correlation[:, lags]
    clarity = peaks.max(axis=1) / (correlation[:, 0] + 1e-6)
    pitch = np.log(AUDIO_RATE / (peaks.argmax(axis=1) + lags.start)) * (clarity > 0.3)
    return np.stack([energy, bursts, brightness, pitch, clarity], axis=1)


VOICE = 5
LANDMARKS = 15  # of `_landmarks`


def _landmarks(seen: VisibleMotion) -> np.ndarray:
    """The features of the face, whether they are seen, and the head's rotation, (time, 15)."""
    face = np.zeros((len(seen), LANDMARKS - 3))
    if seen.expression is not None:
        e = seen.expression
        columns = (e.mouth_lift, e.mouth_spread, e.brow_inner, e.brow_outer, e.eye_opening)
        face = np.concatenate([*columns, e.lip_opening[:, None], np.ones((len(seen), 1))], axis=1)
    return np.concatenate([face, seen.head], axis=1)


def _in_steps(x: np.ndarray, fps: float, steps: int) -> np.ndarray:
    """Means over steps of `STEP_S`, (steps, dim); the last frame stays where frames run out."""
    edges = np.round(np.arange(steps + 1) * STEP_S * fps).astype(int)
    sums = np.concatenate([np.zeros((1, x.shape[1])), np.cumsum(x, axis=0)])
    begin = np.minimum(edges[:-1], len(x) - 1)
    end = np.maximum(np.minimum(edges[1:], len(x)), begin + 1)
    means: np.ndarray = (sums[end] - sums[begin]) / (end - begin)[:, None]
    return means


# -- The net --


class _Net(nn.Module):
    """Embeds speaker and listener step by step; the score is their agreement over time."""

    def __init__(self, speaker_dim: int, listener_dim: int) -> None:
        super().__init__()
        self.words = nn.Sequential(nn.Dropout(0.2), nn.Linear(2 * BUCKETS, WIDTH))
        self.cues = nn.Linear(speaker_dim - 2 * BUCKETS, WIDTH)
        self.mix = nn.Sequential(nn.GELU(), nn.Dropout(0.2), nn.Linear(WIDTH, WIDTH), nn.GELU())
        self.follow = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.speaker = nn.Linear(WIDTH, WIDTH)
        self.listener = nn.Sequential(
            nn.Conv1d(listener_dim, WIDTH, 5, padding=2),
            nn.GELU(),
            nn.Dropout(0.2),
            nn.Conv1d(WIDTH, WIDTH, 5, padding=2),
        )
        self.scale = nn.Parameter(torch.tensor(0.0))

    def of_speaker(self, x: Tensor, steps: int) -> Tensor:
        """(batch, all steps, features) -> the last `steps`, (batch, steps, WIDTH) in (-1, 1)."""
        cues = x[..., : -2 * BUCKETS]
        mixed = self.mix(self.words(x[..., -2 * BUCKETS :]) + self.cues(cues))
        followed, _ = self.follow(mixed)
        return torch.tanh(self.speaker(followed[:, -steps:]))

    def of_listener(self, x: Tensor) -> Tensor:
        """(batch, steps, features) -> (batch, steps, WIDTH) in (-1, 1)."""
        return torch.tanh(self.listener(x.transpose(1, 2)).transpose(1, 2))

    def agreement(self, speakers: Tensor, listeners: Tensor) -> Tensor:
        """Scores of every speaker with every listener, (speakers, listeners)."""
        steps = speakers.shape[1]
        product = torch.einsum("atd,btd->ab", speakers, listeners) / (steps * WIDTH**0.5)
        scores: Tensor = torch.exp(self.scale) * 4 * product
        return scores


@dataclass(frozen=True, eq=False)
class ListeningJudge:
    """A fitted judge.

    Args:
        net: scores.
        speaker_mean: (features,) of the training speakers.
        speaker_scale: (features,) their standard deviations, 1 where constant.
        listener_mean: (features,) of the training listeners.
        listener_scale: (features,) their standard deviations.
        references: features of speakers who stand for anybody.
    """

    net: _Net
    speaker_mean: np.ndarray
    speaker_scale: np.ndarray
    listener_mean: np.ndarray
    listener_scale: np.ndarray
    references: Sequence[np.ndarray]
    _made: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def fit(cls, speakers: Sequence[np.ndarray], pairs: Sequence[Pair], seed: int = 0) -> Self:
        """Fit on recorded pairs, the same for the same seed.

        Args:
            speakers: features of each, all of one length.
            pairs: who listened to which of them. Listeners who do not fit teach nothing, neither
                as those who were there nor as strangers: to look like one who fits is no evidence.
            seed: of weights, order and dropout.

        Raises:
            JudgeError: fewer than `FEWEST` conversations.
        """
        pairs = [pair for pair in pairs if pair.fits]
        conversations = sorted({pair.conversation for pair in pairs})
        if len(conversations) < FEWEST:
            raise JudgeError(
                f"{len(conversations)} training conversations: a judge learns to tell listeners of "
                f"{FEWEST} or more apart"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            judge = cls._untrained(speakers, pairs)
            judge._train(speakers, pairs, conversations, np.random.default_rng(seed))
        return judge

    @classmethod
    def _untrained(cls, speakers: Sequence[np.ndarray], pairs: Sequence[Pair]) -> Self:
        spoken = np.concatenate(speakers)
        listened = np.concatenate([pair.listener for pair in pairs])
        # Words are counts already; to scale rare ones up would be to listen to noise.
        scale = _scale(spoken)
        scale[-2 * BUCKETS :] = 1.0
        mean = spoken.mean(axis=0)
        mean[-2 * BUCKETS :] = 0.0
        anybody = {pair.conversation: speakers[pair.speaker] for pair in pairs}
        return cls(
            _Net(spoken.shape[1], listened.shape[1]),
            speaker_mean=mean,
            speaker_scale=scale,
            listener_mean=listened.mean(axis=0),
            listener_scale=_scale(listened),
            references=list(anybody.values())[:REFERENCES],
        )

    def _train(
        self,
        speakers: Sequence[np.ndarray],
        pairs: Sequence[Pair],
        conversations: Sequence[str],
        rng: np.random.Generator,
    ) -> None:
        kept_back = set(conversations[KEPT_BACK // 2 :: KEPT_BACK])
        by_conversation: dict[str, list[int]] = {}
        for place, pair in enumerate(pairs):
            by_conversation.setdefault(pair.conversation, []).append(place)
        heard = self._speakers(speakers)
        seen = self._listeners([pair.listener for pair in pairs])
        of = np.array([pair.speaker for pair in pairs])

        def draw(among: Iterable[str], rng: np.random.Generator) -> np.ndarray:
            """One listener of each conversation."""
            return np.array([rng.choice(by_conversation[name]) for name in among])

        learnt = [name for name in conversations if name not in kept_back]
        rounds = max(1, round(len(pairs) / max(len(learnt), 1) / 4))
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=3e-3, weight_decay=0.05)
        checks = [draw(sorted(kept_back), np.random.default_rng([1, n])) for n in range(8)]
        best = math.inf
        weights = copy.deepcopy(self.net.state_dict())
        since = 0
        for _ in range(EPOCHS):
            self.net.train()
            for _ in range(rounds):
                order = rng.permutation(learnt)
                for first in range(0, len(order), BATCH):
                    names = order[first : first + BATCH]
                    if len(names) < 2:
                        continue
                    places = draw(names, rng)
                    listeners = as_others(seen[places], rng)
                    loss = self._loss(heard[of[places]], listeners)
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    optimizer.step()
            self.net.eval()
            with torch.no_grad():
                guess = [float(self._loss(heard[of[c]], seen[c])) for c in checks if len(c) > 1]
            # Without conversations to check on, the last epoch is as good as any.
            mean = float(np.mean(guess)) if guess else -math.inf
            since += 1
            if mean < best or not guess:
                best = mean
                weights = copy.deepcopy(self.net.state_dict())
                since = 0
            if since >= PATIENCE:
                break
        self.net.load_state_dict(weights)
        self.net.eval()

    def _loss(self, speakers: Tensor, listeners: Tensor) -> Tensor:
        """Nats to tell who listened to whom, both ways, (batch of matched pairs)."""
        steps = listeners.shape[1]
        scores = self.net.agreement(
            self.net.of_speaker(speakers, steps), self.net.of_listener(listeners)
        )
        matched = torch.arange(len(scores))
        cross_entropy = nn.functional.cross_entropy
        return (cross_entropy(scores, matched) + cross_entropy(scores.T, matched)) / 2

    def heard(self, speakers: Sequence[np.ndarray], steps: int) -> np.ndarray:
        """What the judge makes of speakers over the last `steps`, (speakers, steps, width).

        Args:
            speakers: features of each, of one length.
            steps: of the clip; what came before it is heard, too.
        """
        with torch.no_grad():
            made: np.ndarray = self.net.of_speaker(self._speakers(speakers), steps).numpy()
        return made

    def __call__(self, heard: np.ndarray, listener: np.ndarray) -> np.ndarray:
        """Evidence that a listener listens to each of some speakers, nats, (speakers,).

        Args:
            heard: of `heard`.
            listener: features; where they are fewer steps, the rest of the clip is not judged.
        """
        steps = min(heard.shape[1], len(listener))
        with torch.no_grad():
            seen = self.net.of_listener(self._listeners([listener[:steps]]))
            own = self.net.agreement(torch.from_numpy(heard[:, :steps]), seen)[:, 0]
            anybody = self.net.agreement(self._anybody(heard.shape[1])[:, :steps], seen)[:, 0]
            mean = torch.logsumexp(anybody, 0) - math.log(len(anybody))
            likelier = torch.exp(own - mean)
            score = torch.log(MISTAKEN + (1 - MISTAKEN) * likelier)
        evidence: np.ndarray = score.numpy()
        return evidence

    def _anybody(self, steps: int) -> Tensor:
        """What is made of the references over the last `steps`; made once for clips of a length."""
        if steps not in self._made:
            self._made[steps] = torch.from_numpy(self.heard(self.references, steps))
        return self._made[steps]

    def _speakers(self, features: Sequence[np.ndarray]) -> Tensor:
        x = (np.stack(features) - self.speaker_mean) / self.speaker_scale
        return torch.from_numpy(np.clip(x, -5, 5).astype(np.float32))

    def _listeners(self, features: Sequence[np.ndarray]) -> Tensor:
        x = (np.stack(features) - self.listener_mean) / self.listener_scale
        return torch.from_numpy(np.clip(x, -5, 5).astype(np.float32))


def as_others(listeners: Tensor, rng: np.random.Generator) -> Tensor:
    """The same answers by livelier and calmer people with other resting faces, seen worse.

    Args:
        listeners: (batch, steps, features), standardised; the second half of the features is how
            fast the first half moves.
        rng: of who they are.
    """
    batch, _, width = listeners.shape
    louder = np.exp(LIVELINESS * rng.normal(size=(batch, 1, 1)))
    resting = RESTING * rng.normal(size=(batch, 1, width))
    resting[..., width // 2 :] = 0  # of which speeds do not tell
    unlike = resting + NOISE * rng.normal(size=listeners.shape)
    return listeners * torch.from_numpy(louder).float() + torch.from_numpy(unlike).float()


def _scale(x: np.ndarray) -> np.ndarray:
    scale: np.ndarray = x.std(axis=0)
    scale[scale < 1e-6] = 1.0
    return scale
