"""The one entry: names, variants, published rows, and docs/metrics.md, which must keep up."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rapport.rewards.metrics import PROTOCOLS, evaluate
from rapport.rewards.metrics.published import (
    L2L_TREVOR,
    REALTALK,
    TABLES,
    MotionFacts,
    ordered,
    tables_of,
    unlike,
)

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
RNG = np.random.default_rng(0)


def test_protocols_go_by_their_names():
    assert set(PROTOCOLS) == {
        "lm_listener",
        "l2l",
        "dim",
        "dualtalk",
        "unils",
        "gdpo_paper",
        "react2023",
        "react2024",
        "reactface",
        "vbench",
    }
    assert all(name == protocol.name and protocol.source for name, protocol in PROTOCOLS.items())
    assert all(
        name.isidentifier() and text
        for p in PROTOCOLS.values()
        for name, text in p.corrections.items()
    )


def test_unknown_names_are_answered_with_near_ones():
    x = RNG.normal(size=(40, 4))
    with pytest.raises(ValueError, match="unknown protocol 'lm-listener'; nearest: lm_listener"):
        evaluate("lm-listener", x, x)
    for name in PROTOCOLS:
        with pytest.raises(
            ValueError, match="unknown variant 'fixed', expected one of .*'reference', 'corrected'"
        ):
            evaluate(name, x, x, variant="fixed")


def test_values_are_plain_floats():
    x, y = RNG.normal(size=(2, 120, 56))
    for name in ("lm_listener", "dim", "dualtalk"):
        assert all(type(value) is float for value in evaluate(name, x, y, x).values())


def test_the_challenges_go_by_their_names_too():
    pred, target, partner = (
        RNG.normal(size=(3, 2, 70, 25)),
        RNG.normal(size=(3, 70, 25)),
        RNG.normal(size=(3, 70, 25)),
    )
    scores = evaluate("react2024", pred, target, partner, neighbours=np.eye(3), variant="corrected")
    ours = {"FRCorr", "FRDist", "FRDvs", "FRDiv", "FRSyn", "FRVar"}
    # Nobody's reaction but the recorded one is appropriate here, so there is no FRCorr_others.
    assert set(scores) == ours | {"FRDiv_moving", "share"}
    assert set(evaluate("react2024", pred, target, partner, neighbours=np.eye(3))) == ours
    mirrored = evaluate(
        "react2024", partner, target, partner, neighbours=np.eye(3), variant="corrected"
    )
    assert mirrored["FRSyn"] == 0


def test_published_rows_name_metrics_of_their_protocols():
    """A misspelt key would show as a row without numbers."""
    x, y = RNG.normal(size=(2, 120, 56))
    for name in ("lm_listener", "dualtalk"):
        ours = {*evaluate(name, x, y, x), "L2 Affect"}
        assert tables_of(name) and all(
            set(row) <= ours for t in tables_of(name) for row in t.rows.values()
        )
    assert all(
        set(table.scale) <= {metric for row in table.rows.values() for metric in row}
        for table in TABLES
    )
    assert all(row for table in TABLES for row in table.rows.values())


def test_the_papers_effect_is_in_its_table():
    """Transcription: alignment trades L2 for affect, and Table IV repeats the row of Table II."""
    trevor, realtalk = tables_of("lm_listener")[:2]
    for table in (trevor, realtalk):
        before, after = table.rows["Ours (SFT)"], table.rows["Ours (SFT+RL)"]
        assert after["L2"] > before["L2"] and after["L2 Affect"] < before["L2 Affect"]
    assert realtalk.rows["Ours (SFT+RL)"]["P-FD"] == 3.7914


def test_rows_of_the_online_family_are_as_printed():
    """Transcription, by what the papers' text says of their tables."""
    rows = {table.source: table.rows for table in tables_of("reactface")}
    full = rows["ReactFace, Table 2"]["ReactFace"]
    for number in (3, 4, 5, 6, 7):
        ablated = rows[f"ReactFace, Table {number}"]
        shared = {metric: full[metric] for metric in ablated["ReactFace"]}
        assert ablated["ReactFace"] == shared
    without = rows["ReactFace, Table 7"]
    assert without["without L_div (inferred)"]["FRDiv"] == 0
    assert rows["ReactFace, Table 6"]["without momentum"]["FRDiv"] > 2 * full["FRDiv"]
    # Gains as printed in the text of PFLPosNet, section 5.3.
    crops = {table.source: table.rows for table in tables_of("vbench")}
    reactface = crops["PFLPosNet, Table 2"]
    gained = (
        reactface["fixed crop"]["imaging_quality"]
        - reactface["crop that follows the face"]["imaging_quality"]
    )
    assert gained == pytest.approx(11.63, abs=0.01)
    perfrdiff = crops["PFLPosNet, Table 3"]
    gained = (
        perfrdiff["fixed crop + PosNet"]["motion_smoothness"]
        - perfrdiff["fixed crop"]["motion_smoothness"]
    )
    assert gained == pytest.approx(1.04, abs=0.01)
    # What is uniform noise: its values are known.
    noise = next(
        table.rows["Random"] for table in tables_of("react2024") if "validation" in table.data
    )
    assert (noise["FRVar"], noise["FRDiv"], noise["FRDvs"]) == pytest.approx(
        (1 / 12, 1 / 6, 1 / 6), abs=1e-4
    )


