"""`qtwist install-links DIR`: the installed commands, where people and programs look for them."""

from __future__ import annotations

import contextlib
import os
import sys

from qtwist.commands.base import PERMANENT, TEMPORARY, answer_help, die, say
from qtwist.commands.launchers import Command, is_launcher, launcher
from qtwist.commands.streams import put, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

USAGE = """\
NAME
    qtwist install-links - put the commands into a directory

SYNOPSIS
    qtwist install-links [--force] [--null-client] DIR [COMMAND ...]

DESCRIPTION
    Makes a symbolic link in DIR, such as /var/qmail/bin, to each command of
    this installation, or to those that are named:

        qtwist install-links /var/qmail/bin
        qtwist install-links /usr/sbin sendmail

    In place of a link to one that runs once per message, such as sendmail or
    forward, a small script is written, which starts several milliseconds faster.
    It knows where the package is: run this again when that changes.

    DIR is made if it is not there. What is right already stays, and what this
    command has made is renewed. Anything else of the same name stays, too, and is
    told.

OPTIONS
    --force        replace other files and links; a file that is no link is kept
                   as COMMAND.before-qtwist
    --links        links for all; no scripts
    --null-client  qmail-queue is qmail-qmqpc: all that is sent here goes to the
                   servers of control/qmqpservers

EXIT CODES
    0    all commands are there
    100  wrong use, or something else is in the place of a command
    111  a file cannot be made
"""

_PROG = "qtwist install-links"
_KEPT = ".before-qtwist"


_OPTIONS = ("--force", "--links", "--null-client")


class InTheWay(Exception):
    """Something else has the name of a command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    answer_help(arguments, USAGE)
    given = {option for option in _OPTIONS if option in arguments}
    arguments = [argument for argument in arguments if argument not in given]
    if not arguments or arguments[0].startswith("-"):
        die(
            _PROG,
            PERMANENT,
            "usage: qtwist install-links [ --force ] [ --links ] [ --null-client ] dir [ command ... ]",
        )
    directory, *wanted = arguments
    present = {command.name: command for command in installed()}
    if not present:
        die(_PROG, PERMANENT, "fatal: the commands of this installation are not to be found; install the package first")
    for name in wanted:
        if name not in present:
            die(_PROG, PERMANENT, f"fatal: there is no command {name}; there are {', '.join(sorted(present))}")
    if "--null-client" in given:
        present["qmail-queue"] = present["qmail-qmqpc"]
    code = 0
    try:
        os.makedirs(directory, exist_ok=True)
        for name in wanted or sorted(present):
            place = Place(os.path.join(directory, name), present[name], "--links" in given)
            try:
                put(_PROG, b"%b %b\n" % (place.fill("--force" in given), shown(place.path)))
            except InTheWay:
                say(f"{_PROG}: ", f"{place.path} is something else; --force replaces it")
                code = PERMANENT
    except OSError as error:
        die(_PROG, TEMPORARY, f"fatal: {error.filename}: {error.strerror}")
    return code


def installed() -> Iterator[Command]:
    """Each command, as the package's own record has them."""
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
                    yield Command(point.name, path, point.module, point.attr)
                    break


class Place:
    """`path`, where `command` is wanted: a launcher where it has one (unless `links`), else a link to pip's script."""

    def __init__(self, path: str, command: Command, links: bool = False) -> None:
        self.path = path
        self._script = command.script
        self._text = None if links else launcher(command)

    def is_filled(self) -> bool:
        """What is there is what belongs there. OSError."""
        if os.path.realpath(self.path) == os.path.realpath(self._script):
            # A link, or the script itself: it is never replaced by what runs it.
            return self._text is None or not os.path.islink(self.path)
        if self._text is None or not is_launcher(self.path):
            return False
        with open(self.path, "rb") as file:
            return file.read() == self._text and os.fstat(file.fileno()).st_mode & 0o7777 == 0o755

    def is_ours(self) -> bool:
        """Nothing is there, or what this command has made for this script, perhaps in an older version. OSError."""
        if not os.path.lexists(self.path):
            return True
        return os.path.realpath(self.path) == os.path.realpath(self._script) or (
            is_launcher(self.path) and self._names_script()
        )

    def _names_script(self) -> bool:
        with open(self.path, "rb") as file:
            return os.fsencode(self._script) in file.read()

    def fill(self, force: bool) -> bytes:
        """Put it there; ``kept``, ``made`` or ``replaced``. InTheWay, OSError."""
        if self.is_filled():
            return b"kept"
        there = os.path.lexists(self.path)
        if not self.is_ours():
            if not force:
                raise InTheWay
            if not os.path.islink(self.path) and not is_launcher(self.path):
                os.rename(self.path, self.path + _KEPT)
        temporary = f"{self.path}.{os.getpid()}"
        try:
            if self._text is None:
                os.symlink(self._script, temporary)
            else:
                with open(temporary, "xb") as file:
                    file.write(self._text)
                    os.fchmod(file.fileno(), 0o755)
            os.rename(temporary, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        return b"replaced" if there else b"made"
