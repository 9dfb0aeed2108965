"""A live ReactFace does what `sample` does with the same input and seed, as long as it goes."""

from dataclasses import replace

import numpy as np
import pytest

from rapport.policies.clip import AUDIO_RATE
from rapport.policies.live import Chunk, LiveError
from rapport.policies.motion import LayoutError, Motion
from rapport.policies.pictures import BLIND_S
from tests import live_sessions
from tests.live_sessions import gone_on, listened
from tests.small_reactface import WINDOWS, W, shown, small_reactface, talking


@pytest.fixture(scope="module", params=["w", 0])
def delay(request):
    return request.param


@pytest.fixture(scope="module")
def policy(delay):
    """At 30 frames per second a chunk has 4,266 or 4,267 samples."""
    return small_reactface(fps=30 if delay == 0 else 25, delay=delay)


def chunks_of(clip, delay="w"):
    """What reaches a listener of that delay."""
    return live_sessions.chunks_of(clip, W, waits=delay == 0)


def offline(policy, clip, seed):
    [[reaction]] = policy.sample([policy.encode(clip)], 1, [seed])
    return policy.to_motion(reaction).values


LACKS = [{}, {"speaker": None}, {"speaker_audio": None}, {"speaker": None, "speaker_audio": None}]


@pytest.mark.parametrize("lacks", LACKS)
def test_live_equals_offline(policy, delay, lacks):
    clip = replace(talking(policy.layout), **lacks)
    live = policy.live()
    assert live.chunk == W / policy.layout.fps
    motion, state = listened(live, live.start(5), chunks_of(clip, delay))
    assert len(motion) == live.settled(state) == WINDOWS * W
    np.testing.assert_allclose(motion, offline(policy, clip, seed=5), atol=1e-5)
    if lacks:
        assert np.abs(motion - offline(policy, talking(policy.layout), seed=5)).max() > 1e-2


@pytest.mark.parametrize("lacks", [{}, {"speaker_audio": None}, {"speaker_frames": None}])
def test_one_that_sees_pictures_does_live_what_it_does_offline(delay, lacks):
    """A picture stays on show until there is another one, into the next chunk and beyond."""
    policy = small_reactface(delay=delay, sees="frames", pixels=16)
    assert policy.reads == ("speaker_frames", "speaker_audio")
    clip = replace(shown(talking(policy.layout)), speaker=None, **lacks)
    live = policy.live()
    chunks = list(chunks_of(clip, delay))
    if not lacks:
        assert {len(chunk.frames) for chunk in chunks if chunk is not None} == {1, 2}
    motion, state = listened(live, live.start(5), chunks)
    np.testing.assert_allclose(motion, offline(policy, clip, seed=5), atol=1e-5)
    moved = live.unpack(live.pack(state))
    assert np.array_equal(moved.picture, state.picture)
    if lacks:
        assert np.abs(motion - offline(policy, shown(talking(policy.layout)), seed=5)).max() > 1e-2
    seldom = replace(clip, speaker_frames=clip.speaker_frames[:5]) if not lacks else clip
    motion, _ = listened(live, live.start(5), chunks_of(seldom, delay))
    np.testing.assert_allclose(motion, offline(policy, seldom, seed=5), atol=1e-5)


def test_pictures_that_come_faster_than_in_training_are_thinned(delay):
    """Of a film of 25 a second every fifth is seen, whatever chunks it comes in."""
    policy = small_reactface(fps=25, delay=delay, sees="frames", pixels=16, rate=5.0)
    live = policy.live()
    film = shown(talking(policy.layout), count=WINDOWS * W)
    chunks = list(chunks_of(film, delay))
    every, found = [], 0
    for chunk in chunks:
        if chunk is not None:
            fifth = np.arange(found, found + len(chunk.frames)) % 5 == 0
            found += len(chunk.frames)
            chunk = replace(chunk, frames=chunk.frames[fifth], taken=chunk.taken[fifth])
        every.append(chunk)
    plain = small_reactface(fps=25, delay=delay, sees="frames", pixels=16).live()
    expected, _ = listened(plain, plain.start(5), every)
    all_of_it, _ = listened(plain, plain.start(5), chunks)
    motion, _ = listened(live, live.start(5), chunks)
    np.testing.assert_allclose(motion, expected, atol=1e-6)
    assert np.abs(motion - all_of_it).max() > 1e-2


@pytest.mark.parametrize("count", [300, 60, 12])
def test_a_lost_session_that_saw_pictures_goes_on_elsewhere(delay, count):
    """Whichever of them were left out, and though the last one was long ago."""
    policy = small_reactface(delay=delay, sees="frames", pixels=16, rate=2.0)
    clip = shown(talking(policy.layout, windows=60), count=count)
    live = policy.live()
    assert live.memory >= small_reactface(delay=delay).live().memory + BLIND_S - live.chunk
    gone_on(live, list(chunks_of(clip, delay)), lambda first: live.start(5, first=first), atol=1e-4)


