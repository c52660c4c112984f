"""Changing a small text file: one at a time, all or nothing, on disk when it is done. Standard library only."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock on the file `path`, which is another one, ``path.lock``: the file itself is replaced. OSError."""
    fd = _open_lock(path + ".lock")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _open_lock(path: str) -> int:
    flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags)
    if os.geteuid() == 0:
        # Made by root just now; whoever owns the directory has to be able to use it.
        status = os.stat(os.path.dirname(path) or ".")
        os.fchown(fd, status.st_uid, status.st_gid)
    return fd


def replace(path: str, text: bytes, mode: int) -> None:
    """Make `text` the contents of `path`; a crash leaves the old ones or the new ones. Needs the lock. OSError.

    A new file gets `mode`; of one that is there, owner, group and permissions stay.
    """
    temporary = path + ".tmp"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)  # of somebody who crashed: we have the lock
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb") as file:
            try:
                old = os.stat(path)
            except FileNotFoundError:
                os.fchmod(fd, mode)
            else:
                own = os.fstat(fd)
                if (old.st_uid, old.st_gid) != (own.st_uid, own.st_gid):
                    os.fchown(fd, old.st_uid, old.st_gid)
                os.fchmod(fd, old.st_mode & 0o777)
            file.write(text)
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(os.path.dirname(path) or ".")


def sync_directory(path: str) -> None:
    """Make the entries of a directory durable. OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
