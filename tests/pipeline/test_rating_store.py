"""Who is asked what, leases, and answers that are kept once; without a network."""

import json
import threading
from collections import Counter

import pytest

from rapport.pipeline.rating.offers import read_offer
from rapport.pipeline.rating.plan import items_of, order_of_groups
from rapport.pipeline.rating.quality import (
    Answered,
    agreement,
    habits,
    matched,
    opinions,
    status,
    straightness,
    strengths_of,
    surveyed,
    unsteadiness,
)
from rapport.pipeline.rating.settings import RateSection
from rapport.pipeline.rating.store import Place, Store, StoreError
from rapport.pipeline.rundir import RunError
from rapport.rewards.ratings.ratings import CRITERIA
from tests.offered import offer_at, write_offer

MINUTE = 60.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("offer")
    write_offer(folder, groups=4, members=3)
    return folder


@pytest.fixture(scope="module")
def offer(folder):
    return offer_at(folder)


class Clock:
    def __init__(self):
        self.now = 1e9

    def __call__(self):
        return self.now


@pytest.fixture
def make(tmp_path, offer):
    """Stores over one file."""
    opened = []

    def make(clock=None, **keys):
        store = Store(tmp_path / "r.db", RateSection(**keys), seed=0, clock=clock or Clock())
        store.offer = offer
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


def came(store, number):
    """A rater who has agreed."""
    store.consent(store.raters()[number - 1])
    return store.raters()[number - 1]


def grades(value=3):
    return dict.fromkeys(CRITERIA, value)


def rate_group(store, rater, value=3, answer=None):
    """Answer all items of the present group; returns the turn after it."""
    turn = store.turn(rater)
    group = turn.place and turn.place.place
    while turn.item is not None and turn.place.place == group:
        given = answer(turn.item) if answer else grades(value)
        turn = store.answer(rater, turn.place, given)
    return turn


# -- What is asked --


@pytest.mark.parametrize("form", ["scales", "pairs"])
def test_a_rater_is_asked_of_every_candidate_of_a_group_and_the_same_after_a_reload(offer, form):
    config = RateSection(form=form, repeat_every=0, instruct_every=0)
    for rater in range(1, 20):
        items = items_of(offer, config, rater, groups=["0002"], seed=0)
        assert items == items_of(offer, config, rater, groups=["0002"], seed=0)
        counts = Counter(name for item in items for name in item.videos)
        times = 1 if form == "scales" else 2
        assert counts == dict.fromkeys([f"0002-{letter}" for letter in "abc"], times)


def test_raters_see_groups_candidates_and_sides_in_orders_of_their_own(offer):
    config = RateSection(form="pairs", repeat_every=0, instruct_every=0)
    orders = {tuple(order_of_groups(offer, rater, seed=0)) for rater in range(30)}
    items = [items_of(offer, config, rater, groups=["0002"], seed=0) for rater in range(60)]
    assert len(orders) > 10 and len({tuple(each) for each in items}) > 10
    left = Counter(item.videos[0] for each in items for item in each)
    assert max(left.values()) < 1.5 * min(left.values()), "nobody stands on one side"


def test_a_control_is_beside_its_counterpart_and_rated_like_the_others(offer):
    [scale] = [
        i for i in items_of(offer, RateSection(), 1, ["0001"], seed=0) if i.kind == "control"
    ]
    assert scale.videos == ("0001-control",) and scale.instruction is None
    pairs = items_of(offer, RateSection(form="pairs"), 1, ["0001"], seed=0)
    [pair] = [item for item in pairs if item.kind == "control"]
    counterpart = {v.candidate_id: v.name for v in offer.groups["0001"]}["c1"]
    assert set(pair.videos) == {"0001-control", counterpart}


