"""ReactFace (Luo et al. 2024): several appropriate reactions to a speaker, window by window.

What a window is made from: MSBEA encodes what is seen, a tracked face or pictures of one, and what
is heard, CIE reads its own last frames and says how the next window is distributed, momentum ties
what is drawn to the window before, LRD makes frames of it, SLBS holds them against the speaker.

Every pass is a loop of `listen`, `distribution` and `make`: training, sampling, replaying and
listening live. So a listener of an hour does what it was trained to do, and looks back as far.

Beside the paper, it is told what to expect: from the speaker alone a head reads, by least squares,
where a listener's face is on average (`Expectation`), and what is drawn departs from there. Losses
of what is drawn teach next to nothing of the speaker: people differ from each other by far more
than any speaker explains.

Where the paper counts positions from the beginning of a clip (Eq. 13), nobody counts here: an
endless session would outgrow them, and a trained one blinked by them as by a clock. And a window
looks back over a span, not over all that was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rapport.policies.flow.statistics import mean_and_std
from rapport.policies.flow.transformer import CausalTransformer, Memory
from rapport.policies.flow.voice import Hearing, VoiceEncoder
from rapport.policies.motion import Layout
from rapport.policies.reactface.config import EXPECTING, ReactFaceSizes, Synchronise
from rapport.policies.reactface.sight import Sight

FACE, VOICE = 0, 1  # streams, columns of `present`
WIDEST = 4.0  # of |log sigma|
# Groups of which what is expected says anything: of the slow part of unseen listeners' expressions
# it explained .13, of their lids .01, of how they turn neck and head less than nothing.
HEEDED = ("expr",)


@dataclass(frozen=True, eq=False)
class Scene:
    """What is seen and heard of a speaker.

    Args:
        motion: (batch, frames, dim), in the layout's units; not read by one that sees pictures.
        voice: (batch, frames, audio_dim), features of sound.
        present: (batch, 2) bool, whether there is a face, a voice; numbers of an absent one are not
            read.
        pictures: (batch, pictures, height, width, 3) uint8, of one that sees them.
        newest: (batch, frames) int64, which of them is on show; -1 = none yet.
    """

    motion: Tensor
    voice: Tensor
    present: Tensor
    pictures: Tensor | None = None
    newest: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Tokens:
    """The speaker, encoded.

    Args:
        faces: (batch, frames, hidden), the aligned F of Eq. 6; kept of the newest alone.
        own: keys and values that the CIE's synchronisation attends to, of F and of A (Eq. 5), each
            (batch, frames, 2 hidden).
        shown: those that the decoder's does, likewise.
        there: (batch, frames, 2) bool, whether there is a face, a voice.
        expected: (batch, frames, dim), `Expectation`; 0 where nothing is heard, and of a model that
            expects nothing; kept of the newest alone.
    """

    faces: Tensor
    own: tuple[Tensor, Tensor]
    shown: tuple[Tensor, Tensor]
    there: Tensor
    expected: Tensor

    def after(self, before: Tokens, kept: int) -> Tokens:
        """The last `kept` frames that are attended to, and the newest."""

        def last(old: Tensor, new: Tensor) -> Tensor:
            return torch.cat([old, new], dim=1)[:, -kept:]

        return replace(
            self,
            own=(last(before.own[0], self.own[0]), last(before.own[1], self.own[1])),
            shown=(last(before.shown[0], self.shown[0]), last(before.shown[1], self.shown[1])),
            there=last(before.there, self.there),
        )

    def repeat(self, times: int) -> Tokens:
        """Each speaker of the batch several times in a row."""
        return self._each(lambda x: x.repeat_interleave(times, 0))

    def window(self, number: int, length: int) -> Tokens:
        """Frames of a window; nothing is there of the one before the first."""
        frames = slice(max(number, 0) * length, (max(number, 0) + 1) * length)
        window = self._each(lambda x: x[:, frames])
        if number >= 0:
            return window
        nothing = torch.zeros_like(window.there), torch.zeros_like(window.expected)
        return replace(window, there=nothing[0], expected=nothing[1])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Tokens:
        return cast(Tokens, pytree.tree_map(change, self))


@dataclass(frozen=True, eq=False)
class Senses:
    """What the next tokens of a speaker depend on, stream by stream."""

    face: Hearing
    voice: Hearing
    expects: Memory


@dataclass(frozen=True, eq=False)
class Past:
    """A listener between two windows.

    Args:
        tokens: of the speaker's last frames.
        own: what the CIE remembers of the own frames but the last window's.
        frames: (batch, window, dim), that window, standardised.
        latent: (batch, latent), z at its end.
        expected: (batch, window, dim), what was expected in it.
        begun: (batch,) bool, whether there was one.
    """

    tokens: Tokens
    own: Memory
    frames: Tensor
    latent: Tensor
    expected: Tensor
    begun: Tensor


@dataclass(frozen=True, eq=False)
class Gaussian:
    """The distribution of z*, one a window.

    Args:
        mean: (batch, latent).
        log_std: (batch, latent).
    """

    mean: Tensor
    log_std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Draws of noise from N(0, I)."""
        return self.mean + self.log_std.exp() * noise


