"""Requests drawn from the OpenAPI file and hostile messages: somebody who talks beside goes on."""

import base64
import contextlib
import io
import itertools
import json
import struct

import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error, positive_data_acceptance
from schemathesis.specs.openapi.checks import negative_data_rejection
from websockets.exceptions import ConnectionClosed

from rapport.pipeline.serve import session, wire
from rapport.pipeline.serve.settings import ServeSection
from rapport.pipeline.serve.wire import Kind, Part
from rapport.policies.flow.config import PAPER_GROUPS
from rapport.policies.live import Chunk
from tests.live_clients import heard, pcm, sound_part
from tests.live_sockets import (
    LIMITS,
    listening,
    loaded,
    received,
    socket,
    ticket,
    wait_until_all_left,
)
from tests.small_flow import saved_policy
from tests.talking import small_policy

CHUNK = 5120
SEED = 5
SILENT = 8  # calls, of which the bystander says something in one
FORM = "/v1/generations"
load_all_checks()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    saved_policy(folder / "flow", PAPER_GROUPS)
    small_policy().save(folder / "vla")
    policies = {name: str(folder / name) for name in ("flow", "vla")}
    section = ServeSection(policies=policies, sessions=4, limits=LIMITS, grace_s=600)
    return loaded(section, fits=True)


@pytest.fixture(scope="module")
def client(server):
    with listening(server) as client:
        yield client


@pytest.fixture
def bystander(client, server, caplog, monkeypatch):
    """Somebody who talks meanwhile, a chunk every few calls.

    In the end every frame is as if nobody else had been there, to the bit; nobody else is there any
    more, and no error of ours was logged.
    """
    monkeypatch.setattr(session, "GONE_S", 600)  # requests are thought up meanwhile
    rng = np.random.default_rng(0)
    said, shown, calls = [], [], itertools.count()

    def keep(parts):
        shown.extend(np.frombuffer(part.payload, "<f4") for part in parts)

    def says():
        if next(calls) % SILENT:
            return
        sound = pcm(rng.normal(size=CHUNK) / 10)
        live.send(wire.packed([sound_part(sound, CHUNK * len(said))]))
        live.send(wire.Ack(sample=CHUNK * len(said)).model_dump_json())
        said.append(heard(sound))
        keep(received(live))

    with socket(client, ticket(client, policy="flow", seed=SEED, outputs=["motion"])) as live:
        assert received(live)["type"] == "ready"
        yield says
        wait_until_all_left(server, but=1)
        live.send(wire.End().model_dump_json())
        while isinstance(message := received(live), list):
            keep(message)
        assert message == wire.ENDED
    voice = server.voice("flow")
    np.testing.assert_array_equal(np.concatenate(shown), alone(voice, said))
    wait_until_all_left(server)
    assert not server.seats._taken
    assert not [each for each in caplog.get_records("call") if each.exc_info], caplog.text


def alone(voice, said):
    """Frames of a session that nobody is beside, one after the other."""
    state = voice.start(SEED)
    frames = []
    for audio in [None, *said] if state.waits else said:
        chunk = None if audio is None else Chunk(audio=audio)
        [motion], [state] = voice.listener.step([state], [chunk])
        frames.append(motion.values)
    frames.append(voice.listener.finish(state).values)
    return np.concatenate(frames).astype(np.float32).ravel()


