"""Ablation: coin labels, what SFT-Preferred learns from, means and spreads by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from rapport.pipeline.objectives.dpo import pair_schema
from rapport.pipeline.rundir import RunError
from rapport.pipeline.settings import AblateOfFlow, AblateOfReactFace, AblateOfVla, PartsConfig
from rapport.pipeline.steps import ablation
from rapport.pipeline.steps.ablation import (
    CONTRAST,
    LOSS,
    RATED,
    VARIANTS,
    coin_labels,
    compare_variants,
    config_of,
    full_less,
    learn_variant,
    learnt_variants,
    over_seeds,
    preferred_rows,
)
from rapport.pipeline.steps.ablation_parts import (
    FULL,
    JUDGED_BY,
    MOVES,
    PARTS,
    check_assigned,
    left_out,
    with_moves,
)
from rapport.pipeline.steps.judging import MethodRow
from rapport.policies.flow.training import FLOW_SCHEMA, from_bytes
from rapport.policies.motion import Layout, Motion
from rapport.policies.tables import read_table, write_table
from rapport.policies.vla.policy import VlaPolicy
from rapport.policies.vla.training import IMITATION_SCHEMA

PAIRS = [
    {
        "prompt_id": str(i),
        "chosen": [i],
        "rejected": [-1 - i],
        "chosen_score": 1.0,
        "rejected_score": 0.0,
    }
    for i in range(400)
]


def test_a_coin_decides_and_nothing_else_changes():
    tossed = list(coin_labels(PAIRS, seed=0))
    swapped = [row["chosen"] != pair["chosen"] for row, pair in zip(tossed, PAIRS, strict=True)]
    assert 160 < sum(swapped) < 240
    for row, pair, turned in zip(tossed, PAIRS, swapped, strict=True):
        if turned:
            assert (row["chosen"], row["chosen_score"]) == (pair["rejected"], 0.0)
            assert (row["rejected"], row["rejected_score"]) == (pair["chosen"], 1.0)
        else:
            assert row == pair
    assert [row["prompt_id"] for row in tossed] == [pair["prompt_id"] for pair in PAIRS]
    assert list(coin_labels(PAIRS, seed=0)) == tossed != list(coin_labels(PAIRS, seed=1))


SCORES = {"chosen_score": 1.0, "rejected_score": 0.0}


def test_the_vla_imitates_the_chosen_tokens():
    seen = {"frames": b"", "voice": b"", "present": [True, True]}
    prompt = {"prompt_id": "a", "heard": [1], "said": [2], "own": [3], "rest": [0.5]} | seen
    pair = prompt | {"chosen": [7, 8], "rejected": [9]}
    [row] = preferred_rows([pair | SCORES], AblateOfVla())
    assert row == prompt | {"actions": [7, 8]}
    assert set(row) == set(IMITATION_SCHEMA.names)


def pairs_of_two_kinds(folder, rated, contrast):
    """A table of so many pairs of raters, then so many that no rater made."""
    seen = {"frames": b"", "voice": b"", "present": [True, True]}
    prompt = {"prompt_id": "a", "heard": [1], "said": [2], "own": [3], "rest": [0.5]} | seen
    pair = prompt | {"chosen": [7], "rejected": [9]} | SCORES
    rows = [pair | {"made_for": None}] * rated + [pair | {"made_for": "b"}] * contrast
    path = folder / "pairs.arrow"
    write_table(path, rows, pair_schema(VlaPolicy))
    return path


def test_what_else_did_it_is_asked_where_there_is_something_else(tmp_path):
    config = AblateOfVla()
    both = pairs_of_two_kinds(tmp_path, rated=2, contrast=6)
    assert learnt_variants(config, both) == ["Full", RATED, CONTRAST, LOSS, *VARIANTS[1:3]]
    papers = config.model_copy(update={"dpo": config.dpo.model_copy(update={"chosen_nll": 0.0})})
    assert learnt_variants(papers, pairs_of_two_kinds(tmp_path, 2, 0)) == list(VARIANTS[:3])


@pytest.mark.parametrize(("name", "kept", "epochs"), [(RATED, 2, 4), (CONTRAST, 6, 1)])
def test_pairs_of_one_kind_are_learnt_from_for_as_many_steps(
    tmp_path, monkeypatch, name, kept, epochs
):
    asked = {}

    def align(part, config, **given):
        asked.update(given, epochs=config.dpo.epochs, chosen_nll=config.dpo.chosen_nll)
        return SimpleNamespace(artifacts={"dpo_policy": tmp_path / "aligned"})

    monkeypatch.setattr(ablation, "align", align)
    imitated = SimpleNamespace(policy_path=tmp_path / "sft", policy=VlaPolicy)
    (tmp_path / "part").mkdir()
    part = SimpleNamespace(directory=tmp_path / "part")
    pairs = pairs_of_two_kinds(tmp_path, rated=2, contrast=6)
    config = config_of(AblateOfVla(), name, pairs)
    learn_variant(part, config, name, imitated=imitated, pairs=pairs)
    rows = read_table(asked["pairs"])
    assert len(rows) == kept and asked["epochs"] == epochs and asked["chosen_nll"] > 0
    assert {row["made_for"] for row in rows} == {None if name == RATED else "b"}


def test_a_variants_config_says_what_it_does_otherwise(tmp_path):
    config = AblateOfVla()
    pairs = pairs_of_two_kinds(tmp_path, rated=2, contrast=6)
    assert config_of(config, LOSS, pairs).dpo.chosen_nll == 0 < config.dpo.chosen_nll
    for name in VARIANTS:
        assert config_of(config, name, pairs) == config


def test_full_is_compared_with_each_other_variant_on_the_same_prompts():
    def row(*scores):
        by_clip = {f"c{n}": score for n, score in enumerate(scores)}
        return MethodRow({}, by_clip, {}, conversations={clip: clip for clip in by_clip})

    found = full_less({"Full": row(3, 4, 5), "Random-Prefer": row(1, 4, 4)}, 100)
    assert list(found) == ["Random-Prefer"]
    assert found["Random-Prefer"]["scores"]["mean"] == pytest.approx(1)
    assert found["Random-Prefer"]["right"] is None


def test_ar_flow_imitates_the_chosen_latents():
    conditions = {name: b"" for name in FLOW_SCHEMA.names if name != "latents"}
    chosen = [[0.5, -1.0], [2.0, 3.0]]
    pair = conditions | {"chosen": chosen, "rejected": [[0.0, 0.0], [1.0, 1.0]]} | SCORES
    [row] = preferred_rows([pair], AblateOfFlow())
    assert set(row) == set(FLOW_SCHEMA.names)
    assert from_bytes(row["latents"], 2, 2).tolist() == np.float32(chosen).tolist()


def test_mean_and_standard_deviation_by_hand():
    assert over_seeds([1.0, 2.0, 3.0]) == {"mean": 2.0, "std": 1.0}
    assert over_seeds([1.0]) == {"mean": 1.0, "std": 0.0}
    assert over_seeds([1.0, None]) is None


def test_means_over_seeds_reach_terminal_summary_and_mlflow(capsys):
    def row(x):
        return {
            "l2": x,
            "fd": 10 * x,
            "l2_affect": None,
            "truth_affect_error": 0.5,
            "simulated_rating": {"mean": 3 + x},
            "own_minus_another": {"mean": x, "low": 0.0, "high": 1.0},
            "matched": None,
            "right": None,
            "independent_own_minus_another": None,
        }

    seeds = [{name: row(i + 0.1 * k) for k, name in enumerate(VARIANTS)} for i in (0, 1, 2)]
    logged = {}
    run = SimpleNamespace(summary={"metrics": {}}, tracker=SimpleNamespace(log=logged.update))
    compare_variants(run, seeds)
    found = run.summary["metrics"]["ablation"]
    assert list(found) == list(VARIANTS)
    assert found["SFT-Preferred"]["l2"] == pytest.approx({"mean": 1.2, "std": 1.0})
    assert (
        found["Full"]["simulated_rating"]["mean"] == pytest.approx(4.0)
        and found["Full"]["l2_affect"] is None
    )
    assert logged["random-prefer/fd"] == pytest.approx(11.0) and "full/l2_affect" not in logged
    printed = capsys.readouterr().out
    assert "3 seeds" in printed and "1.200 ± 1.000" in printed and "15.25" in printed


def test_a_reactface_lacks_one_part_at_a_time():
    config = AblateOfReactFace()
    variants = left_out(config)
    parts = {name: changes for name, changes in PARTS.items() if name != "random"}
    assert list(variants) == [FULL, *parts] and variants[FULL] == config
    for name, changes in parts.items():
        own = variants[name].reactface.model_dump()
        full = config.reactface.model_dump()
        assert {key for key in full if own[key] != full[key]} == set(changes)
    two = config.model_copy(update={"ablation": PartsConfig(variants=["no SLBS"])})
    assert list(left_out(two)) == [FULL, "no SLBS"]


LAYOUT = Layout((("expr", 2), ("rot", 3)), fps=25, topology="builtin")


def moving(expr, turns=0.0):
    """A face of 24 frames whose first expression is given; the head turns at each frame."""
    values = np.zeros((24, 5), np.float32)
    values[:, 0] = expr
    values[:, 2] = np.cumsum(np.broadcast_to(turns, 24))
    return Motion(values, LAYOUT)


def test_a_variant_that_is_the_full_one_again_is_refused():
    own = AblateOfReactFace().reactface.model_copy(update={"assign": "random"})
    asked = PartsConfig(variants=["nearest", "random"])
    with pytest.raises(RunError, match=r"random would be the full one again: .*=\[nearest\]'"):
        left_out(AblateOfReactFace(reactface=own, ablation=asked))
    alone = PartsConfig(variants=["random"])
    with pytest.raises(RunError, match="again: name others"):
        left_out(AblateOfReactFace(reactface=own, ablation=alone))


def test_where_a_corpus_names_nobody_nobody_else_is_imitated(tiny_corpus):
    with pytest.raises(RunError, match=r"so recorded, cover would be the full .*=\[no L_s\]'"):
        check_assigned(
            AblateOfReactFace(ablation=PartsConfig(variants=["recorded", "no L_s", "cover"])),
            tiny_corpus,
        )
    check_assigned(
        AblateOfReactFace(ablation=PartsConfig(variants=["no L_s"])),
        tiny_corpus,
    )


def test_how_reactions_move_by_hand():
    time = np.arange(24)
    wave = np.sin(2 * np.pi * time / 12)
    recorded = {"a": moving(wave), "b": moving(-wave)}
    steps = np.where(time % 8 == 0, 0.3, 0.1)  # three times as far over joints
    alike = [moving(wave, steps), moving(wave, steps)]
    unlike = [moving(2 * wave, steps), moving(-2 * wave, steps)]
    row = with_moves(MethodRow({}, {}, {}), {"a": alike, "b": unlike}, recorded)
    assert row.values("apart") == pytest.approx({"a": 0, "b": 8})
    assert row.values("lively") == pytest.approx({"a": 1, "b": 4})
    assert row.values("jerk") == pytest.approx({"a": 1, "b": 4})
    assert row.values("jump") == pytest.approx({"a": 3, "b": 3})
    assert row.interval("lively", 50)["mean"] == pytest.approx(2.5)
    assert set(MOVES) < set(JUDGED_BY)
    still = with_moves(MethodRow({}, {}, {}), {"a": unlike, "b": unlike}, recorded)
    less = full_less({FULL: row, "no L_smo": still}, 50, MOVES)["no L_smo"]
    assert less["lively"]["mean"] == pytest.approx(-1.5)
