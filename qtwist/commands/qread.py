"""qmail-qread: list the messages in the queue with their recipients (spec/qmail.md §22)."""

from __future__ import annotations

import os
import sys

from qtwist.commands.base import TEMPORARY, answer_help, blocks, home
from qtwist.commands.streams import emit
from qtwist.mail.dates import rfc822_date

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

USAGE = """\
NAME
    qmail-qread - list the messages in the queue

SYNOPSIS
    qmail-qread

DESCRIPTION
    Prints a line for each message in the queue that is preprocessed: when it
    came, its number, its size in octets, its envelope sender, and "bouncing" if
    a notice of failure waits for its end. Then a line for each recipient:
    "done" if it is, local or remote, the address. Unprintable characters are
    shown as _. Who may do this depends on the modes of the queue: its owner and
    root may.

ENVIRONMENT
    QTWISTHOME  the home of the mail system [/var/qmail]

EXIT CODES
    0    printed; what is wrong with one message is a line of the output
    111  the queue cannot be read

SEE ALSO
    qtwist queue
"""

_PROG = "qmail-qread"
_SAFE = bytes(octet if 32 <= octet <= 126 else ord("_") for octet in range(256))


class _Unreadable(Exception):
    """A directory that cannot be listed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    answer_help(sys.argv[1:] if argv is None else argv, USAGE)
    code = 0

    def lines() -> Iterator[bytes]:
        nonlocal code
        try:
            yield from listing(os.path.join(home(), "queue"))
        except _Unreadable as error:
            yield f"fatal: {error}\n".encode("utf-8", "surrogateescape")
            code = TEMPORARY

    emit(_PROG, lines())
    return code


def listing(queue: str) -> Iterator[bytes]:
    """What is printed of the queue in that directory, message by message, by their numbers in each subdirectory."""
    for part in _numbers(f"{queue}/info"):
        for number in _numbers(f"{queue}/info/{part}"):
            yield from _message(queue, f"{part}/{number}", number)


def _numbers(directory: str) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(directory) if name.isascii() and name.isdigit())
    except OSError as error:
        raise _Unreadable(f"unable to list {directory}: {error.strerror}") from error


def _message(queue: str, name: str, number: int) -> Iterator[bytes]:
    try:
        size = os.stat(f"{queue}/mess/{name}").st_size
        bouncing = os.path.exists(f"{queue}/bounce/{number}")
        fd = os.open(f"{queue}/info/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            birth = os.fstat(fd).st_mtime
            sender = next(_records(fd), b"F")[1:]
        finally:
            os.close(fd)
    except OSError as error:
        yield _trouble(number, error)
        return
    date = rfc822_date(int(birth)).removesuffix(b" -0000")
    line = b"%b GMT  #%d  %d  <%b> %b" % (date, number, size, sender, b" bouncing" if bouncing else b"")
    yield line.translate(_SAFE) + b"\n"
    for channel in ("local", "remote"):
        try:
            fd = os.open(f"{queue}/{channel}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError as error:
            yield _trouble(number, error)
            continue
        try:
            for record in _records(fd):
                if record[:1] in (b"T", b"D"):
                    done = b"  done" if record.startswith(b"D") else b""
                    yield b"%b\t%b\t%b\n" % (done, channel.encode(), record[1:].translate(_SAFE))
        except OSError as error:
            yield _trouble(number, error)
        finally:
            os.close(fd)


def _records(fd: int) -> Iterator[bytes]:
    """The records of a file that have an end. One that grows beyond all measure is none of ours."""
    rest = b""
    for block in blocks(fd):
        *records, rest = (rest + block).split(b"\0")
        yield from records
        if len(rest) > 1 << 20:
            return


def _trouble(number: int, error: OSError) -> bytes:
    return f"warning: trouble with #{number}: {error.strerror}\n".encode()
