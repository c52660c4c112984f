"""The queue as `qtwist queue` works on it: through the running daemon, or itself where none is running."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from qtwist.control import Control
from qtwist.control_reading import read
from qtwist.files.disk import RealDisk
from qtwist.mail.holds import MESSAGE, Hold, Holds
from qtwist.mail.rewriting import Rewriter
from qtwist.queue.layout import open_layout
from qtwist.queue.looking import ENDING, NEW, Looking, Message
from qtwist.queue.store import Store
from qtwist.steering.stopped import StoppedQueue, Trouble
from qtwist.wire.netstring import encode

#: Seconds to wait for the daemon's answer; it waits for running deliveries itself (steering.PATIENCE).
ANSWER_PATIENCE = 60


class QueueAtHand:
    """The queue of `home`: looking, and changing by way of the daemon if it runs."""

    def __init__(self, home: str, rewriter: Callable[[], Rewriter]) -> None:
        self.home = home
        self.disk = RealDisk()
        self.layout = open_layout(os.path.join(home, "queue"), self.disk)
        self.looking = Looking(self.disk, self.layout)
        self._rewriter = rewriter
        self._stopped = StoppedQueue(self.disk, self.layout, rewriter)

    def open_message(self, number: int) -> int:
        """A read-only descriptor of a message."""
        return Store(self.disk, self.layout).open_message(number)

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

    def retry(self, messages: Sequence[Message]) -> None:
        """Make messages due now."""
        if self.ask(op="retry", numbers=[message.number for message in messages]) is None:
            self._stopped.retry(messages)

    def settle(self, message: Message, verdict: str) -> None:
        """Fail or drop a message."""
        if self.ask(op=verdict, number=message.number, birth=message.birth) is None:
            self._stopped.settle(message.number, verdict)

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
            message = self._stopped.preprocess(number)
        if message is None or message.state == ENDING:
            raise Trouble(f"message {number}: no such message, or it is ending", 100)
        if message.state == NEW:
            raise Trouble(f"message {number}: is coming in just now, try again")
        return Hold.of_message(number, message.birth, reason)
