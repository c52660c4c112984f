"""Who looks after the daemon of a home, and how it is told to start, stop, pause and so on.

daemontools or runit (a service directory), systemd (a unit), or nobody: then we start the daemon ourselves and find it
as the holder of the queue's lock.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from qtwist.commands.base import DEFAULT_HOME
from qtwist.files.tai64n import OFFSET

#: Where service directories are looked for.
SERVICE_ROOTS = ("/service", "/etc/service", "/var/service")

#: The unit that is looked for while the daemon does not run.
UNIT = "qtwist.service"

#: How long a stop is waited for (seconds): clients have 30 to end a message, programs may take longer.
PATIENCE = 90.0

PAUSE = 0.05

#: How long a daemon may take until it works on its queue (seconds).
START_PATIENCE = 60.0

_ROLE = b"qtwist.processes.role"

_LETTERS = {signal.SIGSTOP: b"p", signal.SIGCONT: b"c", signal.SIGALRM: b"a", signal.SIGHUP: b"h"}

# What a daemon that we start keeps of our environment.
_KEPT = ("PATH", "TZ", "LANG")
_KEPT_PREFIXES = ("LC_", "PYTHON")


class Trouble(Exception):
    """Why something cannot be done, in a line."""


class System:
    """What is asked of the operating system; tests give other directories, and another systemctl."""

    proc = "/proc"
    service_roots: Sequence[str] = SERVICE_ROOTS
    systemd = "/run/systemd/system"  # exists where systemd runs

    def systemctl(self, *arguments: str) -> tuple[int, str]:
        """Exit code and output of systemctl."""
        try:
            done = subprocess.run(["systemctl", *arguments], check=False, stdout=subprocess.PIPE, text=True)
        except OSError as error:
            raise Trouble(f"unable to run systemctl: {error.strerror}") from error
        return done.returncode, done.stdout

    def kill(self, pid: int, number: int) -> None:
        """Send a signal. OSError."""
        os.kill(pid, number)

    def start(self, arguments: Sequence[str], environ: Mapping[str, str]) -> int:
        """Run a program that goes into the background by itself; its exit code."""
        return subprocess.run(
            arguments, check=False, env=dict(environ), cwd="/", stdin=subprocess.DEVNULL, umask=0o022
        ).returncode


# The daemon as a process.


def daemon(home: str, system: System) -> int | None:
    """The process id of the daemon that works on the queue of `home`, None while there is none.

    For one that was started as root that is the supervisor.
    """
    pid = lock_holder(os.path.join(home, "queue", "lock", "sendmutex"), system) or _remote_role(home, system)
    return _by_pid_file(home, system) if pid is None else _lspawn_and_supervisor(pid, system)[1] or pid


def role_processes(home: str, system: System) -> list[int]:
    """The processes of a daemon's roles; none for a daemon that is one process."""
    pid = lock_holder(os.path.join(home, "queue", "lock", "sendmutex"), system) or _remote_role(home, system)
    lspawn = None if pid is None else _lspawn_and_supervisor(pid, system)[0]
    if lspawn is None:
        return []
    return [one for one in _processes(system) if _parent(one, system) == lspawn and _ROLE in _words(one, system)]


def _lspawn_and_supervisor(pid: int, system: System) -> tuple[int | None, int | None]:
    """For a role, the process that started it and the one that watches over it; else (None, None)."""
    lspawn = _parent(pid, system)
    if lspawn is None or not any(word.endswith(b"/qtwist/local/lspawn.py") for word in _words(lspawn, system)):
        return None, None
    supervisor = _parent(lspawn, system)
    # The user id: nobody else's process can pass for lspawn. The word: an lspawn whose supervisor died is init's child.
    if supervisor is None or _owner(lspawn, system) != 0 or b"qtwist" not in _words(supervisor, system):
        return None, None
    return lspawn, supervisor


def _remote_role(home: str, system: System) -> int | None:
    """The role that is there while the queue manager, which holds the lock, is being started again."""
    try:
        account = os.stat(os.path.join(home, "queue", "lock", "tcpto")).st_uid
    except OSError:
        return None
    for pid in _processes(system):
        words = _words(pid, system)
        if _ROLE in words and words[words.index(_ROLE) + 1 :] == [b"rspawn", os.fsencode(home)]:
            return pid if _owner(pid, system) == account else None
    return None


