"""The learning tasks of ReactFace without Ray: imitation, pairs, rewards."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from rapport.pipeline.data.store import load_appropriate
from rapport.pipeline.data.synthetic.generate import Design, generate_corpus
from rapport.pipeline.objectives.dpo import Dpo, pair_schema
from rapport.pipeline.objectives.gdpo import Gdpo
from rapport.pipeline.objectives.reactface import EXAMPLE_COLUMNS, Expecting, Reacting
from rapport.pipeline.objectives.settings import GdpoConfig, ReactFaceDpoConfig, ReactFaceTraining
from rapport.pipeline.rundir import RunError
from rapport.pipeline.settings import DpoOfReactFace
from rapport.pipeline.steps import imitation_reactface
from rapport.pipeline.steps.alignment import sampled_by
from rapport.pipeline.steps.imitation import require_pictures
from rapport.pipeline.steps.imitation_reactface import (
    example_rows,
    explained,
    fitting_clips,
    pictures_a_second,
    sizes_of,
)
from rapport.pipeline.steps.learning import Imitated
from rapport.pipeline.steps.rewarding import scenes_of
from rapport.policies.policy import load_policy
from rapport.policies.reactface.model import Read
from rapport.policies.reactface.policy import ReactFacePolicy
from rapport.policies.tables import read_table, write_table
from rapport.rewards.settings import GroupWeightsConfig, RewardConfig
from tests.pipeline.descent import descend
from tests.pipeline.iterations import LocalFleet, experience_of
from tests.small_reactface import small_reactface

ASSIGNS = ("nearest", "recorded", "random", "cover")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three listen to each of 12 speakers."""
    folder = tmp_path_factory.mktemp("corpus") / "three"
    design = Design(seconds=1, past=0, listeners=3, frames=0)
    return generate_corpus(folder, 12, 2, 2, design=design, workers=0)


def imitation(corpus, folder, task=Reacting, part="all", **keys):
    config = ReactFaceTraining(**{"steps": 4, "batch_size": 4, "heard": 6, "span": 2} | keys)
    clips = list(corpus.clips("train"))
    sizes = replace(sizes_of(config, corpus.layout), hidden=32, latent=4, layers=1)
    policy = ReactFacePolicy.untrained(corpus.layout, clips, 0, sizes)
    policy.save(folder / "initial")
    rows = example_rows(policy, corpus, fitting_clips(corpus, config))
    table = folder / "examples.arrow"
    write_table(table, rows, pa.schema(dict(policy.prompt_columns) | EXAMPLE_COLUMNS))
    return task(folder / "initial", table, config, seed=0, part=part)


def learns(module):
    """Parts that get a gradient."""
    named = module.named_parameters()
    return {name.partition(".")[0] for name, p in named if p.grad is not None and p.grad.any()}


def test_it_learns_to_listen_and_then_to_react(corpus, tmp_path):
    """What listens is taught by what is expected and L_s; whatever is drawn leaves it alone."""
    task = imitation(corpus, tmp_path, Expecting, "listening")
    loss, parts = task.loss(task.module(), task.batch(0, 0, 1))
    assert (task.steps, set(parts)) == (400, {"expect", "speaker"})
    torch.testing.assert_close(loss.detach(), parts["expect"] + parts["speaker"])
    loss.backward()
    listens = {"see", "hear", "align", "speaker_head", "expectation"}
    assert learns(task.module()) == listens
    every = {name.partition(".")[0] for name, _ in task.module().named_parameters()}
    then = imitation(corpus, tmp_path, part="reacting")
    loss, parts = then.loss(then.module(), then.batch(0, 0, 1))
    assert (then.steps, set(parts)) == (4, {"appropriate", "kl", "smooth", "diversity"})
    loss.backward()
    assert learns(then.module()) == every - listens


