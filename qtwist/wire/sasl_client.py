"""SASL, the client's side, for AUTH with a relay (RFC 4954): PLAIN (RFC 4616), LOGIN, CRAM-MD5 (RFC 2195), and
SCRAM-SHA-256 (RFC 5802, RFC 7677). Pure, but for SCRAM's nonces."""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from functools import lru_cache

import attrs

from qtwist.wire.sasl import encode
from qtwist.wire.sasl_prep import prepared

#: The most iterations that a relay may ask for: a tenth of a second, in which nothing else happens here, and once, as
#: what comes of it is remembered. What keeps our own users' keys has fewer, and so have Cyrus SASL and Dovecot.
MOST_ITERATIONS = 100_000
_LEAST_ITERATIONS = 4096  # RFC 7677 §4


@attrs.frozen
class Login:
    """Name and password for a server. With `in_clear` they may be given over a connection that is not encrypted."""

    username: bytes
    password: bytes = attrs.field(repr=False)
    in_clear: bool = False


class ClientExchange:
    """One exchange. `command` is what stands behind AUTH; :meth:`answer` gives the response to each challenge.

    ValueError for a name or password that the mechanism cannot have.
    """

    #: Whether the server may say yes now: not before it has proved itself, where the mechanism has it do that.
    complete = True

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


@lru_cache(maxsize=100)
def _salted(password: bytes, salt: bytes, iterations: int) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", password, salt, iterations)


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


class _Scram(ClientExchange):
    """Without channel binding. The server, too, has to know the password's keys (RFC 5802 §3): its signature comes as a
    challenge, which is answered with nothing, before it says yes."""

    _FIRST = re.compile(
        rb"r=(?P<nonce>[!-+\--~]{1,512}),s=(?P<salt>[A-Za-z0-9+/]+={0,2}),i=(?P<iterations>[0-9]{1,9})(?:,.*)?"
    )
    _HEADER = b"n,,"

    def _command(self) -> bytes:
        self.complete = False
        self._password = prepared(self._login.password)
        name = prepared(self._login.username).replace(b"=", b"=3D").replace(b",", b"=2C")
        self._nonce = secrets.token_urlsafe(18).encode("ascii")
        self._bare = b"n=%b,r=%b" % (name, self._nonce)
        self._signature = b""
        return b"SCRAM-SHA-256 " + encode(self._HEADER + self._bare)

    def _respond(self, asked: bytes) -> bytes | None:
        if self._signature:
            given, self._signature = self._signature, b""
            self.complete = not self.complete and hmac.compare_digest(asked, b"v=" + encode(given))
            return b"" if self.complete else None
        first = None if self.complete else self._FIRST.fullmatch(asked)
        if first is None or not first["nonce"].startswith(self._nonce) or first["nonce"] == self._nonce:
            return None
        iterations = int(first["iterations"])
        if not _LEAST_ITERATIONS <= iterations <= MOST_ITERATIONS:
            return None
        try:
            salt = binascii.a2b_base64(first["salt"])
        except binascii.Error:
            return None
        salted = _salted(self._password, salt, iterations)
        final = b"c=%b,r=%b" % (encode(self._HEADER), first["nonce"])
        message = b",".join((self._bare, asked, final))
        client_key = _hmac(salted, b"Client Key")
        proof = bytes(
            a ^ b for a, b in zip(client_key, _hmac(hashlib.sha256(client_key).digest(), message), strict=True)
        )
        self._signature = _hmac(_hmac(salted, b"Server Key"), message)
        return b"%b,p=%b" % (final, encode(proof))


_Kinds = dict[bytes, type[ClientExchange]]
_ENCRYPTED: _Kinds = {b"PLAIN": _Plain, b"LOGIN": _Login, b"SCRAM-SHA-256": _Scram, b"CRAM-MD5": _CramMD5}
_IN_CLEAR: _Kinds = {b"SCRAM-SHA-256": _Scram, b"CRAM-MD5": _CramMD5, b"PLAIN": _Plain, b"LOGIN": _Login}


def choose(login: Login, offered: Collection[bytes], encrypted: bool) -> ClientExchange | None:
    """An exchange by one of the mechanisms that are `offered`, in capitals; None when we know none of them.

    Over TLS, those that work wherever passwords are kept as hashes come first; else those that do not show the
    password.
    """
    for name, kind in (_ENCRYPTED if encrypted else _IN_CLEAR).items():
        if name in offered:
            try:
                return kind(login)
            except ValueError:  # SCRAM's, of a password that is no text
                continue
    return None
