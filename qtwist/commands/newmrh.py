"""qmail-newmrh: compile control/morercpthosts to control/morercpthosts.cdb (spec/qmail.md §16.8)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from qtwist.commands import compiling
from qtwist.control import split_lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    does = "Compile control/morercpthosts to control/morercpthosts.cdb."
    return compiling.run("qmail-newmrh", does, argv, _compile)


def _compile(home: str) -> None:
    text = compiling.read(home, "control/morercpthosts")
    records = ((line.lower(), b"") for _, line in split_lines(text))
    compiling.write(home, "control/morercpthosts.cdb", "control/morercpthosts.tmp", records)


if __name__ == "__main__":
    sys.exit(main())
