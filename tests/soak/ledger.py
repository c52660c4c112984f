"""The books of a soak: what was handed in, what the server said, what arrived, and whether that is all explained.

The promise (doc/durability.md, spec/qmail.md §5, §26): what was answered 250 is delivered at least once to each
recipient or bounced; it is delivered twice only where an attempt was under way when something was killed; nothing
arrives that was not accepted, unless the answer was lost.
"""

from __future__ import annotations

import re
from collections import Counter

import attrs

#: Seconds for which a delivery whose end is logged counts as under way: its mark waits for the thread that writes the
#: journal, and for its message when that is just being settled. On a disk with much to do that took up to 3 s.
SLACK = 10.0

_INFO = re.compile(r"^info msg (\d+): bytes \d+ from <([^>]*)>")
_STARTING = re.compile(r"^starting delivery (\d+): msg (\d+) to (?:local|remote) (\S+)")
_DELIVERY = re.compile(r"^delivery (\d+): (success|failure|deferral)")
_TAG = re.compile(r"\bt(\d{6})\b")

#: The ends of a transaction.
ACCEPTED = "accepted"
REFUSED = "refused"
UNKNOWN = "unknown"


def tag_of(text: str) -> str | None:
    """The mark of a message of ours in an address or a line."""
    found = _TAG.search(text)
    return found[0] if found else None


@attrs.define
class Attempt:
    """One ``starting delivery`` and what became of it, by the log."""

    recipient: str
    number: str
    tag: str | None
    end: float | None = None
    deferred: bool = False
    start: float = 0.0
    killed: bool = False  # it was under way, or had just ended, when something was killed


@attrs.define
class History:
    """What the log lines of all runs say about attempts; lines have to come in order, with the time of their coming."""

    attempts: list[Attempt] = attrs.Factory(list)
    tags: dict[str, str] = attrs.Factory(dict)  # the tag of the message that has a number now
    bouncing: Counter[str] = attrs.Factory(Counter)  # kills while a message with a failed recipient was not over
    kills: list[float] = attrs.Factory(list)
    _running: dict[str, Attempt] = attrs.Factory(dict)
    _failed: dict[str, float | None] = attrs.Factory(dict)  # tags of messages that failed; when they ended

    def line(self, text: str, now: float) -> None:
        """Take one line of the log."""
        if found := _INFO.match(text):
            tag = tag_of(found[2])
            if tag is not None:
                self.tags[found[1]] = tag
            else:
                self.tags.pop(found[1], None)
        elif found := _STARTING.match(text):
            delivery, number, recipient = found.groups()
            attempt = Attempt(recipient, number, tag_of(recipient) or self.tags.get(number), start=now)
            self._running[delivery] = attempt
            self.attempts.append(attempt)
        elif found := _DELIVERY.match(text):
            ended = self._running.pop(found[1], None)
            if ended is not None:
                ended.end = now
                ended.deferred = found[2] == "deferral"
                if found[2] == "failure" and ended.tag is not None:
                    self._failed[ended.tag] = None
        elif text.startswith("end msg "):
            tag = self.tags.get(text.split()[2])
            if tag in self._failed:
                self._failed[tag] = now

    def kill(self, now: float, ends_all: bool) -> None:
        """Something was killed just now; `ends_all` when no attempt of before has a later line."""
        self.kills.append(now)
        for attempt in self.attempts:
            if attempt.end is None or attempt.end > now - SLACK:
                attempt.killed = True
        for tag, ended in self._failed.items():
            if ended is None or ended > now - SLACK:
                self.bouncing[tag] += 1
        for attempt in self._running.values():
            # The failure may have been written down and not logged, and the bounce sent twice.
            if attempt.tag is not None and attempt.recipient.split("-")[-2:-1] == ["nobody"]:
                self.bouncing[attempt.tag] += 1
        if ends_all:
            for attempt in self._running.values():
                attempt.end = now
            self._running.clear()

    def story(self, tag: str) -> str:
        """What happened to a message, for people: each attempt, and how long before a kill it started and ended."""
        parts = []
        for attempt in self.attempts:
            if attempt.tag == tag:
                kill = next((moment for moment in self.kills if moment > attempt.start), attempt.start)
                ended = "no end" if attempt.end is None else f"ended {kill - attempt.end:.3f} s"
                parts.append(f"{attempt.recipient} msg {attempt.number} {kill - attempt.start:.3f} s, {ended}")
        return "; ".join(parts)

    def running(self) -> list[str]:
        """Attempts without an end in the log."""
        return [f"delivery {number}: {attempt.recipient}" for number, attempt in self._running.items()]

    def may_repeat(self, tag: str, *kinds: str) -> int:
        """How many attempts for a message, to recipients of these kinds, may have delivered without being believed."""
        return sum(
            1
            for attempt in self.attempts
            if (attempt.killed or attempt.deferred)
            and attempt.tag in (tag, None)
            and any(kind in attempt.recipient for kind in kinds)
        )


@attrs.define
class Ledger:
    """`outcomes` and `wanted` by tag: the answer of the server, and the kinds of its recipients. `arrived` counts
    (tag, kind)."""

    outcomes: dict[str, str] = attrs.Factory(dict)
    wanted: dict[str, tuple[str, ...]] = attrs.Factory(dict)
    arrived: Counter[tuple[str, str]] = attrs.Factory(Counter)

    def count(self, outcome: str) -> int:
        return sum(1 for one in self.outcomes.values() if one == outcome)

    def missing(self) -> list[str]:
        """What was accepted and did not arrive."""
        return sorted(
            f"{tag} to {kind}"
            for tag, outcome in self.outcomes.items()
            if outcome == ACCEPTED
            for kind in self.wanted[tag]
            if not self.arrived[tag, kind]
        )

    def unasked(self) -> list[str]:
        """What arrived and was refused, never sent, or not for that recipient."""
        return sorted(
            f"{tag} to {kind}"
            for tag, kind in self.arrived
            if self.outcomes.get(tag) not in (ACCEPTED, UNKNOWN) or kind not in self.wanted[tag]
        )

    def duplicates(self) -> dict[tuple[str, str], int]:
        """What arrived more than once, and how many times too often."""
        return {key: count - 1 for key, count in self.arrived.items() if count > 1}

    def unexplained(self, history: History) -> list[str]:
        """The duplicates for which no attempt was under way at a kill."""
        wrong = []
        for (tag, kind), extra in sorted(self.duplicates().items()):
            allowed = history.may_repeat(tag, f"-{kind}-", *(("-forwarded",) if kind == "forward" else ()))
            if kind == "nobody":
                allowed += history.bouncing[tag] + history.may_repeat(tag, "-bounces-")
            if extra > allowed:
                wrong.append(
                    f"{tag} to {kind}: {extra} too many, {allowed} explained; before a kill: {history.story(tag)}"
                )
        return wrong
