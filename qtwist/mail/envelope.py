"""Envelopes, where a message came from, and what became of a delivery: values that every room passes around."""

from __future__ import annotations

from dataclasses import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qtwist.mail.asked import Asked


@dataclass(frozen=True, slots=True)
class Envelope:
    """Who sent a message and who shall get it.

    Addresses are unquoted bytes as qmail stores them (``joe@example.org``, ``a b@example.org``); the empty sender is
    a bounce and ``#@[]`` a double bounce (spec/qmail.md §27). `asked` is what the sender wants to be told (RFC 3461),
    None where nothing was said of it.
    """

    sender: bytes
    recipients: tuple[bytes, ...]
    asked: Asked | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Who put a message into the queue.

    `uid` is the user id that the envelope records (``u<uid>``, spec/qmail.md §5.2); `how` is what the queue's
    ``Received`` line says after ``invoked`` (§6.2): ``by alias``, ``from network``, ``for bounce`` or ``by uid <n>``.
    """

    uid: int
    how: bytes

    @classmethod
    def network(cls, uid: int) -> Origin:
        return cls(uid, b"from network")

    @classmethod
    def bounce(cls, uid: int, mark: bytes = b"") -> Origin:
        return cls(uid, b"for bounce" + mark)

    @classmethod
    def user(cls, uid: int) -> Origin:
        return cls(uid, b"by uid %d" % uid)

    @classmethod
    def alias(cls, uid: int) -> Origin:
        return cls(uid, b"by alias")


@dataclass(frozen=True, slots=True)
class Report:
    """The result of one delivery, or of an attempt to queue (spec/qmail.md §11.1, §7).

    `letter` is ``b"K"`` (success), ``b"Z"`` (temporary failure) or ``b"D"`` (permanent failure); `text` is what the
    log and a bounce show: bytes, lines ended by LF, no NUL.
    """

    letter: bytes
    text: bytes

    @classmethod
    def success(cls, text: bytes = b"") -> Report:
        return cls(b"K", text)

    @classmethod
    def deferral(cls, text: bytes) -> Report:
        return cls(b"Z", text)

    @classmethod
    def failure(cls, text: bytes) -> Report:
        return cls(b"D", text)
