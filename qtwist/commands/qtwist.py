"""The `qtwist` command: one verb per job, each in a module of its own.

    qtwist VERB [options]       qtwist --help       qtwist --version       qtwist VERB --help

Exit codes are qmail's (spec/qmail.md §2.9): 0 done, 100 wrong use or a lasting obstacle, 111 try again later.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

# verb: (module with main(argv) -> exit code, one line of help)
VERBS = {
    "init": ("qtwist.commands.init", "make a home: control files, queue, aliases and a first mailbox"),
    "queue": ("qtwist.commands.steer", "look at the queue, hold, retry, fail and drop messages"),
    "log": ("qtwist.commands.log", "say why a client was refused, and what it says right now"),
    "doctor": ("qtwist.commands.doctor", "look at names, DNS, certificates, relaying, and say what is missing"),
    "user": ("qtwist.commands.user", "give people an address and a password, and take them back"),
    "install": ("qtwist.commands.install", "as root: accounts, the home of a whole host, and what starts the daemon"),
    "unit": ("qtwist.commands.unit", "print the unit for systemd"),
    "install-links": ("qtwist.commands.install_links", "make links to the commands in a directory"),
}


def usage() -> str:
    """The text of `qtwist --help`."""
    width = max(map(len, VERBS))
    verbs = "".join(f"  {verb.ljust(width)}  {help_line}\n" for verb, (_, help_line) in VERBS.items())
    return (
        "usage: qtwist VERB [options]\n\nverbs:\n"
        f"{verbs}\n"
        "`qtwist VERB --help` says more of each. The daemon itself is `twistd qtwist --home HOME`.\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that `argv` (default: the command line) names; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = arguments[0] if arguments else ""
    if verb in ("--help", "-h", "help"):
        sys.stdout.write(usage())
        return 0
    if verb == "--version":
        from qtwist import __version__

        sys.stdout.write(f"qtwist {__version__}\n")
        return 0
    if verb not in VERBS:
        complaint = f"unknown verb {verb!r}" if verb else "a verb is missing"
        sys.stderr.write(f"qtwist: {complaint}; it is one of: {', '.join(VERBS)} (see qtwist --help)\n")
        return 100
    run: Callable[[Sequence[str]], int] = import_module(VERBS[verb][0]).main
    return run(arguments[1:])
