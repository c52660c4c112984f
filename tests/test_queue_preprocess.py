"""todo to info, local and remote (spec/qmail.md §9.4), also for queues that another qmail left behind (§5.3)."""

from __future__ import annotations

import os
import stat

from twisted.trial.unittest import SynchronousTestCase

from qtwist.files.disk import Disk, RealDisk
from qtwist.interfaces import Preprocessed
from qtwist.queue.preprocess import preprocess
from qtwist.queue.records import RECORD_LIMIT
from qtwist.queue.sync import filesystem_roots
from tests.queue_tools import (
    CountingDisk,
    Trouble,
    WatchedDisk,
    descriptors,
    files_of,
    make_queue,
    put_message,
    read,
    write,
)

BODY = b"Received: (qmail 28188 invoked by uid 0); 2 Nov 2026 12:00:00 -0000\nhello\n"
TODO = b"u0\0p28188\0Fa@b\0Tjoe@x\0Tann@y\0Tbob@x\0"


def route(recipient: bytes) -> tuple[str, bytes]:
    return ("local", b"joe-" + recipient) if recipient.endswith(b"@x") else ("remote", recipient)


class PreprocessCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.layout = make_queue(self)

    def put(self, todo: bytes = TODO, **rooms: bytes) -> int:
        return put_message(self.layout, BODY, intd=todo, todo=todo, **rooms)

    def preprocess(self, *numbers: int, disk: Disk | None = None) -> list[Preprocessed | tuple[int, str]]:
        disk = disk or RealDisk()
        return preprocess(disk, self.layout, filesystem_roots(RealDisk(), self.layout), numbers, route)


class FilesTests(PreprocessCase):
    def check(self, number: int, result: object) -> None:
        layout = self.layout
        info = layout.path("info", number)
        self.assertEqual(
            result,
            Preprocessed(number, len(BODY), b"a@b", 28188, 0, os.stat(info).st_mtime, frozenset({"local", "remote"})),
        )
        self.assertEqual(read(info), b"Fa@b\0")
        self.assertEqual(read(layout.path("local", number)), b"Tjoe-joe@x\0Tjoe-bob@x\0")
        self.assertEqual(read(layout.path("remote", number)), b"Tann@y\0")
        for room in ("info", "local", "remote"):
            self.assertEqual(stat.S_IMODE(os.stat(layout.path(room, number)).st_mode), 0o600)

    def test_taken_over(self) -> None:
        """A message that notqmail's qmail-queue left in S4; then it is in S5 (§5.3)."""
        number = self.put()
        [result] = self.preprocess(number)
        self.check(number, result)
        self.assertEqual(
            files_of(self.layout), {self.layout.name(r, number) for r in ("mess", "info", "local", "remote")}
        )

    def test_interrupted(self) -> None:
        """S4 with remains of an earlier try: they are made anew. Without intd/N, too."""
        rooms = {"info": b"Fa@", "local": b"Djoe@x\0Told\0", "remote": b"", "bounce": b"<ann@y>:\nno\n\n"}
        first = self.put(**rooms)
        second = put_message(self.layout, BODY, todo=TODO)
        results = self.preprocess(first, second)
        self.check(first, results[0])
        self.check(second, results[1])
        self.assertEqual(len(files_of(self.layout)), 8)

    def test_nobody(self) -> None:
        """§6.1: a message without recipients has no channels."""
        number = self.put(b"u5\0p6\0F\0")
        [result] = self.preprocess(number)
        assert isinstance(result, Preprocessed)
        self.assertEqual((result.channels, result.sender, result.uid, result.qp), (frozenset(), b"", 5, 6))
        self.assertEqual(files_of(self.layout), {self.layout.name("mess", number), self.layout.name("info", number)})

    def test_very_many_recipients(self) -> None:
        recipients = [b"r%d@y" % index for index in range(30000)]
        number = self.put(b"u0\0p1\0Fa\0" + b"".join(b"T%s\0" % r for r in recipients) + b"Tjoe@x\0")
        [result] = self.preprocess(number)
        self.assertIsInstance(result, Preprocessed)
        self.assertEqual(read(self.layout.path("remote", number)).split(b"\0")[:-1], [b"T" + r for r in recipients])
        self.assertEqual(read(self.layout.path("local", number)), b"Tjoe-joe@x\0")


