"""Protocols unils and gdpo_paper, and the regions, by hand."""

import numpy as np
import pytest

from rapport.rewards.metrics import evaluate
from rapport.rewards.metrics.measures.mesh import Face, Regions

RNG = np.random.default_rng(2)
REGIONS = Regions((0, 1), (2, 3))


def face(vertices, rot=None, jaw=None, regions=REGIONS):
    time = len(vertices)
    return Face(
        vertices,
        np.zeros((time, 3)) if rot is None else rot,
        np.zeros((time, 1)) if jaw is None else jaw,
        regions,
    )


def faces(frames=40, regions=REGIONS):
    return [
        face(
            0.01 * RNG.normal(size=(frames, 5, 3)),
            0.1 * RNG.normal(size=(frames, 3)),
            0.1 * RNG.normal(size=(frames, 1)),
            regions,
        )
        for _ in range(2)
    ]


def rows(scores, *names):
    return [scores[name] for name in names]


def test_unils_reference_equals_the_textbook_formulas():
    """Vertices in mm, everything else as in calc_val_metrics and _calc_code_dispersion_delta, in
    plain torch.
    """
    torch = pytest.importorskip("torch")
    x, y = faces()
    speaking = RNG.random(40) < 0.5
    scores = evaluate("unils", x, y, speech_mask=speaking)

    def textbook(part):
        a, b = (torch.tensor(f.vertices[part] * 1000)[None] for f in (x, y))
        squared = ((a - b) ** 2).sum(-1)
        upper = [f[:, :, [2, 3]].sum(-1).std(1) for f in (a, b)]
        codes = [
            (torch.tensor(p[part]).std(0) - torch.tensor(q[part]).std(0)).abs().mean() * 100
            for p, q in ((x.rot, y.rot), (x.jaw, y.jaw))
        ]
        return [
            squared[:, :, [0, 1]].max(-1)[0].mean().sqrt(),
            squared.mean().sqrt(),
            (upper[0] - upper[1]).abs().mean() * 100,
            *codes,
        ]

    speak, listen = textbook(speaking), textbook(~speaking)
    assert list(scores.values()) == pytest.approx([float(v) for v in (*speak, *listen[2:])])
    assert list(scores) == [
        "LVE_speak",
        "MHD_speak",
        "FDD_speak",
        "PDD_speak",
        "JDD_speak",
        "FDD_listen",
        "PDD_listen",
        "JDD_listen",
    ]


def test_unils_quirk_of_root_mean_squares():
    """Lips off by 3 mm in one frame and by 1 mm in the other."""
    x, y = np.zeros((2, 2, 5, 3))
    x[0, :, 0], x[1, :, 0] = 0.003, 0.001
    reference, corrected = (
        evaluate("unils", face(x), face(y), speech_mask=np.ones(2, bool), variant=v)
        for v in ("reference", "corrected")
    )
    assert rows(reference, "LVE_speak", "MHD_speak") == pytest.approx([np.sqrt(5), np.sqrt(5)])
    assert rows(corrected, "LVE_speak", "MHD_speak") == pytest.approx([2, 2])


def test_unils_quirk_of_the_sum_of_coordinates():
    """A brow that moves along (1, -1, 0) does not move for the reference."""
    x, y = np.zeros((2, 2, 5, 3))
    x[0, 2:4] = [0.001, -0.001, 0]
    reference, corrected = (
        evaluate("unils", face(x), face(y), speech_mask=np.zeros(2, bool), variant=v)
        for v in ("reference", "corrected")
    )
    assert reference["FDD_listen"] == pytest.approx(0, abs=1e-9)
    assert corrected["FDD_listen"] == pytest.approx(100 * np.sqrt(0.5 + 0.5)), (
        "variances of 0.5 mm2 with ddof 1"
    )


def test_unils_quirk_of_doubled_vertices():
    """Vertex 2 moves, 3 does not, and 2 is listed twice."""
    x, y = np.zeros((2, 2, 5, 3))
    x[0, 2, 0] = 0.001
    doubled = Regions((0,), (2, 2, 3))
    reference, corrected = (
        evaluate(
            "unils",
            face(x, regions=doubled),
            face(y, regions=doubled),
            speech_mask=np.zeros(2, bool),
            variant=v,
        )
        for v in ("reference", "corrected")
    )
    assert reference["FDD_listen"] == pytest.approx(100 * np.sqrt(0.5) * 2 / 3)
    assert corrected["FDD_listen"] == pytest.approx(100 * np.sqrt(0.5) / 2)


def test_a_part_that_is_too_short_is_left_out():
    (x, y), (a, b) = faces(), faces()
    quiet, talking = np.zeros(40, bool), np.arange(40) < 20
    assert set(evaluate("unils", x, y, speech_mask=quiet)) == {
        "FDD_listen",
        "PDD_listen",
        "JDD_listen",
    }
    both = evaluate("unils", [x, a], [y, b], speech_mask=[quiet, talking])
    assert both["LVE_speak"] == evaluate("unils", a, b, speech_mask=talking)["LVE_speak"]


