"""qmail-inject: complete the header of a message and queue it (spec/qmail.md §19)."""

from __future__ import annotations

import os
import sys
from time import time

from qtwist.commands.base import PERMANENT, TEMPORARY, blocks, die, home, parse, write_all
from qtwist.control_reading import ControlError, first_line, read, split_lines
from qtwist.inject.injection import Injection, InjectionError, Settings
from qtwist.inject.splitting import HeaderTooLong, Splitter
from qtwist.mail.domains import ascii_key
from qtwist.queue.client import QueueRefused, submit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

PROG = "qmail-inject"

OPTIONS = "aAhHnNf:"

USAGE = """\
NAME
    qmail-inject - complete the header of a message and queue it

SYNOPSIS
    qmail-inject [-aAhHnN] [-f SENDER] [RECIPIENT ...]

DESCRIPTION
    Reads a message on standard input. Addresses in its header are completed
    with the default host and domain, missing fields are added (Date,
    Message-ID, From, Cc), Bcc, Return-Path and Content-Length are taken out.
    The result is queued. A message that has Resent- fields gets Resent- fields
    and goes to the recipients in those only.

    Lines may end with CR LF: a CR at the end of a header line is dropped, and
    if the header had one, CR LF counts as a line end in the body, too.

OPTIONS
    -a  send to the RECIPIENTs only
    -h  send to the recipients in the header only
    -H  send to both
    -A  send to the RECIPIENTs if there are any, else as -h (the default)
    -n  write the message to standard output, and queue nothing
    -N  queue the message (the default)
    -f SENDER
        the envelope sender, in place of Return-Path and the environment

ENVIRONMENT
    QMAILUSER, MAILUSER, USER, LOGNAME   user in From: the first that is set
    QMAILHOST, MAILHOST                  host in From [control/defaulthost]
    QMAILNAME, MAILNAME, NAME            name in From
    QMAILSUSER, QMAILSHOST               envelope sender [as in From]
    QMAILDEFAULTHOST, QMAILDEFAULTDOMAIN, QMAILPLUSDOMAIN, QMAILIDHOST
                                         instead of the control file so named
    QMAILMFTFILE                         a file with addresses of mailing lists:
                                         mail to them gets Mail-Followup-To
    QMAILINJECT   letters:  c  From as  address (name)
                            s  Return-Path in the header does not count
                            f  delete From      i  delete Message-ID
                            r  one envelope sender per recipient (VERP)
                            m  one envelope sender per message
    QMAILQUEUE    a program that takes the message instead of the queue
    QTWISTHOME    the home of the mail system [/var/qmail]

EXIT CODES
    0    queued, or written
    100  wrong use, an address that is none, or the queue refuses it for good
    111  not now
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code, or raises SystemExit with it."""
    arguments = sys.argv[1:] if argv is None else argv
    return run(arguments, os.environ, blocks(0))


def run(
    argv: Sequence[str],
    environ: Mapping[str, str],
    message: Iterable[bytes],
    parameters: tuple[bytes, bytes] = (b"", b""),
) -> int:
    """Do what the command line says, with `message` as the input; `parameters` are as `submit` has them.

    $QTWISTHOME and $QMAILQUEUE, too, are those of `environ`.
    """
    options, words = parse(PROG, argv, OPTIONS, USAGE)
    strategy = "A"
    to_queue = True
    sender: bytes | None = None
    for letter, argument in options:
        if letter == "f":
            sender = os.fsencode(argument)
        elif letter in "nN":
            to_queue = letter == "N"
        else:
            strategy = letter
    if strategy == "A":
        strategy = "a" if words else "h"
    try:
        injection = Injection(_settings(environ), int(time()), os.getpid(), sender)
        if strategy != "h":
            for word in words:
                injection.add_recipient(os.fsencode(word))
        splitter = Splitter(message)
        for field in splitter.fields():
            injection.add_field(field)
        header = injection.header()
        if to_queue:
            recipients = injection.recipients(strategy != "a")
            whole = _whole(header, splitter)
            submit(home(environ), whole, injection.sender or b"", recipients, environ, parameters)
        else:
            write_all(1, injection.return_path())
            for block in _whole(header, splitter):
                write_all(1, block)
    except InjectionError as error:
        die(PROG, PERMANENT, b"fatal: " + _printable(error.args[0]))
    except HeaderTooLong:
        die(PROG, PERMANENT, "fatal: the header is too long")
    except QueueRefused as error:
        die(PROG, PERMANENT if error.letter == b"D" else TEMPORARY, b"fatal: " + error.text)
    except ControlError as error:
        die(PROG, TEMPORARY, f"fatal: {error}")
    except OSError as error:
        die(PROG, TEMPORARY, f"fatal: unable to read or write: {error.strerror}")
    return 0


def control_host(home: str, name: str) -> bytes:
    """The first line of control/`name`, of control/me without that file, and `name` itself without both (§3).

    ControlError when the file cannot be read.
    """
    for candidate in (name, "me"):
        text = read(f"{home}/control/{candidate}")
        if text is not None:
            return first_line(text)
    return name.encode()


def _settings(environ: Mapping[str, str]) -> Settings:
    followup = environ.get("QMAILMFTFILE")
    text = None if followup is None else read(followup)
    place = home(environ)
    if not os.path.isdir(place):
        die(PROG, TEMPORARY, f"fatal: there is no mail system in {place}")
    return Settings(
        {os.fsencode(name): os.fsencode(value) for name, value in environ.items()},
        lambda name: control_host(place, name),
        frozenset(ascii_key(line) for _, line in split_lines(text or b"")),
    )


def _whole(header: bytes, splitter: Splitter) -> Iterator[bytes]:
    yield header
    yield from splitter.body()


def _printable(text: bytes) -> bytes:
    """`text` for a terminal or a log: LF stays, what else is not printable becomes ``?``."""
    return text.translate(_SHOWN)


_SHOWN = bytes(octet if octet == 10 or 32 <= octet <= 126 else 63 for octet in range(256))

if __name__ == "__main__":
    sys.exit(main())
