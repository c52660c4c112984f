"""The queue manager over a queue in memory, scripted deliveries and a clock (spec/qmail.md §9)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from qtwist.interfaces import QueueError
from qtwist.mail.constmap import ConstantMap
from qtwist.mail.envelope import Report
from qtwist.mail.rewriting import Rewriter
from qtwist.send.bounces import BounceSettings
from qtwist.send.log import SendLog
from qtwist.send.manager import QueueManager, SendSettings
from tests.memory_queue import MemoryQueue, ScriptedSpawner

BOUNCES = BounceSettings(b"MAILER-DAEMON", b"mx.test", b"postmaster", b"mx.test")


def rewriter(virtual: bytes | None = None, local: bytes = b"here.test") -> Rewriter:
    return Rewriter(
        b"here.test", ConstantMap.plain([local]), virtualdomains=ConstantMap.colon([virtual] if virtual else [])
    )


class ManagerCase(SynchronousTestCase):
    virtual: bytes | None = None
    concurrency = {"local": 10, "remote": 20}

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000_000)
        self.queue = MemoryQueue(self.clock)
        self.lines: list[bytes] = []
        self.local = ScriptedSpawner()
        self.remote = ScriptedSpawner()
        self.manager = self.build()

    def build(self) -> QueueManager:
        return QueueManager(
            self.queue,
            {"local": self.local, "remote": self.remote},
            SendSettings(rewriter(self.virtual), self.concurrency, 604800, BOUNCES),
            SendLog(self.lines.append),
            self.clock,
            reread=lambda: rewriter(local=b"moved.test"),
        )

    def start(self) -> None:
        self.manager.startService()
        self.clock.advance(0)

    def go(self, seconds: float = 0) -> None:
        """Let the clock run; twice, so that what the first turn has queued is looked at too."""
        self.clock.advance(seconds)
        self.clock.advance(0)

    def log(self) -> list[str]:
        """The lines since the last look."""
        lines = b"".join(self.lines).decode().splitlines()
        self.lines.clear()
        return lines

    def log_but_status(self) -> list[str]:
        return [line for line in self.log() if not line.startswith("status: ")]


class LifeOfAMessage(ManagerCase):
    def test_local_success(self) -> None:
        """§9.7: the lines of one message that is delivered at once, in qmail's order."""
        self.local.answers[b"joe@here.test"] = Report.success(b"did 1+0+0\n")
        self.start()
        number = self.queue.send(b"ann@far.test", b"joe@here.test", data=b"x" * 321)
        self.go()
        self.assertEqual(
            self.log(),
            [
                "status: local 0/10 remote 0/20",
                f"new msg {number}",
                f"info msg {number}: bytes 321 from <ann@far.test> qp {number} uid 1000",
                f"starting delivery 1: msg {number} to local joe@here.test",
                "status: local 1/10 remote 0/20",
                "delivery 1: success: did_1+0+0/",
                "status: local 0/10 remote 0/20",
                f"end msg {number}",
            ],
        )
        self.assertEqual((self.queue.messages, self.queue.infos, self.queue.files), ({}, {}, {}))

    def test_deferral_then_success(self) -> None:
        """§9.5: a temporary failure is tried again at age 400 on the remote channel, and only the one left over."""
        self.remote.answers[b"a@far.test"] = Report.success(b"ok\n")
        self.remote.answers[b"b@far.test"] = Report.deferral(b"Connected but greeting failed.\n")
        self.start()
        number = self.queue.send(b"joe@here.test", b"a@far.test", b"b@far.test")
        self.go()
        self.assertEqual(
            self.log_but_status()[2:],
            [
                f"starting delivery 1: msg {number} to remote a@far.test",
                "delivery 1: success: ok/",
                f"starting delivery 2: msg {number} to remote b@far.test",
                "delivery 2: deferral: Connected_but_greeting_failed./",
            ],
        )
        self.go(399)
        self.assertEqual(self.log(), [])
        self.remote.answers[b"b@far.test"] = Report.success(b"ok\n")
        self.go(1)
        self.assertEqual(
            self.log_but_status(),
            [
                f"starting delivery 3: msg {number} to remote b@far.test",
                "delivery 3: success: ok/",
                f"end msg {number}",
            ],
        )

    def test_next_try_is_recorded_before_dialling(self) -> None:
        """design §4: a crash in the middle of a try must not bring the next one forward."""
        self.start()
        number = self.queue.send(b"joe@here.test", b"a@far.test")
        self.go()
        self.assertEqual(len(self.remote.open), 1)
        self.assertEqual(self.queue.due[number, "remote"], self.clock.seconds() + 400)

    def test_local_mail_comes_soon_after_a_crash(self) -> None:
        """A local delivery that a crash cuts off is due at once; one that was deferred when it would have been."""
        self.start()
        number = self.queue.send(b"ann@far.test", b"joe@here.test")
        self.go()
        self.assertEqual(self.queue.due[number, "local"], self.clock.seconds())
        self.local.open[0][1].callback(Report.deferral(b"later\n"))
        self.assertEqual(self.queue.due[number, "local"], self.clock.seconds() + 100)

    def test_failure_bounces(self) -> None:
        """§9.6, §9.10, §9.11: a permanent failure makes a notice to the sender, then the message ends."""
        self.local.answers[b"nobody@here.test"] = Report.failure(b"No such mailbox. (#5.1.1)\n")
        self.remote.answers[b"ann@far.test"] = Report.success(b"ok\n")
        self.start()
        number = self.queue.send(b"ann@far.test", b"nobody@here.test", data=b"Subject: hi\n\nbody\n")
        self.go()
        notice = number + 1
        self.assertEqual(
            self.log_but_status()[3:],
            [
                "delivery 1: failure: No_such_mailbox._(#5.1.1)/",
                f"bounce msg {number} qp {notice}",
                f"end msg {number}",
                f"new msg {notice}",
                f"info msg {notice}: bytes {len(self.queue.accepted[1][1])} from <> qp {notice} uid 1000",
                f"starting delivery 2: msg {notice} to remote ann@far.test",
                "delivery 2: success: ok/",
                f"end msg {notice}",
            ],
        )
        envelope, text = self.queue.accepted[1]
        self.assertEqual((envelope.sender, envelope.recipients), (b"", (b"ann@far.test",)))
        self.assertEqual(self.queue.origins[notice].how, b"for bounce")
        head, _, copy = text.partition(b"--- Below this line is a copy of the message.\n\n")
        self.assertIn(b"From: MAILER-DAEMON@mx.test\nTo: ann@far.test\nSubject: failure notice\n\nHi. This", head)
        self.assertTrue(head.endswith(b"<nobody@here.test>:\nNo such mailbox. (#5.1.1)\n\n"), head)
        self.assertEqual(copy, b"Return-Path: <ann@far.test>\nSubject: hi\n\nbody\n")

    def test_a_bounce_of_a_large_message(self) -> None:
        """§9.11: the copy has all of it."""
        self.local.answers[b"nobody@here.test"] = Report.failure(b"no\n")
        self.start()
        data = b"Subject: hi\n\n" + b"".join(b"line %d\n" % number for number in range(20_000))
        self.queue.send(b"ann@far.test", b"nobody@here.test", data=data)
        self.go()
        _, _, copy = self.queue.accepted[1][1].partition(b"--- Below this line is a copy of the message.\n\n")
        self.assertEqual(copy, b"Return-Path: <ann@far.test>\n" + data)

    def test_a_bounce_of_mail_that_demands_tls(self) -> None:
        """RFC 8689 §5: the notice demands it too, and has the header of the message only."""
        self.local.answers[b"nobody@here.test"] = Report.failure(b"no\n")
        self.start()
        received = b"Received: from a (192.0.2.1)\n  by b with ESMTPS (X encrypted, REQUIRETLS); 1 Jan 2026\n"
        number = self.queue.send(b"ann@far.test", b"nobody@here.test", data=received + b"Subject: hi\n\nbody\n")
        self.go()
        self.assertEqual(self.queue.origins[number + 1].how, b"for bounce, REQUIRETLS")
        _, text = self.queue.accepted[1]
        self.assertTrue(text.endswith(b"Return-Path: <ann@far.test>\n" + received + b"Subject: hi\n"), text)

    def test_empty_bounce(self) -> None:
        """A bounce file without a paragraph, as a crash may leave it, is removed; nobody gets a notice of nothing."""
        self.local.answers[b"joe@here.test"] = Report.success()
        self.start()
        number = self.queue.send(b"ann@far.test", b"joe@here.test")
        self.queue.bounces[number] = b""
        self.go()
        self.assertEqual(self.log_but_status()[-1], f"end msg {number}")
        self.assertEqual((self.queue.bounces, self.queue.accepted[1:]), ({}, []))

    def test_double_and_triple_bounce(self) -> None:
        """§9.11, §28.15: a bounce that bounces goes to the postmaster from ``#@[]``; when that fails it is dropped."""
        self.local.answers[b"gone@here.test"] = Report.failure(b"no\n")
        self.remote.answers[b"postmaster@mx.test"] = Report.failure(b"no\n")
        self.start()
        number = self.queue.send(b"", b"gone@here.test")
        self.go()
        self.go()
        lines = self.log_but_status()
        self.assertIn(f"bounce msg {number} qp {number + 1}", lines)
        self.assertIn(f"triple bounce: discarding bounce/{number + 1}", lines)
        self.assertEqual(lines[-1], f"end msg {number + 1}")
        envelope, text = self.queue.accepted[1]
        self.assertEqual((envelope.sender, envelope.recipients), (b"#@[]", (b"postmaster@mx.test",)))
        self.assertIn(b"--- Below this line is the original bounce.\n", text)
        self.assertEqual(len(self.queue.accepted), 2)

    def test_verp(self) -> None:
        """§9.9, §28.15: each recipient gets its own sender; bounces go to the one without recipient."""
        self.remote.answers[b"ok@dest.test"] = Report.success()
        self.remote.answers[b"bad@dest.test"] = Report.failure(b"no\n")
        self.start()
        self.queue.send(b"list-@host.test-@[]", b"ok@dest.test", b"bad@dest.test")
        self.go()
        self.assertEqual(
            self.remote.seen[:2],
            [
                (b"list-ok=dest.test@host.test", b"ok@dest.test"),
                (b"list-bad=dest.test@host.test", b"bad@dest.test"),
            ],
        )
        self.assertEqual(self.queue.accepted[1][0].recipients, (b"list-@host.test",))

    def test_nothing_but_the_verp_mark(self) -> None:
        """§9.11: the mark is taken off first; what is left of ``-@[]`` is the empty sender."""
        self.remote.answers[b"a@far.test"] = Report.failure(b"no\n")
        self.start()
        self.queue.send(b"-@[]", b"a@far.test")
        self.go()
        envelope, _ = self.queue.accepted[1]
        self.assertEqual((envelope.sender, envelope.recipients), (b"#@[]", (b"postmaster@mx.test",)))

    def test_last_try_turns_deferral_into_failure(self) -> None:
        """§9.5: the attempt after queuelifetime is the last one; the report says so and the sender hears of it."""
        self.remote.answers[b"a@far.test"] = Report.deferral(b"not now\n")
        self.start()
        self.queue.send(b"joe@elsewhere.test", b"a@far.test")
        self.go()
        self.log()
        self.go(608400)
        last = self.log_but_status()
        self.assertRegex(last[1], r"^delivery 2: failure: not_now/.+_no_further_attempt\./$")
        self.assertIn(b"not now\nThis message has been in the queue for too long", self.queue.accepted[1][1])

    def test_no_recipients(self) -> None:
        """§6.1: a message without recipients is accepted, and ends at once."""
        self.start()
        number = self.queue.send(b"ann@far.test")
        self.go()
        self.assertEqual(self.log_but_status()[-1], f"end msg {number}")
        self.assertEqual(self.queue.messages, {})

    def test_both_channels(self) -> None:
        """The message ends when the second of its channels is done, not before."""
        self.local.answers[b"joe@here.test"] = Report.success()
        self.start()
        number = self.queue.send(b"ann@far.test", b"joe@here.test", b"bob@far.test")
        self.go()
        self.assertNotIn(f"end msg {number}", self.log())
        self.remote.open[0][1].callback(Report.success())
        self.assertIn(f"end msg {number}", self.log())

    def test_mangled_report(self) -> None:
        """§9.6: a letter that means nothing is a deferral."""
        self.local.answers[b"joe@here.test"] = Report(b"x", b"?")
        self.start()
        self.queue.send(b"ann@far.test", b"joe@here.test")
        self.go()
        self.assertIn("delivery 1: report mangled, will defer", self.log())
        self.assertEqual(self.manager.channels["local"].waiting(), 1)

    def test_broken_spawner(self) -> None:
        """A spawner that raises costs neither the slot nor the message."""
        self.local.answers[b"joe@here.test"] = RuntimeError("boom")
        self.start()
        self.queue.send(b"ann@far.test", b"joe@here.test")
        self.go()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertRegex(self.log()[-2], r"^delivery 1: deferral: Internal_error.*_\(#4\.3\.0\)/$")
        self.assertEqual(self.manager.channels["local"].running, 0)


