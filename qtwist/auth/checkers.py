"""Checkers of twisted.cred for the credential store and for the system's accounts. Their avatar id is an Account.

Hashes are computed in the reactor's threads, a few at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernameHashedPassword, IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, DeferredSemaphore, fail, maybeDeferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from zope.interface import implementer

from qtwist.auth.authenticator import IChallenging
from qtwist.auth.credentials import ICertifiedName, IScramProof
from qtwist.auth.errors import LoginUnavailable
from qtwist.auth.hashing import HashError
from qtwist.auth.mailboxes import Account, MailboxError, Mailboxes
from qtwist.auth.passwords import Passwords
from qtwist.auth.store import StoreError
from qtwist.auth.system import SystemPasswords
from qtwist.control_reading import ControlError
from qtwist.wire.sasl_mechanisms import BY_PASSWORD, CRAM_MD5, EXTERNAL, SCRAM

T = TypeVar("T")

#: More logins than this do not wait for a hash at one time.
MOST_WAITING = 1000

#: Run a function with its arguments where it may block.
Run = Callable[..., Deferred[Any]]


class Threads:
    """Runs what blocks in the threads of `reactor`: quick things at once, hashes as many at a time as there are cores.

    A hash takes a core and 19 MiB, and other work needs these threads, too.
    """

    def __init__(self, reactor: Any, hashes: int | None = None) -> None:
        self._reactor = reactor
        self._hashes = DeferredSemaphore(hashes or os.cpu_count() or 1)

    def quick(self, function: Callable[..., T], *arguments: Any) -> Deferred[T]:
        """What `function` returns or raises."""
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function, *arguments)

    def slow(self, function: Callable[..., T], *arguments: Any) -> Deferred[T]:
        """What `function`, which computes a hash, returns or raises; LoginUnavailable when too many wait already."""
        if len(self._hashes.waiting) >= MOST_WAITING:
            return fail(LoginUnavailable("too many logins at once"))
        return self._hashes.run(self.quick, function, *arguments)


@implementer(ICredentialsChecker, IChallenging)
class StoreChecker:
    """Checks by the credential store. Names with their domain and without are as :meth:`Mailboxes.names` has them.

    APOP and CRAM-MD5 work for names whose secret is stored as {PLAIN}, SCRAM for these and for names with keys; they
    fail for others. A certificate has to have the name of somebody in the store. StoreError and the like become
    LoginUnavailable.
    """

    credentialInterfaces = (IUsernamePassword, IUsernameHashedPassword, IScramProof, ICertifiedName)

    def __init__(self, passwords: Passwords, mailboxes: Mailboxes, threads: Threads) -> None:
        self._passwords = passwords
        self._mailboxes = mailboxes
        self._threads = threads

    def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._check(credentials))

    async def _check(self, credentials: Any) -> Account:
        try:
            if IScramProof.providedBy(credentials):
                return await self._threads.slow(self._by_proof, credentials)
            if ICertifiedName.providedBy(credentials):
                return await self._threads.quick(self._by_certificate, credentials.username)
            if not IUsernamePassword.providedBy(credentials):
                return await self._threads.quick(self._by_secret, credentials)
            account = await self._threads.quick(self._proven, credentials.username, credentials.password)
            if account is None:
                account = await self._threads.slow(self._by_hash, credentials.username, credentials.password)
            return account
        except TROUBLE as error:
            raise LoginUnavailable(words(error)) from error

    def _proven(self, name: bytes, password: bytes) -> Account | None:
        found = self._passwords.proven(self._mailboxes.names(name), password)
        return None if found is None else self._account(found)

    def _by_hash(self, name: bytes, password: bytes) -> Account:
        found = self._passwords.check(self._mailboxes.names(name), password)
        if found is None:
            raise UnauthorizedLogin
        return self._account(found)

    def _by_secret(self, credentials: Any) -> Account:
        name, secret = self._passwords.secret(self._mailboxes.names(credentials.username)) or (None, b"\xff")
        if not credentials.checkPassword(secret) or name is None:
            raise UnauthorizedLogin
        return self._account(name)

    def _by_proof(self, credentials: Any) -> Account:
        found = self._passwords.prove(
            self._mailboxes.names(credentials.username), credentials.message, credentials.proof
        )
        if found is None:
            raise UnauthorizedLogin
        name, signature = found
        account = self._account(name)
        credentials.signature = signature
        return account

    def _by_certificate(self, username: bytes) -> Account:
        name = self._passwords.known(self._mailboxes.names(username))
        if name is None:
            raise UnauthorizedLogin
        return self._account(name)

    def salt(self, username: bytes) -> Deferred[tuple[bytes, int]]:
        """As IChallenging has it."""
        return Deferred.fromCoroutine(self._salt(username))

    def mechanisms(self) -> Deferred[tuple[bytes, ...]]:
        """Those that work for everybody in the store; none when there is nobody."""
        return Deferred.fromCoroutine(self._mechanisms())

    async def _salt(self, username: bytes) -> tuple[bytes, int]:
        try:
            return await self._threads.quick(lambda: self._passwords.salt(self._mailboxes.names(username)))
        except TROUBLE as error:
            raise LoginUnavailable(words(error)) from error

    async def _mechanisms(self) -> tuple[bytes, ...]:
        store = self._passwords.store
        try:
            # Asked at every EHLO: it should not cost a thread as long as nothing has changed.
            summary = store.known_summary()
            if summary is None:
                summary = await self._threads.quick(store.summary)
            somebody, all_plain, all_scram = summary
        except TROUBLE as error:
            raise LoginUnavailable(words(error)) from error
        if not somebody:
            return ()
        return (SCRAM,) * all_scram + (EXTERNAL,) + (CRAM_MD5,) * all_plain + BY_PASSWORD

    def _account(self, name: bytes) -> Account:
        return _found(self._mailboxes, name)


@implementer(ICredentialsChecker)
class SystemChecker:
    """Checks the passwords of the system's accounts, which only root can do."""

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self, passwords: SystemPasswords, mailboxes: Mailboxes, threads: Threads) -> None:
        self._passwords = passwords
        self._mailboxes = mailboxes
        self._threads = threads

    def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._check(credentials))

    async def _check(self, credentials: Any) -> Account:
        try:
            return await self._threads.slow(self._by_hash, credentials.username, credentials.password)
        except TROUBLE as error:
            raise LoginUnavailable(words(error)) from error

    def _by_hash(self, name: bytes, password: bytes) -> Account:
        name = self._mailboxes.names(name)[-1]
        uid = self._passwords.check(name, password)
        account = None if uid is None else self._mailboxes.find(name)
        if account is None or account.uid != uid:
            raise UnauthorizedLogin  # the mail of that name is not this person's
        return account


@implementer(ICredentialsChecker)
class EachChecker:
    """Asks one checker after the other until one accepts; each of them is asked about somebody whom none knows."""

    _log = Logger()

    def __init__(self, checkers: Sequence[Any]) -> None:
        self._checkers = checkers
        self.credentialInterfaces = tuple({kind: None for each in checkers for kind in each.credentialInterfaces})

    def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._check(credentials))

    async def _check(self, credentials: Any) -> Account:
        for checker in self._checkers:
            if any(kind.providedBy(credentials) for kind in checker.credentialInterfaces):
                try:
                    account: Account = await maybeDeferred(checker.requestAvatarId, credentials)
                    return account
                except UnauthorizedLogin:
                    continue
        raise UnauthorizedLogin


#: What a checker may come across and tells as LoginUnavailable.
TROUBLE = (StoreError, HashError, MailboxError, ControlError, OSError)


def words(error: Exception) -> str:
    """One of these for the log."""
    return f"expected {error}" if isinstance(error, HashError) else str(error)


def _found(mailboxes: Mailboxes, name: bytes) -> Account:
    account = mailboxes.find(name)
    if account is None:
        raise LoginUnavailable("no mail is delivered to that name: it is not in users/assign, nor an account")
    return account
