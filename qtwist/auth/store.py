"""The credential store HOME/users/credentials: a name and a hash in each line.

::

    # who may log in; `qtwist user` writes this
    joe:$argon2id$v=19$m=19456,t=2,p=1$…
    ann@shop.example:$6$…

Names are in lower case. Comments, empty lines and the order of lines are kept. Blocking; may be used from several
threads and processes. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

from qtwist.auth import hashing
from qtwist.files import replacing

#: The longest login name, in octets (RFC 5321 §4.5.3.1 gives an address no more).
LONGEST_NAME = 254
_SIZE_LIMIT = 64 << 20

_Stamp = tuple[int, int, int]


class StoreError(Exception):
    """The store cannot be used as it is. `line` counts from 1, None when the whole file is meant.

    What stands in a line is not told: it may be a secret.
    """

    def __init__(self, path: str, line: int | None, problem: str) -> None:
        super().__init__(path, line, problem)
        self.path = path
        self.line = line
        self.problem = problem

    def __str__(self) -> str:
        place = self.path if self.line is None else f"{self.path}, line {self.line}"
        return f"{place}: {self.problem}"


def is_name(name: bytes) -> bool:
    """Whether `name` can be one that logs in: no colon, blank or control character, no hash sign in front."""
    return (
        0 < len(name) <= LONGEST_NAME
        and b":" not in name
        and not name.startswith(b"#")
        and all(octet > 0x20 and octet != 0x7F for octet in name)
    )


def parse(text: bytes, path: str = "credentials") -> dict[bytes, bytes]:
    """The hashes by names, from the text of a store. StoreError with the number of the first line that is not right."""
    found: dict[bytes, bytes] = {}
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip() or line.startswith(b"#"):
            continue
        name, colon, text_hash = line.partition(b":")
        if not colon or not is_name(name) or name != name.lower():
            raise StoreError(path, number, "expected NAME:HASH, the name in lower case")
        if name in found:
            raise StoreError(path, number, f"expected each name once, {name.decode('utf-8', 'replace')!a} was there")
        try:
            hashing.scheme(text_hash)
        except hashing.HashError as error:
            raise StoreError(path, number, f"expected {error}") from None
        found[name] = text_hash
    return found


def changed_text(text: bytes, name: bytes, text_hash: bytes | None) -> bytes:
    """The text of a store with the line of `name` replaced or added, or left out where `text_hash` is None."""
    new = None if text_hash is None else name + b":" + text_hash
    lines = text.split(b"\n")
    if not lines[-1]:
        lines.pop()
    kept: list[bytes] = []
    for line in lines:
        if line.partition(b":")[0] != name:
            kept.append(line)
        elif new is not None:
            kept.append(new)
            new = None
    if new is not None:
        kept.append(new)
    return b"".join(line + b"\n" for line in kept)


class CredentialStore:
    """The store at `path`; read again when the file is another one. No file is an empty store."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._stamp: _Stamp | None = None
        self._hashes: dict[bytes, bytes] = {}

    def get(self, name: bytes) -> bytes | None:
        """The hash of `name`, None when it is not in the store. StoreError when the store is wrong or unreadable."""
        return self._current().get(name)

    def entries(self) -> dict[bytes, bytes]:
        """All hashes by names, in the order of the lines. StoreError as for :meth:`get`."""
        return dict(self._current())

    def set(self, name: bytes, text_hash: bytes) -> None:
        """Add or replace `name`, durably. StoreError, OSError; ValueError for what is no name or no hash."""
        if not is_name(name) or name != name.lower():
            raise ValueError("no name for the credential store")
        hashing.scheme(text_hash)
        with self._changing() as (text, write):
            write(changed_text(text, name, text_hash))

    def is_writable(self) -> bool:
        """Whether this process may change the store."""
        return os.access(os.path.dirname(self.path) or ".", os.W_OK | os.X_OK)

    def upgrade(self, name: bytes, old: bytes, new: bytes) -> bool:
        """Replace the hash of `name` if it is `old`; whether it was. StoreError, OSError."""
        with self._changing() as (text, write):
            if parse(text, self.path).get(name) != old:
                return False
            write(changed_text(text, name, new))
        return True

    def delete(self, name: bytes) -> bool:
        """Remove `name`; whether it was there. StoreError, OSError."""
        with self._changing() as (text, write):
            if name not in parse(text, self.path):
                return False
            write(changed_text(text, name, None))
        return True

    def _current(self) -> dict[bytes, bytes]:
        with self._lock:
            try:
                status = os.stat(self.path)
            except FileNotFoundError:
                self._stamp, self._hashes = None, {}
                return self._hashes
            except OSError as error:
                raise StoreError(self.path, None, error.strerror or str(error)) from error
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp != self._stamp:
                # What is wrong lets nobody in, each time anew: the change may have removed somebody.
                text, stamp = self._read()
                self._hashes = parse(text, self.path)
                self._stamp = stamp
            return self._hashes

    def _read(self) -> tuple[bytes, _Stamp]:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(fd, "rb") as file:
                status = os.fstat(fd)
                if status.st_mode & 0o007:
                    raise StoreError(self.path, None, "expected a file that others cannot read (chmod o-rwx)")
                text = file.read(_SIZE_LIMIT + 1)
        except OSError as error:
            raise StoreError(self.path, None, error.strerror or str(error)) from error
        if len(text) > _SIZE_LIMIT:
            raise StoreError(self.path, None, f"expected no more than {_SIZE_LIMIT} octets")
        return text, (status.st_mtime_ns, status.st_size, status.st_ino)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[tuple[bytes, Callable[[bytes], None]]]:
        """The text as it is, and a function that replaces it, while nobody else changes it."""
        with replacing.locked(self.path):
            text, _ = self._read() if os.path.lexists(self.path) else (b"", None)
            parse(text, self.path)  # a file that is wrong is for a person to mend, line by line
            yield text, lambda new: replacing.replace(self.path, new, 0o600)
