"""It listens: an imitating policy tells its speaker from a stranger, or CI fails."""

import pytest

from tests.runs import finished_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]
# The easier setting: points that words, face and voice tell alike, and a short imitation.
EASY = [
    "corpus.riddles=0",
    "corpus.train_clips=256",
    "corpus.test_clips=4",
    "corpus.past=1",
    "pretraining.steps=150",
    "pretraining.chunks=1024",
    "sft.steps=200",
    "cluster.preflight=false",
    "tracking.system_metrics=false",
]


@pytest.mark.parametrize(
    "settings", [EASY, pytest.param([], marks=pytest.mark.long)], ids=["easy", "default"]
)
def test_what_people_did_is_likelier_beside_their_speaker_than_beside_a_stranger(
    tmp_path, settings
):
    summary = finished_run("sft", tmp_path / "run", *settings, timeout=1700)
    perceived = summary["metrics"]["perception"]["all"]
    assert perceived["low"] > 0, perceived
