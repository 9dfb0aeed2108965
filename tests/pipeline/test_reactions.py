"""Reactions that are kept, judged again, and shown to people."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rapport.pipeline.data.rating_package import faces_of_form, video_of_face
from rapport.pipeline.data.reactions import (
    GROUND_TRUTH,
    KeptReaction,
    KeptReactions,
    ReactionError,
    answered,
    read_reactions,
    recorded,
)
from rapport.pipeline.rundir import Phase, RunError
from rapport.pipeline.settings import EvaluateOfVla
from rapport.pipeline.steps import rejudging, study
from rapport.pipeline.steps.judging import Judge
from rapport.pipeline.steps.rejudging import Source, judge_again
from rapport.policies.motion import Motion
from rapport.policies.policy import Reaction
from rapport.rewards.ratings.ratings import CRITERIA, RatingError
from tests.pipeline.bare import bare_run
from tests.pipeline.graders import Graders

SFT, ALIGNED = "SFT", "SFT + DPO"


@pytest.fixture(scope="module")
def kept(tiny_corpus):
    """Two policies and the recorded listeners on the test split; two samples of each policy."""
    layout = tiny_corpus.layout.subset({"expr": 50, "rot": 3, "jaw": 3})
    rng = np.random.default_rng(0)
    clips = list(tiny_corpus.clips("test"))
    methods = {GROUND_TRUTH: recorded({clip.clip_id: clip.listener for clip in clips})}
    for version, name in enumerate((SFT, ALIGNED)):
        groups, motions = {}, {}
        for clip in clips:
            truth = clip.listener.subset(layout).values
            noisy = [truth + rng.normal(0, 0.02, truth.shape).astype("f4") for _ in range(2)]
            motions[clip.clip_id] = [Motion(values, layout) for values in noisy]
            groups[clip.clip_id] = [
                Reaction(clip.clip_id, k, np.arange(9) + k, weight_version=version, seed=k + 7)
                for k in range(2)
            ]
        methods[name] = answered(groups, motions)
    return KeptReactions(tiny_corpus.digest, "test", layout, methods)


@pytest.fixture
def file(kept, tmp_path):
    kept.write(tmp_path / "reactions.parquet")
    return tmp_path / "reactions.parquet"


def test_what_is_written_is_read_back(kept, file, tiny_corpus):
    again = read_reactions(file)
    again.require_corpus(tiny_corpus, "it")
    assert (again.corpus, again.split, again.compared) == (kept.corpus, "test", kept.compared)
    assert list(again.methods) == list(kept.methods) and again.prompt_ids == kept.prompt_ids
    for method, groups in kept.methods.items():
        for prompt_id, group in groups.items():
            for one, other in zip(group, again.methods[method][prompt_id], strict=True):
                assert one.motion.layout == other.motion.layout
                np.testing.assert_array_equal(one.motion.values, other.motion.values)
                assert (one.sample, one.seed, one.weight_version) == (
                    other.sample,
                    other.seed,
                    other.weight_version,
                )
    [truth, *_] = again.methods[GROUND_TRUTH].values()
    assert truth[0].seed is None and truth[0].actions is None, "nobody sampled it"
    [_, second] = again.methods[ALIGNED][again.prompt_ids[0]]
    assert second.actions.tolist() == list(range(1, 10)) and second.weight_version == 1


def test_latents_are_not_kept_beside_the_motion_that_they_became():
    motion = SimpleNamespace()
    latents = Reaction("p", 0, np.zeros((4, 8), np.float32))
    assert KeptReaction.of(latents, motion).actions is None


def test_reactions_to_clips_of_another_corpus_are_refused(kept, tiny_corpus):
    with pytest.raises(ReactionError, match="another corpus .*corpus.root=FOLDER"):
        replace(kept, corpus="0" * 64).require_corpus(tiny_corpus, "x.parquet")
    with pytest.raises(ReactionError, match="4 prompts, .* are not in the validation split"):
        replace(kept, split="validation").require_corpus(tiny_corpus, "x.parquet")


def test_what_is_no_file_of_reactions_is_named(file, tmp_path):
    with pytest.raises(ReactionError, match="no reactions at .*gone.parquet"):
        read_reactions(tmp_path / "gone.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ReactionError, match="holds no reactions: its columns are a"):
        read_reactions(tmp_path / "other.parquet")
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 3] ^= 1
    file.write_bytes(bytes(whole))
    with pytest.raises(ReactionError, match="cannot be read as reactions"):
        read_reactions(file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ReactionError, match="cannot be read as reactions"):
        read_reactions(file)


# -- Judged again --


def paid(pay=1.0):
    """Raters who like whoever moves more, by as much as they have been paid."""
    return Graders(
        lambda prompt, motion: [float(np.clip(2 + pay * 50 * motion.values.std(), 1, 5))] * 4
    )


@pytest.fixture
def run_folder(kept, tiny_corpus, tmp_path):
    """The folder of a run that judged both policies."""
    folder = tmp_path / "dpo"
    folder.mkdir()
    kept.write(folder / "reactions.parquet")
    artifacts = {"reactions": "reactions.parquet", "corpus": str(tiny_corpus.path)}
    (folder / "summary.json").write_text(json.dumps({"artifacts": artifacts}))
    return folder


def evaluated(run_folder, **keys):
    return EvaluateOfVla(reactions=run_folder, evaluation={"bootstrap": 200}, **keys)


def test_judged_again_the_numbers_are_those_of_the_run(
    kept, tiny_corpus, run_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(rejudging, "reward_pool", lambda config: paid())
    (tmp_path / "again").mkdir()
    config = evaluated(run_folder)
    run = bare_run(tmp_path / "again", config)
    judge_again(run, config, run_folder)
    rows = run.summary["metrics"]["evaluation"]
    first = Judge.from_corpus(
        bare_run(tmp_path), config, tiny_corpus, kept.compared, kept.prompt_ids, paid()
    )
    for method in (SFT, ALIGNED):
        expected = first(kept.answers(method)).summary(200)
        assert {name: rows[method][name] for name in expected} == expected
    assert {"ground truth", "Nearest Neighbour"} <= set(rows)
    assert run.summary["metrics"]["compared"] == [SFT, ALIGNED]
    # The run is a source itself, of the same reactions.
    assert (tmp_path / "again" / "reactions.parquet").read_bytes() == (
        run_folder / "reactions.parquet"
    ).read_bytes()
    assert set(run.summary["artifacts"]) >= {"reactions", "corpus"}


def test_other_raters_give_other_numbers(run_folder, tmp_path, monkeypatch):
    ratings = []
    for pay in (0.2, 1.0):
        monkeypatch.setattr(rejudging, "reward_pool", lambda config, pay=pay: paid(pay))
        folder = tmp_path / f"paid-{pay}"
        folder.mkdir()
        run = bare_run(folder)
        judge_again(run, evaluated(run_folder), run_folder)
        ratings.append(run.summary["metrics"]["evaluation"][SFT]["simulated_rating"]["mean"])
    assert ratings[0] < ratings[1]


def test_any_protocol_scores_them_or_says_why_not(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(rejudging, "reward_pool", lambda config: paid())
    run = bare_run(tmp_path)
    judge_again(run, evaluated(run_folder, files={"protocol": "dim"}), run_folder)
    scores = run.summary["metrics"]["dim"]
    assert list(scores) == [GROUND_TRUTH, SFT, ALIGNED]
    assert json.loads((tmp_path / "metrics.json").read_text())["methods"] == scores
    with pytest.raises(RunError, match="vbench does not apply to these reactions: it judges"):
        judge_again(run, evaluated(run_folder, files={"protocol": "vbench"}), run_folder)


def test_a_folder_without_reactions_is_named(tmp_path):
    with pytest.raises(RunError, match="no summary.json there"):
        Source.at(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({"artifacts": {"corpus": "corpus"}}))
    with pytest.raises(RunError, match="kept no reactions, only \\['corpus'\\]"):
        Source.at(tmp_path)
    assert Source.at(tmp_path / "x.parquet") == Source(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"reactions": "x", "checkpoint": "y"}, "leave checkpoint out"),
        ({"ratings": "sheets"}, "needs reactions=RUN_DIR"),
        ({"reactions": "x", "ratings": "y", "study": {"prompts": 4}}, "not both"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        EvaluateOfVla(**keys)


# -- People --


def test_faces_are_shuffled_by_seed_prompt_and_form():
    methods, prompts = ["truth", "SFT", "DPO"], [f"p{i}" for i in range(40)]
    faces = faces_of_form(methods, prompts, form=2, seed=0)
    assert len(faces) == 120 and all(name.startswith("2-") for name in faces)
    by_video = {}
    for name, (prompt, method) in faces.items():
        by_video.setdefault(video_of_face(name), []).append((prompt, method))
    assert all(
        len({p for p, _ in v}) == 1 and len({m for _, m in v}) == 3 for v in by_video.values()
    )
    letters = {m: [n[-1] for n, (_, method) in faces.items() if method == m] for m in methods}
    assert all(5 < column.count(letter) < 25 for column in letters.values() for letter in "abc")
    assert faces == faces_of_form(methods, prompts, form=2, seed=0)
    for other in (faces_of_form(methods, prompts, 1, 0), faces_of_form(methods, prompts, 2, 1)):
        assert list(other.values()) != list(faces.values())


@pytest.fixture
def package(run_folder, kept, tiny_corpus, tmp_path, monkeypatch):
    """The folder of a run that handed its results out, the config, and the jobs of its videos."""
    jobs = []

    class Renderers:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def render(self, asked):
            for job in asked:
                jobs.append(job)
                job.path.write_bytes(b"video")
                yield job.path, 1

    monkeypatch.setattr(study, "render_pool", lambda config: Renderers())
    config = evaluated(run_folder, study={"prompts": 3, "forms": 2})
    step = Phase("study", "study", run_folder / "study", SimpleNamespace(log=print))
    step.directory.mkdir()
    reactions = run_folder / "reactions.parquet"
    result = study._package.__wrapped__(step, config, reactions, tiny_corpus)
    summary = json.loads((run_folder / "summary.json").read_text())
    summary["artifacts"]["study"] = "study"
    (run_folder / "summary.json").write_text(json.dumps(summary))
    assert result.artifacts == {"study": step.directory}
    return run_folder, config, jobs


def test_names_of_methods_never_reach_raters(package, tiny_corpus):
    folder, _, jobs = package
    handed_out = [path for path in (folder / "study" / "for_raters").rglob("*") if path.is_file()]
    assert sum(path.suffix == ".mp4" for path in handed_out) == 6
    told = "".join(str(path.relative_to(folder)) for path in handed_out)
    told += "".join(path.read_text() for path in handed_out if path.suffix != ".mp4")
    told += "".join(panel.caption for job in jobs for panel in job.panels)
    hidden = ["SFT", "DPO", "truth", "ground", "policy", *tiny_corpus.clip_ids("test")]
    assert not any(word in told for word in hidden)
    assert all(meaning in told for meaning in CRITERIA.values())
    assert [panel.caption for panel in jobs[0].panels] == ["speaker", "a", "b", "c"]


def test_all_faces_have_the_same_groups_and_length(package, kept):
    _, _, jobs = package
    for job in jobs:
        motions = [panel.motion for panel in job.panels[1:]]
        assert {motion.layout for motion in motions} == {kept.compared}
        assert len({len(motion) for motion in motions}) == 1


def sheet(folder, rater, form, grade):
    """A form as somebody fills it in: `grade` of (prompt, method)."""
    from rapport.pipeline.data.rating_package import read_manifest

    faces = read_manifest(folder / "study" / "manifest.csv")
    lines = ["video,rater," + ",".join(CRITERIA)]
    for name, shown in faces.items():
        if name.startswith(f"{form}-"):
            lines.append(f"{name},{rater}" + f",{grade(*shown)}" * 4)
    sheets = folder.parent / "filled"
    sheets.mkdir(exist_ok=True)
    (sheets / f"{rater}.csv").write_text("\n".join(lines) + "\n")
    return sheets


GRADES = {GROUND_TRUTH: 4, SFT: 2, ALIGNED: 5}


def test_filled_sheets_come_back_as_means_preferences_and_agreement(package, tmp_path, capsys):
    folder, config, _ = package
    for rater, form in (("ann", 1), ("bob", 2)):
        sheets = sheet(folder, rater, form, lambda prompt, method: GRADES[method])
    config = evaluated(folder, ratings=sheets)
    study.check_study(config)
    step = Phase("people", "people", tmp_path, SimpleNamespace(log=print))
    results = study._read.__wrapped__(step, config, folder, sheets).value
    study._show(results)
    assert {m: row["empathy"]["mean"] for m, row in results["means"].items()} == GRADES
    assert results["means"][SFT]["overall"]["raters"] == 2
    shares = {(pair["method"], pair["to"]): pair["mean"] for pair in results["preferred"]}
    assert shares[ALIGNED, SFT] == 1.0 and shares[SFT, GROUND_TRUTH] == 0.0
    assert results["survey"]["alpha"]["empathy"] == pytest.approx(1)
    told = capsys.readouterr().out
    assert "SFT + DPO is rated above SFT in 1.00" in told and "ann" not in json.dumps(results)


def test_sheets_of_another_package_are_refused(package):
    folder, _, _ = package
    sheets = sheet(folder, "ann", 1, lambda prompt, method: 3)
    (sheets / "ann.csv").write_text("video,rater,empathy\n9-0001-a,ann,3\n")
    with pytest.raises(RatingError, match="'9-0001-a' is not in the package's manifest"):
        study.check_study(evaluated(folder, ratings=sheets))


@pytest.mark.parametrize("name", ["reactions.parquet", "study/manifest.csv"])
def test_a_package_that_changed_says_so(package, name):
    folder, _, _ = package
    sheets = sheet(folder, "ann", 1, lambda prompt, method: 3)
    with (folder / name).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(RunError, match="changed after the package was written"):
        study.check_study(evaluated(folder, ratings=sheets))


def test_a_run_without_a_package_has_nobody_to_read(run_folder, tmp_path):
    with pytest.raises(RunError, match=r"wrote a package \(study.prompts\)"):
        study.check_study(evaluated(run_folder, ratings=tmp_path))


def test_whom_to_rate_must_have_answered(kept):
    config = EvaluateOfVla(study={"prompts": 2, "methods": [SFT, "GDPO"]})
    with pytest.raises(RunError, match="names 'GDPO'; reactions are there of ground truth, SFT"):
        study.methods_of(config, kept)
    with pytest.raises(RunError, match="two methods or more"):
        study.methods_of(EvaluateOfVla(study={"prompts": 2, "methods": [SFT]}), kept)
    assert study.methods_of(EvaluateOfVla(study={"prompts": 2}), kept) == list(kept.methods)
