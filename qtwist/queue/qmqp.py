"""Handing a message to a QMQP server instead of a queue of one's own: qmail-qmqpc's work (spec/qmail.md §17.3).

The servers of control/qmqpservers are asked in their order until one can be reached; that one decides. No Received
line is added: the server does that.

Commands that run once per mail import this: no Twisted, no attrs, no typing.
"""

from __future__ import annotations

import _socket
import errno
import os
from time import monotonic

from qtwist.control_reading import ControlError, read, split_lines
from qtwist.queue.client import BROKE_OFF, NO_HOME, NO_NETWORK, QueueRefused
from qtwist.wire.qmqp_client import AnswerReader, frame, queue_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import IO

REFUSED_FOR_GOOD = 31
WRITE_TROUBLE = 53
NO_SERVERS = 55
REFUSED_FOR_NOW = 71
TIMED_OUT = 72
NOT_REACHED = 73

PORT = 628

#: Seconds to wait for a connection, for the server to read on, and for the whole answer (§1.5).
CONNECT_PATIENCE = 10.0
PATIENCE = 60.0

#: A longer message (octets) waits in a file: its length has to be sent first, so all of it must have been read.
MEMORY = 1 << 20
_BLOCK = 65536


def submit_to_servers(
    home: str, message: Iterable[bytes], envelope: Callable[[], tuple[bytes, Sequence[bytes]]]
) -> int:
    """Hand a message to the first server that can be reached; the number that it gave it, 0 if it named none.

    `envelope` is called after the message has been read. QueueRefused, with the server's own text if it gave one, when
    the message was not taken. Between the end of the request and the answer nobody can know: that it broke off there
    is a failure, too (74), and no other server is asked then.
    """
    servers = read_servers(home)
    spool = _Spool()
    try:
        for block in message:
            spool.add(block)
        sender, recipients = envelope()
        head, tail = frame(spool.size, sender, recipients)
        connection = _connect(servers)
        try:
            return _talk(connection, spool.pieces(head, tail))
        finally:
            connection.close()
    finally:
        spool.close()


def read_servers(home: str) -> list[tuple[str, int]]:
    """(address, port) for each line of control/qmqpservers that names a server; others are skipped, as qmail does.

    QueueRefused 61 without a home, 55 when there is no server.
    """
    path = f"{home}/control/qmqpservers"
    try:
        text = read(path)
    except ControlError as error:
        raise QueueRefused(NO_SERVERS, f"{error}. (#4.3.0)".encode("utf-8", "surrogateescape")) from error
    if text is None and not os.path.isdir(home):
        raise QueueRefused(NO_HOME, b"There is no mail system in %s. (#4.3.0)" % os.fsencode(home))
    servers = [server for _, line in split_lines(text or b"") if (server := parse_server(line))]
    if not servers:
        raise QueueRefused(NO_SERVERS, b"No server is named in %s. (#4.3.0)" % os.fsencode(path))
    return servers


