"""Accepting messages into qmail's files (spec/qmail.md §5.2-§5.4, §6.2-§6.3), on disks that fail."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from qtwist.files.disk import Disk, Path, RealDisk
from qtwist.interfaces import Accepted, QueueError
from qtwist.mail.envelope import Envelope, Origin
from qtwist.queue.accept import Acceptor, Submission
from qtwist.queue.layout import Layout
from tests.queue_tools import CountingDisk, Trouble, WatchedDisk, descriptors, files_of, make_queue, read, write

NEVER = 1 << 62
NOON = 1793620800.0  # 2 Nov 2026 12:00:00 -0000
JOE = Envelope(b"a@b", (b"joe@x",))


def submission(envelope: Envelope = JOE, body: bytes = b"Subject: x\n\nhello\n") -> Submission:
    return Submission(Origin.network(1000), NOON, envelope, [body[:5], body[5:]])


class AcceptCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.layout = make_queue(self)

    def acceptor(self, disk: Disk | None = None) -> Acceptor:
        return Acceptor(disk or RealDisk(), self.layout)


class CommitTests(AcceptCase):
    def test_files(self) -> None:
        """§5.1, §5.2, §28.1: byte for byte, with the modes of §5.2; pid/ is empty again."""
        acceptor = self.acceptor()
        [accepted] = acceptor.commit([submission()])
        assert isinstance(accepted, Accepted)
        number = accepted.number
        self.assertEqual(accepted.qp, number)
        layout = self.layout
        mess = layout.path("mess", number)
        self.assertEqual(
            read(mess),
            b"Received: (qmail %d invoked from network); 2 Nov 2026 12:00:00 -0000\nSubject: x\n\nhello\n" % number,
        )
        self.assertEqual(os.stat(mess).st_ino, number)
        self.assertEqual(read(layout.path("todo", number)), b"u1000\0p%d\0Fa@b\0Tjoe@x\0" % number)
        self.assertTrue(os.path.samefile(layout.path("todo", number), layout.path("intd", number)))
        for room in ("mess", "todo"):
            self.assertEqual(stat.S_IMODE(os.stat(layout.path(room, number)).st_mode), 0o644)
        names = {layout.name(room, number) for room in ("mess", "intd", "todo")}
        self.assertEqual(files_of(layout), names)
        self.assertEqual(acceptor.busy, set())

    def test_modes_without_a_umask(self) -> None:
        """§5.2: nobody else writes, whatever the umask allows."""
        self.addCleanup(os.umask, os.umask(0))
        [accepted] = self.acceptor().commit([submission()])
        assert isinstance(accepted, Accepted)
        modes = {stat.S_IMODE(os.stat(self.layout.path(room, accepted.number)).st_mode) for room in ("mess", "intd")}
        self.assertEqual(modes, {0o644})

    def test_spilled(self) -> None:
        """A message of which a part is on disk already, and one of which all is."""
        acceptor = self.acceptor()
        batch = []
        for rest in ([b"rest"], []):
            mess = acceptor.create(Origin.user(5), NOON)
            acceptor.append(mess, b"first")
            acceptor.flush(mess)
            self.assertIn(mess.number, acceptor.busy)
            batch.append(Submission(Origin.user(5), NOON, JOE, rest, mess))
        bodies = []
        for accepted in acceptor.commit(batch):
            assert isinstance(accepted, Accepted)
            bodies.append(read(self.layout.path("mess", accepted.number)).split(b"\n", 1)[1])
        self.assertEqual(bodies, [b"firstrest", b"first"])

    def test_bad_envelopes_do_not_harm_the_others(self) -> None:
        """§6.3: 11 for an address of more than 1002 octets, 91 for one that no file can hold."""
        before = descriptors()
        acceptor = self.acceptor()
        spilled = Submission(Origin.user(5), NOON, Envelope(b"s" * 1003, ()), [], acceptor.create(Origin.user(5), NOON))
        results = acceptor.commit(
            [submission(Envelope(b"a", (b"r" * 1003,))), submission(), submission(Envelope(b"\0", ())), spilled]
        )
        self.assertEqual([getattr(result, "code", 0) for result in results], [11, 0, 91, 11])
        self.assertEqual(len(files_of(self.layout)), 3)
        self.assertEqual(acceptor.busy, set())
        self.assertEqual(descriptors(), before)

    def test_many_recipients(self) -> None:
        envelope = Envelope(b"", tuple(b"r%d@example.org" % index for index in range(20000)))
        [accepted] = self.acceptor().commit([submission(envelope)])
        assert isinstance(accepted, Accepted)
        self.assertEqual(read(self.layout.path("todo", accepted.number)).count(b"\0T"), 20000)

    def test_envelope_of_a_dead_message(self) -> None:
        """An intd/N without mess/N (a crash undid its removal) does not block the number for ever."""

        class Haunted(RealDisk):
            def link(disk, source: str, target: str) -> None:  # type: ignore[override]
                super().link(source, target)
                if "/mess/" in target:
                    write(self.layout.path("intd", int(target.rsplit("/", 1)[1])), b"u0\0p1\0Fold\0Told\0")

        [accepted] = self.acceptor(Haunted()).commit([submission()])
        assert isinstance(accepted, Accepted)
        self.assertTrue(read(self.layout.path("todo", accepted.number)).endswith(b"Fa@b\0Tjoe@x\0"))

    def test_number_of_a_lost_message(self) -> None:
        """A todo/N without mess/N, or an info/N that a crash has brought back: the new message does not get N, for it
        would go to the old one's recipients."""
        for room, contents in (("todo", b"u0\0p1\0Fold\0Told\0"), ("info", b"Fold\0")):
            probe = self.layout.room("pid") + "/probe"
            write(probe, b"")
            number = os.stat(probe).st_ino
            write(self.layout.path(room, number), contents)
            os.unlink(probe)
            acceptor = self.acceptor()
            numbers = [getattr(result, "number", None) for result in acceptor.commit([submission() for _ in range(5)])]
            self.assertNotIn(None, numbers)
            self.assertNotIn(number, numbers)
            self.assertEqual(read(self.layout.path(room, number)), contents)
            self.assertFalse(os.path.exists(self.layout.path("mess", number)))
            for fd in acceptor._haunted:
                os.close(fd)

    def test_number_taken_in_todo(self) -> None:
        """66, and what was there stays."""

        class Haunted(RealDisk):
            def link(disk, source: str, target: str) -> None:  # type: ignore[override]
                if "/todo/" in target:
                    write(target, b"old")
                super().link(source, target)

        [error] = self.acceptor(Haunted()).commit([submission()])
        assert isinstance(error, QueueError)
        self.assertEqual(error.code, 66)
        [left] = files_of(self.layout)
        self.assertEqual(read(f"{self.layout.directory}/{left}"), b"old")

    def test_create_leaves_nothing_behind_when_abandoned(self) -> None:
        before = descriptors()
        acceptor = self.acceptor()
        mess = acceptor.create(Origin.user(5), NOON)
        acceptor.append(mess, b"some")
        acceptor.discard(mess)
        self.assertEqual((files_of(self.layout), acceptor.busy, descriptors()), (set(), set(), before))


