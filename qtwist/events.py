"""What happens, as JSON: one object a line, beside qmail's log lines (doc/running.md).

Every event has ``time`` (seconds since 1970), ``level``, ``namespace`` and ``text``, and whatever else is known:
``id`` of the connection, ``number`` of the message, ``delivery`` (number of the attempt).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from zope.interface import implementer

from qtwist.interfaces import Preprocessed
from qtwist.mail.envelope import Report
from qtwist.send.log import SendLog

#: Set in the environment of a role that is to write its events as JSON.
SWITCH = "QTWIST_EVENTS"

#: Events of such a length (octets) are cut, so that a line always fits where it is passed on.
LONGEST = 32768

_OUTCOME = {b"K": "success", b"Z": "deferral", b"D": "failure"}


@lru_cache(500)
def _is_plain(form: str) -> bool:
    """The fields of a form are plain names; Twisted's others, ``{name.attribute}`` and ``{name()}``, are rare."""
    return re.fullmatch(r"(?:[^{}]|\{[A-Za-z_]+\})*", form) is not None


def event_text(event: LogEvent) -> str:
    """What an event of twisted.logger says: ``formatEvent(event)``, in a tenth of its time for nearly all of ours."""
    form = event.get("log_format")
    if isinstance(form, str) and _is_plain(form):
        with suppress(Exception):  # a field is missing, or cannot be shown: Twisted says what and where
            return form.format_map(event)
    return formatEvent(event)


@implementer(ILogObserver)
class Events:
    """Takes events, as an observer of twisted.logger too; `write` gets each as a line."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write

    def __call__(self, event: LogEvent) -> None:
        """An event of twisted.logger; what Twisted has to say counts from warnings on."""
        level, namespace = event["log_level"], event.get("log_namespace", "")
        if event.get("is_passed_on") or (level < LogLevel.warn and not namespace.startswith("qtwist")):
            return
        fields = {name: _plain(value) for name, value in event.items() if not name.startswith("log_")}
        failure = event.get("log_failure")
        if failure is not None:
            fields["traceback"] = failure.getTraceback()
        self.take(
            {**fields, "time": event["log_time"], "level": level.name, "namespace": namespace},
            text=event_text(event),
        )

    def say(self, text: str, **fields: object) -> None:
        """Something that is for this log alone."""
        self.take({"time": time.time(), "level": "info", "namespace": "qtwist.send", **fields}, text=text)

    def take(self, record: dict[str, Any], **more: object) -> None:
        """Write an event, with some fields more."""
        line = json.dumps({**record, **more}).encode("ascii")
        if len(line) > LONGEST:
            kept = ("time", "level", "namespace", "id", "number", "role", "pid")
            short = {name: record[name] for name in kept if name in record}
            line = json.dumps({**short, "text": str(more.get("text", record.get("text")))[:1000]}).encode("ascii")
        self._write(line + b"\n")


def _plain(value: object) -> object:
    """What JSON has a form for."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value)


class EventfulSendLog(SendLog):
    """qmail's log lines, and an event beside each that is about a message or an attempt."""

    def __init__(self, write: Callable[[bytes], None], events: Events) -> None:
        super().__init__(write)
        self._events = events

    def new_message(self, message: Preprocessed) -> None:
        super().new_message(message)
        self._events.say(
            "new message",
            number=message.number,
            size=message.size,
            sender=_plain(message.sender),
            qp=message.qp,
            uid=message.uid,
        )

    def starting(self, delivery: int, number: int, channel: str, recipient: bytes) -> None:
        super().starting(delivery, number, channel, recipient)
        self._events.say(
            "starting delivery", delivery=delivery, number=number, channel=channel, recipient=_plain(recipient)
        )

    def delivery(self, delivery: int, report: Report) -> None:
        super().delivery(delivery, report)
        outcome = _OUTCOME.get(report.letter, "mangled")
        self._events.say("delivery", delivery=delivery, outcome=outcome, report=_plain(report.text))

    def bounce(self, number: int, qp: int) -> None:
        super().bounce(number, qp)
        self._events.say("bounce", number=number, qp=qp)

    def end(self, number: int) -> None:
        super().end(number)
        self._events.say("end of message", number=number)
