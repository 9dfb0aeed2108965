"""The paper's tables, to stand beside a run's.

From "Facial Expression Generation Aligned with Human Preference for Natural Dyadic Interaction", Tables I to IV.
Its ground-truth rows give two numbers, which can only be Variation and Diversity: distances to itself are none.
"""

from __future__ import annotations

from dataclasses import dataclass

TITLE = "Facial Expression Generation Aligned with Human Preference for Natural Dyadic Interaction"
BEFORE, AFTER = "Ours (SFT)", "Ours (SFT+RL)"

Values = tuple[float | None, ...]


@dataclass(frozen=True)
class PaperTable:
    """A table as printed.

    Args:
        columns: our name of each metric, in the order printed.
    """

    caption: str
    columns: tuple[str, ...]
    rows: dict[str, Values]


METRICS = ("l2", "fd", "variation", "diversity", "p_fd", "l2_affect")

L2L_TREVOR = PaperTable("The paper's Table I: L2L-trevor", METRICS, {
    "GT": (None, None, 0.1254, 2.5427, None, None),
    "Random": (0.6852, 33.5481, 0.1458, 2.7813, 34.5579, 12.4864),
    "NN": (0.6047, 28.4186, 0.0914, 2.1486, 26.7514, 10.6842),
    "LM-listener": (0.4345, 17.6299, 0.1189, 2.9374, 19.1583, 6.3992),
    "MMLHG": (0.2910, 10.0949, 0.0704, 2.2960, 11.3908, 2.6575),
    BEFORE: (0.3015, 9.1473, 0.0814, 2.1756, 11.2975, 2.5724),
    AFTER: (0.3129, 10.2385, 0.0919, 2.3754, 10.8247, 2.4842),
})
REALTALK = PaperTable("The paper's Table II: RealTalk", METRICS, {
    "GT": (None, None, 0.0478, 1.7250, None, None),
    "Random": (0.3749, 17.2541, 0.0549, 1.9452, 18.4436, 24.1739),
    "NN": (0.3147, 16.0572, 0.0496, 1.6241, 15.9657, 20.1478),
    "LM-listener": (0.2416, 10.8423, 0.0402, 1.6148, 10.5483, 12.2730),
    "MMLHG": (0.1021, 3.7914, 0.0234, 1.2643, 3.8145, 6.0427),
    BEFORE: (0.0824, 3.2425, 0.0371, 0.9142, 3.8036, 4.5207),
    AFTER: (0.0973, 3.5842, 0.0421, 1.2457, 3.7914, 4.3531),
})
USER_STUDY = PaperTable(
    "The paper's Table III: 25 people, 1 to 5", ("appropriateness", "empathy", "engagement", "naturalness"), {
        "LM-listener": (2.7, 3.1, 3.4, 2.9),
        "MMLHG": (3.0, 3.3, 3.5, 3.1),
        BEFORE: (3.2, 3.4, 3.7, 3.3),
        AFTER: (4.5, 4.1, 4.2, 4.5),
    })
ABLATION = PaperTable("The paper's Table IV: what preferences add", ("l2", "fd", "p_fd", "l2_affect"), {
    "Full (Ours)": (0.0973, 3.5842, 3.7914, 4.3531),
    "Random-Prefer": (0.3142, 12.3549, 12.0354, 15.2463),
    "SFT-Preferred": (0.1132, 3.6791, 3.9165, 5.519),
    "SFT-Only": (0.0824, 3.2425, 3.8036, 4.5207),
})
