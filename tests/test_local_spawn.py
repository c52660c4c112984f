"""The local spawner and its reports: spec/qmail.md §11."""

from __future__ import annotations

import errno
import os
import sysconfig
import threading
from collections.abc import Callable, Mapping

import attrs
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from qtwist.control import Control
from qtwist.files.assign import compile_assign
from qtwist.files.cdb import write_cdb
from qtwist.files.disk import Path, RealDisk
from qtwist.interfaces import Accepted, Delivery, IIncomingMessage, ISpawner
from qtwist.local import spawn
from qtwist.local.deliver import Job, Outcome, Parts
from qtwist.local.door import Closed, Hatch
from qtwist.local.report import report
from qtwist.local.spawn import LocalSpawner
from qtwist.local.users import Account
from qtwist.mail.asked import Asked
from qtwist.mail.envelope import Envelope, Origin, Report
from tests.memory_queue import MemoryIncoming, MemoryQueue
from tests.unprivileged import ORDINARY, folder

MESSAGE = b"Subject: x\n\nhello\n"
OWNER = os.geteuid() or ORDINARY


class ReportTests(SynchronousTestCase):
    """§11.2, §11.3."""

    def test_letters(self) -> None:
        for code, letter in [
            (0, b"K"),
            (111, b"Z"),
            (71, b"Z"),
            (74, b"Z"),
            (75, b"Z"),
            (100, b"D"),
            (1, b"D"),
            (99, b"D"),
            (101, b"D"),
            (255, b"D"),
        ]:
            self.assertEqual(report(code, b"text\n"), Report(letter, b"text\n"), code)

    def test_early_ends(self) -> None:
        """Codes of the spawner's child speak for themselves."""
        for code in (112, 113, 115, 116, 117, 118, 119, 120, 121, 126, -9):
            found = report(code, b"")
            self.assertEqual(found.letter, b"D" if code == 126 else b"Z", code)
            self.assertTrue(found.text.endswith(b")\n"), code)
        self.assertEqual(report(117, b"it is torn\n"), Report.deferral(b"it is torn\n"))

    def test_nul(self) -> None:
        self.assertEqual(report(0, b"said\0hidden\n"), Report.success(b"said"))

    def test_length(self) -> None:
        """3000 octets pass, more are cut to 2966 and a line that says so."""
        self.assertEqual(report(100, b"x" * 3000).text, b"x" * 3000)
        text = report(100, b"x" * 3001).text
        self.assertTrue(text.startswith(b"x" * 2966 + b"\n"))
        self.assertNotIn(b"x" * 2967, text)
        self.assertTrue(text.endswith(b"\n"))
        self.assertEqual(text.count(b"\n"), 2)


class WatchingDisk(RealDisk):
    """Knows the descriptors that were closed; `hold` delays writes until the test lets them go."""

    def __init__(self) -> None:
        super().__init__()
        self.closed: list[int] = []
        self.hold: threading.Event | None = None
        self.holding = threading.Semaphore(0)
        self.error: Exception | None = None

    def close(self, fd: int) -> None:
        self.closed.append(fd)
        super().close(fd)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        if self.error is not None:
            raise self.error
        return super().pread(fd, size, offset)

    def create_exclusive(self, path: Path, mode: int) -> int:
        if self.hold is not None:
            self.holding.release()
            self.hold.wait(30)
        return super().create_exclusive(path, mode)


class SlowIncoming(MemoryIncoming):
    """Asks the writer to wait after each write, and complains if it does not."""

    waiting: Deferred[None] | None = None

    def write(self, data: bytes) -> Deferred[None] | None:
        assert threading.current_thread() is threading.main_thread()
        assert self.waiting is None, "the writer did not wait"
        self.queue.sizes.append(len(data))
        self.data += data
        self.waiting = Deferred()
        # Longer than the next block needs to arrive, if its writer did not wait.
        reactor.callLater(0.005, self._ready)
        return self.waiting

    def _ready(self) -> None:
        waiting, self.waiting = self.waiting, None
        waiting.callback(None)

    def abort(self) -> None:
        self.queue.aborted += 1


