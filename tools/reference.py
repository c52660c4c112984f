"""doc/control-files.md, from qtwist/control_table.py: ``python -m tools.reference >doc/control-files.md``."""

from __future__ import annotations

from qtwist.control import CONTROL_FILES, ControlFile
from qtwist.control_table import DIRECTORIES

INTRODUCTION = """\
# Control files

What `HOME/control/` may hold. This page is made from `qtwist/control_table.py` (`python -m tools.reference`).

Reading follows qmail's rules. A *line* is the first line, blanks at its end removed. An *int* is the number that the
first line starts with. A *list* has one entry a line; empty lines and lines that start with `#` do not count. A *colon
list* has `key:value` entries. *text* is the whole file, *pem* one with certificates. A file that is there but
empty is a value: it is not the same as no file.

Before the daemon starts, all files are checked, and what cannot be meant (a number that is none, an endpoint without a
role) is reported with file, line and what was expected.

*Noticed* says when a change counts: at the **start** of the daemon; on **HUP** too; at the next **connection** or
**delivery**; at each **run** of a command; **manual** files are for a command that compiles them.

| file | kind | without it | noticed | what it is |
|---|---|---|---|---|
"""


def default(entry: ControlFile) -> str:
    """What counts without the file, as the table shows it."""
    literal = entry.default.decode() if isinstance(entry.default, bytes) else entry.default
    text = f"`{literal}`" if literal is not None else "none"
    if entry.me:
        return f"`me`, else {text}" if literal is not None else "`me`"
    return text


def page() -> str:
    """The whole page."""
    rows = [
        f"| `{entry.name}` | {entry.kind} | {default(entry)} | {entry.reread} | {entry.help} |"
        for entry in CONTROL_FILES.values()
    ]
    rows += [f"| `{name}/` | directory | none | connection | {text} |" for name, text in DIRECTORIES.items()]
    return INTRODUCTION + "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(page(), end="")
