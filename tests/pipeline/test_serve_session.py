"""Live sessions: what their clients send and get, on the real engine, without sockets."""

import io
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rapport.pipeline.serve import wire
from rapport.pipeline.serve.doors import pace_of_sound
from rapport.pipeline.serve.engine import (
    Engine,
    Job,
    Line,
    Voice,
    capacity,
    delay_of,
    measure,
    silence,
)
from rapport.pipeline.serve.session import (
    GONE_S,
    LOST_S,
    MOST_PICTURES,
    OWN_AHEAD_S,
    Session,
    SessionRequest,
    Terms,
)
from rapport.pipeline.serve.voices import start_of
from rapport.pipeline.serve.wire import Kind, Part, WireError
from rapport.policies.clip import AUDIO_RATE, Clip
from rapport.policies.flow.conditions import LEADS
from rapport.policies.flow.config import PAPER_GROUPS
from rapport.policies.head.arkit import ArkitRig
from rapport.policies.head.asset import load_head
from rapport.policies.head.livelink import channels
from rapport.policies.motion import Motion
from rapport.policies.seams import SMOOTHERS
from tests.live_clients import Client, Clock, begin, heard, pcm, say, settle, sound_part, voice_of
from tests.on_port import until
from tests.small_flow import LATENTS, small_policy
from tests.small_reactface import small_reactface
from tests.small_reactface import talking as reactface_clip
from tests.talking import small_policy as small_vla

