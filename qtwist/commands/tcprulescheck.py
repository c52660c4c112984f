"""tcprulescheck: say what compiled rules mean for a client (spec/related.md §4.3)."""

from __future__ import annotations

import os
import sys

from qtwist.commands.base import PERMANENT, TEMPORARY, answer_help, die
from qtwist.commands.streams import put
from qtwist.files.cdb import CDB, CDBError
from qtwist.files.tcprules import Verdict, find_rule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = """\
NAME
    tcprulescheck - say what compiled rules mean for a client

SYNOPSIS
    tcprulescheck FILE

DESCRIPTION
    Prints which rule in FILE, a database made by tcprules, is about the client
    that the environment describes, the variables that it sets, and whether the
    client may connect.

ENVIRONMENT
    TCPREMOTEIP    the client's IP address [0.0.0.0]
    TCPREMOTEHOST  its name, if it is known
    TCPREMOTEINFO  what IDENT says, if it is known

EXIT CODES
    0    printed, whatever the answer is
    100  wrong use
    111  the file cannot be read, or is no such database
"""

_PROG = "tcprulescheck"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    answer_help(arguments, USAGE)
    if not arguments:
        die(_PROG, PERMANENT, "usage: tcprulescheck file")
    variable = os.environb.get
    try:
        with CDB(arguments[0]) as database:
            verdict = find_rule(
                database.get,
                variable(b"TCPREMOTEIP", b"0.0.0.0"),
                variable(b"TCPREMOTEHOST"),
                variable(b"TCPREMOTEINFO"),
            )
    except (OSError, CDBError) as error:
        die(_PROG, TEMPORARY, f"fatal: unable to read {arguments[0]}: {getattr(error, 'strerror', None) or error}")
    put(_PROG, report(verdict))
    return 0


def report(verdict: Verdict) -> bytes:
    """What is printed."""
    lines = [b"default:" if verdict.rule is None else b"rule %b:" % verdict.rule]
    if verdict.allow:
        lines += [b"set environment variable " + variable for variable in verdict.variables]
    lines.append(b"allow connection" if verdict.allow else b"deny connection")
    return b"".join(line + b"\n" for line in lines)
