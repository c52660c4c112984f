"""From a delivery's exit code and output to the report that the queue manager gets (spec/qmail.md §11.2-11.3)."""

from __future__ import annotations

from qtwist.local.errors import AS_ROOT, BAD_RECORD, CDB_TROUBLE, DONE, NFS_TROUBLE, NO_ALIAS, SYSTEM_TROUBLE, TEMPORARY
from qtwist.mail.envelope import Report

#: A report that is longer than the first number of octets is cut to the second, and says so (§11.2).
_LONGEST = 3000
_KEPT = 2966

_TEMPORARY_CODES = frozenset({TEMPORARY, 71, 74, 75})

# What the codes say when the delivery had nothing to say itself.
_EARLY_ENDS = {
    BAD_RECORD: b"The user record of this address is of no use. (#4.3.5)\n",
    AS_ROOT: b"Nothing is delivered as root. (#4.3.0)\n",
    NFS_TROUBLE: b"Unable to look at a home directory: file server trouble? (#4.3.0)\n",
    NO_ALIAS: b"Unable to find the alias account. (#4.3.5)\n",
    CDB_TROUBLE: b"Unable to read users/cdb. (#4.3.0)\n",
    SYSTEM_TROUBLE: b"Unable to start the delivery. (#4.3.0)\n",
    119: b"Out of memory. (#4.3.0)\n",
    120: b"Unable to run qmail-local at the moment. (#4.3.0)\n",
    121: b"Unable to find out who owns the address. (#4.3.0)\n",
}
_CANNOT_RUN = 126


def report(code: int, output: bytes) -> Report:
    """The report of a delivery that ended with `code` after saying `output`; a negative code means killed by a signal.

    A text counts up to its first NUL. 112 to 121 say by themselves what happened, unless there is a text that knows
    better.
    """
    text = cut(output).partition(b"\0")[0]
    if code < 0:
        return Report.deferral(b"The delivery process crashed. (#4.3.0)\n")
    if code == DONE:
        return Report.success(text)
    if code in _EARLY_ENDS:
        return Report.deferral(text or _EARLY_ENDS[code])
    if code in _TEMPORARY_CODES:
        return Report.deferral(text)
    if code == _CANNOT_RUN:
        return Report.failure(text or b"Unable to run qmail-local. (#5.3.0)\n")
    return Report.failure(text)


def cut(output: bytes) -> bytes:
    """`output` in at most about 3,000 octets."""
    if len(output) <= _LONGEST:
        return output
    return output[:_KEPT] + b"\n(the rest of this report was cut)\n"
