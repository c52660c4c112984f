"""`qtwist doctor`: looks at what a mail server needs, and says what is missing."""

from __future__ import annotations

import os
import sys

from qtwist.commands.base import PERMANENT, TEMPORARY, answer_help, die, home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = """\
NAME
    qtwist doctor - say what a mail server lacks

SYNOPSIS
    qtwist doctor [--outside DOMAIN] [HOME]

DESCRIPTION
    Looks at the control files, the names of this host and its addresses, the
    MX records of its domains, whether port 25 of other hosts can be reached,
    certificates and their dates, whether a stranger could relay, the clock,
    and permissions. Each finding is a line that begins with ok, warn or BAD.
    Then come the DNS records to publish. Nothing is changed, and no mail is
    sent. The daemon need not run.

OPTIONS
    --outside DOMAIN  whose mail exchangers port 25 is tried with [gmail.com]

ENVIRONMENT
    QTWISTHOME  HOME, unless it is given [/var/qmail]

EXIT CODES
    0    nothing is BAD
    100  something is, or wrong use
    111  there is no home to look at
"""

_PROG = "qtwist doctor"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    answer_help(arguments, USAGE)
    outside = "gmail.com"
    if arguments[:1] == ["--outside"] and len(arguments) > 1:
        outside, arguments = arguments[1], arguments[2:]
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        die(_PROG, PERMANENT, "usage: qtwist doctor [ --outside domain ] [ home ]")
    path = os.path.abspath(arguments[0] if arguments else home())
    if not os.path.isdir(os.path.join(path, "control")):
        die(_PROG, TEMPORARY, f"{path}: no home, expected one as `qtwist init` or `qtwist install` makes it")
    from qtwist.doctor.running import run  # what it takes is not for every start of a command

    return run(path, outside)
