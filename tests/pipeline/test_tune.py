"""A sweep around its trials: what it writes, what failed, stopped and doubled trials come to;
charts that parse.
"""

import itertools
import json
import pickle
import sys
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
from mlflow import MlflowClient

from rapport import log
from rapport.actors.learner import Milestones
from rapport.actors.mailbox import open_mailbox
from rapport.pipeline.config import load_config
from rapport.pipeline.data.flow import WINDOW_SCHEMA, window_rows, windows
from rapport.pipeline.data.synthetic.generate import Design, generate_corpus
from rapport.pipeline.recipes.gdpo import post_train
from rapport.pipeline.report.sweep import (
    Outcome,
    axis_of,
    parallel_chart,
    pareto_chart,
    pareto_front,
    response_chart,
)
from rapport.pipeline.rundir import Run, RunError
from rapport.pipeline.settings import DpoOfVla
from rapport.pipeline.steps.learning import Imitated
from rapport.pipeline.steps.outcomes import outcome_of, report, sorted_outcomes
from rapport.pipeline.steps.sweeping import require_metric, require_room, search, served
from rapport.pipeline.steps.trials import DpoTrials, GdpoTrials
from rapport.pipeline.steps.verdicts import Verdict, training_kl, with_interval
from rapport.pipeline.tune_settings import (
    TuneDpoOfFlow,
    TuneDpoOfVla,
    TuneGdpoOfFlow,
    TuneGdpoOfVla,
)
from rapport.policies.flow.config import FlowSizes, VaeSizes
from rapport.policies.flow.features import Features
from rapport.policies.flow.model import initialised
from rapport.policies.flow.policy import FlowPolicy
from rapport.policies.flow.settings import EncodersConfig
from rapport.policies.flow.vae import MotionVAE
from rapport.policies.tables import write_table

ray.cloudpickle.register_pickle_by_value(
    sys.modules[__name__]
)  # trials' processes cannot import a test
SVG = "{http://www.w3.org/2000/svg}"


def outcome(number, values, status="finished", **metrics):
    return Outcome(number, ",".join(f"{k}={v}" for k, v in values.items()), values, status, metrics)


TRIALS = [
    outcome(
        i,
        {"dpo.beta": beta, "dpo.loss": loss},
        simulated_rating=3 + score,
        kl=kl,
        fd=1.2 + score / 10,
        **{"simulated_rating/low": 2.9 + score, "simulated_rating/high": 3.1 + score},
    )
    for i, (beta, loss, score, kl) in enumerate(
        [(0.1, "ipo", 0.5, 9.0), (1.0, "ipo", 0.6, 4.0), (10.0, "sigmoid", 0.2, 0.5)], 1
    )
]
BASELINE = {"simulated_rating": 3.0, "kl": 0.0, "fd": 1.2}


def circles(chart, kind):
    return [e for e in ElementTree.fromstring(chart).iter(f"{SVG}circle") if e.get("class") == kind]


@pytest.mark.parametrize("key", ["dpo.beta", "dpo.loss"])
def test_a_response_chart_shows_every_trial_with_its_interval(key):
    chart = response_chart(key, TRIALS, ["simulated_rating", "kl"], TRIALS[1], BASELINE)
    root = ElementTree.fromstring(chart)
    assert len(circles(chart, "dot")) == 2 * 2 and len(circles(chart, "best")) == 2
    bars = [e for e in root.iter(f"{SVG}line") if e.get("class") == "bar"]
    assert len(bars) == 2 * 3 and sum(e.get("y1") != e.get("y2") for e in bars) == 3, (
        "kl has no interval here"
    )
    assert len([e for e in root.iter(f"{SVG}line") if e.get("class") == "reference"]) == 2
    assert "dpo" in root.get("aria-label") and key in [e.text for e in root.iter(f"{SVG}text")]


