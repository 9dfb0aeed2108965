"""Which recordings, or which parts of them, are held out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from rapport.log import logger
from rapport.pipeline.data.store import SPLITS, CorpusError

# Where publishers have no validation split, so much of their training split becomes it.
VALIDATION_SHARE = 0.1
# Where they have none at all, so much becomes test, and as much again validation.
HELD_OUT_SHARE = 0.25
# Of a single recording, which would else be held out by less than a clip.
TIME_SHARE = 0.25


@dataclass(frozen=True)
class Stretch:
    """A part of a recording, and the split that it belongs to.

    Args:
        recording: which one, a name or a number.
        people: who is in it; recordings of the same people have the same.
        split: "train", "validation" or "test".
        begin: where the part begins, as a share of the recording's time.
        end: where it ends.
    """

    recording: str | int
    people: str
    split: str
    begin: float = 0.0
    end: float = 1.0

    def frames(self, count: int) -> tuple[int, int]:
        """First frame and number of frames, of a recording of `count` frames."""
        first = round(self.begin * count)
        return first, round(self.end * count) - first


def hold_out(stretches: Sequence[Stretch], split: str, share: float) -> list[Stretch]:
    """Make the last of the training stretches a held-out split, by people wherever there are any.

    With the same people in all recordings the last recordings are taken, of a single recording the
    last part of its time; both are said.

    Args:
        stretches: of all splits, in order.
        split: that takes them.
        share: how much of the training stretches, in (0, 1); one at least.
    """
    training = [stretch for stretch in stretches if stretch.split == "train"]
    people = list(dict.fromkeys(stretch.people for stretch in training))
    taken: Collection[Stretch]
    if len(people) > 1:
        last = set(people[-max(1, round(share * len(people))) :])
        taken = {stretch for stretch in training if stretch.people in last}
    elif len(training) > 1:
        taken = training[-max(1, round(share * len(training))) :]
        logger.warning(f"  {split}: the last recordings of the same people as in training")
    else:
        share = max(share, TIME_SHARE)
        logger.warning(f"  {split}: the last {share:.0%} of the training part of one recording")
        return [piece for stretch in stretches for piece in _cut(stretch, split, share)]
    return [replace(stretch, split=split) if stretch in taken else stretch for stretch in stretches]


def hold_out_both(stretches: Sequence[Stretch]) -> list[Stretch]:
    """Make `HELD_OUT_SHARE` of the training stretches test, and as much of them validation."""
    rest = hold_out(stretches, "test", HELD_OUT_SHARE)
    # The second share is of what the first has left.
    return hold_out(rest, "validation", HELD_OUT_SHARE / (1 - HELD_OUT_SHARE))


def by_recording(stretches: Sequence[Stretch]) -> dict[str | int, list[Stretch]]:
    """The stretches of each recording."""
    grouped: dict[str | int, list[Stretch]] = {}
    for stretch in stretches:
        grouped.setdefault(stretch.recording, []).append(stretch)
    return grouped


def _cut(stretch: Stretch, split: str, share: float) -> list[Stretch]:
    if stretch.split != "train":
        return [stretch]
    border = stretch.end - share * (stretch.end - stretch.begin)
    return [replace(stretch, end=border), replace(stretch, split=split, begin=border)]


def require_splits(
    there: Collection[str], root: object, seconds: float, wanted: Sequence[str] = SPLITS
) -> None:
    """Raise `CorpusError` where a split has no clip.

    Args:
        there: splits that have one.
        root: of the files, for the message.
        seconds: length of a clip.
        wanted: splits that must have one.
    """
    if not there:
        raise CorpusError(
            f"{root} gave no clip of {seconds:g} s: lower corpus.seconds or add recordings"
        )
    for split in wanted:
        if split not in there:
            raise CorpusError(
                f"{root}: no {split} clip of {seconds:g} s. Recordings, or what of a single one "
                "is held out, are shorter: lower corpus.seconds"
            )
