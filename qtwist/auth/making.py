"""The Authenticator of a home, as control files describe it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernameHashedPassword, IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.portal import Portal
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from zope.interface import Interface, implementer

from qtwist.auth.authenticator import Authenticator, IChallenging
from qtwist.auth.checkers import EachChecker, StoreChecker, SystemChecker, Threads
from qtwist.auth.credentials import ICertifiedName, IScramProof
from qtwist.auth.errors import LoginUnavailable
from qtwist.auth.mailboxes import Account, Mailboxes
from qtwist.auth.passwords import Passwords
from qtwist.auth.program import ProgramChecker
from qtwist.auth.proofs import Proofs
from qtwist.auth.realm import MailRealm, MakeAvatar
from qtwist.auth.store import CredentialStore
from qtwist.auth.system import SystemPasswords
from qtwist.control import Control
from qtwist.control_reading import ControlError
from qtwist.policy.watched import Watched
from qtwist.wire.sasl_mechanisms import BY_PASSWORD, MECHANISMS

_SHADOW = "/etc/shadow"
_KINDS = (IUsernamePassword, IUsernameHashedPassword, IScramProof, ICertifiedName)


def make_authenticator(
    control: Control, home_path: str, reactor: Any, maildrops: Callable[[Account], Any] | None = None
) -> Authenticator:
    """Who may log in to the home at `home_path`, by its control files and its credential store.

    `maildrops` makes the IMaildrop of an account, or a Deferred of it; it is called for accounts that have a maildir
    only. Without it, only IAccount is to be had. Nothing is read before the first login.
    """
    avatars: dict[type[Interface], MakeAvatar] = {}
    if maildrops is not None:
        from qtwist.pop3d.interfaces import IMaildrop

        def with_maildir(account: Account) -> Any:
            if account.maildir is None:
                raise LoginUnavailable("no maildir that this process may look at")
            return maildrops(account)

        avatars[IMaildrop] = with_maildir
    portal = Portal(MailRealm(avatars), [HomeChecker(control, home_path, reactor)])
    return Authenticator(portal, reactor)


def credentials_path(home_path: str) -> str:
    """Where the credential store of a home is."""
    return os.path.join(home_path, "users", "credentials")


@implementer(ICredentialsChecker, IChallenging)
class HomeChecker:
    """The program that control/checkpassword names; without it the credential store, and with control/systemaccounts
    the system's accounts behind it. A change of these files counts from the next login on."""

    credentialInterfaces = _KINDS
    _log = Logger()

    def __init__(self, control: Control, home_path: str, reactor: Any) -> None:
        self._control = control
        self._home = home_path
        self._reactor = reactor
        self._threads = Threads(reactor)
        self._mailboxes = Mailboxes(home_path)
        store = CredentialStore(credentials_path(home_path))
        self._store = StoreChecker(Passwords(store, Proofs(reactor.seconds)), self._mailboxes, self._threads)
        self._chosen = Watched(control, ("checkpassword", "systemaccounts"), self._choose)

    def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
        try:
            checker = self._chosen.get()
        except ControlError as error:
            return maybeDeferred(_refuse, LoginUnavailable(str(error)))
        if not any(kind.providedBy(credentials) for kind in checker.credentialInterfaces):
            return maybeDeferred(_refuse, UnauthorizedLogin())
        account: Deferred[Account] = maybeDeferred(checker.requestAvatarId, credentials)
        return account

    def mechanisms(self) -> Deferred[tuple[bytes, ...]]:
        """Those of control/authmechanisms; without it, those that work for everybody."""
        return Deferred.fromCoroutine(self._mechanisms())

    async def _mechanisms(self) -> tuple[bytes, ...]:
        try:
            checker = self._chosen.get()
            self._control.ensure("authmechanisms")
            listed = self._control.list("authmechanisms")
        except ControlError as error:
            raise LoginUnavailable(str(error)) from error
        if listed is not None:
            wanted = {line.upper() for line in listed}
            return tuple(name for name in MECHANISMS if name in wanted)
        return await self._store.mechanisms() if checker is self._store else BY_PASSWORD

    def salt(self, username: bytes) -> Deferred[tuple[bytes, int]]:
        """As the credential store has it."""
        return self._store.salt(username)

    def _choose(self) -> Any:
        self._control.ensure("checkpassword", "systemaccounts")
        command = (self._control.line("checkpassword") or b"").split()
        if command:
            environment = {b"PATH": os.fsencode(os.environ.get("PATH", os.defpath))}
            environment[b"QTWISTHOME"] = os.fsencode(self._home)
            return ProgramChecker(command, self._mailboxes, self._threads, self._reactor, environment)
        if not self._control.integer("systemaccounts"):
            return self._store
        if not os.access(_SHADOW, os.R_OK):
            self._log.warn("control/systemaccounts has no effect: {path} cannot be read", path=_SHADOW)
            return self._store
        return EachChecker([self._store, SystemChecker(SystemPasswords(_SHADOW), self._mailboxes, self._threads)])


def _refuse(error: Exception) -> Account:
    raise error
