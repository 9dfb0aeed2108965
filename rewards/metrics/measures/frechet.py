"""Frechet distances between the frames of clips: FD and its paired form P-FD.

The field calls both FID, although no Inception features are involved. Sources: Ng et al. 2022;
Dowson and Landau 1982.
"""

from __future__ import annotations

import numpy as np

from rapport.rewards.metrics.clips import as_array


def fd(x: np.ndarray, y: np.ndarray) -> float:
    """Frechet distance between Gaussians fitted to the frames of x and of y, (time, dim) each.

        |mu_x - mu_y|^2 + tr(S_x) + tr(S_y) - 2 tr((S_x S_y)^(1/2)),  covariances with ddof 1

    With S = A^T A (A the centred frames over sqrt(time - 1)) the last trace is the sum of the
    singular values of A_x A_y^T. That is what the references' `scipy.linalg.sqrtm` computes,
    without its loss of digits for the rank-deficient covariances of clips that are shorter than
    wide.

    Raises:
        ValueError: unlike widths, or fewer than 2 frames.
    """
    x = as_array(x, "x")
    y = as_array(y, "y")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"FD of {x.shape[1]} against {y.shape[1]} channels")
    a = _covariance_root(x)
    b = _covariance_root(y)
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    distance = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.sum(a**2) + np.sum(b**2) - 2 * cross
    # Rounding may carry the distance of equal clips below zero.
    return max(float(distance), 0.0)


def p_fd(x: np.ndarray, y: np.ndarray, partner: np.ndarray) -> float:
    """Paired FD: between [partner, x] and [partner, y], (time, dim) each.

    So the synchrony with the partner counts.

    Raises:
        ValueError: unlike lengths or widths.
    """
    partner = as_array(partner, "partner")
    if not len(partner) == len(x) == len(y):
        raise ValueError(
            f"P-FD needs equal lengths, got partner {len(partner)}, x {len(x)}, y {len(y)} frames"
        )
    return fd(
        np.concatenate([partner, as_array(x, "x")], axis=1),
        np.concatenate([partner, as_array(y, "y")], axis=1),
    )


def _covariance_root(x: np.ndarray) -> np.ndarray:
    """A with A^T A = np.cov(x.T), (min(time, dim), dim)."""
    if len(x) < 2:
        raise ValueError("a covariance needs at least 2 frames")
    root: np.ndarray = np.linalg.qr(x - x.mean(axis=0), mode="r") / np.sqrt(len(x) - 1)
    return root
