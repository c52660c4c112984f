"""One SMTP connection: the shell that carries bytes, questions and messages between socket, engine, policies, queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from qtwist.control import ControlError
from qtwist.interfaces import Accepted, AnswerLost, QueueError
from qtwist.mail.address import Address, replace_own_ip
from qtwist.mail.envelope import Envelope
from qtwist.mail.queue_codes import queue_report
from qtwist.policy.base import Opinion
from qtwist.policy.connection import TOO_MANY, PolicyConnection, leading_number, show
from qtwist.policy.content import Discarded
from qtwist.policy.session import ReceivedMessage
from qtwist.policy.watched import one_look
from qtwist.smtpd.fronting import Fronting
from qtwist.smtpd.logins import Logins
from qtwist.smtpd.turning import TurningConnection
from qtwist.tls.info import TLSInfo
from qtwist.tls.serving import TLSConnection
from qtwist.wire import smtp_events as wire
from qtwist.wire.smtp_dsn import kept_mail, kept_rcpt
from qtwist.wire.smtp_reply import Reply
from qtwist.wire.smtp_server import Limits, SMTPServer

if TYPE_CHECKING:
    from qtwist.smtpd.factory import SMTPFactory
    from qtwist.smtpd.settings import Settings

log = Logger(namespace="qtwist.smtpd")

#: Octets per second at which a message has to come, on the average.
SLOWEST = 100

#: Times control/timeoutsmtpd that a client may go on with commands, and without a message.
PATIENCE = 10

CANNOT_READ = Reply(421, b"the configuration cannot be read (#4.3.0)")
CLOSING = Reply(421, b"the service is shutting down, try again later (#4.3.2)")
TIMEOUT = Reply(451, b"timeout (#4.4.2)")
NO_TLS = Reply(454, b"TLS is not available now (#4.7.0)")
NO_QUEUE = Reply(451, b"the queue cannot take a message now (#4.3.0)")


class SMTPProtocol(Logins, Fronting, TurningConnection, TLSConnection, PolicyConnection):
    """Feeds a :class:`SMTPServer` and does what it asks.

    It reads no further than the disk can follow and the client takes its answers. A client has control/timeoutsmtpd
    seconds for each command, however it comes; a message has to come at :data:`SLOWEST` octets per second, with as many
    seconds to spare; without a message it may go on for :data:`PATIENCE` times as long. Who is slower gets 451 and is
    left; who does not read is left without a word.
    """

    factory: SMTPFactory
    log = log

    def __init__(self) -> None:
        super().__init__()
        self._engine: SMTPServer = SMTPServer(b"")
        self._settings: Settings | None = None
        self._timeout = 1200
        self._timer: IDelayedCall | None = None
        self._without_message = 0.0  # since when there was none

    # What the transport calls

    def connectionMade(self) -> None:
        with one_look:
            self._client_comes()

    def _client_comes(self) -> None:
        factory = self.factory
        transport: Any = self.transport
        set_no_delay = getattr(transport, "setTcpNoDelay", None)
        if set_no_delay is not None:
            set_no_delay(True)
        self.session = session = factory.make_session(self.proxied or transport)
        others = factory.connection_made(self)
        transport.registerProducer(self, True)
        try:
            settings = factory.settings.get()
            fronts, etrn = factory.fronts.get(), factory.etrn.get()
        except ControlError as error:
            log.error("{id}: refused, {error} ip={ip}", id=session.id, error=error, ip=session.remote_ip)
            self._engine.end(CANNOT_READ)
        else:
            self._settings = settings
            self._timeout = settings.timeout
            self._engine = SMTPServer(
                settings.greeting,
                limits=Limits(recipients=settings.recipients),
                rewrite=self._rewrite if settings.localiphost is not None else None,
            )
            self._engine.offer_chunking = True
            self._engine.discard = settings.discard
            self._engine.offer_etrn = bool(etrn.domains(session.remote_ip))
            self._engine.offer_xclient = fronts.has(session.remote_ip)
            self._prepare_logins(settings)
            if factory.draining:
                self._engine.end(CLOSING)
            elif others >= max(1, settings.connections // factory.share):
                self.tell_too_many(others)
                self._engine.end(TOO_MANY)
            else:
                log.debug("{id}: connection from {ip}", id=session.id, ip=session.remote_ip)
            self._engine.offer_tls = factory.certificates.usable
        self._last = self._without_message = factory.clock.seconds()
        self._timer = factory.clock.callLater(self._timeout, self._tick)
        self._engine.secured = self.is_tls_from_the_start(session.id)
        self._pump()

    def dataReceived(self, data: bytes) -> None:
        self.hear(data)
        if self._engine.in_message:
            now, gained = self.factory.clock.seconds(), len(data) / SLOWEST
            self._last = min(now, self._last + gained)
            self._without_message = min(now, self._without_message + gained)
        self._engine.receive(data)
        with one_look:
            self._pump()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._leaving = True
        self._engine.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._stop_asking()
        self._abort()
        self.tls_lost(reason)
        self._log_out()
        log.debug("{id}: end of connection", id=self.session.id)
        self._auto_turn()
        self.factory.connection_lost(self)

    # What the factory calls

    def drain(self) -> None:
        """Leave with 421, now or when the message that is coming in has been answered."""
        if self.handshaking:
            self.abort()
        elif not self._engine.in_message and not self._engine.closed:
            self._engine.end(CLOSING)
            self._stop_asking()
            self._pump()

    def _tick(self) -> None:
        """The timer has run out: was the client really silent for so long?"""
        clock = self.factory.clock
        now = clock.seconds()
        # The clock may have been set back; then nobody knows how long it was.
        self._last, self._without_message = min(self._last, now), min(self._without_message, now)
        left = self._last + self._timeout - now
        # While a message comes, its octets keep that away; small chunks of BDAT, each with its answer, do not.
        left = min(left, self._without_message + PATIENCE * self._timeout - now)
        if left <= 0:
            left = self._timeout
            self._last = now
            transport: Any = self.transport
            if self._choked or self._leaving or self.handshaking:
                self._timer = None
                transport.abortConnection()
                return
            if self._waiting is None:
                log.info("{id}: timeout", id=self.session.id)
                self._engine.end(TIMEOUT)
                self._pump()
            else:
                self._stop_asking()
        self._timer = clock.callLater(left, self._tick)

    # Answers

    def _refuse(self, step: str, reply: Reply) -> None:
        self.tell_refusal(step, reply)
        self._engine.reply(reply)

    def _answer(self, step: str, opinion: Opinion) -> bool:
        """Give the client the policies' opinion; True when it is a yes."""
        if opinion is not None and not opinion.positive:
            self._refuse(step, opinion)
            return False
        self._engine.accept(opinion)
        return True

    # Events

    def _on_connect(self, event: wire.Connect) -> None:
        def then(opinion: Opinion) -> None:
            assert self._settings is not None
            databytes = self.session.environment.get(b"DATABYTES")
            self._engine.databytes = self._settings.databytes if databytes is None else leading_number(databytes)
            self._answer("connection", opinion)

        self._ask("connect", then)

    def _on_helo(self, event: wire.Helo) -> None:
        self._forget_transaction()
        self.session.helo = event.name
        self.session.extended = event.extended

        def then(opinion: Opinion) -> None:
            if event.extended and (opinion is None or opinion.positive):
                self._with_mechanisms(lambda: self._engine.accept(opinion))
            else:
                self._answer("HELO", opinion)

        self._ask("helo", then, event.name)

    def _on_start_tls(self, event: wire.StartTLS) -> None:
        creator = self.factory.certificates.creator()
        if creator is None:
            self._engine.reply(NO_TLS)
            return
        self._engine.accept()
        transport: Any = self.transport
        transport.write(self._engine.data_to_send())
        if not self._engine.closed:
            self.start_tls(creator)

    def tls_begins(self, info: TLSInfo) -> None:
        self.session.encrypted(info)
        self._pump()

    def _pump(self) -> None:
        if not self.handshaking:
            super()._pump()

    def leave(self) -> None:
        self.leave_tls()

    def _on_mail(self, event: wire.Mail) -> None:
        session = self.session
        session.forget_transaction()
        session.require_tls = b"REQUIRETLS" in event.params
        session.utf8 = b"SMTPUTF8" in event.params
        session.asked_mail = kept_mail(event.params)
        session.declared_size = int(event.params.get(b"SIZE", b"0"))
        sender = Address(event.address)

        def then(opinion: Opinion) -> None:
            if self._answer("MAIL", opinion):
                session.sender = sender

        self._ask("mail", then, sender)

    def _on_rcpt(self, event: wire.Rcpt) -> None:
        recipient = Address(event.address)

        def then(opinion: Opinion) -> None:
            if self._answer("RCPT", opinion):
                suffix = self.session.environment.get(b"RELAYCLIENT")
                taken = Address(event.address + suffix) if suffix else recipient
                self.session.recipients.append(taken)
                if event.params:
                    self.session.asked[taken.raw] = kept_rcpt(event.params)

        self._ask("rcpt", then, recipient)

    def _on_reset(self, event: wire.Reset) -> None:
        self._forget_transaction()

    def _forget_transaction(self) -> None:
        """The transaction is over, and the message with it that may be coming by BDAT."""
        self._forget_message()
        self.session.forget_transaction()

    def _forget_message(self) -> None:
        """What has come of a message is thrown away, unless it was committed."""
        self._abort()
        self._header = None

    def _on_data(self, event: wire.Data) -> None:
        def then(opinion: Opinion) -> None:
            if opinion is not None and not opinion.positive:
                self._refuse("DATA", opinion)
                return
            session, factory = self.session, self.factory
            try:
                self._begin_message()
            except (QueueError, OSError, ControlError) as error:
                log.error("{id}: no message can be queued: {error}", id=session.id, error=error)
                self._engine.reply(NO_QUEUE)
                return
            self._engine.accept()
            self._write(session.received(b"SMTP", factory.now()))

        self._ask("data", then)

    def _on_chunk(self, event: wire.Chunk) -> None:
        if self._header is not None:
            self._header.feed(event.data)
        self._write(event.data)

    def _on_end_of_message(self, event: wire.EndOfMessage) -> None:
        def then(opinion: Opinion) -> None:
            if opinion is not None and not opinion.positive:
                self._finish(opinion)
                return
            assert self.session.sender is not None
            recipients = tuple(recipient.raw for recipient in self.session.recipients)
            self._ask_about_content(Envelope(self.session.sender.raw, recipients), filtered)

        def filtered(opinion: Opinion, envelope: Envelope) -> None:
            if opinion is not None and (isinstance(opinion, Discarded) or not opinion.positive):
                self._finish(opinion)
            else:
                self._commit(event.size, envelope)

        if event.refusal is not None:
            self._finish(event.refusal)
        elif self._header is None:
            then(None)
        else:
            self._ask("message", then, ReceivedMessage(event.size, self._header.header(), event.hops))

    def _commit(self, size: int, envelope: Envelope) -> None:
        session, incoming = self.session, self._incoming
        assert incoming is not None
        envelope = session.with_asked(envelope)
        self._incoming = None  # from here on a lost connection does not matter to the message

        def done(accepted: Accepted) -> None:
            log.info(
                "{id}: accepted message {number} qp {qp} from <{sender}>, {recipients} recipients, {size} octets{by}",
                id=session.id,
                ip=session.remote_ip,
                number=accepted.number,
                qp=accepted.qp,
                sender=show(envelope.sender),
                recipients=len(envelope.recipients),
                size=size,
                by="" if session.user is None else f", login {show(session.user)}",
            )
            if not self._engine.closed:
                self._finish(Reply(250, b"ok %d qp %d" % (self.factory.now(), accepted.qp)))

        def failed(failure: Failure) -> None:
            error = failure.value
            if isinstance(error, AnswerLost):
                log.error("{id}: connection ended without an answer: {error}", id=session.id, error=error)
                self._engine.close()
                return
            if isinstance(error, QueueError):
                log.error("{id}: message not queued: {error}", id=session.id, error=error)
                result = queue_report(error.code, error.words)
                reply = Reply(554 if result.letter == b"D" else 451, result.text)
            else:
                log.failure("{id}: message not queued", failure, id=session.id)
                reply = NO_QUEUE
            if not self._engine.closed:
                self._finish(reply)

        self._wait(incoming.commit(envelope), done, failed)

    def _finish(self, reply: Reply) -> None:
        """The message has its answer; the transaction is over."""
        self._forget_message()
        self._without_message = self.factory.clock.seconds()
        if reply.positive:
            self._engine.reply(reply)
        else:
            self._refuse("message", reply)
        self.session.forget_transaction()
        if self.factory.draining:
            self._engine.end(CLOSING)

    def _on_quit(self, event: wire.Quit) -> None:
        """The engine has said goodbye and is closed; the pump leaves."""

    def _rewrite(self, address: bytes) -> bytes:
        assert self._settings is not None and self._settings.localiphost is not None
        is_own = self.factory.is_own_address
        return replace_own_ip(address, self._settings.localiphost, lambda ip: is_own(self.session, ip))

    handlers: ClassVar[dict[type, Callable[[SMTPProtocol, Any], None]]] = {
        wire.Connect: _on_connect,
        wire.Helo: _on_helo,
        wire.StartTLS: _on_start_tls,
        **Logins.login_handlers,
        **Fronting.xclient_handlers,
        **TurningConnection.etrn_handlers,
        wire.Mail: _on_mail,
        wire.Rcpt: _on_rcpt,
        wire.Reset: _on_reset,
        wire.Data: _on_data,
        wire.Chunk: _on_chunk,
        wire.EndOfMessage: _on_end_of_message,
        wire.Quit: _on_quit,
    }
