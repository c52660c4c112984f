"""What is kept back on purpose: the lines of control/holds (doc/queue.md). Pure.

A line is a kind, a value and a reason, parted by blanks::

    message 1234/1700000000 asked the sender
    sender joe@example.org under investigation
    destination example.net moves until Monday

A message is named by its number and its birth, because the queue gives numbers anew. Senders and destinations are
addresses or domains. In values, what could not stand there is written as %XX; the empty sender is ``<>``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

import attrs

from qtwist.mail.domains import ascii_key
from qtwist.mail.verp import bounce_address

MESSAGE = "message"
SENDER = "sender"
DESTINATION = "destination"
KINDS = (MESSAGE, SENDER, DESTINATION)

_UNSAFE = re.compile(rb"[\x00-\x20%\x7f]")
_CONTROLS = re.compile(rb"[\x00-\x1f\x7f]+")
_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_MESSAGE = re.compile(rb"[0-9]{1,20}/[0-9]{1,20}")

#: Octets of a reason that are kept.
_REASON_LIMIT = 200


@attrs.frozen
class Hold:
    """One line: `kind` is one of KINDS, `value` plain, in lower case, domains in ASCII, `reason` one line of text."""

    kind: str
    value: bytes
    reason: bytes = b""

    @classmethod
    def make(cls, kind: str, value: bytes, reason: bytes = b"") -> Hold:
        """A hold from what somebody typed. ValueError when the kind or the value makes no sense."""
        if kind not in KINDS:
            raise ValueError(f"a hold is for one of: {', '.join(KINDS)}")
        value = ascii_key(value)
        if kind == SENDER and value == b"<>":
            value = b""
        if kind == MESSAGE and not _MESSAGE.fullmatch(value):
            raise ValueError("a message is named by its number, a slash and its birth")
        if kind == DESTINATION and not value.strip(b"@"):
            raise ValueError("a destination is a domain or an address")
        return cls(kind, value, _CONTROLS.sub(b" ", reason).strip()[:_REASON_LIMIT])

    @classmethod
    def of_message(cls, number: int, birth: float, reason: bytes = b"") -> Hold:
        return cls.make(MESSAGE, b"%d/%d" % (number, birth), reason)

    @classmethod
    def parse(cls, line: bytes) -> Hold:
        """A line of control/holds. ValueError when it is none."""
        kind, _, rest = line.partition(b" ")
        value, _, reason = rest.strip().partition(b" ")
        if not value or _PERCENT.search(value):
            raise ValueError("a hold has a kind and a value")
        return cls.make(kind.decode("ascii", "replace"), unquote_to_bytes(value), reason)

    def line(self) -> bytes:
        """The line of control/holds, without its LF."""
        value = _UNSAFE.sub(lambda found: b"%%%02X" % ord(found[0]), self.value) or b"<>"
        return b" ".join(part for part in (self.kind.encode(), value, self.reason) if part)

    def text(self) -> bytes:
        """For people: why something is held."""
        return self.kind.encode() + (b": " + self.reason if self.reason else b"")


class Holds:
    """All that is held."""

    def __init__(self, entries: Iterable[Hold] = ()) -> None:
        self.entries = tuple(entries)
        self._found = {(entry.kind, entry.value): entry for entry in self.entries}

    @classmethod
    def parse(cls, lines: Iterable[bytes]) -> Holds:
        return cls(Hold.parse(line) for line in lines)

    def __contains__(self, hold: object) -> bool:
        return isinstance(hold, Hold) and (hold.kind, hold.value) in self._found

    def of_message(self, number: int, birth: float, sender: bytes) -> Hold | None:
        """Why a whole message is held, if it is. `sender` is the one that the queue has stored."""
        if not self._found:
            return None
        by_number = self._found.get((MESSAGE, b"%d/%d" % (number, birth)))
        return by_number or self._by_address(SENDER, bounce_address(sender))

    def of_recipient(self, address: bytes) -> Hold | None:
        """Why a recipient is held, if it is."""
        return self._by_address(DESTINATION, address) if self._found else None

    def _by_address(self, kind: str, address: bytes) -> Hold | None:
        address = ascii_key(address)
        found = self._found.get((kind, address))
        if found is None and (domain := address.rpartition(b"@")[2]):
            found = self._found.get((kind, domain)) or self._found.get((kind, b"@" + domain))
        return found
