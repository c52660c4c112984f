"""Tests of maildirmake, maildir2mbox, maildirwatch, safecat and of reading maildirs: spec/qmail.md §14.3, §21, §26.5;
spec/related.md §12.1, §17."""

from __future__ import annotations

import fcntl
import functools
import io
import os
import re
import stat
import sys
import time

from qtwist.commands import maildir2mbox, safecat
from qtwist.commands.maildirwatch import screen
from qtwist.files.maildir_reading import Entry, clean, scan
from tests.command_tools import PYTHONPATH, CommandCase
from tests.queue_tools import note_syncs

WHEN = 1795353565  # Sun Nov 22 13:19:25 2026 UTC
DATE = b"Sun Nov 22 13:19:25 2026"


class MaildirCase(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        self.maildir = self.path("Maildir")
        for part in ("", "tmp", "new", "cur"):
            os.mkdir(self.path("Maildir", part))

    def message(self, name: str, contents: bytes, mtime: float = WHEN) -> None:
        self.write(f"Maildir/{name}", contents, mtime)

    def left(self) -> list[str]:
        return sorted(
            f"{part}/{name}" for part in ("tmp", "new", "cur") for name in os.listdir(self.path("Maildir", part))
        )


class ReadingTests(MaildirCase):
    def test_scan(self) -> None:
        """§14.3: by mtime; no dot files, no directories, nothing of the current second."""
        self.message("cur/b:2,S", b"", WHEN + 1)
        self.message("new/c", b"", WHEN + 2)
        self.message("new/a", b"", WHEN)
        self.message("new/now", b"", WHEN + 9)
        self.message("new/.hidden", b"")
        os.mkdir(self.path("Maildir/new/folder"))
        os.symlink("gone", self.path("Maildir/new/broken"))
        found = scan(self.maildir.encode(), WHEN + 9.9)
        expected = [(b"new/a", WHEN), (b"cur/b:2,S", WHEN + 1), (b"new/c", WHEN + 2)]
        self.assertEqual(found, [Entry(path, mtime * 10**9) for path, mtime in expected])
        self.assertRaises(OSError, scan, b"/none", 0)

    def test_clean(self) -> None:
        """§14.3: what nobody has touched for 36 hours."""
        for name in ("old", "young", ".old"):
            self.message(f"tmp/{name}", b"")
        os.utime(self.path("Maildir/tmp/young"), (WHEN + 1, WHEN))
        clean(self.maildir.encode(), WHEN + 129600 + 0.5)
        self.assertEqual(self.left(), ["tmp/.old", "tmp/young"])
        clean(b"/none", WHEN)


class Maildir2mboxTests(MaildirCase):
    def move(self, code: int = 0, error: str = "", **environ: str) -> None:
        settings = {"MAILDIR": self.maildir, "MAIL": self.path("mbox"), "MAILTMP": self.path("mbox.tmp"), **environ}
        self.assertEqual(self.check("maildir2mbox", code=code, error=error, **settings), b"")

    def test_messages(self) -> None:
        """§21: appended in the order of their coming, quoted, each with a From line and an empty line behind it."""
        self.write("mbox", b"From old\n\nold\n\n")
        self.message("cur/2:2,S", b"Return-Path: <>\n\nFrom here\n>From there\n", WHEN + 60)
        self.message("new/1", b"Return-Path: <joe \t@x>\nSubject: x\n\nhi\n")
        self.message("new/3", b"Subject: none\n\n", WHEN + 120)
        self.move()
        self.assertEqual(
            self.read("mbox"),
            b"From old\n\nold\n\n"
            b"From joe--@x %b\nReturn-Path: <joe \t@x>\nSubject: x\n\nhi\n\n"
            b"From MAILER-DAEMON %b\nReturn-Path: <>\n\n>From here\n>>From there\n\n"
            b"From XXX %b\nSubject: none\n\n\n"
            % (DATE, DATE.replace(b":19:", b":20:"), DATE.replace(b":19:", b":21:")),
        )
        self.assertEqual(self.left(), [])
        self.assertEqual(sorted(os.listdir(self.home)), ["Maildir", "mbox"])

    def test_nothing_is_lost(self) -> None:
        """§26.5: a last line without its end is kept, even if it is the only one; so is an empty message."""
        self.message("new/1", b"Subject: x\n\nunfinished")
        self.message("new/2", b"one line", WHEN + 1)
        self.message("new/3", b"", WHEN + 2)
        self.move()
        parts = re.split(rb"(?m)^From XXX .*\n", self.read("mbox"))
        self.assertEqual(parts, [b"", b"Subject: x\n\nunfinished\n\n", b"one line\n\n", b"\n"])
        self.assertEqual(self.left(), [])

    def test_new_mbox(self) -> None:
        """Nobody else may read it."""
        self.message("new/1", b"x\n")
        self.move()
        self.assertEqual(stat.S_IMODE(os.stat(self.path("mbox")).st_mode), 0o600)

    def test_nothing_to_do(self) -> None:
        """§21: no mbox is made; messages of this second wait."""
        self.message("new/now", b"x\n", time.time() + 1000)
        self.move()
        self.assertFalse(os.path.exists(self.path("mbox")))
        self.assertEqual(self.left(), ["new/now"])

    def test_same_mbox(self) -> None:
        """The file stays the same, so that a delivery that waits for its lock does not write into one that is gone."""
        self.write("mbox", b"")
        inode = os.stat(self.path("mbox")).st_ino
        self.message("new/1", b"x\n")
        self.move()
        self.assertEqual(os.stat(self.path("mbox")).st_ino, inode)

    def test_failure_keeps_messages(self) -> None:
        """What is not in the mbox stays in the maildir."""
        self.message("new/1", b"x\n")
        self.move(111, "maildir2mbox: fatal: Unable to open", MAIL=self.path("none/mbox"))
        os.mkdir(self.path("folder"))
        self.move(111, "maildir2mbox: fatal: ", MAIL=self.path("folder"))
        self.assertEqual(self.left(), ["new/1"])

    def test_disk_full(self) -> None:
        """A write that fails is taken back, and the original stays."""
        self.message("new/1", b"x\n" * 100000)
        self.write("mbox", b"From a\n\nb\n\n")
        shell = f'ulimit -f 64; exec "{sys.executable}" -c "$0"'
        code = "from qtwist.commands.maildir2mbox import main; raise SystemExit(main())"
        environ = {"MAILDIR": self.maildir, "MAIL": self.path("mbox"), "MAILTMP": "x", "PYTHONPATH": PYTHONPATH}
        exit_code, _ = self.other("/bin/sh", "-c", shell, code, **environ)
        self.assertEqual((exit_code, self.read("mbox"), self.left()), (111, b"From a\n\nb\n\n", ["new/1"]))

    def test_variables(self) -> None:
        """§21: 111 without one of the three."""
        for name in ("MAILDIR", "MAIL", "MAILTMP"):
            settings = {other: "x" for other in ("MAILDIR", "MAIL", "MAILTMP") if other != name}
            self.check("maildir2mbox", code=111, error=f"{name} not set", **settings)


class MaildirmakeTests(CommandCase):
    def test_made(self) -> None:
        """§21: for the owner alone."""
        self.assertEqual(self.check("maildirmake", "./Maildir"), b"")
        for part in ("", "tmp", "new", "cur"):
            self.assertEqual(stat.S_IMODE(os.stat(self.path("Maildir", part)).st_mode), 0o700)
        self.assertEqual(sorted(os.listdir(self.path("Maildir"))), ["cur", "new", "tmp"])
        self.check("maildirmake", "Maildir", code=111, error="maildirmake: fatal: unable to mkdir Maildir: File exists")
        self.check("maildirmake", code=100, error="usage")


class SafecatTests(MaildirCase):
    def test_stored(self) -> None:
        """related §12.1, §17: the name is printed, tmp is empty again."""
        contents = bytes(range(256)) * 5000
        name = self.check("safecat", "Maildir/tmp", "Maildir/new", stdin=contents)
        self.assertRegex(name, rb"\A\d+\.M\d+P\d+\.[^/:]+\n\Z")
        self.assertEqual(self.left(), ["new/" + name.decode().rstrip()])
        self.assertEqual(self.read("Maildir/new/" + name.decode().rstrip()), contents)

    def test_durable(self) -> None:
        """As for maildirs (§14.3): contents, name, directory, and only then the answer."""
        self.patch(safecat, "blocks", lambda fd: iter((b"Subject: x\n", b"\n")))
        done = note_syncs(self, self.home)
        name = safecat.store(os.fsencode(self.path("Maildir/tmp")), os.fsencode(self.path("Maildir/new"))).decode()
        self.assertEqual(done, [f"Maildir/tmp/{name}", f"link {name}", "Maildir/new"])

    def test_trouble(self) -> None:
        """related §12.1: 111, and nothing is left behind."""
        self.check("safecat", "none", "Maildir/new", code=111, error="safecat: fatal: unable to store")
        self.check("safecat", "Maildir/tmp", "none", code=111, error="safecat: fatal: unable to store")
        self.assertEqual(self.left(), [])
        self.check("safecat", "Maildir/tmp", code=100, error="usage")
        self.check("safecat", code=100, error="usage")


class MaildirwatchTests(MaildirCase):
    def test_screen(self) -> None:
        """§21: who, to whom in bold, and 158 octets of subject and text; nothing that a terminal would obey."""
        self.message(
            "new/1",
            b"Return-Path: <a\x1b@b>\nDelivered-To: me@here\nSubject: hel\n lo\n\nfirst\nsec\x07ond\n" + b"x" * 300,
        )
        self.message("new/2", b"\n", WHEN + 1)
        self.message("cur/3", b"\n")
        text = b"hel/ lo/first/sec_ond/"
        self.assertEqual(
            screen(self.maildir.encode(), WHEN + 9),
            b"\033[;H\033[;J"
            b"\033[1mFROM <a_@b> TO <me@here>\033[0m\n%b\n\n"
            b"\033[1mFROM <> TO <>\033[0m\n\n\n" % text.ljust(158, b"x"),
        )

    def test_no_maildir(self) -> None:
        self.check("maildirwatch", code=111, error="MAILDIR not set")
        self.check("maildirwatch", code=111, error="maildirwatch: fatal: unable to scan", MAILDIR="none")


class LockTests(MaildirCase):
    def test_other_holder(self) -> None:
        """The lock is the one that deliveries take (§14.1): while another has it, nothing is written."""
        self.message("new/1", b"x\n")
        path = self.write("mbox", b"")
        with open(path, "ab") as holder:
            fcntl.flock(holder, fcntl.LOCK_EX)
            impatient = functools.partial(maildir2mbox.deliver_to_mbox, wait=0.0)
            self.patch(maildir2mbox, "deliver_to_mbox", impatient)
            self.patch(os, "umask", lambda mask: 0)
            self.patch(sys, "stderr", io.StringIO())
            self.patch(os, "environb", {b"MAIL": path.encode(), b"MAILDIR": self.maildir.encode(), b"MAILTMP": b"x"})
            self.assertEqual(self.assertRaises(SystemExit, maildir2mbox.main, []).code, 111)
        self.assertEqual((self.read("mbox"), self.left()), (b"", ["new/1"]))