class SlowQueue(MemoryQueue):
    def __init__(self) -> None:
        super().__init__(Clock())
        self.sizes: list[int] = []
        self.aborted = 0

    def begin(self, origin: Origin) -> IIncomingMessage:
        return SlowIncoming(self, origin)


class SilentIncoming(MemoryIncoming):
    """A queue that never answers, as when its disk hangs."""

    def commit(self, envelope: Envelope) -> Deferred[Accepted]:
        self.queue.asked.callback(None)
        return Deferred()


class SpawnCase(TestCase):
    """A home with one mailbox owner, "me", whose uid the spawner takes for its own."""

    def setUp(self) -> None:
        self.home = os.fsdecode(folder(self))
        self.mailbox = self.make("mailbox")
        self.make("alias")
        self.make("control")
        for name in ("Maildir", "Maildir/tmp", "Maildir/new", "Maildir/cur"):
            self.make("mailbox/" + name)
        self.queue = MemoryQueue(Clock())
        self.disk = WatchingDisk()
        self.limit(3)

    def make(self, name: str) -> str:
        path = os.path.join(self.home, name)
        os.mkdir(path, 0o755)
        if os.geteuid() == 0:
            os.chown(path, ORDINARY, ORDINARY)
        return path

    def put(self, name: str, text: bytes) -> None:
        with open(os.path.join(self.home, name), "wb") as file:
            file.write(text)

    def limit(self, number: int) -> None:
        self.put("control/concurrencylocal", b"%d\n" % number)

    def spawner(self, euid: int = OWNER) -> LocalSpawner:
        accounts = {
            b"me": Account(b"me", OWNER, OWNER, os.fsencode(self.mailbox)),
            b"you": Account(b"you", os.stat("/").st_uid or 1, 1, b"/"),
        }
        control = Control(os.path.join(self.home, "control"))
        spawner = LocalSpawner(
            self.home, control, self.queue, self.disk, reactor, euid=euid, find_account=accounts.get, now=lambda: 0.0
        )
        self.addCleanup(spawner.stop)
        return spawner

    def delivery(self, recipient: bytes, message: bytes = MESSAGE, sender: bytes = b"joe@x") -> Delivery:
        fd = os.memfd_create("message", os.MFD_CLOEXEC)
        os.write(fd, message)
        return Delivery(1, fd, sender, recipient)

    async def report(self, recipient: bytes, message: bytes = MESSAGE, euid: int = OWNER) -> Report:
        delivery = self.delivery(recipient, message)
        result = await self.spawner(euid).deliver(delivery)
        self.assertIn(delivery.fd, self.disk.closed)
        return result

    def mails(self) -> list[bytes]:
        texts = []
        for name in os.listdir(self.mailbox + "/Maildir/new"):
            with open(os.path.join(self.mailbox, "Maildir/new", name), "rb") as file:
                texts.append(file.read())
        return texts


