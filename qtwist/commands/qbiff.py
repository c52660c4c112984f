"""qbiff: say on a user's terminals that mail has come (spec/qmail.md §21)."""

from __future__ import annotations

import os
import stat
import struct
import sys

from qtwist.commands.base import answer_help, blocks, write_all
from qtwist.inject.splitting import HeaderTooLong, Splitter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

USAGE = """\
NAME
    qbiff - say on a user's terminals that mail has come

SYNOPSIS
    |qbiff                          (a line of a .qmail file)

DESCRIPTION
    Writes two lines to each terminal where the user is logged in and has said
    "biff y" (the terminal belongs to the user, and its owner's x bit is set):
    who sent mail to whom, and how the subject and the text begin. What cannot
    be printed is replaced.

    Where the system keeps no utmp, all terminals under /dev/pts are looked at.

ENVIRONMENT
    USER, LOCAL, SENDER             (set by qmail-local)

EXIT CODES
    0    always
"""

UTMP = "/var/run/utmp"
DEVICES = "/dev"

_SHOWN = 78

# Linux: type, pid, line, id, user, and what does not matter here.
_RECORD = struct.Struct("=hxxi32s4s32s308x")
_USER_PROCESS = 7

_PRINTABLE = range(32, 127)
_FIRST_LINE = bytes(octet if octet in _PRINTABLE else ord("_") for octet in range(256))
_SECOND_LINE = bytes(octet if octet in _PRINTABLE else ord("/") for octet in range(256))


def main(argv: Sequence[str] | None = None) -> int:
    answer_help(sys.argv[1:] if argv is None else argv, USAGE)
    user, sender, local = (os.environb.get(name) for name in (b"USER", b"SENDER", b"LOCAL"))
    if user is None or sender is None or local is None:
        return 0
    try:
        text = notice(sender, local, 0)
    except (OSError, HeaderTooLong):
        return 0
    for line in _lines(user):
        _write(os.path.join(os.fsencode(DEVICES), line), text)
    return 0


def notice(sender: bytes, local: bytes, fd: int) -> bytes:
    """What is shown for the message that `fd` holds."""
    message = Splitter(blocks(fd))
    text = b"    "
    for field in message.fields():
        name, _, value = field.partition(b":")
        if name.rstrip(b" \t").lower() == b"subject":
            text += value.lstrip(b" \t\r\n")
    for block in message.body():
        text += block[:_SHOWN]
        if len(text) >= _SHOWN:
            break
    first = (b"*** TO <%b> FROM <%b>" % (local, sender)).translate(_FIRST_LINE)
    return b"\r\n\a%b\r\n%b\r\n" % (first, text[:_SHOWN].translate(_SECOND_LINE))


def _lines(user: bytes) -> Iterator[bytes]:
    """The terminals where `user` may be, as paths below /dev."""
    try:
        with open(UTMP, "rb") as file:
            records = file.read()
    except OSError:
        try:
            yield from (b"pts/" + name for name in os.listdir(os.fsencode(DEVICES) + b"/pts") if name.isdigit())
        except OSError:
            return
        return
    whole = len(records) - len(records) % _RECORD.size
    for kind, _, line, _, name in _RECORD.iter_unpack(records[:whole]):
        terminal = line.partition(b"\0")[0]
        # utmp is writable by other programs: nothing outside of /dev.
        safe = terminal and not terminal.startswith(b"/") and b"." not in terminal
        if safe and kind == _USER_PROCESS and name.partition(b"\0")[0] == user[:32]:
            yield terminal


def _write(path: bytes, text: bytes) -> None:
    """Show `text` on the terminal `path`, if its owner wants it."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        status = os.fstat(fd)
        if status.st_uid == os.getuid() and status.st_mode & stat.S_IXUSR:
            write_all(fd, text)
    except OSError:
        return
    finally:
        os.close(fd)
