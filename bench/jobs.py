"""The jobs of `make bench`: each is a table, with a row for each variant and server."""

from __future__ import annotations

import contextlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from bench.latency import latencies
from bench.loads import FAR, NOBODY, TLS_PORT, Sink, local_job, queued_job, relay_job, source
from bench.machine import CHECKOUT, DISK, MAIN, PATH, SINK_PORT, Meter, empty, greets, memory, run, wait
from bench.servers import Notqmail, Peer, Postfix, Qtwist

MAIL_SERVERS = ("qtwist", "journaled", "notqmail", "postfix")
Figures = dict[str, float]
WARM = 50


@dataclass(frozen=True)
class Bench:
    """What a run is about: its disk, its size (`scale` is 1 for a whole one), the sink."""

    device: str
    scale: float
    octets: int
    messages: int
    sink: Sink

    def count(self, number: int, least: int = 1) -> int:
        return max(least, int(number * self.scale))


@dataclass(frozen=True)
class Job:
    """A table. The first of `columns` is what servers are compared by: `more` of it is better, or less. `run` carries
    out a variant with a server that runs, and gives its figures."""

    name: str
    title: str
    columns: tuple[str, ...]
    variants: tuple[int, ...]
    run: Callable[[Bench, Peer, int], Figures]
    unit: str = "sessions"
    more: bool = True
    servers: tuple[str, ...] = MAIL_SERVERS
    port: int = SINK_PORT  # where mail for other hosts goes
    around: Callable[[], contextlib.AbstractContextManager[None]] = field(default=contextlib.nullcontext)
    fills: bool = False  # the queue is not empty afterwards
    growth: tuple[int, ...] = ()  # variants for a curve of what the cost does


def meter(bench: Bench, peer: Peer) -> Meter:
    return Meter(bench.device, peer.group)


def messages(bench: Bench, sessions: int) -> int:
    return bench.messages if sessions > 1 else bench.messages // 4


def warm_up(bench: Bench, peer: Peer, relayed: bool = False) -> None:
    """What a server loads or starts at its first messages is there, and counts for none that is measured."""
    if relayed:
        queued_job(peer, FAR, 10, WARM, bench.octets)  # none may be on its way out still
    else:
        local_job(peer, 10, WARM, bench.octets, once=False)
        empty(peer.maildir())


def local(bench: Bench, peer: Peer, sessions: int, once: bool) -> Figures:
    number = messages(bench, sessions)
    warm_up(bench, peer)
    return meter(bench, peer).measure(number, lambda: local_job(peer, sessions, number, bench.octets, once))


def relay(bench: Bench, peer: Peer, sessions: int, once: bool) -> Figures:
    number = messages(bench, sessions)
    warm_up(bench, peer, relayed=True)
    return meter(bench, peer).measure(number, lambda: relay_job(peer, bench.sink, sessions, number, bench.octets, once))


