"""qmailctl: start, stop and steer the mail system by the verbs of *Life with qmail* 2.8.2.1."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence

from qtwist.commands import qread
from qtwist.commands.base import PERMANENT, TEMPORARY, answer_help, die, home, say
from qtwist.commands.qstat import report
from qtwist.commands.streams import put
from qtwist.commands.supervision import Manager, System, Trouble, Unit, daemon, find, role_processes
from qtwist.commands.tcpok import clear
from qtwist.commands.tcprules import compile_text

USAGE = """\
NAME
    qmailctl - start, stop and steer the mail system

SYNOPSIS
    qmailctl VERB

DESCRIPTION
    start     start the daemon, unless it runs
    stop      end it: running deliveries are finished first
    restart   stop it, and start it again
    stat      say whether it runs, since when, and how much is in the queue
    pause     stop it for a while; connections wait
    cont      let it go on
    doqueue   forget which hosts timed out, and try all mail in the queue now
    flush     the same
    alarm     the same
    reload    reread locals and virtualdomains, and open the log file anew
    hup       the same
    upgrade   replace the servers by new ones with the code as it is now; the
              ports stay open, and clients end what they have begun
    queue     how much is in the queue, and what
    cdb       compile the rules about clients, tcp.smtp, to tcp.smtp.cdb
    help      print this

    The daemon may run under daemontools or runit, as a unit of systemd, or by
    itself. It is found as the process that holds the lock of the home's queue;
    the service directory (in /service, /etc/service or /var/service) or the
    unit (qtwist.service while it does not run) is the one that this process
    belongs to. A daemon that looks after itself is started with twistd: by
    root with its log in syslog and log/send, as roles of their own accounts if
    the home is root's, else under the account that owns the queue; by that
    account with its log in log/twistd and log/send.

    For cdb the rules are in control/tcp.smtp of the home, if that is there,
    else in /etc/tcp.smtp.

ENVIRONMENT
    QTWISTHOME     the home of the mail system [/var/qmail]
    QTWISTSERVICE  the service directory of daemontools or runit
    QTWISTUNIT     the unit of systemd

EXIT CODES
    0    done
    100  wrong use, or rules that cannot be understood
    111  it could not be done
"""

_PROG = "qmailctl"
_RULES = "/etc/tcp.smtp"


class _Control:
    """The verbs, for one home."""

    def __init__(self, path: str, system: System) -> None:
        self._home = path
        self._system = system

    def _manager(self) -> Manager:
        return find(self._home, self._system, os.environ)

    def start(self) -> None:
        _tell("Starting the mail system.")
        self._manager().start()

    def stop(self) -> None:
        _tell("Stopping the mail system.")
        self._signal_roles(signal.SIGCONT)  # those that are paused could not end
        self._manager().stop()

    def restart(self) -> None:
        _tell("Restarting the mail system.")
        self._signal_roles(signal.SIGCONT)
        self._manager().restart()

    def stat(self) -> None:
        for line in self._manager().status():
            _tell(line)
        self._count()

    def pause(self) -> None:
        _tell("Pausing the mail system.")
        manager = self._manager()
        # systemd would take a supervisor that is paused for dead; the roles are what works.
        if not (self._signal_roles(signal.SIGSTOP) and isinstance(manager, Unit)):
            manager.signal(signal.SIGSTOP)

    def cont(self) -> None:
        _tell("Continuing the mail system.")
        self._signal_roles(signal.SIGCONT)
        self._manager().signal(signal.SIGCONT)

    def flush(self) -> None:
        _tell("Forgetting timeouts, and trying all mail in the queue.")
        clear(os.path.join(self._home, "queue", "lock", "tcpto"))
        self._manager().signal(signal.SIGALRM)

    def reload(self) -> None:
        _tell("Rereading locals and virtualdomains.")
        self._manager().signal(signal.SIGHUP)

    def upgrade(self) -> None:
        _tell("Replacing the servers.")
        pid = daemon(self._home, self._system)
        if pid is None:
            raise Trouble("the daemon does not run")
        if not role_processes(self._home, self._system):
            raise Trouble("the daemon is one process: `qmailctl restart` starts it with the code of now")
        self._system.kill(pid, signal.SIGUSR1)

    def _signal_roles(self, number: int) -> int:
        """Send a signal to the processes of the roles, where there are some; how many there are."""
        roles = role_processes(self._home, self._system)
        for pid in roles:
            try:
                self._system.kill(pid, number)
            except ProcessLookupError:
                continue
            except OSError as error:
                raise Trouble(f"unable to signal process {pid}: {error.strerror}") from error
        return len(roles)

    def queue(self) -> None:
        self._count()
        code = qread.main([])
        if code != 0:
            raise SystemExit(code)

    def cdb(self) -> None:
        own = os.path.join(self._home, "control", "tcp.smtp")
        path = own if os.path.exists(own) else _RULES
        with open(path, "rb") as file:
            text = file.read()
        compile_text(_PROG, f"{path}.cdb", f"{path}.tmp", text)
        os.chmod(f"{path}.cdb", 0o644)
        _tell(f"Reloaded {path}.")

    def help(self) -> None:
        sys.stdout.write(USAGE)

    def _count(self) -> None:
        put(_PROG, report(os.path.join(self._home, "queue")))


VERBS: dict[str, Callable[[_Control], None]] = {
    "start": _Control.start,
    "stop": _Control.stop,
    "restart": _Control.restart,
    "stat": _Control.stat,
    "pause": _Control.pause,
    "cont": _Control.cont,
    "doqueue": _Control.flush,
    "flush": _Control.flush,
    "alarm": _Control.flush,
    "reload": _Control.reload,
    "hup": _Control.reload,
    "upgrade": _Control.upgrade,
    "queue": _Control.queue,
    "cdb": _Control.cdb,
    "help": _Control.help,
}


def main(argv: Sequence[str] | None = None, system: System | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    answer_help(arguments, USAGE)
    verb = VERBS.get(arguments[0]) if len(arguments) == 1 else None
    if verb is None:
        die(_PROG, PERMANENT, f"usage: qmailctl {{ {' | '.join(VERBS)} }}")
    try:
        verb(_Control(os.path.abspath(home()), system or System()))
    except Trouble as error:
        say(f"{_PROG}: ", str(error))
        return TEMPORARY
    except OSError as error:
        say(f"{_PROG}: ", f"{error.filename or 'trouble'}: {error.strerror or error}")
        return TEMPORARY
    return 0


def _tell(text: str) -> None:
    put(_PROG, os.fsencode(text) + b"\n")
