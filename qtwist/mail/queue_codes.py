"""What the exit codes of qmail-queue mean for whoever handed in the message (spec/qmail.md §6.3, §7)."""

from __future__ import annotations

from qtwist.mail.envelope import Report
from qtwist.mail.queue_texts import CUSTOM, report

__all__ = ["CUSTOM", "queue_report"]


def queue_report(code: int, custom: bytes = b"") -> Report:
    """:func:`qtwist.mail.queue_texts.report` as a Report."""
    return Report(*report(code, custom))
