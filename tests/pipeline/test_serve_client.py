"""The client of live sessions, against a small real server: nothing is lost on the way."""

import asyncio
import socket

import numpy as np
import pytest

from rapport.pipeline.serve import wire
from rapport.pipeline.serve.client import Client, ClientError, Wanted, in_real_time
from rapport.pipeline.serve.wire import Kind
from rapport.policies.live import Chunk
from rapport.policies.motion import LayoutError, Motion
from tests.echoing import ARKIT, FRAMES, LAYOUT, MEMORY, SAMPLES, Echo, done

LOUD = [round(0.05 * (n % 7) - 0.1, 2) for n in range(12)]  # of the chunks
OUTAGES = {
    "cut": {(0, 6): "cut"},
    "moved": {(0, 6): "move"},
    "cut at the first chunk": {(0, 0): "cut"},
    "cut at the last chunk": {(0, 11): "cut"},
    "a policy that fails once": {(0, 6): "it failed"},
    "cut again and again": {(0, 3): "cut", (1, 3): "cut", (2, 8): "move"},
}


def chunk(loud, motion=None):
    return Chunk(audio=np.full(SAMPLES, loud, np.float32), motion=motion)


async def chunks(loud=LOUD):
    for each in loud:
        yield chunk(each)


def converse(echo, *, ahead=1, loud=LOUD, **asked):
    """All answers to a conversation, and the client."""

    async def talk():
        async with Client(echo.url, **{"patience_s": 20, **asked}) as client:
            return [answer async for answer in client.converse(chunks(loud), ahead)], client

    return asyncio.run(talk())


def means(loud=LOUD):
    return [float(np.rint(each * 32768) / 32768) for each in loud]


def assert_all_is_answered(answers, loud=LOUD):
    """As without any outage: every chunk once, in order, and every frame in its place."""
    assert [answer.chunk for answer in answers] == [*range(len(loud)), None]
    assert [len(answer.motion) for answer in answers] == [0, *[FRAMES] * len(loud)]
    assert [answer.sample for answer in answers[1:]] == [n * SAMPLES for n in range(len(loud))]
    acts = [np.frombuffer(answer.act, "<f4") for answer in answers[:-1]]
    expected = [done(means(loud), n) for n in range(len(loud))]
    np.testing.assert_allclose(np.concatenate(acts), expected, atol=1e-6)
    for answer, value in zip(answers[1:], expected, strict=True):
        np.testing.assert_allclose(answer.motion.values, value, atol=1e-6)
        np.testing.assert_allclose(answer.arkit, np.tile(value * ARKIT, (FRAMES, 1)), atol=1e-6)
        assert answer.motion.layout == LAYOUT


@pytest.mark.parametrize("ahead", [1, None])
def test_every_chunk_is_answered_and_the_rest_comes_at_the_end(ahead):
    with Echo().serving() as echo:
        answers, client = converse(echo, ahead=ahead)
    assert_all_is_answered(answers)
    assert client.sessions == 1
    assert all(answer.after_s > 0 for answer in answers[:-1])
    assert np.isnan(answers[-1].after_s)
    assert echo.asked == [{"outputs": ["motion", "arkit", "act"], "number": 0}]


@pytest.mark.parametrize("ahead", [1, None])
@pytest.mark.parametrize("outage", OUTAGES)
def test_a_session_that_is_lost_goes_on_as_if_nothing_had_been(outage, ahead):
    with Echo(OUTAGES[outage]).serving() as echo:
        answers, client = converse(echo, ahead=ahead)
    assert_all_is_answered(answers)
    assert client.sessions == 1 + len(OUTAGES[outage])


