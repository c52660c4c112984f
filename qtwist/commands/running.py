"""What the programs for .qmail lines have in common: they run another program, or queue what they read (spec §21)."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal itself takes long to import
import os

from qtwist.commands.base import PERMANENT, TEMPORARY, blocks, die, home
from qtwist.local.errors import is_temporary
from qtwist.queue.client import QueueRefused, submit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


def variable(prog: str, name: str) -> bytes:
    """The environment variable `name`, which qmail-local sets for programs; without it, die with 100."""
    value = os.environb.get(os.fsencode(name))
    if value is None:
        die(prog, PERMANENT, f"fatal: {name} is not set, as it is for programs in .qmail files")
    return value


def start(prog: str, arguments: Sequence[str], prepare: Callable[[], None] = lambda: None) -> int:
    """Start a program, found by $PATH; its process id. The child exits with 111 or 100 if that fails (§2.8).

    `prepare` runs in the child before. Dies with 111 when there can be no child.
    """
    try:
        pid = os.fork()
    except OSError as error:
        die(prog, TEMPORARY, f"fatal: unable to fork: {error.strerror}")
    if pid:
        return pid
    code = TEMPORARY
    try:
        prepare()
        # Python ignores these; programs expect them as they are by default.
        for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
            _signal.signal(number, _signal.SIG_DFL)
        os.execvp(arguments[0], list(arguments))
    except OSError as error:
        code = TEMPORARY if is_temporary(error) else PERMANENT
        message = f"{prog}: fatal: unable to run {arguments[0]}: {error.strerror}\n"
        os.write(2, message.encode("utf-8", "surrogateescape"))
    finally:
        os._exit(code)


def wait(prog: str, pid: int) -> int:
    """The exit code of a child; dies with 111 if it was killed."""
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        die(prog, TEMPORARY, f"fatal: the program was killed by signal {os.WTERMSIG(status)}")
    return os.WEXITSTATUS(status)


def queue_input(prog: str, prefix: bytes, sender: bytes, recipients: Sequence[bytes]) -> int:
    """Queue `prefix` and all of standard input; the ``qp`` number. Dies with 100 or 111 when it is not queued."""

    def message() -> Iterator[bytes]:
        yield prefix
        yield from blocks(0)

    try:
        return submit(home(), message(), sender, recipients)
    except QueueRefused as error:
        die(prog, PERMANENT if error.letter == b"D" else TEMPORARY, b"fatal: " + error.text)
    except OSError as error:
        die(prog, TEMPORARY, f"fatal: unable to read the message: {error.strerror}")
