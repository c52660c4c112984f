"""sendmail: what programs call to send mail; also mailq and newaliases (spec/qmail.md §20)."""

from __future__ import annotations

import os
import sys

from qtwist.commands import inject
from qtwist.commands.base import PERMANENT, TEMPORARY, blocks, die, home, parse, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

PROG = "sendmail"

# Those of qmail's sendmail, and those of other people's that programs pass without a thought.
OPTIONS = "vimte:f:p:o:B:F:E::J::xb:A:C:D:GIL:M:N:O:Q::R:UV:X:Ycd::h:nq::r:s"

USAGE = """\
NAME
    sendmail, mailq, newaliases - send mail the way that programs expect

SYNOPSIS
    sendmail [-t] [-f SENDER] [-F NAME] [OPTION ...] [RECIPIENT ...]
    sendmail -bs
    sendmail -bp, or mailq
    newaliases

DESCRIPTION
    Reads a message on standard input and hands it to qmail-inject, which
    completes its header and queues it; see qmail-inject --help, also for the
    environment. A message goes to the RECIPIENTs. A line with nothing but a dot
    does not end it: every message ends where the input does.

OPTIONS
    -t         send to the recipients in the header, too
    -f SENDER  the envelope sender; From, where it is missing, is the same, and
               has no name
    -r SENDER  the same
    -F NAME    the name in From, where it is missing
    -N WHEN    report on each recipient: never, or some of success, failure and
               delay with commas between them
    -R WHAT    in a report of failure: full, the message; hdrs, its header
    -V ID      an identifier of the message that is in its reports
    -bm        send a message (the default)
    -bp        show the queue, as mailq does
    -bs        talk SMTP on standard input and output
    -q         run the queue: nothing to do, the daemon does it. With
               recipients, or with -t, it is ignored

    -bd, -bD and the other modes are refused: the daemon is twistd qtwist. So is
    -bi, or -I, or newaliases: aliases are the files .qmail-NAME in HOME/alias.

    Accepted and without effect: -e MODE, -o OPTION, -O OPTION=VALUE,
    -p PROTOCOL, -B TYPE, -A MODE, -C FILE, -D FILE, -L TAG, -M ID, -X FILE,
    -h HOPS with an argument; -d, -E, -J, -Q with text behind them or none; and
    -c, -G, -i, -m, -n, -s, -U, -v, -x, -Y.

EXIT CODES
    0    queued
    100  wrong use, an address that is none, or the queue refuses it for good
    111  not now
    -bs: 0 after QUIT, else 1. -bp: as qmail-qread.
"""

MAILQ_USAGE = """\
NAME
    mailq - show the queue

SYNOPSIS
    mailq

DESCRIPTION
    Does what qmail-qread does. Options are those of sendmail and have no
    effect.

EXIT CODES
    As qmail-qread has them; 100 for wrong use.
"""

NEWALIASES_USAGE = """\
NAME
    newaliases - nothing to do here

SYNOPSIS
    newaliases

DESCRIPTION
    Aliases are the files .qmail-NAME in the folder alias of the home, and count
    as soon as they are written. There is no table to make, which this says.

EXIT CODES
    100  always
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code, or raises SystemExit with it.

    Without `argv` the name that the program was called by may make it another one, as a link to it does.
    """
    if argv is None:
        other = {"mailq": mailq, "newaliases": newaliases}.get(os.path.basename(sys.argv[0]))
        if other is not None:
            return other()
    return run(sys.argv[1:] if argv is None else argv, os.environ, blocks(0))


def mailq(argv: Sequence[str] | None = None) -> int:
    """The command mailq."""
    parse("mailq", sys.argv[1:] if argv is None else argv, OPTIONS, MAILQ_USAGE)
    return _show_queue()


def newaliases(argv: Sequence[str] | None = None) -> int:
    """The command newaliases."""
    parse("newaliases", sys.argv[1:] if argv is None else argv, OPTIONS, NEWALIASES_USAGE)
    return _no_aliases("newaliases")


def run(argv: Sequence[str], environ: Mapping[str, str], message: Iterable[bytes]) -> int:
    """Do what the command line says, with `message` as the input."""
    options, recipients = parse(PROG, argv, OPTIONS, USAGE)
    environ = dict(environ)
    strategy = "-a"
    sender: str | None = None
    queue_run = False
    asked: dict[str, str] = {}
    for letter, argument in options:
        if letter == "t":
            strategy = "-H"
        elif letter in "fr":
            sender = argument
        elif letter == "F":
            environ["MAILNAME"] = argument
        elif letter in "NRV":
            asked[letter] = argument
        elif letter == "q":
            queue_run = True
        elif letter == "I":
            return _no_aliases(PROG)
        elif letter == "b":
            mode = argument[:1]
            if mode == "p":
                return _show_queue()
            if mode == "s":
                from qtwist.smtpd import stdio

                return stdio.serve(home(environ), environ)
            if mode == "i":
                return _no_aliases(PROG)
            if mode != "m":
                return _no_mode(mode)
    if not os.path.isdir(home(environ)):
        die(PROG, TEMPORARY, f"fatal: there is no mail system in {home(environ)}")
    if queue_run and strategy == "-a" and not recipients:
        return 0
    parameters = _parameters(asked) if asked else (b"", b"")
    if sender is None:
        return inject.run([strategy, "--", *recipients], environ, message, parameters)
    _be(sender, environ)
    return inject.run([strategy, "-f", sender, "--", *recipients], environ, message, parameters)


def _parameters(asked: Mapping[str, str]) -> tuple[bytes, bytes]:
    """What -R, -V and -N ask for (RFC 3461)."""
    from qtwist.mail import asked as dsn

    mail = []
    if "R" in asked:
        mail.append(b"RET=" + os.fsencode(asked["R"]).upper())
    if "V" in asked:
        mail.append(b"ENVID=" + dsn.encode_xtext(os.fsencode(asked["V"])))
    found = b" ".join(mail), b"NOTIFY=" + os.fsencode(asked["N"]).upper() if "N" in asked else b""
    try:
        dsn.of_message(found[0])
        dsn.of_recipient(found[1])
    except ValueError as error:
        die(PROG, PERMANENT, f"fatal: wrong value of -N, -R or -V: {error}")
    return found


def _be(sender: str, environ: dict[str, str]) -> None:
    """Make From, should it be missing, that of the envelope sender."""
    for name in ("QMAILNAME", "MAILNAME", "NAME", "QMAILHOST", "MAILHOST"):
        environ.pop(name, None)
    user, at, host = sender.rpartition("@")
    environ["QMAILUSER"] = user if at else sender
    if at:
        environ["QMAILHOST"] = host


def _show_queue() -> int:
    from qtwist.commands import qread

    return qread.main([])


def _no_aliases(prog: str) -> int:
    say(f"{prog}: ", "fatal: there is no table of aliases to make: they are the files .qmail-NAME in HOME/alias")
    return PERMANENT


def _no_mode(mode: str) -> int:
    if mode in ("d", "D"):
        say(f"{PROG}: ", f"fatal: -b{mode} is not for this program: the daemon is started by twistd qtwist --home HOME")
    else:
        say(f"{PROG}: ", f"fatal: there is no mode -b{mode}; see {PROG} --help")
    return PERMANENT


if __name__ == "__main__":
    sys.exit(main())
