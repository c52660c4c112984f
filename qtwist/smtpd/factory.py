"""The factory of SMTP connections: what they share, how many there may be, and how they end in peace."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Factory

from qtwist.interfaces import IQueue
from qtwist.mail.envelope import Origin
from qtwist.policy.badmailfrom import BadMailFrom
from qtwist.policy.base import HOOKS, Policy, hooks
from qtwist.policy.loader import load_policies
from qtwist.policy.rcpthosts import RcptHosts
from qtwist.policy.relay import RelayClients
from qtwist.policy.session import Session, plain_ip
from qtwist.policy.watched import Watched
from qtwist.smtpd.protocol import SMTPProtocol
from qtwist.smtpd.settings import FILES, Settings, read_settings

if TYPE_CHECKING:
    from qtwist.control import Control


class SMTPFactory(Factory):
    """Makes the connections of an SMTP port.

    `control` is read per connection, as qmail does, but only files that have changed. `queue` takes the messages.
    `policies` are asked before the standard ones. `clock` times everything out; `now` tells the date.

    Made to be subclassed: :meth:`chain`, :meth:`make_session`, :meth:`is_own_address` and `protocol` are the joints.
    ControlError when control/policies is wrong.
    """

    protocol: Callable[[], SMTPProtocol] = SMTPProtocol  # type: ignore[assignment]  # narrower than Factory has it
    noisy = False

    def __init__(
        self,
        control: Control,
        queue: IQueue,
        policies: Sequence[Policy] = (),
        *,
        clock: IReactorTime | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        if clock is None:
            from twisted.internet import reactor

            clock = IReactorTime(reactor)
        self.control = control
        self.queue = queue
        self.clock = clock
        self.now = now
        self.settings: Watched[Settings] = Watched(control, FILES, lambda: read_settings(control))
        chain = self.chain(policies)
        self.hooks = {name: hooks(chain, name) for name in HOOKS}
        self.connections: set[SMTPProtocol] = set()
        self.draining = False
        self._drained: list[Deferred[None]] = []

    @property
    def origin(self) -> Origin:
        """What the queue is told of a message's origin; made when it is needed, for privileges may be shed after us."""
        return Origin.network(os.getuid())

    def chain(self, policies: Sequence[Policy]) -> list[Policy]:
        """All policies in the order in which they are asked, `policies` being those given to the factory.

        Who may relay is settled first, so that the others can see it; badmailfrom and rcpthosts come last, so that
        an earlier policy can accept what they would refuse.
        """
        control = self.control
        return [
            RelayClients(control),
            *policies,
            *load_policies(control),
            BadMailFrom(control),
            RcptHosts(control),
        ]

    def make_session(self, transport: Any) -> Session:
        """The session of a new connection, its environment as tcpserver would set it (spec/qmail.md §4)."""
        peer, host = transport.getPeer(), transport.getHost()
        session = Session(
            id=uuid.uuid4().hex[:16],
            remote_ip=plain_ip(getattr(peer, "host", "")),
            remote_port=getattr(peer, "port", 0),
            local_ip=plain_ip(getattr(host, "host", "")),
            local_port=getattr(host, "port", 0),
        )
        if session.remote_ip:
            session.environment[b"TCPREMOTEIP"] = session.remote_ip.encode("ascii")
        if session.local_ip:
            session.environment[b"TCPLOCALIP"] = session.local_ip.encode("ascii")
        return session

    def is_own_address(self, session: Session, address: str) -> bool:
        """Is this IPv4 address, written with dots, one of ours (localiphost, spec §16.3)?

        The one that the client is connected to is, and 0.0.0.0; give a subclass that knows all interfaces, if needed.
        """
        return address in (session.local_ip, "0.0.0.0")

    def buildProtocol(self, addr: IAddress | None) -> SMTPProtocol:  # type: ignore[override]
        connection = self.protocol()
        connection.factory = self
        return connection

    def drain(self) -> Deferred[None]:
        """Take no new transactions: idle connections and new ones get 421, a message that is coming in may end.

        Fires when no connection is left.
        """
        self.draining = True
        for connection in list(self.connections):
            connection.drain()
        if not self.connections:
            return succeed(None)
        drained: Deferred[None] = Deferred()
        self._drained.append(drained)
        return drained

    def abort(self) -> None:
        """End all connections now; what was not answered yet is not accepted."""
        for connection in list(self.connections):
            connection.abort()

    def connection_lost(self, connection: SMTPProtocol) -> None:
        """Called by each connection at its end."""
        self.connections.discard(connection)
        if self.draining and not self.connections:
            drained, self._drained = self._drained, []
            for waiting in drained:
                waiting.callback(None)
