"""What runs in the processes that lspawn starts for users: deliveries, as that user.

Such a process has no descriptor but its packet socket (0 to 2 are /dev/null) and those of the messages. Standard
library only: lspawn loads this as root before it forks.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import pwd
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from qtwist.auth.mailboxes import MailboxError, Mailboxes
from qtwist.control_reading import ControlError, first_line, read
from qtwist.files.assign import Assignment
from qtwist.files.copying import message_blocks
from qtwist.files.disk import RealDisk
from qtwist.local.deliver import Forwarded, Job, LocalDelivery, Outcome, Parts, deliver_together, find_mailbox
from qtwist.local.errors import SYSTEM_TROUBLE, TEMPORARY, DeliveryError
from qtwist.local.packets import receive
from qtwist.local.users import Users, folder_account
from qtwist.mail.envelope import Report
from qtwist.pop3d import mailbox
from qtwist.pop3d.maildir import MaildirSession
from qtwist.queue.client import QueueRefused, submit
from qtwist.wire import spawning

#: The most deliveries that are carried out together.
BATCH = 50
#: Where one delivery follows another, flushes are at least so many seconds apart (the first one waits for nobody),
#: unless so many deliveries wait: what is flushed in between shares nothing, and holds up the flushes of the journal.
PACE = 0.012
ENOUGH = 20
#: So many seconds at most for those that one other may follow soon: when there are few slots left.
HURRY = 0.002
#: A job with so many fields (number, user, home, dash, ext) is a question: is there a mailbox?
_LOOKUP_FIELDS = 5


def serve(sock: socket.socket, home: str, defaults: Mapping[str, Any]) -> None:
    """Carry out the deliveries, and answer the questions after mailboxes, that come through `sock`, until it is closed
    and all is done.

    Those that wait for nothing but the disk share their flushes with others that came meanwhile; programs, locks and
    forwards are waited for in a thread, so that nothing else of the user's waits for them. `defaults` has what
    control/defaultdelivery and control/timeoutlocal stand for where they are missing, and ``path``, the $PATH of
    programs.
    """
    os.umask(0o077)
    sock.setblocking(True)
    server = _Server(sock, home, defaults)
    arrivals = select.poll()
    arrivals.register(sock, select.POLLIN)
    open_ = True
    while open_:
        patience = server.patience()
        if patience is None or arrivals.poll(patience * 1000):
            packets = _receive(sock)
            open_ = bool(packets)
            server.take(packets)
        if server.is_due() or not open_:
            server.deliver()
    server.wait()


def _receive(sock: socket.socket) -> list[tuple[bytes, list[int]]]:
    """All requests that are there, but one at least; none when there will be no more."""
    packets: list[tuple[bytes, list[int]]] = []
    flags = 0
    while len(packets) < BATCH:
        try:
            packet, fds = receive(sock, spawning.LONGEST, 1, flags)
        except BlockingIOError:
            break
        if not packet:
            break  # seen again, when nothing else is there
        packets.append((packet, fds))
        flags = socket.MSG_DONTWAIT
    return packets


class _Server:
    """The deliveries of one user."""

    def __init__(
        self,
        sock: socket.socket,
        home: str,
        defaults: Mapping[str, Any],
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._sock = sock
        self._home = home
        self._defaults = defaults
        self._disk = RealDisk()
        self._hostname = os.fsencode(socket.gethostname())
        self._environment = {b"PATH": os.fsencode(defaults["path"]), b"QTWISTHOME": os.fsencode(home)}
        self._threads: set[threading.Thread] = set()
        self._brief: list[tuple[int, int, LocalDelivery]] = []
        self._due = math.inf  # when they are to be carried out
        self._last = -PACE  # when deliveries were carried out

    def take(self, packets: Sequence[tuple[bytes, list[int]]]) -> None:
        """Answer or begin what is asked for; deliveries that only need the disk wait for :meth:`deliver`."""
        for packet, fds in packets:
            if packet.count(b"\0") == _LOOKUP_FIELDS - 1:
                self._look(packet)
                continue
            number, *values, siblings = spawning.read_fields(packet, 11)
            delivery, [fd] = int(number), fds
            try:
                made = self._prepare(values, fd)
            except ControlError as error:
                text = str(error).encode("utf-8", "surrogateescape")
                self._end(delivery, fd, Outcome(TEMPORARY, b"%s (#4.3.0)\n" % text))
            except Exception as error:  # the next message may fare better; this one is tried again
                self._end(delivery, fd, _bug(error))
            else:
                if made.brief:
                    self._brief.append((delivery, fd, made))
                    self._due = min(self._due, self._time_for(int(siblings)))
                else:
                    self._begin(delivery, fd, made)

    def patience(self) -> float | None:
        """Seconds until :meth:`is_due` will say so by itself; None when nothing waits for :meth:`deliver`."""
        return max(0.0, self._due - self._seconds()) if self._brief else None

    def _time_for(self, siblings: int) -> float:
        """When a delivery that has come now is to be carried out."""
        now = self._seconds()
        if siblings == 1:
            return now
        with_others = self._last + PACE
        return min(with_others, now + HURRY) if siblings == 2 else with_others

    def is_due(self) -> bool:
        """Whether what waits is to wait no longer."""
        return len(self._brief) >= ENOUGH or self.patience() == 0

    def deliver(self) -> None:
        """Carry out what waits for nothing but the disk."""
        brief, self._brief, self._due = self._brief, [], math.inf
        self._last = self._seconds()
        ended = deliver_together([made for _, _, made in brief], self._disk)
        for (delivery, fd, _), end in zip(brief, ended, strict=True):
            self._end(delivery, fd, _bug(end.error) if end.error is not None else end.result())

    def _look(self, packet: bytes) -> None:
        number, *owner = spawning.read_fields(packet, _LOOKUP_FIELDS)
        with contextlib.suppress(OSError):
            self._sock.send(spawning.reply(int(number), find_mailbox(*owner), b""))

    def wait(self) -> None:
        """Return when nothing runs any more."""
        for thread in list(self._threads):
            thread.join()

    def _prepare(self, values: Sequence[bytes], fd: int) -> LocalDelivery:
        user, folder, local, dash, ext, domain, sender, *asked = values
        default, timeout = _settings(self._home, self._defaults)
        job = Job(user, folder, local, dash, ext, domain, sender, default, fd, asked=(asked[0], asked[1]))
        forward = partial(_forward, self._home, self._disk)
        return LocalDelivery(job, Parts(self._disk, time.time, self._hostname, forward, self._environment, timeout))

    def _begin(self, delivery: int, fd: int, made: LocalDelivery) -> None:
        def run() -> None:
            try:
                outcome = made.carry_out()
            except Exception as error:  # as above
                outcome = _bug(error)
            self._end(delivery, fd, outcome)
            self._threads.discard(thread)

        thread = threading.Thread(target=run)
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:  # there can be no more threads
            self._threads.discard(thread)
            self._end(delivery, fd, _bug(error))

    def _end(self, delivery: int, fd: int, outcome: Outcome) -> None:
        os.close(fd)
        # lspawn reads what it asked for; when it is gone, nobody wants to know.
        with contextlib.suppress(OSError):
            self._sock.send(spawning.reply(delivery, outcome.code, outcome.output))


def _bug(error: Exception) -> Outcome:
    return Outcome(SYSTEM_TROUBLE, b"Internal error: %b (#4.3.0)\n" % repr(error).encode("utf-8", "replace"))


def _settings(home: str, defaults: Mapping[str, Any]) -> tuple[bytes, float]:
    """control/defaultdelivery and control/timeoutlocal, for every delivery anew."""
    delivery = read(f"{home}/control/defaultdelivery")
    timeout = read(f"{home}/control/timeoutlocal")
    digits = b"" if timeout is None else first_line(timeout)
    return (
        os.fsencode(defaults["defaultdelivery"]) if delivery is None else delivery,
        float(digits) if digits.isdigit() else defaults["timeoutlocal"],
    )


def _forward(
    home: str,
    disk: RealDisk,
    fd: int,
    prefix: bytes,
    sender: bytes,
    recipients: Sequence[bytes],
    asked: tuple[bytes, bytes],
) -> Forwarded:
    """Send the message on through the queue's door, which knows us by our user id."""

    def blocks() -> Any:
        yield prefix
        yield from message_blocks(disk, fd)

    try:
        return Forwarded(Report.success(), submit(home, blocks(), sender, recipients, {}, asked))
    except QueueRefused as error:
        return Forwarded(Report(error.letter, error.text))
    except OSError as error:
        return Forwarded(Report.deferral(b"unable to read it: %s. (#4.3.0)" % str(error.strerror).encode()))


