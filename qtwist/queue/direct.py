"""Writing the queue without the daemon: qmail-queue's own steps, synced (spec/qmail.md §6.2).

For a message that is handed in while the daemon is down, by somebody who may write the queue's directories. Commands
import this only then: it brings Twisted along.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence

from qtwist.files.disk import RealDisk
from qtwist.interfaces import QueueError
from qtwist.mail.asked import Asked
from qtwist.mail.envelope import Envelope
from qtwist.queue.accept import NO_QUEUE, Acceptor, Submission
from qtwist.queue.client import QueueRefused
from qtwist.queue.layout import LayoutError, open_layout
from qtwist.queue.peers import origin_of, owner
from qtwist.queue.trigger import pull_trigger


def submit_to_disk(
    home: str,
    message: Iterable[bytes],
    envelope: Callable[[], tuple[bytes, Sequence[bytes]]],
    parameters: tuple[bytes, bytes] = (b"", b""),
) -> int:
    """Queue a message; its number. Otherwise as :func:`qtwist.queue.client.submit_later`."""
    uid = os.getuid()
    _become_owner(f"{home}/queue")
    umask = os.umask(0o022)
    try:
        disk = RealDisk()
        layout = open_layout(f"{home}/queue", disk)
        acceptor = Acceptor(disk, layout)
        origin = origin_of(uid, owner(f"{home}/queue"), owner(f"{home}/alias"))
        started = time.time()
        mess = acceptor.create(origin, started)
        try:
            for block in message:
                acceptor.append(mess, block)
            sender, recipients = envelope()
        except BaseException:
            acceptor.discard(mess)
            raise
        mail, one = parameters
        asked = Asked(mail, (one,) * len(recipients)) if mail or one else None
        made = Envelope(sender, tuple(recipients), asked)
        [result] = acceptor.commit([Submission(origin, started, made, [], mess)])
        if isinstance(result, QueueError):
            raise result
        pull_trigger(layout.lock("trigger"))
        return result.qp
    except QueueError as error:
        raise QueueRefused(error.code) from error
    except LayoutError as error:
        raise QueueRefused(NO_QUEUE, f"{error} (#4.3.0)".encode("utf-8", "surrogateescape")) from error
    finally:
        os.umask(umask)


def _become_owner(queue: str) -> None:
    """As root: write as the queue's owner, whose files they must be. This process has nothing else to do any more."""
    if os.geteuid() == 0:
        status = os.stat(queue)
        os.setgroups([])
        os.setegid(status.st_gid)
        os.seteuid(status.st_uid)
