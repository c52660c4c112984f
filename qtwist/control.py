"""The control files, read by qmail's rules (spec/qmail.md §2.1, §3); the table of what there is: `control_table`.

Reading is as lenient as qmail: a number with text behind it is a number, a line without a colon is skipped. What is
certainly not meant that way, :meth:`Control.check` reports, with file, line and expectation, before the daemon starts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

import attrs

from qtwist import control_checks as checks
from qtwist.control_reading import ControlError, first_line, read, split_lines, unreadable
from qtwist.control_table import CDB_FILE, COLON_LIST, CONTROL_FILES, INTEGER, LINE, LIST, PEM_FILE, TEXT, ControlFile
from qtwist.mail.constmap import ConstantMap, suffixes

__all__ = [
    "CONTROL_FILES",
    "ROLES",
    "ConstantMap",
    "Control",
    "ControlError",
    "ControlFile",
    "Listener",
    "split_lines",
    "suffixes",
]

ROLES = checks.ROLES

_DIGITS = re.compile(rb"[0-9]+")


@attrs.frozen
class Listener:
    """A line of control/listen: what is served where, in Twisted's endpoint syntax. `line` is its number."""

    role: str
    endpoint: str
    line: int

    @property
    def implicit_tls(self) -> bool:
        """Whether TLS begins before the first word (RFC 8314 §3)."""
        return self.role in checks.IMPLICIT_TLS


# Without these, and without `me` to stand in for them, the daemon cannot work.
_NEEDED = ("locals", "smtpgreeting", "helohost")

# Control has a method called list, which hides the type from the annotations behind it.
Lines = list[bytes]
Numbered = list[tuple[int, bytes]]
Listeners = list[Listener]
Errors = list[ControlError]


