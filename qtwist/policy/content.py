"""A message that has come completely and is not yet committed: what filters look at, and may change.

Where nobody filters, a message streams into the queue as it comes. Where somebody does, it is kept aside first: in
memory while it is small, in a file without a name else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator

import attrs
from twisted.internet.defer import Deferred
from zope.interface import implementer

from qtwist.interfaces import Accepted, IIncomingMessage, QueueError
from qtwist.mail.envelope import Envelope
from qtwist.mail.header_fields import LONGEST_HEADER, HeaderFields
from qtwist.policy.base import Refusal

BLOCK = 65536
"""Octets that are read at a time."""

IN_MEMORY = 1 << 16
"""Octets of a message that are kept in memory; larger ones go to a file."""

WRITE_ERROR = 53  # spec/qmail.md §6.3


@attrs.frozen
class Discarded(Refusal):
    """An answer of the `content` hook: the client hears 250, and the message goes nowhere. The log has its rule."""


def discard(reason: str = "") -> Discarded:
    """Take the message and throw it away."""
    return Discarded(250, b"ok", reason=reason)


class Text:
    """Octets that are written once and then read; OSError where there is no room for a file."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115  # it lives as long as we do
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append `data`."""
        self._file.write(data)
        self.size += len(data)

    def blocks(self, start: int = 0) -> Iterator[bytes]:
        """What was written from the octet `start` on, a block at a time. One reader at a time, and no writer."""
        while True:
            self._file.seek(start)
            block = self._file.read(BLOCK)
            if not block:
                return
            start += len(block)
            yield block

    def beginning(self, size: int) -> bytes:
        """The first `size` octets, or all there are."""
        self._file.seek(0)
        return self._file.read(size)

    def close(self) -> None:
        """Forget it all; harmless when repeated."""
        self._file.close()


class Content:
    """The message, for the `content` hook of policies (LF line ends), and what they make of it.

    `sender` and `recipients` are the envelope, `fields` the header, and all of them may be changed; the body may be
    replaced. `received` is the Received line that will stand in front, which is not part of `fields`. Where no
    recipient is left, the message is thrown away.
    """

    def __init__(self, sender: bytes, recipients: Iterable[bytes], received: bytes, text: Text) -> None:
        self.sender = sender
        self.recipients = list(recipients)
        self.received = received
        self._text = text
        self.fields = HeaderFields(text.beginning(LONGEST_HEADER))
        self._body = self.fields.length  # where in the text what follows the header begins
        self._has_empty_line = next(text.blocks(self._body), b"\n").startswith(b"\n")

    @property
    def size(self) -> int:
        """Octets of the message as it is now, without `received`."""
        return len(self._head()) + self._text.size - self._body

    def body(self) -> Iterator[bytes]:
        """The body, without the empty line in front of it, a block at a time."""
        start = self._body + self._has_empty_line
        return self._text.blocks(min(start, self._text.size))

    def blocks(self) -> Iterator[bytes]:
        """The message as it is now, without `received`, a block at a time."""
        header = self._head()
        if header:
            yield header
        yield from self._text.blocks(self._body)

    def _head(self) -> bytes:
        header = bytes(self.fields)
        if not self._has_empty_line and header != self._text.beginning(self._body):
            header += b"\n"  # else the body might be read as part of a new field
        return header

    def replace_body(self, blocks: Iterable[bytes]) -> None:
        """Put another body behind the header. OSError where there is no room for it; then the old one stays."""
        text = Text()
        try:
            text.write(b"\n")
            for block in blocks:
                text.write(block)
        except BaseException:
            text.close()
            raise
        self._text.close()
        self._text, self._body, self._has_empty_line = text, 0, True

    def close(self) -> None:
        """Nobody needs it any more."""
        self._text.close()


@implementer(IIncomingMessage)
class KeptAside:
    """A message on its way in that somebody filters before it goes to the queue: `begin` begins that.

    The first :meth:`write` is the Received line.
    """

    def __init__(self, begin: Callable[[], IIncomingMessage]) -> None:
        self._begin = begin
        self._received: bytes | None = None
        self._text = Text()
        self._trouble: OSError | None = None
        self._onward: IIncomingMessage | None = None
        self.content: Content | None = None

    def write(self, data: bytes) -> None:
        """As IIncomingMessage says; it never has to wait."""
        if self._received is None:
            self._received = data
        elif self._trouble is None:
            try:
                self._text.write(data)
            except OSError as error:
                self._trouble = error

    def complete(self, sender: bytes, recipients: Iterable[bytes]) -> Content:
        """All has come: what filters get. QueueError when it could not be kept."""
        if self._trouble is not None:
            folder = tempfile.gettempdir()
            raise QueueError(WRITE_ERROR, f"no room in {folder} for a message to be filtered: {self._trouble}")
        try:
            self.content = Content(sender, recipients, self._received or b"", self._text)
        except OSError as error:
            raise QueueError(WRITE_ERROR, f"a message to be filtered cannot be read: {error}") from error
        return self.content

    def commit(self, envelope: Envelope) -> Deferred[Accepted]:
        """As IIncomingMessage says, for what filters have made of it; `envelope` is what they have left of that."""
        return Deferred.fromCoroutine(self._commit(envelope))

    async def _commit(self, envelope: Envelope) -> Accepted:
        assert self.content is not None
        try:
            onward = self._onward = self._begin()
            slow = onward.write(self.content.received)
            for block in self.content.blocks():
                if slow is not None:
                    await slow
                slow = onward.write(block)
            if slow is not None:
                await slow
            accepted: Accepted = await onward.commit(envelope)
            return accepted
        except OSError as error:
            raise QueueError(WRITE_ERROR, f"a message cannot be read back after it was filtered: {error}") from error
        finally:
            if self._onward is not None:
                self._onward.abort()
            self.content.close()

    def abort(self) -> None:
        """As IIncomingMessage says."""
        if self._onward is not None:
            self._onward.abort()
        elif self.content is not None:
            self.content.close()
        else:
            self._text.close()
