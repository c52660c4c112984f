"""A checker that asks a checkpassword-compatible program (spec/related.md §6, spec/qmail.md §18.1).

The program gets the credentials on descriptor 3 and runs another program when they are right, with the user id, the
directory and the environment of whoever has logged in. That other program is a few lines of shell here, which tell us
these on standard output.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Sequence
from typing import Any

import attrs
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import CramMD5Credentials, IUsernameHashedPassword, IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from qtwist.auth.checkers import TROUBLE, Threads, words
from qtwist.auth.credentials import APOPCredentials, CRAMCredentials
from qtwist.auth.errors import LoginUnavailable
from qtwist.auth.mailboxes import Account, Mailboxes
from qtwist.auth.origin import current_origin

#: The most octets that a program has to read (§6).
LONGEST_REQUEST = 512
#: Seconds that it may take, and how many run, or wait to be run, at a time.
TIMEOUT = 30.0
MOST_RUNNING = 10
MOST_WAITING = 200

_LONGEST_REPORT = 64 * 1024
_UNACCEPTABLE = 1
_UNKNOWN_USER = 3  # Dovecot's addition to the interface

# $0 marks where the report begins: the program may have written something, too.
_REPORTER = 'echo "$0"; id -u; id -g; pwd -P; exec env -0'


@attrs.frozen
class _Report:
    uid: int
    gid: int
    directory: bytes
    environment: dict[bytes, bytes]


@implementer(ICredentialsChecker)
class ProgramChecker:
    """Runs `command`, a program with its arguments. `environment` is what it gets, PATH above all.

    Exit codes: 1 (and Dovecot's 3) is
    UnauthorizedLogin, all others are LoginUnavailable; so is a program that takes too long.
    """

    credentialInterfaces = (IUsernamePassword, IUsernameHashedPassword)
    _log = Logger()

    def __init__(
        self,
        command: Sequence[bytes],
        mailboxes: Mailboxes,
        threads: Threads,
        reactor: Any,
        environment: dict[bytes, bytes] | None = None,
    ) -> None:
        self._command = tuple(command)
        self._mailboxes = mailboxes
        self._threads = threads
        self._reactor = reactor
        self._environment = {b"PATH": os.fsencode(os.defpath)} if environment is None else environment
        self._running = DeferredSemaphore(MOST_RUNNING)

    def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._check(credentials))

    async def _check(self, credentials: Any) -> Account:
        request = request_for(credentials)
        if len(self._running.waiting) >= MOST_WAITING:
            raise LoginUnavailable("too many logins at once")
        report = await self._running.run(self._run, request, current_origin.get().environment())
        if report.uid == 0:
            raise LoginUnavailable("the checkpassword program logs in as root")
        home = report.environment.get(b"HOME") or report.directory
        try:
            return await self._threads.quick(
                self._mailboxes.reported, credentials.username, home, report.uid, report.gid, report.environment
            )
        except TROUBLE as error:
            raise LoginUnavailable(words(error)) from error

    def _run(self, request: bytes, origin: dict[bytes, bytes]) -> Deferred[_Report]:
        marker = secrets.token_hex(16).encode("ascii")
        protocol = _CheckpasswordProtocol(request, marker, self._reactor)
        arguments = [*self._command, b"/bin/sh", b"-c", _REPORTER.encode("ascii"), marker]
        if not os.access(arguments[0], os.X_OK):
            # Twisted's child would end with 1, as for a wrong password.
            raise LoginUnavailable(f"{os.fsdecode(arguments[0])} is no program that can be run")
        try:
            # Descriptor 2 stays ours: what the program has to say goes to the daemon's log (§18.1).
            self._reactor.spawnProcess(
                protocol,
                arguments[0],
                arguments,
                {**self._environment, **origin},
                childFDs={0: "w", 1: "r", 2: 2, 3: "w"},
            )
        except OSError as error:
            raise LoginUnavailable(f"unable to run {os.fsdecode(arguments[0])}: {error.strerror}") from error
        return protocol.done


def request_for(credentials: Any) -> bytes:
    """What a checkpassword program reads on descriptor 3. UnauthorizedLogin for what it could not read."""
    if IUsernamePassword.providedBy(credentials):
        fields: tuple[Any, ...] = (credentials.username, credentials.password, b"")
    elif isinstance(credentials, APOPCredentials):
        fields = (credentials.username, credentials.digest, credentials.timestamp)
    elif isinstance(credentials, CRAMCredentials | CramMD5Credentials):
        fields = (credentials.username, credentials.response, credentials.challenge)
    else:
        raise UnauthorizedLogin
    if not all(isinstance(field, bytes) and b"\0" not in field for field in fields):
        raise UnauthorizedLogin
    request = b"\0".join((*fields, b""))
    if len(request) > LONGEST_REQUEST:
        raise UnauthorizedLogin
    return request


class _CheckpasswordProtocol(ProcessProtocol):
    """One run of the program; `done` fires with its report."""

    def __init__(self, request: bytes, marker: bytes, clock: Any) -> None:
        self.done: Deferred[_Report] = Deferred(lambda _: self._kill())
        self.transport: Any = None
        self._request = request
        self._marker = marker
        self._clock = clock
        self._output = bytearray()
        self._timeout: Any = None

    def connectionMade(self) -> None:
        self._timeout = self._clock.callLater(TIMEOUT, self._on_timeout)
        self.transport.writeToChild(3, self._request)
        self.transport.closeChildFD(3)
        self.transport.closeChildFD(0)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self._output += data
        if len(self._output) > _LONGEST_REPORT:
            self._fail("the checkpassword program writes too much")
            self._kill()

    def _on_timeout(self) -> None:
        self._timeout = None
        self._fail("the checkpassword program takes too long")
        self._kill()

    def _forget_timeout(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None

    def _kill(self) -> None:
        self._forget_timeout()
        with contextlib.suppress(ProcessExitedAlready):
            self.transport.signalProcess("KILL")
        self.transport.loseConnection()

    def _fail(self, reason: str) -> None:
        if not self.done.called:
            self.done.errback(LoginUnavailable(reason))

    def processEnded(self, reason: Failure) -> None:
        self._forget_timeout()
        if self.done.called:
            return
        if not reason.check(ProcessDone):
            ended: Any = reason.value
            code = ended.exitCode
            if code in (_UNACCEPTABLE, _UNKNOWN_USER):
                self.done.errback(UnauthorizedLogin())
            else:
                how = f"ended with {code}" if code is not None else f"was killed by signal {ended.signal}"
                self._fail(f"the checkpassword program {how}")
            return
        try:
            report = _parse(bytes(self._output), self._marker)
        except ValueError:
            self._fail("the checkpassword program did not run the program behind it")
            return
        self.done.callback(report)


def _parse(output: bytes, marker: bytes) -> _Report:
    """What the reporter wrote. ValueError when it did not."""
    _, told, rest = output.rpartition(marker + b"\n")
    if not told:
        raise ValueError("no report")
    uid, gid, directory, environment = rest.split(b"\n", 3)
    pairs = (entry.partition(b"=") for entry in environment.split(b"\0"))
    return _Report(int(uid), int(gid), directory, {name: value for name, equals, value in pairs if equals})
