"""Messages of our own servers at the queue's door, many on one connection (:mod:`qtwist.wire.pipelined`): both ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from qtwist.interfaces import Accepted, AnswerLost, IIncomingMessage, QueueError
from qtwist.mail.asked import joined, part
from qtwist.mail.envelope import Envelope
from qtwist.mail.queue_texts import report
from qtwist.queue.client import BROKE_OFF, NO_NETWORK
from qtwist.wire import pipelined
from qtwist.wire.netstring import NetstringError
from qtwist.writing import write

INTERNAL_BUG = 81

_NUMBERS = 1 << 32


class _Together:
    """Gathers what is written in one turn of the reactor."""

    def __init__(self, transport: Any, clock: IReactorTime) -> None:
        self._transport = transport
        self._clock = clock
        self._parts: list[bytes] = []

    def add(self, data: bytes) -> None:
        if not self._parts:
            self._clock.callLater(0, self.flush)
        self._parts.append(data)

    def flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts:
            write(self._transport, b"".join(parts))


class PipelinedRequests:
    """The door's end: queues what comes on one connection. `begin` makes a message; `leave` is called when the client
    breaks the rules, and when all that was asked for is answered after :meth:`drain`."""

    def __init__(
        self,
        transport: Any,
        clock: IReactorTime,
        begin: Callable[[], IIncomingMessage],
        leave: Callable[[], None],
        client: str,
        log: Logger,
    ) -> None:
        self._begin = begin
        self._leave = leave
        self._client = client
        self._log = log
        self._reader = pipelined.Reader(pipelined.read_request)
        self._answers = _Together(transport, clock)
        self._open = 0
        self._draining = False

    def receive(self, data: bytes) -> None:
        """Take octets, without the mark before the first request."""
        if self._draining:
            return
        try:
            requests = self._reader.feed(data)
        except NetstringError as error:
            self._log.error("{client} makes no sense at the queue's door: {error}", client=self._client, error=error)
            self._leave()
            return
        for number, message, sender, recipients in requests:
            self._open += 1
            try:
                incoming = self._begin()
                incoming.write(message)  # it is in memory already: no need to wait
                result = incoming.commit(Envelope(*part(sender, recipients)))
            except (QueueError, OSError, ValueError):
                result = fail(Failure())
            result.addCallbacks(self._accepted, self._refused, callbackArgs=(number,), errbackArgs=(number,))

    def drain(self) -> None:
        """Take nothing more, and leave when all is answered."""
        self._draining = True
        self._check_drained()

    def _check_drained(self) -> None:
        if self._draining and not self._open:
            self._answers.flush()
            self._leave()

    def _answer(self, data: bytes) -> None:
        self._open -= 1
        self._answers.add(data)
        self._check_drained()

    def _accepted(self, accepted: Accepted, number: int) -> None:
        self._answer(pipelined.answer(number, 0, accepted.number))

    def _refused(self, failure: Failure, number: int) -> None:
        error = failure.value
        if isinstance(error, AnswerLost):
            self._log.error("connection of {client} ended without an answer: {error}", client=self._client, error=error)
            self._leave()
            return
        if isinstance(error, QueueError):
            self._log.warn("a message of {client} was refused: {error}", client=self._client, error=error)
            code, text = error.code, error.text
        else:
            self._log.failure("a message of {client} was not queued", failure, client=self._client)
            code, text = INTERNAL_BUG, report(INTERNAL_BUG)[1].decode()
        self._answer(pipelined.answer(number, code, 0, text))


class _Line(Protocol):
    """The client's end of a connection; `lost` is called when it is gone."""

    def __init__(self, clock: IReactorTime, lost: Callable[[], None]) -> None:
        self._clock = clock
        self._lost = lost
        self._reader = pipelined.Reader(pipelined.read_answer)
        self._unsent: list[bytes] = [pipelined.MARK]  # until the connection is there
        self._requests: _Together | None = None
        self._waiting: dict[int, Deferred[Accepted]] = {}

    def send(self, number: int, data: bytes) -> Deferred[Accepted]:
        result: Deferred[Accepted] = Deferred()
        self._waiting[number] = result
        if self._requests is None:
            self._unsent.append(data)
        else:
            self._requests.add(data)
        return result

    def connectionMade(self) -> None:
        self._requests = _Together(self.transport, self._clock)
        self._requests.add(b"".join(self._unsent))
        self._unsent = []

    def dataReceived(self, data: bytes) -> None:
        try:
            answers = self._reader.feed(data)
        except NetstringError:
            self.close()
            return
        for number, code, message, text in answers:
            result = self._waiting.pop(number, None)
            if result is None:
                continue
            if code:
                result.errback(QueueError(code, text))
            else:
                result.callback(Accepted(message, message))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._fail(AnswerLost(BROKE_OFF, "the queue's door closed without an answer"))

    def unreachable(self, reason: Failure) -> None:
        """There was nobody at the door."""
        self._fail(QueueError(NO_NETWORK, f"nobody is at the queue's door: {reason.getErrorMessage()}"))

    def close(self) -> None:
        if self.transport is not None:
            transport: Any = self.transport
            transport.abortConnection()

    def _fail(self, error: QueueError) -> None:
        self._lost()
        waiting, self._waiting = self._waiting, {}
        for result in waiting.values():
            result.errback(error)


class _Connector(ClientFactory):
    noisy = False

    def __init__(self, line: _Line) -> None:
        self._line = line

    def buildProtocol(self, addr: IAddress | None) -> _Line:
        return self._line

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self._line.unreachable(reason)


class PipelinedDoor:
    """The client's end: one connection to the door at `path`, made when it is needed."""

    def __init__(self, path: str, reactor: Any) -> None:
        self._path = path
        self._reactor = reactor
        self._line: _Line | None = None
        self._number = 0

    def submit(self, message: bytes, envelope: Envelope) -> Deferred[Accepted] | None:
        """Queue a message; None when it is too large for this. Errbacks with QueueError."""
        self._number = (self._number + 1) % _NUMBERS
        sender, *recipients = joined(envelope.sender, envelope.recipients, envelope.asked)
        data = pipelined.request(self._number, message, sender, recipients)
        if data is None:
            return None
        if self._line is None:
            self._line = _Line(self._reactor, self._lost)
            self._reactor.connectUNIX(self._path, _Connector(self._line))
        return self._line.send(self._number, data)

    def close(self) -> None:
        """Leave the door."""
        if self._line is not None:
            self._line.close()

    def _lost(self) -> None:
        self._line = None
