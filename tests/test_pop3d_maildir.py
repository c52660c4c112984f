"""A maildir as a POP3 session sees it (spec/qmail.md §14.3, §18.2, §26.5, §28.18; RFC 1939 §7, §11)."""

from __future__ import annotations

import gc
import os
import re
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import execute
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qtwist.pop3d import maildir as maildir_module
from qtwist.pop3d import maildrop as maildrop_module
from qtwist.pop3d.interfaces import IMaildrop, IMessageSource, MaildropError, MaildropTrouble, MessageGone
from qtwist.pop3d.maildir import MaildirSession, Names
from qtwist.pop3d.maildrop import Maildrop
from qtwist.pop3d.sizes import NAME, SizeCache, wire_size_in_name

NOW = 1_700_000_000.5
OLD = 1_600_000_000


class MaildirCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = os.fsencode(os.path.abspath(self.mktemp()))
        for folder in (b"", b"new", b"cur", b"tmp"):
            os.mkdir(os.path.join(self.path, folder))

    def put(self, name: bytes, text: bytes = b"Subject: x\n\nx\n", when: float = OLD) -> bytes:
        path = os.path.join(self.path, name)
        with open(path, "wb") as file:
            file.write(text)
        os.utime(path, (when, when))
        return path

    def session(self, now: float = NOW) -> MaildirSession:
        return MaildirSession(self.path, now)

    def files(self) -> list[bytes]:
        return sorted(
            folder + b"/" + name for folder in (b"new", b"cur") for name in os.listdir(os.path.join(self.path, folder))
        )

    def read(self, session: MaildirSession, index: int) -> bytes:
        fd = session.open(index)
        with open(fd, "rb") as file:
            return file.read()