def test_parallel_coordinates_have_a_line_for_each_trial():
    root = ElementTree.fromstring(
        parallel_chart(["dpo.beta", "dpo.loss"], TRIALS, ["kl", "simulated_rating"], TRIALS[1])
    )
    lines = list(root.iter(f"{SVG}polyline"))
    assert [len(e.get("points").split()) for e in lines] == [4] * 3
    assert [e.get("class") for e in lines] == ["trial", "trial best", "trial"]


def test_the_pareto_front_holds_what_nothing_beats():
    assert pareto_front(TRIALS, "fd", "simulated_rating", "max") == TRIALS
    worse = outcome(4, {"dpo.beta": 3.0}, simulated_rating=3.1, fd=1.3)
    assert pareto_front([*TRIALS, worse], "fd", "simulated_rating", "max") == TRIALS
    assert pareto_front(TRIALS, "fd", "simulated_rating", "min") == [TRIALS[2]]
    chart = pareto_chart([*TRIALS, worse], "fd", "simulated_rating", "max", TRIALS[1], BASELINE)
    assert len(circles(chart, "dot")) == 3 and len(circles(chart, "reference")) == 1


def test_one_trial_alone_can_be_drawn():
    one = [TRIALS[0]]
    ElementTree.fromstring(response_chart("dpo.beta", one, ["kl"], one[0], {}))
    ElementTree.fromstring(parallel_chart(["dpo.beta"], one, ["kl"], one[0]))
    ElementTree.fromstring(pareto_chart(one, "fd", "kl", "min", one[0], {}))


def test_axes_are_logarithmic_where_values_span_decades_and_named_where_they_are_words():
    decades = axis_of([0.01, 0.1, 1, 10], 0, 300)
    assert [decades.place(v) for v in (0.01, 0.1, 1, 10)] == [0, 100, 200, 300]
    assert [label for _, label in decades.marks] == ["0.01", "0.1", "1", "10"]
    assert axis_of([1, 2, 3], 0, 100).place(2) == 50
    assert [label for _, label in axis_of(["b", "a", None], 0, 90).marks] == ["None", "a", "b"]


def test_intervals_are_left_out_where_there_is_nothing_to_resample():
    assert with_interval("x", {}, 100) == {} and with_interval("x", {"p": 2.0}, 100) == {"x": 2.0}
    full = with_interval("x", {"p": 2.0, "q": 4.0}, 100)
    assert full["x/low"] <= full["x"] == 3.0 <= full["x/high"]


def test_the_training_kl_is_of_the_last_tenth_of_the_steps(tmp_path):
    steps = tmp_path / "steps.jsonl"
    steps.write_text(
        "".join(json.dumps({"step": i, "kl/reference": float(i)}) + "\n" for i in range(20))
        + '{"half'
    )
    assert training_kl(steps) == 18.5


def test_milestones_are_equal_parts():
    assert Milestones(1, print).steps(48) == []
    assert Milestones(4, print).steps(48) == [12, 24, 36]
    assert Milestones(4, print).steps(2) == [1]


# Verdicts


def sweep_of(config_type, corpus, *overrides):
    on_corpus = ["corpus.kind=parquet", f"corpus.root={corpus.path}", "corpus.seconds=1"]
    return load_config(config_type, None, on_corpus + list(overrides))


def test_a_vla_is_judged_by_its_distance_from_the_start(
    tiny_corpus, tiny_checkpoint, other_checkpoint
):
    config = sweep_of(TuneDpoOfVla, tiny_corpus, "evaluation.prompts=2")
    verdict = Verdict.of_run(None, config, Imitated(tiny_corpus, tiny_checkpoint))
    start = verdict(tiny_checkpoint)
    assert list(start) == ["kl", "kl/low", "kl/high"]
    assert start["kl"] == pytest.approx(0, abs=1e-4)
    moved = verdict(other_checkpoint)
    assert 0 < moved["kl/low"] <= moved["kl"] <= moved["kl/high"]


