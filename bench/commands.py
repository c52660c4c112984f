"""What it costs to start the commands that run once per mail, against the bare interpreter.

    python bench/commands.py [RUNS]

Each figure is the median over RUNS (default 30) starts, in milliseconds; "more" is the difference to the interpreter
started the same way. A command is given --help, so the time is that of the interpreter, of what the command imports,
and of writing a page of text. The runs of all lines take turns, so that a machine that is busy for a while does not
count against one of them.

Three ways to start: a script as pip writes it (older versions of pip import re there), a script whose first line is
plain ``python``, and one with ``python -I -S``, which looks at no site-packages and at no $PYTHON variable: such as
`qtwist install-links` writes (:mod:`qtwist.commands.launchers`).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

#: Command: its module in qtwist.commands.
COMMANDS = {
    "qmail-inject": "inject",
    "sendmail": "sendmail",
    "qmail-queue": "queue",
    "forward": "forward",
    "preline": "preline",
    "condredirect": "condredirect",
    "except": "except_",
    "bouncesaying": "bouncesaying",
    "predate": "predate",
    "datemail": "datemail",
    "mailsubj": "mailsubj",
}

START = (
    "import sys; sys.path.insert(0, {path!r}); from qtwist.commands.{module} import main; sys.exit(main(['--help']))"
)

#: Way to start: options of the interpreter, and what the script does before all else.
MODES = {"pip's script": ((), "import re; "), "python": ((), ""), "python -I -S": (("-I", "-S"), "")}

#: What the figures are compared with: the interpreter, and what the commands do without.
OTHERS = {"pass": "pass", "import twisted.internet": "import twisted.internet.reactor"}


def milliseconds(options: tuple[str, ...], code: str) -> float:
    """The time that one run of `code` takes, from fork to wait."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *options, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - start) * 1000


def measure(runs: int) -> dict[tuple[str, str], float]:
    """(what, mode) to the median of `runs` runs."""
    jobs = {
        **OTHERS,
        **{name: START.format(path=CHECKOUT, module=module) for name, module in COMMANDS.items()},
    }
    times: dict[tuple[str, str], list[float]] = {}
    for run in range(runs + 1):
        for name, code in jobs.items():
            for mode, (options, before) in MODES.items():
                if "twisted" in name and (options or before):
                    continue  # one figure is enough, and without site-packages there is none
                took = milliseconds(options, code if name in OTHERS else before + code)
                if run:  # the first one compiles, and fills the page cache
                    times.setdefault((name, mode), []).append(took)
    return {key: statistics.median(values) for key, values in times.items()}


def main() -> None:
    medians = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
    print(f"{sys.implementation.name} {sys.version.split()[0]}, medians in ms\n")
    print(f"{'':24}" + "".join(f"{mode:>16}{'more':>8}" for mode in MODES))
    for name in dict.fromkeys(name for name, _ in medians):
        cells = []
        for mode in MODES:
            took = medians.get((name, mode))
            bare = medians["pass", mode]
            cells.append(f"{'-':>16}{'':>8}" if took is None else f"{took:16.1f}{took - bare:8.1f}")
        print(f"{name:24}" + "".join(cells))


if __name__ == "__main__":
    main()
