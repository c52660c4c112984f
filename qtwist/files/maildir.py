"""Delivery to a maildir: a file of its own for every message, complete before it shows (spec/qmail.md §14.2)."""

from __future__ import annotations

import errno
import itertools
import os

from qtwist.files.copying import message_blocks
from qtwist.files.disk import Disk
from qtwist.files.syncing import Sync, SyncDirectory, Syncing, sync_alone

#: How many names are tried when the first one is taken already.
_TRIES = 3

_NO_MAILDIR_ERRNOS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP})

# Counts the deliveries of this process, so that no two names are alike within a microsecond.
_deliveries = itertools.count(1)


class MaildirError(Exception):
    """Nothing was delivered; always temporary. `text` (no LF) is for the report."""

    def __init__(self, text: bytes) -> None:
        super().__init__(text)
        self.text = text


def unique_name(now: float, hostname: bytes) -> bytes:
    """A file name that no other delivery to any maildir gets: time, delivery id, host (the maildir definition).

    `now` is in seconds since the epoch. In the host, ``/`` and ``:`` are written as octal escapes.
    """
    seconds, fraction = divmod(now, 1)
    host = hostname.replace(b"/", b"\\057").replace(b":", b"\\072")
    return b"%d.M%dP%dQ%d.%s" % (seconds, fraction * 1_000_000, os.getpid(), next(_deliveries), host)


def deliver_to_maildir(disk: Disk, directory: bytes, fd: int, prefix: bytes, now: float, hostname: bytes) -> bytes:
    """Store `prefix` and the whole message `fd` as a new message of the maildir; the path of its file.

    On return the message and its entry in new/ survive a crash. MaildirError otherwise, with nothing left behind
    except after a crash, when tmp/ may keep a file that maildir readers remove after 36 hours. The offset of `fd`
    stays as it is.
    """
    return sync_alone(disk, store(disk, directory, fd, prefix, now, hostname))


def store(disk: Disk, directory: bytes, fd: int, prefix: bytes, now: float, hostname: bytes) -> Syncing[bytes]:
    """As :func:`deliver_to_maildir`, but what has to be synced is asked for, so that many can share a flush."""
    target, name = _create(disk, directory, now, hostname)
    tmp = os.path.join(directory, b"tmp", name)
    new = os.path.join(directory, b"new", name)
    try:
        try:
            _fill(disk, target, fd, prefix)
            yield Sync(target)
        finally:
            disk.close(target)
        disk.link(tmp, new)
        try:
            yield SyncDirectory(os.path.dirname(new))
        except OSError:
            # It may or may not be there after a crash. It is told as not delivered, so it has to go.
            _remove(disk, new)
            raise
    except OSError as error:
        raise MaildirError(b"Unable to deliver to " + directory + b": " + _reason(error) + b". (#4.3.0)") from error
    finally:
        _remove(disk, tmp)
    return new


def _create(disk: Disk, directory: bytes, now: float, hostname: bytes) -> tuple[int, bytes]:
    for attempt in range(1, _TRIES + 1):
        name = unique_name(now, hostname)
        try:
            return disk.create_exclusive(os.path.join(directory, b"tmp", name), 0o600), name
        except FileExistsError as error:
            if attempt == _TRIES:
                raise MaildirError(b"Unable to find a free name in " + directory + b". (#4.3.0)") from error
        except OSError as error:
            code = b"#4.2.1" if error.errno in _NO_MAILDIR_ERRNOS else b"#4.3.0"
            text = b"Unable to use the maildir " + directory + b": " + _reason(error) + b". (" + code + b")"
            raise MaildirError(text) from error
    raise AssertionError("unreachable")


def _fill(disk: Disk, target: int, fd: int, prefix: bytes) -> None:
    pending = prefix
    for block in message_blocks(disk, fd):
        disk.write_all(target, pending + block if pending else block)
        pending = b""
    if pending:
        disk.write_all(target, pending)


def _remove(disk: Disk, path: bytes) -> None:
    try:
        disk.unlink(path)
    except OSError:
        # Best effort: what stays behind in tmp/ is removed by maildir readers.
        return


def _reason(error: OSError) -> bytes:
    return (error.strerror or str(error)).encode("utf-8", "replace")