class Listing(MaildirCase):
    def test_order_and_uids(self) -> None:
        """By time; the id is the name up to the colon (§18.2, §28.18)."""
        self.put(b"new/3.c", when=OLD + 1)
        self.put(b"cur/2.b:2,S", when=OLD + 3)
        self.put(b"cur/1.a:2,", when=OLD + 2)
        self.put(b"new/0.d", when=OLD + 2)
        self.assertEqual(list(self.session().uids), [b"3.c", b"0.d", b"1.a", b"2.b"])

    def test_what_is_no_message(self) -> None:
        """Dot files, directories and links are not, files of the current second not yet (§14.3)."""
        target = self.put(b"tmp/elsewhere")
        self.put(b"new/.hidden")
        os.mkdir(os.path.join(self.path, b"cur/directory"))
        os.symlink(target, os.path.join(self.path, b"new/link"))
        os.mkfifo(os.path.join(self.path, b"new/fifo"))
        self.put(b"new/now", when=NOW - 0.5)
        self.put(b"new/before", when=NOW - 0.6)
        self.assertEqual(list(self.session().uids), [b"before"])
        self.assertEqual(list(self.session(NOW + 0.6).uids), [b"before", b"now"])

    def test_tmp_is_cleaned(self) -> None:
        """§14.3: after 36 hours."""
        self.put(b"tmp/old")
        self.put(b"tmp/young", when=NOW - 129600)
        self.session()
        self.assertEqual(os.listdir(os.path.join(self.path, b"tmp")), [b"young"])

    def test_uids_are_as_rfc_1939_wants_them(self) -> None:
        self.put(b"new/" + b"x" * 70)
        self.put(b"new/" + b"y" * 71)
        self.put(b"new/a b")
        self.put("new/jörg".encode())
        self.put(b"cur/:2,S")
        uids = list(self.session().uids)
        self.assertIn(b"x" * 70, uids)
        self.assertEqual(len(set(uids)), 5)
        for uid in uids:
            self.assertTrue(re.fullmatch(rb"[!-~]{1,70}", uid), uid)
        self.assertEqual(list(self.session().uids), uids)

    def test_uids_at_once_and_one_by_one(self) -> None:
        """Where all names are ids as they are, they are taken together; a single other name must not go with them."""
        for extra in (b"", b"new/" + b"y" * 71, b"cur/3.c:2,S", b"new/a b", b"new/1.a:2,", b"cur/:2,"):
            for name in (b"new/1.a", b"new/2.b", *([extra] if extra else [])):
                self.put(name)
            uids = self.session().uids
            single = [uids[index] for index in range(len(uids))]
            self.assertEqual(list(uids), single, extra)
            self.assertEqual((list(uids[1:]), list(uids[::-1]), list(uids[9:])), (single[1:], single[::-1], []), extra)
            for uid in single:
                self.assertTrue(re.fullmatch(rb"[!-9;-~]{1,70}", uid), uid)
            if extra:
                os.unlink(os.path.join(self.path, extra))

    def test_sizes_in_names_and_in_the_cache(self) -> None:
        """One name that tells a size does not keep the others from theirs; what the cache does not know is counted."""
        many = 300
        for number in range(many):
            self.put(b"new/%d" % number, b"hello\n" + b"x" * 4090 + b"\n")
        wire = [4099] * many
        self.assertEqual(list(self.session().sizes()), wire)
        self.put(b"new/later", b"a\n", when=OLD + 1)
        self.assertEqual(list(self.session().sizes()), [*wire, 3])
        self.put(b"new/named,W=4", b"a\n", when=OLD + 2)
        self.assertEqual(list(self.session().sizes()), [*wire, 3, 4])

    def test_two_messages_of_one_name(self) -> None:
        """Both are there, under ids of their own; and none overwrites the other at the end."""
        self.put(b"new/1.a", b"one\n", when=OLD)
        self.put(b"cur/1.a:2,", b"two\n", when=OLD + 1)
        session = self.session()
        uids = list(session.uids)
        self.assertEqual(uids[0], b"1.a")
        self.assertEqual(len(set(uids)), 2)
        self.assertEqual([self.read(session, index) for index in (0, 1)], [b"one\n", b"two\n"])
        session.finish((), (0, 1))
        self.assertEqual(self.files(), [b"cur/1.a:2,", b"new/1.a"])

    def test_a_message_seen_twice(self) -> None:
        """Other software that moves by link and unlink is between the two."""
        path = self.put(b"new/1.a")
        os.link(path, os.path.join(self.path, b"cur/1.a:2,"))
        self.assertEqual(list(self.session().uids), [b"1.a"])

    def test_missing_folders(self) -> None:
        os.rmdir(os.path.join(self.path, b"cur"))
        self.put(b"new/1.a")
        session = self.session()
        self.assertEqual(len(session), 1)
        session.finish((), ())
        self.assertEqual(os.listdir(os.path.join(self.path, b"new")), [b"1.a"])
        os.unlink(os.path.join(self.path, b"new/1.a"))
        os.rmdir(os.path.join(self.path, b"new"))
        self.assertRaises(FileNotFoundError, self.session)