@dataclass(frozen=True, eq=False)
class Reactions:
    """Windows that were made, one after the other.

    Args:
        frames: (batch, frames, dim), standardised.
        drawn: (batch, windows, latent), z*.
        mean: of its distribution, likewise.
        log_std: of its distribution.
    """

    frames: Tensor
    drawn: Tensor
    mean: Tensor
    log_std: Tensor


for kind in (Tokens, Senses, Past):
    pytree.register_dataclass(kind)  # which takes them apart and puts them together


@dataclass(frozen=True, eq=False)
class Read:
    """What is read off the encoded speaker.

    Args:
        motion: (batch, frames, dim), the speaker's own, standardised.
        expected: (batch, frames, dim), a listener's, `Expectation`.
    """

    motion: Tensor
    expected: Tensor


class Channels(nn.Module):
    """Mean and standard deviation of each channel over a corpus."""

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Take those of (..., dim); left as they are by nothing."""
        found = mean_and_std(batches)
        if found is not None:
            self.mean.copy_(found[0])
            self.std.copy_(found[1])

    def forward(self, values: Tensor) -> Tensor:
        """Standardised."""
        return (values - self.mean) / self.std

    def back(self, values: Tensor) -> Tensor:
        """In their own units."""
        return values * self.std + self.mean


class Axes(nn.Module):
    """Principal axes of each FLAME group, of standardised channels.

    What goes together in people goes together in what is made: two lids are one number, and what
    differs between them has the little room that it has in people.
    """

    axes: Tensor

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.register_buffer("axes", torch.eye(layout.dim))

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Take those of standardised (..., dim), as long as people vary; left as is by nothing."""
        count = 0
        products = torch.zeros(self.layout.dim, self.layout.dim, dtype=torch.float64)
        for batch in batches:
            rows = batch.double().flatten(0, -2)
            products += rows.mT @ rows
            count += len(rows)
        if not count:
            return
        for name in self.layout.names:
            group = self.layout.columns(name)
            variances, directions = torch.linalg.eigh(products[group, group] / count)
            self.axes[group, group] = directions * variances.clamp(min=0).sqrt()

    def forward(self, places: Tensor) -> Tensor:
        """Standardised channels of places (..., dim) along the axes."""
        return places @ self.axes.mT


