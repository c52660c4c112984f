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

from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from zope.interface import Interface

from qtwist.auth.authenticator import Authenticator
from qtwist.auth.credentials import APOPCredentials, CertifiedName, CRAMCredentials, ScramCredentials
from qtwist.auth.errors import LoginUnavailable
from qtwist.auth.mailboxes import Account, MailboxError, Mailboxes
from qtwist.auth.realm import IAccount
from qtwist.control_reading import ControlError
from qtwist.pop3d.interfaces import IMaildrop
from qtwist.pop3d.mailbox import MailboxSession
from qtwist.pop3d.maildrop import Maildrop, reactor_threads
from qtwist.processes.packets import PacketConnection
from qtwist.wire import spawning

_PASSWORD, _APOP, _CRAM, _SCRAM, _CERTIFIED = "password", "apop", "cram", "scram", "certified"
_MECHANISMS, _SALT = "mechanisms", "salt"
_MAILBOX, _ACCOUNT = "mailbox", "account"
_OK, _NO, _UNAVAILABLE = "ok", "no", "unavailable"

#: Seconds for which a server offers the mechanisms that it was told: it asks at every EHLO.
MECHANISMS_LIFETIME = 5.0

_log = Logger(namespace="qtwist.logins")


class LoginClient:
    """What a server has in place of an :class:`~qtwist.auth.authenticator.Authenticator`: asks the role at the other
    end of a packet socket. Without one, logins are unavailable."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._connection: PacketConnection | None = None
        self._numbers = count(1)
        self._waiting: dict[int, Deferred[Any]] = {}
        self._mechanisms: tuple[tuple[bytes, ...], float] | None = None  # and until when they count

    def connect(self, sock: socket.socket) -> None:
        """From now on, whoever is at the other end of `sock` is asked."""
        self._mechanisms = None
        if self._connection is not None:
            self._connection.close()
            self._lost()
        self._connection = PacketConnection(self._reactor, sock, self._answered, self._lost)

    def login(
        self, credentials: Any, remote_ip: str, service: str, *interfaces: type[Interface]
    ) -> Deferred[tuple[Any, Any]]:
        """As :meth:`Authenticator.login`; the avatar is the mailbox, an IMaildrop, or an IAccount without a maildir."""
        kind, *values = _packed(credentials)
        wanted = _MAILBOX if IMaildrop in interfaces else _ACCOUNT

        def done(answer: tuple[list[Any], list[int]]) -> tuple[Any, Any]:
            told, fds = answer
            if wanted == _ACCOUNT:
                name, home, uid, gid, signature = told
                if signature:
                    credentials.signature = _octets(signature)
                return Account(_octets(name), _octets(home), None, uid, gid, {}), lambda: None
            if told:
                credentials.signature = _octets(told[0])
            mailbox = socket.socket(fileno=fds[0])
            maildrop = Maildrop(None, reactor_threads(self._reactor), opened=lambda: MailboxSession(mailbox))
            return maildrop, lambda: None

        return self._ask(kind, wanted, service, remote_ip, *map(_text, values)).addCallback(done)

    def mechanisms(self) -> Deferred[tuple[bytes, ...]]:
        """As :meth:`Authenticator.mechanisms`; the answer of a few seconds ago will do."""
        now = self._reactor.seconds()
        if self._mechanisms is not None and now < self._mechanisms[1]:
            return succeed(self._mechanisms[0])

        def done(answer: tuple[list[str], list[int]]) -> tuple[bytes, ...]:
            found = tuple(map(_octets, answer[0]))
            self._mechanisms = found, now + MECHANISMS_LIFETIME
            return found

        return self._ask(_MECHANISMS).addCallback(done)

    def salt(self, username: bytes) -> Deferred[tuple[bytes, int]]:
        """As :meth:`Authenticator.salt`."""
        return self._ask(_SALT, _text(username)).addCallback(lambda answer: (_octets(answer[0][0]), answer[0][1]))

    def _ask(self, *words: str) -> Deferred[Any]:
        """Fires with what is answered, a list and descriptors; errbacks as a login does."""
        if self._connection is None:
            return fail(LoginUnavailable("the role that checks passwords is not running"))
        number = next(self._numbers) & 0xFFFFFFFF

        def cancelled(_: Deferred[Any]) -> None:
            self._waiting.pop(number, None)

        answer: Deferred[Any] = Deferred(cancelled)
        self._waiting[number] = answer
        self._connection.send(json.dumps([number, *words]).encode("ascii"))
        return answer

    def _answered(self, packet: bytes, fds: list[int]) -> None:
        number, verdict, told = json.loads(packet)
        answer = self._waiting.pop(number, None)
        if answer is None or verdict != _OK:
            for fd in fds:
                os.close(fd)
        if answer is None:
            return
        if verdict == _OK:
            answer.callback((told, fds))
        else:
            answer.errback(UnauthorizedLogin(told) if verdict == _NO else LoginUnavailable(told))

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
        number, kind, *words = json.loads(packet)
        Deferred.fromCoroutine(self._answer_for(number, kind, words))

    async def _answer_for(self, number: int, kind: str, words: list[str]) -> None:
        told: list[Any]
        try:
            if kind == _MECHANISMS:
                told, mailbox = list(map(_text, await self._authenticator.mechanisms())), None
            elif kind == _SALT:
                salt, iterations = await self._authenticator.salt(_octets(words[0]))
                told, mailbox = [_text(salt), iterations], None
            else:
                told, mailbox = await self._log_in(kind, *words)
        except UnauthorizedLogin:
            self._answer(number, _NO, "")
        except LoginUnavailable as error:
            self._answer(number, _UNAVAILABLE, str(error))
        except Exception:
            _log.failure("a login met an unexpected error")
            self._answer(number, _UNAVAILABLE, "internal error")
        else:
            self._answer(number, _OK, told, mailbox)

    async def _log_in(
        self, kind: str, wanted: str, service: str, remote_ip: str, *values: str
    ) -> tuple[list[Any], socket.socket | None]:
        """What is told of who has logged in, and the mailbox where one is wanted."""
        credentials: Any = _UNPACKED[kind](*map(_octets, values))
        account, _ = await self._authenticator.login(credentials, remote_ip, service, IAccount)
        signature = getattr(credentials, "signature", b"")
        if wanted == _ACCOUNT:
            return [_text(account.name), _text(account.home), account.uid, account.gid, _text(signature)], None
        mailbox = await self._open_mailbox(await self._local_part(account))
        return [_text(signature)] if signature else [], mailbox

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

    def _answer(self, number: int, verdict: str, told: object, mailbox: socket.socket | None = None) -> None:
        packet = json.dumps([number, verdict, told]).encode("ascii")
        if mailbox is None:
            self._connection.send(packet)
        else:
            with mailbox:
                self._connection.send(packet, [mailbox.fileno()])


def _packed(credentials: Any) -> list[Any]:
    """Their kind, and what they are made of."""
    if isinstance(credentials, APOPCredentials):
        return [_APOP, credentials.username, credentials.timestamp, credentials.digest]
    if isinstance(credentials, CRAMCredentials):
        return [_CRAM, credentials.username, credentials.challenge, credentials.response]
    if isinstance(credentials, ScramCredentials):
        return [_SCRAM, credentials.username, credentials.message, credentials.proof]
    if isinstance(credentials, CertifiedName):
        return [_CERTIFIED, credentials.username]
    return [_PASSWORD, credentials.username, credentials.password]


_UNPACKED: dict[str, Callable[..., Any]] = {
    _PASSWORD: UsernamePassword,
    _APOP: APOPCredentials,
    _CRAM: CRAMCredentials,
    _SCRAM: ScramCredentials,
    _CERTIFIED: CertifiedName,
}


def _text(octets: bytes) -> str:
    """As JSON can have them."""
    return octets.decode("latin-1")


def _octets(text: str) -> bytes:
    return text.encode("latin-1")
