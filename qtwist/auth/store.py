"""The credential store HOME/users/credentials: a name and a hash in each line, and perhaps SCRAM's keys.

::

    # who may log in; `qtwist user` writes this
    #scram-salt-key:…
    joe:$argon2id$v=19$m=19456,t=2,p=1$…
    ann@shop.example:$6$…
    eve:$argon2id$v=19$m=19456,t=2,p=1$… SCRAM-SHA-256$65536:…$…:…

Names are in lower case. Each part of a record names its own method, so that old and new ones live side by side.
Comments, empty lines and the order of lines are kept. Blocking; may be used from several threads and processes.
Standard library only.
"""

from __future__ import annotations

import binascii
import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from qtwist.auth import hashing
from qtwist.auth.scram import ScramKeys
from qtwist.files import replacing
from qtwist.mail.domains import ascii_address

#: The longest login name, in octets (RFC 5321 §4.5.3.1 gives an address no more).
LONGEST_NAME = 254
_SIZE_LIMIT = 64 << 20

#: What the salts of names that have no keys are made from, so that they look like all others. A comment to whoever does
#: not know it.
_SALT_KEY = b"#scram-salt-key:"

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


def split_record(record: bytes) -> tuple[bytes, bytes]:
    """The hash, and the text of SCRAM's keys or nothing; behind {PLAIN}, all belongs to the secret."""
    if record.startswith(hashing.PLAIN):
        return record, b""
    text_hash, _, keys = record.partition(b" ")
    return text_hash, keys


def parse(text: bytes, path: str = "credentials") -> dict[bytes, bytes]:
    """The records by names, their domains in ASCII, from the text of a store. StoreError with the number of the first
    line that is not right.

    A record is a hash, or a hash, a blank, and SCRAM's keys.
    """
    found: dict[bytes, bytes] = {}
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip() or line.startswith(b"#"):
            continue
        name, colon, record = line.partition(b":")
        if not colon or not is_name(name) or name != name.lower():
            raise StoreError(path, number, "expected NAME:HASH, the name in lower case")
        name = ascii_address(name)
        if name in found:
            raise StoreError(path, number, f"expected each name once, {name.decode('utf-8', 'replace')!a} was there")
        try:
            _check(record)
        except ValueError as error:
            raise StoreError(path, number, f"expected {error}") from None
        found[name] = record
    return found


def _check(record: bytes) -> None:
    """ValueError, with words that go behind "expected", for what is no record."""
    text_hash, keys = split_record(record)
    hashing.scheme(text_hash)
    if keys or text_hash != record:
        ScramKeys.parse(keys)


@dataclass(frozen=True, slots=True)
class _Contents:
    """What a store says. `salt_key` is empty where it has none."""

    records: Mapping[bytes, bytes] = field(default_factory=dict)
    salt_key: bytes = b""
    all_plain: bool = False
    all_scram: bool = False

    @property
    def summary(self) -> tuple[bool, bool, bool]:
        return bool(self.records), self.all_plain, self.all_scram

    @classmethod
    def read(cls, text: bytes, path: str) -> _Contents:
        records = parse(text, path)
        start = text.find(_SALT_KEY)
        at_line_start = start == 0 or text[start - 1 : start] == b"\n"
        salt_key = text[start:].partition(b"\n")[0] if start >= 0 and at_line_start else b""
        plain = [record.startswith(hashing.PLAIN) for record in records.values()]
        keyed = [bool(split_record(record)[1]) for record in records.values()]
        return cls(
            records,
            salt_key,
            all_plain=bool(records) and all(plain),
            all_scram=bool(records) and all(map(max, plain, keyed)),
        )


def changed_text(text: bytes, name: bytes, record: bytes | None) -> bytes:
    """The text of a store with the line of `name` replaced or added, or left out where `record` is None."""
    new = None if record is None else name + b":" + record
    key = ascii_address(name)
    lines = text.split(b"\n")
    if not lines[-1]:
        lines.pop()
    kept: list[bytes] = []
    for line in lines:
        if ascii_address(line.partition(b":")[0]) != key:
            kept.append(line)
        elif new is not None:
            kept.append(new)
            new = None
    if new is not None:
        kept.append(new)
    return b"".join(line + b"\n" for line in kept)


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_mtime_ns, status.st_size, status.st_ino


