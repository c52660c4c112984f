"""The Twisted shell of the SMTP client: one connection, its clock, and the message streamed from its descriptor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import attrs
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as ConnectTimeout
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IDelayedCall, IHandshakeListener, IPullProducer, IReactorTime
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from qtwist.tls.clients import ClientCreator, Demand, Secured, secured
from qtwist.tls.contexts import reasons
from qtwist.wire.sasl_client import Login
from qtwist.wire.smtp_client import (
    Broken,
    Event,
    Finished,
    Lacking,
    NeedBody,
    NoLogin,
    NoTLS,
    Ready,
    RecipientResult,
    Refused,
    SMTPClient,
    Stage,
    StartTLS,
    TooLarge,
    Transaction,
)
from qtwist.writing import write

BLOCK = 65536
"""Octets that are read from a message at a time, in the reactor: the page cache has what was just queued."""

HANDSHAKE_WAIT = 60
"""Seconds that a TLS handshake may take."""

COURTESY_WAIT = 5
"""Seconds that a server has to answer when no delivery waits for it any more: to RSET, to QUIT, or to take the last
bytes. Then the connection is cut."""


@attrs.frozen
class Message:
    """A message to send: a descriptor that stays its owner's, its size in octets, and its first block."""

    fd: int
    size: int
    head: bytes

    @classmethod
    def read(cls, fd: int) -> Message:
        """Look at the message behind `fd`. OSError when it cannot be read."""
        return cls(fd, os.fstat(fd).st_size, os.pread(fd, BLOCK, 0))

    @property
    def eight_bit(self) -> bool:
        """Whether to announce 8-bit content: surely right for a message of one block, assumed for a larger one."""
        return len(self.head) < self.size or not self.head.isascii()


@attrs.frozen
class Unreadable:
    """The message could not be read to its end; the server has not got its final dot."""


@attrs.frozen
class Outcome:
    """How a transaction ended. `waited` is how many seconds, when it ended because a reply did not come in time."""

    end: Finished | TooLarge | Lacking | Broken | Unreadable
    recipients: tuple[RecipientResult, ...] = ()
    waited: int | None = None

    @property
    def stale(self) -> bool:
        """The connection was gone before this transaction began: another one may be tried without any risk."""
        if isinstance(self.end, Broken):
            return self.end.stage is Stage.MAIL and self.end.nonsense is None
        return isinstance(self.end, Finished) and self.end.stage is Stage.MAIL and self.end.reply.code == 421


@attrs.frozen
class TLSFailed:
    """There was no TLS, or not as it was demanded: why, as a phrase."""

    why: str


@attrs.frozen
class TLSTerms:
    """How a connection is to be encrypted: from the start (`immediate`), or where STARTTLS is offered."""

    creator: ClientCreator
    demand: Demand
    immediate: bool = False


@attrs.frozen
class Trouble:
    """Why a session never came to its first transaction, and how many seconds it waited if it waited in vain."""

    event: Refused | Broken | TLSFailed | NoLogin
    waited: int | None = None


def _nothing(_connection: Connection) -> None:
    """What happens to a connection that nobody looks after."""


