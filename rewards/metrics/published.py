"""What papers printed, to stand beside a run's numbers.

Values are as printed; `scale` says by what ours are to be multiplied before they are compared. The
same metrics do not make the same data: rows of other corpora, features or trackers say what size of
number to expect, and no more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MotionFacts:
    """What tells the motion of one corpus from that of another; None where it is not known.

    Args:
        groups: (name, width) of its columns, in any order.
        width: columns.
        fps: frames per second.
        clips: that are scored.
        frames: of every clip.
        reader: `corpus.kind` of its files.
    """

    groups: tuple[tuple[str, int], ...] | None = None
    width: int | None = None
    fps: float | None = None
    clips: int | None = None
    frames: int | None = None
    reader: str | None = None


@dataclass(frozen=True)
class PublishedTable:
    """A table of a paper.

    Args:
        protocols: those whose metrics it holds.
        source: paper and table.
        data: what was measured.
        rows: method -> metric -> value as printed; what was not printed is absent.
        scale: metric -> printed value over the metric's own, where that is not 1.
        remark: what to know before comparing.
        motion: of the data, as far as its publishers say it.
    """

    protocols: tuple[str, ...]
    source: str
    data: str
    rows: dict[str, dict[str, float]]
    scale: dict[str, float] = field(default_factory=dict)
    remark: str = ""
    motion: MotionFacts = field(default_factory=MotionFacts)


def _rows(
    columns: tuple[str, ...], methods: dict[str, tuple[float | None, ...]]
) -> dict[str, dict[str, float]]:
    """Method -> metric -> value, of what was printed (None = was not)."""
    rows: dict[str, dict[str, float]] = {}
    for method, values in methods.items():
        cells = zip(columns, values, strict=True)
        rows[method] = {column: value for column, value in cells if value is not None}
    return rows


_EMOCA_GROUPS = (("expr", 50), ("rot", 3), ("jaw", 3))
_L2L = MotionFacts(groups=_EMOCA_GROUPS, width=56, fps=30, reader="lm_listener")
_REALTALK = MotionFacts(groups=_EMOCA_GROUPS, width=56, fps=25, reader="realtalk")
_SEAMLESS = MotionFacts(fps=25, reader="seamless")
VLA_DPO = (
    "Facial Expression Generation Aligned with Human Preference for Natural Dyadic Interaction"
)
GDPO = "GDPO-Listener"
SFT, SFT_RL = "Ours (SFT)", "Ours (SFT+RL)"
FLAME_METRICS = ("L2", "FD", "Variation", "Diversity", "P-FD", "L2 Affect")
_AFFECT = {"L2 Affect": 100.0}
_EMOCA = "L2 Affect there is by EMOCA's recogniser"

# Ground-truth rows give two numbers, which can only be Variation and Diversity: distances to itself
# are none.
L2L_TREVOR = PublishedTable(
    protocols=("lm_listener",),
    source=f"{VLA_DPO}, Table I",
    data="L2L-trevor",
    motion=_L2L,
    rows=_rows(
        FLAME_METRICS,
        {
            "GT": (None, None, 0.1254, 2.5427, None, None),
            "Random": (0.6852, 33.5481, 0.1458, 2.7813, 34.5579, 12.4864),
            "NN": (0.6047, 28.4186, 0.0914, 2.1486, 26.7514, 10.6842),
            "LM-listener": (0.4345, 17.6299, 0.1189, 2.9374, 19.1583, 6.3992),
            "MMLHG": (0.2910, 10.0949, 0.0704, 2.2960, 11.3908, 2.6575),
            SFT: (0.3015, 9.1473, 0.0814, 2.1756, 11.2975, 2.5724),
            SFT_RL: (0.3129, 10.2385, 0.0919, 2.3754, 10.8247, 2.4842),
        },
    ),
    scale=_AFFECT,
    remark=_EMOCA,
)
REALTALK = PublishedTable(
    protocols=("lm_listener",),
    source=f"{VLA_DPO}, Table II",
    data="RealTalk",
    motion=_REALTALK,
    rows=_rows(
        FLAME_METRICS,
        {
            "GT": (None, None, 0.0478, 1.7250, None, None),
            "Random": (0.3749, 17.2541, 0.0549, 1.9452, 18.4436, 24.1739),
            "NN": (0.3147, 16.0572, 0.0496, 1.6241, 15.9657, 20.1478),
            "LM-listener": (0.2416, 10.8423, 0.0402, 1.6148, 10.5483, 12.2730),
            "MMLHG": (0.1021, 3.7914, 0.0234, 1.2643, 3.8145, 6.0427),
            SFT: (0.0824, 3.2425, 0.0371, 0.9142, 3.8036, 4.5207),
            SFT_RL: (0.0973, 3.5842, 0.0421, 1.2457, 3.7914, 4.3531),
        },
    ),
    scale=_AFFECT,
    remark=_EMOCA,
)
LM_LISTENER_WEIGHTS = PublishedTable(
    protocols=("lm_listener",),
    source="sanjayss34/lm-listener, issue 14",
    data="L2L-trevor, the released weights as a user ran them",
    motion=_L2L,
    rows=_rows(
        FLAME_METRICS,
        {
            "GT": (None, None, 0.118, 2.73, None, None),
            "LM-listener": (0.658, 30.77, 0.1066, 2.91, 32.30, None),
        },
    ),
)

_DYNAMICS = (
    "LVE_speak",
    "MHD_speak",
    "FDD_speak",
    "PDD_speak",
    "JDD_speak",
    "FDD_listen",
    "PDD_listen",
    "JDD_listen",
)
_ON_UNILS_SCALE = "its text defines gdpo_paper, its numbers are on the scale of unils"
SEAMLESS = PublishedTable(
    protocols=("unils", "gdpo_paper"),
    source=f"{GDPO}, Table 1",
    data="Seamless Interaction",
    motion=_SEAMLESS,
    rows=_rows(
        _DYNAMICS,
        {
            "DiffPoseTalk": (9.48, 2.96, 32.66, 7.89, 1.40, None, None, None),
            "L2L": (3.10, 1.25, 53.03, 3.52, 3.32, 25.95, 2.18, 1.14),
            "ARTalk": (7.46, 2.12, 31.64, 7.66, 1.19, None, None, None),
            "ARTalk*": (6.79, 2.02, 27.41, 8.55, 0.81, 30.62, 9.52, 1.53),
            "DualTalk": (6.53, 1.95, 37.46, 9.70, 1.02, 43.58, 10.71, 2.02),
            "GDPO-Listener": (2.95, 1.06, 22.45, 2.71, 1.26, 18.85, 1.90, 0.87),
        },
    ),
    remark=_ON_UNILS_SCALE,
)
SEAMLESS_ABLATION = PublishedTable(
    protocols=("unils", "gdpo_paper"),
    source=f"{GDPO}, Table 4",
    data="Seamless Interaction, ablation",
    motion=_SEAMLESS,
    rows=_rows(
        _DYNAMICS,
        {
            "GDPO-Listener": (2.95, 1.06, 22.45, 2.71, 1.26, 18.85, 1.90, 0.87),
            "without text": (2.73, 1.04, 33.02, 2.97, 1.44, 22.89, 2.11, 0.87),
            "without GDPO": (3.07, 1.12, 39.54, 3.50, 1.81, 28.03, 2.15, 1.09),
            "fewer steps": (2.61, 0.98, 42.12, 3.94, 2.11, 29.39, 2.19, 1.17),
        },
    ),
    remark=_ON_UNILS_SCALE,
)

_BY_GROUP = tuple(
    f"{metric}_{group}"
    for metric in ("FD", "P-FD", "MSE", "SID", "rPCC")
    for group in ("exp", "jaw", "neck")
)
_DUALTALK_SCALE = {"MSE_exp": 10.0} | {
    f"{metric}_{group}": scale
    for metric in ("FD", "P-FD", "MSE")
    for group, scale in (("jaw", 1000.0), ("neck", 100.0))
}
_SWAPPED = (
    "SID there has its arguments swapped, as in `reference`, if it was computed with DualTalk's "
    "code"
)
SEAMLESS_SPEAKING = PublishedTable(
    protocols=("dualtalk",),
    source=f"{GDPO}, Table 6",
    data="Seamless Interaction, speaking",
    motion=_SEAMLESS,
    rows=_rows(
        _BY_GROUP,
        {
            "DualTalk": (
                93.94,
                7.49,
                8.28,
                94.92,
                7.58,
                8.44,
                19.43,
                2.89,
                3.15,
                0.93,
                1.19,
                0.87,
                0.20,
                0.21,
                0.55,
            ),
            "GDPO-Listener": (
                23.74,
                3.14,
                5.86,
                24.91,
                3.21,
                5.98,
                5.51,
                1.30,
                2.22,
                2.26,
                1.61,
                1.07,
                0.15,
                0.18,
                0.48,
            ),
        },
    ),
    scale=_DUALTALK_SCALE,
    remark=_SWAPPED,
)
SEAMLESS_LISTENING = PublishedTable(
    protocols=("dualtalk",),
    source=f"{GDPO}, Table 6",
    data="Seamless Interaction, listening",
    motion=_SEAMLESS,
    rows=_rows(
        _BY_GROUP,
        {
            "DualTalk": (
                94.05,
                7.16,
                9.91,
                95.06,
                7.28,
                10.08,
                19.16,
                2.63,
                3.53,
                0.69,
                0.68,
                0.48,
                0.19,
                0.28,
                0.53,
            ),
            "GDPO-Listener": (
                24.84,
                3.65,
                6.06,
                26.05,
                3.73,
                6.16,
                5.45,
                1.37,
                2.12,
                1.44,
                0.87,
                0.57,
                0.15,
                0.25,
                0.48,
            ),
        },
    ),
    scale=_DUALTALK_SCALE,
    remark=_SWAPPED,
)

_3DMM = MotionFacts(width=58, fps=25, frames=750, reader="react")
_OF_3DMM = "REACT, 3DMM coefficients"
REACT_3DMM = PublishedTable(
    protocols=("reactface",),
    source="ReactFace, Table 2",
    data=_OF_3DMM,
    motion=_3DMM,
    # FPS is on an A100, rendering included.
    rows=_rows(
        ("FRDvs", "FRVar", "FRDiv", "FRRea", "FRCorr", "FRSyn", "FPS"),
        {
            "GT": (0.0374, 0.0120, None, 282.03, 9.480, 48.46, None),
            "Mirror": (0.0374, 0.0120, 0.0, 282.03, 0.936, 42.65, None),
            "Random": (0.0415, 0.0202, 0.0041, 477.49, 0.127, 45.82, None),
            "NN motion": (0.0420, 0.0199, 0.0, 452.38, 0.334, 46.90, 15.36),
            "NN audio": (0.0464, 0.0218, 0.0, 496.25, 0.017, 47.67, 3.32),
            "Trans-AE": (0.0063, 0.0003, 0.0, 599.35, 0.245, 45.01, 119.73),
            "LFI": (0.0247, 0.0109, 0.0138, 734.06, 0.048, 45.92, 24.15),
            "Ng et al.": (0.0015, 0.0102, 0.0003, 691.24, 0.059, 45.70, 91.75),
            "Zhou et al.": (0.0106, 0.0039, 0.0, 527.47, 0.104, 45.24, 150.14),
            "ReactFace": (0.0409, 0.0159, 0.0395, 424.46, 0.197, 43.94, 54.96),
        },
    ),
    remark=(
        "Mirror has a true lag of 0: its FRSyn shows the NaN of constant channels; Random there is "
        "drawn from Gaussians, not from training listeners"
    ),
)
_ABLATED = ("FRVar", "FRDiv", "FRRea", "FRCorr", "FRSyn")
_REACTFACE_ROW = (0.0159, 0.0395, 424.46, 0.197, 43.94)
REACT_INPUTS = PublishedTable(
    protocols=("reactface",),
    source="ReactFace, Table 3",
    data=f"{_OF_3DMM}, what is seen and heard",
    motion=_3DMM,
    rows=_rows(
        _ABLATED,
        {
            "speech only": (0.0173, 0.0351, 450.33, 0.168, 46.33),
            "face only": (0.0155, 0.0217, 597.35, 0.123, 44.38),
            "ReactFace": _REACTFACE_ROW,
        },
    ),
)
REACT_INTERACTION = PublishedTable(
    protocols=("reactface",),
    source="ReactFace, Table 4",
    data=f"{_OF_3DMM}, what the decoder attends to",
    motion=_3DMM,
    rows=_rows(
        _ABLATED,
        {
            "neither (inferred)": (0.1824, 0.0001, 526.09, 0.102, 45.42),
            "VIM (inferred)": (0.0107, 0.0180, 668.38, 0.123, 46.30),
            "MIM (inferred)": (0.0190, 0.0315, 460.75, 0.184, 45.36),
            "ReactFace": _REACTFACE_ROW,
        },
    ),
    remark=(
        "which row lacks what is inferred: its marks do not tell, and by the text MIM adds most to "
        "FRDiv and FRCorr"
    ),
)
REACT_ALIGNMENT = PublishedTable(
    protocols=("reactface",),
    source="ReactFace, Table 5",
    data=f"{_OF_3DMM}, how sound and face are aligned",
    motion=_3DMM,
    rows=_rows(
        _ABLATED,
        {
            "frame by frame": (0.0129, 0.0321, 594.14, 0.185, 44.40),
            "ReactFace": _REACTFACE_ROW,
        },
    ),
)
REACT_MOMENTUM = PublishedTable(
    protocols=("reactface",),
    source="ReactFace, Table 6",
    data=f"{_OF_3DMM}, momentum",
    motion=_3DMM,
    rows=_rows(
        _ABLATED,
        {
            "without momentum": (0.0035, 0.1002, 614.36, 0.146, 45.56),
            "ReactFace": _REACTFACE_ROW,
        },
    ),
)
REACT_LOSSES = PublishedTable(
    protocols=("reactface",),
    source="ReactFace, Table 7",
    data=f"{_OF_3DMM}, losses",
    motion=_3DMM,
    rows=_rows(
        _ABLATED,
        {
            "without L_a (inferred)": (0.0220, 0.0433, 412.14, 0.166, 45.96),
            "without L_s (inferred)": (0.0054, 0.0831, 596.22, 0.143, 46.26),
            "without KL (inferred)": (0.0156, 0.0238, 479.77, 0.186, 45.36),
            "without L_div (inferred)": (0.0001, 0.0, 590.24, 0.112, 43.39),
            "without L_smo (inferred)": (0.0171, 0.0248, 420.61, 0.139, 44.16),
            "ReactFace": _REACTFACE_ROW,
        },
    ),
    remark=(
        "which row lacks which loss is inferred: its marks do not tell, and this order alone fits "
        "every remark of the text"
    ),
)
# Share of 41 people who preferred ReactFace's to the other's, percent; no protocol gives these.
REACT_PEOPLE = PublishedTable(
    protocols=(),
    source="ReactFace, Table 8",
    data="REACT, 41 people",
    rows=_rows(
        ("realism", "diversity", "appropriateness", "synchrony"),
        {
            "against Ng et al.": (90.24, 95.12, 87.80, 92.68),
            "against Zhou et al.": (80.49, 90.24, 82.93, 87.80),
            "against GT": (19.51, 9.76, 17.07, 14.63),
        },
    ),
)
REACT_RLD = PublishedTable(
    protocols=("reactface",),
    source="ReactFace, Table 9",
    data="RLD (ViCo), 483 clips",
    motion=MotionFacts(reader="vico"),
    rows=_rows(
        ("FRRea", "FRVar", "FRDiv", "FRSyn"),
        {
            "GT": (168.24, 1.8439, None, 29.61),
            "Trans-AE": (250.09, 0.0145, 0.0, 32.52),
            "Ng et al.": (460.48, 1.1032, 0.0, 31.00),
            "Zhou et al.": (180.56, 0.9314, 0.0, 32.62),
            "ReactFace without L_a": (271.09, 0.3539, 0.3015, 31.12),
        },
    ),
    remark="trained on the recorded reaction alone: RLD has no appropriate ones",
)
REACT_POSNET = PublishedTable(
    protocols=("react2023", "react2024"),
    source="PFLPosNet, Table 4",
    data="REACT 2024, 697 pairs",
    motion=MotionFacts(width=25, fps=25, clips=697, frames=750, reader="react"),
    rows=_rows(
        ("FRDvs", "FRVar", "FRDiv", "FRCorr", "FRSyn"),
        {
            "ReactFace": (0.0397, 0.0064, 0.0341, 0.1927, 46.29),
            "ReactFace + PosNet": (0.0368, 0.0063, 0.0341, 0.1921, 45.74),
            "PerFRDiff": (0.1261, 0.0612, 0.0486, 0.2318, 45.45),
            "PerFRDiff + PosNet": (0.1251, 0.0607, 0.0481, 0.2320, 45.39),
        },
    ),
    remark="ReactFace's FRVar is .0159 in its own paper: other features or another checkpoint",
)
_EMOTION = MotionFacts(width=25, fps=25, frames=750, reader="react")
_REACT_2024 = ("FRCorr", "FRDist", "FRDvs", "FRVar", "FRDiv", "FRRea", "FRSyn")
REACT_2024_VALIDATION = PublishedTable(
    protocols=("react2023", "react2024"),
    source="README of the AIS lab's entry to REACT 2024",
    data="REACT 2024, validation, online",
    motion=_EMOTION,
    rows=_rows(
        _REACT_2024,
        {
            "GT": (8.35, 0.0, 0.2117, 0.0635, 0.0, None, 48.42),
            # Its FRDiv is printed as .2483, which no single reaction can have.
            "Mime": (0.37, 84.78, 0.2117, 0.0635, 0.0, None, 43.50),
            "Random": (0.05, 228.33, 0.1666, 0.0833, 0.1666, None, 46.27),
            "Trans-VAE": (0.07, 90.31, 0.0064, 0.0012, 0.0009, 69.19, 44.65),
            "BeLFusion, k=10": (0.12, 94.09, 0.0379, 0.0248, 0.0397, None, 49.0),
            "AIS": (0.26, 86.73, 0.1160, 0.0346, 0.1162, 81.28, 46.96),
        },
    ),
    remark=(
        "Random there is uniform noise, whose FRVar is 1/12 and FRDiv and FRDvs 1/6. The README of "
        "another entry, whose name is not known, has FRCorr .199 to .208, FRDist 102.6 to 103.6, "
        "FRDiv .054 to .075, FRVar .065, FRDvs .104 to .106, FRSyn 49.0"
    ),
)
REACT_2024_TEST = PublishedTable(
    protocols=("react2023", "react2024"),
    source="README of the AIS lab's entry to REACT 2024",
    data="REACT 2024, test, online",
    motion=_EMOTION,
    rows=_rows(
        _REACT_2024,
        {"AIS": (0.3190, 82.03, 0.1165, 0.0344, 0.1162, 34.67, 43.09)},
    ),
)

_VBENCH = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "imaging_quality",
    "temporal_flickering",
    "dynamic_degree",
)
VBENCH = PublishedTable(
    protocols=("vbench",),
    source="PFLPosNet, Table 1",
    data="REACT 2024, fixed crop",
    rows=_rows(
        _VBENCH,
        {
            "Trans-VAE": (97.3114, 96.5110, 99.0939, 50.7164, 98.6968, 95.3372),
            "Trans-VAE + PosNet": (97.9097, 97.3707, 99.5345, 51.7964, 99.4224, 0.0),
            "BeLFusion": (97.3758, 97.0828, 99.3669, 51.4821, 99.2623, 0.0079),
            "BeLFusion + PosNet": (98.1602, 97.6105, 99.5031, 52.5414, 99.4910, 0.0),
            "ReactFace": (98.8673, 98.1330, 99.5976, 52.4293, 99.6001, 0.0),
            "ReactFace + PosNet": (98.9415, 98.3419, 99.6094, 52.8171, 99.6781, 0.0),
            "PerFRDiff": (96.2711, 95.9321, 98.4633, 50.6099, 98.1133, 86.5136),
            "PerFRDiff + PosNet": (97.4501, 97.0771, 99.5008, 52.5685, 99.3552, 6.0976),
        },
    ),
    scale=dict.fromkeys(_VBENCH, 100.0),
    remark="the paper counts a low dynamic degree as good; a frozen face has 0",
)

VBENCH_CROP_REACTFACE = PublishedTable(
    protocols=("vbench",),
    source="PFLPosNet, Table 2",
    data="REACT 2024, ReactFace by crop",
    rows=_rows(
        _VBENCH,
        {
            "crop that follows the face": (99.0058, 97.6767, 99.6162, 40.7967, 99.5376, 0.0),
            "fixed crop": (98.8673, 98.1330, 99.5976, 52.4293, 99.6001, 0.0),
            "fixed crop + PosNet": (98.9415, 98.3419, 99.6094, 52.8171, 99.6781, 0.0),
        },
    ),
    scale=dict.fromkeys(_VBENCH, 100.0),
)
VBENCH_CROP_PERFRDIFF = PublishedTable(
    protocols=("vbench",),
    source="PFLPosNet, Table 3",
    data="REACT 2024, PerFRDiff by crop",
    rows=_rows(
        _VBENCH,
        {
            "crop that follows the face": (95.5255, 95.6970, 99.2403, 41.3867, 98.4462, 91.5352),
            "fixed crop": (96.2711, 95.9321, 98.4633, 50.6099, 98.1133, 86.5136),
            "fixed crop + PosNet": (97.4501, 97.0771, 99.5008, 52.5685, 99.3552, 6.0976),
        },
    ),
    scale=dict.fromkeys(_VBENCH, 100.0),
    remark="the fixed crop lets the head's displacement in, which is less smooth",
)

TABLES = (
    L2L_TREVOR,
    REALTALK,
    LM_LISTENER_WEIGHTS,
    SEAMLESS,
    SEAMLESS_ABLATION,
    SEAMLESS_SPEAKING,
    SEAMLESS_LISTENING,
    REACT_3DMM,
    REACT_INPUTS,
    REACT_INTERACTION,
    REACT_ALIGNMENT,
    REACT_MOMENTUM,
    REACT_LOSSES,
    REACT_PEOPLE,
    REACT_RLD,
    REACT_POSNET,
    REACT_2024_VALIDATION,
    REACT_2024_TEST,
    VBENCH,
    VBENCH_CROP_REACTFACE,
    VBENCH_CROP_PERFRDIFF,
)


def tables_of(protocol: str) -> list[PublishedTable]:
    """The published tables with metrics of a protocol."""
    return [table for table in TABLES if protocol in table.protocols]


def ordered(
    tables: list[PublishedTable], data: MotionFacts
) -> list[tuple[PublishedTable, list[str]]]:
    """Tables with what speaks against the data being theirs, those first of which nothing does.

    Among them the ones come first that share more of what is known.
    """
    judged = [(table, unlike(table.motion, data)) for table in tables]
    return sorted(judged, key=lambda pair: (len(pair[1]) > 0, -_agreements(pair[0].motion, data)))


def unlike(published: MotionFacts, data: MotionFacts) -> list[str]:
    """Why motion cannot be that of a published corpus, in words; empty where it may be."""
    reasons = []
    for name, (theirs, ours) in _known_of_both(published, data).items():
        if not _agree(name, theirs, ours):
            reasons.append(f"{_in_words(name, ours)}, there {_in_words(name, theirs)}")
    return reasons


def _agreements(published: MotionFacts, data: MotionFacts) -> int:
    known = _known_of_both(published, data)
    return sum(_agree(name, theirs, ours) for name, (theirs, ours) in known.items())


def _known_of_both(published: MotionFacts, data: MotionFacts) -> dict[str, tuple[Any, Any]]:
    both = {name: (theirs, getattr(data, name)) for name, theirs in vars(published).items()}
    known = {name: pair for name, pair in both.items() if None not in pair}
    if "groups" in known:
        known.pop("width", None)  # says no more
    return known


def _agree(name: str, theirs: Any, ours: Any) -> bool:
    return set(theirs) == set(ours) if name == "groups" else bool(theirs == ours)


def _in_words(name: str, value: Any) -> str:
    if name == "groups":
        return " + ".join(f"{group} {width}" for group, width in value)
    if name == "reader":
        return f"{value} files"
    return f"{value:g} {'columns' if name == 'width' else name}"