R = 8
SECONDS = LATENTS * R / 25


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return small_policy(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def voice(policy):
    return voice_of(policy)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def engine(clock):
    engine = Engine(clock=clock)
    yield engine
    engine.stop()


def speech(seconds=SECONDS, seed=0):
    rng = np.random.default_rng(seed)
    return pcm(rng.normal(size=round(seconds * AUDIO_RATE)) / 10)


def offline(policy, sound, seed, text=None, lead=8):
    """What `sample` answers to the same sound."""
    frames = round(len(sound) / AUDIO_RATE * policy.layout.fps)
    clip = Clip(
        clip_id="c",
        dyad_id="d",
        split="train",
        listener=Motion(np.zeros((frames, policy.layout.dim), np.float32), policy.layout),
        speaker_audio=heard(sound),
        manner=text,
    )
    asked = policy.with_sampler(lead=lead)
    [[reaction]] = asked.sample([policy.encode(clip)], 1, [seed])
    return asked.to_motion(reaction).values


@pytest.mark.parametrize("lead", LEADS)
def test_a_live_session_does_what_the_policy_does_offline(policy, engine, lead):
    voice = voice_of(policy, lead)
    session, client = begin(voice, engine, seed=3, text="happy", lead=lead)
    sound = speech()
    say(session, sound)
    settle(engine)
    session.hear(wire.End().model_dump_json())
    client.until(lambda c: c.closed)
    assert client.closed == (wire.ENDED, "ended")
    found = client.shown(policy.layout).values
    expected = offline(policy, sound, 3, "happy", lead)
    settled = len(expected) - R - R // 2  # what follows the end is answered to silence
    np.testing.assert_allclose(found[:settled], expected[:settled], atol=1e-5)
    assert len(found) >= len(expected) - R * (lead == 12)  # which hears a chunk more
    assert client.texts[0] == {"type": "ready", "id": "s", "number": 0, "wait_s": 0.0}
    acts = client.parts(Kind.ACT)
    assert [part.sample for part in acts] == [voice.border(n) for n in range(len(acts))]


def test_frames_of_30_a_second_and_chunks_of_no_whole_number_of_samples(tmp_path, engine):
    policy = small_policy(tmp_path, fps=30)
    session, client = begin(voice_of(policy), engine, seed=3)
    sound = speech(LATENTS * R / 30)
    assert say(session, sound) == LATENTS
    settle(engine)
    settled = (LATENTS - 1) * R + R // 2
    client.until(lambda c: len(c.parts(Kind.SHOWN)) == LATENTS)
    found = client.shown(policy.layout).values
    np.testing.assert_allclose(found, offline(policy, sound, 3)[:settled], atol=1e-5)


def test_a_smoother_joins_the_chunks_and_leaves_the_rest(tmp_path, engine):
    """Each answer after the frames that were shown before it, to the end; what is done is kept."""
    plain = voice_of(small_policy(tmp_path, groups=(("expr", 2), ("rot", 3))))
    smoother = SMOOTHERS["inertialise"]
    clients = []
    for voice in (plain, replace(plain, smoother=smoother)):
        session, client = begin(voice, engine, seed=3)
        say(session, speech())
        settle(engine)
        session.hear(wire.End().model_dump_json())
        clients.append(client.until(lambda c: c.closed))
    layout = plain.policy.layout
    windows, joined = (
        [np.frombuffer(p.payload, "<f4").reshape(-1, layout.dim) for p in c.parts(Kind.SHOWN)]
        for c in clients
    )
    shown = None
    for window, found in zip(windows, joined, strict=True):
        if len(window):
            expected = smoother(shown, Motion(window, layout))
            np.testing.assert_allclose(found, expected.values, atol=1e-6)
            shown = Motion(found[-smoother.memory :], layout)
    assert np.abs(np.concatenate(joined) - np.concatenate(windows))[R:].max() > 1e-4
    acts = [[part.payload for part in client.parts(Kind.ACT)] for client in clients]
    assert acts[0] == acts[1]


def test_however_sound_is_cut_it_is_the_same(voice, engine):
    sound = speech()
    expected = begin(voice, engine)
    say(expected[0], sound)
    rng = np.random.default_rng(5)
    session, client = begin(voice, engine)
    at = 0
    while at < len(sound):
        length = int(rng.integers(160, 5120))
        again = int(rng.integers(0, 200))  # said twice
        first = max(at - again, 0)
        session.hear(wire.packed([sound_part(sound[first : at + length], first)]))
        settle(engine)
        session.hear(wire.Ack(sample=max(at - 8000, 0)).model_dump_json())
        at += length
    settle(engine)
    count = len(expected[1].parts(Kind.SHOWN))
    client.until(lambda c: len(c.parts(Kind.SHOWN)) == count)
    a, b = (c.shown(voice.policy.layout).values for c in (client, expected[1]))
    np.testing.assert_array_equal(a, b)


def test_what_is_missing_was_silence(voice, engine):
    sound = speech()
    silent = sound.copy()
    silent[6000:7000] = 0
    expected = begin(voice, engine)
    say(expected[0], silent)
    session, client = begin(voice, engine)
    say(session, sound[:5120])
    session.hear(wire.packed([sound_part(sound[5120:6000], 5120)]))
    session.hear(wire.packed([sound_part(sound[7000:10240], 7000)]))
    say(session, sound[10240:], first=10240)
    settle(engine)
    client.until(lambda c: len(c.parts(Kind.SHOWN)) == LATENTS)
    np.testing.assert_array_equal(
        client.shown(voice.policy.layout).values, expected[1].shown(voice.policy.layout).values
    )


def test_late_sound_is_heard_as_silence_and_time_goes_on(voice, engine, clock):
    session, client = begin(voice, engine)
    chunk = round(voice.border(1))
    sound = speech()
    clock.now += 0.32
    say(session, sound[:chunk])
    clock.now += 0.32 + 0.07
    session.tick()
    assert session.late == 0  # not yet
    clock.now += 0.02
    session.tick()
    assert session.late == 1
    session.hear(wire.packed([sound_part(sound[chunk : chunk + 100], chunk)]))  # too late
    clock.now += 0.30
    session.hear(wire.packed([sound_part(sound[2 * chunk : 3 * chunk], 2 * chunk)]))
    settle(engine)
    client.until(lambda c: len(c.parts(Kind.SHOWN)) == 3)
    assert [part.flags for part in client.parts(Kind.SHOWN)] == [0, wire.LATE, 0]
    silent = sound.copy()
    silent[chunk : 2 * chunk] = 0
    other = begin(voice, engine)
    say(other[0], silent[: 3 * chunk])
    settle(engine)
    other[1].until(lambda c: len(c.parts(Kind.SHOWN)) == 3)
    layout = voice.policy.layout
    np.testing.assert_array_equal(client.shown(layout).values, other[1].shown(layout).values)


def test_an_end_that_comes_while_the_last_answer_is_sent_loses_none(voice, engine):
    class Ending(Client):
        def send(self, message):
            if isinstance(message, bytes) and len(self.parts(Kind.SHOWN)) == 2:
                session.hear(wire.End().model_dump_json())  # from the thread that receives
            super().send(message)

    session, client = begin(voice, engine, Ending())
    say(session, speech()[: voice.border(3)])
    client.until(lambda c: c.closed)
    assert client.closed == (wire.ENDED, "ended")
    assert len(client.shown(voice.policy.layout)) > 3 * R - 1, "no gap, and what was left"


def test_an_engine_says_since_when_it_has_something_to_do(voice, engine, clock):
    session, client = begin(voice, engine)
    say(session, speech()[: voice.border(1)])
    client.until(lambda c: c.parts(Kind.SHOWN))
    settle(engine)
    clock.now += 3600
    say(session, speech()[voice.border(1) : voice.border(2)], first=voice.border(1), ack=False)
    assert engine.counts.idle_until == clock.now


class Idle:
    """An engine of which nobody wants answers."""

    def __init__(self, clock):
        self.clock = clock

    def submit(self, line, job):
        pass


@pytest.mark.parametrize("delay", [0.15, 0.3, 1.0])
def test_a_way_that_gets_longer_costs_a_second_and_one_that_stalls_no_more(voice, clock, delay):
    session, _ = begin(voice, Idle(clock))
    begun = clock.now
    waits = 0.32 + 0.08  # from the end of a chunk to silence in place of the next

    def speak(number, after):
        for moment in np.arange(clock.now, begun + (number + 1) * 0.32 + after, 0.02):
            clock.now = float(moment)
            session.tick()
        clock.now = begun + (number + 1) * 0.32 + after
        session.hear(wire.packed([sound_part(np.zeros(5120, "<i2"), 5120 * number)]))

    for number in range(10):
        speak(number, 0.02)
    assert session.late == 0
    for number in range(10, 40):
        speak(number, 0.02 + delay)
    lost = session.late
    assert 0 < lost <= 3 + np.ceil(delay / 0.32)
    for number in range(40, 200):
        speak(number, 0.02 + delay)
    assert session.late == lost
    for number in range(200, 203):  # the way is short again, and the clock as before
        speak(number, 0.02)
    clock.now += waits + 0.02
    session.tick()
    assert session.late == lost + 1


@pytest.mark.parametrize("parts_per_million", [-100, 100])
def test_a_clock_that_runs_a_little_fast_or_slow_is_kept_up_with(voice, clock, parts_per_million):
    session, _ = begin(voice, Idle(clock))
    begun = clock.now
    for number in range(11_250):  # an hour
        clock.now = begun + (number + 1) * 0.32 * (1 + parts_per_million / 1e6)
        session.tick()  # a moment before the sound is there
        session.hear(wire.packed([sound_part(np.zeros(5120, "<i2"), 5120 * number)]))
        session.tick()
    assert session.late == 0


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("lost", [3, 50])
def test_a_session_goes_on_elsewhere(policy, engine, lead, lost):
    voice = voice_of(policy, lead)
    sound = speech(60 * R / 25)
    asked = {"seed": 9, "text": "sad", "lead": lead}
    whole, client = begin(voice, engine, **asked)
    say(whole, sound)
    settle(engine)
    client.until(lambda c: len(c.parts(Kind.ACT)) == 60)
    acts = client.parts(Kind.ACT)
    past = min(lost, round(voice.listener.memory / voice.listener.chunk))
    other = Engine()
    moved, there = begin(voice, other, number=lost, **asked)
    moved.hear(wire.Went(chunks=past).model_dump_json())
    for number in range(lost - past, lost):
        first, end = voice.border(number), voice.border(number + 1)
        moved.hear(wire.packed([sound_part(sound[first:end], first), acts[number]]))
    say(moved, sound[voice.border(lost) :], first=voice.border(lost))
    settle(other)
    there.until(lambda c: len(c.parts(Kind.SHOWN)) == 60 - lost)
    for found, expected in zip(
        there.parts(Kind.SHOWN), client.parts(Kind.SHOWN)[lost:], strict=True
    ):
        assert found.sample == expected.sample
        values = (np.frombuffer(part.payload, "<f4") for part in (found, expected))
        np.testing.assert_allclose(*values, atol=1e-5)
    other.stop()


def test_a_session_that_ends_while_it_catches_up_ends_as_it_would_have(policy, engine):
    voice = voice_of(policy)
    whole, client = begin(voice, engine, seed=9)
    sound = speech()
    say(whole, sound)
    whole.hear(wire.End().model_dump_json())
    client.until(lambda c: c.closed)
    follow = voice.listener.follow
    go_on = threading.Event()

    def waits(*past):
        assert go_on.wait(30)
        return follow(*past)

    voice.listener.follow = waits
    moved, there = begin(voice, engine, seed=9, number=LATENTS)
    moved.hear(wire.Went(chunks=LATENTS).model_dump_json())
    for number, act in enumerate(client.parts(Kind.ACT)):
        first, end = voice.border(number), voice.border(number + 1)
        moved.hear(wire.packed([sound_part(sound[first:end], first), act]))
    moved.hear(wire.End().model_dump_json())
    assert there.closed is None
    go_on.set()
    there.until(lambda c: c.closed)
    assert there.closed == (wire.ENDED, "ended")
    [found], [*_, expected] = (c.parts(Kind.SHOWN) for c in (there, client))
    assert found.sample == expected.sample
    values = (np.frombuffer(part.payload, "<f4") for part in (found, expected))
    np.testing.assert_allclose(*values, atol=1e-5)


def test_less_than_a_chunk_ends_in_silence_and_is_answered(voice, engine):
    sound = speech()[:5120]
    sound[1000:] = 0
    clients = []
    for said in (sound, sound[:1000]):
        session, client = begin(voice, engine)
        session.hear(wire.packed([sound_part(said, 0)]))
        session.hear(wire.End().model_dump_json())
        clients.append(client.until(lambda c: c.closed))
    assert [client.closed for client in clients] == [(wire.ENDED, "ended")] * 2
    a, b = ([m for m in client.messages if isinstance(m, bytes)] for client in clients)
    assert a == b and len(a) == 2


@pytest.mark.parametrize("lead", LEADS)
def test_without_a_past_the_first_frames_are_where_they_belong(policy, engine, lead):
    voice = voice_of(policy, lead)
    sound = speech()
    ends = []
    for number in (0, 5):
        session, client = begin(voice, engine, number=number, lead=lead)
        say(session, sound[voice.border(number) :], first=voice.border(number))
        client.until(lambda c, n=number: len(c.parts(Kind.SHOWN)) == LATENTS - n)
        assert len(client.shown(policy.layout)) >= R, "without a gap"
        ends.append(client.parts(Kind.SHOWN)[-1].sample)
    assert ends[0] == ends[1]


def test_the_past_must_be_what_it_says(voice, engine):
    chunk = np.zeros(5120, "<i2")
    act = Part(Kind.ACT, 0, np.zeros(4, "<f4").tobytes())
    memory = round(voice.listener.memory / voice.listener.chunk)
    with pytest.raises(WireError, match="at most"):
        begin(voice, engine, number=500)[0].hear(wire.Went(chunks=memory + 2).model_dump_json())
    with pytest.raises(WireError, match="3 were before"):
        begin(voice, engine, number=3)[0].hear(wire.Went(chunks=4).model_dump_json())
    for parts, why in (
        ([act], "has its sound and its act"),
        ([sound_part(chunk[:1], 0)] * (MOST_PICTURES + 1), "no act among them"),
        ([sound_part(chunk[1:], 0), act], "has 5120 samples"),
        ([sound_part(chunk, 0), Part(Kind.ACT, 0, b"abc")], "act: "),
        ([sound_part(chunk, 0), Part(Kind.ACT, 0, b"\xff" * 16)], "act: finite"),
    ):
        session, _ = begin(voice, engine, number=3)
        session.hear(wire.Went(chunks=1).model_dump_json())
        with pytest.raises(WireError, match=why):
            session.hear(wire.packed(parts))
    session, client = begin(voice, engine, number=3)
    session.hear(wire.Went(chunks=1).model_dump_json())
    session.hear(wire.packed([sound_part(chunk, 0), Part(Kind.ACT, 0, act.payload[:8])]))
    client.until(lambda c: c.closed)  # what no listener did is noticed in the engine
    assert client.closed[0] == wire.MISUNDERSTOOD and client.texts[-1]["code"] == "act"
    assert engine.counts.failed == 0, "it is no failure of the policy"


def test_a_client_that_lags_is_sent_no_more_and_then_given_up(voice, engine, clock):
    session, client = begin(voice, engine)
    sound = np.zeros(5120, "<i2")
    number = 0
    while client.closed is None:
        clock.now += 0.32
        session.hear(wire.packed([sound_part(sound, 5120 * number)]))
        settle(engine)
        number += 1
        assert number < 60
    client.until(lambda c: c.closed)
    assert client.closed[0] == wire.MOVED and "no ack" in client.closed[1]
    assert LOST_S < number * 0.32 < LOST_S + 3
    assert session.dropped > 10
    assert len(client.parts(Kind.SHOWN)) == pytest.approx(9, abs=2)


def test_a_client_that_stood_still_goes_on(voice, engine, clock):
    """A page that was not to be seen for a while had nothing to show meanwhile."""
    session, client = begin(voice, engine)
    sound = np.zeros(5120, "<i2")
    for number, waited in enumerate((0.32, 0.32, 13.0, 0.32)):
        clock.now += waited
        session.hear(wire.packed([sound_part(sound, 5120 * number)]))
        settle(engine)
    client.until(lambda c: len(c.parts(Kind.SHOWN)) == 4)
    assert client.closed is None and session.dropped == 0


def test_a_client_that_catches_up_is_told_that_it_missed_something(voice, engine, clock):
    session, client = begin(voice, engine)
    sound = np.zeros(5120, "<i2")
    for number in range(20):
        clock.now += 0.32
        session.hear(wire.packed([sound_part(sound, 5120 * number)]))
        settle(engine)
    client.until(lambda c: session.dropped > 5)
    session.hear(wire.Ack(sample=5120 * 19).model_dump_json())
    session.hear(wire.packed([sound_part(sound, 5120 * 20)]))
    client.until(lambda c: c.parts(Kind.SHOWN)[-1].flags == wire.DROPPED)


def test_a_session_that_goes_on_says_all_that_it_kept_at_once(voice, engine, clock):
    """Half a minute, which clients try for: none of it is dropped, before any is shown."""
    terms = Terms(pace_of_sound(AUDIO_RATE, clock=clock, goes_on=True))
    client = Client()
    session = Session("s", SessionRequest(number=3), voice, engine, client, terms)
    chunks = round(30 / 0.32)
    for number in range(3, 3 + chunks):
        session.hear(wire.packed([sound_part(np.zeros(5120, "<i2"), 5120 * number)]))
    client.until(lambda c: c.closed or len(c.parts(Kind.ACT)) == chunks)
    assert client.closed is None and session.dropped == 0
    assert len(client.parts(Kind.SHOWN)) == chunks


def test_a_client_that_is_gone_is_noticed(voice, engine, clock):
    session, client = begin(voice, engine)
    clock.now += 5.1
    session.tick()
    assert client.texts[-1] == {"type": "ping", "id": None}
    session.hear(wire.Pong().model_dump_json())
    clock.now += GONE_S + 0.1
    session.tick()
    assert client.closed[0] == wire.MOVED and "nothing was heard" in client.closed[1]


def test_sound_may_not_come_faster_than_it_is_spoken(voice, engine, clock):
    terms = Terms(pace_of_sound(AUDIO_RATE, clock=clock))
    session = Session("s", SessionRequest(), voice, engine, Client(), terms)
    with pytest.raises(WireError, match="faster than it is spoken") as refused:
        for number in range(12):
            session.hear(wire.packed([sound_part(np.zeros(5120, "<i2"), 5120 * number)]))
    assert refused.value.close == wire.FORBIDDEN and number == 6
    clock.now += 10
    session.hear(wire.packed([sound_part(np.zeros(5120, "<i2"), 5120 * number)]))


@pytest.mark.parametrize(("samples", "apart"), [(1, 32_001), (5120, 15_360)])
def test_sound_that_is_left_out_may_not_come_faster_either(voice, engine, clock, samples, apart):
    """One sample every two seconds at once, or 16 kHz that are numbered as 48."""
    terms = Terms(pace_of_sound(AUDIO_RATE, clock=clock))
    session = Session("s", SessionRequest(), voice, engine, Client(), terms)
    with pytest.raises(WireError, match="faster than it is spoken") as refused:
        for number in range(12):
            sample = min(apart, 32_000) + apart * number
            session.hear(wire.packed([sound_part(np.zeros(samples, "<i2"), sample)]))
            clock.now += samples / AUDIO_RATE
    assert refused.value.close == wire.FORBIDDEN and number < 6


def test_who_begins_with_the_second_second_and_keeps_time_is_heard(voice, engine, clock):
    """The chunks come two at once."""
    terms = Terms(pace_of_sound(AUDIO_RATE, clock=clock))
    session = Session("s", SessionRequest(), voice, engine, Client(), terms)
    for number in range(12):
        clock.now += 0.64 * (number % 2 == 0)
        session.tick()
        sample = 2 * AUDIO_RATE + 5120 * number
        session.hear(wire.packed([sound_part(np.zeros(5120, "<i2"), sample)]))


def test_liveliness_changes_what_is_shown_and_not_what_is_answered(voice, engine):
    sound = speech()
    plain, still, half = (begin(voice, engine) for _ in range(3))
    still[0].hear(wire.Liveliness(value=0.0).model_dump_json())
    half[0].hear(wire.Liveliness(value=0.5).model_dump_json())
    for session, client in (plain, still, half):
        say(session, sound)
        settle(engine)
        client.until(lambda c: len(c.parts(Kind.SHOWN)) == LATENTS)
    whole, none, some = (c.shown(voice.policy.layout).values for _, c in (plain, still, half))
    assert not none.any() and whole.any()
    np.testing.assert_allclose(some, whole / 2)
    acts = [[part.payload for part in c.parts(Kind.ACT)] for _, c in (plain, still, half)]
    assert acts[0] == acts[1] == acts[2]


def test_a_text_is_heeded_from_the_next_chunk_on(policy, voice, engine):
    sound = speech()
    sad, client = begin(voice, engine, text="sad")
    say(sad, sound)
    changed, there = begin(voice, engine, text="happy")
    changed.hear(wire.Told(text="sad").model_dump_json())
    say(changed, sound)
    settle(engine)
    for c in (client, there):
        c.until(lambda c: len(c.parts(Kind.SHOWN)) == LATENTS)
    a, b = (c.shown(policy.layout).values for c in (client, there))
    np.testing.assert_array_equal(a, b)


def test_a_policy_that_fails_ends_its_own_session_only(policy, engine, caplog):
    voice = voice_of(policy)
    step = voice.listener.step

    def fails(states, chunks):
        if any(state.seed == 13 for state in states):
            raise RuntimeError("out of luck")
        return step(states, chunks)

    voice.listener.step = fails
    good, client = begin(voice, engine, seed=1)
    bad, there = begin(voice, engine, seed=13)
    sound = speech()
    for session in (bad, good):
        say(session, sound)
    there.until(lambda c: c.closed)
    assert there.closed[0] == wire.FAILED and there.texts[-1]["code"] == "failed"
    client.until(lambda c: len(c.parts(Kind.SHOWN)) == LATENTS)
    assert client.closed is None and engine.counts.failed == 1
    assert "session s: small failed" in caplog.text and "out of luck" in caplog.text


class Noted:
    """A listener that notes who shares its steps, the first of which waits for a word."""

    chunk = 0.32

    def __init__(self, layout):
        self.motion = Motion(np.zeros((1, layout.dim), np.float32), layout)
        self.steps = []
        self.go_on = threading.Event()

    def step(self, states, heard):
        self.steps.append(list(states))
        assert self.go_on.wait(30)
        return [self.motion] * len(states), states

    def settled(self, state):
        return 0

    def act(self, state):
        return np.zeros(1, np.float32)


@pytest.mark.parametrize(
    ("most", "steps"), [(8, [["a"], ["c", "d", "b"]]), (2, [["a"], ["c", "d"], ["b"]])]
)
def test_who_waits_shares_a_step_and_the_most_urgent_come_first(policy, engine, most, steps):
    listener = Noted(policy.layout)
    voice = replace(voice_of(policy), listener=listener, costs={1: 0.001, most: 0.002})
    other = replace(voice, listener=Noted(policy.layout))
    answers = []
    due = {"a": 0.0, "b": 3.0, "c": 1.0, "d": 2.0}
    for name in due:
        line = Line(name, voice, name, False, None, answers.append, None)
        engine.submit(line, Job(0, silence(listener, 0), due[name]))
        until(lambda: listener.steps)  # "a" is stepped, the others wait
    engine.submit(
        Line("e", other, "e", False, None, answers.append, None),
        Job(0, silence(listener, 0), 4.0),
    )
    other.listener.go_on.set()
    listener.go_on.set()
    settle(engine)
    until(lambda: len(answers) == 5)
    assert listener.steps == steps and other.listener.steps == [["e"]]


@pytest.mark.parametrize("lead", LEADS)
def test_where_a_policy_gives_no_number_the_face_stays_and_listens_anew(policy, engine, lead):
    voice = voice_of(policy, lead)
    step = voice.listener.step
    sound = speech()
    broken = 4  # the chunk
    trouble = heard(sound[voice.border(broken) : voice.border(broken + 1)])

    def breaks(states, chunks):
        motions, after = step(states, chunks)
        for motion, state, chunk in zip(motions, states, chunks, strict=True):
            if state.seed == 13 and chunk is not None and np.array_equal(chunk.audio, trouble):
                motion.values[:] = np.nan
        return motions, after

    voice.listener.step = breaks
    clients = []
    for seed, number in ((13, 0), (1, 0), (13, broken + 1)):
        session, client = begin(voice, engine, seed=seed, lead=lead, number=number)
        say(session, sound[voice.border(number) :], first=voice.border(number))
        chunks = LATENTS - number
        clients.append(client.until(lambda c, n=chunks: len(c.parts(Kind.ACT)) == n))
    values, others, anew = (client.shown(policy.layout).values for client in clients)
    assert np.isfinite(values).all() and len(values) == len(others)
    np.testing.assert_allclose(values[-len(anew) :], anew, atol=1e-6)
    held = len(values) - len(anew)
    r = voice.frames
    np.testing.assert_array_equal(values[held - r // 2 : held], values[[held - 1] * (r // 2)])
    assert clients[0].closed is None and engine.counts.failed == 1
    act = np.frombuffer(clients[0].parts(Kind.ACT)[broken].payload, "<f4")
    assert not act.any()


def test_whoever_is_stepped_again_is_where_they_were(policy, engine, monkeypatch):
    """As another failed in what comes after the step that they shared."""
    voice = voice_of(policy)
    act = voice.listener.act

    def fails(state):
        if state.seed == 13:
            raise RuntimeError("out of luck")
        return act(state)

    monkeypatch.setattr(voice.listener, "act", fails)
    answers, failures = [], []
    good, bad = (
        Line("s", voice, voice.start(seed), False, None, answers.append, failures.append)
        for seed in (1, 13)
    )
    alone = voice.start(1)
    jobs = [Job(number, silence(voice.listener, number), 0.0) for number in range(2)]
    engine._step([(good, jobs[0], 0.0), (bad, jobs[0], 0.0)])
    engine._step([(good, jobs[1], 0.0)])
    assert len(failures) == 1
    for job, answer in zip(jobs, answers, strict=True):
        [motion], [alone] = voice.listener.step([alone], [job.heard])
        np.testing.assert_allclose(answer.motion.values, motion.values, atol=1e-6)


def test_a_socket_of_texts(voice, engine):
    session, client = begin(voice, engine, Client(texts_only=True))
    say_text = wire.as_text(sound_part(np.zeros(5120, "<i2"), 0))
    session.hear(say_text)
    client.until(lambda c: len(c.texts) >= 3)
    shown, act = (wire.answered(m) for m in client.messages[-2:])
    assert (shown.kind, act.kind) == (Kind.SHOWN, Kind.ACT)
    with pytest.raises(WireError, match="texts only"):
        session.hear(b"x")


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.text(max_size=100),
            st.builds(
                lambda kind, sample, payload, flags: wire.packed(
                    [Part(Kind(kind), sample, payload, flags)]
                ),
                st.sampled_from(list(Kind)),
                st.integers(0, 2**64 - 1) | st.integers(0, 20_000),
                st.binary(max_size=300),
                st.integers(0, 2**16 - 1),
            ),
            st.builds(
                lambda kind, value: f'{{"type": "{kind}", "{kind}": {value}, "sample": {value}}}',
                st.sampled_from(["ack", "text", "liveliness", "went", "ping", "end", "sound"]),
                st.sampled_from(["1", "-1", "null", '"x"', "1e999", "[]", "NaN", str(2**70)]),
            ),
        ),
        max_size=6,
    )
)
def test_whatever_is_sent_nothing_but_a_reason_comes_back(voice, messages):
    engine = Engine()
    try:
        session, client = begin(voice, engine)
        for message in messages:
            try:
                session.hear(message)
            except WireError as error:
                assert str(error) and 1000 <= error.close < 1100
        settle(engine)
        assert engine.counts.failed == 0
    finally:
        engine.stop()


