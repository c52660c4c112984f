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

    `accept` accepts a whole one, or returns None when it has to become a file: `begin_file` begins that. `begin_large`
    begins one that has grown.
    """

    def __init__(
        self,
        origin: Origin,
        accept: Callable[[Origin, list[bytes], Envelope], Deferred[Accepted] | None],
        begin_file: Callable[[Origin], IncomingFile],
        begin_large: Callable[[Origin], IncomingFile],
    ) -> None:
        self._origin = origin
        self._accept = accept
        self._begin_file = begin_file
        self._begin_large = begin_large
        self._blocks: list[bytes] = []
        self._size = 0
        self._file: IncomingFile | None = None

    def write(self, data: bytes) -> Deferred[None] | None:
        if self._file is None:
            self._blocks.append(data)
            self._size += len(data)
            if self._size <= MEMORY_LIMIT:
                return None
            return self._spill(self._begin_large)
        return self._file.write(data)

    def commit(self, envelope: Envelope) -> Deferred[Accepted]:
        if self._file is None:
            accepted = self._accept(self._origin, self._blocks, envelope)
            if accepted is not None:
                self._blocks = []
                return accepted
            self._spill(self._begin_file)
        assert self._file is not None
        return self._file.commit(envelope)

    def abort(self) -> None:
        self._blocks = []
        if self._file is not None:
            self._file.abort()

    def _spill(self, begin: Callable[[Origin], IncomingFile]) -> Deferred[None] | None:
        self._file = begin(self._origin)
        blocks, self._blocks = self._blocks, []
        return self._file.write(b"".join(blocks))
