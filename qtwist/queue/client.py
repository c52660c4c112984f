"""Handing a message to the queue: what every command that sends mail uses (spec/qmail.md §6, §7).

A message goes, in this order,

1. to the program that ``$QMAILQUEUE`` names, if it is set (:mod:`qtwist.queue.program`);
2. through the queue's door, the socket HOME/run/queue of the running daemon (:mod:`qtwist.wire.qmqp` describes what is
   spoken there);
3. where nobody answers at the door, straight into the queue's directories, if this process may write there
   (:mod:`qtwist.queue.direct`);
4. where there is no queue, but control/qmqpservers (a null client): to a QMQP server (:mod:`qtwist.queue.qmqp`).

Else it is refused for now. A message counts as queued only when the number came back; whatever breaks off before is a
temporary failure. Then no part of the message is ever delivered, unless it had been handed in as a whole (code 74):
nobody knows what became of that.

Commands that run once per mail import this: no Twisted, no attrs, no typing.
"""

from __future__ import annotations

import _socket
import os

from qtwist.mail.queue_texts import CUSTOM, report
from qtwist.queue.socket_path import SocketPath
from qtwist.wire.netstring import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Envelope = Callable[[], tuple[bytes, Sequence[bytes]]]

__all__ = ["CUSTOM", "QueueRefused", "report", "submit", "submit_later"]

NO_MEMORY = 51
TIMEOUT = 52
NO_HOME = 61
NO_QUEUE = 62
NO_NETWORK = 56
BROKE_OFF = 74
BAD_ENVELOPE = 91

#: How long the daemon may take to read on or to answer, in seconds; it gives up a silent client after 3600 itself.
PATIENCE = 3700

_BLOCK = 65536
_ANSWER_LIMIT = 10_000


class QueueRefused(Exception):
    """A message was not queued, and nothing of it will be delivered; with code 74, nobody knows.

    `code` is the exit code of qmail-queue (§6.3), `letter` says whether trying again makes sense (``Z``) or not
    (``D``), `text` is for people. Without `text`, it is what the code means; `letter` is for code 82, where the code
    does not tell.
    """

    def __init__(self, code: int, text: bytes = b"", letter: bytes = b"") -> None:
        super().__init__(code, text)
        meant_letter, meaning = report(code)
        self.code = code
        self.letter = letter or meant_letter
        self.text = text or meaning

    def __str__(self) -> str:
        return f"{self.text.decode('utf-8', 'replace')} (qmail-queue code {self.code})"


def submit(
    home: str,
    message: Iterable[bytes],
    sender: bytes,
    recipients: Sequence[bytes],
    environ: Mapping[str, str] = os.environ,
    parameters: tuple[bytes, bytes] = (b"", b""),
) -> int:
    """Queue a message, given in blocks of any size, LF line ends; returns its ``qp`` number.

    `parameters` are those of the message and of each recipient that ask for reports (:mod:`qtwist.mail.asked`). They
    are kept on the ways 2 and 3; the others have no place for them.

    QueueRefused when it was not queued. What the iteration over `message` raises is passed on; nothing is queued then.
    """
    return submit_later(home, message, lambda: (sender, recipients), environ, parameters)


def submit_later(
    home: str,
    message: Iterable[bytes],
    envelope: Envelope,
    environ: Mapping[str, str] = os.environ,
    parameters: tuple[bytes, bytes] = (b"", b""),
) -> int:
    """As :func:`submit`; `envelope` is called for sender and recipients after the message has been read."""

    def checked() -> tuple[bytes, Sequence[bytes]]:
        sender, recipients = envelope()
        if b"\0" in sender or any(b"\0" in recipient for recipient in recipients):
            raise QueueRefused(BAD_ENVELOPE, b"An address contains NUL. (#5.1.3)", b"D")
        return sender, recipients

    program = environ.get("QMAILQUEUE")
    if program:
        from qtwist.queue.program import submit_to_program

        return submit_to_program(home, program, message, checked, environ)
    try:
        connection = _connect(home)
    except OSError as error:
        if _is_null_client(home):
            from qtwist.queue.qmqp import submit_to_servers

            return submit_to_servers(home, message, checked)
        if not _may_write(home):
            raise _nobody_there(home, error) from error
    else:
        try:
            return _talk(connection, message, checked, parameters)
        finally:
            connection.close()
    from qtwist.queue.direct import submit_to_disk

    return submit_to_disk(home, message, checked, parameters)


