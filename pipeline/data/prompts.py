"""Whether anything that a policy perceives differs from clip to clip.

Where it does not, all prompts are alike: a policy would learn the average listener, whoever talks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from itertools import islice

import numpy as np

from rapport.pipeline.data.settings import CorpusConfig
from rapport.pipeline.data.store import CorpusError
from rapport.policies.clip import Clip, Past

SEVERAL = 200  # clips that are looked at
NAMES = {
    "speaker": "the speaker's motion",
    "speaker_frames": "frames of the speaker",
    "speaker_audio": "the speaker's voice",
    "words": "the speaker's words",
}
# How an input is given: kind of corpus -> modality -> what to do.
WAYS = {
    "dualtalk": {
        "speaker": "the npz of both sides of a recording",
        "speaker_frames": "the npz of both sides of a recording, from which corpus.frames a second "
        "are drawn (head.path=FLAME2020.pkl shows their expressions, too)",
        "speaker_audio": "RECORDING_speaker1.wav and _speaker2.wav",
        "words": "a transcript beside each wav, as RECORDING_speaker1.json, .vtt, .srt or .txt, or "
        "corpus.transcriber=module:Class",
    },
    "livelink": {
        "speaker": "the csv of both sides of a recording",
        "speaker_frames": "the csv of both sides of a recording, from which corpus.frames a second "
        "are drawn",
        "speaker_audio": "RECORDING_speaker1.wav and _speaker2.wav",
        "words": "a transcript beside each wav, as RECORDING_speaker1.json, .vtt, .srt or .txt, or "
        "corpus.transcriber=module:Class",
    },
    "video": {
        "speaker": "films of both people: file_a and file_b, or both halves of one",
        "speaker_frames": "films of both people, with corpus.frames a second",
        "speaker_audio": "films with sound, or sound_a and sound_b",
        "words": "a transcript beside each film, as FILM.json, .vtt, .srt or .txt, or "
        "corpus.transcriber=module:Class; of a split screen one of each person, as "
        "RECORDING_speaker1.json and _speaker2.json",
    },
    "lm_listener": {
        "speaker": "segments with p1_exp and p1_pose",
        "speaker_frames": "corpus.videos=FOLDER with corpus.frames a second",
        "words": "segments with during_words",
    },
    "react": {
        "speaker": "3D_FV_files",
        "speaker_frames": "Video_files, of which corpus.frames a second are taken",
        "speaker_audio": "Audio_files",
        "words": "corpus.transcriber=module:Class",
    },
    "mars": {
        "speaker": "coefficients",
        "speaker_frames": "video-face-crop, of which corpus.frames a second are taken",
        "speaker_audio": "audio",
        "words": "corpus.transcriber=module:Class",
    },
    "parquet": {name: f"a corpus of clips with {name}" for name in NAMES},
    "synthetic": {"speaker_frames": "corpus.frames a second"},
}


def require_unlike_prompts(
    clips: Iterable[Clip], reads: Collection[str], config: CorpusConfig
) -> None:
    """Raise `CorpusError` where all of several clips are alike in what a policy reads.

    It names what is missing and how to give it. Clips are taken only until two are unlike; of a
    single one nothing can be said.

    Args:
        clips: `SEVERAL` of them at most are looked at.
        reads: modalities that the policy reads.
        config: of their corpus.
    """
    looked_at = 0
    absent: set[str] = set(reads)
    own: set[bytes] = set()
    # Apart from each other: that a recording starts later tells nothing of what is said in it.
    pasts: set[bytes] = set()
    for clip in islice(clips, SEVERAL):
        own.add(digest(clip, reads))
        if clip.past is not None:
            pasts.add(digest(clip.past, reads))
        if max(len(own), len(pasts)) > 1:
            return
        looked_at += 1
        absent &= set(clip.absent)
    if looked_at < 2:
        return
    ways = WAYS[config.kind]
    lines = [
        f"  {NAMES[name]}: {'absent' if name in absent else 'the same in all clips'}"
        + (f". Give {ways[name]}" if name in ways else f"; corpus.kind={config.kind} has none")
        for name in NAMES
        if name in reads
    ]
    raise CorpusError(
        f"all prompts of {config.root or config.kind} are alike ({looked_at} clips were looked "
        "at): a policy could not tell one speaker from another. One of these must differ:\n"
        + "\n".join(lines)
    )


def digest(part: Clip | Past, reads: Collection[str]) -> bytes:
    """The same for two clips, or two pasts, that are alike in these modalities."""
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(reads):
        value = getattr(part, name)
        total.update(f"{name} {value is None} ".encode())
        if name == "words":
            total.update(" ".join(word.text for word in value or ()).encode())
        elif value is not None:
            array = np.ascontiguousarray(value.values if name == "speaker" else value)
            total.update(f"{array.shape} ".encode() + array.tobytes())
    return total.digest()
