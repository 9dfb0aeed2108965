"""The report: what it says of made-up runs, where its curves run, that a real browser shows it."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from jinja2 import UndefinedError
from markupsafe import escape

from rapport.pipeline.data.candidates import Candidate
from rapport.pipeline.data.flow import windows as actor_windows
from rapport.pipeline.objectives.dpo import pair_schema
from rapport.pipeline.report.charts import Line, interval_chart, line_chart, thin
from rapport.pipeline.report.facts import Facts, changed_keys, read_facts
from rapport.pipeline.report.page import POLICY, page, write_report
from rapport.pipeline.report.summary import read_summary
from rapport.pipeline.report.svg import Picture, Scale, ticks
from rapport.pipeline.report.tables import Table
from rapport.pipeline.report.templates import ENVIRONMENT, render
from rapport.pipeline.report.videos import (
    HELD_OUT,
    PAIR,
    WORSE,
    Shown,
    evenly_spaced,
    fallen,
    read_shown,
    write_shown,
)
from rapport.pipeline.settings import DpoOfVla, EvaluateOfVla
from rapport.pipeline.steps.judging import MethodRow
from rapport.pipeline.steps.jury import Jury
from rapport.pipeline.steps.learning import Imitated
from rapport.pipeline.steps.movement import HeldOut
from rapport.pipeline.steps.preferences import pair_rows
from rapport.pipeline.steps.settings import EvaluationConfig
from rapport.policies.head.video import write_mp4
from rapport.policies.tables import write_table
from rapport.rewards.ratings.pairs import Pair
from rapport.rewards.ratings.ratings import CRITERIA, Rating, write_ratings
from tests.pipeline.bare import bare_run

EVIL = '<script>alert("x")</script>&'
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def row(rating, truth, **other):
    values = {
        "l2": 0.02,
        "fd": 1.5,
        "variation": 0.006,
        "diversity": 0.75,
        "p_fd": 1.25,
        "l2_affect": 0.125,
    }
    interval = (
        None
        if rating is None
        else {"mean": rating, "low": rating - 0.1, "high": rating + 0.1, "n": 3}
    )
    grades = {f"simulated_{name}": rating for name in CRITERIA}
    return values | grades | {"simulated_rating": interval, "truth_affect_error": truth} | other


def summary_of(recipe="dpo", **metrics):
    rows = {"SFT": row(3.25, 0.5), "SFT + DPO": row(3.75, 0.4, l2=0.025)}
    change = {
        "simulated_rating_change": {"mean": 0.512, "low": 0.41, "high": 0.61, "n": 3},
        "truth_affect_error_change": {"mean": -0.111, "low": -0.2, "high": 0.02, "n": 3},
        "l2_change_percent": 25.0,
        "fd_change_percent": 0.0,
    }
    found = {
        "evaluation": rows,
        "before": rows["SFT"],
        "after": rows["SFT + DPO"],
        "change": change,
        "curve": [
            {
                "step": 24 * k,
                "round": 1,
                "simulated_rating": 3.25 + k / 4,
                "truth_affect_error": None,
                "l2": 0.02,
                "fd": 1.5,
            }
            for k in range(3)
        ],
    }
    return {
        "recipe": recipe,
        "seed": 7,
        "versions": {"ray": "9.9.9"},
        "engines": {
            "rollout": {"name": "vllm", "version": "8.8.8"},
            "raters": "5 SIMULATED raters",
        },
        "timings_s": {"sft": 12.5, "dpo": 4.25},
        "counts": {"pairs": 1234},
        "artifacts": {},
        "metrics": found | metrics,
    }


def facts(**changes):
    """Facts of a made-up run of `dpo`; `summary` is what a recipe writes."""
    steps = {
        "sft": [{"step": s, "loss": 10.0 - s} for s in range(1, 5)],
        "dpo": [
            {"step": s, "loss": 0.5, "chosen_reward": s, "rejected_reward": -s} for s in range(1, 5)
        ],
    }
    survey = {
        "raters": {"a": 4, "b": 4},
        "candidates": 4,
        "rated": 4,
        "raters_per_candidate": 2.0,
        "alpha": {"empathy": 0.81, "naturalness": None},
        "reliability": {"empathy": 0.92, "naturalness": None},
        "warnings": [],
    }
    prompts = {
        "SFT": {"scores": {"a": 4.0, "b": 3.0, "c": 3.0}, "truth_errors": {"a": 0.25, "b": 0.5}},
        "SFT + DPO": {
            "scores": {"a": 2.5, "b": 2.75, "c": 5.0},
            "truth_errors": {"a": 0.75, "b": 0.5},
        },
    }
    panels = ["speaker", "ground truth", "SFT", "SFT + DPO"]
    videos = [
        (Shown(HELD_OUT, "c.mp4", "c", "good news", panels), b"held"),
        (Shown(WORSE, "worse/a.mp4", "a", None, panels), b"fell"),
        (
            Shown(
                PAIR,
                "pairs/t.mp4",
                "t",
                "",
                ["speaker", "chosen", "rejected"],
                {"chosen": 0.875, "rejected": 0.125},
            ),
            b"pair",
        ),
    ]
    return Facts(
        **{
            "name": "first",
            "summary": read_summary(changes.pop("summary", summary_of())),
            "config": "seed: 7",
            "changed": {"seed": 7},
            "steps": steps,
            "surveys": {"rate": survey},
            "prompts": prompts,
            "videos": videos,
        }
        | changes
    )


class Reader(HTMLParser):
    """Text of every section, and a check that elements nest."""

    VOID = {"meta", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.sections, self.tags = [], {}, []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in self.VOID:
            self.open.append((tag, attributes.get("id")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for tag, name in self.open:
            if tag == "section":
                self.sections[name] = self.sections.get(name, "") + data + " "


def read(text):
    reader = Reader()
    reader.feed(text)
    assert not reader.open, "every element is closed"
    return reader


def test_whatever_is_no_markup_is_escaped():
    macros = ENVIRONMENT.get_template("macros.html.j2").module
    assert f"<strong>Left out: </strong>{escape(EVIL)}</p>" in macros.missing(EVIL)
    evil = macros.table(Table(EVIL, (EVIL,), [[EVIL, EVIL]], EVIL))
    assert "<script" not in evil and evil.count(str(escape(EVIL))) == 5
    assert 'class="marked"' in macros.table(Table("", "ab", [["x"]], "x"))
    assert 'class="marked"' not in macros.table(Table("", "ab", [["x"]], "y"))
    assert 'aria-label="missing"' in macros.table(Table("", "ab", [["x", None]]))
    picture = Picture(1, 1, EVIL)
    picture.circle(EVIL, (0, 0), 1, title=EVIL)
    picture.text(EVIL, x=1, y=2, text_anchor="end", stroke=None)
    assert "<script" not in picture.markup() and "stroke" not in picture.markup()
    assert 'x="1" y="2" text-anchor="end"' in picture.markup()
    with pytest.raises(UndefinedError, match="sections"):
        render("report.html.j2", summary=facts().summary, name="", policy="", style="")


def test_nothing_from_data_becomes_markup():
    shown = Shown(HELD_OUT, f"{EVIL}.mp4", EVIL, EVIL, [EVIL])
    worse = {"scores": {EVIL: 4.0}, "truth_errors": {}}
    engines = {EVIL: {"name": EVIL}, "raters": f"2 people ({EVIL})"}
    summary = summary_of() | {"engines": engines, "versions": {EVIL: EVIL}}
    text = page(
        facts(
            name=EVIL,
            summary=summary,
            config=EVIL,
            changed={EVIL: EVIL},
            videos=[(shown, b"")],
            prompts={"SFT": worse, "SFT + DPO": {"scores": {EVIL: 1.0}, "truth_errors": {}}},
        )
    )
    reader = read(text)
    assert "script" not in {tag for tag, _ in reader.tags} and EVIL not in text
    assert all(EVIL in reader.sections[name] for name in ("ran", "held-out", "worse", "agreement"))


def test_the_numbers_are_the_summarys():
    sections = read(page(facts())).sections
    assert "3.250 to 3.750, by +0.512 [+0.410, +0.610]" in sections["short"]
    assert "may be chance" in sections["short"] and "L2 +25.0" in sections["short"]
    assert "3.75 [3.65, 3.85]" in sections["tables"] and "0.0250" in sections["tables"]
    assert "+25.0" in sections["tables"], "the direction of L2"
    assert all(
        text in sections["tables"]
        for text in ("10.2385", "3.7914", "15.2463", "Not comparable in size")
    )
    assert all(
        text in sections["ran"] for text in ("8.8.8", "9.9.9", "12.5", "16.8", "1,234", "seed: 7")
    )
    assert "0.81" in sections["agreement"] and "SIMULATED raters" in sections["agreement"]
    assert "0.875" in sections["pairs"] and "0.125" in sections["pairs"]
    assert "3.7500" in sections["curve"] and "divergence" not in sections["curve"]


def test_what_a_model_rated_is_called_learnt():
    bounds = {"mean": 0.75, "low": 0.71, "high": 0.79, "n": 40}
    table = {"reward model": {"accuracy": bounds, "within": 0.58, "over_all": 0.62}}
    summary = summary_of(reward_model={"agreement": table})
    summary["counts"] = {"pairs": 50, "rated_pairs": 40, "learnt_pairs": 10, "learnt_groups": 12}
    sections = read(page(facts(summary=summary))).sections
    assert "40 pairs by" in sections["pairs"]
    assert "10 pairs more (20 %) are learnt" in " ".join(sections["pairs"].split())
    told = " ".join(sections["agreement"].split())
    assert "12 groups that people had no time for are rated by a model" in told
    assert "0.75 [0.71, 0.79]" in told and "0.58" in told
    plain = read(page(facts())).sections
    assert "learnt" not in plain["pairs"] and "learnt" not in plain["agreement"]


def test_what_it_perceives_before_and_after():
    def stream(cost):
        bounds = {"mean": cost, "low": cost - 0.25, "high": cost + 0.25}
        return bounds | {"gain": bounds, "own": bounds}

    asked = {
        "unit": "nats_per_chunk",
        "split": "validation",
        "clips": 32,
        "conversations": 16,
        "streams": ["all", "voice"],
    }
    summary = summary_of()
    assert "perceives" not in read(page(facts(summary=summary))).sections
    summary["metrics"]["perception"] = asked | {"all": stream(0.5), "voice": stream(0.125)}
    summary["metrics"]["perception_after"] = asked | {"all": stream(1.5), "voice": stream(0.75)}
    text = read(page(facts(summary=summary))).sections["perceives"]
    assert "0.50 [0.25, 0.75]" in text and "1.50 [1.25, 1.75]" in text
    assert "makes nothing of: voice (imitating policy)." in text
    assert "listeners to 16 speakers" in " ".join(text.split())
    for name in ("perception", "perception_after"):
        summary["metrics"][name] |= {"unit": "flow_error"}
    text = read(page(facts(summary=summary))).sections["perceives"]
    assert "0.1250 [-0.1250, 0.3750]" in text and "squared errors of the velocity" in " ".join(
        text.split()
    )


def test_how_listeners_move_before_and_after():
    before = {
        "likeness/expr/position": 2.25,
        "likeness/expr/velocity": 3.5,
        "bands/expr/between": 0.09,
        "bands/expr/fast": 1.17,
        "listen/unils/FDD_lids_apart": 60.0,
        "listen/variance_ratio/expr": 0.5,
        "listen/jerk_ratio/expr": 1.25,
    }
    after = {
        "likeness/expr/position": 1.75,
        "bands/expr/between": 0.81,
        "listen/unils/FDD_lids_apart": 45.0,
        "listen/variance_ratio/expr": 0.9,
        "speak/gdpo_paper/LVE": 2.95,
    }
    others = {"listen/unils/FDD_lids_apart": 50.0}
    metrics = {
        "judgement": {"others": others, "Regression": {}, EVIL: before, "GDPO": after},
        "compared": [EVIL, "GDPO"],
        "change_percent": {"listen/unils/FDD_lids_apart": -25.0},
        "judgement_change": {
            "listen/unils/FDD_lids_apart": {"mean": -15, "low": -18.5, "high": -11.5, "n": 8}
        },
    }
    summary = summary_of("gdpo") | {"engines": {}, "counts": {}, "metrics": metrics}
    text = page(facts(summary=summary, surveys={}, prompts={}, videos=[]))
    assert EVIL not in text
    sections = read(text).sections
    for shown in (
        "2.25 / 3.50",
        "1.75 / -",
        "0.09",
        "0.81",
        "1.17",
        "0.9",
        "1.25",
        "-25\N{NO-BREAK SPACE}%",
        "-15 [-18.5, -11.5]",
        "2.95",
        "how far apart real people",
        "least wrong on average",
    ):
        assert shown in sections["moves"], shown
    assert {"moves", "held-out", "curves", "ran"} == set(sections)
    assert "moves" not in read(page(facts())).sections


def test_a_run_that_was_not_judged_by_likeness_says_nothing_of_it():
    text = read(page(facts(summary=flow_summary()))).sections["moves"]
    assert "How alike people" not in text and "Power by band" not in text
    assert "least wrong on average" not in text and "expr" in text


def flow_summary():
    """As `dpo policy=flow` writes it: ratings of both policies, how listeners move, no L2 or FD."""
    ratings = {
        "supervised": {"mean": 3.0, "low": 2.8, "high": 3.2, "n": 8},
        "Flow-DPO": {"mean": 3.5, "low": 3.3, "high": 3.7, "n": 8},
    }
    metrics = {
        "compared": ["supervised", "Flow-DPO"],
        "evaluation": {name: {"simulated_rating": rating} for name, rating in ratings.items()},
        "change": {"simulated_rating_change": {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 8}},
        "judgement": {
            "supervised": {"listen/unils/FDD": 60.0, "listen/variance_ratio/expr": 0.5},
            "Flow-DPO": {"listen/unils/FDD": 45.0, "listen/variance_ratio/expr": 0.9},
        },
        "change_percent": {"listen/unils/FDD": -25.0},
    }
    return summary_of() | {"metrics": metrics}


def test_any_policys_report_has_the_rating_before_and_after_and_its_change():
    prompts = {
        "supervised": {"scores": {"a": 4.0, "b": 2.0}},
        "Flow-DPO": {"scores": {"a": 3.0, "b": 4.0}},
    }
    text = page(facts(summary=flow_summary(), prompts=prompts, videos=[]))
    sections = read(text).sections
    assert "From supervised to Flow-DPO, on held-out prompts" in sections["short"]
    assert "3.000 to 3.500, by +0.500 [+0.250, +0.750]" in sections["short"]
    assert "Distance" not in sections["short"] and "Left out" not in sections["short"]
    assert "3.50 [3.30, 3.70]" in sections["tables"]
    assert "Flow-DPO 3.50, from 3.30 to 3.70" in text, "the chart, in words"
    assert "paper" not in sections["tables"] and "Left out" not in sections["tables"]
    assert "expr" in sections["moves"] and "-25\N{NO-BREAK SPACE}%" in sections["moves"]
    assert "From supervised to Flow-DPO the SIMULATED rating" in sections["worse"]
    assert "fell on 1 of 2" in sections["worse"] and "-1.00" in sections["worse"]
    assert "SFT" not in text
    assert set(sections) == set(read(page(facts())).sections) - {"curve"} | {"moves"}


def test_what_people_think_of_results_stands_beside_the_papers_table():
    value = {"mean": 4.25, "low": 3.5, "high": 4.75, "ratings": 12}
    alone = {"mean": 2.0, "low": None, "high": None, "ratings": 1}
    study = {
        "means": {
            "SFT": {"empathy": value, "overall": alone},
            "GDPO": dict.fromkeys(("empathy", "overall")),
        },
        "preferred": [
            {"method": "SFT", "to": "GDPO"} | value | {"mean": 0.75},
            {"method": "GDPO", "to": "SFT"} | value | {"mean": 0.25},
        ],
        "survey": {
            "raters": {"rater-1": 6, "rater-2": 6},
            "rated": 12,
            "candidates": 14,
            "alpha": {"empathy": 0.61},
            "reliability": {"empathy": 0.76},
            "warnings": ["two faces were rated by nobody"],
        },
    }
    text = read(page(facts(summary=summary_of(study=study)))).sections["people"]
    assert "2 people rated 12 of 14 faces" in text and "two faces were rated by nobody" in text
    assert "4.25 [3.50, 4.75]" in text and "0.75 [3.50, 4.75]" in text and "0.25 [" not in text
    assert "0.61" in text and "4.1" in text, "agreement, and the paper's empathy of SFT + RL"
    assert "people" not in read(page(facts())).sections


def test_each_section_appears_when_its_data_is_there():
    summary = flow_summary()
    del summary["metrics"]["evaluation"], summary["metrics"]["change"]
    sections = read(page(facts(summary=summary))).sections
    assert "moves" in sections and not {"short", "tables", "worse"} & set(sections)
    summary = flow_summary()
    del summary["metrics"]["judgement"]
    summary["metrics"]["evaluation"]["others"] = row(None, 0.25)
    sections = read(page(facts(summary=summary))).sections
    assert "moves" not in sections and "0.0200" in sections["tables"]
    assert "From supervised to the aligned policy" in sections["tables"]


def test_the_ablation_of_the_paper_stands_where_dpo_was_run_alone():
    assert "<h3>Ablation</h3>" in page(facts())
    assert "<h3>Ablation</h3>" not in page(facts(summary=summary_of("gdpo")))


def test_methods_are_compared_by_their_names_in_the_summary():
    metrics = {"compared": ["a", "b"], "evaluation": {"a": row(3.0, 0.5), "b": row(4.0, 0.5)}}
    tags = read(page(facts(summary=summary_of(**metrics)))).tags
    # The method after alignment stands out in the table of results and in that of criteria; in the
    # others it is a row of the paper's.
    assert [a.get("class") for tag, a in tags if tag == "tr"].count("marked") == 7
    sections = read(page(facts(summary=summary_of(**metrics)))).sections
    assert "From a to b" in sections["short"] and "step 0 is a." in sections["curve"].replace(
        "\n", " "
    )
    assert read_summary(summary_of()).compared == ("SFT", "SFT + DPO"), "of an old summary"
    assert read_summary(summary_of(evaluation={"policy": {}})).compared is None


def test_where_it_got_worse_the_largest_fall_comes_first():
    text = read(page(facts())).sections["worse"]
    assert "fell on 2 of 3" in text and "rose on 1 " in text
    numbers = re.findall(r"[+-]\d\.\d+", text)
    assert numbers[:3] == ["-1.50", "+0.500", "-0.25"]
    better = {name: {"scores": {"a": 1.0}, "truth_errors": {}} for name in ("SFT", "SFT + DPO")}
    text = read(page(facts(prompts=better))).sections["worse"]
    assert "fell on 0 of 1" in text and "largest" not in text
    assert fallen(
        {"a": 2.0, "b": 3.0, "c": 1.0, "d": 3.0}, {"a": 1.0, "b": 1.0, "c": 1.0, "e": 0.0}
    ) == ["b", "a"]


def test_what_is_missing_is_left_out_and_named():
    summary = summary_of(
        evaluation={"SFT": row(None, None, p_fd=None), "SFT + DPO": row(None, None, p_fd=None)}
    )
    del summary["metrics"]["change"]["truth_affect_error_change"]
    sections = read(
        page(facts(summary=summary, steps={}, surveys={}, prompts={}, videos=[]))
    ).sections
    assert "Left out:  the truth affect error" in sections["short"]
    assert (
        "P-FD, truth affect error: could not be computed" in sections["tables"]
        and "nan" not in sections["tables"]
    )
    assert all(
        "Left out" in sections[name]
        for name in ("held-out", "worse", "pairs", "agreement", "curves")
    )


def test_a_run_of_evaluate_has_the_parts_it_can_have():
    summary = summary_of("evaluate") | {"engines": {"rollout": {"name": "vllm"}}, "counts": {}}
    summary["metrics"] = {"evaluation": {"policy": row(3.0, None), "ground truth": row(4.0, None)}}
    sections = read(page(facts(summary=summary, surveys={}, prompts={}, videos=[]))).sections
    assert set(sections) == {"held-out", "tables", "curves", "ran"}
    assert "From SFT to the aligned" not in sections["tables"]


def test_videos_and_charts_say_what_they_show_and_nothing_is_fetched():
    tags = read(page(facts())).tags
    videos = [attributes for tag, attributes in tags if tag == "video"]
    encoded = ("aGVsZA==", "ZmVsbA==", "cGFpcg==")
    assert [v["src"] for v in videos] == [f"data:video/mp4;base64,{data}" for data in encoded]
    assert "good news" in videos[0]["aria-label"] and "no transcript" in videos[1]["aria-label"]
    assert "says nothing" in videos[2]["aria-label"] and all("controls" in v for v in videos)
    charts = [attributes for tag, attributes in tags if tag == "svg"]
    assert charts and all(c["role"] == "img" and c["aria-label"] for c in charts)
    assert any("loss from 9 at 1 to 6 at 4" in c["aria-label"] for c in charts)
    links = [a[key] for _, a in tags for key in ("src", "href") if key in a]
    assert all(link.startswith(("data:", "#")) for link in links)
    assert {link[1:] for link in links if link.startswith("#")} <= {a.get("id") for _, a in tags}
    assert all("tabindex" in a and a["aria-label"] for _, a in tags if a.get("class") == "scroll")


def test_chart_coordinates_by_hand():
    """View box 320 x 200, plot from x 52 to 310 and from y 164 (bottom) up to 10."""
    figure = line_chart("loss", "step", [Line("loss", [(0, 0.0), (5, 10.0), (10, 5.0)])])
    assert 'points="52.0,164.0 181.0,10.0 310.0,87.0"' in figure.picture and not figure.keys
    two = line_chart(
        "reward", "step", [Line("up", [(1, 0), (2, 1)]), Line("down", [(1, 0), (2, -1)])]
    )
    assert 'points="52.0,87.0 310.0,10.0"' in two.picture
    assert 'points="52.0,87.0 310.0,164.0"' in two.picture
    text = ENVIRONMENT.get_template("macros.html.j2").module.chart(two)
    assert "up</span>" in text and "down</span>" in text and two.picture in text
    assert line_chart("loss", "step", [Line("loss", [(1, 1.0)])]) is None
    bars = interval_chart("rating", [("SFT", 3.0, 2.0, 4.0)])  # 140 to 440 units for 2 to 4
    assert 'x1="140.0" x2="440.0"' in bars.picture and 'cx="290.0"' in bars.picture


def test_ticks_are_round_and_hold_the_range():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10] and ticks(0.12, 0.31) == [
        0.1,
        0.15,
        0.2,
        0.25,
        0.3,
        0.35,
    ]
    assert ticks(0, 1, 4, whole=True) == [0, 1] and ticks(5, 5)[0] < 5 < ticks(5, 5)[-1]
    rng = np.random.default_rng(0)
    for low, width in zip(rng.normal(0, 100, 200), 10 ** rng.uniform(-6, 6, 200), strict=True):
        found = ticks(low, low + width)
        assert found[0] <= low + 1e-9 and found[-1] >= low + width - 1e-9 and 2 <= len(found) <= 6
    assert Scale(0, 10, 0, 1)(5) == 0.5


def test_long_curves_are_thinned_to_means():
    assert thin([(0, 1.0), (1, 3.0), (2, 5.0)], most=2) == ([(0.5, 2.0), (2.0, 5.0)], 2)
    assert thin([(0, 1.0)], most=2) == ([(0, 1.0)], 1)
    thinned = line_chart("loss", "step", [Line("loss", [(s, s) for s in range(280)])])
    assert "mean of 3 steps" in ENVIRONMENT.get_template("macros.html.j2").module.chart(thinned)


def test_pairs_shown_are_spread_over_the_margins():
    assert evenly_spaced(range(9), 3) == [0, 4, 8]
    assert evenly_spaced(range(2), 3) == [0, 1]
    assert evenly_spaced(range(9), 1) == [0]
    assert evenly_spaced(range(9), 0) == [] == evenly_spaced([], 3)


def test_a_run_directory_is_read_round_by_round(tmp_path):
    for label in ("sft", "dpo", "dpo-2", "dpo-10", "rate", "clips", "dpo-old"):
        (tmp_path / label).mkdir()
        if label not in ("rate", "clips"):
            (tmp_path / label / "steps.jsonl").write_text(
                '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n'
            )
    ratings = [Rating("p", c, r, 1.0 + k, 2.0, 3.0, 4.0) for r in "ab" for k, c in enumerate("xyz")]
    write_ratings(tmp_path / "rate" / "ratings.parquet", ratings)
    (tmp_path / "clips" / "a.mp4").write_bytes(b"video")
    write_shown(tmp_path / "clips", [Shown(HELD_OUT, "a.mp4", "a", None, ["speaker"])])
    found = read_facts(tmp_path, summary_of(), DpoOfVla(seed=3))
    assert list(found.steps) == ["sft", "dpo", "dpo-2", "dpo-10"] and found.changed == {"seed": 3}
    assert found.surveys["rate"]["alpha"]["empathy"] == 1.0 and found.surveys["rate"]["rated"] == 3
    assert (
        found.videos == [(Shown(HELD_OUT, "a.mp4", "a", None, ["speaker"]), b"video")]
        and found.prompts == {}
    )
    assert read(page(found)).sections["curves"].count("dpo") == 3, (
        "and a loss that is not a number breaks nothing"
    )
    people = read_facts(tmp_path, summary_of() | {"survey": {"alpha": {}}}, DpoOfVla())
    assert people.surveys == {"rate": {"alpha": {}}}, "surveyed when they were read"
    assert read_shown(tmp_path) == [] and changed_keys(EvaluateOfVla()) == {}


def test_the_report_is_named_in_summary_and_mlflow(tmp_path):
    run = bare_run(tmp_path, DpoOfVla())
    run.summary = summary_of()
    path = write_report(run)
    assert path == tmp_path / "report.html" and path.read_text().startswith("<!DOCTYPE html>")
    assert run.summary["artifacts"]["report"] == "report.html" and run.files == [path]


def test_the_recipe_renders_three_kinds_of_videos(tiny_corpus, tiny_checkpoint, tmp_path):
    """In one phase: held-out ones in its folder, the other two kinds in folders below."""
    imitated, jobs = Imitated(tiny_corpus, tiny_checkpoint), []
    policy = imitated.policy

    class Renderers:
        def render(self, asked):
            asked = list(asked)
            jobs.extend(asked)
            return [(job.path, 1) for job in asked]

    space, prompts, held = (
        policy.actions.space,
        tiny_corpus.clip_ids("train"),
        tiny_corpus.clip_ids("test"),
    )
    pairs = [Pair(prompt, "a", "b", 0.5 + k / 20, 0.25) for k, prompt in enumerate(prompts[:3])]
    candidates = {
        (pair.prompt_id, name): Candidate(
            pair.prompt_id,
            name,
            "policy",
            np.full(space.tokens, policy.actions.first_token + k),
        )
        for pair in pairs
        for k, name in enumerate("ab")
    }
    table = tmp_path / "pairs.arrow"
    write_table(table, pair_rows(pairs, candidates, imitated), pair_schema(policy))
    config = DpoOfVla(evaluation=EvaluationConfig(clips=2))
    run = SimpleNamespace(
        once=lambda name, work, round_index=1: work(
            SimpleNamespace(directory=tmp_path, name=name, say=print)
        ),
        summary={"metrics": {}},
        root=tmp_path,
    )
    windows = [next(actor_windows(tiny_corpus.clip(i), 1, both=False)) for i in held]
    held_out = HeldOut(windows, [None] * len(held), [0] * len(held))
    jury = Jury(run, config, imitated, held_out, judge=None)
    motions = [[tiny_corpus.clip(i).listener.subset(space.layout)] for i in held]
    for name, scores in (("SFT", {held[3]: 4.0}), ("SFT + DPO", {held[3]: 3.0})):
        jury.answers[name] = motions
        jury.policies[name] = policy
        jury.rows[name] = MethodRow({}, scores, {})
    jury.show(Renderers(), table)
    shown = read_shown(tmp_path)
    assert [(s.kind, s.clip_id) for s in shown] == [
        (HELD_OUT, held[0]),
        (HELD_OUT, held[1]),
        (WORSE, held[3]),
        (PAIR, prompts[2]),
        (PAIR, prompts[0]),
    ]
    assert [job.path for job in jobs] == [tmp_path / s.file for s in shown]
    assert [job.path.parent.name for job in jobs[2:]] == ["worse", "pairs", "pairs"] and jobs[
        3
    ].path.parent.is_dir()
    assert [[p.caption for p in job.panels] for job in jobs] == [s.panels for s in shown]
    assert (
        shown[3].scores == {"chosen": 0.6, "rejected": 0.25}
        and shown[0].words == tiny_corpus.clip(held[0]).text
    )
    assert not np.array_equal(jobs[3].panels[1].motion.values, jobs[3].panels[2].motion.values)


PROBE = """<script>
window.errors = [];
addEventListener("error", e => errors.push(String(e.message || e.target.tagName)), true);
addEventListener("securitypolicyviolation", e => errors.push(e.violatedDirective));
addEventListener("load", () => setInterval(() => {
  const videos = [...document.querySelectorAll("video")];
  document.title = JSON.stringify({
    widths: videos.map(v => v.videoWidth), seconds: videos.map(v => v.duration),
    errors: window.errors, failed: videos.map(v => v.error && v.error.message),
    overflow: document.documentElement.scrollWidth - innerWidth,
    fetched: performance.getEntriesByType("resource").map(e => e.name.slice(0, 20))
      .filter(n => !n.startsWith("data:")),
  });
}, 100));
</script>"""


def browse(*arguments) -> str:
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=8000",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.fixture
def report_with_videos(tmp_path):
    """A report with a real video of each kind, one of them with sound."""
    data = []
    for number, shown in enumerate(video for video, _ in facts().videos):
        frames = np.full((10, 64, 64 * len(shown.panels), 3), 60 * number, np.uint8)
        path = write_mp4(
            tmp_path / f"{number}.mp4", frames, 25, np.zeros(6400, np.float32) if number else None
        )
        data.append((shown, path.read_bytes()))
    return page(facts(videos=data))


@pytest.mark.engine
@pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium (apt-get install chromium) or Chrome on PATH"
)
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it(report_with_videos, tmp_path, width):
    """Videos decode, nothing fails, nothing leaves the file, the page is as wide as the window."""
    opened = (
        tmp_path / "probed.html"
    )  # the page forbids scripts, so the probe's copy allows them and nothing else
    text = report_with_videos.replace(str(escape(POLICY)), f"{POLICY}; script-src 'unsafe-inline'")
    opened.write_text(text.replace("<style>", f"{PROBE}<style>", 1))
    dom = browse("--dump-dom", f"--window-size={width},900", opened.as_uri())
    found = json.loads(html.unescape(re.search("<title>(.*?)</title>", dom, re.DOTALL)[1]))
    assert found["widths"] == [256, 256, 192] and found["failed"] == [None] * 3, found
    assert all(s == pytest.approx(0.4, abs=0.1) for s in found["seconds"])
    assert found["errors"] == [] and found["fetched"] == [] and found["overflow"] <= 0, found


@pytest.mark.engine
@pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium (apt-get install chromium) or Chrome on PATH"
)
def test_the_page_forbids_scripts(report_with_videos, tmp_path):
    opened = tmp_path / "report.html"
    opened.write_text(
        report_with_videos.replace("</body>", "<script>document.title = 'ran'</script></body>")
    )
    assert "<title>Rapport dpo: first</title>" in browse("--dump-dom", opened.as_uri())
    picture = tmp_path / "page.png"
    browse(f"--screenshot={picture}", opened.as_uri())
    assert picture.stat().st_size > 10_000
