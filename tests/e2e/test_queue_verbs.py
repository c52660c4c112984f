"""`qtwist queue` with the real daemon, as root, as the daemon's account, and as somebody else (doc/queue.md)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from typing import Any
from unittest import SkipTest

from tests.e2e.harness import ME, PATIENCE, Daemon, DaemonCase, free_port, wait_until
from tests.e2e.test_flow import END
from tests.e2e.test_roles import RootCase

#: Somebody who is neither root nor the daemon; no account is needed for it.
STRANGER: dict[str, Any] = {"user": 60177, "group": 60177, "extra_groups": []}


class QueueCase(DaemonCase):
    """far.test is a host where nobody answers; user-later@ is a mailbox that says "not yet" until it is told."""

    def setUp(self) -> None:
        super().setUp()
        os.chmod(self.directory, 0o755)
        self.write_control("rcpthosts", f"{ME}\nfar.test\n")
        self.write_control("smtproutes", f"far.test:127.0.0.1:{free_port()}\n")
        self.later = f"{self.user}-later@{ME}"
        self.write_dotqmail("later", "|echo not yet; exit 111\n")

    def as_whom(self) -> dict[str, Any]:
        """Who types the commands: the daemon's account."""
        return self.runtime.account.identity()

    def queue(self, *words: str, answer: str = "", **identity: Any) -> tuple[int, str, str]:
        """`qtwist queue`: exit code, output, errors."""
        done = subprocess.run(
            self.runtime.command("steer", *words),
            check=False,
            cwd="/",
            env={**self.environment(), "QTWISTHOME": self.home},
            input=answer,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            **(identity or self.as_whom()),
        )
        return done.returncode, done.stdout, done.stderr

    def done(self, *words: str, answer: str = "") -> str:
        code, output, errors = self.queue(*words, answer=answer)
        self.assertEqual((code, errors), (0, ""), words)
        return output

    def listed(self, *words: str) -> list[int]:
        return [json.loads(line)["id"] for line in self.done("list", "--json", *words).splitlines()]

    def put(self, daemon: Daemon, *recipients: str, sender: str = "ann@client.test", text: str = "one") -> int:
        """Send a message that is deferred for every recipient; its number, when all have been tried and it is in the
        queue's files."""
        known = set(self.queued())
        count = len(daemon.log.find("deferral"))
        self.send(recipients, f"Subject: {text}\n\nhello\n", sender=sender)
        daemon.log.wait("deferral", count + len(recipients))
        wait_until("the message to become files", lambda: bool(set(self.queued()) - known))
        [number] = set(self.queued()) - known
        return int(number)

    def attempts(self, number: int) -> dict[str, list[str]]:
        """What `show` tells of each recipient's attempts."""
        row = json.loads(self.done("show", "--json", str(number)))
        return {one["address"]: [each["text"] for each in one.get("attempts", ())] for one in row["recipients"]}


class DecidingVerbs:
    """What changes something: for each of those who may."""

    def test_hold_and_release(self) -> None:
        """A message, a sender, a destination: kept back with a reason that is shown, and tried when released."""
        daemon = self.start()
        number = self.put(daemon, self.later)
        self.assertIn(f"held: message {number}/", self.done("hold", str(number), "ask", "Ann", "first"))
        self.done("hold", "sender", "eve@evil.test", "spam run")
        self.done("hold", "destination", "far.test", "their disk is full")
        self.send([self.later], sender="eve@evil.test")
        self.send(["bob@far.test"], sender="ann@client.test")
        wait_until("all to be held", lambda: len(self.listed("--held")) == 3)
        self.assertIn(
            "1 of them with something held, which stays held", self.done("retry", "--sender", "ann@*", "--host", ME)
        )
        self.done("retry", "--all")
        listed = self.done("list")
        for reason in ("message: ask Ann first", "sender: spam run", "destination: their disk is full"):
            self.assertIn(f"held ({reason})", listed)
        self.assertEqual(len(daemon.log.find("starting delivery")), 1)
        self.write_dotqmail("later", "./Maildir/\n")
        self.done("release", str(number))
        self.done("release", "sender", "eve@evil.test")
        daemon.log.wait(END, 2)
        self.assertEqual(len(self.maildir()), 2)
        self.done("release", "destination", "far.test")
        daemon.log.wait("deferral", 2)
        self.assertEqual(self.listed("--held"), [])
        code, _, errors = self.queue("release", "destination", "far.test")
        self.assertEqual((code, errors), (100, "qtwist queue: that is not held\n"))

    def test_fail(self) -> None:
        """Asked first; then the notice is in the sender's Maildir, and tells of all who were left."""
        daemon = self.start()
        number = self.put(daemon, self.later, "bob@far.test", sender=self.address)
        code, output, errors = self.queue("fail", str(number), answer="n\n")
        self.assertEqual((code, errors), (100, "qtwist queue: nothing was done\n"))
        self.assertIn("give up 1 message? [y/N] ", output)
        self.assertEqual(self.maildir(), [])
        self.assertIn(f"{number} failed\n", self.done("fail", str(number), answer="y\n"))
        daemon.log.wait(END, 2)
        [notice] = self.maildir()
        for words in (
            f"<{self.later}>:",
            "<bob@far.test>:",
            "administrator",
            "Subject: failure notice",
            "Subject: one",
        ):
            self.assertIn(words.encode(), notice)
        self.assertEqual(len(daemon.log.find(rf"fail msg {number} by uid {self.uid()}$")), 1)
        self.wait_empty_queue()

    def test_stopped(self) -> None:
        """The same on a queue whose daemon is down; the next one sends the notice."""
        daemon = self.start()
        failed = self.put(daemon, self.later, sender=self.address, text="failed")
        dropped = self.put(daemon, self.later, "bob@far.test", sender=self.address, text="dropped")
        kept = self.put(daemon, "bob@far.test", sender=self.address, text="kept")
        self.assertEqual(daemon.stop(), 0)
        self.assertEqual(self.listed(), sorted([failed, dropped, kept]))
        self.assertIn(f"{failed} failed\n", self.done("fail", "--yes", str(failed)))
        self.assertIn(f"{dropped} dropped\n", self.done("drop", "--yes", str(dropped)))
        self.done("hold", str(kept), "for now")
        self.done("retry", str(kept))
        daemon = self.start()
        daemon.log.wait(END, 2)
        self.assertEqual(self.listed(), [kept])
        [notice] = self.maildir()
        self.assertIn(f"<{self.later}>:\n".encode(), notice)
        self.assertIn(b"Subject: failed\n", notice)
        self.assertEqual(daemon.log.find("starting delivery .* to remote"), [], "it is held")

    def uid(self) -> int:
        return self.runtime.account.uid