@pytest.mark.parametrize(("delay", "shown"), [("w", 0), (0, 8)])
def test_what_is_expected_is_the_mean_of_those_who_fit(corpus, tmp_path, delay, shown):
    """Of all of them, a second around each frame that is not shown yet."""
    task = imitation(corpus, tmp_path, Expecting, absent=0.0, delay=delay)
    module = task.module()
    batch = task.batch(0, 0, 1)
    with torch.no_grad():
        module.expectation.path.weight.zero_()
        module.expectation.path.bias.zero_()
        _, parts = task.loss(module, batch)
    errors = []
    for labels, there in zip(module.listener(batch["labels"]), batch["there"], strict=True):
        mean = labels[there].mean(0).numpy()[shown:]
        path = [mean[max(0, n - 12) : n + 13].mean(0) for n in range(len(mean))]
        groups = [np.square(path)[:, corpus.layout.columns(name)] for name in corpus.layout.names]
        errors.append(np.mean([group.mean() for group in groups]))
    assert parts["expect"].item() == pytest.approx(np.mean(errors), rel=1e-4)


@pytest.mark.parametrize(("delay", "shown"), [("w", 0), (0, 8)])
def test_of_unseen_listeners_it_is_said_what_is_expected(corpus, tmp_path, delay, shown):
    """All of it by who knows them, nothing by a constant, and by their opposites less."""
    policy = imitation(corpus, tmp_path, Expecting, delay=delay).policy
    fitting = fitting_clips(corpus, ReactFaceTraining(), "validation")
    listeners = dict(corpus.listeners("validation"))
    known = []
    for names in fitting.values():
        mean = np.mean([listeners[name].values for name in names], axis=0)[shown:]
        path = np.stack([mean[max(0, n - 12) : n + 13].mean(0) for n in range(len(mean))])
        known.append(policy.model.listener(torch.from_numpy(path)))

    def said(factor):
        paths = iter(known)
        policy.model.read = lambda scene: Read(None, factor * next(paths)[None])
        return explained(policy, corpus, "validation", fitting)

    assert set(said(1)) <= set(corpus.layout.names) and "expr" in said(1)
    for factor, share in ((1, 1.0), (0, 0.0), (-1, -3.0)):
        assert said(factor) == pytest.approx(dict.fromkeys(said(1), share), abs=1e-4)


@pytest.mark.parametrize(("spread", "weight"), [("energy", 1.0), ("paper", 0.3)])
@pytest.mark.parametrize("assign", ASSIGNS)
def test_as_in_the_paper_every_part_learns_at_once(corpus, tmp_path, assign, spread, weight):
    task = imitation(corpus, tmp_path, assign=assign, spread=spread, listening=0)
    module = task.module()
    assert module.expectation is None
    loss, parts = task.loss(module, task.batch(0, 0, 1))
    weights = {"appropriate": 1.0, "kl": 1e-3, "smooth": 1.0, "diversity": weight, "speaker": 1.0}
    assert set(parts) == set(weights)
    expected = sum(factor * parts[name] for name, factor in weights.items())
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())


def test_whose_face_pictures_show_is_told_by_its_motion(tmp_path):
    """L_s teaches to look: its label is the tracked face, which is not among what is seen."""
    design = Design(seconds=1, past=0, listeners=1, frames=4, image_size=24)
    filmed = generate_corpus(tmp_path / "filmed", 8, 2, 2, design=design, workers=0)
    task = imitation(filmed, tmp_path, Expecting, "listening", sees="frames", absent=0.0)
    module = task.module()
    batch = task.batch(0, 0, 1)
    clips = {clip.clip_id: clip for clip in filmed.clips("train")}
    rows = [task.rows[index] for index in task.share(0, 0, 1, 6)]
    for row, motion, told in zip(rows, batch["motion"], batch["told"], strict=True):
        expected = torch.from_numpy(clips[row["prompt_id"]].speaker.values)
        assert row["motion"] is None and told
        torch.testing.assert_close(motion[: len(expected)], expected)
    loss, parts = task.loss(module, batch)
    loss.backward()
    assert "sight" in learns(module)
    blind = batch | {"told": torch.zeros_like(batch["told"])}
    assert task.loss(module, blind)[1]["speaker"] == 0 < parts["speaker"]


