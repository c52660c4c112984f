"""A maildir read by a process of its owner's, for a server that may not read it: both ends (doc/security.md).

The packets (SOCK_SEQPACKET) from the server are one letter each, some with numbers: open, sizes, fetch, fetch several
small ones, finish. The answer is ``K``, or ``E`` with an errno and a text. What is long travels as a file in memory, a
message as a descriptor of its file. Neither side believes what the other says beyond this session: the server is the
one that the network reaches, and the other process belongs to the user.

Standard library only, blocking: lspawn loads this as root, and the server calls it in threads.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import stat
import struct
from array import array
from collections.abc import Callable, Collection, Sequence

from qtwist.local.packets import receive
from qtwist.pop3d.maildir import MOST_SMALL, MaildirSession, Names

OPEN, SIZES, FETCH, SMALL, FINISH = b"o", b"s", b"f", b"m", b"q"

#: Seconds that either side waits for the other one.
PATIENCE = 900.0
#: The most octets that a list may have: some for each of a million messages.
MOST_OCTETS = 128 * 1024 * 1024

_NUMBER = struct.Struct("!I")
_NUMBERS = struct.Struct("!II")
_ERROR = struct.Struct("!i")
_PACKET = 4096


def _share(data: bytes) -> int:
    """A descriptor of a file in memory with `data`."""
    fd = os.memfd_create("list", os.MFD_CLOEXEC)
    with open(fd, "wb", buffering=0, closefd=False) as file:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) or 0 :]
    return fd


def _take(fd: int, most: int = MOST_OCTETS) -> bytes:
    """The contents of such a file of at most so many octets. OSError when it is none."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size > most:
        raise OSError(errno.EPROTO, "no list of messages")
    data = bytearray()
    while len(data) < status.st_size and (block := os.pread(fd, status.st_size - len(data), len(data))):
        data += block
    return bytes(data)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


# The owner's side.


def serve(sock: socket.socket, opened: Callable[[], MaildirSession]) -> None:
    """Answer the server until it is gone. `opened` makes the session, or raises OSError."""
    sock.settimeout(None)
    session: MaildirSession | None = None
    while True:
        packet, fds = receive(sock, _PACKET, 1)
        if not packet:
            return
        answer, given = b"K", -1
        try:
            if session is None:
                session = opened()
            answer, given = _answer(session, packet, fds)
        except OSError as error:
            answer = b"E" + _ERROR.pack(error.errno or errno.EIO) + str(error).encode("utf-8", "replace")[:1000]
        except (ValueError, IndexError, struct.error) as error:
            answer = b"E" + _ERROR.pack(errno.EPROTO) + repr(error).encode("utf-8", "replace")[:1000]
        try:
            if given >= 0:
                socket.send_fds(sock, [answer], [given])
            else:
                sock.send(answer)
        finally:
            _close(fds if given < 0 else [*fds, given])


def _answer(session: MaildirSession, packet: bytes, fds: Sequence[int]) -> tuple[bytes, int]:
    letter, rest = packet[:1], packet[1:]
    if letter == OPEN:
        files = array("q", [session.size(index) for index in range(len(session))])
        return b"K" + _NUMBER.pack(len(session)), _share(files.tobytes() + b"\n".join(session.uids))
    if letter == SIZES:
        return b"K", _share(session.sizes().tobytes())
    if letter == FETCH:
        [index] = _NUMBER.unpack(rest)
        return b"K", session.open(index)
    if letter == SMALL:
        index, octets = _NUMBERS.unpack(rest)
        texts = session.small(index, octets)
        sizes = array("q", map(len, texts))
        return b"K" + _NUMBER.pack(len(texts)), _share(b"".join((sizes.tobytes(), *texts)))
    if letter == FINISH:
        [deleted] = _NUMBER.unpack(rest)
        [fd] = fds
        indices = array("q", _take(fd))
        if indices and not 0 <= min(indices) <= max(indices) < len(session):
            raise ValueError("no such message")
        failures = session.finish(indices[:deleted], indices[deleted:])
        text = str(failures[0]) if failures else ""
        return b"K" + _NUMBER.pack(len(failures)) + text.encode("utf-8", "replace")[:1000], -1
    raise ValueError(f"no such request: {packet[:20]!r}")


