"""How much a clip moves, whatever the recorded one does: Variation, Diversity, SID."""

from __future__ import annotations

import numpy as np

from rapport.rewards.metrics.clips import as_array


def variation(x: np.ndarray) -> float:
    """Mean over channels of the variance over time (ddof 0), of a (time, dim) array."""
    return float(as_array(x, "x").var(axis=0).mean())


def variation_flat(x: np.ndarray) -> float:
    """DIM's variance, of all values together: offsets between channels count as motion."""
    return float(as_array(x, "x").var())


def diversity(x: np.ndarray, pairs: int, rng: np.random.RandomState) -> float:
    """Mean distance of `pairs` random pairs of frames, as lm-listener and DualTalk draw them.

    Both ends are drawn without replacement and independently: a pair may be a frame with itself.
    Source: T2M, Guo et al. 2020.

    Args:
        x: (time, dim).
        pairs: at most as many as frames.
        rng: numpy's legacy generator, since theirs is; they never seed it.

    Raises:
        ValueError: fewer frames.
    """
    x = _frames(x, pairs)
    first = rng.choice(len(x), pairs, replace=False)
    second = rng.choice(len(x), pairs, replace=False)
    return float(np.linalg.norm(x[first] - x[second], axis=1).mean())


def seeded_diversity(x: np.ndarray, pairs: int, seed: int) -> float:
    """Mean distance of `pairs` random pairs of unlike frames, of a (time, dim) array.

    Nothing but the clip and the seed decides which.

    Raises:
        ValueError: fewer frames than pairs.
    """
    x = _frames(x, pairs)
    rng = np.random.default_rng(seed)
    first = rng.choice(len(x), pairs, replace=False)
    second = (first + rng.integers(1, len(x), pairs)) % len(x)
    return float(np.linalg.norm(x[first] - x[second], axis=1).mean())


def sid(x: np.ndarray, y: np.ndarray, clusters: int) -> float:
    """SI for Diversity: entropy in bits of how x's frames are spread over k-means clusters of y's.

        -sum_k p_k log2(p_k + 1e-6),  p_k the share of the frames of x in cluster k

    With `random_state=0`, `n_init="auto"`, as in DIM and DualTalk. 0 for a frozen x, log2(clusters)
    at most. Source: Ng et al. 2022.

    Args:
        x: (time, dim).
        y: (other time, dim), to whose frames the clusters are fitted.
        clusters: at most as many as frames of y.

    Raises:
        ValueError: unlike widths, or fewer frames.
    """
    from sklearn.cluster import KMeans  # takes a second to import

    x = as_array(x, "x")
    y = as_array(y, "y")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"SID of {x.shape[1]} against {y.shape[1]} channels")
    if len(y) < clusters:
        raise ValueError(f"SID fits {clusters} clusters, there are only {len(y)} frames")
    fitted = KMeans(n_clusters=clusters, random_state=0, n_init="auto").fit(y)
    share = np.bincount(fitted.predict(x), minlength=clusters) / len(x)
    return float(-np.sum(share * np.log2(share + 1e-6)))


def _frames(x: np.ndarray, pairs: int) -> np.ndarray:
    x = as_array(x, "x")
    if len(x) < max(pairs, 2):
        raise ValueError(f"Diversity draws {pairs} frames, the clip has {len(x)}")
    return x
