"""Connections through proxies of ours: who they really come from, by the PROXY protocol (control/proxyclients)."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IDelayedCall, ILoggingContext, IReactorTime, ISSLTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from qtwist.control import ControlError
from qtwist.policy.relay import network
from qtwist.policy.session import plain_ip
from qtwist.policy.watched import Watched
from qtwist.wire.proxy_protocol import Proxied, ProxyError, parse

if TYPE_CHECKING:
    from qtwist.control import Control

#: How long a proxy may take for its header, in seconds.
HEADER_SECONDS = 10

log = Logger(namespace="qtwist.proxying")


@attrs.frozen
class Proxies:
    """Whose connections begin with a header: networks, and for each the ports of ours, none for all of them."""

    listed: tuple[tuple[IPv4Network | IPv6Network, frozenset[int]], ...]

    @classmethod
    def read(cls, control: Control) -> Proxies:
        """What control/proxyclients says; no file is an empty one. ControlError when a line is wrong."""
        control.ensure("proxyclients")
        found = []
        for line in control.list("proxyclients") or ():
            name, *ports = line.split()
            found.append((network(name), frozenset(map(int, ports))))
        return cls(tuple(found))

    def has(self, address: str, port: int) -> bool:
        """Whether a connection from this IP address to this port of ours begins with a header."""
        try:
            client = ip_address(plain_ip(address))
        except ValueError:
            return False
        return any(client in listed and (not ports or port in ports) for listed, ports in self.listed)


class ClaimedAddresses:
    """The two ends of a connection as a proxy has told them: as much of a transport as is asked who is connected."""

    def __init__(self, claim: Proxied) -> None:
        kind = IPv6Address if ":" in claim.source else IPv4Address
        self._peer = kind("TCP", claim.source, claim.source_port)
        self._host = kind("TCP", claim.destination, claim.destination_port)

    def getPeer(self) -> IAddress:
        return self._peer

    def getHost(self) -> IAddress:
        return self._host


@implementer(ILoggingContext)
class ProxyingFactory(Factory):
    """Stands in front of `factory`: the connections of proxies are handed to it when their header has come.

    Where a header is due, nothing is done without one; from all others it is not taken. So nobody but the proxies
    of control/proxyclients can say that they are somebody else.
    """

    noisy = False

    def __init__(self, factory: Factory, control: Control, clock: IReactorTime) -> None:
        self.factory = factory
        self.clock = clock
        self.proxies = Watched(control, ("proxyclients",), lambda: Proxies.read(control))

    def logPrefix(self) -> str:
        """What Twisted's log calls it."""
        return type(self.factory).__name__

    def buildProtocol(self, addr: IAddress | None) -> Any:
        try:
            proxies = self.proxies.get()
        except ControlError as error:
            log.error("connection from {client} closed: {error}", client=getattr(addr, "host", "?"), error=error)
            return None
        return HeaderReader(self, addr, proxies) if proxies.listed else self.factory.buildProtocol(addr)

    def doStart(self) -> None:
        super().doStart()
        self.factory.doStart()

    def doStop(self) -> None:
        super().doStop()
        self.factory.doStop()


class HeaderReader(Protocol):
    """A connection of which it is not known yet who it comes from. It gives its place to the server's protocol."""

    factory: ProxyingFactory

    def __init__(self, factory: ProxyingFactory, address: IAddress | None, proxies: Proxies) -> None:
        self.factory = factory
        self._proxies = proxies
        self._address = address
        self._buffer = b""
        self._timer: IDelayedCall | None = None

    def connectionMade(self) -> None:
        transport: Any = self.transport
        peer, host = transport.getPeer(), transport.getHost()
        if not self._proxies.has(getattr(peer, "host", ""), getattr(host, "port", 0)):
            self._hand_over(None, b"")
        elif ISSLTransport.providedBy(transport):
            self._give_up("the header comes before TLS, which an ssl: endpoint has begun already")
        else:
            self._timer = self.factory.clock.callLater(HEADER_SECONDS, self._too_slow)

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        try:
            found = parse(self._buffer)
        except ProxyError as error:
            self._give_up(str(error))
            return
        if found is not None:
            self._stop_timer()
            claim, length = found
            self._hand_over(None if claim is None else ClaimedAddresses(claim), self._buffer[length:])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stop_timer()

    def _hand_over(self, claim: ClaimedAddresses | None, rest: bytes) -> None:
        transport: Any = self.transport
        address = self._address if claim is None else claim.getPeer()
        connection = self.factory.factory.buildProtocol(address)  # type: ignore[arg-type]  # None: a test's transport
        if connection is None:
            transport.loseConnection()
            return
        connection.proxied = claim  # type: ignore[attr-defined]  # all protocols of our servers have it
        transport.protocol = connection
        connection.makeConnection(transport)
        if rest:
            transport.protocol.dataReceived(rest)  # another one where TLS begins at once

    def _give_up(self, why: str) -> None:
        transport: Any = self.transport
        self._stop_timer()
        peer = getattr(transport.getPeer(), "host", "a local client")
        log.warn("connection from the proxy {ip} closed: {why} (control/proxyclients)", ip=peer, why=why)
        transport.abortConnection()

    def _too_slow(self) -> None:
        self._timer = None
        self._give_up(f"no PROXY header in {HEADER_SECONDS} seconds")

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
