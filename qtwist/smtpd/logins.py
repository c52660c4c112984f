"""AUTH on an SMTP connection: the engine's questions about logins, put to the authenticator and to the policies."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from qtwist.auth.credentials import credentials_of
from qtwist.auth.errors import LoginUnavailable
from qtwist.auth.realm import IAccount
from qtwist.policy.base import Opinion
from qtwist.policy.connection import show
from qtwist.policy.session import is_local
from qtwist.tls.binding import channel_bindings
from qtwist.wire.sasl import Channel, SaltWanted
from qtwist.wire.sasl_mechanisms import SCRAM, Claimed, Confirmed, offered
from qtwist.wire.smtp_reply import Reply
from qtwist.wire.smtp_server import SMTPServer

if TYPE_CHECKING:
    from qtwist.policy.session import Session
    from qtwist.smtpd.factory import SMTPFactory
    from qtwist.smtpd.settings import Settings

log = Logger(namespace="qtwist.smtpd")

WRONG = Reply(535, b"wrong name or password (#5.7.8)")
FOREIGN = Reply(535, b"that is not the name in the certificate (#5.7.8)")
NO_LOGIN = Reply(454, b"logins cannot be checked now, try again later (#4.7.0)")


class Logins:
    """The part of a connection that logs people in. A Claimed that is right waits for its Confirmed, if there is one,
    and for the policies; then `session.user` is set."""

    factory: SMTPFactory
    session: Session
    transport: Any
    _engine: SMTPServer
    _refuse: Callable[[str, Reply], None]
    _wait: Callable[..., None]
    _ask: Callable[..., None]

    _plaintext = False
    _found: tuple[Any, str] | None = None  # the account, and the mechanism that has found it
    _logout: Callable[[], object] | None = None

    def _prepare_logins(self, settings: Settings) -> None:
        """The connection begins."""
        self._engine.has_auth = settings.auth and self.factory.authenticator is not None
        self._engine.channel = Channel(settings.greeting.split()[0], lambda: secrets.token_urlsafe(18).encode("ascii"))
        self._plaintext = settings.plaintext or is_local(self.session.remote_ip)

    def _with_mechanisms(self, then: Callable[[], None]) -> None:
        """Call `then` when the engine knows which mechanisms to offer."""
        engine = self._engine
        if not engine.has_auth or not (engine.secured or self._plaintext):
            engine.mechanisms = ()
            then()
            return

        def done(working: tuple[bytes, ...]) -> None:
            bindings = channel_bindings(self.transport.getHandle()) if engine.secured and SCRAM in working else {}
            engine.channel = attrs.evolve(engine.channel, bindings=bindings)
            engine.mechanisms = offered(working, bound=bool(bindings), certified=bool(self._emails()))
            if not engine.closed:
                then()

        def failed(failure: Failure) -> None:
            log.error("{id}: no AUTH is offered: {error}", id=self.session.id, error=str(failure.value))
            done(())

        assert self.factory.authenticator is not None
        self._wait(self.factory.authenticator.mechanisms(), done, failed, may_cancel=True)

    def _emails(self) -> tuple[bytes, ...]:
        """The addresses in the certificate that the client has shown."""
        tls = self.session.tls
        return () if tls is None or tls.client is None else tls.client.emails

    def _on_salt_wanted(self, event: SaltWanted) -> None:
        def done(found: tuple[bytes, int]) -> None:
            if not self._engine.closed:
                self._engine.salted(*found)

        assert self.factory.authenticator is not None
        self._wait(self.factory.authenticator.salt(event.username), done, self._no_login, may_cancel=True)

    def _on_claimed(self, event: Claimed) -> None:
        credentials = credentials_of(event.claim, self._emails())
        factory, session = self.factory, self.session
        if credentials is None:
            self._refuse("AUTH", FOREIGN)
            return

        def done(result: tuple[Any, Callable[[], object]]) -> None:
            account, self._logout = result
            self._found = account, event.mechanism
            if self._engine.closed:
                self._log_out()
            elif getattr(credentials, "signature", b""):
                self._engine.confirm(credentials.signature)
            else:
                self._logged_in()

        self._log_out()
        assert factory.authenticator is not None
        login: Deferred[Any] = factory.authenticator.login(credentials, session.remote_ip, factory.service, IAccount)
        self._wait(login, done, self._no_login, may_cancel=True)

    def _on_confirmed(self, event: Confirmed) -> None:
        self._logged_in()

    def _logged_in(self) -> None:
        """The credentials are right; it is for the policies to object."""
        assert self._found is not None
        session = self.session
        account, mechanism = self._found
        session.account, session.user, session.mechanism = account, account.name, mechanism
        environment = dict(session.environment)

        def then(opinion: Opinion) -> None:
            if opinion is not None and not opinion.positive:
                self._log_out()
                session.environment = environment  # as if no policy had been asked
                self._refuse("AUTH", opinion)
                return
            log.info(
                "{id}: login of {user} from {ip} by {mechanism}",
                id=session.id,
                user=show(account.name),
                ip=session.remote_ip,
                mechanism=mechanism,
            )
            self._engine.accept()

        self._ask("auth", then)

    def _no_login(self, failure: Failure) -> None:
        """The authenticator has logged it."""
        if self._engine.closed:
            return
        if failure.check(UnauthorizedLogin):
            self._engine.reply(WRONG)
        else:
            if not failure.check(LoginUnavailable):
                log.failure("{id}: login impossible", failure, id=self.session.id)
            self._engine.reply(NO_LOGIN)

    login_handlers: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        SaltWanted: _on_salt_wanted,
        Claimed: _on_claimed,
        Confirmed: _on_confirmed,
    }

    def _log_out(self) -> None:
        """Nobody is logged in any more; for the end of a connection, and for logins that are not taken."""
        session = self.session
        session.account, session.user, session.mechanism = None, None, ""
        logout, self._logout = self._logout, None
        self._found = None
        if logout is not None:
            logout()
