"""Tests of config, config-fast and qtwist install-links: spec/qmail.md §24."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Iterator

from qtwist.commands import config, config_fast, install_links, streams
from qtwist.commands.launchers import Command
from tests.command_tools import CommandCase


class ConfigFastTests(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        os.mkdir(self.path("control"))

    def control(self) -> dict[str, bytes]:
        return {name: self.read(f"control/{name}") for name in sorted(os.listdir(self.path("control")))}

    def test_files(self) -> None:
        """§24: the example, and modes that let everybody read."""
        printed = self.check("config_fast", "mx.example.test")
        self.assertEqual(
            self.control(),
            {
                "defaultdomain": b"example.test\n",
                "locals": b"mx.example.test\n",
                "me": b"mx.example.test\n",
                "plusdomain": b"example.test\n",
                "rcpthosts": b"mx.example.test\n",
            },
        )
        for name in self.control():
            self.assertEqual(stat.S_IMODE(os.stat(self.path("control", name)).st_mode), 0o644)
            self.assertIn(f"control/{name}".encode(), printed)

    def test_names(self) -> None:
        """§24: four labels; two, which stay as they are; one."""
        for name, default, plus in (
            (b"a.b.c.d", b"b.c.d", b"c.d"),
            (b"b.test", b"b.test", b"b.test"),
            (b"host", b"host", b"host"),
        ):
            self.assertEqual((config_fast.default_domain(name), config_fast.plus_domain(name)), (default, plus))

    def test_appends(self) -> None:
        """§24: what is in locals and rcpthosts stays; nothing is there twice; a last line without its end counts."""
        self.write("control/locals", b"old.test")
        self.write("control/rcpthosts", b"mx.example.test\nold.test\n")
        self.check("config_fast", "mx.example.test")
        self.check("config_fast", "mx.example.test")
        self.assertEqual(self.control()["locals"], b"old.test\nmx.example.test\n")
        self.assertEqual(self.control()["rcpthosts"], b"mx.example.test\nold.test\n")

    def test_link_in_the_way(self) -> None:
        """Root may do this in the home of another account."""
        self.write("victim", b"precious")
        os.symlink(self.path("victim"), self.path("control/me.tmp"))
        self.check("config_fast", "mx.example.test", code=111, error="unable to write")
        self.assertEqual(self.read("victim"), b"precious")

    def test_refusals(self) -> None:
        for name in ("", " ", "a b", "a\nb"):
            self.check("config_fast", name, code=100, error="is no host name")
        self.check("config_fast", code=100, error="usage")
        self.check("config_fast", "a", "b", code=100, error="usage")
        self.assertEqual(self.control(), {})
        self.check("config_fast", "a.b", code=111, error="unable to write", QTWISTHOME=self.path("none"))


class Names(config.Lookup):
    """A DNS and interfaces of our own."""

    def __init__(self, canonical: str | None = "MX.Example.test") -> None:
        self._canonical = canonical

    def hostname(self) -> str:
        return "MX"

    def canonical(self, name: str) -> str | None:
        return self._canonical if name == "mx" else None

    def addresses(self, name: str) -> set[str]:
        return {"127.0.0.1", "192.0.2.1", "192.0.2.2", "2001:db8::1"}

    def name_of(self, address: str) -> str | None:
        return {"127.0.0.1": "localhost", "192.0.2.1": "mx.example.test", "192.0.2.2": "MX.example.test"}.get(address)


class ConfigTests(ConfigFastTests):
    def setUp(self) -> None:
        super().setUp()
        self.printed = b""
        self.patch(os, "environ", {**os.environ, "QTWISTHOME": self.home})
        self.patch(streams, "write_all", self.take)

    def take(self, fd: int, data: bytes) -> None:
        self.assertEqual(fd, 1)
        self.printed += data

    def test_dns(self) -> None:
        """§24: locals anew from the names of all addresses, and rcpthosts the same."""
        self.write("control/locals", b"old.test\n")
        mask = os.umask(0o077)
        self.addCleanup(os.umask, mask)
        self.assertEqual(config.main([], Names()), 0)
        self.assertEqual(stat.S_IMODE(os.stat(self.path("control/me")).st_mode), 0o644)
        control = self.control()
        self.assertEqual(control["me"], b"mx.example.test\n")
        self.assertEqual(control["defaultdomain"], b"example.test\n")
        self.assertEqual(control["locals"], b"localhost\nmx.example.test\n")
        self.assertEqual(control["rcpthosts"], control["locals"])
        self.assertIn(b"2001:db8::1: it has no name", self.printed)

    def test_no_name(self) -> None:
        """§24: nothing is written, and it says what to do."""
        self.patch(sys, "stderr", io.StringIO())
        for canonical in (None, "mx"):
            error = self.assertRaises(SystemExit, config.main, [], Names(canonical))
            self.assertEqual(error.code, 111)
        self.assertIn("use config-fast", sys.stderr.getvalue())  # type: ignore[attr-defined]
        self.assertEqual(self.control(), {})

    def test_system(self) -> None:
        """The real look-ups answer in the same terms, for what every machine knows."""
        lookup = config.Lookup()
        self.assertIn("127.0.0.1", lookup.addresses("localhost"))
        self.assertIsInstance(lookup.hostname(), str)
        self.assertIsNone(lookup.name_of("no address"))


class InstallLinksTests(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        self.commands = {name: self.write(f"venv/bin/{name}", b"") for name in ("mailq", "tcprules")}
        self.patch(install_links, "installed", self.installed)
        self.printed = b""
        self.patch(streams, "write_all", self.take)
        self.patch(sys, "stderr", io.StringIO())

    def installed(self) -> Iterator[Command]:
        for name, path in self.commands.items():
            yield Command(name, path, f"qtwist.commands.{name}", "main")

    def take(self, fd: int, data: bytes) -> None:
        self.printed += data

    def run_main(self, *arguments: str) -> int | None:
        try:
            return install_links.main(arguments)
        except SystemExit as end:
            self.assertIsInstance(end.code, int)
            return end.code  # type: ignore[return-value]

    def test_made(self) -> None:
        directory = self.path("qmail/bin")
        self.assertEqual(self.run_main(directory), 0)
        self.assertEqual(
            {name: os.readlink(self.path("qmail/bin", name)) for name in os.listdir(directory)}, self.commands
        )
        self.printed = b""
        self.assertEqual(self.run_main(directory), 0)
        self.assertEqual(self.printed.count(b"kept"), 2)

    def test_some(self) -> None:
        self.assertEqual(self.run_main(self.path("sbin"), "mailq"), 0)
        self.assertEqual(os.listdir(self.path("sbin")), ["mailq"])
        self.assertEqual(self.run_main(self.path("sbin"), "mailq", "nothing"), 100)

    def test_null_client(self) -> None:
        """qmail-qmqpc in the place of qmail-queue (spec §17.3); a link to the other one is not replaced silently."""
        for name in ("qmail-queue", "qmail-qmqpc"):
            self.commands[name] = self.write(f"venv/bin/{name}", b"")
        for options in (), ("--links",):
            queue = self.path("bin/qmail-queue")
            self.assertEqual(self.run_main("--null-client", *options, self.path("bin")), 0)
            self.assertEqual(os.path.islink(queue), bool(options))
            self.assertIn(self.commands["qmail-qmqpc"].encode(), self.names(queue))
            self.assertEqual(os.readlink(self.path("bin/mailq")), self.commands["mailq"])
            self.assertEqual(self.run_main(*options, self.path("bin")), 100)
            self.assertEqual(self.run_main("--force", *options, self.path("bin")), 0)
            self.assertEqual(os.path.islink(queue), bool(options))
            self.assertIn(self.commands["qmail-queue"].encode(), self.names(queue))
            self.assertEqual(sorted(os.listdir(self.path("bin"))), sorted(self.commands))
            os.unlink(queue)

    @staticmethod
    def names(path: str) -> bytes:
        """What a link or a script refers to."""
        if os.path.islink(path):
            return os.readlink(os.fsencode(path))
        with open(path, "rb") as file:
            return file.read()

    def test_scripts(self) -> None:
        """Commands that run once per message are no links; all is as asked for when it is asked for again."""
        self.commands["forward"] = self.write("venv/bin/forward", b"")
        self.assertEqual(self.run_main(self.path("bin")), 0)
        self.assertTrue(self.read("bin/forward").startswith(b"#!" + sys.executable.encode()))
        self.assertEqual(self.run_main(self.path("bin")), 0)
        self.assertEqual(self.printed.count(b"kept"), 3)
        self.assertEqual(self.run_main("--links", self.path("bin")), 0)
        self.assertEqual(os.readlink(self.path("bin/forward")), self.commands["forward"])

    def test_in_the_way(self) -> None:
        """What is there stays, and the rest is done; --force keeps files, but not links."""
        self.write("bin/mailq", b"another")
        os.symlink("/nowhere", self.path("bin/tcprules"))
        self.assertEqual(self.run_main(self.path("bin")), 100)
        self.assertEqual((self.read("bin/mailq"), os.readlink(self.path("bin/tcprules"))), (b"another", "/nowhere"))
        self.assertEqual(self.run_main("--force", self.path("bin")), 0)
        self.assertEqual(self.read("bin/mailq.before-qtwist"), b"another")
        self.assertEqual(os.readlink(self.path("bin/mailq")), self.commands["mailq"])
        self.assertEqual(sorted(os.listdir(self.path("bin"))), ["mailq", "mailq.before-qtwist", "tcprules"])

    def test_own_directory(self) -> None:
        """The commands are never replaced by links to themselves."""
        self.assertEqual(self.run_main("--force", self.path("venv/bin")), 0)
        self.assertFalse(os.path.islink(self.commands["mailq"]))

    def test_wrong_use(self) -> None:
        self.assertEqual(self.run_main(), 100)
        self.assertEqual(self.run_main("--what"), 100)
        self.write("file", b"")
        self.assertEqual(self.run_main(self.path("file", "bin")), 111)


class InstalledTests(CommandCase):
    def test_record(self) -> None:
        """What is installed here is found: it is how `make` puts the package into its environment."""
        found = {command.name: command.script for command in install_links.installed()}
        if not found:
            self.skipTest("the package is not installed, only on the path")
        self.assertIn("qtwist", found)
        for name, path in found.items():
            self.assertEqual(os.path.basename(path), name)
            self.assertTrue(os.access(path, os.X_OK))
