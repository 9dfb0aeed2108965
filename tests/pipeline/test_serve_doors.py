"""Who may come in: tokens, tickets, origins, hosts, paces and sizes, through a real application."""

import base64
import json

import pytest
from fastapi import FastAPI, Request, WebSocket
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from starlette.testclient import WebSocketDenialResponse

from rapport.pipeline.serve import settings
from rapport.pipeline.serve.doors import (
    SECURITY_HEADERS,
    Doors,
    Pace,
    Refused,
    Rules,
    Seats,
    Tickets,
    guard,
    pace_of_bytes,
    pace_of_sound,
)
from rapport.pipeline.serve.wire import MOST_BYTES

TOKEN = "a token of some length"
HOME = "http://127.0.0.1:8000"
SECRET = bytes(range(32))
KNOWN = {"Authorization": f"Bearer {TOKEN}"}


class Clock:
    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


class Asked(BaseModel):
    policy: str = "listener"
    seed: int = 0
    text: str | None = None


def application(rules):
    app = FastAPI()

    @app.get("/")
    def page():
        return "page"

    @app.post("/v1/sessions")
    async def sessions(request: Request):
        return len(await request.body())

    @app.post("/v1/generations")
    async def generations(request: Request):
        return len(await request.body())

    @app.websocket("/v1/live")
    async def live(socket: WebSocket):
        await socket.accept()
        await socket.close()

    guard(app, rules)
    return app


def client(rules, base_url=HOME):
    return TestClient(application(rules), base_url=base_url)


# -- Tokens, hosts, origins --


@pytest.mark.parametrize(
    "said", ["", f"Bearer {TOKEN}x", "Bearer ", f"Basic {TOKEN}", TOKEN, "Bearer tökén"]
)
def test_without_the_token_nobody_comes_in_and_is_told_what_is_asked(said):
    visitor = client(Rules(token=TOKEN))
    answer = visitor.post("/v1/sessions", headers={"Authorization": said.encode()})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json()["detail"]["code"] == "token"


def test_the_token_opens_and_the_page_needs_none():
    visitor = client(Rules(token=TOKEN))
    assert visitor.post("/v1/sessions", headers=KNOWN).status_code == 200
    low = {"Authorization": f"bearer {TOKEN}"}
    assert visitor.post("/v1/sessions", headers=low).status_code == 200
    assert visitor.get("/").status_code == 200


def test_sockets_need_no_token_as_they_have_tickets():
    with client(Rules(token=TOKEN)).websocket_connect("/v1/live"):
        pass


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        (None, "127.0.0.1:8000", 200),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", 200),
        ("https://FACE.example", "face.example", 200),
        ("https://studio.example", "face.example", 200),
        ("https://studio.example:444", "face.example", 403),
        ("https://studio.example.evil", "face.example", 403),
        ("http://127.0.0.1:9000", "127.0.0.1:8000", 403),
        ("null", "face.example", 403),
        ("", "face.example", 403),
        ("http://[", "face.example", 403),
    ],
)
def test_pages_of_this_server_and_of_the_list_come_in(origin, host, status):
    rules = Rules(token=TOKEN, origins=frozenset({"https://studio.example"}))
    headers = KNOWN | {"Host": host} | ({} if origin is None else {"Origin": origin})
    visitor = client(rules)
    answer = visitor.post("/v1/sessions", headers=headers)
    assert answer.status_code == status
    if status == 200:
        with visitor.websocket_connect("/v1/live", headers=headers):
            pass
    else:
        assert "serve.origins" in answer.json()["detail"]["message"]
        with (
            pytest.raises(WebSocketDenialResponse) as refused,
            visitor.websocket_connect("/v1/live", headers=headers),
        ):
            pass
        assert refused.value.status_code == 403


def test_a_page_on_the_list_may_read_the_answers():
    visitor = client(Rules(token=TOKEN, origins=frozenset({"https://studio.example"})))
    asks = {
        "Origin": "https://studio.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    assert visitor.options("/v1/sessions", headers=asks).status_code == 200
    answer = visitor.post("/v1/sessions", headers=KNOWN | {"Origin": asks["Origin"]})
    assert answer.headers["Access-Control-Allow-Origin"] == asks["Origin"]
    other = visitor.options("/v1/sessions", headers=asks | {"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in other.headers


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "127.9.9.9:1"])
def test_without_a_token_this_machine_comes_in(host):
    assert client(Rules()).get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example:8000", "10.0.0.7:8000", "localhost.evil", "[", ""])
def test_without_a_token_a_name_that_a_stranger_points_here_does_not(host):
    """Of a rebound name, Origin and Host agree."""
    headers = {"Host": host, "Origin": f"http://{host}"}
    answer = client(Rules()).get("/", headers=headers)
    assert answer.status_code == 421
    assert "RAPPORT_TOKEN" in answer.json()["detail"]["message"]
    assert client(Rules(token=TOKEN)).get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "face.example", ""])
