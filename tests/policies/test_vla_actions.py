import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline

from rapport.policies.motion import Layout, LayoutError, Motion
from rapport.policies.vla.actions import (
    ActionError,
    ActionSpace,
    ActionTokenizer,
    fit_bounds,
    spline_basis,
)

LAYOUT = Layout((("expr", 2), ("rot", 3), ("jaw", 1)), 25, "flame2020")
SPACE = ActionSpace(LAYOUT, rate=5, seconds=4)
STILL = np.zeros(6)  # a face at rest


def tokenizer(low=-1.0, high=1.0, bins=256, first=768):
    return ActionTokenizer(SPACE, np.full(6, low), np.full(6, high), first, bins)


def test_default_space_is_the_one_of_the_paper_config():
    space = ActionSpace(Layout((("expr", 50), ("rot", 3), ("jaw", 3)), 25, "flame2020"))
    assert (space.steps, space.frames, space.dims, space.tokens) == (20, 100, 56, 1120)


def test_expression_and_pose_dimensions():
    assert SPACE.expression.tolist() == [True, True, False, False, False, True]


@pytest.mark.parametrize(("rate", "seconds"), [(5, 0.5), (5, 4.01), (0, 4), (50, 4)])
def test_space_that_has_no_whole_steps_or_frames_is_refused(rate, seconds):
    with pytest.raises(ActionError):
        ActionSpace(LAYOUT, rate, seconds)


def test_spline_by_hand_and_as_scipys():
    knots = np.random.default_rng(0).normal(size=20)
    decoded = spline_basis(100, 20) @ knots
    u = 0.3  # the second of five frames of a block
    wanted = 0.5 * (1 - u) ** 2 * knots[6] + (0.5 + u * (1 - u)) * knots[7] + 0.5 * u**2 * knots[8]
    assert decoded[5 * 7 + 1] == pytest.approx(wanted, abs=1e-12)
    repeated = np.concatenate([knots[:1], knots, knots[-1:]])
    spline = BSpline(np.arange(-2, 23), repeated, 2)  # block k lies between breaks k and k + 1
    np.testing.assert_allclose(decoded, spline((np.arange(100) + 0.5) / 5), atol=1e-12)


@pytest.mark.parametrize(("frames", "knots"), [(100, 20), (7, 7), (30, 7), (5, 2), (5, 1)])
def test_knots_to_frames_to_knots_is_exact(frames, knots):
    basis = spline_basis(frames, knots)
    np.testing.assert_allclose(np.linalg.pinv(basis) @ basis, np.eye(knots), atol=1e-9)
    np.testing.assert_allclose(basis.sum(axis=1), 1, atol=1e-9)  # a constant face stays constant


@pytest.mark.parametrize("fps", [25, 30, 24])
@pytest.mark.parametrize("at_once", [1, 2, 5, 20])
def test_a_motion_drawn_piece_by_piece_is_the_whole(fps, at_once):
    space = ActionSpace(Layout((("expr", 2),), fps, "builtin"), rate=5, seconds=5)
    knots = np.random.default_rng(3).normal(size=(25, 2))
    drawn = space.start
    pieces = []
    for first in range(0, 25, at_once):
        part = knots[first : first + at_once]
        values, drawn = space.draw(drawn, part, ends=first + at_once >= 25)
        pieces.append(values)
        known = min(first + at_once, 25)
        assert drawn.frames == sum(map(len, pieces))
        # All frames whose middle lies in a block that has a knot behind it.
        blocks = known if known == 25 else known - 1
        places = (np.arange(5 * fps) + 0.5) * 5 / fps
        assert drawn.frames == (places < blocks).sum() and len(drawn.last) <= 2
    np.testing.assert_allclose(np.concatenate(pieces), space.basis @ knots, atol=1e-12)


def test_the_last_knot_of_a_past_is_that_of_its_own_spline():
    knots = np.random.default_rng(1).normal(size=(20, 6))
    past = SPACE.to_motion(knots)
    short = ActionSpace(LAYOUT, rate=5, seconds=1)
    np.testing.assert_allclose(short.last_knot(past), knots[-1], atol=1e-5)
    # Frames before a whole number of blocks are left out.
    before = short.last_knot(past.window(1, 99))
    np.testing.assert_array_equal(before, short.last_knot(past.window(5, 95)))
    assert short.last_knot(past.window(0, 4)) is None


def test_motion_round_trip_through_knots():
    knots = np.random.default_rng(1).normal(size=(20, 6))
    motion = SPACE.to_motion(knots)
    assert motion.layout == LAYOUT and motion.values.shape == (100, 6)
    np.testing.assert_allclose(SPACE.to_knots(motion), knots, atol=1e-5)


def test_bins_by_hand():
    four = tokenizer(low=0.0, high=1.0, bins=4, first=100)  # [0, .25) -> 100 ... [.75, 1] -> 103
    knots = np.array([[-5.0, 0.0, 0.24, 0.25, 0.99, 1.0]])
    assert four.encode(knots, STILL).tolist() == [100, 100, 100, 101, 103, 103]
    np.testing.assert_allclose(
        four.decode(np.array([100, 101, 102, 103, 100, 100]), STILL)[0],
        [0.125, 0.375, 0.625, 0.875, 0.125, 0.125],
    )


def test_both_ends_of_the_range_round_trip():
    tok = tokenizer()
    assert set(tok.encode(np.full((1, 6), -9.0), STILL)) == {768} and set(
        tok.encode(np.full((1, 6), 9.0), STILL)
    ) == {768 + 255}
    ends = tok.decode(np.array([768] * 6 + [1023] * 6), STILL)
    np.testing.assert_allclose(ends, [[-1 + 1 / 256] * 6, [1 - 1 / 256] * 6])


