"""Constant maps and the lookup of a domain and its suffixes (spec/qmail.md §2.2, §2.3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from qtwist.mail.domains import ascii_key


class ConstantMap(Mapping[bytes, bytes]):
    """A map that never changes; ASCII case of a key does not matter (§2.2), nor does the spelling of a domain that is
    not ASCII. Iterating gives keys in lower case, domains in ASCII.

    Of two lines with the same key the later one counts.
    """

    __slots__ = ("_values",)

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self._values = {ascii_key(key): value for key, value in pairs}

    @classmethod
    def plain(cls, lines: Iterable[bytes]) -> ConstantMap:
        """Whole lines as keys; every value is empty."""
        return cls((line, b"") for line in lines)

    @classmethod
    def colon(cls, lines: Iterable[bytes]) -> ConstantMap:
        """``key:value`` lines, parted at the first colon; a line without one is ignored."""
        parts = (line.partition(b":") for line in lines)
        return cls((key, value) for key, colon, value in parts if colon)

    def __getitem__(self, key: bytes) -> bytes:
        return self._values[ascii_key(key)]

    # Mapping's own versions of these two raise and catch a KeyError for every miss, and most look-ups miss.

    def get(self, key: bytes, default: bytes | None = None) -> bytes | None:  # type: ignore[override]
        return self._values.get(ascii_key(key), default)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and ascii_key(key) in self._values

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def suffixes(domain: bytes, catch_all: bool) -> Iterator[bytes]:
    """The keys under which `domain` is looked up: itself, then ``.suffix`` from left to right (§2.3).

    `catch_all` adds the empty key at the end, as smtproutes and virtualdomains want it and rcpthosts does not.
    """
    yield domain
    dot = domain.find(b".", 1)
    while dot > 0:
        yield domain[dot:]
        dot = domain.find(b".", dot + 1)
    if catch_all and domain:
        yield b""