class Interaction(nn.Module):
    """Cross-attention with a bias (Eq. 16), then an MLP, each beside a way round.

    There is always nothing to attend to, too: a key and a value of 0.
    """

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm = nn.RMSNorm(hidden, eps=1e-6)
        self.key_norm = nn.RMSNorm(hidden, eps=1e-6)
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.key_value = nn.Linear(hidden, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)
        self.mlp_norm = nn.RMSNorm(hidden, eps=1e-6)
        self.up = nn.Linear(hidden, 2 * hidden)
        self.down = nn.Linear(2 * hidden, hidden)

    def hold(self, tokens: Tensor) -> Tensor:
        """Keys and values (batch, m, 2 hidden) of tokens (batch, m, hidden) to attend to."""
        held: Tensor = self.key_value(self.key_norm(tokens))
        return held

    def forward(self, x: Tensor, held: Tensor, bias: Tensor) -> Tensor:
        """Tokens (batch, n, hidden) that attend to others -> the same shape.

        Args:
            x: those that attend.
            held: (batch, m, 2 hidden), `hold` of those that they attend to.
            bias: broadcasts to (batch, n, m), -inf where they must not.
        """
        queries = self._split(self.query(self.query_norm(x)))
        key, value = held.chunk(2, dim=-1)
        bias = F.pad(bias, (1, 0)).expand(len(x), -1, -1).unsqueeze(1)
        attended = F.scaled_dot_product_attention(
            queries,
            self._split(F.pad(key, (0, 0, 1, 0))),
            self._split(F.pad(value, (0, 0, 1, 0))),
            attn_mask=bias,
        )
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        change: Tensor = self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))
        return x + change

    def _split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)


class Synchronisation(nn.Module):
    """VIM, then MIM (Eq. 14-15): frames of a listener held against the speaker's face and voice.

    Args:
        sizes: of ReactFace.
        against: one of both, neither.
    """

    def __init__(self, sizes: ReactFaceSizes, against: Synchronise = "both") -> None:
        super().__init__()
        self.sizes = sizes
        hidden, heads = sizes.hidden, sizes.heads
        self.visual = Interaction(hidden, heads) if against in ("both", "face") else None
        self.modality = Interaction(hidden, heads) if against in ("both", "voice") else None

    def hold(self, faces: Tensor, voices: Tensor) -> tuple[Tensor, Tensor]:
        """What frames are held against, of a speaker's face and voice; 0 of what they are not."""
        nothing = faces.new_zeros(*faces.shape[:-1], 2 * self.sizes.hidden)
        return (
            nothing if self.visual is None else self.visual.hold(faces),
            nothing if self.modality is None else self.modality.hold(voices),
        )

    def forward(
        self, frames: Tensor, held: tuple[Tensor, Tensor], there: Tensor, ahead: int
    ) -> Tensor:
        """Frames (batch, window, hidden) -> the same shape.

        Args:
            frames: of the listener.
            held: `hold` of the last frames that are heard.
            there: (batch, frames, 2) bool, of which there is a face, a voice.
            ahead: by how many windows the listener's frames are ahead of the speaker's last ones.
        """
        sizes = self.sizes
        window = sizes.window
        own = torch.arange(window, device=frames.device) + ahead * window
        heard = torch.arange(window - there.shape[1], window, device=frames.device)
        bias = alignment_bias(own[:, None] - heard, sizes.period, sizes.looked_back)

        def seen(stream: int) -> Tensor:
            return bias.masked_fill(~there[:, None, :, stream], -torch.inf)

        if self.visual is not None:
            frames = self.visual(frames, held[FACE], seen(FACE))
        if self.modality is not None:
            frames = self.modality(frames, held[VOICE], seen(VOICE))
        return frames


class Expectation(nn.Module):
    """Where a listener's face is on average, frame by frame, as far as the speaker says.

    It is a mean over people and their moods, and so stiller than anybody: a middle for reactions to
    depart from, not one of them.

    Args:
        sizes: of ReactFace.
    """

    def __init__(self, sizes: ReactFaceSizes) -> None:
        super().__init__()
        self.read = CausalTransformer(
            sizes.hidden, layers=EXPECTING, heads=sizes.heads, look_back=sizes.looked_back
        )
        self.path = nn.Linear(sizes.hidden, sizes.layout.dim)

    def forward(self, speaker: Tensor, before: Memory) -> tuple[Tensor, Memory]:
        """The encoded speaker (batch, frames, hidden) -> (batch, frames, dim), along `Axes`."""
        read, after = self.read.follow(speaker, before)
        path: Tensor = self.path(read)
        return path, after


