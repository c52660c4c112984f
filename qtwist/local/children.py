"""The processes in which lspawn has deliveries made, each as one user, and what is done in which of them.

A process gets more than one delivery at a time: what is brief shares its flushes there, and what waits is waited for
in threads (:mod:`qtwist.local.delivering`). One with nothing to do waits a while for another message to the same user.
Standard library only.
"""

from __future__ import annotations

import os
import socket
import time
from collections import OrderedDict
from collections.abc import Callable

from qtwist.files.assign import Assignment
from qtwist.local.packets import receive_or_end
from qtwist.wire import spawning

#: The most that one process is asked for at once.
MOST_TOGETHER = 50
#: The most processes that wait for another message to the same user, and how long (seconds).
MOST_IDLE = 60
IDLE = 10.0

#: User, user id, group id, home.
Key = tuple[bytes, int, int, bytes]
#: Gets the exit code (-1 when the process has died over it) and the output.
Ended = Callable[[int, bytes], None]


class _Child:
    __slots__ = ("key", "since", "socket", "under_way")

    def __init__(self, key: Key, sock: socket.socket) -> None:
        self.key = key
        self.socket = sock
        self.under_way: dict[int, Ended] = {}
        self.since = 0.0  # when it began to wait


class Children:
    """All of them. `start` starts one and returns its socket, or raises OSError; `watch` calls back when there is
    something to read, `forget` ends that and closes."""

    def __init__(
        self,
        start: Callable[[Key], socket.socket],
        watch: Callable[[socket.socket, Callable[[], None]], None],
        forget: Callable[[socket.socket], None],
    ) -> None:
        self._start = start
        self._watch = watch
        self._forget = forget
        self._all: set[_Child] = set()
        self._idle: OrderedDict[_Child, None] = OrderedDict()  # the one that waits longest stands first
        self._busy: dict[Key, _Child] = {}  # of each user, one that has something to do, but not too much
        self._number = 0

    def hand_over(self, owner: Assignment, about: tuple[bytes, ...], fds: list[int], ended: Ended) -> bool:
        """Give a process of this owner's something to do; False when that cannot be."""
        key = owner.user, owner.uid, owner.gid, owner.home
        self._number = self._number % 0x7FFFFFFF + 1
        try:
            packet = spawning.fields(b"%d" % self._number, *about)
            for _ in range(3):
                child = self._of(key)
                try:
                    if fds:
                        socket.send_fds(child.socket, [packet], fds)
                    else:
                        child.socket.send(packet)
                except BlockingIOError:
                    self._busy.pop(key, None)  # it has more to do than it can hear of
                    if not child.under_way:
                        self._lose(child)
                    continue
                except OSError:
                    self._lose(child)  # it died while it waited; another one is made
                    continue
                child.under_way[self._number] = ended
                if len(child.under_way) < MOST_TOGETHER:
                    self._busy[key] = child
                elif self._busy.get(key) is child:
                    del self._busy[key]
                return True
        except (OSError, ValueError):
            return False
        return False

    def end_idle(self, *, everything: bool) -> None:
        """Let those go that have waited for long enough, or are too many; or `everything` that waits."""
        now = time.monotonic()
        while self._idle:
            child = next(iter(self._idle))
            if len(self._idle) <= MOST_IDLE and now - child.since < IDLE and not everything:
                return
            self._lose(child)

    def patience(self) -> float | None:
        """Seconds until :meth:`end_idle` has something to do; None while it has not."""
        if not self._idle:
            return None
        return max(0.0, next(iter(self._idle)).since + IDLE - time.monotonic())

    def _of(self, key: Key) -> _Child:
        """A process that is this user: one that works for it, one that waits, or a new one. OSError when there can be
        none."""
        busy = self._busy.get(key)
        if busy is not None:
            return busy
        for child in self._idle:
            if child.key == key:
                del self._idle[child]
                return child
        child = _Child(key, self._start(key))
        self._all.add(child)
        self._watch(child.socket, lambda: self._on_child(child))
        return child

    def _on_child(self, child: _Child) -> None:
        for _ in range(MOST_TOGETHER):
            if child not in self._all:
                return  # lost in this very round
            try:
                packet, fds = receive_or_end(child.socket, spawning.LONGEST, 0)
            except BlockingIOError:
                return
            for fd in fds:
                os.close(fd)
            if not packet:
                self._lose(child)
                return
            self._on_reply(child, packet)

    def _on_reply(self, child: _Child, packet: bytes) -> None:
        try:
            number, code, output = spawning.read_reply(packet)
        except ValueError:
            self._lose(child)  # nobody can know what it is about
            return
        ended = child.under_way.pop(number, None)
        if ended is None:
            return
        if not child.under_way:
            if self._busy.get(child.key) is child:
                del self._busy[child.key]
            child.since = time.monotonic()
            self._idle[child] = None
        elif child.key not in self._busy:
            self._busy[child.key] = child
        ended(code, output)

    def _lose(self, child: _Child) -> None:
        """This process is gone, or is to go; what it has not answered is tried again."""
        self._all.discard(child)
        self._idle.pop(child, None)
        if self._busy.get(child.key) is child:
            del self._busy[child.key]
        self._forget(child.socket)
        under_way, child.under_way = child.under_way, {}
        for ended in under_way.values():
            ended(-1, b"")