def test_what_is_measured(policy):
    voice = voice_of(policy, lead=0)
    costs = measure(voice.listener, voice.start, None, most=6, sees=False)
    assert sorted(costs) == [1, 2, 4, 6][: len(costs)] and all(costs.values())
    r, fps = 8, policy.layout.fps
    for lead, chunks in ((0, 0), (4, 1), (8, 1), (12, 2)):
        delay = delay_of(voice.listener, voice.start(0, lead=lead))
        assert delay == pytest.approx((chunks * r + r / 2) / fps)


def test_capacity_lies_between_what_was_measured():
    costs = {1: 0.02, 2: 0.03, 4: 0.07, 8: 0.11}
    assert capacity(costs, 0.05) == 3
    assert capacity(costs, 0.07) == 4
    assert capacity(costs, 1.0) == 8
    assert capacity({1: 0.5}, 0.1) == 1
    assert capacity({1: 0.02, 2: 0.01, 4: 0.05}, 0.04) == 3  # a slow first step is no reason


@pytest.fixture(scope="module")
def voices(policy):
    return {lead: voice_of(policy, lead) for lead in LEADS}


CHANGED = ("sound", "own sound", "motion", "text")


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lead=st.sampled_from(LEADS), changed=st.sampled_from(CHANGED), moment=st.data())
def test_no_answer_knows_what_comes_later(voices, lead, changed, moment):
    """Bit for bit, whatever is changed from any sample on."""
    voice = voices[lead]
    differs = moment.draw(st.integers(0, voice.border(LATENTS) - 1))
    first = differs // 5120  # chunk that differs
    engine = Engine(clock=Clock())
    sent = []
    try:
        for other in (False, True):
            session, client = begin(voice, engine, lead=lead)
            sounds = [speech(seed=seed) for seed in (0, 1)]
            motions = np.random.default_rng(2).normal(size=(LATENTS, 8, voice.policy.layout.dim))
            if other and "sound" in changed:
                place = CHANGED.index(changed)
                sounds[place][differs:] = speech(seed=3)[differs:]
            if other and changed == "motion":
                motions[first:] += 1
            for number in range(LATENTS):
                start, end = voice.border(number), voice.border(number + 1)
                if other and changed == "text" and number == first:
                    session.hear(wire.Told(text="happy").model_dump_json())
                motion = Part(Kind.MOTION, start, motions[number].astype("<f4").tobytes())
                own = Part(Kind.OWN_SOUND, start, sounds[1][start:end].tobytes())
                session.hear(wire.packed([motion, own, sound_part(sounds[0][start:end], start)]))
                settle(engine)
            client.until(lambda c: len(c.parts(Kind.ACT)) == LATENTS)
            sent.append([m for m in client.messages if isinstance(m, bytes)])
    finally:
        engine.stop()
    assert sent[0][:first] == sent[1][:first]


