"""Handing a message to the queue without the daemon, or to $QMAILQUEUE: spec/qmail.md §6, §7."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.files.disk import RealDisk
from qtwist.queue import client, direct, program
from qtwist.queue.client import QueueRefused, report, submit, submit_later
from qtwist.queue.layout import create_queue
from tests.unprivileged import as_user, folder

# What the client imports only when it needs it: a checkout of root's may be closed to the account that does.
LATE_IMPORTS = (direct, program)

CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class ClientCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = tempfile.mkdtemp(prefix="qtwist-client-")
        self.addCleanup(shutil.rmtree, self.home)

    def program(self, text: str) -> dict[str, str]:
        """An environment with $QMAILQUEUE, a shell script."""
        path = os.path.join(self.home, "program")
        with open(path, "w") as file:
            file.write(f"#!/bin/sh\n{text}\n")
        os.chmod(path, 0o755)
        return {**os.environ, "QMAILQUEUE": path}

    def read(self, name: str) -> bytes:
        with open(os.path.join(self.home, name), "rb") as file:
            return file.read()

    def refusal(self, environ: dict[str, str], message: Any = (b"m",), recipients: Any = (b"c@d",)) -> QueueRefused:
        return self.assertRaises(QueueRefused, submit, self.home, message, b"a@b", recipients, environ)


class ProgramTests(ClientCase):
    def test_queued(self) -> None:
        """§7: fd 0 and fd 1, the home as working directory, the process id as qp."""
        environ = self.program("echo $$ >pid; cat >message; cat <&1 >envelope")
        number = submit(self.home, [b"Subject: x\n", b"\nhello\n"], b"a@b", [b"c@d", b"e f@g"], environ)
        self.assertEqual(self.read("message"), b"Subject: x\n\nhello\n")
        self.assertEqual(self.read("envelope"), b"Fa@b\0Tc@d\0Te f@g\0\0")
        self.assertEqual(int(self.read("pid")), number)

    def test_no_recipients(self) -> None:
        submit(self.home, [], b"", [], self.program("cat >message; cat <&1 >envelope"))
        self.assertEqual((self.read("message"), self.read("envelope")), (b"", b"F\0\0"))

    def test_arguments(self) -> None:
        """§4: no arguments; the environment is the caller's."""
        environ = self.program('echo "$# $WHO" >seen; cat >/dev/null; cat <&1 >/dev/null')
        submit(self.home, [b"m"], b"", [b"c@d"], {**environ, "WHO": "me"})
        self.assertEqual(self.read("seen"), b"0 me\n")

    def test_relative(self) -> None:
        """A relative path is one below the home; $PATH does not count (§4: execv)."""
        environ = self.program("cat >/dev/null; cat <&1 >/dev/null")
        submit(self.home, [b"m"], b"", [b"c@d"], {**environ, "QMAILQUEUE": "./program"})
        self.assertEqual(self.refusal({**environ, "QMAILQUEUE": "sh"}).code, 120)

    def test_signals(self) -> None:
        """A broken pipe ends a program that knows nothing of Python."""
        environ = self.program("cat >/dev/null; cat <&1 >/dev/null; grep SigIgn /proc/self/status >signals")
        submit(self.home, [b"m"], b"", [b"c@d"], environ)
        ignored = int(self.read("signals").split()[1], 16)
        self.assertEqual(ignored & (1 << 12 | 1 << 24), 0)

    def test_exit_codes(self) -> None:
        """§7, each with the letter that callers go by."""
        for code, letter in [(11, b"D"), (31, b"D"), (40, b"D"), (51, b"Z"), (53, b"Z"), (71, b"Z"), (115, b"D")]:
            error = self.refusal(self.program(f"cat >/dev/null; cat <&1 >/dev/null; exit {code}"))
            self.assertEqual((error.code, error.letter, error.text), (code, letter, report(code)[1]))

    def test_no_program(self) -> None:
        environ = self.program("")
        os.unlink(environ["QMAILQUEUE"])
        self.assertEqual(self.refusal(environ).code, 120)

    def test_no_home(self) -> None:
        environ = self.program("")
        self.assertEqual(
            self.assertRaises(QueueRefused, submit, "/nonexistent", [b"m"], b"", [b"c@d"], environ).code, 61
        )

    def test_killed(self) -> None:
        error = self.refusal(self.program("kill -9 $$"))
        self.assertEqual((error.code, error.letter), (81, b"Z"))

    def test_own_words(self) -> None:
        """§7: code 82 with at least three octets on fd 6; at most 255 of them count."""
        environ = self.program("cat >/dev/null; cat <&1 >/dev/null; printf 'DSpam (#5.7.1)' >&6; exit 82")
        error = self.refusal(environ)
        self.assertEqual((error.code, error.letter, error.text), (82, b"D", b"Spam (#5.7.1)"))
        error = self.refusal(self.program("printf 'Znot now' >&6; exit 82"))
        self.assertEqual((error.letter, error.text), (b"Z", b"not now"))
        error = self.refusal(self.program("printf 'Dx' >&6; exit 82"))
        self.assertEqual(error.letter, b"Z")
        error = self.refusal(self.program("printf D%0500d 1 >&6; exit 82"))
        self.assertEqual(len(error.text), 254)
        error = self.refusal(self.program("printf 'Dignored' >&6; exit 53"))
        self.assertEqual((error.letter, error.text), report(53))

    def test_not_read(self) -> None:
        """A program that says 0 without having taken everything has queued nothing that counts."""
        error = self.refusal(self.program("exit 0"), [b"x" * 100_000] * 20)
        self.assertEqual((error.code, error.letter), (54, b"Z"))

    def test_refused_early(self) -> None:
        self.assertEqual(self.refusal(self.program("exit 31"), [b"x" * 100_000] * 20).code, 31)

    def test_large(self) -> None:
        """Nobody waits for the other for ever, whatever is larger than a pipe."""
        environ = self.program("head -c 300000 /dev/zero >&6; cat >message; cat <&1 >envelope; exit 0")
        recipients = [b"user%d@example.test" % number for number in range(20_000)]
        submit(self.home, [b"x" * 1_000_000] * 5, b"", recipients, environ)
        self.assertEqual(len(self.read("message")), 5_000_000)
        self.assertEqual(self.read("envelope").count(b"\0"), 20_002)

    def test_broken_off(self) -> None:
        """§6.1: without the last NUL, nothing is queued; nothing of the program is left behind."""

        def message() -> Any:
            yield b"x" * 100_000
            raise ZeroDivisionError

        environ = self.program("cat >message; cat <&1 >envelope; echo >done")
        self.assertRaises(ZeroDivisionError, submit, self.home, message(), b"", [b"c@d"], environ)
        self.assertEqual(self.read("envelope"), b"")
        self.assertEqual(self.read("done"), b"\n")
        self.assertRaises(ChildProcessError, os.waitpid, -1, os.WNOHANG)

    def test_descriptors(self) -> None:
        """All pipes are closed again, whatever happened."""
        before = os.listdir("/proc/self/fd")
        submit(self.home, [b"m"], b"", [b"c@d"], self.program("cat >/dev/null; cat <&1 >/dev/null"))
        self.refusal(self.program("exit 31"))
        self.assertEqual(len(os.listdir("/proc/self/fd")), len(before))

    def test_standard_descriptors_closed(self) -> None:
        """The pipes may get the numbers 0, 1 and 6 themselves."""
        environ = self.program("cat >message; cat <&1 >envelope; echo Zx1 >&6; exit 82")
        code = (
            "import os, sys\n"
            "for fd in (0, 1): os.close(fd)\n"
            "from qtwist.queue.client import QueueRefused, submit\n"
            "try: submit(sys.argv[1], [b'm'], b'', [b'c@d'])\n"
            "except QueueRefused as error: os.write(2, error.text)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, self.home],
            check=False,
            env={**environ, "PYTHONPATH": CHECKOUT},
            stderr=subprocess.PIPE,
            timeout=60,
        )
        self.assertEqual(done.stderr, b"x1\n")
        self.assertEqual((self.read("message"), self.read("envelope")), (b"m", b"F\0Tc@d\0\0"))


