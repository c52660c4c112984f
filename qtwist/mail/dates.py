"""Dates as qmail writes them, always UTC (spec/qmail.md §2.5)."""

from __future__ import annotations

from time import gmtime

_DAYS = (b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun")
MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")


def rfc822_date(seconds: float) -> bytes:
    """Seconds since the epoch as ``2 Nov 2026 03:04:05 -0000``: no weekday, no leading zero of the day."""
    t = gmtime(seconds)
    return b"%d %s %d %02d:%02d:%02d -0000" % (t[2], MONTHS[t[1] - 1], t[0], t[3], t[4], t[5])


def ctime_date(seconds: float) -> bytes:
    """Seconds since the epoch as ``Mon Nov 02 03:04:05 2026``: as in From_ lines, the day with a leading zero."""
    t = gmtime(seconds)
    return b"%s %s %02d %02d:%02d:%02d %d" % (_DAYS[t[6]], MONTHS[t[1] - 1], t[2], t[3], t[4], t[5], t[0])