@pytest.mark.parametrize("lead", LEADS)
def test_nothing_that_is_sent_knows_what_is_said_later(policy, engine, lead):
    """Bit for bit, from the first byte to the last answer before the sound differs."""
    voice = voice_of(policy, lead)
    sounds = [speech(), speech()]
    differs = 5 * 5120 + 77
    sounds[1][differs:] = speech(seed=1)[differs:]
    sent = []
    for sound in sounds:
        session, client = begin(voice, engine, lead=lead)
        say(session, sound)
        settle(engine)
        client.until(lambda c: len(c.parts(Kind.ACT)) == LATENTS)
        sent.append([m for m in client.messages if isinstance(m, bytes)])
    before = differs // 5120
    assert sent[0][:before] == sent[1][:before]
    assert sent[0][before:] != sent[1][before:]


def test_an_answer_holds_what_arkit_says_of_its_frames(tmp_path, engine):
    policy = small_policy(tmp_path, groups=PAPER_GROUPS)
    voice = replace(voice_of(policy), rig=ArkitRig(load_head()))
    session, client = begin(voice, engine, outputs=["motion", "arkit"])
    say(session, speech())
    settle(engine)
    client.until(lambda c: len(c.parts(Kind.ARKIT)) == LATENTS)
    shown = client.shown(policy.layout)
    expected = channels(voice.rig.weights(shown))
    found = np.concatenate(
        [np.frombuffer(part.payload, "<f4").reshape(-1, 61) for part in client.parts(Kind.ARKIT)]
    )
    assert not client.parts(Kind.ACT)
    np.testing.assert_allclose(found, expected, atol=2e-3)  # each chunk's search starts anew