class ShownToTheSender(ManagerCase):
    virtual = b"virt.test:joe-virt"

    def test_virtual_prefix_is_removed(self) -> None:
        """§9.10: the notice names the address that the sender has used, the log the rewritten one."""
        self.local.answers[b"joe-virt-info@virt.test"] = Report.failure(b"no\n")
        self.start()
        number = self.queue.send(b"ann@far.test", b"info@virt.test")
        self.go()
        self.assertIn(f"starting delivery 1: msg {number} to local joe-virt-info@virt.test", self.log())
        self.assertIn(b"<info@virt.test>:\nno\n\n", self.queue.accepted[1][1])


class ManyAtOnce(ManagerCase):
    def test_new_mail_while_todo_is_read(self) -> None:
        """§9.4: what comes after the look at todo/ is found by another one, at once."""
        for address in (b"a@here.test", b"b@here.test"):
            self.local.answers[address] = Report.success()
        self.start()
        self.queue.slow.add("todo")
        self.queue.send(b"ann@far.test", b"a@here.test")
        self.go()
        late = self.queue.send(b"ann@far.test", b"b@here.test")
        self.go()
        self.queue.slow.clear()
        self.queue.resume()
        self.go()
        self.assertIn(f"end msg {late}", self.log())

    def test_more_than_one_read(self) -> None:
        """A thousand recipients are read in bounded steps, each tried once, and the message ends."""
        recipients = [b"r%d@far.test" % i for i in range(1000)]
        for recipient in recipients:
            self.remote.answers[recipient] = Report.success()
        self.start()
        number = self.queue.send(b"ann@far.test", *recipients)
        self.go()
        self.assertEqual([recipient for _, recipient in self.remote.seen], recipients)
        self.assertEqual(self.log_but_status()[-1], f"end msg {number}")

    def test_one_slow_message_does_not_stall_others(self) -> None:
        """Issue 2, item 5: all deliveries of a huge message hang, another one still goes out at once."""
        self.start()
        self.queue.send(b"list@far.test", *[b"r%d@slow.test" % i for i in range(500)])
        self.go()
        self.assertEqual(len(self.remote.open), 15)
        self.remote.answers[b"bob@far.test"] = Report.success()
        other = self.queue.send(b"ann@far.test", b"bob@far.test")
        self.go()
        self.assertEqual(self.log_but_status()[-1], f"end msg {other}")

    def test_concurrency_is_kept(self) -> None:
        self.start()
        for _ in range(30):
            self.queue.send(b"ann@far.test", b"bob@slow.test")
        self.go()
        self.assertEqual(len(self.remote.open), 20)
        self.assertEqual(self.log()[-1], "status: local 0/10 remote 20/20")
        self.remote.open[0][1].callback(Report.success())
        self.assertEqual(len(self.remote.open), 21)

    def test_concurrency_is_capped_by_the_spawner(self) -> None:
        """§9.1: the spawner's own limit counts when it is the lower one."""
        self.remote.limit = 3
        self.manager = self.build()
        self.start()
        self.assertEqual(self.log()[0], "status: local 0/10 remote 0/3")