def test_a_new_session_is_told_what_went_before():
    with Echo({(0, 6): "cut"}).serving() as echo:
        answers, _ = converse(echo)
    assert [asked["number"] for asked in echo.asked] == [0, 6]
    assert echo.asked[1]["seed"] == 7, "the one that the server chose"
    messages = [said for said in echo.said[1] if not isinstance(said, wire.Pong | wire.Ack)]
    assert messages[0] == wire.Went(chunks=MEMORY)
    past = messages[1 : 1 + MEMORY]
    assert [[part.kind for part in parts] for parts in past] == [[Kind.SOUND, Kind.ACT]] * MEMORY
    assert [parts[1].sample for parts in past] == [n * SAMPLES for n in range(6 - MEMORY, 6)]
    assert [parts[1].payload for parts in past] == [answer.act for answer in answers[2:6]]
    assert [part.kind for part in messages[1 + MEMORY]] == [Kind.SOUND]


def test_what_was_read_of_the_face_goes_on_as_motion():
    with Echo({(0, 6): "cut"}, sees=True).serving() as echo:
        converse(echo)
    messages = [said for said in echo.said[1] if isinstance(said, list)][:MEMORY]
    kinds = [[part.kind for part in parts] for parts in messages]
    assert kinds == [[Kind.MOTION, Kind.SOUND, Kind.ACT], [Kind.SOUND, Kind.ACT]] * (MEMORY // 2)
    seen = [(parts[0].sample, parts[0].payload) for parts in messages[::2]]
    assert seen == [(n * SAMPLES, f"face{n}".encode()) for n in (2, 4)]


def test_the_text_of_the_moment_is_asked_for_again():
    """Chunk 4 was heard as told before it; what is told before chunk 6 is told again."""

    async def talk(echo):
        async with Client(echo.url, Wanted(text="calm")) as client:
            answers = []
            await client.liven(0.5)
            for number, loud in enumerate(LOUD):
                if number in (4, 6):
                    await client.tell({4: "sad", 6: None}[number])
                await client.say(chunk(loud))
                if number < 5:
                    answers.append(await anext(client))
            await client.end()
            return answers + [answer async for answer in client]

    with Echo({(0, 5): "cut"}).serving() as echo:
        assert_all_is_answered(asyncio.run(talk(echo)))
    assert [asked["text"] for asked in echo.asked] == ["calm", "sad"]
    again = [said for said in echo.said[1] if isinstance(said, wire.Told | wire.Liveliness)]
    assert again == [wire.Liveliness(value=0.5), wire.Told(text=None)]
    place = echo.said[1].index(wire.Told(text=None))
    assert echo.said[1][place + 1][0].sample == 6 * SAMPLES


def test_the_end_is_said_again_where_the_rest_did_not_come():
    class CutAtTheEnd(Echo):
        def shown(self, means, number, flags=0):
            if number == len(LOUD) and len(self.asked) == 1:
                self.cut()
            return super().shown(means, number, flags)

    with CutAtTheEnd().serving() as echo:
        answers, client = converse(echo)
    assert_all_is_answered(answers)
    assert client.sessions == 2
    assert echo.said[1][-1] == wire.End()


def test_where_silence_was_heard_silence_is_told_again():
    with Echo({(0, 4): "late", (0, 6): "cut"}).serving() as echo:
        answers, _ = converse(echo)
    assert [answer.late for answer in answers] == [n == 4 for n in range(len(LOUD) + 1)]
    heard = [*LOUD[:4], 0.0, *LOUD[5:]]
    for number, answer in enumerate(answers[1:]):
        np.testing.assert_allclose(answer.motion.values, done(means(heard), number), atol=1e-6)


def test_silence_is_told_again_of_an_answer_that_was_dropped():
    with Echo({(0, 4): "late and dropped", (0, 6): "move"}).serving() as echo:
        answers, _ = converse(echo, ahead=None)
    assert 4 not in [answer.chunk for answer in answers]
    sounds = [parts[0] for parts in echo.said[1] if isinstance(parts, list)][:MEMORY]
    loud = [any(sound.payload) for sound in sounds]
    assert [sound.sample // SAMPLES for sound in sounds] == [2, 3, 4, 5]
    assert loud == [False, True, False, True], "chunk 2 is silent, 4 was late"


def test_a_text_that_is_told_before_a_late_chunk_is_told_with_the_next():
    async def talk(echo):
        async with Client(echo.url) as client:
            client._answered = 1  # silence was heard in place of the first chunk
            await client.tell("sad")
            for loud in LOUD[:2]:
                await client.say(chunk(loud))
            return client._said

    with Echo().serving() as echo:
        said = asyncio.run(talk(echo))
    assert {number: each.told for number, each in said.items()} == {1: ("sad",)}


def test_acts_of_dropped_answers_are_kept():
    """They come with the next answer, and a session goes on with them."""
    with Echo({(0, 3): "drop", (0, 4): "drop", (0, 7): "move"}).serving() as echo:
        answers, _ = converse(echo, ahead=None)
    assert [answer.chunk for answer in answers] == [0, 1, 2, 5, 6, 7, 8, 9, 10, 11, None]
    assert [answer.chunk for answer in answers if answer.dropped] == [5]
    assert echo.said[1][1] == wire.Went(chunks=MEMORY)
    np.testing.assert_allclose(answers[-1].motion.values, done(means(), 11), atol=1e-6)


@pytest.mark.parametrize("status", [429, 503])
def test_a_full_server_is_asked_again(status):
    with Echo(busy=2, status=status).serving() as echo:
        answers, client = converse(echo)
    assert_all_is_answered(answers)
    assert client.sessions == 1


def test_patience_ends():
    with Echo(busy=1000).serving() as echo, pytest.raises(ClientError) as error:
        converse(echo, patience_s=0.3)
    assert "within 0.3 s" in str(error.value) and "all is taken" in str(error.value)


def test_nobody_is_waited_for_without_end():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        with pytest.raises(ClientError, match="no session at http.* within 0.3 s"):
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            asyncio.run(Client(url, patience_s=0.3).__aenter__())


def test_sessions_that_are_lost_at_once_are_not_opened_for_ever():
    script = {(session, 2): "cut" for session in range(1000)}
    with Echo(script).serving() as echo, pytest.raises(ClientError, match="within 0.5 s"):
        converse(echo, patience_s=0.5)
    assert 2 <= len(echo.asked) < 20


def test_where_a_policy_fails_again_and_again_patience_ends():
    script = {(session, 2): "it failed" for session in range(1000)}
    with Echo(script).serving() as echo, pytest.raises(ClientError, match="0.5 s: it failed"):
        converse(echo, patience_s=0.5)
    assert 2 <= len(echo.asked) < 20


def test_what_a_server_refuses_is_not_tried_again():
    with Echo({(0, 2): "sound: too early"}).serving() as echo:
        with pytest.raises(ClientError, match="closed the session: sound: too early"):
            converse(echo)
        assert len(echo.asked) == 1


def test_a_token_is_shown():
    with Echo(token="secret").serving() as echo:
        with pytest.raises(ClientError, match="status 401, no such token"):
            converse(echo)
        answers, _ = converse(echo, token="secret")
    assert_all_is_answered(answers)


def test_pictures_and_its_own_voice_go_up_too_and_are_told_again():
    rng = np.random.default_rng(0)

    async def talk(echo):
        async with Client(echo.url) as client:
            said = Chunk(
                audio=np.full(SAMPLES, 0.1, np.float32),
                own_audio=np.full(SAMPLES, 0.2, np.float32),
                frames=rng.integers(0, 256, (3, 256, 256, 3), np.uint8),
                taken=np.array([0.0, 0.05, 0.1]),
            )
            await client.say(said)
            await anext(client)
            await client.say(chunk(0.1))
            await client.end()
            return [answer async for answer in client]

    with Echo({(0, 1): "cut"}).serving() as echo:
        asyncio.run(talk(echo))
    messages = [said for said in echo.said[0] if isinstance(said, list)]
    assert len(messages) > 2, "noise fills more than a message"
    first = [part for parts in messages for part in parts if part.sample < SAMPLES]
    assert [part.kind for part in first] == [Kind.PICTURE] * 3 + [Kind.OWN_SOUND, Kind.SOUND]
    assert [part.sample for part in first[:3]] == [0, 800, 1600]
    assert not np.frombuffer(first[3].payload, "<i2").var()
    past = [part for parts in echo.said[1] if isinstance(parts, list) for part in parts][:6]
    assert past[:5] == first and past[5].kind is Kind.ACT


def test_motion_goes_up_before_the_sound_of_its_chunk():
    motion = Motion(np.full((FRAMES, LAYOUT.dim), 0.25), LAYOUT)

    async def talk(echo):
        async with Client(echo.url) as client:
            await client.say(chunk(0.1, motion))
            await client.end()
            with pytest.raises(ValueError, match=r"chunk 1 has \(2560,\)"):
                await client.say(Chunk(audio=np.zeros(5, np.float32)))
            with pytest.raises(LayoutError):
                await client.say(chunk(0.1, motion.subset(LAYOUT.subset({"jaw": 3}))))
            return [answer async for answer in client]

    with Echo().serving() as echo:
        asyncio.run(talk(echo))
    [parts] = [said for said in echo.said[0] if isinstance(said, list)]
    assert [part.kind for part in parts] == [Kind.MOTION, Kind.SOUND]
    np.testing.assert_array_equal(np.frombuffer(parts[0].payload, "<f4"), 0.25)


def test_what_was_taken_is_acknowledged_and_pings_are_answered():
    async def talk(echo):
        async with Client(echo.url) as client:
            for loud in LOUD[:3]:
                await client.say(chunk(loud))
            for _ in range(2):
                await anext(client)
            async with asyncio.timeout(20):
                while wire.Ack(sample=2 * SAMPLES) not in echo.said[0]:
                    await asyncio.sleep(0.05)

    with Echo().serving() as echo:
        asyncio.run(talk(echo))
    acks = [said for said in echo.said[0] if isinstance(said, wire.Ack)]
    assert max(ack.sample for ack in acks) == 2 * SAMPLES, "the third was not taken"
    assert wire.Pong(id=5) in echo.said[0]


def test_what_was_taken_late_is_acknowledged_before_more_is_said():
    async def talk(echo):
        async with Client(echo.url) as client:
            await client.say(chunk(LOUD[0]))
            await anext(client)
            await client.say(chunk(LOUD[1]))
            await anext(client)

    with Echo().serving() as echo:
        asyncio.run(talk(echo))
    said = echo.said[0]
    second = [i for i, heard in enumerate(said) if isinstance(heard, list)][1]
    assert wire.Ack(sample=SAMPLES) in said[:second]


def test_many_clients_share_an_event_loop():
    async def talk(echo):
        async def one():
            async with Client(echo.url) as client:
                return [answer async for answer in client.converse(chunks(), 1)]

        return await asyncio.gather(*(one() for _ in range(16)))

    with Echo({(3, 5): "move"}).serving() as echo:
        for answers in asyncio.run(talk(echo)):
            assert_all_is_answered(answers)
    assert len(echo.asked) == 17


def test_a_recording_is_said_in_real_time():
    """No chunk is given before its last sample was recorded."""

    async def talk(echo):
        early = []
        async with Client(echo.url) as client:

            async def watched():
                number = 0
                async for each in in_real_time([chunk(loud) for loud in LOUD[:4]], client):
                    number += 1
                    due = client.begins + number * client.session.chunk_s
                    early.append(due - asyncio.get_running_loop().time())
                    yield each

            return [answer async for answer in client.converse(watched())], early

    with Echo().serving() as echo:
        answers, early = asyncio.run(talk(echo))
    assert_all_is_answered(answers, LOUD[:4])
    assert max(early) < 0.002, "as exact as the clock of an event loop"


def test_what_fails_to_be_read_ends_the_conversation():
    async def broken():
        yield chunk(0.1)
        raise OSError("the file is damaged")

    async def talk(echo):
        async with Client(echo.url) as client:
            return [answer async for answer in client.converse(broken())]

    with Echo().serving() as echo, pytest.raises(OSError, match="damaged"):
        asyncio.run(talk(echo))
