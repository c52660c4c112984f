"""Draws what the benchmarks have measured, for doc/performance.md (issue 7, item 4).

`python -m bench.plots FILE...` reads what `bench.peers --growth`, `bench.backlog` and `bench.stages` write with --json,
and makes an SVG for each job of which it finds more than one variant, and one of where the time of a message goes:
FOLDER/performance-NAME.svg. The same figures make the same file, with the same matplotlib (the extra `bench`).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class Picture(NamedTuple):
    """A file's name, its title, what the variants are, its panels: a column and what it is called; and which of the
    columns spans so much that only its logarithm can be seen."""

    name: str
    title: str
    across: str
    panels: tuple[tuple[str, str], ...]
    logarithmic: str = ""


_RATE, _CPU = ("msg/s", "messages a second"), ("CPU ms", "ms of CPU per message")
PICTURES = {
    "local": Picture("sessions", "4 KiB, SMTP in, into a Maildir", "sessions", (_RATE, _CPU)),
    "relay": Picture("relay", "4 KiB, SMTP in, SMTP out", "sessions", (_RATE, _CPU)),
    "recipients": Picture(
        "recipients", "one message to many recipients at one host", "recipients",
        (("recipients/s", "recipients a second"), ("CPU ms", "ms of CPU per recipient")),
    ),
    "large": Picture(
        "size", "large messages into a Maildir, 4 sessions", "KiB",
        (("MB/s", "MB a second"), ("CPU ms", "ms of CPU per message")), logarithmic="CPU ms",
    ),
    "backlog": Picture(
        "backlog", "new mail, 4 KiB, into a Maildir, beside a deep queue", "deferred messages in the queue",
        (_RATE, _CPU, ("send MiB", "memory of send, MiB"), ("start s", "seconds until a start greets")),
    ),
}  # fmt: skip
COLOURS = {"qtwist": "#7a4fb0", "journaled": "#1b6ca8", "notqmail": "#6b7d2a", "postfix": "#c05a2b"}
#: In this order along a bar.
STAGES = {
    "reactor, sockets": "#9aa7b4",
    "SMTP server": "#1b6ca8",
    "policies": "#7a4fb0",
    "between processes": "#d9a441",
    "queue": "#c05a2b",
    "scheduling": "#e08e79",
    "SMTP client": "#3d9a8b",
    "delivery": "#6b7d2a",
    "files": "#b5c26b",
    "disk threads": "#7d2e2e",
    "log": "#555555",
    "other": "#dddddd",
}

#: By server, then variant.
Curves = dict[str, dict[int, float]]


def medians(rows: Iterable[Mapping[str, Any]], job: str, column: str) -> Curves:
    """What all rounds tell of a job, in whatever files they are; a variant without this column is left out."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["job"] == job:
            found[row["server"]][row["variant"]] += [one[column] for one in row["rounds"] if column in one]
    curves = {
        server: {variant: statistics.median(values) for variant, values in sorted(variants.items()) if values}
        for server, variants in sorted(found.items())
    }
    return {server: points for server, points in curves.items() if points}


def read(paths: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of all files. ValueError for what no benchmark has written."""
    rows: list[dict[str, Any]] = []
    for path in paths:
        with open(path) as file:
            found = json.load(file)
        if not isinstance(found, list) or not all(isinstance(row, dict) and "job" in row for row in found):
            raise ValueError(f"{path}: expected a list of jobs, as bench.peers --json writes it")
        rows += found
    return rows


def _save(figure: Any, path: str) -> None:
    import matplotlib

    # Text stays text, and what is named is named alike each time.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "qtwist"}):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def draw(picture: Picture, curves: Sequence[Curves], path: str, note: str = "") -> None:
    """A picture with the curves of each of its panels."""
    from matplotlib.figure import Figure

    rows = (len(curves) + 1) // 2
    figure = Figure(figsize=(9, 0.4 + 3 * rows), layout="constrained")
    figure.suptitle(picture.title + (f" ({note})" if note else ""), fontsize=11)
    for place, ((column, label), lines) in enumerate(zip(picture.panels, curves, strict=True), 1):
        axes = figure.add_subplot(rows, 2, place)
        for server, points in lines.items():
            style = {"color": COLOURS.get(server), "marker": "o", "markersize": 4}
            axes.plot(list(points), list(points.values()), label=server, **style)
        variants = sorted({variant for points in lines.values() for variant in points})
        if variants and variants[-1] >= 20 * max(1, variants[0]):
            if variants[0] == 0:
                axes.set_xscale("symlog", linthresh=variants[1] if len(variants) > 1 else 1)
            else:
                axes.set_xscale("log")
            axes.set_xticks(variants, [f"{one:,}" for one in variants], rotation=45 if variants[-1] > 1000 else 0)
            axes.set_xticks([], minor=True)
        if column == picture.logarithmic:
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, 1.1 * max((max(points.values()) for points in lines.values()), default=0) or 1)
        axes.set_xlabel(picture.across)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if place == 1:
            axes.legend(frameon=False)
    _save(figure, path)


def draw_stages(rows: Sequence[Mapping[str, Any]], path: str, note: str = "") -> None:
    """A bar for each process, as long as its time, in the colours of its stages; a panel for each row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.9 + 2.2 * len(rows)), layout="constrained")
    shown: dict[str, Any] = {}
    first = None  # all are drawn to its scale
    for place, row in enumerate(rows, 1):
        processes = {name: parts for name, parts in row["processes"].items() if sum(parts.values()) >= 0.005}
        axes = figure.add_subplot(len(rows), 1, place, sharex=first)
        first = first or axes
        names = sorted(processes, key=lambda name: sum(processes[name].values()))
        left = [0.0] * len(names)
        for stage, colour in STAGES.items():
            widths = [processes[name].get(stage, 0.0) for name in names]
            if any(widths):
                shown[stage] = axes.barh(names, widths, left=left, color=colour, height=0.7)
                left = [before + width for before, width in zip(left, widths, strict=True)]
        for at, total in enumerate(left):
            axes.text(total, at, f" {total:.2f}", va="center", fontsize=8)
        axes.set_title(f"{row['way']}: {sum(left):.2f} ms of CPU per message, {row['sessions']} sessions", fontsize=10)
        axes.margins(x=0.1)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    axes.set_xlabel("ms of CPU per message" + (f" ({note})" if note else ""))
    order = [stage for stage in STAGES if stage in shown]
    figure.legend([shown[one] for one in order], order, loc="outside right center", frameon=False, fontsize=8)
    _save(figure, path)


def draw_all(rows: Sequence[Mapping[str, Any]], folder: str, note: str = "") -> list[str]:
    """All pictures that the rows are enough for; the paths of the files."""
    paths = []
    for job, picture in PICTURES.items():
        curves = [medians(rows, job, column) for column, _ in picture.panels]
        if any(len(points) > 1 for points in curves[0].values()):
            paths.append(f"{folder}/performance-{picture.name}.svg")
            draw(picture, curves, paths[-1], note)
    if stages := [row for row in rows if row["job"] == "stages"]:
        paths.append(f"{folder}/performance-message.svg")
        draw_stages(stages, paths[-1], note)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--folder", default="doc", help="where the pictures go: doc")
    parser.add_argument("--note", default="", help="a word in each title, such as: trial run")
    options = parser.parse_args()
    try:
        rows = read(options.files)
    except (OSError, ValueError) as error:
        raise SystemExit(f"bench.plots: {error}") from None
    for path in draw_all(rows, options.folder, options.note):
        print(path)


if __name__ == "__main__":
    main()
