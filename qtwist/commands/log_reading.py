"""Reading the logs of servers: events as JSON, or text, with the stamps of multilog before them or not."""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import attrs

#: Records that are kept of a log, so that a large one does not fill the memory.
MOST = 200_000

_CONNECTION = re.compile(r"\b([0-9a-f]{16}): ")
_NUMBER = re.compile(r"\bmessage (\d+)\b")
_REFUSED = re.compile(r"(?:^|: )[A-Za-z]+ answered ([45]\d\d) ")
_RULE = re.compile(r" rule=(\w+)")
_TAI64N = re.compile(rb"@[0-9a-f]{24} ")


@attrs.frozen
class Record:
    """A line of a log. `fields` are those of an event; of a text line, what could be made out."""

    text: str
    when: str = ""
    fields: dict[str, Any] = attrs.field(factory=dict)

    @classmethod
    def parse(cls, line: bytes) -> Record:
        """Never fails: what is no event is text."""
        stamp = _TAI64N.match(line)
        body = line[stamp.end() :] if stamp else line
        if body.startswith(b"{"):
            try:
                fields = json.loads(body)
                text, moment = str(fields.get("text", "")), float(fields.get("time", 0))
                when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
            except (ValueError, RecursionError, AttributeError, TypeError, OverflowError, OSError):
                pass
            else:
                return cls(_without_id(text, str(fields.get("id", ""))), when, fields)
        text = line.decode("utf-8", "backslashreplace").rstrip("\n")
        made = {}
        for name, pattern in (("id", _CONNECTION), ("rule", _RULE), ("number", _NUMBER)):
            match = pattern.search(text)
            if match:
                made[name] = match[1]
        return cls(text, "", made)

    @property
    def connection(self) -> str:
        return str(self.fields.get("id", ""))

    @property
    def number(self) -> str:
        return str(self.fields.get("number", ""))

    @property
    def delivery(self) -> str:
        return str(self.fields.get("delivery", ""))

    @property
    def rule(self) -> str:
        return str(self.fields.get("rule", ""))

    @property
    def code(self) -> str:
        """The code of a refusal; empty for what is none."""
        match = _REFUSED.search(self.text)
        return match[1] if match else ""

    @property
    def dialogue(self) -> str:
        """The text behind the name of the connection."""
        match = _CONNECTION.search(self.text)
        return self.text[match.end() :] if match else self.text

    def is_about(self, what: str) -> bool:
        """Whether it names `what`: an address, a number, a connection; or has it in its text."""
        named = (self.fields.get(name) for name in ("id", "ip", "sender", "recipient", "number", "qp", "helo"))
        if any(str(value).lower() == what for value in named if value not in (None, "")):
            return True
        # A number may be part of any other one, so it has to stand alone.
        return re.search(rf"(?<![\w.:-]){re.escape(what)}(?![\w.:-])", self.text.lower()) is not None

    def is_trace_of(self, client: str) -> bool:
        """Whether it is a line of the dialogue with `client`, an address or a network."""
        ip = self.fields.get("ip")
        if ip is None or self.fields.get("direction") is None:
            match = re.search(r"\b[0-9a-f]{16}: (\S+) [<>] ", self.text)
            ip = match[1] if match else ""
        try:
            return ip_address(str(ip)) in ip_network(client, strict=False)
        except ValueError:
            return False


def _without_id(text: str, connection: str) -> str:
    return text.removeprefix(f"{connection}: ") if connection else text


def relevant(lines: Iterable[bytes], what: str) -> list[Record]:
    """The records about `what`, and all others about the same connections, messages and attempts, in their order."""
    records: list[Record] = []
    for line in lines:
        record = Record.parse(line)
        if record.fields or what.lower() in record.text.lower():
            records.append(record)
            if len(records) > 2 * MOST:
                del records[:MOST]
    lowered = what.lower()
    hits = [record for record in records if record.is_about(lowered)]
    connections = {record.connection for record in hits} - {""}
    numbers = {record.number for record in hits} - {""}
    for record in records:
        if record.connection in connections and record.number:
            numbers.add(record.number)
        if record.number in numbers and record.connection:
            connections.add(record.connection)
    deliveries = {record.delivery for record in records if record.number in numbers} - {""}
    chosen = {id(record) for record in hits}
    return [
        record
        for record in records
        if id(record) in chosen
        or record.connection in connections
        or record.number in numbers
        or (record.delivery in deliveries and not record.number)
    ]


class Follower:
    """What is added to a file from now on, also when another one takes its name. OSError when it is not there."""

    def __init__(self, path: str) -> None:
        self._path = os.path.join(path, "current") if os.path.isdir(path) else path
        self._file: io.BufferedReader = open(self._path, "rb")  # noqa: SIM115  # it stays open
        self._file.seek(0, os.SEEK_END)
        self._rest = b""

    def new(self) -> Iterator[Record]:
        """The lines that have come since the last call."""
        yield from self._read()
        try:
            status, known = os.stat(self._path), os.fstat(self._file.fileno())
        except FileNotFoundError:
            return  # between two names
        if (status.st_dev, status.st_ino) != (known.st_dev, known.st_ino):
            yield from self._read()
            self._file.close()
            self._file = open(self._path, "rb")  # noqa: SIM115
            yield from self._read()
        elif status.st_size < self._file.tell():
            self._file.seek(0)

    def _read(self) -> Iterator[Record]:
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            yield Record.parse(line)
