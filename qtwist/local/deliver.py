"""The engine of qmail-local: carry out what the recipient's .qmail file asks for (spec/qmail.md §13).

Plain blocking Python: it runs in a thread of the daemon, in a process that took on the recipient's user id, or as the
command qmail-local. It changes nothing of the process (working directory, umask, environment); every path is absolute.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qtwist.files.assign import Assignment
from qtwist.files.disk import Disk, RealDisk
from qtwist.files.maildir import MaildirError, store
from qtwist.files.mbox import MboxError, deliver_to_mbox
from qtwist.files.syncing import Ended, Syncing, sync_alone, sync_together
from qtwist.local import dotqmail, environment
from qtwist.local.errors import DONE, PERMANENT, TEMPORARY, DeliveryError, is_temporary, reason
from qtwist.local.program import outcome, run_program
from qtwist.mail.asked import PASSED_ON
from qtwist.mail.envelope import Report

#: Mode bits that make a home directory or a .qmail file untrusted (conf-patrn, §1.1).
_WRITABLE_BITS = 0o002

#: The loop check looks at this many octets of the header at most (§13.1; the original has no bound).
_MAXIMUM_HEADER = 1024 * 1024
_HEADER_BLOCK = 16384

_NOTHING = (b"", b"")  # asked for

#: The octets of all programs' output that are kept.
_MAXIMUM_OUTPUT = 10_000


@dataclass(frozen=True, slots=True)
class Job:
    """One delivery, in the words of qmail-local's arguments (§13).

    `fd` is the message, seekable; it stays open and its offset may have moved afterwards. `default_delivery` is used
    when there is no .qmail file. With `dry_run` nothing is read or delivered and the output says what would be done.
    `asked` are the parameters of message and recipient (:mod:`qtwist.mail.asked`), for the next one.
    """

    user: bytes
    home: bytes
    local: bytes
    dash: bytes
    ext: bytes
    domain: bytes
    sender: bytes
    default_delivery: bytes
    fd: int
    dry_run: bool = False
    asked: tuple[bytes, bytes] = _NOTHING

    @classmethod
    def of(
        cls,
        owner: Assignment,
        local: bytes,
        domain: bytes,
        sender: bytes,
        default_delivery: bytes,
        fd: int,
        *,
        dry_run: bool = False,
        asked: tuple[bytes, bytes] = _NOTHING,
    ) -> Job:
        """The delivery to `local` at `domain`, which belongs to `owner`."""
        folder = owner.user, owner.home
        return cls(*folder, local, owner.dash, owner.ext, domain, sender, default_delivery, fd, dry_run, asked)


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What the queue said to the forwarded message; `qp` counts when the report is a success."""

    report: Report
    qp: int = 0


#: Queue the message `fd` with the given lines before it, for (sender, recipients), with parameters as in :class:`Job`.
Forward = Callable[[int, bytes, bytes, Sequence[bytes], tuple[bytes, bytes]], Forwarded]


@dataclass(frozen=True, slots=True)
class Parts:
    """What the engine needs from outside: `now` in seconds since the epoch, `hostname` for maildir names,
    `base_environment` for what programs get beside the variables of §13.3 (PATH), `program_timeout` in seconds."""

    disk: Disk
    now: Callable[[], float]
    hostname: bytes
    forward: Forward
    base_environment: Mapping[bytes, bytes]
    program_timeout: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """The exit code that qmail-local would have given, and its output (standard output and error together)."""

    code: int
    output: bytes


def deliver(job: Job, parts: Parts) -> Outcome:
    """Deliver the message of `job`, or explain it with ``job.dry_run``; every failure is told by the exit code.

    Codes: 0, 100 (permanent), 111 (temporary), or 113 where a program would have to run as root.
    """
    return LocalDelivery(job, parts).carry_out()


