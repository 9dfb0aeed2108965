"""A reward model: what people would rate, learnt from what they rated.

A ridge regression (Hoerl & Kennard 1970) for each criterion, from `reward_features` to the mean
grade of a candidate. It is tried on conversations that it was not fitted on, beside people
themselves and beside rules that listen to nobody; see `reward_agreement`. Its grades are called
learnt, never people's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from sklearn.model_selection import GroupKFold

from rapport.arrays import load_named, save_named
from rapport.rewards.ratings.ratings import CRITERIA, HIGHEST, LOWEST, Rating

LEARNT = "learnt"  # stands for the rater where a reward model rated
FEWEST_GROUPS = 20  # rated ones, to learn from
FOLDS = 5  # of cross-validation, and so the fewest conversations
INNER_FOLDS = 3  # on which the penalty is chosen
PENALTIES = np.geomspace(1, 1e4, 5)
FURTHEST = 5.0  # standard deviations; features beyond are taken to be so far
FORMAT = 1  # of the file that `save` writes


class RewardModelError(ValueError):
    """There is too little to learn from, or a file holds no reward model."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Candidates with what is seen of them and how they were rated.

    Args:
        features: (n, features) of `names`; NaN = not seen.
        grades: (n, criteria) means of the raters in [0, 1], in the order of `CRITERIA`; NaN = not
            rated.
        conversations: (n,) whose candidates are never on both sides of a fold.
        names: of the features.
    """

    features: np.ndarray
    grades: np.ndarray
    conversations: np.ndarray
    names: tuple[str, ...]

    def at(self, places: np.ndarray) -> Examples:
        """Some of them."""
        return Examples(
            self.features[places], self.grades[places], self.conversations[places], self.names
        )

    def with_grades(self, grades: np.ndarray) -> Examples:
        """The same candidates, rated otherwise."""
        return Examples(self.features, grades, self.conversations, self.names)


@dataclass(frozen=True, eq=False)
class RewardModel:
    """A fitted model; called with (n, features) it gives grades, (n, criteria) in [0, 1].

    Args:
        names: of the features.
        criteria: that it was taught.
        mean: (features,) of the candidates it learnt from.
        scale: (features,) their standard deviations, 1 where constant.
        weights: (features, criteria), of standardised features.
        bias: (criteria,).
    """

    names: tuple[str, ...]
    criteria: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    @classmethod
    def fit(cls, examples: Examples) -> Self:
        """Fit on what people rated; how far it is regularised is chosen on folds within.

        Raises:
            RewardModelError: no criterion was rated in two conversations or more.
        """
        seen = np.isfinite(examples.features)
        counts = np.maximum(seen.sum(axis=0), 1)
        filled = np.where(seen, examples.features, 0)
        mean = filled.sum(axis=0) / counts
        scale = np.sqrt((np.where(seen, filled - mean, 0) ** 2).sum(axis=0) / counts)
        scale[scale < 1e-8] = 1.0
        x = standardised(examples.features, mean, scale)
        rated = np.isfinite(examples.grades)
        places = [
            place
            for place in range(len(CRITERIA))
            if len(set(examples.conversations[rated[:, place]])) > 1
        ]
        if not places:
            raise RewardModelError("no criterion was rated in two conversations or more")
        weights = np.zeros((x.shape[1], len(places)))
        bias = np.zeros(len(places))
        # Criteria that were rated of the same candidates are fitted at once.
        for rows, columns in _alike(rated[:, places]):
            grades = examples.grades[rows][:, np.array(places)[columns]]
            fitted = _ridge(x[rows], grades, examples.conversations[rows])
            weights[:, columns], bias[columns] = fitted
        criteria = tuple(list(CRITERIA)[place] for place in places)
        return cls(examples.names, criteria, mean=mean, scale=scale, weights=weights, bias=bias)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Grades of the model's criteria, (n, criteria) in [0, 1]."""
        x = standardised(features, self.mean, self.scale)
        grades: np.ndarray = np.clip(x @ self.weights + self.bias, 0.0, 1.0)
        return grades

    def ratings(self, features: np.ndarray, members: Sequence[tuple[str, str]]) -> list[Rating]:
        """The same from 1 to 5, by the rater `LEARNT`.

        Args:
            features: (n, features).
            members: prompt and candidate id of each.
        """
        return ratings_of(self(features), self.criteria, members)

    def save(self, path: str | Path) -> None:
        """Write to an `.npz` file, atomically."""
        content = {name: getattr(self, name) for name in ("mean", "scale", "weights", "bias")}
        texts = {"names": np.array(self.names), "criteria": np.array(self.criteria)}
        save_named(path, {"format": FORMAT} | texts | content)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ArrayFileError: the file cannot be read.
            RewardModelError: it holds something else, or numbers that do not go together.
        """
        file = load_named(path)
        arrays = ("mean", "scale", "weights", "bias")
        wanted = {"format", "names", "criteria", *arrays}
        if not wanted <= file.keys() or file["format"].tolist() != FORMAT:
            raise RewardModelError(f"{path} is no reward model of format {FORMAT}; fit it again")
        names = tuple(map(str, file["names"].ravel()))
        criteria = tuple(map(str, file["criteria"].ravel()))
        shapes = {
            "mean": (len(names),),
            "scale": (len(names),),
            "weights": (len(names), len(criteria)),
            "bias": (len(criteria),),
        }
        for name, shape in shapes.items():
            if file[name].shape != shape or not _finite(file[name]):
                raise RewardModelError(
                    f"{path}: {name} must be finite numbers of shape {shape}, it is of "
                    f"{file[name].shape}; the file is damaged, fit the model again"
                )
        if not set(criteria) <= set(CRITERIA):
            raise RewardModelError(
                f"{path} rates {', '.join(criteria)}; known are {', '.join(CRITERIA)}"
            )
        return cls(names, criteria, **{name: file[name] for name in arrays})


def cross_validated(
    examples: Examples, others: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Grades by models that were fitted on other conversations, each (n, criteria), in [0, 1].

    A criterion that was hardly rated is NaN.

    Args:
        examples: rated candidates.
        others: (n, features) of the same candidates beside the speaker of another conversation;
            None = as they are.

    Returns:
        grades beside the own speaker, and beside the other one.

    Raises:
        RewardModelError: fewer conversations than `FOLDS`.
    """
    count = len(set(examples.conversations))
    if count < FOLDS:
        raise RewardModelError(
            f"ratings are of {count} conversations: a reward model is tried on others than it "
            f"learnt from, which takes {FOLDS}"
        )
    features = (examples.features, examples.features if others is None else others)
    grades = np.full((2, *examples.grades.shape), np.nan)
    for learnt, tried in _folds(examples.conversations, FOLDS):
        model = RewardModel.fit(examples.at(learnt))
        columns = [list(CRITERIA).index(name) for name in model.criteria]
        for beside, x in enumerate(features):
            grades[beside, tried[:, None], columns] = model(x[tried])
    return grades[0], grades[1]


