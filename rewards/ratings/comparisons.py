"""Two reactions side by side, "who listens better?": pairs, agreement and strengths.

A row is one rater's choice between two candidates of a prompt. Choices need no common scale, so
nothing is taken out of them; those of several raters are counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from rapport.rewards.ratings.pairs import Pair
from rapport.rewards.ratings.raters import Survey, ordinal_alpha, panel_reliability
from rapport.rewards.ratings.ratings import DIGITS, RatingError, write_rows
from rapport.rewards.ratings.scores import Scores
from rapport.rewards.ratings.sheets import SheetError, read_sheets

Choice = Literal["first", "second", "tie"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
COLUMNS = ("prompt_id", "first_id", "second_id", "rater", "preferred")
SHARES: dict[Choice, float] = {"first": 1.0, "second": 0.0, "tie": 0.5}
CRITERION = "preferred"  # what agreement about choices is called beside that about criteria

Couple = tuple[str, str, str]  # prompt id, and two candidate ids in sorted order


@dataclass(frozen=True)
class Comparison:
    """Which of two candidates of a prompt a rater prefers.

    Raises:
        RatingError: an empty id, a candidate beside itself, or a choice that is none of `CHOICES`.
    """

    prompt_id: str
    first_id: str
    second_id: str
    rater: str
    preferred: Choice

    def __post_init__(self) -> None:
        for name, value in zip(COLUMNS, astuple(self), strict=True):
            if not isinstance(value, str) or not value:
                raise RatingError(f"{name} is {value!r}, expected a text that is not empty")
        if self.first_id == self.second_id:
            raise RatingError(f"candidate {self.first_id!r} is compared with itself")
        if self.preferred not in CHOICES:
            raise RatingError(f"preferred is {self.preferred!r}, expected {', '.join(CHOICES)}")

    @property
    def couple(self) -> Couple:
        """Who was compared, whatever stood on which side."""
        low, high = sorted((self.first_id, self.second_id))
        return self.prompt_id, low, high

    @property
    def share(self) -> float:
        """1 = the couple's first was preferred, 0 = its second, .5 = neither."""
        share = SHARES[self.preferred]
        return share if self.couple[1] == self.first_id else 1 - share


# -- Files --


def holds_comparisons(path: Path) -> bool:
    """Whether a file is a table of choices, and not of grades."""
    if not path.is_file():
        return False
    try:
        return all(set(COLUMNS) <= set(sheet.columns) for sheet in read_sheets(path))
    except SheetError:
        return False  # who reads it as ratings says what is wrong


def read_comparisons(path: Path) -> list[Comparison]:
    """The choices of a file that `write_comparisons` wrote, or that has its columns.

    Raises:
        RatingError: a file that cannot be read, other columns, a choice that is none, a rater who
            compared two candidates twice. Names file and row.
    """
    comparisons: dict[tuple[Couple, str], Comparison] = {}
    try:
        sheets = read_sheets(path)
    except SheetError as error:
        raise RatingError(f"{path}: {error}") from None
    for sheet in sheets:
        absent = [name for name in COLUMNS if name not in sheet.columns]
        if absent:
            raise RatingError(f"{path}: absent columns {absent}, found {sheet.columns[:12]}")
        columns = [sheet.columns.index(name) for name in COLUMNS]
        for place, cells in sheet.rows:
            texts: list[Any] = ["" if cells[i] is None else str(cells[i]) for i in columns]
            try:
                comparison = Comparison(*texts)
            except RatingError as error:
                raise RatingError(f"{path}, {place}: {error}") from None
            key = comparison.couple, comparison.rater
            if key in comparisons:
                raise RatingError(
                    f"{path}, {place}: rater {comparison.rater!r} compared {comparison.couple[1:]} "
                    f"of prompt {comparison.prompt_id!r} before; keep one of the two"
                )
            comparisons[key] = comparison
    return list(comparisons.values())


