"""What runs in the processes that lspawn starts for users: one delivery after the other, as that user.

Such a process has no descriptor but its packet socket (0 to 2 are /dev/null), and sees one message at a time, as a
descriptor. Standard library only: lspawn loads this as root before it forks.
"""

from __future__ import annotations

import errno
import os
import pwd
import socket
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from qtwist.auth.mailboxes import MailboxError, Mailboxes
from qtwist.control_reading import ControlError, first_line, read
from qtwist.files.assign import Assignment
from qtwist.files.copying import message_blocks
from qtwist.files.disk import RealDisk
from qtwist.local.deliver import Forwarded, Job, Parts, deliver, find_mailbox
from qtwist.local.errors import SYSTEM_TROUBLE, TEMPORARY, DeliveryError
from qtwist.local.users import Users, folder_account
from qtwist.mail.envelope import Report
from qtwist.pop3d import mailbox
from qtwist.pop3d.maildir import MaildirSession
from qtwist.queue.client import QueueRefused, submit
from qtwist.wire import spawning

#: A job with so many fields (user, home, dash, ext) is a question: is there a mailbox?
_LOOKUP_FIELDS = 4


def serve(sock: socket.socket, home: str, defaults: Mapping[str, Any]) -> None:
    """Carry out the deliveries, and answer the questions after mailboxes, that come through `sock`, until it is closed.

    `defaults` has what control/defaultdelivery and control/timeoutlocal stand for where they are missing, and
    ``path``, the $PATH of programs.
    """
    os.umask(0o077)
    sock.setblocking(True)
    disk = RealDisk()
    hostname = os.fsencode(socket.gethostname())
    environment = {b"PATH": os.fsencode(defaults["path"]), b"QTWISTHOME": os.fsencode(home)}
    while True:
        packet, fds, _, _ = socket.recv_fds(sock, spawning.LONGEST, 1, socket.MSG_CMSG_CLOEXEC)
        if not packet:
            return
        if packet.count(b"\0") == _LOOKUP_FIELDS - 1:
            sock.send(spawning.reply(0, find_mailbox(*spawning.read_fields(packet, _LOOKUP_FIELDS)), b""))
            continue
        try:
            user, folder, local, dash, ext, domain, sender = spawning.read_fields(packet, 7)
            default, timeout = _settings(home, defaults)
            job = Job(user, folder, local, dash, ext, domain, sender, default, fds[0])
            parts = Parts(disk, time.time, hostname, partial(_forward, home, disk), environment, timeout)
            outcome = deliver(job, parts)
            code, output = outcome.code, outcome.output
        except ControlError as error:
            code, output = TEMPORARY, b"%s (#4.3.0)\n" % str(error).encode("utf-8", "surrogateescape")
        except Exception as error:  # the next message may fare better; this one is tried again
            code, output = SYSTEM_TROUBLE, b"Internal error: %b (#4.3.0)\n" % repr(error).encode("utf-8", "replace")
        for fd in fds:
            os.close(fd)
        sock.send(spawning.reply(0, code, output))


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
    home: str, disk: RealDisk, fd: int, prefix: bytes, sender: bytes, recipients: Sequence[bytes]
) -> Forwarded:
    """Send the message on through the queue's door, which knows us by our user id."""

    def blocks() -> Any:
        yield prefix
        yield from message_blocks(disk, fd)

    try:
        return Forwarded(Report.success(), submit(home, blocks(), sender, recipients, {}))
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
