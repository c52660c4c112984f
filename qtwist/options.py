"""The options of `twistd qtwist`."""

from __future__ import annotations

import os

from twisted.python import usage

DEFAULT_HOME = "/var/qmail"


class Options(usage.Options):
    """What `twistd qtwist` takes after its own name."""

    synopsis = "[options]"
    longdesc = (
        "Serves what control/listen in the home directory says, and runs the queue. `qtwist init HOME --me NAME` makes "
        "a home. Signals: HUP rereads what can change, ALRM tries all queued mail now, TERM finishes running "
        "deliveries and exits."
    )
    optParameters = [
        ["home", None, None, f"home directory [default: $QTWISTHOME, else {DEFAULT_HOME}]"],
        [
            "maillog",
            None,
            None,
            "file for qmail's log lines, opened again on HUP [default: standard output with -n, else HOME/log/send]",
        ],
        ["events", None, None, "file for events as JSON, one a line, opened again on HUP [default: none]"],
    ]

    def parseArgs(self, *args: str) -> None:
        if args:
            raise usage.UsageError(f"unexpected argument {args[0]!r}: everything is given by options")

    @property
    def home(self) -> str:
        """The home directory as an absolute path."""
        return os.path.abspath(self["home"] or os.environ.get("QTWISTHOME") or DEFAULT_HOME)
