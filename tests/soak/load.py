"""Those who talk to the daemon while it is killed: clients that remember every answer, and a host that takes mail."""

from __future__ import annotations

import random
import socket
import socketserver
import threading
from collections import Counter

import attrs

from tests.soak.ledger import ACCEPTED, REFUSED, UNKNOWN, Ledger, tag_of

_PATIENCE = 30.0


class _Conversation:
    """The client's side of one SMTP connection; OSError when it breaks."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), _PATIENCE)
        self._replies = self._socket.makefile("rb")

    def close(self) -> None:
        self._replies.close()
        self._socket.close()

    def reply(self) -> int:
        line = self._replies.readline(2000)
        while line[3:4] == b"-":
            line = self._replies.readline(2000)
        if not line.endswith(b"\n"):
            raise ConnectionError("the connection ended")
        return int(line[:3])

    def say(self, data: bytes) -> None:
        self._socket.sendall(data)


@attrs.define
class Load:
    """SMTP sessions side by side, until :meth:`stop`. `seed` gives messages and recipients, not their timing."""

    port: int
    user: str
    host: str
    seed: int
    sessions: int = 6
    ledger: Ledger = attrs.Factory(Ledger)
    _stop: threading.Event = attrs.Factory(threading.Event)
    _pause: threading.Event = attrs.Factory(threading.Event)
    _lock: threading.Lock = attrs.Factory(threading.Lock)
    _threads: list[threading.Thread] = attrs.Factory(list)
    _made: int = 0

    def start(self) -> None:
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(self.sessions)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * _PATIENCE)

    def _run(self, session: int) -> None:
        chance = random.Random(f"{self.seed}.{session}")
        while not self._stop.is_set():
            try:
                conversation = _Conversation(self.port)
            except OSError:
                self._pause.wait(0.05)
                continue
            try:
                self._talk(conversation, chance)
            except (OSError, ValueError):
                self._pause.wait(0.02)
            finally:
                conversation.close()

    def _talk(self, conversation: _Conversation, chance: random.Random) -> None:
        if conversation.reply() != 220:
            return
        conversation.say(b"EHLO soak.test\r\n")
        conversation.reply()
        for _ in range(chance.randint(1, 12)):
            if self._stop.is_set():
                return
            self._send(conversation, chance)
            self._pause.wait(chance.choice((0.0, 0.01, 0.05)))

    def _send(self, conversation: _Conversation, chance: random.Random) -> None:
        ledger = self.ledger
        kinds = tuple(chance.sample(("maildir", "program", "forward", "remote", "nobody"), chance.randint(1, 3)))
        with self._lock:
            self._made += 1
            tag = f"t{self._made:06d}"
            ledger.wanted[tag] = kinds
            ledger.outcomes[tag] = REFUSED
        addresses = [
            f"out-{kind}-{tag}@far.test" if kind == "remote" else f"{self.user}-{kind}-{tag}@{self.host}"
            for kind in kinds
        ]
        lines = [f"MAIL FROM:<{self.user}-bounces-{tag}@{self.host}>", *(f"RCPT TO:<{one}>" for one in addresses)]
        lines.append("DATA")
        conversation.say("".join(f"{line}\r\n" for line in lines).encode())
        codes = [conversation.reply() for _ in lines]
        if codes[-1] != 354 or any(code != 250 for code in codes[:-1]):
            raise ConnectionError(f"not now: {codes}")
        body = "x" * chance.choice((10, 1000, 60000, 300000, 1500000))
        lines = [f"X-Tag: {tag}", "", *(body[at : at + 70] for at in range(0, len(body), 70)), "."]
        ledger.outcomes[tag] = UNKNOWN
        conversation.say("".join(f"{line}\r\n" for line in lines).encode())
        code = conversation.reply()
        ledger.outcomes[tag] = ACCEPTED if code == 250 else REFUSED


class Sink(socketserver.ThreadingTCPServer):
    """A host on loopback that takes mail, and puts off its share `later` of it. `taken` counts the tags that it
    accepted."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 200  # a listener whose queue overflows forgets connections that clients believe in

    def __init__(self, seed: int, later: float) -> None:
        super().__init__(("127.0.0.1", 0), _SinkHandler)
        self.taken: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.chance = random.Random(seed)
        self.later = later
        self.port: int = self.server_address[1]
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed: nothing to tell."""

    def end(self) -> None:
        self.shutdown()
        self.server_close()


class _SinkHandler(socketserver.StreamRequestHandler):
    server: Sink

    def handle(self) -> None:
        self._say(b"220 sink.test ESMTP")
        while line := self.rfile.readline(2000):
            verb = line[:4].upper()
            if verb == b"DATA":
                self._say(b"354 go ahead")
                self._message()
            elif verb == b"QUIT":
                self._say(b"221 bye")
                return
            else:
                self._say(b"250 ok")

    def _message(self) -> None:
        tag = None
        while (line := self.rfile.readline(2000)) != b".\r\n":
            if not line:
                return
            if line.startswith(b"X-Tag:"):
                tag = tag_of(line.decode())
        with self.server.lock:
            if self.server.chance.random() < self.server.later:
                self._say(b"451 later")
                return
            if tag is not None:
                self.server.taken[tag] += 1
        self._say(b"250 taken")

    def _say(self, reply: bytes) -> None:
        self.wfile.write(reply + b"\r\n")