class Control:
    """The control files in one directory. Every call reads the file anew.

    A name that is not in the table is a KeyError, a wrong kind for the name a TypeError; a file that is there but
    cannot be read is a ControlError. A file that is there and empty is a value, not a missing file.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = os.fspath(directory)

    def path(self, name: str) -> str:
        """Where the file `name` is, or would be."""
        return f"{self.directory}/{CONTROL_FILES[name].name}"

    def line(self, name: str) -> bytes | None:
        """The first line without trailing blanks, else the default; None when there is none."""
        entry = self._entry(name, LINE)
        text = self._read_or_me(entry)
        if text is None:
            assert not isinstance(entry.default, int)
            return entry.default
        return first_line(text)

    def integer(self, name: str) -> int:
        """The number that the first line starts with; the default when it starts with none. Never negative."""
        entry = self._entry(name, INTEGER)
        text = self._read(name)
        digits = _DIGITS.match(first_line(text)) if text is not None else None
        if digits is None:
            assert isinstance(entry.default, int)
            return entry.default
        # Python refuses to convert thousands of digits, and nothing here counts that far.
        return int(digits[0]) if len(digits[0]) <= 18 else 10**18

    def numbered(self, name: str) -> Numbered | None:
        """The lines of a list with their numbers, as :meth:`list` has them."""
        entry = self._entry(name, LIST, COLON_LIST)
        text = self._read(name)
        if text is None:
            me = self.line("me") if entry.me else None
            return None if me is None else [(1, me)]
        return list(split_lines(text))

    def list(self, name: str) -> Lines | None:
        """The lines of a list; without the file, ``me`` as its only line where that is the default, else None."""
        lines = self.numbered(name)
        return None if lines is None else [line for _, line in lines]

    def map(self, name: str) -> ConstantMap | None:
        """A list as a map: of keys and values parted by the first colon, or of whole lines, by the kind (§2.2)."""
        lines = self.list(name)
        if lines is None:
            return None
        return ConstantMap.colon(lines) if CONTROL_FILES[name].kind == COLON_LIST else ConstantMap.plain(lines)

    def text(self, name: str) -> bytes | None:
        """The whole file, else the default."""
        entry = self._entry(name, TEXT)
        text = self._read(name)
        if text is None:
            assert not isinstance(entry.default, int)
            return entry.default
        return text

    def listeners(self) -> Listeners:
        """The lines of control/listen; none without the file. ControlError for a wrong one."""
        found: Listeners = []
        for number, line in self.numbered("listen") or ():
            expected = checks.listen(line)
            if expected:
                raise ControlError(self.path("listen"), number, _show(line), expected)
            role, endpoint = line.decode().split(None, 1)
            found.append(Listener(role, endpoint, number))
        return found

    def stamp(self, name: str) -> tuple[int, int, int] | None:
        """(mtime in ns, size, inode): whenever it is the same as before, so is the value; None without the file.

        Where ``me`` stands in for a missing file, its stamp does, too.
        """
        path = self.path(name)
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return self.stamp("me") if CONTROL_FILES[name].me else None
        except OSError as error:
            raise unreadable(path, error) from error
        return status.st_mtime_ns, status.st_size, status.st_ino

    def check(self) -> Errors:
        """Everything that is wrong with the files, in the order of the table; empty when the daemon may start."""
        if not os.path.isdir(self.directory):
            got = "something else" if os.path.lexists(self.directory) else "nothing"
            return [ControlError(self.directory, None, got, "a directory with control files")]
        errors: Errors = []
        for entry in CONTROL_FILES.values():
            try:
                errors += self._check_file(entry)
            except ControlError as error:
                errors.append(error)
        path = self.path("me")
        if not os.path.lexists(path):
            needed = [name for name in _NEEDED if not os.path.lexists(self.path(name))]
            if needed:
                expected = "a file with the name of this host, as control/{} missing too".format(
                    ", control/".join(needed) + (" is" if len(needed) == 1 else " are")
                )
                errors.insert(0, ControlError(path, None, "nothing", expected))
        return errors

    def ensure(self, *names: str) -> None:
        """ControlError when one of these files is wrong: for a daemon that rereads them and would keep what it has."""
        for name in names:
            for error in self._check_file(CONTROL_FILES[name]):
                raise error

    def ensure_secret(self, *names: str) -> None:
        """ControlError when one of these files has a password in it and others can read it."""
        for name in names:
            for error in self._check_secret(CONTROL_FILES[name], self._read(name)):
                raise error

    def _check_secret(self, entry: ControlFile, text: bytes | None) -> Iterator[ControlError]:
        path = self.path(entry.name)
        if entry.secret and text is not None and b"|" in text and os.stat(path).st_mode & 0o007:
            yield ControlError(path, None, "a password in it", "a file that others cannot read (chmod o-rwx)")

    def _check_file(self, entry: ControlFile) -> Iterable[ControlError]:
        path = self.path(entry.name)
        if entry.kind == CDB_FILE:
            return _check_cdb(path)
        text = self._read(entry.name)
        if text is None:
            return ()
        if entry.kind == PEM_FILE:
            found = b"-----BEGIN " in text
            return () if found else (ControlError(path, None, "something else", "certificates in PEM"),)
        if entry.kind in (LIST, COLON_LIST):
            return [*self._check_secret(entry, text), *_check_lines(entry, path, split_lines(text))]
        whole = (None, text) if entry.kind == TEXT else (1, first_line(text))
        return _check_lines(entry, path, (whole,))

    def _entry(self, name: str, *kinds: str) -> ControlFile:
        entry = CONTROL_FILES[name]
        if entry.kind not in kinds:
            raise TypeError(f"control/{name} is read as {entry.kind}, not as {' or '.join(kinds)}")
        return entry

    def _read_or_me(self, entry: ControlFile) -> bytes | None:
        text = self._read(entry.name)
        return self._read("me") if text is None and entry.me else text

    def _read(self, name: str) -> bytes | None:
        """The contents, None without the file."""
        return read(self.path(name))


def _show(line: bytes) -> str:
    """What was found, as one printable phrase."""
    return repr(line if len(line) <= 80 else line[:77] + b"...")[1:] if line else "an empty line"


def _check_lines(entry: ControlFile, path: str, lines: Iterable[tuple[int | None, bytes]]) -> Iterator[ControlError]:
    for number, line in lines:
        if b"\0" in line:
            yield ControlError(path, number, "a NUL byte", "text")
        elif line.endswith(b"\r") or b"\r\n" in line:
            yield ControlError(path, number, "a carriage return at the end of a line", "lines ended by LF alone")
        elif entry.check is not None and (expected := entry.check(line)):
            shown = line.partition(b"|")[0] if entry.secret else line
            yield ControlError(path, number, _show(shown), expected)


def _check_cdb(path: str) -> tuple[ControlError, ...]:
    from qtwist.files.cdb import CDB, CDBError

    try:
        CDB(path).close()
    except FileNotFoundError:
        return ()
    except OSError as error:
        return (unreadable(path, error),)
    except CDBError as error:
        return (
            ControlError(
                path,
                None,
                str(error).removeprefix(f"{path} is "),
                "a constant database, as qmail-newmrh and tcprules write",
            ),
        )
    return ()