class OneChannelOnHold(ManagerCase):
    concurrency = {"local": 10, "remote": 0}

    def test_the_other_one_keeps_its_times(self) -> None:
        """§9.1: mail that is due on a channel on hold does not keep the other channel from its next try."""
        self.local.answers[b"joe@here.test"] = Report.deferral(b"later\n")
        self.start()
        held = self.queue.send(b"ann@far.test", b"bob@far.test")
        number = self.queue.send(b"ann@far.test", b"joe@here.test")
        self.go()
        self.log()
        self.local.answers[b"joe@here.test"] = Report.success()
        self.go(100)
        self.assertEqual(self.log_but_status()[-1], f"end msg {number}")
        self.assertIn((held, "remote"), self.queue.files)


class Signals(ManagerCase):
    def test_alarm_tries_all_now(self) -> None:
        """§9.2 ALRM."""
        self.remote.answers[b"a@far.test"] = Report.deferral(b"later\n")
        self.start()
        number = self.queue.send(b"joe@here.test", b"a@far.test")
        self.go()
        self.log()
        self.manager.retry_all()
        self.assertEqual(self.log_but_status()[0], f"starting delivery 2: msg {number} to remote a@far.test")

    def test_alarm_during_the_scan(self) -> None:
        """§9.2: what the look at the queue has not found yet is due as well."""
        self.start()
        number = self.queue.send(b"joe@here.test", b"a@far.test")
        self.go()
        self.remote.open[0][1].callback(Report.deferral(b"later\n"))
        self.manager.stopService()
        self.log()
        self.queue.locked = False
        self.manager = self.build()
        waiting: list[Deferred[None]] = []
        scan = self.queue.scan

        def slow_scan() -> Iterator[Deferred[Any]]:
            for batch in scan():
                found = self.successResultOf(batch)
                waiting.append(Deferred())
                yield waiting[-1].addCallback(lambda _, found=found: found)

        self.patch(self.queue, "scan", slow_scan)
        self.start()
        self.manager.retry_all()
        while waiting:
            waiting.pop().callback(None)
        self.go()
        self.assertIn(f"starting delivery 1: msg {number} to remote a@far.test", self.log_but_status())

    def test_hup_rereads_locals(self) -> None:
        """§9.2 HUP: new messages follow the new locals."""
        self.start()
        self.manager.reread()
        self.queue.send(b"ann@far.test", b"joe@moved.test")
        self.go()
        self.assertEqual([delivery.recipient for delivery, _ in self.local.open], [b"joe@moved.test"])

    def test_hup_keeps_old_values_on_error(self) -> None:
        """design §5: on HUP a wrong value keeps the old one and says so."""

        def broken() -> Rewriter:
            raise ValueError("control/locals: unreadable")

        self.manager._reread = broken
        self.start()
        self.manager.reread()
        self.assertEqual(self.log()[-1], "alert: unable to reread controls: control/locals: unreadable")
        self.queue.send(b"ann@far.test", b"joe@here.test")
        self.go()
        self.assertEqual(len(self.local.open), 1)

    def test_term_waits_for_running_deliveries(self) -> None:
        """§9.2 TERM: running deliveries finish, nothing new starts, due times are written, the last line is logged."""
        self.start()
        number = self.queue.send(b"ann@far.test", *[b"r%d@far.test" % i for i in range(30)])
        self.go()
        self.log()
        stopped = self.manager.stopService()
        late = self.queue.send(b"ann@far.test", b"joe@here.test")
        self.go(5)
        self.assertNoResult(stopped)
        for _, delivery in self.remote.open[:15]:
            delivery.callback(Report.success())
        self.successResultOf(stopped)
        lines = self.log()
        self.assertEqual(lines[1], "status: local 0/10 remote 14/20 exitasap")
        self.assertEqual(lines[-1], "status: exiting")
        self.assertEqual(len(self.remote.open), 15)
        self.assertIn(late, self.queue.envelopes)
        # The fifteen that were not tried are due at once when the daemon is started again.
        self.assertEqual(self.queue.due[number, "remote"], self.clock.seconds())
        self.assertEqual([done for done, _ in self.queue.files[number, "remote"]], [True] * 15 + [False] * 15)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_term_records_what_alarm_has_changed(self) -> None:
        self.concurrency = {"local": 10, "remote": 1}
        self.manager = self.build()
        self.start()
        for _ in range(4):
            self.queue.send(b"ann@far.test", b"bob@far.test")
        self.go()
        self.remote.open[0][1].callback(Report.deferral(b"later\n"))
        self.manager.retry_all()
        stopped = self.manager.stopService()
        for _, delivery in self.remote.open[1:]:
            delivery.callback(Report.deferral(b"later\n"))
        self.successResultOf(stopped)
        self.assertEqual(self.log()[-1], "status: exiting")


