"""tcprules: compile rules about clients, such as tcp.smtp, to a constant database (spec/related.md §4.2)."""

from __future__ import annotations

import sys

from qtwist.commands.base import PERMANENT, answer_help, die
from qtwist.commands.cdbmake import write
from qtwist.commands.streams import read_blocks
from qtwist.files.tcprules import RuleError, compile_rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = """\
NAME
    tcprules - compile rules about clients to a database

SYNOPSIS
    tcprules FILE TEMPORARY < RULES

DESCRIPTION
    Reads rules from standard input, one a line:

        ADDRESS:allow
        ADDRESS:deny
        ADDRESS:allow,NAME="VALUE",NAME="VALUE"

    Any other character may stand in place of the quotes. ADDRESS is
        1.2.3.4           a client's IP address (IPv6 likewise: 2001:db8::1)
        1.2.3.            the start of IP addresses (IPv6 likewise: 2001:db8:)
        1.2.3.37-53       a range of numbers in one place of an address
        =host.example     a client's name;  =.example  the end of names
        =                 any client whose name is known
        user@1.2.3.4      with what IDENT says;  user@=host.example
        (nothing)         any client
    The most special rule about a client is the one that counts; of several for
    the same address, the first. Empty lines, lines that start with #, and lines
    without a colon mean nothing.

    The database is made as TEMPORARY, which has to be on the same file system,
    synced, and then renamed to FILE.

EXIT CODES
    0    done
    100  a line is no rule (it is shown); or wrong use
    111  standard input cannot be read, or a file cannot be written

SEE ALSO
    tcprulescheck, qmailctl cdb
"""

_PROG = "tcprules"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    answer_help(arguments, USAGE)
    if len(arguments) < 2:
        die(_PROG, PERMANENT, "usage: tcprules file temporary")
    compile_text(_PROG, arguments[0], arguments[1], b"".join(read_blocks(_PROG)))
    return 0


def compile_text(prog: str, path: str, temporary: str, text: bytes) -> None:
    """Compile rules to the database `path`; dies with 100 for a line that is none, with 111 if it cannot be written."""
    try:
        write(prog, path, temporary, compile_rules(text))
    except RuleError as error:
        die(prog, PERMANENT, b"fatal: unable to parse this line: " + error.line)
