"""Mail servers side by side: `make bench`, as root (bench/README.md says how to read what comes out).

Every server has its queue and its mailboxes on one ext4 file system with a journal, made in a file for the occasion,
and its own default syncs. The load is Postfix's smtp-source, the remote side smtp-sink, all on this machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics

from bench.jobs import JOBS, Bench, Figures, Job
from bench.loads import Sink
from bench.machine import control_group, disk, empty, prepare_machine
from bench.servers import Journaled, Notqmail, Peer, Postfix, Qtwist

KINDS: tuple[type[Peer], ...] = (Qtwist, Journaled, Notqmail, Postfix)
Results = dict[tuple[int, str], list[Figures]]  # by variant and server
QUICK = {"rounds": 1, "messages": 200, "scale": 0.1}


def table(job: Job, results: Results, reference: str) -> None:
    """Medians of the rounds; and how many times as good as `reference` a server is, by the first column."""
    columns = [name for name in job.columns if any(name in one for rounds in results.values() for one in rounds)]
    print(f"\n{job.title}\n")
    print(f"| {job.unit} | server | " + " | ".join(columns) + f" | times as good as {reference} |")
    print("|---" * (len(columns) + 3) + "|")
    for (variant, server), rounds in results.items():
        medians = [median(rounds, name) for name in columns]
        cells = ["-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.2f}" for value in medians]
        theirs = median(results.get((variant, reference), []), columns[0])
        ratio = "-"
        if medians[0] and theirs:
            ratio = f"{medians[0] / theirs if job.more else theirs / medians[0]:.2f}"
        print(f"| {variant} | {server} | " + " | ".join(cells) + f" | {ratio} |", flush=True)


def median(rounds: list[Figures], name: str) -> float | None:
    found = [one[name] for one in rounds if name in one]
    return statistics.median(found) if found else None


def run_job(job: Job, bench: Bench, peers: list[Peer], rounds: int, variants: tuple[int, ...]) -> Results:
    """Some variants of a job; the servers take turns."""
    results: Results = {}
    with job.around():
        for variant in variants:
            for _ in range(rounds):
                for peer in peers:
                    empty(peer.maildir())
                    peer.route(job.port)
                    peer.start()
                    try:
                        results.setdefault((variant, peer.name), []).append(job.run(bench, peer, variant))
                    finally:
                        peer.stop()
                        if job.fills:
                            peer.renew()
    return dict(sorted(results.items(), key=lambda item: item[0][0]))


def main() -> None:
    names = ",".join(job.name for job in JOBS)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--octets", type=int, default=4096)
    parser.add_argument("--scale", type=float, default=1, help="of the numbers of other jobs: 0.1 is a tenth")
    parser.add_argument("--variants", default="", help="in place of the jobs' own: numbers of sessions, say")
    parser.add_argument("--growth", action="store_true", help="many variants, of the jobs that bench.plots draws")
    parser.add_argument("--only", default=",".join(kind.name for kind in KINDS), help="servers, separated by commas")
    parser.add_argument("--jobs", default=names)
    parser.add_argument(
        "--notqmail",
        default="/var/qmail",
        metavar="HOME",
        help="where notqmail was installed (if it is, it is measured)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures of all rounds there")
    parser.add_argument("--quick", action="store_true", help="a minute or two: does all of it work?")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    prepare_machine()
    resource.setrlimit(resource.RLIMIT_NOFILE, (20_000, 20_000))
    chosen = tuple(int(word) for word in options.variants.split(",") if word)
    Notqmail.installed = options.notqmail
    kinds = [kind for kind in KINDS if kind.name in options.only.split(",") and kind.missing() is None]
    everything = []
    with disk(4000) as device:
        peers: list[Peer] = []
        try:
            for kind in kinds:
                peer = kind(control_group(kind.name))
                empty(peer.maildir())
                peer.prepare()
                peers.append(peer)
            for job in JOBS:
                able = [peer for peer in peers if peer.name in job.servers]
                variants = job.growth if options.growth else chosen or job.variants
                if options.quick:
                    variants = variants[: 3 if options.growth else 1]
                if job.name not in options.jobs.split(",") or not able or not variants:
                    continue
                sink = Sink()
                try:
                    bench = Bench(device, options.scale, options.octets, options.messages, sink)
                    results = run_job(job, bench, able, options.rounds, variants)
                finally:
                    sink.stop()
                table(job, results, able[-1].name)
                everything += [
                    {"job": job.name, "variant": variant, "server": peer, "rounds": rounds}
                    for (variant, peer), rounds in results.items()
                ]
                if options.json:
                    with open(options.json, "w") as file:
                        json.dump(everything, file, indent=1)
        finally:
            for peer in peers:
                peer.close()


if __name__ == "__main__":
    main()
