"""`qtwist queue VERB`: look at the queue and decide about messages, with the daemon running or not (doc/queue.md)."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one verb; returns the exit code."""
    # Here, for it brings Twisted along.
    from qtwist.steering.verbs import main as carry_out

    return carry_out(argv)
