"""The verbs of `qtwist queue`: look at the queue and decide about messages, with the daemon running or not."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeGuard

from qtwist.commands.base import PERMANENT, TEMPORARY
from qtwist.commands.base import home as default_home
from qtwist.control import ControlError
from qtwist.mail.domains import ascii_domain, ascii_key
from qtwist.mail.holds import DESTINATION, KINDS, MESSAGE, SENDER, Hold, Holds
from qtwist.queue.layout import LayoutError
from qtwist.queue.looking import ENDING, NEW, Message
from qtwist.send.steering import DROP, FAIL
from qtwist.steering.at_hand import QueueAtHand
from qtwist.steering.stopped import Trouble

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_AGE = re.compile(r"([0-9]{1,9})([smhdw]?)")
_HEADER = 64 * 1024

#: The upper ends of the columns of `shape`, in minutes.
_BUCKETS = (5, 10, 20, 40, 80, 160, 320, 640, 1280)

_EPILOG = """\
AGE is a number and s, m, h, d or w. GLOB may have * and ?. The home is --home,
else $QTWISTHOME, else /var/qmail.
Exit codes: 0 done, 100 wrong use or no such message, 111 try again later.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one verb; returns the exit code."""
    try:
        options = _parser().parse_args(argv)
    except SystemExit as end:
        return PERMANENT if end.code else 0
    try:
        from qtwist.home import Home
        from qtwist.roles import StartError

        home = Home(options.home, reactor=object())
        desk = _Desk(QueueAtHand(home.path, home.rewriter), options)
        desk.carry_out()
    except Trouble as error:
        return _complain(str(error), error.code)
    except (ControlError, LayoutError, StartError) as error:
        return _complain(str(error), TEMPORARY)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return TEMPORARY
    except (OSError, ValueError) as error:
        return _complain(str(error), TEMPORARY)
    return 0


def _complain(text: str, code: int) -> int:
    sys.stderr.write(f"qtwist queue: {_plain(text)}\n")
    return code


def _parser() -> argparse.ArgumentParser:
    """The options; every verb takes --home, and those that choose messages take the filters."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="qtwist queue", description=__doc__, epilog=_EPILOG, formatter_class=shape)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, *, filters: bool = False, numbers: str | None = None) -> argparse.ArgumentParser:
        one = verbs.add_parser(name, help=text, description=text, epilog=_EPILOG, formatter_class=shape)
        one.add_argument("--home", default=default_home(), metavar="DIR", help="the home of the mail system")
        if numbers is not None:
            one.add_argument("ids", nargs=numbers, type=int, metavar="ID", help="the number of a message")
        if filters:
            one.add_argument("--older", type=_age, metavar="AGE", help="messages at least that old")
            one.add_argument("--younger", type=_age, metavar="AGE", help="messages not older than that")
            one.add_argument("--sender", metavar="GLOB", help="by envelope sender; '<>' is the empty one")
            one.add_argument("--recipient", metavar="GLOB", help="by a recipient that is left")
            one.add_argument("--host", metavar="GLOB", help="by the domain of a recipient that is left")
            one.add_argument("--reason", metavar="TEXT", help="by words of the last reply, or of a hold")
            one.add_argument("--held", action="store_true", help="messages of which something is held")
        return one

    def as_json(one: argparse.ArgumentParser) -> None:
        one.add_argument("--json", action="store_true", help="one JSON object a line")

    as_json(verb("list", "list the messages, with the recipients that are left", filters=True))
    as_json(verb("show", "show all about messages: envelope, attempts, next try, header", numbers="+"))
    for name, text in (("hold", "keep mail back"), ("release", "no longer keep mail back")):
        one = verb(name, f"{text}: a message by ID, a sender, or a destination")
        one.add_argument("what", metavar="ID|sender|destination")
        one.add_argument("rest", nargs="*", metavar="[ADDRESS] REASON", help="an address or domain; then a reason")
    for name, text in (
        ("retry", "try messages now"),
        (FAIL, "give messages up: bounce them to their senders now"),
        (DROP, "remove messages without telling anybody"),
    ):
        one = verb(name, text, filters=True, numbers="*")
        one.add_argument("--all", action="store_true", help="all messages")
        if name != "retry":
            one.add_argument("--yes", action="store_true", help="do not ask")
    as_json(verb("route", "say how each recipient would be delivered now, and why", numbers="+"))
    one = verb("shape", "count recipients by destination and age in minutes", filters=True)
    one.add_argument("--by-sender", action="store_true", help="count messages by the sender's domain instead")
    as_json(one)
    return parser


