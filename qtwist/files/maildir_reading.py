"""What is in a maildir: the messages, and the remains of deliveries that failed (spec/qmail.md §14.3)."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

#: What nobody has read or written in tmp/ for so long (seconds) is the rest of a delivery that failed.
OSSIFIED = 129600


@dataclass(frozen=True, slots=True)
class Entry:
    """A message: its path below the maildir (``new/…`` or ``cur/…``), and when it came (mtime in nanoseconds)."""

    path: bytes
    mtime_ns: int


def clean(maildir: bytes, now: float) -> None:
    """Remove what is too old from tmp/. What resists stays: cleaning is a favour."""
    tmp = os.path.join(maildir, b"tmp")
    try:
        names = os.listdir(tmp)
    except OSError:
        return
    for name in names:
        path = os.path.join(tmp, name)
        try:
            if not name.startswith(b".") and now > os.lstat(path).st_atime + OSSIFIED:
                os.unlink(path)
        except OSError:
            continue


def scan(maildir: bytes, now: float, folders: tuple[bytes, ...] = (b"new", b"cur")) -> list[Entry]:
    """The messages, the oldest first. OSError when a folder cannot be read.

    Files of the current second are left for the next time, files with a dot in front and what is no file for ever.
    """
    found = []
    for folder in folders:
        for name in os.listdir(os.path.join(maildir, folder)):
            if name.startswith(b"."):
                continue
            path = os.path.join(folder, name)
            try:
                status = os.stat(os.path.join(maildir, path))
            except FileNotFoundError:
                continue  # another reader has moved or removed it
            if stat.S_ISREG(status.st_mode) and int(status.st_mtime) < int(now):
                found.append(Entry(path, status.st_mtime_ns))
    found.sort(key=lambda entry: (entry.mtime_ns, entry.path))
    return found
