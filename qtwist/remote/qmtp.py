"""The Twisted shell of the QMTP client: one package on a connection of its own, streamed from its descriptor."""

from __future__ import annotations

import os
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPullProducer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from qtwist.remote.client import BLOCK, Message
from qtwist.wire.qmtp_client import ADDRESS_LIMIT, AnswerReader, head, tail


@attrs.frozen
class Package:
    """Who sends, and who is to get the message: addresses as the queue has them, without quotes."""

    sender: bytes
    recipient: bytes

    @property
    def fits(self) -> bool:
        """Whether every server takes addresses of this length."""
        return max(len(self.sender), len(self.recipient)) <= ADDRESS_LIMIT


@attrs.frozen
class Outcome:
    """How a package ended: with an answer, or without one.

    `nonsense` is what the server said in place of an answer. `whole` says whether the server may have got all of the
    package; `waited` for how many seconds it said or took nothing, when that was the end; `unreadable` that the message
    could not be read.
    """

    answer: tuple[bytes, bytes] | None = None
    nonsense: bytes | None = None
    whole: bool = False
    waited: int | None = None
    unreadable: bool = False


def is_qmtp_preference(preference: int) -> bool:
    """Whether a mail exchanger of this preference says that it speaks QMTP (MXPS; spec/related.md §13.1)."""
    return 12800 <= preference <= 13055 and preference % 16 == 1


@implementer(IPullProducer)
class QMTPConnection(Protocol):
    """Sends one package as soon as it is connected. `result` fires with the :class:`Outcome`, and never errbacks.

    `timeout` is how many seconds the server has to take each block, and to answer.
    """

    transport: Any

    def __init__(self, package: Package, message: Message, timeout: int, clock: IReactorTime) -> None:
        self.result: Deferred[Outcome] = Deferred()
        self._package = package
        self._message = message
        self._timeout = timeout
        self._clock = clock
        self._timer: IDelayedCall | None = None
        self._reader = AnswerReader()
        self._offset = 0
        self._producing = False
        self._whole = False
        self._ended = False

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self._start_timer()
        self.transport.write(head(self._message.size) + self._message.head)
        self._offset = len(self._message.head)
        if self._offset >= self._message.size:
            self._end_package()
        else:
            self._producing = True
            self.transport.registerProducer(self, False)

    def dataReceived(self, data: bytes) -> None:
        self._reader.receive(data)
        if self._reader.answer is not None and not self._whole:
            # Nobody can answer for what has not been sent.
            self._end(Outcome(nonsense=data[:200]))
        elif self._reader.answer is not None or self._reader.nonsense is not None:
            self._end(Outcome(self._reader.answer, self._reader.nonsense, self._whole))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end(Outcome(whole=self._whole))

    # IPullProducer: the message, a block each time the transport has sent the last one.

    def resumeProducing(self) -> None:
        if self._ended:
            return
        try:
            block = os.pread(self._message.fd, min(BLOCK, self._message.size - self._offset), self._offset)
        except OSError:
            block = b""
        if not block:
            self._end(Outcome(unreadable=True))
            return
        self._start_timer()
        self._offset += len(block)
        self.transport.write(block)
        if self._offset >= self._message.size:
            self._stop_producing()
            self._end_package()

    def stopProducing(self) -> None:
        self._producing = False

    def _end_package(self) -> None:
        self._whole = True
        self.transport.write(tail(self._package.sender, self._package.recipient))

    def _stop_producing(self) -> None:
        if self._producing:
            self._producing = False
            self.transport.unregisterProducer()

    def _end(self, outcome: Outcome) -> None:
        if self._ended:
            return
        self._ended = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._stop_producing()
        self.transport.abortConnection()
        self.result.callback(outcome)

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self._clock.callLater(self._timeout, self._time_is_up)
        else:
            self._timer.reset(self._timeout)

    def _time_is_up(self) -> None:
        self._end(Outcome(whole=self._whole, waited=self._timeout))
