"""Carries one message to one of the addresses of its host (spec/qmail.md §15.3, its last paragraph, and §15.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from twisted.internet.defer import TimeoutError as ConnectTimeout
from twisted.internet.error import ConnectError, TCPTimedOutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from qtwist.mail.asked import PASSED_ON
from qtwist.mail.envelope import Report
from qtwist.remote import reports
from qtwist.remote.client import (
    Connection,
    Message,
    Outcome,
    TLSFailed,
    TLSTerms,
    Trouble,
    Unreadable,
    connect,
)
from qtwist.remote.hosts import Host
from qtwist.remote.pool import Key, Pool
from qtwist.remote.qmtp import Package, QMTPConnection, is_qmtp_preference
from qtwist.remote.routes import QMTP_PORT, SMTPS_PORT
from qtwist.remote.tcpto import TimeoutTable
from qtwist.remote.tlsrpt import NO_POLICY, STS, TLSA, TLSFigures
from qtwist.remote.tlsseen import SeenTLS
from qtwist.tls import dane
from qtwist.tls.clients import NO_TLS, ClientTLS, Demand
from qtwist.wire.sasl_client import Login
from qtwist.wire.smtp_client import (
    Broken,
    Finished,
    Lacking,
    NoLogin,
    RecipientResult,
    Refused,
    Stage,
    TooLarge,
    Transaction,
)

MAX_SESSIONS = 5
"""Servers that may refuse a session, or let it die, before the delivery is put off: each may take its full timeout."""


QMTP_BACK_OFF = 3600
"""Seconds for which a port that kept us waiting in vain is not asked for QMTP again."""

TLS_BACK_OFF = 3600
"""Seconds for which a port where TLS has failed is not asked for it again, unless it is demanded."""

MAX_REMEMBERED = 10_000
"""How many such ports are remembered."""


#: What control/authsenderstls asks for before a password is given away; 0 is nothing, 1 any TLS.
VERIFIED = 2

AUTH_TLS = "control/authsenderstls"
BY_DANE = "the TLSA records of "
BY_SENDER = "the sender (REQUIRETLS)"
BY_STS = "the MTA-STS policy of "
SEEN = "the good certificate that the domain had before (control/tlsmemory)"


@attrs.frozen
class Terms:
    """What control files say about talking to servers: our name, and timeouts in seconds. `tlsmemory` is how long
    (seconds) a domain is believed to have the good certificate that it had before, against all appearances; `authtls`
    is what is asked of TLS before a password is given to a relay."""

    helohost: bytes
    timeoutconnect: int
    timeoutremote: int
    tlsmemory: int = 0
    authtls: int = VERIFIED


@attrs.frozen
class OutgoingTLS:
    """What is known of TLS with other hosts: what control files demand, which domains were good before, and how often
    it went well."""

    files: ClientTLS
    seen: SeenTLS
    figures: TLSFigures


class Carrier:
    """Tries addresses in order until a server has had the chance to answer MAIL.

    Unlike qmail, which gives up after the first connection, the next address is tried when a server refuses the
    session in its greeting or at HELO, or lets it die before MAIL. From MAIL on, the server's word counts.

    With `tls`, connections are encrypted where that can be. Where it fails and nobody demands it, the mail goes in the
    clear over another connection, which is logged.
    """

    _log = Logger(namespace="qtwist.remote")

    def __init__(
        self, reactor: Any, clock: IReactorTime, table: TimeoutTable, pool: Pool, tls: OutgoingTLS | None = None
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._table = table
        self._pool = pool
        self._tls = tls
        self._without_qmtp: dict[tuple[str, int], float] = {}  # where nobody answered, and until when that counts
        self._without_tls: dict[tuple[str, int], float] = {}  # where TLS has failed, and until when that counts

    async def carry(
        self,
        transaction: Transaction,
        package: Package,
        message: Message,
        hosts: Sequence[Host],
        port: int,
        terms: Terms,
        qmtp_port: int | None = None,
        domain: bytes = b"",
        demanded_by: str = "",
        login: Login | None = None,
        waived: bool = False,
    ) -> Sequence[Report | None]:
        """The reports for the recipients of `transaction`; None for one that has to be tried alone, as what happened is
        not about it. One that is alone, and then is that of `package`, too, has a report. `domain` is what `hosts` are
        for, and `demanded_by` says who demands good certificates of them, if anybody does. ControlError when what
        control files say of TLS is of no use. With a `login`, `hosts` are asked for nothing before they have taken it,
        and are not asked for QMTP.

        With `waived`, the sender thinks that TLS matters little: what domains had before is not demanded (RFC 8689 §5).

        `qmtp_port` is where all `hosts` are asked to speak QMTP first; without it, those that their preference tells
        of are, on the port of QMTP. Where nobody answers there, SMTP is spoken on `port`; once a connection for QMTP
        was there, what comes of it counts, so that nothing is sent twice (spec/related.md §13.1).
        """
        keyed = [
            (host.preference, Key(host.address, port, terms.helohost, demand, login))
            for host in hosts
            for demand in (self._demand(host, port, terms, domain, demanded_by, login, waived),)
        ]
        # Among equals, the one to which a connection is open; sorting is stable, so the order stays random else.
        keyed.sort(key=lambda pair: (pair[0], not self._pool.has(pair[1])))
        recipients = len(transaction.recipients)
        report: Report | None = None
        lacking: Report | None = None  # of one without what is needed: counts where no other may have it later
        sessions = 0
        for preference, key in keyed:
            by_qmtp = qmtp_port or (QMTP_PORT if is_qmtp_preference(preference) else None)
            smtp_only = transaction.require_tls or key.demand.mandatory or login is not None
            if by_qmtp is not None and package.fits and not smtp_only:
                if recipients > 1:
                    return [None] * recipients
                report_of_qmtp = await self._by_qmtp(key.address, by_qmtp, package, message, terms)
                if report_of_qmtp is not None:
                    return [report_of_qmtp]
            while (connection := self._pool.take(key)) is not None:
                connection.timeout = terms.timeoutremote
                outcome = await connection.send(transaction, message)
                if not outcome.stale:
                    break
            else:
                begun = await self._begin(key, terms, domain)
                if begun is None:
                    report = report or reports.NO_CONNECTION
                    continue
                connection, trouble = begun
                if trouble is not None:
                    report = _session_report(key, trouble)
                    sessions += 1
                    if sessions == MAX_SESSIONS:
                        break
                    continue
                outcome = await connection.send(transaction, message)
            if not isinstance(outcome.end, Lacking):
                return _reports(key.address, transaction, outcome, connection)
            lacking = reports.lacking(key.address, outcome.end.extension)
        return [report or lacking or reports.NO_CONNECTION] * recipients

    def _demand(
        self, host: Host, port: int, terms: Terms, domain: bytes, demanded_by: str, login: Login | None, waived: bool
    ) -> Demand:
        """What is asked of TLS with `host`, to which mail for `domain` goes."""
        if self._tls is None:
            return NO_TLS
        demand = self._tls.files.demand(host.name.decode("ascii", "replace") or host.address)
        if host.tlsa and demand.wanted and not demand.verified:
            records = dane.usable(host.tlsa)
            because = f"{BY_DANE}{demand.name}"
            next_hop = domain.decode("ascii", "replace").lower()
            # Where no record is of use, they still say that there is TLS (RFC 7672 §2.2).
            demand = attrs.evolve(
                demand, verified=bool(records), required=True, tlsa=records, because=because, next_hop=next_hop
            )
        if demanded_by and demand.wanted and not demand.verified:
            return attrs.evolve(demand, verified=True, because=demanded_by)
        if login is not None and terms.authtls and demand.wanted:
            verified = demand.verified or terms.authtls >= VERIFIED
            return attrs.evolve(demand, verified=verified, because=demand.because or AUTH_TLS)
        remembers = terms.tlsmemory and not waived
        if not demand.verified and demand.wanted and remembers and self._tls.seen.demands(domain):
            return attrs.evolve(demand, verified=True, because=SEEN)
        if not demand.mandatory and self._without_tls.get((host.address, port), 0) > self._clock.seconds():
            return NO_TLS
        return demand

    async def _begin(self, key: Key, terms: Terms, domain: bytes) -> tuple[Connection, Trouble | None] | None:
        """A new connection that has been greeted, or why it was not; None when there is none to be had."""
        connection = await self._open(key, terms)
        if connection is None:
            return None
        trouble = await connection.greeted
        if trouble is not None and isinstance(trouble.event, TLSFailed) and not key.demand.mandatory:
            if key.port == SMTPS_PORT or (key.login is not None and not key.login.in_clear):
                return connection, trouble
            self._log.warn(
                "TLS with {name} ({address}) failed: {why}; mail goes there in the clear for the next {seconds} s",
                name=key.demand.name,
                address=key.address,
                why=trouble.event.why,
                seconds=TLS_BACK_OFF,
            )
            self._count(key, domain, trouble.event.why)
            if len(self._without_tls) >= MAX_REMEMBERED:
                self._without_tls.clear()
            self._without_tls[key.address, key.port] = self._clock.seconds() + TLS_BACK_OFF
            return await self._begin(attrs.evolve(key, demand=NO_TLS), terms, domain)
        if trouble is not None and isinstance(trouble.event, NoLogin) and key.login is not None:
            self._log.error(
                "login of {user} at {name} ({address}) failed: {why}",
                user=key.login.username.decode("utf-8", "backslashreplace"),
                name=key.demand.name,
                address=key.address,
                why=trouble.event.why,
            )
        self._remember(key, connection, trouble, terms, domain)
        return connection, trouble

    def _remember(self, key: Key, connection: Connection, trouble: Trouble | None, terms: Terms, domain: bytes) -> None:
        """What this connection says of the domain's certificates."""
        if self._tls is None:
            return
        seen = self._tls.seen
        if trouble is None:
            self._count(key, domain, "STARTTLS is not offered" if connection.secured is None else None)
        elif isinstance(trouble.event, TLSFailed):
            self._count(key, domain, trouble.event.why)
        if trouble is None and connection.secured is not None and connection.secured.problem is None:
            # Else it is good because a control file or the DNS says so, and the world may think otherwise.
            if key.demand.authorities is None and not key.demand.tlsa:
                seen.good(domain)
            self._pool.is_good_for(key.verified, connection)
        elif trouble is not None and isinstance(trouble.event, TLSFailed) and key.demand.because == SEEN:
            about = {"domain": domain.decode("ascii", "backslashreplace"), "why": trouble.event.why}
            if seen.failed(domain, terms.tlsmemory):
                self._log.warn("{domain} has no good certificate any more ({why}): no longer demanded", **about)
            else:
                self._log.warn("mail for {domain} is kept back: it had a good certificate before, now {why}", **about)

    def _count(self, key: Key, domain: bytes, why: str | None) -> None:
        """For the figures, a session with the host of `key`, encrypted or not, and why not."""
        if self._tls is not None and key.demand.wanted:
            because = key.demand.because
            policy = TLSA if because.startswith(BY_DANE) else STS if because.startswith(BY_STS) else NO_POLICY
            self._tls.figures.count(domain, policy, why)

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
        tls = None
        immediate = key.port == SMTPS_PORT
        if self._tls is not None and (key.demand.wanted or immediate):
            tls = TLSTerms(self._tls.files.creator(key.demand), key.demand, immediate)
        connection = Connection(terms.helohost, terms.timeoutremote, self._clock, tls, key.login)
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


