"""The REACT protocols on several processes equal those on one, but for the last bit."""

import numpy as np
import pytest

from rapport.actors.metrics import MetricWorkers, evaluate_react
from rapport.rewards.metrics import evaluate

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("local_ray")]


@pytest.mark.parametrize("variant", ["reference", "corrected"])
def test_parallel_equals_serial(variant):
    rng = np.random.default_rng(0)
    pred, target, partner = (
        rng.normal(size=(7, *shape, 60, 25)).astype(np.float32) for shape in ((3,), (), ())
    )
    near = [[k, (k + 2) % 7] for k in range(7)]
    reports = []
    parallel = evaluate_react(
        "react2024",
        pred,
        target,
        partner,
        neighbours=near,
        variant=variant,
        workers=MetricWorkers(count=2, chunk=2, timeout_s=120, report=reports.append),
    )
    serial = evaluate("react2024", pred, target, partner, neighbours=near, variant=variant)
    assert parallel == pytest.approx(serial, rel=1e-12)
    assert reports and "7 of 7 speakers" in reports[-1]


def test_bad_input_is_refused_before_any_worker_starts():
    with pytest.raises(ValueError, match="only"):
        evaluate_react("dualtalk", None, None, workers=MetricWorkers(count=1))
    with pytest.raises(ValueError, match="needs pred"):
        evaluate_react("react2024", None, None, workers=MetricWorkers(count=1))
