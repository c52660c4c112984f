"""Work that asks for its syncs instead of doing them, so that many pieces of work can share a flush.

Such work is a generator. It yields :class:`Sync` and :class:`SyncDirectory`; when it is resumed, that is durable, or
OSError is raised where it waited.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from qtwist.files.disk import Disk

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sync:
    """The file behind this descriptor, which was opened before anything was written to it."""

    fd: int


@dataclass(frozen=True, slots=True)
class SyncDirectory:
    """The entries of this directory."""

    path: bytes


Request = Sync | SyncDirectory
Syncing = Generator[Request, None, T]


@dataclass(slots=True)
class Ended(Generic[T]):
    """How work came to its end."""

    value: T | None = None
    error: Exception | None = None

    def result(self) -> T:
        """What it returned; raises what it raised."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # where there is no error, there is a value of this type


def sync_alone(disk: Disk, work: Syncing[T]) -> T:
    """Do the work, syncing what it asks for; what it returns, or raises."""
    return sync_together(disk, [work])[0].result()


def sync_together(disk: Disk, works: Sequence[Syncing[T]]) -> list[Ended[T]]:
    """Do all of them, step by step, with the syncs of each step together; how each has ended, in their order.

    What fails in a flush that is shared fails for all that share it.
    """
    ended: list[Ended[T]] = [Ended() for _ in works]
    waiting: dict[int, OSError | None] = dict.fromkeys(range(len(works)))
    while waiting:
        asked: dict[int, Request] = {}
        for index, error in waiting.items():
            work = works[index]
            try:
                asked[index] = next(work) if error is None else work.throw(error)
            except StopIteration as stop:
                ended[index].value = stop.value
            except Exception as failure:  # whatever it is, it is this work's and no other's
                ended[index].error = failure
        waiting = _sync(disk, asked)
    return ended


def _sync(disk: Disk, asked: dict[int, Request]) -> dict[int, OSError | None]:
    """Sync what was asked for; which of it has failed."""
    return {
        **_sync_files(disk, {index: one.fd for index, one in asked.items() if isinstance(one, Sync)}),
        **_sync_directories(disk, {index: one.path for index, one in asked.items() if isinstance(one, SyncDirectory)}),
    }


def _sync_files(disk: Disk, files: dict[int, int]) -> dict[int, OSError | None]:
    results: dict[int, OSError | None] = {}
    shared: dict[int, list[int]] = {}
    for index, fd in files.items():
        if len(files) > 1 and disk.can_share_sync(fd):
            shared.setdefault(disk.fstat(fd).st_dev, []).append(index)
        else:
            results[index] = _attempt(disk.fsync, fd)
    for indices in shared.values():
        # The one that was opened first: the system tells a descriptor of what went wrong since it was opened.
        failed = _attempt(disk.sync_filesystem, files[indices[0]])
        results.update(dict.fromkeys(indices, failed))
    return results


def _sync_directories(disk: Disk, paths: dict[int, bytes]) -> dict[int, OSError | None]:
    results = {path: _attempt(disk.fsync_directory, path) for path in dict.fromkeys(paths.values())}
    return {index: results[path] for index, path in paths.items()}


def _attempt(sync: Callable[[Any], None], what: int | bytes) -> OSError | None:
    try:
        sync(what)
    except OSError as error:
        return error
    return None