class AccountTests(DecidingVerbs, QueueCase):
    """As the account that the daemon runs under."""

    def test_looking(self) -> None:
        daemon = self.start()
        both = self.put(daemon, self.later, "bob@far.test")
        with self.subTest("list"):
            self.assertRegex(
                self.done("list"),
                rf"\A{both}  \d+s  \d+ bytes  <ann@client\.test>  queued\n"
                rf"    local {re.escape(self.later)}  next in \w+\n"
                r"        \d+s ago: deferral: not yet\n"
                r"    remote bob@far\.test  next in \w+\n"
                r"        \d+s ago: deferral: .*\(#4\.4\.1\)\n\Z",
            )
        with self.subTest("filters"):
            other = self.put(daemon, self.later, sender="eve@evil.test", text="two")
            everything = sorted([both, other])
            for words, expected in (
                ((), everything),
                (("--older", "1h"), []),
                (("--younger", "1h", "--sender", "EVE@*"), [other]),
                (("--host", "far.*", "--recipient", "bob@far.test"), [both]),
                (("--reason", "not yet"), everything),
                (("--reason", "#4.4.1"), [both]),
            ):
                self.assertEqual(self.listed(*words), expected, words)
        with self.subTest("show"):
            shown = self.done("show", str(both))
            for line in ("Subject: one", "Received: from ", "born 20"):
                self.assertIn(line, shown)
            self.assertNotIn("hello", shown)
            self.assertEqual(shown.count("ago: deferral: not yet\n"), 1)
            self.assertEqual(self.queue("show", "4711")[::2], (100, "qtwist queue: message 4711: no such message\n"))
        with self.subTest("shape"):
            self.assertRegex(self.done("shape"), rf"(?m)^ *TOTAL +3 +3 .*\n *{ME} +2 +2 .*\n *far\.test +1 +1 ")
        with self.subTest("route"):
            lines = self.done("route", str(both)).splitlines()
            self.assertIn("    would do: program echo not yet; exit 111", lines)
            self.assertTrue(any("control/smtproutes sends far.test to 127.0.0.1" in line for line in lines), lines)
        self.assertEqual(sorted(map(int, self.queued())), everything, "looking changes nothing")

    def test_retry(self) -> None:
        """Each attempt is shown; a message that can be delivered now, is."""
        daemon = self.start()
        number = self.put(daemon, self.later, "bob@far.test")
        self.assertEqual(self.done("retry", str(number)), "1 message is due now\n")
        daemon.log.wait("deferral", 4)
        self.assertEqual(
            {who: len(texts) for who, texts in self.attempts(number).items()}, {self.later: 2, "bob@far.test": 2}
        )
        self.write_dotqmail("later", "./Maildir/\n")
        self.done("retry", "--host", ME)
        daemon.log.wait("success")
        wait_until("the mark", lambda: not self.listed("--recipient", self.later))
        self.assertEqual(len(self.maildir()), 1)
        self.assertEqual(list(self.attempts(number)), ["bob@far.test"])
        self.assertEqual(self.queue("retry")[0], 100)

    def test_hold_lasts(self) -> None:
        """A hold is in a control file: the next daemon keeps to it."""
        daemon = self.start()
        number = self.put(daemon, self.later)
        self.done("hold", str(number), "wait")
        self.assertEqual(daemon.stop(), 0)
        daemon = self.start()
        self.done("retry", "--all")
        self.assertEqual(self.listed("--held"), [number])
        self.done("release", str(number))
        daemon.log.wait("deferral")
        self.assertEqual(len(daemon.log.find("starting delivery")), 1)

    def test_drop(self) -> None:
        """Nobody hears of it."""
        daemon = self.start()
        numbers = [self.put(daemon, self.later, "bob@far.test", sender=self.address) for _ in range(2)]
        code, output, errors = self.queue("drop", "4711", *map(str, numbers), "--yes")
        self.assertEqual((code, output, errors), (100, "", "qtwist queue: message 4711: no such message\n"))
        self.assertEqual(self.listed(), sorted(numbers))
        self.done("drop", "--sender", self.address, "--yes")
        daemon.log.wait(END, 2)
        self.wait_empty_queue()
        self.assertEqual(self.maildir(), [])
        self.assertEqual(len(daemon.log.find(rf"drop msg \d+ by uid {self.uid()}$")), 2)
        self.assertEqual(daemon.stop(), 0)
        self.assertEqual(daemon.log.find("bounce msg"), [])

    def test_stranger(self) -> None:
        """Another account is told in one line that it may not, whether the daemon runs or not."""
        if not self.runtime.account.switch:
            raise SkipTest("needs root, to be somebody else")
        daemon = self.start()
        number = self.put(daemon, self.later, sender=self.address)
        before = self.listed()
        for running in (True, False):
            for words in (
                ("list",),
                ("show", str(number)),
                ("retry", str(number)),
                ("fail", "--yes", str(number)),
                ("drop", "--yes", "--all"),
                ("hold", str(number), "x"),
                ("hold", "sender", "ann@client.test"),
                ("release", "sender", "ann@client.test"),
            ):
                code, output, errors = self.queue(*words, **STRANGER)
                self.assertEqual(output, "", words)
                self.assertNotEqual(code, 0, words)
                self.assertRegex(errors, r"\Aqtwist queue: [^\n]+\n\Z", words)
                self.assertRegex(errors, "only root|[Pp]ermission", words)
            if running:
                self.assertEqual(daemon.stop(), 0)
        self.assertEqual(self.listed(), before)
        self.assertFalse(os.path.exists(os.path.join(self.home, "control", "holds")))


