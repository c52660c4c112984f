"""mailsubj: send standard input with a subject (spec/qmail.md §21)."""

from __future__ import annotations

import os
import sys

from qtwist.commands import inject
from qtwist.commands.base import PERMANENT, answer_help, blocks, die

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

USAGE = """\
NAME
    mailsubj - send standard input with a subject

SYNOPSIS
    mailsubj SUBJECT RECIPIENT ...

DESCRIPTION
    Sends what it reads, a body without a header, through qmail-inject. The
    RECIPIENTs are written into To with blanks between them: plain addresses may
    stand side by side, but between others, such as Joe <joe@example.org>, there
    have to be commas. A line end in an argument counts as a blank.

ENVIRONMENT
    As for qmail-inject.

EXIT CODES
    100  wrong use; else as for qmail-inject
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code, or raises SystemExit with it."""
    return run(sys.argv[1:] if argv is None else argv, os.environ, blocks(0))


def run(argv: Sequence[str], environ: Mapping[str, str], body: Iterable[bytes]) -> int:
    """Do what the command line says, with `body` as the input."""
    answer_help(argv, USAGE)
    if len(argv) < 2:
        die("mailsubj", PERMANENT, "usage: mailsubj subject recipient ...")
    return inject.run(["-h"], environ, _message(argv[0], argv[1:], body))


def _message(subject: str, recipients: Sequence[str], body: Iterable[bytes]) -> Iterator[bytes]:
    for name, value in ((b"Subject", subject), (b"To", " ".join(recipients))):
        # An argument must not add header fields.
        yield b"%b: %b\n" % (name, os.fsencode(value).replace(b"\r", b" ").replace(b"\n", b" "))
    yield b"\n"
    yield from body


if __name__ == "__main__":
    sys.exit(main())
