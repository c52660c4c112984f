"""The crash machine: lives of the daemon on one disk, each ended by a stop, and a judge who knows what was promised.

A life is the real FileQueue, QueueManager, Steering and delivery engine (maildir, mbox) over a
:class:`~tests.sim.disk.SimulatedDisk`, with scripted remote hosts. :class:`Machine` sends mail through it, stops it
anywhere, looks at what is left, and starts the next life. What it holds against the contract (doc/durability.md):

- what was answered with success is there until every recipient has a result;
- nothing is delivered that was refused or never committed, to nobody but its recipients, and never in part;
- who has a result gets nothing more, except after a stop that lost the mark;
- each failure is told to the sender, or to those who get what cannot be told;
- after any stop the files are in one of the states S1 to S5 (spec/qmail.md §5.3), and in the end the queue is empty.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn
from unittest import mock

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from qtwist.clock import shift
from qtwist.interfaces import Accepted, Delivery
from qtwist.local.deliver import Forwarded, Job, LocalDelivery, Parts, deliver_together
from qtwist.local.report import report
from qtwist.mail.asked import Asked
from qtwist.mail.constmap import ConstantMap
from qtwist.mail.envelope import Envelope, Origin, Report
from qtwist.mail.holds import Hold, Holds
from qtwist.mail.rewriting import Rewriter
from qtwist.queue import journal
from qtwist.queue.files import FileQueue
from qtwist.queue.journal import Entry, Journal, Record, replay
from qtwist.queue.journaled import JournaledQueue
from qtwist.queue.layout import LayoutError, create_queue
from qtwist.queue.live import Live
from qtwist.queue.sync import batch_limit, close_quietly
from qtwist.send import bounces
from qtwist.send.log import SendLog
from qtwist.send.manager import GARBAGE_INTERVAL, QueueManager, SendSettings
from qtwist.send.steering import Steering
from tests.sim.disk import Crash, Model, SimulatedDisk
from tests.sim.running import SimulatedCommitter, SimulatedReactor, SimulatedWorkers, SimulatedWriter, Tasks

QUEUE = "/sim/queue"
SPLIT = 2
SEGMENT = 16 * 1024
ROOMS = ("mess", "info", "local", "remote", "intd", "todo", "bounce", "pid")
#: More than the disk calls of any story.
_PATIENCE = 20_000

#: Nothing grows too old here.
_LIFETIME = 10**9

_TOKEN = re.compile(rb"^token: (\d+)\n", re.MULTILINE)
_PARAGRAPH = re.compile(rb"^<([^>\n]+)>:\n", re.MULTILINE)
_RECEIVED = re.compile(rb"Received: \(qmail \d+ invoked [^\n]*\n")
_DELIVERED = re.compile(rb"Return-Path: [^\n]*\nDelivered-To: ([^\n]+)\n" + _RECEIVED.pattern)
_NAMED = re.compile(rb"^Original-Recipient: rfc822; (.*)\nFinal-Recipient: rfc822; (.*)\nAction: failed$", re.MULTILINE)
_NOTICE = b"\nSubject: failure notice\n"

OPEN, ACCEPTED, REFUSED, GONE = "open", "accepted", "refused", "gone"


class Violation(Exception):
    """The contract is broken."""


@attrs.define(eq=False)
class Sent:
    """A message that the machine has handed in. `state` is what the queue has answered; `committed` whether it was
    asked to keep it."""

    token: int
    sender: bytes
    recipients: tuple[bytes, ...]
    text: bytes
    state: str = OPEN
    committed: bool = False
    number: int | None = None
    settled: str | None = None  # the verdict of the administrator
    asked: bool = False  # with DSN parameters


@attrs.frozen
class Attempt:
    """One delivery that reached the other side."""

    life: int
    sender: bytes
    recipient: bytes
    letter: bytes
    content: bytes


@attrs.frozen
class Stop:
    """How a life ends. `power` tells a crash from the death of the processes; `at` is the disk call before which it
    happens, None for whenever the actions are over."""

    power: bool = True
    at: int | None = None
    clean: bool = False  # TERM before it


Action = tuple[Any, ...]


@attrs.frozen
class Life:
    """What happens between a start and a stop. `fault` is (call, errno) of one call that fails."""

    actions: Sequence[Action]
    stop: Stop = Stop()
    fault: tuple[int, int] | None = None


class _NoTrigger:
    """The FIFO is not part of the story."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class SimulatedQueue(FileQueue):
    """The real one, with tasks in the place of threads."""

    def __init__(self, disk: SimulatedDisk, reactor: SimulatedReactor, tasks: Tasks, marked: set[bytes]) -> None:
        super().__init__(QUEUE, disk, reactor)
        self.marked = marked
        self._workers = SimulatedWorkers(reactor, tasks)  # type: ignore[assignment]
        self._marker = SimulatedWorkers(reactor, tasks, "mark")  # type: ignore[assignment]
        self._committer = SimulatedCommitter(reactor, self._acceptor.commit, self._published, batch_limit(disk))
        self._committer.prepare(tasks)
        self._trigger = _NoTrigger()  # type: ignore[assignment]
        self.disk = disk

    def birth(self, sent: Sent) -> float | None:
        return None

    def damage(self) -> list[str]:
        return []

    def mark(self, number: int, channel: str, offset: int) -> Deferred[None]:
        address = self.disk.contents(self.layout.path(channel, number))[offset + 1 :].partition(b"\0")[0]
        return super().mark(number, channel, offset).addCallback(lambda _: self.marked.add(address))