class ClockOfTheDisk(ManagerCase):
    def test_birth_in_the_future(self) -> None:
        """§9.4: new mail is tried at once, whatever the file system's clock says of its birth."""
        self.remote.answers[b"a@far.test"] = Report.success()
        preprocess = self.queue.preprocess

        def born_later(*arguments: Any) -> Any:
            return preprocess(*arguments).addCallback(
                lambda found: [attrs.evolve(one, birth=one.birth + 172_800) for one in found]
            )

        self.queue.preprocess = born_later
        self.start()
        self.queue.send(b"ann@far.test", b"a@far.test")
        self.go()
        self.assertEqual(len(self.remote.seen), 1)


class Restart(ManagerCase):
    def test_queue_of_a_predecessor(self) -> None:
        """§9.1: due times come from the files; a message that has neither channel file left is ended now."""
        self.start()
        waiting = self.queue.send(b"ann@far.test", b"bob@far.test", b"joe@here.test")
        finished = self.queue.send(b"ann@far.test", b"gone@here.test")
        self.go()
        self.manager.stopService()
        for spawner in (self.local, self.remote):
            for _, delivery in spawner.open:
                delivery.callback(Report.deferral(b"later\n"))
        del self.queue.files[finished, "local"], self.queue.due[finished, "local"]
        self.log()
        self.queue.locked = False
        self.manager = self.build()
        self.local.answers[b"joe@here.test"] = self.remote.answers[b"bob@far.test"] = Report.success()
        self.start()
        self.assertEqual(self.log_but_status(), [f"end msg {finished}"])
        self.go(100)
        self.assertEqual(self.log_but_status()[0], f"starting delivery 1: msg {waiting} to local joe@here.test")
        self.go(300)
        self.assertEqual(self.log_but_status()[-1], f"end msg {waiting}")

    def test_two_managers_on_one_queue(self) -> None:
        """§9.1: the second one cannot take lock/sendmutex."""
        self.start()
        self.assertRaises(BlockingIOError, self.build().startService)


