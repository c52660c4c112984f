"""Tests of splogger: spec/qmail.md §21."""

from __future__ import annotations

import syslog

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.commands.splogger import Folder
from tests.command_tools import CommandCase

NOW = 1795353565_000042_999
STAMP = "1795353565.000042"


def logged(*blocks: bytes) -> list[tuple[int, str]]:
    folder = Folder(lambda: NOW)
    lines = [line for block in blocks for line in folder.feed(block)]
    return lines + list(folder.end())


class FolderTests(SynchronousTestCase):
    def test_priorities(self) -> None:
        """§21: by how the line starts; empty lines are left out; unprintable octets become ?."""
        self.assertEqual(
            logged(b"new msg 1\n\nalert: x\nwarning: y\n warning: no\na\tb\0\xffc\nlast"),
            [
                (syslog.LOG_INFO, f"{STAMP} new msg 1"),
                (syslog.LOG_ALERT, f"{STAMP} alert: x"),
                (syslog.LOG_WARNING, f"{STAMP} warning: y"),
                (syslog.LOG_INFO, f"{STAMP}  warning: no"),
                (syslog.LOG_INFO, f"{STAMP} a?b??c"),
                (syslog.LOG_INFO, f"{STAMP} last"),
            ],
        )

    def test_folding(self) -> None:
        """§21: parts of 799, with the stamp and priority of the first; 799 are one part."""
        self.assertEqual(logged(b"x" * 799 + b"\n"), [(syslog.LOG_INFO, f"{STAMP} " + "x" * 799)])
        self.assertEqual(
            logged(b"alert: " + b"x" * 1592 + b"warning: z\ny\n"),
            [
                (syslog.LOG_ALERT, f"{STAMP} alert: " + "x" * 792),
                (syslog.LOG_ALERT, f"{STAMP}+" + "x" * 799),
                (syslog.LOG_ALERT, f"{STAMP}+xwarning: z"),
                (syslog.LOG_INFO, f"{STAMP} y"),
            ],
        )

    def test_stamps(self) -> None:
        """Each line has its own time, all its parts the same."""
        times = iter(range(10**9, 10**10, 10**9))
        folder = Folder(lambda: next(times))
        lines = [text for _, text in folder.feed(b"a\n" + b"b" * 800 + b"\nc\n")]
        self.assertEqual(
            [line.translate({98: None})[:10] for line in lines],
            [
                "1.000000 a",
                "2.000000 ",
                "2.000000+",
                "3.000000 c",
            ],
        )

    @given(st.lists(st.sampled_from([b"\n", b"alert:", b"x", b"y" * 798, b"z" * 799, b"w" * 1700])), st.data())
    def test_cut_anywhere(self, parts: list[bytes], data: st.DataObject) -> None:
        """It makes no difference how the text arrives."""
        text = b"".join(parts)
        size = data.draw(st.integers(1, len(text) + 1))
        blocks = [text[start : start + size] for start in range(0, len(text), size)]
        self.assertEqual(logged(*blocks), logged(text))
        shown = "".join(line[len(STAMP) + 1 :] for _, line in logged(text))
        self.assertEqual(shown.encode(), text.replace(b"\n", b""))


class CommandTests(CommandCase):
    def test_arguments(self) -> None:
        self.check("splogger", "tag", "mail", code=100, error="splogger: fatal: the facility is a number")
        self.assertEqual(self.check("splogger", "qmail", "2", stdin=b""), b"")
