"""Loads: what is sent to a server, and when all of it has arrived."""

from __future__ import annotations

import contextlib
import os
import subprocess

from bench.machine import ACCOUNTS, PATH, SINK_PORT, account, greets, run, wait
from bench.servers import Peer

FAR = "someone@far.test"
TLS_PORT = SINK_PORT + 4


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
    """smtp-sink, which counts what it gets."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["/usr/sbin/smtp-sink", "-c", f"127.0.0.1:{SINK_PORT}", "1024"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            user=account(ACCOUNTS["qmailr"]).pw_uid,
            cwd="/",
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._text = b""
        wait("smtp-sink", lambda: greets(SINK_PORT))

    def count(self) -> int:
        """Messages so far."""
        assert self._process.stdout is not None
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._process.stdout.fileno(), 65536):
                self._text = (self._text + data)[-200:]
        numbers = [word for word in self._text.replace(b"\r", b" ").split() if word.startswith(b"mesg=")]
        return int(numbers[-1][5:]) if numbers else 0

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


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
