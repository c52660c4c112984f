"""TAI64N, the time stamps in qmail's logs: ``@`` and 24 hexadecimal digits (spec/related.md §5.7)."""

from __future__ import annotations

import re
from collections.abc import Callable
from time import localtime, struct_time

#: What is added to seconds since the epoch. Leap seconds are left aside, as daemontools does by default.
OFFSET = (1 << 62) + 10

_STAMP = re.compile(rb"^@([0-9a-f]{16})([0-9a-f]{8})(?![0-9a-f])", re.MULTILINE)

#: A line's stamp can be told from other text after so many octets.
STAMP_SIZE = 26


def stamp(nanoseconds: int) -> bytes:
    """The stamp (25 octets) of a time in nanoseconds since the epoch."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return b"@%016x%08x" % (OFFSET + seconds, rest)


def readable(text: bytes, local: Callable[[float], struct_time] = localtime) -> bytes:
    """`text`, which starts a line, with the stamps at the starts of lines as local date and time.

    What is no stamp, or the stamp of a time that has no date, stays as it is.
    """
    return _STAMP.sub(lambda match: _date(match, local), text) if b"@" in text else text


def _date(match: re.Match[bytes], local: Callable[[float], struct_time]) -> bytes:
    seconds, rest = int(match[1], 16) - OFFSET, int(match[2], 16)
    if rest >= 1_000_000_000:
        return match[0]
    try:
        t = local(seconds)
    except (OverflowError, ValueError, OSError):
        return match[0]
    return b"%04d-%02d-%02d %02d:%02d:%02d.%09d" % (*t[:6], rest)