class ReactFace(nn.Module):
    """A listener that makes windows of motion.

    Args:
        sizes: of its parts.
    """

    alpha: Tensor
    drawn_share: Tensor
    heeded: Tensor

    def __init__(self, sizes: ReactFaceSizes) -> None:
        super().__init__()
        self.sizes = sizes
        dim = sizes.layout.dim
        hidden = sizes.hidden
        moods = torch.arange(sizes.latent) < sizes.moods
        alpha = torch.where(moods, sizes.mood, sizes.momentum)
        share = torch.where(moods, (1 - alpha.square()).sqrt(), 1 - alpha)
        heeded = [name in HEEDED for name, width in sizes.layout.groups for _ in range(width)]
        self.register_buffer("alpha", alpha, persistent=False)
        self.register_buffer("drawn_share", share, persistent=False)
        self.register_buffer("heeded", torch.tensor(heeded), persistent=False)
        self.listener = Channels(dim)
        self.axes = Axes(sizes.layout)  # of the listener
        self.speaker = Channels(dim)
        self.sound = Channels(sizes.audio_dim)
        # MSBEA
        self.sight = Sight(sizes.pixels, hidden) if sizes.sees == "frames" else None
        self.see = VoiceEncoder(dim if self.sight is None else hidden, sizes.senses, hidden)
        self.hear = VoiceEncoder(sizes.audio_dim, sizes.senses, hidden)
        self.align = nn.Linear(hidden, hidden, bias=False)  # PMA where k = 1: one key a frame
        self.speaker_head = nn.Linear(hidden, dim)
        self.expectation = Expectation(sizes) if sizes.expects else None
        # CIE
        self.own = nn.Linear(dim, hidden)
        self.own_synchronisation = Synchronisation(sizes)
        self.remember = CausalTransformer(
            hidden, layers=sizes.layers, heads=sizes.heads, look_back=sizes.looked_back
        )
        self.prior = nn.Parameter(torch.randn(2, hidden) / math.sqrt(hidden))  # mu and sigma tokens
        self.mean = nn.Linear(hidden, sizes.latent)
        self.log_std = nn.Linear(hidden, sizes.latent)
        # LRD and SLBS
        self.decode = nn.Sequential(
            nn.Linear(sizes.latent, 4 * hidden),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * hidden, 2 * hidden),
            nn.GELU(approximate="tanh"),
            nn.Linear(2 * hidden, hidden),
        )
        self.synchronisation = Synchronisation(sizes, sizes.synchronise)
        self.norm = nn.RMSNorm(hidden, eps=1e-6)
        self.head = nn.Linear(hidden, dim)

    # -- Whole clips --

    def forward(self, asked: Literal["read", "react", "density"], *arguments: Any) -> Any:
        """What learners ask of it, as sharded training hooks into this."""
        return getattr(self, asked)(*arguments)

    def read(self, scene: Scene) -> Read:
        """What whole windows of each speaker say, before anything is drawn."""
        return self._read(self.encode(scene))

    def _read(self, tokens: Tokens) -> Read:
        return Read(self.speaker_head(tokens.faces), tokens.expected)

    def react(self, scene: Scene, noise: Tensor, heed: float = 1.0) -> tuple[Reactions, Read]:
        """Free running: its past is what it did itself, with gradients through all windows.

        Args:
            scene: whole windows of each speaker.
            noise: (batch, samples, windows, latent) from N(0, I).
            heed: see `make`.

        Returns:
            Reactions of (batch * samples, ...), and what is read off the aligned features.
        """
        tokens = self.encode(scene)
        repeated = tokens.repeat(noise.shape[1])
        past = self.nothing(len(repeated.there))
        made = []
        for number, drawn in enumerate(noise.flatten(0, 1).unbind(1)):
            heard = repeated.window(number - self.sizes.ahead, self.sizes.window)
            past = self.listen(past, heard)
            gaussian = self.distribution(past)
            z = gaussian.sample(drawn)
            past = self.make(past, self.momentum(past, gaussian, z), heed)
            made.append((past.frames, z, gaussian.mean, gaussian.log_std))
        frames, *of_latents = zip(*made, strict=True)
        reactions = Reactions(
            torch.cat(frames, dim=1), *(torch.stack(x, dim=1) for x in of_latents)
        )
        return reactions, self._read(tokens)

    def density(self, scene: Scene, frames: Tensor) -> Tensor:
        """Mean and log sigma of z* in every window, given the own frames before it.

        Args:
            scene: whole windows of each speaker.
            frames: (batch, samples, windows, window, dim), what was done, in the layout's units.

        Returns:
            (batch, samples, windows, 2, latent).
        """
        samples = frames.shape[1]
        # Encoders learn by imitation alone: what expects and what decodes reads them, too.
        with torch.no_grad():
            tokens = self.encode(scene).repeat(samples)
        past = self.nothing(len(tokens.there))
        found = []
        for number, done in enumerate(self.listener(frames).flatten(0, 1).unbind(1)):
            heard = tokens.window(number - self.sizes.ahead, self.sizes.window)
            past = self.listen(past, heard)
            gaussian = self.distribution(past)
            found.append(torch.stack([gaussian.mean, gaussian.log_std], dim=1))
            past = replace(past, frames=done, begun=torch.ones_like(past.begun))
        return torch.unflatten(torch.stack(found, dim=1), 0, (-1, samples))

    def encode(self, scene: Scene) -> Tokens:
        """MSBEA of whole windows, from the first frame on."""
        return self.sense(scene, self.unsensed(len(scene.present)))[0]

    # -- Window by window --

    def unsensed(self, batch: int) -> Senses:
        """Before the first frame."""
        read = self.remember if self.expectation is None else self.expectation.read
        expects = read.nothing(batch)
        return Senses(self.see.nothing(batch), self.hear.nothing(batch), expects)

    def sense(self, scene: Scene, before: Senses) -> tuple[Tokens, Senses]:
        """MSBEA (Eq. 5-6) of frames that follow others, and what those after them depend on.

        A stream that is absent is forgotten: what comes after begins anew.
        """
        faces, seen = self.see.follow(self.face(scene), before.face)
        voices, heard = self.hear.follow(self.sound(scene.voice), before.voice)
        face, voice = (scene.present[:, stream, None, None] for stream in (FACE, VOICE))
        aligned = torch.where(face, faces, 0.0) + torch.where(voice, self.align(voices), 0.0)
        there = scene.present[:, None].expand(-1, faces.shape[1], -1)
        some = scene.present.any(1)
        expected, expects = self.expect(aligned + torch.where(voice, voices, 0.0), before.expects)
        expected = torch.where(some[:, None, None], expected, 0.0)
        senses = Senses(
            seen.where(scene.present[:, FACE]),
            heard.where(scene.present[:, VOICE]),
            expects.where(some),
        )
        own = self.own_synchronisation.hold(aligned, voices)
        shown = self.synchronisation.hold(aligned, voices)
        return Tokens(aligned, own, shown, there, expected), senses

    def face(self, scene: Scene) -> Tensor:
        """What is seen of the speaker, frame by frame: motion, standardised, or of pictures."""
        seen: Tensor = (
            self.speaker(scene.motion)
            if self.sight is None
            else self.sight(scene.pictures, scene.newest)
        )
        return seen

    def expect(self, frames: Tensor, before: Memory) -> tuple[Tensor, Memory]:
        """`Expectation` of encoded frames; nothing, of a model that expects nothing."""
        if self.expectation is not None:
            along, after = self.expectation(frames, before)
            return self.axes(along), after
        return frames.new_zeros(*frames.shape[:2], self.sizes.layout.dim), before

    def nothing(self, batch: int) -> Past:
        """Before the first window."""
        sizes = self.sizes
        like = self.head.weight
        newest = like.new_zeros(batch, sizes.window, sizes.hidden)
        held = like.new_zeros(batch, sizes.kept, 2 * sizes.hidden)
        absent = torch.zeros(batch, sizes.kept, 2, dtype=torch.bool, device=like.device)
        return Past(
            tokens=Tokens(
                faces=newest,
                own=(held, held),
                shown=(held, held),
                there=absent,
                expected=like.new_zeros(batch, sizes.window, sizes.layout.dim),
            ),
            own=self.remember.nothing(batch),
            frames=like.new_zeros(batch, sizes.window, sizes.layout.dim),
            latent=like.new_zeros(batch, sizes.latent),
            expected=like.new_zeros(batch, sizes.window, sizes.layout.dim),
            begun=absent[:, 0, 0],
        )

    def listen(self, past: Past, heard: Tokens) -> Past:
        """A window of the speaker is heard, and the own last one remembered beside it."""
        tokens = heard.after(past.tokens, self.sizes.kept)
        own = self.own_synchronisation(
            self.own(past.frames), tokens.own, tokens.there, self.sizes.ahead - 1
        )
        _, memory = self.remember.follow(own, past.own)
        return replace(past, tokens=tokens, own=memory.where(past.begun))

    def distribution(self, past: Past) -> Gaussian:
        """CIE (Eq. 7): how z* of the next window is distributed, given all before it."""
        tokens = self.prior.expand(len(past.begun), -1, -1)
        answers, _ = self.remember.follow(tokens, past.own)
        mean, spread = answers.unbind(1)
        log_std = WIDEST * torch.tanh(self.log_std(spread) / WIDEST)
        return Gaussian(self.mean(mean), log_std)

    def momentum(self, past: Past, gaussian: Gaussian, drawn: Tensor) -> Tensor:
        """Eq. 10: z of what was drawn, (batch, latent) each; the first one is what was drawn.

        By Eq. 10 what is drawn fades: after a while z is its mean. Moods last, and must not fade:
        theirs are spread as they were drawn, for as long as a session goes on.

        Args:
            past: of which z is followed.
            gaussian: of which was drawn.
            drawn: z*.
        """
        mean = gaussian.mean
        kept = self.alpha * past.latent + (1 - self.alpha) * mean
        follows = kept + self.drawn_share * (drawn - mean)
        return torch.where(past.begun[:, None], follows, drawn)

    def make(self, past: Past, latent: Tensor, heed: float = 1.0) -> Past:
        """The next window that ends in z: LRD (Eq. 12), then SLBS (Eq. 9).

        Args:
            past: that it goes on from.
            latent: (batch, latent), z.
            heed: by what factor it follows what is expected of `HEEDED` groups; 1 = as it was
                taught. Of others what is expected is noise.
        """
        before = torch.where(past.begun[:, None], past.latent, latent)
        z = interpolated(before, latent, self.sizes.window)
        tokens = past.tokens
        x = self.synchronisation(self.decode(z), tokens.shown, tokens.there, self.sizes.ahead)
        expected = tokens.expected.detach()  # what departs from it does not teach it
        middle = torch.where(self.heeded, heed, 1.0) * calmed(past.expected, expected)
        return replace(
            past,
            frames=middle + self.axes(self.head(self.norm(x))),
            latent=latent,
            expected=expected,
            begun=torch.ones_like(past.begun),
        )


