"""The queue directory (spec/qmail.md §1.4, §5.1)."""

from __future__ import annotations

import os
import shutil
import stat

from twisted.trial.unittest import SynchronousTestCase

from qtwist.files.disk import RealDisk
from qtwist.queue.layout import Layout, LayoutError, check_access, create_queue, message_number, open_layout
from tests.queue_tools import CountingDisk, make_queue, read
from tests.unprivileged import as_user, folder


class CreateTests(SynchronousTestCase):
    def test_modes(self) -> None:
        """§1.4."""
        directory = make_queue(self).directory
        expected = {"": 0o750, "pid": 0o700, "intd": 0o700, "todo": 0o750, "bounce": 0o700, "lock": 0o750}
        for room, mode in {"mess": 0o750, "info": 0o700, "local": 0o700, "remote": 0o700}.items():
            expected[room] = mode
            expected.update({f"{room}/{part}": mode for part in range(23)})
        expected.update({"lock/sendmutex": 0o600, "lock/tcpto": 0o644, "lock/trigger": 0o622})
        found = {"": os.stat(directory)}
        for where, rooms, files in os.walk(directory):
            for name in rooms + files:
                path = os.path.join(where, name)
                found[os.path.relpath(path, directory)] = os.stat(path)
        self.assertEqual({name: stat.S_IMODE(status.st_mode) for name, status in found.items()}, expected)
        self.assertTrue(stat.S_ISFIFO(found["lock/trigger"].st_mode))
        self.assertEqual(read(directory + "/lock/tcpto"), bytes(1024))
        self.assertEqual(read(directory + "/lock/sendmutex"), b"")

    def test_again(self) -> None:
        """What is there stays; what is missing is made."""
        layout = make_queue(self)
        with open(layout.lock("tcpto"), "wb") as file:
            file.write(b"x" * 1024)
        os.rmdir(layout.room("local", 5))
        self.assertEqual(create_queue(layout.directory), layout)
        self.assertEqual(read(layout.lock("tcpto")), b"x" * 1024)
        self.assertTrue(os.path.isdir(layout.room("local", 5)))

    def test_durable(self) -> None:
        """Messages are safe only in directories that are: each one is synced, and the one above the queue."""
        disk = CountingDisk()
        create_queue(os.path.abspath(self.mktemp()) + "q", disk)
        self.assertEqual(disk.counts["fsync_directory"], disk.counts["make_directory"] + 1)
        self.assertEqual(disk.counts["fsync"], disk.counts["fsync_directory"] + disk.counts["create_exclusive"])

    def test_in_the_way(self) -> None:
        path = self.mktemp()
        with open(path, "wb"):
            pass
        self.assertRaises(LayoutError, create_queue, path)


class OpenTests(SynchronousTestCase):
    def test_split_is_detected(self) -> None:
        layout = make_queue(self, split=7)
        self.assertEqual(open_layout(layout.directory, RealDisk()), Layout(layout.directory, 7))

    def complaint(self, layout: Layout) -> str:
        error = self.assertRaises(LayoutError, open_layout, layout.directory, RealDisk())
        self.assertNotIn("\n", str(error))
        return str(error)

    def test_missing(self) -> None:
        for name in ("todo", "remote", "info/22", "mess/3", "lock"):
            layout = make_queue(self)
            shutil.rmtree(f"{layout.directory}/{name}")
            self.assertIn(
                f"{layout.directory}/mess" if "mess" in name else f"{layout.directory}/{name}", self.complaint(layout)
            )

    def test_nothing(self) -> None:
        layout = Layout(self.mktemp())
        self.assertEqual(self.complaint(layout), f"{layout.directory}: No such file or directory; expected a directory")

    def test_wrong_kinds(self) -> None:
        layout = make_queue(self)
        os.unlink(layout.lock("trigger"))
        self.assertEqual(
            self.complaint(layout), f"{layout.lock('trigger')}: No such file or directory; expected a FIFO"
        )
        with open(layout.lock("trigger"), "wb"):
            pass
        self.assertEqual(self.complaint(layout), f"{layout.lock('trigger')}: is not a FIFO")
        os.rmdir(layout.room("todo"))
        with open(layout.room("todo"), "wb"):
            pass
        self.assertEqual(self.complaint(layout), f"{layout.room('todo')}: is not a directory")

    def test_no_subdirectories(self) -> None:
        layout = make_queue(self, split=1)
        os.rmdir(layout.room("mess", 0))
        self.assertIn("no numbered subdirectories", self.complaint(layout))
        os.mkdir(layout.room("mess", 99999999))
        self.assertIn("no subdirectory", self.complaint(layout))

    def test_big_todo(self) -> None:
        """A queue of a patched qmail, whose todo/ is split: its new mail would never be seen."""
        layout = make_queue(self)
        os.mkdir(layout.room("todo", 0))
        self.assertIn(f"{layout.room('todo', 0)}: is a directory, as with the big-todo patch", self.complaint(layout))


class AccessTests(SynchronousTestCase):
    """Issue 2, item 1: whoever cannot work on the queue is told so at the start, in one line."""

    def setUp(self) -> None:
        home = os.fsdecode(folder(self))
        self.layout = as_user(lambda: create_queue(home + "/queue"))

    def complaint(self) -> str:
        def check() -> str:
            try:
                check_access(open_layout(self.layout.directory, RealDisk()))
            except LayoutError as error:
                return str(error)
            return ""

        return as_user(check)

    def test_ours(self) -> None:
        self.assertEqual(self.complaint(), "")

    def test_not_writable(self) -> None:
        for room in ("pid", "intd", "todo", "bounce", "lock", "mess/3", "info/0", "local/22", "remote/1"):
            path = f"{self.layout.directory}/{room}"
            os.chmod(path, 0o500)
            self.assertIn(f"{path}: user id ", self.complaint())
            os.chmod(path, 0o700)

    def test_not_readable(self) -> None:
        """A queue that notqmail's accounts own, where others may enter but not look."""
        os.chmod(self.layout.room("mess"), 0o100)
        self.assertIn(f"{self.layout.room('mess')}: Permission denied", self.complaint())


class NameTests(SynchronousTestCase):
    def test_paths(self) -> None:
        """§5.1: split by N mod split, except todo, intd and bounce."""
        layout = Layout("/q", 23)
        self.assertEqual(layout.path("mess", 1234), "/q/mess/15/1234")
        self.assertEqual(layout.path("todo", 1234), "/q/todo/1234")
        self.assertEqual(layout.name("remote", 1234), "remote/15/1234")
        self.assertEqual(layout.holder("info", 1234), "/q/info/15")
        self.assertEqual(layout.holder("intd", 1234), "/q/intd")

    def test_numbers(self) -> None:
        """§9.4: what is not purely decimal is ignored."""
        self.assertEqual(message_number("1234"), 1234)
        for name in ("", "12a", ".", "..", "-1", "+1", " 1", "1_0", "\u0661", "\xb2", "9" * 21):
            self.assertIsNone(message_number(name))
