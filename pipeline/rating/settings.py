"""What people are asked on the rating page, and who is let in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from rapport.pipeline.serve.settings import TOKEN
from rapport.settings import Section, is_loopback, url_of

PAGE = Path(__file__).parent / "web"


class RateSection(Section):
    form: Literal["scales", "pairs"] = "scales"
    """what is asked: 1 to 5 on the four criteria, clip by clip; or of two side by side, who listens
    better"""
    per_group: int = Field(3, ge=1)
    """raters that every group of candidates is given"""
    groups: int | None = Field(None, ge=1)
    """groups that a rater is given, at most; empty = all"""
    recruit: Literal["links", "prolific"] = "links"
    """how raters come: each by a link of their own, or from Prolific by one link for all"""
    raters: int = Field(20, ge=1)
    """personal links that are made"""
    completion_code: str | None = Field(None, min_length=1)
    """what Prolific wants to hear of those who are done; needed with rate.recruit=prolific"""
    consent: Path | None = None
    """text that raters agree to, blank lines between paragraphs; empty = a short one of our own"""
    mismatched: float = Field(0.25, ge=0, le=1)
    """share of the groups with one listener more, who was listening to somebody else: whoever rates
    that one lower is rating what is answered to this speaker"""
    repeat_every: int = Field(3, ge=0)
    """of so many groups of a rater (or of all that they are given, where those are fewer), the last
    ends with an item seen before; 0 = never"""
    instruct_every: int = Field(3, ge=0)
    """of so many groups of a rater, the second (the only one) has an item that says what to choose;
    0 = never"""
    lease_minutes: float = Field(20, gt=0)
    """a group goes to somebody else when its rater has not answered for so long"""
    alpha: float | None = Field(None, gt=-1, lt=1)
    """agreement (Krippendorff's alpha) to wait for: while it is less, every group is given one
    rater more, as long as there are links; empty = rate.per_group raters are enough"""
    hours: float = Field(72, gt=0)
    """after so long, what there is must do"""
    host: str = "127.0.0.1"
    """address that is listened at; another than this machine's own needs the studio's token in the
    environment variable RAPPORT_TOKEN"""
    port: int = Field(8008, ge=1, lt=65536)
    """of the page"""
    address: str | None = None
    """URL by which raters reach the page, as https://rate.example, where a proxy stands in front;
    empty = http://HOST:PORT"""

    def moot(self) -> dict[str, tuple[str, ...]]:
        """What belongs to one way of finding raters."""
        if self.recruit == "links":
            return {"rate.recruit=links asks for no code": ("completion_code",)}
        return {"rate.recruit=prolific has one link for all": ("raters",)}

    @property
    def url(self) -> str:
        """Of the page, for raters."""
        return (self.address or url_of(self.host, self.port)).rstrip("/")

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if not is_loopback(self.host) and not os.environ.get(TOKEN):
            raise ValueError(
                f"host={self.host} can be reached from other machines: set the environment "
                f"variable {TOKEN}, by which the studio comes in, or host=127.0.0.1"
            )
        if self.recruit == "prolific" and self.completion_code is None:
            raise ValueError("recruit=prolific needs completion_code, which Prolific gives you")
        return self
