"""`qtwist unit`: the unit for systemd, on standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from qtwist.commands.base import PERMANENT, answer_help, die, home
from qtwist.commands.service_files import socket_unit, unit
from qtwist.commands.streams import put
from qtwist.commands.supervision import twistd_command

USAGE = """\
NAME
    qtwist unit - print the unit with which systemd runs the daemon

SYNOPSIS
    qtwist unit [--socket] [HOME]

DESCRIPTION
    Prints a unit for the daemon of HOME, to be put into
    /etc/systemd/system/qtwist.service (`qtwist install --systemd` does that)
    and changed as needed. The daemon is started as root and becomes the
    accounts of its roles by itself.

OPTIONS
    --socket  print qtwist.socket instead: systemd opens port 25, and
              control/listen says `smtp systemd:domain=INET:name=smtp`

ENVIRONMENT
    QTWISTHOME  HOME, unless it is given [/var/qmail]

EXIT CODES
    0    done
    100  wrong use
"""

_PROG = "qtwist unit"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    answer_help(arguments, USAGE)
    wants_socket = "--socket" in arguments
    arguments = [argument for argument in arguments if argument != "--socket"]
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        die(_PROG, PERMANENT, "usage: qtwist unit [ --socket ] [ home ]")
    path = os.path.abspath(arguments[0] if arguments else home())
    if "\n" in path:
        die(_PROG, PERMANENT, "fatal: a home with a line end in its name fits into no unit")
    put(_PROG, os.fsencode(socket_unit() if wants_socket else unit(twistd_command(), path)))
    return 0