class DeliveryTests(SpawnCase):
    def test_interface(self) -> None:
        self.assertTrue(ISpawner.providedBy(self.spawner()))

    def test_limit(self) -> None:
        """§1.1, §11.1: as control says, but 1 to 120."""
        for number, limit in ((3, 3), (0, 1), (120, 120), (500, 120)):
            self.limit(number)
            self.assertEqual(self.spawner().limit, limit)

    async def test_last_at(self) -> None:
        """The last @ decides where the local part ends (§30)."""
        self.make("users")
        write_cdb(
            os.path.join(self.home, "users/cdb"),
            compile_assign(b"=me@odd:me:%d:%d:%s:::\n.\n" % (OWNER, OWNER, os.fsencode(self.mailbox))),
        )
        self.assertEqual(await self.report(b"Me@Odd@here.test"), Report.success(b"did 1+0+0\n"))
        self.assertIn(b"\nDelivered-To: Me@Odd@here.test\n", self.mails()[0])

    async def test_maildir(self) -> None:
        self.assertEqual(await self.report(b"Me@here.test"), Report.success(b"did 1+0+0\n"))
        self.assertEqual(self.mails(), [b"Return-Path: <joe@x>\nDelivered-To: Me@here.test\n" + MESSAGE])

    async def test_default_delivery(self) -> None:
        """control/defaultdelivery is read for every delivery."""
        spawner = self.spawner()
        self.put("control/defaultdelivery", b"./Mailbox\n")
        await spawner.deliver(self.delivery(b"me@here.test"))
        self.assertIn("Mailbox", os.listdir(self.mailbox))
        self.assertEqual(self.mails(), [])

    async def test_no_mailbox(self) -> None:
        for recipient in (b"nobody@here.test", b"me-x@here.test"):
            result = await self.report(recipient)
            self.assertEqual(result.letter, b"D")
            self.assertIn(b"(#5.1.1)", result.text)

    async def test_nobody(self) -> None:
        """§11.2: an empty local part is thrown away; §11.1: no @ at all is an error."""
        self.assertEqual(await self.report(b"@here.test"), Report.success(b""))
        result = await self.report(b"me")
        self.assertEqual(result.letter, b"D")
        self.assertIn(b"(#5.1.3)", result.text)

    async def test_other_account(self) -> None:
        """Mail for another account waits, with a text that names both."""
        result = await self.report(b"me@here.test", euid=OWNER + 1)
        self.assertEqual(result.letter, b"Z")
        self.assertIn(b"user id %d)" % OWNER, result.text)
        self.assertIn(b"user id %d " % (OWNER + 1), result.text)
        self.assertIn(b"(#4.3.0)", result.text)
        self.assertEqual(self.mails(), [])

    async def test_root(self) -> None:
        """Nothing is delivered by root, nor to a record with uid 0 (113)."""
        self.assertEqual(await self.report(b"me@here.test", euid=0), report(113, b""))
        os.mkdir(os.path.join(self.home, "users"))
        write_cdb(
            os.path.join(self.home, "users/cdb"),
            compile_assign(b"=boss:root:0:0:%s:::\n.\n" % os.fsencode(self.mailbox)),
        )
        self.assertEqual(await self.report(b"boss@here.test"), report(113, b""))
        self.assertEqual(self.mails(), [])

    async def test_users_cdb(self) -> None:
        os.mkdir(os.path.join(self.home, "users"))
        path = os.path.join(self.home, "users/cdb")
        write_cdb(path, compile_assign(b"=sales:me:%d:%d:%s:::\n.\n" % (OWNER, OWNER, os.fsencode(self.mailbox))))
        self.assertEqual(await self.report(b"sales@here.test"), Report.success(b"did 1+0+0\n"))
        self.put("users/cdb", b"broken")
        result = await self.report(b"me@here.test")
        self.assertEqual(result.letter, b"Z")
        self.assertIn(b"users/cdb", result.text)

    async def test_unreadable_control(self) -> None:
        """A control file that cannot be read holds the mail up."""
        self.make("control/defaultdelivery")
        result = await self.report(b"me@here.test")
        self.assertEqual(result.letter, b"Z")
        self.assertIn(b"defaultdelivery", result.text)

    async def test_program(self) -> None:
        """A real program, where the tests do not run as root; root runs none."""
        self.put("mailbox/.qmail", b"|cat; exit 100\n")
        result = await self.report(b"me@here.test")
        if os.geteuid() == 0:
            self.assertEqual(result.letter, b"Z")
            self.assertIn(b"root", result.text)
        else:
            self.assertEqual(result, Report.failure(MESSAGE))

    async def test_program_environment(self) -> None:
        """Programs find our commands by name, before others of that name, and these find this home."""
        seen: list[Mapping[bytes, bytes]] = []

        def look(job: Job, parts: Parts) -> Outcome:
            seen.append(parts.base_environment)
            return Outcome(0, b"")

        self.patch(spawn, "deliver", look)
        await self.report(b"me@here.test")
        [environment] = seen
        scripts = os.fsencode(sysconfig.get_path("scripts"))
        self.assertEqual(environment[b"PATH"], scripts + b":" + os.environb[b"PATH"])
        self.assertEqual(environment[b"QTWISTHOME"], os.fsencode(self.home))

    async def test_broken_engine(self) -> None:
        """An error that nobody thought of is a deferral, told in the log."""
        self.disk.error = ZeroDivisionError("oops")
        result = await self.report(b"me@here.test")
        self.assertEqual(result.letter, b"Z")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_at_once(self) -> None:
        """As many deliveries at once as the limit says, none of them in the reactor's thread."""
        self.disk.hold = threading.Event()
        spawner = self.spawner()
        results = [spawner.deliver(self.delivery(b"me@here.test")) for _ in range(5)]
        for _ in range(3):
            self.assertTrue(self.disk.holding.acquire(timeout=30))
        self.assertFalse(self.disk.holding.acquire(blocking=False))
        self.disk.hold.set()
        for result in results:
            self.assertEqual((await result).letter, b"K")
        self.assertEqual(len(self.mails()), 5)

    async def test_stop(self) -> None:
        """stop waits for what runs, and takes nothing new."""
        self.disk.hold = threading.Event()
        spawner = self.spawner()
        result = spawner.deliver(self.delivery(b"me@here.test"))
        self.assertTrue(self.disk.holding.acquire(timeout=30))
        stopped = [spawner.stop(), spawner.stop()]
        late = self.delivery(b"me@here.test")
        self.assertEqual(self.successResultOf(spawner.deliver(late)).letter, b"Z")
        self.assertIn(late.fd, self.disk.closed)
        for ended in stopped:
            self.assertNoResult(ended)
        self.disk.hold.set()
        self.assertEqual((await result).letter, b"K")
        for ended in stopped:
            await ended

    async def test_stop_idle(self) -> None:
        spawner = self.spawner()
        self.successResultOf(spawner.stop())
        self.successResultOf(spawner.stop())


