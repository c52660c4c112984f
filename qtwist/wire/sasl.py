"""SASL, the server's side: PLAIN (RFC 4616) and LOGIN, for AUTH in POP3 (RFC 5034) and in SMTP (RFC 4954).

Pure. A protocol hands over what follows ``AUTH MECHANISM``, then each line that the client sends, without its CRLF,
and gets the next challenge, the client's secret, or a SASLError that says what to answer.
"""

from __future__ import annotations

import binascii
from typing import NamedTuple

#: The longest line of base64 that is looked at, in octets. RFC 4954 §4 wants 12288 for mechanisms that need as much;
#: a name and a password do not.
LONGEST_LINE = 4096
#: The longest name or password, in octets.
LONGEST_PART = 1024

CANCELLED = "cancelled"
MALFORMED = "malformed"
TOO_LONG = "too long"
UNKNOWN = "unknown mechanism"


class SASLError(Exception):
    """The exchange is over without a secret. `kind` is one of CANCELLED, MALFORMED, TOO_LONG, UNKNOWN.

    No message has any of the client's octets in it.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Secret(NamedTuple):
    """What the client has to show. `authzid` is whom it wants to act for; empty, as nearly always, means itself."""

    authzid: bytes
    username: bytes
    password: bytes

    def __repr__(self) -> str:
        return f"Secret(authzid={self.authzid!r}, username={self.username!r})"  # never in a log or a traceback


class Exchange:
    """One exchange with one client, from AUTH to the secret or a SASLError.

    :meth:`begin` and :meth:`respond` return the next challenge in base64 (bytes; what stands after ``+`` or ``334``
    and a blank), or the Secret. After either a Secret or a SASLError there is nothing more to ask.
    """

    def begin(self, initial: bytes | None) -> bytes | Secret:
        """`initial` is the initial response as it came, in base64; ``=`` is an empty one, None is none."""
        if initial is None:
            return self._first_challenge()
        return self._take(b"" if initial == b"=" else _decode(initial))

    def respond(self, line: bytes) -> bytes | Secret:
        """The client's answer to a challenge, in base64; ``*`` cancels."""
        if line == b"*":
            raise SASLError(CANCELLED)
        return self._take(_decode(line))

    def _first_challenge(self) -> bytes:
        raise NotImplementedError

    def _take(self, response: bytes) -> bytes | Secret:
        raise NotImplementedError


class Plain(Exchange):
    """One message: authzid, NUL, name, NUL, password (RFC 4616 §2)."""

    def _first_challenge(self) -> bytes:
        return b""

    def _take(self, response: bytes) -> bytes | Secret:
        parts = response.split(b"\0", 3)
        if len(parts) != 3:
            raise SASLError(MALFORMED)
        return _secret(*parts)


class Login(Exchange):
    """Two questions, for the name and for the password; never a standard, asked for by old clients."""

    _username: bytes | None = None

    def _first_challenge(self) -> bytes:
        return binascii.b2a_base64(b"Username:", newline=False)

    def _take(self, response: bytes) -> bytes | Secret:
        if self._username is None:
            _check(response)
            self._username = response
            return binascii.b2a_base64(b"Password:", newline=False)
        return _secret(b"", self._username, response)


#: The mechanisms, by the names that clients say; these may be in any letter case.
MECHANISMS: dict[bytes, type[Exchange]] = {b"PLAIN": Plain, b"LOGIN": Login}


def exchange(mechanism: bytes) -> Exchange:
    """A new exchange by `mechanism`; SASLError(UNKNOWN) when there is no such one."""
    kind = MECHANISMS.get(mechanism.upper())
    if kind is None:
        raise SASLError(UNKNOWN)
    return kind()


def _decode(line: bytes) -> bytes:
    if len(line) > LONGEST_LINE:
        raise SASLError(TOO_LONG)
    try:
        decoded = binascii.a2b_base64(line)
    except binascii.Error:
        raise SASLError(MALFORMED) from None
    # Python's decoder skips what is no base64; there is one way to write each response, and only that is taken.
    if binascii.b2a_base64(decoded, newline=False) != line:
        raise SASLError(MALFORMED)
    return decoded


def _secret(authzid: bytes, username: bytes, password: bytes) -> Secret:
    if authzid:
        _check(authzid)
    _check(username)
    _check(password)
    return Secret(authzid, username, password)


def _check(part: bytes) -> None:
    if len(part) > LONGEST_PART:
        raise SASLError(TOO_LONG)
    if not part or b"\0" in part:
        raise SASLError(MALFORMED)
