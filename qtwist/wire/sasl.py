"""SASL, the server's side, for AUTH in POP3 (RFC 5034) and in SMTP (RFC 4954): PLAIN (RFC 4616), LOGIN, CRAM-MD5
(RFC 2195), EXTERNAL (RFC 4422 appendix A). SCRAM is in :mod:`qtwist.wire.sasl_scram`.

Pure. A protocol hands over what follows ``AUTH MECHANISM``, then each line that the client sends, without its CRLF,
and gets the next challenge, a question about the salt, the client's claim, or a SASLError that says what to answer.
Whether a claim is right is for others to find out.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Mapping
from typing import NamedTuple

import attrs

#: The longest line of base64 that is looked at, in octets. RFC 4954 §4 wants 12288 for mechanisms that need as much;
#: a name and a password do not.
LONGEST_LINE = 4096
#: The longest name or password, in octets.
LONGEST_PART = 1024

CANCELLED = "cancelled"
MALFORMED = "malformed"
TOO_LONG = "too long"
UNKNOWN = "unknown mechanism"
OTHER_CHANNEL = "bound to another channel"


class SASLError(Exception):
    """The exchange is over without a claim. `kind` is CANCELLED, MALFORMED, TOO_LONG, UNKNOWN or OTHER_CHANNEL.

    No message has any of the client's octets in it.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Secret(NamedTuple):
    """A claim: name and password. `authzid` is whom the client wants to act for; empty, as nearly always, means
    itself."""

    authzid: bytes
    username: bytes
    password: bytes

    def __repr__(self) -> str:
        return f"Secret(authzid={self.authzid!r}, username={self.username!r})"  # never in a log or a traceback


@attrs.frozen
class Digest:
    """A claim: the HMAC-MD5 of `challenge`, keyed with the password (RFC 2195 §2). `digest` has 32 hexadecimal
    digits."""

    username: bytes
    challenge: bytes
    digest: bytes = attrs.field(repr=False)
    authzid: bytes = b""


@attrs.frozen
class Proof:
    """A claim: ClientProof for `message`, the AuthMessage (RFC 5802 §3). It is answered with a ServerSignature."""

    username: bytes
    message: bytes = attrs.field(repr=False)
    proof: bytes = attrs.field(repr=False)
    authzid: bytes = b""


@attrs.frozen
class Certificate:
    """A claim: what the client has shown in the TLS handshake says who it is. `authzid` is empty, or the name that it
    wants to have."""

    authzid: bytes = b""


@attrs.frozen
class SaltWanted:
    """A question on the way to a Proof: salt and iterations of `username`. Answered by :meth:`Exchange.salted`."""

    username: bytes


Claim = Secret | Digest | Proof | Certificate
#: What comes out of an exchange: a challenge in base64, a question, or the claim that ends it.
Step = bytes | SaltWanted | Claim


@attrs.frozen
class Channel:
    """What a mechanism has to know of the connection and this host.

    `nonce` makes printable octets without a comma that nobody can guess, new ones each time. `bindings` maps types of
    channel binding (``tls-exporter``) to their data; empty where there is no TLS.
    """

    host: bytes = b""
    nonce: Callable[[], bytes] = lambda: b""
    bindings: Mapping[bytes, bytes] = attrs.field(factory=dict, repr=False)


class Exchange:
    """One exchange with one client, from AUTH to the claim or a SASLError.

    :meth:`begin` and :meth:`respond` return the next challenge in base64 (bytes; what stands after ``+`` or ``334``
    and a blank), a SaltWanted, or the claim. After a claim or a SASLError there is nothing more to ask, but that SCRAM
    has a last word (:meth:`confirm`).
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def begin(self, initial: bytes | None) -> Step:
        """`initial` is the initial response as it came, in base64; ``=`` is an empty one, None is none."""
        if initial is None:
            return self._first_challenge()
        return self._take(b"" if initial == b"=" else decode(initial))

    def respond(self, line: bytes) -> Step:
        """The client's answer to a challenge, in base64; ``*`` cancels."""
        if line == b"*":
            raise SASLError(CANCELLED)
        return self._take(decode(line))

    def salted(self, salt: bytes, iterations: int) -> bytes:
        """The answer to SaltWanted; the next challenge."""
        raise RuntimeError("this mechanism has no salt")

    def confirm(self, signature: bytes) -> bytes:
        """The claim is right; the challenge that proves to the client that it has met somebody who knows."""
        raise RuntimeError("this mechanism has no signature")

    def _first_challenge(self) -> bytes:
        """Mechanisms in which the client speaks first."""
        return b""

    def _take(self, response: bytes) -> Step:
        raise NotImplementedError


class Plain(Exchange):
    """One message: authzid, NUL, name, NUL, password (RFC 4616 §2)."""

    def _take(self, response: bytes) -> Secret:
        parts = response.split(b"\0", 3)
        if len(parts) != 3:
            raise SASLError(MALFORMED)
        authzid, username, password = parts
        if authzid:
            check_part(authzid)
        return _secret(authzid, username, password)


class Login(Exchange):
    """Two questions, for the name and for the password; never a standard, asked for by old clients."""

    _username: bytes | None = None

    def _first_challenge(self) -> bytes:
        return encode(b"Username:")

    def _take(self, response: bytes) -> bytes | Secret:
        if self._username is None:
            check_part(response)
            self._username = response
            return encode(b"Password:")
        return _secret(b"", self._username, response)


class CramMD5(Exchange):
    """The server's challenge first, then the name and the digest of the challenge (RFC 2195 §2)."""

    _challenge: bytes | None = None

    def _first_challenge(self) -> bytes:
        channel = self._channel
        self._challenge = b"<%b@%b>" % (channel.nonce(), channel.host)
        return encode(self._challenge)

    def _take(self, response: bytes) -> Digest:
        if self._challenge is None:
            raise SASLError(MALFORMED)  # an initial response, where there is nothing to respond to
        username, _, digest = response.rpartition(b" ")
        check_part(username)
        if len(digest) != 32 or digest.strip(b"0123456789abcdefABCDEF"):
            raise SASLError(MALFORMED)
        return Digest(username, self._challenge, digest.lower())


class External(Exchange):
    """The client says whom it wants to be, if anybody; it has shown who it is before (RFC 4422 appendix A)."""

    def _take(self, response: bytes) -> Certificate:
        if response:
            check_part(response)
        return Certificate(response)


def decode(line: bytes) -> bytes:
    """What a line of base64 holds. SASLError when it is too long, or not written in the one way that there is."""
    if len(line) > LONGEST_LINE:
        raise SASLError(TOO_LONG)
    try:
        decoded = binascii.a2b_base64(line)
    except binascii.Error:
        raise SASLError(MALFORMED) from None
    # Python's decoder skips what is no base64; there is one way to write each response, and only that is taken.
    if encode(decoded) != line:
        raise SASLError(MALFORMED)
    return decoded


def encode(data: bytes) -> bytes:
    """`data` in base64, as one line."""
    return binascii.b2a_base64(data, newline=False)


def check_part(part: bytes) -> None:
    """SASLError for what can be no name and no password."""
    if len(part) > LONGEST_PART:
        raise SASLError(TOO_LONG)
    if not part or b"\0" in part:
        raise SASLError(MALFORMED)


def _secret(authzid: bytes, username: bytes, password: bytes) -> Secret:
    check_part(username)
    check_part(password)
    return Secret(authzid, username, password)
