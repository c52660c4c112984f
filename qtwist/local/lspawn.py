"""lspawn: all that runs as root once the mail system is up (doc/security.md; spec/qmail.md §11.2, §26.8).

It does four things. It starts deliveries: asked by the queue manager, it looks up who owns the address and hands the
message, an open descriptor, to a process that has become that user for good. It has such a process look whether an
address has a mailbox, asked by the servers. It starts processes that read a mailbox as its owner, asked by the role
that checks passwords. And it starts the role processes, from a table that was fixed before anything else ran.

It opens no socket, speaks to no network, reads no mail and runs no program as root. It uses the standard library, and
of qtwist only what has no more needs than that. The delivery code is loaded here, so that a fork is all that a delivery
costs; it runs in processes that have dropped root.

Started by `twistd qtwist` (:mod:`qtwist.processes.supervisor`) as ``python -I -S lspawn.py FD``: FD is the packet
socket of the supervisor; standard input tells the rest, see :class:`Config`.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # -I -S leave out everything but the standard library.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import contextlib
import gc
import json
import resource
import selectors
import signal
import socket
import stat
import traceback
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from qtwist.files.assign import Assignment
from qtwist.local import delivering
from qtwist.local.becoming import become, forget_signals, keep_only, no_new_privileges
from qtwist.local.children import Children, Key
from qtwist.local.errors import AS_ROOT, BAD_RECORD, PERMANENT, SYSTEM_TROUBLE, DeliveryError
from qtwist.local.packets import receive_or_end
from qtwist.local.users import Users
from qtwist.wire import spawning

#: The most deliveries at once.
LIMIT = 120
#: The most questions after mailboxes that are looked into at once.
MOST_QUESTIONS = 60
#: The most mailboxes that are read at once.
MOST_MAILBOXES = 1000
#: Descriptors that a role gets at most: its output, its errors, its supervisor, and its ports.
MOST_DESCRIPTORS = 64
#: Exit code of a role that could not even be started.
CANNOT_START = 126
#: What a look-up that did not come to its end is answered with (§11.3).
LOOKUP_FAILED = 121

#: What follows when an owner is found; and when not, with an exit code and a text.
Found = Callable[[Assignment], None]
Failed = Callable[[int, bytes], None]


class Config:
    """What the supervisor says at the start, as JSON: ``home``; ``queue`` (user id that owns the messages);
    ``lookup`` (user id, group id for asking the account database); ``roles`` (name: uid, gid, groups, argv, environ);
    ``pidfile`` (removed at the end) or null; ``defaults`` of control files that deliveries read."""

    def __init__(self, text: str) -> None:
        values = json.loads(text)
        self.home: str = values["home"]
        self.queue: int = values["queue"]
        self.lookup: tuple[int, int] = tuple(values["lookup"])  # type: ignore[assignment]
        self.roles: dict[str, dict[str, Any]] = values["roles"]
        self.pidfile: str | None = values["pidfile"]
        self.defaults: dict[str, Any] = values["defaults"]


class Request:
    """A delivery that was asked for by the queue manager behind `asker`; `fd` is the message, `siblings` as in
    :class:`~qtwist.interfaces.Delivery`."""

    __slots__ = ("asked", "asker", "delivery", "domain", "fd", "local", "sender", "siblings")

    def __init__(
        self,
        asker: socket.socket,
        delivery: int,
        fd: int,
        local: bytes,
        domain: bytes,
        sender: bytes,
        siblings: int = 1,
        asked: tuple[bytes, bytes] = (b"", b""),
    ) -> None:
        self.asker = asker
        self.delivery = delivery
        self.fd = fd
        self.local = local
        self.domain = domain
        self.sender = sender
        self.siblings = siblings
        self.asked = asked  # parameters of message and recipient (RFC 3461)


class Question:
    """A server wants to know whether an address has a mailbox. The answer is an exit code of a delivery's."""

    __slots__ = ("number", "socket")

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.socket = sock


