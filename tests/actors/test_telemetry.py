"""Our metrics: what a learner's step records, and that a scrape of a real Ray head finds each."""

import sys
import time
import urllib.request

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from rapport.actors import telemetry
from rapport.actors.pool import Pool
from rapport.actors.timeline import Worker

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test


@ray.remote(num_cpus=0.1)
class Doubler(Worker):
    def double(self, number):
        return 2 * number


@pytest.fixture
def recorded(monkeypatch):
    """Name of a metric -> its last value and tags, in the place of Ray's export."""
    values = {}

    def record(metric, value, **tags):
        values[metric.name] = (value, tags)

    monkeypatch.setattr(telemetry, "record", record)
    return values


def test_a_step_tells_its_kl_and_how_long_the_learner_waited(recorded):
    telemetry.record_step(
        "dpo-2", {"loss": 1.0, "kl/reference": 0.02}, working_s=3.0, since_last_s=4.0
    )
    assert recorded == {
        "rapport_learner_idle_fraction": (0.25, {"phase": "dpo-2"}),
        "rapport_kl_nats": (0.02, {"phase": "dpo-2"}),
    }


@pytest.mark.parametrize(
    ("phase", "metrics"),
    [("sft", {"loss": 1.0}), ("vae", {"loss": 1.0, "reconstruction": 0.5, "kl/prior": 3.0})],
)
def test_imitation_and_the_vae_have_no_kl_to_the_reference(recorded, phase, metrics):
    """The motion VAE's KL is to N(0, I): Grafana once showed it as the KL to the reference."""
    telemetry.record_step(phase, metrics, working_s=4.0, since_last_s=4.0)
    assert recorded == {"rapport_learner_idle_fraction": (0.0, {"phase": phase})}


def test_recording_without_ray_does_nothing():
    telemetry.record(telemetry.KL, 1.0, phase="dpo")


def scrape(port: int) -> dict[str, list]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        sample.name: family.samples
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: list, name: str, **labels: str) -> float:
    [found] = [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]
    return found


@pytest.mark.engine
def test_a_scrape_of_a_ray_head_finds_every_metric(local_ray):
    """A pool doubles numbers; what fleets and learners would record is recorded by hand."""
    doublers = Pool(
        name="doublers",
        kind="doubling",
        start=lambda _: Doubler.remote(),
        workers=1,
        in_flight=2,
        timeout_s=60,
        losses=0,
    )
    with doublers as pool:
        assert sorted(answer for _, answer in pool.stream("double", range(5))) == [0, 2, 4, 6, 8]
        telemetry.record(telemetry.TOKENS, 128, pool="doublers")
        telemetry.record(telemetry.LOST_WORKERS, 1, pool="doublers")
        telemetry.record(telemetry.WEIGHT_VERSION_LAG, 3, pool="doublers")
        telemetry.record(telemetry.LOG_PROB_GAP, 0.25, pool="doublers")
        telemetry.record(telemetry.SESSIONS, 2)
        telemetry.record(telemetry.STEP_SECONDS, 0.02, policy="listener", batch="2")
        telemetry.record(telemetry.ANSWER_SECONDS, 0.03, policy="listener")
        telemetry.record(telemetry.MISSED, 1, policy="listener")
        telemetry.record(telemetry.FAILED, 1, policy="listener")
        telemetry.record(telemetry.LOOK_SECONDS, 0.013)
        telemetry.record(telemetry.SKIPPED, 1)
        for counted in (telemetry.LATE, telemetry.DROPPED, telemetry.RESUMED, telemetry.REFUSED):
            telemetry.record(counted, 1)
        telemetry.record_step("gdpo", {"kl/reference": 0.5}, working_s=1.0, since_last_s=4.0)
        wanted = {
            metric.exported + ("_count" if metric.kind == "histogram" else "")
            for metric in telemetry.METRICS
        }
        port, deadline, found = ray.nodes()[0]["MetricsExportPort"], time.monotonic() + 90, {}
        while not wanted <= set(found) and time.monotonic() < deadline:
            time.sleep(1)
            found = scrape(port)
    assert wanted <= set(found), sorted(name for name in found if "rapport" in name)
    calls = value(
        found["ray_rapport_call_seconds_count"],
        "ray_rapport_call_seconds_count",
        kind="doubling",
        method="double",
    )
    assert calls == 5
    for metric, expected, labels in (
        (telemetry.TOKENS, 128, {"pool": "doublers"}),
        (telemetry.LOST_WORKERS, 1, {"pool": "doublers"}),
        (telemetry.QUEUE_DEPTH, 0, {"pool": "doublers"}),
        (telemetry.WEIGHT_VERSION_LAG, 3, {"pool": "doublers"}),
        (telemetry.LOG_PROB_GAP, 0.25, {"pool": "doublers"}),
        (telemetry.LEARNER_IDLE, 0.75, {"phase": "gdpo"}),
        (telemetry.KL, 0.5, {"phase": "gdpo"}),
    ):
        assert value(found[metric.exported], metric.exported, **labels) == expected