def recipients(bench: Bench, peer: Peer, number: int) -> Figures:
    """One message, or some in a row where they have few; what is counted is recipients."""
    some = max(1, 100 // number)
    warm_up(bench, peer, relayed=True)
    found = meter(bench, peer).measure(
        some * number, lambda: queued_job(peer, FAR, 1, some, bench.octets, "-r", str(number))
    )
    return {"recipients/s": found.pop("msg/s"), **found}


def large(bench: Bench, peer: Peer, kibibytes: int) -> Figures:
    number = min(bench.count(400 << 10) // kibibytes, bench.messages) or 1
    octets = kibibytes << 10
    warm_up(bench, peer)
    found = meter(bench, peer).measure(number, lambda: local_job(peer, 4, number, octets, once=False))
    return {"MB/s": found.pop("msg/s") * octets / 1e6, **found}


def idle(bench: Bench, peer: Peer, number: int) -> Figures:
    """Connections that have been greeted and say nothing more."""
    number = bench.count(number)
    before = memory(peer.group)
    connections = []
    try:
        for _ in range(number):
            connections.append(socket.create_connection(("127.0.0.1", peer.port), 60))
            if connections[-1].recv(3) != b"220":
                raise SystemExit(f"bench: {peer.name} takes {len(connections) - 1} connections only")
        total = memory(peer.group)
    finally:
        for connection in connections:
            connection.close()
    return {"KiB each": (total - before) * 1024 / number, "PSS MiB": total}


def injection(bench: Bench, peer: Peer, number: int) -> Figures:
    """Nothing gets out: what the last tenth takes beside the first, and a start with all of it."""
    lot = bench.count(number // 10)
    rates = []
    for _ in range(10):
        began = time.monotonic()
        source(peer.port, FAR, 10, lot, bench.octets)
        rates.append(lot / (time.monotonic() - began))
    peer.stop()
    began = time.monotonic()
    peer.start()
    return {
        "last msg/s": rates[-1],
        "first msg/s": rates[0],
        "start s": time.monotonic() - began,
        "PSS MiB": memory(peer.group),
    }


def tls_relay(bench: Bench, peer: Peer, sessions: int) -> Figures:
    number = messages(bench, sessions)
    return meter(bench, peer).measure(number, lambda: queued_job(peer, FAR, sessions, number, bench.octets, "-d"))


@contextlib.contextmanager
def tls_sink() -> Iterator[None]:
    """A host that offers STARTTLS, with a certificate of its own making."""
    certificate, key = f"{DISK}/sink.pem", f"{DISK}/sink.key"
    run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-days", "2", "-subj", "/CN=sink.test", "-keyout", key, "-out", certificate),
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.tls_sink", str(TLS_PORT), certificate, key], cwd=CHECKOUT, env={"PATH": PATH}
    )
    try:
        wait("a sink with TLS", lambda: greets(TLS_PORT))
        yield
    finally:
        process.kill()
        process.wait()


def latency(bench: Bench, peer: Peer, sessions: int) -> Figures:
    """Under half of the load that the server just carried with as many sessions."""
    number = messages(bench, sessions)
    full = meter(bench, peer).measure(number, lambda: local_job(peer, sessions, number, bench.octets, once=False))
    empty(peer.maildir())
    rate = full["msg/s"] / 2
    found = sorted(latencies(peer, sessions, rate, number, bench.octets))
    return {"p50 ms": statistics.median(found), "p99 ms": found[len(found) * 99 // 100], "msg/s offered": rate}


COMMANDS = ("qmail-inject", "sendmail")
TEXT = b"To: someone@far.test\nSubject: x\n\nhello\n"


def commands(bench: Bench, peer: Peer, runs: int) -> Figures:
    """A mail from a command, again and again; beside it, an interpreter that does nothing."""
    runs = bench.count(runs, 10)
    jobs: dict[str, list[str]] = {}
    environ = {"PATH": PATH, "LANG": "C"}
    if isinstance(peer, Qtwist):
        environ |= {"QTWISTHOME": peer.home}
        jobs["pass"] = [sys.executable, "-c", "pass"]
        folder = f"{peer.home}/bin"
        run(sys.executable, "-c", MAIN.format("qtwist"), "install-links", folder, *COMMANDS, env={"PATH": PATH})
        jobs |= {name: [f"{folder}/{name}", FAR] for name in COMMANDS}
    elif isinstance(peer, Notqmail):
        jobs |= {name: [f"{peer.installed}/bin/{name}", FAR] for name in COMMANDS}
    elif isinstance(peer, Postfix):
        jobs["sendmail"] = ["/usr/sbin/sendmail", "-C", f"{peer.home}/etc", FAR]
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(runs):
        for name, command in jobs.items():
            began = time.perf_counter()
            subprocess.run(command, input=TEXT, env=environ, check=True, stdout=subprocess.DEVNULL)
            times[name].append((time.perf_counter() - began) * 1000)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    bare = medians.pop("pass", 0.0)
    found = {f"{name} ms": taken for name, taken in medians.items()}
    if bare:
        found |= {"bare ms": bare, "more ms": medians["sendmail"] - bare}
    return found


COSTS = ("msg/s", "CPU ms", "forks", "flushes", "KiB", "PSS MiB")
SESSIONS = (1, 10, 50)
GROWTH = (1, 2, 5, 10, 20, 50, 100)

JOBS = (
    Job("local", "(a) SMTP in, local Maildir, one message per connection", COSTS, SESSIONS,
        lambda bench, peer, sessions: local(bench, peer, sessions, once=True), growth=GROWTH),
    Job("local-many", "(a) SMTP in, local Maildir, many messages per connection", COSTS, SESSIONS,
        lambda bench, peer, sessions: local(bench, peer, sessions, once=False)),
    Job("relay", "(b) SMTP in, relay out, one message per connection", COSTS, SESSIONS,
        lambda bench, peer, sessions: relay(bench, peer, sessions, once=True), growth=GROWTH),
    Job("relay-many", "(b) SMTP in, relay out, many messages per connection", COSTS, SESSIONS,
        lambda bench, peer, sessions: relay(bench, peer, sessions, once=False)),
    Job("recipients", "(c) one message to many recipients at one host", ("recipients/s", *COSTS[1:]),
        (100, 1000), recipients, "recipients", growth=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)),
    Job("large", "(d) large messages, local Maildir, 4 sessions", ("MB/s", *COSTS[1:]), (1024, 10240), large, "KiB",
        growth=(4, 16, 64, 256, 1024, 4096, 10240)),
    Job("idle", "(e) idle connections", ("KiB each", "PSS MiB"), (1000, 5000), idle, "connections", more=False,
        servers=("qtwist", "journaled")),
    Job("injection", "(f) SMTP in, 10 sessions, while the other host refuses connections: the last tenth",
        ("last msg/s", "first msg/s", "start s", "PSS MiB"), (20_000,), injection, "messages", port=NOBODY, fills=True),
    Job("commands", "(g) a mail from a command", ("sendmail ms", "qmail-inject ms", "bare ms", "more ms"), (500,),
        commands, "runs", more=False),
    Job("tls", "(i) SMTP in, relay out over TLS, many messages per connection", COSTS, (10,), tls_relay,
        port=TLS_PORT, around=tls_sink, servers=("qtwist", "journaled", "postfix")),
    Job("latency", "(j) from the final dot to the file in new/, at half of the load",
        ("p99 ms", "p50 ms", "msg/s offered"), (10, 50), latency, more=False),
)  # fmt: skip
"""More of (f) is in bench/backlog.py, (h) in bench/pop3.py."""
