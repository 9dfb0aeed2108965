"""The rating page over real sockets: raters by HTTP and in Chromium, killed and started again."""

import asyncio
import base64
import csv
import io
import json
import random
import shutil
import sqlite3
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from rapport.pipeline.rating import page as rating_page
from rapport.pipeline.rating.app import CONSENT, links, scales
from rapport.pipeline.rating.page import Page
from rapport.pipeline.rating.settings import RateSection
from rapport.pipeline.rundir import RunError
from rapport.pipeline.storage import Mirror
from rapport.rewards.ratings.comparisons import read_comparisons
from rapport.rewards.ratings.ratings import CRITERIA, read_ratings
from tests.chromium import CHROMIUM, PHONE, Chromium
from tests.offered import STUDIO, Served, offer_at, write_offer
from tests.runs import free_port

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium (apt-get install chromium) or Chrome on PATH"
)
GROUPS, MEMBERS = 8, 3
BEARER = {"Authorization": f"Bearer {STUDIO}"}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    write_offer(folder, GROUPS, MEMBERS)
    return folder


@pytest.fixture
def page(package, tmp_path, monkeypatch):
    """A function that opens a page; it is closed at the end."""
    monkeypatch.setenv("RAPPORT_TOKEN", STUDIO)
    opened = []

    def page(**keys):
        made = Page(tmp_path / "rating", RateSection(port=free_port(), **keys), seed=0)
        opened.append(made.__enter__())
        made.open(offer_at(package))
        return made

    yield page
    for made in opened:
        made.__exit__(None, None, None)


def urls(page):
    """Below which a rater's things stand, by number."""
    return [f"{page.config.url}/raters/{rater.key}" for rater in page.store.raters()]


def grade(video_or_place, rater, lazy=False):
    """What a rater of the test thinks; whoever counts afterwards knows it too."""
    rng = random.Random(f"{rater} {video_or_place}")
    if lazy:
        return dict.fromkeys(CRITERIA, 3)
    return {name: rng.randint(1, 5) for name in CRITERIA}


# -- What is said and refused --


def test_the_page_says_what_the_forms_say_and_nothing_of_candidates(page):
    opened = page()
    rater = urls(opened)[0]
    about = httpx.get(rater).json()
    assert about["consent"] == CONSENT.split("\n\n") and not about["agreed"]
    for name, told in about["criteria"].items():
        assert CRITERIA[name] == f"{told['meaning']} 1 = {told['low']}, 5 = {told['high']}."
    assert list(about["criteria"]) == list(CRITERIA) == list(scales())
    seen = (
        json.dumps(about["criteria"])
        + httpx.post(f"{rater}/consent").text
        + httpx.get(f"{rater}/turn").text
    )
    assert not any(
        word in seen for word in ("clip-", "c0", "0001", "policy", "recorded", "control")
    )


def test_nothing_is_shown_before_consent(page):
    rater = urls(page())[0]
    assert httpx.get(f"{rater}/turn").status_code == 403
    assert httpx.get(f"{rater}/videos/1-0-0/0").status_code == 404
    assert httpx.post(f"{rater}/answers/1-0-0", json=grade("x", 1)).status_code == 404


def test_a_video_comes_whole_and_in_parts_under_headers_that_keep_it_private(page):
    rater = urls(page())[0]
    [address] = httpx.post(f"{rater}/consent").json()["item"]["videos"]
    url = rater.partition("raters/")[0] + address
    whole = httpx.get(url)
    part = httpx.get(url, headers={"Range": "bytes=100-199"})
    assert whole.headers["Content-Type"] == "video/mp4" and len(whole.content) > 1000
    assert part.status_code == 206 and part.content == whole.content[100:200]
    assert "private" in whole.headers["Cache-Control"]
    assert "frame-ancestors 'none'" in whole.headers["Content-Security-Policy"]
    assert whole.headers["Referrer-Policy"] == "no-referrer", "the key is in the address"
    assert httpx.get(url[:-1] + "1").status_code == 404, "one video has one side"


BAD = [
    ("post", "answers/1-0-0", {"empathy": 3}),
    ("post", "answers/1-0-0", dict.fromkeys(CRITERIA, 6)),
    ("post", "answers/1-0-0", dict.fromkeys(CRITERIA, "3")),
    ("post", "answers/1-0-0", dict.fromkeys(CRITERIA, 2.5)),
    ("post", "answers/1-0-0", dict.fromkeys(CRITERIA, True)),
    ("post", "answers/1-0-0", dict.fromkeys(CRITERIA, 3) | {"rater": "me"}),
    ("post", "answers/1-0-0", {"preferred": "first"}),
    ("post", "answers/1-0-0", [1, 2]),
    ("post", "answers/1-0-9", dict.fromkeys(CRITERIA, 3)),
    ("post", "answers/9-9-9", dict.fromkeys(CRITERIA, 3)),
    ("post", "answers/99999999999999999999-0-0", dict.fromkeys(CRITERIA, 3)),
    ("post", "answers/x", dict.fromkeys(CRITERIA, 3)),
    ("get", "videos/1-0-0/-1", None),
    ("get", "videos/1-0-0/x", None),
    ("get", "videos/1-0-0/..%2f..%2fratings.db", None),
    ("get", "videos/..%2f..%2fratings.db/0", None),
    ("get", "answers/1-0-0", None),
    ("post", "nothing", {}),
]


