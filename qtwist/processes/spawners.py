"""The spawners in processes of their own, as the queue manager sees them, and what serves it there (spec §11.1)."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from qtwist.interfaces import Delivery, ISpawner
from qtwist.local.report import report
from qtwist.mail.envelope import Report
from qtwist.processes.packets import PacketConnection
from qtwist.wire import spawning

_GONE = Report.deferral(b"The process that delivers has ended; nobody knows how far it came. (#4.3.0)\n")
_STOPPING = Report.deferral(b"The mail system is stopping. (#4.3.0)\n")

_LETTERS = {ord(letter): letter for letter in (b"K", b"Z", b"D")}


def from_exit_code(code: int, output: bytes) -> Report:
    """What lspawn's reply means: an exit code of qmail-local (§11.3)."""
    return report(code, output)


def from_letter(code: int, output: bytes) -> Report:
    """What rspawn's reply means: a report's letter as a number."""
    return Report(_LETTERS.get(code, b"Z"), output)


@implementer(ISpawner)
class ProcessSpawner:
    """A spawner at the other end of a packet socket.

    Until :meth:`connect` was called, deliveries wait. When the other end dies, what runs there is a deferral, and the
    next ones wait for another :meth:`connect`, unless :meth:`give_up` was called. `meaning` turns a reply into a
    report.
    """

    def __init__(self, limit: int, reactor: Any, meaning: Callable[[int, bytes], Report]) -> None:
        self.limit = limit
        self._reactor = reactor
        self._meaning = meaning
        self._connection: PacketConnection | None = None
        self._numbers = count(1)
        self._running: dict[int, Deferred[Report]] = {}
        self._waiting: deque[tuple[Delivery, Deferred[Report]]] = deque()
        self._hopeless = False  # nobody will call connect
        self._stopping: Deferred[None] | None = None

    def connect(self, sock: socket.socket) -> None:
        """From now on, deliveries go to whoever is at the other end of `sock`."""
        if self._connection is not None:
            self._connection.close()
            self._lost()
        self._connection = PacketConnection(self._reactor, sock, self._on_reply, self._lost)
        while self._waiting:
            self._ask(*self._waiting.popleft())

    def deliver(self, delivery: Delivery) -> Deferred[Report]:
        """As ISpawner says."""
        if self._stopping is not None or (self._hopeless and self._connection is None):
            os.close(delivery.fd)
            return succeed(_STOPPING)
        result: Deferred[Report] = Deferred()
        if self._connection is None:
            self._waiting.append((delivery, result))
        else:
            self._ask(delivery, result)
        return result

    def give_up(self) -> None:
        """Nobody will call :meth:`connect` any more: what waits for a process is deferred. What runs goes on."""
        self._hopeless = True
        while self._waiting:
            delivery, result = self._waiting.popleft()
            os.close(delivery.fd)
            result.callback(_STOPPING)

    def stop(self) -> Deferred[None]:
        """As ISpawner says; what waits for a process is deferred."""
        self._stopping = Deferred()
        self.give_up()
        self._check_stopped()
        return self._stopping

    def _ask(self, delivery: Delivery, result: Deferred[Report]) -> None:
        assert self._connection is not None
        number = next(self._numbers) & 0xFFFFFFFF
        try:
            parameters = delivery.asked_mail, delivery.asked
            packet = spawning.request(
                number, delivery.number, delivery.sender, delivery.recipient, delivery.siblings, parameters
            )
        except ValueError:
            os.close(delivery.fd)
            result.callback(Report.failure(b"There is a NUL in the addresses. (#5.1.3)\n"))
            return
        self._running[number] = result
        self._connection.send(packet, [delivery.fd])
        os.close(delivery.fd)

    def _on_reply(self, packet: bytes, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        number, code, output = spawning.read_reply(packet)
        result = self._running.pop(number, None)
        if result is not None:
            result.callback(self._meaning(code, output))
            self._check_stopped()

    def _lost(self) -> None:
        self._connection = None
        running, self._running = self._running, {}
        for result in running.values():
            result.callback(_GONE)
        self._check_stopped()

    def _check_stopped(self) -> None:
        if self._stopping is not None and not self._running and not self._stopping.called:
            if self._connection is not None:
                self._connection.close()
            self._stopping.callback(None)


class SpawnerServer:
    """The other end: carries out what is asked for with `spawner`. `lost` is called when the queue manager is gone."""

    def __init__(self, reactor: Any, sock: socket.socket, spawner: ISpawner, lost: Callable[[], None]) -> None:
        self._spawner = spawner
        self._connection = PacketConnection(reactor, sock, self._on_request, lost)

    def _on_request(self, packet: bytes, fds: list[int]) -> None:
        try:
            number, message, sender, recipient, siblings = spawning.read_request(packet)
            [fd] = fds
        except ValueError:
            for fd in fds:
                os.close(fd)
            raise
        delivery = Delivery(message, fd, sender, recipient, siblings, *spawning.read_parameters(packet))
        result = self._spawner.deliver(delivery)
        result.addCallback(
            lambda report: self._connection.send(spawning.reply(number, ord(report.letter), report.text))
        )