class WarningTests(PreprocessCase):
    """§9.7: what is wrong is said in qmail-send's words, the message stays in todo, the others go on."""

    def warned(self, number: int, warning: str) -> None:
        good = self.put()
        before = descriptors()
        results = self.preprocess(number, good)
        self.assertEqual(results[0], (number, warning))
        self.assertIsInstance(results[1], Preprocessed)
        self.assertEqual(descriptors(), before)
        self.assertFalse(os.path.exists(self.layout.path("todo", good)))

    def test_gone(self) -> None:
        self.warned(1, "unable to open todo/1")

    def test_no_message(self) -> None:
        number = self.put()
        # Held open, or the next message gets the number.
        self.addCleanup(os.close, os.open(self.layout.path("mess", number), os.O_RDONLY))
        os.unlink(self.layout.path("mess", number))
        self.warned(number, f"unable to stat {self.layout.name('mess', number)}")
        self.assertTrue(os.path.exists(self.layout.path("todo", number)))

    def test_unknown_record(self) -> None:
        number = self.put(b"u0\0p1\0Fa\0Xjoe\0")
        self.warned(number, f"unknown record type in todo/{number}")
        self.assertEqual(read(self.layout.path("todo", number)), b"u0\0p1\0Fa\0Xjoe\0")

    def test_damage(self) -> None:
        for contents in (b"", b"u0\0p1\0", b"u0\0p1\0Fa\0Tjoe@x\0Tbo", b"\xff" * 100000):
            number = self.put(contents)
            self.warned(number, f"trouble reading todo/{number}")

    def test_route_that_no_file_can_hold(self) -> None:
        number = self.put(b"u0\0p1\0Fa\0T" + b"a" * (RECORD_LIMIT - 4) + b"@x\0")
        self.warned(number, f"trouble writing to {self.layout.name('local', number)}")

    def test_in_the_way(self) -> None:
        number = self.put()
        os.mkdir(self.layout.path("local", number))
        self.warned(number, f"unable to unlink {self.layout.name('local', number)}")


class SyncTests(PreprocessCase):
    def test_flushes(self) -> None:
        """One message: three files and three directories. Many: one flush for all."""
        for messages, fsyncs, flushes in ((1, 6, 0), (30, 0, 1)):
            numbers = [self.put() for _ in range(messages)]
            disk = CountingDisk()
            disk.can_sync_filesystem = True
            results = self.preprocess(*numbers, disk=disk)
            self.assertTrue(all(isinstance(result, Preprocessed) for result in results))
            self.assertEqual((disk.counts["fsync"], disk.counts["sync_filesystem"]), (fsyncs, flushes))

    def test_more_than_one_sync_may_cover(self) -> None:
        numbers = [self.put() for _ in range(120)]
        disk = CountingDisk()
        disk.can_sync_filesystem = False
        results = self.preprocess(*numbers, disk=disk)
        self.assertEqual([getattr(result, "number", None) for result in results], numbers)


class FailingDiskTests(PreprocessCase):
    def run_through(self, messages: int, lasting: bool) -> set[str]:
        """Fail at every call: nothing is lost, and what stays in todo is preprocessed the next time."""
        warnings = set()
        k = 0
        while True:
            k += 1
            self.layout = make_queue(self, split=3)
            numbers = [self.put() for _ in range(messages)]
            trouble = Trouble(k, lasting)
            before = descriptors()
            try:
                results = self.preprocess(*numbers, disk=WatchedDisk(trouble))
            except OSError:
                # Only when the batch could not be begun at all.
                self.assertIn(trouble.struck, ("open_directory", "open"))
                results = [(number, "") for number in numbers]
            if not trouble.struck:
                return warnings
            self.assertEqual(descriptors(), before, trouble.struck)
            for number, result in zip(numbers, results, strict=True):
                files = files_of(self.layout)
                self.assertIn(self.layout.name("mess", number), files)
                if isinstance(result, Preprocessed):
                    self.assertNotIn(f"todo/{number}", files)
                else:
                    self.assertIn(f"todo/{number}", files)
                    warnings.add(result[1].replace(self.layout.name("x", number)[2:], "N"))
                    [again] = self.preprocess(number)
                    self.assertIsInstance(again, Preprocessed)
                self.assertEqual(read(self.layout.path("info", number)), b"Fa@b\0")
                self.assertEqual(read(self.layout.path("local", number)), b"Tjoe-joe@x\0Tjoe-bob@x\0")
                self.assertEqual(read(self.layout.path("remote", number)), b"Tann@y\0")

    def test_one_message(self) -> None:
        kinds = {warning.split("/")[0] for warning in self.run_through(1, False)}
        self.assertEqual(
            kinds,
            {
                "unable to open todo",
                "unable to stat mess",
                "unable to stat info",
                "unable to unlink local",
                "unable to unlink remote",
                "unable to unlink info",
                "unable to unlink bounce",
                "unable to create info",
                "unable to create local",
                "unable to create remote",
                "trouble reading todo",
                "trouble writing to info",
                "trouble writing to local",
                "trouble writing to remote",
                "trouble fsyncing info",
                "qmail-clean unable to clean up todo",
            },
        )

    def test_batch(self) -> None:
        self.run_through(2, False)

    def test_dead_disk(self) -> None:
        self.run_through(1, True)


class LeftoverTests(PreprocessCase):
    def test_stale_files_are_not_appended_to(self) -> None:
        number = self.put()
        write(self.layout.path("remote", number), b"Dold@y\0Told@z\0")
        self.preprocess(number)
        self.assertEqual(read(self.layout.path("remote", number)), b"Tann@y\0")