class Spawner:
    """The whole of it: one loop over packet sockets."""

    def __init__(self, config: Config, supervisor: socket.socket) -> None:
        self.config = config
        self.supervisor = supervisor
        self.sender: socket.socket | None = None  # the queue manager
        self.selector = selectors.DefaultSelector()
        self.users = Users(os.fsencode(config.home) + b"/users/cdb", alias=lambda: None)
        self.running = 0
        self.children = Children(self._start_child, self._watch, self._forget)
        self.lookup: socket.socket | None = None
        self.parked: deque[tuple[Found, Failed]] = (
            deque()
        )  # wait for the look-up process, in the order of the questions
        self.servers: set[socket.socket] = set()  # they ask after mailboxes
        self.questions = 0
        self.logins: socket.socket | None = None  # the role that checks passwords
        self.mailboxes: set[int] = set()  # processes that read mailboxes
        self.roles: dict[int, str] = {}  # by process id
        self.ending = False

    def run(self) -> None:
        """Serve until the supervisor is gone, and what was being delivered then has ended."""
        wake, signalled = os.pipe()
        for end in (wake, signalled):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(signalled)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.selector.register(wake, selectors.EVENT_READ, lambda: self._reap(wake))
        self._watch(self.supervisor, self._on_supervisor)
        while not self.ending or self.running or self.parked or self.questions:
            for key, _ in self.selector.select(self.children.patience()):
                try:
                    key.data()
                except Exception:  # one bad packet must not end what nobody can start again
                    traceback.print_exc()
            self.children.end_idle(everything=self.ending)

    # -- packets --------------------------------------------------------------------------------------------------

    def _watch(self, sock: socket.socket, handle: Callable[[], None]) -> None:
        sock.setblocking(False)
        self.selector.register(sock, selectors.EVENT_READ, handle)

    def _forget(self, sock: socket.socket) -> None:
        self.selector.unregister(sock)
        sock.close()

    def _on_supervisor(self) -> None:
        packet, fds = receive_or_end(self.supervisor, spawning.LONGEST, MOST_DESCRIPTORS)
        try:
            if packet == b"sender" and len(fds) == 1 and not self.ending:
                self._new_sender(socket.socket(fileno=os.dup(fds[0])))
            elif packet == b"logins" and len(fds) == 1 and not self.ending:
                self._new_logins(socket.socket(fileno=os.dup(fds[0])))
            elif packet == b"recipients" and len(fds) == 1 and not self.ending:
                self._new_server(socket.socket(fileno=os.dup(fds[0])))
            elif packet.startswith(b"start ") and not self.ending:
                self._start_role(packet[6:].decode(), fds)
            elif packet.startswith(b"kill "):
                self._kill_role(int(packet[5:]))
            elif not packet:
                self._end()
        finally:
            _close(fds)

    def _end(self) -> None:
        """The supervisor is gone: nothing new, and what runs may end."""
        self.ending = True
        self._forget(self.supervisor)
        for sock in (self.sender, self.logins, *self.servers):
            if sock is not None:
                self._forget(sock)
        self.servers.clear()
        self.sender = self.logins = None
        if self.config.pidfile is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.config.pidfile)

    # -- deliveries -----------------------------------------------------------------------------------------------

    def _new_sender(self, sock: socket.socket) -> None:
        """Another queue manager, in place of one that has died."""
        if self.sender is not None:
            self._forget(self.sender)
        self.sender = sock
        self._watch(sock, self._on_sender)

    def _on_sender(self) -> None:
        assert self.sender is not None
        for _ in range(LIMIT):
            try:
                packet, fds = receive_or_end(self.sender, spawning.LONGEST, 1)
            except BlockingIOError:
                return
            if not packet:
                _close(fds)
                self._forget(self.sender)
                self.sender = None
                return
            self._on_request(packet, fds)

    def _on_request(self, packet: bytes, fds: list[int]) -> None:
        try:
            delivery, _, sender, recipient, siblings = spawning.read_request(packet)
        except ValueError:
            _close(fds)
            return
        local, at, domain = recipient.rpartition(b"@")
        refusal = self._refusal(fds)
        if refusal is None and not at:
            refusal = PERMANENT, b"A local address must have a host name. (#5.1.3)\n"
        if refusal is None and not local:
            refusal = 0, b""  # mail for nobody at this host is thrown away (§11.2)
        if refusal is not None:
            _close(fds)
            self._answer(self.sender, delivery, *refusal)
            return
        assert self.sender is not None
        asked = spawning.read_parameters(packet)
        request = Request(self.sender, delivery, fds[0], local, domain, sender, siblings, asked)
        self.running += 1
        self._find_owner(
            local,
            lambda owner: self._deliver(request, owner),
            lambda code, text: self._finish(request, code, text),
        )

    def _refusal(self, fds: list[int]) -> tuple[int, bytes] | None:
        """Why this message is not delivered: only a file of the queue's owner is a message (§26.8)."""
        if not fds:
            return SYSTEM_TROUBLE, b""
        status = os.fstat(fds[0])
        if not stat.S_ISREG(status.st_mode) or status.st_uid != self.config.queue:
            return BAD_RECORD, b"The message is no file of the queue. (#4.3.5)\n"
        if self.running >= LIMIT:
            return SYSTEM_TROUBLE, b"Too many deliveries are running. (#4.3.0)\n"
        return None

    def _deliver(self, request: Request, owner: Assignment) -> None:
        if owner.uid == 0:
            self._finish(request, AS_ROOT, b"")
            return
        job = (owner.user, owner.home, request.local, owner.dash, owner.ext, request.domain, request.sender)
        about = (*job, *request.asked, b"%d" % request.siblings)
        if not self.children.hand_over(owner, about, [request.fd], partial(self._finish, request)):
            self._finish(request, SYSTEM_TROUBLE, b"")

    def _start_child(self, key: Key) -> socket.socket:
        """A new process that is this user, and delivers. OSError when there can be none."""
        home, defaults = self.config.home, self.config.defaults
        sock, theirs = _pair()
        with theirs:
            try:
                self._fork(key[1], key[2], theirs, lambda sock: delivering.serve(sock, home, defaults))
            except OSError:
                sock.close()
                raise
        return sock

    def _finish(self, request: Request, code: int, output: bytes) -> None:
        os.close(request.fd)
        self.running -= 1
        self._answer(request.asker, request.delivery, code, output)

    def _answer(self, asker: socket.socket | None, delivery: int, code: int, output: bytes) -> None:
        """Tell the queue manager that has asked; the numbers of another one are its own."""
        if asker is not None and asker is self.sender:
            # The queue manager reads what it asked for; one that does not is as good as gone.
            packet = spawning.reply(delivery, code, output)
            with contextlib.suppress(OSError):
                try:
                    asker.send(packet)
                except BlockingIOError:
                    asker.setblocking(True)
                    asker.send(packet)
                    asker.setblocking(False)

    # -- questions of servers -------------------------------------------------------------------------------------

    def _new_server(self, sock: socket.socket) -> None:
        """A server that may ask after mailboxes, beside the others."""
        self.servers.add(sock)
        self._watch(sock, lambda: self._on_question(sock))

    def _on_question(self, sock: socket.socket) -> None:
        if sock not in self.servers:
            return  # lost in this very round
        packet, fds = receive_or_end(sock, spawning.LONGEST, 0)
        _close(fds)
        if not packet:
            self.servers.discard(sock)
            self._forget(sock)
            return
        try:
            number, _, _, local, _ = spawning.read_request(packet)
        except ValueError:
            return
        if not local:
            return  # no server asks that; to the look-up process it would be the end
        question = Question(number, sock)
        self.questions += 1
        if self.questions > MOST_QUESTIONS:
            self._answer_question(question, SYSTEM_TROUBLE)
            return
        self._find_owner(
            local,
            lambda owner: self._look(question, owner),
            lambda code, text: self._answer_question(question, code),
        )

    def _look(self, question: Question, owner: Assignment) -> None:
        """Have a process of the owner's look."""
        if owner.uid == 0:
            self._answer_question(question, AS_ROOT)
            return
        about = (owner.user, owner.home, owner.dash, owner.ext)
        if not self.children.hand_over(owner, about, [], lambda code, _: self._answer_question(question, code)):
            self._answer_question(question, SYSTEM_TROUBLE)

    def _answer_question(self, question: Question, code: int) -> None:
        self.questions -= 1
        if question.socket in self.servers:
            # A server that does not read what it asked for goes without.
            with contextlib.suppress(OSError):
                question.socket.send(spawning.reply(question.number, code, b""))

    # -- mailboxes ------------------------------------------------------------------------------------------------

    def _new_logins(self, sock: socket.socket) -> None:
        """Another role that checks passwords, in place of one that has died."""
        if self.logins is not None:
            self._forget(self.logins)
        self.logins = sock
        self._watch(sock, self._on_login)

    def _on_login(self) -> None:
        assert self.logins is not None
        packet, fds = receive_or_end(self.logins, spawning.LONGEST, 1)
        if not packet:
            _close(fds)
            self._forget(self.logins)
            self.logins = None
            return
        try:
            login, _, _, local, _ = spawning.read_request(packet)
            [fd] = fds
        except ValueError:
            _close(fds)
            return

        def found(owner: Assignment) -> None:
            try:
                self._open_mailbox(owner, socket.socket(fileno=fd))
            except OSError:
                self._answer_login(login, SYSTEM_TROUBLE)
            else:
                self._answer_login(login, 0)

        def failed(code: int, text: bytes) -> None:
            os.close(fd)
            self._answer_login(login, code)

        self._find_owner(local, found, failed, whole=True)

    def _open_mailbox(self, owner: Assignment, sock: socket.socket) -> None:
        """Start a process that reads the mailbox of `owner` for whoever is at the other end of `sock`."""
        with sock:
            if owner.uid == 0 or len(self.mailboxes) >= MOST_MAILBOXES:
                raise PermissionError("not now, or never")
            home = self.config.home
            pid = self._fork(owner.uid, owner.gid, sock, lambda sock: delivering.serve_mailbox(sock, home, owner))
            self.mailboxes.add(pid)

    def _answer_login(self, login: int, code: int) -> None:
        if self.logins is not None:
            with contextlib.suppress(OSError):
                self.logins.setblocking(True)
                self.logins.send(spawning.reply(login, code, b""))
                self.logins.setblocking(False)

    # -- owners ---------------------------------------------------------------------------------------------------

    def _find_owner(self, local: bytes, found: Found, failed: Failed, whole: bool = False) -> None:
        """Who owns `local`: by users/cdb, else by the account database. With `whole`, an extension is nobody's."""
        try:
            owner = self.users.assigned(local)
        except DeliveryError as error:
            failed(error.code, error.text + b"\n" if error.text else b"")
            return
        if owner is not None:
            found(owner)
            return

        def by_account(owner: Assignment) -> None:
            if whole and owner.dash:
                failed(PERMANENT, b"")
            else:
                found(owner)

        # The account database may use the network: a process without privileges asks it (qmail-getpw).
        try:
            if self.lookup is None:
                uid, gid = self.config.lookup
                home = os.fsencode(self.config.home)
                self.lookup, theirs = _pair()
                with theirs:
                    self._fork(uid, gid, theirs, lambda sock: delivering.serve_lookups(sock, home))
                self._watch(self.lookup, self._on_lookup)
            self.lookup.send(local)
        except OSError:
            failed(LOOKUP_FAILED, b"")
            return
        self.parked.append((by_account, failed))

    def _on_lookup(self) -> None:
        assert self.lookup is not None
        packet, fds = receive_or_end(self.lookup, spawning.LONGEST, 0)
        _close(fds)
        if not packet or not self.parked:
            self._forget(self.lookup)
            self.lookup = None
            parked, self.parked = self.parked, deque()
            for _, failed in parked:
                failed(LOOKUP_FAILED, b"")
            return
        found, failed = self.parked.popleft()
        try:
            code, user, uid, gid, home, dash, ext, text = spawning.read_fields(packet, 8)
            owner = Assignment(user, int(uid), int(gid), home, dash, ext)
            if int(code):
                failed(int(code), text)
                return
        except ValueError:
            failed(LOOKUP_FAILED, b"")
            return
        found(owner)

    # -- roles ----------------------------------------------------------------------------------------------------

    def _start_role(self, name: str, fds: list[int]) -> None:
        """Start a role of the table. Its descriptors: null, then those that came, from 1 on."""
        role = self.config.roles[name]
        try:
            pid = os.fork()
        except OSError:
            self._tell(b"failed " + name.encode())
            return
        if pid:
            self.roles[pid] = name
            self._tell(b"started %b %d" % (name.encode(), pid))
            return
        try:
            keep_only([os.open(os.devnull, os.O_RDONLY), *fds])
            forget_signals()
            become(role["uid"], role["gid"], role["groups"])
            no_new_privileges()
            os.execve(role["argv"][0], role["argv"], role["environ"])
        finally:
            os._exit(CANNOT_START)

    def _kill_role(self, pid: int) -> None:
        if pid in self.roles:
            os.kill(pid, signal.SIGKILL)

    def _reap(self, wake: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 4096)
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                self.mailboxes.discard(pid)
                name = self.roles.pop(pid, None)
                if name is not None:
                    self._tell(b"ended %b %d %d" % (name.encode(), pid, os.waitstatus_to_exitcode(status)))

    def _tell(self, packet: bytes) -> None:
        if not self.ending:
            with contextlib.suppress(OSError):
                self.supervisor.send(packet)

    # -- processes ------------------------------------------------------------------------------------------------

    def _fork(self, uid: int, gid: int, sock: socket.socket, work: Callable[[socket.socket], None]) -> int:
        """Start `work` as a user, with nothing but a packet socket; its process id. OSError when that cannot be."""
        pid = os.fork()
        if pid:
            return pid
        try:
            null = os.open(os.devnull, os.O_RDWR)
            keep_only([null, null, null, sock.fileno()])
            forget_signals()
            become(uid, gid, [gid])
            work(socket.socket(fileno=3))
        finally:
            os._exit(0)


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def main() -> NoReturn:
    """Serve the supervisor at descriptor 3."""
    os.environ.clear()
    os.umask(0o077)
    os.chdir("/")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)  # they are the supervisor's; our end is its end
    supervisor = socket.socket(fileno=int(sys.argv[1]))
    supervisor.set_inheritable(False)
    with open(0, encoding="utf-8") as text:
        config = Config(text.read())
    os.open(os.devnull, os.O_RDWR)  # is descriptor 0 from now on
    spawner = Spawner(config, supervisor)
    import ctypes  # now, not in every role that is started

    del ctypes
    gc.freeze()
    spawner.run()
    sys.exit(0)


if __name__ == "__main__":
    main()
