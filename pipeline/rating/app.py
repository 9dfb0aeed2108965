"""The application: raters' pages and answers, and the studio's view of them (docs/rating.md).

Raters are known by the key in their address, and the studio by its token. Nobody's network address
is stored or logged; how often one asked for what is the studio's is in memory, and forgotten by the
first request after it rested for one or two minutes (`rapport.pipeline.serve.doors`).
"""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import astuple
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from rapport.pipeline.rating.offers import Offer
from rapport.pipeline.rating.quality import present_opinions, status
from rapport.pipeline.rating.settings import PAGE
from rapport.pipeline.rating.store import Place, Rater, Store, StoreError, Turn
from rapport.pipeline.serve.doors import Refused, Rules, guard, misunderstood
from rapport.rewards.ratings.comparisons import Choice, Comparison, write_comparisons
from rapport.rewards.ratings.ratings import CRITERIA, HIGHEST, LOWEST, Rating, write_ratings

CONSENT = """\
You will watch short videos of a person who speaks and a computer-made face that listens, and say \
what you think of the listener. Please use sound, headphones if you can.

We keep your answers, how long each took, and the name by which you were invited. We do not keep \
your network address, and nothing is recorded by your camera or microphone.

Taking part is voluntary. You may stop at any time and without a reason: close the page, or press \
Stop. The answers that you gave until then are kept; write to us if you want them deleted.\
"""
Grade = Annotated[StrictInt, Field(ge=LOWEST, le=HIGHEST)] | None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Grades(_Strict):
    """On the four scales; None = the rater cannot tell."""

    empathy: Grade
    appropriateness: Grade
    engagement: Grade
    naturalness: Grade


class Side(_Strict):
    """Of two, who listens better."""

    preferred: Choice


class Arrival(_Strict):
    """What stands in the address of somebody who comes from Prolific; the last two are not kept."""

    study: str = Field(max_length=64)
    PROLIFIC_PID: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    STUDY_ID: str | None = Field(None, max_length=64)
    SESSION_ID: str | None = Field(None, max_length=64)


class Standing(_Strict):
    """Whether a rater's answers count."""

    left_out: bool


def application(store: Store, token: str) -> FastAPI:
    """All that the page answers.

    Args:
        store: of raters and answers.
        token: of the studio.
    """
    app = FastAPI(title="Rapport: ratings", docs_url=None, redoc_url=None, openapi_url=None)
    # What raters may is in their key; the token and its pace are for what stands below /v1/.
    guard(app, Rules(token=token, origins=frozenset({store.config.url})))
    app.add_exception_handler(StoreError, _refused)
    app.add_exception_handler(RequestValidationError, misunderstood)
    _of_raters(app, store)
    _of_studio(app, store)

    @app.get("/healthz")
    def healthz() -> dict[str, bool]:
        """Whether the process lives."""
        return {"ok": True}

    @app.get("/studio")
    def studio() -> FileResponse:
        """The studio's page, which asks for the token."""
        return FileResponse(PAGE / "studio.html")

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def scales() -> dict[str, dict[str, str]]:
    """Criterion -> its meaning, and what its ends stand for, of `CRITERIA`."""
    told = {}
    for name, text in CRITERIA.items():
        parts = re.fullmatch(rf"(.*) {LOWEST} = (.*), {HIGHEST} = (.*)\.", text)
        assert parts, f"the text of {name} does not say what {LOWEST} and {HIGHEST} are"
        told[name] = dict(zip(("meaning", "low", "high"), parts.groups(), strict=True))
    return told


def consent_text(file: Path | None) -> str:
    """What raters agree to.

    Raises:
        OSError, UnicodeDecodeError: the file cannot be read.
    """
    return CONSENT if file is None else file.read_text(encoding="utf-8")