# The server's side.


def _number(answer: bytes) -> int:
    """The number that an answer begins with. OSError without one."""
    if len(answer) < _NUMBER.size:
        raise OSError(errno.EPROTO, "no number")
    number: int = _NUMBER.unpack_from(answer)[0]
    return number


class MailboxSession:
    """A :class:`~qtwist.pop3d.maildrop.Session` at the other end of `sock`. OSError for whatever goes wrong."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.settimeout(PATIENCE)
        answer, data = self._list(OPEN)
        count = _number(answer)
        self._files = array("q")
        width = self._files.itemsize
        if count * width <= len(data):
            self._files.frombytes(data[: count * width])
        uids = data[count * width :].split(b"\n") if count else []
        if len(self._files) != count or len(uids) != count:
            raise OSError(errno.EPROTO, "no list of messages")
        self._uids = Names(uids)

    @property
    def uids(self) -> Sequence[bytes]:
        return self._uids

    def __len__(self) -> int:
        return len(self._files)

    def size(self, index: int) -> int:
        return self._files[index]

    def sizes(self) -> Sequence[int]:
        _, data = self._list(SIZES)
        sizes = array("q")
        sizes.frombytes(data[: len(data) - len(data) % sizes.itemsize])
        if len(sizes) != len(self) or (sizes and min(sizes) < 0):
            raise OSError(errno.EPROTO, "no list of sizes")
        return sizes

    def open(self, index: int) -> int:
        _, fd = self._ask(FETCH + _NUMBER.pack(index))
        if fd < 0 or not stat.S_ISREG(os.fstat(fd).st_mode):  # whatever else it is could make us wait for ever
            if fd >= 0:
                os.close(fd)
            raise OSError(errno.EPROTO, "no message")
        return fd

    def small(self, index: int, octets: int) -> list[bytes]:
        width = array("q").itemsize
        answer, data = self._list(SMALL + _NUMBERS.pack(index, octets), MOST_SMALL * width + octets)
        count = _number(answer)
        sizes = array("q", data[: count * width] if count * width <= len(data) else b"")
        if min(sizes, default=0) < 0 or count * width + sum(sizes) != len(data):
            raise OSError(errno.EPROTO, "no list of messages")
        ends = itertools.accumulate(sizes, initial=count * width)
        return [data[start:end] for start, end in itertools.pairwise(ends)]

    def finish(self, deleted: Collection[int], retrieved: Collection[int]) -> list[OSError]:
        given = _share(array("q", [*deleted, *retrieved]).tobytes())
        try:
            answer, fd = self._ask(FINISH + _NUMBER.pack(len(deleted)), [given])
        finally:
            os.close(given)
        if fd >= 0:
            os.close(fd)
        failures = _number(answer)
        text = answer[_NUMBER.size :].decode("utf-8", "replace")
        return [OSError(errno.EIO, text)] * min(failures, len(deleted))

    def close(self) -> None:
        # A thread that waits for an answer is woken; closed is it when nobody has it any more.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _list(self, request: bytes, most: int = MOST_OCTETS) -> tuple[bytes, bytes]:
        answer, fd = self._ask(request)
        try:
            return answer, _take(fd, most)
        finally:
            if fd >= 0:
                os.close(fd)

    def _ask(self, request: bytes, given: Sequence[int] = ()) -> tuple[bytes, int]:
        """What is answered behind the ``K``, and a descriptor, or -1."""
        try:
            if given:
                socket.send_fds(self._socket, [request], given)
            else:
                self._socket.send(request)
            answer, fds = receive(self._socket, _PACKET, 1)
        except TimeoutError as error:
            raise OSError(errno.ETIMEDOUT, "the process that reads the mailbox does not answer") from error
        fd = fds[0] if fds else -1
        if answer[:1] == b"K":
            return answer[1:], fd
        _close(fds)
        if answer[:1] != b"E" or len(answer) < 1 + _ERROR.size:
            raise OSError(errno.EPIPE, "the process that reads the mailbox has ended")
        [code] = _ERROR.unpack_from(answer, 1)
        raise OSError(code, answer[1 + _ERROR.size :].decode("utf-8", "replace"))