def test_gdpo_of_a_vla_is_judged_by_how_it_moves_too(
    tiny_corpus, tiny_checkpoint, other_checkpoint
):
    config = sweep_of(TuneGdpoOfVla, tiny_corpus, "evaluation.prompts=2", "evaluation.samples=2")
    verdict = Verdict.of_run(None, config, Imitated(tiny_corpus, tiny_checkpoint))
    assert verdict(tiny_checkpoint)["kl"] == 0
    (other_checkpoint.parent / "steps.jsonl").write_text('{"step": 1, "kl/reference": 0.5}\n')
    moved = verdict(other_checkpoint)
    assert moved["kl"] == 0.5 and moved["MSE/low"] <= moved["MSE"] <= moved["MSE/high"]
    assert "listen/variance_ratio/expr" in moved and "simulated_rating" not in moved


@pytest.fixture(scope="module")
def corpus_of_listeners(tmp_path_factory):
    """Validation clips of 2 s: in those of 1 s nobody listens long enough to be judged."""
    folder = tmp_path_factory.mktemp("corpus") / "flow"
    design = Design(seconds=2, past=1, listeners=1, frames=1, image_size=28)
    return generate_corpus(folder, 1, 8, 1, design=design, workers=0)


@pytest.fixture(scope="module")
def imitated_by_flow(corpus_of_listeners, tmp_path_factory):
    """An AR-Flow with random weights, and encoded windows of validation: sweeps see no test."""
    folder = tmp_path_factory.mktemp("flow")
    corpus = corpus_of_listeners
    torch.manual_seed(0)
    vae = MotionVAE(VaeSizes(corpus.layout, hidden=32, latent_dim=4)).eval()
    vae.fit_channels(clip.listener for clip in corpus.clips("train"))
    features = Features.load(EncodersConfig(), folder)
    clips = corpus.clips("validation")
    held_out = [window for clip in clips for window in windows(clip, 8)]
    write_table(folder / "validation.arrow", window_rows(held_out, features, vae), WINDOW_SCHEMA)
    sizes = FlowSizes(
        latent_dim=4,
        text_dim=features.text.dim,
        audio_dim=features.audio.dim,
        hidden=32,
        layers=1,
        mlp=48,
        window=6,
    )
    FlowPolicy(initialised(sizes, 0), vae, EncodersConfig()).save(folder / "policy")
    return Imitated(corpus, folder / "policy", folder)


def test_ar_flow_is_judged_by_how_it_moves(imitated_by_flow):
    corpus = imitated_by_flow.corpus
    config = sweep_of(TuneGdpoOfFlow, corpus, "judge.windows=16", "judge.evaluations=4")
    found = Verdict.of_run(None, config, imitated_by_flow)(imitated_by_flow.policy_path)
    assert found["kl"] == 0 and found["FDD/low"] <= found["FDD"] <= found["FDD/high"]
    assert found["FDD"] == pytest.approx(found["listen/unils/FDD_lids_apart"])
    alike = [value for name, value in found.items() if name.startswith("likeness/")]
    assert found["likeness"] == pytest.approx(np.mean(alike)) and len(alike) > 4
    assert {"MSE", "listen/MSE/jaw", "speak/MSE/jaw", "listen/gdpo_paper/JDD"} <= set(found)


def test_flow_dpo_has_no_distance_in_nats(imitated_by_flow):
    config = sweep_of(
        TuneDpoOfFlow, imitated_by_flow.corpus, "judge.windows=2", "judge.evaluations=2"
    )
    found = Verdict.of_run(None, config, imitated_by_flow)(imitated_by_flow.policy_path)
    assert "kl" not in found and "listen/jerk_ratio/jaw" in found


