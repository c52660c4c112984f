"""SCRAM-SHA-256's keys: made of a password, kept as text, and a proof judged by them (RFC 5802 §3, RFC 7677).

The text is PostgreSQL's and others'::

    SCRAM-SHA-256$65536:SALT$STOREDKEY:SERVERKEY

There is no library for this part: the one that servers would use (scramp) wants the keys of a name in the middle of its
dialogue, in the process that talks to the client, at once, and a Python newer than our oldest. What is left is a few
lines of hashlib. Slow on purpose where a password is hashed. Standard library only.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass
from functools import lru_cache

from qtwist.wire.sasl_prep import prepared

PREFIX = b"SCRAM-SHA-256$"

#: The most that the clients of Cyrus SASL, Postfix among them, agree to compute ("iteration-count is too big"). OWASP's
#: Password Storage Cheat Sheet asks for 600,000 where PBKDF2 with SHA-256 keeps a password.
ITERATIONS = 65_536
SALT_SIZE = 16

_LEAST_ITERATIONS = 4096  # RFC 7677 §4
_MOST_ITERATIONS = 10_000_000
_SIZE = 32
_BASE64 = rb"[A-Za-z0-9+/]{16,86}={0,2}"
_FORM = re.compile(rb"SCRAM-SHA-256\$([0-9]{4,8}):(%b)\$([A-Za-z0-9+/]{43}=):([A-Za-z0-9+/]{43}=)" % _BASE64)


@dataclass(frozen=True, slots=True, repr=False)
class ScramKeys:
    """What is kept in place of a password (RFC 5802 §3, §9: whoever has it can be the server, but not the client)."""

    salt: bytes
    iterations: int
    stored_key: bytes
    server_key: bytes

    @classmethod
    def make(cls, password: bytes, salt: bytes, iterations: int = ITERATIONS) -> ScramKeys:
        """The keys of `password`. ValueError when SCRAM cannot have that password."""
        salted = hashlib.pbkdf2_hmac("sha256", prepared(password), salt, iterations)
        client_key = _hmac(salted, b"Client Key")
        return cls(salt, iterations, hashlib.sha256(client_key).digest(), _hmac(salted, b"Server Key"))

    @classmethod
    def parse(cls, text: bytes) -> ScramKeys:
        """The keys that a text holds. ValueError when it holds none."""
        match = _FORM.fullmatch(text)
        if match is None or not _LEAST_ITERATIONS <= int(match[1]) <= _MOST_ITERATIONS:
            raise ValueError("SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY")
        try:
            salt, stored_key, server_key = (binascii.a2b_base64(match[number]) for number in (2, 3, 4))
        except binascii.Error:
            raise ValueError("a salt and keys in base64") from None
        return cls(salt, int(match[1]), stored_key, server_key)

    def to_bytes(self) -> bytes:
        """The text."""
        salt, stored_key, server_key = (
            binascii.b2a_base64(part, newline=False) for part in (self.salt, self.stored_key, self.server_key)
        )
        return b"%b%d:%b$%b:%b" % (PREFIX, self.iterations, salt, stored_key, server_key)

    def signature_for(self, message: bytes, proof: bytes) -> bytes | None:
        """The ServerSignature that answers a right `proof` for `message`; None when it is wrong."""
        client_key = bytes(a ^ b for a, b in zip(proof, _hmac(self.stored_key, message), strict=False))
        if len(proof) != _SIZE or not hmac.compare_digest(hashlib.sha256(client_key).digest(), self.stored_key):
            return None
        return _hmac(self.server_key, message)


@lru_cache(maxsize=1000)
def cached_keys(password: bytes, salt: bytes) -> ScramKeys:
    """As :meth:`ScramKeys.make`, for passwords that are kept readable anyway."""
    return ScramKeys.make(password, salt)


def salt_for(key: bytes, name: bytes) -> bytes:
    """The salt of a name that has none of its own, always the same: nobody can tell from it whether the name exists."""
    return _hmac(key, name)[:SALT_SIZE]


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")
