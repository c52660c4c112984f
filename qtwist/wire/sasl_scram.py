"""SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, the server's side of the dialogue (RFC 5802, 7677; channel binding: RFC 5929,
9266).

Pure, and without any keys: salt and iterations come from whoever keeps them, and so does the judgement on the proof.
So the process that talks to clients never has what the passwords of others could be tested with.
"""

from __future__ import annotations

import hmac
import re

from qtwist.wire.sasl import (
    MALFORMED,
    OTHER_CHANNEL,
    Exchange,
    Proof,
    SaltWanted,
    SASLError,
    Step,
    check_part,
    decode,
    encode,
)

_PROOF_SIZE = 32

#: gs2-header and client-first-message-bare (RFC 5802 §7). What may follow the nonce are extensions, none of which is
#: mandatory: those begin with ``m=``, where a name is expected here.
_FIRST = re.compile(
    rb"(?P<header>(?:(?P<flag>[ny])|p=(?P<binding>[A-Za-z0-9.-]{1,64})),(?:a=(?P<authzid>[^,\0]*))?,)"
    rb"(?P<bare>n=(?P<name>[^,\0]*),r=(?P<nonce>[!-+\--~]{1,256})(?:,.*)?)",
    re.DOTALL,
)
_FINAL = re.compile(
    rb"(?P<bare>c=(?P<channel>[A-Za-z0-9+/=]*),r=(?P<nonce>[!-+\--~]*)(?:,.*)?),p=(?P<proof>[A-Za-z0-9+/=]*)", re.DOTALL
)
_ESCAPED = re.compile(rb"=(?:2C|3D)|=")


class Scram(Exchange):
    """Client's first message, salt, client's final message with the proof, and the server's signature."""

    #: Whether the exchange has to be bound to the channel, as it is in the -PLUS variant.
    bound = False

    _header = b""
    _binding = b""
    _authzid = b""
    _username: bytes | None = None
    _nonce = b""
    _message = b""  # what has been said so far
    _confirming = False

    def salted(self, salt: bytes, iterations: int) -> bytes:
        self._nonce += self._channel.nonce()
        first = b"r=%b,s=%b,i=%d" % (self._nonce, encode(salt), iterations)
        self._message += b"," + first
        return encode(first)

    def confirm(self, signature: bytes) -> bytes:
        self._confirming = True
        return encode(b"v=" + encode(signature))

    def respond(self, line: bytes) -> Step:
        if self._confirming and line in (b"", b"="):  # the second is what some send for an empty response
            return self._proof
        return super().respond(line)

    def _take(self, response: bytes) -> Step:
        if self._confirming:
            raise SASLError(MALFORMED)
        return self._first(response) if self._username is None else self._final(response)

    def _first(self, response: bytes) -> SaltWanted:
        match = _FIRST.fullmatch(response)
        if match is None:
            raise SASLError(MALFORMED)
        binding: bytes | None = match["binding"]
        if (binding is not None) != self.bound:
            raise SASLError(MALFORMED)
        known = self._channel.bindings
        if binding is not None:
            if binding not in known:
                raise SASLError(OTHER_CHANNEL)
            self._binding = known[binding]
        elif match["flag"] == b"y" and known:
            # The client could have bound it and believes that we cannot: somebody has changed our list (§6).
            raise SASLError(OTHER_CHANNEL)
        self._header = match["header"]
        self._authzid = _name(match["authzid"]) if match["authzid"] is not None else b""
        self._username = _name(match["name"])
        self._nonce = match["nonce"]
        self._message = match["bare"]
        return SaltWanted(self._username)

    def _final(self, response: bytes) -> Proof:
        match = _FINAL.fullmatch(response)
        if match is None or not hmac.compare_digest(match["nonce"], self._nonce):
            raise SASLError(MALFORMED)
        if not hmac.compare_digest(decode(match["channel"]), self._header + self._binding):
            raise SASLError(OTHER_CHANNEL)
        proof = decode(match["proof"])
        if len(proof) != _PROOF_SIZE:
            raise SASLError(MALFORMED)
        assert self._username is not None
        self._proof = Proof(self._username, self._message + b"," + match["bare"], proof, self._authzid)
        return self._proof


class ScramPlus(Scram):
    """The same, bound to the TLS channel."""

    bound = True


def _name(escaped: bytes) -> bytes:
    """A saslname (RFC 5802 §5.1) as it is meant."""

    def plain(match: re.Match[bytes]) -> bytes:
        if match[0] == b"=":
            raise SASLError(MALFORMED)
        return b"," if match[0] == b"=2C" else b"="

    name = _ESCAPED.sub(plain, escaped)
    check_part(name)
    return name
