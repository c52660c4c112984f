"""The code broken on purpose, one small fault at a time: do the tests notice? (doc/testing.md)

The tables, :mod:`~tests.mutants.queue` and the others, say what is changed and which test modules have to fail;
:mod:`tests.mutants.run` tries them (`make mutants`).
"""

from __future__ import annotations

import attrs


@attrs.frozen
class Mutant:
    """One fault: in `file` (below qtwist/), `old`, which stands there exactly once, becomes `new`. `tests` are modules
    below tests/, or test cases in them, one of which has to fail; `what` says in a few words what is wrong then."""

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @classmethod
    def of(cls, what: str, file: str, old: str, new: str, *tests: str) -> Mutant:
        return cls(what, file, old, new, tests)

    def apply(self, text: str) -> str:
        """The broken text of the file. LookupError when `old` is not there, or more than once."""
        if text.count(self.old) != 1:
            raise LookupError(f"{self.file}: {self.old!r} is there {text.count(self.old)} times ({self.what})")
        return text.replace(self.old, self.new)
