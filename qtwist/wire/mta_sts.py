"""MTA-STS: what a domain says of its mail exchangers' TLS (RFC 8461 §3), read from its TXT record and its policy file.

Pure: no DNS, no HTTPS, no clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import attrs

MOST_OCTETS = 65536
"""Octets of a policy file (RFC 8461 §3.3)."""

MOST_SECONDS = 31_557_600
"""The largest max_age (§3.2)."""

_MOST_PATTERNS = 500
_ID = re.compile(rb"[A-Za-z0-9]{1,32}")
_PATTERN = re.compile(rb"(\*\.)?[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")


class PolicyError(ValueError):
    """A policy file that makes no sense; ``str()`` says why."""


@attrs.frozen
class STSPolicy:
    """`mode` is ``enforce``, ``testing`` or ``none``; `exchangers` are patterns in lower case, `seconds` is how long
    the policy may be kept."""

    mode: str
    exchangers: tuple[bytes, ...]
    seconds: int

    def matches(self, exchanger: bytes) -> bool:
        """Whether a mail exchanger is one of the domain's: ``*`` stands for one label, the first (§4.1)."""
        name = exchanger.lower().removesuffix(b".")
        wild = b"*." + name.partition(b".")[2]
        return any(pattern in (name, wild) for pattern in self.exchangers)


def parse_record(texts: Iterable[bytes]) -> bytes | None:
    """The id of the policy that the TXT records at ``_mta-sts.DOMAIN`` announce; None when they announce none
    (§3.1)."""
    records = [text for text in texts if re.match(rb"v=STSv1[ \t]*;", text)]
    if len(records) != 1:
        return None
    for field in records[0].split(b";")[1:]:
        name, _, value = field.partition(b"=")
        if name.strip() == b"id":
            return value.strip() if _ID.fullmatch(value.strip()) else None
    return None


def parse_policy(text: bytes) -> STSPolicy:
    """The policy in a file (§3.2). Of a key that is there twice the first counts, unknown keys do not. PolicyError."""
    if len(text) > MOST_OCTETS:
        raise PolicyError("it is too large")
    values: dict[bytes, bytes] = {}
    exchangers: list[bytes] = []
    for line in text.split(b"\n"):
        key, colon, value = line.strip(b" \t\r").partition(b":")
        value = value.strip(b" \t")
        if not colon:
            if key:
                raise PolicyError("a line in it has no colon")
        elif key == b"mx":
            if not _PATTERN.fullmatch(value.lower()) or len(exchangers) == _MOST_PATTERNS:
                raise PolicyError("an mx line in it names no host, or there are too many")
            exchangers.append(value.lower().removesuffix(b"."))
        else:
            values.setdefault(key, value)
    if values.get(b"version") != b"STSv1":
        raise PolicyError("its version is not STSv1")
    mode = values.get(b"mode", b"").decode("ascii", "replace")
    if mode not in ("enforce", "testing", "none"):
        raise PolicyError("its mode is none of enforce, testing, none")
    age = values.get(b"max_age", b"")
    if not (age.isdigit() and len(age) <= 10):
        raise PolicyError("its max_age is no number of seconds")
    if mode != "none" and not exchangers:
        raise PolicyError("it names no mx")
    return STSPolicy(mode, tuple(exchangers), min(int(age), MOST_SECONDS))
