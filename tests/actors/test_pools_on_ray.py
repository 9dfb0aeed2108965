"""Pools on a real Ray: everything once, no more open than allowed, errors that name what was awaited."""

from pathlib import Path

import av
import numpy as np
import pytest
import ray

from actors.cluster import ClusterError, reserve, wait_for
from actors.pool import stream
from actors.render import Panel, RenderOptions, RenderPool, VideoJob
from actors.reward import Group, PanelOptions, RewardPool
from policies.motion import Layout, Motion

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def workers(local_ray):
    """Two actors; their class is local so that it travels by value."""

    @ray.remote(num_cpus=0)
    class Worker:
        def double(self, number):
            if number == 13:
                raise ValueError("thirteen is unlucky")
            return 2 * number

        def sleep(self, seconds):
            import time

            time.sleep(seconds)

    pool = [Worker.remote() for _ in range(2)]
    yield pool
    for worker in pool:
        ray.kill(worker)


@pytest.mark.parametrize("in_flight", [1, 3])
def test_every_item_comes_once_and_no_more_are_open_than_allowed(workers, in_flight):
    pulled, received, most_open = 0, [], 0

    def source():
        nonlocal pulled, most_open
        for number in range(100, 140):
            pulled += 1
            most_open = max(most_open, pulled - len(received))
            yield number

    for item, result in stream(workers, "double", source(), in_flight, timeout_s=60):
        assert result == 2 * item
        received.append(item)
    assert sorted(received) == list(range(100, 140))
    assert most_open == in_flight * len(workers)


def test_an_empty_source_gives_nothing(workers):
    assert list(stream(workers, "double", [], 2, timeout_s=60)) == []


def test_the_first_worker_exception_surfaces_as_itself(workers):
    with pytest.raises(ValueError, match="thirteen is unlucky"):
        list(stream(workers, "double", range(20), 2, timeout_s=60))


def test_a_missed_deadline_names_method_and_open_calls(workers):
    with pytest.raises(ClusterError, match=r"sleep: no answer from 2 actors for 0.5 s, 3 calls open"):
        list(stream(workers, "sleep", [60, 60, 60], 2, timeout_s=0.5))


def test_waiting_gives_all_answers_or_says_how_many_are_missing(workers):
    answers = [workers[i % 2].double.remote(i) for i in range(5)]
    assert wait_for(answers, "doubles", 60) == [0, 2, 4, 6, 8]
    with pytest.raises(ValueError, match="unlucky"):
        wait_for([workers[0].double.remote(13)], "doubles", 60)
    quick, slow = workers[0].double.remote(1), workers[1].sleep.remote(60)
    with pytest.raises(ClusterError, match="nap: 1 of 2 answers missing after 0.5 s"):
        wait_for([quick, slow], "nap", 0.5)


def test_a_place_that_cannot_be_had_is_refused_in_bounded_time():
    with pytest.raises(ClusterError) as error:
        reserve([{"CPU": 64.0}, {"CPU": 64.0}], "rollout fleet", timeout_s=1)
    message = str(error.value)
    assert "rollout fleet" in message and "[{'CPU': 64.0}, {'CPU': 64.0}]" in message and "within 1 s" in message
    assert "'CPU': 4.0" in message and "fewer workers" in message
    table = ray.util.placement_group_table().values()
    assert all(group["state"] == "REMOVED" for group in table if group["bundles"][0] == {"CPU": 64.0})


def test_a_place_that_can_be_had_is_given():
    group = reserve([{"CPU": 0.5}] * 2, "fleet", timeout_s=60)
    assert group.bundle_specs == [{"CPU": 0.5}] * 2
    ray.util.remove_placement_group(group)


def motion(topology="builtin", frames=25):
    layout = Layout((("expr", 4), ("rot", 3), ("jaw", 3)), 25, topology)
    return Motion(0.1 * np.random.default_rng(0).normal(size=(frames, layout.dim)), layout)


def test_the_render_pool_writes_videos_that_decode_with_sound(tmp_path):
    voice = (0.3 * np.sin(np.arange(16_000) / 8)).astype(np.float32)
    jobs = [
        VideoJob(tmp_path / "two.mp4", (Panel("speaker", motion(), np.full(3, 0.5)), Panel("SFT", motion())), voice),
        VideoJob(tmp_path / "three.mp4", (Panel("speaker", None), Panel("SFT", motion()),
                                          Panel("DPO", motion("flame2020"))), None),
    ]
    options = RenderOptions(None, None, size=64, supersample=1, codec="libx264", crf=23)
    with RenderPool(options, workers=1, cpus=0.1, timeout_s=300) as pool:
        assert sorted(pool.render(jobs)) == [(tmp_path / "three.mp4", 50), (tmp_path / "two.mp4", 50)]
    assert shape_of(tmp_path / "two.mp4") == (25, 64, 128, 1)
    assert shape_of(tmp_path / "three.mp4") == (25, 64, 192, 0)


def shape_of(path: Path) -> tuple[int, int, int, int]:
    """Frames, height, width, number of audio streams with something in them."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert np.stack(frames).std() > 5, "a face is seen"
    with av.open(str(path)) as container:
        sounds = [b for b in container.decode(audio=0)] if container.streams.audio else []
        assert all(np.abs(b.to_ndarray()).max() > 0.1 for b in sounds[2:-2])
    return len(frames), *frames[0].shape[:2], int(bool(sounds))


def test_the_reward_pool_rates_every_candidate_by_every_rater():
    groups = [Group(f"p{i}", {"a": motion(), "b": motion(frames=25)}, motion(), None, (("joy", 0.0, 0.4),), None)
              for i in range(3)]
    with RewardPool(PanelOptions(4, 0, {"joy": 0.8}, None, None), 1, 0.1, timeout_s=300, attempts=2) as pool:
        rated = {group.prompt_id: ratings for group, ratings in pool.rate(groups)}
    assert rated.keys() == {"p0", "p1", "p2"}
    for prompt, ratings in rated.items():
        assert {r.prompt_id for r in ratings} == {prompt}
        assert len({(r.candidate_id, r.rater) for r in ratings}) == len(ratings) == 2 * 4
        assert all(1 <= r.naturalness <= 5 for r in ratings)