def serve_mailbox(sock: socket.socket, home: str, owner: Assignment) -> None:
    """Read the mailbox of `owner` for the server at the other end of `sock`."""
    os.umask(0o077)

    def opened() -> MaildirSession:
        try:
            path = Mailboxes(home).mailbox(owner)
        except (MailboxError, ControlError) as error:
            raise OSError(errno.EIO, str(error)) from error
        if path is None:
            raise FileNotFoundError(errno.ENOENT, "no maildir is known for this account")
        return MaildirSession(path, time.time())

    mailbox.serve(sock, opened)


def serve_lookups(sock: socket.socket, home: bytes) -> None:
    """Say who owns local parts that users/cdb does not know, as qmail-getpw does (spec/qmail.md §12.3).

    The answer has eight values: code, user, uid, gid, home, dash, ext, and a text when the code is not 0.
    """
    sock.setblocking(True)
    alias = partial(folder_account, home + b"/alias")
    users = Users(home + b"/users/cdb", alias)
    pwd.getpwuid(os.getuid())  # loads what the C library needs
    while local := sock.recv(spawning.LONGEST):
        try:
            owner = users.unassigned(local)
            numbers = (b"%d" % owner.uid, b"%d" % owner.gid)
            answer = spawning.fields(b"0", owner.user, *numbers, owner.home, owner.dash, owner.ext, b"")
        except DeliveryError as error:
            text = error.text + b"\n" if error.text else b""
            answer = spawning.fields(b"%d" % error.code, b"", b"0", b"0", b"", b"", b"", text)
        except ValueError:
            answer = spawning.fields(b"%d" % SYSTEM_TROUBLE, b"", b"0", b"0", b"", b"", b"", b"")
        sock.send(answer)