def _age(text: str) -> int:
    match = _AGE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age such as 90s, 15m, 2h, 3d")
    return int(match[1]) * _UNITS[match[2]]


class _Desk:
    """One run of the command."""

    def __init__(self, queue: QueueAtHand, options: argparse.Namespace) -> None:
        self.queue = queue
        self.options = options
        self.now = time.time()
        self._holds: Holds | None = None
        self._original: Callable[[bytes], bytes] | None = None
        self._attempts: dict[int, list[dict[str, Any]]] | None = None

    def carry_out(self) -> None:
        getattr(self, f"do_{self.options.verb}")()

    # Looking.

    def do_list(self) -> None:
        for message in self.chosen():
            row = self.row(message)
            self.write(json.dumps(row) if self.options.json else _listed(row))

    def do_show(self) -> None:
        for message in self.named():
            row = self.row(message, every=True)
            row["header"] = self.header(message.number)
            self.write(json.dumps(row) if self.options.json else _shown(row))

    def do_shape(self) -> None:
        counts: dict[str, Counter[int]] = {}
        for message in self.chosen():
            minutes = max(0, self.now - message.birth) / 60
            bucket = sum(minutes > end for end in _BUCKETS)
            if self.options.by_sender:
                names = [_text(ascii_domain(message.sender.rpartition(b"@")[2])) or "<>"]
            else:
                names = [_text(ascii_domain(address.rpartition(b"@")[2])) for _, address in message.undone()]
            for name in names:
                counts.setdefault(name, Counter())[bucket] += 1
        heads = [*map(str, _BUCKETS), f"{_BUCKETS[-1]}+"]
        rows = sorted(counts.items(), key=lambda item: (-item[1].total(), item[0]))
        if self.options.json:
            for name, found in rows:
                ages = {head: found[index] for index, head in enumerate(heads) if found[index]}
                self.write(json.dumps({"name": name, "total": found.total(), "ages": ages}))
            return
        total: Counter[int] = Counter()
        for found in counts.values():
            total.update(found)
        width = max([5, *(len(_plain(name)) for name in counts)])
        self.write(" ".join([" " * width, f"{'T':>6}", *(f"{head:>5}" for head in heads)]))
        for name, found in [("TOTAL", total), *rows]:
            cells = [f"{found[index]:>5}" for index in range(len(heads))]
            self.write(" ".join([_plain(name).rjust(width), f"{found.total():>6}", *cells]))

    def do_route(self) -> None:
        from qtwist.steering.route import explain

        found = explain(self.queue.home, list(self.named()))
        for row in found:
            if self.options.json:
                self.write(json.dumps(row))
            else:
                self.write("\n    ".join([f"{row['id']} {_plain(row['recipient'])}", *map(_plain, row["steps"])]))

    # Deciding.

    def do_retry(self) -> None:
        messages = list(self.selected())
        self.queue.retry(messages)
        held = sum(self.is_held(message) for message in messages)
        note = f"; {held} of them with something held, which stays held" if held else ""
        verb = "is" if len(messages) == 1 else "are"
        self.write(f"{_count(len(messages), 'message')} {verb} due now{note}")

    def do_fail(self) -> None:
        self.settle("give up", "failed")

    def do_drop(self) -> None:
        self.settle("drop without telling anybody", "dropped")

    def settle(self, question: str, done: str) -> None:
        messages = list(self.selected())
        if not messages:
            self.write("no such messages")
            return
        if not self.options.yes:
            for message in messages[:10]:
                self.write(_listed(self.row(message)))
            sys.stdout.write(f"{question} {_count(len(messages), 'message')}? [y/N] ")
            sys.stdout.flush()
            if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                raise Trouble("nothing was done", PERMANENT)
        trouble = 0
        for message in messages:
            try:
                now = self.queue.looking.message(message.number)
                # The number may be another message's by now.
                if now is None or now.birth != message.birth or now.sender != message.sender:
                    raise Trouble(f"message {message.number}: has ended meanwhile")
                self.queue.settle(message, self.options.verb)
                self.write(f"{message.number} {done}")
            except Trouble as error:
                trouble += 1
                _complain(str(error), error.code)
        if trouble:
            raise Trouble(f"{_count(trouble, 'message')} of {len(messages)} not {done}")

    def do_hold(self) -> None:
        hold = self.hold()
        self.queue.change_holds(lambda holds: [*(one for one in holds.entries if not _same(one, hold)), hold])
        self.write(f"held: {_plain(_text(hold.line()))}")

    def do_release(self) -> None:
        what = self.options.what
        if _is_number(what):
            prefix = b"%d/" % int(what)

            def matches(one: Hold) -> bool:
                return one.kind == MESSAGE and one.value.startswith(prefix)
        else:
            hold = self.hold()

            def matches(one: Hold) -> bool:
                return _same(one, hold)

        if not any(map(matches, self.queue.holds().entries)):
            raise Trouble("that is not held", PERMANENT)
        self.queue.change_holds(lambda holds: [one for one in holds.entries if not matches(one)])
        self.write("released")

    def hold(self) -> Hold:
        """The hold that the command line names."""
        what, rest = self.options.what, self.options.rest
        if what == MESSAGE and rest:
            what, rest = rest[0], rest[1:]
        if _is_number(what):
            return self.queue.hold_of_message(int(what), os.fsencode(" ".join(rest)))
        if what not in KINDS or not rest:
            raise Trouble("say what: ID, sender ADDRESS, or destination DOMAIN; then a reason", PERMANENT)
        kind = SENDER if what == SENDER else DESTINATION
        return Hold.make(kind, os.fsencode(rest[0]), os.fsencode(" ".join(rest[1:])))

    # Choosing.

    def named(self) -> Iterator[Message]:
        """The messages of the command line's numbers. Trouble when one does not exist."""
        for number in self.options.ids:
            message = self.queue.looking.message(number)
            if message is None:
                raise Trouble(f"message {number}: no such message", PERMANENT)
            yield message

    def chosen(self) -> Iterator[Message]:
        """The messages that the filters let through."""
        return filter(self.matches, self.queue.looking.messages())

    def selected(self) -> Iterator[Message]:
        """Numbers, or filters, or --all: but not nothing."""
        options = self.options
        given = (options.older, options.younger, options.sender, options.recipient, options.host, options.reason)
        filters = options.held or any(one is not None for one in given)
        if bool(options.ids) + bool(filters) + options.all != 1:
            raise Trouble("name messages by ID, or by filters, or say --all", PERMANENT)
        return (one for one in (self.named() if options.ids else self.chosen()) if one.state != ENDING)

    def matches(self, message: Message) -> bool:
        options = self.options
        age = self.now - message.birth
        if (options.older is not None and age < options.older) or (
            options.younger is not None and age > options.younger
        ):
            return False
        if options.sender is not None and not _glob(_text(message.sender) or "<>", options.sender):
            return False
        left = [_text(address) for _, address in message.undone()]
        if options.recipient is not None and not any(_glob(one, options.recipient) for one in left):
            return False
        if options.host is not None and not any(_glob(one.rpartition("@")[2], options.host) for one in left):
            return False
        if options.held and not self.is_held(message):
            return False
        if options.reason is None:
            return True
        row = self.row(message)
        found = [one.get("held", "") for one in row["recipients"]]
        found += [row.get("held", ""), *(one["last"]["text"] for one in row["recipients"] if "last" in one)]
        return any(options.reason.lower() in text.lower() for text in found)

    # What is known of a message.

    def holds(self) -> Holds:
        if self._holds is None:
            self._holds = self.queue.holds()
        return self._holds

    def hold_of(self, address: bytes) -> Hold | None:
        if not self.holds().entries:
            return None
        if self._original is None:
            self._original = self.queue.original()
        return self.holds().of_recipient(address) or self.holds().of_recipient(self._original(address))

    def is_held(self, message: Message) -> bool:
        if message.state == ENDING:
            return False
        whole = self.holds().of_message(message.number, message.birth, message.sender)
        return whole is not None or any(self.hold_of(address) for _, address in message.undone())

    def attempts(self, number: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
        if self._attempts is None:
            named = getattr(self.options, "ids", None) or None
            self._attempts = self.queue.attempts(named)
        return {(one["channel"], one["address"]): one["attempts"] for one in self._attempts.get(number, ())}

    def row(self, message: Message, *, every: bool = False) -> dict[str, Any]:
        """A message for JSON, with the recipients that are left, or with `every` one and all attempts."""
        known = self.attempts(message.number)
        recipients = []
        for channel, found in message.channels.items():
            for record in found.records:
                if record.done and not every:
                    continue
                one: dict[str, Any] = {"channel": channel, "address": _text(record.address), "done": record.done}
                if not record.done:
                    one["next"] = found.due
                hold = None if record.done else self.hold_of(record.address)
                if hold is not None:
                    one["held"] = _text(hold.text())
                attempts = known.get((channel, one["address"]))
                if attempts:
                    one["last"] = attempts[-1]
                    if every:
                        one["attempts"] = attempts
                recipients.append(one)
        recipients += [{"channel": NEW, "address": _text(one), "done": False} for one in message.envelope]
        row: dict[str, Any] = {
            "id": message.number,
            "state": message.state,
            "sender": _text(message.sender),
            "birth": message.birth,
            "size": message.size,
            "recipients": recipients,
        }
        hold = self.holds().of_message(message.number, message.birth, message.sender)
        if hold is not None and message.state != ENDING:
            row["held"] = _text(hold.text())
        return row

    def header(self, number: int) -> str:
        fd = self.queue.open_message(number)
        try:
            text = os.read(fd, _HEADER)
        finally:
            os.close(fd)
        return _text(text.partition(b"\n\n")[0])

    @staticmethod
    def write(line: str) -> None:
        sys.stdout.write(line + "\n")


def _same(one: Hold, other: Hold) -> bool:
    return (one.kind, one.value) == (other.kind, other.value)


def _is_number(text: object) -> TypeGuard[str]:
    return isinstance(text, str) and text.isascii() and text.isdecimal()


def _glob(text: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(*(_text(ascii_key(_octets(one.lower()))) for one in (text, pattern)))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _plain(text: str) -> str:
    """Fit for a terminal: what a hostile sender writes must not steer it."""
    shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(one if one.isprintable() else f"\\x{ord(one):02x}" for one in shown)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _span(seconds: float) -> str:
    """A time span in its two largest units."""
    left = int(abs(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2]) or "0s"


def _listed(row: dict[str, Any]) -> str:
    now = time.time()
    head = f"{row['id']}  {_span(now - row['birth'])}  {row['size']} bytes  <{_plain(row['sender'])}>  {row['state']}"
    return "\n".join([head + _held(row), *(_recipient(one, now) for one in row["recipients"])])


def _recipient(one: dict[str, Any], now: float) -> str:
    line = f"    {one['channel']} {_plain(one['address'])}"
    if one["done"]:
        return line + "  done"
    if "next" in one:
        line += f"  next {'in ' + _span(one['next'] - now) if one['next'] > now else 'now'}"
    line += _held(one)
    return line + (f"\n        {_attempt(one['last'], now)}" if "last" in one and "attempts" not in one else "")


def _held(one: dict[str, Any]) -> str:
    return f"  held ({_plain(one['held'])})" if "held" in one else ""


def _attempt(one: dict[str, Any], now: float) -> str:
    word = {"K": "success", "Z": "deferral", "D": "failure"}.get(one["letter"], "mangled")
    return f"{_span(now - one['when'])} ago: {word}: {_plain(one['text'].strip().replace(chr(10), ' / '))}"


def _shown(row: dict[str, Any]) -> str:
    now = time.time()
    lines = [
        _listed({**row, "recipients": []}),
        "    born " + time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["birth"])),
    ]
    for one in row["recipients"]:
        lines.append(_recipient(one, now))
        lines += [f"        {_attempt(attempt, now)}" for attempt in one.get("attempts", ())]
    lines += ["", *("  " + _plain(line) for line in row["header"].split("\n")), ""]
    return "\n".join(lines)
