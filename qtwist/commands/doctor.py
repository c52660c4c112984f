"""`qtwist doctor`: looks at what a mail server needs, and says what is missing."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, Protocol

from qtwist.commands.base import PERMANENT, TEMPORARY, answer_help, die, home
from qtwist.commands.streams import emit
from qtwist.control import ControlError
from qtwist.doctor.checks import BAD, Case, Finding, examine, records
from qtwist.home import Home
from qtwist.remote.own import own_addresses
from qtwist.tls.contexts import read_identity

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
_SECONDS = 10  # to reach port 25


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
    from twisted.internet import reactor

    place = Home(path)
    case = Case(
        home=path,
        control=place.control,
        resolver=place.resolver,
        own=own_addresses(),
        reaches=lambda address: reaches(reactor, address, 25),
        outside=outside.encode("ascii", "replace"),
        now=time.time(),
    )
    codes: list[int] = []

    def ended(result: Any) -> None:
        codes.append(result if isinstance(result, int) else TEMPORARY)
        if not isinstance(result, int):
            result.printTraceback()
        reactor.stop()  # type: ignore[attr-defined]

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(report(case)).addBoth(ended))  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]
    return codes[0]


async def report(case: Case) -> int:
    """Print all there is to say; returns the exit code."""
    bad = False
    async for finding in examine(case):
        bad = bad or finding.level == BAD
        emit(_PROG, [_line(finding)])
    emit(_PROG, [b"\nDNS records to publish:\n\n"])
    emit(_PROG, [line.encode("utf-8", "backslashreplace") + b"\n" for line in records(case, _tlsa(case))])
    return PERMANENT if bad else 0


def _line(finding: Finding) -> bytes:
    return f"{finding.level:5}{finding.text}\n".encode("utf-8", "backslashreplace")


def _tlsa(case: Case) -> str | None:
    try:
        return read_identity(case.control.path("servercert.pem")).tlsa
    except ControlError:
        return None


async def reaches(reactor: Any, address: str, port: int) -> bool:
    """Whether a connection to that port comes about in ten seconds."""
    endpoint: Any = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
    try:
        connection: Any = await endpoint(reactor, address, port, timeout=_SECONDS).connect(
            Factory.forProtocol(Protocol)
        )
    except ConnectError:
        return False
    connection.transport.abortConnection()
    return True
