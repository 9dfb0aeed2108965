"""The learning tasks without Ray: batches, losses and reference log-probs are as in the paper."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rapport.pipeline.data.vla import examples
from rapport.pipeline.objectives.dpo import (
    Dpo,
    ReferenceMismatch,
    pair_schema,
    read_reference,
    write_reference,
)
from rapport.pipeline.objectives.imitation import Imitation
from rapport.pipeline.objectives.settings import ImitationConfig, SftConfig, VlaDpoConfig
from rapport.pipeline.objectives.sft import Sft
from rapport.policies.tables import batch_rows, read_table, write_table
from rapport.policies.vla.loading import load_checkpoint
from rapport.policies.vla.loss import sft_loss
from rapport.policies.vla.policy import VlaPolicy
from rapport.policies.vla.sequence import seen_in, seen_of
from rapport.policies.vla.settings import VlaConfig
from rapport.policies.vla.training import IMITATION_SCHEMA, SFT_SCHEMA, prompt_of_row

DIMS, STEPS = 9, 5  # of the tiny policy, whose chunks are single steps and contexts 3 chunks
POSE = slice(3, 6)  # of an action, behind the expression and before the jaw
HEAD, OBSERVATION = 14, 6


@pytest.fixture(scope="module")
def sft_table(tiny_corpus, tiny_checkpoint, tmp_path_factory):
    file = tmp_path_factory.mktemp("sft") / "examples.arrow"
    policy = VlaPolicy.load(tiny_checkpoint)
    write_table(file, examples(tiny_corpus.clips("train"), policy), SFT_SCHEMA)
    return file


def pair_rows(corpus, checkpoint, seed=0):
    policy, rng = VlaPolicy.load(checkpoint), np.random.default_rng(seed)
    for i, clip in enumerate(corpus.clips("train")):
        chosen, rejected = 344 + rng.integers(0, 256, (2, DIMS * STEPS))
        yield policy.prompt_row(policy.encode(clip)) | {
            "chosen": chosen.tolist(),
            "rejected": rejected.tolist(),
            "chosen_score": 0.5 + 0.05 * i,
            "rejected_score": 0.25,
        }


@pytest.fixture(scope="module")
def pair_table(tiny_corpus, tiny_checkpoint, tmp_path_factory):
    file = tmp_path_factory.mktemp("pairs") / "pairs.arrow"
    write_table(file, pair_rows(tiny_corpus, tiny_checkpoint), pair_schema(VlaPolicy))
    return file


def sft_task(checkpoint, table, **keys):
    return Sft(checkpoint, table, SftConfig(steps=10, batch_size=2, **keys), 3, VlaConfig())


def dpo_task(checkpoint, table, folder, reference=None, **keys):
    config = VlaDpoConfig(**{"batch_size": 4, "epochs": 3, "contrast": 0, "chosen_nll": 0} | keys)
    return Dpo(
        checkpoint,
        reference or checkpoint,
        table,
        config,
        3,
        Path(folder) / "reference.parquet",
        VlaConfig(),
    )


def test_whole_contexts_come_after_the_windows(tiny_checkpoint, sft_table):
    task = sft_task(tiny_checkpoint, sft_table, window_steps=2, window_share=0.6)
    whole = HEAD + 3 * (OBSERVATION + DIMS)
    for step in range(10):
        batch = task.batch(step, rank=0, world_size=1)
        if step < 6:  # 60 % of 10 steps: 2 action steps, more rows where they are short
            rows = 2 * (whole // (HEAD + OBSERVATION + 2 * DIMS))
            assert batch["actions"].shape == batch["inputs"].shape == (rows, 18)
        else:
            assert batch["actions"].shape == (2, 27)


def test_a_row_is_a_context_that_begins_with_some_chunk(tiny_checkpoint, sft_table):
    keys = {"window_steps": 2, "window_share": 0.9, "absent": 0.0, "forget": 0.0, "lively": 0.0}
    task = sft_task(tiny_checkpoint, sft_table, **keys)
    sizes = task.policy.model.config
    starts = set()
    for step in range(9):
        batch = task.batch(step, 0, 1)
        rows = batch_rows(step, len(batch["own"]), 8, seed=3)
        drawn = task.draws(step, len(batch["own"]), 18).starts
        starts |= set(drawn.tolist())
        assert torch.equal(batch["inputs"], batch["actions"])
        for place, (row, start) in enumerate(zip(rows, drawn, strict=True)):
            example = task.rows[int(row)]
            whole = example["actions"]
            assert batch["actions"][place].tolist() == whole[start * DIMS : (start + 2) * DIMS]
            own = whole[(start - 1) * DIMS : start * DIMS][POSE] if start else example["own"]
            assert batch["own"][place].tolist() == own
            prompt = prompt_of_row(example, sizes)
            for name, length in (("present", 4), ("frames", 4), ("voice", 4), ("said", 2)):
                wanted = getattr(prompt, name)[start : start + length]
                np.testing.assert_array_equal(batch[name][place], wanted)
    assert starts == {0, 1, 2, 3}


def test_streams_are_absent_and_the_past_forgotten_in_the_shares_asked_for(
    tiny_checkpoint, sft_table
):
    task = sft_task(tiny_checkpoint, sft_table, absent=0.4, forget=0.5)
    draws = task.draws(0, 4000, 18)
    for rows in draws.absent.values():
        assert abs(rows.mean() - 0.4) < 0.04
    share = draws.forgotten.mean(axis=1)
    assert abs((share == 1).mean() - 0.5) < 0.04 and abs((share == 0).mean() - 0.25) < 0.04
    half = share[(share > 0) & (share < 1)]
    assert abs(half.mean() - 0.5) < 0.02
    blank = task.policy.model.config.blank_token_id
    batch = sft_task(tiny_checkpoint, sft_table, absent=0.0, forget=0.66).batch(0, 0, 1)
    forgotten = batch["inputs"] == blank
    assert forgotten.all(dim=1).any()
    absent = task.policy.model.config.absent_token_id
    assert (batch["own"] == absent).all(dim=1)[forgotten.all(dim=1)].all()
    assert (batch["actions"] >= 344).all(), "what is to be said stays"


def test_windows_in_which_a_face_is_far_from_rest_are_drawn_more_often(tiny_checkpoint, sft_table):
    task = sft_task(tiny_checkpoint, sft_table, window_steps=1, lively=2.0)
    draws = task.draws(0, 20_000, DIMS, lively=2.0)
    found = np.zeros((8, STEPS))
    np.add.at(found, (draws.rows, draws.starts), 1 / 20_000)
    moves = np.array(task.rows["moves"])
    bins = task.policy.actions
    still = 344 + np.floor(bins.bins * -bins.low / (bins.high - bins.low))
    face = np.delete(np.arange(DIMS), POSE)
    for row, example in enumerate(task.rows):  # a chunk is one action here
        actions = np.array(example["actions"]).reshape(STEPS, DIMS)
        far = np.abs(actions - still)[:, face].mean(axis=1)
        np.testing.assert_allclose(moves[row], far, rtol=1e-6)
    wanted = (moves + 1.0) ** 2
    assert np.abs(found - wanted / wanted.sum()).max() < 0.01
    even = task.draws(0, 8, DIMS)
    assert sorted(even.rows) == list(range(8)), "without, every row comes once in an epoch"


def test_windows_are_those_that_are_drawn_and_whole_contexts_come_as_they_are(
    tiny_checkpoint, sft_table
):
    task = sft_task(tiny_checkpoint, sft_table, window_steps=1, lively=2.0)
    unlike = 0
    for step in range(10):
        actions = task.batch(step, 0, 1)["actions"]
        windows = step < 7
        drawn = task.draws(step, len(actions), actions.shape[1], lively=2.0 if windows else 0.0)
        epoch = batch_rows(step, len(actions), 8, seed=3)
        for place, (row, start) in enumerate(zip(drawn.rows, drawn.starts, strict=True)):
            first = start * DIMS
            wanted = task.rows[int(row)]["actions"][first : first + actions.shape[1]]
            assert actions[place].tolist() == wanted
        unlike += windows and list(drawn.rows) != list(epoch)
        assert windows or list(drawn.rows) == list(epoch)
    assert unlike > 3


def test_whole_contexts_need_nothing_but_actions(tiny_checkpoint, sft_table, tmp_path):
    rows = [{name: row[name] for name in IMITATION_SCHEMA.names} for row in read_table(sft_table)]
    write_table(tmp_path / "actions.arrow", rows, IMITATION_SCHEMA)
    table = tmp_path / "actions.arrow"
    found = sft_task(tiny_checkpoint, table, window_share=0.0).batch(0, 0, 1)
    wanted = sft_task(tiny_checkpoint, sft_table, window_share=0.0).batch(0, 0, 1)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_batch_is_a_function_of_its_step_and_ranks_share_it(tiny_checkpoint, sft_table):
    whole = sft_task(tiny_checkpoint, sft_table).batch(1, 0, 1)
    again = sft_task(tiny_checkpoint, sft_table).batch(1, 0, 1)
    shares = [sft_task(tiny_checkpoint, sft_table).batch(1, rank, 2) for rank in range(2)]
    for name, values in whole.items():
        assert torch.equal(values, again[name])
        for rank, share in enumerate(shares):
            assert torch.equal(values[rank::2], share[name])


def test_windows_are_no_longer_than_a_context(tiny_checkpoint, sft_table):
    batch = sft_task(tiny_checkpoint, sft_table, window_steps=99, window_share=0.9).batch(0, 0, 1)
    assert batch["actions"].shape == (2, 27)


def test_the_sft_loss_is_that_of_the_rows(tiny_checkpoint, sft_table):
    task = sft_task(tiny_checkpoint, sft_table, lambda_exp=2.0, lambda_pose=0.5, lambda_reg=0.25)
    module, batch = task.module(), task.batch(0, 0, 1)
    with torch.no_grad():
        loss, parts = task.loss(module, batch)
        logits = module(seen_in(batch), batch["actions"], batch["inputs"])
        wanted, _ = sft_loss(logits, batch["actions"], task.policy.actions, 2.0, 0.5, 0.25)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    parts = {name: value.item() for name, value in parts.items()}
    assert loss.item() == pytest.approx(
        2.0 * parts["ce_expression"]
        + 0.5 * parts["ce_pose"]
        + 0.25 * (parts["temporal"] + parts["identity"]),
        rel=1e-5,
    )


def test_dpo_starts_at_log_2_with_no_reward(tiny_checkpoint, pair_table, tmp_path, alone):
    task = dpo_task(tiny_checkpoint, pair_table, tmp_path)
    module = task.module().eval()
    task.prepare(module, 0, 1)
    assert task.steps == 3 * 8 // 4
    with torch.no_grad():
        loss, metrics = task.loss(module, task.batch(0, 0, 1))
    assert loss.item() == pytest.approx(np.log(2), abs=1e-3)
    assert abs(metrics["margin"].item()) < 1e-3


def test_reference_log_probs_are_the_summed_ones_of_the_policy(
    tiny_checkpoint, pair_table, tmp_path, alone
):
    task = dpo_task(tiny_checkpoint, pair_table, tmp_path)
    task.prepare(task.module().eval(), 0, 1)
    policy = load_checkpoint(tiny_checkpoint).model
    row = task.rows[2]
    seen = seen_of(policy.config, [prompt_of_row(row, policy.config)])
    for column, name in enumerate(("chosen", "rejected")):
        with torch.no_grad():
            wanted = policy.action_log_probs(seen, torch.tensor([row[name]])).sum()
        assert task.reference_log_likelihoods[2, column].item() == pytest.approx(
            wanted.item(), abs=1e-3
        )


def test_a_later_round_may_be_tied_to_an_earlier_policy(
    tiny_checkpoint, other_checkpoint, pair_table, tmp_path, alone
):
    """The engine holds the policy the round began with; the reference is another one."""
    task = dpo_task(other_checkpoint, pair_table, tmp_path, reference=tiny_checkpoint)
    task.prepare(task.module().eval(), 0, 1)
    first = dpo_task(tiny_checkpoint, pair_table, tmp_path / "first")
    (tmp_path / "first").mkdir()
    first.prepare(first.module().eval(), 0, 1)
    torch.testing.assert_close(task.reference_log_likelihoods, first.reference_log_likelihoods)
    assert task.key == first.key
    moved = dpo_task(other_checkpoint, pair_table, tmp_path)
    with pytest.raises(ReferenceMismatch, match="other weights"):
        moved.prepare(moved.module(), 0, 1)


def test_a_batch_of_pairs_carries_its_own_references_and_margins(
    tiny_checkpoint, pair_table, tmp_path
):
    task = dpo_task(tiny_checkpoint, pair_table, tmp_path, loss="margin")
    task.reference_log_likelihoods = torch.arange(16.0).reshape(8, 2)
    rows = batch_rows(1, 4, 8, seed=3, together=2)
    batch = task.batch(1, rank=1, world_size=2)
    assert batch["reference"].tolist() == [[2.0 * r, 2.0 * r + 1] for r in rows[1::2]]
    torch.testing.assert_close(
        batch["margin"], torch.tensor([0.25 + 0.05 * r for r in rows[1::2]]).float()
    )
    assert batch["actions"].shape == (2, 2, 45)
    assert batch["actions"][0].tolist() == [
        task.rows[int(rows[1])][name] for name in ("chosen", "rejected")
    ]


def test_only_the_first_steps_count_where_the_config_says_so(
    tiny_checkpoint, pair_table, tmp_path, alone
):
    task = dpo_task(tiny_checkpoint, pair_table, tmp_path, first_steps=2)
    task.prepare(task.module().eval(), 0, 1)
    policy, row = load_checkpoint(tiny_checkpoint).model, task.rows[2]
    seen = seen_of(policy.config, [prompt_of_row(row, policy.config)])
    with (
        torch.no_grad()
    ):  # causal: what comes after does not change the first two steps of the whole reaction
        whole = policy.action_log_probs(seen, torch.tensor([row["chosen"]]))
    assert task.reference_log_likelihoods[2, 0].item() == pytest.approx(
        whole[0, : 2 * DIMS].sum().item(), abs=1e-3
    )
    assert task.batch(0, 0, 1)["actions"].shape == (4, 2, 2 * DIMS)
    everything = dpo_task(tiny_checkpoint, pair_table, tmp_path, first_steps=None)
    with pytest.raises(ReferenceMismatch, match="first_steps"):
        everything.prepare(everything.module(), 0, 1)


def test_training_the_inputs_leaves_the_language_model_as_it_was(
    tiny_checkpoint, pair_table, tmp_path
):
    task = dpo_task(tiny_checkpoint, pair_table, tmp_path, train="inputs")
    module = task.module()
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    for part in (
        ".vision.dino.",
        ".vision.siglip.",
        ".vision.projector.",
        ".embed_tokens.",
        ".slots.",
    ):
        assert any(part in name for name in trained), part
    assert not any(".layers." in name and "language_model" in name for name in trained)
    assert not any("lm_head" in name or "language_model.model.norm" in name for name in trained)
    everything = dpo_task(tiny_checkpoint, pair_table, tmp_path, train="all").module()
    assert all(p.requires_grad for p in everything.parameters())


def test_imitation_of_the_chosen_is_weighed_per_action(tiny_checkpoint, pair_table, tmp_path):
    """A module without an opinion gives each of 256 bins the same chance."""
    module = lambda seen, actions: torch.zeros(*actions.shape, 256)  # noqa: E731
    losses = []
    for weight in (0.0, 0.5):
        task = dpo_task(tiny_checkpoint, pair_table, tmp_path, chosen_nll=weight)
        task.reference_log_likelihoods = torch.full((8, 2), -45 * np.log(256))
        loss, metrics = task.loss(module, task.batch(0, 0, 1))
        losses.append(loss.item())
        assert metrics["chosen_nll"].item() == pytest.approx(np.log(256), rel=1e-5)
    assert losses == pytest.approx([np.log(2), np.log(2) + 0.5 * np.log(256)], rel=1e-5)


def test_pairs_without_scores_are_learnt_from(tiny_corpus, tiny_checkpoint, tmp_path):
    rows = [
        row | {"chosen_score": None, "rejected_score": None, "made_for": "another"}
        for row in pair_rows(tiny_corpus, tiny_checkpoint)
    ]
    file = tmp_path / "contrast.arrow"
    write_table(file, rows, pair_schema(VlaPolicy))
    task = dpo_task(tiny_checkpoint, file, tmp_path)
    task.reference_log_likelihoods = torch.zeros(8, 2)
    batch = task.batch(0, 0, 1)
    assert "margin" not in batch and batch["actions"].shape == (4, 2, 45)


def test_the_margin_loss_asks_for_more_than_the_sigmoid_one(tiny_checkpoint, pair_table, tmp_path):
    losses = {}
    for kind in ("sigmoid", "margin", "robust", "ipo"):
        task = dpo_task(
            tiny_checkpoint, pair_table, tmp_path, loss=kind, beta=0.5, label_smoothing=0.2
        )
        task.reference_log_likelihoods = torch.zeros(8, 2)
        batch = task.batch(0, 0, 1)
        module = lambda seen, actions: torch.zeros(*actions.shape, 256)  # noqa: E731 (D = 0)
        losses[kind] = task.loss(module, batch)[0].item()
        if kind == "margin":
            margins = batch["margin"].numpy()
    assert losses["sigmoid"] == pytest.approx(np.log(2))
    assert losses["robust"] == pytest.approx(np.log(2))  # no difference, nothing to turn round
    assert losses["margin"] == pytest.approx(np.log1p(np.exp(margins)).mean(), rel=1e-5)
    assert losses["ipo"] == pytest.approx(1.0)  # (0 - 1 / (2 * 0.5))^2


@pytest.mark.parametrize("what", ["weights", "actions", "pairs"])
def test_references_of_something_else_are_refused(tmp_path, what):
    key = {"weights": "a", "actions": "b", "pairs": "c"}
    file = tmp_path / "reference.parquet"
    write_reference(file, [[-1.0, -2.0], [-3.0, -4.0]], key)
    assert read_reference(file, key).tolist() == [[-1.0, -2.0], [-3.0, -4.0]]
    with pytest.raises(ReferenceMismatch, match=f"other {what}; delete it"):
        read_reference(file, key | {what: "x"})


def test_the_reference_key_knows_weights_and_pairs(
    tiny_corpus, tiny_checkpoint, other_checkpoint, pair_table, tmp_path
):
    key = dpo_task(tiny_checkpoint, pair_table, tmp_path).key
    assert key == dpo_task(tiny_checkpoint, pair_table, tmp_path / "elsewhere").key
    weights = dpo_task(other_checkpoint, pair_table, tmp_path).key
    assert {name for name in key if key[name] != weights[name]} == {"weights"}
    others = tmp_path / "pairs.arrow"
    write_table(
        others, pair_rows(tiny_corpus, tiny_checkpoint, seed=1), pair_schema(VlaPolicy)
    )  # as many, other reactions
    pairs = dpo_task(tiny_checkpoint, others, tmp_path).key
    assert {name for name in key if key[name] != pairs[name]} == {"pairs"}


def test_stored_references_are_used_and_checked(
    tiny_checkpoint, other_checkpoint, pair_table, tmp_path, alone
):
    task = dpo_task(tiny_checkpoint, pair_table, tmp_path)
    task.prepare(task.module().eval(), 0, 1)
    again = dpo_task(tiny_checkpoint, pair_table, tmp_path)
    again.prepare(None, 0, 1)  # no forward pass is needed
    assert torch.equal(again.reference_log_likelihoods, task.reference_log_likelihoods)
    with pytest.raises(ReferenceMismatch, match="other weights"):
        dpo_task(other_checkpoint, pair_table, tmp_path).prepare(None, 0, 1)


def test_lora_trains_adapters_only_and_saves_a_plain_checkpoint(
    tiny_checkpoint, sft_table, tmp_path
):
    config = VlaConfig(lora_rank=2, freeze_vision=True)
    task = Sft(tiny_checkpoint, sft_table, SftConfig(steps=2, batch_size=2), 0, config)
    module = task.module()
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    assert any("lora" in name for name in trained)
    assert not any(".dino." in name or ".siglip." in name for name in trained)
    task.save(module.state_dict(), tmp_path / "saved")
    saved, plain = (
        load_checkpoint(p).model.state_dict() for p in (tmp_path / "saved", tiny_checkpoint)
    )
    assert saved.keys() == plain.keys()
    for name in plain:  # fresh adapters change nothing
        torch.testing.assert_close(saved[name], plain[name])


def test_imitation_by_likelihood_makes_the_recorded_likely(tiny_checkpoint, sft_table):
    objective = Imitation(
        tiny_checkpoint,
        sft_table,
        ImitationConfig(steps=10, batch_size=4),
        seed=3,
        policy_config=VlaConfig(),
    )
    module = objective.module()
    whole = objective.batch(1, 0, 1)
    shares = [objective.batch(1, rank, 2) for rank in range(2)]
    rows = [objective.rows[int(row)] for row in batch_rows(1, 4, 8, seed=3)]
    assert whole["actions"][:, 0].tolist() == [row["actions"] for row in rows]
    for name in whole:
        assert torch.equal(torch.stack([s[name] for s in shares], 1).flatten(0, 1), whole[name])
    policy = load_checkpoint(tiny_checkpoint).model
    with torch.no_grad():
        wanted = policy.action_log_probs(seen_in(whole), whole["actions"][:, 0])
        loss, parts = objective.loss(module, whole)
    assert loss.item() == pytest.approx(-wanted.sum(1).mean().item(), rel=1e-5) and not parts