def _session_report(key: Key, trouble: Trouble) -> Report:
    if isinstance(trouble.event, TLSFailed):
        return reports.no_tls(key.address, trouble.event.why, key.demand.because or f"port {key.port}")
    if isinstance(trouble.event, NoLogin):
        return reports.no_login(key.address, trouble.event)
    if isinstance(trouble.event, Refused):
        return reports.refused(key.address, trouble.event)
    return reports.broken(key.address, trouble.event, trouble.waited)


def _reports(
    address: str, transaction: Transaction, outcome: Outcome, connection: Connection
) -> Sequence[Report | None]:
    """As :meth:`Carrier.carry` says, of a transaction that has come to its end."""
    said: Sequence[RecipientResult | None] = outcome.recipients
    silent = [None] * (len(transaction.recipients) - len(said))
    found = [
        _report(address, recipient, outcome, connection)
        if len(transaction.recipients) == 1 or _is_settled(recipient, outcome)
        else None
        for recipient in (*said, *silent)
    ]
    if transaction.asked and connection.knows_dsn:
        return [
            Report.success(report.text + PASSED_ON)
            if asked and report is not None and report.letter == b"K"
            else report
            for asked, report in zip(transaction.asked, found, strict=True)
        ]
    return found


def _is_settled(recipient: RecipientResult | None, outcome: Outcome) -> bool:
    """Whether `recipient`, one of several in a transaction, would have heard the same alone, or must not be tried again
    now, as it may have the message."""
    end = outcome.end
    if recipient is not None and not recipient.reply.positive:
        return not recipient.reply.is_about_number
    if isinstance(end, Broken):
        return end.dot_sent or outcome.waited is not None
    if isinstance(end, Finished):
        return end.stage is Stage.MAIL or (end.stage is Stage.MESSAGE and end.reply.positive)
    return True


def _report(address: str, recipient: RecipientResult | None, outcome: Outcome, connection: Connection) -> Report:
    end = outcome.end
    assert not isinstance(end, Lacking), "another server is asked"
    if isinstance(end, TooLarge):
        return reports.too_large(address, end.limit)
    if isinstance(end, Unreadable):
        return reports.UNREADABLE
    if recipient is not None and not recipient.reply.positive:
        return reports.finished(address, recipient, Finished(Stage.RCPT, recipient.reply))
    if isinstance(end, Broken):
        return reports.broken(address, end, outcome.waited)
    return reports.finished(address, recipient, end, connection.secured)