class Sizes(MaildirCase):
    def test_octets_on_the_wire(self) -> None:
        """RFC 1939 §11: each LF counts as two octets; doubled dots are not counted, a completed last line is."""
        messages = {b"a\n\nb\n": 8, b"a\n\nb": 8, b"": 0, b"\n.\n": 5, b"a\r\n": 4, b"\0" * 300_000 + b"\n": 300_002}
        for number, text in enumerate(messages):
            self.put(b"new/%d" % number, text, when=OLD + number)
        self.assertEqual(list(self.session().sizes()), list(messages.values()))

    def test_in_the_name(self) -> None:
        self.assertEqual(wire_size_in_name(b"1.a,S=10,W=12:2,S", 10), 12)
        self.assertEqual(wire_size_in_name(b"1.a,W=12,S=10", 10), 12)
        for name in (b"1.a", b"1.a,W=10", b"1.a,W=23", b"1.a,W=x", b"1.a,W=12x", b"1.a,W=" + b"9" * 4000):
            self.assertIsNone(wire_size_in_name(name, 10), name)
        self.put(b"new/1.a,S=4,W=5", b"abcd")
        self.assertEqual(list(self.session().sizes()), [5])

    def test_cache(self) -> None:
        """It is used for files that are the same still, and never believed for others."""
        many = 300
        for number in range(many):
            self.put(b"cur/%03d:2,S" % number, b"a\nb\n")
        self.assertEqual(list(self.session().sizes()), [6] * many)
        cache = os.path.join(self.path, NAME)
        self.assertEqual(os.stat(cache).st_mode & 0o777, 0o600)
        session = self.session()
        session._count = None  # type: ignore[assignment,method-assign]  # nothing may be read
        self.assertEqual(list(session.sizes()), [6] * many)
        # Another text of the same length at another time, and another length at the same time.
        self.put(b"cur/007:2,S", b"\n\n\n\n", when=OLD + 1)
        self.put(b"cur/009:2,S", b"abc")
        sizes = dict(zip(self.session().uids, self.session().sizes(), strict=True))
        self.assertEqual((sizes[b"007"], sizes[b"009"], sizes[b"008"]), (8, 5, 6))

    def test_few_messages_need_no_cache(self) -> None:
        self.put(b"new/1.a")
        self.session().sizes()
        self.assertFalse(os.path.exists(os.path.join(self.path, NAME)))

    def test_gone_meanwhile(self) -> None:
        path = self.put(b"new/1.a", b"abc\n")
        session = self.session()
        os.unlink(path)
        self.assertEqual(list(session.sizes()), [4])

    @given(st.binary(max_size=200), st.booleans())
    def test_broken_cache(self, text: bytes, headed: bool) -> None:
        """Whatever it holds: a size is one that the file can have."""
        path = self.put(b"cur/1.a:2,", b"abc\n")
        status = os.stat(path)
        if headed:
            text = b"qtwist sizes 1 little\n" + text[: len(text) // 32 * 32]
        self.put(NAME, text)
        found = SizeCache.load(self.path).find(status.st_ino, status.st_size, status.st_mtime_ns)
        self.assertIn(found, (None, *range(4, 11)))


class Others(MaildirCase):
    """Other software at the same maildir: nothing is lost, nothing is taken for something else."""

    def test_removal_is_durable(self) -> None:
        """The folders are synced after the removal and before the answer: +OK is a promise (doc/durability.md)."""
        self.put(b"new/1.a")
        session = self.session()
        done: list[str] = []
        unlink, fsync = os.unlink, os.fsync
        self.patch(os, "unlink", lambda path: (done.append("unlink"), unlink(path)))
        self.patch(
            os, "fsync", lambda fd: (done.append(os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[2]), fsync(fd))
        )
        self.assertEqual(session.finish((0,), ()), [])
        self.assertEqual(done, ["unlink", "new", "cur"])
        del done[:]
        self.assertEqual(session.finish((), ()), [])
        self.assertEqual(done, [])

    def test_renamed(self) -> None:
        self.put(b"new/1.a", b"one\n")
        self.put(b"cur/2.b:2,", b"two\n", when=OLD + 1)
        session = self.session()
        os.rename(self.path + b"/new/1.a", self.path + b"/cur/1.a:2,S")
        os.rename(self.path + b"/cur/2.b:2,", self.path + b"/cur/2.b:2,RS")
        self.assertEqual([self.read(session, index) for index in (0, 1)], [b"one\n", b"two\n"])
        os.rename(self.path + b"/cur/1.a:2,S", self.path + b"/cur/1.a:2,FS")
        os.utime(self.path + b"/cur", (NOW, NOW))  # the clock of some file systems is coarse
        self.assertEqual(session.finish((0,), ()), [])
        self.assertEqual(self.files(), [b"cur/2.b:2,RS"])

    def test_removed(self) -> None:
        path = self.put(b"new/1.a")
        session = self.session()
        os.unlink(path)
        self.assertRaises(FileNotFoundError, session.open, 0)
        self.assertRaises(FileNotFoundError, session.open, 0)
        self.assertEqual(session.finish((0,), ()), [])

    def test_replaced_by_a_link(self) -> None:
        path = self.put(b"new/1.a")
        session = self.session()
        os.unlink(path)
        os.symlink("/etc/passwd", path)
        self.assertRaises(OSError, session.open, 0)

    def test_two_sessions(self) -> None:
        for number in range(4):
            self.put(b"new/%d" % number, when=OLD + number)
        first, second = self.session(), self.session()
        self.assertEqual(first.finish((0, 1), (2,)), [])
        self.assertEqual(second.finish((1, 2), ()), [])
        self.assertEqual(self.files(), [b"cur/3:2,"])


class Quitting(MaildirCase):
    def test_update(self) -> None:
        """§18.2, §28.18: what stays in new/ moves to cur/; the flag S tells what was read."""
        for name in (b"new/3.c", b"new/4.d", b"new/5.e:2,F", b"cur/1.a:2,"):
            self.put(name)
        session = self.session()
        uids = list(session.uids)
        session.finish((), (uids.index(b"4.d"), uids.index(b"1.a")))
        self.assertEqual(self.files(), [b"cur/1.a:2,", b"cur/3.c:2,", b"cur/4.d:2,S", b"cur/5.e:2,F"])
        self.assertEqual(list(self.session().uids), uids)

    def test_failures(self) -> None:
        """Each is told (§26.5), and does not keep the others from being removed."""
        for number in range(3):
            self.put(b"new/%d" % number, when=OLD + number)
        session = self.session()
        os.unlink(self.path + b"/new/1")
        os.mkdir(self.path + b"/new/1")
        self.assertEqual(len(session.finish((0, 1, 2), ())), 1)
        self.assertEqual(self.files(), [b"new/1"])


class AsMaildrop(MaildirCase):
    def maildrop(self) -> Maildrop:
        return Maildrop(self.path, execute, lambda: NOW)

    def whole(self, source: IMessageSource) -> list[bytes]:
        blocks = []
        while block := self.successResultOf(source.read()):
            blocks.append(block)
        return blocks

    def test_interface(self) -> None:
        self.put(b"new/1.a", b"x" * 10)
        self.patch(maildrop_module, "BLOCK", 4)
        maildrop = self.maildrop()
        verifyObject(IMaildrop, maildrop)
        self.assertEqual(self.successResultOf(maildrop.open()), 1)
        sizes: Any = self.successResultOf(maildrop.sizes())
        uids: Any = self.successResultOf(maildrop.uids())
        self.assertEqual((list(sizes), list(uids)), ([12], [b"1.a"]))
        source = self.successResultOf(maildrop.fetch(0))
        verifyObject(IMessageSource, source)
        self.assertEqual(self.whole(source), [b"xxxx", b"xxxx", b"xx"])
        source.close()
        self.assertEqual(self.successResultOf(maildrop.finish((0,), (0,))), 0)
        maildrop.close()
        self.assertEqual(self.files(), [])

    def test_no_descriptor_stays_open(self) -> None:
        """Neither of a short message, which is read at once, nor of a long one that is not read to its end."""
        self.patch(maildrop_module, "BLOCK", 4)
        gc.collect()  # what earlier tests have left must not close in the middle of this one
        before = os.listdir("/proc/self/fd")
        for text in (b"", b"x", b"xxxx", b"xxxxxxxx"):
            self.put(b"new/1.a", text)
            maildrop = self.maildrop()
            self.successResultOf(maildrop.open())
            source = self.successResultOf(maildrop.fetch(0))
            self.successResultOf(source.read())
            source.close()
        self.assertEqual(os.listdir("/proc/self/fd"), before)

    def test_reading_ahead(self) -> None:
        """One visit to the threads is for several small messages, if they are asked for one after the other."""
        for number in range(40):
            self.put(b"cur/%02d:2," % number, b"%d\n" % number, when=OLD + number)
        self.put(b"cur/05:2,", b"x" * 300_000, when=OLD + 5)
        calls = []

        def run(function: Any, *arguments: Any) -> Any:
            calls.append(function)
            return execute(function, *arguments)

        maildrop = Maildrop(self.path, run, lambda: NOW)
        self.successResultOf(maildrop.open())
        calls.clear()
        for order in (range(40), range(39, -1, -1), range(40)):
            for number in order:
                text = b"".join(self.whole(self.successResultOf(maildrop.fetch(number))))
                self.assertEqual(text, b"x" * 300_000 if number == 5 else b"%d\n" % number)
        self.assertLess(len(calls), 70)

    def test_reading_ahead_is_bounded(self) -> None:
        """In number and in octets, whatever the client skips."""
        for number in range(60):
            self.put(b"cur/%02d:2," % number, b"x" * 9 + b"\n", when=OLD + number)
        self.patch(maildir_module, "MOST_SMALL", 16)
        maildrop = self.maildrop()
        self.successResultOf(maildrop.open())
        for number in (0, 19, 20, 40, 41):
            self.successResultOf(maildrop.fetch(number))
            self.assertLess(len(maildrop._ahead), 16)
        self.assertEqual(list(maildrop._ahead), list(range(42, 57)))
        self.patch(maildrop_module, "BLOCK", 35)
        self.successResultOf(maildrop.fetch(0))
        self.successResultOf(maildrop.fetch(1))
        self.assertEqual(list(maildrop._ahead), [2, 3])

    def test_small(self) -> None:
        """Whole messages only; nothing behind one that is too large, has changed or is gone."""
        names = [self.put(b"cur/%d:2," % number, b"%d\n" % number, when=OLD + number) for number in range(6)]
        session = self.session()
        self.assertEqual(session.small(4, 100), [b"4\n", b"5\n"])
        self.assertEqual(session.small(1, 5), [b"1\n", b"2\n"])
        self.assertEqual(session.small(1, 1), [])
        with open(names[3], "ab") as file:
            file.write(b"x" * 50)
        self.assertEqual(session.small(0, 20), [b"0\n", b"1\n", b"2\n"])
        read = os.read
        with mock.patch.object(maildir_module.os, "read", lambda fd, size: read(fd, size)[:-1]):
            self.assertEqual(session.small(0, 20), [])  # cut off since it was opened
        os.rename(names[1], self.path + b"/cur/1:2,S")
        os.unlink(names[2])
        before = os.listdir("/proc/self/fd")
        self.assertEqual(session.small(0, 200), [b"0\n", b"1\n"])
        self.assertEqual(session.small(2, 200), [])
        self.assertEqual(os.listdir("/proc/self/fd"), before)

    def test_errors(self) -> None:
        path = self.put(b"new/1.a")
        maildrop = self.maildrop()
        self.successResultOf(maildrop.open())
        os.unlink(path)
        self.failureResultOf(maildrop.fetch(0), MessageGone)
        self.failureResultOf(Maildrop(b"/nonexistent", execute).open(), MaildropError)
        self.failureResultOf(Maildrop(None, execute).open(), MaildropError)

        def broken(path: bytes, now: float) -> None:
            raise OSError(5, "Input/output error")

        self.patch(maildrop_module, "MaildirSession", broken)
        error = self.failureResultOf(Maildrop(self.path, execute).open(), MaildropTrouble)
        self.assertIn("Input/output error", str(error.value))


class TheNames(SynchronousTestCase):
    @given(st.lists(st.binary(max_size=20)))
    def test_they_are_a_sequence(self, names: list[bytes]) -> None:
        packed = Names(names)
        self.assertEqual(list(packed), names)
        self.assertEqual(list(packed[1:-1]), names[1:-1])
