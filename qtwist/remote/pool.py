"""Connections that have done their work and may soon be wanted again."""

from __future__ import annotations

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from qtwist.remote.client import Connection
from qtwist.tls.clients import NO_TLS, Demand
from qtwist.wire.sasl_client import Login

IDLE_SECONDS = 5
MOST_TRANSACTIONS = 100
MOST_IDLE = 100


@attrs.frozen
class Key:
    """What a connection must have in common with a delivery to serve it."""

    address: str
    port: int
    helohost: bytes
    demand: Demand = NO_TLS
    login: Login | None = None

    @property
    def verified(self) -> Key:
        """The key of connections to the same place whose certificate is good."""
        return attrs.evolve(self, demand=attrs.evolve(self.demand, verified=True))

    @property
    def good_enough(self) -> tuple[Key, ...]:
        """The keys of connections that may be used: one with a good certificate where nobody demands that, too."""
        return (self.verified, self) if self.demand.wanted and not self.demand.verified else (self,)


class Pool:
    """All open connections of the remote channel. Those that are idle wait for `idle_seconds` and are then closed.

    One connection carries at most `most_transactions`; at most `most_idle` wait at a time.
    """

    def __init__(
        self,
        clock: IReactorTime,
        idle_seconds: float = IDLE_SECONDS,
        most_transactions: int = MOST_TRANSACTIONS,
        most_idle: int = MOST_IDLE,
    ) -> None:
        self._clock = clock
        self._idle_seconds = idle_seconds
        self._most_transactions = most_transactions
        self._most_idle = most_idle
        self._keys: dict[Connection, Key] = {}
        self._idle: dict[Key, list[Connection]] = {}
        self._timers: dict[Connection, IDelayedCall] = {}  # one for each idle connection
        self._closing: Deferred[None] | None = None

    def add(self, key: Key, connection: Connection) -> None:
        """Look after `connection`, which is open and in use."""
        self._keys[connection] = key
        connection.on_idle = self._released
        connection.on_gone = self._gone

    def is_good_for(self, key: Key, connection: Connection) -> None:
        """What `connection`, which is in use, has turned out to be good for."""
        if connection in self._keys:
            self._keys[connection] = key

    def has(self, key: Key) -> bool:
        """Whether :meth:`take` would find one."""
        return any(one in self._idle for one in key.good_enough)

    def take(self, key: Key) -> Connection | None:
        """An idle connection that is good enough for `key`, the one that was used last, or None. It is the caller's
        until its result."""
        for one in key.good_enough:
            while one in self._idle:
                connection = self._idle[one][-1]
                self._forget_idle(connection)
                if connection.usable:  # the server may have said good-bye and not be gone yet
                    return connection
        return None

    def close(self) -> Deferred[None]:
        """Close all connections, of which none may be in use; fires when none is open."""
        if self._closing is None:
            self._closing = Deferred() if self._keys else succeed(None)
            for connection in list(self._keys):
                if connection in self._timers:
                    self._forget_idle(connection)
                connection.quit()
        return self._closing

    def _released(self, connection: Connection) -> None:
        if (
            self._closing is not None
            or connection.transactions >= self._most_transactions
            or connection.used_up
            or len(self._timers) >= self._most_idle
        ):
            connection.quit()
            return
        self._idle.setdefault(self._keys[connection], []).append(connection)
        self._timers[connection] = self._clock.callLater(self._idle_seconds, self._expired, connection)

    def _expired(self, connection: Connection) -> None:
        self._forget_idle(connection)
        connection.quit()

    def _gone(self, connection: Connection) -> None:
        if connection in self._timers:
            self._forget_idle(connection)
        del self._keys[connection]
        if self._closing is not None and not self._keys and not self._closing.called:
            self._closing.callback(None)

    def _forget_idle(self, connection: Connection) -> None:
        timer = self._timers.pop(connection)
        if timer.active():
            timer.cancel()
        key = self._keys[connection]
        self._idle[key].remove(connection)
        if not self._idle[key]:
            del self._idle[key]
