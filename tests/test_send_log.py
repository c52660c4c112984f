"""The log lines of the queue manager, byte for byte (spec/qmail.md §9.7)."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from qtwist.interfaces import Preprocessed
from qtwist.mail.envelope import Report
from qtwist.send.log import PAUSE, GatheredLines, LogFile, SendLog


class LineTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.written: list[bytes] = []
        self.log = SendLog(self.written.append)

    def lines(self) -> bytes:
        return b"".join(self.written)

    def test_every_line(self) -> None:
        self.log.status((0, 10), (3, 20), exiting=False)
        self.log.new_message(Preprocessed(457, 1234, b"a b@x.test", 99, 1000, 0.0, frozenset()))
        self.log.starting(1, 457, "local", b"joe@here.test")
        self.log.starting(2, 457, "remote", b"bob@far.test")
        self.log.delivery(1, Report.success(b"did 1+0+0\n"))
        self.log.delivery(2, Report.deferral(b"not now\n"))
        self.log.delivery(3, Report.failure(b"never\n"))
        self.log.delivery(4, Report(b"?", b"ignored"))
        self.log.bounce(457, 458)
        self.log.triple_bounce(458)
        self.log.end(457)
        self.log.status((1, 10), (0, 20), exiting=True)
        self.log.exiting()
        self.log.warning("unable to stat mess/20/457")
        self.log.alert("unable to reread control/locals")
        self.assertEqual(
            self.lines(),
            b"status: local 0/10 remote 3/20\n"
            b"new msg 457\n"
            b"info msg 457: bytes 1234 from <a_b@x.test> qp 99 uid 1000\n"
            b"starting delivery 1: msg 457 to local joe@here.test\n"
            b"starting delivery 2: msg 457 to remote bob@far.test\n"
            b"delivery 1: success: did_1+0+0/\n"
            b"delivery 2: deferral: not_now/\n"
            b"delivery 3: failure: never/\n"
            b"delivery 4: report mangled, will defer\n"
            b"bounce msg 457 qp 458\n"
            b"triple bounce: discarding bounce/458\n"
            b"end msg 457\n"
            b"status: local 1/10 remote 0/20 exitasap\n"
            b"status: exiting\n"
            b"warning: unable to stat mess/20/457\n"
            b"alert: unable to reread control/locals\n",
        )

    def test_vectors(self) -> None:
        """§28.13, and the raw stored sender of §9.7."""
        accepted = b"127.0.0.1 accepted message.\nRemote host said: 250-ok queued\n250 as 123\n"
        self.log.delivery(10, Report.success(accepted))
        self.log.delivery(4, Report.failure(b"this is err\nmore\n\n"))
        self.log.new_message(Preprocessed(1, 2, b"list-@host-@[]", 3, 4, 0.0, frozenset()))
        self.assertEqual(
            self.lines(),
            b"delivery 10: success: 127.0.0.1_accepted_message./Remote_host_said:_250-ok_queued/250_as_123/\n"
            b"delivery 4: failure: this_is_err/more//\n"
            b"new msg 1\ninfo msg 1: bytes 2 from <list-@host-@[]> qp 3 uid 4\n",
        )

    @given(st.binary(), st.binary(), st.sampled_from([b"K", b"Z", b"D"]))
    def test_nothing_from_outside_makes_a_line_of_its_own(self, address: bytes, text: bytes, letter: bytes) -> None:
        self.written.clear()
        self.log.starting(1, 2, "local", address)
        self.log.delivery(1, Report(letter, text))
        lines = self.lines()
        self.assertEqual(lines.count(b"\n"), 2)
        self.assertTrue(all(32 <= byte <= 126 or byte == 10 for byte in lines))


class LogFileTests(TestCase):
    def test_append_and_reopen(self) -> None:
        """HUP: after the file was moved away, lines go to a new one of the old name."""
        path = self.mktemp()
        log = LogFile(path)
        log.write(b"one\n")
        os.rename(path, path + ".old")
        log.write(b"two\n")
        log.reopen()
        log.write(b"three\n")
        log.close()
        with open(path + ".old", "rb") as old, open(path, "rb") as new:
            self.assertEqual((old.read(), new.read()), (b"one\ntwo\n", b"three\n"))

    def test_a_full_disk_does_not_stop_the_mail(self) -> None:
        if not os.path.exists("/dev/full"):
            self.skipTest("this system has no /dev/full")
        log = LogFile("/dev/full")
        log.write(b"lost\n")
        log.close()


class GatheredTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.written: list[bytes] = []
        self.lines = GatheredLines(self.written.append, self.clock)

    def test_a_turn(self) -> None:
        """One piece, as the turn ends."""
        self.lines.add(b"a\n")
        self.lines.add(b"b\n")
        self.assertEqual(self.written, [])
        self.clock.advance(0)
        self.assertEqual(self.written, [b"a\nb\n"])

    def test_busy(self) -> None:
        """What is said soon after a piece waits for the next one; afterwards nothing waits."""
        self.lines.add(b"a\n")
        self.clock.advance(0)
        for line in (b"b\n", b"c\n"):
            self.lines.add(line)
            self.clock.advance(PAUSE / 4)
        self.assertEqual(self.written, [b"a\n"])
        self.clock.advance(PAUSE / 2)
        self.assertEqual(self.written, [b"a\n", b"b\nc\n"])
        self.clock.advance(PAUSE)
        self.lines.add(b"d\n")
        self.clock.advance(0)
        self.assertEqual(self.written[2:], [b"d\n"])

    def test_the_clock_is_set_back(self) -> None:
        """Nothing waits for the old time to come again."""
        self.lines.add(b"a\n")
        self.clock.advance(0)
        self.clock.rightNow -= 500
        self.lines.add(b"b\n")
        self.clock.advance(0)
        self.assertEqual(self.written, [b"a\n", b"b\n"])

    def test_the_end(self) -> None:
        """What waits is written, once."""
        for line in (b"a\n", b"b\n"):
            self.lines.add(line)
            self.lines.flush()
        self.assertEqual(self.written, [b"a\n", b"b\n"])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(1)
        self.assertEqual(self.written, [b"a\n", b"b\n"])