@pytest.mark.parametrize("form", ["scales", "pairs"])
def test_checks_come_as_often_as_asked(offer, form):
    config = RateSection(form=form, repeat_every=3, instruct_every=2)
    names = sorted(offer.groups)
    kinds = [
        Counter(item.kind for item in items_of(offer, config, 5, names[: n + 1], seed=0))
        for n in range(4)
    ]
    assert [each["instructed"] for each in kinds] == [0, 1, 0, 1]
    assert [each["repeated"] for each in kinds] == [0, 0, 1, 0]
    again = items_of(offer, config, 5, names[:3], seed=0)[-1]
    before = items_of(offer, config, 5, names[:1], seed=0)
    assert any(set(again.videos) == set(item.videos) for item in before), "of the group before last"


@pytest.mark.parametrize("form", ["scales", "pairs"])
def test_a_rater_of_one_group_is_checked_too(offer, form):
    config = RateSection(form=form, groups=1)
    kinds = Counter(item.kind for item in items_of(offer, config, 5, ["0002"], seed=0))
    assert kinds["instructed"] == kinds["repeated"] == 1


def test_no_clip_is_seen_by_a_check_before_it_is_rated(offer):
    config = RateSection(instruct_every=1, repeat_every=0)
    for rater in range(60):
        items = items_of(offer, config, rater, ["0002"], seed=0)
        [place] = [n for n, item in enumerate(items) if item.kind == "instructed"]
        assert items[place].videos in [item.videos for item in items[:place]]


def test_an_instruction_says_what_obeys_it(offer):
    config = RateSection(instruct_every=1)
    for rater in range(20):
        [check] = [i for i in items_of(offer, config, rater, ["0002"], 0) if i.kind == "instructed"]
        assert str(check.told) in check.instruction and check.told != 3
        assert check.obeyed(grades(check.told)) and not check.obeyed(grades(3))
        assert not check.obeyed(grades(check.told) | {"empathy": None})


# -- Leases --


def test_groups_get_their_raters_and_no_more(make):
    store = make(per_group=2, raters=5)
    for number in range(1, 6):
        rater = came(store, number)
        while store.turn(rater).item is not None:
            rate_group(store, rater)
    assert set(store.finished().values()) == {2} and len(store.finished()) == 4
    assert store.turn(came(store, 5)).waits is False


def test_the_group_with_the_fewest_raters_comes_first(make):
    store = make(per_group=3, raters=4)
    first = [
        store.item(r, store.turn(r).place).videos for r in (came(store, n) for n in (1, 2, 3, 4))
    ]
    groups = {videos[0].partition("-")[0] for videos in first}
    assert len(groups) == 4, "four raters begin with four groups"


def test_who_gives_up_frees_the_group_and_keeps_the_answers(make):
    clock = Clock()
    store = make(clock, per_group=1, raters=2, groups=4, lease_minutes=20)
    ann, bert = came(store, 1), came(store, 2)
    turn = store.answer(ann, store.turn(ann).place, grades(5))
    store.give_up(ann)
    clock.now += 1
    for _ in range(4):
        rate_group(store, bert)
    assert len(store.finished()) == 4 and store.turn(bert).item is None
    assert [each.answer for each in store.answers() if each.rater == 1] == [grades(5)]
    assert store.turn(ann).item is None, "nothing is left"
    with pytest.raises(StoreError, match="no such item"):
        store.answer(ann, Place(1, 9, 0), grades())
    # The answer to what was on the screen meanwhile is not lost either.
    store.answer(ann, turn.place, grades(4))
    assert len([each for each in store.answers() if each.rater == 1]) == 2


def test_a_lease_ends_by_itself_and_begins_anew_with_every_answer(make):
    clock = Clock()
    store = make(clock, per_group=1, raters=2, groups=1, lease_minutes=20)
    ann, bert = came(store, 1), came(store, 2)
    group = store.item(ann, store.turn(ann).place).videos[0][:4]
    clock.now += 19 * MINUTE
    store.answer(ann, store.turn(ann).place, grades())
    clock.now += 19 * MINUTE
    assert store._wanted(store._database, bert).keys() == {*["0001", "0002", "0003", "0004"]} - {
        group
    }
    clock.now += 2 * MINUTE
    assert group in store._wanted(store._database, bert)
    turn = store.turn(ann)
    assert turn.place.number == 1, "who comes back goes on, as long as nobody took the group"