def test_no_server_listens_to_others_without_a_token(host, monkeypatch):
    for token in (None, ""):
        monkeypatch.setenv(settings.TOKEN, token or "")
        with pytest.raises(ValidationError, match="RAPPORT_TOKEN"):
            settings.ServeSection(host=host)
    monkeypatch.setenv(settings.TOKEN, TOKEN)
    settings.ServeSection(host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_a_server_listens_to_its_own_machine_without_a_token(host, monkeypatch):
    monkeypatch.delenv(settings.TOKEN, raising=False)
    settings.ServeSection(host=host)


@pytest.mark.parametrize("path", ["/", "/v1/sessions", "/nowhere"])
def test_every_answer_says_what_a_page_may_do(path):
    answer = client(Rules(token=TOKEN)).get(path)
    assert (
        SECURITY_HEADERS.items()
        <= {
            name.title().replace("Content-Type-O", "Content-Type-O"): value
            for name, value in answer.headers.items()
        }.items()
    )


# -- Paces and sizes --


def test_who_asks_too_often_waits():
    clock = Clock()
    visitor = TestClient(Doors(application_behind(), Rules(requests=3), clock), base_url=HOME)
    assert [visitor.post("/v1/sessions").status_code for _ in range(4)] == [200, 200, 200, 429]
    assert visitor.get("/").status_code == 200, "the page is no request of the protocol"
    answer = visitor.post("/v1/sessions")
    assert answer.headers["Retry-After"] == "20"
    clock.now += 20
    assert [visitor.post("/v1/sessions").status_code for _ in range(2)] == [200, 429]


def application_behind():
    app = FastAPI()
    app.post("/v1/sessions")(lambda: "open")
    app.get("/")(lambda: "page")
    return app


def test_who_guesses_tokens_is_slowed_down_and_those_who_have_it_are_not():
    rules = Rules(token=TOKEN, requests=3)
    visitor = TestClient(Doors(application_behind(), rules, Clock()), base_url=HOME)
    guess = {"Authorization": "Bearer no"}
    statuses = [visitor.post("/v1/sessions", headers=guess).status_code for _ in range(5)]
    assert statuses == [401, 401, 401, 429, 429]
    assert visitor.post("/v1/sessions", headers=KNOWN).status_code == 200


def test_who_has_the_token_is_counted_by_address():
    doors = Doors(application_behind(), Rules(token=TOKEN, requests=2), Clock())
    for place in range(3):
        visitor = TestClient(doors, base_url=HOME, client=(f"10.0.0.{place}", 1))
        statuses = [visitor.post("/v1/sessions", headers=KNOWN).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]


def test_a_body_that_is_too_large_is_not_read_whether_it_says_so_or_not():
    visitor = client(Rules(body=100, upload=1000))

    def pieces(count):
        for _ in range(count):
            yield bytes(50)

    assert visitor.post("/v1/sessions", content=bytes(100)).json() == 100
    assert visitor.post("/v1/sessions", content=bytes(101)).status_code == 413
    assert visitor.post("/v1/sessions", content=pieces(2)).json() == 100
    assert visitor.post("/v1/sessions", content=pieces(3)).status_code == 413
    assert visitor.post("/v1/generations", content=bytes(1000)).json() == 1000
    assert visitor.post("/v1/generations", content=pieces(21)).status_code == 413


steps = st.lists(
    st.tuples(st.floats(0, 5, allow_subnormal=False), st.floats(0, 3)), min_size=1, max_size=60
)


@given(steps, st.floats(0.1, 10), st.floats(0.5, 5))
def test_no_more_passes_than_the_rate_and_a_burst_in_any_stretch_of_time(steps, rate, burst):
    clock = Clock(0.0)
    pace = Pace(rate, burst, clock)
    passed = []
    for waited, amount in steps:
        clock.now += waited
        if pace.take(amount):
            passed.append((clock.now, amount))
    for first in range(len(passed)):
        total = 0.0
        for when, amount in passed[first:]:
            total += amount
            assert total <= burst + rate * (when - passed[first][0]) + 1e-6


@given(st.lists(st.floats(0.01, 1.9), min_size=1, max_size=60), st.floats(0, 0.2))
def test_who_keeps_the_pace_is_never_refused(amounts, faster):
    clock = Clock(0.0)
    pace = Pace(1.2, 2.0, clock)
    for amount in amounts:
        assert pace.take(amount)
        clock.now += amount / (1 + faster) + 1e-9


@given(steps, st.floats(0.01, 2))
def test_after_the_wait_it_passes_and_a_little_before_it_does_not(steps, amount):
    clock = Clock(0.0)
    pace = Pace(1.0, 2.0, clock)
    for waited, taken in steps:
        clock.now += waited
        pace.take(taken)
    wait = pace.wait(amount)
    if wait > 1e-3:
        clock.now += wait - 1e-4
        assert not pace.take(amount)
    clock.now += 2e-4 if wait > 1e-3 else wait + 1e-6
    assert pace.take(amount)


def test_live_sound_may_come_a_fifth_faster_and_two_seconds_at_once():
    clock = Clock()
    pace = pace_of_sound(16_000, clock=clock)
    assert pace.take(32_000) and not pace.take(160)
    clock.now += 1
    assert pace.take(19_200) and not pace.take(160)
    assert pace.wait(10**9) == float("inf")


def test_bytes_may_come_half_faster_and_a_largest_message_fits():
    clock = Clock()
    pace = pace_of_bytes(32_000, clock)
    assert pace.take(MOST_BYTES) and pace.take(96_000) and not pace.take(1)
    clock.now += 1
    assert pace.take(48_000) and not pace.take(1)


def test_who_has_rested_is_forgotten_when_anybody_asks_a_minute_later():
    clock = Clock()
    doors = Doors(application_behind(), Rules(requests=2), clock)
    for place in range(9):
        visitor = TestClient(doors, base_url=HOME, client=(f"10.0.0.{place}", 1))
        assert visitor.post("/v1/sessions").status_code == 200
        clock.now += 20
    assert len(doors._paces) <= 5
    clock.now += 61
    assert visitor.get("/").status_code == 200
    assert not doors._paces


def test_a_client_has_so_many_sessions_and_gets_seats_back():
    seats = Seats(2)
    with seats.taken("one"):
        with (
            seats.taken("one"),
            pytest.raises(Refused, match="2 sessions are open") as refused,
            seats.taken("one"),
        ):
            pass
        assert refused.value.status_code == 429
        with seats.taken("one"), seats.taken("other"):
            pass
        with pytest.raises(ConnectionError), seats.taken("one"):
            raise ConnectionError("the client left")
        seats.require("one")
    assert not seats._taken


# -- Tickets --

texts = st.text(max_size=1000)
asked = st.builds(Asked, policy=texts, seed=st.integers(), text=st.none() | texts)


@given(asked)
def test_a_ticket_gives_what_was_asked_for_on_every_replica_and_fits_a_subprotocol(asked):
    clock = Clock()
    ticket = Tickets(Asked, SECRET, clock=clock).issue(asked)
    assert set(ticket) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
    for _ in range(2):  # another replica has not seen it
        assert Tickets(Asked, SECRET, clock=clock).open(ticket) == asked


@given(st.data())
def test_a_ticket_of_which_one_letter_differs_is_tampered(data):
    tickets = Tickets(Asked, SECRET, clock=Clock())
    ticket = tickets.issue(Asked(text="happy"))
    place = data.draw(st.integers(0, len(ticket) - 1))
    letter = data.draw(st.characters(codec="utf-8"))
    if letter == ticket[place]:
        letter = "~"
    with pytest.raises(Refused, match="not one of this server") as refused:
        tickets.open(ticket[:place] + letter + ticket[place + 1 :])
    assert refused.value.code == "ticket_tampered"
    tickets.open(ticket)  # that it was tried does not use it up


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("latin-1")))
def test_what_is_no_ticket_is_tampered(text):
    with pytest.raises(Refused) as refused:
        Tickets(Asked, SECRET).open(text)
    assert refused.value.code == "ticket_tampered"


