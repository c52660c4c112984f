"""`make demo`: a home in ./demo, a daemon on loopback, messages that take every road, and one read back by POP3.

    python -m tools.demo start | stop

The daemon stays when `start` ends. Where the caller is root, all of it runs under an ordinary account (see
tools/account.py); if that account cannot enter the checkout or run its Python, ./demo becomes a link to a folder under
/var/tmp that holds home and virtual environment.
"""

from __future__ import annotations

import contextlib
import glob
import os
import poplib
import re
import secrets
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from email.message import EmailMessage
from typing import TextIO

import attrs

from tools.account import Account, can_run, environment, ordinary_account

CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DEMO = os.path.join(CHECKOUT, "demo")
ME = "demo.example"
ELSEWHERE = "elsewhere.example"
PATIENCE = 60.0  # seconds to wait for anything, on a machine that is busy with other things
PROGRAM_LINE = '|{ echo "for $RECIPIENT from $SENDER"; cat; } >>program.out\n'
PAUSE = 0.05  # seconds between two looks
# qmail's own log lines (spec/qmail.md §9.7), whatever a logger puts in front of them.
LOG_LINE = re.compile(
    r"(?:^|\s)((?:status: |new msg |info msg |starting delivery |delivery \d|bounce msg |triple bounce: |end msg "
    r"|warning: |alert: ).*)"
)


def fail(text: str) -> SystemExit:
    return SystemExit(f"demo: {text}")


