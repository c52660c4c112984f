"""Packets between processes of ours: SOCK_SEQPACKET sockets that keep bounds and carry descriptors."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import IReadDescriptor, IWriteDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from qtwist.local.packets import receive
from qtwist.wire.spawning import LONGEST

#: Packets read before others get their turn.
_AT_ONCE = 32
#: Descriptors in one packet.
MOST_DESCRIPTORS = 64

_log = Logger()


@implementer(IReadDescriptor, IWriteDescriptor)
class PacketConnection:
    """One end of a pair. `received` gets each packet and its descriptors, which are then its own; `lost` is called
    once, when the other end is gone (not after :meth:`close`)."""

    def __init__(
        self,
        reactor: Any,
        sock: socket.socket,
        received: Callable[[bytes, list[int]], None],
        lost: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._socket: socket.socket | None = sock
        self._received = received
        self._lost = lost
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        sock.setblocking(False)
        reactor.addReader(self)

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """Two sockets that talk to each other."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def send(self, packet: bytes, fds: Sequence[int] = ()) -> None:
        """Send a packet with copies of `fds`; they may be closed as soon as this returns."""
        if self._socket is None:
            return
        if not self._unsent:
            try:
                self._send(packet, fds)
            except BlockingIOError:
                self._reactor.addWriter(self)
            except OSError:
                return  # the reader will tell
            else:
                return
        self._unsent.append((packet, [os.dup(fd) for fd in fds]))

    def close(self) -> None:
        """Harmless when closed already."""
        sock, self._socket = self._socket, None
        if sock is not None:
            self._reactor.removeReader(self)
            self._reactor.removeWriter(self)
            sock.close()
            while self._unsent:
                for fd in self._unsent.popleft()[1]:
                    os.close(fd)

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def _send(self, packet: bytes, fds: Sequence[int]) -> None:
        assert self._socket is not None
        if fds:
            socket.send_fds(self._socket, [packet], fds)
        else:
            self._socket.send(packet)

    # What the reactor calls

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def doRead(self) -> None:
        for _ in range(_AT_ONCE):
            if self._socket is None:
                return
            try:
                packet, fds = receive(self._socket, LONGEST, MOST_DESCRIPTORS)
            except BlockingIOError:
                return
            except OSError:
                packet, fds = b"", []
            if not packet:
                for fd in fds:
                    os.close(fd)
                self.close()
                self._lost()
                return
            try:
                self._received(packet, fds)
            except Exception:  # one bad packet must not cost the connection to a process that we need
                _log.failure("a packet could not be handled")

    def doWrite(self) -> None:
        while self._unsent and self._socket is not None:
            packet, fds = self._unsent[0]
            try:
                self._send(packet, fds)
            except BlockingIOError:
                return
            except OSError:
                pass  # the reader will tell
            self._unsent.popleft()
            for fd in fds:
                os.close(fd)
        self._reactor.removeWriter(self)

    def connectionLost(self, reason: Failure) -> None:
        if self._socket is not None:
            self.close()
            self._lost()

    def logPrefix(self) -> str:
        return "packets"
