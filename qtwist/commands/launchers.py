"""Scripts that start a command faster than those that pip makes, for the commands that run once per message.

A script of pip's takes the interpreter through ``site``: each .pth file of site-packages, $PYTHONPATH, the user's own
packages. With ``-I -S`` none of it happens, and nothing in the caller's environment or working directory is imported.
What the package needs is named in the script instead, as it was when the script was made; when it is gone, pip's script
is run. At the end the interpreter is not taken apart (:func:`qtwist.commands.base.run_and_leave`).
"""

from __future__ import annotations

import os
import site
import sys
from typing import NamedTuple

import qtwist

#: The commands that run once per message, or nearly: for the others it does not matter.
PER_MESSAGE = {
    "bouncesaying",
    "condredirect",
    "datemail",
    "except",
    "forward",
    "mailsubj",
    "predate",
    "preline",
    "qbiff",
    "qmail-inject",
    "qmail-qmqpc",
    "qmail-queue",
    "qreceipt",
    "safecat",
    "sendmail",
}

#: The beginning of the second line of each.
MARK = b"# made by qtwist install-links: "

#: Linux takes 127 octets of a first line, and older systems no more.
_LONGEST = 127

_TEXT = """\
#!{python} -IS
{mark}{script}, without what it would load first
import sys

sys.path += {folders!r}
try:
    from {module} import {function}
    from qtwist.commands.base import run_and_leave
except ImportError:
    import os

    try:
        os.execv({script!r}, [{script!r}, *sys.argv[1:]])
    except OSError as error:
        why = f"{{error.strerror}}; run qtwist install-links again"
        sys.stderr.write(f"{name}: fatal: {script}: {{why}}\\n")
        sys.exit(111)
run_and_leave({function})
"""


class Command(NamedTuple):
    """A command of this installation: `script` is the path of what pip made, which calls `function` of `module`."""

    name: str
    script: str
    module: str
    function: str


def launcher(command: Command, python: str | None = None) -> bytes | None:
    """The text of a script that starts `command` with the interpreter `python` (default: the one that runs this).

    None where there is none: for a command that does not run once per message, and where the interpreter's path cannot
    stand in a script's first line, for its length or its spaces.
    """
    python = sys.executable if python is None else python
    if command.name not in PER_MESSAGE or len(os.fsencode(f"#!{python} -IS")) > _LONGEST or len(python.split()) != 1:
        return None
    text = _TEXT.format(
        python=python,
        mark=MARK.decode(),
        script=command.script,
        folders=folders(),
        module=command.module,
        function=command.function,
        name=command.name,
    )
    return os.fsencode(text)


def folders() -> list[str]:
    """Where the package is, and then what it needs: what the directories of ``site`` are for this interpreter.

    The user's own packages and $PYTHONPATH are not among them; nor is the directory of the script that runs.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(qtwist.__file__)))
    return list(dict.fromkeys([package, *filter(os.path.isdir, map(os.path.abspath, site.getsitepackages()))]))


def is_launcher(path: str) -> bool:
    """Whether the file `path` is one of ours; not a link to one. OSError."""
    if os.path.islink(path) or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        first, second = file.readline(300), file.readline(300)
    return first.startswith(b"#!") and second.startswith(MARK)
