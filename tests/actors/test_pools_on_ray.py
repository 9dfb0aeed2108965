"""Pools on a real Ray: every item once, no more open than allowed, errors that name the call."""

import time
from pathlib import Path

import av
import numpy as np
import pytest
import ray

from rapport.actors import timeline
from rapport.actors.cluster import ClusterError, reserve
from rapport.actors.pool import Pool
from rapport.actors.rater import RatedPrompt, RewardPool
from rapport.actors.renderer import Panel, RenderPool, VideoJob
from rapport.actors.settings import RatersConfig, RenderConfig
from rapport.log import show
from rapport.policies.head.settings import HeadConfig
from rapport.policies.motion import Layout, Motion

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def pool(local_ray):
    """(workers, in_flight, ...) -> a pool of actors; their class is local so that it travels by
    value.
    """

    @ray.remote(num_cpus=0)
    class Worker(timeline.Worker):
        def double(self, number):
            if number == 13:
                raise ValueError("thirteen is unlucky")
            return 2 * number

        def sleep(self, seconds):
            import time

            time.sleep(seconds)

        def die_once(self, file_and_number):
            """Answers, but for the first that sees no file: it leaves one and is killed."""
            import os
            import signal
            import time

            file, number = file_and_number
            time.sleep(0.02)
            if number == 5 and not os.path.exists(file):
                open(file, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return number

        def die(self, number):
            import os

            os._exit(1)

    pools = []

    def make(workers=2, in_flight=2, timeout_s=60, losses=2, kind=Pool, start=None):
        pools.append(
            kind(
                name="pool",
                kind="work",
                start=start or (lambda _: Worker.remote()),
                workers=workers,
                in_flight=in_flight,
                timeout_s=timeout_s,
                losses=losses,
            )
        )
        return pools[-1]

    yield make
    for made in pools:
        made.__exit__()


@pytest.mark.parametrize("in_flight", [1, 3])
def test_every_item_comes_once_and_no_more_are_open_than_allowed(pool, in_flight):
    pulled, received, most_open = 0, [], 0

    def source():
        nonlocal pulled, most_open
        for number in range(100, 140):
            pulled += 1
            most_open = max(most_open, pulled - len(received))
            yield number

    for item, result in pool(in_flight=in_flight).stream("double", source()):
        assert result == 2 * item
        received.append(item)
    assert sorted(received) == list(range(100, 140))
    assert most_open == in_flight * 2


def test_an_empty_source_gives_nothing(pool):
    assert list(pool().stream("double", [])) == []


def test_the_first_worker_exception_surfaces_as_itself(pool):
    with pytest.raises(ValueError, match="^thirteen is unlucky$") as error:
        list(pool().stream("double", range(20)))
    assert type(error.value) is ValueError
    with pytest.raises(ValueError, match="^thirteen is unlucky$"):
        pool().each("double", 13)


def test_a_missed_deadline_names_method_and_open_calls(pool):
    with pytest.raises(
        ClusterError, match=r"pool: sleep: no answer from 2 actors for 0.5 s, 3 calls open"
    ):
        list(pool(timeout_s=0.5).stream("sleep", [60, 60, 60]))
    with pytest.raises(ClusterError, match=r"pool: sleep: 2 of 2 answers missing after 0.5 s"):
        pool().each("sleep", 60, timeout_s=0.5)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_killed_workers_items_are_done_once_by_the_others(pool, tmp_path, workers, capsys):
    show()  # the logger's lines on the terminal
    killed = pool(workers=workers)
    items = [(str(tmp_path / "died"), number) for number in range(40)]
    results = [result for _, result in killed.stream("die_once", items)]
    assert sorted(results) == list(range(40)), "every one, and none twice"
    assert killed.lost == 1 and "was lost" in capsys.readouterr().out
    deadline = time.monotonic() + 60
    while len(killed.each("double", 1)) < workers:  # as many as before, once it lives
        assert time.monotonic() < deadline
        assert len(list(killed.stream("double", range(3)))) == 3


def test_what_kills_every_worker_ends_the_run(pool):
    with pytest.raises(
        ClusterError, match=r"pool: 2 workers were lost, more than cluster.lost_workers=1"
    ):
        list(pool(losses=1).stream("die", range(4)))


def test_a_worker_that_cannot_start_says_why(pool):
    @ray.remote(num_cpus=0)
    class Broken(timeline.Worker):
        def __init__(self):
            raise FileNotFoundError("no checkpoint there")

        def work(self, item):
            pass

    with pytest.raises(ray.exceptions.ActorDiedError, match="no checkpoint there"):
        list(pool(start=lambda _: Broken.remote()).stream("work", range(4)))


def test_a_replacement_serves_only_when_it_is_admitted(pool, tmp_path):
    class Careful(Pool):
        boots, admitted = 0, False

        def boot(self, actor):
            self.boots += 1
            return actor.double.remote(self.boots)

        def admit(self, answer):
            self.admitted = answer == 4  # the second time
            return self.admitted

    careful = pool(workers=1, kind=Careful)
    items = [(str(tmp_path / "died"), number) for number in range(10)]
    answers = [(result, careful.admitted) for _, result in careful.stream("die_once", items)]
    # Number 5 kills the worker: from there on all answers are its replacement's.
    assert sorted(answers) == [(number, number >= 5) for number in range(10)]
    assert careful.boots == 2


def test_the_time_that_workers_worked_is_on_the_timeline(pool):
    timeline.reset()
    began = time.time()
    list(pool(workers=2).stream("sleep", [0.3, 0.3]))
    ended = time.time()
    shares = timeline.shares(began, ended)
    assert 0.3 <= shares["work_s"] <= 0.61 and shares["work_s"] + shares["idle_s"] == pytest.approx(
        ended - began
    )


def test_a_place_that_cannot_be_had_is_refused_in_bounded_time():
    with pytest.raises(ClusterError) as error:
        reserve([{"CPU": 64.0}, {"CPU": 64.0}], "rollout fleet", timeout_s=1)
    message = str(error.value)
    assert (
        "rollout fleet" in message
        and "[{'CPU': 64.0}, {'CPU': 64.0}]" in message
        and "within 1 s" in message
    )
    assert "'CPU': 4.0" in message and "fewer workers" in message
    table = ray.util.placement_group_table().values()
    assert all(
        group["state"] == "REMOVED" for group in table if group["bundles"][0] == {"CPU": 64.0}
    )


def test_a_place_that_can_be_had_is_given():
    groups = reserve([{"CPU": 0.5}] * 2, "fleet", timeout_s=60)
    assert [group.bundle_specs for group in groups] == [[{"CPU": 0.5}]] * 2
    for group in groups:
        ray.util.remove_placement_group(group)


def motion(topology="builtin", frames=25):
    layout = Layout((("expr", 4), ("rot", 3), ("jaw", 3)), 25, topology)
    return Motion(0.1 * np.random.default_rng(0).normal(size=(frames, layout.dim)), layout)


def test_the_render_pool_writes_videos_that_decode_with_sound(tmp_path):
    voice = (0.3 * np.sin(np.arange(16_000) / 8)).astype(np.float32)
    jobs = [
        VideoJob(
            tmp_path / "two.mp4",
            (Panel("speaker", motion(), np.full(3, 0.5)), Panel("SFT", motion())),
            voice,
        ),
        VideoJob(
            tmp_path / "three.mp4",
            (Panel("speaker", None), Panel("SFT", motion()), Panel("DPO", motion("flame2020"))),
            None,
        ),
    ]
    config = RenderConfig(workers=1, cpus=0.1, size=64)
    with RenderPool(config, HeadConfig(), losses=0) as pool:
        assert sorted(pool.render(jobs)) == [
            (tmp_path / "three.mp4", 50),
            (tmp_path / "two.mp4", 50),
        ]
    assert shape_of(tmp_path / "two.mp4") == (25, 64, 128, 1)
    assert shape_of(tmp_path / "three.mp4") == (25, 64, 192, 0)


def shape_of(path: Path) -> tuple[int, int, int, int]:
    """Frames, height, width, number of audio streams with something in them."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert np.stack(frames).std() > 5, "a face is seen"
    with av.open(str(path)) as container:
        sounds = list(container.decode(audio=0)) if container.streams.audio else []
        assert all(np.abs(b.to_ndarray()).max() > 0.1 for b in sounds[2:-2])
    return len(frames), *frames[0].shape[:2], int(bool(sounds))


def test_the_reward_pool_rates_every_candidate_by_every_rater():
    groups = [
        RatedPrompt(
            f"p{i}",
            {"a": motion(), "b": motion(frames=25)},
            motion(),
            None,
            (("joy", 0.0, 0.4),),
            None,
        )
        for i in range(3)
    ]
    config = RatersConfig(count=4, workers=1, cpus=0.1, timeout_s=300)
    with RewardPool(config, HeadConfig(), {"joy": 0.8}, losses=0) as pool:
        rated = {group.prompt_id: ratings for group, ratings in pool.rate(groups, 0)}
    assert rated.keys() == {"p0", "p1", "p2"}
    for prompt, ratings in rated.items():
        assert {r.prompt_id for r in ratings} == {prompt}
        assert len({(r.candidate_id, r.rater) for r in ratings}) == len(ratings) == 2 * 4
        assert all(1 <= r.naturalness <= 5 for r in ratings)


def test_all_are_asked_when_the_only_one_was_lost_and_another_starts(pool):
    made = pool(workers=1, losses=1)
    ray.kill(made._actors[0])
    assert made.each("double", 3) == [6]
