"""The queue as `qtwist queue` works on it: through the running daemon, or itself where none is running."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred, execute
from twisted.python.failure import Failure

from qtwist.control import Control
from qtwist.control_reading import read
from qtwist.files.disk import RealDisk
from qtwist.interfaces import IQueue, RecipientRecord
from qtwist.mail.holds import MESSAGE, Hold, Holds
from qtwist.mail.rewriting import Rewriter
from qtwist.queue.journal import Journal
from qtwist.queue.layout import open_layout
from qtwist.queue.looking import ENDING, NEW, Looking, Message
from qtwist.queue.numbers import Numbers
from qtwist.queue.preprocess import preprocess
from qtwist.queue.recovery import journal_directory, recover
from qtwist.queue.store import Store
from qtwist.queue.sync import filesystem_roots
from qtwist.send.steering import DROP, FAIL, fail_recipients
from qtwist.wire.netstring import encode

T = TypeVar("T")

#: Seconds to wait for the daemon's answer; it waits for running deliveries itself (steering.PATIENCE).
ANSWER_PATIENCE = 60


class Trouble(Exception):
    """What cannot be done, in one line; `code` is the exit code."""

    def __init__(self, text: str, code: int = 111) -> None:
        super().__init__(text)
        self.code = code


class QueueAtHand:
    """The queue of `home`: looking, and changing by way of the daemon if it runs."""

    def __init__(self, home: str, rewriter: Callable[[], Rewriter]) -> None:
        self.home = home
        self.disk = RealDisk()
        self.layout = open_layout(os.path.join(home, "queue"), self.disk)
        self.looking = Looking(self.disk, self.layout)
        self._rewriter = rewriter
        self._store = Store(self.disk, self.layout)

    def open_message(self, number: int) -> int:
        """A read-only descriptor of a message."""
        return self._store.open_message(number)

    def original(self) -> Callable[[bytes], bytes]:
        """From a rewritten address to the one that its sender knew."""
        return self._rewriter().original

    # Asking the daemon.

    def ask(self, **request: Any) -> dict[str, Any] | None:
        """The daemon's answer; None when no daemon is running. Trouble when it refuses."""
        holder = -1
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                holder = os.open(os.path.join(self.home, "run"), os.O_RDONLY | os.O_DIRECTORY)
                connection.settimeout(ANSWER_PATIENCE)
                connection.connect(f"/proc/self/fd/{holder}/control")
            except (FileNotFoundError, ConnectionRefusedError):
                return None
            except PermissionError as error:
                raise Trouble("only root and the daemon's account may do that", 100) from error
            finally:
                if holder != -1:
                    os.close(holder)
            try:
                connection.sendall(encode(json.dumps(request).encode("ascii")))
                text = b"".join(iter(lambda: connection.recv(65536), b""))
                answer: dict[str, Any] = json.loads(text.partition(b":")[2][:-1])
            except (OSError, ValueError) as error:
                raise Trouble("the daemon broke off; look at the queue before you try again") from error
        if "error" in answer:
            raise Trouble(answer["error"])
        return answer

    def attempts(self, numbers: Sequence[int] | None) -> dict[int, list[dict[str, Any]]]:
        """What the daemon remembers of attempts, by message; nothing without a daemon, or the right to ask."""
        with contextlib.suppress(Trouble):
            answer = self.ask(op="attempts", numbers=numbers)
            if answer is not None:
                return {int(number): found for number, found in answer["attempts"].items()}
        return {}

    # Changing.

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """The queue, for ourselves, as its owner. Trouble when a queue manager runs, or we have no right to it."""
        before = os.geteuid(), os.getegid()
        if before[0] == 0:
            # Files that are made must belong to the queue's owner.
            status = os.stat(self.layout.directory)
            os.setegid(status.st_gid)
            os.seteuid(status.st_uid)
        try:
            lock = self._store.lock()
            try:
                self._recover()
                yield
            finally:
                os.close(lock)
        except BlockingIOError as error:
            raise Trouble("a queue manager that cannot be asked is running on this queue") from error
        finally:
            os.seteuid(before[0])
            os.setegid(before[1])

    def _recover(self) -> None:
        """What a daemon that crashed has left in its journal becomes files first."""
        directory = journal_directory(self.layout)
        if os.path.isdir(directory):
            journal = Journal(self.disk, directory)
            try:
                recover(self.disk, self.layout, journal, Numbers(self.disk, directory))
            finally:
                journal.close()

    def retry(self, messages: Sequence[Message]) -> None:
        """Make messages due now."""
        if self.ask(op="retry", numbers=[message.number for message in messages]) is None:
            with self._locked():
                now = time.time()
                for message in messages:
                    for channel in message.channels:
                        self._store.postpone(message.number, channel, now)

    def settle(self, message: Message, verdict: str) -> None:
        """Fail or drop a message."""
        if self.ask(op=verdict, number=message.number) is None:
            with self._locked():
                _now(self._settle(message.number, verdict))

    async def _settle(self, number: int, verdict: str) -> None:
        message = self._preprocessed(number)
        queue = cast(IQueue, _Still(self._store))
        for channel in message.channels:
            if verdict == FAIL:
                await fail_recipients(queue, number, channel, self._rewriter().original)
            await queue.finish_channel(number, channel)
        if verdict == DROP:
            # What a crash leaves half done is ended by the next daemon, which sends the notices of earlier failures.
            await queue.discard_bounce(number)
            await queue.finish(number)

    def _preprocessed(self, number: int) -> Message:
        """The message, looked at under the lock."""
        message = self.looking.message(number)
        if message is not None and message.state == NEW:
            roots = filesystem_roots(self.disk, self.layout)
            [result] = preprocess(self.disk, self.layout, roots, [number], self._rewriter().route)
            if isinstance(result, tuple):
                raise Trouble(result[1])
            message = self.looking.message(number)
        if message is None:
            raise Trouble(f"message {number}: no such message", 100)
        return message

    # What is held.

    def holds(self) -> Holds:
        return Holds.parse(Control(os.path.join(self.home, "control")).list("holds") or ())

    def change_holds(self, change: Callable[[Holds], Sequence[Hold]]) -> None:
        """Write control/holds anew, comments kept, messages that are gone left out; and tell the daemon."""
        directory = os.path.join(self.home, "control")
        path = os.path.join(directory, "holds")
        holder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(holder, fcntl.LOCK_EX)
            text = read(path) or b""
            lines = [line for line in text.split(b"\n") if line.startswith(b"#")]
            lines += [hold.line() for hold in change(self.holds()) if self._counts(hold)]
            self._replace(path, b"".join(line + b"\n" for line in lines), os.fstat(holder))
            os.fsync(holder)
        finally:
            os.close(holder)
        self.ask(op="holds")

    @staticmethod
    def _replace(path: str, text: bytes, directory: os.stat_result) -> None:
        fresh = f"{path}.new"
        with open(fresh, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            if os.geteuid() == 0:
                os.fchown(file.fileno(), directory.st_uid, directory.st_gid)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)

    def _counts(self, hold: Hold) -> bool:
        if hold.kind != MESSAGE:
            return True
        number, _, birth = hold.value.partition(b"/")
        message = self.looking.message(int(number))
        return message is not None and int(message.birth) == int(birth)

    def hold_of_message(self, number: int, reason: bytes) -> Hold:
        """A hold for a message. Trouble when there is none, or when its birth is not settled yet."""
        message = self.looking.message(number)
        if message is not None and message.state == NEW and self.ask(op="retry", numbers=[]) is None:
            with self._locked():
                message = self._preprocessed(number)
        if message is None or message.state == ENDING:
            raise Trouble(f"message {number}: no such message, or it is ending", 100)
        if message.state == NEW:
            raise Trouble(f"message {number}: is coming in just now, try again")
        return Hold.of_message(number, message.birth, reason)


class _Still:
    """The parts of IQueue that settling needs, done at once."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def recipients(
        self, number: int, channel: str, offset: int, limit: int
    ) -> Deferred[tuple[list[RecipientRecord], int]]:
        return execute(self._store.recipients, number, channel, offset, limit)

    def append_bounce(self, number: int, paragraph: bytes) -> Deferred[None]:
        return execute(self._store.append_bounce, number, paragraph)

    def mark(self, number: int, channel: str, offset: int) -> Deferred[None]:
        return execute(self._store.mark, number, channel, offset)

    def finish_channel(self, number: int, channel: str) -> Deferred[None]:
        return execute(self._store.remove, channel, number)

    def discard_bounce(self, number: int) -> Deferred[None]:
        return execute(self._store.remove, "bounce", number)

    def finish(self, number: int) -> Deferred[None]:
        return execute(self._store.finish, number)


def _now(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine that waits for nothing returns or raises."""
    results: list[Any] = []
    Deferred.fromCoroutine(work).addBoth(results.append)
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return cast(T, results[0])
