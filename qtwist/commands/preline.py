"""preline: put the lines in front of a message that mailbox programs expect (spec/qmail.md §21)."""

from __future__ import annotations

import os
import sys

from qtwist.commands.base import PERMANENT, TEMPORARY, blocks, die, parse, write_all
from qtwist.commands.running import start, variable, wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

OPTIONS = "frdFRD"

USAGE = """\
NAME
    preline - put From_, Return-Path and Delivered-To in front of a message

SYNOPSIS
    |preline [-frdFRD] PROGRAM [ARGUMENT ...]      (a line of a .qmail file)

DESCRIPTION
    Runs the program with three lines and the message as standard input, as
    procmail, deliver and others expect it: the From_ line of mbox files, the
    Return-Path line and the Delivered-To line.

OPTIONS
    -f  leave out the From_ line             -F  put it in (as by default)
    -r  leave out the Return-Path line       -R  put it in (as by default)
    -d  leave out the Delivered-To line      -D  put it in (as by default)

ENVIRONMENT
    UFLINE      the From_ line            (set by qmail-local)
    RPLINE      the Return-Path line      (set by qmail-local)
    DTLINE      the Delivered-To line     (set by qmail-local)
    PATH        where the program is looked for

EXIT CODES
    That of the program, or
    100  wrong use, or the program cannot be run
    111  not now
"""

_PROG = "preline"


def main(argv: Sequence[str] | None = None) -> int:
    options, command = parse(_PROG, sys.argv[1:] if argv is None else argv, OPTIONS, USAGE)
    if not command:
        die(_PROG, PERMANENT, "usage: preline [ -frdFRD ] program [ argument ... ]")
    lines = {"f": variable(_PROG, "UFLINE"), "r": variable(_PROG, "RPLINE"), "d": variable(_PROG, "DTLINE")}
    wanted = dict.fromkeys(lines, True)
    for letter, _ in options:
        wanted[letter.lower()] = letter.isupper()
    try:
        reader, writer = os.pipe()
    except OSError as error:
        die(_PROG, TEMPORARY, f"fatal: unable to create a pipe: {error.strerror}")

    def prepare() -> None:
        os.dup2(reader, 0)

    pid = start(_PROG, command, prepare)
    os.close(reader)
    try:
        _feed(writer, b"".join(line for letter, line in lines.items() if wanted[letter]))
    except OSError as error:
        die(_PROG, TEMPORARY, f"fatal: unable to read the message: {error.strerror}")
    os.close(writer)
    return wait(_PROG, pid)


def _feed(writer: int, lines: bytes) -> None:
    """Write to the program what it reads of `lines` and of standard input."""
    try:
        write_all(writer, lines)
        for block in blocks(0):
            write_all(writer, block)
    except BrokenPipeError:
        return
