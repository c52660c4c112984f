"""The books of a soak: what was handed in, what the server said, what arrived, and whether that is all explained.

The promise (doc/durability.md, spec/qmail.md §5, §26): what was answered 250 is delivered at least once to each
recipient or bounced; what was answered otherwise is not delivered; without an answer it is one or the other, as a
whole. A recipient may get a second copy only

- when the first was not marked on the disk as the queue manager died (:class:`~tests.soak.snapshot.Snapshot` has looked
  there, while nobody changed it), and then not for long: LAG;
- when its delivery was under way as a process was killed, and was deferred: nobody knew how far it had come.
"""

from __future__ import annotations

import re
from collections import Counter

import attrs

#: Seconds from a success in the log to its mark on the disk, at most: whoever dies later has not delivered twice.
LAG = 2.0
#: Seconds that a line of the log may be under way.
TRANSIT = 0.5

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
    start: float
    end: float | None = None
    outcome: str | None = None
    killed: bool = False  # it was under way when something was killed
    unmarked: bool = False  # the queue manager died, and nothing on the disk told that it had been made


@attrs.frozen
class Left:
    """What a dead queue manager has left of one message that was preprocessed: recipients that are not marked, and
    whether there is a notice to be sent."""

    number: str
    tag: str | None
    recipients: tuple[str, ...]
    bounce: bool


@attrs.frozen
class Death:
    """The end of a queue manager: when, and what it left."""

    moment: float
    left: tuple[Left, ...]


@attrs.define
class History:
    """What the log lines of all runs, and the disk after each death of the queue manager, say about attempts.

    Lines have to come in order, with the time of their coming; those of a queue manager may come after its death was
    told, for the next one counts its deliveries from 1 again.
    """

    attempts: list[Attempt] = attrs.Factory(list)
    lags: list[tuple[float, Attempt]] = attrs.Factory(list)  # reports that no mark followed; how long before a death
    kills: list[float] = attrs.Factory(list)
    _bouncing: Counter[str] = attrs.Factory(Counter)  # deaths with a notice that was to be sent, or had just been
    #: Deaths with a recipient who was not marked. An attempt may have been under way that the log does not tell: its
    #: last lines die with the queue manager, and more of them with the supervisor.
    _pending: Counter[tuple[str | None, str]] = attrs.Factory(Counter)
    _tags: dict[str, str] = attrs.Factory(dict)  # the tag of the message that has a number now
    _running: dict[str, Attempt] = attrs.Factory(dict)
    _life: int = 0  # the first attempt of the queue manager that lives
    _death: Death | None = None  # its lines may still be coming

    def line(self, text: str, now: float) -> None:
        """Take one line of the log."""
        if found := _INFO.match(text):
            tag = tag_of(found[2])
            if tag is not None:
                self._tags[found[1]] = tag
            else:
                self._tags.pop(found[1], None)
        elif found := _STARTING.match(text):
            delivery, number, recipient = found.groups()
            if delivery == "1":
                self.bury()
            attempt = Attempt(recipient, number, tag_of(recipient) or self._tags.get(number), now)
            # The line may have been under way when the kill came.
            attempt.killed = bool(self.kills) and now - self.kills[-1] < TRANSIT
            self._running[delivery] = attempt
            self.attempts.append(attempt)
        elif found := _DELIVERY.match(text):
            ended = self._running.pop(found[1], None)
            if ended is not None:
                ended.end = now
                ended.outcome = found[2]

    def kill(self, now: float) -> None:
        """Something was killed just now, which is not the queue manager."""
        self.kills.append(now)
        for attempt in self._running.values():
            attempt.killed = True

    def died(self, death: Death) -> None:
        """The queue manager is dead, and nobody has touched the queue since."""
        self.bury()
        self.kills.append(death.moment)
        self._death = death

    def bury(self) -> None:
        """All that the dead queue manager had to say has been heard: judge it."""
        death, self._death = self._death, None
        if death is None:
            return
        pending = {
            (one.number, recipient, tag_of(recipient) or one.tag) for one in death.left for recipient in one.recipients
        }
        for attempt in self.attempts[self._life :]:
            key = (attempt.number, attempt.recipient, attempt.tag)
            attempt.unmarked = attempt.outcome != "deferral" and key in pending
            if attempt.unmarked and attempt.end is not None:
                self.lags.append((death.moment - attempt.end, attempt))
        self._pending.update((tag, recipient) for _, recipient, tag in pending)
        self._bouncing.update(one.tag for one in death.left if one.bounce and one.tag is not None)
        self._running.clear()
        self._life = len(self.attempts)

    def story(self, tag: str) -> str:
        """What happened to a message, for people: each attempt, and how long before a kill it started and ended."""
        parts = []
        for attempt in self.attempts:
            if attempt.tag == tag:
                kill = next((moment for moment in self.kills if moment > attempt.start), attempt.start)
                ended = "no end" if attempt.end is None else f"{attempt.outcome} {kill - attempt.end:.3f} s"
                flags = f"{', killed' * attempt.killed}{', unmarked' * attempt.unmarked}"
                parts.append(
                    f"{attempt.recipient} msg {attempt.number} at {attempt.start:.3f}, "
                    f"{kill - attempt.start:.3f} s, {ended}{flags}"
                )
        return "; ".join(parts)

    def running(self) -> list[str]:
        """Attempts without an end in the log."""
        return [f"delivery {number}: {attempt.recipient}" for number, attempt in self._running.items()]

    def may_repeat(self, tag: str, *kinds: str) -> int:
        """How many attempts for a message, to recipients of these kinds, may have delivered without being believed."""
        deferred = sum(
            1
            for attempt in self.attempts
            if attempt.killed
            and attempt.outcome == "deferral"
            and attempt.tag == tag
            and any(kind in attempt.recipient for kind in kinds)
        )
        pending = sum(
            count
            for (owner, recipient), count in self._pending.items()
            if owner == tag and any(kind in recipient for kind in kinds)
        )
        return deferred + pending

    def may_bounce_again(self, tag: str) -> int:
        """How often the notice about a message may have been queued once more."""
        return self._bouncing[tag]

    def late(self) -> list[str]:
        """Successes that were not marked long after they were in the log."""
        return [
            f"{lag:.1f} s: {one.recipient} ({one.tag}), message {one.number}"
            for lag, one in self.lags
            if lag > LAG and one.outcome == "success"
        ]


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

    def unexplained(self, history: History) -> dict[tuple[str, str], str]:
        """The duplicates for which there was no reason."""
        wrong = {}
        for (tag, kind), extra in sorted(self.duplicates().items()):
            allowed = history.may_repeat(tag, f"-{kind}-", *(("-forwarded",) if kind == "forward" else ()))
            if kind == "nobody":
                allowed += history.may_bounce_again(tag) + history.may_repeat(tag, "-bounces-")
            if extra > allowed:
                wrong[tag, kind] = (
                    f"{tag} to {kind}: {extra} too many, {allowed} explained; before a kill: {history.story(tag)}"
                )
        return wrong
