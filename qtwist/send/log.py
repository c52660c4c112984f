"""The log lines of the queue manager, byte for byte (spec/qmail.md §9.7)."""

from __future__ import annotations

import os
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from qtwist.interfaces import Preprocessed
from qtwist.mail.address import sanitise_log
from qtwist.mail.envelope import Report

_OUTCOME = {b"K": b"success", b"Z": b"deferral", b"D": b"failure"}


#: Seconds between two pieces of a log. As much of it can get lost when the process is killed.
PAUSE = 0.01


class SendLog:
    """Writes the lines; `write` gets each as bytes that end in LF."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write

    def status(self, local: tuple[int, int], remote: tuple[int, int], *, exiting: bool) -> None:
        """Running deliveries and limit of each channel."""
        tail = b" exitasap" if exiting else b""
        self._write(b"status: local %d/%d remote %d/%d%s\n" % (*local, *remote, tail))

    def exiting(self) -> None:
        self._write(b"status: exiting\n")

    def new_message(self, message: Preprocessed) -> None:
        sender = sanitise_log(message.sender)
        self._write(
            b"new msg %d\ninfo msg %d: bytes %d from <%s> qp %d uid %d\n"
            % (message.number, message.number, message.size, sender, message.qp, message.uid)
        )

    def starting(self, delivery: int, number: int, channel: str, recipient: bytes) -> None:
        self._write(
            b"starting delivery %d: msg %d to %s %s\n" % (delivery, number, channel.encode(), sanitise_log(recipient))
        )

    def delivery(self, delivery: int, report: Report) -> None:
        """One delivery's end. A letter that is none of K, Z, D is logged as mangled."""
        outcome = _OUTCOME.get(report.letter)
        if outcome is None:
            self._write(b"delivery %d: report mangled, will defer\n" % delivery)
        else:
            self._write(b"delivery %d: %s: %s\n" % (delivery, outcome, sanitise_log(report.text)))

    def bounce(self, number: int, qp: int) -> None:
        self._write(b"bounce msg %d qp %d\n" % (number, qp))

    def report(self, number: int, qp: int) -> None:
        """A notice that is not about failures; qmail has no such line."""
        self._write(b"report msg %d qp %d\n" % (number, qp))

    def triple_bounce(self, number: int) -> None:
        self._write(b"triple bounce: discarding bounce/%d\n" % number)

    def end(self, number: int) -> None:
        self._write(b"end msg %d\n" % number)

    def steered(self, what: str, number: int, uid: int) -> None:
        """Somebody decided about a message (`what`: fail, drop); qmail has no such line."""
        self._write(b"%s msg %d by uid %d\n" % (what.encode(), number, uid))

    def warning(self, text: str) -> None:
        self._write(b"warning: %s\n" % text.encode("utf-8", "surrogateescape"))

    def alert(self, text: str) -> None:
        self._write(b"alert: %s\n" % text.encode("utf-8", "surrogateescape"))


class GatheredLines:
    """Lines on their way to `write`, in pieces: those of one turn of the reactor together, and what is said within
    :data:`PAUSE` of the last piece. Each piece wakes whoever reads the log."""

    def __init__(self, write: Callable[[bytes], None], clock: IReactorTime) -> None:
        self._write = write
        self._clock = clock
        self._lines: list[bytes] = []
        self._due: IDelayedCall | None = None
        self._written = -PAUSE  # when something was, by the clock

    def add(self, line: bytes) -> None:
        """Write this line, at the end of the turn at the earliest."""
        if not self._lines:
            passed = self._clock.seconds() - self._written
            # A clock that was set back says that less than no time has passed.
            self._due = self._clock.callLater(PAUSE - passed if 0 <= passed < PAUSE else 0, self.flush)
        self._lines.append(line)

    def flush(self) -> None:
        """Write what is still to be written."""
        lines, self._lines = self._lines, []
        due, self._due = self._due, None
        if due is not None and due.active():
            due.cancel()  # or the end of a service would leave a timer behind
        if lines:
            self._written = self._clock.seconds()
            self._write(b"".join(lines))


class LogFile:
    """Where the lines go: a descriptor, or a file that :meth:`reopen` opens anew (log rotation).

    What is written is written at once and whole; nothing is kept back in a buffer.
    """

    def __init__(self, path: str | None) -> None:
        """`path` is a file to append to, or None for standard output."""
        self._path = path
        self._fd = 1 if path is None else self._open(path)

    @staticmethod
    def _open(path: str) -> int:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, line: bytes) -> None:
        """Write `line`; a log that cannot be written (disk full, closed pipe) does not stop the mail."""
        try:
            while line:
                line = line[os.write(self._fd, line) :]
        except OSError:
            pass

    def reopen(self) -> None:
        """Open the file again by its name. OSError leaves the old one in use."""
        if self._path is not None:
            fresh = self._open(self._path)
            os.close(self._fd)
            self._fd = fresh

    def close(self) -> None:
        if self._path is not None:
            os.close(self._fd)