@implementer(IPullProducer, IHandshakeListener)
class Connection(Protocol):
    """One SMTP connection: greet, then one transaction after the other.

    With `tls`, it is encrypted where that can be; `secured` tells how, once `greeted` has fired, None if it is not. A
    `login` is given before the first transaction.

    `timeout` is how many seconds the server has for each reply, and to take each block of a message; it may be set
    anew between transactions. `on_idle` is called when a transaction is over and the connection is good for another
    one, before the result of the first is told; `on_gone` when it is closed.
    """

    transport: Any

    def __init__(
        self,
        helohost: bytes,
        timeout: int,
        clock: IReactorTime,
        tls: TLSTerms | None = None,
        login: Login | None = None,
    ) -> None:
        self.timeout = timeout
        self.secured: Secured | None = None
        self._tls = tls
        self._handshaking = False
        self.transactions = 0
        self.on_idle: Callable[[Connection], None] = _nothing
        self.on_gone: Callable[[Connection], None] = _nothing
        self.greeted: Deferred[Trouble | None] = Deferred()
        self._engine = SMTPClient(
            helohost,
            start_tls=tls is not None and not tls.immediate,
            require_tls=tls is not None and not tls.immediate and tls.demand.mandatory,
            encrypted=tls is not None and tls.immediate,
            login=login,
        )
        self._clock = clock
        self._timer: IDelayedCall | None = None
        self._waited: int | None = None
        self._replies = 0
        self._message: Message | None = None
        self._offset = 0
        self._producing = False
        self._recipients: list[RecipientResult] = []
        self._result: Deferred[Outcome] | None = None

    @property
    def usable(self) -> bool:
        """Good for another transaction, as far as anybody knows."""
        return self._engine.idle

    @property
    def knows_dsn(self) -> bool:
        """Whether parameters of DSN were passed on, where there were some."""
        return self._engine.knows_dsn

    @property
    def used_up(self) -> bool:
        """The server takes no more messages over this connection (LIMITS, RFC 9422)."""
        most = self._engine.most_transactions
        return most is not None and self.transactions >= most

    def send(self, transaction: Transaction, message: Message) -> Deferred[Outcome]:
        """Run one transaction; fires when it is over, never errbacks. The connection must be usable."""
        result: Deferred[Outcome] = Deferred()
        self.transactions += 1
        self._result = result
        self._message = message
        self._recipients = []
        events = self._engine.start(transaction)
        self._start_timer(self.timeout)
        self._act(events)
        return result

    def quit(self) -> None:
        """Say QUIT and close, within a few seconds whatever the server does."""
        if self._engine.idle:
            self._engine.quit()
            self._flush()
            self._start_timer(COURTESY_WAIT)
        else:
            self._close()

    # Protocol.

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self._start_timer(self.timeout)
        if self._tls is not None and self._tls.immediate:
            self._start_tls(self._tls)

    def handshakeCompleted(self) -> None:
        """As IHandshakeListener says."""
        assert self._tls is not None
        self._handshaking = False
        demand = self._tls.demand
        found = secured(self.transport.getHandle(), demand)
        if demand.verified and found.problem is not None:
            self._fail_tls(found.problem)
            return
        self.secured = found
        self._start_timer(self.timeout)
        if not self._tls.immediate:
            self._engine.secured()
            self._flush()

    def dataReceived(self, data: bytes) -> None:
        events = self._engine.receive(data)
        if self._engine.replies != self._replies:
            self._replies = self._engine.replies
            if self._engine.waiting:
                self._start_timer(self.timeout)
        self._act(events)

    def connectionLost(self, reason: Failure | None = None) -> None:
        if self._handshaking:
            error = None if reason is None else reason.value
            self._fail_tls(reasons(error) if isinstance(error, SSL.Error) else "the connection died in the handshake")
        self._act(self._engine.lost())
        self._stop_timer()
        self.on_gone(self)

    # IPullProducer: the message, a block each time the transport has sent the last one.

    def resumeProducing(self) -> None:
        message = self._message
        if message is None:
            return
        try:
            block = os.pread(message.fd, BLOCK, self._offset)
        except OSError:
            block = b""
        if not block:
            self._abandon()
            return
        self._offset += len(block)
        self._start_timer(self.timeout)
        self._body(message, block)

    def stopProducing(self) -> None:
        self._producing = False

    # The dialogue.

    def _act(self, events: Iterable[Event]) -> None:
        """Do what the engine says. Results are told last, as whoever gets them may use the connection at once."""
        trouble: Trouble | None = None
        outcome: Outcome | None = None
        ready = False
        for event in events:
            if isinstance(event, RecipientResult):
                self._recipients.append(event)
            elif isinstance(event, Ready):
                ready = True
            elif isinstance(event, StartTLS):
                assert self._tls is not None
                self._start_tls(self._tls)
            elif isinstance(event, NoTLS):
                said = "STARTTLS is not offered" if event.reply is None else "STARTTLS was refused"
                trouble = Trouble(TLSFailed(said))
            elif isinstance(event, NoLogin):
                trouble = Trouble(event)
            elif isinstance(event, NeedBody):
                pass  # the server may have changed its mind already: see below
            elif self._result is not None and not isinstance(event, Refused):
                outcome = Outcome(event, tuple(self._recipients), self._waited)
            elif not isinstance(event, (Finished, TooLarge, Lacking)):
                trouble = Trouble(event, self._waited)
        if ready and not self.transactions and self._engine.closed and trouble is None:
            # It has answered what nobody had asked yet.
            trouble = Trouble(Broken(Stage.EHLO, False, None))
        if self._engine.wants_body and not self._producing:
            self._begin_body()
        self._flush()
        if self._engine.closed:
            self._close()
        self._tell(ready, trouble, outcome)

    def _tell(self, ready: bool, trouble: Trouble | None, outcome: Outcome | None) -> None:
        result = None
        if outcome is not None:
            self._stop_producing()
            self._message = None
            result, self._result = self._result, None
            if self._engine.waiting:
                self._start_timer(COURTESY_WAIT)
        if ready and self._engine.idle:
            self._stop_timer()
            if self.transactions:
                self.on_idle(self)
        if result is not None and outcome is not None:
            result.callback(outcome)
        elif trouble is not None or (ready and not self.transactions):
            self.greeted.callback(trouble)

    def _start_tls(self, tls: TLSTerms) -> None:
        self._handshaking = True
        self._start_timer(min(self.timeout, HANDSHAKE_WAIT))
        self.transport.startTLS(tls.creator)

    def _fail_tls(self, why: str) -> None:
        """Give up before anything was said through TLS."""
        self._handshaking = False
        self._engine.lost()
        self.transport.abortConnection()
        self._stop_timer()
        if not self.greeted.called:
            self.greeted.callback(Trouble(TLSFailed(why)))

    def _begin_body(self) -> None:
        message = self._message
        assert message is not None, "a transaction has a message"
        self._offset = len(message.head)
        self._start_timer(self.timeout)
        self._body(message, message.head)
        if self._offset < message.size:
            self._producing = True
            self.transport.registerProducer(self, False)

    def _body(self, message: Message, block: bytes) -> None:
        self._engine.body(block)
        if self._offset >= message.size:
            self._stop_producing()
            self._engine.end_body()
        self._flush()

    def _abandon(self) -> None:
        """The message cannot be read: cut the connection, so that the server drops what it has got."""
        self._engine.lost()
        self._stop_producing()
        self._close()
        self._tell(False, None, Outcome(Unreadable(), tuple(self._recipients)))

    def _flush(self) -> None:
        output = self._engine.take_output()
        if output and self._producing:
            # The transport asks for the next block when it has sent what it holds: so it has to hold something.
            self.transport.write(output)
        elif output:
            write(self.transport, output)

    def _stop_producing(self) -> None:
        if self._producing:
            self._producing = False
            self.transport.unregisterProducer()

    def _close(self) -> None:
        """Close for good. Within a message there is nothing left to say: the server must not wait for its end."""
        if self._producing:
            self._stop_producing()
            self.transport.abortConnection()
        else:
            self.transport.loseConnection()
            self._start_timer(COURTESY_WAIT)

    # The clock.

    def _start_timer(self, seconds: float) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.reset(seconds)
        else:
            self._timer = self._clock.callLater(seconds, self._time_is_up)

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _time_is_up(self) -> None:
        self._timer = None
        if self._handshaking:
            self._fail_tls(f"the handshake was not over in {min(self.timeout, HANDSHAKE_WAIT)} seconds")
            return
        if not self._engine.closed:
            self._waited = self.timeout
        events = self._engine.lost()
        self.transport.abortConnection()
        self._act(events)
        self._stop_timer()


def connect(
    reactor: Any, clock: IReactorTime, address: str, port: int, seconds: float, connection: Protocol
) -> Deferred[Any]:
    """Connect `connection`; errbacks with the error of the system, or a ConnectTimeout after `seconds`."""
    endpoint: Any = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
    factory: Any = Factory.forProtocol(lambda: connection)
    factory.noisy = False  # a log line for each connection says nothing
    connecting: Deferred[Any] = endpoint(reactor, address, port, timeout=None).connect(factory)
    return connecting.addTimeout(seconds, clock, _too_slow)


def _too_slow(_result: object, seconds: float) -> None:
    raise ConnectTimeout(seconds, "no connection")
