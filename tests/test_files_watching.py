"""Changes in a directory of control files are noticed at once, and looked for only where they can come from."""

from __future__ import annotations

import os
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from qtwist.control import Control
from qtwist.files import watching
from qtwist.files.watching import DirectoryWatch
from qtwist.policy import watched
from qtwist.policy.watched import Watched, one_look


class WatchCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())
        os.mkdir(self.path)

    def write(self, name: str, text: str) -> None:
        with open(f"{self.path}/{name}", "w") as file:
            file.write(text)


class DirectoryWatchTests(WatchCase):
    def setUp(self) -> None:
        super().setUp()
        try:
            self.watch = DirectoryWatch(self.path)
        except OSError as error:
            self.skipTest(f"nothing can be watched here: {error}")
        self.addCleanup(self.watch.close)

    def test_changes(self) -> None:
        """Whatever happens to a file gives another version, and nothing else does."""
        seen = {self.watch.version()}
        changes = [
            lambda: self.write("a", "one"),
            lambda: self.write("a", "two"),
            lambda: os.utime(f"{self.path}/a"),
            lambda: os.rename(f"{self.path}/a", f"{self.path}/b"),
            lambda: os.chmod(f"{self.path}/b", 0o600),
            lambda: os.unlink(f"{self.path}/b"),
            lambda: os.symlink("/nowhere", f"{self.path}/c"),
        ]
        for number, change in enumerate(changes):
            change()
            version = self.watch.version()
            self.assertNotIn(version, seen, number)
            self.assertEqual(self.watch.version(), version)
            seen.add(version)

    def test_directory_goes(self) -> None:
        os.rename(self.path, self.path + ".old")
        self.assertIsNone(self.watch.version())
        self.assertIsNone(self.watch.version())

    def test_other_file_systems(self) -> None:
        """Where somebody else may write, nothing is watched."""
        with mock.patch.object(watching, "filesystem_of", return_value="nfs4"):
            self.assertRaises(OSError, DirectoryWatch, self.path)


class WatchedTests(WatchCase):
    def setUp(self) -> None:
        super().setUp()
        self.reads = 0
        self.value = Watched(Control(self.path), ("locals", "me"), self.read)

    def read(self) -> str:
        self.reads += 1
        with open(f"{self.path}/locals") as file:
            return file.read()

    def looks(self) -> int:
        """How many times a file is looked at for one value."""
        with mock.patch.object(Control, "stamp", autospec=True, side_effect=Control.stamp) as stamp:
            self.value.get()
        return stamp.call_count

    def test_reads_what_has_changed(self) -> None:
        self.assertRaises(FileNotFoundError, self.value.get)
        self.write("locals", "one")
        self.assertEqual([self.value.get(), self.value.get(), self.reads], ["one", "one", 2])
        self.write("locals", "three")
        self.assertEqual([self.value.get(), self.reads], ["three", 3])
        self.write("other", "x")
        self.assertEqual([self.value.get(), self.reads], ["three", 3])
        os.unlink(f"{self.path}/locals")
        self.assertRaises(FileNotFoundError, self.value.get)

    def test_looks_once(self) -> None:
        """Nothing is looked at where the system says that nothing has changed."""
        try:
            DirectoryWatch(self.path).close()
        except OSError as error:
            self.skipTest(f"nothing can be watched here: {error}")
        self.write("locals", "one")
        self.assertGreater(self.looks(), 0)
        self.assertEqual(self.looks(), 0)

    def test_one_look(self) -> None:
        """Within one look the system is asked once, a look in it is the same one, and the next look sees all."""
        try:
            DirectoryWatch(self.path).close()
        except OSError as error:
            self.skipTest(f"nothing can be watched here: {error}")
        self.write("locals", "one")
        self.assertEqual(self.value.get(), "one")
        with mock.patch.object(DirectoryWatch, "version", autospec=True, side_effect=DirectoryWatch.version) as asked:
            with one_look:
                self.assertEqual([self.value.get(), self.value.get()], ["one", "one"])
                self.write("locals", "three")
                with one_look:
                    self.assertEqual(self.value.get(), "one")
                self.assertEqual([self.value.get(), asked.call_count], ["one", 1])
            with one_look:
                self.assertEqual([self.value.get(), asked.call_count], ["three", 2])
        self.write("locals", "fifty")
        self.assertEqual(self.value.get(), "fifty")

    def test_changed_while_it_is_read(self) -> None:
        """What comes between the look and the reading of a value is found by the look after."""
        self.write("locals", "one")
        with one_look:
            Watched(Control(self.path), ("me",), lambda: None).get()
            self.write("locals", "three")
            self.assertEqual(self.value.get(), "three")
            self.write("locals", "fifty")
        with one_look:
            self.assertEqual(self.value.get(), "fifty")

    def test_error_ends_look(self) -> None:
        self.write("locals", "one")
        with self.assertRaises(ZeroDivisionError), one_look:
            self.assertEqual(self.value.get(), "one")
            raise ZeroDivisionError
        self.write("locals", "three")
        self.assertEqual(self.value.get(), "three")

    def test_links(self) -> None:
        """What a link leads to, or has another name, can change elsewhere: it is looked at each time."""
        elsewhere = self.mktemp()
        for link in (os.symlink, os.link):
            with open(elsewhere, "w") as file:
                file.write("one")
            link(os.path.abspath(elsewhere), f"{self.path}/locals")
            self.assertEqual([self.value.get(), self.value.get()], ["one", "one"])
            with open(elsewhere, "w") as file:
                file.write("three")
            self.assertEqual(self.value.get(), "three")
            os.unlink(f"{self.path}/locals")

    def test_another_directory(self) -> None:
        """The directory is taken away, and another one of its name comes."""
        self.write("locals", "one")
        self.assertEqual(self.value.get(), "one")
        os.rename(self.path, self.path + ".old")
        self.assertRaises(FileNotFoundError, self.value.get)
        os.mkdir(self.path)
        self.write("locals", "two")
        self.assertEqual(self.value.get(), "two")
        self.write("locals", "three")
        self.assertEqual(self.value.get(), "three")

    def test_another_directory_above(self) -> None:
        """The one above is taken away, which no watch tells: it is noticed when that is looked at the next time."""
        self.patch(watched, "_INTERVAL", 0.0)
        above = self.mktemp()
        value = Watched(Control(f"{above}/control"), ("locals",), lambda: "".join(os.listdir(f"{above}/control")))
        for name in ("one", "two"):
            os.makedirs(f"{above}/control")
            for file in ("locals", name):
                with open(f"{above}/control/{file}", "w") as stream:
                    stream.write(name)
            self.assertIn(name, value.get())
            os.rename(above, f"{above}.{name}")

    def test_nothing_can_be_watched(self) -> None:
        with mock.patch.object(watching, "filesystem_of", return_value="nfs4"):
            self.write("locals", "one")
            self.assertEqual([self.value.get(), self.value.get(), self.reads], ["one", "one", 1])
            self.write("locals", "three")
            self.assertEqual(self.value.get(), "three")