@pytest.mark.parametrize(("method", "path", "body"), BAD)
def test_what_makes_no_sense_is_refused_and_leaves_nothing(page, method, path, body):
    opened = page()
    rater = urls(opened)[0]
    httpx.post(f"{rater}/consent")
    sent = {} if body is None else {"json": body}
    answer = getattr(httpx, method)(f"{rater}/{path}", **sent)
    assert 400 <= answer.status_code < 500 and "Traceback" not in answer.text
    assert opened.store.answers() == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 5000, b"null", b"x" * 200_000])
def test_what_is_no_json_is_refused(page, content):
    opened = page()
    rater = urls(opened)[0]
    httpx.post(f"{rater}/consent")
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{rater}/answers/1-0-0", content=content, headers=headers)
    assert 400 <= answer.status_code < 500 and opened.store.answers() == []


def test_nobody_comes_in_by_a_guess(page):
    opened = page()
    url = opened.config.url
    assert httpx.get(f"{url}/raters/guess/turn").status_code == 404
    for path in ("status", "opinions.csv", "answers.csv"):
        assert httpx.get(f"{url}/v1/{path}").status_code == 401
        wrong = {"Authorization": "Bearer guess"}
        assert httpx.get(f"{url}/v1/{path}", headers=wrong).status_code == 401
    foreign = BEARER | {"Origin": "https://stranger.example"}
    assert httpx.get(f"{url}/v1/status", headers=foreign).status_code == 403
    assert httpx.post(f"{url}/raters", json={"study": "x", "PROLIFIC_PID": "a"}).status_code == 404


def test_prolific_brings_raters_and_is_told_the_code(page, tmp_path):
    opened = page(recruit="prolific", completion_code="C0DE", groups=1)
    [link] = links(opened.store).values()
    study = dict(part.split("=") for part in link.partition("?")[2].split("&"))["study"]
    url = opened.config.url
    came = {"study": study, "PROLIFIC_PID": "5f00aa", "STUDY_ID": "s", "SESSION_ID": "visit-1"}
    key = httpx.post(f"{url}/raters", json=came).json()["key"]
    assert httpx.post(f"{url}/raters", json=came).json()["key"] == key, "the same after a reload"
    assert httpx.post(f"{url}/raters", json=came | {"study": "x"}).status_code == 404
    assert httpx.post(f"{url}/raters", json=came | {"PROLIFIC_PID": "<b>"}).status_code == 422
    said = httpx.post(f"{url}/raters/{key}/consent").json()
    while said["item"]:
        assert said["code"] is None
        place = said["item"]["place"]
        said = httpx.post(f"{url}/raters/{key}/answers/{place}", json=grade(place, 1)).json()
    assert said["code"] == "C0DE"
    rows = httpx.get(f"{url}/v1/status", headers=BEARER).json()["raters"]
    assert [row["outside"] for row in rows] == ["5f00aa"], "whom the studio pays"
    exported = httpx.get(f"{url}/v1/opinions.csv", headers=BEARER).text
    assert "5f00aa" not in exported and "rater-1" in exported
    opened.__exit__(None, None, None)
    kept = b"".join(file.read_bytes() for file in opened.folder.iterdir())
    assert b"5f00aa" in kept and b"visit-1" not in kept, "only the id by which they came is kept"


def test_no_address_is_kept_or_logged(page, tmp_path, capfd):
    opened = page()
    rater = urls(opened)[0]
    httpx.post(f"{rater}/consent", headers={"X-Forwarded-For": "203.0.113.77"})
    httpx.get(f"{rater}/turn", headers={"X-Forwarded-For": "203.0.113.77"})
    httpx.get(f"{opened.config.url}/v1/status", headers={"X-Forwarded-For": "203.0.113.77"})
    opened.__exit__(None, None, None)
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    printed = "".join(capfd.readouterr())
    assert b"203.0.113" not in written and "203.0.113" not in printed
    links = (tmp_path / "rating" / "links.csv").read_bytes()
    assert b"127.0.0.1" not in written.replace(links, b""), "but the page's own, in the links"


def test_a_port_that_is_taken_is_named(page):
    port = page().config.port
    with pytest.raises(RunError, match=rf"rate.port={port} on 127.0.0.1 is not free"):
        page_at = RateSection(port=port)
        Page(page().folder.parent / "other", page_at, seed=0)


