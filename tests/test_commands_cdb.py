"""Tests of cdbmake, cdbdump, cdbget, tcprules, tcprulescheck, against Debian's: spec/related.md §1, §4.2, §4.3, §17."""

from __future__ import annotations

import hashlib
import os
import random
import sys

from qtwist.files.cdb import CDB
from qtwist.files.cdb_text import format_record
from tests.command_tools import PYTHONPATH, CommandCase, debian

RULES = b'127.:allow,RELAYCLIENT=""\n10.1.2.3-4:deny\nnocolonline\n=.example.net:allow,A="1",B=/x y/\n:allow\n'
MANY = (
    b'=:allow\n=.b.c:deny\nid@1.2.3.4:deny\n1.2.:deny\n1.:allow,X="1"\nid@=h.b.c:allow,Y="2"\n=n:deny,Z="a"\n'
    b"1.2.3.9:allow\n1-2.3-4:deny\n7.254-300.:deny\n1.2.3.9:deny\n"
)


def records() -> list[tuple[bytes, bytes]]:
    """Some hundred records, with keys that repeat, are empty, and hold anything."""
    source = random.Random(1)
    found = [(b"", b""), (b"", b"x"), (b"a\n+1,1:", b"->\n\n")]
    for _ in range(300):
        key = source.randbytes(source.randrange(6))
        found.append((key, source.randbytes(source.randrange(40))))
    return found


TEXT = b"".join(format_record(*record) for record in records()) + b"\n"


class NameTests(CommandCase):
    def test_names(self) -> None:
        """spec/related.md §9.1: three fields and their colons; all other lines are left out."""
        text = b"tim@x.test:Tim T.:t@far.test:\n#no:a:b:\nno:a:b\n\nann@x.test::ann@y.test:more:\n"
        self.assertEqual(self.check("ofmipname", "x.cdb", "x.tmp", stdin=text), b"")
        wanted = [(b"tim@x.test", b"Tim T.\0t@far.test"), (b"ann@x.test", b"\0ann@y.test")]
        with CDB(self.path("x.cdb")) as database:
            self.assertEqual(list(database), wanted)
        self.assertEqual(self.run_command("ofmipname", "x.cdb").returncode, 100)


class CDBTests(CommandCase):
    def test_make_and_dump(self) -> None:
        self.assertEqual(self.check("cdbmake", "x.cdb", "x.tmp", stdin=TEXT), b"")
        self.assertEqual(os.listdir(self.home), ["x.cdb"])
        self.assertEqual(self.check("cdbdump", stdin=self.read("x.cdb")), TEXT)

    def test_like_tinycdb(self) -> None:
        """The same file to the octet, and the same dump."""
        self.check("cdbmake", "x.cdb", "x.tmp", stdin=TEXT)
        self.assertEqual(self.other(debian("cdb", "tinycdb"), "-c", "y.cdb", stdin=TEXT)[0], 0)
        self.assertEqual(self.read("x.cdb"), self.read("y.cdb"))
        self.assertEqual(self.other(debian("cdb", "tinycdb"), "-d", "x.cdb"), (0, TEXT))

    def test_like_freecdb(self) -> None:
        self.check("cdbmake", "x.cdb", "x.tmp", stdin=TEXT)
        self.assertEqual(self.other(debian("cdbmake", "freecdb"), "y.cdb", "y.tmp", stdin=TEXT)[0], 0)
        self.assertEqual(self.read("x.cdb"), self.read("y.cdb"))
        self.assertEqual(self.other(debian("cdbdump", "freecdb"), stdin=self.read("x.cdb")), (0, TEXT))

    def test_get(self) -> None:
        text = b"+1,1:a->b\n+1,2:a->cd\n+0,1:->e\n\n"
        self.check("cdbmake", "x.cdb", "x.tmp", stdin=text)
        database = self.read("x.cdb")
        for arguments, code, printed in (
            (["a"], 0, b"b"),
            (["a", "1"], 0, b"cd"),
            (["a", "2"], 100, b""),
            ([""], 0, b"e"),
            (["b"], 100, b""),
        ):
            self.assertEqual(self.check("cdbget", *arguments, stdin=database, code=code), printed)
        self.check("cdbget", "a", "x", stdin=database, code=100, error="usage")
        self.check("cdbget", code=100, error="usage")

    def test_from_a_file(self) -> None:
        """Standard input may be a file, as `< FILE` makes it."""
        self.check("cdbmake", "x.cdb", "x.tmp", stdin=b"+1,1:a->b\n\n")
        code = "import sys; from qtwist.commands.cdbdump import main; sys.exit(main())"
        shell = f'exec "{sys.executable}" -c "{code}" <x.cdb'
        self.assertEqual(self.other("/bin/sh", "-c", shell, PYTHONPATH=PYTHONPATH), (0, b"+1,1:a->b\n\n"))

    def test_bad_input(self) -> None:
        """§1.2: exit 111, and the old database stays, with nothing beside it."""
        self.write("x.cdb", b"old")
        for text in (b"", b"+1,1:a->b\n", b"+1,1:a->bb\n\n", b"x\n\n"):
            self.check("cdbmake", "x.cdb", "x.tmp", stdin=text, code=111, error="cdbmake: fatal: unable to read input")
        self.assertEqual((os.listdir(self.home), self.read("x.cdb")), (["x.cdb"], b"old"))
        self.check("cdbmake", "x.cdb", "no/x.tmp", stdin=b"\n", code=111, error="unable to write no/x.tmp")
        self.check("cdbmake", "no/x.cdb", "x.tmp", stdin=b"\n", code=111, error="unable to move x.tmp to no/x.cdb")
        self.check("cdbmake", "x.cdb", code=100, error="usage")

    def test_damaged(self) -> None:
        """§1.1: never "not found"."""
        self.check("cdbmake", "x.cdb", "x.tmp", stdin=b"+1,1:a->b\n\n")
        for database in (b"", self.read("x.cdb")[:-1], self.read("x.cdb")[:100]):
            self.check("cdbget", "a", stdin=database, code=111, error="cdbget: fatal: unable to read input")
        self.check("cdbdump", stdin=self.read("x.cdb")[:2050], code=111, error="cdbdump: fatal: unable to read input")


