"""What tests of live listeners share: chunks of a clip, a session through them, a lost one."""

import numpy as np

from rapport.policies.clip import AUDIO_RATE
from rapport.policies.live import Chunk
from rapport.policies.pictures import evenly_taken

LOST = 50  # chunks after which a session is lost


def chunks_of(clip, frames, waits=False):
    """What reaches a listener, chunk by chunk, as long as it answers.

    One that `waits` for nothing answers before the first; the last one is then heard too late.
    """
    if waits:
        yield None
    rate = AUDIO_RATE / clip.listener.layout.fps
    for number in range(len(clip.listener) // frames - waits):
        start, end = number * frames, (number + 1) * frames
        samples = slice(round(start * rate), round(end * rate))
        pictures, taken = pictures_between(clip, start, end)
        yield Chunk(
            frames=pictures,
            taken=taken,
            audio=None if clip.speaker_audio is None else clip.speaker_audio[samples],
            motion=None if clip.speaker is None else clip.speaker.window(start, frames),
            own_audio=None if clip.listener_audio is None else clip.listener_audio[samples],
        )


def pictures_between(clip, start, end):
    """The pictures of a clip that are taken in some frames, and when, seconds from the first."""
    if clip.speaker_frames is None:
        return None, None
    fps = clip.listener.layout.fps
    taken = evenly_taken(len(clip.speaker_frames), clip.seconds)
    within = (start / fps + 1e-9 < taken) & (taken <= end / fps + 1e-9)
    return clip.speaker_frames[within], taken[within] - start / fps


def listened(live, state, chunks):
    """The whole motion of a session, and its state at the end."""
    pieces = []
    for heard in chunks:
        [motion], [state] = live.step([state], [heard])
        pieces.append(motion.values)
    pieces.append(live.finish(state).values)
    return np.concatenate(pieces), state


def gone_on(live, chunks, start, atol):
    """A session that is lost and goes on from its last seconds alone does what it would have done;
    from less it goes on, too, and does something else.

    `start` makes a session by the number of its first chunk. The states at the end: of the session
    that was not lost, of the one that knew enough, of the one that knew less.
    """
    memory = round(live.memory / live.chunk)
    assert memory < 40
    begun = chunks.count(None)
    state = start(0)
    acts = []
    for heard in chunks[:LOST]:
        _, [state] = live.step([state], [heard])
        acts.append(live.act(state))

    def followed(count):
        moved = start(LOST - begun - count)
        known = slice(LOST - count, LOST)
        for heard, act in zip(chunks[known], acts[known], strict=True):
            [moved] = live.follow([moved], [heard], [act])
        return moved

    exact, short = followed(memory), followed(2)
    apart = []
    for heard in chunks[LOST:]:
        [expected], [state] = live.step([state], [heard])
        [found], [exact] = live.step([exact], [heard])
        np.testing.assert_allclose(found.values, expected.values, atol=atol)
        [other], [short] = live.step([short], [heard])
        apart.append(np.abs(other.values - expected.values).max())
    assert apart[0] > 1e-3  # what is forgotten was heeded
    return state, exact, short
