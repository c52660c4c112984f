"""qmail-showctl: say what the control files mean (spec/qmail.md §22)."""

from __future__ import annotations

import contextlib
import os
import pwd
import sys

from qtwist.commands.base import TEMPORARY, answer_help, home
from qtwist.commands.streams import emit, shown
from qtwist.control import CONTROL_FILES, Control, ControlError, ControlFile
from qtwist.control_reading import read, split_lines
from qtwist.control_table import CDB_FILE, COLON_LIST, DIRECTORIES, INTEGER, LINE, LIST, PEM_FILE, TEXT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

USAGE = """\
NAME
    qmail-showctl - say what the control files mean

SYNOPSIS
    qmail-showctl

DESCRIPTION
    Prints where the home is and how the mail system is set up, then each
    control file with the value or the lines that are in force. "(Default.)"
    says that there is no such file. Names in control/ that nothing reads come
    last.

ENVIRONMENT
    QTWISTHOME  the home of the mail system [/var/qmail]

EXIT CODES
    0    printed; a file that cannot be read is told in its place
    111  control/ cannot be read
"""

_PROG = "qmail-showctl"

# Scripts look for these files in this order (§22); those that qmail does not know follow.
_ORDER = """
    badmailfrom bouncefrom bouncehost concurrencylocal concurrencyremote databytes defaultdomain defaulthost
    doublebouncehost doublebounceto envnoathost helohost idhost localiphost locals me percenthack plusdomain qmqpservers
    queuelifetime rcpthosts morercpthosts morercpthosts.cdb smtpgreeting smtproutes timeoutconnect timeoutremote
    timeoutsmtpd virtualdomains
"""

# What a list that is not there means, where that is not simply "none".
_WITHOUT = {
    "dnsservers": "those of /etc/resolv.conf",
    "locals": "nothing, and the daemon will not start",
    "rcpthosts": "those that are delivered here",
}

_PATERNALISM = 0o002
_DEFAULT_SPLIT = 23
_LIMIT = 120  # of local deliveries, as conf-spawn has it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    answer_help(sys.argv[1:] if argv is None else argv, USAGE)
    emit(_PROG, setup(home()))
    control = Control(os.path.join(home(), "control"))
    try:
        present = os.listdir(control.directory)
    except OSError as error:
        emit(_PROG, [b"Warning: unable to read %b: %b.\n" % (shown(control.directory), shown(error.strerror or ""))])
        return TEMPORARY
    emit(_PROG, files(control))
    emit(_PROG, unknown(present))
    return 0


#: In qmail's order, behind alias.
_ROLES = ("qmaild", "qmaill", "root", "qmailp", "qmailq", "qmailr", "qmails")


def setup(path: str) -> Iterator[bytes]:
    """The lines about the home itself. In a home of root's, roles have accounts; else the queue's owner plays all."""
    queue = os.path.join(path, "queue")
    owner, group = _owner(queue)
    alias, _ = _owner(os.path.join(path, "alias"))
    users = dict.fromkeys(_ROLES, (owner, group))
    if _owner(path)[0] == 0:
        users |= _accounts(path)
        users["root"] = (0, 0)
    yield b"qmail home directory: %b.\n" % shown(path)
    yield b"user-ext delimiter: -.\n"
    yield b"paternalism (in decimal): %d.\n" % _PATERNALISM
    yield b"silent concurrency limit: %d.\n" % _LIMIT
    yield b"subdirectory split: %d.\n" % _split(queue)
    yield b"user ids: %b.\n" % b", ".join([b"%d" % uid for uid in (alias, *(users[role][0] for role in _ROLES))])
    yield b"group ids: %d, %d.\n" % (users["qmaild"][1], users["qmailq"][1])


def _accounts(path: str) -> dict[str, tuple[int, int]]:
    """User and group of those roles whose accounts there are, by qmail's names or those of control/accounts."""
    names = {role: role for role in _ROLES}
    for _, line in split_lines(read(os.path.join(path, "control", "accounts")) or b""):
        key, _, name = line.partition(b":")
        names[os.fsdecode(key)] = os.fsdecode(name)
    found = {}
    for role in _ROLES:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(names[role])
            found[role] = entry.pw_uid, entry.pw_gid
    return found


