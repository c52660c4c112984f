"""maildirmake: make a maildir (spec/qmail.md §21)."""

from __future__ import annotations

import os
import sys

from qtwist.commands.base import PERMANENT, TEMPORARY, answer_help, die

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = """\
NAME
    maildirmake - make a maildir

SYNOPSIS
    maildirmake DIRECTORY

DESCRIPTION
    Makes DIRECTORY, which must not exist, with tmp, new and cur in it, for its
    owner alone. Make it as the user whose mail it will hold.

EXIT CODES
    0    done
    100  wrong use
    111  a directory cannot be made
"""

_PROG = "maildirmake"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    answer_help(arguments, USAGE)
    if not arguments:
        die(_PROG, PERMANENT, "usage: maildirmake name")
    os.umask(0o077)
    for part in ("", "tmp", "new", "cur"):
        path = os.path.join(arguments[0], part) if part else arguments[0]
        try:
            os.mkdir(path, 0o700)
        except OSError as error:
            die(_PROG, TEMPORARY, f"fatal: unable to mkdir {path}: {error.strerror}")
    return 0
