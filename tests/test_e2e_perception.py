"""It listens: the default's imitating policy tells its speaker from a stranger, or this fails."""

import pytest

from tests.runs import finished_run

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(3600)]


def test_what_people_did_is_likelier_beside_their_speaker_than_beside_a_stranger(tmp_path):
    perceived = finished_run("sft", tmp_path / "run", timeout=3500)["metrics"]["perception"]
    for stream in ("all", "frames", "voice", "words"):
        assert perceived[stream]["low"] > 0, (stream, perceived[stream])
