"""Why imitation alone is not enough: deterministic regression collapses towards the mean.

When one speaker can be answered in many ways, the least-squares answer is the average of them,
which moves less than any of them. `regression_collapse` measures this on a corpus, real or
synthetic.
"""

from __future__ import annotations

import numpy as np

from rapport.pipeline.data.regression import RegressionError, RegressionListener, targets
from rapport.pipeline.data.store import PAST, Corpus

_REACTION_GROUPS = ("expr", "rot", "neck", "jaw")
_READ = ("speaker", "speaker_audio", PAST)  # modalities that the regression knows
# Of a column that varies less than this share of its variance in training nothing can be said.
_STILL = 1e-4


def regression_collapse(corpus: Corpus) -> dict[str, float]:
    """Measure how `RegressionListener` moves on the test split, in standardised blocks of 0.2 s.

    Columns that are constant in one of the splits are left out.

    Returns:
        `variance_ratio`: variance of the prediction over clips and time / variance of the truth,
        mean over dimensions; 1 for a faithful imitator, near 0 for one that has collapsed;
        `variation_ratio`: the same for the variance over time within a clip; `r2`: explained
        variance on test clips: above 0 the regression has learnt something and still collapses;
        `columns` (those that vary), `train_clips`, `test_clips`.

    Raises:
        RegressionError: the clips have neither speaker motion nor sound, there are fewer than 8 to
            train on, nothing moves, or the answers vary more than the truth, as they do when both
            are few.
    """
    groups = {
        name: corpus.layout.width(name) for name in _REACTION_GROUPS if name in corpus.layout.names
    }
    layout = corpus.layout.subset(groups)
    regression = RegressionListener.fit(corpus.clips("train", _READ), layout)
    predictions = []
    truths = []
    for clip in corpus.clips("test", _READ):
        predictions.append(regression.standardised(clip))
        truths.append((targets(clip.listener, layout) - regression.mean) / regression.scale)
    predicted = np.stack(predictions)
    truth = np.stack(truths)
    moves = regression.moves & (truth.var(axis=1).mean(axis=0) > _STILL)
    if not moves.any():
        raise RegressionError("no column of the listeners' motion varies in both splits")
    predicted = predicted[..., moves]
    truth = truth[..., moves]
    variance_ratio = np.mean(predicted.var(axis=(0, 1)) / truth.var(axis=(0, 1)))
    variation_ratio = np.mean(predicted.var(axis=1).mean(axis=0) / truth.var(axis=1).mean(axis=0))
    if max(variance_ratio, variation_ratio) > 1:
        raise RegressionError(
            f"{corpus.count('train')} training and {corpus.count('test')} held-out clips are too "
            "few: its answers vary more than the listeners"
        )
    return {
        "variance_ratio": float(variance_ratio),
        "variation_ratio": float(variation_ratio),
        "r2": float(1 - np.mean((predicted - truth) ** 2) / np.mean(truth**2)),
        "columns": float(moves.sum()),
        "train_clips": float(corpus.count("train")),
        "test_clips": float(corpus.count("test")),
    }