def test_the_studio_leaves_out_and_takes_in(page):
    opened = page()
    rater = urls(opened)[0]
    place = httpx.post(f"{rater}/consent").json()["item"]["place"]
    httpx.post(f"{rater}/answers/{place}", json=grade(place, 1))
    v1 = f"{opened.config.url}/v1"
    lines = httpx.get(f"{v1}/opinions.csv", headers=BEARER).text.count("\n")
    assert httpx.post(f"{v1}/raters/1", json={"left_out": True}, headers=BEARER).json()
    assert httpx.get(f"{v1}/opinions.csv", headers=BEARER).text.count("\n") == 1 < lines
    everything = httpx.get(f"{v1}/answers.csv", headers=BEARER).text
    assert [row["left_out"] for row in csv.DictReader(io.StringIO(everything))] == ["True"]
    assert httpx.post(f"{v1}/raters/99", json={"left_out": True}, headers=BEARER).status_code == 404
    assert httpx.post(f"{v1}/raters/1", json={"out": 1}, headers=BEARER).status_code == 422


@pytest.mark.parametrize("form", ["scales", "pairs"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_what_is_exported_is_read_back(page, tmp_path, form, suffix):
    opened = page(form=form, raters=2)
    for number, rater in enumerate(urls(opened)):
        said = httpx.post(f"{rater}/consent").json()
        while said["item"]:
            place = said["item"]["place"]
            answer = grade(place, number) if form == "scales" else {"preferred": "second"}
            said = httpx.post(f"{rater}/answers/{place}", json=answer).json()
    file = tmp_path / f"ratings.{suffix}"
    url = f"{opened.config.url}/v1/opinions.{suffix}"
    file.write_bytes(httpx.get(url, headers=BEARER).content)
    read = read_comparisons if form == "pairs" else read_ratings
    assert read(file) == opened.said(offer_at_of(opened))
    assert len(read(file)) == 2 * GROUPS * MEMBERS


def offer_at_of(opened):
    return opened.store.offer


# -- Waiting --


class Time:
    """A clock that the test moves, and what happens as it goes on."""

    def __init__(self, events=()):
        self.now = 1e9
        self.events = list(events)

    def sleep(self, seconds):
        self.now += 3600
        if self.events:
            self.events.pop(0)()


def rate_all(opened, number, steady=True):
    store = opened.store
    store.consent(store.raters()[number - 1])
    rater = store.raters()[number - 1]
    while (turn := store.turn(rater)).item is not None:
        seed = turn.item.videos[0] if steady else f"{number} {turn.item.videos[0]}"
        store.answer(rater, turn.place, grade(seed, 0))


def test_answers_are_in_storage_before_the_page_ends(package, tmp_path, monkeypatch):
    monkeypatch.setattr(rating_page, "COPY_S", 0.05)
    lost, config = tmp_path / "run", RateSection(port=free_port(), per_group=2, raters=2)
    mirror = Mirror(f"{tmp_path}/storage", lost)
    with Page(lost / "rating", config, 0, mirror) as opened:
        opened.open(offer_at(package))
        rate_all(opened, 1)
        until = time.monotonic() + 30
        while opened.store.changed.is_set() or not list(tmp_path.rglob("storage/**/ratings.db")):
            assert time.monotonic() < until
            time.sleep(0.01)
        monkeypatch.setattr(opened, "copy", lambda: None)  # as if the node were gone now
        said = opened.store.answers(1)
        addresses = (lost / "rating" / "links.csv").read_text()
    (lost / "config.yaml").touch()
    mirror.push(lost / "config.yaml")
    shutil.rmtree(lost)
    assert mirror.fetch() and not list(lost.rglob("*.part"))
    with Page(lost / "rating", config, 0, mirror) as again:
        assert said and again.store.answers(1) == said
        assert (lost / "rating" / "links.csv").read_text() == addresses
        again.open(offer_at(package))
        rate_all(again, 2)
        said = again.store.answers(1)
    shutil.rmtree(lost)
    assert mirror.fetch()
    with Page(lost / "rating", config, 0) as copied:
        assert copied.store.answers(1) == said, "the last answers are copied at the end"


def test_storage_that_fails_is_said_and_tried_again(package, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(rating_page, "COPY_S", 0.05)
    mirror = Mirror(f"{tmp_path}/storage", tmp_path / "run")
    config = RateSection(port=free_port(), per_group=2, raters=2)
    with Page(tmp_path / "run" / "rating", config, 0, mirror) as opened:
        opened.open(offer_at(package))
        works = mirror.replace
        monkeypatch.setattr(mirror, "replace", lambda *_: fails())
        rate_all(opened, 1)
        until = time.monotonic() + 30
        while "not copied to storage.uri: full" not in caplog.text:
            assert time.monotonic() < until
            time.sleep(0.01)
        monkeypatch.setattr(mirror, "replace", works)
        while opened.store.changed.is_set():
            assert time.monotonic() < until
            time.sleep(0.01)


def fails():
    raise OSError("full")


def waits(opened, clock):
    said = []
    enough = opened.wait(
        opened.store.offer, said.append, sleep=clock.sleep, clock=lambda: clock.now
    )
    return enough, said


def test_the_wait_ends_when_every_group_has_its_raters(page):
    opened = page(per_group=2, raters=3)
    clock = Time([lambda: rate_all(opened, 1), lambda: rate_all(opened, 2)])
    enough, said = waits(opened, clock)
    assert enough and clock.now == 1e9 + 2 * 3600 and said[-1] == "all 8 groups have 2 raters"


def test_more_raters_are_asked_while_agreement_is_low(page):
    opened = page(per_group=2, raters=6, alpha=0.5)
    clock = Time([lambda n=n: rate_all(opened, n, steady=n != 2) for n in range(1, 7)])
    enough, said = waits(opened, clock)
    assert enough and opened.store.per_group > 2
    assert any("below rate.alpha=0.5: one more rater" in text for text in said)


def test_agreement_is_not_waited_for_when_nobody_is_left_to_be_asked(page, monkeypatch):
    warned = []
    monkeypatch.setattr(rating_page.logger, "warning", warned.append)
    opened = page(per_group=2, raters=3, alpha=0.99)
    clock = Time([lambda n=n: rate_all(opened, n, steady=False) for n in range(1, 4)])
    enough, _ = waits(opened, clock)
    assert not enough and opened.store.per_group == 3 and clock.now == 1e9 + 3 * 3600
    assert "no link is left" in warned[-1] and "goes on with 3 (rate.raters" in warned[-1]


def test_a_wait_for_more_raters_than_there_are_links_says_so(page):
    opened = page(per_group=2, raters=3, groups=4, hours=2)
    enough, said = waits(opened, Time())
    assert not enough and "0 of 8 groups have 2 raters, and links are for 1 (rate." in said[0]
    opened.store.leave_out(1, True)
    assert opened._most(opened.store.offer) == 1
    opened.store.leave_out(2, True)
    assert opened._most(opened.store.offer) == 0


def test_the_deadline_ends_the_wait_and_a_restart_does_not_begin_it_anew(page):
    opened = page(hours=5)
    clock = Time()
    assert waits(opened, clock)[0] is False and clock.now == 1e9 + 5 * 3600
    assert waits(opened, clock)[0] is False and clock.now == 1e9 + 5 * 3600


def test_between_rounds_raters_are_asked_to_come_again(page, package):
    opened = page(raters=1)
    rater = urls(opened)[0]
    assert httpx.post(f"{rater}/consent").json()["item"]
    opened.rest(more=True)
    assert httpx.get(f"{rater}/turn").json()["waits"] is True
    assert httpx.post(f"{rater}/answers/1-0-0", json=grade("x", 1)).status_code == 410
    assert httpx.get(f"{opened.config.url}/v1/status", headers=BEARER).status_code == 409
    opened.open(offer_at(package, 2))
    assert httpx.get(f"{rater}/turn").json()["item"]["place"] == "2-0-0"
    opened.rest(more=False)
    said = httpx.get(f"{rater}/turn").json()
    assert (said["waits"], said["item"]) == (False, None), "after the last round they are thanked"


# -- Twenty at once --


async def play(client, link, number, lazy=False, gives_up=None, seen=None):
    """A rater by HTTP, who sends again what was not answered; returns what they said."""
    rater = link.replace("/?key=", "/raters/")
    base = link.partition("?")[0]
    given = {}

    async def ask(method, url, **sent):
        for _ in range(600):
            try:
                started = time.monotonic()
                answer = await client.request(method, url, **sent)
                if answer.status_code != 503:  # it was started again, and is not ready
                    if seen is not None:
                        seen.append(time.monotonic() - started)
                    return answer
                await asyncio.sleep(0.1)
            except httpx.TransportError:
                await asyncio.sleep(0.1)
        raise AssertionError("the server never came back")

    said = (await ask("POST", f"{rater}/consent")).json()
    while said["item"] or said["waits"]:
        if said["waits"]:
            await asyncio.sleep(0.2)
            said = (await ask("GET", f"{rater}/turn")).json()
            continue
        place = said["item"]["place"]
        for address in said["item"]["videos"]:
            video = await ask("GET", base + address)
            assert video.status_code == 200, video.text
        if gives_up == len(given):
            return given
        answer = grade(place, number, lazy)
        if said["item"]["instruction"] and not lazy:
            told = int(said["item"]["instruction"].partition("choose ")[2][0])
            answer = dict.fromkeys(CRITERIA, told)
        given[place] = answer
        answered = await ask("POST", f"{rater}/answers/{place}", json=answer)
        assert answered.status_code == 200, answered.text
        twice = await ask("POST", f"{rater}/answers/{place}", json=answer)
        assert twice.status_code == 200
        said = twice.json()
    return given


def kept_answers(served):
    """As they stand in the file, by rater's number and place."""
    database = sqlite3.connect(served.folder / "rating" / "ratings.db")
    rows = database.execute(
        "SELECT rater, round, place, number, answer FROM answers ORDER BY rowid"
    ).fetchall()
    database.close()
    return [((rater, f"{r}-{p}-{n}"), json.loads(answer)) for rater, r, p, n, answer in rows]


@pytest.mark.timeout(300)
def test_twenty_raters_at_once_and_a_server_that_is_killed_lose_nothing(tmp_path):
    """One gives up, one straight-lines, all send every answer twice; SIGKILL twice on the way."""
    write_offer(tmp_path, GROUPS, MEMBERS)
    config = RateSection(port=free_port(), per_group=5, raters=20, groups=4, lease_minutes=0.001)
    served = Served(tmp_path, config)
    seen = []

    async def main():
        async with httpx.AsyncClient(timeout=20, limits=httpx.Limits(max_connections=40)) as client:
            raters = [
                asyncio.create_task(
                    play(client, link, n, lazy=n == 2, gives_up=2 if n == 1 else None, seen=seen)
                )
                for n, link in enumerate(served.links(), 1)
            ]
            for answers in (40, 90):
                while len(kept_answers(served)) < answers and not all(r.done() for r in raters):
                    await asyncio.sleep(0.05)
                await asyncio.to_thread(served.kill)
                await asyncio.to_thread(served.start)
            return await asyncio.gather(*raters)

    try:
        given = asyncio.run(main())
        status = httpx.get(f"{config.url}/v1/status", headers=BEARER).json()
    finally:
        served.kill()
    expected = {
        (number, place): answer
        for number, answers in enumerate(given, 1)
        for place, answer in answers.items()
    }
    kept = kept_answers(served)
    assert len(kept) == len(expected) >= 5 * GROUPS * MEMBERS, "every answer once"
    assert dict(kept) == expected, "and none lost or changed"
    assert min(status["groups"].values()) >= 5, "who gave up freed their group"
    rows = {row["rater"]: row for row in status["raters"]}
    careless = rows["rater-2"]
    # On a slow machine leases run out, and others take a group before its check comes.
    assert ("straight-lining" in careless["flags"]) == (careless["straight"] is not None)
    assert ("failed a check" in careless["flags"]) == (careless["checks"][1] > 0)
    failed = {name for name, row in rows.items() if "failed a check" in row["flags"]}
    assert failed <= {"rater-2"}


# -- In a browser --


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


PATIENCE_S, LOOK_S = 400, 0.3  # of a rater of the test, who is one of twenty on two cores
ARROWS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


def press(tab, key):
    said = {"text": {"Enter": "\r"}.get(key, key)}
    if key in ARROWS:
        said = {"windowsVirtualKeyCode": ARROWS[key]}
    tab.ask("Input.dispatchKeyEvent", type="keyDown", key=key, **said)
    tab.ask("Input.dispatchKeyEvent", type="keyUp", key=key)


def state(tab):
    return tab.value("document.getElementById('frame').dataset.state")


def watch(tab, every=0.05):
    """Plays the clip to its end, as the page lets a rater; looks `every` so many seconds."""
    until = time.monotonic() + PATIENCE_S
    while tab.value("document.getElementById('answers').disabled"):
        assert time.monotonic() < until, f"a clip that is {state(tab)} after {PATIENCE_S} s"
        if state(tab) in ("ready", "paused", "failed"):
            tab.click("#play")
        time.sleep(every)


def place(tab):
    return tab.value("document.getElementById('where').textContent")


def enter(browser, link, size=(1280, 800)):
    tab = browser.open(link, size)
    tab.wait_for("!document.getElementById('consent').hidden")
    tab.click("#agree")
    tab.wait_for("!document.getElementById('rating').hidden")
    return tab


@needs_chromium
def test_scales_open_when_the_clip_was_seen_and_keys_answer(browser, page):
    opened = page()
    tab = enter(browser, next(iter(links(opened.store).values())))
    assert tab.value("document.getElementById('answers').disabled") is True
    press(tab, "4")
    assert tab.value("document.querySelectorAll(':checked').length") == 0, "not yet"
    watch(tab)
    before = place(tab)
    for key in "4502":
        press(tab, key)
    press(tab, "Enter")
    tab.wait_for(f"document.getElementById('where').textContent !== {json.dumps(before)}")
    [answered] = opened.store.answers()
    assert answered.answer == dict(zip(CRITERIA, (4, 5, None, 2), strict=True))
    assert answered.seconds > 0.3
    assert tab.value("document.getElementById('answers').disabled") is True
    assert tab.complaints == []
    assert all(url.startswith((opened.config.url, "blob:")) for url in tab.urls)


@needs_chromium
def test_arrows_go_from_scale_to_scale(browser, page):
    opened = page()
    tab = enter(browser, next(iter(links(opened.store).values())))
    watch(tab)
    # Up from the first scale and down from the last one lead nowhere.
    for key in ("Up", "Down", "Down", "5", "Up", "Up", "Up", "Up", "1", "2", "Down", "Down", "3"):
        press(tab, f"Arrow{key}" if key.isalpha() else key)
    press(tab, "Enter")
    tab.wait_for("document.getElementById('where').textContent.startsWith('Clip 2')")
    [answered] = opened.store.answers()
    assert answered.answer == dict(zip(CRITERIA, (1, 2, 5, 3), strict=True))
    assert tab.complaints == []


@needs_chromium
def test_arrows_choose_a_side(browser, page):
    opened = page(form="pairs")
    tab = enter(browser, next(iter(links(opened.store).values())))
    watch(tab)
    for key, side in (("Right", "second"), ("Down", "tie"), ("Left", "first")):
        press(tab, f"Arrow{key}")
        assert tab.value("document.querySelector('#answers :checked').value") == side
    press(tab, "Enter")
    tab.wait_for("document.getElementById('where').textContent.startsWith('Clip 2')")
    [answered] = opened.store.answers()
    assert answered.answer == {"preferred": "first"} and tab.complaints == []


@needs_chromium
def test_two_are_played_side_by_side_and_one_is_chosen(browser, page):
    opened = page(form="pairs")
    tab = enter(browser, next(iter(links(opened.store).values())))
    watch(tab)
    assert tab.value("[...document.querySelectorAll('video')].map(v => v.muted)") == [
        True,
        False,
        True,
    ]
    press(tab, "3")
    press(tab, "Enter")
    tab.wait_for("document.getElementById('where').textContent.startsWith('Clip 2')")
    [answered] = opened.store.answers()
    assert answered.answer == {"preferred": "second"} and tab.complaints == []


@needs_chromium
def test_a_reload_goes_on_where_it_stopped_on_a_telephone(browser, page):
    opened = page()
    link = next(iter(links(opened.store).values()))
    tab = enter(browser, link, PHONE)
    assert tab.value("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
    for _ in range(2):
        before = place(tab)
        watch(tab)
        for name in CRITERIA:
            tab.click(f"input[name={name}][value='3']")
        tab.click("#next")
        tab.wait_for(f"document.getElementById('where').textContent !== {json.dumps(before)}")
    here = place(tab)
    tab.ask("Page.reload")
    tab.wait_for("document.readyState === 'complete' && !document.getElementById('rating').hidden")
    assert place(tab) == here and len(opened.store.answers()) == 2


def deny(tab, storage):
    """As a browser does that blocks what sites store."""
    denied = "get() { throw new DOMException('denied', 'SecurityError'); }"
    source = f"Object.defineProperty(window, '{storage}', {{ {denied} }});"
    tab.ask("Page.addScriptToEvaluateOnNewDocument", source=source)


@needs_chromium
def test_a_browser_that_stores_nothing_answers_all_the_same(browser, page):
    opened = page()
    tab = browser.open("about:blank")
    deny(tab, "localStorage")
    tab.ask("Page.navigate", url=next(iter(links(opened.store).values())))
    tab.wait_for("document.getElementById('consent')?.hidden === false")
    tab.click("#agree")
    tab.wait_for("!document.getElementById('rating').hidden")
    watch(tab)
    for key in "4502":
        press(tab, key)
    press(tab, "Enter")
    tab.wait_for("document.getElementById('where').textContent.startsWith('Clip 2')")
    tab.ask("Page.reload")
    tab.wait_for("document.readyState === 'complete' && !document.getElementById('rating').hidden")
    assert place(tab).startswith("Clip 2") and len(opened.store.answers()) == 1
    assert tab.complaints == []


@needs_chromium
def test_an_answer_survives_a_server_that_is_gone_and_a_page_that_is_closed(browser, tmp_path):
    write_offer(tmp_path, groups=2)
    served = Served(tmp_path, RateSection(port=free_port(), raters=2))
    try:
        tab = enter(browser, served.links()[0])
        watch(tab)
        for key in "1234":
            press(tab, key)
        served.kill()
        press(tab, "Enter")
        tab.wait_for("document.getElementById('network').textContent.includes('trying again')")
        served.start()
        tab.wait_for("document.getElementById('where').textContent.startsWith('Clip 2')")
        watch(tab)
        for key in "5432":
            press(tab, key)
        served.kill()
        press(tab, "Enter")
        tab.wait_for("localStorage.length === 1")
        tab.close()
        browser._pages.remove(tab)
        served.start()
        tab = browser.open(served.links()[0])
        tab.wait_for("document.getElementById('where').textContent.startsWith('Clip 3')")
        assert [list(answer.values()) for _, answer in kept_answers(served)] == [
            [grades[name] for name in sorted(CRITERIA)]
            for grades in (
                dict(zip(CRITERIA, (1, 2, 3, 4), strict=True)),
                dict(zip(CRITERIA, (5, 4, 3, 2), strict=True)),
            )
        ]
    finally:
        served.kill()


@needs_chromium
@pytest.mark.parametrize("form", ["scales", "pairs"])
def test_a_clip_that_did_not_come_is_tried_again(browser, page, form):
    opened = page(form=form)
    tab = browser.open(next(iter(links(opened.store).values())))
    tab.wait_for("!document.getElementById('consent').hidden")
    tab.ask("Network.setBlockedURLs", urls=["*/videos/*"])
    tab.click("#agree")
    tab.wait_for("document.getElementById('frame').dataset.state === 'failed'")
    tab.ask("Network.setBlockedURLs", urls=[])
    watch(tab)


@needs_chromium
def test_the_clip_before_is_not_seen_in_place_of_one_that_is_long_on_its_way(browser, page):
    opened = page()
    tab = browser.open(next(iter(links(opened.store).values())))
    tab.wait_for("!document.getElementById('consent').hidden")
    tab.ask("Fetch.enable", patterns=[{"urlPattern": "*/videos/1-0-1/0"}])
    tab.click("#agree")
    tab.wait_for("!document.getElementById('rating').hidden")
    watch(tab)
    for key in "3333":
        press(tab, key)
    press(tab, "Enter")
    tab.wait_for("document.getElementById('where').textContent.startsWith('Clip 2')")
    press(tab, " ")
    time.sleep(1)  # more than the clip before lasts
    assert tab.value("document.getElementById('answers').disabled") is True
    assert tab.value("document.getElementById('play').disabled") is True
    tab.ask("Fetch.disable")
    watch(tab)


@needs_chromium
def test_a_server_that_ends_in_the_middle_of_what_it_says_is_asked_again(browser, page):
    opened = page()
    tab = enter(browser, next(iter(links(opened.store).values())))
    # Well before the answer: it goes past what holds requests where that has just been told to.
    tab.ask("Fetch.enable", patterns=[{"urlPattern": "*/answers/*"}])
    watch(tab)
    for key in "3333":
        press(tab, key)
    press(tab, "Enter")
    until = time.monotonic() + PATIENCE_S  # asking anything takes in what has come meanwhile
    while not (held := [each for each in tab.events if each["method"] == "Fetch.requestPaused"]):
        assert time.monotonic() < until, f"nothing is sent: {tab.value('document.body.innerText')}"
        time.sleep(0.05)
        tab.value("0")
    begun = base64.b64encode(b'{"groups": 0, "it').decode()
    request = held[0]["params"]["requestId"]
    tab.ask("Fetch.fulfillRequest", requestId=request, responseCode=200, body=begun)
    tab.wait_for("document.getElementById('network').textContent.includes('trying again')")
    tab.ask("Fetch.disable")
    tab.wait_for("document.getElementById('where').textContent.startsWith('Clip 2')")
    assert len(opened.store.answers()) == 1


@needs_chromium
def test_who_stops_is_thanked_and_may_come_back(browser, page):
    opened = page()
    link = next(iter(links(opened.store).values()))
    tab = enter(browser, link)
    tab.click("#stop")
    tab.click("dialog button[value=stop]")
    tab.wait_for("!document.getElementById('thanks').hidden")
    assert opened.store.begun() == 0
    tab.ask("Page.reload")
    tab.wait_for("document.readyState === 'complete' && !document.getElementById('rating').hidden")


@needs_chromium
def test_the_last_clip_ends_in_thanks_and_the_studio_sees_it(browser, page):
    opened = page(groups=1, raters=1, recruit="prolific", completion_code="C0DE")
    link = next(iter(links(opened.store).values())).replace("{{%PROLIFIC_PID%}}", "abc")
    tab = enter(browser, link)
    while not tab.value("document.getElementById('rating').hidden"):
        before = place(tab)
        watch(tab)
        for key in "3333":
            press(tab, key)
        press(tab, "Enter")
        tab.wait_for(
            "document.getElementById('rating').hidden || "
            f"document.getElementById('where').textContent !== {json.dumps(before)}"
        )
    assert tab.value("document.getElementById('code').textContent") == "C0DE"
    assert tab.value("document.getElementById('back').href").endswith("?cc=C0DE")
    studio = browser.open(f"{opened.config.url}/studio#{STUDIO}")
    studio.wait_for("!document.getElementById('view').hidden")
    warnings = "[...document.querySelectorAll('#warnings p')].map((line) => line.textContent)"
    assert "rated by nobody" in studio.value(warnings)[0]
    assert STUDIO not in studio.value("location.href")
    rows = "[...document.querySelectorAll('#raters tr')].map(r => r.textContent)"
    assert "abc" in studio.value(rows)[1]
    studio.click("#raters input")
    studio.wait_for("document.querySelector('#raters tr.out') !== null")
    assert opened.store.raters()[0].left_out and studio.complaints == []


@needs_chromium
def test_the_studio_is_asked_for_its_token(browser, page):
    opened = page()
    tab = browser.open(f"{opened.config.url}/studio")
    tab.value("sessionStorage.clear()")
    tab.ask("Page.reload")
    tab.wait_for("document.getElementById('asks')?.open")
    assert tab.value("document.getElementById('view').hidden")
    tab.value(f"document.getElementById('token').value = {json.dumps(STUDIO)}")
    tab.click("#asks button")
    tab.wait_for("!document.getElementById('view').hidden")


@needs_chromium
def test_a_browser_that_stores_nothing_shows_the_studio_all_the_same(browser, page):
    opened = page()
    tab = browser.open("about:blank")
    deny(tab, "sessionStorage")
    tab.ask("Page.navigate", url=f"{opened.config.url}/studio#{STUDIO}")
    tab.wait_for("document.getElementById('view')?.hidden === false")
    assert tab.complaints == []


def next_shown(tab, before=""):
    """Waits for the clip after the one at `before`, or for thanks."""
    there = "document.readyState === 'complete' && !window.left"
    thanked = "!document.getElementById('thanks').hidden"
    shown = "!document.getElementById('rating').hidden"
    other = f"document.getElementById('where').textContent !== {json.dumps(before)}"
    tab.wait_for(f"{there} && ({thanked} || {shown} && {other})", PATIENCE_S, LOOK_S)


def play_in(tab, number, lazy=False, reloads=None, stops=None):
    """A rater in Chromium; returns what they said, in order.

    Args:
        lazy: gives the same grade for everything.
        reloads: sends that answer, and reloads the page before the server can have said anything.
        stops: presses Stop instead of that answer.
    """
    given = []
    tab.click("#agree")
    next_shown(tab)
    while tab.value("document.getElementById('thanks').hidden"):
        if len(given) == stops:
            tab.click("#stop")
            tab.click("dialog button[value=stop]")
            tab.wait_for("!document.getElementById('thanks').hidden", PATIENCE_S)
            break
        watch(tab, LOOK_S)
        told = tab.value("document.getElementById('question').textContent").partition("choose ")[2]
        answer = grade(len(given), number, lazy)
        if told and not lazy:
            answer = dict.fromkeys(CRITERIA, int(told[0]))
        for name, value in answer.items():
            tab.click(f"input[name={name}][value='{value}']")
        before = place(tab)
        if len(given) == reloads:
            tab.value("window.left = true; document.getElementById('next').click()")
            tab.ask("Page.reload")
        else:
            tab.click("#next")
        given.append(answer)
        next_shown(tab, before)
    return given


@needs_chromium
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_twenty_browsers_at_once_and_a_server_that_is_killed_lose_nothing(browser, tmp_path):
    """One gives up, one straight-lines, one reloads while an answer is on its way; SIGKILL."""
    groups, members, gives_up, lazy, reloads = 6, 5, 1, 2, 3
    write_offer(tmp_path, groups, members, seconds=1)
    served = Served(tmp_path, RateSection(port=free_port(), per_group=5, raters=20, groups=2))
    habits = {gives_up: {"stops": 2}, lazy: {"lazy": True}, reloads: {"reloads": 1}}
    try:
        tabs = {n: browser.open(link, apart=True) for n, link in enumerate(served.links(), 1)}
        for tab in tabs.values():
            tab.wait_for("!document.getElementById('consent').hidden")
        with ThreadPoolExecutor(len(tabs)) as people:
            raters = {n: people.submit(play_in, tabs[n], n, **habits.get(n, {})) for n in tabs}
            counts = Counter()
            while counts.total() < 60 or counts[reloads] < 3:
                time.sleep(0.2)
                counts = Counter(rater for (rater, _), _ in kept_answers(served))
                for rater in filter(Future.done, raters.values()):
                    rater.result()
            served.kill()
            time.sleep(2)
            served.start()
            given = {n: rater.result() for n, rater in raters.items()}
        complaints = [text for tab in tabs.values() for text in tab.complaints]
        studio = browser.open(f"{served.url}/studio#{STUDIO}")
        studio.wait_for("!document.getElementById('view').hidden")
        cells = "r => [...r.cells].map(cell => cell.textContent)"
        rows = studio.value(f"[...document.querySelectorAll('#raters tr')].map({cells})")
        covered = studio.value("document.querySelector('#cards dd').firstChild.textContent")
    finally:
        served.kill()
        browser.close_pages()
    kept = kept_answers(served)
    assert len(kept) >= 5 * groups * members
    assert given == {n: [answer for (rater, _), answer in kept if rater == n] for n in given}, (
        "every answer once, and none lost or changed"
    )
    assert covered == f"{groups} of {groups}", "who gave up freed their group"
    assert len(given[gives_up]) == 2 and len(given[reloads]) > 2
    flags = {row[0]: row[rows[0].index("to look at")] for row in rows[1:]}
    assert flags.keys() == {f"rater-{n}" for n in given}
    assert [name for name, said in flags.items() if said] == [f"rater-{lazy}"]
    assert "straight-lining" in flags[f"rater-{lazy}"]
    assert complaints, "some answered while the server was gone"
    assert all("net::ERR_" in text or "503" in text for text in complaints), complaints


def test_counts_of_what_was_asked_are_even_over_groups(page):
    """With as many raters as needed, every group is begun by as many."""
    opened = page(per_group=3, raters=12, groups=2)
    for number in range(1, 13):
        rate_all(opened, number)
    counts = Counter(each.item.videos[0][:4] for each in opened.store.answers())
    assert set(opened.store.finished().values()) == {3}
    assert np.ptp(list(counts.values())) <= 8, "controls and checks aside"