class SimulatedJournaledQueue(JournaledQueue):
    """The real one, with tasks in the place of threads, and small segments."""

    def __init__(self, disk: SimulatedDisk, reactor: SimulatedReactor, tasks: Tasks, marked: set[bytes]) -> None:
        super().__init__(QUEUE, disk, reactor, SEGMENT)
        self.marked = marked
        self.disk = disk
        self._workers = SimulatedWorkers(reactor, tasks)  # type: ignore[assignment]
        self._marker = SimulatedWorkers(reactor, tasks, "mark")  # type: ignore[assignment]
        self._committer = SimulatedCommitter(reactor, self._acceptor.commit, self._published, batch_limit(disk))
        self._committer.prepare(tasks)
        self._trigger = _NoTrigger()  # type: ignore[assignment]
        self._tasks = tasks
        self._numbers.batch = 6
        self._marks: dict[Record, bytes] = {}

    def _make_writer(self) -> SimulatedWriter:
        return SimulatedWriter(self._reactor, self._journal, self._tasks, self._written, self._hand_on)

    def _written(self, written: Sequence[Record]) -> None:
        self.marked.update(self._marks.pop(record) for record in written if record in self._marks)

    def mark(self, number: int, channel: str, offset: int) -> Deferred[None]:
        live = self._live.get(number)
        data = self.disk.contents(self.layout.path(channel, number)) if live is None else bytes(live.channel(channel))
        address = data[offset + 1 :].partition(b"\0")[0]
        record = journal.mark(number, channel, offset)
        if live is not None and live.waiting is None:
            self._marks[record] = address
            return super().mark(number, channel, offset)

        def marked(result: None) -> None:
            if live is not None and self._live.get(number) is live:
                self._marks[record] = address  # it could not be settled: what counts is the journal, as before
            else:
                self.marked.add(address)

        return super().mark(number, channel, offset).addCallback(marked)

    def damage(self) -> list[str]:
        """What the last start has called damaged."""
        return [one.text for one in self._journal.damage]

    def birth(self, sent: Sent) -> float | None:
        """When the message was born, if this very one is in the journal, preprocessed."""
        live = self._live.get(sent.number or 0)
        if live is None or live.entry.channels is None:
            return None
        if b"token: %d\n" % sent.token not in message_of(self.disk, live.entry):
            return None
        return live.entry.birth


class _JournalReader:
    """Reads the journal as it lies on a disk, unseen."""

    def __init__(self, disk: SimulatedDisk) -> None:
        self._disk = disk
        self._paths: list[str] = []

    def list_directory(self, path: str) -> list[str]:
        return self._disk.names(path)

    def open(self, path: str, flags: int) -> int:
        self._paths.append(path)
        return len(self._paths) - 1

    def fstat(self, fd: int) -> os.stat_result:
        return os.stat_result((0, 0, 0, 1, 0, 0, len(self._disk.contents(self._paths[fd])), 0, 0, 0))

    def sync_data(self, fd: int) -> None:
        """Nothing is changed by looking."""

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return self._disk.contents(self._paths[fd])[offset : offset + size]


def entries_on(disk: SimulatedDisk) -> dict[int, Entry]:
    """The messages in the journal on a disk."""
    directory = f"{QUEUE}/journal"
    if not disk.exists(directory):
        return {}
    return replay(Journal(_JournalReader(disk), directory, SEGMENT).read())  # type: ignore[arg-type]


