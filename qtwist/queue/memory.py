"""How much memory there is for more mail: of the host, of the control groups that this process is in, and of the
process itself. What is there is found out before the kernel has to end somebody."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable, Iterable, Iterator

import attrs

from qtwist.queue.room import Free, Reserve

_AVAILABLE = re.compile(rb"^MemAvailable: *([0-9]+) kB$", re.M)
_DATA_FIELD = 5  # of /proc/self/statm, in pages: what RLIMIT_DATA bounds


@attrs.frozen
class _Group:
    """A control group with its files: most octets, octets used, and the file and field of those used for a cache that
    can be given up at any time."""

    folder: str
    most: str
    used: str
    cache: re.Pattern[bytes]

    def free(self) -> int | None:
        """Octets; None without a limit. OSError, ValueError."""
        most = _read(f"{self.folder}/{self.most}").strip()
        if most == b"max":
            return None
        cached = self.cache.search(_read(f"{self.folder}/memory.stat"))
        given_up = int(cached[1]) if cached else 0
        return int(most) - int(_read(f"{self.folder}/{self.used}")) + given_up


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(65536)


def _groups(root: str) -> Iterator[_Group]:
    """The groups of this process that may have a limit, and all above them, of both versions of control groups."""
    try:
        lines = _read(f"{root}/proc/self/cgroup").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = os.fsdecode(line).split(":", 2)
        if not controllers:
            for folder in _with_parents(f"{root}/sys/fs/cgroup", path):
                yield _Group(folder, "memory.max", "memory.current", re.compile(rb"^inactive_file ([0-9]+)$", re.M))
        elif "memory" in controllers.split(","):
            cache = re.compile(rb"^total_inactive_file ([0-9]+)$", re.M)
            for folder in _with_parents(f"{root}/sys/fs/cgroup/memory", path):
                yield _Group(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", cache)


def _with_parents(top: str, path: str) -> Iterable[str]:
    parts = [part for part in path.split("/") if part]
    return ["/".join((top, *parts[:length])) for length in range(len(parts), -1, -1)]


class Memory(Reserve):
    """The memory for this process, which is as much as the scarcest of all has free.

    `root` is where /proc and /sys are, `limit` the process's own (RLIMIT_DATA, octets; negative without one).
    """

    def __init__(
        self,
        least: Callable[[], int],
        seconds: Callable[[], float],
        *,
        root: str = "",
        limit: Callable[[], int] = lambda: resource.getrlimit(resource.RLIMIT_DATA)[0],
        kept: str = "mail",
    ) -> None:
        super().__init__("memoryminfree", least, self._ask, seconds, kept)
        self._root = root
        self._limit = limit
        self._groups: list[_Group] | None = None

    def _ask(self) -> Free | None:
        known = [free for free in (self._host(), self._own(), *self._of_groups()) if free is not None]
        return min(known, key=lambda free: free.octets, default=None)

    def _host(self) -> Free | None:
        try:
            found = _AVAILABLE.search(_read(f"{self._root}/proc/meminfo"))
        except OSError:
            return None
        return Free(int(found[1]) * 1024, "of the host's memory") if found else None

    def _own(self) -> Free | None:
        limit = self._limit()
        if limit < 0 or limit == resource.RLIM_INFINITY:
            return None
        try:
            pages = int(_read(f"{self._root}/proc/self/statm").split()[_DATA_FIELD])
        except (OSError, ValueError, IndexError):
            return None
        return Free(max(0, limit - pages * resource.getpagesize()), "of the memory of this process (control/softlimit)")

    def _of_groups(self) -> Iterator[Free]:
        if self._groups is None:
            self._groups = [group for group in _groups(self._root) if os.path.exists(f"{group.folder}/{group.most}")]
        for group in self._groups:
            try:
                free = group.free()
            except (OSError, ValueError):
                continue
            if free is not None:
                yield Free(max(0, free), f"of the memory of the control group {group.folder}")