class SyncTests(AcceptCase):
    def counted(self, messages: int, shared: bool = True) -> CountingDisk:
        disk = CountingDisk()
        acceptor = self.acceptor(disk)
        disk.can_sync_filesystem = shared
        disk.counts.clear()
        results = acceptor.commit([submission() for _ in range(messages)])
        self.assertEqual([result for result in results if not isinstance(result, Accepted)], [])
        return disk

    def test_one_message(self) -> None:
        """mess, intd, the directory mess/s, the directory todo: no more, no less (§5.4)."""
        disk = self.counted(1)
        self.assertEqual((disk.counts["fsync"], disk.counts["sync_filesystem"]), (4, 0))

    def test_what_was_spilled(self) -> None:
        """A large message is synced by itself, so that others do not wait for it."""
        disk = CountingDisk()
        acceptor = self.acceptor(disk)
        mess = acceptor.create(Origin.user(5), NOON)
        acceptor.append(mess, b"Subject: x\n\n")
        disk.counts.clear()
        acceptor.flush(mess)
        self.assertEqual(disk.counts["fsync"], 1)
        acceptor.discard(mess)

    def test_a_batch_shares_its_flushes(self) -> None:
        """However many messages: one flush for all files, one for todo/."""
        for messages in (2, 40):
            disk = self.counted(messages)
            self.assertEqual((disk.counts["fsync"], disk.counts["sync_filesystem"]), (1, 1))

    def test_without_syncfs(self) -> None:
        """Each file is synced, and each directory once."""
        disk = self.counted(40, shared=False)
        self.assertEqual(disk.counts["sync_filesystem"], 0)
        parts = {name.split("/")[1] for name in files_of(self.layout) if name.startswith("mess/")}
        self.assertEqual(disk.counts["fsync_directory"], len(parts) + 1)
        self.assertEqual(disk.counts["fsync"], 80 + len(parts) + 1)

    def test_order(self) -> None:
        """No link in todo/ before the contents are synced, no answer before todo/ is."""
        for messages in (1, 3):
            steps: list[str] = []
            acceptor = self.acceptor(WatchedDisk(steps.append))
            steps.clear()
            acceptor.commit([submission() for _ in range(messages)])
            steps = [step for step in steps if step not in ("open", "close", "open_directory", "fstat")]
            # The last things done: the links of all messages, one sync of todo/.
            self.assertEqual(
                steps[-2 - messages :], ["fsync", *["link"] * messages, "fsync_directory", "fsync"][-2 - messages :]
            )
            self.assertIn("sync_filesystem" if messages > 1 else "fsync", steps[: -2 - messages])