def test_a_ticket_says_nothing_that_others_can_sign():
    ticket = Tickets(Asked, SECRET).issue(Asked(seed=1))
    said, _, signature = ticket.partition(".")
    payload = json.loads(base64.urlsafe_b64decode(said + "=" * (-len(said) % 4)))
    payload["asked"]["seed"] = 2
    forged = base64.urlsafe_b64encode(json.dumps(payload).encode()).rstrip(b"=").decode()
    for other in (f"{forged}.{signature}", Tickets(Asked, SECRET[::-1]).issue(Asked())):
        with pytest.raises(Refused) as refused:
            Tickets(Asked, SECRET).open(other)
        assert refused.value.code == "ticket_tampered"


def test_a_ticket_lasts_a_minute():
    clock = Clock()
    tickets = Tickets(Asked, SECRET, clock=clock)
    late, early = (tickets.issue(Asked()) for _ in range(2))
    clock.now += 59.9
    assert tickets.open(early) == Asked()
    clock.now += 0.1
    with pytest.raises(Refused, match="expired, it lasts 60 s") as refused:
        tickets.open(late)
    assert refused.value.code == "ticket_expired"


def test_a_ticket_opens_one_socket_and_is_forgotten_when_it_has_expired():
    clock = Clock()
    tickets = Tickets(Asked, SECRET, clock=clock)
    ticket = tickets.issue(Asked())
    tickets.open(ticket)
    with pytest.raises(Refused, match="opens one socket") as refused:
        tickets.open(ticket)
    assert refused.value.code == "ticket_reused"
    clock.now += 61
    tickets.open(tickets.issue(Asked()))
    assert len(tickets._opened) == 1
    with pytest.raises(Refused) as refused:
        tickets.open(ticket)
    assert refused.value.code == "ticket_expired"


def test_a_secret_that_can_be_guessed_is_none():
    with pytest.raises(ValueError, match="15 bytes can be guessed"):
        Tickets(Asked, bytes(15))