def _of_raters(app: FastAPI, store: Store) -> None:
    config = store.config
    paragraphs = [part.strip() for part in consent_text(config.consent).split("\n\n")]
    kind: type[BaseModel] = Grades if config.form == "scales" else Side

    @app.post("/raters")
    def arrive(came: Arrival) -> dict[str, str]:
        """The key of somebody who comes from Prolific; the same whenever they come."""
        if config.recruit != "prolific" or came.study != store.secret("study"):
            raise StoreError("this study is not known here; please use the link of the study", 404)
        return {"key": store.from_outside(came.PROLIFIC_PID).key}

    @app.get("/raters/{key}")
    def about(key: str) -> dict[str, Any]:
        """What the page asks, in which words."""
        rater = store.rater(key)
        return {
            "form": config.form,
            "criteria": scales(),
            "consent": paragraphs,
            "agreed": rater.consented is not None,
            "minutes": config.lease_minutes,
        }

    @app.post("/raters/{key}/consent")
    def agree(key: str) -> dict[str, Any]:
        """They agree, and begin."""
        store.consent(store.rater(key))
        rater = store.rater(key)
        return _said(store, rater, store.turn(rater))

    @app.get("/raters/{key}/turn")
    def turn(key: str) -> dict[str, Any]:
        """What is shown now."""
        rater = store.rater(key)
        return _said(store, rater, store.turn(rater))

    @app.post("/raters/{key}/answers/{place}")
    def answer(key: str, place: str, given: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
        """An answer; the same sent again changes nothing. Returns what is shown next."""
        rater = store.rater(key)
        try:
            checked = kind.model_validate(given)
        except ValidationError as error:
            field = ".".join(map(str, error.errors()[0]["loc"]))
            raise StoreError(f"{field[:40]}: {error.errors()[0]['msg']}", 422) from None
        return _said(store, rater, store.answer(rater, Place.of(place), checked.model_dump()))

    @app.post("/raters/{key}/stop")
    def stop(key: str) -> dict[str, Any]:
        """They give up: others get their groups."""
        rater = store.rater(key)
        store.give_up(rater)
        return {"code": config.completion_code}

    @app.get("/raters/{key}/videos/{place}/{side}")
    def video(key: str, place: str, side: int) -> FileResponse:
        """A video, by where it stands for this rater: its name stays here."""
        item = store.item(store.rater(key), Place.of(place))
        if not 0 <= side < len(item.videos) or store.offer is None:
            raise StoreError("there is no such video", 404)
        shown = store.offer.videos[item.videos[side]]
        keep = {"Cache-Control": "private, max-age=3600", "Content-Disposition": "inline"}
        return FileResponse(shown.file, media_type="video/mp4", headers=keep)


def _said(store: Store, rater: Rater, turn: Turn) -> dict[str, Any]:
    """A turn as the page reads it; addresses are relative to the page's."""

    def addresses(place: Place, videos: tuple[str, ...]) -> list[str]:
        return [f"raters/{rater.key}/videos/{place}/{side}" for side in range(len(videos))]

    groups = 0 if store.offer is None else len(store.offer.groups)
    shared = {
        "groups": turn.groups,
        "of_groups": min(store.config.groups or groups, groups),
        "waits": turn.waits,
    }
    if turn.item is None or turn.place is None:
        return shared | {"item": None, "ahead": [], "code": store.config.completion_code}
    item = {
        "place": str(turn.place),
        "videos": addresses(turn.place, turn.item.videos),
        "instruction": turn.item.instruction,
        "number": turn.place.number + 1,
        "of": turn.items,
    }
    ahead = [] if turn.ahead is None else addresses(turn.ahead[0], turn.ahead[1].videos)
    return shared | {"item": item, "ahead": ahead, "code": None}


def _of_studio(app: FastAPI, store: Store) -> None:
    def present() -> Offer:
        if store.offer is None:
            raise StoreError("nothing is offered now: the next candidates are being made", 409)
        return store.offer

    @app.get("/v1/status")
    def standing() -> dict[str, Any]:
        """Coverage, agreement, and how everybody rates."""
        return status(store, present()) | {"links": links(store)}

    @app.post("/v1/raters/{number}")
    def leave_out(number: int, wish: Standing) -> dict[str, bool]:
        """Leave a rater out, or take them in again."""
        store.leave_out(min(number, 2**31), wish.left_out)
        return {"left_out": wish.left_out}

    @app.get("/v1/opinions.{suffix}")
    def exported(suffix: Literal["csv", "parquet"]) -> Response:
        """What `dpo ratings=FILE` reads."""
        said = present_opinions(store, present())
        with TemporaryDirectory(prefix="rapport-ratings-") as folder:
            file = Path(folder) / f"ratings.{suffix}"
            write_opinions(file, said, store.config.form)
            data = file.read_bytes()
        kinds = {"csv": "text/csv", "parquet": "application/vnd.apache.parquet"}
        return Response(data, media_type=kinds[suffix])

    @app.get("/v1/answers.csv")
    def answers() -> Response:
        """All answers, with checks, controls and times."""
        return Response(answers_csv(store), media_type="text/csv")


def links(store: Store) -> dict[str, str]:
    """Who may come by which address: rater -> URL; for Prolific one, under its name."""
    url = store.config.url
    if store.config.recruit == "links":
        return {rater.name: f"{url}/?key={rater.key}" for rater in store.raters()}
    fields = ("PROLIFIC_PID", "STUDY_ID", "SESSION_ID")
    told = "&".join(f"{name}={{{{%{name}%}}}}" for name in fields)
    return {"Prolific": f"{url}/?study={store.secret('study')}&{told}"}


def write_opinions(
    file: Path, said: list[Rating] | list[Comparison], form: Literal["scales", "pairs"]
) -> None:
    """Write what people said in the columns that `ratings=` takes."""
    if form == "pairs":
        write_comparisons(file, [each for each in said if isinstance(each, Comparison)])
    else:
        write_ratings(file, [each for each in said if isinstance(each, Rating)])


def answers_csv(store: Store) -> str:
    """All answers of all rounds, as they are kept."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["rater", "outside", "round", "group", "number", "kind", "videos", "told", "answer"]
        + ["seconds", "given", "left_out"]
    )
    raters = {rater.number: rater for rater in store.raters()}
    for each in store.answers():
        rater = raters[each.rater]
        writer.writerow(
            [rater.name, rater.outside, *astuple(each.place), each.item.kind]
            + [" ".join(each.item.videos), each.item.told, json.dumps(each.answer)]
            + [f"{each.seconds:.1f}", f"{each.given:.0f}", rater.left_out]
        )
    return text.getvalue()


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StoreError)
    return Refused(error.status, "refused", str(error)).response()