@given(st.lists(st.floats(-1, 1), min_size=6, max_size=6), st.integers(2, 256))
@settings(max_examples=50, deadline=None)
def test_a_value_within_range_moves_at_most_half_a_bin_and_tokens_are_fixed_points(values, bins):
    tok = tokenizer(bins=bins)
    tokens = tok.encode(np.array([values]), STILL)
    decoded = tok.decode(tokens, STILL)
    assert np.abs(decoded - values).max() <= 1 / bins + 1e-9
    assert (tok.encode(decoded, STILL) == tokens).all()


def test_tokens_are_step_major():
    knots = np.zeros((20, 6))
    knots[3, 2] = 0.9
    tokens = tokenizer().encode(knots, STILL)
    assert np.flatnonzero(tokens != tokens[0]).tolist() == [3 * 6 + 2]


def test_constant_dimension_keeps_its_value_without_nan():
    low, high = np.full(6, -1.0), np.full(6, 1.0)
    low[4] = high[4] = 0.3
    tok = ActionTokenizer(SPACE, low, high, 768)
    tokens = tok.encode(np.random.default_rng(0).normal(size=(20, 6)), STILL).reshape(20, 6)
    assert (tokens[:, 4] == 768).all() and not tok.moves[4]
    np.testing.assert_allclose(tok.decode(tokens.ravel(), STILL)[:, 4], 0.3)


@pytest.mark.parametrize("token", [767, 1024, 0])
def test_token_that_is_no_action_is_named(token):
    tokens = np.full(120, 800)
    tokens[6 * 2 + 1] = token
    with pytest.raises(ActionError, match=f"token {token} at step 2, dimension 1"):
        tokenizer().decode(tokens, STILL)


def test_motion_of_another_layout_or_length_is_refused():
    other = Layout((("expr", 2), ("jaw", 1), ("rot", 3)), 25, "flame2020")
    with pytest.raises(LayoutError, match="unlike layouts"):
        tokenizer().to_tokens(Motion(np.zeros((100, 6)), other), STILL)
    with pytest.raises(LayoutError, match="99"):
        tokenizer().to_tokens(Motion(np.zeros((99, 6)), LAYOUT), STILL)


def test_a_smile_has_the_same_tokens_on_every_face():
    tok = tokenizer()
    rng = np.random.default_rng(4)
    smile = tok.decode(rng.integers(768, 1024, 120), STILL)  # knots at the centres of their bins
    faces = rng.normal(0, 5, (2, 6))
    one, other = (SPACE.to_motion(face + smile) for face in faces)
    tokens = tok.to_tokens(one, faces[0])
    np.testing.assert_array_equal(tokens, tok.to_tokens(other, faces[1]))
    assert (tokens != tok.to_tokens(one, faces[1])).any(), "or the face did not count"
    moved = tok.to_motion(tokens, faces[1]).values - tok.to_motion(tokens, faces[0]).values
    np.testing.assert_allclose(moved, np.broadcast_to(faces[1] - faces[0], moved.shape), atol=1e-5)
    np.testing.assert_allclose(tok.to_motion(tokens, faces[0]).values, one.values, atol=1e-5)


def test_a_face_at_rest_that_is_none_is_refused():
    for rest in (np.zeros(5), np.full(6, np.nan)):
        with pytest.raises(ActionError, match="a face at rest must be"):
            ActionTokenizer(SPACE, np.full(6, -1.0), np.ones(6), 768, rest=rest)


def test_bounds_are_the_percentiles_and_do_not_depend_on_how_the_corpus_is_cut():
    rows = np.random.default_rng(2).normal(size=(2000, 6)).astype(np.float32)
    low, high = fit_bounds(np.split(rows, 100))
    np.testing.assert_allclose(low, np.percentile(rows.astype(float), 1, axis=0))
    np.testing.assert_allclose(high, np.percentile(rows.astype(float), 99, axis=0))
    assert (np.array(fit_bounds(iter(np.split(rows, 4)))) == [low, high]).all()


def test_bounds_of_a_long_corpus_come_from_a_uniform_sample_of_all_of_it():
    parts = [np.full((50, 6), i / 200, dtype=np.float32) for i in range(200)]  # drifts from 0 to 1
    low, high = fit_bounds(iter(parts), tail=10, max_rows=1000)
    np.testing.assert_allclose([low[0], high[0]], [0.1, 0.9], atol=0.03)
    assert (np.array(fit_bounds(iter(parts), tail=10, max_rows=1000)) == [low, high]).all()


def test_empty_or_broken_corpus_is_refused():
    with pytest.raises(ActionError, match="empty"):
        fit_bounds([])
    with pytest.raises(ActionError, match="NaN"):
        fit_bounds([np.full((3, 6), np.nan)])


def test_file_round_trip_and_digest(tmp_path):
    low, high = fit_bounds([np.random.default_rng(3).normal(size=(50, 6))])
    tok = ActionTokenizer(SPACE, low, high, 768, rest=np.linspace(-0.3, 0.4, 6))
    tok.save(tmp_path)
    again = ActionTokenizer.load(tmp_path)
    assert again.digest == tok.digest and again.space == tok.space
    assert (again.low == tok.low).all() and (again.high == tok.high).all()
    np.testing.assert_array_equal(again.rest, np.linspace(-0.3, 0.4, 6))
    assert ActionTokenizer(SPACE, low, high + 1e-9, 768, rest=tok.rest).digest != tok.digest
    assert ActionTokenizer(SPACE, low, high, 768).digest != tok.digest


def test_folder_without_description_says_so(tmp_path):
    with pytest.raises(ActionError, match=r"action_space\.json"):
        ActionTokenizer.load(tmp_path)