def parse_server(line: bytes) -> tuple[str, int] | None:
    """Address and port of ``address``, ``address:port`` (IPv4) or ``[address]:port``; None for anything else.

    The check of the control file (:func:`qtwist.control_checks.server`) has the same rules.
    """
    port = b"%d" % PORT
    if line.startswith(b"["):
        address, bracket, rest = line[1:].partition(b"]")
        if not bracket or (rest and not rest.startswith(b":")):
            return None
        port = rest[1:] if rest else port
    elif line.count(b":") == 1:
        address, _, port = line.partition(b":")
    else:
        address = line
    host, percent, scope = address.partition(b"%")
    six = b":" in host
    if not (port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        return None
    if percent and (not six or not scope or b"%" in scope):
        return None
    try:
        _socket.inet_pton(_socket.AF_INET6 if six else _socket.AF_INET, host.decode())
        return address.decode(), int(port)
    except (OSError, ValueError):
        return None


class _Spool:
    """A message until its length is known: in memory, a long one in a file without a name."""

    def __init__(self) -> None:
        self.size = 0
        self._blocks: list[bytes] = []
        self._file: IO[bytes] | None = None

    def add(self, block: bytes) -> None:
        self.size += len(block)
        if self._file is None:
            self._blocks.append(block)
            if self.size <= MEMORY:
                return
            block = b"".join(self._blocks)
            self._blocks = []
        try:
            if self._file is None:
                from tempfile import TemporaryFile  # slow to import, and most messages do without

                # Without a buffer, so that a full disk is told here, and not by close().
                self._file = TemporaryFile(buffering=0)  # noqa: SIM115  # close() does
            rest = memoryview(block)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise QueueRefused(WRITE_TROUBLE) from error

    def pieces(self, head: bytes, tail: bytes) -> Iterator[bytes]:
        """`head`, the message and `tail`: a short message all at once, so that it fills packets."""
        if self._file is None:
            yield b"".join([head, *self._blocks, tail])
            return
        yield head
        try:
            self._file.seek(0)
            while block := self._file.read(_BLOCK):
                yield block
        except OSError as error:
            raise QueueRefused(WRITE_TROUBLE) from error
        yield tail

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _connect(servers: Sequence[tuple[str, int]]) -> _socket.socket:
    """A connection to the first that can be reached. QueueRefused for the last one that could not (72, 73)."""
    for host, port in servers:
        try:
            connection = _socket.socket(_socket.AF_INET6 if ":" in host else _socket.AF_INET, _socket.SOCK_STREAM)
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:  # a host without IPv6 reaches no such server; others it may
                raise QueueRefused(NO_NETWORK) from error
            failure = _not_reached(NOT_REACHED, host, error)
            continue
        try:
            connection.settimeout(CONNECT_PATIENCE)
            connection.connect((host, port))
            connection.settimeout(PATIENCE)
            return connection
        except TimeoutError as error:
            connection.close()
            failure = _not_reached(TIMED_OUT, host, error)
        except OSError as error:
            connection.close()
            failure = _not_reached(NOT_REACHED, host, error)
        except BaseException:
            connection.close()
            raise
    raise failure


def _not_reached(code: int, host: str, error: OSError) -> QueueRefused:
    why = (error.strerror or str(error)).encode("utf-8", "replace")
    return QueueRefused(code, b"No connection to the mail server %b: %b. (#4.4.1)" % (host.encode(), why))


def _talk(connection: _socket.socket, request: Iterable[bytes]) -> int:
    """Send the request, and do what the answer says."""
    try:
        for piece in request:
            view = memoryview(piece)
            while view:
                # Not sendall: its time is up after PATIENCE although the server reads on, if slowly.
                view = view[connection.send(view) :]
    except OSError as error:
        # It may have said why. That it took a message that it has not seen cannot be meant.
        verdict = _answer(connection, 0)
        if verdict is None or verdict[0] == b"K":
            raise QueueRefused(BROKE_OFF) from error
    else:
        verdict = _answer(connection, PATIENCE)
        if verdict is None:
            raise QueueRefused(BROKE_OFF)
    letter, text = verdict
    if letter == b"K":
        return queue_number(text)
    raise QueueRefused(REFUSED_FOR_GOOD if letter == b"D" else REFUSED_FOR_NOW, text, letter)


def _answer(connection: _socket.socket, patience: float) -> tuple[bytes, bytes] | None:
    """The answer, if it comes within `patience` seconds (0: if it is there already)."""
    reader = AnswerReader()
    deadline = monotonic() + patience
    try:
        while not reader.ended:
            connection.settimeout(max(deadline - monotonic(), 0))  # 0: do not wait
            data = connection.recv(_BLOCK)
            if not data:
                break
            reader.receive(data)
    except OSError:
        pass  # what has come so far counts
    return reader.verdict
