"""Loads: what is sent to a server, and when all of it has arrived."""

from __future__ import annotations

import os
import subprocess
import tempfile

from bench.machine import ACCOUNTS, PATH, SINK_PORT, account, greets, run, wait
from bench.servers import Peer

FAR = "someone@far.test"
TLS_PORT = SINK_PORT + 4
#: A port where connections are refused.
NOBODY = 9


def source(port: int, recipient: str, sessions: int, messages: int, octets: int, *more: str) -> None:
    run(
        "smtp-source", "-s", str(sessions), "-m", str(messages), "-l", str(octets), *more,
        "-f", "sender@client.test", "-t", recipient, f"127.0.0.1:{port}", env={"PATH": PATH},
    )  # fmt: skip


def local_job(peer: Peer, sessions: int, messages: int, octets: int, once: bool) -> None:
    """SMTP in, Maildir; until the last one is in new/. One message per connection (`once`), or many."""
    source(peer.port, peer.recipient(), sessions, messages, octets, *(["-d"] if not once else []))
    new = f"{peer.maildir()}/new"
    wait(f"{messages} messages from {peer.name}", lambda: len(os.listdir(new)) >= messages)


class Sink:
    """smtp-sink, which counts what it gets: into a file, as it would wait for a pipe that nobody reads for a while."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed in stop
        self._process = subprocess.Popen(
            ["/usr/sbin/smtp-sink", "-c", f"127.0.0.1:{SINK_PORT}", "1024"],
            stdout=self._file,
            stderr=subprocess.DEVNULL,
            user=account(ACCOUNTS["qmailr"]).pw_uid,
            cwd="/",
        )
        wait("smtp-sink", lambda: greets(SINK_PORT))

    def count(self) -> int:
        """Messages so far."""
        text = os.pread(self._file.fileno(), 200, max(0, os.fstat(self._file.fileno()).st_size - 200))
        numbers = [word for word in text.replace(b"\r", b" ").split() if word.startswith(b"mesg=")]
        return int(numbers[-1][5:]) if numbers else 0

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._file.close()


def relay_job(peer: Peer, sink: Sink, sessions: int, messages: int, octets: int, once: bool = False) -> None:
    """SMTP in, SMTP out; until the sink has the last one."""
    before = sink.count()
    source(peer.port, FAR, sessions, messages, octets, *(["-d"] if not once else []))
    wait(f"{messages} messages of {peer.name} at the sink", lambda: sink.count() - before >= messages)


def queued_job(peer: Peer, recipient: str, sessions: int, messages: int, octets: int, *more: str) -> None:
    """SMTP in; until the server's log says that the last message has left its queue."""
    before = peer.finished()
    source(peer.port, recipient, sessions, messages, octets, *more)
    wait(f"{messages} messages out of {peer.name}", lambda: peer.finished() - before >= messages)