def write_comparisons(path: Path, comparisons: Iterable[Comparison]) -> None:
    """Write choices in the format that the suffix names; `read_comparisons` gives the same back."""
    rows = [dict(zip(COLUMNS, astuple(each), strict=True)) for each in comparisons]
    write_rows(path, rows, pa.schema([(name, pa.string()) for name in COLUMNS]))


# -- Pairs --


def vote_shares(comparisons: Iterable[Comparison]) -> dict[Couple, float]:
    """Couple -> share of the raters who prefer its first candidate; ties count half."""
    shares: dict[Couple, list[float]] = defaultdict(list)
    for comparison in comparisons:
        shares[comparison.couple].append(comparison.share)
    return {couple: float(np.mean(values)) for couple, values in sorted(shares.items())}


def compared_pairs(
    comparisons: Sequence[Comparison],
    minimum_margin: float,
    members: Mapping[str, Collection[str]],
) -> tuple[list[Pair], Scores, dict[str, int]]:
    """A pair for every two candidates of which more raters prefer one.

    The scores of a pair are its shares of the votes. A candidate's score is the mean of its shares
    over all with whom it was compared.

    Args:
        comparisons: of any number of raters, in any order.
        minimum_margin: least difference of the shares that makes a pair; equal ones never do.
        members: prompt id -> ids of the candidates that exist.

    Returns:
        the pairs; prompt id -> candidate id -> score, None where nobody compared it; counts.

    Raises:
        RatingError: a choice between candidates that do not exist.
    """
    require_members(comparisons, members)
    pairs = []
    tied = below_margin = 0
    won: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (prompt_id, low, high), share in vote_shares(comparisons).items():
        won[prompt_id, low].append(share)
        won[prompt_id, high].append(1 - share)
        margin = round(abs(2 * share - 1), DIGITS)
        tied += margin == 0
        below_margin += 0 < margin < minimum_margin
        if margin == 0 or margin < minimum_margin:
            continue
        chosen, rejected = (low, high) if share > 0.5 else (high, low)
        best = max(share, 1 - share)
        pairs.append(Pair(prompt_id, chosen, rejected, best, 1 - best))
    scores: Scores = {
        prompt_id: {
            candidate: float(np.mean(won[prompt_id, candidate]))
            if (prompt_id, candidate) in won
            else None
            for candidate in sorted(group)
        }
        for prompt_id, group in sorted(members.items())
    }
    counts = {
        "comparisons": len(comparisons),
        "couples": len(pairs) + tied + below_margin,
        "pairs": len(pairs),
        "tied_couples": tied,
        "below_margin": below_margin,
    }
    return pairs, scores, counts


def require_members(
    comparisons: Iterable[Comparison], members: Mapping[str, Collection[str]]
) -> None:
    """Raise `RatingError` where a candidate that was compared does not exist."""
    for comparison in comparisons:
        for candidate in comparison.couple[1:]:
            if candidate not in members.get(comparison.prompt_id, ()):
                raise RatingError(
                    f"rater {comparison.rater!r} compared candidate {candidate!r} of prompt "
                    f"{comparison.prompt_id!r}, which does not exist; are these of another run?"
                )


# -- Agreement and strengths --


def comparison_alpha(comparisons: Iterable[Comparison]) -> float | None:
    """How far raters agree about who listens better: Krippendorff's ordinal alpha, a tie between.

    Every couple counts both ways round: which of the two is its first says nothing of them.
    None where no two raters compared the same two candidates.
    """
    shares: dict[Couple, list[float]] = defaultdict(list)
    for comparison in comparisons:
        shares[comparison.couple].append(comparison.share)
    turned = [[1 - share for share in of_couple] for of_couple in shares.values()]
    return ordinal_alpha([*shares.values(), *turned])


