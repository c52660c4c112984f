"""maildir2mbox: move the messages of a maildir into an mbox (spec/qmail.md §21, §26.5).

Each message is appended under the mbox's lock and synced before the original goes. qmail rewrites the whole mbox and
renames the new one into its place: whoever waits for the lock of the old file then writes into a file that is gone.
"""

from __future__ import annotations

import os
import sys
import time

from qtwist.commands.base import TEMPORARY, answer_help, die, say
from qtwist.files.disk import RealDisk
from qtwist.files.maildir_reading import Entry, clean, scan
from qtwist.files.mbox import MboxError, deliver_to_mbox
from qtwist.mail.dates import ctime_date

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = """\
NAME
    maildir2mbox - move the messages of a maildir into an mbox

SYNOPSIS
    maildir2mbox

DESCRIPTION
    Appends the messages in new/ and cur/ of the maildir to the mbox, the oldest
    first, each with a From line, and removes each from the maildir once it is
    on disk in the mbox. Lines that look like a From line get a > in front, and
    a last line without its end is ended. Messages of the current second are
    left for the next time. When something fails, the messages that are left
    stay in the maildir; a crash may leave a message in both places, never in
    none.

ENVIRONMENT
    MAILDIR  the maildir
    MAIL     the mbox; made if it is not there
    MAILTMP  a name for a new mbox beside it, for qmail's program. It has to be
             set, but no such file is made: what is delivered meanwhile would
             miss a new mbox

EXIT CODES
    0    all messages are moved, or there are none
    111  not all are; a variable is missing, or a file cannot be used
"""

_PROG = "maildir2mbox"
_RETURN_PATH = b"Return-Path: <"
_FIRST_LINE = 4096
_DASHES = bytes.maketrans(b" \t", b"--")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    answer_help(sys.argv[1:] if argv is None else argv, USAGE)
    os.umask(0o077)
    mbox, maildir, _ = (_variable(name) for name in ("MAIL", "MAILDIR", "MAILTMP"))
    now = time.time()
    try:
        clean(maildir, now)
        entries = scan(maildir, now)
    except OSError as error:
        die(_PROG, TEMPORARY, f"fatal: unable to scan $MAILDIR: {error.strerror}")
    for entry in entries:
        _move(maildir, entry, mbox)
    return 0


def _variable(name: str) -> bytes:
    value = os.environb.get(name.encode())
    if value is None:
        die(_PROG, TEMPORARY, f"fatal: {name} not set")
    return value


def _move(maildir: bytes, entry: Entry, mbox: bytes) -> None:
    path = os.path.join(maildir, entry.path)
    disk = RealDisk()
    try:
        fd = disk.open_read(path)
    except FileNotFoundError:
        return  # another reader has moved or removed it
    except OSError as error:
        die(_PROG, TEMPORARY, b"fatal: unable to read $MAILDIR/" + entry.path + f": {error.strerror}".encode())
    try:
        first = from_line(disk.pread(fd, _FIRST_LINE, 0), entry.mtime_ns // 1_000_000_000)
        deliver_to_mbox(disk, mbox, fd, first)
    except MboxError as error:
        die(_PROG, TEMPORARY, b"fatal: " + error.text)
    except OSError as error:
        die(_PROG, TEMPORARY, b"fatal: unable to read $MAILDIR/" + entry.path + f": {error.strerror}".encode())
    finally:
        disk.close(fd)
    try:
        disk.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        # Going on would append it again and again.
        say(f"{_PROG}: ", b"warning: $MAILDIR/" + entry.path + b" is in the mbox as well, and cannot be removed")
        die(_PROG, TEMPORARY, f"fatal: unable to remove it: {error.strerror}")


def from_line(start: bytes, seconds: int) -> bytes:
    """The From line of a message that begins with `start` and came then: by its Return-Path, if that comes first."""
    line, end, _ = start.partition(b"\n")
    sender = b"XXX"
    if end and line.startswith(_RETURN_PATH):
        sender = line[len(_RETURN_PATH) : -1].translate(_DASHES) or b"MAILER-DAEMON"
    return b"From %b %b\n" % (sender, ctime_date(seconds))