def message_of(disk: SimulatedDisk, entry: Entry) -> bytes:
    """The text of a message in the journal."""
    return entry.message if entry.in_file is None else disk.contents(f"{QUEUE}/journal/{entry.number}")


class _MessageReader:
    """os, as :mod:`qtwist.send.bounces` uses it, on the simulated disk; silent when its life is over."""

    def __init__(self, disk: SimulatedDisk) -> None:
        self.over = False
        self._disk = disk

    def getuid(self) -> int:
        return 1000

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        with contextlib.suppress(Crash):  # the reactor would log it; the machine sees that the disk is dead
            if not self.over:
                return self._disk.pread(fd, size, offset)
        return b""

    def close(self, fd: int) -> None:
        with contextlib.suppress(Crash):
            if not self.over:
                self._disk.close(fd)


class Machine:
    """Lives on one disk. `home` is an existing directory without .qmail files; mailboxes there are simulated."""

    def __init__(
        self,
        home: str,
        *,
        seed: int = 0,
        model: Model = Model.JOURNAL,
        shared_sync: bool = True,
        interleaved: bool = False,
        queue: type[SimulatedQueue | SimulatedJournaledQueue] = SimulatedQueue,
    ) -> None:
        self.rng = random.Random(seed)
        self.queue_class = queue
        self.home = home
        self.model = model
        self.reactor = SimulatedReactor(1_000_000_000)
        self.disk = SimulatedDisk(self._now, model, shared_sync=shared_sync, watch=self._watch)
        self.sent: list[Sent] = []
        self.attempts: list[Attempt] = []
        self.stops = 0  # how many lives have ended in disorder
        self.lives = 0
        self.calls = 0  # disk calls of this life
        self.log: list[str] = []
        self.holds: list[Hold] = []
        self._interleaved = interleaved
        self._tasks = Tasks(self.rng, interleaved=interleaved)
        self._violation: str | None = None
        self._undone: set[bytes] = set()
        self._failed: set[bytes] = set()  # recipients whom the administrator has failed
        self._stop_at: int | None = None
        self._fault: tuple[int, int] | None = None
        self._steering: list[Deferred[Any]] = []
        self._tries: Counter[bytes] = Counter()
        self.disk.prepare_directories("/sim")
        self.layout = create_queue(QUEUE, self.disk, SPLIT)
        self.marked: set[bytes] = set()  # whose marks were written in this life
        for folder in ("tmp", "new", "cur"):
            self.disk.prepare_directories(f"{home}/Maildir/{folder}")

    def _now(self) -> float:
        return self.reactor.seconds()

    # Lives.

    def run(self, lives: Sequence[Life]) -> None:
        """All lives, then one more in which everything comes to its end; Violation when the contract is broken."""
        for life in lives:
            self.live(life)
        self.live(Life((), Stop(clean=True)), to_the_end=True)

    def live(self, life: Life, *, to_the_end: bool = False) -> None:
        self.lives += 1
        self.calls = 0
        self._stop_at = life.stop.at
        self._fault = life.fault
        self._undone = self.undone()
        self.marked = set()
        reader = _MessageReader(self.disk)
        memory = mock.patch.multiple(Live, open=lambda live: self.disk.open_memory(live.entry.message))
        with memory, mock.patch.object(bounces, "os", reader), self._no_failures_logged():
            try:
                try:
                    self._start()
                except (OSError, LayoutError):
                    if life.fault is None:
                        raise
                    raise Crash from None  # the daemon does not start
                for action in life.actions:
                    self._act(action)
                if to_the_end:
                    self._finish_everything()
                if life.stop.clean:
                    self._terminate()
                self._stop_at = None
                clean = life.stop.clean
            except Crash:
                clean = False
            finally:
                reader.over = True
                self._end()
        if self._violation is not None:
            raise Violation(self._violation)
        if life.stop.power or not clean:
            self.stops += 1
        if to_the_end:
            self._judge_the_end()
            return
        if life.stop.power:
            self.disk.crash(self.rng)
        else:
            self.disk.kill()
        self.disk.full = None
        for one in self.sent:
            if one.state == OPEN and not one.committed:
                one.state = GONE
        done: set[bytes] = set()
        if not life.stop.power and not self._unmarked:
            done = set(self.marked)
            if clean:
                done |= {one.recipient for one in self.attempts if one.life == self.lives and one.letter == b"K"}
        self._judge_what_is_left(done)

    @contextlib.contextmanager
    def _no_failures_logged(self) -> Iterator[None]:
        """What the daemon logs as unexpected is a violation."""
        failures: list[str] = []

        def observe(event: LogEvent) -> None:
            if "log_failure" in event:
                failures.append(event["log_failure"].getTraceback())

        globalLogPublisher.addObserver(observe)
        try:
            yield
        finally:
            globalLogPublisher.removeObserver(observe)
        if failures:
            raise Violation("unexpected: " + failures[0])

    def _start(self) -> None:
        self.reactor = SimulatedReactor(self.reactor.seconds() + 60)
        self._tasks = Tasks(self.rng, interleaved=self._interleaved)
        self.queue = self.queue_class(self.disk, self.reactor, self._tasks, self.marked)
        self.queue.start()
        rewriter = Rewriter(b"here.test", ConstantMap.plain([b"here.test"]))
        self.manager = QueueManager(
            self.queue,
            {"local": LocalMailboxes(self), "remote": RemoteHosts(self)},
            SendSettings(
                rewriter,
                {"local": 3, "remote": 3},
                _LIFETIME,
                bounces.BounceSettings(b"MAILER-DAEMON", b"here.test", b"dir-postmaster", b"here.test"),
            ),
            SendLog(lambda line: self.log.append(line.decode().rstrip())),
            self.reactor,
            reread=lambda: rewriter,
            read_holds=lambda: Holds(self.holds),
        )
        self.manager.startService()
        # Only a disk that breaks its word can damage what is in the journal.
        if damage := self.queue.damage():
            raise Violation(f"it thinks that the disk is damaged: {damage}")

    def _terminate(self) -> None:
        """TERM, and the end of the parts below, as the service does it."""
        if self.manager.exiting:
            return
        stopped = self.manager.stopService()
        self.settle()
        while not stopped.called and self.reactor.getDelayedCalls():
            self._advance(self.reactor.getDelayedCalls()[0].getTime() - self.reactor.seconds())
        ended = self.queue.stop()
        ended.addErrback(lambda _: None)  # the machine has stopped in the midst of it, which settle sees
        self.settle()
        if not (stopped.called and ended.called):
            raise Violation("the daemon does not end after TERM")

    def _end(self) -> None:
        """Nothing of this life goes on."""
        self.disk.dead = True
        self._tasks.end()
        self.disk.dead = False
        self.reactor.turns.clear()
        self._steering.clear()

    # What happens.

    def _act(self, action: Action) -> None:
        name, *arguments = action
        getattr(self, "_do_" + name)(*arguments)
        if self.disk.dead:
            raise Crash

    def _do_send(self, sender: bytes, kinds: Sequence[bytes], size: int = 10, asked: bool = False) -> None:
        """Hand in a message; `kinds` are local parts that say what becomes of it, with the domain. With `asked`, each
        recipient has a parameter that names him."""
        token = len(self.sent)
        recipients = tuple(b"%s-%d.%d@%s" % (kind, token, n, domain) for n, (kind, domain) in enumerate(kinds))
        if sender:
            sender = b"%s-%d.s@far.test" % (sender, token)
        text = b"token: %d\n\n" % token + b"From the body\n" + b"x" * size + b"\nend %d\n" % token
        sent = Sent(token, sender, recipients, text, asked=asked)
        parameters = Asked(b"ENVID=%d" % token, tuple(b"ORCPT=rfc822;" + one for one in recipients)) if asked else None
        self.sent.append(sent)
        incoming = self.queue.begin(Origin.network(7))
        incoming.write(sent.text)
        sent.committed = True
        incoming.commit(Envelope(sender, recipients, parameters)).addCallbacks(
            self._accepted, self._refused, (sent,), None, (sent,)
        )

    def _do_abort(self, size: int) -> None:
        token = len(self.sent)
        self.sent.append(Sent(token, b"", (), b"", GONE))
        incoming = self.queue.begin(Origin.network(7))
        incoming.write(b"x" * size)
        self._do_steps(3)
        incoming.abort()

    def _do_steps(self, count: int) -> None:
        for _ in range(count):
            if not self._step():
                return

    def _do_settle(self) -> None:
        self.settle()

    def _do_advance(self, seconds: float) -> None:
        self._advance(seconds)
        self.settle()

    def _do_jump(self, seconds: float) -> None:
        """The clock is set, and qtwist.clock.ClockWatch notices it."""
        self.reactor.rightNow += seconds
        shift(self.reactor, seconds)

    def _do_terminate(self) -> None:
        self._terminate()

    def _do_alarm(self) -> None:
        self.manager.retry_all()

    def _do_full(self, octets: int | None) -> None:
        self.disk.full = octets

    def _do_hold(self, which: int, hold: bool) -> None:
        self.holds = [Hold.make("destination", b"far.test")] if hold and which % 2 else []
        if hold and self.sent:
            sender = self.sent[which % len(self.sent)].sender
            self.holds.append(Hold.make("sender", sender or b"<>"))
        self.manager.reread_holds()

    def _do_steer(self, verdict: str, which: int) -> None:
        numbers = [sent for sent in self.sent if sent.state == ACCEPTED]
        if not numbers:
            return
        sent = numbers[which % len(numbers)]
        # The number may be another message's by now; qtwist queue asks the birth, too.
        number = sent.number
        assert number is not None
        path = self.layout.path("info", number)
        birth = self.queue.birth(sent)
        if birth is None and self.disk.exists(path) and self.disk.contents(path) == b"F%s\0" % sent.sender:
            birth = self.disk.mtime_of(path)
        if birth is None or not sent.sender:
            return
        sent.settled = "both" if sent.settled not in (None, verdict) else verdict
        if verdict == "fail":
            self._failed.update(sent.recipients)
        settled = Deferred.fromCoroutine(self._settle(number, verdict))
        settled.addErrback(lambda failure: self.log.append(f"steering: {failure.value}"))
        self._steering.append(settled)

    async def _settle(self, number: int, verdict: str) -> int:
        birth = (await self.queue.info(number)).birth
        return await Steering(self.manager).settle(number, birth, verdict, 0)

    def _accepted(self, accepted: Accepted, sent: Sent) -> None:
        sent.state = ACCEPTED
        sent.number = accepted.number

    def _refused(self, failure: Failure, sent: Sent) -> None:
        self.log.append(f"refused {sent.token}: {failure.value}")
        sent.state = REFUSED

    def _watch(self, operation: str) -> None:
        self.calls += 1
        if self._stop_at is not None and self.calls >= self._stop_at:
            self.disk.dead = True
            raise Crash
        if self._fault is not None and self.calls == self._fault[0]:
            code = self._fault[1]
            raise OSError(code, os.strerror(code), "/sim/broken")
        self._tasks.pause()

    def _step(self) -> bool:
        """One turn of somebody; False when nobody has anything to do."""
        if self.disk.dead:
            raise Crash
        runnable = self._tasks.runnable()
        choices = len(runnable) + bool(self.reactor.turns)
        if not choices:
            return False
        chosen = self.rng.randrange(choices) if self._interleaved else 0
        if self.reactor.turns and chosen == choices - 1:
            function, arguments = self.reactor.turns.popleft()
            function(*arguments)
        else:
            self._tasks.step(runnable[chosen])
        if self.disk.dead:
            raise Crash
        return True

    def settle(self) -> None:
        """Until nobody has anything to do at this time."""
        for _ in range(_PATIENCE):
            self.reactor.advance(0)
            if not self._step():
                return
        raise Violation("it does not come to rest")

    def _advance(self, seconds: float) -> None:
        """Let the time go by, with everything that falls due on the way."""
        until = self.reactor.seconds() + seconds
        for _ in range(_PATIENCE):
            self.settle()
            due = [call.getTime() for call in self.reactor.getDelayedCalls() if call.getTime() <= until]
            if not due:
                break
            self.reactor.advance(max(0, min(due) - self.reactor.seconds()))
        self.reactor.advance(max(0, until - self.reactor.seconds()))
        self.settle()

    def _finish_everything(self) -> None:
        self.holds = []
        self.manager.reread_holds()
        self.settle()
        for _ in range(40):
            if not self.undone() and not self._files("bounce"):
                break
            self.manager.retry_all()
            self._advance(1600)
        for _ in range(20):
            if not self._left():
                break
            self._advance(GARBAGE_INTERVAL)

    # What is seen.

    def _files(self, room: str) -> dict[int, bytes]:
        """The files of a room, by number."""
        folder = f"{QUEUE}/{room}"
        folders = (
            [f"{folder}/{part}" for part in range(SPLIT)] if room in ("mess", "info", "local", "remote") else [folder]
        )
        return {
            int(name) if name.isdigit() else -1: self.disk.contents(f"{where}/{name}")
            for where in folders
            for name in self.disk.names(where)
        }

    def _left(self) -> list[str]:
        """What ought to go; an envelope that has lost its message stays, for people to see."""
        messages = self._files("mess")
        return [
            f"{room}/{number}"
            for room in ROOMS
            for number in self._files(room)
            if self.model is Model.JOURNAL or room != "todo" or number in messages
        ]

    def _texts_in_journal(self) -> list[str]:
        """Files of numbers that have the text of a message."""
        folder = f"{QUEUE}/journal"
        names = self.disk.names(folder) if self.disk.exists(folder) else []
        return [f"journal/{one}" for one in names if one.isdigit() and self.disk.contents(f"{folder}/{one}")]

    def undone(self) -> set[bytes]:
        """Who would get something from the queue as it lies on disk."""
        found: set[bytes] = set()
        entries = entries_on(self.disk)
        for entry in entries.values():
            for data in [entry.envelope] if entry.channels is None else entry.channels.values():
                found.update(record[1:] for record in bytes(data).split(b"\0") if record[:1] == b"T")
        # What the files hold of a message in the journal counts for nothing.
        messages = self._files("mess").keys() - entries.keys()
        todo = {number: envelope for number, envelope in self._files("todo").items() if number in messages}
        for envelope in todo.values():
            found.update(record[1:] for record in envelope.split(b"\0") if record[:1] == b"T")
        infos = self._files("info").keys() - entries.keys()
        for channel in ("local", "remote"):
            for number, contents in self._files(channel).items():
                if number in infos and number not in todo:
                    found.update(record[1:] for record in contents.split(b"\0") if record[:1] == b"T")
        return found

    def attempted(self, attempt: Attempt) -> None:
        """Judge one delivery that reached the other side."""
        earlier = [one for one in self.attempts if one.recipient == attempt.recipient and one.life == attempt.life]
        self.attempts.append(attempt)
        if not _RECEIVED.match(attempt.content):
            self._object(f"a message without its Received line was delivered: {attempt}")
        if _NOTICE in attempt.content[:300]:
            self._judge_notice(attempt)
            return
        sent = self._sent_as(attempt.content)
        where = f"message {sent.token} to {attempt.recipient.decode()}"
        if attempt.recipient not in sent.recipients or attempt.sender != sent.sender:
            self._object(f"{where}: not its recipient, or a wrong sender {attempt.sender!r}")
        if sent.state == GONE:
            self._object(f"{where}: it was never handed over whole")
        if sent.state == REFUSED and not self._may_return(sent):
            self._object(f"{where}: it was refused")
        if _RECEIVED.sub(b"", attempt.content, count=1) != sent.text:
            self._object(f"{where}: not what was sent: {attempt.content!r}")
        if any(one.letter in (b"K", b"D") for one in earlier) and not self._unmarked:
            self._object(f"{where}: tried again after a result in the same life")
        old = any(one.recipient == attempt.recipient for one in self.attempts[:-1] if one.life < attempt.life)
        if old and attempt.recipient not in self._undone and not self._unmarked:
            self._object(f"{where}: tried again though it was marked as done")

    def judge_parameters(self, delivery: Delivery, content: bytes) -> None:
        """Who came with DSN parameters leaves with them, and nobody else has some."""
        found = (delivery.asked_mail, delivery.asked)
        sent = self._sent_as(content)
        if _NOTICE in content[:300] or not sent.asked:
            expected = (b"", b"")
        else:
            expected = (b"ENVID=%d" % sent.token, b"ORCPT=rfc822;" + delivery.recipient)
        if found != expected:
            self._object(f"{delivery.recipient!r} of message {sent.token} goes on with {found}")

    def _may_return(self, sent: Sent) -> bool:
        """The windows for a refused message: todo/ could not be synced (Acceptor.commit), or the journal could not."""
        return any(
            line.startswith(f"refused {sent.token}:") and ("code 66" in line or "the journal: " in line)
            for line in self.log
        )

    def _judge_notice(self, attempt: Attempt) -> None:
        sent = self._sent_as(attempt.content)
        told = self._told(attempt.content)
        if not told or not told <= {*sent.recipients, sent.sender}:
            self._object(f"a notice about message {sent.token} tells of {told}")
        if sent.asked:
            named = _NAMED.findall(attempt.content)
            if {one[1] for one in named} != told & {*sent.recipients} or any(one[0] != one[1] for one in named):
                self._object(f"a report about message {sent.token} names {named} for {told}")
        if not (sent.text in attempt.content if sent.asked else attempt.content.endswith(sent.text)):
            self._object(f"a notice about message {sent.token} has not all of it")
        if attempt.recipient not in (sent.sender, b"dir-postmaster@here.test"):
            self._object(f"a notice about message {sent.token} went to {attempt.recipient!r}")

    def _object(self, text: str) -> NoReturn:
        """A violation in the midst of a life, which ends here."""
        self._violation = text
        self.disk.dead = True
        raise Crash

    def _sent_as(self, content: bytes) -> Sent:
        found = _TOKEN.search(content)
        if found is None:
            self._object(f"delivered what nobody has sent: {content!r}")
        return self.sent[int(found[1])]

    @staticmethod
    def _told(notice: bytes) -> set[bytes]:
        return set(_PARAGRAPH.findall(notice))

    # The judge.

    @property
    def _unmarked(self) -> int:
        """How many recipients could not be marked: what the log says will be delivered twice, may be."""
        return sum("trouble marking" in line for line in self.log)

    def _judge_what_is_left(self, done: set[bytes]) -> None:
        """After a stop, before the next start; `done` are those who have to be marked now."""
        undone = self.undone()
        results = {one.recipient for one in self.attempts if one.letter in (b"K", b"D")} | self._failed
        for sent in self.sent:
            if sent.state != ACCEPTED or sent.settled:
                continue
            for recipient in sent.recipients:
                if recipient not in undone and recipient not in results:
                    raise Violation(f"message {sent.token} was accepted, but {recipient.decode()} is forgotten")
        # Senders and postmaster may have several notices each: one of them done, another one waiting.
        notified = (b".s@far.test", b"dir-postmaster@here.test")
        if again := {one for one in done & undone if not one.endswith(notified)}:
            raise Violation(f"only the processes ended, but {again} would be tried again")
        self._judge_states()

    def _judge_states(self) -> None:
        """S1 to S5 (§5.3)."""
        entries = entries_on(self.disk)
        rooms = {room: set(self._files(room)) for room in ROOMS if room != "pid"}
        for number in set().union(*rooms.values()):
            has = {room for room, numbers in rooms.items() if number in numbers}
            if "mess" in has and self.disk.inode_of(self.layout.path("mess", number)) != number:
                raise Violation(f"mess/{number} is not inode {number}")
            if number in entries and self.stops == 1 and "mess" in has and has & {"info", "todo"}:
                # For a daemon that knows nothing of the journal. (Settled once more, it may be in pieces.)
                whole = self.disk.contents(self.layout.path("mess", number)) == message_of(self.disk, entries[number])
                if not whole:
                    raise Violation(f"message {number} looks as if it were whole")
            if self.model is Model.POSIX or number in entries:
                continue
            queued = {"mess", "todo"} <= has and "bounce" not in has
            preprocessed = {"mess", "info"} <= has and not has & {"todo", "intd"}
            if not (queued or preprocessed or has in ({"mess"}, {"mess", "intd"}, {"intd"})):
                raise Violation(f"message {number} is in no known state: {sorted(has)}")

    def _judge_the_end(self) -> None:
        """Everything has had its time: who got what, and what is left."""
        contents = [(one.recipient, one.content) for one in self.attempts if one.letter == b"K"]
        given = Counter(one.recipient for one in self.attempts if one.letter == b"K")
        dropped = [one.content for one in self.attempts if one.letter == b"D" and one.sender == b"#@[]"]
        told = set().union(*(self._told(text) for _, text in contents if _NOTICE in text[:300]))
        told |= set().union(*map(self._told, dropped))
        for sent in self.sent:
            for recipient in sent.recipients:
                if given[recipient] > self._most:
                    raise Violation(f"{recipient.decode()} got message {sent.token} {given[recipient]} times")
                if sent.state == ACCEPTED and not (
                    given[recipient] or recipient in told or sent.settled in ("drop", "both")
                ):
                    raise Violation(f"message {sent.token} was accepted, but {recipient.decode()} has no result")
        self._judge_mailboxes(given)
        if left := self._left() + self._texts_in_journal():
            raise Violation(f"never removed: {left}")
        if entries := entries_on(self.disk):
            raise Violation(f"still in the journal: {sorted(entries)}")

    @property
    def _most(self) -> int:
        """How often one recipient may get one message."""
        return 1 + self.stops + self._unmarked

    def _judge_mailboxes(self, given: Counter[bytes]) -> None:
        """What local deliveries reported as done is in the mailbox, whole, to be found by a reader."""
        new = f"{self.home}/Maildir/new"
        found = [self.disk.contents(f"{new}/{name}") for name in self.disk.names(new)]
        box = f"{self.home}/Mailbox"
        if self.disk.exists(box):
            found += re.split(rb"(?:\A|(?<=\n\n))From [^\n]*\n", self.disk.contents(box))
        delivered: Counter[bytes] = Counter()
        for text in found:
            head = _DELIVERED.match(text)
            token = _TOKEN.search(text)
            if head is None or token is None:
                continue
            sent = self.sent[int(token[1])]
            rest = text[head.end() :]
            # An mbox quotes From, and puts an empty line after all; what is left of a torn append may follow it.
            if rest == sent.text or rest.startswith(sent.text.replace(b"\nFrom ", b"\n>From ") + b"\n"):
                delivered[head[1]] += 1
        for recipient, times in given.items():
            mailbox = recipient.startswith((b"dir-", b"box-")) and not recipient.startswith(b"dir-postmaster")
            if mailbox and not times <= delivered[recipient] <= times + self._most:
                raise Violation(f"{recipient.decode()}: {times} successes, {delivered[recipient]} in the mailbox")