def test_sessions_that_see_pictures_do_not_disturb_each_other(delay):
    """Some have more of them in a chunk than others, some have none."""
    policy = small_reactface(delay=delay, sees="frames", pixels=16)
    live = policy.live()
    clips = [
        shown(talking(policy.layout, 0), 0),
        shown(talking(policy.layout, 1), 1, count=30),
        talking(policy.layout, 2),
    ]
    heard = [list(chunks_of(clip, delay)) for clip in clips]
    alone = [listened(live, live.start(n), chunks)[0] for n, chunks in enumerate(heard)]
    states = [live.start(n) for n in range(3)]
    pieces = []
    for chunks in zip(*heard, strict=True):
        motions, states = live.step(states, chunks)
        pieces.append([motion.values for motion in motions])
    together = [np.concatenate(motions) for motions in zip(*pieces, strict=True)]
    for motion, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(motion, expected, atol=1e-5)


def test_sessions_do_not_disturb_each_other(policy, delay):
    """Four in a pass: each began at another time, and has other streams and another seed."""
    live = policy.live()
    clips = [replace(talking(policy.layout, n), **lacks) for n, lacks in enumerate(LACKS)]
    heard = [list(chunks_of(clip, delay)) for clip in clips]
    alone = [listened(live, live.start(n), chunks)[0] for n, chunks in enumerate(heard)]
    states = {n: live.start(n) for n in range(4)}
    pieces = {n: [] for n in states}
    for moment in range(WINDOWS + 8):
        there = [n for n in states if 0 <= moment - 2 * n < len(heard[n])]
        if not there:
            continue
        chunks = [heard[n][moment - 2 * n] for n in there]
        motions, after = live.step([states[n] for n in there], chunks)
        states |= dict(zip(there, after, strict=True))
        for n, motion in zip(there, motions, strict=True):
            pieces[n].append(motion.values)
    for n, expected in enumerate(alone):
        np.testing.assert_allclose(np.concatenate(pieces[n]), expected, atol=1e-5)


def test_an_hour_live_is_an_hour_at_once(policy, delay):
    """100 times what is looked back at. In the middle the session moves to another process, which
    changes no bit.
    """
    count = 300
    clip = talking(policy.layout, windows=count)
    expected = offline(policy, clip, seed=7)
    live = policy.live()
    state = moved = live.start(7)
    pieces = []
    sizes = set()
    for number, chunk in enumerate(chunks_of(clip, delay)):
        [motion], [state] = live.step([state], [chunk])
        pieces.append(motion.values)
        if number == count // 2:
            moved = policy.live().unpack(live.pack(state))
        if number > count // 2:
            [again], [moved] = live.step([moved], [chunk])
            np.testing.assert_array_equal(again.values, motion.values)
        if number > 9:
            sizes.add(len(live.pack(state)))
    np.testing.assert_allclose(np.concatenate(pieces), expected, atol=1e-4)
    assert max(sizes) - min(sizes) < 100  # the header has numbers


def test_a_stream_that_was_absent_begins_anew(policy):
    """Whatever was said before a pause of the microphone, the voice after it is the same."""
    live = policy.live()
    chunks = [list(chunks_of(talking(policy.layout, seed))) for seed in range(2)]
    first, other = chunks
    newest = []
    for before in (first[0], other[0], Chunk()):
        state = live.start(0)
        steps = [None] if state.waits else []
        for heard in (*steps, before, Chunk(), first[2]):
            _, [state] = live.step([state], [heard])
        tokens = state.kept.past.tokens
        newest.append(tokens.shown[1][:, -W:].numpy())
        assert tokens.there[0, -2 * W :, 1].tolist() == [False] * W + [True] * W
    np.testing.assert_allclose(newest[0], newest[1], atol=1e-6)
    np.testing.assert_allclose(newest[0], newest[2], atol=1e-6)


def test_a_lost_session_goes_on_elsewhere(policy, delay):
    """From what it heard and came to in the last seconds alone, and with less it goes on, too."""
    clip = talking(policy.layout, windows=60)
    live = policy.live()
    chunks = list(chunks_of(clip, delay))

    def start(first):
        return live.start(5, first=first)

    state, exact, short = gone_on(live, chunks, start, atol=1e-4)
    assert live.settled(short) == live.settled(exact) == live.settled(state)


def test_what_does_not_fit_is_refused(policy, delay):
    live = policy.live()
    state = live.start(0)
    wrong, match = (Chunk(), "before anything is heard") if delay == 0 else (None, "after a chunk")
    with pytest.raises(ValueError, match=match):
        live.step([state], [wrong])
    if delay == 0:
        _, [state] = live.step([state], [None])
    samples = round(W * AUDIO_RATE / policy.layout.fps)
    with pytest.raises(ValueError, match=f"have {samples} audio samples"):
        live.step([state], [Chunk(audio=np.zeros(samples - 1, np.float32))])
    with pytest.raises(ValueError, match="8 frames of motion, got 7"):
        live.step([state], [Chunk(motion=Motion(np.zeros((7, 6)), policy.layout))])
    with pytest.raises(LayoutError):
        other = replace(policy.layout, fps=24)
        live.step([state], [Chunk(motion=Motion(np.zeros((8, 6)), other))])
    for act in (np.zeros(3), np.full(4, np.nan)):
        with pytest.raises(ValueError, match="z is 4 finite numbers"):
            live.follow([state], [Chunk()], [act])
    with pytest.raises(LiveError, match="takes no text"):
        live.tell(state, None)