def ratings_of(
    grades: np.ndarray, criteria: Sequence[str], members: Sequence[tuple[str, str]]
) -> list[Rating]:
    """Grades of a model, (n, criteria) in [0, 1], as ratings from 1 to 5; NaN = not rated."""
    ratings = []
    for (prompt_id, candidate_id), row in zip(members, grades, strict=True):
        marks = {
            name: LOWEST + (HIGHEST - LOWEST) * float(grade)
            for name, grade in zip(criteria, row, strict=True)
            if np.isfinite(grade)
        }
        ratings.append(Rating(prompt_id, candidate_id, LEARNT, **marks))
    return ratings


def standardised(features: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Features in standard deviations from the mean, which stands for what is not seen."""
    x = (features - mean) / scale
    kept: np.ndarray = np.clip(np.where(np.isfinite(x), x, 0.0), -FURTHEST, FURTHEST)
    return kept


def _alike(rated: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows that are rated, (n,) bool, and the columns of `rated` that have just these, places."""
    kinds, kind_of = np.unique(rated, axis=1, return_inverse=True)
    for kind in range(kinds.shape[1]):
        yield kinds[:, kind], np.flatnonzero(kind_of.ravel() == kind)


def _ridge(
    x: np.ndarray, grades: np.ndarray, conversations: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (features, criteria) and bias; penalties foretell other conversations best."""
    errors = np.zeros((len(PENALTIES), grades.shape[1]))
    for learnt, tried in _folds(conversations, INNER_FOLDS):
        weights, bias = _every_ridge(x[learnt], grades[learnt])
        errors += np.sum((x[tried] @ weights + bias[:, None] - grades[tried]) ** 2, axis=1)
    weights, bias = _every_ridge(x, grades)
    best = errors.argmin(axis=0)
    columns = np.arange(grades.shape[1])
    return weights[best, :, columns].T, bias[best, columns]


def _every_ridge(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (penalties, features, criteria) and bias (penalties, criteria), for all penalties.

    One decomposition serves them all.
    """
    centre = x.mean(axis=0)
    values, vectors = np.linalg.eigh((x - centre).T @ (x - centre))
    rotated = vectors.T @ ((x - centre).T @ (y - y.mean(axis=0)))
    shrunk = rotated / (np.maximum(values, 0)[None, :, None] + PENALTIES[:, None, None])
    weights = vectors @ shrunk
    return weights, y.mean(axis=0) - centre @ weights


def _folds(conversations: np.ndarray, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places to learn on and places to try on; no conversation is in both."""
    folds = min(most, len(set(conversations)))
    splits: Iterator[tuple[np.ndarray, np.ndarray]] = GroupKFold(folds).split(
        conversations, groups=conversations
    )
    return splits


def _finite(values: np.ndarray) -> bool:
    return values.dtype.kind in "fiu" and bool(np.isfinite(values).all())
