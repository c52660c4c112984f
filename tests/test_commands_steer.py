"""`qtwist queue` on a stopped queue, and on one whose daemon runs in this process (doc/queue.md)."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from qtwist.commands.steer import main
from qtwist.files.assign import compile_assign
from qtwist.files.cdb import write_cdb
from qtwist.files.disk import RealDisk
from qtwist.home import Home
from qtwist.interfaces import Delivery, ISpawner
from qtwist.mail.envelope import Report
from qtwist.mail.holds import SENDER, Hold
from qtwist.queue.layout import Layout, create_queue
from qtwist.queue.store import Store
from qtwist.steering.at_hand import QueueAtHand
from tests.queue_tools import files_of, note_syncs, put_message, read

REMOTE = b"Ta@far.test\0Db@far.test\0Tc@near.test\0"


class SteerCase:
    """A home with two queued messages and a new one."""

    mktemp: Any
    patch: Any
    assertEqual: Any

    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())
        for part in ("control", "users", "alias"):
            os.makedirs(os.path.join(self.path, part))
        self.layout: Layout = create_queue(os.path.join(self.path, "queue"))
        self.control("me", "here.test\n")
        self.control("listen", "smtp tcp:0:interface=127.0.0.1\n")
        self.first = put_message(
            self.layout,
            b"Subject: one\n\nbody\n",
            info=b"Fann@x.test\0",
            remote=b"Ta@far.test\0Db@far.test\0Tc@near.test\0",
        )
        self.second = put_message(self.layout, b"Subject: two\n\n", info=b"F\0", local=b"Tjoe@here.test\0")
        os.utime(self.layout.path("info", self.second), (time.time() - 7200,) * 2)
        self.new = put_message(self.layout, b"Subject: new\n\n", intd=b"u7\0p8\0Fbob@x.test\0Ta@far.test\0", todo=b"")

    def control(self, name: str, text: str) -> None:
        with open(os.path.join(self.path, "control", name), "w", encoding="ascii") as file:
            file.write(text)

    def run_verb(self, *words: str, answer: str = "") -> tuple[int, str, str]:
        """Exit code, output, errors."""
        output, errors = io.StringIO(), io.StringIO()
        self.patch(sys, "stdin", io.StringIO(answer))
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            code = main([words[0], "--home", self.path, *words[1:]])
        return code, output.getvalue(), errors.getvalue()

    def done(self, *words: str) -> str:
        code, output, errors = self.run_verb(*words)
        self.assertEqual((code, errors), (0, ""))
        return output

    def listed(self, *words: str) -> list[int]:
        return [json.loads(line)["id"] for line in self.done("list", "--json", *words).splitlines()]


class HoldsFileTests(SteerCase, SynchronousTestCase):
    def test_durable(self) -> None:
        """control/holds is the old one or the new one, whatever happens."""
        queue = QueueAtHand(self.path, lambda: Home(self.path).rewriter())
        done = note_syncs(self, self.path)
        queue.change_holds(lambda holds: [Hold.make(SENDER, b"ann@x.test")])
        self.assertEqual(done, ["control/holds.new", "replace holds", "control"])
        self.assertEqual([hold.kind for hold in queue.holds().entries], [SENDER])


class LookingTests(SteerCase, SynchronousTestCase):
    def test_filters(self) -> None:
        everything = sorted([self.first, self.second, self.new])
        self.assertEqual(self.listed(), everything)
        self.assertEqual(self.listed("--older", "1h"), [self.second])
        self.assertEqual(self.listed("--younger", "1h"), sorted([self.first, self.new]))
        self.assertEqual(self.listed("--sender", "<>"), [self.second])
        self.assertEqual(self.listed("--sender", "ANN@*"), [self.first])
        self.assertEqual(self.listed("--recipient", "c@near.test"), [self.first])
        self.assertEqual(self.listed("--recipient", "b@far.test"), [], "that one is done")
        self.assertEqual(self.listed("--host", "far.test"), sorted([self.first, self.new]))

    def test_list_for_people(self) -> None:
        output = self.done("list", "--sender", "ann*")
        self.assertIn(f"{self.first}  ", output)
        self.assertIn("<ann@x.test>  queued\n", output)
        self.assertIn("    remote a@far.test  next now\n", output)
        self.assertNotIn("b@far.test", output)

    def test_either_spelling(self) -> None:
        """Of a domain that is not ASCII; they count as one."""
        domains = ("bücher.example", "xn--bcher-kva.example")
        numbers = [
            put_message(self.layout, b"x: y\n\n", info=b"Fa@b.test\0", remote=b"Tx@" + domain.encode() + b"\0")
            for domain in domains
        ]
        for domain in domains:
            self.assertEqual(self.listed("--host", domain), sorted(numbers))
            self.assertEqual(self.listed("--recipient", "X@" + domain), sorted(numbers))
            self.assertEqual(self.listed("--host", "*." + domain), [])
        rows = [json.loads(line) for line in self.done("shape", "--json").splitlines()]
        self.assertIn(("xn--bcher-kva.example", 2), [(row["name"], row["total"]) for row in rows])

    def test_hostile_address(self) -> None:
        """Nothing that a sender chose reaches the terminal as a control character."""
        put_message(self.layout, b"x\x1b[2J: y\n\n", info=b"F\x1b]0;x\x07\xff@x.test\0", local=b"Tj\x1b@here.test\0")
        for output in (self.done("list"), self.done("show", str(self.listed("--recipient", "j*")[-1]))):
            self.assertEqual([one for one in output if not one.isprintable() and one != "\n"], [])

    def test_show(self) -> None:
        output = self.done("show", str(self.first))
        for words in ("Subject: one", "b@far.test  done", "a@far.test  next", "born 20"):
            self.assertIn(words, output)
        self.assertNotIn("body", output)
        self.assertEqual(self.run_verb("show", "4711")[0], 100)

    def test_shape(self) -> None:
        rows = [json.loads(line) for line in self.done("shape", "--json").splitlines()]
        self.assertEqual(
            rows,
            [
                {"name": "far.test", "total": 2, "ages": {"5": 2}},
                {"name": "here.test", "total": 1, "ages": {"160": 1}},
                {"name": "near.test", "total": 1, "ages": {"5": 1}},
            ],
        )
        self.assertRegex(self.done("shape"), r"TOTAL +4 +3 .*\n")

    def test_wrong_use(self) -> None:
        for words in (
            ["list", "--older", "x"],
            ["drop"],
            ["drop", "1", "--all"],
            ["hold", "sender"],
            ["hold", "x", "y"],
        ):
            self.assertEqual(self.run_verb(*words)[0], 100, words)
        self.assertEqual(self.run_verb("list", "--help")[0], 0)


class DecidingTests(SteerCase, SynchronousTestCase):
    def test_asking(self) -> None:
        """Whatever is not a yes does nothing."""
        before = files_of(self.layout)
        for answer in ("", "n\n", "what\n"):
            self.assertEqual(self.run_verb("drop", str(self.first), answer=answer)[0], 100)
        self.assertEqual(files_of(self.layout), before)
        self.assertEqual(self.run_verb("drop", str(self.first), answer="y\n")[0], 0)
        self.assertEqual(self.listed(), sorted([self.second, self.new]))

    def test_drop(self) -> None:
        self.done("drop", "--yes", "--all")
        self.assertEqual(files_of(self.layout), set())

    def test_fail(self) -> None:
        """The paragraphs are in bounce/N; the next daemon sends the notice."""
        self.done("fail", "--yes", str(self.first), str(self.new))
        paragraphs = read(self.layout.path("bounce", self.first))
        self.assertRegex(paragraphs, rb"(?s)^<a@far.test>:\n.*\n\n<c@near.test>:\n.*\n\n$")
        self.assertNotIn(b"b@far", paragraphs)
        self.assertFalse(os.path.exists(self.layout.path("remote", self.first)))
        self.assertTrue(os.path.exists(self.layout.path("info", self.first)))
        self.assertFalse(os.path.exists(self.layout.path("todo", self.new)))
        self.assertIn(b"<a@far.test>:\n", read(self.layout.path("bounce", self.new)))

    def test_retry(self) -> None:
        path = self.layout.path("remote", self.first)
        os.utime(path, (time.time() + 9000,) * 2)
        self.assertIn("next in 2h29m", self.done("list"))
        self.done("retry", "--host", "near.test")
        self.assertLessEqual(os.stat(path).st_mtime, time.time())

    def test_foreign_queue_manager(self) -> None:
        """A queue that somebody else works on is looked at, but not touched."""
        self.addCleanup(os.close, Store(RealDisk(), self.layout).lock())
        self.assertEqual(self.run_verb("drop", "--yes", str(self.first))[0], 111)
        self.assertIn(self.first, self.listed())

    def test_holds(self) -> None:
        self.control("holds", "# ours\nmessage 4711/1 long gone\n")
        self.done("hold", str(self.first), "wait", "for", "Ann")
        self.done("hold", "sender", "<>", "backscatter")
        self.done("hold", "destination", "Here.test")
        text = read(os.path.join(self.path, "control", "holds")).decode()
        birth = int(os.stat(self.layout.path("info", self.first)).st_mtime)
        self.assertEqual(
            text,
            f"# ours\nmessage {self.first}/{birth} wait for Ann\nsender <> backscatter\ndestination here.test\n",
        )
        self.assertIn("held (message: wait for Ann)", self.done("list"))
        self.assertEqual(self.listed("--reason", "BACKSCATTER"), [self.second])
        self.assertEqual(self.listed("--held"), sorted([self.first, self.second]))
        self.done("release", str(self.first))
        self.done("release", "destination", "here.test")
        self.assertEqual(self.run_verb("release", "sender", "a@b")[0], 100)
        self.assertEqual(read(os.path.join(self.path, "control", "holds")), b"# ours\nsender <> backscatter\n")


class RouteTests(SteerCase, SynchronousTestCase):
    def route(self, *numbers: int) -> dict[str, list[str]]:
        """The steps by recipient, from a process of its own: it runs a reactor."""
        program = "import sys; from qtwist.commands.steer import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", program, "route", "--home", self.path, "--json", *map(str, numbers)],
            cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
            capture_output=True,
            check=False,
            timeout=60,
        )
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        return {f"{row['channel']} {row['recipient']}": row["steps"] for row in rows}

    def test_route(self) -> None:
        """Local: owner, file and lines; remote: the route, without asking the DNS for an address."""
        self.control("smtproutes", "far.test:[127.0.0.1]:2526\nnear.test:[oops\n")
        self.control("locals", "here.test\n")
        mailbox = os.path.join(self.path, "mail")
        os.mkdir(mailbox, 0o755)
        with open(os.path.join(mailbox, ".qmail"), "w", encoding="ascii") as file:
            file.write("./Maildir/\n&ann@x.test\n")
        assign = [f"=joe:joe:{os.geteuid()}:{os.getegid()}:{mailbox}:::\n".encode(), b".\n"]
        write_cdb(os.path.join(self.path, "users", "cdb"), compile_assign(b"".join(assign)))
        steps = self.route(self.first, self.second, self.new)
        self.assertEqual(
            steps["remote a@far.test"],
            [
                "rewriting: a@far.test is remote, a@far.test",
                "remote: control/smtproutes sends far.test to 127.0.0.1, port 2526",
                "would try: 127.0.0.1 (preference 0)",
            ],
        )
        self.assertIn("cannot be used for near.test", steps["remote c@near.test"][1])
        local = steps["local joe@here.test"]
        self.assertIn(f"home {mailbox}", local[1])
        self.assertEqual(
            local[2:],
            [
                "file: .qmail",
                "would do: maildir ./Maildir/",
                "would do: forward ann@x.test",
                "would do: did 1+1+0",
            ],
        )

    def test_moved_domain(self) -> None:
        """A message stays on the channel that it was put on; route says what would be now."""
        self.control("smtproutes", ":[127.0.0.1]:2526\n")
        self.control("locals", "near.test\nhere.test\n")
        [step, *_] = self.route(self.first)["remote c@near.test"]
        self.assertIn("is local, c@near.test; but this message was queued when it was remote", step)


@implementer(ISpawner)
class Deferring:
    limit = 5

    def deliver(self, delivery: Delivery) -> Deferred[Report]:
        os.close(delivery.fd)
        return succeed(Report.deferral(b"greylisted\n"))

    def stop(self) -> Deferred[None]:
        return succeed(None)


class LiveTests(SteerCase, TestCase):
    async def test_running_daemon(self) -> None:
        """The same verbs through the socket: attempts are shown, and what is decided counts at once."""
        home = Home(self.path, maillog=os.path.join(self.path, "log", "send"))
        send = home.send(Deferring(), Deferring())
        desk = home.desk(send)
        send.startService()
        desk.startService()
        try:
            await send.manager.drained()
            self.assertEqual(os.stat(os.path.join(self.path, "run", "control")).st_mode & 0o777, 0o600)
            output = await deferToThread(self.done, "show", str(self.first))
            self.assertIn("s ago: deferral: greylisted", output)
            self.assertIn("next in ", output)
            self.assertEqual(await deferToThread(self.listed, "--reason", "greylist", "--sender", "<>"), [self.second])
            await deferToThread(self.done, "hold", "sender", "ann@x.test")
            self.assertEqual(len(send.manager.keeper.holds.entries), 1)
            await deferToThread(self.done, "drop", "--yes", str(self.first))
            self.assertNotIn(self.first, await deferToThread(self.listed))
            # Before anything else comes into the queue: it might get the number.
            code, _, errors = await deferToThread(self.run_verb, "drop", "--yes", str(self.first))
            self.assertEqual((code, "no such message" in errors), (100, True))
            await deferToThread(self.done, "retry", "--all")
            await deferToThread(self.done, "fail", "--yes", str(self.new))
            await send.manager.drained()
        finally:
            await maybeDeferred(desk.stopService)
            await maybeDeferred(send.stopService)
        log = read(os.path.join(self.path, "log", "send")).decode()
        self.assertIn(f"drop msg {self.first} by uid {os.geteuid()}\nend msg {self.first}\n", log)
        self.assertRegex(
            log, rf"(?s)fail msg {self.new} by uid \d+\n.*bounce msg {self.new} qp \d+\n.*end msg {self.new}\n"
        )
