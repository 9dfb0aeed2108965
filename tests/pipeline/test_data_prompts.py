"""A corpus in which nothing that a policy perceives differs is refused, with the way out."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.io import wavfile

from rapport.pipeline.data.prompts import digest, require_unlike_prompts
from rapport.pipeline.data.settings import CorpusConfig
from rapport.pipeline.data.store import CorpusError
from rapport.pipeline.run import main
from rapport.policies.clip import AUDIO_RATE, Clip, Past, Word
from rapport.policies.flow.policy import FlowPolicy
from rapport.policies.motion import Layout, Motion
from rapport.policies.vla.policy import VlaPolicy

LAYOUT = Layout((("expr", 2),), 25, "flame2020")
REAL = CorpusConfig(kind="dualtalk", root="there")


def still(value: float = 0.0, frames: int = 25) -> Motion:
    return Motion(np.full((frames, 2), value), LAYOUT)


def clip(name: str = "a", **parts) -> Clip:
    return Clip(clip_id=name, dyad_id=name, split="train", listener=still(), **parts)


UNLIKE = {
    "speaker": (still(0), still(1)),
    "speaker_frames": (np.zeros((2, 4, 4, 3), np.uint8), np.ones((2, 4, 4, 3), np.uint8)),
    "speaker_audio": (np.zeros(8, np.float32), np.full(8, 0.5, np.float32)),
    "words": ((Word("hi", 0, 1),), (Word("ho", 0, 1),)),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_one_modality_that_differs_is_enough_where_it_is_read(name):
    one, other = (clip(**{name: value}) for value in UNLIKE[name])
    require_unlike_prompts([one, other], [name], REAL)
    others = [modality for modality in UNLIKE if modality != name]
    for reads in (others, []):
        with pytest.raises(CorpusError, match="are alike"):
            require_unlike_prompts([one, other], reads, REAL)
    assert digest(one, [name]) == digest(replace(one, clip_id="z"), [name])


def test_pasts_that_differ_are_enough_and_one_that_is_not_there_is_no_difference():
    once, never = (Past(still(), words=(Word(text, -2, -1),)) for text in ("once", "never"))
    require_unlike_prompts([clip(past=once), clip(), clip(past=never)], ["words"], REAL)
    with pytest.raises(CorpusError, match="are alike"):
        require_unlike_prompts([clip(past=once), clip(), clip(past=once)], ["words"], REAL)


def test_the_listener_alone_tells_nothing_of_the_speaker():
    moving = replace(clip(), listener=still(3), listener_audio=np.ones(8, np.float32))
    with pytest.raises(CorpusError, match="are alike"):
        require_unlike_prompts([clip(), moving], list(UNLIKE), REAL)


def test_the_error_names_what_is_absent_what_is_the_same_and_how_to_give_it():
    silent = clip(speaker_audio=np.zeros(8, np.float32))
    with pytest.raises(CorpusError) as error:
        require_unlike_prompts([silent] * 3, VlaPolicy.reads, REAL)
    message = str(error.value)
    assert message.startswith("all prompts of there are alike (3 clips were looked at)")
    assert "the speaker's voice: the same in all clips. Give RECORDING_speaker1.wav" in message
    assert "the speaker's words: absent. Give a transcript" in message
    assert "corpus.transcriber=module:Class" in message and "head.path=" in message
    filmed = CorpusConfig(kind="lm_listener", root="there")
    with pytest.raises(CorpusError, match=r"absent. Give corpus.videos=FOLDER") as error:
        require_unlike_prompts([silent] * 3, VlaPolicy.reads, filmed)
    assert "the speaker's voice: the same in all clips; corpus.kind=lm_listener has none" in str(
        error.value
    )
    with pytest.raises(CorpusError) as error:
        require_unlike_prompts([silent] * 3, FlowPolicy.reads, REAL)
    assert "words" not in str(error.value) and "frames" not in str(error.value).split("\n", 1)[0]


def test_of_one_clip_nothing_can_be_said():
    require_unlike_prompts([clip()], ["words"], REAL)
    require_unlike_prompts([], ["words"], REAL)


@pytest.fixture
def tracks(tmp_path):
    """Both people's motion of four recordings; no sound, no transcript."""
    root = tmp_path / "DualTalk"
    root.mkdir()
    rng = np.random.default_rng(0)
    for name in "abcd":
        for side in (1, 2):
            np.savez(
                root / f"{name}_speaker{side}.npz",
                exp=rng.normal(size=(150, 50)),
                pose=rng.normal(scale=0.1, size=(150, 6)),
                shape=np.zeros((150, 100)),
            )
    return root


def of(root, *more: str) -> list[str]:
    return ["corpus.kind=dualtalk", f"corpus.root={root}", "corpus.seconds=2", *more]


def one_sided(root):
    for file in root.glob("*_speaker1.npz"):
        file.unlink()
    return root


@pytest.mark.parametrize(
    "command", ["prepare", "preflight", "sft", "dpo", "gdpo policy=vla", "gdpo", "rollout"]
)
def test_every_recipe_that_reads_it_stops_before_anything_starts(tracks, tmp_path, capsys, command):
    """Only listeners were tracked, and nobody was recorded."""
    directory = tmp_path / "run"
    keys = of(one_sided(tracks))
    assert main([*command.split(), *keys, "--run-dir", str(directory)]) == 2
    said = capsys.readouterr()
    assert "are alike" in said.err and "RECORDING_speaker1.wav" in said.err
    assert ".vtt" in said.err or "gdpo" in command
    assert not directory.exists()


def test_what_counts_is_what_the_policy_reads(tracks, tmp_path, capsys):
    """The partner's motion differs: AR-Flow reads it; the VLA sees it only as frames."""
    out = ["--run-dir", str(tmp_path / "run")]
    assert main(["sft", *of(tracks, "corpus.frames=0"), *out]) == 2
    assert "corpus.frames a second are drawn" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_with_frames_or_a_voice_it_goes_on(tracks, tmp_path, capsys):
    drawn = of(tracks, "corpus.frames=2", "corpus.image_size=14")
    assert main(["prepare", *drawn, "--run-dir", str(tmp_path / "drawn")]) == 0
    assert "no expression" in capsys.readouterr().out
    rng = np.random.default_rng(0)
    for file in list(one_sided(tracks).glob("*.npz")):
        voice = rng.uniform(-0.5, 0.5, 6 * AUDIO_RATE).astype(np.float32)
        wavfile.write(tracks / f"{file.name[0]}_speaker1.wav", AUDIO_RATE, voice)
    assert main(["prepare", *of(tracks), "--run-dir", str(tmp_path / "heard")]) == 0


def test_a_transcriber_that_hears_nothing_is_found_out_after_the_reading(tracks, tmp_path, capsys):
    for file in list(one_sided(tracks).glob("*.npz")):
        wavfile.write(
            tracks / f"{file.name[0]}_speaker1.wav",
            AUDIO_RATE,
            np.zeros(6 * AUDIO_RATE, np.float32),
        )
    keys = of(tracks, "corpus.transcriber=tests.pipeline.test_data_dualtalk:Deaf")
    assert main(["prepare", *keys, "--run-dir", str(tmp_path / "run")]) == 2
    assert "the speaker's words: the same in all clips" in capsys.readouterr().err