class RulesTests(CommandCase):
    def rules(self, text: bytes) -> None:
        self.assertEqual(self.check("tcprules", "r.cdb", "r.tmp", stdin=text), b"")

    def test_vector(self) -> None:
        """§17: 2231 octets, and their MD5."""
        self.rules(RULES)
        contents = self.read("r.cdb")
        self.assertEqual(len(contents), 2231)
        digest = hashlib.md5(contents, usedforsecurity=False).hexdigest()
        self.assertEqual(digest, "2c2d624eda561842f9742d49b12e75ab")
        self.assertEqual(contents[2151:2167].hex(), "0000000000000000051500005f080000")

    def test_check_vector(self) -> None:
        """§4.3."""
        self.rules(RULES)
        for environ, printed in (
            ({"TCPREMOTEIP": "127.0.0.1"}, b"rule 127.:\nset environment variable RELAYCLIENT=\nallow connection\n"),
            ({"TCPREMOTEIP": "10.1.2.4"}, b"rule 10.1.2.4:\ndeny connection\n"),
            (
                {"TCPREMOTEHOST": "a.example.net"},
                b"rule =.example.net:\nset environment variable A=1\nset environment variable B=x y\n"
                b"allow connection\n",
            ),
            ({}, b"rule :\nallow connection\n"),
        ):
            self.assertEqual(self.check("tcprulescheck", "r.cdb", **environ), printed)
        self.rules(b"1.:deny\n")
        self.assertEqual(self.check("tcprulescheck", "r.cdb"), b"default:\nallow connection\n")

    def test_like_debian(self) -> None:
        """The same file and the same answers as those of ucspi-tcp's programs."""
        program = debian("tcprules", "ucspi-tcp")
        for text in (RULES, MANY, b""):
            self.rules(text)
            self.assertEqual(self.other(program, "d.cdb", "d.tmp", stdin=text)[0], 0)
            self.assertEqual(self.read("r.cdb"), self.read("d.cdb"))
        self.rules(MANY)
        for ip, host, info in (
            ("1.2.3.4", None, "id"),
            ("1.2.3.4", "h.b.c", None),
            ("9.9.9.9", "h.b.c", "id"),
            ("9.9.9.9", "", ""),
            ("1.2.3.9", None, None),
            ("1.2", "n", None),
            ("", "b.c", None),
            ("7.255.1.1", None, None),
        ):
            environ = {"TCPREMOTEIP": ip}
            environ.update({"TCPREMOTEHOST": host} if host is not None else {})
            environ.update({"TCPREMOTEINFO": info} if info is not None else {})
            expected = self.other(debian("tcprulescheck", "ucspi-tcp"), "r.cdb", **environ)
            self.assertEqual((0, self.check("tcprulescheck", "r.cdb", **environ)), expected, environ)

    def test_bad_line(self) -> None:
        """§4.2: exit 100, the line is shown, and the old database stays."""
        self.rules(RULES)
        before = self.read("r.cdb")
        message = "tcprules: fatal: unable to parse this line: 1.2.3.4:permit"
        self.check("tcprules", "r.cdb", "r.tmp", stdin=b":allow\n1.2.3.4:permit\n", code=100, error=message)
        self.assertEqual((os.listdir(self.home), self.read("r.cdb")), (["r.cdb"], before))

    def test_trouble(self) -> None:
        self.check("tcprules", "r.cdb", code=100, error="usage")
        self.check("tcprules", "r.cdb", "no/r.tmp", code=111, error="tcprules: fatal: unable to write no/r.tmp")
        self.check("tcprulescheck", code=100, error="usage")
        self.check("tcprulescheck", "none", code=111, error="tcprulescheck: fatal: unable to read none: No such file")
        self.write("short", b"x")
        self.check("tcprulescheck", "short", code=111, error="tcprulescheck: fatal: unable to read short")
