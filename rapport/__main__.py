"""`rapport RECIPE ...`, or `python -m rapport`: the command line of `rapport.pipeline.run`.

It imports next to nothing, so that an interrupt in the first second ends with a word, too.
"""

from __future__ import annotations

import sys

from rapport import interrupts


def main() -> int:
    """Run what the command line asks for; returns the exit status."""
    with interrupts.heeded():
        try:
            from rapport.pipeline.run import main as run

            return run()
        except KeyboardInterrupt as error:
            print("rapport: interrupted before it began", file=sys.stderr)
            return interrupts.status(error)


if __name__ == "__main__":
    sys.exit(main())
