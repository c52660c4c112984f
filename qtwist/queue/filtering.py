"""Messages of servers that go to a program in place of the queue: what ``$QMAILQUEUE`` is for (spec/qmail.md §7).

The program gets the message on descriptor 0 and the envelope on 1, as qmail-queue does; what it writes to descriptor 6
counts when it exits with code 82. A filter hands on to ``qmail-queue``, which goes through the door.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.defer import TimeoutError as TooLate
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from qtwist.interfaces import Accepted, IIncomingMessage, QueueError
from qtwist.mail.envelope import Envelope

PATIENCE = 900
"""Seconds that a program has for a message from the end of it on, and to read on in the middle of it."""

GRACE = 10
"""Seconds that it has to end when there is no message after all."""

NO_PROGRAM = 120
TIMED_OUT = 52
READ_TROUBLE = 54
INTERNAL_BUG = 81

_WORDS = 6
_WORDS_LIMIT = 255
_UNPRINTABLE = re.compile(rb"[^ -~]")


class _Program(ProcessProtocol):
    """One run. `ended` fires with the exit code, 81 when it was killed; `words` are what it wrote for code 82."""

    transport: Any

    def __init__(self) -> None:
        self.ended: Deferred[int] = Deferred()
        self.words = b""
        self.reads = True  # as far as we know

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self.words += data[: _WORDS_LIMIT - len(self.words)]

    def childConnectionLost(self, childFD: int) -> None:
        if childFD == 0:
            self.reads = False

    def processEnded(self, reason: Failure) -> None:
        code = 0 if reason.check(ProcessDone) else getattr(reason.value, "exitCode", None)
        self.ended.callback(INTERNAL_BUG if code is None else code)

    def kill(self) -> None:
        with contextlib.suppress(ProcessExitedAlready):
            self.transport.signalProcess("KILL")


@implementer(IIncomingMessage, IPushProducer)
class ProgramMessage:
    """A message on its way into `program`, which runs in the directory `home` with the variables `environ`.

    OSError when it cannot be started.
    """

    def __init__(self, reactor: Any, home: str, program: bytes, environ: Mapping[bytes, bytes]) -> None:
        self._reactor = reactor
        self._program = program
        self._ready: Deferred[None] | None = None
        self._watchdog: Any = None  # runs while somebody waits for the program to read
        self._over = False
        if not os.access(os.path.join(os.fsencode(home), program), os.X_OK):
            # What Twisted's child would end with says nothing.
            raise QueueError(NO_PROGRAM, f"{os.fsdecode(program)} is no program that can be run")
        self._run = _Program()
        reactor.spawnProcess(
            self._run, program, [program], dict(environ), home, childFDs={0: "w", 1: "w", 2: 2, _WORDS: "r"}
        )
        self._pid: int = self._run.transport.pid
        self._run.transport.pipes[0].registerProducer(self, True)

    def write(self, data: bytes) -> Deferred[None] | None:
        """As IIncomingMessage says; what a program does not read any more is thrown away, as its exit code counts."""
        if self._run.reads and not self._over:
            self._run.transport.writeToChild(0, data)
        return self._ready

    def commit(self, envelope: Envelope) -> Deferred[Accepted]:
        """As IIncomingMessage says. `qp` is the program's process id, and so is the number, which nobody tells us."""
        read_all = self._run.reads
        self._end_message()
        addresses = [b"F%b\0" % envelope.sender, *(b"T%b\0" % recipient for recipient in envelope.recipients)]
        # Only with the last NUL is an envelope complete (§6.1).
        self._run.transport.writeToChild(1, b"".join(addresses) + (b"\0" if read_all else b""))
        self._run.transport.closeChildFD(1)
        return self._run.ended.addTimeout(PATIENCE, self._reactor).addCallbacks(self._ended, self._failed)

    def _ended(self, code: int) -> Accepted:
        if code == 0:
            return Accepted(self._pid, self._pid)
        words = _UNPRINTABLE.sub(b"?", self._run.words.rstrip())
        raise QueueError(code, f"{os.fsdecode(self._program)} ended with {code}", words)

    def _failed(self, failure: Failure) -> Any:
        failure.trap(TooLate)
        self._run.ended = Deferred()
        self._run.kill()
        return fail(QueueError(TIMED_OUT, f"{os.fsdecode(self._program)} took longer than {PATIENCE} seconds"))

    def abort(self) -> None:
        """As IIncomingMessage says: without an envelope, nobody queues anything. The program is killed when it goes on
        all the same."""
        if not self._over:
            self._end_message()
            self._run.transport.closeChildFD(1)
            if not self._run.ended.called:
                self._run.ended.addBoth(self._in_time, self._reactor.callLater(GRACE, self._run.kill))

    def _in_time(self, ended: Any, killing: Any) -> Any:
        if killing.active():
            killing.cancel()
        return ended

    def _end_message(self) -> None:
        self._over = True
        if self._run.reads:
            self._run.transport.pipes[0].unregisterProducer()
            self._run.transport.closeChildFD(0)
        self.resumeProducing()

    # IPushProducer: the program reads as fast as it likes.

    def pauseProducing(self) -> None:
        if self._ready is None:
            self._ready = Deferred()
            self._watchdog = self._reactor.callLater(PATIENCE, self._stuck)

    def resumeProducing(self) -> None:
        ready, self._ready = self._ready, None
        if ready is not None:
            if self._watchdog.active():
                self._watchdog.cancel()
            ready.callback(None)

    def _stuck(self) -> None:
        """It has stopped reading in the middle of the message, and not gone on."""
        self._run.kill()
        self.stopProducing()

    def stopProducing(self) -> None:
        self._run.reads = False
        self.resumeProducing()