def find_mailbox(user: bytes, home: bytes, dash: bytes, ext: bytes) -> int:
    """Whether a delivery to such an owner would get as far as its instructions: 0, 100 when there are none for the
    address, 111 when they cannot be read now. A sticky home is one where mail waits for its owner: 0.

    Nothing is delivered, and the instructions are not carried out.
    """
    job = Job(user, home, b"", dash, ext, b"", b"", b"./Maildir/", -1, dry_run=True)
    refusal = LocalDelivery(job, Parts(RealDisk(), time.time, b"", _no_forward, {}, 0)).refusal
    return DONE if refusal is None else refusal.code


def _no_forward(*_: object) -> Forwarded:
    raise AssertionError("a look-up forwards nothing")


def deliver_together(deliveries: Sequence[LocalDelivery], disk: Disk) -> list[Ended[Outcome]]:
    """Carry out deliveries that are `brief`, so that they share their flushes; how each has ended, in their order."""
    return sync_together(disk, [one.steps() for one in deliveries])


class LocalDelivery:
    """One delivery. Made, it has looked at home directory, loop and .qmail file (§13.1), and delivered nothing; what
    was found wrong comes out when it is carried out, once."""

    def __init__(self, job: Job, parts: Parts) -> None:
        self.job = job
        self.parts = parts
        self.output = bytearray()
        self.started = parts.now()
        self.files = 0
        self.programs = 0
        self.forwards: list[bytes] = []
        self.instructions: list[dotqmail.Instruction] = []
        self.refusal: DeliveryError | None = None
        try:
            self._prepare()
        except DeliveryError as error:
            self.refusal = error

    @property
    def brief(self) -> bool:
        """Whether it waits for nothing but the disk: no program, no lock, no queue."""
        return all(isinstance(one, (dotqmail.Maildir, dotqmail.ForwardOnly)) for one in self.instructions)

    def carry_out(self) -> Outcome:
        """Deliver, in one go."""
        return sync_alone(self.parts.disk, self.steps())

    def steps(self) -> Syncing[Outcome]:
        """Deliver, asking for the syncs of maildirs."""
        try:
            yield from self._carry_out()
        except DeliveryError as error:
            if error.text:
                self.output += error.text + b"\n"
            return Outcome(error.code, bytes(self.output))
        return Outcome(DONE, bytes(self.output))

    def _prepare(self) -> None:
        job = self.job
        self._check_arguments()
        self._check_home()
        self.delivered_to = environment.delivered_to(job.local, job.domain)
        self.return_path = environment.return_path(job.sender)
        if not job.dry_run and has_line(self.parts.disk, job.fd, self.delivered_to):
            raise DeliveryError(
                PERMANENT, b"Mail loop: the message has been delivered to this address before. (#5.4.6)"
            )
        text, self.forward_only, self.default = self._find_instructions()
        self.new_sender = self._forwarding_sender()
        self.instructions = list(dotqmail.instructions(text))

    def _carry_out(self) -> Syncing[None]:
        """The instructions in order, then what was forwarded, in one queue run."""
        if self.refusal is not None:
            raise self.refusal
        forward_only = self.forward_only
        for instruction in self.instructions:
            if isinstance(instruction, dotqmail.ForwardOnly):
                forward_only = True
            elif not (yield from self._execute(instruction, forward_only)):
                break
        qp = self._forward() if self.forwards and not self.job.dry_run else None
        self.output += b"did %d+%d+%d\n" % (self.files, len(self.forwards), self.programs)
        if qp is not None:
            self.output += b"qp %d\n" % qp
            if self._asked_on != _NOTHING:
                self.output += PASSED_ON

    # -- preparations ---------------------------------------------------------------------------------------------

    def _check_arguments(self) -> None:
        job = self.job
        if not job.home.startswith(b"/"):
            raise DeliveryError(PERMANENT, b"The home directory is not an absolute path. (#5.3.5)")
        if any(b"\0" in text for text in (job.user, job.home, job.local, job.dash, job.ext, job.domain, job.sender)):
            raise DeliveryError(PERMANENT, b"There is a NUL in the addresses. (#5.1.3)")

    def _check_home(self) -> None:
        home = self.job.home
        try:
            # The dot makes the system check that it is a directory, and one that we may enter.
            status = os.stat(os.path.join(home, b"."))
        except OSError as error:
            raise DeliveryError(
                TEMPORARY, b"Unable to enter " + home + b": " + reason(error) + b". (#4.3.0)"
            ) from error
        if status.st_mode & _WRITABLE_BITS:
            raise DeliveryError(TEMPORARY, b"The home directory is writable by anybody: not trusted. (#4.7.0)")
        if status.st_mode & stat.S_ISVTX:
            if not self.job.dry_run:
                raise DeliveryError(TEMPORARY, b"The home directory is sticky: its owner is at work there. (#4.2.1)")
            self.output += b"Warning: the home directory is sticky.\n"

    def _find_instructions(self) -> tuple[bytes, bool, bytes | None]:
        """The text to carry out, whether it may only forward, and $DEFAULT (§13.4)."""
        job = self.job
        for candidate in dotqmail.candidates(job.dash, job.ext):
            found = self._read(candidate.name)
            if found is not None:
                text, forward_only = found
                if not text:
                    return job.default_delivery, False, candidate.default
                return text, forward_only, candidate.default
        if job.dash:
            raise DeliveryError(PERMANENT, b"There is no mailbox of that name here. (#5.1.1)")
        return job.default_delivery, False, None

    def _read(self, name: bytes) -> tuple[bytes, bool] | None:
        """Contents and forward-only bit of a .qmail file; None when there is no such regular file."""
        try:
            fd = os.open(self._path(name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            if is_temporary(error) or isinstance(error, PermissionError):
                raise self._unreadable(name, error) from error
            return None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return None
            if status.st_mode & _WRITABLE_BITS:
                raise DeliveryError(TEMPORARY, b"The file " + name + b" is writable by anybody: not trusted. (#4.7.0)")
            with open(fd, "rb", closefd=False) as file:
                text = file.read(dotqmail.MAXIMUM_SIZE + 1)
        except OSError as error:
            raise self._unreadable(name, error) from error
        finally:
            os.close(fd)
        if len(text) > dotqmail.MAXIMUM_SIZE:
            size = b"%d octets" % dotqmail.MAXIMUM_SIZE
            raise DeliveryError(TEMPORARY, b"The file " + name + b" has more than " + size + b". (#4.3.0)")
        return text, bool(status.st_mode & stat.S_IXUSR)

    def _forwarding_sender(self) -> bytes:
        job = self.job
        if job.sender in {b"", b"#@[]"}:
            return job.sender
        owner = b".qmail" + job.dash + dotqmail.safe_extension(job.ext) + b"-owner"
        exists = self._exists(owner)
        return environment.forwarding_sender(
            job.sender, job.local, job.domain, exists, exists and self._exists(owner + b"-default")
        )

    def _exists(self, name: bytes) -> bool:
        try:
            os.stat(self._path(name))
        except OSError as error:
            if is_temporary(error):
                raise self._unreadable(name, error) from error
            return False
        return True

    def _path(self, name: bytes) -> bytes:
        return os.path.join(self.job.home, name)

    @staticmethod
    def _unreadable(name: bytes, error: OSError) -> DeliveryError:
        return DeliveryError(TEMPORARY, b"Unable to read " + name + b": " + reason(error) + b". (#4.3.0)")

    # -- instructions ---------------------------------------------------------------------------------------------

    def _execute(self, instruction: dotqmail.Instruction, forward_only: bool) -> Syncing[bool]:
        """Carry out one instruction; False when the rest is not wanted (§13.5)."""
        if isinstance(instruction, dotqmail.BlankStart):
            raise DeliveryError(TEMPORARY, b"The first line of the .qmail file is blank. (#4.2.1)")
        if isinstance(instruction, dotqmail.Forward):
            self.forwards.append(instruction.address)
            self._explain(b"forward ", instruction.address)
            return True
        if isinstance(instruction, dotqmail.Program):
            self.programs += 1
            if forward_only:
                raise DeliveryError(TEMPORARY, b"The .qmail file may only forward, but it runs a program. (#4.7.0)")
            return self._explain(b"program ", instruction.command) or self._run_program(instruction.command)
        self.files += 1
        if forward_only:
            raise DeliveryError(TEMPORARY, b"The .qmail file may only forward, but it names a mailbox. (#4.7.0)")
        if isinstance(instruction, dotqmail.Maildir):
            return self._explain(b"maildir ", instruction.path) or (yield from self._store_in_maildir(instruction.path))
        assert isinstance(instruction, dotqmail.Mbox)
        return self._explain(b"mbox ", instruction.path) or self._append_to_mbox(instruction.path)

    def _explain(self, kind: bytes, what: bytes) -> bool:
        if self.job.dry_run:
            self.output += kind + what + b"\n"
        return self.job.dry_run

    def _store_in_maildir(self, path: bytes) -> Syncing[bool]:
        parts = self.parts
        lines = self.return_path + self.delivered_to
        try:
            yield from store(parts.disk, self._path(path), self.job.fd, lines, parts.now(), parts.hostname)
        except MaildirError as error:
            raise DeliveryError(TEMPORARY, error.text) from error
        return True

    def _append_to_mbox(self, path: bytes) -> bool:
        lines = environment.from_line(self.job.sender, self.started) + self.return_path + self.delivered_to
        try:
            deliver_to_mbox(self.parts.disk, self._path(path), self.job.fd, lines)
        except MboxError as error:
            raise DeliveryError(TEMPORARY, error.text) from error
        return True

    def _run_program(self, command: bytes) -> bool:
        job, parts = self.job, self.parts
        own = environment.variables(
            user=job.user,
            home=job.home,
            local=job.local,
            domain=job.domain,
            ext=job.ext,
            sender=job.sender,
            new_sender=self.new_sender,
            now=self.started,
            default=self.default,
        )
        run = run_program(
            command,
            fd=job.fd,
            home=job.home,
            environment={**parts.base_environment, **own},
            timeout=parts.program_timeout,
        )
        self.output += run.output[: max(0, _MAXIMUM_OUTPUT - len(self.output))]
        return outcome(run, parts.program_timeout)

    @property
    def _asked_on(self) -> tuple[bytes, bytes]:
        """What goes on with a forward (RFC 3461 §5.2.7.2): everything where that is all that is done, to one address,
        and the sender stays; else it would be a list, or reported twice, and nothing goes on."""
        alone = len(self.forwards) == 1 and not self.files and not self.programs
        return self.job.asked if alone and self.new_sender == self.job.sender else _NOTHING

    def _forward(self) -> int:
        """Send on what was collected; the number that the report calls qp."""
        result = self.parts.forward(self.job.fd, self.delivered_to, self.new_sender, self.forwards, self._asked_on)
        if result.report.letter == b"K":
            return result.qp
        code = PERMANENT if result.report.letter == b"D" else TEMPORARY
        raise DeliveryError(code, b"Unable to forward the message: " + result.report.text.rstrip(b"\n"))


def has_line(disk: Disk, fd: int, line: bytes) -> bool:
    """Whether the header of the message `fd` holds `line` (LF included) as a whole line (§13.1).

    The header ends at the first empty line, or at the end of the message, where a line without LF does not count; of
    a header that never ends, the first MiB is looked at. The file offset stays.
    """
    header = b""
    try:
        while len(header) < _MAXIMUM_HEADER:
            block = disk.pread(fd, _HEADER_BLOCK, len(header))
            seen = max(0, len(header) - 1)
            header += block
            if header.startswith(b"\n"):
                return False
            end = header.find(b"\n\n", seen)
            if end >= 0:
                header = header[: end + 1]
                break
            if not block:
                break
    except OSError as error:
        raise DeliveryError(TEMPORARY, b"Unable to read the message: " + reason(error) + b". (#4.3.0)") from error
    return header.startswith(line) or b"\n" + line in header