class LocalMailboxes:
    """The local channel: the real delivery engine as a task; the local part says into what."""

    limit = 10
    boxes = {b"dir": b"./Maildir/\n", b"box": b"./Mailbox\n"}

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._waiting: list[tuple[Delivery, Deferred[Report]]] = []

    def deliver(self, delivery: Delivery) -> Deferred[Report]:
        answer: Deferred[Report] = Deferred()
        self._waiting.append((delivery, answer))
        self._machine._tasks.add("local", self._work_off, lambda _: None)
        return answer

    def stop(self) -> Deferred[None]:
        raise AssertionError("nobody asks")

    def _work_off(self) -> None:
        """Deliver all that waits by now, as a process of the recipient's does it: what is brief, together."""
        waiting, self._waiting = self._waiting, []
        brief: list[tuple[LocalDelivery, Delivery, Deferred[Report]]] = []
        for delivery, answer in waiting:
            made = self._make(delivery)
            if made is None:
                self._end(delivery, answer, Report.failure(b"no such mailbox\n"))
            elif made.brief:
                brief.append((made, delivery, answer))
            else:
                outcome = made.carry_out()
                self._end(delivery, answer, report(outcome.code, outcome.output))
        ended = deliver_together([made for made, _, _ in brief], self._machine.disk)
        for (_, delivery, answer), one in zip(brief, ended, strict=True):
            outcome = one.result()
            self._end(delivery, answer, report(outcome.code, outcome.output))

    def _make(self, delivery: Delivery) -> LocalDelivery | None:
        machine = self._machine
        local, _, domain = delivery.recipient.rpartition(b"@")
        box = self.boxes.get(local.partition(b"-")[0])
        if box is None:
            return None
        job = Job(b"joe", os.fsencode(machine.home), local, b"", b"", domain, delivery.sender, box, delivery.fd)
        return LocalDelivery(job, Parts(machine.disk, machine.reactor.seconds, b"here.test", _no_forward, {}, 1))

    def _end(self, delivery: Delivery, answer: Deferred[Report], result: Report) -> None:
        machine = self._machine
        content = machine.disk.peek(delivery.fd)
        close_quietly(machine.disk, delivery.fd)
        machine.attempted(Attempt(machine.lives, delivery.sender, delivery.recipient, result.letter, content))
        machine.reactor.callFromThread(answer.callback, result)