def test_what_waits_for_its_chunk_has_a_bound(voice, engine):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    session, _ = begin(voice, engine)
    picture = wire.packed([Part(Kind.PICTURE, 0, file.getvalue())])
    for _ in range(MOST_PICTURES):
        session.hear(picture)
    with pytest.raises(WireError, match="pictures wait"):
        session.hear(picture)
    ahead = int(OWN_AHEAD_S * AUDIO_RATE) // 5120
    for number in range(ahead):
        own = Part(Kind.OWN_SOUND, 5120 * number, np.zeros(5120, "<i2").tobytes())
        session.hear(wire.packed([own]))
    with pytest.raises(WireError, match="ahead at most"):
        for number in range(ahead, ahead + 2):
            own = Part(Kind.OWN_SOUND, 5120 * number, np.zeros(5120, "<i2").tobytes())
            session.hear(wire.packed([own]))


def other_voice(policy, act_type):
    """A policy without a lead, as a server has it."""
    listener = policy.live()
    return Voice(
        name=policy.kind,
        policy=policy,
        listener=listener,
        rig=None,
        start=partial(start_of, listener, False),
        delay={None: 0.4},
        act_type=act_type,
        costs={1: 0.001},
        simulated=True,
    )


def said_of(voice, number):
    """What is said in a chunk, and what else there is: a picture, motion, or the avatar's voice."""
    rng = np.random.default_rng(number)
    first, end = voice.border(number), voice.border(number + 1)
    sounds = [pcm(rng.normal(size=end - first) / 10) for _ in range(2)]
    if "speaker_frames" in voice.policy.reads:
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8)).save(file, "JPEG")
        besides = Part(Kind.PICTURE, first + 100, file.getvalue())
    elif voice.policy.kind == "reactface":
        motion = rng.normal(size=(voice.frames, voice.policy.layout.dim))
        besides = Part(Kind.MOTION, first, motion.astype("<f4").tobytes())
    else:
        besides = Part(Kind.OWN_SOUND, first, sounds[1].tobytes())
    return besides, sound_part(sounds[0], first)