class FailingDiskTests(AcceptCase):
    """Fail at the k-th call, for every k: an answer for every message, and the files agree with it."""

    def run_through(self, messages: int, lasting: bool, prepare: Callable[[Acceptor], list[Submission]]) -> set[int]:
        codes = set()
        k = 0
        while True:
            k += 1
            self.layout = make_queue(self)
            trouble = Trouble(NEVER, lasting, errno.ENOSPC if k % 2 else errno.EIO)
            acceptor = self.acceptor(WatchedDisk(trouble))
            batch = prepare(acceptor)
            before = descriptors()
            trouble.first, trouble.calls = k, 0
            results = acceptor.commit(batch)
            if not trouble.struck:
                return codes
            self.assertEqual(len(results), messages)
            self.assertTrue(descriptors() <= before, f"open files after {trouble.struck}")
            accepted = {result.number for result in results if isinstance(result, Accepted)}
            codes |= {result.code for result in results if isinstance(result, QueueError)}
            self.check(accepted, acceptor, trouble)

    def check(self, accepted: set[int], acceptor: Acceptor, trouble: Trouble) -> None:
        layout = self.layout
        files = files_of(layout)
        todo = {int(name.split("/")[1]) for name in files if name.startswith("todo/")}
        for number in accepted:
            self.assertTrue(read(layout.path("mess", number)).endswith(b"\nSubject: x\n\nhello\n"))
            self.assertTrue(read(layout.path("todo", number)).endswith(b"Fa@b\0Tjoe@x\0"))
        # What was refused is not in todo; or it could not be taken out again, and then this process hides it.
        self.assertEqual(todo - accepted, acceptor.busy, trouble.struck)
        self.assertTrue(accepted <= todo)
        if not trouble.lasting:
            self.assertEqual(todo, accepted)
        # Every state is one of §5.3.
        for number in todo | {int(name.split("/")[1]) for name in files if name.startswith("intd/")}:
            self.assertIn(layout.name("mess", number), files)
        # Nothing of what was refused takes room, unless it could not be taken away.
        if not trouble.lasting and trouble.struck != "unlink":
            self.assertEqual({int(name.split("/")[-1]) for name in files}, accepted, trouble.struck)

    def test_one_message(self) -> None:
        codes = self.run_through(1, False, lambda acceptor: [submission()])
        self.assertEqual(codes, {53, 63, 64, 65, 66})

    def test_a_batch(self) -> None:
        codes = self.run_through(3, False, lambda acceptor: [submission() for _ in range(3)])
        self.assertEqual(codes, {53, 63, 64, 65, 66})

    def test_dead_disk(self) -> None:
        for messages in (1, 3):
            self.run_through(messages, True, lambda acceptor, n=messages: [submission() for _ in range(n)])

    def test_spilled(self) -> None:
        def spill(acceptor: Acceptor) -> list[Submission]:
            mess = acceptor.create(Origin.user(5), NOON)
            acceptor.append(mess, b"Subject: x\n\n")
            acceptor.flush(mess)
            return [Submission(Origin.user(5), NOON, JOE, [b"hello\n"], mess)]

        for lasting in (False, True):
            self.run_through(1, lasting, spill)

    def test_shared_flush_fails_all(self) -> None:
        class Broken(RealDisk):
            def sync_filesystem(disk, fd: int) -> None:
                raise OSError(errno.EIO, "broken")

        disk = Broken()
        disk.can_sync_filesystem = True
        acceptor = self.acceptor(disk)
        results = acceptor.commit([submission() for _ in range(3)])
        self.assertEqual([result.code for result in results if isinstance(result, QueueError)], [53, 53, 53])
        self.assertEqual((files_of(self.layout), acceptor.busy), (set(), set()))

    def test_sync_of_todo_fails_all(self) -> None:
        """The links may or may not last, so nobody is told that they do."""
        for messages in (1, 3):
            todo = self.layout.room("todo")

            class Refusing(RealDisk):
                def fsync_directory(disk, path: Path, todo: str = todo) -> None:
                    if path == todo:
                        raise OSError(errno.EIO, "no", path)
                    super().fsync_directory(path)

            results = self.acceptor(Refusing()).commit([submission() for _ in range(messages)])
            self.assertEqual([getattr(result, "code", None) for result in results], [66] * messages)
            self.assertEqual(files_of(self.layout), set())

    def test_own_sync_fails_one(self) -> None:
        """A file's failed fsync is not tried again, and the others of the batch are accepted."""

        class Broken(RealDisk):
            broken = False

            def fsync(disk, fd: int) -> None:
                if not disk.broken:
                    disk.broken = True
                    raise OSError(errno.EIO, "broken")
                super().fsync(fd)

        disk = Broken()
        disk.can_sync_filesystem = False
        results = self.acceptor(disk).commit([submission() for _ in range(3)])
        self.assertEqual([getattr(result, "code", 0) for result in results], [53, 0, 0])
        self.assertEqual(len(files_of(self.layout)), 6)

    def test_names_in_pid_taken(self) -> None:
        """§6.2: nine names are tried, then 63."""
        stem = f"{self.layout.room('pid')}/{os.getpid()}.{int(NOON)}."
        for sequence in range(1, 9):
            write(stem + str(sequence), b"")
        self.assertIsInstance(self.acceptor().commit([submission()])[0], Accepted)
        write(stem + "9", b"")
        [error] = self.acceptor().commit([submission()])
        assert isinstance(error, QueueError)
        self.assertEqual(error.code, 63)


class OutOfMemoryTests(AcceptCase):
    def test_code(self) -> None:
        """51 (§6.3)."""

        class Full(Acceptor):
            def append(self, mess: object, data: bytes) -> None:
                raise MemoryError

        [error] = Full(RealDisk(), self.layout).commit([submission()])
        assert isinstance(error, QueueError)
        self.assertEqual((error.code, files_of(Layout(self.layout.directory))), (51, set()))
