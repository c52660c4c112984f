"""What all servers of ours share: they know their connections, so that they can be counted and end in peace."""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory

#: How many connections that are about to end take nobody's place; who does not let go of his is counted in the end.
MOST_LEAVING = 200


class Connection(Protocol):
    """What a connection has to have."""

    def drain(self) -> None:
        """Leave now or soon: what the client has begun may end, nothing new may begin."""

    def abort(self) -> None:
        """Leave at once, without a word."""


C = TypeVar("C", bound=Connection)


class DrainingFactory(Factory, Generic[C]):
    """A factory that keeps account of its connections.

    Each of them calls :meth:`connection_made` at its beginning and :meth:`connection_lost` at its end, and may call
    :meth:`connection_leaves` before. `share` is how many processes serve the same ports, so that each allows its share
    of what a control file allows.
    """

    noisy = False
    share = 1

    def __init__(self) -> None:
        self.connections: set[C] = set()
        self.draining = False
        self._leaving: set[C] = set()
        self._drained: list[Deferred[None]] = []

    def connection_made(self, connection: C) -> int:
        """Count a connection in; how many others there are, without those that leave (up to MOST_LEAVING)."""
        others = len(self.connections) - min(len(self._leaving), MOST_LEAVING)
        self.connections.add(connection)
        return others

    def connection_leaves(self, connection: C) -> None:
        """All is said on a connection, so that it takes nobody's place: a crowd that is sent away keeps nobody out."""
        if connection in self.connections:
            self._leaving.add(connection)

    def connection_lost(self, connection: C) -> None:
        """Count a connection out."""
        self.connections.discard(connection)
        self._leaving.discard(connection)
        if self.draining and not self.connections:
            drained, self._drained = self._drained, []
            for waiting in drained:
                waiting.callback(None)

    def drain(self) -> Deferred[None]:
        """Begin nothing new: idle connections and new ones are sent away. Fires when no connection is left."""
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


class ImplicitTLSFactory(Factory):
    """Stands behind a port where TLS begins before the first word (RFC 8314 §3): the connections are another factory's,
    and each starts TLS as soon as it is made."""

    noisy = False

    def __init__(self, factory: DrainingFactory[Any]) -> None:
        self._factory = factory

    def buildProtocol(self, addr: IAddress | None) -> Any:  # type: ignore[override]
        connection: Any = self._factory.buildProtocol(addr)  # type: ignore[arg-type]
        if connection is not None:
            connection.implicit_tls = True
        return connection

    def doStart(self) -> None:
        super().doStart()
        self._factory.doStart()

    def doStop(self) -> None:
        super().doStop()
        self._factory.doStop()