def _owner(path: str) -> tuple[int, int]:
    """User and group of a directory, or our own if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return os.geteuid(), os.getegid()
    return status.st_uid, status.st_gid


def _split(queue: str) -> int:
    try:
        return sum(name.isdigit() for name in os.listdir(os.path.join(queue, "mess"))) or _DEFAULT_SPLIT
    except OSError:
        return _DEFAULT_SPLIT


def files(control: Control) -> Iterator[bytes]:
    """What there is to say of every control file in the table."""
    order = _ORDER.split()
    for name in (*order, *(name for name in CONTROL_FILES if name not in order)):
        yield b"\n%b: " % name.encode()
        try:
            if name == "morercpthosts.cdb":
                yield _compiled(control)
            else:
                entry = CONTROL_FILES[name]
                yield from _SHOW[entry.kind](control, entry)
        except ControlError as error:
            yield b"Warning: " + shown(str(error)) + b".\n"


def _value(control: Control, entry: ControlFile) -> Iterator[bytes]:
    value: bytes | int | None = control.integer(entry.name) if entry.kind == INTEGER else control.line(entry.name)
    text = b"undefined" if value is None else b"%d" % value if isinstance(value, int) else shown(value)
    yield _missing(control, entry) + _sentence(entry, text)


def _lines(control: Control, entry: ControlFile) -> Iterator[bytes]:
    lines = control.list(entry.name)
    missing = _missing(control, entry)
    if missing:
        text = b", ".join(map(shown, lines)) if lines else _WITHOUT.get(entry.name, "none").encode()
        if entry.name == "morercpthosts" and control.list("rcpthosts") is None:
            yield missing + b"There is no rcpthosts, so morercpthosts is irrelevant.\n"
        else:
            yield missing + _sentence(entry, text)
        return
    yield b"\n"
    for line in lines or ():
        public, bar, _ = line.partition(b"|") if entry.secret else (line, b"", b"")
        yield _sentence(entry, shown(public + (b"|..." if bar else b"")))


def _text(control: Control, entry: ControlFile) -> Iterator[bytes]:
    missing = _missing(control, entry)
    lines = (control.text(entry.name) or b"").splitlines()
    if missing:
        yield missing + _sentence(entry, b" ".join(map(shown, lines)))
        return
    yield b"\n"
    for line in lines:
        yield _sentence(entry, shown(line))


def _there(control: Control, entry: ControlFile) -> Iterator[bytes]:
    """A file that is no text, or may hold a private key, is never shown."""
    missing = _missing(control, entry)
    yield missing + _sentence(entry, b"none" if missing else b"the file is there")


_SHOW: dict[str, Callable[[Control, ControlFile], Iterator[bytes]]] = {
    LINE: _value,
    INTEGER: _value,
    LIST: _lines,
    COLON_LIST: _lines,
    TEXT: _text,
    PEM_FILE: _there,
    CDB_FILE: _there,
}


def _compiled(control: Control) -> bytes:
    """Whether morercpthosts.cdb goes with morercpthosts."""
    text, compiled = (_mtime(control.path(name)) for name in ("morercpthosts", "morercpthosts.cdb"))
    if text is None and compiled is None:
        return b"(Default.) Further rcpthosts: none.\n"
    if compiled is None:
        return b"Warning: there is a morercpthosts without it; qmail-newmrh makes it.\n"
    if text is None:
        return b"Warning: it is in force, but there is no morercpthosts.\n"
    if compiled < text:
        return b"Warning: it is older than morercpthosts; qmail-newmrh makes it anew.\n"
    return b"It is not older than morercpthosts.\n"


def _mtime(path: str) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


def _missing(control: Control, entry: ControlFile) -> bytes:
    return b"" if os.path.lexists(control.path(entry.name)) else b"(Default.) "


def _sentence(entry: ControlFile, value: bytes) -> bytes:
    what = entry.help.partition(";")[0].encode()
    return b"%b: %b.\n" % (what[:1].upper() + what[1:], value)


def unknown(names: Sequence[str]) -> Iterator[bytes]:
    """The lines about files that are in no table."""
    for name in sorted(names):
        if name not in CONTROL_FILES and name not in DIRECTORIES:
            yield b"\n%b: Unknown: nothing reads a file of this name.\n" % shown(name)
