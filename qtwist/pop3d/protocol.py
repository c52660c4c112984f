"""One POP3 connection: the shell that carries bytes, questions and messages between socket, engine and mailbox."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from qtwist.auth.credentials import APOPCredentials, credentials_of
from qtwist.auth.errors import LoginUnavailable
from qtwist.control import ControlError
from qtwist.policy.session import is_local, plain_ip
from qtwist.pop3d.interfaces import (
    IMaildrop,
    MaildropError,
    MaildropInUse,
    MaildropTrouble,
    MessageGone,
)
from qtwist.pumping import PumpingConnection
from qtwist.tls.binding import channel_bindings
from qtwist.tls.info import TLSInfo
from qtwist.tls.serving import TLSConnection
from qtwist.wire import pop3_events as wire
from qtwist.wire.pop3_server import BAD_CREDENTIALS, IN_USE, PERMANENT, TEMPORARY, POP3Server
from qtwist.wire.sasl import Channel, SaltWanted
from qtwist.wire.sasl_mechanisms import SCRAM, Claimed, Confirmed, offered

if TYPE_CHECKING:
    from qtwist.pop3d.factory import POP3Factory

log = Logger(namespace="qtwist.pop3d")

#: So many octets of messages are sent at once, where a client asks for several.
TOGETHER = 65536

CANNOT_READ = b"the configuration cannot be read"
TOO_MANY = b"too many connections, try again later"
TOO_MANY_FROM_YOU = b"too many connections from you, try again later"
NO_MEMORY = b"not enough memory, try again later"
CLOSING = b"the service is shutting down, try again later"
WRONG = b"wrong name or password"
NO_TLS = b"TLS is not available now"
FOREIGN = b"that is not the name in the certificate"
NO_LOGIN = b"logins cannot be checked now, try again later"
NO_MAILDROP = b"there is no mailbox that can be read"
IN_USE_TEXT = b"the mailbox is in use"
TROUBLE = b"the mailbox cannot be read now, try again later"
GONE = b"the message is no longer there"


class POP3Protocol(TLSConnection, PumpingConnection):
    """Feeds a :class:`POP3Server` and does what it asks.

    It reads no further than the client takes its answers, and a message no faster. A client that says nothing, or does
    not read, for control/timeoutpop3d seconds is left without a word, and nothing is deleted (RFC 1939 §3).
    """

    factory: POP3Factory
    log = log

    def __init__(self) -> None:
        super().__init__()
        self.variables: dict[bytes, bytes] = {}  # that a rule has set for the client
        self._id = os.urandom(8).hex()
        self._ip = ""
        self._counted = False  # in factory.clients
        self._engine = POP3Server(b"")
        self._maildrop: Any = None
        self._source: Any = None
        self._logout: Callable[[], object] | None = None
        self._user = ""
        self._method = ""
        self._emails: tuple[bytes, ...] = ()  # in the certificate that the client has shown
        self._end = "lost"
        self._retrieved = 0
        self._deleted = 0
        self._octets = 0
        self._gathered = 0  # octets of messages in what is to be sent
        self._timeout = 1200
        self._timer: IDelayedCall | None = None

    # What the transport calls

    def connectionMade(self) -> None:
        factory = self.factory
        transport: Any = self.transport
        set_no_delay = getattr(transport, "setTcpNoDelay", None)
        if set_no_delay is not None:
            set_no_delay(True)
        self._ip = plain_ip(getattr((self.proxied or transport).getPeer(), "host", ""))
        others = factory.connection_made(self)
        self.tracer = factory.traces.begin(self._id, self._ip)
        transport.registerProducer(self, True)
        try:
            settings = factory.settings.get()
            has_memory = factory.memory.has()
        except ControlError as error:
            log.error("{id}: refused, {error}", id=self._id, error=error)
            self._engine.end(CANNOT_READ, TEMPORARY)
        else:
            self._timeout = settings.timeout
            self._engine = engine = POP3Server(
                factory.timestamp(settings.host),
                plaintext=settings.plaintext or is_local(self._ip),
                limits=factory.limits,
                mechanisms=None,
            )
            engine.channel = Channel(settings.host, lambda: secrets.token_urlsafe(18).encode("ascii"))
            if factory.draining:
                engine.end(CLOSING, TEMPORARY)
            elif others >= max(1, settings.connections // factory.share):
                self._tell_refusal(f"there are {others} connections already (control/concurrencypop3)")
                engine.end(TOO_MANY, TEMPORARY)
            elif self._is_one_too_many():
                engine.end(self.variables.get(b"DIEMSG") or TOO_MANY_FROM_YOU, TEMPORARY)
            elif not has_memory:
                log.warn("{id}: refused {ip}, not enough memory (control/memoryminfree)", id=self._id, ip=self._ip)
                engine.end(NO_MEMORY, TEMPORARY)
            else:
                log.debug("{id}: connection from {ip}", id=self._id, ip=self._ip)
                engine.greet()
            engine.offer_tls = factory.certificates.usable
        self._last = factory.clock.seconds()
        self._timer = factory.clock.callLater(self._timeout, self._tick)
        self._engine.secured = self.is_tls_from_the_start(self._id)
        self._pump()

    def _is_one_too_many(self) -> bool:
        """Whether this client or its network has enough connections, or comes too often."""
        if not self._ip:
            return False
        try:
            reason = self.factory.clients.arrive(self._ip, self.variables)
        except ControlError as error:
            reason = str(error)
        self._counted = reason is None
        if reason is not None:
            self._tell_refusal(reason)
        return reason is not None

    def _tell_refusal(self, reason: str) -> None:
        """Log that the client was sent away."""
        log.info(
            "{id}: {step} answered {code} rule={rule} ({reason}) ip={ip}",
            id=self._id,
            step="connection",
            code=421,
            rule="limits",
            reason=reason,
            ip=self._ip,
        )

    def dataReceived(self, data: bytes) -> None:
        if self.tracer is not None:
            self.tracer.received(data)
        self._engine.receive(data)
        self._pump()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._leaving = True
        if self._counted:
            self.factory.clients.leave(self._ip)
        if self.tracer is not None:
            self.tracer.end()
        self._engine.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.tls_lost(reason)
        if self._waiting is not None:
            self._stop_asking()
        else:
            self._close_source()
        if self._maildrop is not None:
            log.info(
                "{id}: end ({end}) of {user}: {octets} octets, {retrieved} retrieved, {deleted} deleted",
                id=self._id,
                end=self._end,
                user=self._user,
                octets=self._octets,
                retrieved=self._retrieved,
                deleted=self._deleted,
            )
            self._close_maildrop()
        self.factory.connection_lost(self)

    @property
    def name(self) -> str:
        return self._id

    # What the factory calls

    def drain(self) -> None:
        """Leave, unless somebody has logged in: then QUIT is worth waiting for, because it deletes."""
        if self.handshaking:
            self.abort()
        elif not (self._engine.in_transaction or self._engine.closed):
            self._engine.end(CLOSING, TEMPORARY)
            self._stop_asking()
            self._pump()

    def leave(self) -> None:
        self.leave_tls()

    # The pump

    def _pump(self) -> None:
        if not self.handshaking:
            super()._pump()

    def _work(self) -> None:
        engine = self._engine
        while self._waiting is None and not self._choked and not self._leaving:
            if self._source is not None:
                self._wait(self._source.read(), self._on_part, self._broken)
                if self._waiting is not None or self._gathered >= TOGETHER:
                    self._flush()
                continue
            event = engine.next_event()
            if event is None:
                break
            self.handlers[type(event)](self, event)

    def _flush(self) -> None:
        self._gathered = 0
        super()._flush()

    def _give_up(self, failure: Failure) -> None:
        self._end = "error"
        super()._give_up(failure)

    def _tick(self) -> None:
        """The timer has run out: was the client really silent for so long?"""
        clock = self.factory.clock
        now = clock.seconds()
        self._last = min(self._last, now)  # the clock may have been set back; then nobody knows how long it was
        left = self._last + self._timeout - now
        self._timer = None
        if left <= 0:
            if self._waiting is None or self._leaving or self.handshaking:
                log.info("{id}: timeout", id=self._id)
                self._end = "timeout"
                self.abort()
                return
            left = self._timeout  # it waits for us
        self._timer = clock.callLater(left, self._tick)

    # TLS

    def _on_start_tls(self, event: wire.StartTLS) -> None:
        creator = self.factory.certificates.creator()
        if creator is None:
            self._engine.refuse(NO_TLS, TEMPORARY)
            return
        self._engine.start_tls()
        self._flush()
        if not self._engine.closed:
            self.start_tls(creator)

    def tls_begins(self, info: TLSInfo) -> None:
        self._emails = () if info.client is None else info.client.emails
        self._last = self.factory.clock.seconds()
        self._pump()

    # Logging in

    def _on_login(self, event: wire.Login) -> None:
        self._user = show(event.username)
        credentials: Any
        if event.digest is not None:
            credentials = APOPCredentials(event.username, self._engine.timestamp, event.digest)
        else:
            assert event.password is not None
            credentials = UsernamePassword(event.username, event.password)
        self._log_in(credentials, event.method)

    def _on_claimed(self, event: Claimed) -> None:
        credentials = credentials_of(event.claim, self._emails)
        if credentials is None:
            self._engine.refuse(FOREIGN, BAD_CREDENTIALS)
            return
        self._user = show(credentials.username)
        self._log_in(credentials, f"AUTH {event.mechanism}")

    def _log_in(self, credentials: Any, method: str) -> None:
        login = self.factory.authenticator.login(credentials, self._ip, self.factory.service, IMaildrop)

        def done(result: tuple[Any, Callable[[], object]]) -> None:
            self._maildrop, self._logout = result
            self._method = method
            if self._engine.closed:
                self._close_maildrop()
            elif getattr(credentials, "signature", b""):
                self._engine.confirm(credentials.signature)
            else:
                self._open()

        self._close_maildrop()  # of a login that the client has gone back on
        self._wait(login, done, self._no_login, may_cancel=True)

    def _on_confirmed(self, event: Confirmed) -> None:
        self._open()

    def _on_mechanisms_wanted(self, event: wire.MechanismsWanted) -> None:
        def failed(failure: Failure) -> None:
            log.error("{id}: no AUTH is offered: {error}", id=self._id, error=str(failure.value))
            give(())

        def give(working: tuple[bytes, ...]) -> None:
            engine = self._engine
            transport: Any = self.transport
            bindings = channel_bindings(transport.getHandle()) if engine.secured and SCRAM in working else {}
            engine.channel = attrs.evolve(engine.channel, bindings=bindings)
            if not engine.closed:
                engine.give_mechanisms(offered(working, bound=bool(bindings), certified=bool(self._emails)))

        self._wait(self.factory.authenticator.mechanisms(), give, failed, may_cancel=True)

    def _on_salt_wanted(self, event: SaltWanted) -> None:
        give = self._unless_closed(lambda found: self._engine.salted(*found))
        self._wait(self.factory.authenticator.salt(event.username), give, self._no_login, may_cancel=True)

    def _open(self) -> None:
        """The login is right; now for the mailbox."""

        def opened(count: int) -> None:
            if self._engine.closed:
                return
            log.info(
                "{id}: login of {user} from {ip} by {method}, {count} messages",
                id=self._id,
                user=self._user,
                ip=self._ip,
                method=self._method,
                count=count,
            )
            self._engine.logged_in(count)

        def not_opened(failure: Failure) -> None:
            self._close_maildrop()
            self._refuse(failure)

        self._wait(self._maildrop.open(), opened, not_opened)

    def _no_login(self, failure: Failure) -> None:
        """The authenticator has logged it."""
        if self._engine.closed:
            return
        if failure.check(UnauthorizedLogin):
            self._engine.refuse(WRONG, BAD_CREDENTIALS)
        else:
            if not failure.check(LoginUnavailable):
                log.failure("{id}: login of {user} impossible", failure, id=self._id, user=self._user)
            self._engine.refuse(NO_LOGIN, TEMPORARY)

    def _refuse(self, failure: Failure) -> None:
        """Say why the mailbox does not do what was asked."""
        error = failure.value
        if failure.check(MessageGone):
            text, code = GONE, b""
        elif failure.check(MaildropInUse):
            text, code = IN_USE_TEXT, IN_USE
        elif failure.check(MaildropError):
            text, code = NO_MAILDROP, PERMANENT
        else:
            text, code = TROUBLE, TEMPORARY
        if failure.check(MessageGone, MaildropInUse, MaildropError, MaildropTrouble):
            log.warn(
                "{id}: mailbox of {user}: {error}", id=self._id, user=self._user, error=str(error) or text.decode()
            )
        else:
            log.failure("{id}: mailbox of {user} is broken", failure, id=self._id, user=self._user)
        if not self._engine.closed:
            self._engine.refuse(text, code)

    # The mailbox

    def _on_sizes(self, event: wire.SizesWanted) -> None:
        self._wait(self._maildrop.sizes(), self._unless_closed(self._engine.give_sizes), self._refuse)

    def _on_uids(self, event: wire.UidsWanted) -> None:
        self._wait(self._maildrop.uids(), self._unless_closed(self._engine.give_uids), self._refuse)

    def _unless_closed(self, done: Callable[[Any], None]) -> Callable[[Any], None]:
        return lambda result: None if self._engine.closed else done(result)

    def _on_retrieve(self, event: wire.Retrieve) -> None:
        def done(source: Any) -> None:
            self._source = source
            if self._engine.closed:
                self._close_source()
            else:
                self._engine.begin_message()
                self._retrieved += event.whole

        self._wait(self._maildrop.fetch(event.index), done, self._refuse)

    def _on_part(self, data: bytes) -> None:
        engine = self._engine
        if engine.closed:
            self._close_source()
            return
        self._octets += len(data)
        self._gathered += len(data)
        if not data or not engine.message_part(data):
            self._close_source()
            engine.end_message()

    def _broken(self, failure: Failure) -> None:
        """A message that has begun cannot be ended by an error reply: the client must not take the half for a whole."""
        self._close_source()
        if not self._engine.closed:
            log.error("{id}: message cut off: {error}", id=self._id, error=str(failure.value))
            self._end = "error"
            self._engine.close()
            self.abort()

    def _on_listing(self, event: wire.Listing) -> None:
        self._flush()

    def _on_finish(self, event: wire.Finish) -> None:
        def done(failed: int) -> None:
            self._end = "quit"
            self._deleted = len(event.deleted) - failed
            if not self._engine.closed:
                self._engine.finished(failed)
            else:
                log.info("{id}: {deleted} deleted by QUIT, unanswered", id=self._id, deleted=self._deleted)

        self._wait(self._maildrop.finish(event.deleted, event.retrieved), done, self._refuse)

    def _on_quit(self, event: wire.Quit) -> None:
        """The engine has said goodbye and is closed; the pump leaves."""

    def _close_source(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def _close_maildrop(self) -> None:
        maildrop, self._maildrop = self._maildrop, None
        logout, self._logout = self._logout, None
        if maildrop is not None:
            maildrop.close()
        if logout is not None:
            logout()

    handlers: ClassVar[dict[type, Callable[[POP3Protocol, Any], None]]] = {
        wire.StartTLS: _on_start_tls,
        wire.Login: _on_login,
        wire.MechanismsWanted: _on_mechanisms_wanted,
        SaltWanted: _on_salt_wanted,
        Claimed: _on_claimed,
        Confirmed: _on_confirmed,
        wire.SizesWanted: _on_sizes,
        wire.UidsWanted: _on_uids,
        wire.Retrieve: _on_retrieve,
        wire.Listing: _on_listing,
        wire.Finish: _on_finish,
        wire.Quit: _on_quit,
    }


def show(text: bytes) -> str:
    """Bytes from outside as one harmless line for the log."""
    return ascii(text[:80].decode("utf-8", "replace"))
