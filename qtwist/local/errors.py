"""How a local delivery ends early, and which exit codes and errnos mean what (spec/qmail.md §2.8, §11.3, §13.5)."""

from __future__ import annotations

import errno

DONE = 0
PERMANENT = 100
TEMPORARY = 111

# The codes that lspawn's child gives when it does not get as far as the delivery (§11.3).
BAD_RECORD = 112
AS_ROOT = 113
NFS_TROUBLE = 115
NO_ALIAS = 116
CDB_TROUBLE = 117
SYSTEM_TROUBLE = 118

_TEMPORARY_NAMES = (
    "EINTR ENOMEM ETXTBSY EIO ETIMEDOUT EWOULDBLOCK EAGAIN EDEADLK EBUSY ENFILE EMFILE EFBIG ENOSPC ENETDOWN "
    "ENETUNREACH ENETRESET ECONNABORTED ECONNRESET ENOBUFS ETOOMANYREFS ECONNREFUSED EHOSTDOWN EHOSTUNREACH "
    "EPROCLIM EUSERS EDQUOT ESTALE ENOLCK"
)
#: The errnos that may go away by themselves (§2.8); EPROCLIM and others exist on some systems only.
TEMPORARY_ERRNOS = frozenset(getattr(errno, name) for name in _TEMPORARY_NAMES.split() if hasattr(errno, name))


class DeliveryError(Exception):
    """A delivery that did not happen: `code` is the exit code, `text` (no LF) goes into the report."""

    def __init__(self, code: int, text: bytes = b"") -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


def is_temporary(error: OSError) -> bool:
    """Whether `error` may go away by itself."""
    return error.errno in TEMPORARY_ERRNOS


def reason(error: OSError) -> bytes:
    """`error` in the system's words."""
    return (error.strerror or str(error)).encode("utf-8", "replace")
