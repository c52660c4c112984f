"""What a sender has asked to be told of a message: the parameters of RFC 3461 as they are kept and passed on. Pure.

They stay in SMTP's own words, in one order and in capitals: for a message ``RET=HDRS ENVID=QQ314159``, for a recipient
``NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;joe@example.org``; nothing asked for is nothing. So what is stored is what is said
to the next server.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

NEVER = b"NEVER"
SUCCESS = b"SUCCESS"
FAILURE = b"FAILURE"
DELAY = b"DELAY"

#: The last line of a delivery's report when the parameters went on, to a server that knows DSN (§5.2.2) or with a
#: forward: whoever has them will tell what is to be told.
PASSED_ON = b"The server reports further.\n"

_ENVID_LIMIT = 100  # §4.4
_ORCPT_LIMIT = 500  # §4.2

_XTEXT = rb"(?:[!-*,-<>-~]|\+[0-9A-F]{2})+"
_NOTIFY = re.compile(rb"NEVER|(?:SUCCESS|FAILURE|DELAY)(?:,(?:SUCCESS|FAILURE|DELAY)){0,2}")
_ENVID = re.compile(_XTEXT)
_ORCPT = re.compile(rb"[A-Za-z0-9-]+;" + _XTEXT)
_HEX = re.compile(rb"\+([0-9A-F]{2})")
_HIGH = re.compile(rb"\+([89A-F][0-9A-F])")
_HIDDEN = re.compile(rb"[^ -~]")


@dataclass(frozen=True, slots=True)
class Asked:
    """The parameters of a message and of each of its recipients, in their order."""

    mail: bytes
    recipients: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """The parameters of a queued message, and of those of its recipients who have some, by channel and offset of their
    records in its file."""

    mail: bytes
    recipients: dict[tuple[str, int], bytes]


@dataclass(frozen=True, slots=True)
class OfMessage:
    """RET (``FULL``, ``HDRS`` or empty), and ENVID, decoded."""

    ret: bytes = b""
    envid: bytes = b""


@dataclass(frozen=True, slots=True)
class OfRecipient:
    """NOTIFY (None where it was not given), and ORCPT: type and address, decoded."""

    notify: frozenset[bytes] | None = None
    orcpt: bytes = b""

    @property
    def failure(self) -> bool:
        """Whether a failure is told; it is where nothing was said (§4.1)."""
        return self.notify is None or FAILURE in self.notify

    def wants(self, what: bytes) -> bool:
        """Whether SUCCESS or DELAY was asked for."""
        return self.notify is not None and what in self.notify


def decode_xtext(text: bytes) -> bytes:
    """Without the encoding of §4. ValueError for what is not xtext, or holds anything but printable ASCII."""
    if not _ENVID.fullmatch(text):
        raise ValueError("no xtext")
    decoded = _HEX.sub(lambda match: bytes((int(match[1], 16),)), text)
    if _HIDDEN.search(decoded):
        raise ValueError("not printable")
    return decoded


def encode_xtext(text: bytes) -> bytes:
    """Printable ASCII as xtext."""
    return re.sub(rb"[^!-*,-<>-~]", lambda match: b"+%02X" % match[0][0], text)


def parse_ret(value: bytes) -> bytes:
    """RET in capitals; ValueError for another value."""
    value = value.upper()
    if value not in (b"FULL", b"HDRS"):
        raise ValueError("RET is FULL or HDRS")
    return value


def parse_envid(value: bytes) -> bytes:
    """ENVID, decoded; ValueError for what is none."""
    if len(value) > _ENVID_LIMIT:
        raise ValueError("ENVID is too long")
    return decode_xtext(value)


def parse_notify(value: bytes) -> frozenset[bytes]:
    """NOTIFY's words in capitals; ValueError for others, and for NEVER beside others."""
    value = value.upper()
    words = value.split(b",")
    if not _NOTIFY.fullmatch(value) or len(set(words)) != len(words):
        raise ValueError("NOTIFY is NEVER, or some of SUCCESS, FAILURE, DELAY")
    return frozenset(words)


def parse_orcpt(value: bytes) -> bytes:
    """ORCPT with its address decoded; ValueError for what is none."""
    if len(value) > _ORCPT_LIMIT or not _ORCPT.fullmatch(value):
        raise ValueError("ORCPT is a type, a semicolon and an address as xtext")
    kind, _, address = value.partition(b";")
    return kind + b";" + decode_xtext(address)


def ascii_orcpt(value: bytes) -> bytes:
    r"""ORCPT with a letter that is not ASCII as ``\x{FC}``, of type utf-8, which goes everywhere (RFC 6533 §3).
    Postfix sends its octets as xtext. ValueError for what is no UTF-8."""
    value = _HIGH.sub(lambda match: bytes((int(match[1], 16),)), value)
    if value.isascii():
        return value
    _, _, address = value.partition(b";")
    return b"utf-8;" + b"".join(
        b"%c" % ord(letter) if letter.isascii() else b"\\x{%X}" % ord(letter) for letter in address.decode("utf-8")
    )


def of_message(text: bytes) -> OfMessage:
    """Read the kept parameters of a message. ValueError for what no message has."""
    found = _split(text, (b"RET", b"ENVID"))
    ret, envid = found.get(b"RET"), found.get(b"ENVID")
    return OfMessage(b"" if ret is None else parse_ret(ret), b"" if envid is None else parse_envid(envid))


def of_recipient(text: bytes) -> OfRecipient:
    """Read the kept parameters of a recipient. ValueError for what no recipient has."""
    found = _split(text, (b"NOTIFY", b"ORCPT"))
    notify, orcpt = found.get(b"NOTIFY"), found.get(b"ORCPT")
    return OfRecipient(None if notify is None else parse_notify(notify), b"" if orcpt is None else parse_orcpt(orcpt))


def _split(text: bytes, known: tuple[bytes, bytes]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for word in text.split(b" ") if text else ():
        name, equals, value = word.partition(b"=")
        if name not in known or name in found or not equals:
            raise ValueError(f"no parameter of DSN: {word[:40]!r}")
        found[name] = value
    return found


def check(asked: Asked, recipients: int) -> None:
    """ValueError unless these may be the parameters of a message with so many recipients."""
    if len(asked.recipients) != recipients:
        raise ValueError("parameters for another number of recipients")
    of_message(asked.mail)
    for text in {*asked.recipients}:
        of_recipient(text)


# How an address and its parameters travel together where an address has no NUL.


def join(address: bytes, parameters: bytes) -> bytes:
    """An address and what belongs to it, as one."""
    return address + b"\0" + parameters if parameters else address


def joined(sender: bytes, recipients: tuple[bytes, ...], asked: Asked | None) -> list[bytes]:
    """The sender and all recipients, with what belongs to them."""
    if asked is None:
        return [sender, *recipients]
    return [join(sender, asked.mail), *map(join, recipients, asked.recipients)]


def part(sender: bytes, recipients: tuple[bytes, ...]) -> tuple[bytes, tuple[bytes, ...], Asked | None]:
    """What :func:`joined` was given, out of its result. ValueError where parameters are none."""
    if b"\0" not in sender and not any(b"\0" in one for one in recipients):
        return sender, recipients, None
    sender, _, mail = sender.partition(b"\0")
    pairs = [one.partition(b"\0") for one in recipients]
    asked = Asked(mail, tuple(pair[2] for pair in pairs))
    check(asked, len(recipients))
    return sender, tuple(pair[0] for pair in pairs), asked
