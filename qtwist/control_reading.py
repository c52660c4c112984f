"""How one control file is read (spec/qmail.md §2.1). Apart from control.py for commands that must start fast."""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_SIZE_LIMIT = 64 << 20
_BLANKS = b" \t\n"


class ControlError(Exception):
    """A control file that cannot be read, or holds a wrong value. `str()` is one line that says all of it.

    `line` counts from 1 and is None when the whole file is meant; `got` and `expected` are phrases.
    """

    def __init__(self, path: str, line: int | None, got: str, expected: str) -> None:
        super().__init__(path, line, got, expected)
        self.path = path
        self.line = line
        self.got = got
        self.expected = expected

    def __str__(self) -> str:
        place = self.path if self.line is None else f"{self.path}, line {self.line}"
        return f"{place}: found {self.got}, expected {self.expected}"


def read(path: str) -> bytes | None:
    """The contents, None without the file. ControlError when it is there and cannot be read."""
    try:
        # Without O_NONBLOCK a FIFO of that name would stop the daemon.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        status = os.fstat(fd)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISCHR(status.st_mode)):
            got = "a directory" if stat.S_ISDIR(status.st_mode) else "a special file"
            raise ControlError(path, None, got, "a regular file")
        parts = []
        size = 0
        while part := os.read(fd, max(status.st_size - size + 1, 4096)):
            parts.append(part)
            size += len(part)
            if size > _SIZE_LIMIT:
                raise ControlError(path, None, f"more than {_SIZE_LIMIT} octets", "a smaller file")
        return b"".join(parts)
    except OSError as error:
        raise unreadable(path, error) from error
    finally:
        os.close(fd)


def unreadable(path: str, error: OSError) -> ControlError:
    """What `error` says of the file `path`."""
    return ControlError(path, None, os.strerror(error.errno) if error.errno else str(error), "a readable file")


def first_line(text: bytes) -> bytes:
    """The first line of a file, without the blanks at its end."""
    return text.partition(b"\n")[0].rstrip(_BLANKS)


def split_lines(text: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines of a list with their numbers from 1: trailing blanks removed, no empty lines, no comments (§2.1)."""
    for number, raw in enumerate(text.split(b"\n"), 1):
        line = raw.rstrip(_BLANKS)
        if line and not line.startswith(b"#"):
            yield number, line
