"""From todo to info, local and remote: the file operations of qmail-send and qmail-clean (spec/qmail.md §9.4, §10).

Blocking, for a thread. Every step may be done again after a crash: as long as todo/N is there, what the others hold of
the message counts for nothing and is made anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from qtwist.files.disk import Disk
from qtwist.interfaces import Preprocessed
from qtwist.queue.layout import PRIVATE_MODE, Layout
from qtwist.queue.records import (
    RECORD_LIMIT,
    EnvelopeHead,
    UnknownRecord,
    format_asked,
    format_info,
    format_recipients,
    parse_envelope,
)
from qtwist.queue.routing import Route, Routing
from qtwist.queue.sync import BatchSync, batch_limit, close_quietly, unlink_if_there

_BLOCK_SIZE = 64 * 1024


class _Trouble(Exception):
    """A step failed; the text is a warning in the words of §9.7."""


@attrs.frozen
class _Written:
    """What became of a message, as far as it is known before the sync."""

    head: EnvelopeHead
    size: int
    birth: float
    channels: frozenset[str]


def preprocess(
    disk: Disk, layout: Layout, roots: tuple[str, ...], numbers: Sequence[int], route: Route
) -> list[Preprocessed | tuple[int, str]]:
    """Move messages out of todo; for each a Preprocessed, or its number and a warning when it stays there.

    OSError when nothing could be done at all.
    """
    results: list[Preprocessed | tuple[int, str]] = []
    limit = batch_limit(disk)
    for start in range(0, len(numbers), limit):
        results += _preprocess_batch(disk, layout, roots, numbers[start : start + limit], route)
    return results


def _preprocess_batch(
    disk: Disk, layout: Layout, roots: tuple[str, ...], numbers: Sequence[int], route: Route
) -> list[Preprocessed | tuple[int, str]]:
    sync = BatchSync.begin(disk, roots, len(numbers))
    written: list[_Written | str] = []
    for number in numbers:
        try:
            written.append(_Writer(disk, layout, sync, number, route).write())
        except _Trouble as trouble:
            written.append(str(trouble))
    sync.sync()
    results: list[Preprocessed | tuple[int, str]] = []
    for number, outcome in zip(numbers, written, strict=True):
        if isinstance(outcome, str):
            results.append((number, outcome))
        elif sync.failure(number) is not None:
            results.append((number, f"trouble fsyncing {layout.name('info', number)}"))
        elif not _clean(disk, layout, number):
            results.append((number, f"qmail-clean unable to clean up {layout.name('todo', number)}"))
        else:
            head = outcome.head
            results.append(
                Preprocessed(number, outcome.size, head.sender, head.qp, head.uid, outcome.birth, outcome.channels)
            )
    return results


def _clean(disk: Disk, layout: Layout, number: int) -> bool:
    try:
        unlink_if_there(disk, layout.path("intd", number))
        unlink_if_there(disk, layout.path("todo", number))
    except OSError:
        return False
    return True


class _Writer:
    """Makes info/N, local/N and remote/N of one message; nothing is durable before the batch is synced."""

    def __init__(self, disk: Disk, layout: Layout, sync: BatchSync, number: int, route: Route) -> None:
        self._disk = disk
        self._layout = layout
        self._sync = sync
        self._number = number
        self._routing = Routing(route)
        self._files: dict[str, int] = {}  # descriptors of what is being written, by room

    def write(self) -> _Written:
        """All steps up to the sync; raises _Trouble."""
        todo = self._layout.name("todo", self._number)
        try:
            fd = self._disk.open_read(self._layout.path("todo", self._number))
        except OSError as error:
            raise _Trouble(f"unable to open {todo}") from error
        try:
            size = self._message_size()
            # bounce is none of §9.4's files. It can be here only if a crash undid the end of an earlier round; then all
            # recipients are tried anew, and those that fail again are entered again.
            for room in ("local", "remote", "info", "bounce"):
                self._unlink(room)
            self._create("info")
            head = parse_envelope(self._blocks(fd, todo), todo, self._take, self._routing.asked)
            self._write("info", format_info(head.sender) + format_asked(self._routing.kept(head.asked_mail)))
            birth = self._birth()
            channels = frozenset(self._files) - {"info"}
            while self._files:
                room, written = self._files.popitem()
                self._sync.add(self._number, written, self._layout.holder(room, self._number))
        except UnknownRecord as error:
            raise _Trouble(f"unknown record type in {todo}") from error
        except ValueError as error:
            raise _Trouble(f"trouble reading {todo}") from error
        finally:
            close_quietly(self._disk, fd)
            for written in self._files.values():
                close_quietly(self._disk, written)
        return _Written(head, size, birth, channels)

    def _message_size(self) -> int:
        try:
            return self._disk.stat(self._layout.path("mess", self._number)).st_size
        except OSError as error:
            raise _Trouble(f"unable to stat {self._layout.name('mess', self._number)}") from error

    def _unlink(self, room: str) -> None:
        try:
            unlink_if_there(self._disk, self._layout.path(room, self._number))
        except OSError as error:
            raise _Trouble(f"unable to unlink {self._layout.name(room, self._number)}") from error

    def _blocks(self, fd: int, where: str) -> Iterator[bytes]:
        while True:
            try:
                block = self._disk.read(fd, _BLOCK_SIZE)
            except OSError as error:
                raise _Trouble(f"trouble reading {where}") from error
            if not block:
                return
            yield block

    def _take(self, recipients: list[bytes]) -> None:
        """Append some recipients to their channels; a channel's file is made when its first one comes."""
        for channel, addresses in self._routing.take(recipients).items():
            if max(map(len, addresses)) >= RECORD_LIMIT or b"\0" in b"".join(addresses):
                raise _Trouble(f"trouble writing to {self._layout.name(channel, self._number)}")
            if channel not in self._files:
                self._create(channel)
            self._write(channel, format_recipients(addresses))

    def _create(self, room: str) -> None:
        try:
            self._files[room] = self._disk.create_exclusive(self._layout.path(room, self._number), PRIVATE_MODE)
        except OSError as error:
            raise _Trouble(f"unable to create {self._layout.name(room, self._number)}") from error

    def _write(self, room: str, data: bytes) -> None:
        try:
            self._disk.write_all(self._files[room], data)
        except OSError as error:
            raise _Trouble(f"trouble writing to {self._layout.name(room, self._number)}") from error

    def _birth(self) -> float:
        try:
            return self._disk.fstat(self._files["info"]).st_mtime
        except OSError as error:
            raise _Trouble(f"unable to stat {self._layout.name('info', self._number)}") from error
