"""qmail-queue: take a message on descriptor 0 and its envelope on descriptor 1 into the queue (spec/qmail.md §6)."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal itself takes long to import
import os
import sys

from qtwist.commands.base import answer_help, blocks, home
from qtwist.queue.client import BAD_ENVELOPE, CUSTOM, NO_MEMORY, TIMEOUT, QueueRefused, submit_later

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Envelope = Callable[[], tuple[bytes, Sequence[bytes]]]

USAGE = """\
NAME
    qmail-queue - take a message into the queue

SYNOPSIS
    qmail-queue <MESSAGE 1<ENVELOPE

DESCRIPTION
    Reads a message from descriptor 0 up to its end, then its envelope from
    descriptor 1: the letter F, the sender, a NUL; for each recipient the
    letter T, the address, a NUL; one more NUL. Without that last NUL nothing
    is queued. The message has LF line ends; a Received line is put in front.

    The message goes through the queue's door, the socket HOME/run/queue. When
    the daemon is not running, it is written to the queue's directories by
    those who may do that, root for example; others get the code 56. In a home
    without a queue it goes to the servers of control/qmqpservers, as with
    qmail-qmqpc.

    Nothing is printed. Other programs are meant to use this one; people use
    qmail-inject or sendmail.

ENVIRONMENT
    QTWISTHOME  the home of the mail system [/var/qmail]

EXIT CODES
    0    queued, on disk             62  no queue in the home
    11   an address is too long      63  trouble in queue/pid
    31   refused for good            64  trouble in queue/mess
    51   out of memory               65  trouble in queue/intd
    52   too slow                    66  trouble in queue/todo
    53   write error, disk full      71  refused for now
    54   read error, or cut short    74  the daemon stopped in the middle
    56   the daemon is not running   81  internal error
    61   no such home                91  the envelope is wrong
    The codes 11 to 40 mean that the message will never be accepted.
"""

ADDRESS_TOO_LONG = 11
REFUSED_FOR_GOOD = 31
READ_TROUBLE = 54
REFUSED_FOR_NOW = 71

#: The longest address (§6.2).
ADDRESS_LIMIT = 1002

#: Nothing waits for its message longer than that, in seconds (§1.5).
LIFETIME = 86400


class _ReadTrouble(Exception):
    pass


def main(argv: Sequence[str] | None = None) -> int:
    answer_help(sys.argv[1:] if argv is None else argv, USAGE)
    # Who may run this decides nothing about whom it runs: $QMAILQUEUE is for its callers.
    return hand_in(lambda message, envelope: submit_later(home(), message, envelope, {}))


def hand_in(submit: Callable[[Iterable[bytes], Envelope], int]) -> int:
    """Give the message on descriptor 0 and the envelope on descriptor 1 to `submit`; the exit code (§6.3)."""
    _prepare_signals()
    try:
        submit(_blocks(0), _read_envelope)
    except QueueRefused as error:
        if error.code == CUSTOM:
            return REFUSED_FOR_GOOD if error.letter == b"D" else REFUSED_FOR_NOW
        return error.code
    except _ReadTrouble:
        return READ_TROUBLE
    except MemoryError:
        return NO_MEMORY
    return 0


def _prepare_signals() -> None:
    """Go on to the end, whatever happens to the terminal; but not for ever (§6.2)."""
    for name in ("PIPE", "VTALRM", "PROF", "QUIT", "INT", "HUP", "XCPU", "XFSZ"):
        _signal.signal(getattr(_signal, f"SIG{name}"), _signal.SIG_IGN)
    _signal.signal(_signal.SIGALRM, lambda *_: os._exit(TIMEOUT))
    _signal.alarm(LIFETIME)


def _blocks(fd: int) -> Iterator[bytes]:
    try:
        yield from blocks(fd)
    except OSError as error:
        raise _ReadTrouble from error


def _read_envelope() -> tuple[bytes, list[bytes]]:
    """Sender and recipients from descriptor 1. QueueRefused, or _ReadTrouble when it is cut short."""
    addresses: list[bytes] = []
    rest = b""
    for block in _blocks(1):
        *records, rest = (rest + block).split(b"\0")
        for record in records:
            if not record and addresses:
                return addresses[0], addresses[1:]
            _check_record(record, first=not addresses)
            addresses.append(record[1:])
        if rest:
            _check_record(rest, first=not addresses)
    raise _ReadTrouble


def _check_record(record: bytes, first: bool) -> None:
    """QueueRefused for what cannot become a record of an envelope; it may be cut short."""
    if record[:1] != (b"F" if first else b"T"):
        raise QueueRefused(BAD_ENVELOPE)
    if len(record) - 1 > ADDRESS_LIMIT:
        raise QueueRefused(ADDRESS_TOO_LONG)