class ForwardTests(SpawnCase):
    """Forwards enter the queue (§13.5), from a thread."""

    def setUp(self) -> None:
        super().setUp()
        self.put("mailbox/.qmail", b"ann@y\nbob@z\n")
        self.put("alias/.qmail-default", b"ann@y\n")

    async def test_forward(self) -> None:
        self.assertEqual(await self.report(b"me@here.test"), Report.success(b"did 0+2+0\nqp 101\n"))
        self.assertEqual(
            self.queue.accepted,
            [(Envelope(b"joe@x", (b"ann@y", b"bob@z")), b"Delivered-To: me@here.test\n" + MESSAGE)],
        )
        self.assertEqual(self.queue.origins[101], Origin.user(OWNER))

    async def test_asked(self) -> None:
        """RFC 3461 §5.2.7.2: the parameters go into the envelope of a forward to one."""
        one = attrs.evolve(
            self.delivery(b"postmaster@here.test"), asked_mail=b"RET=HDRS", asked=b"NOTIFY=SUCCESS,FAILURE"
        )
        report = await self.spawner().deliver(one)
        self.assertEqual(report.text, b"did 0+1+0\nqp 101\nThe server reports further.\n")
        [(envelope, _)] = self.queue.accepted
        self.assertEqual(envelope.asked, Asked(b"RET=HDRS", (b"NOTIFY=SUCCESS,FAILURE",)))

    async def test_alias(self) -> None:
        """§6.2: what alias forwards says so."""
        await self.report(b"postmaster@here.test")
        self.assertEqual(self.queue.origins[101], Origin.alias(OWNER))

    async def test_refused(self) -> None:
        """A queue code decides whether it is for good (§7)."""
        for code, letter in ((11, b"D"), (53, b"Z")):
            self.queue.refuse = code
            result = await self.report(b"me@here.test")
            self.assertEqual(result.letter, letter)
            self.assertNotIn(b"did", result.text)

    async def test_large(self) -> None:
        """A large message goes in blocks, each after the queue was ready for it."""
        self.queue = SlowQueue()
        message = b"Subject: x\n\n" + b"0123456789abcde\n" * 100_000
        self.assertEqual((await self.report(b"me@here.test", message)).letter, b"K")
        self.assertEqual(self.queue.accepted[0][1], b"Delivered-To: me@here.test\n" + message)
        self.assertGreater(len(self.queue.sizes), 5)
        self.assertLessEqual(max(self.queue.sizes), 256 * 1024)

    async def test_large_unreadable(self) -> None:
        """What cannot be read to the end is not queued."""
        self.queue = SlowQueue()
        read = self.disk.pread

        def pread(fd: int, size: int, offset: int) -> bytes:
            if offset > 500_000:
                raise OSError(errno.EIO, "Input/output error")
            return read(fd, size, offset)

        self.patch(self.disk, "pread", pread)
        result = await self.report(b"me@here.test", b"Subject: x\n\n" + b"0123456789abcde\n" * 100_000)
        self.assertEqual(result.letter, b"Z")
        self.assertEqual((self.queue.aborted, self.queue.accepted), (1, []))


