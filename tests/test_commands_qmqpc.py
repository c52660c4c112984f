"""qmail-qmqpc, and what sends mail on a null client: spec/qmail.md §17.3, §6.3, §7."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from qtwist import control_checks
from qtwist.queue import qmqp
from qtwist.queue.client import QueueRefused, report, submit
from qtwist.queue.qmqp import parse_server, submit_to_servers
from qtwist.wire.netstring import encode
from qtwist.wire.qmqp import QMQPServer
from tests.command_tools import CHECKOUT, PATIENCE, PYTHONPATH, CommandCase, debian
from tests.e2e.harness import accepts, wait_until

REQUEST = b"29:8:message\n,3:a@b,3:c@d,3:e@f,,"
ENVELOPE = b"Fa@b\0Tc@d\0Te@f\0\0"

Script = Callable[[socket.socket], None]


class Server:
    """A scripted server on loopback, for one connection; `request` is what it has read."""

    def __init__(self, case: CommandCase, script: Script, host: str = "127.0.0.1") -> None:
        self.request = b""
        self.asked = 0
        self._script = script
        self._listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port: int = self._listener.getsockname()[1]
        self.line = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        case.addCleanup(self.close)

    def _serve(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # close() ended it
            return
        with connection:
            connection.settimeout(PATIENCE)
            self.asked += 1
            self._script(connection)

    def close(self) -> None:
        """Wait for the end of the script; a server that nobody has asked ends here."""
        if not self._listener._closed:  # type: ignore[attr-defined]
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._listener.close()

    def read(self, connection: socket.socket) -> None:
        """Read one request to its end."""
        engine = QMQPServer(may_chunk=False)
        while not engine.ended and (data := connection.recv(65536)):
            self.request += data
            engine.receive(data)


def lost_port() -> int:
    """A port of loopback where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class QMQPCase(CommandCase):
    def serve(self, answer: bytes, host: str = "127.0.0.1") -> Server:
        """A server that reads the request, says this, and closes."""

        def script(connection: socket.socket) -> None:
            server.read(connection)
            connection.sendall(answer)

        server = Server(self, script, host)
        return server

    def servers(self, *lines: str) -> None:
        self.write("control/qmqpservers", "".join(f"{line}\n" for line in lines).encode())

    def run_qmqpc(
        self, message: bytes = b"message\n", envelope: bytes = ENVELOPE, module: str = "qmqpc", **environ: str
    ) -> int:
        """The exit code of qmail-qmqpc, which prints nothing."""
        code = f"from qtwist.commands.{module} import main; sys.exit(main())"
        with tempfile.TemporaryFile() as file:
            file.write(envelope)
            file.flush()
            file.seek(0)
            done = subprocess.run(
                [sys.executable, "-c", f"import os, sys; os.dup2({file.fileno()}, 1); {code}"],
                check=False,
                cwd=self.home,
                env={"PYTHONPATH": PYTHONPATH, "PYTHONDONTWRITEBYTECODE": "1", "QTWISTHOME": self.home, **environ},
                input=message,
                pass_fds=[file.fileno()],
                capture_output=True,
                timeout=PATIENCE,
            )
        self.assertEqual((done.stdout, done.stderr), (b"", b""))
        return done.returncode

    def submit(self, message: Iterable[bytes] = (b"message\n",)) -> int:
        return submit_to_servers(self.home, message, lambda: (b"a@b", [b"c@d", b"e@f"]))

    def refusal(self, message: Iterable[bytes] = (b"message\n",)) -> QueueRefused:
        error: QueueRefused = self.assertRaises(QueueRefused, self.submit, message)
        return error

    def refused(self, message: Iterable[bytes] = (b"message\n",)) -> tuple[int, bytes]:
        error = self.refusal(message)
        return error.code, error.letter