def drawn_from(document):
    """Requests as an OpenAPI document has them, and where they have a body, wrong ones, too."""
    cases = []
    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = found.ok()
        cases.append(operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
        if operation.body:
            wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
            cases += [wrong, wrong]  # most of what can be wrong is there
    return st.one_of(cases)


@pytest.mark.long
def test_what_is_drawn_from_the_openapi_file_is_answered_as_it_says(client, bystander):
    cases = drawn_from(client.get("/openapi.json").json())
    url = str(client.base_url)
    # Numbers of JSON are strict here, and a form cannot say null.
    excluded = [not_a_server_error, positive_data_acceptance]

    @settings(max_examples=600, deadline=None)
    @given(case=cases)
    def asked(case):
        answer = case.call(base_url=url, session=http)
        assert answer.status_code < 500 or answer.status_code == 503, answer.text
        form = case.operation.path == FORM
        unasked = [*excluded, negative_data_rejection] if form else excluded
        case.validate_response(answer, excluded_checks=unasked)
        bystander()

    with requests.Session() as http:
        asked()


# -- The socket --

JPEG = io.BytesIO()
Image.new("RGB", (32, 32), (200, 100, 50)).save(JPEG, "JPEG")
HEADER = struct.Struct("<BBHIQ")

letters = st.characters(codec="utf-8") | st.characters(categories=["Cs"])
texts = st.text(letters, max_size=60)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
samples = st.sampled_from([0, 1, CHUNK, 2 * CHUNK, 3 * CHUNK]) | st.integers(0, 2**64 - 1)


@st.composite
def pictures(draw):
    """A JPEG of which some bytes are others: it may say that it is of any size."""
    whole = bytearray(JPEG.getvalue())
    places = st.integers(0, len(whole) - 1)
    for place, byte in draw(st.dictionaries(places, st.integers(0, 255), max_size=4)).items():
        whole[place] = byte
    return bytes(whole[: draw(st.integers(1, len(whole)))])


payloads = (
    st.binary(max_size=100)
    | st.sampled_from([bytes(2 * CHUNK), bytes(2 * CHUNK + 2), b"\xff" * 32, bytes(66_000)])
    | st.integers(0, 40).map(lambda count: bytes(4 * count))
    | pictures()
)
parts = st.builds(Part, st.sampled_from(Kind), samples, payloads, st.integers(0, 2**16 - 1))
whole = st.lists(parts, min_size=1, max_size=3).map(wire.packed)
broken = st.tuples(whole, st.integers(0, 40)).map(lambda cut: cut[0][: -cut[1] or None])
headers = st.builds(
    HEADER.pack,
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**32 - 1),
    samples,
)
types = [kind.model_fields["type"].default for kind in wire.Text.__subclasses__()]
named = st.fixed_dictionaries(
    {"type": st.sampled_from([*filter(lambda t: isinstance(t, str), types), "sound", "picture"])},
    optional={
        "sample": samples | anything,
        "text": texts,
        "value": st.floats() | anything,
        "chunks": st.integers(1, 4) | anything,
        "id": st.integers() | anything,
        "data": payloads.map(lambda data: base64.b64encode(data).decode()) | texts,
    },
)
odd = st.tuples(named, st.dictionaries(texts, anything, max_size=2)).map(
    lambda two: two[0] | two[1]
)
said = (named | odd | anything).map(json.dumps)
messages = whole | broken | headers | st.binary(max_size=100) | said | st.text(max_size=100)

went = wire.Went(chunks=1).model_dump_json()
past = wire.packed([sound_part(np.zeros(CHUNK, "<i2"), 0), Part(Kind.ACT, 0, bytes(4))])
present = wire.packed([sound_part(np.zeros(CHUNK, "<i2"), CHUNK)])
bomb = JPEG.getvalue().replace(b"\x00\x20\x00\x20", b"\xff\xff\xff\xff")


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.long)])
def test_whatever_is_sent_a_socket_ends_with_a_reason(client, bystander, count):
    @settings(max_examples=count, deadline=None, derandomize=True)
    @example(asked={}, protocol=wire.PROTOCOL, sent=["1" * 5000])
    @example(asked={}, protocol=wire.PROTOCOL, sent=["[" * 60_000])
    @example(asked={}, protocol=wire.PROTOCOL, sent=[json.dumps({"type": "end", "\ud800": 1})])
    @example(
        asked={}, protocol=wire.PROTOCOL, sent=[json.dumps({"type": "end", "\U0001f600" * 99: 1})]
    )
    @example(asked={}, protocol=wire.PROTOCOL, sent=[wire.packed([Part(Kind.PICTURE, 0, bomb)])])
    @example(
        asked={"policy": "flow", "number": 1}, protocol=wire.PROTOCOL, sent=[went, past, present]
    )
    @given(
        asked=st.fixed_dictionaries(
            {"policy": st.sampled_from(["flow", "vla"]), "number": st.sampled_from([0, 0, 1, 3])}
        ),
        protocol=st.sampled_from([wire.PROTOCOL, wire.PROTOCOL, wire.PROTOCOL_OF_TEXTS]),
        sent=st.lists(messages, min_size=3, max_size=6),
    )
    def ends(asked, protocol, sent):
        with socket(client, ticket(client, **asked), protocol) as live:
            assert received(live)["type"] == "ready"
            with contextlib.suppress(ConnectionClosed):  # by a message before
                for message in [*sent, wire.End().model_dump_json()]:
                    live.send(message)
            told = {}
            while not isinstance(message := received(live), int):
                told = message
            if message != wire.ENDED:
                assert message in (wire.MISUNDERSTOOD, wire.FORBIDDEN, wire.TOO_LARGE)
                assert told["type"] == "error" and told["message"] and told["code"]
        bystander()

    ends()