class CredentialStore:
    """The store at `path`; read again when the file is another one. No file is an empty store."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._stamp: _Stamp | None = None
        self._contents = _Contents()
        self._own_salt_key = os.urandom(32)

    def get(self, name: bytes) -> bytes | None:
        """The hash of `name`, None when it is not in the store. StoreError when the store is wrong or unreadable."""
        record = self._current().records.get(ascii_address(name))
        return None if record is None else split_record(record)[0]

    def scram(self, name: bytes) -> ScramKeys | None:
        """SCRAM's keys of `name`, None when there are none. StoreError as for :meth:`get`."""
        keys = split_record(self._current().records.get(ascii_address(name), b""))[1]
        return ScramKeys.parse(keys) if keys else None

    def salt_key(self) -> bytes:
        """What the salts of names without keys are made from: the same as long as the store lives, once `qtwist user`
        has written keys to it. StoreError as for :meth:`get`."""
        return self._current().salt_key or self._own_salt_key

    def entries(self) -> dict[bytes, bytes]:
        """All hashes by names, in the order of the lines. StoreError as for :meth:`get`."""
        return {name: split_record(record)[0] for name, record in self._current().records.items()}

    def summary(self) -> tuple[bool, bool, bool]:
        """Whether there is anybody; whether all secrets are readable; whether SCRAM works for all. StoreError."""
        return self._current().summary

    def known_summary(self) -> tuple[bool, bool, bool] | None:
        """The summary where the file need not be read for it, else None: it does not block."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            status = os.stat(self.path)
            return self._contents.summary if _stamp(status) == self._stamp else None
        except FileNotFoundError:
            return self._contents.summary if self._stamp is None else None
        except OSError:
            return None
        finally:
            self._lock.release()

    def set(self, name: bytes, text_hash: bytes, keys: ScramKeys | None = None) -> None:
        """Add or replace `name`, durably. StoreError, OSError; ValueError for what is no name or no hash."""
        if not is_name(name) or name != name.lower():
            raise ValueError("no name for the credential store")
        record = text_hash if keys is None else text_hash + b" " + keys.to_bytes()
        _check(record)
        with self._changing() as (text, write):
            first = b""
            if keys is not None and not _Contents.read(text, self.path).salt_key:
                first = _SALT_KEY + binascii.hexlify(os.urandom(32)) + b"\n"
            write(first + changed_text(text, name, record))

    def is_writable(self) -> bool:
        """Whether this process may change the store."""
        return os.access(os.path.dirname(self.path) or ".", os.W_OK | os.X_OK)

    def upgrade(self, name: bytes, old: bytes, new: bytes) -> bool:
        """Replace the hash of `name` if it is `old`; whether it was. StoreError, OSError."""
        with self._changing() as (text, write):
            found, keys = split_record(parse(text, self.path).get(ascii_address(name), b""))
            if found != old:
                return False
            write(changed_text(text, name, new + b" " + keys if keys else new))
        return True

    def delete(self, name: bytes) -> bool:
        """Remove `name`; whether it was there. StoreError, OSError."""
        with self._changing() as (text, write):
            if ascii_address(name) not in parse(text, self.path):
                return False
            write(changed_text(text, name, None))
        return True

    def _current(self) -> _Contents:
        with self._lock:
            try:
                status = os.stat(self.path)
            except FileNotFoundError:
                self._stamp, self._contents = None, _Contents()
                return self._contents
            except OSError as error:
                raise StoreError(self.path, None, error.strerror or str(error)) from error
            if _stamp(status) != self._stamp:
                # What is wrong lets nobody in, each time anew: the change may have removed somebody.
                text, stamp = self._read()
                self._contents = _Contents.read(text, self.path)
                self._stamp = stamp
            return self._contents

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
        return text, _stamp(status)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[tuple[bytes, Callable[[bytes], None]]]:
        """The text as it is, and a function that replaces it, while nobody else changes it."""
        with replacing.locked(self.path):
            text, _ = self._read() if os.path.lexists(self.path) else (b"", None)
            parse(text, self.path)  # a file that is wrong is for a person to mend, line by line
            yield text, lambda new: replacing.replace(self.path, new, 0o600)
