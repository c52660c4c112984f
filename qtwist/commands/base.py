"""What the small commands share: the home, options by qmail's rules, plain reading and writing, the last word.

These commands run once per mail, so this module imports os and sys only, and whoever imports it should bring in
little more (see CONTRIBUTING.md and bench/commands.py).
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing would cost milliseconds at every start
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import NoReturn

DEFAULT_HOME = "/var/qmail"

# Exit codes (spec/qmail.md §2.9).
PERMANENT = 100
TEMPORARY = 111
INTERRUPTED = 130

_BLOCK = 65536


class OptionError(Exception):
    """A command line that cannot be understood; ``str()`` is the complaint, such as ``illegal option -- x``."""


def home(environ: Mapping[str, str] | None = None) -> str:
    """The home that commands work on: $QTWISTHOME, else /var/qmail. Nothing is checked."""
    return (os.environ if environ is None else environ).get("QTWISTHOME") or DEFAULT_HOME


def die(prog: str, code: int, text: str | bytes) -> NoReturn:
    """Say ``prog: text`` on stderr and end with `code` (as SystemExit)."""
    say(f"{prog}: ", text)
    raise SystemExit(code)


def run_and_leave(main: Callable[[], int]) -> NoReturn:
    """Run `main`, and end the process with the exit code that it returns or raises as SystemExit.

    The interpreter is not taken apart, which takes as long as some ten imports. Where there are threads, as Twisted
    has, or what was written cannot be flushed, Python has the last word.
    """
    try:
        code = main()
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        code = end.code
    if "threading" in sys.modules:
        sys.exit(code)
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        sys.exit(code)
    os._exit(code)


def say(prefix: str, text: str | bytes) -> None:
    """Write a line to stderr, what is not UTF-8 in an escaped form. That stderr is closed is no error."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    try:
        sys.stderr.write(f"{prefix}{text}\n")
    except (AttributeError, OSError, ValueError):  # no stderr, or one that is closed
        return


def getopt(argv: Sequence[str], options: str) -> tuple[list[tuple[str, str]], list[str]]:
    """(letter, argument) of each option, and what follows the options (spec/qmail.md §2.7).

    `options` lists the letters; a colon behind one says that it takes an argument, two that it takes the text right
    behind it or none. Letters may share a word; an argument stands right behind its letter or is the next word. A word
    without a hyphen, a lone ``-`` and ``--`` end the options, and only the last is dropped. OptionError if that fails.
    """
    found = []
    words = list(argv)
    at = 0
    while at < len(words):
        word = words[at]
        if word == "--":
            at += 1
            break
        if len(word) < 2 or word[0] != "-":
            break
        at += 1
        place = 1
        while place < len(word):
            letter = word[place]
            place += 1
            known = -1 if letter == ":" else options.find(letter)
            if known < 0:
                raise OptionError(f"illegal option -- {letter}")
            argument = ""
            if options.startswith("::", known + 1):
                argument, place = word[place:], len(word)
            elif options.startswith(":", known + 1):
                argument, place = word[place:], len(word)
                if not argument:
                    if at == len(words):
                        raise OptionError(f"option requires an argument -- {letter}")
                    argument = words[at]
                    at += 1
            found.append((letter, argument))
    return found, words[at:]


def parse(prog: str, argv: Sequence[str], options: str, usage: str) -> tuple[list[tuple[str, str]], list[str]]:
    """:func:`getopt` for a command: ``--help`` as the first word prints `usage` and ends with 0, a mistake with 100."""
    answer_help(argv, usage)
    try:
        return getopt(argv, options)
    except OptionError as error:
        say(f"{prog}: ", str(error))
        die(prog, PERMANENT, f"see {prog} --help")


def answer_help(argv: Sequence[str], usage: str) -> None:
    """End with 0 after printing `usage` if that is what the user asked for."""
    if argv and argv[0] == "--help":
        sys.stdout.write(usage)
        raise SystemExit(0)


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`; OSError as os.write has it."""
    written = os.write(fd, data)
    if written < len(data):
        view = memoryview(data)[written:]
        while view:
            view = view[os.write(fd, view) :]


def blocks(fd: int) -> Iterator[bytes]:
    """What can be read from `fd` up to its end, in blocks that are not empty; OSError as os.read has it.

    Whoever types the message and presses Ctrl-C ends the command with 130, as shells have it, and nothing is sent.
    """
    try:
        while block := os.read(fd, _BLOCK):
            yield block
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
