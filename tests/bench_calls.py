"""Calls that are drawn, filmed and read again: what is read, beside what was done.

    python -m tests.bench_calls draw CALLS 32     # films and transcripts
    python -m pipeline.run prepare corpus.kind=video corpus.root=CALLS corpus.split_screen=true \\
        corpus.voices=loudness --run-dir RUN
    python -m tests.bench_calls compare CALLS RUN

A film is a split screen in H.264 with the voice 20 dB above noise. The people are drawn from other
seeds than those the face reader has learnt from.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from rapport.pipeline.data.video import voices
from rapport.pipeline.data.video.quality import Gauge, errors
from rapport.pipeline.data.video.tracking import Track
from rapport.policies.head.asset import load_head
from rapport.policies.motion import Motion
from tests.calls import FPS, LONGEST_S, Call, film, made_up, noisy

FIRST = 100  # seed of the first call; tests have those below


def draw(folder: Path, count: int) -> None:
    """Write `count` films, each with the words of the speaker beside it."""
    folder.mkdir(parents=True)
    for number in range(count):
        call = made_up(LONGEST_S, FIRST + number)
        film(folder / f"call{number}.mp4", call)
        words = [{"word": each.text, "start": each.start, "end": each.end} for each in call.words]
        (folder / f"call{number}_speaker1.json").write_text(json.dumps(words))


def compare(folder: Path, run: Path) -> None:
    """Print how far what was read is from what was done, and from who keeps still."""
    calls = [
        made_up(LONGEST_S, FIRST + number) for number in range(len(list(folder.glob("*.mp4"))))
    ]
    [tracked] = run.glob("**/tracked")
    gauge = Gauge(load_head())
    for side, role in (("a", "speaker"), ("b", "listener")):
        pairs = list(read_beside(tracked, calls, side, role))
        print(f"{role}s, {sum(len(was) for was, _ in pairs) / FPS:.0f} s:")
        for part, far in errors(gauge, pairs).items():
            print(f"  {part}: " + ", ".join(f"{name} {value:.2f}" for name, value in far.items()))
        print(f"  rot, but for what is the same in all pictures: degrees {_wandering(pairs):.2f}")
    for ear in ("loudness", "silero"):
        hears = voices.ear_of(ear)
        wrong = [
            np.mean(hears(noisy(call, number)) != call.talks) for number, call in enumerate(calls)
        ]
        print(f"{ear}: who talks is wrong in {np.mean(wrong):.3f} of the time")
    always = np.mean([~call.talks for call in calls])
    print(f"always: who talks is wrong in {always:.3f} of the time")


def read_beside(
    tracked: Path, calls: list[Call], side: str, role: str
) -> Iterator[tuple[Motion, Motion]]:
    """What was done and what was read, where a face was tracked."""
    for number, call in enumerate(calls):
        track = Track.load(tracked / f"call{number}" / f"track-{side}.npz")
        was = _turned(getattr(call, role)).subset(track.motion.layout)
        there = track.there[: len(was)]
        yield tuple(
            Motion(motion.values[: len(there)][there], motion.layout)
            for motion in (was, track.motion)
        )


def _turned(motion: Motion) -> Motion:
    """With all of the head's turn in `rot`: a film does not tell what of it is the neck's."""
    values = motion.values.copy()
    root, neck = (Rotation.from_rotvec(motion.group(name)) for name in ("rot", "neck"))
    values[:, motion.layout.columns("rot")] = (root * neck).as_rotvec()
    return Motion(values, motion.layout)


def _wandering(pairs: list[tuple[Motion, Motion]]) -> float:
    """Degrees that heads are off about what is the same in all pictures of a person."""
    off = []
    for was, read in pairs:
        true, told = (Rotation.from_rotvec(motion.group("rot")) for motion in (was, read))
        same = (true.inv() * told).mean()
        off.append(((true * same).inv() * told).magnitude())
    return float(np.degrees(np.concatenate(off).mean()))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["draw", folder, count]:
            draw(Path(folder), int(count))
        case ["compare", folder, run]:
            compare(Path(folder), Path(run))
        case _:
            sys.exit(__doc__)
