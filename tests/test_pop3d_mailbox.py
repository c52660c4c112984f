"""A maildir that another process reads for us: both ends, and owners who lie (doc/security.md)."""

from __future__ import annotations

import os
import socket
import threading
from array import array
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from qtwist.local.packets import receive
from qtwist.pop3d import mailbox
from qtwist.pop3d.mailbox import MailboxSession
from qtwist.pop3d.maildir import MaildirSession
from tests.test_pop3d_maildir import OLD, MaildirCase


def pair(test: SynchronousTestCase) -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    test.addCleanup(ours.close)
    test.addCleanup(theirs.close)
    return ours, theirs


class BothEnds(MaildirCase):
    def connect(self, opened: Callable[[], MaildirSession] | None = None) -> MailboxSession:
        ours, theirs = pair(self)
        owner = threading.Thread(target=mailbox.serve, args=(theirs, opened or self.session))
        owner.start()
        self.addCleanup(owner.join)
        self.addCleanup(ours.shutdown, socket.SHUT_RDWR)
        return MailboxSession(ours)

    def test_session(self) -> None:
        """What the server sees is what the owner's process sees."""
        for number in range(5):
            self.put(b"new/%d" % number, b"%d\n" % number * 10**number, when=OLD + number)
        own, session = self.session(), self.connect()
        self.assertEqual((len(session), list(session.uids)), (5, list(own.uids)))
        self.assertEqual([session.size(index) for index in range(5)], [own.size(index) for index in range(5)])
        self.assertEqual(list(session.sizes()), list(own.sizes()))
        with open(session.open(2), "rb") as file:
            self.assertEqual(file.read(), b"2\n" * 100)
        self.assertEqual(session.small(1, 2220), own.small(1, 2220))
        self.assertEqual([len(text) for text in session.small(1, 2220)], [20, 200, 2000])
        self.assertEqual((session.small(4, 100), session.small(5, 100)), ([], []))
        self.assertEqual(session.finish((0,), (1,)), [])
        self.assertEqual(self.files(), [b"cur/1:2,S", b"cur/2:2,", b"cur/3:2,", b"cur/4:2,"])

    def test_errors(self) -> None:
        """The owner's trouble is told by its number; what is asked for wrongly ends nothing."""

        def broken() -> MaildirSession:
            raise OSError(13, "Permission denied")

        error = self.assertRaises(OSError, self.connect, broken)
        self.assertEqual(error.errno, 13)
        self.put(b"new/1")
        session = self.connect()
        os.unlink(self.path + b"/new/1")
        self.assertRaises(FileNotFoundError, session.open, 0)
        self.assertRaises(OSError, session.open, 7)
        self.assertEqual(session.small(0, 100), [])


class Liars(SynchronousTestCase):
    """The process belongs to the user, who may have replaced what it says: at worst the session fails."""

    def small(self, answer: bytes, contents: bytes | None) -> list[bytes]:
        """What becomes of an answer to a question after at most 100 octets of small messages."""
        ours, theirs = pair(self)
        count = (b"K\0\0\0\1", array("q", [7]).tobytes() + b"uid")

        def lie() -> None:
            for text, data in (count, (answer, contents)):
                receive(theirs, 1000, 1)
                fd = os.memfd_create("list")
                os.write(fd, data or b"")
                socket.send_fds(theirs, [text], [fd] if data is not None else [])
                os.close(fd)

        owner = threading.Thread(target=lie)
        owner.start()
        try:
            return MailboxSession(ours).small(0, 100)
        finally:
            owner.join()

    def test_no_regular_file(self) -> None:
        """A pipe in the place of a message: who reads from it could wait for ever."""
        ours, theirs = pair(self)

        def lie() -> None:
            receive(theirs, 1000, 1)
            fd = os.memfd_create("list")
            os.write(fd, array("q", [7]).tobytes() + b"uid")
            socket.send_fds(theirs, [b"K\0\0\0\1"], [fd])
            receive(theirs, 1000, 1)
            ends = os.pipe()
            socket.send_fds(theirs, [b"K\0\0\0\0"], [ends[0]])
            for end in (fd, *ends):
                os.close(end)

        before = len(os.listdir("/proc/self/fd"))
        owner = threading.Thread(target=lie)
        owner.start()
        try:
            error = self.assertRaises(OSError, MailboxSession(ours).open, 0)
        finally:
            owner.join()
        self.assertEqual(error.strerror, "no message")
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_honest(self) -> None:
        self.assertEqual(self.small(b"K\0\0\0\2", array("q", [2, 0]).tobytes() + b"ab"), [b"ab", b""])

    def test_lies(self) -> None:
        sizes = array("q", [2, 3]).tobytes()
        for answer, contents in (
            (b"K\0\0\0\2", None),
            (b"K\0\0\0\2", b""),
            (b"K\0\0\0\2", sizes[:-1]),
            (b"K\0\0\0\2", sizes + b"abcd"),
            (b"K\0\0\0\2", sizes + b"abcdef"),
            (b"K\0\0\0\2", array("q", [-1, 2]).tobytes() + b"a"),
            (b"K\xff\xff\xff\xff", sizes + b"abcde"),
            (b"K\0\0\0\1", array("q", [100_000]).tobytes() + b"x" * 100_000),
            (b"K\0\0", sizes + b"abcde"),
            (b"?", sizes),
            (b"E\0\0\0\5no", b""),
        ):
            before = set(os.listdir("/proc/self/fd"))
            self.assertRaises(OSError, self.small, answer, contents)
            self.assertLessEqual(len(set(os.listdir("/proc/self/fd")) - before), 2, answer)