class HatchTests(TestCase):
    """Nobody waits for ever for a reactor that is stopping."""

    def in_thread(self, function: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
        found: list[object] = []

        def work() -> None:
            try:
                found.append(function())
            except Exception as error:
                found.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        return thread, found

    def test_closed_before_the_reactor_runs_it(self) -> None:
        class StoppedReactor:
            def callFromThread(self, function: Callable[..., object], *arguments: object) -> None:
                called.set()

        called = threading.Event()
        hatch = Hatch(StoppedReactor())

        async def never() -> None:
            raise AssertionError("not to be called")

        thread, found = self.in_thread(lambda: hatch.call(never))
        self.assertTrue(called.wait(30))
        hatch.close()
        thread.join(30)
        self.assertIsInstance(found[0], Closed)
        self.assertRaises(Closed, hatch.call, never)

    async def test_closed_while_it_waits(self) -> None:
        """An answer that comes too late disturbs nobody."""
        hatch = Hatch(reactor)
        asked: Deferred[None] = Deferred()
        answer: Deferred[int] = Deferred()

        async def ask() -> int:
            asked.callback(None)
            return await answer

        thread, found = self.in_thread(lambda: hatch.call(ask))
        await asked
        hatch.close()
        thread.join(30)
        self.assertIsInstance(found[0], Closed)
        answer.callback(1)

    async def test_answers(self) -> None:
        hatch = Hatch(reactor)
        done: Deferred[list[object]] = Deferred()

        async def good() -> int:
            return 7

        async def bad() -> int:
            raise KeyError("x")

        def work() -> None:
            found: list[object] = [hatch.call(good)]
            try:
                hatch.call(bad)
            except KeyError as error:
                found.append(error.args)
            reactor.callFromThread(done.callback, found)

        thread = threading.Thread(target=work)
        thread.start()
        self.assertEqual(await done, [7, ("x",)])
        thread.join()


class ShutdownTests(SpawnCase):
    async def test_reactor_stops_first(self) -> None:
        """A delivery that waits for the queue is sent on its way when the reactor stops answering."""
        self.put("mailbox/.qmail", b"ann@y\n")
        self.queue.asked = asked = Deferred()
        self.patch(self.queue, "begin", lambda origin: SilentIncoming(self.queue, origin))
        spawner = self.spawner()
        result = spawner.deliver(self.delivery(b"me@here.test"))
        await asked
        # What the reactor calls "during shutdown"; it joins the threads, so it would hang here.
        spawner._end()
        found = await result
        self.assertEqual(found.letter, b"Z")
        self.assertIn(b"stopping", found.text)
