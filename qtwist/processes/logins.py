"""Logins across processes: the server asks the role that checks passwords, which has lspawn open the mailbox.

The server never sees the credential store, nor a mailbox but through the socket that it gets; the role that checks
passwords sees no network and no mail; lspawn sees no password.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from itertools import count
from typing import Any

from twisted.cred.credentials import IUsernameHashedPassword, UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, fail
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from zope.interface import Interface

from qtwist.auth.authenticator import Authenticator
from qtwist.auth.credentials import APOPCredentials
from qtwist.auth.errors import LoginUnavailable
from qtwist.auth.mailboxes import Account, MailboxError, Mailboxes
from qtwist.auth.realm import IAccount
from qtwist.control_reading import ControlError
from qtwist.pop3d.mailbox import MailboxSession
from qtwist.pop3d.maildrop import Maildrop, reactor_threads
from qtwist.processes.packets import PacketConnection
from qtwist.wire import spawning

_PASSWORD, _APOP = "password", "apop"
_OK, _NO, _UNAVAILABLE = "ok", "no", "unavailable"

_log = Logger(namespace="qtwist.logins")


class LoginClient:
    """What a server has in place of an :class:`~qtwist.auth.authenticator.Authenticator`: asks the role at the other
    end of a packet socket. Without one, logins are unavailable."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._connection: PacketConnection | None = None
        self._numbers = count(1)
        self._waiting: dict[int, Deferred[Any]] = {}

    def connect(self, sock: socket.socket) -> None:
        """From now on, whoever is at the other end of `sock` is asked."""
        if self._connection is not None:
            self._connection.close()
            self._lost()
        self._connection = PacketConnection(self._reactor, sock, self._answered, self._lost)

    def login(
        self, credentials: Any, remote_ip: str, service: str, *interfaces: type[Interface]
    ) -> Deferred[tuple[Any, Any]]:
        """As :meth:`Authenticator.login`; the avatar is the mailbox, an IMaildrop."""
        if self._connection is None:
            return fail(LoginUnavailable("the role that checks passwords is not running"))
        number = next(self._numbers) & 0xFFFFFFFF

        def cancelled(_: Deferred[Any]) -> None:
            self._waiting.pop(number, None)

        answer: Deferred[Any] = Deferred(cancelled)
        self._waiting[number] = answer
        if isinstance(credentials, APOPCredentials):
            values = [_APOP, credentials.username, credentials.timestamp, credentials.digest]
        else:
            values = [_PASSWORD, credentials.username, credentials.password, b""]
        text = [value.decode("latin-1") if isinstance(value, bytes) else value for value in values]
        self._connection.send(json.dumps([number, service, remote_ip, *text]).encode("ascii"))
        return answer

    def _answered(self, packet: bytes, fds: list[int]) -> None:
        number, verdict, text = json.loads(packet)
        answer = self._waiting.pop(number, None)
        if verdict == _OK and len(fds) == 1 and answer is not None:
            mailbox = socket.socket(fileno=fds[0])
            maildrop = Maildrop(None, reactor_threads(self._reactor), opened=lambda: MailboxSession(mailbox))
            answer.callback((maildrop, lambda: None))
            return
        for fd in fds:
            os.close(fd)
        if answer is not None:
            answer.errback(UnauthorizedLogin(text) if verdict == _NO else LoginUnavailable(text))

    def _lost(self) -> None:
        self._connection = None
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            answer.errback(LoginUnavailable("the role that checks passwords has ended"))


class MailboxOpener:
    """Asks lspawn for processes that read mailboxes as their owners."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._connection: PacketConnection | None = None
        self._numbers = count(1)
        self._waiting: dict[int, Deferred[None]] = {}

    def connect(self, sock: socket.socket) -> None:
        """From now on, lspawn is at the other end of `sock`."""
        self._connection = PacketConnection(self._reactor, sock, self._answered, self._lost)

    async def open(self, local: bytes) -> socket.socket:
        """The server's end of a socket, behind which the mailbox is. LoginUnavailable."""
        if self._connection is None:
            raise LoginUnavailable("lspawn is not there")
        number = next(self._numbers) & 0xFFFFFFFF
        ours, theirs = PacketConnection.pair()
        done: Deferred[None] = Deferred()
        self._waiting[number] = done
        with theirs:
            self._connection.send(spawning.request(number, 0, b"", local), [theirs.fileno()])
        try:
            await done
        except LoginUnavailable:
            ours.close()
            raise
        return ours

    def _answered(self, packet: bytes, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        number, code, _ = spawning.read_reply(packet)
        done = self._waiting.pop(number, None)
        if done is not None:
            if code:
                done.errback(LoginUnavailable(f"no process for the mailbox (code {code})"))
            else:
                done.callback(None)

    def _lost(self) -> None:
        self._connection = None
        waiting, self._waiting = self._waiting, {}
        for done in waiting.values():
            done.errback(LoginUnavailable("lspawn has ended"))


class LoginServer:
    """Answers one server, at the other end of `sock`."""

    def __init__(
        self,
        reactor: Any,
        sock: socket.socket,
        authenticator: Authenticator,
        mailboxes: Mailboxes,
        open_mailbox: Callable[[bytes], Any],
    ) -> None:
        self._reactor = reactor
        self._authenticator = authenticator
        self._mailboxes = mailboxes
        self._open_mailbox = open_mailbox
        self._connection = PacketConnection(reactor, sock, self._asked, lambda: None)

    def _asked(self, packet: bytes, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        number, service, remote_ip, kind, name, *secrets = json.loads(packet)
        first, second = (secret.encode("latin-1") for secret in secrets)
        user = name.encode("latin-1")
        credentials: IUsernameHashedPassword | UsernamePassword
        credentials = APOPCredentials(user, first, second) if kind == _APOP else UsernamePassword(user, first)
        Deferred.fromCoroutine(self._log_in(number, credentials, str(remote_ip), str(service)))

    async def _log_in(self, number: int, credentials: Any, remote_ip: str, service: str) -> None:
        try:
            account, _ = await self._authenticator.login(credentials, remote_ip, service, IAccount)
            mailbox = await self._open_mailbox(await self._local_part(account))
        except UnauthorizedLogin:
            self._answer(number, _NO, "")
        except LoginUnavailable as error:
            self._answer(number, _UNAVAILABLE, str(error))
        except Exception:
            _log.failure("a login met an unexpected error")
            self._answer(number, _UNAVAILABLE, "internal error")
        else:
            with mailbox:
                self._answer(number, _OK, "", [mailbox.fileno()])

    async def _local_part(self, account: Account) -> bytes:
        """The local part that lspawn knows the mailbox by."""
        try:
            pool = self._reactor.getThreadPool()
            local = await deferToThreadPool(self._reactor, pool, self._mailboxes.local, account.name.lower())
        except (OSError, ControlError, MailboxError) as error:
            raise LoginUnavailable(str(error)) from error
        if not local:
            raise LoginUnavailable("no mail is delivered to that name")
        return local

    def _answer(self, number: int, verdict: str, text: str, fds: list[int] | None = None) -> None:
        self._connection.send(json.dumps([number, verdict, text]).encode("ascii"), fds or ())
