"""The queue's door: whoever may connect to the Unix socket HOME/run/queue hands in a message there (doc/door.md).

The engine is :mod:`qtwist.wire.qmqp`. The kernel says who is asking (SO_PEERCRED), so the user id in the Received line
and in the envelope is true although nothing is setuid.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import IAddress, IListeningPort, IReactorTime
from twisted.logger import Logger

from qtwist.interfaces import IIncomingMessage, IQueue
from qtwist.mail.envelope import Origin
from qtwist.queue.pipelining import PipelinedRequests
from qtwist.queue.request import RequestProtocol, check_reserves
from qtwist.queue.room import Reserve
from qtwist.queue.socket_path import SocketPath
from qtwist.serving import DrainingFactory
from qtwist.wire.pipelined import MARK
from qtwist.wire.qmqp import QMQPServer

log = Logger()

BUSY = 71

#: Seconds after which a client that sends nothing is given up, and after which any is (spec/qmail.md §1.5: less than
#: the age at which what it has sent would be taken for garbage).
SILENCE = 3600
LIFETIME = 86400

#: How many connections are served at once, and how many of them may be one user's; others wait in the kernel's queue.
CONNECTIONS = 200
CONNECTIONS_PER_USER = 150
BACKLOG = 1024

_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid


def peer_uid(transport: Any) -> int:
    """The user id of the process at the other end of a Unix socket, as it was when it connected."""
    credentials = transport.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(credentials)[1]
    return uid


class DoorProtocol(RequestProtocol):
    """One request from this host, or any number of a server of ours. It reads no faster than the disk takes what was
    read."""

    factory: DoorFactory
    silence = SILENCE
    lifetime = LIFETIME
    log = log

    def __init__(self) -> None:
        super().__init__(QMQPServer())
        self.uid = -1
        self._pipelined: PipelinedRequests | None = None

    @property
    def client(self) -> str:
        return f"user id {self.uid}"

    def connectionMade(self) -> None:
        factory = self.factory
        self.uid = factory.peer_uid(self.transport)
        self.start()
        others = factory.connection_made(self)
        if others >= CONNECTIONS_PER_USER:
            # What the client sends meanwhile is not looked at, so this may come without the code of the chunked form.
            self._engine.chunked = True
            log.warn("user id {uid} is at the queue's door {others} times: refused", uid=self.uid, others=others)
            self.answer(BUSY, b"ZYou have too many connections to the queue at once. (#4.3.2)")

    def begin(self) -> IIncomingMessage:
        check_reserves(self.factory.reserves)
        return self.factory.queue.begin(self.factory.origin(self.uid))

    def dataReceived(self, data: bytes) -> None:
        if self._pipelined is not None:
            self._pipelined.receive(data)
        elif data.startswith(MARK) and not self._engine.started and self.uid in self.factory.network:
            self.stop_timer()  # our servers may be silent for as long as they like
            self._pipelined = PipelinedRequests(
                self.transport, self.factory.clock, self.begin, self.leave, self.client, log
            )
            self._pipelined.receive(data[len(MARK) :])
        else:
            super().dataReceived(data)

    def drain(self) -> None:
        if self._pipelined is not None:
            self._pipelined.drain()
        else:
            super().drain()


class DoorFactory(DrainingFactory[DoorProtocol]):
    """Serves the door in front of `queue`; `origin` says what a user id is called (spec/qmail.md §6.2).

    The accounts of `network` are our own servers, which limit their clients themselves: they are not counted. Without
    enough of one of `reserves`, nothing is taken.
    """

    protocol: Callable[[], DoorProtocol] = DoorProtocol  # type: ignore[assignment]  # narrower than Factory has it

    def __init__(
        self,
        queue: IQueue,
        origin: Callable[[int], Origin],
        *,
        clock: IReactorTime,
        now: Callable[[], float] = time.time,
        peer_uid: Callable[[Any], int] = peer_uid,
        network: frozenset[int] = frozenset(),
        reserves: Sequence[Reserve] = (),
    ) -> None:
        super().__init__()
        self.reserves = reserves
        self.network = network
        self.queue = queue
        self.origin = origin
        self.clock = clock
        self.now = now
        self.peer_uid = peer_uid
        self.port: Any = None
        self._users: Counter[int] = Counter()
        self._counted = 0

    def buildProtocol(self, addr: IAddress | None) -> DoorProtocol:  # type: ignore[override]
        connection = self.protocol()
        connection.factory = self
        return connection

    def connection_made(self, connection: DoorProtocol) -> int:
        """Count a connection in; how many others there are of the same user."""
        super().connection_made(connection)
        if connection.uid in self.network:
            return 0
        others = self._users[connection.uid]
        self._users[connection.uid] += 1
        self._counted += 1
        if self._counted >= CONNECTIONS and self.port is not None:
            self.port.pauseProducing()
        return others

    def connection_lost(self, connection: DoorProtocol) -> None:
        if connection.uid not in self.network:
            self._counted -= 1
            self._users[connection.uid] -= 1
            if not self._users[connection.uid]:
                del self._users[connection.uid]
            if self.port is not None and not self.draining:
                self.port.resumeProducing()
        super().connection_lost(connection)


class DoorPlace:
    """The socket `name` in `directory` (HOME/run); by its mode, everybody on this host may hand in mail.

    A path that is too long for a socket's address is reached by way of a descriptor of the directory.
    """

    def __init__(self, directory: str, name: str = "queue", mode: int = 0o666) -> None:
        self.path = f"{directory}/{name}"
        self._name = name
        self._mode = mode
        self._directory = directory
        self._socket: SocketPath | None = None

    def listen(self, reactor: Any, factory: Any) -> IListeningPort:
        """Open the door. OSError or CannotListenError when that cannot be; FileExistsError when somebody is there."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._directory, 0o755)
        self._socket = SocketPath(self._directory, self._name)
        address = self._socket.address
        self._remove_stale(address)
        port: IListeningPort = reactor.listenUNIX(address, factory, backlog=BACKLOG, mode=self._mode)
        factory.port = port
        return port

    def close(self) -> None:
        """After the port has been closed."""
        if self._socket is not None:
            self._socket.close()

    def _remove_stale(self, address: str) -> None:
        """Remove the socket of a daemon that is dead. FileExistsError when it lives, or when it is no socket."""
        try:
            if not stat.S_ISSOCK(os.lstat(address).st_mode):
                raise FileExistsError(17, "is no socket", self.path)
        except FileNotFoundError:
            return
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(address)
            except ConnectionRefusedError:
                os.unlink(address)
                return
            except BlockingIOError:
                pass
        raise FileExistsError(17, "another daemon answers there", self.path)