class CommandTests(QMQPCase):
    """The command: exit codes as §17.3 has them, and not a word."""

    def test_taken(self) -> None:
        server = self.serve(encode(b"Kok 1795000000 qp 4711"))
        self.servers("# ours", "", server.line)
        self.assertEqual(self.run_qmqpc(), 0)
        server.close()
        self.assertEqual(server.request, REQUEST)

    def test_codes(self) -> None:
        for answer, code in ((b"K", 0), (b"Znot now (#4.3.0)", 71), (b"Dnever (#5.7.1)", 31)):
            self.servers(self.serve(encode(answer)).line)
            self.assertEqual(self.run_qmqpc(), code, answer)

    def test_broken_off(self) -> None:
        self.servers(self.serve(b"").line)
        self.assertEqual(self.run_qmqpc(), 74)

    def test_nobody_there(self) -> None:
        self.servers(f"127.0.0.1:{lost_port()}")
        self.assertEqual(self.run_qmqpc(), 73)

    def test_no_servers(self) -> None:
        self.assertEqual(self.run_qmqpc(), 55)
        self.servers("mx.test", "# nothing else")
        self.assertEqual(self.run_qmqpc(), 55)
        self.assertEqual(self.run_qmqpc(QTWISTHOME="/nonexistent"), 61)

    def test_envelope(self) -> None:
        """§6.3: nothing is sent for an envelope that is wrong or incomplete."""
        for envelope, code in (
            (b"X", 91),
            (b"Fa@b\0Xc@d\0\0", 91),
            (b"Fa@b\0Tc@d\0", 54),
            (b"", 54),
            (b"F" + b"a" * 1003 + b"\0\0", 11),
        ):
            server = self.serve(encode(b"K"))
            self.servers(server.line)
            self.assertEqual(self.run_qmqpc(envelope=envelope), code, envelope[:20])
            server.close()
            self.assertEqual(server.asked, 0)

    def test_any_message(self) -> None:
        """NULs, no last line end, nothing at all, and no recipients."""
        for message, envelope, wanted in (
            (b"\0\r\n", ENVELOPE, encode(encode(b"\0\r\n") + b"3:a@b,3:c@d,3:e@f,")),
            (b"", b"F\0\0", b"6:0:,0:,,"),
        ):
            server = self.serve(encode(b"K"))
            self.servers(server.line)
            self.assertEqual(self.run_qmqpc(message, envelope), 0)
            server.close()
            self.assertEqual(server.request, wanted)

    def test_sink(self) -> None:
        """Postfix's qmqp-sink takes small and large."""
        port = lost_port()
        sink = subprocess.Popen(
            [debian("qmqp-sink", "postfix"), "-4", "-c", f"inet:127.0.0.1:{port}", "10"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.addCleanup(sink.wait, PATIENCE)
        self.addCleanup(sink.kill)
        self.servers(f"127.0.0.1:{port}")
        wait_until("qmqp-sink to listen", lambda: accepts(port) or sink.poll() is not None)
        self.assertEqual(self.run_qmqpc(), 0)
        self.assertEqual(self.run_qmqpc(b"x" * 79 + b"\n" * 100_000), 0)

    def test_help(self) -> None:
        """It names every code."""
        text = self.check("qmqpc", "--help").decode().partition("EXIT CODES")[2].partition("The codes")[0]
        said = {int(code) for code in re.findall(r"(?:^|  )(\d+) ", text, re.M)}
        self.assertEqual(said, {0, 11, 31, *range(51, 57), 61, *range(71, 75), 91})

    def test_light(self) -> None:
        """None of this in a command that runs once per mail."""
        heavy = "twisted attrs attr re typing socket signal argparse subprocess tempfile enum collections ipaddress"
        code = (
            "import sys; import qtwist.commands.qmqpc\n"
            f"print(*[name for name in '{heavy}'.split() if name in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {CHECKOUT!r}); " + code],
            check=True,
            capture_output=True,
            timeout=PATIENCE,
        )
        self.assertEqual(done.stdout, b"\n")


class AnswerTests(QMQPCase):
    """What a caller within the process is told: the server's own text."""

    def test_number(self) -> None:
        self.servers(self.serve(encode(b"Kok 1795000000 qp 4711")).line)
        self.assertEqual(self.submit(), 4711)
        self.servers(self.serve(encode(b"Ktaken")).line)
        self.assertEqual(self.submit(), 0)

    def test_text(self) -> None:
        for answer, code, letter in ((b"Znot now (#4.3.0)", 71, b"Z"), (b"Dno, sir (#5.7.1)", 31, b"D")):
            self.servers(self.serve(encode(answer)).line)
            error = self.refusal()
            self.assertEqual((error.code, error.letter, error.text), (code, letter, answer[1:]))
        self.servers(self.serve(b"1:D,").line)
        self.assertEqual(self.refusal().text, report(31)[1])

    def test_half(self) -> None:
        """§17.3: the letter decides."""
        self.servers(self.serve(b"22:Kok 17950").line)
        self.assertEqual(self.submit(), 0)
        self.servers(self.serve(b"22:Zno").line)
        self.assertEqual(self.refused(), (71, b"Z"))
        self.servers(self.serve(b"22:").line)
        self.assertEqual(self.refused(), (74, b"Z"))

    def test_garbage(self) -> None:
        self.servers(self.serve(b"220 mx.test ESMTP Kolab\r\n").line)
        self.assertEqual(self.refused(), (74, b"Z"))

    def test_slow(self) -> None:
        """A server that says nothing, and one that never comes to the end."""
        self.patch(qmqp, "PATIENCE", 0.2)
        for words, wanted in ((b"", 74), (b"99:Dno", 31)):
            over = threading.Event()
            self.addCleanup(over.set)

            def script(connection: socket.socket, words: bytes = words, over: threading.Event = over) -> None:
                connection.sendall(words)
                over.wait(PATIENCE)

            self.servers(Server(self, script).line)
            self.assertEqual(self.refused()[0], wanted)
            over.set()

    def test_reads_no_more(self) -> None:
        """A server that takes a part of the message and stops, without a word and with one."""
        self.patch(qmqp, "PATIENCE", 0.2)
        for words, wanted in ((b"", 74), (encode(b"Dfull (#5.3.4)"), 31), (encode(b"Kok"), 74)):
            over = threading.Event()
            self.addCleanup(over.set)

            def script(connection: socket.socket, words: bytes = words, over: threading.Event = over) -> None:
                connection.recv(10)
                connection.sendall(words)
                over.wait(PATIENCE)

            self.servers(Server(self, script).line)
            self.assertEqual(self.refused([b"x" * 1_000_000] * 20)[0], wanted, words)
            over.set()

    def test_early_close(self) -> None:
        """Refused before the request was read: as our own server does with strangers (doc/qmqp.md)."""

        def script(connection: socket.socket) -> None:
            connection.sendall(encode(b"Dnot you (#5.7.1)"))
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass

        self.servers(Server(self, script).line)
        self.assertEqual(self.refused([b"x" * 1_000_000] * 3), (31, b"D"))
        self.servers(Server(self, lambda connection: None).line)
        self.assertEqual(self.refused([b"x" * 1_000_000] * 20), (74, b"Z"))


class OrderTests(QMQPCase):
    """Which server is asked."""

    def test_first_down(self) -> None:
        first, second, third = f"127.0.0.1:{lost_port()}", self.serve(b"10:Kok 1 qp 2,"), self.serve(b"1:K,")
        self.servers("not a server", first, second.line, third.line)
        self.assertEqual(self.submit(), 2)
        for server in (second, third):
            server.close()
        self.assertEqual((second.request, third.asked), (REQUEST, 0))

    def test_reached_decides(self) -> None:
        """§17.3: whoever was reached decides, even by falling silent: it may have the message."""
        for answer, code in ((b"1:Z,", 71), (b"1:D,", 31), (b"", 74)):
            first, second = self.serve(answer), self.serve(b"1:K,")
            self.servers(first.line, second.line)
            self.assertEqual(self.refused()[0], code)
            second.close()
            self.assertEqual(second.asked, 0)

    def test_none_reached(self) -> None:
        """The last one's trouble is told: 72 when it was too slow, else 73."""
        refused, late = f"127.0.0.1:{lost_port()}", "127.0.0.2:6280"
        connect = socket.socket.connect
        timeouts = set()

        class Connection(socket.socket):
            def connect(self, address: Any) -> None:
                timeouts.add(self.gettimeout())
                if address == ("127.0.0.2", 6280):
                    raise TimeoutError("timed out")
                connect(self, address)

        class Sockets:
            AF_INET, AF_INET6, SOCK_STREAM = socket.AF_INET, socket.AF_INET6, socket.SOCK_STREAM
            inet_pton = staticmethod(socket.inet_pton)
            socket = Connection

        self.patch(qmqp, "_socket", Sockets)
        for lines, code in (((refused,), 73), ((refused, late), 72), ((late, refused), 73)):
            self.servers(*lines)
            error = self.refusal()
            self.assertEqual((error.code, error.letter), (code, b"Z"))
            self.assertIn(lines[-1].split(":")[0].encode(), error.text)
        self.assertEqual(timeouts, {10})  # §1.5

    def test_backlog(self) -> None:
        """A server that does not accept: the connection takes too long."""
        self.patch(qmqp, "CONNECT_PATIENCE", 0.2)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            port = listener.getsockname()[1]
            waiting = [socket.socket() for _ in range(3)]
            for client in waiting:
                self.addCleanup(client.close)
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", port))
            self.servers(f"127.0.0.1:{port}")
            self.assertEqual(self.refused(), (72, b"Z"))

    def test_no_socket(self) -> None:
        """§17.3: without a socket 56 at once; but a host without IPv6 asks the next server."""
        second = self.serve(b"1:K,")
        trouble = errno.EMFILE

        class Sockets:
            AF_INET, AF_INET6, SOCK_STREAM = socket.AF_INET, socket.AF_INET6, socket.SOCK_STREAM
            inet_pton = staticmethod(socket.inet_pton)

            @staticmethod
            def socket(family: int, kind: int) -> socket.socket:
                if family == socket.AF_INET6:
                    raise OSError(trouble, os.strerror(trouble))
                return socket.socket(family, kind)

        self.patch(qmqp, "_socket", Sockets)
        self.servers("[::1]:6280", second.line)
        self.assertEqual(self.refused(), (56, b"Z"))
        trouble = errno.EAFNOSUPPORT
        self.assertEqual(self.submit(), 0)
        self.servers("[::1]:6280")
        self.assertEqual(self.refused(), (73, b"Z"))

    def test_six(self) -> None:
        try:
            server = self.serve(encode(b"Kok 1 qp 6"), "::1")
        except OSError as error:
            self.skipTest(f"no IPv6 here: {error}")
        self.servers(server.line)
        self.assertEqual(self.submit(), 6)


class LineTests(QMQPCase):
    """The lines of control/qmqpservers, against their check at the daemon's start."""

    def test_lines(self) -> None:
        for line, wanted in {
            b"192.0.2.1": ("192.0.2.1", 628),
            b"192.0.2.1:6280": ("192.0.2.1", 6280),
            b"[192.0.2.1]:6280": ("192.0.2.1", 6280),
            b"2001:db8::1": ("2001:db8::1", 628),
            b"[2001:db8::1]": ("2001:db8::1", 628),
            b"[2001:db8::1]:6280": ("2001:db8::1", 6280),
            b"[fe80::1%eth0]:628": ("fe80::1%eth0", 628),
            b"mx.test": None,
            b"192.0.2.1:0": None,
            b"192.0.2.1:65536": None,
            b"192.0.2.1:": None,
            b"192.0.2.01": None,
            b"192.0.2": None,
            b"192.0.2.1%eth0": None,
            b"192.0.2.1 # ours": None,
            b"[2001:db8::1": None,
            b"[2001:db8::1]628": None,
            b"[]": None,
            b"fe80::1%": None,
            b"fe80::1%a%b": None,
            b"": None,
            b"1.2.3.4\0": None,
            b"\xff": None,
        }.items():
            self.assertEqual(parse_server(line), wanted, line)
            self.assertEqual(control_checks.server(line) is None, wanted is not None, line)

    @given(st.text("0123456789abcdf:.[]%", max_size=24))
    def test_any(self, text: str) -> None:
        line = text.encode()
        self.assertEqual(control_checks.server(line) is None, parse_server(line) is not None)

    def test_unreadable(self) -> None:
        os.makedirs(self.path("control/qmqpservers"))
        error = self.refusal()
        self.assertEqual((error.code, error.letter), (55, b"Z"))
        self.assertIn(b"a directory", error.text)


class SpoolTests(QMQPCase):
    """Long messages wait in a file without a name."""

    def test_long(self) -> None:
        message = [b"line %d of a longer message\n" % number * 100 for number in range(2000)]
        self.assertGreater(sum(map(len, message)), 2 * qmqp.MEMORY)
        server = self.serve(encode(b"Kok 1 qp 3"))
        self.servers(server.line)
        folder = self.path("tmp")
        os.mkdir(folder)
        self.patch(tempfile, "tempdir", folder)
        seen = []

        def blocks() -> Iterator[bytes]:
            for number, block in enumerate(message):
                if number == len(message) - 1:
                    seen.append(os.listdir(folder))
                    names = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _open(fd)]
                    seen.append([name for name in names if name.startswith(folder)])
                yield block

        self.assertEqual(self.submit(blocks()), 3)
        server.close()
        self.assertEqual(server.request, encode(encode(b"".join(message)) + b"3:a@b,3:c@d,3:e@f,"))
        self.assertEqual(seen[0], [])
        self.assertEqual(len(seen[1]), 1)

    def test_border(self) -> None:
        for size in (qmqp.MEMORY - 1, qmqp.MEMORY, qmqp.MEMORY + 1):
            server = self.serve(encode(b"K"))
            self.servers(server.line)
            self.submit([b"x" * (size - 5), b"12345"])
            server.close()
            self.assertEqual(server.request, encode(encode(b"x" * (size - 5) + b"12345") + b"3:a@b,3:c@d,3:e@f,"))

    def test_full_disk(self) -> None:
        def no_space(**_options: Any) -> Any:
            raise OSError(errno.ENOSPC, "No space left on device")

        self.patch(tempfile, "TemporaryFile", no_space)
        server = self.serve(encode(b"K"))
        self.servers(server.line)
        self.assertEqual(self.refused([b"x" * (qmqp.MEMORY + 1)]), (53, b"Z"))
        server.close()
        self.assertEqual(server.asked, 0)

    def test_broken_off(self) -> None:
        """What the message's source raises is passed on, and nobody is asked."""

        def blocks() -> Iterator[bytes]:
            yield b"x" * (qmqp.MEMORY + 1)
            raise OSError(errno.EIO, "broken")

        server = self.serve(encode(b"K"))
        self.servers(server.line)
        self.assertEqual(self.assertRaises(OSError, self.submit, blocks()).errno, errno.EIO)
        server.close()
        self.assertEqual(server.asked, 0)


