"""A live AR-Flow does what `sample` does with the same input and seed, as long as it goes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from rapport.policies.flow.conditions import LEADS, Conditions
from rapport.policies.flow.config import FlowSizes
from rapport.policies.flow.live import LiveFlow
from rapport.policies.flow.model import initialised, time_features
from rapport.policies.flow.policy import FlowPolicy, Sampler
from rapport.policies.flow.sampling import generate_long, ode, window_noise
from rapport.policies.flow.settings import EncodersConfig
from rapport.policies.live import Chunk, LiveError
from rapport.policies.motion import LayoutError, Motion
from rapport.policies.sessions import together
from tests import live_sessions
from tests.live_sessions import gone_on, listened
from tests.small_flow import LATENTS, small_policy, two_people

R = 8


@pytest.fixture(scope="module", params=[25, 30])
def fps(request):
    """At 30 frames per second a chunk has 4,266 or 4,267 samples."""
    return request.param


@pytest.fixture(scope="module")
def policy(fps, tmp_path_factory):
    return small_policy(tmp_path_factory.mktemp("texts"), fps)


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    return small_policy(tmp_path_factory.mktemp("texts"))


def talking(layout, seed=0, latents=LATENTS):
    return two_people(layout, latents * R, seed)


def chunks_of(clip, lead=8):
    """What reaches a listener of that lead."""
    return live_sessions.chunks_of(clip, R, waits=lead == 0)


def offline(policy, clip, seed, **sampler):
    asked = policy.with_sampler(**sampler)
    [[reaction]] = asked.sample([policy.encode(clip)], 1, [seed])
    return asked.to_motion(reaction).values


@pytest.mark.parametrize("lead", LEADS)
def test_live_equals_offline(policy, lead):
    clip = talking(policy.layout)
    expected = offline(policy, clip, seed=5, lead=lead)
    live = LiveFlow(policy)
    assert live.chunk == R / policy.layout.fps
    state = live.start(5, policy.encode(clip), lead)
    motion, state = listened(live, state, chunks_of(clip, lead))
    # With a lead of 12, the last latent waits for a chunk that never comes.
    latents = LATENTS - (lead == 12)
    assert len(motion) == latents * R and state.number == latents
    settled = (latents - 1) * R + R // 2
    np.testing.assert_allclose(motion[:settled], expected[:settled], atol=1e-5)
    if lead < 12:
        np.testing.assert_allclose(motion, expected, atol=1e-5)


def test_a_voice_may_go_in_as_it_is(tmp_path):
    """The paper's AR-Flow has no encoder of voices."""
    policy = small_policy(tmp_path, voice=None)
    clip = talking(policy.layout)
    live = LiveFlow(policy)
    motion, _ = listened(live, live.start(5, policy.encode(clip)), chunks_of(clip))
    np.testing.assert_allclose(motion, offline(policy, clip, seed=5), atol=1e-5)


LACKS = [
    {"manner": None},
    {"speaker": None},
    {"speaker_audio": None},
    {"listener_audio": None},
    {"speaker": None, "speaker_audio": None, "listener_audio": None},
]


@pytest.mark.parametrize("lacks", LACKS)
def test_what_a_clip_lacks_a_session_lacks(slow, lacks):
    clip = replace(talking(slow.layout), **lacks)
    live = LiveFlow(slow)
    motion, _ = listened(live, live.start(5, slow.encode(clip)), chunks_of(clip))
    np.testing.assert_allclose(motion, offline(slow, clip, seed=5), atol=1e-5)
    whole = offline(slow, talking(slow.layout), seed=5)
    assert np.abs(motion - whole).max() > 1e-3


def test_sessions_do_not_disturb_each_other(slow):
    """Five in a pass: each began at another time, and has other streams, another prompt, lead and
    seed.
    """
    live = LiveFlow(slow)
    leads = [8, 0, 12, 4, 8]
    clips = [replace(talking(slow.layout, n), **lacks) for n, lacks in enumerate(LACKS)]
    heard = [list(chunks_of(clip, lead)) for clip, lead in zip(clips, leads, strict=True)]
    begun = [
        live.start(seed, slow.encode(clip) if seed % 2 else None, lead)
        for seed, (clip, lead) in enumerate(zip(clips, leads, strict=True))
    ]
    alone = [listened(live, state, chunks)[0] for state, chunks in zip(begun, heard, strict=True)]
    states = dict(enumerate(begun))
    pieces = {n: [] for n in states}
    for moment in range(LATENTS + 2 * len(begun)):
        # Session n begins two chunks after session n - 1.
        there = [n for n in states if 0 <= moment - 2 * n < len(heard[n])]
        if not there:
            continue
        chunks = [heard[n][moment - 2 * n] for n in there]
        motions, after = live.step([states[n] for n in there], chunks)
        states |= dict(zip(there, after, strict=True))
        for n, motion in zip(there, motions, strict=True):
            pieces[n].append(motion.values)
    for n, state in states.items():
        pieces[n].append(live.finish(state).values)
        np.testing.assert_allclose(np.concatenate(pieces[n]), alone[n], atol=1e-6)


