"""The remote channel's spawner: what qmail-rspawn and qmail-remote do, inside the daemon (spec/qmail.md §11.4, §15)."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from qtwist.control import Control, ControlError
from qtwist.interfaces import Delivery, IResolver, ISpawner
from qtwist.mail.asked import join
from qtwist.mail.domains import ascii_domain
from qtwist.mail.envelope import Report
from qtwist.mail.require_tls import demands_tls, waives_tls
from qtwist.mail.smtputf8 import as_path, needs_utf8
from qtwist.remote import reports
from qtwist.remote.batches import Batches
from qtwist.remote.carrier import BY_SENDER, BY_STS, Carrier, OutgoingTLS, Terms
from qtwist.remote.client import Message
from qtwist.remote.dane import DANE
from qtwist.remote.hosts import Shuffle
from qtwist.remote.lookup import find_hosts
from qtwist.remote.own import OwnAddresses
from qtwist.remote.pool import Pool
from qtwist.remote.qmtp import Package
from qtwist.remote.routes import Route, RouteError, find_route
from qtwist.remote.sts import STSPolicies
from qtwist.remote.tcpto import TimeoutTable
from qtwist.remote.tlsrpt import TLSFigures
from qtwist.remote.tlsseen import SeenTLS
from qtwist.tls.clients import ClientTLS
from qtwist.tls.dane import usable
from qtwist.wire.mta_sts import MOST_OCTETS
from qtwist.wire.sasl_client import Login
from qtwist.wire.smtp_client import Transaction

LIMIT = 255
"""The most deliveries at once, whatever control/concurrencyremote says (spec/qmail.md §26.9)."""

MOST_RECIPIENTS = 100
"""The most recipients in a transaction that every server takes (RFC 5321 §4.5.3.1.8)."""

FETCH_SECONDS = 60
"""How long a domain may take to give its MTA-STS policy."""

_FILES = (
    "helohost",
    "smtproutes",
    "qmtproutes",
    "timeoutconnect",
    "timeoutremote",
    "tlsmemory",
    "authsenders",
    "authsenderstls",
    "mtasts",
    "dane",
    "remoterecipients",
)

# Quoting puts a backslash before a line end but leaves it there, and domains are not quoted at all. None of these may
# reach the wire: they would end the command, or the path in it.
_UNSAFE_LOCAL = re.compile(rb"[\r\n\0]")
_UNSAFE_DOMAIN = re.compile(rb"[\x00-\x20\x7f<>]")


@attrs.frozen
class Settings:
    """What the control files say now."""

    terms: Terms
    routes: Mapping[bytes, bytes]
    qmtp_routes: Mapping[bytes, bytes]
    mta_sts: bool
    dane: int
    senders: Mapping[bytes, bytes]
    recipients: int = 1
    """The most recipients of a message in one transaction."""


@implementer(ISpawner)
class RemoteSpawner:
    """Delivers by SMTP, over connections that it keeps for a few seconds, or by QMTP.

    `queue_path` is where lock/tcpto lies, which is cleared. control/concurrencyremote is read once, helohost,
    smtproutes, qmtproutes, timeoutconnect, timeoutremote and what there is of TLS for each delivery. `clock` measures
    timeouts, by default the reactor; `own` knows this machine's addresses; `now` is in seconds since the epoch.
    """

    _log = Logger()

    def __init__(
        self,
        control: Control,
        resolver: IResolver,
        reactor: Any,
        queue_path: str,
        *,
        clock: IReactorTime | None = None,
        own: OwnAddresses | None = None,
        shuffle: Shuffle = random.shuffle,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.limit = min(max(control.integer("concurrencyremote"), 1), LIMIT)
        timer = reactor if clock is None else clock
        table = TimeoutTable(os.path.join(queue_path, "lock", "tcpto"), now)
        table.clear()
        self._control = control
        self._resolver = resolver
        self._own = OwnAddresses() if own is None else own
        self._shuffle = shuffle
        self._pool = Pool(timer)
        self._figures = TLSFigures(now)
        seen = SeenTLS(os.path.join(queue_path, "lock", "tlsseen"), now)
        tls = OutgoingTLS(ClientTLS(control), seen, self._figures)
        self._carrier = Carrier(reactor, timer, table, self._pool, tls)

        def fetch(host: bytes, path: bytes) -> Deferred[bytes]:
            # Only with control/mtasts, and then seldom: an HTTP client takes long to import.
            from qtwist.remote.https import HTTPSFetcher

            return HTTPSFetcher(reactor, timer, resolver, most=MOST_OCTETS, seconds=FETCH_SECONDS).get(host, path)

        self._batches = Batches(timer)
        self._policies = STSPolicies(resolver, fetch, os.path.join(queue_path, "mtasts"), now)
        self._dane = DANE(resolver)
        self._settings: Settings | None = None
        self._stamps: tuple[object, ...] = ()
        self._running = 0
        self._waiting: list[Deferred[None]] = []
        self._stopping = False

    def deliver(self, delivery: Delivery) -> Deferred[Report]:
        """As ISpawner says; the descriptor is closed in any case."""
        if self._stopping or self._running >= self.limit:
            os.close(delivery.fd)
            return succeed(reports.STOPPING if self._stopping else reports.BUSY)
        return Deferred.fromCoroutine(self._run(delivery))

    def stop(self) -> Deferred[None]:
        """As ISpawner says. A running delivery may take as long as its server and the timeouts allow."""
        self._stopping = True
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._running:
            ended: Deferred[None] = Deferred()
            self._waiting.append(ended)
            await ended
        await self._pool.close()
        self._figures.tell()

    async def _run(self, delivery: Delivery) -> Report:
        self._running += 1
        try:
            return await self._deliver(delivery)
        except ControlError as error:
            return Report.deferral(b"%b (#4.3.0)\n" % str(error).encode("utf-8", "surrogateescape"))
        except Exception:
            # Whatever it is, it says nothing against the recipient: try again, and let the log tell.
            self._log.failure("remote delivery of message {number} failed", number=delivery.number)
            return reports.NO_RESOURCES
        finally:
            os.close(delivery.fd)
            self._running -= 1
            if not self._running:
                waiting, self._waiting = self._waiting, []
                for ended in waiting:
                    ended.callback(None)

    async def _deliver(self, delivery: Delivery) -> Report:
        _, at, host = delivery.recipient.rpartition(b"@")
        if not at:
            return reports.NO_HOST_PART
        if not host.isascii():
            host = ascii_domain(host)
        if not _can_be_sent(delivery.recipient):
            return reports.BAD_RECIPIENT
        if not _can_be_sent(delivery.sender):
            return reports.BAD_SENDER
        settings = self._read_settings()
        try:
            route = find_route(settings.routes, settings.qmtp_routes, host, settings.senders, delivery.sender)
        except RouteError as error:
            return reports.unusable_route(host, str(error.args[0]).encode())

        async def send(joined: tuple[bytes, ...]) -> Sequence[Report | None]:
            return await self._send(delivery, settings, host, route, joined)

        if delivery.siblings > 1 and settings.recipients > 1 and route.qmtp_port is None:
            # The hosts of a relay are the same for all domains that go there.
            place = delivery.sender, route, route.relay.host or host.lower()
            report = await self._batches.join(
                delivery.number,
                place,
                join(delivery.recipient, delivery.asked),
                delivery.siblings,
                settings.recipients,
                send,
            )
            if report is not None:
                return report
            try:
                return await self._send_alone(delivery, settings, host, route)
            finally:
                self._batches.end(delivery.number)
        return await self._send_alone(delivery, settings, host, route)

    async def _send_alone(self, delivery: Delivery, settings: Settings, host: bytes, route: Route) -> Report:
        [report] = await self._send(delivery, settings, host, route, (join(delivery.recipient, delivery.asked),))
        assert report is not None, "alone, a recipient has a report"
        return report

    async def _send(
        self, delivery: Delivery, settings: Settings, host: bytes, route: Route, joined: tuple[bytes, ...]
    ) -> Sequence[Report | None]:
        """One transaction for the message of `delivery` and for recipients, `joined` with what they have asked for;
        `host` is that of the recipients, or of one of them where a relay gets it. The reports are those of the carrier.
        """
        pairs = [one.partition(b"\0") for one in joined]
        recipients = tuple(pair[0] for pair in pairs)
        asked = tuple(pair[2] for pair in pairs)

        def everybody(report: Report) -> Sequence[Report]:
            return [report] * len(recipients)

        try:
            message = Message.read(delivery.fd)
        except OSError:
            return everybody(reports.UNREADABLE)
        hosts = await find_hosts(self._resolver, host, route.relay, self._own.get, self._shuffle)
        if isinstance(hosts, Report):
            return everybody(hosts)
        required, waived = demands_tls(message.head), waives_tls(message.head)
        known = bool(route.relay.host)  # a relay of ours is as good as what vouches for mail exchangers
        if settings.dane and not waived:
            hosts = await self._dane.look(hosts, route.relay.port, settings.dane)
            if isinstance(hosts, Report):
                return everybody(hosts)
        demanded_by = ""
        if settings.mta_sts and not waived and not route.relay.host:
            policy = await self._policies.policy(host)
            if policy is not None and policy.mode == "enforce":
                # TLSA records say more than that policy, which must not stand in for them (RFC 8461 §2).
                hosts = tuple(one for one in hosts if usable(one.tlsa) or policy.matches(one.name))
                if not hosts:
                    return everybody(reports.no_matching_exchanger(host))
                demanded_by = BY_STS + reports.visible(host).decode()
                known = True
        if required:
            known = known or (settings.dane > 0 and await self._dane.vouches(hosts, settings.dane))
            if not known:
                return everybody(reports.unsafe_exchangers(host))
            demanded_by = demanded_by or BY_SENDER
        utf8 = needs_utf8((delivery.sender, *recipients), message.head)
        transaction = Transaction(
            as_path(delivery.sender, utf8),
            tuple(as_path(recipient, utf8) for recipient in recipients),
            message.size,
            message.eight_bit,
            required,
            utf8,
            delivery.asked_mail,
            asked if any(asked) else (),
        )
        package = Package(delivery.sender, recipients[0])
        login = None
        if route.credentials is not None:
            in_clear = settings.terms.authtls == 0
            login = Login(route.credentials.username, route.credentials.password, in_clear)
        return await self._carrier.carry(
            transaction,
            package,
            message,
            hosts,
            route.relay.port,
            settings.terms,
            route.qmtp_port,
            route.relay.host or host,
            demanded_by,
            login,
            waived,
        )

    def _read_settings(self) -> Settings:
        """The control files, read again when one of them is not what it was. ControlError when they are of no use."""
        stamps = tuple(self._control.stamp(name) for name in _FILES)
        if self._settings is None or stamps != self._stamps:
            helohost = self._control.line("helohost")
            if not helohost or _UNSAFE_DOMAIN.search(helohost):
                found = "nothing" if helohost is None else "something else"
                raise ControlError(self._control.path("helohost"), None, found, "the name of this host")
            terms = Terms(
                helohost,
                max(self._control.integer("timeoutconnect"), 1),
                max(self._control.integer("timeoutremote"), 1),
                self._control.integer("tlsmemory"),
                self._control.integer("authsenderstls"),
            )
            self._control.ensure_secret("smtproutes", "authsenders")
            routes, qmtp_routes = self._control.map("smtproutes"), self._control.map("qmtproutes")
            senders = self._control.map("authsenders")
            recipients = min(max(self._control.integer("remoterecipients"), 1), MOST_RECIPIENTS)
            sts = self._control.integer("mtasts") > 0
            dane = self._control.integer("dane")
            self._settings = Settings(terms, routes or {}, qmtp_routes or {}, sts, dane, senders or {}, recipients)
            self._stamps = stamps
        return self._settings


def _can_be_sent(address: bytes) -> bool:
    local, at, domain = address.rpartition(b"@")
    if not at:
        return not _UNSAFE_DOMAIN.search(address)
    return not (_UNSAFE_LOCAL.search(local) or _UNSAFE_DOMAIN.search(domain))
