"""How much of the recordings is lost where their parts are not equally long.

A recording is cut to the shortest of its tracks and sounds, in both roles. A few frames are usual,
since trackers and encoders end where they like. More says that a file is broken, or that motion is
not at the rate that it is taken for: then sound and face would run apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rapport.log import logger
from rapport.pipeline.data.store import CorpusError

# Up to here a cut is counted and no more: a recording's last frames.
_USUAL_SHARE = 0.02
_USUAL_SECONDS = 0.2
# A recording that loses a tenth has a broken file.
_MOST_OF_ONE = 0.10
# With a twentieth of the material gone a corpus is another one than was given.
_MOST_OF_ALL = 0.05
# Frame rates of cameras and of published tracks.
_RATES = (15.0, 24.0, 25.0, 30.0, 50.0, 60.0)
_NAMED = 5  # files in an error


@dataclass
class Lengths:
    """Seconds of recordings, and of what is lost of them.

    Args:
        seconds: of all recordings, each as long as its longest part.
        lost_seconds: of them, what the shorter parts cut off.
        cut: a line for each recording that loses more than its last frames.
        broken: those of them that lose more than a tenth.
    """

    seconds: float = 0.0
    lost_seconds: float = 0.0
    cut: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def add(self, parts: Mapping[str, float]) -> None:
        """Count a recording, and say it where much of it is lost.

        Args:
            parts: file, or what else a part is called -> seconds.
        """
        longest = max(parts.values())
        shortest = min(parts, key=lambda name: parts[name])
        lost = longest - parts[shortest]
        self.seconds += longest
        self.lost_seconds += lost
        if lost <= max(_USUAL_SHARE * longest, _USUAL_SECONDS):
            return
        line = (
            f"{shortest} ends after {parts[shortest]:.2f} s, the recording after {longest:.2f} s: "
            f"{lost:.2f} s are lost"
        )
        logger.warning(f"  {line}")
        self.cut.append(line)
        if lost > _MOST_OF_ONE * longest:
            self.broken.append(line)

    def lose(self, seconds: float) -> None:
        """Count a recording of which nothing can be used."""
        self.seconds += seconds
        self.lost_seconds += seconds

    def require_small(self, root: Path) -> None:
        """Raise `CorpusError` when a recording loses over a tenth, or all together a twentieth."""
        if self.broken:
            more = len(self.broken) - _NAMED
            raise CorpusError(
                f"{len(self.broken)} recordings lose more than {_MOST_OF_ONE:.0%} to a file that "
                "is too short. Mend these files or take their recordings out: "
                + ". ".join(self.broken[:_NAMED])
                + (f". And {more} more" if more > 0 else "")
            )
        self.require_small_share(root)

    def require_small_share(self, root: Path) -> None:
        """Raise `CorpusError` when all recordings together lose over a twentieth."""
        if self.lost_seconds > _MOST_OF_ALL * self.seconds:
            raise CorpusError(
                f"{root}: {self.lost_seconds:.1f} of {self.seconds:.1f} s cannot be used, over "
                f"{_MOST_OF_ALL:.0%}: files are missing or too short. Mend them, or take their "
                "recordings out" + "".join(f". {line}" for line in self.cut[:_NAMED])
            )


def rate_of(frames: int, fps: float, seconds: float) -> float | None:
    """The usual frame rate at which `frames` last as long as their sound, if that is not `fps`.

    Args:
        frames: of motion.
        fps: that it is taken for.
        seconds: of its sound.
    """
    if abs(frames / fps - seconds) <= max(_USUAL_SHARE * seconds, _USUAL_SECONDS):
        return None
    return next((rate for rate in _RATES if abs(frames / rate / seconds - 1) < 0.01), None)
