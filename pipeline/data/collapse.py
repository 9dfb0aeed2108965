"""Why imitation alone is not enough: deterministic regression collapses towards the mean.

When one speaker can be answered in many ways, the least-squares answer is the average of them,
which moves less than any of them. `regression_collapse` measures this on a corpus, real or
synthetic.
"""

from __future__ import annotations

import numpy as np

from rapport.pipeline.data.regression import RegressionListener, targets
from rapport.pipeline.data.store import Corpus

_REACTION_GROUPS = ("expr", "rot", "neck", "jaw")


def regression_collapse(corpus: Corpus) -> dict[str, float]:
    """Measure how `RegressionListener` moves on the test split, in standardised blocks of 0.2 s.

    Returns:
        `variance_ratio`: variance of the prediction over clips and time / variance of the truth,
        mean over dimensions; 1 for a faithful imitator, near 0 for one that has collapsed;
        `variation_ratio`: the same for the variance over time within a clip; `r2`: explained
        variance on test clips: above 0 the regression has learnt something and still collapses;
        `ridge`, `train_clips`, `test_clips`.

    Raises:
        ValueError: the clips have neither speaker motion nor sound, or there are fewer than 8 to
            train on.
    """
    groups = {
        name: corpus.layout.width(name) for name in _REACTION_GROUPS if name in corpus.layout.names
    }
    layout = corpus.layout.subset(groups)
    regression = RegressionListener.fit(corpus.clips("train"), layout)
    predictions = []
    truths = []
    for clip in corpus.clips("test"):
        predictions.append(regression.standardised(clip))
        truths.append((targets(clip.listener, layout) - regression.mean) / regression.scale)
    predicted = np.stack(predictions)
    truth = np.stack(truths)
    variance_ratios = predicted.var(axis=(0, 1)) / truth.var(axis=(0, 1))
    variation_ratios = predicted.var(axis=1).mean(axis=0) / truth.var(axis=1).mean(axis=0)
    return {
        "variance_ratio": float(np.mean(variance_ratios)),
        "variation_ratio": float(np.mean(variation_ratios)),
        "r2": float(1 - np.mean((predicted - truth) ** 2) / np.mean(truth**2)),
        "ridge": regression.ridge,
        "train_clips": float(corpus.count("train")),
        "test_clips": float(corpus.count("test")),
    }
