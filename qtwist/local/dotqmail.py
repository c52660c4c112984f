"""The .qmail language: which files control an address, and what their lines mean (spec/qmail.md §13.4-13.5).

Pure: no file is touched here; :mod:`qtwist.local.deliver` opens the files that :func:`candidates` names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

#: The most octets that a .qmail file may have; the original has no bound (§26.1).
MAXIMUM_SIZE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that may control the address: its name below the home directory, and the value of $DEFAULT if it does
    (None leaves the variable unset)."""

    name: bytes
    default: bytes | None


@dataclass(frozen=True, slots=True)
class Mbox:
    """Append to the mbox file `path`, taken from the home directory."""

    path: bytes


@dataclass(frozen=True, slots=True)
class Maildir:
    """Store in the maildir `path` (it ends in a slash), taken from the home directory."""

    path: bytes


@dataclass(frozen=True, slots=True)
class Program:
    """Run `command` with /bin/sh."""

    command: bytes


@dataclass(frozen=True, slots=True)
class Forward:
    """Send on to `address`."""

    address: bytes


@dataclass(frozen=True, slots=True)
class ForwardOnly:
    """The directive ``+list``: no files and no programs from here on."""


@dataclass(frozen=True, slots=True)
class BlankStart:
    """A blank first line, which is an error: an editor may have been at work."""


Instruction = Mbox | Maildir | Program | Forward | ForwardOnly | BlankStart


def safe_extension(ext: bytes) -> bytes:
    """`ext` as file names carry it: lower case, dots as colons, so that ``..`` cannot occur (§13.4)."""
    return ext.lower().replace(b".", b":")


def candidates(dash: bytes, ext: bytes) -> Iterator[Candidate]:
    """The files that may control ``dash + ext``, the most specific one first (§13.4)."""
    safe = safe_extension(ext)
    prefix = b".qmail" + dash
    # An extension that itself ends in "default" names a default file, so it sets $DEFAULT too.
    ends = safe.endswith(b"default")
    yield Candidate(prefix + safe, ext[len(ext) - len(b"default") :] if ends else None)
    for end in range(len(safe), -1, -1):
        if end == 0 or safe[end - 1 : end] == b"-":
            yield Candidate(prefix + safe[:end] + b"default", ext[end:])


def instructions(text: bytes) -> Iterator[Instruction]:
    """The instructions of a .qmail file in order; comments, blank lines and unknown directives are left out (§13.5).

    A NUL ends its line, as it would end any name or command that the system is given.
    """
    for number, raw in enumerate(text.split(b"\n")):
        line = raw.rstrip(b" \t").partition(b"\0")[0]
        first = line[:1]
        if not first:
            if number == 0:
                yield BlankStart()
        elif first in b"./":
            yield Maildir(line) if line.endswith(b"/") else Mbox(line)
        elif first == b"|":
            yield Program(line[1:])
        elif first == b"+":
            if line == b"+list":
                yield ForwardOnly()
        elif first != b"#":
            yield Forward(line[1:] if first == b"&" else line)