def test_the_docs_have_every_protocol_and_correction():
    text = DOCS.read_text()
    lines = [
        f"| `{protocol.name}` | `{name}` | {what} |"
        for protocol in PROTOCOLS.values()
        for name, what in protocol.corrections.items()
    ]
    lines += [f"| `{protocol.name}` | {protocol.source} |" for protocol in PROTOCOLS.values()]
    missing = [line for line in lines if line not in text]
    assert not missing, "docs/metrics.md lacks these lines:\n" + "\n".join(missing)
    stale = [
        line
        for line in text.splitlines()
        if re.match(rf"\| `({'|'.join(PROTOCOLS)})` \| `[a-z_]+` \|", line) and line not in lines
    ]
    assert not stale, "docs/metrics.md has lines that no protocol has:\n" + "\n".join(stale)


def test_rows_of_the_datas_own_corpus_come_first_and_others_say_why_not():
    tables = tables_of("lm_listener")
    segments = MotionFacts(
        groups=(("expr", 50), ("rot", 3), ("jaw", 3)), width=56, fps=25, clips=7, reader="realtalk"
    )
    (first, reasons), *others = ordered(tables, segments)
    assert first is REALTALK and reasons == []
    assert [reasons for _, reasons in others] == [
        ["25 fps, there 30 fps", "realtalk files, there lm_listener files"]
    ] * 2
    published = replace(segments, fps=30, reader="lm_listener")
    assert ordered(tables, published)[0] == (L2L_TREVOR, [])


def test_what_is_not_known_speaks_against_nothing():
    assert unlike(L2L_TREVOR.motion, MotionFacts()) == []
    assert [table for table, _ in ordered(list(TABLES), MotionFacts())] == list(TABLES)
    vhap = MotionFacts(groups=(("expr", 100), ("rot", 3)), width=103)
    assert unlike(L2L_TREVOR.motion, vhap) == ["expr 100 + rot 3, there expr 50 + rot 3 + jaw 3"]
    plain = MotionFacts(width=103, reader="synthetic")
    assert unlike(L2L_TREVOR.motion, plain) == [
        "103 columns, there 56 columns",
        "synthetic files, there lm_listener files",
    ]
    # The same groups in another order are the same motion.
    turned = MotionFacts(groups=(("rot", 3), ("jaw", 3), ("expr", 50)))
    assert unlike(L2L_TREVOR.motion, turned) == []


def test_another_number_or_length_of_clips_is_said():
    posnet = tables_of("react2024")[0]
    ours = MotionFacts(width=25, clips=4, frames=100)
    assert unlike(posnet.motion, ours) == [
        "4 clips, there 697 clips",
        "100 frames, there 750 frames",
    ]
