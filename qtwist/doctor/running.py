"""The run of `qtwist doctor`: the checks, printed as they come, and the records to publish."""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, Protocol

from qtwist.commands.base import PERMANENT, TEMPORARY
from qtwist.commands.streams import emit
from qtwist.control import ControlError
from qtwist.doctor.checks import BAD, Case, Finding, examine, records
from qtwist.home import Home
from qtwist.remote.own import own_addresses
from qtwist.tls.contexts import read_identity

_PROG = "qtwist doctor"
_SECONDS = 10  # to reach port 25


def run(path: str, outside: str) -> int:
    """Look at the home at `path`, and try port 25 with the domain `outside`; returns the exit code."""
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