def _connect(home: str) -> _socket.socket:
    """A connection to the door. OSError when there is none."""
    path = SocketPath(f"{home}/run", "queue")
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        # Without a timeout: then it waits when many others are at the door, instead of failing with EAGAIN.
        connection.connect(path.address)
        connection.settimeout(PATIENCE)
    except BaseException:
        connection.close()
        raise
    finally:
        path.close()
    return connection


def _talk(
    connection: _socket.socket, message: Iterable[bytes], envelope: Envelope, parameters: tuple[bytes, bytes]
) -> int:
    """One request in chunked form, and what the answer says."""
    parts = [b"+"]
    size = 0
    for block in message:
        if block:
            parts.append(encode(block))
            size += len(block)
            if size >= _BLOCK:
                if not _send(connection, b"".join(parts)):
                    return _answer(connection)
                parts = []
                size = 0
    sender, recipients = envelope()
    mail, asked = parameters
    if mail:
        sender += b"\0" + mail
    if asked:
        recipients = [recipient + b"\0" + asked for recipient in recipients]
    parts += (b"0:,", encode(sender), *map(encode, recipients), b".")
    _send(connection, b"".join(parts))
    return _answer(connection)


def _send(connection: _socket.socket, data: bytes) -> bool:
    """False when the daemon listens no more: it may have said why."""
    try:
        connection.sendall(data)
    except TimeoutError as error:
        raise QueueRefused(TIMEOUT) from error
    except OSError:
        return False
    return True


def _answer(connection: _socket.socket) -> int:
    """The number behind ``qp``. QueueRefused for every other answer, and for none."""
    answer = b""
    try:
        while len(answer) < _ANSWER_LIMIT:
            block = connection.recv(_ANSWER_LIMIT)
            if not block:
                break
            answer += block
            if answer.endswith(b","):
                break
    except TimeoutError as error:
        raise QueueRefused(TIMEOUT) from error
    except OSError as error:
        raise QueueRefused(BROKE_OFF) from error
    return read_answer(answer)


def read_answer(answer: bytes) -> int:
    """The number behind ``qp`` in the whole answer of the door. QueueRefused for a refusal, and for what is none."""
    head, _, text = answer.partition(b":")
    if not (head.isdigit() and answer.endswith(b",") and int(head[:6]) == len(text) - 1):
        raise QueueRefused(BROKE_OFF)
    letter, text = text[:1], text[1:-1]
    if letter == b"K":
        number = text.rpartition(b" ")[2]
        if number.isdigit():
            return int(number[:20])
    elif letter in (b"Z", b"D"):
        code, _, text = text.partition(b" ")
        if code.isdigit():
            raise QueueRefused(int(code[:3]), text, letter)
    raise QueueRefused(BROKE_OFF)


def _is_null_client(home: str) -> bool:
    """Whether `home` has QMQP servers in the place of a queue. A queue that cannot be used now is a queue."""
    return os.path.lexists(f"{home}/control/qmqpservers") and not os.path.lexists(f"{home}/queue")


def _may_write(home: str) -> bool:
    return all(os.access(f"{home}/queue/{room}", os.W_OK | os.X_OK) for room in ("pid", "mess", "intd", "todo"))


def _nobody_there(home: str, error: OSError) -> QueueRefused:
    if not os.path.isdir(home):
        return QueueRefused(NO_HOME, b"There is no mail system in %s. (#4.3.0)" % os.fsencode(home))
    if not os.path.isdir(f"{home}/queue"):
        return QueueRefused(NO_QUEUE, b"There is no queue in %s. (#4.3.0)" % os.fsencode(home))
    why = (error.strerror or str(error)).encode("utf-8", "replace")
    return QueueRefused(
        NO_NETWORK, b"The mail system is not running: %s/run/queue: %s. (#4.3.2)" % (os.fsencode(home), why)
    )
