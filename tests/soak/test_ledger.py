"""The books of the soak: what they take for explained, and what not (doc/durability.md)."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from qtwist.files.disk import RealDisk
from qtwist.queue import journal as records
from qtwist.queue.journal import Entry, Journal
from tests.queue_tools import make_queue, put_message, write
from tests.soak.ledger import ACCEPTED, REFUSED, UNKNOWN, Death, History, Ledger, Left
from tests.soak.snapshot import look_at

MAILDIR = "joe-maildir-t000001@mx.test"
BORN = "info msg 7: bytes 10 from <joe-bounces-t000001@mx.test> qp 7 uid 1000"
START = f"starting delivery 1: msg 7 to local {MAILDIR}"
SUCCESS = "delivery 1: success: did_1+0+0/"
DEFERRAL = "delivery 1: deferral: nobody_knows/"
NOTHING: tuple[Left, ...] = ()
UNMARKED = (Left("7", "t000001", (MAILDIR,), bounce=False),)


class HistoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.history = History()

    def lines(self, *lines: str, at: float = 0.0) -> None:
        for line in lines:
            self.history.line(line, at)

    def may_repeat(self) -> int:
        self.history.bury()
        return self.history.may_repeat("t000001", "-maildir-")

    def test_nothing_happened(self) -> None:
        self.lines(BORN, START, SUCCESS)
        self.assertEqual(self.may_repeat(), 0)

    def test_marked(self) -> None:
        """Whoever is marked on the disk of the dead gets nothing more."""
        self.lines(BORN, START, SUCCESS)
        self.history.died(Death(0.1, NOTHING))
        self.assertEqual(self.may_repeat(), 0)

    def test_not_marked(self) -> None:
        self.lines(BORN, START, SUCCESS)
        self.history.died(Death(0.1, UNMARKED))
        self.assertEqual(self.may_repeat(), 1)
        self.assertEqual(self.history.late(), [])

    def test_not_marked_for_long(self) -> None:
        self.lines(BORN, START, SUCCESS)
        self.history.died(Death(9.5, UNMARKED))
        self.history.bury()
        self.assertEqual(self.history.late(), [f"9.5 s: {MAILDIR} (t000001), message 7"])

    def test_number_again(self) -> None:
        """Not marked is the recipient of another message that has the number now."""
        self.lines(BORN, START, SUCCESS)
        other = Left("7", "t000002", (MAILDIR.replace("1@", "2@"),), bounce=False)
        self.history.died(Death(0.1, (other,)))
        self.assertEqual(self.may_repeat(), 0)

    def test_under_way(self) -> None:
        """The log has no end of it; each death may cost one more."""
        for _ in range(2):
            self.lines(BORN, START)
            self.history.died(Death(0.1, UNMARKED))
        self.assertEqual(self.may_repeat(), 2)

    def test_lines_after_the_death(self) -> None:
        """They were under way; the next life begins with its delivery 1."""
        self.lines(BORN, START)
        self.history.died(Death(0.1, UNMARKED))
        self.lines(SUCCESS, at=0.2)
        self.assertEqual(self.history.attempts[0].outcome, "success")
        self.lines(START, SUCCESS, at=0.9)
        self.assertEqual(self.may_repeat(), 1)

    def test_log_with_a_hole(self) -> None:
        """The supervisor was killed: the queue manager may have delivered what no line tells."""
        self.lines(BORN)
        self.history.died(Death(0.1, UNMARKED))
        self.assertEqual(self.may_repeat(), 1)

    def test_deferred(self) -> None:
        """A deferral may have been a delivery when something was killed meanwhile, and only then."""
        self.lines(BORN, START, DEFERRAL)
        self.assertEqual(self.may_repeat(), 0)
        self.lines(START, at=5)
        self.history.kill(6)
        self.lines(DEFERRAL, at=7)
        self.assertEqual(self.may_repeat(), 1)

    def test_success_in_spite_of_a_kill(self) -> None:
        self.lines(BORN, START)
        self.history.kill(1)
        self.lines(SUCCESS, at=2)
        self.assertEqual(self.may_repeat(), 0)

    def test_notices(self) -> None:
        self.history.died(Death(0.1, (Left("7", "t000001", (), bounce=True),)))
        self.history.bury()
        self.assertEqual(self.history.may_bounce_again("t000001"), 1)


class LedgerTests(SynchronousTestCase):
    def test_books(self) -> None:
        ledger = Ledger()
        for number, outcome in enumerate((ACCEPTED, ACCEPTED, REFUSED, UNKNOWN, UNKNOWN), 1):
            ledger.outcomes[f"t{number:06d}"] = outcome
            ledger.wanted[f"t{number:06d}"] = ("maildir",)
        ledger.arrived.update({("t000001", "maildir"): 2, ("t000003", "maildir"): 1, ("t000004", "maildir"): 1})
        self.assertEqual(ledger.missing(), ["t000002 to maildir"])
        self.assertEqual(ledger.unasked(), ["t000003 to maildir"])
        self.assertEqual(list(ledger.unexplained(History())), [("t000001", "maildir")])


class SnapshotTests(SynchronousTestCase):
    def test_files_and_journal(self) -> None:
        layout = make_queue(self)
        sender = b"joe-bounces-t000001@mx.test"
        info, envelope = b"F%s\0" % sender, b"u0\0p7\0F%s\0Ta@b\0Tc@d\0" % sender
        whole = put_message(layout, b"x\n", info=info, local=b"Da@b\0Tc@d\0", remote=b"De@f\0")
        new = put_message(layout, b"x\n", todo=envelope, info=info, local=b"Da@b\0")
        over = put_message(layout, b"x\n", info=b"F\0")
        write(layout.path("bounce", over), b"<a@b>:\nno\n\n")
        spoilt = put_message(layout, b"x\n", info=info, local=b"Ta@b\0")
        directory = f"{layout.directory}/journal"
        os.mkdir(directory)
        journal = Journal(RealDisk(), directory, 1 << 20)
        journal.read()
        journal.open()
        journal.write([records.accept(Entry(one, 1000.0, envelope, b"x\n")) for one in (spoilt, 8)], sync=True)
        journal.write(
            [records.routed(spoilt, {"remote": bytearray(b"Ta@b\0")}), records.mark(spoilt, "remote", 0)], False
        )
        journal.close()
        before = os.stat(f"{directory}/1.segment").st_mtime_ns
        found = {one.number: (one.tag, one.recipients, one.bounce) for one in look_at(layout.directory)}
        self.assertEqual(
            found,
            {
                str(whole): ("t000001", ("c@d",), False),
                str(new): ("t000001", ("a@b", "c@d"), False),
                str(over): (None, (), True),
                str(spoilt): ("t000001", (), False),
                "8": ("t000001", ("a@b", "c@d"), False),
            },
        )
        self.assertEqual(os.stat(f"{directory}/1.segment").st_mtime_ns, before)