def test_a_rater_is_given_as_many_groups_as_asked(make):
    store = make(groups=2, raters=1)
    ann = came(store, 1)
    rate_group(store, ann)
    assert rate_group(store, ann).item is None and store.turn(ann).groups == 2


def test_who_is_left_out_does_not_count(make):
    store = make(per_group=1, raters=2)
    ann, bert = came(store, 1), came(store, 2)
    while store.turn(ann).item is not None:
        rate_group(store, ann, 1)
    assert store.turn(bert).item is None
    store.leave_out(1, True)
    assert not store.finished() and store.turn(bert).item is not None
    assert opinions(store.answers(), store.offer, {1}) == []
    store.leave_out(1, False)
    assert len(opinions(store.answers(), store.offer)) == 12
    with pytest.raises(StoreError, match="no rater-9"):
        store.leave_out(9, True)


def test_many_at_once_do_not_take_one_group_more_often_than_asked(make):
    store = make(per_group=2, raters=12)
    raters = [came(store, number) for number in range(1, 13)]

    def rate_all(rater):
        while store.turn(rater).item is not None:
            rate_group(store, rater)

    threads = [threading.Thread(target=rate_all, args=(rater,)) for rater in raters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.finished() == dict.fromkeys(store.offer.groups, 2)


# -- Answers --


def test_an_answer_that_is_sent_again_is_one_answer(make):
    store = make()
    ann = came(store, 1)
    place = store.turn(ann).place
    after = store.answer(ann, place, grades(4))
    assert store.answer(ann, place, grades(4)) == after, "and the same is shown next"
    with pytest.raises(StoreError, match="in another way"):
        store.answer(ann, place, grades(5))
    assert [each.answer for each in store.answers()] == [grades(4)]


def test_only_what_is_shown_can_be_answered_and_only_after_consent(make):
    store = make()
    with pytest.raises(StoreError, match="agree first") as refused:
        store.turn(store.raters()[0])
    assert refused.value.status == 403
    ann = came(store, 1)
    place = store.turn(ann).place
    with pytest.raises(StoreError, match="not your present clip"):
        store.answer(ann, Place(place.round, place.place, 2), grades())
    with pytest.raises(StoreError, match="no longer offered"):
        store.answer(ann, Place(7, 0, 0), grades())
    assert store.answers() == []


def test_another_process_finds_raters_answers_and_words(make):
    store = make()
    ann = came(store, 1)
    turn = store.answer(ann, store.turn(ann).place, grades(2))
    again = make()
    assert again.raters() == store.raters() and again.secret("studio") == store.secret("studio")
    assert again.turn(again.raters()[0]) == turn and len(again.answers()) == 1


def test_more_links_are_made_for_a_resumed_page_and_old_ones_stay(make):
    few = [rater.key for rater in make(raters=2).raters()]
    many = [rater.key for rater in make(raters=4).raters()]
    assert many[:2] == few and len(set(many)) == 4
    assert [rater.key for rater in make(raters=1).raters()] == many


def test_who_comes_from_prolific_is_one_rater_however_often_they_come(make):
    store = make(recruit="prolific", completion_code="C1")
    ann = store.from_outside("5f")
    assert store.from_outside("5f") == ann != store.from_outside("60")
    assert [rater.outside for rater in store.raters()] == ["5f", "60"]


@pytest.mark.parametrize(
    "text", ["", "1-2", "1-2-3-4", "a-b-c", "1--3", "-1-0-0", "１-0-0", "0x1-0-0"]
)
def test_what_is_no_place_is_refused(text):
    with pytest.raises(StoreError, match="is no item"):
        Place.of(text)


def test_the_next_round_is_offered_to_the_same_raters(make, folder):
    store = make(raters=2, groups=1)
    ann = came(store, 1)
    assert rate_group(store, ann).waits is False
    store.offer = None
    assert store.turn(ann).waits is True
    store.offer = offer_at(folder, 2)
    assert store.turn(ann).place == Place(2, 0, 0)
    assert store.turn(ann).groups == 0, "the bar of the page begins anew"
    assert rate_group(store, ann).groups == 1
    assert [row.groups for row in habits(store, store.offer)] == [1]
    assert {each.place.round for each in store.answers()} == {1, 2}
    plain = [each for each in store.answers(2) if each.item.kind == "plain"]
    assert len(plain) == len(opinions(store.answers(), store.offer)) == 3


# -- What answers are worth --


def answer_by(rule):
    """`rule(video name)` -> grade, which instructed items are given too."""
    return lambda item: grades(rule(item.videos[0]))


def test_opinions_are_of_candidates_only_and_equal_what_was_answered(make, offer):
    store = make(raters=1, repeat_every=1, instruct_every=1)
    ann = came(store, 1)
    while store.turn(ann).item is not None:
        rate_group(store, ann, answer=lambda i: grades(1 + "abc".find(i.videos[0][5:6])))
    said = {(r.prompt_id, r.candidate_id): r.empathy for r in opinions(store.answers(), offer)}
    shown = [v for v in offer.videos.values() if v.candidate_id is not None]
    assert said == {(v.prompt_id, v.candidate_id): 1 + "abc".index(v.name[5]) for v in shown}
    kinds = Counter(each.item.kind for each in store.answers())
    assert kinds == {"plain": 12, "control": 1, "repeated": 4, "instructed": 4}


def test_grades_of_nothing_are_no_rating(make, offer):
    store = make(raters=1)
    ann = came(store, 1)
    place = store.turn(ann).place
    store.answer(ann, place, dict.fromkeys(CRITERIA))
    assert opinions(store.answers(), offer) == []
    assert surveyed([], offer).rated == 0 and agreement([], offer.weights) is None


@pytest.mark.parametrize("form", ["scales", "pairs"])
def test_the_control_tells_listening_from_liveliness(make, offer, form):
    """Two raters who listen, and one who likes whoever was listening to somebody else."""
    store = make(raters=3, form=form)
    for number in (1, 2, 3):
        listens = number < 3

        def judge(item, listens=listens):
            other = [name.endswith("control") for name in item.videos]
            if form == "scales":
                return grades(2 if other[0] == listens else 4)
            return {"preferred": "second" if other[0] == listens else "first"}

        rater = came(store, number)
        while store.turn(rater).item is not None:
            rate_group(store, rater, answer=judge)
    found = matched(store.answers(), offer)["policy"]
    assert found["judgements"] == 3 and found["matched"] == pytest.approx(2 / 3)
    assert found["difference"] == (pytest.approx(2 / 3) if form == "scales" else None)
    assert matched(store.answers(), offer, {3})["policy"]["matched"] == 1.0


def test_who_chooses_people_makes_people_strong(make, offer):
    store = make(raters=1, form="pairs", mismatched=0)
    ann = came(store, 1)

    def people(item):
        ids = [offer.videos[name].candidate_id for name in item.videos]
        return {"preferred": "first" if ids[0] == "c0" else "second" if ids[1] == "c0" else "tie"}

    while store.turn(ann).item is not None:
        rate_group(store, ann, answer=people)
    said = opinions(store.answers(), offer)
    assert list(strengths_of(said, offer)) == ["recorded_listener", "policy"]


def test_careless_raters_are_flagged_and_careful_ones_are_not(make, offer):
    clock = Clock()
    store = make(clock, raters=3, repeat_every=2, instruct_every=2)

    def careful(item):
        if item.told is not None:
            return grades(item.told)
        grade = 1 + sum(map(ord, item.videos[0])) % 5
        return grades(grade) | {"naturalness": 1 + (grade + 1) % 5}

    flip = iter(range(10**6))
    rules = {
        1: (careful, 9.0),
        2: (lambda item: grades(3), 9.0),
        3: (
            lambda item: (
                careful(item) if item.told else grades(5 if next(flip) % 2 else 1) | {"empathy": 3}
            ),
            0.1,
        ),
    }
    for number, (rule, seconds) in rules.items():
        rater = came(store, number)
        while (turn := store.turn(rater)).item is not None:
            clock.now += seconds
            store.answer(rater, turn.place, rule(turn.item))
    ann, bert, cleo = habits(store, offer)
    assert ann.flags == [] and ann.unsteady == 0 and ann.checks == (2, 2) and ann.seconds == 9.0
    assert bert.flags == ["failed a check", "straight-lining"] and bert.straight == 1.0
    assert "answers before the video ends" in cleo.flags and cleo.quick == 1.0
    assert json.dumps(status(store, offer)), "the studio's page is sent it"


def test_the_studio_is_told_why_ratings_teach_little(make, offer):
    """In what its page is sent."""
    warnings = status(make(Clock()), offer)["survey"]["warnings"]
    assert warnings == surveyed([], offer).warnings and "rated by nobody" in warnings[0]


def answered(*given, kind="plain"):
    from rapport.pipeline.rating.plan import Item

    return [
        Answered(1, Place(1, 0, n), Item(kind, videos), answer, 9.0, 0.0)
        for n, (videos, answer) in enumerate(given)
    ]


def test_habits_of_choosing():
    same = [(("a", f"b{n}"), {"preferred": "first"}) for n in range(5)]
    assert straightness(answered(*same)) == 1.0 and straightness(answered(*same[:4])) is None
    first = answered((("a", "b"), {"preferred": "first"}), (("a", "c"), {"preferred": "tie"}))
    turned = answered(
        (("b", "a"), {"preferred": "second"}), (("c", "a"), {"preferred": "first"}), kind="repeated"
    )
    assert unsteadiness([*first, *turned]) == 0.5, "a again, and a tie that turned"
    assert unsteadiness(first) is None


# -- What is offered --


def test_a_package_without_a_video_is_refused_with_its_name(tmp_path):
    manifest = write_offer(tmp_path, groups=2)
    video = manifest.parent / "for_raters" / "videos" / "0001-b.mp4"
    video.write_bytes(b"no film")
    with pytest.raises(RunError, match=r"0001-b.mp4 cannot be played"):
        read_offer(1, manifest)
    video.unlink()
    with pytest.raises(RunError, match=r"0001-b.mp4 is missing"):
        read_offer(1, manifest)


def test_an_offer_knows_its_lengths_and_members(offer):
    assert {round(video.seconds, 1) for video in offer.videos.values()} <= {0.4, 0.5}
    assert len(offer.videos) == 4 * 3 + 1, "and a control"
    assert offer.members.keys() == {f"clip-{number}" for number in range(4)}
    assert {tuple(sorted(ids)) for ids in offer.members.values()} == {("c0", "c1", "c2")}


def test_an_answer_to_a_server_that_is_not_ready_is_asked_for_again(make, offer):
    """The round is not over, only not there yet: 503 is sent again, 410 is not."""
    store = make(raters=1)
    ann = came(store, 1)
    place = store.turn(ann).place
    again = make(raters=1)
    again.offer = None
    with pytest.raises(StoreError) as refused:
        again.answer(ann, place, grades())
    assert refused.value.status == 503
    again.offer = offer
    again.rest(more=True)
    with pytest.raises(StoreError) as refused:
        again.answer(ann, place, grades())
    assert refused.value.status == 410