def _no_forward(*_: Any) -> Forwarded:
    raise AssertionError("nothing forwards")


class RemoteHosts:
    """The remote channel. Local parts: ok succeeds, slow is deferred twice before, bad fails for good."""

    limit = 10

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def deliver(self, delivery: Delivery) -> Deferred[Report]:
        answer: Deferred[Report] = Deferred()
        self._machine.reactor.callFromThread(self._receive, delivery, answer)
        return answer

    def stop(self) -> Deferred[None]:
        raise AssertionError("nobody asks")

    def _receive(self, delivery: Delivery, answer: Deferred[Report]) -> None:
        """The other side has it; our side hears of it in a later turn."""
        machine = self._machine
        content = machine.disk.peek(delivery.fd)
        close_quietly(machine.disk, delivery.fd)
        machine.judge_parameters(delivery, content)
        kind = delivery.recipient.partition(b"-")[0]
        machine._tries[delivery.recipient] += 1
        if kind == b"bad":
            result = Report.failure(b"no such user\n")
        elif kind == b"slow" and machine._tries[delivery.recipient] < 3:
            result = Report.deferral(b"later\n")
        else:
            result = Report.success(b"ok\n")
        machine.attempted(Attempt(machine.lives, delivery.sender, delivery.recipient, result.letter, content))
        machine.reactor.callFromThread(answer.callback, result)