def _processes(system: System) -> list[int]:
    try:
        return [int(name) for name in os.listdir(system.proc) if name.isdecimal()]
    except OSError:
        return []


def _words(pid: int, system: System) -> list[bytes]:
    """The command line of a process."""
    try:
        with open(os.path.join(system.proc, str(pid), "cmdline"), "rb") as file:
            return file.read(65536).rstrip(b"\0").split(b"\0")
    except OSError:
        return []


def _owner(pid: int, system: System) -> int | None:
    try:
        return os.stat(os.path.join(system.proc, str(pid))).st_uid
    except OSError:
        return None


def _parent(pid: int, system: System) -> int | None:
    fields = _stat(pid, system)
    return int(fields[1]) if fields else None


def _stat(pid: int, system: System) -> list[str]:
    """What /proc says of a process, from its state on; nothing when it is gone."""
    try:
        with open(os.path.join(system.proc, str(pid), "stat"), encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def pid_file(home: str) -> str:
    """Where a daemon that we start leaves its process id."""
    return os.path.join(home, "run", "qtwist.pid")


def lock_holder(path: str, system: System) -> int | None:
    """The process that has a flock on the file `path`, as far as the system tells."""
    try:
        status = os.stat(path)
        with open(os.path.join(system.proc, "locks"), encoding="ascii", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        return None
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for fields in lines:
        if len(fields) < 6 or fields[1] != "FLOCK" or not fields[4].isdigit() or fields[4] == "0":
            continue
        pid = int(fields[4])
        # Some file systems show another device number here than stat does.
        same_inode = fields[5].rpartition(":")[2] == str(status.st_ino)
        if fields[5] == place or (same_inode and _has_open(pid, status, system)):
            return pid
    return None


def _has_open(pid: int, status: os.stat_result, system: System) -> bool:
    folder = os.path.join(system.proc, str(pid), "fd")
    try:
        for name in os.listdir(folder):
            try:
                if os.path.samestat(os.stat(os.path.join(folder, name)), status):
                    return True
            except FileNotFoundError:
                continue
    except OSError:
        return False
    return False


def _by_pid_file(home: str, system: System) -> int | None:
    """For systems that do not tell who holds a lock."""
    if os.path.exists(os.path.join(system.proc, "locks")):
        return None
    try:
        with open(pid_file(home), encoding="ascii") as file:
            pid = int(file.read(32))
        system.kill(pid, 0)
    except PermissionError:
        return pid
    except (OSError, ValueError):
        return None
    return pid


def process_state(pid: int, system: System) -> tuple[bool, int]:
    """Whether a process is paused, and for how many seconds it has run; (False, 0) where that cannot be told."""
    fields = _stat(pid, system)
    try:
        with open(os.path.join(system.proc, "uptime"), encoding="ascii") as file:
            uptime = float(file.read().split()[0])
        return fields[0] in "Tt", max(int(uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")), 0)
    except (OSError, ValueError, IndexError):
        return False, 0


# Who looks after it.


class Alone:
    """Nobody does: the daemon is a process in the background."""

    def __init__(self, home: str, pid: int | None, system: System) -> None:
        self.name = home
        self.pid = pid
        self.roles: list[int] = []  # its processes, where it has some
        self._system = system

    def start(self) -> None:
        """Start the daemon. Trouble if it does not start; it has said why."""
        if self.pid is not None:
            return
        home = self.name
        arguments = [*twistd_command(), *_placement(home), "qtwist", "--home", home]
        kept = [name for name in os.environ if name in _KEPT or name.startswith(_KEPT_PREFIXES)]
        environ = {name: os.environ[name] for name in kept}
        code = self._system.start(arguments, environ)
        if code != 0:
            raise Trouble("the daemon did not start")
        deadline = time.monotonic() + START_PATIENCE
        while (pid := daemon(home, self._system)) is None:
            if time.monotonic() > deadline:
                raise Trouble("the daemon has not come up; its log says why")
            time.sleep(PAUSE)
        self.pid = pid

    def stop(self) -> None:
        """End the daemon, and wait until it has ended. Trouble if that takes too long."""
        if self.pid is None:
            return
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)  # one that is paused could not end
        deadline = time.monotonic() + PATIENCE
        while daemon(self.name, self._system) == self.pid or _stat(self.pid, self._system)[:1] not in ([], ["Z"]):
            if time.monotonic() > deadline:
                raise Trouble(f"process {self.pid} has not ended yet: a delivery is still running; it will end with it")
            time.sleep(PAUSE)
        self.pid = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def signal(self, number: int) -> None:
        """Send a signal. Trouble if there is no daemon, or it belongs to somebody else."""
        if self.pid is None:
            raise Trouble("the daemon does not run")
        try:
            self._system.kill(self.pid, number)
        except ProcessLookupError:
            return
        except OSError as error:
            raise Trouble(f"unable to signal process {self.pid}: {error.strerror}") from error

    def status(self) -> list[str]:
        """Lines in the form that svstat has made familiar."""
        if self.pid is None:
            return [f"{self.name}: down"]
        paused, seconds = process_state(self.pid, self._system)
        paused = paused or any(process_state(pid, self._system)[0] for pid in self.roles)
        return [f"{self.name}: up (pid {self.pid}) {seconds} seconds{', paused' if paused else ''}"]


class Unit(Alone):
    """systemd does. Signals go to the daemon itself."""

    def __init__(self, unit: str, pid: int | None, system: System) -> None:
        super().__init__(unit, pid, system)

    def start(self) -> None:
        self._do("start")

    def stop(self) -> None:
        if self.pid is not None:
            self.signal(signal.SIGCONT)
        self._do("stop")

    def restart(self) -> None:
        if self.pid is not None:
            self.signal(signal.SIGCONT)
        self._do("restart")

    def _do(self, verb: str) -> None:
        code, _ = self._system.systemctl(verb, self.name)
        if code != 0:
            raise Trouble(f"systemctl {verb} {self.name} ended with {code}")


class Supervised:
    """A service directory of daemontools or runit, and its supervisor."""

    def __init__(self, directory: str) -> None:
        self.name = directory

    def start(self) -> None:
        self._control(b"u")

    def stop(self) -> None:
        self._control(b"dc")  # one that is paused could not end

    def restart(self) -> None:
        self._control(b"tcu")

    def signal(self, number: int) -> None:
        self._control(_LETTERS[signal.Signals(number)])

    def _control(self, letters: bytes) -> None:
        try:
            fd = os.open(os.path.join(self.name, "supervise", "control"), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise Trouble(f"{self.name}: {_why_no_control(error)}") from error
        try:
            os.write(fd, letters)
        except OSError as error:
            raise Trouble(f"{self.name}: unable to write to supervise/control: {error.strerror}") from error
        finally:
            os.close(fd)

    def status(self) -> list[str]:
        """What svstat prints of the service, and of its logger if it has one."""
        lines = [svstat(self.name, time.time())]
        log = os.path.join(self.name, "log")
        if os.path.isdir(log):
            lines.append(svstat(log, time.time()))
        return lines


Manager = Alone | Supervised


def svstat(directory: str, now: float) -> str:
    """The state of a service in svstat's words (spec/related.md §5.1, §5.4)."""
    try:
        os.close(os.open(os.path.join(directory, "supervise", "ok"), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        with open(os.path.join(directory, "supervise", "status"), "rb") as file:
            status = file.read(64)
    except OSError as error:
        return f"{directory}: {_why_no_control(error)}"
    if len(status) < 18:
        return f"{directory}: unable to read supervise/status: it is too short"
    seconds = max(int(now) - (int.from_bytes(status[:8], "big") - OFFSET), 0)
    pid = int.from_bytes(status[12:16], "little")
    normally_down = os.path.exists(os.path.join(directory, "down"))
    notes = []
    if pid:
        notes += ["normally down"] if normally_down else []
        notes += ["paused"] if status[16] else []
        notes += ["want down"] if status[17:18] == b"d" else []
        state = f"up (pid {pid})"
    else:
        notes += [] if normally_down else ["normally up"]
        notes += ["want up"] if status[17:18] == b"u" else []
        state = "down"
    return ", ".join([f"{directory}: {state} {seconds} seconds", *notes])


def _why_no_control(error: OSError) -> str:
    if isinstance(error, FileNotFoundError) or error.errno == 6:  # ENXIO: nobody reads the FIFO
        return "supervise not running"
    return f"unable to use supervise/: {error.strerror}"


def find(home: str, system: System, environ: Mapping[str, str]) -> Manager:
    """Who looks after the daemon of `home`. $QTWISTSERVICE names a service directory, $QTWISTUNIT a unit."""
    pid = daemon(home, system)
    if environ.get("QTWISTSERVICE"):
        return Supervised(environ["QTWISTSERVICE"])
    if environ.get("QTWISTUNIT"):
        return Unit(environ["QTWISTUNIT"], pid, system)
    for root in system.service_roots:
        for directory in _directories(root):
            if _is_service(directory, home, pid):
                return Supervised(directory)
    if os.path.isdir(system.systemd):
        unit = _own_unit(pid, system) if pid is not None else _waiting_unit(home, system)
        if unit is not None:
            manager: Alone = Unit(unit, pid, system)
            manager.roles = role_processes(home, system)
            return manager
    manager = Alone(home, pid, system)
    manager.roles = role_processes(home, system)
    return manager


def _directories(root: str) -> list[str]:
    try:
        return [os.path.join(root, name) for name in sorted(os.listdir(root)) if not name.startswith(".")]
    except OSError:
        return []


def _is_service(directory: str, home: str, pid: int | None) -> bool:
    """Whether the daemon runs, or while it does not run would run, from this service directory."""
    try:
        if pid is not None:
            with open(os.path.join(directory, "supervise", "status"), "rb") as file:
                return int.from_bytes(file.read(16)[12:], "little") == pid
        with open(os.path.join(directory, "run"), "rb") as file:
            run = file.read(65536)
    except OSError:
        return False
    path = os.fsencode(home)
    return b"qtwist" in run.replace(path, b"") and (path in run or home == DEFAULT_HOME)


def _own_unit(pid: int, system: System) -> str | None:
    """The unit whose main process the daemon is: being started from cron, say, makes it no part of cron's unit."""
    try:
        with open(os.path.join(system.proc, str(pid), "cgroup"), encoding="utf-8", errors="replace") as file:
            groups = [line.rstrip("\n").rpartition("/")[2] for line in file]
    except OSError:
        return None
    for unit in groups:
        if unit.endswith(".service") and system.systemctl("show", "-p", "MainPID", unit)[1].strip() == f"MainPID={pid}":
            return unit
    return None


def _waiting_unit(home: str, system: System) -> str | None:
    shown = system.systemctl("show", "-p", "LoadState", "-p", "ExecStart", "-p", "Environment", UNIT)[1]
    return UNIT if "LoadState=loaded" in shown and (home in shown or home == DEFAULT_HOME) else None


# Starting it ourselves.


def twistd_command() -> list[str]:
    """How to start twistd: the one beside this command, else this Python's."""
    for command in (os.path.abspath(sys.argv[0]), os.path.realpath(sys.argv[0])):  # the latter behind a link
        beside = os.path.join(os.path.dirname(command), "twistd")
        if os.access(beside, os.X_OK):
            return [beside]
    return [sys.executable, "-c", "import sys; sys.argv[0] = 'twistd'; from twisted.scripts.twistd import run; run()"]


def _placement(home: str) -> list[str]:
    """twistd's options for account, pid file and log. Trouble when the queue says no account."""
    if os.geteuid() != 0:
        for folder in ("run", "log"):
            os.makedirs(os.path.join(home, folder), mode=0o755, exist_ok=True)
        # Nobody holds the lock, so what may be in it is the number of a process that has ended.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(pid_file(home))
        return ["--pidfile", pid_file(home), "--logfile", os.path.join(home, "log", "twistd")]
    try:
        if os.stat(home).st_uid == 0:
            # The roles take on their accounts by themselves.
            return ["--pidfile=", "--syslog", "--prefix", "qtwist"]
        owner = os.stat(os.path.join(home, "queue"))
    except OSError as error:
        raise Trouble(f"{error.filename}: {error.strerror}") from error
    if owner.st_uid == 0:
        raise Trouble(f"{home}/queue belongs to root, and no mail is delivered as root: give it to an ordinary account")
    # Root writes no file where another account could have put a link.
    return ["--pidfile=", "--syslog", "--prefix", "qtwist", "--uid", str(owner.st_uid), "--gid", str(owner.st_gid)]
