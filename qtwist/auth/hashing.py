"""Password hashes: argon2id, the older kinds that the system's libcrypt knows, and {PLAIN}.

A hash is one word of ASCII that names its own method, as other mail servers and passwd write it::

    $argon2id$v=19$m=19456,t=2,p=1$SALT$HASH      the PHC string format
    $1$ $5$ $6$ $2b$ $2y$ $y$                     md5, sha256, sha512, bcrypt (two), yescrypt: crypt(5)
    {PLAIN}secret                                 for APOP and CRAM-MD5, which need the secret itself

Slow on purpose, so never to be called in the reactor's thread. Standard library, and cryptography only when argon2id
is computed.
"""

from __future__ import annotations

import binascii
import ctypes
import hmac
import os
import re
from dataclasses import dataclass
from functools import lru_cache

PLAIN = b"{PLAIN}"

#: The longest password that is looked at, in octets, and the longest hash.
LONGEST_PASSWORD = 1024
LONGEST_HASH = 2048


class HashError(ValueError):
    """A text is no hash, or of a method that this system does not have; `str()` says which and never has the text."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """What argon2id costs: `memory` in KiB, `passes` over it, `lanes`."""

    memory: int = 19456
    passes: int = 2
    lanes: int = 1


#: What new hashes are made with: the least that OWASP's Password Storage Cheat Sheet asks for. One takes 25 to 35 ms of
#: one core here (doc/users.md).
CURRENT = Parameters()

SALT_SIZE = 16
HASH_SIZE = 32

_ARGON = re.compile(
    rb"\$argon2id\$v=19\$m=([0-9]{1,7}),t=([0-9]{1,3}),p=([0-9]{1,2})\$([A-Za-z0-9+/]{11,86})\$([A-Za-z0-9+/]{22,86})"
)
#: A damaged or hostile line must not take all memory, nor hours.
_MOST_MEMORY = 1 << 20
_MOST_PASSES = 64
_MOST_LANES = 16

_MOST_ROUNDS = 5_000_000
_MOST_BCRYPT = 16
_WORD = rb"[./0-9A-Za-z]"
_CRYPT = {
    "md5": re.compile(rb"\$1\$%b{0,8}\$%b{22}" % (_WORD, _WORD)),
    "sha256": re.compile(rb"\$5\$(?:rounds=([0-9]{1,9})\$)?[^$:\x00-\x20\x7f-\xff]{0,16}\$%b{43}" % _WORD),
    "sha512": re.compile(rb"\$6\$(?:rounds=([0-9]{1,9})\$)?[^$:\x00-\x20\x7f-\xff]{0,16}\$%b{86}" % _WORD),
    "bcrypt": re.compile(rb"\$2[by]\$([0-9]{2})\$%b{53}" % _WORD),
    "yescrypt": re.compile(rb"\$y\$%b+\$%b{0,86}\$%b{43}" % (_WORD, _WORD, _WORD)),
}


@dataclass(frozen=True, slots=True)
class _Argon:
    parameters: Parameters
    salt: bytes
    digest: bytes


def scheme(text: bytes) -> str:
    """The method of a hash: argon2id, md5, sha256, sha512, bcrypt, yescrypt or plain. HashError when it is no hash."""
    if len(text) > LONGEST_HASH:
        raise HashError(f"a hash of at most {LONGEST_HASH} characters")
    if text.startswith(PLAIN):
        if len(text) == len(PLAIN) or b"\n" in text or b"\0" in text:
            raise HashError("a secret after {PLAIN}")
        return "plain"
    if text.startswith(b"$argon2id$"):
        _parse_argon(text)
        return "argon2id"
    for name, form in _CRYPT.items():
        match = form.fullmatch(text)
        if match:
            most = _MOST_BCRYPT if name == "bcrypt" else _MOST_ROUNDS
            if match.lastindex and int(match[1]) > most:
                raise HashError(f"a {name} hash that costs no more than {most}")
            return name
    raise HashError("a hash that begins with $argon2id$, $y$, $2b$, $2y$, $6$, $5$, $1$, or {PLAIN}")


def make(password: bytes, parameters: Parameters = CURRENT) -> bytes:
    """A new argon2id hash of `password`, with a salt of its own."""
    salt = os.urandom(SALT_SIZE)
    digest = _derive(_Argon(parameters, salt, bytes(HASH_SIZE)), password)
    return encode_argon(parameters, salt, digest)


def encode_argon(parameters: Parameters, salt: bytes, digest: bytes) -> bytes:
    """An argon2id hash as text, from its parts."""
    return b"$argon2id$v=19$m=%d,t=%d,p=%d$%b$%b" % (
        parameters.memory,
        parameters.passes,
        parameters.lanes,
        _encode(salt),
        _encode(digest),
    )


def matches(text: bytes, password: bytes) -> bool:
    """Whether `password` is the one of the hash `text`. HashError when that cannot be found out.

    Empty passwords, and those with a NUL or longer than LONGEST_PASSWORD, never match; trying costs the same.
    """
    method = scheme(text)
    usable = bool(password) and len(password) <= LONGEST_PASSWORD and b"\0" not in password
    tried = password if usable else b"\xff"
    if method == "plain":
        found = hmac.compare_digest(text[len(PLAIN) :], tried)
    elif method == "argon2id":
        argon = _parse_argon(text)
        found = hmac.compare_digest(_derive(argon, tried), argon.digest)
    else:
        found = hmac.compare_digest(_crypt(tried, text), text)
    return found and usable


def is_outdated(text: bytes, parameters: Parameters = CURRENT) -> bool:
    """Whether the hash `text` should be made anew with `parameters`, once its password is known. Never for {PLAIN}."""
    method = scheme(text)
    if method == "argon2id":
        has = _parse_argon(text).parameters
        return has.memory < parameters.memory or has.passes < parameters.passes
    return method != "plain"


def check_available(text: bytes) -> None:
    """HashError when `text` is no hash, or its method is one that this system does not have."""
    if scheme(text) not in ("plain", "argon2id"):
        _crypt(b"\xff", text)


def load() -> None:
    """Load now what would be loaded with the first hash: for who is about to give up the right to read it."""
    matches(encode_argon(Parameters(8, 1, 1), bytes(SALT_SIZE), bytes(HASH_SIZE)), b"\xff")
    _library()


def _parse_argon(text: bytes) -> _Argon:
    match = _ARGON.fullmatch(text)
    expected = "$argon2id$v=19$m=MEMORY,t=PASSES,p=LANES$SALT$HASH"
    if match is None:
        raise HashError(expected)
    memory, passes, lanes = (int(match[number]) for number in (1, 2, 3))
    if not (8 * lanes <= memory <= _MOST_MEMORY and 1 <= passes <= _MOST_PASSES and 1 <= lanes <= _MOST_LANES):
        raise HashError(f"{expected} with at most m={_MOST_MEMORY},t={_MOST_PASSES},p={_MOST_LANES}")
    try:
        return _Argon(Parameters(memory, passes, lanes), _decode(match[4]), _decode(match[5]))
    except binascii.Error:
        raise HashError(f"{expected} in base64") from None


def _derive(argon: _Argon, password: bytes) -> bytes:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
    except ImportError as error:
        raise HashError("a version of cryptography that has argon2id (44 or later)") from error
    parameters = argon.parameters
    try:
        derivation = Argon2id(
            salt=argon.salt,
            length=len(argon.digest),
            iterations=parameters.passes,
            lanes=parameters.lanes,
            memory_cost=parameters.memory,
        )
    except UnsupportedAlgorithm as error:
        raise HashError("a cryptography whose OpenSSL has argon2id (3.2 or later)") from error
    return derivation.derive(password)


def _encode(data: bytes) -> bytes:
    return binascii.b2a_base64(data, newline=False).rstrip(b"=")


def _decode(text: bytes) -> bytes:
    return binascii.a2b_base64(text + b"=" * (-len(text) % 4))


#: More than the struct crypt_data of any C library.
_CRYPT_DATA = 1 << 18


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    for name in ("libcrypt.so.1", "libcrypt.so.2", None):  # None: where it is a part of libc
        try:
            library = ctypes.CDLL(name)
            function = library.crypt_r
        except (OSError, AttributeError):
            continue
        function.restype = ctypes.c_char_p
        function.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
        return library
    raise HashError("a system with libcrypt")


def _crypt(password: bytes, setting: bytes) -> bytes:
    """crypt(3). HashError when the library lacks the method of `setting`."""
    result: bytes | None = _library().crypt_r(password, setting, ctypes.create_string_buffer(_CRYPT_DATA))
    if not result or result.startswith(b"*"):
        if len(password) >= 512:  # libxcrypt takes no longer ones
            return b""
        raise HashError(f"a system whose libcrypt has {scheme(setting)}")
    return result
