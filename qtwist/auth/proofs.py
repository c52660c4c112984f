"""Proofs of recent logins: clients that poll do not cost a password hash each time.

What is kept is a keyed digest of the name, the password and the stored hash, in memory, under a key that this process
made for itself: it is worth nothing elsewhere, and ends with the password that it was made for.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
from collections import OrderedDict
from collections.abc import Callable

#: Seconds after which the password is hashed again, and how many names are remembered.
LIFETIME = 300.0
MOST_REMEMBERED = 20_000


class Proofs:
    """One per process; `now` is a clock that only goes forward, in seconds. May be used from several threads."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._key = os.urandom(32)
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()

    def remember(self, name: bytes, password: bytes, stored: bytes) -> None:
        """`password` was found to be the one of the hash `stored` just now."""
        digest = self._digest(name, password, stored)
        with self._lock:
            self._known[name] = (digest, self._now() + LIFETIME)
            self._known.move_to_end(name)
            if len(self._known) > MOST_REMEMBERED:
                self._known.popitem(last=False)

    def holds(self, name: bytes, password: bytes, stored: bytes) -> bool:
        """Whether that was found out lately."""
        with self._lock:
            known = self._known.get(name)
        if known is None or known[1] <= self._now():
            return False
        return hmac.compare_digest(known[0], self._digest(name, password, stored))

    def _digest(self, name: bytes, password: bytes, stored: bytes) -> bytes:
        # The sizes keep the three apart.
        text = b"%d:%d:%b%b%b" % (len(name), len(password), name, password, stored)
        return hashlib.blake2b(text, key=self._key, digest_size=32).digest()
