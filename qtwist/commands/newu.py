"""qmail-newu: compile users/assign to users/cdb (spec/qmail.md §12.2)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from qtwist.commands import compiling
from qtwist.files.assign import AssignError, compile_assign


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return compiling.run("qmail-newu", "Compile users/assign to users/cdb.", argv, _compile)


def _compile(home: str) -> None:
    try:
        compiling.write(home, "users/cdb", "users/cdb.tmp", compile_assign(compiling.read(home, "users/assign")))
    except AssignError as error:
        raise compiling.Fatal(f"bad format in users/assign: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
