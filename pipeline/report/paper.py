"""The paper's tables, to stand beside a run's.

From "Facial Expression Generation Aligned with Human Preference for Natural Dyadic Interaction",
Tables I to IV. Its ground-truth rows give two numbers. They can only be Variation and Diversity,
because the ground truth has no distance to itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from rapport.rewards.metrics import published

TITLE = published.VLA_DPO
BEFORE = published.SFT
AFTER = published.SFT_RL
FULL = "Full (Ours)"  # the aligned policy's row of Table IV

PaperRow = tuple[float | None, ...]


@dataclass(frozen=True)
class PaperTable:
    """A table as printed.

    Args:
        columns: our name of each metric, in the order printed.
    """

    caption: str
    columns: tuple[str, ...]
    rows: dict[str, PaperRow]


# Key in a run's summary -> the papers' name, which `rapport.rewards.metrics` uses.
METRICS = {
    "l2": "L2",
    "fd": "FD",
    "variation": "Variation",
    "diversity": "Diversity",
    "p_fd": "P-FD",
    "l2_affect": "L2 Affect",
}


def _paper_table(caption: str, table: published.PublishedTable) -> PaperTable:
    rows = {
        method: tuple(values.get(name) for name in METRICS.values())
        for method, values in table.rows.items()
    }
    return PaperTable(caption, tuple(METRICS), rows)


L2L_TREVOR = _paper_table("The paper's Table I: L2L-trevor", published.L2L_TREVOR)
REALTALK = _paper_table("The paper's Table II: RealTalk", published.REALTALK)
USER_STUDY = PaperTable(
    "The paper's Table III: 25 people, 1 to 5",
    ("appropriateness", "empathy", "engagement", "naturalness"),
    {
        "LM-listener": (2.7, 3.1, 3.4, 2.9),
        "MMLHG": (3.0, 3.3, 3.5, 3.1),
        BEFORE: (3.2, 3.4, 3.7, 3.3),
        AFTER: (4.5, 4.1, 4.2, 4.5),
    },
)
ABLATION = PaperTable(
    "The paper's Table IV: what preferences add",
    ("l2", "fd", "p_fd", "l2_affect"),
    {
        FULL: (0.0973, 3.5842, 3.7914, 4.3531),
        "Random-Prefer": (0.3142, 12.3549, 12.0354, 15.2463),
        "SFT-Preferred": (0.1132, 3.6791, 3.9165, 5.519),
        "SFT-Only": (0.0824, 3.2425, 3.8036, 4.5207),
    },
)
