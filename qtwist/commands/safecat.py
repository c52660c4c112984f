"""safecat: write standard input to a file of its own in a directory, safely (spec/related.md §12.1)."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal itself takes long to import
import os
import sys
import time

from qtwist.commands.base import PERMANENT, TEMPORARY, answer_help, blocks, die, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = """\
NAME
    safecat - write standard input to a file of its own in a directory

SYNOPSIS
    safecat TEMPORARY DESTINATION < DATA

DESCRIPTION
    Writes standard input to a new file in the directory TEMPORARY, syncs it,
    and then moves it to the directory DESTINATION, so that it is there as a
    whole or not at all, whatever crashes. Both have to be on one file system.
    Prints the file's name. In a .qmail file,

        |safecat Maildir/tmp Maildir/new

    delivers to a maildir (without Return-Path and Delivered-To: put preline in
    front if they are wanted). Gives up after a day.

EXIT CODES
    0    stored
    100  wrong use
    111  not stored
"""

_PROG = "safecat"
_PATIENCE = 86400


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    answer_help(arguments, USAGE)
    if len(arguments) != 2:
        die(_PROG, PERMANENT, "usage: safecat tempdir destdir")
    temporary, destination = map(os.fsencode, arguments)
    _signal.signal(_signal.SIGALRM, _give_up)
    _signal.alarm(_PATIENCE)
    try:
        name = store(temporary, destination)
        # Stored is stored: that nobody reads the name is no reason to have it stored again.
        _print(name)
    except OSError as error:
        die(_PROG, TEMPORARY, f"fatal: unable to store: {error.strerror or error}")
    finally:
        _signal.alarm(0)
    return 0


def _give_up(number: int, frame: object) -> None:
    raise TimeoutError("a day has passed")


def _print(name: bytes) -> None:
    try:
        write_all(1, name + b"\n")
    except OSError:
        return


def store(temporary: bytes, destination: bytes) -> bytes:
    """Store standard input; the name of the file. OSError, and nothing left behind, if that fails."""
    host = os.fsencode(os.uname().nodename).replace(b"/", b"\\057").replace(b":", b"\\072")
    seconds, rest = divmod(time.time_ns(), 1_000_000_000)
    name = b"%d.M%dP%d.%b" % (seconds, rest // 1000, os.getpid(), host)
    path, target = os.path.join(temporary, name), os.path.join(destination, name)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        try:
            for block in blocks(0):
                write_all(fd, block)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.link(path, target)
        try:
            _sync_directory(destination)
        except OSError:
            os.unlink(target)  # told as not stored, it must not be there
            raise
    finally:
        os.unlink(path)
    return name


def _sync_directory(path: bytes) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