@pytest.mark.parametrize("protocol, people", [("unils", 1), ("gdpo_paper", 2)])
@pytest.mark.parametrize("variant", ["reference", "corrected"])
def test_properties(protocol, people, variant):
    def score(pred, target, mask):
        return evaluate(protocol, pred, target, speech_mask=mask, variant=variant)

    x, y = faces()
    mask = np.array([np.arange(40) < 18, np.arange(40) % 13 > 2])[:people].squeeze()
    once = score(x, y, mask)
    assert len(once) == 8
    assert score(y, x, mask) == pytest.approx(once), "symmetric"
    assert score(x, x, mask) == pytest.approx(dict.fromkeys(once, 0), abs=1e-9)
    twice = [Face(2 * f.vertices, 2 * f.rot, 2 * f.jaw, REGIONS) for f in (x, y)]
    assert score(*twice, mask) == pytest.approx({name: 2 * value for name, value in once.items()})
    other = faces()
    pairs = [[x, other[0]], [y, other[1]]]
    assert score(*pairs, [mask, mask]) == pytest.approx(
        score(*(p[::-1] for p in pairs), [mask, mask])
    )
    single = [Face(*(np.float32(a) for a in (f.vertices, f.rot, f.jaw)), REGIONS) for f in (x, y)]
    assert score(*single, mask) == pytest.approx(once, rel=1e-3)


def test_gdpo_paper_by_hand():
    """The jaw moves by 1, 1, -2 a frame: a std of sqrt 3 with ddof 1; the lips are 3 mm and 1 mm
    off in turn.
    """
    jaw = np.array([[0.0], [1], [2], [0]])
    x, y = np.zeros((2, 4, 5, 3))
    x[:, 1, 2] = [0.003, 0.001, 0.003, 0.001]
    mask = np.array([[True] * 4, [False] * 4])
    scores = evaluate("gdpo_paper", face(x, jaw=jaw), face(y), speech_mask=mask)
    assert scores["JDD_speak"] == pytest.approx(100 * np.sqrt(3)) and scores["PDD_speak"] == 0
    assert rows(scores, "LVE_speak", "MHD_speak") == pytest.approx([2, 2 / 5])
    assert "JDD_listen" not in scores


def test_gdpo_paper_listens_only_while_the_partner_speaks():
    x, y = faces()
    actor, partner = np.arange(40) < 10, np.arange(40) >= 25
    text = evaluate("gdpo_paper", x, y, speech_mask=np.stack([actor, partner]))
    velocities = [100 * np.abs(np.diff(f.jaw[25:], axis=0).std(ddof=1)) for f in (x, y)]
    assert text["JDD_listen"] == pytest.approx(abs(velocities[0] - velocities[1]))
    assert text["JDD_listen"] != evaluate("unils", x, y, speech_mask=actor)["JDD_listen"]


def test_gdpo_paper_quirk_of_velocities_across_gaps():
    """A jaw that rests at 0, then after the pause at 1: the only velocity is the jump over the
    pause.
    """
    jaw = np.repeat([[0.0], [1.0]], 10, axis=0)
    mask = np.stack([(np.arange(20) < 8) | (np.arange(20) >= 12), np.zeros(20, bool)])
    still = np.zeros((20, 5, 3))
    reference, corrected = (
        evaluate("gdpo_paper", face(still, jaw=jaw), face(still), speech_mask=mask, variant=v)
        for v in ("reference", "corrected")
    )
    assert reference["JDD_speak"] == pytest.approx(100 * np.std([0] * 14 + [1], ddof=1))
    assert corrected["JDD_speak"] == 0


def test_unils_lists_are_read_from_its_file_without_running_it(tmp_path):
    file = tmp_path / "metrics.py"
    file.write_text(
        "import no_such_module\nraise SystemExit\nlip_indices = [\n    5,\n    5,\n    7,\n]\n"
        "upper_indices = [1]\nlip_indices_core = [9]\n"
    )
    regions = Regions.from_unils(file)
    assert (regions.lip, regions.upper, regions.unique.lip) == ((5, 5, 7), (1,), (5, 7))
    file.write_text("lip_indices = [1]")
    with pytest.raises(ValueError, match="has no lip_indices and upper_indices"):
        Regions.from_unils(file)


def test_what_does_not_fit_is_named():
    x, y = faces()
    mask = np.ones(40, bool)
    with pytest.raises(ValueError, match="vertex 9, the mesh only 5"):
        face(x.vertices, regions=Regions((9,), (1,)))
    with pytest.raises(ValueError, match="region 'lip'"):
        Regions((), (1,))
    with pytest.raises(ValueError, match=r"vertices have shape \(40, 15\)"):
        face(x.vertices.reshape(40, 15))
    with pytest.raises(ValueError, match="rot has 39 frames, the vertices 40"):
        Face(x.vertices, x.rot[1:], x.jaw, REGIONS)
    with pytest.raises(ValueError, match="vertices has NaN or infinity, first at frame 2"):
        face(np.where(np.arange(40)[:, None, None] == 2, np.nan, x.vertices))
    with pytest.raises(
        ValueError,
        match="pred clip 0 is no rapport.rewards.metrics.measures.mesh.Face but a ndarray",
    ):
        evaluate("unils", [x.vertices], y, speech_mask=mask)
    with pytest.raises(ValueError, match="clip 0: pred has vertices .*39"):
        evaluate("unils", face(x.vertices[1:]), y, speech_mask=mask)
    with pytest.raises(ValueError, match="other regions"):
        evaluate("unils", x, face(y.vertices, regions=Regions((0,), (1,))), speech_mask=mask)
    with pytest.raises(ValueError, match="speech_mask is missing"):
        evaluate("unils", x, y)
    with pytest.raises(
        ValueError, match=r"speech mask 0, \(time,\) of the actor, has shape \(39,\), its clip 40"
    ):
        evaluate("unils", x, y, speech_mask=mask[1:])
    with pytest.raises(ValueError, match=r"\(2, time\) of actor and partner"):
        evaluate("gdpo_paper", x, y, speech_mask=[mask])
    with pytest.raises(ValueError, match="true and false only"):
        evaluate("unils", x, y, speech_mask=0.5 * mask)
