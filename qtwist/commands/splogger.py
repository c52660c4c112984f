"""splogger: send lines to syslog (spec/qmail.md §21)."""

from __future__ import annotations

import sys
import syslog
import time

from qtwist.commands.base import PERMANENT, answer_help, die
from qtwist.commands.streams import PRINTABLE, read_blocks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

USAGE = """\
NAME
    splogger - send lines to syslog

SYNOPSIS
    PROGRAM | splogger [TAG [FACILITY]]

DESCRIPTION
    Sends each line of standard input to syslog, with the time in front. Lines
    that start with "alert:" get the priority alert, those with "warning:" the
    priority warning, all others info. Longer lines go in parts of 799
    characters; the parts after the first have + behind the time. Unprintable
    characters become ?, and empty lines are left out.

    TAG is what syslog shows as the program's name [splogger]. FACILITY is a
    number [2, mail].

EXIT CODES
    0    standard input has ended
    100  FACILITY is no number
"""

_PROG = "splogger"
_PART = 799
_MAIL = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    answer_help(arguments, USAGE)
    facility = arguments[1] if len(arguments) > 1 else str(_MAIL)
    if not (facility.isascii() and facility.isdigit() and len(facility) < 4):
        die(_PROG, PERMANENT, f"fatal: the facility is a number such as 2 for mail, not {facility}")
    syslog.openlog(arguments[0] if arguments else _PROG, 0, int(facility) << 3)
    folder = Folder(time.time_ns)
    for block in read_blocks(_PROG):
        for priority, text in folder.feed(block):
            syslog.syslog(priority, text)
    for priority, text in folder.end():
        syslog.syslog(priority, text)
    return 0


class Folder:
    """Makes (priority, line) for syslog of a text that comes cut anywhere. `now` gives nanoseconds since the epoch."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._rest = b""
        self._stamp = ""  # of the line whose first part is out; empty between lines
        self._priority = syslog.LOG_INFO

    def feed(self, block: bytes) -> Iterator[tuple[int, str]]:
        """What `block` completes."""
        *lines, rest = (self._rest + block).split(b"\n")
        self._rest = b""
        for line in lines:
            yield from self._parts(line)
            self._stamp = ""
        whole = len(rest) // _PART * _PART
        yield from self._parts(rest[:whole])
        self._rest = rest[whole:]

    def end(self) -> Iterator[tuple[int, str]]:
        """A last line without its end."""
        yield from self._parts(self._rest)
        self._rest = b""

    def _parts(self, line: bytes) -> Iterator[tuple[int, str]]:
        for start in range(0, len(line), _PART):
            part = line[start : start + _PART]
            separator = "+"
            if not self._stamp:
                separator = " "
                seconds, rest = divmod(self._now(), 1_000_000_000)
                self._stamp = f"{seconds}.{rest // 1000:06}"
                self._priority = syslog.LOG_INFO
                if part.startswith(b"alert:"):
                    self._priority = syslog.LOG_ALERT
                elif part.startswith(b"warning:"):
                    self._priority = syslog.LOG_WARNING
            yield self._priority, self._stamp + separator + part.translate(PRINTABLE).decode("ascii")
