"""Carries one message to one of the addresses of its host (spec/qmail.md §15.3, its last paragraph, and §15.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from twisted.internet.defer import TimeoutError as ConnectTimeout
from twisted.internet.error import ConnectError, TCPTimedOutError
from twisted.internet.interfaces import IReactorTime

from qtwist.mail.envelope import Report
from qtwist.remote import reports
from qtwist.remote.client import Connection, Message, Outcome, Trouble, Unreadable, connect
from qtwist.remote.hosts import Host
from qtwist.remote.pool import Key, Pool
from qtwist.remote.qmtp import Package, QMTPConnection, is_qmtp_preference
from qtwist.remote.routes import QMTP_PORT
from qtwist.remote.tcpto import TimeoutTable
from qtwist.wire.smtp_client import Broken, Refused, TooLarge, Transaction

MAX_SESSIONS = 5
"""Servers that may refuse a session, or let it die, before the delivery is put off: each may take its full timeout."""


QMTP_BACK_OFF = 3600
"""Seconds for which a port that kept us waiting in vain is not asked for QMTP again."""

MAX_REMEMBERED = 10_000
"""How many such ports are remembered."""


@attrs.frozen
class Terms:
    """What control files say about talking to servers: our name, and timeouts in seconds."""

    helohost: bytes
    timeoutconnect: int
    timeoutremote: int


class Carrier:
    """Tries addresses in order until a server has had the chance to answer MAIL.

    Unlike qmail, which gives up after the first connection, the next address is tried when a server refuses the
    session in its greeting or at HELO, or lets it die before MAIL. From MAIL on, the server's word counts.
    """

    def __init__(self, reactor: Any, clock: IReactorTime, table: TimeoutTable, pool: Pool) -> None:
        self._reactor = reactor
        self._clock = clock
        self._table = table
        self._pool = pool
        self._without_qmtp: dict[tuple[str, int], float] = {}  # where nobody answered, and until when that counts

    async def carry(
        self,
        transaction: Transaction,
        package: Package,
        message: Message,
        hosts: Sequence[Host],
        port: int,
        terms: Terms,
        qmtp_port: int | None = None,
    ) -> Report:
        """The report for the only recipient of `transaction`, which is that of `package`, too.

        `qmtp_port` is where all `hosts` are asked to speak QMTP first; without it, those that their preference tells
        of are, on the port of QMTP. Where nobody answers there, SMTP is spoken on `port`; once a connection for QMTP
        was there, what comes of it counts, so that nothing is sent twice (spec/related.md §13.1).
        """
        keyed = [(host.preference, Key(host.address, port, terms.helohost)) for host in hosts]
        # Among equals, the one to which a connection is open; sorting is stable, so the order stays random else.
        keyed.sort(key=lambda pair: (pair[0], not self._pool.has(pair[1])))
        report = reports.NO_CONNECTION
        sessions = 0
        for preference, key in keyed:
            by_qmtp = qmtp_port or (QMTP_PORT if is_qmtp_preference(preference) else None)
            if by_qmtp is not None and package.fits:
                report_of_qmtp = await self._by_qmtp(key.address, by_qmtp, package, message, terms)
                if report_of_qmtp is not None:
                    return report_of_qmtp
            while (connection := self._pool.take(key)) is not None:
                connection.timeout = terms.timeoutremote
                outcome = await connection.send(transaction, message)
                if not outcome.stale:
                    return _report(key.address, outcome)
            connection = await self._open(key, terms)
            if connection is None:
                continue
            trouble = await connection.greeted
            if trouble is None:
                return _report(key.address, await connection.send(transaction, message))
            report = _session_report(key.address, trouble)
            sessions += 1
            if sessions == MAX_SESSIONS:
                break
        return report

    async def _by_qmtp(
        self, address: str, port: int, package: Package, message: Message, terms: Terms
    ) -> Report | None:
        """The report of a package; None when there is no connection, which says nothing of SMTP."""
        now = self._clock.seconds()
        if self._table.skip(address)[0] or self._without_qmtp.get((address, port), 0) > now:
            return None
        connection = QMTPConnection(package, message, terms.timeoutremote, self._clock)
        try:
            await connect(self._reactor, self._clock, address, port, terms.timeoutconnect, connection)
        except (ConnectTimeout, TCPTimedOutError):
            # A firewall that lets nothing but port 25 pass must not cost its patience for every message.
            if len(self._without_qmtp) >= MAX_REMEMBERED:
                self._without_qmtp.clear()
            self._without_qmtp[address, port] = now + QMTP_BACK_OFF
            return None
        except ConnectError:
            return None
        self._without_qmtp.pop((address, port), None)
        return reports.qmtp(address, await connection.result)

    async def _open(self, key: Key, terms: Terms) -> Connection | None:
        """A new connection, or None when there is none to be had."""
        skip, known = self._table.skip(key.address)
        if skip:
            return None
        connection = Connection(terms.helohost, terms.timeoutremote, self._clock)
        try:
            await connect(self._reactor, self._clock, key.address, key.port, terms.timeoutconnect, connection)
        except (ConnectTimeout, TCPTimedOutError):
            self._table.timed_out(key.address)
            return None
        except ConnectError:
            if known:
                self._table.answered(key.address)
            return None
        if known:
            self._table.answered(key.address)
        self._pool.add(key, connection)
        return connection


def _session_report(address: str, trouble: Trouble) -> Report:
    if isinstance(trouble.event, Refused):
        return reports.refused(address, trouble.event)
    return reports.broken(address, trouble.event, trouble.waited)


def _report(address: str, outcome: Outcome) -> Report:
    end = outcome.end
    if isinstance(end, TooLarge):
        return reports.too_large(address, end.limit)
    if isinstance(end, Unreadable):
        return reports.UNREADABLE
    if isinstance(end, Broken):
        return reports.broken(address, end, outcome.waited)
    return reports.finished(address, outcome.recipients[0] if outcome.recipients else None, end)
