"""What SMTP, QMTP and POP3 share: a connection that feeds an engine, and does one thing after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from qtwist.writing import write

if TYPE_CHECKING:
    from qtwist.policy.trace import Tracer


class Engine(Protocol):
    """What the engine of such a connection has to have."""

    @property
    def closed(self) -> bool:
        """All is said."""

    @property
    def wants_input(self) -> bool:
        """False when so much lies unread that nothing more should be read for now."""

    def next_event(self) -> Any:
        """What to do next, None when there is nothing."""

    def data_to_send(self) -> bytes:
        """What to send to the client now."""


@implementer(IPushProducer)
class PumpingConnection(TwistedProtocol):
    """It reads no further than the client takes its answers, and than what it waits for allows.

    A subclass says what is done at each event (`handlers`), in whose name it logs (`log`, :attr:`name`), and how the
    connection is left (:meth:`leave`). It registers itself as the producer of its transport, and calls :meth:`_pump`
    when something has come.
    """

    factory: Any  # a DrainingFactory that has a `clock`
    log: ClassVar[Logger]
    handlers: ClassVar[Mapping[type, Callable[[Any, Any], None]]]

    def __init__(self) -> None:
        self._engine: Any = None
        self._waiting: Deferred[Any] | None = None
        self._may_cancel = False
        self._pumping = False
        self._choked = False  # the client does not take our answers
        self._paused = False  # we do not read from the client
        self._leaving = False  # all is said, or the connection is gone
        self._last = 0.0  # from when on it is the client who keeps us waiting
        self.tracer: Tracer | None = None

    @property
    def name(self) -> str:
        """What the connection is called in the log."""
        raise NotImplementedError

    # What the transport calls

    def pauseProducing(self) -> None:
        self._choked = True
        self._regulate()

    def resumeProducing(self) -> None:
        self._choked = False
        self._last = self.factory.clock.seconds()
        self._pump()

    def stopProducing(self) -> None:
        """The connection is lost; connectionLost does what there is to do."""

    def drain(self) -> None:
        """Leave now, or when what the client has begun was answered."""
        raise NotImplementedError

    def abort(self) -> None:
        """End the connection at once."""
        transport: Any = self.transport
        transport.abortConnection()

    def leave(self) -> None:
        """All is said, and the transport has no producer any more."""
        transport: Any = self.transport
        transport.loseConnection()

    # The pump

    def _pump(self) -> None:
        """Handle events until there is nothing more to do now, then send what there is to say."""
        if self._pumping:
            return
        self._pumping = True
        try:
            self._work()
        finally:
            self._pumping = False
        self._flush()
        if not self._engine.closed:
            self._regulate()
        elif not self._leaving:
            self._leaving = True
            self.factory.connection_leaves(self)
            transport: Any = self.transport
            transport.unregisterProducer()
            self.leave()

    def _work(self) -> None:
        """Handle events until there is nothing more to do now."""
        engine: Engine = self._engine
        while self._waiting is None and not self._choked:
            event = engine.next_event()
            if event is None:
                break
            self.handlers[type(event)](self, event)

    def _flush(self) -> None:
        """Send what there is to say."""
        data = self._engine.data_to_send()
        if data:
            if self.tracer is not None:
                self.tracer.sent(data)
            self._last = self.factory.clock.seconds()
            write(self.transport, data)

    def _regulate(self) -> None:
        """Read from the client, or do not."""
        pause = self._choked or not self._engine.wants_input
        if pause != self._paused and not self._leaving:
            self._paused = pause
            transport: Any = self.transport
            if pause:
                transport.pauseProducing()
            else:
                transport.resumeProducing()

    def _wait(
        self,
        deferred: Deferred[Any],
        done: Callable[[Any], None],
        failed: Callable[[Failure], None],
        may_cancel: bool = False,
    ) -> None:
        """Handle no event until `deferred` has fired and `done` or `failed` has run. One at a time."""
        self._waiting = deferred
        self._may_cancel = may_cancel

        def finished(result: Any) -> None:
            self._waiting = None
            if isinstance(result, Failure):
                failed(result)
            else:
                done(result)
            if not self._leaving:
                self._last = self.factory.clock.seconds()
                self._pump()

        deferred.addBoth(finished).addErrback(self._give_up)

    def _give_up(self, failure: Failure) -> None:
        self.log.failure("{id}: connection given up", failure, id=self.name)
        self.abort()

    def _stop_asking(self) -> None:
        """What is waited for, and may be cancelled, is waited for no longer."""
        if self._waiting is not None and self._may_cancel:
            self._waiting.cancel()
