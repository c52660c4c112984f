"""`qtwist install-links DIR`: links to the installed commands where people and programs look for them."""

from __future__ import annotations

import contextlib
import os
import sys

from qtwist.commands.base import PERMANENT, TEMPORARY, answer_help, die, say
from qtwist.commands.streams import put, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

USAGE = """\
NAME
    qtwist install-links - make links to the commands in a directory

SYNOPSIS
    qtwist install-links [--force] [--null-client] DIR [COMMAND ...]

DESCRIPTION
    Makes a symbolic link in DIR, such as /var/qmail/bin, to each command of
    this installation, or to those that are named:

        qtwist install-links /var/qmail/bin
        qtwist install-links /usr/sbin sendmail

    DIR is made if it is not there. Links that are right already stay. Anything
    else of the same name stays, too, and is told.

OPTIONS
    --force        put links in the place of other files; a file that is no link
                   is kept as COMMAND.before-qtwist
    --null-client  qmail-queue is a link to qmail-qmqpc: all that is sent here
                   goes to the servers of control/qmqpservers

EXIT CODES
    0    all links are there
    100  wrong use, or something else is in the place of a link
    111  a link cannot be made
"""

_PROG = "qtwist install-links"
_KEPT = ".before-qtwist"


class InTheWay(Exception):
    """Something else has the name of a link."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    answer_help(arguments, USAGE)
    force, null_client = ("--force" in arguments), ("--null-client" in arguments)
    arguments = [argument for argument in arguments if argument not in ("--force", "--null-client")]
    if not arguments or arguments[0].startswith("-"):
        die(_PROG, PERMANENT, "usage: qtwist install-links [ --force ] [ --null-client ] dir [ command ... ]")
    directory, *wanted = arguments
    present = dict(installed())
    if not present:
        die(_PROG, PERMANENT, "fatal: the commands of this installation are not to be found; install the package first")
    for name in wanted:
        if name not in present:
            die(_PROG, PERMANENT, f"fatal: there is no command {name}; there are {', '.join(sorted(present))}")
    if null_client:
        present["qmail-queue"] = present["qmail-qmqpc"]
    code = 0
    try:
        os.makedirs(directory, exist_ok=True)
        for name in wanted or sorted(present):
            try:
                done = link(present[name], os.path.join(directory, name), force)
                put(_PROG, b"%b %b\n" % (done, shown(os.path.join(directory, name))))
            except InTheWay:
                say(f"{_PROG}: ", f"{os.path.join(directory, name)} is something else; --force replaces it")
                code = PERMANENT
    except OSError as error:
        die(_PROG, TEMPORARY, f"fatal: {error.filename}: {error.strerror}")
    return code


def installed() -> Iterator[tuple[str, str]]:
    """(name, path) of each command, as the package's own record has them."""
    from importlib.metadata import PackageNotFoundError, distribution
    from sysconfig import get_path

    try:
        points = distribution("qtwist").entry_points
    except PackageNotFoundError:
        return
    folders = [os.path.dirname(os.path.abspath(sys.argv[0])), get_path("scripts")]
    for point in points:
        if point.group == "console_scripts":
            for folder in folders:
                path = os.path.join(folder, point.name)
                if os.access(path, os.X_OK):
                    yield point.name, path
                    break


def link(target: str, path: str, force: bool) -> bytes:
    """Make the link `path` to `target`; ``kept``, ``made`` or ``replaced``. InTheWay, OSError."""
    if not os.path.lexists(path):
        os.symlink(target, path)
        return b"made"
    if os.path.realpath(path) == os.path.realpath(target):
        return b"kept"
    if not force:
        raise InTheWay
    if not os.path.islink(path):
        os.rename(path, path + _KEPT)
    temporary = f"{path}.{os.getpid()}"
    os.symlink(target, temporary)
    try:
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return b"replaced"
