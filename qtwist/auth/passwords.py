"""Whether a password is right, by the credential store: each question costs one hash, whoever is asked for.

Blocking, and slow on purpose. Standard library only (cryptography is loaded with the first argon2id hash).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import cached_property

from qtwist.auth import hashing, scram
from qtwist.auth.proofs import Proofs
from qtwist.auth.store import CredentialStore, StoreError


class Passwords:
    """The passwords of `store`; `proofs` spares hashes for names that log in again and again."""

    def __init__(self, store: CredentialStore, proofs: Proofs | None = None) -> None:
        self.store = store
        self._proofs = proofs

    def proven(self, names: Sequence[bytes], password: bytes) -> bytes | None:
        """The first of `names` in the store, if `password` was found right lately, else None. Fast. StoreError."""
        name, stored = self._find(names)
        if self._proofs is not None and stored is not None and self._proofs.holds(name, password, stored):
            return name
        return None

    def check(self, names: Sequence[bytes], password: bytes) -> bytes | None:
        """The first of `names` in the store, if `password` is right for it, else None.

        Computes one hash in any case. Replaces a hash of an old kind by an argon2id one where the store can be
        written. StoreError, hashing.HashError.
        """
        name, stored = self._find(names)
        if stored is None or hashing.scheme(stored) == "plain":
            # As slow as for all others.
            hashing.matches(self._nobody, password)
        if stored is None or not hashing.matches(stored, password):
            return None
        stored = self._upgraded(name, stored, password)
        if self._proofs is not None:
            self._proofs.remember(name, password, stored)
        return name

    def secret(self, names: Sequence[bytes]) -> tuple[bytes, bytes] | None:
        """The first of `names` in the store and its secret, where that is stored as {PLAIN}. StoreError."""
        name, stored = self._find(names)
        if stored is None or not stored.startswith(hashing.PLAIN):
            return None
        return name, stored[len(hashing.PLAIN) :]

    def known(self, names: Sequence[bytes]) -> bytes | None:
        """The first of `names` in the store, None when there is none of them. StoreError."""
        return self._find(names)[0] or None

    def salt(self, names: Sequence[bytes]) -> tuple[bytes, int]:
        """Salt and iterations for SCRAM of the first of `names`, or, where it has none, as if it had. StoreError."""
        name, keys = self._keys(names)
        if keys is not None:
            return keys.salt, keys.iterations
        return scram.salt_for(self.store.salt_key(), name), scram.ITERATIONS

    def prove(self, names: Sequence[bytes], message: bytes, proof: bytes) -> tuple[bytes, bytes] | None:
        """The first of `names` and the signature for it, if `proof` is right, else None.

        Slow where the secret is readable, the first time. StoreError.
        """
        name, keys = self._keys(names)
        if keys is None:
            found = self.secret((name,))
            if found is None:
                return None
            try:
                keys = scram.cached_keys(found[1], scram.salt_for(self.store.salt_key(), name))
            except ValueError:
                return None
        signature = keys.signature_for(message, proof)
        return None if signature is None else (name, signature)

    def _keys(self, names: Sequence[bytes]) -> tuple[bytes, scram.ScramKeys | None]:
        name, _ = self._find(names)
        name = name or names[-1]  # what it would be called, for the salt
        return name, self.store.scram(name)

    def _find(self, names: Sequence[bytes]) -> tuple[bytes, bytes | None]:
        for name in names:
            stored = self.store.get(name)
            if stored is not None:
                return name, stored
        return b"", None

    @cached_property
    def _nobody(self) -> bytes:
        """A hash of a password that nobody has, with the parameters of today."""
        return hashing.encode_argon(hashing.CURRENT, bytes(hashing.SALT_SIZE), bytes(hashing.HASH_SIZE))

    def _upgraded(self, name: bytes, stored: bytes, password: bytes) -> bytes:
        """The hash that is in the store from now on."""
        # The daemon may have no right to write there, which is no reason to refuse anybody.
        if hashing.is_outdated(stored) and self.store.is_writable():
            new = hashing.make(password)
            with contextlib.suppress(OSError, StoreError):
                if self.store.upgrade(name, stored, new):
                    return new
        return stored