class TroubleWithTheDisk(ManagerCase):
    """Whatever the disk refuses is said in the words of §9.7 and tried again; nothing is lost."""

    def setUp(self) -> None:
        super().setUp()
        self.local.answers[b"joe@here.test"] = Report.success()
        self.start()

    def trouble(self, method: str, warning: str, after: float) -> None:
        self.queue.broken.add(method)
        number = self.queue.send(b"ann@far.test", b"joe@here.test")
        self.go()
        warnings = [line for line in self.log() if line.startswith(("warning", "alert"))]
        self.assertEqual(len(warnings), 1, warnings)
        self.assertIn(warning.format(number=number, file=f"{number % 23}/{number}"), warnings[0])
        self.queue.broken.clear()
        self.go(after - 1)
        self.assertNotIn(f"end msg {number}", self.log())
        self.go(1)
        self.assertIn(f"end msg {number}", self.log())
        self.assertEqual((self.queue.messages, self.queue.infos, self.queue.files), ({}, {}, {}))

    def test_todo(self) -> None:
        self.trouble("todo", "alert: unable to opendir todo, sleeping...", 10)

    def test_scan(self) -> None:
        """§9.1: what an earlier run has left is found as soon as the disk allows."""
        number = self.queue.send(b"ann@far.test", b"joe@here.test")
        self.queue.preprocess([number], rewriter().route)
        self.queue.broken.add("scan")
        self.queue.locked = False
        self.manager = self.build()
        self.start()
        self.assertIn("alert: unable to opendir queue, sleeping...", self.log())
        self.queue.broken.clear()
        self.go(10)
        self.assertIn(f"end msg {number}", self.log())

    def test_preprocess(self) -> None:
        self.trouble("preprocess", "warning: unable to open todo/{number}", 1500)

    def test_info(self) -> None:
        self.trouble("info", "warning: trouble opening info/{file}; will try again later", 123)

    def test_recipients(self) -> None:
        self.trouble("recipients", "warning: trouble reading local/{file}; will try again later", 100)

    def test_strange_record(self) -> None:
        """§9.7: the message stays, and is tried again on its schedule."""
        asked = self.queue.recipients
        self.queue.recipients = lambda *_: fail(ValueError("unknown record"))  # type: ignore[method-assign, assignment]
        number = self.queue.send(b"ann@far.test", b"joe@here.test")
        self.go()
        lines = self.log()
        self.assertIn(f"warning: unknown record type in local/{number % 23}/{number}!", lines)
        self.assertNotIn(f"end msg {number}", lines)
        self.queue.recipients = asked  # type: ignore[method-assign]
        self.go(100)
        self.assertIn(f"end msg {number}", self.log())

    def test_finish_channel(self) -> None:
        self.trouble("finish_channel", "warning: unable to unlink local/{file}; will try again later", 123)

    def test_bounce(self) -> None:
        self.trouble("bounce", "warning: unable to clean up mess/{file}; will try again later", 123)

    def test_finish(self) -> None:
        """The end was logged before the disk refused: it is not logged twice."""
        self.queue.broken.add("finish")
        number = self.queue.send(b"ann@far.test", b"joe@here.test")
        self.go()
        self.assertEqual(self.log().count(f"end msg {number}"), 1)
        self.queue.broken.clear()
        self.go(123)
        self.assertEqual(self.log(), [])
        self.assertEqual(self.queue.messages, {})

    def test_open(self) -> None:
        """§11.1: a message that cannot be opened is a deferral."""
        self.queue.broken.add("open")
        self.queue.send(b"ann@far.test", b"joe@here.test")
        self.go()
        self.assertIn("delivery 1: deferral: Unable_to_open_the_message:_Input/output_error._(#4.3.0)/", self.log())

    def test_mark(self) -> None:
        """§9.7: the warning tells what follows."""
        self.queue.broken.add("mark")
        number = self.queue.send(b"ann@far.test", b"joe@here.test")
        self.go()
        self.assertIn(
            f"warning: trouble marking local/{number % 23}/{number}; message will be delivered twice!", self.log()
        )

    def test_postpone(self) -> None:
        self.local.answers[b"joe@here.test"] = Report.deferral(b"later\n")
        self.queue.broken.add("postpone")
        number = self.queue.send(b"ann@far.test", b"joe@here.test")
        self.go()
        lines = self.log()
        self.assertIn(f"warning: unable to utime local/{number % 23}/{number}; message will be retried too soon", lines)
        self.assertEqual(self.manager.channels["local"].waiting(), 1)
        self.manager.channels["local"].concurrency = 0  # so that it waits still
        self.manager.retry_all()
        self.successResultOf(self.manager.stopService())
        warning = f"warning: unable to utime local/{number % 23}/{number}; message will be retried too soon"
        self.assertEqual(self.log(), [warning, "status: exiting"])

    def test_append_bounce_waits_for_the_disk(self) -> None:
        """§9.7: the recipient stays unmarked until the paragraph is on disk."""
        self.local.answers[b"bad@here.test"] = Report.failure(b"no\n")
        self.queue.broken.add("append_bounce")
        number = self.queue.send(b"ann@far.test", b"bad@here.test")
        self.go()
        self.assertIn("alert: unable to append to bounce message; HELP! sleeping...", self.log())
        self.assertFalse(self.queue.files[number, "local"][0][0])
        self.queue.broken.clear()
        self.go(10)
        self.assertIn(f"bounce msg {number} qp {number + 1}", self.log())

    def test_bounce_is_injected_later(self) -> None:
        """§9.7: when the queue refuses the notice, the message stays until it takes it."""
        self.local.answers[b"bad@here.test"] = Report.failure(b"no\n")
        self.queue.refuse = 53
        number = self.queue.send(b"ann@far.test", b"bad@here.test")
        self.go()
        self.assertRegex(self.log()[-1], "^warning: trouble injecting bounce message, will try later")
        self.assertIn(number, self.queue.bounces)
        self.queue.refuse = 0
        self.go(123)
        self.assertIn(f"bounce msg {number} qp {number + 1}", self.log())
        self.assertNotIn(number, self.queue.messages)

    def test_bounce_that_cannot_begin(self) -> None:
        """The message that it is about is closed again, or a queue out of order would use up all descriptors."""
        self.local.answers[b"bad@here.test"] = Report.failure(b"no\n")
        before = len(os.listdir("/proc/self/fd"))
        with mock.patch.object(self.queue, "begin", side_effect=QueueError(62, "not there")):
            number = self.queue.send(b"ann@far.test", b"bad@here.test")
            self.go()
        self.assertRegex(self.log()[-1], "^warning: trouble injecting bounce message, will try later")
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
        self.go(123)
        self.assertIn(f"bounce msg {number} qp {number + 1}", self.log())
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_garbage(self) -> None:
        """§9.8: one sweep at the start, one every 76431 s; a failing one is a warning."""
        self.assertEqual(self.queue.sweeps, 1)
        self.queue.broken.add("collect_garbage")
        self.go(76431)
        self.assertEqual(self.queue.sweeps, 2)
        self.assertRegex(self.log()[-1], "^warning: unable to collect garbage")

    def test_todo_is_looked_at_without_a_trigger(self) -> None:
        """§9.4: 1500 s after the last scan began."""
        self.queue.on_todo(lambda: None)
        number = self.queue.send(b"ann@far.test", b"joe@here.test")
        self.go(1499)
        self.assertEqual(self.log_but_status(), [])
        self.go(1)
        self.assertIn(f"end msg {number}", self.log())


class Drained(ManagerCase):
    def test_fires_when_nothing_is_under_way(self) -> None:
        self.start()
        self.queue.send(b"ann@far.test", b"joe@here.test")
        self.go()
        drained: Deferred[None] = self.manager.drained()
        self.assertNoResult(drained)
        self.local.open[0][1].callback(Report.success())
        self.successResultOf(drained)
