"""Controls, what a live run leaves, and people's choices from a file."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rapport.pipeline.data.candidates import COLUMNS, GROUND_TRUTH, POLICY, Candidate
from rapport.pipeline.rating.offers import read_controls, write_controls
from rapport.pipeline.rating.page import Page
from rapport.pipeline.rating.plan import drawn_by
from rapport.pipeline.rating.settings import RateSection
from rapport.pipeline.rundir import Phase, RunError
from rapport.pipeline.settings import DpoOfVla, RateConfig
from rapport.pipeline.steps import rating
from rapport.pipeline.steps.inputs import look_at_inputs
from rapport.pipeline.steps.preferences import check_ratings, peoples_comparisons
from rapport.pipeline.steps.rating import (
    RECORDED,
    choose_controls,
    described_opinions,
    read_said,
    require_consent,
    require_raters,
    write_said,
)
from rapport.rewards.ratings.comparisons import Comparison, read_comparisons, write_comparisons
from rapport.rewards.ratings.ratings import CRITERIA, RatingError
from tests.offered import offer_at, write_offer
from tests.runs import free_port

SPEAKERS = {"p0": "ann", "p1": "ann", "p2": "bert", "p3": "cleo"}
LENGTHS = {"p0": 50, "p1": 50, "p2": 50, "p3": 40}


def candidate(prompt, name, source):
    return Candidate(prompt, name, source, np.zeros(LENGTHS[prompt]))


GROUPS = {
    prompt: [candidate(prompt, "r", GROUND_TRUTH), candidate(prompt, "s", POLICY)]
    for prompt in SPEAKERS
}
NAMES = {
    f"000{n}-{letter}": (prompt, name)
    for n, prompt in enumerate(SPEAKERS, 1)
    for letter, name in zip("ab", "rs", strict=True)
}
IMITATED = SimpleNamespace(
    corpus=SimpleNamespace(conversations=lambda split: SPEAKERS),
    policy=SimpleNamespace(to_motion=lambda reaction: reaction.actions),
)


def chosen(share=1.0, seed=0, names=NAMES, groups=GROUPS):
    return choose_controls(IMITATED, groups, names, share=share, rng=drawn_by(seed))


def test_a_control_was_listening_to_another_speaker_for_as_long():
    for seed in range(20):
        controls = chosen(seed=seed)
        assert {control.prompt_id for control in controls} == {"p0", "p1", "p2"}, "p3 is shorter"
        for control in controls:
            assert SPEAKERS[control.prompt_id] != SPEAKERS[control.other_prompt]
            assert LENGTHS[control.prompt_id] == LENGTHS[control.other_prompt]
            assert control.counterpart == control.candidate_id, "of the same source here"
            assert NAMES[f"{control.video[:4]}-a"][0] == control.prompt_id


def test_controls_are_of_people_and_the_policy_in_turn():
    assert [control.source for control in chosen()] == [RECORDED, POLICY, RECORDED]
    assert len(chosen(share=0.25)) == 1 and len(chosen(share=0.5)) == 2


def test_without_recorded_people_all_controls_are_of_the_policy():
    alone = {prompt: group[1:] for prompt, group in GROUPS.items()}
    shown = {name: who for name, who in NAMES.items() if who[1] == "s"}
    assert [control.source for control in chosen(names=shown, groups=alone)] == [POLICY] * 3


def test_what_is_not_shown_to_raters_is_no_control():
    few = {name: shown for name, shown in NAMES.items() if shown[0] in ("p0", "p2")}
    assert {c.other_prompt for c in chosen(names=few)} <= {"p0", "p2"}
    ann = {name: shown for name, shown in NAMES.items() if shown[0] in ("p0", "p1")}
    assert chosen(names=ann) == [], "one speaker alone"


def test_controls_are_drawn_from_the_seed_and_come_back_from_their_file(tmp_path):
    assert chosen(seed=3) == chosen(seed=3)
    write_controls(tmp_path, chosen())
    assert read_controls(tmp_path) == chosen()


def test_another_seed_and_another_round_draw_other_controls(tmp_path, monkeypatch):
    monkeypatch.setattr(rating, "RenderPool", lambda *parts, **keys: nullcontext())
    monkeypatch.setattr(rating, "render_videos", lambda *parts, **keys: None)
    drawing = SimpleNamespace(render=None, head=None, losses=0)

    def drawn(seed, round_index):
        step = Phase("controls", "controls", tmp_path, SimpleNamespace(log=lambda values: None))
        rating.controls.__wrapped__(
            step,
            RateConfig(seed=seed, rate=RateSection(mismatched=0.5)),
            IMITATED,
            groups=GROUPS,
            names=NAMES,
            drawing=drawing,
            round_index=round_index,
        )
        return tuple(read_controls(tmp_path))

    assert len({drawn(seed, 1) for seed in range(8)}) > 1
    assert len({drawn(0, round_index) for round_index in range(1, 9)}) > 1


# -- What a live run leaves --


@pytest.mark.parametrize("form", ["scales", "pairs"])
def test_what_was_said_is_read_by_the_next_phase(tmp_path, form):
    write_offer(tmp_path / "offer", groups=2)
    offer = offer_at(tmp_path / "offer")
    config = RateSection(form=form, raters=2, port=free_port())
    with Page(tmp_path / "rating", config, seed=0) as page:
        page.open(offer)
        assert read_said(write_said(tmp_path, page, page.said(offer))) == [], (
            "nobody said anything yet"
        )
        for number in (0, 1):
            page.store.consent(page.store.raters()[number])
            rater = page.store.raters()[number]
            while (turn := page.store.turn(rater)).item is not None:
                answer = dict.fromkeys(CRITERIA, 1 + turn.place.number % 5)
                answer = {"preferred": "first"} if form == "pairs" else answer
                page.store.answer(rater, turn.place, answer)
        said = page.said(offer)
        assert read_said(write_said(tmp_path, page, said)) == said and len(said) == 12
        described = described_opinions(page, offer, said)
    assert described["rated"] == described["candidates"] == 6
    assert described["matched"]["policy"]["judgements"] == 2
    assert bool(described["strengths"]) == (form == "pairs")


@pytest.fixture
def candidates(tmp_path):
    """Folder of a `rollout` run with one group."""
    ids = {"prompt_id": ["p"] * 3, "candidate_id": ["a", "b", "c"]}
    rest = {name: pa.nulls(3) for name in COLUMNS if name not in ids}
    pq.write_table(pa.table({name: (ids | rest)[name] for name in COLUMNS}), tmp_path / "c.parquet")
    (tmp_path / "summary.json").write_text('{"artifacts": {"candidates": "c.parquet"}}')
    return tmp_path


def test_choices_in_a_file_are_checked_before_anything_starts(candidates, tmp_path):
    file = tmp_path / "choices.csv"
    config = DpoOfVla(candidates=candidates, ratings=file)
    write_comparisons(file, [Comparison("p", "a", "b", "ann", "first")])
    check_ratings(config)
    write_comparisons(file, [Comparison("p", "a", "z", "ann", "first")])
    with pytest.raises(RatingError, match="'z' of prompt 'p', which does not exist"):
        check_ratings(config)


def test_choices_in_a_file_are_kept_without_names(tmp_path, capsys):
    file = tmp_path / "choices.csv"
    write_comparisons(
        file,
        [Comparison("p", "a", "b", "annaliese", "first"), Comparison("p", "b", "a", "bo", "tie")],
    )
    step = Phase("rate", "rate", tmp_path / "rate", SimpleNamespace(log=lambda values: None))
    groups = {"p": [Candidate("p", "a", GROUND_TRUTH, np.zeros(1))]}
    groups["p"].append(Candidate("p", "b", POLICY, np.zeros(1)))
    result = peoples_comparisons(step, file, groups)
    kept = read_comparisons(result.artifacts["ratings"])
    assert [each.rater for each in kept] == ["rater-1", "rater-2"]
    assert list(result.value["strengths"]) == [RECORDED, POLICY]
    assert "annaliese" not in str(result) + capsys.readouterr().out


def test_a_page_needs_candidates_whose_videos_are_there(candidates, tmp_path):
    with pytest.raises(RunError, match="candidates=RUN_DIR is needed"):
        look_at_inputs(RateConfig())
    with pytest.raises(RunError, match="left no 'manifest'"):
        look_at_inputs(RateConfig(candidates=candidates))
    with pytest.raises(RunError, match="no summary.json there"):
        look_at_inputs(RateConfig(candidates=tmp_path / "nothing"))
    with pytest.raises(RunError, match="left no 'manifest'"):
        check_ratings(DpoOfVla(candidates=candidates, ratings="live"))
    manifest = write_offer(tmp_path / "offer", groups=2)
    (manifest.parent / "for_raters" / "videos" / "0001-b.mp4").unlink()
    (tmp_path / "summary.json").write_text(f'{{"artifacts": {{"manifest": "{manifest}"}}}}')
    with pytest.raises(RunError, match=r"1 videos of its package are missing, such as 0001-b.mp4"):
        look_at_inputs(RateConfig(candidates=candidates))


@pytest.mark.parametrize("content", [None, b"", b"  \n", b"\xff\xfe\x00"])
def test_a_consent_that_cannot_be_read_is_refused(tmp_path, content):
    file = tmp_path / "consent.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RunError, match="rate.consent="):
        require_consent(RateSection(consent=file))
    require_consent(RateSection())


def test_fewer_links_than_raters_of_a_group_are_refused_before_a_run_waits():
    with pytest.raises(RunError, match=r"rate.raters=2 links are fewer .* rate.per_group=3"):
        require_raters(RateSection(raters=2))
    require_raters(RateSection(raters=3))
    require_raters(RateSection(recruit="prolific", completion_code="C", raters=2))


def test_the_page_is_for_this_machine_unless_the_studio_has_a_token(monkeypatch):
    monkeypatch.delenv("RAPPORT_TOKEN", raising=False)
    with pytest.raises(ValueError, match="RAPPORT_TOKEN"):
        RateSection(host="0.0.0.0")
    with pytest.raises(ValueError, match="completion_code"):
        RateSection(recruit="prolific")
    monkeypatch.setenv("RAPPORT_TOKEN", "secret")
    assert RateSection(host="0.0.0.0", address="https://r.example/").url == "https://r.example"
    assert RateSection(host="::1").url == "http://[::1]:8008"
