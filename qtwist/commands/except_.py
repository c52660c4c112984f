"""except: turn a program's exit code around, for .qmail lines (spec/qmail.md §21)."""

from __future__ import annotations

import sys

from qtwist.commands.base import PERMANENT, answer_help, die
from qtwist.commands.running import agrees

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = """\
NAME
    except - turn a program's exit code around

SYNOPSIS
    except PROGRAM [ARGUMENT ...]

DESCRIPTION
    Runs the program and exits with 100 when it exits with 0, with 0 when it
    fails. A temporary failure (111, or when it is killed) stays one.

    In a .qmail file, "|bouncesaying TEXT except PROGRAM" sends back what the
    program does not want.

ENVIRONMENT
    PATH        where the program is looked for

EXIT CODES
    0    the program failed for good
    100  it succeeded; or wrong use
    111  not now
"""

_PROG = "except"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    answer_help(arguments, USAGE)
    if not arguments:
        die(_PROG, PERMANENT, "usage: except program [ argument ... ]")
    return PERMANENT if agrees(_PROG, arguments) else 0