def test_an_hour_live_is_an_hour_at_once(slow):
    """300 latents at a span of 3: 100 times what is looked back at. In the middle the session moves
    to another process, which changes no bit.
    """
    count = 300
    clip = talking(slow.layout, latents=count)
    frames = len(clip.listener)
    encode = slow.features.audio
    conditions = Conditions(
        text=slow.features.of_text(clip.manner)[None],
        partner_audio=encode(clip.speaker_audio, frames, slow.layout.fps)[None],
        partner_motion=slow.latents(clip.speaker)[None],
        actor_audio=encode(clip.listener_audio, frames, slow.layout.fps)[None],
    )
    noise = window_noise([7], 1, count, slow.flow.config.latent_dim)
    latents = generate_long(slow.flow.eval(), conditions, noise, ode("midpoint", 4))
    expected = slow.vae.to_motions([latents[0, 0]])[0].values

    live = LiveFlow(slow)
    state = moved = live.start(7, slow.encode(talking(slow.layout)))
    pieces = []
    sizes = set()
    for number, chunk in enumerate(chunks_of(clip)):
        [motion], [state] = live.step([state], [chunk])
        pieces.append(motion.values)
        if number == count // 2:
            packed = live.pack(state)
            assert isinstance(packed, bytes)
            moved = LiveFlow(slow).unpack(packed)
        if number > count // 2:
            [again], [moved] = live.step([moved], [chunk])
            np.testing.assert_array_equal(again.values, motion.values)
        if number > 9:
            sizes.add(len(live.pack(state)))
    pieces.append(live.finish(state).values)
    np.testing.assert_allclose(np.concatenate(pieces), expected, atol=1e-5)
    assert max(sizes) - min(sizes) < 100  # the header has numbers