class Answering:
    """A daemon that reads what comes, or some of it, and gives one answer."""

    def __init__(self, home: str, answer: bytes, read: int | None = None) -> None:
        os.makedirs(f"{home}/run", exist_ok=True)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(f"{home}/run/queue")
        self.socket.listen()
        self._answer = answer
        self._left = read
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        connection, _ = self.socket.accept()
        with connection:
            data = b""
            while self._left is None or len(data) < self._left:
                block = connection.recv(65536)
                data += block
                if not block or (self._left is None and data.endswith(b",.")):
                    break
            connection.sendall(self._answer)

    def end(self) -> None:
        self.thread.join(30)
        self.socket.close()


class AnswerTests(ClientCase):
    """What the client makes of any daemon: a number, or a refusal."""

    def ask(self, answer: bytes, read: int | None = None, size: int = 1) -> int:
        daemon = Answering(self.home, answer, read)
        try:
            return submit(self.home, [b"x" * 65536] * size, b"a@b", [b"c@d"], {})
        finally:
            daemon.end()
            os.unlink(f"{self.home}/run/queue")

    def test_accepted(self) -> None:
        self.assertEqual(self.ask(b"15:Kok 1234 qp 567,"), 567)

    def test_refused(self) -> None:
        for answer, expected in [
            (b"9:Z53 full.,", (53, b"Z", b"full.")),
            (b"14:D82 own words.,", (82, b"D", b"own words.")),
        ]:
            error = self.assertRaises(QueueRefused, self.ask, answer)
            self.assertEqual((error.code, error.letter, error.text), expected)

    def test_no_answer(self) -> None:
        """A daemon that dies in the middle: 74, a temporary failure. Nothing but a whole answer counts."""
        for answer in (
            b"",
            b"15:Kok 1234 qp 567",
            b"15:Kok 1234 qp 5",
            b"99:Kok 1 qp 5,",
            b"2:Kx,",
            b"0:,",
            b"K,",
            b"4:Znot,",
            b"x" * 99,
        ):
            error = self.assertRaises(QueueRefused, self.ask, answer)
            self.assertEqual((error.code, error.letter), (74, b"Z"), answer)

    def test_answer_before_the_end(self) -> None:
        """Refused while the message is still being sent: what was said is heard all the same."""
        sent = []

        def message() -> Any:
            for number in range(1000):
                sent.append(number)
                yield b"x" * 65536

        daemon = Answering(self.home, b"9:Z53 full.,", 100)
        error = self.refusal({}, message())
        daemon.end()
        self.assertEqual(error.code, 53)
        self.assertLess(len(sent), 1000)

    def test_death_before_the_end(self) -> None:
        error = self.assertRaises(QueueRefused, self.ask, b"", 100, 200)
        self.assertEqual((error.code, error.letter), (74, b"Z"))

    def test_hangs(self) -> None:
        self.patch(client, "PATIENCE", 0.05)
        with socket.socket(socket.AF_UNIX) as deaf:
            os.mkdir(f"{self.home}/run")
            deaf.bind(f"{self.home}/run/queue")
            deaf.listen()
            self.assertEqual(self.refusal({}).code, 52)
            self.assertEqual(self.refusal({}, [b"x" * 65536] * 200).code, 52)

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.sampled_from([*b"KZD0159:, q"]), max_size=20).map(bytes))
    def test_any_answer(self, answer: bytes) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(answer)
            theirs.shutdown(socket.SHUT_WR)
            try:
                number = client._answer(ours)
            except QueueRefused as error:
                self.assertIn(error.letter, (b"Z", b"D"))
            else:
                self.assertTrue(answer.endswith(b"%d," % number) or b"0%d," % number in answer)


