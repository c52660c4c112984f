"""Lists of what is not wanted, with patterns and exceptions: control/badmailfrom and its like (spec/qmail.md §16.4)."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import attrs

from qtwist.control import ControlError
from qtwist.control_reading import read, split_lines, unreadable
from qtwist.mail.domains import ascii_key

if TYPE_CHECKING:
    from qtwist.control import Control

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

_BRACKETS = re.compile(r"\[([^\[\]]*)\]?")

# What other servers' lists have that these have not (spec/related.md §14.4, qregex).
_NONE_OF_OURS = (
    (re.compile(rb"\^|\.\*|[^\"]*(?:\$$|[\\(|])"), "it looks like a regular expression"),
    (re.compile(rb"~|[-+=][@.]|.*@.*[-+=]$"), "of the signs of s/qmail there is only !"),
    (re.compile(rb"[^\"]*[\x00-\x20\x7f]"), "it has a blank in it"),
)


#: What a line is expected to be.
EXPECTED = "an address, @domain, .domain, a name, or a pattern with *, ? and [a-z], after ! an exception"


def trouble(line: bytes) -> str | None:
    """Why a line is none that these lists can have; None when it is one. So none of them means nothing unnoticed."""
    text = line.lstrip(b"!").strip()
    for form, why in _NONE_OF_OURS:
        if form.match(text):
            return why
    return None


def _glob(line: str) -> str:
    """A line as fnmatch has it: ``[…]`` stands for one character, but for an address literal where it has a dot or a
    colon in it; ``[^`` is ``[!``."""

    def one(match: re.Match[str]) -> str:
        inside: str = match[1]
        if not inside or not match[0].endswith("]") or "." in inside or ":" in inside:
            return "[[]" + match[0][1:]
        return f"[!{inside[1:]}]" if inside[0] == "^" else match[0]

    return _BRACKETS.sub(one, line)


def _is_wild(line: bytes) -> bool:
    return b"*" in line or b"?" in line or "[" in _glob(line.decode("latin-1")).replace("[[]", "")


@attrs.frozen
class Patterns:
    """The lines of such a list, case ignored.

    A line is a whole address (or name), ``@`` and a whole domain, ``.`` (or ``@.``) and the end of domains or names, or
    a pattern for the whole of it with ``*``, ``?`` and ``[a-z]``. ``!`` before a line makes an exception, wherever it
    stands.
    """

    words: frozenset[bytes] = frozenset()
    ends: Mapping[bytes, bytes] = attrs.field(factory=dict)  # `.end` to its line
    wild: tuple[tuple[re.Pattern[str], bytes], ...] = ()
    exceptions: Patterns | None = None

    @classmethod
    def parse(cls, lines: Iterable[bytes]) -> Patterns:
        listed: list[bytes] = []
        excepted: list[bytes] = []
        for line in lines:
            (excepted if line.startswith(b"!") else listed).append(ascii_key(line.lstrip(b"!").strip()))
        return cls._of(listed, cls._of(excepted, None) if excepted else None)

    @classmethod
    def _of(cls, lines: list[bytes], exceptions: Patterns | None) -> Patterns:
        wild = [line for line in lines if _is_wild(line)]
        plain = frozenset(lines) - frozenset(wild)
        return cls(
            plain,
            {line.removeprefix(b"@"): line for line in plain if line.startswith((b".", b"@."))},
            tuple((re.compile(fnmatch.translate(_glob(line.decode("latin-1")))), line) for line in wild),
            exceptions,
        )

    def find(self, text: bytes) -> bytes | None:
        """The line that `text`, an address or a name, is listed by; None when it is not, or is an exception."""
        if not (self.words or self.wild):  # what is in `ends` is in `words`
            return None
        text = ascii_key(text)
        found = self._find(text)
        if found is not None and self.exceptions is not None and self.exceptions._find(text) is not None:
            return None
        return found

    def _find(self, text: bytes) -> bytes | None:
        if text in self.words:
            return text
        at = text.rfind(b"@")
        if at >= 0 and text[at:] in self.words:
            return text[at:]
        if self.ends:
            dot = text.find(b".", at + 1)
            while dot >= 0:
                if text[dot:] in self.ends:
                    return self.ends[text[dot:]]
                dot = text.find(b".", dot + 1)
        shown = text.decode("latin-1")
        return next((line for pattern, line in self.wild if pattern.match(shown)), None)


class PatternFiles:
    """Lists in control/, read when they have changed; a variable may name another list, or none."""

    def __init__(self, control: Control, *names: str) -> None:
        self._directory = control.directory
        self._names = names
        self._known: dict[str, tuple[tuple[int, int, int] | None, Patterns]] = {}

    def find(self, text: bytes, variable: bytes | None = None) -> str | None:
        """Where `text` is listed, for the log; None when it is not.

        `variable` is the value of a variable such as BADMAILFROM: empty, nothing is looked at; otherwise it names a
        file in control/ to look at in place of the usual ones. ControlError when it cannot be read, or is not there.
        """
        names = self._names if variable is None else (variable.decode("ascii", "replace"),) if variable else ()
        for name in names:
            line = self._get(name, variable is not None).find(text)
            if line is not None:
                return f"{line.decode('ascii', 'backslashreplace')} in control/{name}"
        return None

    def _get(self, name: str, needed: bool) -> Patterns:
        path = os.path.join(self._directory, name)
        if not _PLAIN_NAME.fullmatch(name):
            raise ControlError(path, None, "a name from a rule", "the name of a file in control/")
        try:
            status = os.stat(path)
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        except FileNotFoundError:
            if needed:
                raise ControlError(path, None, "nothing", "the list that a rule names") from None
            stamp = None
        except OSError as error:
            raise unreadable(path, error) from error
        known = self._known.get(name)
        if known is not None and known[0] == stamp:
            return known[1]
        text = None if stamp is None else read(path)
        lines = list(split_lines(text or b""))
        for number, line in lines:
            why = trouble(line)
            if why is not None:
                raise ControlError(path, number, repr(line)[1:], f"{EXPECTED} ({why})")
        patterns = Patterns.parse(line for _, line in lines)
        self._known[name] = (stamp, patterns)
        return patterns
