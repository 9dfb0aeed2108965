"""Which clips are of one conversation: they share people, and are not independent."""

from __future__ import annotations

from collections.abc import Mapping


def conversations(people: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Name of the conversation of each clip: who speaks in the first clip of it.

    Clips with the same dyad or the same speaker are of one, and so are those that are connected by
    others: several listeners to one speaker, and both people of a recording, who listen in turn. A
    dyad may have the name of a speaker: where it says who listens, and that person speaks in turn.

    Args:
        people: clip id -> dyad and who speaks.
    """
    together: dict[str, str] = {}  # name -> one that stands for all that it is together with

    def root_of(name: str) -> str:
        while together.setdefault(name, name) != name:
            name = together[name]
        return name

    for dyad, speaker in people.values():
        together[root_of(dyad)] = root_of(speaker)
    names: dict[str, str] = {}
    return {
        clip_id: names.setdefault(root_of(dyad), speaker)
        for clip_id, (dyad, speaker) in people.items()
    }