def survey_comparisons(
    comparisons: Sequence[Comparison], members: Mapping[str, Collection[str]]
) -> Survey:
    """How much was compared, and how far raters agree; its one criterion is `CRITERION`."""
    by_couple: dict[Couple, set[str]] = defaultdict(set)
    by_candidate: dict[tuple[str, str], set[str]] = defaultdict(set)
    by_rater: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for comparison in comparisons:
        prompt_id, *candidates = comparison.couple
        by_couple[comparison.couple].add(comparison.rater)
        by_rater[comparison.rater] |= {(prompt_id, candidate) for candidate in candidates}
        for candidate in candidates:
            by_candidate[prompt_id, candidate].add(comparison.rater)
    per_couple = float(np.mean([len(raters) for raters in by_couple.values()] or [0]))
    alpha = comparison_alpha(comparisons)
    reliability = None if alpha is None else panel_reliability(alpha, per_couple)
    return Survey(
        raters={rater: len(seen) for rater, seen in by_rater.items()},
        candidates=sum(map(len, members.values())),
        rated=len(by_candidate),
        rated_twice=sum(len(raters) > 1 for raters in by_candidate.values()),
        raters_per_candidate=float(np.mean([len(each) for each in by_candidate.values()] or [0])),
        alpha={CRITERION: alpha},
        reliability={CRITERION: reliability},
    )


def bradley_terry(wins: np.ndarray, prior: float = 0.0, steps: int = 10_000) -> np.ndarray:
    """Strengths of players, (n,), mean 0: i beats j with probability 1 / (1 + exp(s_j - s_i)).

    Source: Bradley & Terry 1952; fitted by the minorise-maximise steps of Hunter 2004 (Annals of
    Statistics 32, Eq. 3).

    Args:
        wins: (n, n) how often the player of the row beat that of the column; a tie is half a win
            for both.
        prior: ties of every player with one of strength 0. Without, the strength of a player who
            never lost would be infinite.
        steps: at most.

    Raises:
        ValueError: without a prior, players of whom some never lost to the others.
    """
    count = len(wins)
    if not prior and not _all_beat_all(wins):
        raise ValueError("some players never lost to the others: give a prior")
    games = wins + wins.T
    won = wins.sum(axis=1) + prior / 2
    power = np.ones(count)
    for _ in range(steps):
        rivals = games / (power[:, None] + power[None])
        following = won / (rivals.sum(axis=1) + prior / (power + 1))
        if not prior:
            following /= np.exp(np.log(following).mean())
        settled = np.abs(np.log(following / power)).max() < 1e-10
        power = following
        if settled:
            break
    logarithms = np.log(power)
    strengths: np.ndarray = logarithms - logarithms.mean()
    return strengths


def _all_beat_all(wins: np.ndarray) -> bool:
    """Whether everybody beat everybody, over others: then the fit is finite (Ford 1957)."""
    reach = (wins > 0) | np.eye(len(wins), dtype=bool)
    for _ in range(len(wins)):
        reach = reach @ reach
    return bool(reach.all())


def strengths(
    comparisons: Iterable[Comparison], players: Mapping[tuple[str, str], str], prior: float = 1.0
) -> dict[str, float]:
    """Who listens better over all prompts, strongest first: Bradley-Terry strengths, mean 0.

    Args:
        comparisons: of candidates.
        players: prompt and candidate id -> who answered, such as a policy or recorded people.
        prior: see `bradley_terry`.
    """
    names = sorted(set(players.values()))
    place = {name: number for number, name in enumerate(names)}
    wins = np.zeros((len(names), len(names)))
    for comparison in comparisons:
        prompt_id, *couple = comparison.couple
        low, high = (place[players[prompt_id, candidate]] for candidate in couple)
        if low != high:
            wins[low, high] += comparison.share
            wins[high, low] += 1 - comparison.share
    if not wins.any():
        return {}
    fitted = dict(zip(names, bradley_terry(wins, prior).tolist(), strict=True))
    return dict(sorted(fitted.items(), key=lambda item: -item[1]))
