"""Inputs that once broke something: (target, bytes)."""

from __future__ import annotations

FINDINGS: tuple[tuple[str, bytes], ...] = (
    ("queue_journal", b"ALocal"),  # a record that is too short for its kind was struct.error
)