def calmed(before: Tensor, now: Tensor) -> Tensor:
    """Each frame of a window as the mean of the last ones, as many as a window has.

    What is expected is the mean of a second: what trembles in it is not learnt, and samplers that
    follow it several times as far would tremble so many times as much.

    Args:
        before: (batch, window, dim), the window before.
        now: likewise.
    """
    both = torch.cat([before, now], dim=1)[:, 1:].transpose(1, 2)
    return F.avg_pool1d(both, before.shape[1], stride=1).transpose(1, 2)


def interpolated(before: Tensor, latent: Tensor, window: int) -> Tensor:
    """Eq. 11: from z of the window before, (batch, latent), to that of this one, in equal steps.

    Returns:
        (batch, window, latent), the last of which is `latent`.
    """
    share = torch.arange(1, window + 1, device=latent.device).to(latent)[:, None] / window
    return before[:, None] + share * (latent - before)[:, None]


def alignment_bias(age: Tensor, period: int, span: int) -> Tensor:
    """M^b of Eq. 17 where there is a token a frame, k = 1.

    Args:
        age: i - j, frames by which the speaker's are older.
        period: p, frames that count as equally old.
        span: frames; what is older is not attended to.

    Returns:
        - floor(age / period), -inf for what is still to come.
    """
    bias = -torch.div(age, period, rounding_mode="floor").float()
    return bias.masked_fill((age < 0) | (age > span), -torch.inf)


def initialised(sizes: ReactFaceSizes, seed: int) -> ReactFace:
    """The same weights for the same seed; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ReactFace(sizes)
