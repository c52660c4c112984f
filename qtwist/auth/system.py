"""The passwords of the system's accounts, from the shadow file, checked by libcrypt. For root only.

Blocking, and slow on purpose. Accounts that passwd or shadow do not have as a line of their own (LDAP, for example)
are for a checkpassword program.
"""

from __future__ import annotations

import pwd
import time
from collections.abc import Callable

from qtwist.auth import hashing

_SIZE_LIMIT = 64 << 20
_DAY = 86400


class SystemPasswords:
    """The hashes in `shadow`, read for each question; `now` tells the date, in seconds since the epoch.

    Root never logs in, nor does an account that is locked, has expired, or has no password.
    """

    def __init__(self, shadow: str = "/etc/shadow", now: Callable[[], float] = time.time) -> None:
        self._shadow = shadow
        self._now = now

    def check(self, name: bytes, password: bytes) -> int | None:
        """The user id of the account `name` if `password` is right, else None.

        Computes one hash in any case. OSError when the shadow file cannot be read.
        """
        with open(self._shadow, "rb") as file:
            lines = file.read(_SIZE_LIMIT).split(b"\n")
        usable = [fields for fields in (line.split(b":") for line in lines) if len(fields) >= 8 and _is_hash(fields[1])]
        stored = next((fields[1] for fields in usable if fields[0] == name and not self._has_expired(fields[7])), None)
        if stored is None:
            # Any other hash of this system costs as much as the missing one.
            hashing.matches(usable[0][1] if usable else _DECOY, password)
            return None
        if not hashing.matches(stored, password):
            return None
        try:
            uid = pwd.getpwnam(name.decode("ascii")).pw_uid
        except (KeyError, ValueError):
            return None
        return uid or None

    def _has_expired(self, day: bytes) -> bool:
        return day.isdigit() and int(day) * _DAY <= self._now()


#: What a system without a single hash is asked.
_DECOY = b"$6$" + b"." * 16 + b"$" + b"." * 86


def _is_hash(text: bytes) -> bool:
    try:
        return hashing.scheme(text) != "plain"
    except hashing.HashError:
        return False
