"""config-fast: set up the control files for a host name (spec/qmail.md §24)."""

from __future__ import annotations

import contextlib
import os
import sys

from qtwist.commands.base import PERMANENT, TEMPORARY, answer_help, die, home, write_all
from qtwist.commands.streams import put, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

USAGE = """\
NAME
    config-fast - set up the control files for a host name

SYNOPSIS
    config-fast NAME

DESCRIPTION
    Writes the host's full name to control/me, what is left without its first
    label to control/defaultdomain, its last two labels to control/plusdomain,
    and adds it to control/locals and control/rcpthosts. Says what it puts
    where. `qtwist init` makes a whole home.

ENVIRONMENT
    QTWISTHOME  the home of the mail system [/var/qmail]

EXIT CODES
    0    done
    100  wrong use, or NAME can be no host name
    111  a file cannot be written
"""

_PROG = "config-fast"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    answer_help(arguments, USAGE)
    if len(arguments) != 1:
        die(_PROG, PERMANENT, "usage: config-fast name")
    name = os.fsencode(arguments[0])
    if not name.translate(None, b" \t\n\r\0") or name.split() != [name] or b"\0" in name:
        die(_PROG, PERMANENT, f"fatal: {arguments[0]!r} is no host name")
    control = os.path.join(home(), "control")
    try:
        for line in configure(control, name):
            put(_PROG, line + b"\n")
    except OSError as error:
        die(_PROG, TEMPORARY, f"fatal: unable to write {error.filename or control}: {error.strerror}")
    return 0


def configure(control: str, name: bytes) -> Iterator[bytes]:
    """Write the files; what is done, in lines. OSError when one cannot be written."""
    yield b"This host's full name: " + shown(name)
    yield from write_names(control, name)
    for file in ("locals", "rcpthosts"):
        path = os.path.join(control, file)
        old = _read(path)
        if name in old.split(b"\n"):
            yield b"It is in control/%b already." % file.encode()
            continue
        yield b"Adding %b to control/%b." % (shown(name), file.encode())
        between = b"" if not old or old.endswith(b"\n") else b"\n"
        replace(path, old + between + name + b"\n")
    yield from reminder()


def write_names(control: str, name: bytes) -> Iterator[bytes]:
    """Write me, defaultdomain and plusdomain; what is done, in lines."""
    for file, value in (("me", name), ("defaultdomain", default_domain(name)), ("plusdomain", plus_domain(name))):
        yield b"Putting %b into control/%b." % (shown(value), file.encode())
        replace(os.path.join(control, file), value + b"\n")


def reminder() -> Iterator[bytes]:
    """What to remember afterwards."""
    yield b"From now on mail by SMTP is taken for the hosts in control/rcpthosts only."
    yield b"A host that is added to locals or virtualdomains belongs into rcpthosts, too."


def default_domain(name: bytes) -> bytes:
    """The name without its first label, if two dots are in it; else as it is."""
    return name.split(b".", 1)[1] if name.count(b".") > 1 else name


def plus_domain(name: bytes) -> bytes:
    """The last two labels, if two dots are in the name; else as it is."""
    return b".".join(name.split(b".")[-2:]) if name.count(b".") > 1 else name


def replace(path: str, contents: bytes) -> None:
    """Write a file that everybody may read, whole or not at all. OSError."""
    temporary = path + ".tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            os.fchmod(fd, 0o644)
            write_all(fd, contents)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""