class DownTests(SynchronousTestCase):
    """The daemon is down."""

    def setUp(self) -> None:
        self.home = os.fsdecode(folder(self))

    def refusal(self, home: str | None = None) -> tuple[int, bytes, bytes]:
        def ask() -> tuple[int, bytes, bytes]:
            try:
                submit(self.home if home is None else home, [b"m"], b"", [b"c@d"], {})
            except QueueRefused as error:
                return error.code, error.letter, error.text
            return 0, b"K", b""

        return as_user(ask)

    def test_no_home(self) -> None:
        """§6.3."""
        self.assertEqual(self.refusal("/nonexistent")[:2], (61, b"Z"))

    def test_no_queue(self) -> None:
        self.assertEqual(self.refusal()[:2], (62, b"Z"))

    def test_no_right(self) -> None:
        as_user(lambda: create_queue(f"{self.home}/queue"))
        os.chmod(f"{self.home}/queue/todo", 0o500)
        code, letter, text = self.refusal()
        self.assertEqual((code, letter), (56, b"Z"))
        self.assertIn(self.home.encode() + b"/run/queue", text)

    def write(self, make: Callable[[], Any] = lambda: (b"a@b", [b"c@d", b"e@f"])) -> Any:
        def work() -> Any:
            create_queue(f"{self.home}/queue")
            umask = os.umask(0o077)
            try:
                return submit_later(self.home, [b"Subject: x\n", b"\nhello\n"], make, {})
            except QueueRefused as error:
                return error.code
            finally:
                os.umask(umask)

        return as_user(work)

    def find(self, room: str) -> list[str]:
        return [os.path.join(path, name) for path, _, names in os.walk(f"{self.home}/queue/{room}") for name in names]

    def test_written(self) -> None:
        """§6.2: by who may; the files are those of a qmail-queue, with its modes."""
        number = self.write()
        [mess] = self.find("mess")
        [todo] = self.find("todo")
        self.assertEqual(os.path.basename(mess), str(number))
        self.assertEqual(os.stat(mess).st_ino, number)
        self.assertEqual(os.stat(mess).st_mode & 0o777, 0o644)
        with open(mess, "rb") as file:
            text = file.read()
        uid = as_user(os.getuid)
        self.assertRegex(
            text, rb"^Received: \(qmail %d invoked by uid %d\); .*\nSubject: x\n\nhello\n$" % (number, uid)
        )
        with open(todo, "rb") as file:
            self.assertEqual(file.read(), b"u%d\0p%d\0Fa@b\0Tc@d\0Te@f\0" % (uid, number))
        self.assertEqual(self.find("pid"), [])

    def test_broken_envelope(self) -> None:
        def envelope() -> Any:
            raise QueueRefused(91)

        self.assertEqual(self.write(envelope), 91)
        for room in ("mess", "todo", "intd", "pid"):
            self.assertEqual(self.find(room), [])

    def test_address_too_long(self) -> None:
        self.assertEqual(self.write(lambda: (b"a" * 1003, [b"c@d"])), 11)
        self.assertEqual(self.find("mess") + self.find("todo"), [])

    def test_full_disk(self) -> None:
        """ENOSPC: a code that says so, and nothing left behind."""

        def no_space(*_: Any) -> int:
            raise OSError(28, "No space left on device")

        as_user(lambda: create_queue(f"{self.home}/queue"))
        for method in ("write", "fsync", "link"):
            patch = self.patch(RealDisk, method, no_space)
            code, letter, _ = self.refusal()
            self.assertEqual((code, letter), (64 if method == "link" else 53, b"Z"), method)
            for room in ("mess", "todo", "intd", "pid"):
                self.assertEqual(self.find(room), [], method)
            patch.restore()

    def test_trigger(self) -> None:
        """§5.2: a queue manager that watches is woken."""
        as_user(lambda: create_queue(f"{self.home}/queue"))
        fd = os.open(f"{self.home}/queue/lock/trigger", os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, fd)
        self.write()
        self.assertEqual(os.read(fd, 10), b"\0")

    def test_as_root(self) -> None:
        """Root writes as the queue's owner, or qmail's programs could not work with the files."""
        if os.geteuid() != 0:
            return
        as_user(lambda: create_queue(f"{self.home}/queue"))
        code = (
            "import os, sys; from qtwist.queue.client import submit; "
            "os.setgroups([0, 4]); submit(sys.argv[1], [b'm'], b'', [b'c@d']); print(os.getgroups())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, self.home],
            check=True,
            env={"PYTHONPATH": CHECKOUT},
            stdout=subprocess.PIPE,
            timeout=60,
        )
        self.assertEqual(done.stdout, b"[]\n")  # nor do root's groups help whoever has put a link there
        [mess] = self.find("mess")
        [todo] = self.find("todo")
        owner = os.stat(f"{self.home}/queue").st_uid
        self.assertEqual({os.stat(mess).st_uid, os.stat(todo).st_uid}, {owner})
        with open(mess, "rb") as file:
            self.assertIn(b"invoked by uid 0)", file.read())


class RefusalTests(SynchronousTestCase):
    def test_defaults(self) -> None:
        """Letter and text are what the code means, if nothing else is said."""
        error = QueueRefused(53)
        self.assertEqual((error.letter, error.text), report(53))
        self.assertIn("53", str(error))
        self.assertEqual(QueueRefused(82, b"own", b"D").letter, b"D")

    def test_light(self) -> None:
        """Issue 3, item 7: none of this in a command that runs once per mail."""
        heavy = "twisted attrs attr re typing socket signal argparse subprocess enum collections struct"
        code = (
            "import sys; import qtwist.queue.client, qtwist.queue.program\n"
            f"print(*[name for name in '{heavy}'.split() if name in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {CHECKOUT!r}); " + code],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertEqual(re.sub(r"\s", "", done.stdout), "")
