"""What the programs for .qmail lines have in common: they run another program, or queue what they read (spec §21)."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal itself takes long to import
import errno
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


def start(
    prog: str, arguments: Sequence[str], prepare: Callable[[], None] = lambda: None, otherwise: int = PERMANENT
) -> int:
    """Start a program, found by $PATH; its process id. If that fails the child exits with 111 for now (§2.8), and with
    `otherwise` for good.

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
        if not arguments[0]:  # Python refuses it in another way than the system does
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        os.execvp(arguments[0], list(arguments))
    except OSError as error:
        code = TEMPORARY if is_temporary(error) else otherwise
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


def agrees(prog: str, command: Sequence[str]) -> bool:
    """Does a program, run on standard input, exit with 0? Dies with 111 where it exits so, or is killed (§21)."""
    code = wait(prog, start(prog, command))
    if code == TEMPORARY:
        die(prog, TEMPORARY, f"fatal: {command[0]} failed for now")
    return code == 0


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
