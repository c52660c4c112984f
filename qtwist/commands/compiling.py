"""What qmail-newu and qmail-newmrh have in common: they compile a text in the home directory to a cdb."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence

from qtwist.commands.base import say
from qtwist.files.cdb import CDBError, write_cdb

Records = Iterable[tuple[bytes, bytes]]


class Fatal(Exception):
    """Why nothing was compiled, for whoever runs the command."""


def run(
    program: str, usage: str, argv: Sequence[str] | None, work: Callable[[str], None], default_home: str = "/var/qmail"
) -> int:
    """The command line `program`: find the home directory, do the work there, and say in a line what went wrong.

    `usage` is the help text. Returns the exit code: 0, 100 for wrong usage, 111 when `work` raises Fatal.
    """
    home = os.environ.get("QTWISTHOME") or default_home
    arguments = list(sys.argv[1:] if argv is None else argv)
    while arguments:
        argument = arguments.pop(0)
        if argument in ("--help", "-h"):
            sys.stdout.write(usage)
            return 0
        if argument == "--home" and arguments:
            home = arguments.pop(0)
        elif argument.startswith("--home="):
            home = argument.removeprefix("--home=")
        else:
            problem = (
                "option requires an argument -- home" if argument == "--home" else f"illegal argument {argument!r}"
            )
            say(f"{program}: ", problem)
            say("usage: ", f"{program} [--home DIR]")
            return 100
    # The files are for everybody to read; other work of this process keeps its own mask.
    umask = os.umask(0o033)
    try:
        if not os.path.isdir(home):
            raise Fatal(f"unable to enter {home}: it is no directory")
        work(home)
    except Fatal as error:
        say(f"{program}: ", f"fatal: {error}")
        return 111
    finally:
        os.umask(umask)
    return 0


def read(home: str, name: str) -> bytes:
    """The text of the file `name` below the home directory; Fatal if it cannot be read."""
    try:
        with open(os.path.join(home, name), "rb") as file:
            return file.read()
    except OSError as error:
        raise Fatal(f"unable to read {name}: {error.strerror}") from error


def write(home: str, name: str, temporary: str, records: Records) -> None:
    """Write the database `name` by way of `temporary`, both below the home directory; Fatal if it cannot be written."""
    try:
        write_cdb(os.path.join(home, name), records, os.path.join(home, temporary))
    except OSError as error:
        if error.filename2 is not None:
            raise Fatal(f"unable to move {temporary} to {name}: {error.strerror}") from error
        raise Fatal(f"unable to write {temporary}: {error.strerror}") from error
    except CDBError as error:
        raise Fatal(f"unable to write {temporary}: {error}") from error