def test_a_reactface_that_is_served_does_what_it_does_offline(engine):
    policy = small_reactface()
    clip = reactface_clip(policy.layout)
    sound = pcm(clip.speaker_audio)
    clip = replace(clip, speaker_audio=heard(sound))
    voice = other_voice(policy, "<f4")
    session, client = begin(voice, engine, seed=5)
    for number in range(len(clip.speaker) // voice.frames):
        first, end = voice.border(number), voice.border(number + 1)
        motion = clip.speaker.window(number * voice.frames, voice.frames)
        seen = Part(Kind.MOTION, first, motion.values.astype("<f4").tobytes())
        session.hear(wire.packed([seen, sound_part(sound[first:end], first)]))
    session.hear(wire.End().model_dump_json())
    client.until(lambda c: c.closed)
    found = client.shown(policy.layout).values
    [[reaction]] = policy.sample([policy.encode(clip)], 1, [5])
    np.testing.assert_allclose(found, policy.to_motion(reaction).values, atol=1e-5)


VOICES = {
    "flow": voice_of,
    "vla": lambda _: other_voice(small_vla(), "<i4"),
    "reactface": lambda _: other_voice(small_reactface(), "<f4"),
    "reactface that sees": lambda _: other_voice(
        small_reactface(sees="frames", pixels=16, rate=5.0), "<f4"
    ),
}


@pytest.mark.parametrize("kind", VOICES)
def test_a_session_goes_on_with_all_that_it_perceived(policy, engine, kind):
    """In messages of its own, as a message holds no more than 64 KiB."""
    voice = VOICES[kind](policy)
    chunks, lost = 30, 21
    past = min(lost, round(voice.listener.memory / voice.listener.chunk) + voice.listener.beat)
    whole, client = begin(voice, engine)
    for number in range(chunks):
        for part in said_of(voice, number):
            whole.hear(wire.packed([part]))
        settle(engine)
    client.until(lambda c: len(c.parts(Kind.ACT)) == chunks)
    acts = client.parts(Kind.ACT)
    found = []
    for told in (True, False):
        moved, there = begin(voice, engine, number=lost)
        moved.hear(wire.Went(chunks=past).model_dump_json())
        for number in range(lost - past, lost):
            besides, sound = said_of(voice, number)
            if told:
                moved.hear(wire.packed([besides]))
            moved.hear(wire.packed([sound, acts[number]]))
        for number in range(lost, chunks):
            for part in said_of(voice, number):
                moved.hear(wire.packed([part]))
            settle(engine)
        there.until(lambda c: len(c.parts(Kind.ACT)) == chunks - lost)
        found.append([part.payload for part in there.parts(Kind.ACT)])
    like, unlike = ([np.frombuffer(act, voice.act_type) for act in payloads] for payloads in found)
    expected = [np.frombuffer(part.payload, voice.act_type) for part in acts[lost:]]
    np.testing.assert_allclose(like, expected, atol=1e-5)
    assert np.abs(np.array(unlike) - expected).max() > 1e-3


def test_who_is_shown_no_more_is_not_seen_for_ever(engine):
    """A camera that is off is absent, as a film that has ended is; for 2 s a picture may stand."""
    voice = VOICES["reactface that sees"](None)
    session, _ = begin(voice, engine)
    seen = []
    session.noted = lambda number, chunk, *told: seen.append(chunk.frames)
    for number in range(12):
        besides, sound = said_of(voice, number)
        session.hear(wire.packed([besides, sound] if number in (1, 10) else [sound]))
        settle(engine)
    counts = [None if frames is None else len(frames) for frames in seen]
    assert counts == [None, 1, *[0] * 6, None, None, 1, 0]


def test_room_for_sessions_is_measured_with_the_pictures_that_they_send(monkeypatch):
    voice = VOICES["reactface that sees"](None)
    counts = []
    step = voice.listener.step

    def noted(states, heard):
        counts.append([None if c.frames is None else len(c.frames) for c in heard])
        return step(states, heard)

    monkeypatch.setattr(voice.listener, "step", noted)
    measure(voice.listener, voice.start, None, most=2, sees=True)
    assert counts[-1] == [2, 2]
    measure(voice.listener, voice.start, None, most=1, sees=False)
    assert counts[-1] == [None]


def test_the_past_is_told_once(voice, engine):
    session, _ = begin(voice, engine, number=3)
    session.hear(wire.Went(chunks=3).model_dump_json())
    act = Part(Kind.ACT, 0, np.zeros(4, "<f4").tobytes())
    session.hear(wire.packed([sound_part(np.zeros(5120, "<i2"), 0), act]))
    with pytest.raises(WireError, match="the past is told once"):
        session.hear(wire.Went(chunks=3).model_dump_json())
