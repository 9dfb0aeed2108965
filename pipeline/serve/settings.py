"""What the live listener is served by."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from rapport.settings import Section, is_loopback

PAGE = Path(__file__).parent / "web"
LOOKED_AT_S = 1.0  # how often Ray Serve looks at a replica
FORGOTTEN_S = 6.0  # a replica that is not looked at for so long is on its way out
MOVE_S = 5.0  # in which clients of a replica go elsewhere, before their sockets are closed
CLOSED_S = 5.0  # in which sockets are closed, before Ray ends the process
TOKEN = "RAPPORT_TOKEN"  # environment variable of the bearer token


class LimitsConfig(Section):
    requests: int = Field(120, ge=1)
    """requests a minute, of an address"""
    sessions: int = Field(8, ge=1)
    """live sessions at once, of an address; an ingress tells it by X-Forwarded-For"""
    pace: float = Field(1.2, ge=1)
    """times as fast as it is spoken, at which sound may come; 2 s may come at once"""
    minutes: float = Field(60, gt=0)
    """of a live session, and of a recording"""
    upload_mb: float = Field(64, gt=0)
    """of a recording"""
    jobs: int = Field(8, ge=1)
    """recordings that may wait"""

    @property
    def upload_bytes(self) -> int:
        """Of a recording."""
        return int(self.upload_mb * 1024 * 1024)


class ServeSection(Section):
    policies: dict[str, str] = {}
    """who can be talked to: name -> folder of a run or of a policy, or models:/NAME/VERSION of
    MLflow's registry; empty = the AR-Flow that comes with the project"""
    host: str = "127.0.0.1"
    """address that is listened at; another than this machine's own needs a token in the
    environment variable RAPPORT_TOKEN"""
    port: int = Field(8000, ge=1, lt=65536)
    """of the page and the endpoint"""
    replicas: int = Field(1, ge=1)
    """processes, each with all policies and sessions of its own"""
    cpus: float = Field(1, gt=0)
    """of a replica, as many threads"""
    gpus: float = Field(0, ge=0)
    """share of a GPU of a replica"""
    sessions: int = Field(64, ge=1)
    """live sessions of a replica at most; fewer where its steps would take more than half of a
    chunk, which is measured when a policy is loaded"""
    lead: Literal[0, 4, 8, 12] = 0
    """frames of a latent that AR-Flow hears before it moves, unless a client asks for others; 0
    answers soonest"""
    grace_s: float = Field(0.08, ge=0)
    """sound may be late by, before silence is heard in its place"""
    engine: Literal["torch", "vllm"] = "torch"
    """what the VLA's LLaMA runs in; vllm is quicker for several sessions of long contexts, torch
    for the others of the tiny one (docs/serve.md)"""
    smoother: Literal["none", "average", "inertialise"] | Path = "none"
    """what joins the frames of a chunk to those before, as of `listen`"""
    evaluations: int | None = Field(None, ge=2, multiple_of=2)
    """of AR-Flow's velocity, for a latent; empty = 4, or fewer where it was distilled"""
    watch: bool = False
    """whether speakers may be seen, too: their faces are read off small pictures that the page
    sends, for policies that perceive motion (AR-Flow, ReactFace); needs the extra `video`. No
    picture is kept"""
    origins: list[str] = []
    """pages that stand elsewhere and may come in, as https://studio.example"""
    record: Path | None = None
    """folder where voices are kept, with policy, seed and texts; clients are told. Empty = nothing
    is kept"""
    demo: bool = False
    """whether the page has a button that kills a replica"""
    limits: LimitsConfig = LimitsConfig()

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if not is_loopback(self.host) and not os.environ.get(TOKEN):
            raise ValueError(
                f"host={self.host} can be reached from other machines: set the environment "
                f"variable {TOKEN}, or host=127.0.0.1 and let nobody else in"
            )
        if self.demo and not is_loopback(self.host):
            raise ValueError("demo=true lets everybody kill replicas: on host=127.0.0.1 only")
        return self