@pytest.mark.parametrize("synchronise", ["face", "voice", "none"])
def test_without_vim_or_mim_all_that_is_left_learns(corpus, tmp_path, synchronise):
    task = imitation(corpus, tmp_path, synchronise=synchronise, listening=0)
    module = task.module()
    loss, _ = task.loss(module, task.batch(0, 0, 1))
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())


@pytest.mark.parametrize(("task", "part"), [(Expecting, "listening"), (Reacting, "reacting")])
def test_a_few_steps_lower_the_loss(corpus, tmp_path, task, part):
    task = imitation(corpus, tmp_path, task, part, spread="paper", diversity=0.0, absent=0.0)
    losses, _ = descend(task, task.module(), [0] * 12, rate=3e-3)
    assert losses[-1] < 0.7 * losses[0]


def test_labels_are_the_listeners_that_fit(corpus, tmp_path):
    appropriate = load_appropriate(corpus.path)
    listeners = dict(corpus.listeners("train"))
    task = imitation(corpus, tmp_path, assign="nearest", batch_size=36)
    rows = [task.rows[index] for index in task.share(0, 0, 1)]
    batch = task.batch(0, 0, 1)
    several = 0
    for row, labels, there in zip(rows, batch["labels"], batch["there"], strict=True):
        clip_id = row["prompt_id"]
        expected = appropriate[clip_id] or [clip_id]  # where nobody fits, its own
        found = {label.numpy().tobytes() for label in labels[there]}
        assert found == {listeners[name].values.tobytes() for name in expected}
        several += len(expected) > 1
    assert several
    own = imitation(corpus, tmp_path, assign="recorded").batch(0, 0, 1)
    assert own["labels"].shape[:2] == (4, 1) and own["there"].all()


def test_learners_share_a_batch(corpus, tmp_path):
    """Two of them see what one sees; a stream is lost, never both."""
    for kind, names in ((Expecting, ()), (Reacting, ("noise", "picked"))):
        keys = {"assign": "random", "batch_size": 36, "heard": 36, "absent": 0.9}
        task = imitation(corpus, tmp_path / kind.__name__, kind, **keys)
        whole = task.batch(1, 0, 1)
        parts = [task.batch(1, rank, 2) for rank in range(2)]
        for name in ("motion", "present", "told", "labels", "there", *names):
            together = torch.stack([part[name] for part in parts], dim=1).flatten(0, 1)
            torch.testing.assert_close(together, whole[name])
        assert whole["present"].any(1).all() and not whole["present"].all()


def test_a_policy_that_sees_pictures_needs_some(corpus, tiny_corpus, tmp_path):
    """About as many a second as it was trained on."""
    assert (pictures_a_second(tiny_corpus), pictures_a_second(corpus)) == (1, 0)
    splits = ["validation", "test"]
    for rate, has, says in (
        (5.0, corpus, "validation of .* has none: prepare it with corpus.frames=5"),
        (0.0, corpus, "corpus.frames=5"),
        (0.5, tiny_corpus, "0.5 a second, .* has 1 a second: .* corpus.frames=0.5"),
    ):
        sees = small_reactface(sees="frames", pixels=16, rate=rate)
        with pytest.raises(RunError, match=says):
            require_pictures(sees, has, splits, tmp_path)
    for rate in (0.0, 1.0, 5.0):
        sees = small_reactface(sees="frames", pixels=16, rate=rate)
        require_pictures(sees, tiny_corpus, splits, tmp_path)
    require_pictures(small_reactface(), corpus, splits, tmp_path)


def test_where_a_corpus_names_nobody_each_clips_own_listener_fits(tiny_corpus, monkeypatch):
    """It names the clip alone, or, as those who know the hidden truth do, nobody at all."""
    ids = list(tiny_corpus.clip_ids("train"))
    for found in (imitation_reactface.named, lambda *_: {clip_id: [] for clip_id in ids}):
        monkeypatch.setattr(imitation_reactface, "named", found)
        for assign in ASSIGNS:
            fitting = fitting_clips(tiny_corpus, ReactFaceTraining(assign=assign))
            assert fitting == {clip_id: [clip_id] for clip_id in ids}


