"""Standard input and output of the commands that print or filter: in blocks, and with one clear line when it fails."""

from __future__ import annotations

import os

from qtwist.commands.base import TEMPORARY, blocks, die, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_ENOUGH = 65536


def emit(prog: str, pieces: Iterable[bytes]) -> None:
    """Print `pieces`, gathered into large writes. Ends the command with 111 if that fails."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= _ENOUGH:
            put(prog, b"".join(waiting))
            waiting, size = [], 0
    put(prog, b"".join(waiting))


def put(prog: str, data: bytes) -> None:
    """Print `data` at once. Ends the command with 111 if that fails, and says so unless the reader has just gone."""
    try:
        write_all(1, data)
    except BrokenPipeError:
        raise SystemExit(TEMPORARY) from None
    except OSError as error:
        die(prog, TEMPORARY, f"fatal: unable to write output: {error.strerror}")


def read_blocks(prog: str) -> Iterator[bytes]:
    """Standard input, in blocks as they come. Ends the command with 111 if that fails."""
    try:
        yield from blocks(0)
    except OSError as error:
        die(prog, TEMPORARY, f"fatal: unable to read input: {error.strerror}")


def shown(path: str | bytes) -> bytes:
    """A path or another text from outside as it may be printed: unprintable octets as ``?``."""
    return os.fsencode(path).translate(PRINTABLE)


#: Octets as logs show them: what is not printable ASCII as ``?``.
PRINTABLE = bytes(octet if 32 <= octet <= 126 else ord("?") for octet in range(256))
