"""Every published protocol by its name, each reproducing its reference's numbers.

    from rapport.rewards.metrics import PROTOCOLS, evaluate

    evaluate("dualtalk", pred, target, partner)                       # the reference, bug for bug
    evaluate("dualtalk", pred, target, partner, variant="corrected")  # mended, and this says how:
    PROTOCOLS["dualtalk"].corrections

The same metric name means different numbers in different repositories; docs/metrics.md has the
table. Nothing here needs torch, Ray or pydantic.
"""

from __future__ import annotations

import difflib
from typing import Any

from rapport.rewards.metrics.protocols import (
    dim,
    dualtalk,
    gdpo_paper,
    l2l,
    lm_listener,
    react,
    unils,
    vbench,
)
from rapport.rewards.metrics.protocols.protocol import Inputs, Protocol, Variant

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        lm_listener.PROTOCOL,
        l2l.PROTOCOL,
        dim.PROTOCOL,
        dualtalk.PROTOCOL,
        unils.PROTOCOL,
        gdpo_paper.PROTOCOL,
        *react.PROTOCOLS,
        vbench.PROTOCOL,
    )
}


def evaluate(  # noqa: PLR0913 - the public door: keywords read better than an object
    protocol: str | Protocol,
    pred: Any,
    target: Any,
    partner: Any = None,
    *,
    neighbours: Any = None,
    speech_mask: Any = None,
    fps: float | None = None,
    variant: Variant = "reference",
    seed: int = 0,
) -> dict[str, float]:
    """The metrics of a protocol, by the papers' names.

    Arrays or typed motion; the docstring of a protocol's `score` says more about shapes:

    | protocol | pred and target |
    | --- | --- |
    | lm_listener, l2l | (T, D) a clip, or a list of clips |
    | dim, dualtalk | (T, 56) a clip, or a list; columns in the order of the reference |
    | unils, gdpo_paper | a `measures.mesh.Face` a clip: vertices (T, V, 3) with regions |
    | react* | pred (N, M, T, D); target and partner (N, T, D) |
    | vbench | pred: video (T, H, W, 3) uint8, or a list; target None |

    Args:
        protocol: a name in `PROTOCOLS`; or one with parts of yours, as
            `lm_listener.with_affect(estimator)` returns.
        pred: the prediction.
        target: the recorded motion.
        partner: the other person's motion.
        neighbours: (N, N) matrix of appropriate reactions (REACT protocols).
        speech_mask: who speaks when (unils, gdpo_paper).
        fps: frames per second of plain arrays, where the protocol asks for it.
        variant: "reference" = the published number, bug for bug; "corrected" = with the protocol's
            `corrections`.
        seed: of what is drawn at random.

    Raises:
        ValueError: unknown protocol, wrong shapes, lengths or values; says what and where.
        LayoutError: typed motion of unlike layouts.
    """
    if isinstance(protocol, str):
        protocol = named(protocol)
    inputs = Inputs(
        pred=pred,
        target=target,
        partner=partner,
        neighbours=neighbours,
        speech_mask=speech_mask,
        fps=fps,
        variant=variant,
        seed=seed,
    )
    return protocol.score(inputs)


def named(name: str) -> Protocol:
    """The protocol of this name.

    Raises:
        ValueError: there is none; names the nearest ones.
    """
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, n=3, cutoff=0.4) or list(PROTOCOLS)
        raise ValueError(f"unknown protocol {name!r}; nearest: {', '.join(near)}")
    return PROTOCOLS[name]
