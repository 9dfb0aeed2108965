"""Metrics work where nothing of the training stack is installed."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What a light install (numpy, scipy, numba, scikit-learn) lacks.
BLOCKED = ("torch", "ray", "transformers", "datasets", "mlflow", "pydantic", "pyarrow")
SCRIPT = f"""
import json, sys
for name in {BLOCKED}:
    sys.modules[name] = None  # importing it is an error

import numpy as np

from rapport.policies.motion import Layout, Motion
from rapport.rewards.affect import RidgeAffectEstimator
from rapport.rewards.metrics import evaluate
from rapport.rewards.metrics.protocols import lm_listener

rng = np.random.default_rng(0)
layout = Layout((("expr", 10), ("jaw", 3), ("rot", 3)), 25, "builtin")
x, y, s = (Motion(rng.normal(size=(60, 16)), layout) for _ in range(3))
estimator = RidgeAffectEstimator.fit([x, y], [np.zeros((60, 2)), np.full((60, 2), 0.5)])
listener = evaluate(lm_listener.with_affect(estimator), x, y, s)

pred = rng.normal(size=(2, 2, 60, 25))
react = evaluate("react2024", pred, pred[:, 0], pred[:, 1], neighbours=np.eye(2))
print(json.dumps([listener, react]))
"""


def test_metrics_need_neither_torch_nor_ray_nor_pydantic():
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    listener, react = json.loads(finished.stdout)
    assert set(listener) == {"L2", "FD", "P-FD", "Variation", "Diversity", "L2 Affect"}
    assert set(react) == {"FRCorr", "FRDist", "FRSyn", "FRVar", "FRDiv", "FRDvs"}
