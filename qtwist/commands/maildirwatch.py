"""maildirwatch: show the new messages of a maildir on the terminal, again and again (spec/qmail.md §21)."""

from __future__ import annotations

import os
import sys
import time

from qtwist.commands.base import TEMPORARY, answer_help, blocks, die
from qtwist.commands.streams import put
from qtwist.files.maildir_reading import scan
from qtwist.inject.splitting import HeaderTooLong, Splitter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

USAGE = """\
NAME
    maildirwatch - show the new messages of a maildir, again and again

SYNOPSIS
    maildirwatch

DESCRIPTION
    Clears the screen and shows sender, recipient and the beginning of each
    message in new/ of the maildir; again every 30 seconds, until it is
    interrupted.

ENVIRONMENT
    MAILDIR  the maildir

EXIT CODES
    111  the maildir cannot be read
"""

_PROG = "maildirwatch"
_PAUSE = 30
_SHOWN = 158
_MOST = 50  # messages on one screen: no terminal shows more

_CLEAR = b"\033[;H\033[;J"
_BOLD = b"\033[1m"
_PLAIN = b"\033[0m"
_SAFE = bytes(octet if 32 <= octet <= 126 else ord("/" if octet == 10 else "_") for octet in range(256))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; does not return but by an error or an interruption."""
    answer_help(sys.argv[1:] if argv is None else argv, USAGE)
    maildir = os.environb.get(b"MAILDIR")
    if maildir is None:
        die(_PROG, TEMPORARY, "fatal: MAILDIR not set")
    try:
        while True:
            put(_PROG, screen(maildir, time.time()))
            time.sleep(_PAUSE)
    except OSError as error:
        die(_PROG, TEMPORARY, f"fatal: unable to scan $MAILDIR: {error.strerror}")
    except KeyboardInterrupt:
        return 0


def screen(maildir: bytes, now: float) -> bytes:
    """All that is shown at one time. OSError when the maildir cannot be read."""
    return _CLEAR + b"".join(_messages(maildir, now))


def _messages(maildir: bytes, now: float) -> Iterator[bytes]:
    for entry in scan(maildir, now, (b"new",))[:_MOST]:
        try:
            fd = os.open(os.path.join(maildir, entry.path), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            yield summary(fd)
        except (OSError, HeaderTooLong) as error:
            yield b"%b: %b\n\n" % (entry.path.translate(_SAFE), str(error).encode("utf-8", "replace").translate(_SAFE))
        finally:
            os.close(fd)


def summary(fd: int) -> bytes:
    """What is shown of the message that `fd` holds."""
    message = Splitter(blocks(fd))
    values = {b"return-path": b"", b"delivered-to": b"", b"subject": b""}
    for field in message.fields():
        name, _, value = field.partition(b":")
        name = name.rstrip(b" \t").lower()
        if not values.get(name, b"-"):
            values[name] = value.strip(b" \t\r\n")
    body = b""
    for block in message.body():
        body += block[: _SHOWN + 1]
        if len(body) > _SHOWN:
            break
    text = b"\n".join(filter(None, (values[b"subject"], body.removeprefix(b"\n"))))
    sender = values[b"return-path"].strip(b"<>")
    line = (b"FROM <%b> TO <%b>" % (sender, values[b"delivered-to"])).translate(_SAFE)
    return b"%b%b%b\n%b\n\n" % (_BOLD, line, _PLAIN, text[:_SHOWN].translate(_SAFE))