def test_a_trial_asks_for_learners_and_for_the_fleet_it_brings(tiny_corpus, tiny_checkpoint):
    dpo = DpoTrials(tiny_checkpoint, tiny_checkpoint, tiny_checkpoint)
    config = load_config(TuneDpoOfVla, None, ["learner.world_size=2"])
    assert dpo.demand(config) == {"CPU": pytest.approx(0.8), "GPU": 0}
    gdpo = GdpoTrials(tiny_corpus.path, tiny_checkpoint, None, post_train)
    config = load_config(
        TuneGdpoOfFlow, None, ["rollout.gpus=1", "learner.gpus=1", "learner.world_size=2"]
    )
    assert gdpo.demand(config) == {"CPU": pytest.approx(1.0), "GPU": 4}
    again = pickle.loads(ray.cloudpickle.dumps(gdpo))
    assert again.post_train is post_train and again.start == tiny_checkpoint


class StubTrials:
    """Aligns nothing: the policy is a file that says which beta it has. `broken` fails, as a
    learner may.
    """

    start = "start"

    def __init__(self, log, broken=()):
        self.log, self.broken = str(log), broken

    def learn(self, config, part, milestones):
        def work(phase):
            with open(self.log, "a") as lines:
                lines.write(f"{config.dpo.beta:g}\n")
            for step in milestones.steps(100):
                milestones.reached(self.write(part, config, step))
            if config.dpo.beta in self.broken:
                raise FloatingPointError("loss is nan at step 3")
            return {"policy": str(self.write(part, config, 100))}

        return part.once("dpo", work)["policy"]

    def write(self, part, config, step):
        policy = part.directory / f"policy-{step}"
        policy.mkdir(exist_ok=True)
        (policy / "beta").write_text(str(config.dpo.beta))
        return policy


def verdict(policy):
    beta = float((policy / "beta").read_text())
    return {"simulated_rating": 4 - abs(beta - 1), "kl": 1 / beta, "fd": 1.0}


def sweep(directory, trials, *overrides, resume=False):
    log.show()
    config = load_config(TuneDpoOfVla, None, ["tracking.system_metrics=false", *overrides])
    with Run("tune", config, directory, resume=resume) as run:
        results = search(run, config, trials, verdict)
        outcomes = sorted_outcomes([outcome_of(result, config) for result in results], config)
        report(run, config, outcomes, BASELINE)
    return json.loads((directory / "tune.json").read_text())


@pytest.mark.engine
@pytest.mark.long
def test_a_failed_trial_is_reported_the_others_go_on_and_resume_repeats_it_alone(
    local_ray, tmp_path, capsys
):
    folder, log = tmp_path / "sweep", tmp_path / "aligned"
    space = ["tune.space.dpo.beta=grid(0.5, 1, 2)", f"storage.uri={(tmp_path / 'kept').as_uri()}"]
    with pytest.raises(
        RunError, match="1 of 3 trials failed, first dpo.beta=0.5: .*loss is nan at step 3"
    ):
        sweep(folder, StubTrials(log, broken=(0.5,)), *space)
    found = json.loads((folder / "tune.json").read_text())
    assert [(t["name"], t["status"]) for t in found["trials"]] == [
        ("dpo.beta=1", "finished"),
        ("dpo.beta=2", "finished"),
        ("dpo.beta=0.5", "failed"),
    ]
    assert found["best"] == "dpo.beta=1" and "dpo.beta=0.5 failed" in capsys.readouterr().out
    found = sweep(folder, StubTrials(log), *space, resume=True)
    assert [t["status"] for t in found["trials"]] == ["finished"] * 3
    assert sorted(log.read_text().split()) == ["0.5", "0.5", "1", "2"], (
        "no finished trial is repeated"
    )
    assert load_config(DpoOfVla, folder / "best.yaml", []).dpo.beta == 1
    kept = tmp_path / "kept" / "sweep" / "trials" / "dpo.beta=1"
    assert (kept / "phases" / "dpo.json").is_file(), "trials are copied to the storage, too"
    for name in ("response_dpo.beta", "parallel", "pareto"):
        assert ElementTree.parse(folder / "charts" / f"{name}.svg").getroot().tag == f"{SVG}svg"
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    parent = (folder / "mlflow_run_id").read_text()
    children = client.search_runs(
        [client.get_run(parent).info.experiment_id], f"tags.mlflow.parentRunId = '{parent}'"
    )
    trials = {
        run.info.run_name: run for run in children if run.info.run_name.startswith("dpo.beta")
    }
    assert set(trials) == {"dpo.beta=0.5", "dpo.beta=1", "dpo.beta=2"}
    best = trials["dpo.beta=1"]
    assert best.data.params == {"dpo.beta": "1"} and best.data.metrics["simulated_rating"] == 4
    [version] = client.search_model_versions("name='rapport-dpo'")
    assert version.run_id == best.info.run_id and version.source.endswith("/policy")