def wait_for(what: str, ready: Callable[[], bool]) -> None:
    """Look until `ready` says yes. SystemExit that names `what` when patience ends."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if time.monotonic() > deadline:
            raise fail(f"waited {PATIENCE:.0f} s in vain for {what}")
        time.sleep(PAUSE)


def free_port(preferred: int = 0) -> int:
    """A loopback port that nobody listens on: `preferred` when it is free."""
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise fail("no free port on 127.0.0.1")


def listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
        return True
    return False


@attrs.frozen
class Ports:
    """Where the daemon and the host elsewhere listen, on loopback."""

    smtp: int
    pop3: int
    sink: int


@attrs.frozen
class Place:
    """Where the demo lives and who runs it."""

    root: str  # the folder behind ./demo
    python: str
    account: Account

    def program(self, name: str) -> str:
        """A command that came with the Python's environment."""
        return os.path.join(os.path.dirname(self.python), name)

    @property
    def home(self) -> str:
        return os.path.join(self.root, "home")

    @property
    def log(self) -> str:
        return os.path.join(self.root, "log")

    @property
    def mailbox(self) -> str:
        """The home of the first mailbox."""
        return os.path.join(self.home, "mail", self.account.name)

    @property
    def reader(self) -> str:
        """Whose mail is read by POP3: a person made for it, who needs no account of the system."""
        return "ann" if self.account.name != "ann" else "bea"

    @property
    def sink(self) -> str:
        return os.path.join(self.root, "elsewhere")

    def run(self, *command: str, text: str = "") -> None:
        """Run a command as the account, `text` its input, what it prints put aside; SystemExit, with that, when it
        fails."""
        done = subprocess.run(
            command,
            check=False,
            cwd=self.root,
            env=environment(),
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **self.account.identity(),
        )
        if done.returncode != 0:
            raise fail(f"{' '.join(command)} ended with {done.returncode}: {done.stdout.strip()}")

    def start(self, name: str, log: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a command as the account in a session of its own, its output in `log`; its pid goes to NAME.pid."""
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self.root,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **self.account.identity(),
            )
        with open(os.path.join(self.root, f"{name}.pid"), "w") as file:
            file.write(f"{process.pid}\n")
        return process

    def write(self, path: str, text: str) -> None:
        """Write a file as the account would."""
        self.run(self.python, "-c", "import sys; open(sys.argv[1], 'w').write(sys.argv[2])", path, text)


# --- start and stop -------------------------------------------------------------------------------------------------


def running(pid: int, root: str) -> bool:
    """Whether `pid` is still the process that a demo in `root` started (numbers are used again)."""
    if os.path.isdir("/proc/self"):
        try:
            with open(f"/proc/{pid}/cmdline") as file:
                return root in file.read()
        except OSError:
            return False
    command = ["ps", "-ww", "-o", "args=", "-p", str(pid)]
    return root in subprocess.run(command, check=False, capture_output=True, text=True).stdout


def stop() -> bool:
    """End what an earlier demo left running. True when there was something to end."""
    root = os.path.realpath(DEMO)
    stopped = False
    # The daemon first: it may still be talking to the sink.
    for name in ("qtwist", "sink"):
        try:
            with open(os.path.join(root, f"{name}.pid")) as file:
                pid = int(file.read())
        except (FileNotFoundError, ValueError):
            continue
        if running(pid, root):
            os.kill(pid, signal.SIGTERM)
            wait_for(f"process {pid} to end", lambda pid=pid: not running(pid, root))  # type: ignore[misc]
            stopped = True
        os.unlink(os.path.join(root, f"{name}.pid"))
    return stopped


def remove() -> None:
    """Remove an earlier demo, the folder behind the link included."""
    if os.path.islink(DEMO):
        target = os.readlink(DEMO)
        os.unlink(DEMO)
        if os.path.basename(target).startswith("qtwist-demo-") and os.path.isdir(target):
            shutil.rmtree(target)
    elif os.path.isdir(DEMO):
        shutil.rmtree(DEMO)


def usable(account: Account, python: str) -> bool:
    """Whether `account` can run qtwist with this Python, from anywhere."""
    return can_run(account, [python, "-c", "import qtwist.interfaces"])


def make_place() -> Place:
    """A fresh folder that the account owns, and a Python there or here that it can run qtwist with."""
    account = ordinary_account()
    here = usable(account, sys.executable)
    if here:
        root = DEMO
        os.mkdir(root, 0o755)
    else:
        root = tempfile.mkdtemp(prefix="qtwist-demo-", dir="/var/tmp")
        os.chmod(root, 0o755)
        os.symlink(root, DEMO)
        print(f"{account.name} cannot use what is in {CHECKOUT}: ./demo is a link to {root}, environment included")
    place = Place(root, sys.executable if here else os.path.join(root, "venv", "bin", "python"), account)
    if not here:
        find = ["sh", os.path.join(CHECKOUT, "tools", "find-python")]
        finder = subprocess.run(find, check=False, capture_output=True, text=True)
        if finder.returncode != 0:
            raise fail(finder.stderr.strip())
        # The environment stays root's: the account runs it and cannot change it.
        subprocess.run([finder.stdout.strip(), "-m", "venv", os.path.join(root, "venv")], check=True)
        pip = [place.python, "-m", "pip", "--disable-pip-version-check", "-qq"]
        subprocess.run([*pip, "install", CHECKOUT], check=True)
        if not usable(account, place.python):
            raise fail(f"{account.name} cannot run {place.python} either; install Debian's python3 and python3-venv")
    for folder in (place.home, place.sink):
        os.mkdir(folder, 0o755)
        if account.switch:
            os.chown(folder, account.uid, account.gid)
    return place


# --- the play -------------------------------------------------------------------------------------------------------


def prepare(place: Place, ports: Ports, password: str) -> None:
    """Make the home, what the messages need, and somebody who reads mail by POP3."""
    user = place.account.name
    # It runs as the account, so the name is told only where passwd has none.
    place.run(place.program("qtwist"), "init", place.home, "--me", ME, "--port", str(ports.smtp), "--user", user)
    print(f"made a home: qtwist init {place.home} --me {ME} --port {ports.smtp}")
    listen = os.path.join(place.home, "control", "listen")
    with open(listen) as file:
        served = file.read()
    for path, text in (
        (listen, f"{served}pop3 tcp:{ports.pop3}:interface=127.0.0.1\n"),
        # The demo's client may send mail to elsewhere, and elsewhere is a sink on this machine.
        (os.path.join(place.home, "control", "relayclients"), "127.0.0.1\n"),
        (os.path.join(place.home, "control", "smtproutes"), f"{ELSEWHERE}:127.0.0.1:{ports.sink}\n"),
        (os.path.join(place.mailbox, ".qmail-notes"), "./notes\n"),
        (os.path.join(place.mailbox, ".qmail-program"), PROGRAM_LINE),
        (os.path.join(place.mailbox, ".qmail-forward"), f"&{user}-notes@{ME}\n"),
    ):
        place.write(path, text)
        print(f"wrote {os.path.relpath(path, place.home)}: {', '.join(text.splitlines())}")
    place.run(place.program("qtwist"), "user", "add", place.reader, "--home", place.home, text=f"{password}\n")
    print(
        f"gave {place.reader} an address, a mailbox and a password: qtwist user add {place.reader} --home {place.home}"
    )


def start_sink(place: Place, port: int) -> None:
    program = shutil.which("smtp-sink", path=environment()["PATH"])
    if program:
        # The template goes through strftime, which a % in the path would confuse.
        template = os.path.join(place.sink.replace("%", "%%"), "message.")
        command = [program, "-d", template, f"127.0.0.1:{port}", "100"]
    else:
        ours = shutil.copy(os.path.join(CHECKOUT, "tools", "sink.py"), place.root)
        command = [place.python, ours, str(port), place.sink]
    process = place.start("sink", os.path.join(place.root, "sink.log"), *command)
    wait_for("the sink to listen", lambda: listening(port) or process.poll() is not None)
    if process.poll() is not None:
        raise fail(f"the sink did not start; see {place.root}/sink.log")


def start_daemon(place: Place, ports: Ports) -> subprocess.Popen[bytes]:
    process = place.start(
        "qtwist",
        place.log,
        *(place.program("twistd"), "-n", "--pidfile=", "qtwist", "--home", place.home),
    )
    served = (ports.smtp, ports.pop3)
    wait_for("the daemon to listen", lambda: all(map(listening, served)) or process.poll() is not None)
    if process.poll() is not None:
        with open(place.log, errors="replace") as log:
            print(log.read())
        raise fail(f"twistd ended with {process.returncode}; see {place.log}")
    print(f"started twistd qtwist as {place.account.name}, process {process.pid}")
    return process


def letters(user: str, reader: str) -> Iterator[tuple[str, str, int]]:
    """(recipient, what becomes of it, how many messages that makes in the queue) of each that is sent."""
    yield f"{user}@{ME}", "into the Maildir", 1
    yield f"{user}-notes@{ME}", "an extension address: into an mbox, as .qmail-notes says", 1
    yield f"{user}-program@{ME}", "to a program, as .qmail-program says", 1
    yield f"{user}-forward@{ME}", "forwarded, as .qmail-forward says", 2
    yield f"someone@{ELSEWHERE}", "to a host elsewhere", 1
    yield f"{user}-nowhere@{ME}", "to nobody: it bounces", 2
    yield f"{reader}@{ME}", "to somebody who reads by POP3", 1


def send(place: Place, port: int, process: subprocess.Popen[bytes]) -> None:
    """Send the messages, one after another, and print qmail's log lines as they come."""
    user = place.account.name
    with open(place.log, errors="replace") as log, smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE) as client:
        for number, (recipient, fate, ends) in enumerate(letters(user, place.reader), 1):
            message = EmailMessage()
            message["From"], message["To"] = f"{user}@{ME}", recipient
            message["Subject"] = f"{number}: {fate}"
            message.set_content(f"This is message {number} of the demo.\n")
            client.send_message(message)
            print(f"\n{number} to {recipient}: {fate}")
            follow(log, process, ends)


