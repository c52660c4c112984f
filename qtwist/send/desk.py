"""The socket HOME/run/control, where `qtwist queue` asks the running queue manager (doc/queue.md).

One request and one answer, each a netstring that holds a JSON object. Only root and the daemon's own account are heard:
the kernel says who is asking. Servers that are processes of other accounts may have mail for a domain tried, no more.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from qtwist.control import ControlError
from qtwist.queue.door import peer_uid
from qtwist.send.steering import DROP, FAIL, Steering, SteeringError
from qtwist.wire.netstring import NetstringError, NetstringReader, encode

#: The longest request, in octets: the numbers of a million messages.
REQUEST_LIMIT = 16 * 1024 * 1024

#: The same of a server's.
SERVERS_LIMIT = 1024

#: Connections of one account at a time; each is one request.
CONNECTIONS = 50
#: Seconds in which a request has to be there. What it asks for may take as long as it takes.
PATIENCE = 60

log = Logger()


class DeskProtocol(Protocol):
    """One request."""

    factory: DeskFactory

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._done = False
        self._reader = NetstringReader(SERVERS_LIMIT)
        self._timer: IDelayedCall | None = None
        self.uid = -1

    def connectionMade(self) -> None:
        factory = self.factory
        self.uid = factory.peer_uid(self.transport)
        factory.connections[self.uid] += 1
        transport: Any = self.transport
        self._timer = factory.clock.callLater(PATIENCE, transport.abortConnection)
        if factory.connections[self.uid] > CONNECTIONS:
            log.warn("user id {uid} has {count} requests under way: refused", uid=self.uid, count=CONNECTIONS)
            self._answer({"error": "too many requests at once"})
        elif self.uid in factory.allowed:
            self._reader = NetstringReader(REQUEST_LIMIT)
        elif self.uid not in factory.network:
            log.warn("user id {uid} may not steer the queue", uid=self.uid)
            self._answer({"error": "only root and the daemon's account may do that"})

    def dataReceived(self, data: bytes) -> None:
        if self._done:
            return
        try:
            piece, _ = self._reader.feed(data, 0, len(data))
            self._pieces.append(piece)
            if not self._reader.ended:
                return
            self._done = True
            self._stop_timer()
            request = json.loads(b"".join(self._pieces))
        except (NetstringError, ValueError, RecursionError):
            self._answer({"error": "this is no request"})
            return
        answer = Deferred.fromCoroutine(self.factory.carry_out(request, self.uid))
        answer.addCallbacks(self._answer, self._failed)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stop_timer()
        connections = self.factory.connections
        connections[self.uid] -= 1
        if not connections[self.uid]:
            del connections[self.uid]

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        if isinstance(error, KeyError | TypeError | ValueError):
            self._answer({"error": "this is no request"})
        elif isinstance(error, SteeringError | ControlError):
            self._answer({"error": str(error)})
        else:
            log.failure("a request to the queue manager failed", failure)
            self._answer({"error": "internal error; the daemon's log says more"})

    def _answer(self, answer: dict[str, Any]) -> None:
        self._done = True
        transport: Any = self.transport
        transport.write(encode(json.dumps(answer).encode("ascii")))
        transport.loseConnection()


class DeskFactory(Factory):
    """Serves requests to `steering` from the user ids in `allowed`, and those of servers from the ones in `network`.

    `clock` measures how long a request takes to come; by default the reactor.
    """

    noisy = False
    port: Any = None

    def __init__(
        self,
        steering: Steering,
        allowed: frozenset[int],
        peer_uid: Callable[[Any], int] = peer_uid,
        network: frozenset[int] = frozenset(),
        clock: IReactorTime | None = None,
    ) -> None:
        if clock is None:
            from twisted.internet import reactor

            clock = IReactorTime(reactor)
        self.clock = clock
        self.connections: Counter[int] = Counter()
        self.steering = steering
        self.allowed = allowed
        self.network = network
        self.peer_uid = peer_uid

    def buildProtocol(self, addr: IAddress | None) -> DeskProtocol:  # type: ignore[override]
        connection = DeskProtocol()
        connection.factory = self
        return connection

    async def carry_out(self, request: dict[str, Any], uid: int) -> dict[str, Any]:
        """The answer to a request. SteeringError, or ControlError, says why it was not done."""
        operation = request["op"]
        if operation == "flush":
            return {"count": await self.steering.flush(str(request["domain"]).encode("ascii"))}
        if uid not in self.allowed:
            raise SteeringError("only root and the daemon's account may do that")
        if operation == "holds":
            self.steering.reread_holds()
        elif operation == "retry":
            self.steering.retry([int(number) for number in request["numbers"]])
        elif operation == "attempts":
            numbers = request["numbers"]
            return {"attempts": self.steering.attempts(None if numbers is None else [int(one) for one in numbers])}
        elif operation in (FAIL, DROP):
            number, birth = int(request["number"]), float(request["birth"])
            return {"count": await self.steering.settle(number, birth, operation, uid)}
        else:
            raise SteeringError(f"unknown operation {operation!r}")
        return {}
