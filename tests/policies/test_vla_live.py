"""A live listener does what `sample` does with the same input and seed, as long as it goes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rapport.policies.clip import AUDIO_RATE
from rapport.policies.live import Chunk
from rapport.policies.vla.live import LiveVla
from rapport.policies.vla.sampling import decided
from tests.talking import SEQUENCE, small_policy, talking

# Five contexts of two chunks.
SECONDS = 4.0
POLICY = small_policy(seconds=SECONDS)
CHUNK = 0.4


def chunks_of(clip, chunk=CHUNK):
    """What reaches a listener, chunk by chunk; the last one is heard too late."""
    rate = len(clip.speaker_frames) / clip.seconds
    taken = (np.arange(len(clip.speaker_frames)) + 0.5) / rate
    for number in range(round(clip.seconds / chunk) - 1):
        start, end = number * chunk, (number + 1) * chunk
        inside = (taken > start) & (taken <= end + 1e-6)
        first, last = round(start * AUDIO_RATE), round(end * AUDIO_RATE)
        yield Chunk(
            clip.speaker_frames[inside],
            taken[inside] - start,
            clip.speaker_audio[first:last],
            tuple(word for word in clip.words if start + 1e-6 < word.end <= end + 1e-6),
        )


def listened(live, states, clips):
    """The whole motion of each session, and the states at the end."""
    pieces = [[] for _ in clips]
    for heard in zip(*[[None, *chunks_of(clip, live.chunk)] for clip in clips], strict=True):
        motions, states = live.step(states, heard)
        for piece, motion in zip(pieces, motions, strict=True):
            piece.append(motion.values)
    for piece, state in zip(pieces, states, strict=True):
        piece.append(live.finish(state).values)
    return [np.concatenate(piece) for piece in pieces], states


@pytest.mark.parametrize("past", [0.0, 1.2])
def test_live_equals_offline_beyond_one_context(past):
    clips = [talking(seconds=SECONDS, past=past, seed=seed) for seed in range(3)]
    prompts = [POLICY.encode(clip) for clip in clips]
    offline = [POLICY.to_motion(group[0]).values for group in POLICY.sample(prompts, 1, [5, 6, 7])]
    live = LiveVla(POLICY)
    states = [
        live.start(5 + number, prompt, clip.past)
        for number, (prompt, clip) in enumerate(zip(prompts, clips, strict=True))
    ]
    motions, _ = listened(live, states, clips)
    for motion, expected in zip(motions, offline, strict=True):
        np.testing.assert_allclose(motion, expected, atol=1e-4)


def test_chunks_of_a_second_with_two_pictures_too():
    sequence = replace(SEQUENCE, chunk=1.0, context=2.0, history=1.0, frames=2)
    policy = small_policy(seconds=4.0, sequence=sequence)
    clip = talking(seconds=4.0, past=2.0, frame_rate=2.0)
    prompt = policy.encode(clip)
    expected = policy.to_motion(policy.sample([prompt], 1, [3])[0][0]).values
    live = LiveVla(policy)
    motions, _ = listened(live, [live.start(3, prompt, clip.past)], [clip])
    np.testing.assert_allclose(motions[0], expected, atol=1e-4)


def test_a_camera_that_is_off_is_absent_as_in_a_clip_without_pictures():
    clip = talking(seconds=SECONDS, past=0)
    prompt = POLICY.encode(replace(clip, speaker_frames=None))
    expected = POLICY.to_motion(POLICY.sample([prompt], 1, [3])[0][0]).values
    live = LiveVla(POLICY)
    state = live.start(3, prompt)
    pieces = []
    for heard in [None, *chunks_of(clip)]:
        dark = None if heard is None else replace(heard, frames=None, taken=None)
        [motion], [state] = live.step([state], [dark])
        pieces.append(motion.values)
    pieces.append(live.finish(state).values)
    np.testing.assert_allclose(np.concatenate(pieces), expected, atol=1e-4)


def test_sessions_do_not_disturb_each_other_and_may_begin_at_any_time():
    clips = [talking(seconds=SECONDS, past=0, seed=seed) for seed in range(2)]
    live = LiveVla(POLICY)
    alone = [listened(live, [live.start(seed)], [clips[seed]])[0][0] for seed in range(2)]
    first, second = live.start(0), live.start(1)
    heard = [[None, *chunks_of(clip)] for clip in clips]
    pieces = [[], []]
    for number in range(len(heard[0]) + 1):
        sessions = [] if number == len(heard[0]) else [(0, first, heard[0][number])]
        if number:  # the second one is a chunk late
            sessions.append((1, second, heard[1][number - 1]))
        motions, states = live.step([s for _, s, _ in sessions], [h for *_, h in sessions])
        for (place, *_), motion, state in zip(sessions, motions, states, strict=True):
            pieces[place].append(motion.values)
            first, second = (state, second) if place == 0 else (first, state)
    for piece, whole in zip(pieces, alone, strict=True):
        whole_but_the_end = np.concatenate(piece)
        np.testing.assert_allclose(whole_but_the_end, whole[: len(whole_but_the_end)], atol=1e-4)


def test_a_packed_session_goes_on_as_it_would_have():
    clip = talking(seconds=SECONDS, past=1.2)
    live = LiveVla(POLICY)
    state = live.start(4, POLICY.encode(clip))
    heard = [None, *chunks_of(clip)]
    for chunk in heard[:5]:
        _, [state] = live.step([state], [chunk])
    packed = live.pack(state)
    assert isinstance(packed, bytes) and len(packed) < 40_000
    moved = LiveVla(POLICY).unpack(packed)
    for chunk in heard[5:]:
        [expected], [state] = live.step([state], [chunk])
        [found], [moved] = live.step([moved], [chunk])
        np.testing.assert_array_equal(found.values, expected.values)


def test_a_session_is_as_large_after_an_hour_as_after_a_minute():
    clip = talking(seconds=SECONDS, past=0)
    live = LiveVla(POLICY)
    state = live.start(0)
    sizes = []
    for heard in [None, *chunks_of(clip)]:
        _, [state] = live.step([state], [heard])
        sizes.append(len(live.pack(state)))
    assert max(sizes[5:]) <= max(sizes[:5]) + 500


def test_an_observation_is_asked_for_when_it_is_due():
    live = LiveVla(POLICY)
    state = live.start(0)
    with pytest.raises(ValueError, match="first chunk"):
        live.step([state], [Chunk()])
    _, [state] = live.step([state], [None])
    with pytest.raises(ValueError, match="every later one"):
        live.step([state], [None])


def test_a_lost_session_goes_on_elsewhere():
    """From what it heard and chose in the last seconds alone, as long as these begin at a beat."""
    clip = talking(seconds=8, past=0)
    live = LiveVla(POLICY)
    chunks = list(chunks_of(clip))
    lost = 15
    _, [state] = live.step([live.start(4)], [None])
    acts = []
    for heard in chunks[:lost]:
        _, [state] = live.step([state], [heard])
        acts.append(live.act(state))
    first = (lost - round(live.memory / live.chunk)) // live.beat * live.beat + live.beat
    assert first > 0
    moved = live.start(4, first=first)
    for heard, act in zip(chunks[first:lost], acts[first:], strict=True):
        [moved] = live.follow([moved], [heard], [act])
    for heard in chunks[lost:]:
        [expected], [state] = live.step([state], [heard])
        [found], [moved] = live.step([moved], [heard])
        np.testing.assert_allclose(found.values, expected.values, atol=1e-4)
    with pytest.raises(ValueError, match=f"from a multiple of {live.beat}"):
        live.start(0, first=1)
    with pytest.raises(ValueError, match="a chunk has 12 ids"):
        live.follow([moved], chunks[:1], [acts[0][1:]])


def test_damaged_weights_are_an_error_and_no_face_at_its_lowest():
    scores = torch.full((1, 4), float("nan"))
    with pytest.raises(ArithmeticError, match="weights are damaged"):
        decided(scores, torch.zeros(1, 1))
