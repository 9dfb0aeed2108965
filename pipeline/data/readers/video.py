"""Reader of films of people who talk: their faces are tracked, and become motion of a head.

Recordings, see `rapport.pipeline.data.video.table`, become shards one by one; the corpus is put
together of these. Clips are cut where both people are tracked and one talks while the other
listens. What was not tracked is cut, not made up.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rapport.files import write_atomic
from rapport.log import logger
from rapport.pipeline.data.readers.dyads import Cutting
from rapport.pipeline.data.readers.splits import Stretch, require_splits
from rapport.pipeline.data.settings import CorpusConfig
from rapport.pipeline.data.store import Corpus, CorpusError, CorpusWriter
from rapport.pipeline.data.video.captions import (
    captions_of,
    read_captions,
    require_captioner,
    write_captions,
)
from rapport.pipeline.data.video.landmarks import Landmarker, require_tracker
from rapport.pipeline.data.video.making import REJECTED, Tools, make_shards
from rapport.pipeline.data.video.regressor import Regressor, learnt
from rapport.pipeline.data.video.shards import Plan, read_shard
from rapport.pipeline.data.video.table import (
    ALONE,
    Recorded,
    not_read,
    read_recordings,
    split_by_person,
)
from rapport.pipeline.data.video.voices import best_voices, ear_of
from rapport.policies.clip import Clip
from rapport.policies.head.asset import load_head
from rapport.policies.head.settings import HeadConfig
from rapport.wording import first_few

FPS = 25.0
TRACKED = "tracked"  # folder of the shards, beside the corpus
FIGURES = "tracking.csv"
_NAMED = 3  # reasons in an error


def look_at_video(config: CorpusConfig) -> list[Recorded]:
    """The recordings, once all that tracking needs is there.

    Raises:
        CorpusError: there are none, or all are of one person alone, or MediaPipe, its weights or
            Silero are missing.
    """
    assert config.root is not None
    recordings = read_recordings(config.root, config.split_screen, config.tracks)
    if all(len(recorded.people) < 2 for recorded in recordings):
        raise CorpusError(f"{config.root}: {ALONE}")
    if _is_tracked_here(recordings):
        require_tracker(config.landmarker)
    ear_of(config.voices or best_voices())
    if config.captioner is not None:
        require_captioner(config.captioner)
    return recordings


def import_video(config: CorpusConfig, path: Path, head: HeadConfig) -> Corpus:
    """Track recordings and write their clips as a corpus.

    Args:
        config: which recordings, how they are cut.
        path: folder of the corpus to create; shards, figures and a page to look at are beside it.
        head: whose coefficients are told.

    Raises:
        CorpusError: no recordings, a missing part of the extra, or nothing to learn from.
    """
    recordings = look_at_video(config)
    plan = Plan(
        fps=config.fps or FPS,
        cutting=Cutting(config.seconds, stride=config.stride, past=config.past),
        rate=config.frames,
        size=config.image_size,
        tracked=config.tracked,
        spoken=config.spoken,
        captioned=config.captioner is not None,
    )
    plan.cutting.frames(plan.fps)  # raises where a clip is shorter than a frame
    tools = Tools(
        head,
        voices=config.voices or best_voices(),
        landmarker=config.landmarker,
        regressor=_regressor(config, head) if _is_tracked_here(recordings) else None,
        transcriber=config.transcriber,
        transcripts=path.with_name("transcripts"),
    )
    logger.info(f"  {len(recordings)} recordings; who talks is told by {tools.voices}")
    assert config.root is not None
    say_what_is_not_read(config.root, recordings)
    shards = path.with_name(TRACKED)
    records, rejected = make_shards(shards, recordings, plan, tools, config.workers)
    if not records:
        reasons = first_few([f"{name}: {why}" for name, why in rejected.items()], _NAMED)
        raise CorpusError(f"all recordings were rejected ({shards / REJECTED}): {reasons}")
    _write_figures(path.with_name(FIGURES), records)
    made = [recorded for recorded in recordings if recorded.name not in rejected]
    if config.captioner is not None:
        folders = [shards / recorded.name for recorded in made]
        write_captions(folders, config.captioner, config.workers)
    counts = _counts(records, rejected)
    if counts["shared_sound"]:
        logger.warning(
            f"  {counts['shared_sound']} recordings have one sound of both people: the speaker's "
            "voice has the listener's in it, and who talks is told by whose jaw moves"
        )
    source = {
        "kind": "video",
        **asdict(plan),
        "voices": tools.voices,
        "tracker": {} if tools.regressor is None else tools.regressor.about,
        "transcriber": config.transcriber,
        "captioner": None if config.captioner is None else config.captioner.name,
        "counts": counts,
    }
    stretches = split_by_person(made)
    with CorpusWriter(path, source) as writer:
        for recorded, record in zip(made, records, strict=True):
            shard = shards / recorded.name
            said = {} if config.captioner is None else read_captions(shard)
            for clip in read_shard(shard):
                placed = _placed(clip, stretches[recorded.name], record["seconds"])
                if placed is not None:
                    writer.add(placed, captions=captions_of(clip, said))
        _require_clips(writer, config, counts)
    return Corpus(path)


def _require_clips(writer: CorpusWriter, config: CorpusConfig, counts: Mapping[str, Any]) -> None:
    """Raise `CorpusError` where a split has no clip; says what windows were left out for."""
    try:
        require_splits(writer.splits, config.root, config.seconds)
    except CorpusError as error:
        raise CorpusError(
            f"{error}. Of {counts['windows']} windows {counts['lost_face']} were left out as a "
            f"face was not tracked (corpus.tracked), {counts['not_spoken']} as the speaker does "
            "not talk (corpus.spoken)"
        ) from error


def say_what_is_not_read(root: Path, recordings: Sequence[Recorded]) -> None:
    """Name what lies in a folder and is no film, and transcripts that do not say whose they are."""
    others = not_read(root, recordings)
    if others:
        logger.warning(
            f"  {root}: {len(others)} entries are no films and not read: {first_few(others)}. A "
            "table takes films and sounds of any folder"
        )
    untold = [each for each in recordings if not any(map(each.transcripts, each.people))]
    undivided = [file for recorded in untold for file in recorded.undivided]
    if undivided:
        logger.warning(
            "  not read, as they do not say which of two people says what: "
            f"{first_few([file.name for file in undivided])}. Give each person's words, as "
            "RECORDING_speaker1.json and _speaker2.json"
        )


def _is_tracked_here(recordings: Sequence[Recorded]) -> bool:
    people = [person for recorded in recordings for person in recorded.people.values()]
    return any(person.file is not None and person.track is None for person in people)


def _regressor(config: CorpusConfig, head: HeadConfig) -> Regressor:
    with Landmarker(config.landmarker) as landmarker:
        return learnt(load_head(head.path, head.topology), landmarker)


def _placed(clip: Clip, stretches: Sequence[Stretch], seconds: float) -> Clip | None:
    """The clip in the split in which it lies; None on a border. No past reaches over one.

    Nor do the words of the past, which are remembered for longer.
    """
    for stretch in stretches:
        begin = stretch.begin * seconds
        if begin - 1e-6 <= clip.start and clip.start + clip.seconds <= stretch.end * seconds + 1e-6:
            before = 0.0 if clip.past is None else clip.past.listener.seconds
            past = clip.past if clip.start - before >= begin - 1e-6 else None
            if past is not None and past.words is not None:
                heard = (w for w in past.words if clip.start + (w.start + w.end) / 2 >= begin)
                past = replace(past, words=tuple(heard))
            return replace(clip, split=stretch.split, past=past)
    return None


def _counts(records: Sequence[Mapping[str, Any]], rejected: Mapping[str, str]) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for record in records:
        for name in ("windows", "clips", "lost_face", "not_spoken", "shared_sound"):
            counts[name] += int(record[name])
    alone = sum(len(record["people"]) < 2 for record in records)
    people = {each["person"] for record in records for each in record["people"].values()}
    hours = sum(record["seconds"] for record in records) / 3600
    cpu = sum(record["cpu_s"] for record in records) / 3600
    return {
        "recordings": len(records),
        "rejected": sorted(rejected),
        "people": len(people),
        "one_face": alone,
        **counts,
        "hours": round(hours, 4),
        "cpu_hours": round(cpu, 4),
    }


def _write_figures(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """A row for each person of each recording."""
    rows = [
        {
            "recording": record["recording"],
            "side": side,
            "seconds": record["seconds"],
            "cpu_s": record["cpu_s"],
            **figures,
        }
        for record in records
        for side, figures in record["people"].items()
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())
