"""One message on its way into the journal: kept in memory, and given over to a file when it grows."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from zope.interface import implementer

from qtwist.interfaces import Accepted, IIncomingMessage
from qtwist.mail.envelope import Envelope, Origin
from qtwist.queue.incoming import MEMORY_LIMIT, IncomingFile


@implementer(IIncomingMessage)
class IncomingEntry:
    """A message on its way in, for the journal as long as it is small.

    `accept` accepts a whole one, or returns None when it has to become a file: `begin_file` begins that, `begin_large`
    one that has grown. Beyond MEMORY_LIMIT it stays in memory as long as `grow`, which gets its size and what is added
    to it, says so; `shrink` hears of how much of that is no longer kept here.
    """

    def __init__(
        self,
        origin: Origin,
        accept: Callable[[Origin, list[bytes], Envelope], Deferred[Accepted] | None],
        begin_file: Callable[[Origin], IncomingFile],
        begin_large: Callable[[Origin], IncomingFile],
        grow: Callable[[int, int], bool],
        shrink: Callable[[int], None],
    ) -> None:
        self._origin = origin
        self._accept = accept
        self._begin_file = begin_file
        self._begin_large = begin_large
        self._grow = grow
        self._shrink = shrink
        self._grown = 0
        self._blocks: list[bytes] = []
        self._size = 0
        self._file: IncomingFile | None = None

    def write(self, data: bytes) -> Deferred[None] | None:
        if self._file is None:
            self._blocks.append(data)
            self._size += len(data)
            if self._size <= MEMORY_LIMIT:
                return None
            if self._grow(self._size, self._size - self._grown):
                self._grown = self._size
                return None
            return self._spill(self._begin_large)
        return self._file.write(data)

    def commit(self, envelope: Envelope) -> Deferred[Accepted]:
        if self._file is None:
            accepted = self._accept(self._origin, self._blocks, envelope)
            if accepted is not None:
                self._forget()
                return accepted
            self._spill(self._begin_file if self._size <= MEMORY_LIMIT else self._begin_large)
        assert self._file is not None
        return self._file.commit(envelope)

    def abort(self) -> None:
        self._forget()
        if self._file is not None:
            self._file.abort()

    def _spill(self, begin: Callable[[Origin], IncomingFile]) -> Deferred[None] | None:
        self._file = begin(self._origin)
        data = b"".join(self._blocks)
        self._forget()
        return self._file.write(data)

    def _forget(self) -> None:
        self._blocks = []
        grown, self._grown = self._grown, 0
        if grown:
            self._shrink(grown)