class AsRootTests(DecidingVerbs, QueueCase):
    """The same by root, while the daemon runs as somebody else; what is written stays the daemon's."""

    def setUp(self) -> None:
        super().setUp()
        if not self.runtime.account.switch:
            raise SkipTest("needs root")

    def as_whom(self) -> dict[str, Any]:
        return {}

    def uid(self) -> int:
        return 0

    def tearDown(self) -> None:
        account = self.runtime.account.uid
        for folder, folders, files in os.walk(self.home):
            for name in (*folders, *files):
                path = os.path.join(folder, name)
                with contextlib.suppress(FileNotFoundError):  # the daemon may be at it still
                    self.assertEqual(os.lstat(path).st_uid, account, path)


class RoleTests(RootCase, QueueCase):
    """Started as root, with roles of their own accounts: root steers, and so does the queue's account."""

    def setUp(self) -> None:
        super().setUp()
        self.instructions("joe", 60101, "|echo not yet; exit 111\n", "-later")
        self.later = f"joe-later@{ME}"

    def as_whom(self) -> dict[str, Any]:
        return self.typist

    def test_all(self) -> None:
        queue = self.accounts["qmailq"]
        send = self.start()
        for self.typist in ({}, {"user": queue.pw_uid, "group": queue.pw_gid, "extra_groups": []}):
            number = self.put(send, self.later, sender=f"ann@{ME}")
            self.assertIn("ago: deferral: not yet", self.done("show", str(number)))
            if not self.typist:
                self.done("hold", str(number), "wait")
                self.assertEqual(self.listed("--held"), [number])
                self.done("release", str(number))
            self.done("fail", "--yes", str(number))
            wait_until("the notice", lambda: len(self.mail_of("ann")) == 1)
            self.assertIn(f"<{self.later}>:\n".encode(), self.mail_of("ann").pop())
            self.empty("ann")
            self.wait_empty_queue()
        self.typist = STRANGER
        number = self.put(send, self.later)
        code, output, errors = self.queue("drop", "--yes", str(number))
        self.assertNotEqual(code, 0)
        self.assertRegex(output + errors, r"\Aqtwist queue: [^\n]+\n\Z")
        # control/ is root's: the queue's account may decide about messages, but not write there.
        self.typist = {"user": queue.pw_uid, "group": queue.pw_gid, "extra_groups": []}
        code, output, errors = self.queue("hold", str(number))
        self.assertEqual((code, output), (111, ""))
        self.assertRegex(errors, r"\Aqtwist queue: [^\n]*[Pp]ermission denied[^\n]*\n\Z")

    def empty(self, name: str) -> None:
        new = os.path.join(self.home, "mail", name, "Maildir", "new")
        for entry in os.listdir(new):
            os.unlink(os.path.join(new, entry))