@pytest.mark.engine
@pytest.mark.long
def test_optuna_fills_its_trials_and_asha_ends_the_worst(local_ray, tmp_path):
    folder = tmp_path / "optuna"
    found = sweep(
        folder,
        StubTrials(tmp_path / "log"),
        "tune.search=optuna",
        "tune.trials=4",
        "tune.concurrent=2",
        "tune.space.dpo.beta=loguniform(0.1, 10)",
        "tune.scheduler=asha",
        "tune.judgements=2",
        "tune.model=",
    )
    statuses = [t["status"] for t in found["trials"]]
    assert len(statuses) == 4 and "failed" not in statuses and "finished" in statuses
    assert all(0.1 <= t["values"]["dpo.beta"] <= 10 for t in found["trials"])
    finished = [t for t in found["trials"] if t["status"] == "finished"]
    assert found["best"] == min(finished, key=lambda t: abs(t["values"]["dpo.beta"] - 1))["name"]


@pytest.mark.engine
def test_a_judge_that_fails_fails_the_trial_only(local_ray):
    def fit():
        replies = []
        for policy in ("good", "bad", "good"):
            try:
                replies.append(ray.get(mailbox.ask.remote(policy)))
            except RuntimeError as error:
                replies.append(str(error))
        return replies

    def judge(policy):
        if str(policy) == "bad":
            raise ValueError("no such policy")
        return {"score": 1.0}

    mailbox = open_mailbox()
    first, second, third = served(fit, mailbox, judge)
    assert (
        first == third == {"score": 1.0} and "ValueError in judging bad: no such policy" in second
    )


def test_trials_that_would_wait_for_each_other_are_refused(monkeypatch):
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.1})
    demand = {"CPU": 0.8, "GPU": 0.0}
    require_room(load_config(TuneDpoOfVla, None, []), demand)
    with pytest.raises(
        RunError, match=r"tune.concurrent=2 trials need 2 x 0.81 CPUs, 1.1 are free"
    ):
        require_room(load_config(TuneDpoOfVla, None, ["tune.concurrent=2"]), demand)


def test_a_metric_that_the_judge_does_not_give_is_named():
    config = SimpleNamespace(tune=SimpleNamespace(metric="FDD"))
    with pytest.raises(RunError, match="tune.metric=FDD is not among .*: MSE, kl$"):
        require_metric(config, {"MSE": 1.0, "MSE/low": 0.5, "kl": 0.0})


def test_equal_trials_count_once_and_order_follows_the_mode():
    config = SimpleNamespace(tune=SimpleNamespace(metric="s", mode="min"))
    made = [
        outcome(0, {"k": v}, status, **({"s": s} if s is not None else {}))
        for v, status, s in [
            (1, "finished", 2.0),
            (1, "finished", 2.0),
            (2, "failed", None),
            (3, "stopped", 0.1),
            (4, "finished", 1.0),
        ]
    ]
    ordered = sorted_outcomes(made, config)
    assert [(o.number, o.name) for o in ordered] == list(
        zip(itertools.count(1), ["k=4", "k=1", "k=3", "k=2"], strict=False)
    )
