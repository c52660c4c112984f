"""Tests of qmail-pw2u and qmail-getpw: spec/qmail.md §12.3, §12.4, §28.17."""

from __future__ import annotations

import os
import pwd

from twisted.trial.unittest import SynchronousTestCase

from qtwist.commands.getpw import answer
from qtwist.files.assign import compile_assign
from qtwist.local.errors import NO_ALIAS, DeliveryError
from qtwist.local.users import Account
from tests.command_tools import CommandCase

UID = os.getuid() or 1


class Pw2uTests(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        self.uid = os.stat(self.home).st_uid
        self.account = f":x:{self.uid}:7:Gecos:{self.home}:/bin/sh\n"
        self.owner = f":{self.uid}:7:{self.home}:"

    def passwd(self, *names: str) -> bytes:
        return "".join(f"{name}:x:1:7:Gecos:/nowhere:/bin/sh\n" for name in names).encode()

    def trusting(self, *names: str, options: str = "-H", **environ: str) -> list[str]:
        return self.check("pw2u", *options.split(), stdin=self.passwd(*names), **environ).decode().splitlines()

    def test_plain(self) -> None:
        """§12.4: alias has a line more; the last line is a dot; qmail-newu takes it."""
        lines = self.trusting("joe", "alias")
        self.assertEqual(
            lines,
            [
                "=joe:joe:1:7:/nowhere:::",
                "+joe-:joe:1:7:/nowhere:-::",
                "+:alias:1:7:/nowhere:-::",
                "=alias:alias:1:7:/nowhere:::",
                "+alias-:alias:1:7:/nowhere:-::",
                ".",
            ],
        )
        keys = [key for key, _ in compile_assign("".join(f"{line}\n" for line in lines).encode())]
        self.assertEqual(keys, [b"!joe\0", b"!joe-", b"!", b"!alias\0", b"!alias-", b""])

    def test_left_out(self) -> None:
        """§12.4: malformed lines, uid 0, capitals."""
        text = b"alias:x:1:7::/h:\nroot:x:0:0::/:\nJoe:x:2:2::/h:\nshort:x:2:2::/h\nnot:x:a:2::/h:\nn\0l:x:2:2::/h:\n"
        names = [line.split(":")[0] for line in self.check("pw2u", "-H", stdin=text).decode().splitlines()]
        self.assertEqual(names, ["+", "=alias", "+alias-", "."])
        names = [line.split(":")[0] for line in self.check("pw2u", "-Hu", stdin=text).decode().splitlines()]
        self.assertEqual(names, ["+", "=alias", "+alias-", "=Joe", "+Joe-", "."])

    def test_homes(self) -> None:
        """§12.4: -o, the default, -h and -H; a home of somebody else is left out by both of the former."""
        text = self.passwd("gone") + f"alias:x:{UID}:7::{self.home}:\nother:x:{UID + 1}:7::{self.home}:\n".encode()
        os.chown(self.home, UID, -1)
        names = {line.split(b":")[0] for line in self.check("pw2u", stdin=text).splitlines()}
        self.assertEqual(names, {b"+", b"=alias", b"+alias-", b"."})
        self.check("pw2u", "-h", stdin=text, code=111, error="unable to look at /nowhere")
        self.assertIn(b"=gone:", self.check("pw2u", "-hH", stdin=text))

    def test_options(self) -> None:
        """§12.4: -c, -C, -/."""
        self.assertIn("+joe+:joe:1:7:/nowhere:-::", self.trusting("joe", "alias", options="-Hc+"))
        self.assertIn("+joe+:joe:1:7:/nowhere:-/::", self.trusting("joe", "alias", options="-H -c + -/"))
        self.assertEqual([line[0] for line in self.trusting("joe", "alias", options="-HC")], ["=", "+", "=", "."])
        self.check("pw2u", "-x", code=100, error="qmail-pw2u: illegal option -- x")

    def test_files(self) -> None:
        """§12.4: include, exclude, mailnames, subusers, append, in this order."""
        self.write("users/include", b"joe\nann\nalias\nbob\n")
        self.write("users/exclude", b"bob\n")
        self.write("users/mailnames", b"joe:joseph::jo\nann:\n")
        self.write("users/subusers", b"sales:joe:sell:\nmalformed:joe\n\n")
        self.write("users/append", b"=x:joe:1:1:/h:::\n+y")
        self.assertEqual(
            self.trusting("eve", "joe", "ann", "bob", "alias"),
            [
                "=joseph:joe:1:7:/nowhere:::",
                "+joseph-:joe:1:7:/nowhere:-::",
                "=jo:joe:1:7:/nowhere:::",
                "+jo-:joe:1:7:/nowhere:-::",
                "+:alias:1:7:/nowhere:-::",
                "=alias:alias:1:7:/nowhere:::",
                "+alias-:alias:1:7:/nowhere:-::",
                "=sales:joe:1:7:/nowhere:-:sell:",
                "+sales-:joe:1:7:/nowhere:-:sell-:",
                "=x:joe:1:1:/h:::",
                "+y",
                ".",
            ],
        )

    def test_trouble(self) -> None:
        """§12.4: no alias, an unknown user of a subuser, an unreadable file."""
        self.check("pw2u", "-H", stdin=self.passwd("joe"), code=111, error="there is no account alias")
        self.write("users/subusers", b"sales:eve:sell:\n")
        self.check("pw2u", "-H", stdin=self.passwd("alias"), code=111, error="there is no account eve")
        os.unlink(self.path("users/subusers"))
        os.mkdir(self.path("users/append"))
        self.check("pw2u", "-H", stdin=self.passwd("alias"), code=111, error="users/append")
        self.check("pw2u", "-H", code=111, error="unable to enter", QTWISTHOME=self.path("none"))


class GetpwTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = os.path.abspath(self.mktemp()).encode()
        os.mkdir(self.folder)
        os.chown(self.folder, UID, -1)

    def find(self, name: bytes) -> Account | None:
        return Account(name, UID, 7, self.folder) if name in (b"joe", b"joe-x") else None

    def test_answers(self) -> None:
        """§12.3: the longest name that there is; the extension as it was written."""
        home = self.folder
        for local, user, dash, ext in (
            (b"joe", b"joe", b"", b""),
            (b"JOE-Foo", b"joe", b"-", b"Foo"),
            (b"joe-x-Y", b"joe-x", b"-", b"Y"),
        ):
            expected = b"\0".join([user, b"%d" % UID, b"7", home, dash, ext, b""])
            self.assertEqual(answer(local, b"/none", self.find), expected)

    def test_alias(self) -> None:
        """§12.3, §28.17: what belongs to nobody belongs to alias, with all of it as extension."""
        fields = answer(b"Nobody-x", self.folder, lambda name: None).split(b"\0")
        self.assertEqual(fields[1:2] + fields[3:], [b"%d" % UID, self.folder, b"-", b"Nobody-x", b""])
        error = self.assertRaises(DeliveryError, answer, b"x", b"/none", lambda name: None)
        self.assertEqual(error.code, NO_ALIAS)


class GetpwCommandTests(CommandCase):
    def test_command(self) -> None:
        """§12.3: 116 without alias; root gets no mail."""
        self.check("getpw", "root", code=116, error="qmail-getpw: fatal: unable to find the owner of")
        os.mkdir(self.path("alias"))
        status = os.stat(self.path("alias"))
        try:
            name = pwd.getpwuid(status.st_uid).pw_name
        except KeyError:
            name = str(status.st_uid)
        expected = f"{name}\0{status.st_uid}\0{status.st_gid}\0{self.path('alias')}\0-\0root\0"
        self.assertEqual(self.check("getpw", "root"), expected.encode())
        self.check("getpw", code=100, error="usage")