def test_pairs_are_of_samples():
    assert DpoOfReactFace().dpo.contrast_of == "sampled"
    with pytest.raises(ValidationError, match="contrast_of"):
        ReactFaceDpoConfig(contrast_of="recorded")


def test_dpo_prefers_what_was_chosen(corpus, tmp_path, alone):
    initial = imitation(corpus, tmp_path).policy
    folder = tmp_path / "initial"
    clips = [corpus.at("train", 3 * n) for n in range(4)]
    prompts = [initial.encode(clip) for clip in clips]
    groups = initial.sample(prompts, 2, [1, 2, 3, 4])
    rows = (
        initial.prompt_row(prompt)
        | {"chosen": initial.pack(group[0].actions), "rejected": initial.pack(group[1].actions)}
        | {"chosen_score": 0.9, "rejected_score": 0.1, "made_for": None}
        for prompt, group in zip(prompts, groups, strict=True)
    )
    table = tmp_path / "pairs.arrow"
    write_table(table, rows, pair_schema(initial))
    config = ReactFaceDpoConfig(batch_size=4)
    file = tmp_path / "reference.parquet"
    task = Dpo(folder, folder, table, config, 0, file)
    module = task.module()
    task.prepare(module, 0, 1)
    actions = len(groups[0][0].log_probs)
    chosen = torch.tensor([group[0].log_probs.sum() for group in groups])
    torch.testing.assert_close(task.reference_log_likelihoods[:, 0], chosen, atol=1e-3, rtol=1e-4)
    losses, _ = descend(task, module, [0] * 4, rate=1e-3)
    assert losses[0] == pytest.approx(np.log(2), abs=1e-4), "policy and reference are one"
    assert losses[-1] < losses[0] - 0.01
    # What is said of an action is said of a window, whatever numbers it is made of.
    weighed = Dpo(folder, folder, table, ReactFaceDpoConfig(batch_size=4, chosen_nll=1.0), 0, file)
    module = weighed.module()
    weighed.prepare(module, 0, 1)
    _, metrics = weighed.loss(module, weighed.batch(0, 0, 1))
    assert metrics["chosen_nll"].item() == pytest.approx(-chosen.mean().item() / actions, rel=1e-3)


def test_on_policy_the_ratio_is_exactly_1(corpus, tmp_path):
    imitation(corpus, tmp_path)
    folder = tmp_path / "initial"
    settings = GdpoConfig(iterations=2, sync_every=2, batch_size=2, group_size=3)
    recipe = SimpleNamespace(
        gdpo=settings, seed=3, reward=RewardConfig(), groups=GroupWeightsConfig()
    )
    step = SimpleNamespace(directory=tmp_path, say=lambda text: None)
    task = Gdpo(folder, tmp_path / "scenes.arrow", settings, 3, None)
    task.recipe = recipe
    task.scenes = scenes_of(step, recipe, Imitated(corpus, folder))
    module = task.module()
    with sampled_by(LocalFleet(load_policy(folder), None), task.scenes, recipe) as roll_out:
        groups = roll_out(module.state_dict(), 0)
    task.refresh(module, experience_of(task, groups, 0).data, 0, 1)
    loss, parts = task.loss(module, task.batch(0, 0, 1))
    assert parts["ratio"] == 1 and parts["kl/reference"] == 0
    row = task.replay[0]
    windows = 4  # of 25 frames
    assert row["old"].shape == row["advantages"].shape == (3, windows)
    torch.testing.assert_close(row["old"], row["engine"], atol=1e-3, rtol=1e-4)
    loss.backward()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    _, parts = task.loss(module, task.batch(0, 0, 1))
    assert parts["ratio"] != 1 and parts["kl/reference"] > 0
    assert len(read_table(task.scenes.table)) == 36
