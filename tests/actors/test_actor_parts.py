"""What actors compute, with none started: motion on other heads, seeds, batches, the canary."""

from dataclasses import replace

import numpy as np
import pytest

from rapport.actors.cluster import worker_environment
from rapport.actors.fleet import _requests
from rapport.actors.rater import Viewer
from rapport.policies.head.asset import load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.settings import HeadConfig
from rapport.policies.head.video import on_this_head
from rapport.policies.motion import Layout, Motion
from rapport.policies.vla.policy import TokenSampler, VlaPolicy, prompt_seed
from rapport.rewards.ratings.simulated import SimulatedPanel
from rapport.rewards.ratings.speaker_cues import SpeakerCues


def motion(topology, groups=(("expr", 4), ("rot", 3), ("jaw", 3)), frames=50):
    layout = Layout(groups, 25, topology)
    return Motion(0.1 * np.random.default_rng(0).normal(size=(frames, layout.dim)), layout)


def test_motion_of_this_head_is_shown_as_it_is():
    own = motion("builtin")
    shown, whole = on_this_head(own, load_head())
    assert whole and shown is own


def test_of_another_head_only_the_pose_is_shown():
    asset, foreign = load_head(), motion("flame2020")
    shown, whole = on_this_head(foreign, asset)
    assert not whole and shown.layout.topology == "builtin" and shown.layout.fps == 25
    np.testing.assert_array_equal(shown.group("rot"), foreign.group("rot"))
    np.testing.assert_array_equal(shown.group("jaw"), foreign.group("jaw"))
    assert not shown.group("expr").any()
    assert np.isfinite(FlameHead(asset).vertices_of(shown)).all()
    neck, _ = on_this_head(motion("flame2020", (("expr", 4), ("neck", 3))), asset)
    assert neck.layout.names == ("expr", "neck")


def test_a_foreign_face_is_not_judged_by_coefficients_that_mean_nothing_here():
    viewer = Viewer(HeadConfig())
    assert viewer(motion("builtin")).expression is not None
    foreign = motion("flame2020")
    seen = viewer(foreign)
    assert seen.expression is None and seen.fps == 25
    np.testing.assert_array_equal(seen.head, foreign.group("rot"))
    other = viewer(motion("flame2020", (("expr", 4), ("neck", 3))))
    assert other.head.shape == (50, 3)
    ratings = SimulatedPanel(3, 0, {"joy": 1.0}).rate(
        "p", SpeakerCues(None, None, None), {"c": seen}
    )
    assert len(ratings) == 3
    for rating in ratings:
        assert rating.empathy is None and rating.appropriateness is None
        assert 1 <= rating.engagement <= 5 and 1 <= rating.naturalness <= 5


def test_a_seed_belongs_to_the_prompt_whatever_stands_beside_it():
    ids = [f"clip-{i}" for i in range(200)]
    seeds = {i: prompt_seed(7, i) for i in ids}
    assert len(set(seeds.values())) == 200 and all(0 <= s < 2**32 for s in seeds.values())
    assert [prompt_seed(7, i) for i in reversed(ids)] == [seeds[i] for i in reversed(ids)]
    assert prompt_seed(8, "clip-0") != seeds["clip-0"]
    # crc32 of "7/clip-0" by gzip: the same in every process and release.
    assert prompt_seed(7, "clip-0") == 357667162


def test_batches_hold_every_prompt_once_and_are_made_when_asked_for():
    def batches(items, size):
        return [list(r.prompts) for r in _requests(iter(items), 1, iter(range(len(items))), size)]

    assert batches("abcde", 2) == [["a", "b"], ["c", "d"], ["e"]]
    assert batches("", 2) == [] and batches("ab", 2) == [["a", "b"]]
    pulled = []
    source = (pulled.append(i) or i for i in range(100))
    first = next(_requests(source, 4, iter(range(100)), 3))
    assert pulled == [0, 1, 2] and (first.seeds, first.samples) == ([0, 1, 2], 4)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("has_frames", [True, False])
def test_the_canarys_gap_is_the_largest_difference(
    tiny_corpus, tiny_checkpoint, temperature, has_frames
):
    policy = VlaPolicy.load(tiny_checkpoint)
    policy.sampler = TokenSampler(temperature)
    prompt = policy.encode(tiny_corpus.at("train", 0))
    if not has_frames:
        prompt = policy.encode(replace(tiny_corpus.at("train", 0), speaker_frames=None))
    [[exact]] = policy.sample([prompt], 1, [0])
    assert policy.log_prob_gaps(prompt, exact).max() < 1e-4
    off = exact.log_probs.copy()
    off[17] += 0.25
    other = replace(exact, log_probs=off)
    assert policy.log_prob_gaps(prompt, other).max() == pytest.approx(0.25, abs=1e-3)
    off[3] = np.nan
    assert np.isnan(policy.log_prob_gaps(prompt, other).max())


def test_without_a_share_of_a_gpu_a_process_sees_none():
    hidden = worker_environment(2)
    assert hidden["CUDA_VISIBLE_DEVICES"] == "" and hidden["DS_ACCELERATOR"] == "cpu"
    shown = worker_environment(2, gpus=0.5)
    assert not {"CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"} & shown.keys(), "Ray says which"
