"""Tests of qmail-qread, qmail-qstat, qmail-tcpto, qmail-tcpok, qmail-showctl: spec/qmail.md §15.7, §22."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import struct
import time

from qtwist.commands import tcpok
from qtwist.commands.showctl import _ORDER
from qtwist.queue.layout import create_queue
from tests.command_tools import CommandCase

BIRTH = 1795353565  # 22 Nov 2026 13:19:25 UTC


class QueueCase(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        create_queue(self.path("queue"))

    def message(self, number: int, info: bytes, mess: bytes = b"x\n", **rooms: bytes) -> None:
        part = number % 23
        self.write(f"queue/mess/{part}/{number}", mess)
        self.write(f"queue/info/{part}/{number}", info, mtime=BIRTH + 0.9)
        for room, contents in rooms.items():
            self.write(f"queue/bounce/{number}" if room == "bounce" else f"queue/{room}/{part}/{number}", contents)


class QreadTests(QueueCase):
    def test_listing(self) -> None:
        """§22: to the octet, with two blanks before "bouncing" and one at the end without it."""
        self.message(24, b"Fs@x\0", b"0123456789", local=b"Tjoe@here\0Dann@here\0", remote=b"Dfar@away\0", bounce=b"")
        self.message(2, b"F\0", local=b"T#@[]\0")
        self.assertEqual(
            self.check("qread"),
            b"22 Nov 2026 13:19:25 GMT  #24  10  <s@x>  bouncing\n"
            b"\tlocal\tjoe@here\n  done\tlocal\tann@here\n  done\tremote\tfar@away\n"
            b"22 Nov 2026 13:19:25 GMT  #2  2  <> \n\tlocal\t#@[]\n",
        )

    def test_hostile_addresses(self) -> None:
        """§22: nothing reaches the terminal but printable ASCII; records that are none, or have no end, are passed."""
        self.message(1, b"Fa\x1b[2J\n\xff@x\0more\0", remote=b"Tb\x1b\n@y\0?odd\0\0Dcut")
        self.assertEqual(self.check("qread"), b"22 Nov 2026 13:19:25 GMT  #1  2  <a_[2J__@x> \n\tremote\tb__@y\n")

    def test_empty(self) -> None:
        self.assertEqual(self.check("qread"), b"")

    def test_long_list(self) -> None:
        """Records are read in blocks, and are whole all the same."""
        addresses = [b"recipient-number-%d@host.example" % number for number in range(5000)]
        self.message(1, b"Fs\0", remote=b"".join(b"T%b\0" % one for one in addresses))
        lines = self.check("qread").splitlines()
        self.assertEqual([line.removeprefix(b"\tremote\t") for line in lines[1:]], addresses)

    def test_trouble(self) -> None:
        """§22: a message that has just gone is a warning on standard output, and the rest follows."""
        self.message(1, b"Fs\0")
        os.unlink(self.path("queue/mess/1/1"))
        self.message(2, b"Fs\0")
        lines = self.check("qread").splitlines()
        self.assertEqual(lines[0], b"warning: trouble with #1: No such file or directory")
        self.assertIn(b"#2", lines[1])

    def test_no_queue(self) -> None:
        printed = self.check("qread", code=111, QTWISTHOME=self.path("none"))
        self.assertTrue(printed.startswith(b"fatal: unable to list " + self.path("none/queue/info").encode()), printed)


class QstatTests(QueueCase):
    def test_counts(self) -> None:
        """§22: the files below mess, and those in todo."""
        self.message(1, b"Fs\0")
        self.message(24, b"Fs\0")
        self.write("queue/mess/3/3", b"")
        self.write("queue/todo/3", b"")
        self.assertEqual(self.check("qstat"), b"messages in queue: 3\nmessages in queue but not yet preprocessed: 1\n")

    def test_no_queue(self) -> None:
        """A wrong zero would be taken for an empty queue."""
        self.assertEqual(self.check("qstat", code=111, error="qmail-qstat: fatal", QTWISTHOME=self.path("none")), b"")


class TcptoTests(QueueCase):
    def setUp(self) -> None:
        super().setUp()
        self.table = self.path("queue/lock/tcpto")
        self.now = int(time.time())
        records = (
            struct.pack("<4sB3xI4x", b"\x0a\0\0\x01", 2, self.now - 100),
            struct.pack("<4sB3xI4x", b"\x0a\0\0\x02", 0, self.now - 50),
            struct.pack("<4sB3xI4x", b"\xff\x80\0\x03", 10, self.now + 1000),
        )
        self.write("queue/lock/tcpto", b"".join(records).ljust(1024, b"\0"))

    def test_lines(self) -> None:
        """§22: a line for each record that is in use; a clock that was put back makes no huge numbers."""
        lines = self.check("tcpto").splitlines()
        later = int(time.time()) - self.now
        self.assertIn(
            lines[0],
            [b"10.0.0.1 timed out %d seconds ago; # recent timeouts: 2" % (100 + late) for late in range(later + 1)],
        )
        self.assertEqual(lines[1:], [b"255.128.0.3 timed out 0 seconds ago; # recent timeouts: 10"])

    def test_clear(self) -> None:
        """§22: 1024 zero octets, in place: the daemon has the file open by name only for moments, others may not."""
        inode = os.stat(self.table).st_ino
        self.assertEqual(self.check("tcpok"), b"")
        self.assertEqual(self.read("queue/lock/tcpto"), bytes(1024))
        self.assertEqual(os.stat(self.table).st_ino, inode)
        self.assertEqual(self.check("tcpto"), b"")

    def test_locked(self) -> None:
        """§15.7: nothing is written without the lock."""

        def refuse(fd: int, operation: int) -> None:
            self.assertEqual(operation, fcntl.LOCK_EX)
            raise OSError(errno.ENOLCK, "no locks")

        before = self.read("queue/lock/tcpto")
        self.patch(fcntl, "flock", refuse)
        self.assertRaises(OSError, tcpok.clear, self.table)
        self.assertEqual(self.read("queue/lock/tcpto"), before)

    def test_trouble(self) -> None:
        """§22: qmail-tcpto complains on standard output."""
        os.unlink(self.table)
        self.assertIn(b"fatal: unable to read ", self.check("tcpto", code=111))
        self.check("tcpok", code=111, error="qmail-tcpok: fatal: unable to clear ")
        self.assertFalse(os.path.exists(self.table))


class ShowctlTests(QueueCase):
    def setUp(self) -> None:
        super().setUp()
        self.write("control/me", b"mx.example.test\n")

    def sections(self) -> tuple[list[bytes], dict[bytes, bytes]]:
        head, *sections = self.check("showctl").split(b"\n\n")
        found = [section.partition(b":") for section in sections]
        return head.splitlines(), {name: text.strip() for name, _, text in found}

    def test_head(self) -> None:
        """§22: what scripts look for, letter by letter."""
        os.mkdir(self.path("alias"))
        uid, gid = os.stat(self.path("queue")).st_uid, os.stat(self.path("queue")).st_gid
        if os.geteuid() == 0:
            os.chown(self.home, 65534, -1)  # a home of one account
        self.assertEqual(
            self.sections()[0],
            [
                b"qmail home directory: %b." % self.home.encode(),
                b"user-ext delimiter: -.",
                b"paternalism (in decimal): 2.",
                b"silent concurrency limit: 120.",
                b"subdirectory split: 23.",
                b"user ids: %b." % b", ".join([b"%d" % uid] * 8),
                b"group ids: %d, %d." % (gid, gid),
            ],
        )

    def test_accounts(self) -> None:
        """In a home of root's, the roles have accounts of their own: qmail's, or those of control/accounts."""
        if os.geteuid() != 0:
            self.skipTest("needs a home of root's")
        roles = ("qmaild", "qmaill", "qmailp", "qmailq", "qmailr", "qmails")
        self.write("control/accounts", b"".join(b"%b:nobody\n" % role.encode() for role in roles))
        nobody = pwd.getpwnam("nobody")
        *_, users, groups = self.sections()[0]
        ids = (nobody.pw_uid, nobody.pw_uid, 0, *[nobody.pw_uid] * 4)
        self.assertTrue(users.endswith(b", " + b", ".join(b"%d" % uid for uid in ids) + b"."), users)
        self.assertEqual(groups, b"group ids: %d, %d." % (nobody.pw_gid, nobody.pw_gid))

    def test_order(self) -> None:
        """§22: qmail's files in qmail's order, ours behind them, and unknown ones at the end."""
        self.write("control/zzz", b"")
        self.write("control/aaa\x1b", b"")
        names = list(self.sections()[1])
        qmails = _ORDER.encode().split()
        self.assertEqual(names[: len(qmails)], qmails)
        self.assertIn(b"listen", names)
        self.assertEqual(names[-2:], [b"aaa?", b"zzz"])

    def test_values(self) -> None:
        """§2.1: the values in force, and whether there is a file."""
        self.write("control/concurrencyremote", b"7 # seven\n")
        self.write("control/locals", b"a.test\n#no\nb\x07.test \n")
        self.write("control/bouncefrom", b"")
        text = self.sections()[1]
        self.assertRegex(text[b"concurrencyremote"], rb"^[^(].* 7\.$")
        self.assertRegex(text[b"concurrencylocal"], rb"^\(Default\.\) .* 10\.$")
        self.assertRegex(text[b"helohost"], rb"^\(Default\.\) .* mx\.example\.test\.$")
        self.assertRegex(text[b"bouncefrom"], rb"^[^(].*: \.$")
        self.assertRegex(text[b"queuelifetime"], rb"(?i)seconds.* 604800\.$")
        self.assertRegex(text[b"badmailfrom"], rb"^\(Default\.\) .* none\.$")
        self.assertEqual([line.rpartition(b" ")[2] for line in text[b"locals"].splitlines()], [b"a.test.", b"b?.test."])
        self.assertIn(b"irrelevant", text[b"morercpthosts"])

    def test_passwords(self) -> None:
        """What stands behind a | in a route is for nobody to see (spec/related.md §14.3)."""
        self.write("control/smtproutes", b"a.test:relay.test|ann|geheim\nb.test:relay.test\n")
        self.write("control/authsenders", b":relay.test|ann|geheim\n")
        text = self.sections()[1]
        self.assertNotIn(b"geheim", text[b"smtproutes"] + text[b"authsenders"])
        self.assertIn(b"a.test:relay.test|", text[b"smtproutes"])
        self.assertIn(b"b.test:relay.test.", text[b"smtproutes"])

    def test_compiled(self) -> None:
        """§22: whether morercpthosts and its cdb go together."""
        for text, compiled, expected in (
            (None, None, b"(Default.)"),
            (1000, None, b"Warning"),
            (None, 1000, b"Warning"),
            (1000, 999, b"Warning"),
            (1000, 1000, b"It is not older"),
        ):
            for name, mtime in (("morercpthosts", text), ("morercpthosts.cdb", compiled)):
                if mtime is not None:
                    self.write(f"control/{name}", b"", mtime)
                elif os.path.exists(self.path("control", name)):
                    os.unlink(self.path("control", name))
            self.assertTrue(self.sections()[1][b"morercpthosts.cdb"].startswith(expected), (text, compiled))

    def test_unreadable(self) -> None:
        """§22: told in its place."""
        os.mkdir(self.path("control/smtproutes"))
        text = self.sections()[1]
        self.assertIn(b"Warning: ", text[b"smtproutes"])
        self.assertIn(b"1200", text[b"timeoutsmtpd"])

    def test_no_control(self) -> None:
        """§22: exit 111."""
        printed = self.check("showctl", code=111, QTWISTHOME=self.path("none"))
        self.assertIn(b"qmail home directory: ", printed)
        self.assertIn(b"Warning: unable to read ", printed)