def test_a_stream_that_was_absent_begins_anew(slow):
    """Whatever was said before a pause of the microphone, the voice after it is the same token."""
    live = LiveFlow(slow)
    first, other = (list(chunks_of(talking(slow.layout, seed))) for seed in range(2))
    newest = []
    for before in (first[0], other[0], Chunk()):
        state = live.start(0)
        for heard in (before, Chunk(), first[2]):
            _, [state] = live.step([state], [heard])
        in_a_latent = 1 + 2 * 2
        newest.append(state.kept.prefix.scene.values[0][..., -in_a_latent:, :])
        assert state.kept.prefix.present[0].tolist()[-in_a_latent * 2 :] == [False] * 5 + [True] * 5
    torch.testing.assert_close(newest[0], newest[1], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(newest[0], newest[2], atol=1e-6, rtol=1e-6)


def test_the_step_is_one_graph_whatever_the_numbers_are(slow):
    """What a GPU records once: traced whole, without a branch on a value, and then called at other
    places of other sessions.
    """
    graphs = []

    def counted(graph, _):
        graphs.append(graph)
        return graph.forward

    live = LiveFlow(slow)
    traced = torch.compile(live.advance.__call__, fullgraph=True, dynamic=False, backend=counted)
    clips = [talking(slow.layout, 1), replace(talking(slow.layout, 2), speaker_audio=None)]
    states = [live.start(0, slow.encode(clips[0]), 12), live.start(1, None, 0)]
    for chunks in zip(chunks_of(clips[0], 12), chunks_of(clips[1], 0), strict=True):
        listened = [live._listen(*pair)[1] for pair in zip(states, chunks, strict=True)]
        given = live._given(states, listened)
        kept = together([state.kept for state in states])
        found, expected = traced(kept, given), live.advance(kept, given)
        for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
        _, states = live.step(states, chunks)
    assert states[0].number != states[1].number and len(graphs) == 1


def test_flow_time_stays_float32_in_a_bfloat16_model(slow):
    clip = talking(slow.layout)
    expected = offline(slow, clip, seed=5, evaluations=6)
    half = FlowPolicy(initialised(slow.flow.config, 0), slow.vae, slow.encoders)
    half.flow.load_state_dict(slow.flow.state_dict())
    half.flow.bfloat16()
    half.sampler = Sampler(evaluations=6)  # sixths, of which bfloat16 has none
    told = []
    half.flow.time.register_forward_pre_hook(lambda _, args: told.append(args[0].float().flatten()))
    live = LiveFlow(half)
    state = live.start(5, slow.encode(clip))
    motion, state = listened(live, state, chunks_of(clip))
    exact = time_features(torch.arange(6) / 6).repeat(LATENTS, 1)
    torch.testing.assert_close(torch.stack(told), exact, rtol=0, atol=2**-8)
    assert np.abs(motion - expected).max() < 0.2 < np.abs(expected).max()
    leaves = pytree.tree_leaves(live.unpack(live.pack(state)).kept)
    for found, kept in zip(leaves, pytree.tree_leaves(state.kept), strict=True):
        assert found.dtype == kept.dtype and torch.equal(found, kept)


def test_what_does_not_fit_is_refused(slow):
    live = LiveFlow(slow)
    audio = np.zeros(R * 640, np.float32)
    with pytest.raises(ValueError, match="before anything is heard"):
        live.step([live.start(0, lead=0)], [Chunk()])
    with pytest.raises(ValueError, match="every other one after a chunk"):
        live.step([live.start(0)], [None])
    with pytest.raises(ValueError, match="a lead of 3 frames"):
        live.start(0, lead=3)
    with pytest.raises(ValueError, match="frames 0 to 7 at 25 fps have 5120 audio samples"):
        live.step([live.start(0)], [Chunk(audio=audio[1:])])
    with pytest.raises(ValueError, match="not finite, first at sample 0"):
        live.step([live.start(0)], [Chunk(own_audio=audio + np.nan)])
    with pytest.raises(ValueError, match="8 frames of motion, got 7"):
        live.step([live.start(0)], [Chunk(motion=Motion(np.zeros((7, 6)), slow.layout))])
    with pytest.raises(LayoutError):
        other = replace(slow.layout, fps=30)
        live.step([live.start(0)], [Chunk(motion=Motion(np.zeros((8, 6)), other))])
    with pytest.raises(ValueError, match="without guidance"):
        LiveFlow(slow.with_sampler(omega_speak=2.0))
    with pytest.raises(LiveError, match="does not know the whole window"):
        LiveFlow(slow.with_sampler(lead=None))
    with pytest.raises(ValueError, match="hears log-mel bands"):
        LiveFlow(FlowPolicy(slow.flow, slow.vae, EncodersConfig(audio="facebook/wav2vec2-large")))


@pytest.mark.parametrize("lead", LEADS)
def test_a_lost_session_goes_on_elsewhere(policy, lead):
    """From what it heard and came to in the last seconds alone, and with less it goes on, too."""
    clip = talking(policy.layout, latents=60)
    live = LiveFlow(policy)
    chunks = list(chunks_of(clip, lead))

    def start(first):
        return live.start(5, policy.encode(clip), lead, first=first)

    state, exact, short = gone_on(live, chunks, start, atol=1e-5)
    assert short.first + short.number == exact.first + exact.number == state.number


def test_a_listener_is_told_something_else(slow):
    live = LiveFlow(slow)
    happy, sad = (slow.told(text) for text in ("happy", "sad"))
    chunks = list(chunks_of(talking(slow.layout)))
    changed = live.start(5, happy)
    for heard in chunks[:3]:
        _, [changed] = live.step([changed], [heard])
    same = live.tell(changed, happy)
    changed = live.tell(changed, sad)
    nothing = live.tell(changed, None)
    motions, _ = live.step([same, changed, nothing], chunks[3:4] * 3)
    assert len({motion.values.tobytes() for motion in motions}) == 3
    always, [begun] = live.step([live.start(5, sad)], chunks[:1])
    [told], _ = live.step([live.tell(live.start(5, happy), sad)], chunks[:1])
    np.testing.assert_array_equal(told.values, always[0].values)


def test_what_did_not_come_from_a_listener_is_not_followed(slow):
    live = LiveFlow(slow)
    for act in (np.zeros(3), np.full(4, np.nan)):
        with pytest.raises(ValueError, match="a latent is 4 finite numbers"):
            live.follow([live.start(0)], [Chunk()], [act])


def test_what_is_expected_is_told_as_loud_as_the_sizes_say(tmp_path):
    """By samplers; what is expected, and what is learnt of it, stays the same."""
    policy = small_policy(tmp_path)
    flow = policy.flow
    clip = talking(policy.layout)
    plain = offline(policy, clip, seed=5)
    path = flow.project_path.weight.detach().clone()
    flow.config = replace(flow.config, heed=2.0)
    louder = offline(policy, clip, seed=5)
    live = LiveFlow(policy)
    motion, _ = listened(live, live.start(5, policy.encode(clip)), chunks_of(clip))
    np.testing.assert_allclose(motion, louder, atol=1e-5)
    assert not np.allclose(louder, plain, atol=1e-3)
    # Twice the weights say the same at the loudness that was taught.
    flow.config = replace(flow.config, heed=1.0)
    with torch.no_grad():
        flow.project_path.weight.copy_(2 * path)
    np.testing.assert_allclose(offline(policy, clip, seed=5), louder, atol=1e-5)
    assert FlowSizes.from_json(replace(flow.config, heed=2.0).to_json()).heed == 2.0