def follow(log: TextIO, process: subprocess.Popen[bytes], ends: int) -> None:
    """Print qmail's lines of the daemon's log as they come, until that many messages have ended."""
    seen = 0
    rest = ""

    def look() -> bool:
        nonlocal seen, rest
        *lines, rest = (rest + log.read()).split("\n")
        for line in filter(None, map(LOG_LINE.search, lines)):
            print(f"    {line[1]}", flush=True)
            seen += line[1].startswith("end msg ")
        return seen >= ends or process.poll() is not None

    wait_for(f"{ends} messages to be done", look)
    if seen < ends:
        raise fail(f"twistd ended with {process.returncode}; see {log.name}")


def show(place: Place) -> None:
    """Print what arrived where: a few header lines of each message."""

    def title(path: str) -> str:
        return os.path.relpath(path, place.root)

    found = [
        *sorted(glob.glob(os.path.join(place.home, "mail", "*", "Maildir", "new", "*"))),
        os.path.join(place.mailbox, "notes"),
        os.path.join(place.mailbox, "program.out"),
        *sorted(glob.glob(os.path.join(place.sink, "*"))),
    ]
    for path in found:
        print(f"\n{title(path)}")
        with open(path, errors="replace") as file:
            show_lines(file, "  ")


def show_lines(lines: Iterable[str], indent: str) -> None:
    """Print those that tell one message from another."""
    for line in lines:
        if re.match(r"From |(Delivered-To|Return-Path|From|To|Subject): |for .* from ", line):
            print(f"{indent}{line.rstrip()}")


