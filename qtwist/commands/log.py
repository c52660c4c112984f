"""`qtwist log VERB`: why somebody was refused, and what a client says right now (doc/policies.md)."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from qtwist.commands.base import PERMANENT, TEMPORARY
from qtwist.commands.base import home as default_home
from qtwist.commands.log_reading import Follower, Record, relevant
from qtwist.control_checks import network
from qtwist.control_reading import ControlError, read, split_lines
from qtwist.files.replacing import locked, replace

_EPILOG = """\
LOG is the file of `twistd qtwist --events`, or the log of twistd; also a
directory of multilog's, or - for standard input (not for trace). By default it is
log/events in the home. The home is --home, else $QTWISTHOME, else /var/qmail.
Exit codes: 0 done, 100 wrong use or nothing found, 111 a file cannot be read.
"""

#: What the rules are that log lines name, for somebody who has never heard of them.
RULES = {
    "tcprules": "control/tcp.smtp (or tcp.qmtp …) has a rule about the client that says deny.",
    "memory": "There was too little memory for more: control/memoryminfree.",
    "queueroom": "There was too little room for mail where the queue lies: control/queueminfree.",
    "limits": "The client, or its network, has as many connections as control/maxconnip, maxconnc, connrateip and "
    "connratec allow; or all together are as many as control/concurrencyincoming (control/concurrencypop3) allows. "
    "It may try again later.",
    "rblsmtpd": "A list in control/dnsbllist has the client's address, or RBLSMTPD is set by its rule.",
    "greetdelay": "The client spoke before it was greeted, which mail servers do not; control/greetdelay.",
    "tarpit": "control/tarpitcount and control/tarpitdelay slow the client down.",
    "badhelo": "control/badhelo lists the name that the client gave in HELO, or control/helocheck wants another one.",
    "mfcheck": "control/mfcheck wants a sender whose domain takes mail.",
    "badmailfrom": "control/badmailfrom lists the sender.",
    "badrcptto": "control/badrcptto or control/badmailto lists the recipient.",
    "rcpthosts": "The domain is none of control/rcpthosts, and nothing allows the client to relay: neither "
    "control/relayclients nor RELAYCLIENT in its rule of control/tcp.smtp.",
    "rcptcheck": "control/rcptcheck: mail to the recipient could not be delivered here.",
    "greylisting": "control/greylisting: the client's network sends from this sender to this recipient for the first "
    "time. It will be let in when it comes again after the time that the answer names.",
    "clamd": "ClamAV (control/clamd) found something in the message, or gave no answer about it.",
    "rspamd": "rspamd (control/rspamd) took the message for spam, wants it later, or gave no answer about it.",
    "milters": "A milter of control/milters refused, put off or threw away, or gave no answer.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one verb; returns the exit code."""
    try:
        options = _parser().parse_args(argv)
    except SystemExit as end:
        return PERMANENT if end.code else 0
    try:
        return {"why": why, "count": count, "trace": trace}[options.verb](options)
    except (OSError, ControlError) as error:
        name = getattr(error, "filename", None)
        text = f"{name}: {error.strerror}" if isinstance(error, OSError) and name else str(error)
        return _complain(text, TEMPORARY)
    except KeyboardInterrupt:
        return 0


def _complain(text: str, code: int) -> int:
    sys.stderr.write(f"qtwist log: {text}\n")
    return code


def _parser() -> argparse.ArgumentParser:
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="qtwist log", description=__doc__, epilog=_EPILOG, formatter_class=shape)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, text, what in (
        (
            "why",
            "say what happened, and by which rule",
            "an IP address, a mail address, the number of a message or of a connection, or any text of the log",
        ),
        ("count", "count the refusals by rule and code", ""),
        (
            "trace",
            "show what a client and the server say to each other, from its next connection on",
            "an IP address or a network",
        ),
    ):
        verb = verbs.add_parser(name, help=text, description=text, epilog=_EPILOG, formatter_class=shape)
        verb.add_argument("--home", metavar="HOME", help="the home of the mail system")
        verb.add_argument("--log", metavar="LOG", action="append", help="where to look")
        if what:
            verb.add_argument("what", metavar="WHAT", help=what)
        if name == "trace":
            verb.add_argument("--stop", action="store_true", help="end a trace that was left behind")
    return parser


def _home(options: argparse.Namespace) -> str:
    return os.path.abspath(options.home or default_home())


def _logs(options: argparse.Namespace) -> list[str]:
    given: list[str] | None = options.log
    return given or [os.path.join(_home(options), "log", "events")]


# why


def why(options: argparse.Namespace) -> int:
    """Print all that is known of connections and messages that have to do with WHAT, and what their rules mean."""
    found = relevant(_lines(_logs(options)), options.what)
    if not found:
        return _complain(f"nothing about {options.what} in {', '.join(_logs(options))}", PERMANENT)
    sys.stdout.write("".join(_told(found)))
    return 0


def _lines(logs: Iterable[str]) -> Iterable[bytes]:
    for log in logs:
        if log == "-":
            yield from sys.stdin.buffer
            continue
        files = [log]
        if os.path.isdir(log):
            files = [os.path.join(log, name) for name in sorted(os.listdir(log)) if name.startswith("@")]
            files.append(os.path.join(log, "current"))
        for name in files:
            with open(name, "rb") as file:
                yield from file


def _told(records: Iterable[Record]) -> Iterable[str]:
    explained: set[str] = set()
    connection = ""
    for record in records:
        if record.connection and record.connection != connection:
            connection = record.connection
            yield f"connection {_shown(connection)}\n"
        yield f"  {_shown(record.when + ' ' if record.when else '')}{_shown(record.text)}\n"
        rule = record.rule
        if rule and rule not in explained:
            explained.add(rule)
            text = RULES.get(rule, "This rule is not one of qtwist's; control/policies names it.")
            yield f"    {_shown(rule)}: {text} See doc/policies.md.\n"


def _shown(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


# count


def count(options: argparse.Namespace) -> int:
    """Print how often each rule has refused, with which code."""
    found = Counter(
        (record.rule or "(no rule)", record.code) for record in map(Record.parse, _lines(_logs(options))) if record.code
    )
    for (rule, code), number in sorted(found.items(), key=lambda one: (-one[1], one[0])):
        sys.stdout.write(f"{number:8} {code} {_shown(rule)}\n")
    return 0


# trace


def trace(options: argparse.Namespace, pause: Callable[[], None] = lambda: time.sleep(0.3)) -> int:
    """Add WHAT to control/trace, print what the log then says of it until interrupted, take it out again."""
    expected = network(options.what.encode())
    if expected:
        return _complain(f"{options.what!r} is none; expected {expected}", PERMANENT)
    path = os.path.join(_home(options), "control", "trace")
    if options.stop:
        _change(path, remove=options.what.encode())
        return 0
    follower = Follower(_logs(options)[0])
    _change(path, add=options.what.encode())
    try:
        sys.stderr.write("waiting for the next connection; interrupt to end\n")
        while True:
            for record in follower.new():
                if record.is_trace_of(options.what):
                    sys.stdout.write(_shown(record.dialogue) + "\n")
            sys.stdout.flush()
            pause()
    finally:
        _change(path, remove=options.what.encode())


def _change(path: str, add: bytes = b"", remove: bytes = b"") -> None:
    with locked(path):
        lines = [line for _, line in split_lines(read(path) or b"") if line not in (add, remove)]
        if add:
            lines.append(add)
        replace(path, b"".join(line + b"\n" for line in lines), 0o644)