class NullClientTests(QMQPCase):
    """A home with control/qmqpservers and without a queue (doc/qmqp.md): all that sends mail uses the servers."""

    def setUp(self) -> None:
        super().setUp()
        self.server = self.serve(encode(b"Kok 1795000000 qp 4711"))
        self.servers(self.server.line)

    def request(self) -> bytes:
        self.server.close()
        return self.server.request

    def test_inject(self) -> None:
        self.write("control/me", b"null.test\n")
        self.check("inject", "-fjoe", "bob@mx.test", stdin=b"Subject: x\n\nhello\n", QMAILUSER="joe")
        request = self.request()
        self.assertRegex(request, rb"(?s)\A\d+:\d+:.*Subject: x\n\nhello\n,13:joe@null\.test,11:bob@mx\.test,,\Z")
        self.assertNotIn(b"Received:", request)

    def test_sendmail(self) -> None:
        self.write("control/me", b"null.test\n")
        self.check("sendmail", "-f", "joe@null.test", "bob@mx.test", stdin=b"Subject: x\n\nhello\n")
        self.assertTrue(self.request().endswith(b"\n\nhello\n,13:joe@null.test,11:bob@mx.test,,"))

    def test_forward(self) -> None:
        self.check("forward", "bob@mx.test", stdin=b"hello\n", NEWSENDER="a@b", DTLINE="", error="qp 4711")
        self.assertTrue(self.request().endswith(b"hello\n,3:a@b,11:bob@mx.test,,"))

    def test_queue(self) -> None:
        self.assertEqual(self.run_qmqpc(module="queue"), 0)
        self.assertEqual(self.request(), REQUEST)

    def test_refused(self) -> None:
        """The server's words reach the user, and the exit code is that of the letter."""
        for answer, code in ((b"Dno, sir (#5.7.1)", 100), (b"Znot now (#4.3.0)", 111)):
            self.servers(self.serve(encode(answer)).line)
            self.check("inject", "bob@mx.test", stdin=b"\n", code=code, error=answer[1:].decode())

    def test_mailqueue_first(self) -> None:
        path = self.write("program", b"#!/bin/sh\ncat >/dev/null; cat <&1 >/dev/null\n")
        os.chmod(path, 0o755)
        submit(self.home, [b"m"], b"a@b", [b"c@d"], {"QMAILQUEUE": path, "PATH": os.defpath})
        self.assertEqual(self.request(), b"")

    def test_queue_is_a_queue(self) -> None:
        """One that cannot be used now, too: mail does not take another way because a disk is not mounted."""
        for make in (os.mkdir, lambda path: os.symlink("/nonexistent", path)):
            make(self.path("queue"))
            error = self.assertRaises(QueueRefused, submit, self.home, [b"m"], b"a@b", [b"c@d"], {})
            self.assertIn(error.code, (56, 62))
            (os.unlink if os.path.islink(self.path("queue")) else os.rmdir)(self.path("queue"))
        self.assertEqual(self.request(), b"")

    def test_bad_address(self) -> None:
        error = self.assertRaises(QueueRefused, submit, self.home, [b"m"], b"a\0b", [b"c@d"], {})
        self.assertEqual((error.code, error.letter), (91, b"D"))
        self.assertEqual(self.request(), b"")


def _open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")
