"""How long a message takes from the client's final dot to its file in new/, at a rate that is kept whatever happens."""

from __future__ import annotations

import ctypes
import os
import re
import select
import socket
import struct
import threading
import time

from bench.machine import wait
from bench.servers import Peer

_IN_CREATE, _IN_MOVED_TO = 0x100, 0x80
_EVENT = struct.Struct("iIII")
_MARK = re.compile(rb"^X-Mark: (\d+)$", re.M)


class Watch:
    """When each file came into a directory (inotify), by the name of the file."""

    def __init__(self, path: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init()
        if self._fd < 0 or libc.inotify_add_watch(self._fd, path.encode(), _IN_CREATE | _IN_MOVED_TO) < 0:
            raise OSError(ctypes.get_errno(), path)
        self.came: dict[bytes, float] = {}
        self._ended = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while not self._ended.is_set():
            if not select.select([self._fd], [], [], 0.1)[0]:
                continue
            data = os.read(self._fd, 65536)
            now = time.monotonic()
            at = 0
            while at < len(data):
                length = _EVENT.unpack_from(data, at)[3]
                at += _EVENT.size
                self.came.setdefault(data[at : at + length].rstrip(b"\0"), now)
                at += length

    def stop(self) -> None:
        self._ended.set()
        self._reader.join()
        os.close(self._fd)


def _send(peer: Peer, marks: range, began: float, gap: float, body: bytes, dots: dict[int, float]) -> None:
    """One connection: each message at its time, or as soon as the one before is answered."""
    with socket.create_connection(("127.0.0.1", peer.port), 60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answers = connection.makefile("rb")
        answers.readline()
        for mark in marks:
            pause = began + mark * gap - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            envelope = (
                b"MAIL FROM:<sender@client.test>\r\n",
                b"RCPT TO:<%b>\r\n" % peer.recipient().encode(),
                b"DATA\r\n",
            )
            for command in (b"HELO client.test\r\n", *envelope) if mark == marks[0] else envelope:
                connection.sendall(command)
                answers.readline()
            connection.sendall(b"X-Mark: %d\r\n" % mark + body + b"\r\n.\r\n")
            dots[mark] = time.monotonic()
            answers.readline()
        connection.sendall(b"QUIT\r\n")


def latencies(peer: Peer, sessions: int, rate: float, messages: int, octets: int) -> list[float]:
    """Milliseconds of each message; `rate` is in messages a second over all sessions, and may be too much to keep."""
    new = f"{peer.maildir()}/new"
    watch = Watch(new)
    dots: dict[int, float] = {}
    body = b"Subject: x\r\n\r\n" + (octets // 64) * (62 * b"x" + b"\r\n")
    began = time.monotonic() + 0.1
    try:
        clients = [
            threading.Thread(target=_send, args=(peer, range(first, messages, sessions), began, 1 / rate, body, dots))
            for first in range(sessions)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        wait(f"{messages} messages", lambda: len(watch.came) >= messages)
    finally:
        watch.stop()
    found = []
    for name, when in watch.came.items():
        with open(os.path.join(new.encode(), name), "rb") as file:
            mark = _MARK.search(file.read(4096))
        if mark is not None:
            found.append((when - dots[int(mark[1])]) * 1000)
    return found
