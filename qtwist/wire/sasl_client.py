"""SASL, the client's side, for AUTH with a relay (RFC 4954): PLAIN (RFC 4616), LOGIN, CRAM-MD5 (RFC 2195). Pure."""

from __future__ import annotations

import binascii
import hmac
from collections.abc import Collection

import attrs

from qtwist.wire.sasl import encode


@attrs.frozen
class Login:
    """Name and password for a server. With `in_clear` they may be given over a connection that is not encrypted."""

    username: bytes
    password: bytes = attrs.field(repr=False)
    in_clear: bool = False


class ClientExchange:
    """One exchange. `command` is what stands behind AUTH; :meth:`answer` gives the response to each challenge."""

    def __init__(self, login: Login) -> None:
        self._login = login
        self.command = self._command()

    def answer(self, challenge: bytes) -> bytes | None:
        """The response to a challenge, both in base64; None when that challenge makes no sense."""
        try:
            asked = binascii.a2b_base64(challenge)
        except binascii.Error:
            return None
        response = self._respond(asked)
        return None if response is None else encode(response)

    def _command(self) -> bytes:
        raise NotImplementedError

    def _respond(self, asked: bytes) -> bytes | None:
        raise NotImplementedError


class _Plain(ClientExchange):
    def _command(self) -> bytes:
        return b"PLAIN " + encode(b"\0%b\0%b" % (self._login.username, self._login.password))

    def _respond(self, asked: bytes) -> bytes | None:
        return None  # all is said


class _Login(ClientExchange):
    """What the questions are called, nobody has ever settled: first the name, then the password."""

    def _command(self) -> bytes:
        self._answers = [self._login.username, self._login.password]
        return b"LOGIN"

    def _respond(self, asked: bytes) -> bytes | None:
        return self._answers.pop(0) if self._answers else None


class _CramMD5(ClientExchange):
    _answered = False

    def _command(self) -> bytes:
        return b"CRAM-MD5"

    def _respond(self, asked: bytes) -> bytes | None:
        if self._answered or not asked:
            return None
        self._answered = True
        digest = hmac.new(self._login.password, asked, "md5").hexdigest().encode("ascii")
        return b"%b %b" % (self._login.username, digest)


_ENCRYPTED = {b"PLAIN": _Plain, b"LOGIN": _Login, b"CRAM-MD5": _CramMD5}
_IN_CLEAR = {b"CRAM-MD5": _CramMD5, b"PLAIN": _Plain, b"LOGIN": _Login}


def choose(login: Login, offered: Collection[bytes], encrypted: bool) -> ClientExchange | None:
    """An exchange by one of the mechanisms that are `offered`, in capitals; None when we know none of them.

    Over TLS, the one that works wherever passwords are kept as hashes comes first; else the one that does not show the
    password.
    """
    for name, kind in (_ENCRYPTED if encrypted else _IN_CLEAR).items():
        if name in offered:
            return kind(login)
    return None
