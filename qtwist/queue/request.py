"""One QMQP request on a transport, from whoever may make it: at the queue's door, or over TCP.

The engine is :mod:`qtwist.wire.qmqp`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from qtwist.interfaces import Accepted, AnswerLost, IIncomingMessage, QueueError
from qtwist.mail.envelope import Envelope
from qtwist.mail.queue_texts import report
from qtwist.queue.room import Reserve
from qtwist.wire.qmqp import QMQPServer
from qtwist.writing import write

TIMEOUT = 52
WRITE_ERROR = 53
INTERNAL_BUG = 81
BAD_ENVELOPE = 91


def check_reserves(reserves: Iterable[Reserve]) -> None:
    """QueueError when there is too little left of one of them to begin a message."""
    for reserve in reserves:
        if not reserve.has():
            raise QueueError(WRITE_ERROR, f"there is too little room for it (control/{reserve.control})")


class RequestProtocol(Protocol):
    """One request. It reads no faster than the disk takes what was read.

    A subclass says who the client is (`client`, for the log), calls :meth:`start` when it has connected, makes the
    message (:meth:`begin`), and has the limits: `silence` and `lifetime` are the seconds after which a client that
    sends nothing is given up, and after which any is.
    """

    factory: Any
    silence: float
    lifetime: float
    log: ClassVar[Logger]

    def __init__(self, engine: QMQPServer) -> None:
        self._engine = engine
        self._incoming: IIncomingMessage | None = None
        self._disk_is_behind = False
        self._committing = False
        self._ended = False
        self._last = 0.0
        self._begun = 0.0
        self._timer: IDelayedCall | None = None

    @property
    def client(self) -> str:
        """Who asks."""
        raise NotImplementedError

    def begin(self) -> IIncomingMessage:
        """The message that is to be filled. QueueError or OSError when there can be none."""
        raise NotImplementedError

    def heading(self) -> bytes:
        """What is put in front of the message that has just begun."""
        return b""

    def start(self) -> None:
        """The connection is there."""
        clock = self.factory.clock
        self._last = self._begun = clock.seconds()
        self._timer = clock.callLater(min(self.silence, self.lifetime), self._tick)

    def stop_timer(self) -> None:
        """The client may take as long as it likes."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def answer(self, code: int, text: bytes) -> None:
        """The last word: qmail-queue's exit code, and a text with its letter."""
        if self._ended:
            return
        self._ended = True
        if not self._committing:
            self._abort()
        write(self._transport, self._engine.answer(code, text))
        self.leave()

    def leave(self) -> None:
        """All is said."""
        self._transport.loseConnection()

    def drain(self) -> None:
        """Leave, unless a message is coming in."""
        if not self._engine.started:
            self.abort()

    def abort(self) -> None:
        """Leave without an answer: the client takes that for a temporary failure."""
        self._transport.abortConnection()

    # What the transport calls

    def dataReceived(self, data: bytes) -> None:
        if self._ended or self._committing:
            return
        self._last = self.factory.clock.seconds()
        engine = self._engine
        piece = engine.receive(data)
        if engine.broken:
            self.answer(BAD_ENVELOPE, b"ZThis is no request to the queue: %b. (#4.5.2)" % engine.broken.encode())
            return
        if self._incoming is None:
            try:
                self._incoming = self.begin()
            except (QueueError, OSError):
                self._refused(Failure())
                return
            piece = self.heading() + piece
        if piece:
            ready = self._incoming.write(piece)
            if ready is not None:
                self._disk_is_behind = True
                self._transport.pauseProducing()
                ready.addCallback(self._disk_has_caught_up)
        self._go_on()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.stop_timer()
        self._ended = True
        if not self._committing:
            self._abort()
        self.factory.connection_lost(self)

    @property
    def _transport(self) -> Any:
        return self.transport

    # From the disk

    def _disk_has_caught_up(self, _: None) -> None:
        self._disk_is_behind = False
        if not self._ended:
            self._last = self.factory.clock.seconds()
            self._transport.resumeProducing()
            self._go_on()

    def _go_on(self) -> None:
        engine = self._engine
        if not engine.ended or self._disk_is_behind or self._ended or self._committing:
            return
        if engine.refusal is not None:
            self.answer(*engine.refusal)
            return
        assert self._incoming is not None
        self._committing = True
        done = self._incoming.commit(Envelope(engine.sender, tuple(engine.recipients), engine.asked))
        done.addCallbacks(self._accepted, self._refused)

    def _accepted(self, accepted: Accepted) -> None:
        self.answer(0, b"Kok %d qp %d" % (self.factory.now(), accepted.qp))

    def _refused(self, failure: Failure) -> None:
        error = failure.value
        if isinstance(error, AnswerLost):
            self.log.error("connection of {client} ended without an answer: {error}", client=self.client, error=error)
            self._ended = True
            self.leave()
            return
        if isinstance(error, QueueError):
            self.log.warn("a message of {client} was refused: {error}", client=self.client, error=error)
            code = error.code
        else:
            self.log.failure("a message of {client} was not queued", failure, client=self.client)
            code = INTERNAL_BUG
        letter, text = report(code)
        self.answer(code, letter + text)

    def _abort(self) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.abort()

    def _tick(self) -> None:
        now = self.factory.clock.seconds()
        self._timer = None
        # The clock may have been set back; then nobody knows how long it was.
        self._last, self._begun = min(self._last, now), min(self._begun, now)
        due = min(self._last + self.silence, self._begun + self.lifetime)
        if self._committing or self._disk_is_behind:
            due = max(due, now + 1)  # it is we who are slow
        if now < due:
            self._timer = self.factory.clock.callLater(due - now, self._tick)
        else:
            letter, text = report(TIMEOUT)
            self.answer(TIMEOUT, letter + text)
