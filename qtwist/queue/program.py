"""Handing a message to the program that ``$QMAILQUEUE`` names: qmail's filters keep working (spec/qmail.md §7).

The program runs in the home directory without arguments: the message is its descriptor 0, the envelope its descriptor
1, and what it writes to descriptor 6 counts when it exits with code 82.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal itself takes long to import
import os
import select

from qtwist.mail.queue_texts import report
from qtwist.queue.client import QueueRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

READ_TROUBLE = 54
NO_HOME = 61
INTERNAL_BUG = 81
NO_PROGRAM = 120

#: The octets of the program's own words that count (§7).
_WORDS_LIMIT = 255
_BLOCK = 65536


def submit_to_program(
    home: str,
    program: str,
    message: Iterable[bytes],
    envelope: Callable[[], tuple[bytes, Sequence[bytes]]],
    environ: Mapping[str, str],
) -> int:
    """Queue a message by way of `program`; its process id. Otherwise as :func:`qtwist.queue.client.submit_later`."""
    run = _Run(home, program, environ)
    try:
        for block in message:
            run.write(block)
        sender, recipients = envelope()
        run.end_message()
        run.write(b"F%b\0" % sender)
        for start in range(0, len(recipients), 1000):
            run.write(b"".join([b"T%b\0" % recipient for recipient in recipients[start : start + 1000]]))
        run.write(b"\0")
    except BaseException:
        # Without the last NUL, the program gives up (§6.1).
        run.end()
        raise
    complete = run.complete
    code, words = run.end()
    if code == 0:
        if complete:
            return run.pid
        code = READ_TROUBLE
    letter, text = report(code, words)
    raise QueueRefused(code, text, letter)


class _Run:
    """A queue program at work. Pipes are moved out of the way of 0, 1 and 6, which may be free here.

    It may say as much as it likes at any time without that anybody waits for the other for ever.
    """

    def __init__(self, home: str, program: str, environ: Mapping[str, str]) -> None:
        fds: list[int] = []
        try:
            for _ in range(3):
                fds += map(_away, os.pipe())
            message, self._message, envelope, self._envelope, self._words, words = fds
            pid = os.fork()
        except OSError as error:
            for fd in fds:
                os.close(fd)
            raise QueueRefused(NO_PROGRAM) from error
        if pid == 0:
            _become(home, program, environ, (message, 0), (envelope, 1), (words, 6))
        for fd in (message, envelope, words):
            os.close(fd)
        for fd in (self._message, self._envelope, self._words):
            os.set_blocking(fd, False)
        self.pid = pid
        self.complete = True  # whether all that was written was taken
        self._said = b""
        self._silent = False

    def write(self, data: bytes) -> None:
        """Write to the message, or after :meth:`end_message` to the envelope."""
        fd = self._message if self._message != -1 else self._envelope
        rest = memoryview(data)
        while rest and self.complete:
            try:
                rest = rest[os.write(fd, rest) :]
            except BlockingIOError:
                self._wait(fd)
            except OSError:
                self.complete = False

    def end_message(self) -> None:
        os.close(self._message)
        self._message = -1

    def end(self) -> tuple[int, bytes]:
        """The exit code of the program (81 when it was killed), and what it said."""
        for fd in (self._message, self._envelope):
            if fd != -1:
                os.close(fd)
        os.set_blocking(self._words, True)
        while not self._silent:
            self._listen()
        os.close(self._words)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return (code if code >= 0 else INTERNAL_BUG), self._said

    def _wait(self, fd: int) -> None:
        poller = select.poll()
        poller.register(fd, select.POLLOUT)
        if not self._silent:
            poller.register(self._words, select.POLLIN)
        if any(ready == self._words for ready, _ in poller.poll()):
            self._listen()

    def _listen(self) -> None:
        words = os.read(self._words, _BLOCK)
        self._silent = not words
        self._said += words[: _WORDS_LIMIT - len(self._said)]


def _away(fd: int) -> int:
    """The same with a number that nobody has plans for."""
    import fcntl

    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(fd)
    return moved


def _become(home: str, program: str, environ: Mapping[str, str], *moves: tuple[int, int]) -> None:
    """In the child: run the program, or exit as §7 says."""
    code = NO_PROGRAM
    try:
        for source, target in moves:
            os.dup2(source, target)
        # Python ignores these; programs expect them as they are by default.
        for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
            _signal.signal(number, _signal.SIG_DFL)
        code = NO_HOME
        os.chdir(home)
        code = NO_PROGRAM
        os.execve(program, [program], environ)
    except OSError:
        pass
    finally:
        os._exit(code)
