"""Rules of tcpserver for servers without policies: who may connect at all (spec/related.md §4.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from qtwist.control import ControlError
from qtwist.files.tcprules import Rules
from qtwist.mail.networks import network_of
from qtwist.policy.kept import Kept
from qtwist.policy.session import Session, plain_ip
from qtwist.policy.surroundings import Surroundings
from qtwist.policy.tcprules import PATIENCE, apply, look_up, read_rules, show
from qtwist.serving import DrainingFactory

#: How many clients of one server may wait at once until it is known who they are; how many of one network.
MOST_WAITING = 200
MOST_OF_A_NETWORK = 20

_log = Logger(namespace="qtwist.policy")

#: Makes the server's protocol for a client, with the variables that the rules have set.
Make = Callable[[dict[bytes, bytes]], Any]


class Gate:
    """control/tcp.NAME for the server called so. Whoever is denied does not get a connection of it.

    Names and IDENT answers are asked for where a rule is about such, for PATIENCE seconds at most; the client waits
    that long for the server's first word.
    """

    def __init__(self, surroundings: Surroundings, service: str) -> None:
        control = surroundings.control
        self.surroundings = surroundings
        self.waiting: Counter[str] = Counter()  # by network
        self._service = service
        names = (f"tcp.{service}", f"tcp.{service}.cdb")
        self._rules: Kept[Rules | None] = Kept(control, names, lambda: read_rules(control, service))

    def build(self, factory: DrainingFactory[Any], address: IAddress | None, make: Make) -> Any:
        """What `make` makes for a client from there, or what waits in its place until that is settled; None when it may
        not connect, as nobody may while the rules never could be read."""
        ip = plain_ip(getattr(address, "host", ""))
        try:
            rules = self._rules.get()
        except ControlError as error:
            _log.error("{ip}: connection closed, {error}", ip=ip, error=error)
            return None
        if rules is None or not ip:
            return make({})
        if not (rules.asks_name or rules.asks_ident):
            variables = self.settle(Session("", ip), rules)
            return None if variables is None else make(variables)
        network = network_of(ip)
        if self.waiting.total() >= MOST_WAITING or self.waiting[network] >= MOST_OF_A_NETWORK:
            near, count = self.waiting[network], self.waiting.total()
            self._refused(ip, f"{count} clients wait to be looked up, {near} of {network}")
            return None
        return Waiting(self, factory, network, rules, make)

    def settle(self, session: Session, rules: Rules) -> dict[bytes, bytes] | None:
        """The variables for a client of which all is known that the rules ask for; None when it is denied."""
        verdict = apply(session, rules)
        if verdict.allow:
            return session.environment
        self._refused(session.remote_ip, f"{show(verdict)} of control/tcp.{self._service}")
        return None

    def _refused(self, ip: str, reason: str) -> None:
        """Note in the log that a client is not let in."""
        _log.info(
            "{step} answered {code} rule={rule} ({reason}) ip={ip}",
            step="connection",
            code=421,
            rule="tcprules",
            reason=reason,
            ip=ip,
        )


class Waiting(Protocol):
    """A connection of which it is asked who it comes from. It gives its place to the server's protocol."""

    implicit_tls = False
    proxied: Any = None  # the addresses that a proxy has told (qtwist.proxying), where one did

    def __init__(self, gate: Gate, factory: DrainingFactory[Any], network: str, rules: Rules, make: Make) -> None:
        self._gate = gate
        self._server = factory
        self._network = network
        self._said = b""
        self._rules = rules
        self._make = make
        self._asking: Deferred[None] | None = None

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.pauseProducing()  # what it has to say is for the server
        self._gate.waiting[self._network] += 1
        self._server.connection_made(self)
        session = Session.of(self.proxied or transport)
        rules = self._rules
        name, info = PATIENCE * rules.asks_name, PATIENCE * rules.asks_ident
        self._asking = Deferred.fromCoroutine(look_up(self._gate.surroundings, session, name, info))
        self._asking.addCallbacks(lambda _: self._known(session), self._failed)

    def dataReceived(self, data: bytes) -> None:
        # The transport is paused: this came in one piece with a proxy's header, or with the end of a handshake.
        self._said += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._leave()

    def drain(self) -> None:
        """As a server's connection: nothing has begun."""
        self.abort()

    def abort(self) -> None:
        """Leave at once."""
        transport: Any = self.transport
        transport.abortConnection()

    def _known(self, session: Session) -> None:
        if not self._leave():
            return
        transport: Any = self.transport
        variables = self._gate.settle(session, self._rules)
        if variables is None:
            transport.abortConnection()
            return
        connection = self._make(variables)
        connection.proxied, connection.implicit_tls = self.proxied, self.implicit_tls
        # An ssl: endpoint has a transport that wraps the protocol.
        place = "wrappedProtocol" if ISSLTransport.providedBy(transport) else "protocol"
        setattr(transport, place, connection)
        transport.resumeProducing()
        connection.makeConnection(transport)
        if self._said:
            getattr(transport, place).dataReceived(self._said)  # another one where TLS begins at once

    def _failed(self, failure: Failure) -> None:
        if self._leave():
            _log.failure("a client could not be looked up", failure)
            self.abort()

    def _leave(self) -> bool:
        """Wait no longer; False when that was over already."""
        asking, self._asking = self._asking, None
        if asking is None:
            return False
        self._gate.waiting[self._network] -= 1
        self._gate.waiting += Counter()  # without those that are none
        self._server.connection_lost(self)
        asking.cancel()
        return True
