"""What servers ask whether a login is right: a portal of twisted.cred, with guessing made slow and told to the log."""

from __future__ import annotations

from typing import Any

from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin, UnhandledCredentials
from twisted.cred.portal import Portal
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger, LogLevel
from zope.interface import Interface

from qtwist.auth.errors import LoginUnavailable
from qtwist.auth.guessing import Guard
from qtwist.auth.origin import Origin, current_origin
from qtwist.mail.domains import ascii_address
from qtwist.wire.sasl_mechanisms import BY_PASSWORD

__all__ = ["Authenticator", "IChallenging", "LoginUnavailable"]

#: As much of a name goes to the log.
_SHOWN = 80


class IChallenging(Interface):
    """What a checker may have beside ICredentialsChecker: for which mechanisms of SASL it has what they need."""

    def mechanisms() -> Any:
        """A Deferred of the names of mechanisms (tuple of bytes) that work, but for SCRAM's -PLUS. LoginUnavailable."""

    def salt(username: bytes) -> Any:
        """A Deferred of salt and iterations for SCRAM-SHA-256, of unknown names too. LoginUnavailable."""


class Authenticator:
    """Logs people in by `portal`; `clock` times what is held back."""

    _log = Logger()

    def __init__(self, portal: Portal, clock: IReactorTime, guard: Guard | None = None) -> None:
        self.portal = portal
        self._clock = clock
        self._guard = Guard() if guard is None else guard

    def login(
        self, credentials: Any, remote_ip: str, service: str, *interfaces: type[Interface]
    ) -> Deferred[tuple[Any, Any]]:
        """Fires with the avatar for the first of `interfaces` that the realm has, and a function to call at its end.

        `credentials` have an attribute `username` (bytes); `service` is for the log (``pop3``). Errbacks with
        UnauthorizedLogin for whatever is wrong with the credentials, or with LoginUnavailable when it cannot be found
        out now; nothing else. The answer "no" takes its time (:mod:`qtwist.auth.guessing`); it may be cancelled, when
        the client is gone.
        """
        return Deferred.fromCoroutine(self._login(credentials, remote_ip, service, interfaces))

    def mechanisms(self) -> Deferred[tuple[bytes, ...]]:
        """Fires with the mechanisms of SASL that work here, those first that give least away. LoginUnavailable.

        That is what an IChallenging among the portal's checkers says; without one, PLAIN and LOGIN, where passwords are
        checked at all.
        """
        for checker in self.portal.checkers.values():
            if IChallenging.providedBy(checker):
                return maybeDeferred(checker.mechanisms)
        return succeed(BY_PASSWORD if IUsernamePassword in self.portal.listCredentialsInterfaces() else ())

    def salt(self, username: bytes) -> Deferred[tuple[bytes, int]]:
        """Fires with salt and iterations of `username` for SCRAM-SHA-256, whether or not there is such a name.
        LoginUnavailable."""
        for checker in self.portal.checkers.values():
            if IChallenging.providedBy(checker):
                return maybeDeferred(checker.salt, username)
        return fail(LoginUnavailable("no checker that knows SCRAM"))

    async def _login(
        self, credentials: Any, remote_ip: str, service: str, interfaces: tuple[type[Interface], ...]
    ) -> tuple[Any, Any]:
        name: bytes = credentials.username
        # Names are told apart as the store does it: a guesser gains nothing by another spelling.
        counted = ascii_address(name[:_SHOWN])
        about = {"user": _show(name), "ip": remote_ip, "service": service}
        clock, guard = self._clock, self._guard
        wait = guard.wait(remote_ip, counted, clock.seconds())
        if wait is None:
            self._log.warn("{service} login of {user} from {ip} not looked at: too many failures there", **about)
            raise LoginUnavailable("too many failed logins from there")
        if wait:
            await deferLater(clock, wait)
        started = clock.seconds()
        current_origin.set(Origin(remote_ip, service))  # of this coroutine, and of what it awaits
        try:
            _, avatar, logout = await self.portal.login(credentials, None, *interfaces)
        except (UnauthorizedLogin, UnhandledCredentials):
            # Counted now and answered later, whether or not the client waits for it.
            delay = guard.failed(remote_ip, counted, clock.seconds())
            self._log.warn("{service} login of {user} from {ip} failed: answered after {delay} s", delay=delay, **about)
            left = started + delay - clock.seconds()
            if left > 0:
                await deferLater(clock, left)
            # Not the checker's error, which may say why.
            raise UnauthorizedLogin("wrong name or password") from None
        except LoginUnavailable as error:
            self._log.error("{service} login of {user} from {ip} impossible now: {error}", error=str(error), **about)
            raise
        except CancelledError:
            raise
        except Exception:
            self._log.failure("{service} login of {user} from {ip}: internal error", None, LogLevel.critical, **about)
            raise LoginUnavailable("internal error") from None
        guard.succeeded(remote_ip, counted)
        return avatar, logout


def _show(name: bytes) -> str:
    """A name for the log: whatever a client sent, printable and not too long."""
    return ascii(name[:_SHOWN].decode("utf-8", "replace"))