def read(place: Place, port: int, password: str) -> None:
    """Read a mailbox by POP3 and print the dialogue. SystemExit when the message is not there."""

    def log_in() -> tuple[poplib.POP3, list[tuple[str, bytes]]]:
        client = poplib.POP3("127.0.0.1", port, timeout=PATIENCE)
        answers = [("", client.getwelcome())]
        answers.append((f"USER {place.reader}", client.user(place.reader)))
        answers.append(("PASS ...", client.pass_(password)))
        return client, answers

    def there() -> bool:
        client, _ = log_in()
        count, _ = client.stat()
        client.quit()
        return count > 0

    # A message of the current second is not listed yet (doc/pop3.md).
    wait_for(f"a message for {place.reader}", there)
    client, answers = log_in()
    answers.append(("UIDL 1", client.uidl(1)))
    reply, lines, _ = client.retr(1)
    answers.append(("RETR 1", reply))
    for command, answer in answers:
        print(f"    {command:<8}  {answer.decode().rstrip()}")
    show_lines((line.decode(errors="replace") for line in lines), " " * 14)
    print(f"    {'QUIT':<8}  {client.quit().decode().rstrip()}")


def start() -> None:
    os.umask(0o022)
    if stop():
        print("stopped the earlier demo")
    remove()
    try:
        play(make_place())
    except BaseException:
        stop()
        raise


def play(place: Place) -> None:
    ports = Ports(free_port(2525), free_port(2110), free_port())
    password = secrets.token_urlsafe(9)
    prepare(place, ports, password)
    start_sink(place, ports.sink)
    process = start_daemon(place, ports)
    print(f"\n--- messages go in by SMTP; {place.log} says")
    send(place, ports.smtp, process)
    print("\n--- where they are now")
    show(place)
    print(f"\n--- {place.reader} reads by POP3")
    read(place, ports.pop3, password)
    print(
        f"\nThe daemon still runs (process {process.pid}). Talk to it:\n"
        f"  swaks --server 127.0.0.1:{ports.smtp} --from you@{ME} --to {place.reader}@{ME}\n"
        f"  curl --user {place.reader}:{password} pop3://127.0.0.1:{ports.pop3}/1\n"
        f"  nc 127.0.0.1 {ports.smtp}, nc 127.0.0.1 {ports.pop3}: the protocols by hand\n"
        f"  tail -f {place.log}\n"
        "Stop it:\n"
        "  make demo-stop"
    )


def main() -> None:
    if sys.argv[1:] == ["start"]:
        start()
    elif sys.argv[1:] == ["stop"]:
        print("stopped" if stop() else "no demo was running")
    else:
        raise SystemExit("usage: python -m tools.demo start|stop")


if __name__ == "__main__":
    main()
