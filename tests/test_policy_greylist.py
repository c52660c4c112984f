"""Greylisting, and its database through crashes and in several processes (issue 8 item 3)."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.policy.greylist import read_times
from qtwist.policy.greylist_store import GreylistStore, Times
from tests.policy_tools import PolicyCase, codes
from tests.test_smtpd import NOW

TIMES = Times()
KEY = ("192.0.2.0/24", b"a@b.test", b"c@d.test")
DAY = 86400.0


class Store(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.mktemp()
        self.store = GreylistStore(self.directory)
        self.addCleanup(self.store.close)

    def test_a_stranger_comes_again(self) -> None:
        see = self.store.see
        self.assertEqual(see(KEY, 1000.0, TIMES), 300)
        self.assertEqual(see(KEY, 1100.0, TIMES), 200)
        self.assertEqual(see(("198.51.100.0/24", *KEY[1:]), 1300.0, TIMES), 300)
        self.assertEqual(see(KEY, 1300.0, TIMES), 0)
        self.assertEqual(see(KEY, 1301.0, TIMES), 0)
        self.assertEqual(see(KEY, 1301.0 + 30 * DAY, TIMES), 0)
        self.assertEqual(see(KEY, 1301.0 + 60 * DAY, TIMES), 0)

    def test_forgotten(self) -> None:
        """One that did not come again is a stranger after two days, one that is known after 36."""
        self.store.see(KEY, 1000.0, TIMES)
        self.assertEqual(self.store.see(KEY, 1000.0 + 2 * DAY, TIMES), 300)
        self.assertEqual(self.store.see(KEY, 1300.0 + 2 * DAY, TIMES), 0)
        self.assertEqual(self.store.see(KEY, 1300.0 + 39 * DAY, TIMES), 300)

    examples = 0

    @given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 3 * DAY)), max_size=30))
    def test_against_a_model(self, visits: list[tuple[int, float]]) -> None:
        """Nobody passes before five minutes, nobody who comes again within two days waits for longer."""
        self.examples += 1
        now, model = 0.0, {}  # type: ignore[var-annotated]
        for number, pause in visits:
            now += pause
            first, last, known = model.get(number, (now, now, False))
            if now - last >= (36 * DAY if known else 2 * DAY):
                first, known = now, False
            known = known or now - first >= 300
            model[number] = (first, now, known)
            left = self.store.see((str(self.examples), b"", b"%d" % number), now, TIMES)
            self.assertEqual(left, 0 if known else 300 - (now - first))

    def test_bounded(self) -> None:
        """A flood of strangers pushes out the oldest strangers, and nobody who is known."""
        store = GreylistStore(self.mktemp(), most=50)
        self.addCleanup(store.close)
        store.see(KEY, 0.0, TIMES)
        store.see(KEY, 400.0, TIMES)
        for number in range(500):
            store.see(("n", b"", b"%d" % number), 1000.0 + number, TIMES)
        connection = sqlite3.connect(store.path)
        [count] = connection.execute("SELECT count(*) FROM seen").fetchone()
        connection.close()
        self.assertLess(count, 102)
        self.assertEqual(store.see(KEY, 2000.0, TIMES), 0)

    def test_swept(self) -> None:
        """What has expired is removed: strangers after two days, those who are known after 36."""
        store = GreylistStore(self.mktemp(), most=2)
        self.addCleanup(store.close)

        def kept() -> list[bytes]:
            connection = sqlite3.connect(store.path)
            rows = connection.execute("SELECT sender FROM seen ORDER BY sender").fetchall()
            connection.close()
            return [row[0] for row in rows]

        store.see(("n", b"known", b""), 0.0, TIMES)
        store.see(("n", b"known", b""), 400.0, TIMES)
        store.see(("n", b"stranger", b""), 400.0, TIMES)  # the second new one: swept
        self.assertEqual(kept(), [b"known", b"stranger"])
        store.see(("n", b"x", b""), 3 * DAY, TIMES)
        store.see(("n", b"y", b""), 3 * DAY, TIMES)
        self.assertEqual(kept(), [b"known", b"x", b"y"])
        store.see(("n", b"z", b""), 37 * DAY, TIMES)
        store.see(("n", b"zz", b""), 37 * DAY, TIMES)
        self.assertEqual(kept(), [b"z", b"zz"])

    def test_kept_through_a_restart(self) -> None:
        self.store.see(KEY, 1000.0, TIMES)
        self.store.close()
        again = GreylistStore(self.directory)
        self.addCleanup(again.close)
        self.assertEqual(again.see(KEY, 1300.0, TIMES), 0)

    def test_damaged(self) -> None:
        os.makedirs(self.directory)
        with open(self.store.path, "wb") as file:
            file.write(b"no database at all" * 1000)
        self.assertEqual(self.store.see(KEY, 1000.0, TIMES), 300)
        self.assertTrue(os.path.exists(self.store.path + ".damaged"))
        self.assertEqual(self.store.see(KEY, 1300.0, TIMES), 0)

    def test_damaged_in_the_middle(self) -> None:
        for number in range(2000):
            self.store.see(("n", b"", b"%d" % number), 1000.0, TIMES)
        self.store.close()
        with open(self.store.path, "r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 60000)
        for number in range(0, 2000, 50):
            self.assertIn(self.store.see(("n", b"", b"%d" % number), 1300.0, TIMES), (0, 300))

    def test_two_processes_that_make_it(self) -> None:
        """The second one waits for the first to have made it; SQLite itself would say "database is locked" at once."""
        os.mkdir(self.directory)
        other = sqlite3.connect(self.store.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("CREATE TABLE another (x)")
        other.execute("BEGIN IMMEDIATE")
        with mock.patch("time.sleep", side_effect=lambda seconds: other.execute("COMMIT")) as slept:
            self.assertEqual(self.store.see(KEY, 1000.0, TIMES), 300)
        self.assertEqual(slept.call_count, 1)

    def test_one_that_stays_locked(self) -> None:
        os.mkdir(self.directory)
        other = sqlite3.connect(self.store.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("CREATE TABLE another (x)")
        other.execute("BEGIN IMMEDIATE")
        with mock.patch("qtwist.policy.greylist_store.PATIENCE", 0):
            self.assertRaises(sqlite3.OperationalError, self.store.see, KEY, 1000.0, TIMES)
        other.execute("COMMIT")
        self.assertEqual(self.store.see(KEY, 1000.0, TIMES), 300)

    def test_processes_that_share_it_and_are_killed(self) -> None:
        """Killed while they write, they leave a database that is whole, and what they had answered is in it."""
        code = (
            "import sys; from qtwist.policy.greylist_store import *\n"
            "store, number = GreylistStore(sys.argv[1]), 0\n"
            "while True:\n"
            "    store.see((sys.argv[2], b'', b'%d' % number), 1000.0, Times())\n"
            "    print(number, flush=True); number += 1\n"
        )
        workers = [
            subprocess.Popen([sys.executable, "-c", code, self.directory, name], stdout=subprocess.PIPE)
            for name in "ab"
        ]
        answered = []
        for worker in workers:
            assert worker.stdout is not None
            lines = [worker.stdout.readline() for _ in range(150)]
            worker.send_signal(signal.SIGKILL)
            answered.append(int((worker.stdout.readlines() or lines)[-1] if lines[-1] else 0))
            worker.stdout.close()
            worker.wait()
        for name, last in zip("ab", answered, strict=True):
            for number in (0, 100, max(last - 1, 0)):
                self.assertEqual(self.store.see((name, b"", b"%d" % number), 1300.0, TIMES), 0)
        self.assertFalse(os.path.exists(self.store.path + ".damaged"))


class AtWork(PolicyCase):
    def tries(self, *senders: bytes, host: str = "192.0.2.9") -> list[int]:
        found = []
        for sender in senders:
            lines = (b"MAIL FROM:<" + sender + b">", b"RCPT TO:<joe@mx.test>")
            found.append(codes(self.dialogue(*lines, host=host, factory=self.server))[-1])
        return found

    def setUp(self) -> None:
        super().setUp()
        self.time = NOW
        self.server = self.factory()
        self.server.surroundings.now = lambda: self.time

    def test_off_unless_asked_for(self) -> None:
        self.assertEqual(self.tries(b"a@b.test"), [250])
        self.assertFalse(os.path.exists(os.path.join(self.home, "greylist")))

    def test_first_and_second_time(self) -> None:
        """By network; digits in senders do not count, as lists number them (VERP)."""
        self.put("greylisting", "block_expire 10\n")
        self.assertEqual(self.tries(b"list-1-joe@b.test"), [451])
        self.time += 599
        self.assertEqual(self.tries(b"list-2-joe@b.test"), [451])
        self.time += 1
        self.assertEqual(self.tries(b"list-3-joe@b.test", b"other@b.test", host="192.0.2.77"), [250, 451])
        self.assertEqual(self.tries(b"list-3-joe@b.test", host="198.51.100.1"), [451])
        answer = self.dialogue(b"MAIL FROM:<>", b"RCPT TO:<joe@mx.test>", factory=self.server)[-1]
        self.assertEqual(answer, b"451 we have not seen you before, please come again in 600 seconds (#4.7.1)")

    def test_variables_and_exemptions(self) -> None:
        self.put("tcp.smtp", '192.0.2.1:allow,GREYLISTING=""\n192.0.2.2:allow,GREYLISTING="0"\n')
        self.assertEqual(self.tries(b"a@b.test", host="192.0.2.1"), [451])
        self.put("greylisting", "")
        self.assertEqual(self.tries(b"a@b.test", host="192.0.2.2"), [250])
        self.assertEqual(self.tries(b"a@b.test", host="192.0.2.3"), [451])
        for exempt in ("192.0.2.0/28", "joe@mx.test", "@mx.test", "*@mx.*"):
            self.put("greylistexempt", exempt + "\n")
            self.assertEqual(self.tries(b"a@b.test", host="192.0.2.3"), [250], exempt)
        self.put("greylistexempt", "")
        self.put("relayclients", "192.0.2.3\n")
        self.assertEqual(self.tries(b"a@b.test", host="192.0.2.3"), [250])

    def test_not_for_recipients_that_are_not_ours(self) -> None:
        self.put("greylisting", "")
        answers = self.dialogue(b"MAIL FROM:<a@b.test>", b"RCPT TO:<x@elsewhere.test>", factory=self.server)
        self.assertEqual(codes(answers)[-1], 553)
        self.assertFalse(os.path.exists(os.path.join(self.home, "greylist")))

    def test_a_database_that_cannot_be_used(self) -> None:
        """Nobody is kept waiting by it."""
        self.put("greylisting", "")
        with open(os.path.join(self.home, "greylist"), "w", encoding="ascii"):
            pass
        self.assertEqual(self.tries(b"a@b.test"), [250])
        os.remove(os.path.join(self.home, "greylist"))
        with mock.patch.object(GreylistStore, "see", side_effect=sqlite3.OperationalError("disk I/O error")):
            self.assertEqual(self.tries(b"a@b.test"), [250])

    def test_times(self) -> None:
        self.assertEqual(read_times([]), TIMES)
        lines = [b"block_expire 1", b"record_expire 2", b"record_expire_good 3"]
        self.assertEqual(read_times(lines), Times(60, 120, 3 * DAY))
        for line in (b"block_expire", b"block_expire x", b"mysql_host 1", b"block_expire 99999999999"):
            self.assertRaises(ValueError, read_times, [line])
