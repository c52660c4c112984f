"""The lines of users/assign that give a person an address (spec/qmail.md §12.2): adding and removing them. Pure."""

from __future__ import annotations

from qtwist.files.assign import Assignment, compile_assign

EMPTY = b".\n"


class AlreadyAssigned(Exception):
    """The address belongs to something else; `line` is its number in users/assign, from 1."""

    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


def lines_for(local: bytes, owner: Assignment) -> tuple[bytes, bytes]:
    """The line for the local part, and the one for its extensions. ValueError for what such a line cannot hold."""
    fields = b"%b:%d:%d:%b" % (owner.user, owner.uid, owner.gid, owner.home)
    for part in (local, owner.user, owner.home):
        if any(octet in part for octet in b":\n\0"):
            raise ValueError("a colon, a line end or a NUL cannot stand in users/assign")
    return b"=%b:%b:::" % (local, fields), b"+%b-:%b:-::" % (local, fields)


def with_owner(text: bytes, local: bytes, owner: Assignment) -> bytes:
    """`text` with both lines for `local`; those that are there already are not added again.

    AlreadyAssigned when there is another line for it, AssignError when the text is wrong.
    """
    lines, end = _parts(text)
    wanted = lines_for(local, owner)
    for number, line in enumerate(lines, 1):
        for want in wanted:
            if line != want and _key(line) == _key(want):
                raise AlreadyAssigned(number)
    return _joined([*lines, *(want for want in wanted if want not in lines)], end)


def without_owner(text: bytes, local: bytes) -> bytes:
    """`text` without the lines for `local` and its extensions. AssignError when the text is wrong."""
    lines, end = _parts(text)
    gone = {b"=" + local.lower(), b"+" + local.lower() + b"-"}
    return _joined([line for line in lines if _key(line) not in gone], end)


def _parts(text: bytes) -> tuple[list[bytes], bytes]:
    """The lines of the list, and all from its end on."""
    for _ in compile_assign(text):
        pass
    end = 0 if text.startswith(b".") else text.index(b"\n.") + 1
    return text[:end].split(b"\n")[:-1], text[end:]


def _joined(lines: list[bytes], end: bytes) -> bytes:
    return b"".join(line + b"\n" for line in lines) + end


def _key(line: bytes) -> bytes:
    name = line.partition(b":")[0].lower()
    return name if name.startswith(b"+") else b"=" + name[1:]
