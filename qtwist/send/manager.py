"""The queue manager: takes what was accepted, tries it on its schedule, bounces what cannot be delivered.

This is qmail-send (spec/qmail.md §9) as a Twisted service. It knows the queue by :class:`~qtwist.interfaces.IQueue`
and the deliveries by :class:`~qtwist.interfaces.ISpawner`; the rules of time are in :mod:`qtwist.send.schedule`, the
words of the log in :mod:`qtwist.send.log`, what senders are told in :mod:`qtwist.send.reporting`.

Preprocessing, deliveries and bounces run side by side, so that a flood of new mail does not starve deliveries and a
slow disk call for one message does not hold up another. What may run at once is bounded by the channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from typing import Any, TypeVar

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from qtwist.interfaces import Delivery, IQueue, ISpawner, Preprocessed, QueueError, RecipientRecord
from qtwist.mail.envelope import Report
from qtwist.mail.holds import Holds
from qtwist.mail.rewriting import Rewriter
from qtwist.mail.verp import expand
from qtwist.send.bounces import BounceSettings
from qtwist.send.history import History
from qtwist.send.keeping import Keeper
from qtwist.send.log import SendLog
from qtwist.send.reporting import Reporter
from qtwist.send.schedule import READ_AHEAD, Channel, Pass, next_attempt

#: Seconds until something that the disk refused is tried again (§1.5).
RETRY_AFTER_TROUBLE = 123
#: Seconds between attempts to append to bounce/N, and to read todo/ (§1.5).
SLEEP_AFTER_TROUBLE = 10
#: todo/ is looked at this often even when nobody pulls the trigger, in seconds (§1.5).
TODO_INTERVAL = 1500
#: Seconds between two sweeps for garbage (§9.8).
GARBAGE_INTERVAL = 76431
#: How many messages are preprocessed together, sharing their disk syncs.
TODO_BATCH = 100

#: How many due times are written together at the end.
RECORDED_AT_ONCE = 1000

#: Added to the report of a last try (§9.5).
GIVING_UP = b"This message has been in the queue for too long; there will be no further attempt.\n"

_log = Logger()

T = TypeVar("T")


@attrs.frozen
class SendSettings:
    """What the queue manager takes from control files (spec/qmail.md §3). `concurrency` maps channels to limits."""

    rewriter: Rewriter
    concurrency: dict[str, int]
    lifetime: int  # seconds
    bounces: BounceSettings


class QueueManager(Service):
    """qmail-send as a service.

    `spawners` maps ``"local"`` and ``"remote"`` to the deliveries. `reread` returns a fresh :class:`Rewriter` from
    control/locals and control/virtualdomains (HUP, §9.2), or raises an exception whose text says what is wrong;
    `read_holds` does the same for what is kept back, and is called at the start, too.
    """

    name = "send"

    def __init__(
        self,
        queue: IQueue,
        spawners: dict[str, ISpawner],
        settings: SendSettings,
        log: SendLog,
        clock: IReactorTime,
        reread: Callable[[], Rewriter],
        read_holds: Callable[[], Holds] = Holds,
    ) -> None:
        self.queue = queue
        self.spawners = spawners
        self.settings = settings
        self.log = log
        self.clock = clock
        self.exiting = False
        self._reread = reread
        self._rewriter = settings.rewriter
        self.keeper = Keeper(read_holds, self.original)
        self.history = History()
        self.reporter = Reporter(queue, settings.bounces, log, clock, self.original)
        self._settling: Counter[int] = Counter()  # messages whose passes are over, or which are ending: how many times
        self.channels = {
            name: Channel(name, min(settings.concurrency[name], spawners[name].limit)) for name in ("local", "remote")
        }
        self._both: set[int] = set()  # messages that still have a file on both channels
        self._deliveries = 0
        self._tasks: set[Deferred[None]] = set()
        self._timers: dict[str, IDelayedCall] = {}
        self._scanning = False
        self._all_due = False  # ALRM came during the scan: also what is not yet found is due
        self._todo_wanted = False
        self._todo_running = False
        self._pumping = False
        self._pump_wanted = False

    # Start, signals, stop.

    def startService(self) -> None:
        """Take the queue's lock and begin. BlockingIOError when another queue manager runs on this queue."""
        self.keeper.reread()
        self.queue.lock()
        super().startService()
        self._log_status()
        self._task(self._scan())
        self._sweep()
        self.queue.on_todo(self.look_at_todo)
        self.look_at_todo()

    def retry_all(self) -> None:
        """Make every queued message due now (ALRM, §9.2)."""
        self._all_due = self._scanning
        self._wake_all()
        self.look_at_todo()
        self._pump()

    def _wake_all(self) -> None:
        for channel in self.channels.values():
            channel.wake_all(self.clock.seconds())

    def reread(self) -> None:
        """Read locals and virtualdomains again (HUP, §9.2). What cannot be read keeps its old value."""
        try:
            self._rewriter = self._reread()
            self.reread_holds()
        except Exception as error:  # whatever a control file can be wrong in, the daemon goes on
            self.log.alert(f"unable to reread controls: {error}")

    def reread_holds(self) -> None:
        """Keep back what is to be kept back from now on, and try what no longer is. Raises what `read_holds` raises."""
        free = self.keeper.reread()
        self.keep_back()
        self.retry(free)

    def keep_back(self) -> None:
        """Take what is held or claimed out of the open passes; deliveries that run go on."""
        if self.exiting:
            return  # nothing is started any more
        for channel in self.channels.values():
            for one in list(channel.passes.values()):
                self.keeper.sift(one)
                if one.is_over:
                    self._task(self._go_on(channel, one))

    def original(self, address: bytes) -> bytes:
        """A rewritten address as its sender knew it."""
        return self._rewriter.original(address)

    def retry(self, numbers: Collection[int]) -> None:
        """Make these messages due now."""
        for channel in self.channels.values():
            channel.wake(numbers, self.clock.seconds())
        self._pump()

    def is_busy(self, number: int) -> bool:
        """Whether something is being done with a message, so that its files may change."""
        return number in self._settling or any(channel.is_trying(number) for channel in self.channels.values())

    def stopService(self) -> Deferred[None]:
        """Finish running deliveries, start nothing new, record due times (TERM, §9.2)."""
        super().stopService()
        self.exiting = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        while self._tasks:
            await DeferredList(list(self._tasks))
        now = self.clock.seconds()
        for channel in self.channels.values():
            # Some at once: after ALRM this is the whole queue.
            times = [*channel.unrecorded(), *((number, now) for number in channel.passes)]
            for start in range(0, len(times), RECORDED_AT_ONCE):
                batch = times[start : start + RECORDED_AT_ONCE]
                for number in await self.queue.postpone_all(channel.name, batch):
                    self._postpone_refused(number, channel.name)
        self.log.exiting()

    def attend(self, work: Coroutine[Any, Any, T]) -> Deferred[T]:
        """Run `work` beside everything else; a stop waits for it."""
        ended: Deferred[None] = Deferred()

        def end(result: Any) -> Any:
            self._tasks.discard(ended)
            ended.callback(None)
            return result

        self._tasks.add(ended)
        return Deferred.fromCoroutine(work).addBoth(end)

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` to its end beside everything else; a stop waits for it."""
        task = Deferred.fromCoroutine(work)
        task.addErrback(lambda failure: _log.failure("the queue manager met an unexpected error", failure))
        if not task.called:
            self._tasks.add(task)
            task.addBoth(lambda _: self._tasks.discard(task))

    def _later(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        """Do `call` in some seconds, in place of an earlier plan of that name; nothing is planned after TERM."""
        if self.exiting:
            return
        planned = self._timers.pop(name, None)
        if planned is not None:
            planned.cancel()

        def fire() -> None:
            del self._timers[name]
            call()

        self._timers[name] = self.clock.callLater(max(0, seconds), fire)

    def _log_status(self) -> None:
        local, remote = self.channels["local"], self.channels["remote"]
        self.log.status((local.running, local.concurrency), (remote.running, remote.concurrency), exiting=self.exiting)

    # What is found at the start, what comes in, what is swept out.

    async def _scan(self) -> None:
        self._scanning = True
        for batch in self.queue.scan():
            try:
                messages = await batch
            except OSError as error:
                self.log.alert(f"unable to opendir {error.filename or 'queue'}, sleeping...")
                if not self.exiting:
                    await deferLater(self.clock, SLEEP_AFTER_TROUBLE)
                messages = []
            for message in messages:
                if len(message.due) == 2:
                    self._both.add(message.number)
                for channel, due in message.due.items():
                    self.channels[channel].add(message.number, due)
                if not message.due:
                    self._task(self._end_message(message.number))
            if self.exiting:
                return
            if self._all_due:
                self._wake_all()
            self._pump()
        self._scanning = False

    def _sweep(self) -> None:
        self._later("garbage", GARBAGE_INTERVAL, self._sweep)
        self._task(self._collect_garbage())

    async def _collect_garbage(self) -> None:
        try:
            await self.queue.collect_garbage()
        except OSError as error:
            self.log.warning(f"unable to collect garbage: {error}; will try again later")

    def look_at_todo(self) -> None:
        """Preprocess what is in todo/ (§9.4), now or as soon as the running round is over."""
        self._todo_wanted = True
        if not self._todo_running and not self.exiting:
            self._todo_running = True
            self._task(self._preprocess_all())

    async def _preprocess_all(self) -> None:
        try:
            while self._todo_wanted and not self.exiting:
                self._todo_wanted = False
                self._later("todo", TODO_INTERVAL, self.look_at_todo)
                numbers = await self.queue.todo()
                for start in range(0, len(numbers), TODO_BATCH):
                    if self.exiting:
                        return
                    batch = numbers[start : start + TODO_BATCH]
                    for result in await self.queue.preprocess(batch, self._rewriter.route):
                        self._take_up(result)
                    self._pump()
        except OSError as error:
            self.log.alert(f"unable to opendir todo, sleeping...: {error}")
            self._later("todo", SLEEP_AFTER_TROUBLE, self.look_at_todo)
        finally:
            self._todo_running = False

    def _take_up(self, result: Preprocessed | tuple[int, str]) -> None:
        if isinstance(result, tuple):
            self.log.warning(result[1])
            return
        self.log.new_message(result)
        if len(result.channels) == 2:
            self._both.add(result.number)
        # At once (§9.4), also when the file system's clock, which tells the birth, is ahead of ours.
        due = min(result.birth, self.clock.seconds())
        for channel in result.channels:
            self.channels[channel].add_new(result.number, due)
        if not result.channels:
            self._task(self._end_message(result.number))

    # Passes and deliveries.

    def _pump(self) -> None:
        """Open passes and start deliveries as far as the channels allow, then sleep until the next one is due."""
        self._pump_wanted = True
        if self._pumping:
            return
        self._pumping = True
        try:
            # What is started here may end at once and call for more.
            while self._pump_wanted and not self.exiting:
                self._pump_wanted = False
                for channel in self.channels.values():
                    self._use_slots(channel)
        finally:
            self._pumping = False
        now = self.clock.seconds()
        # A channel whose mail is overdue has its passes full, or is on hold: it is looked at when a pass ends.
        due = [when for channel in self.channels.values() if (when := channel.next_due()) is not None and when > now]
        if due:
            self._later("pass", min(due) - now, self._pump)

    def _use_slots(self, channel: Channel) -> None:
        while (number := channel.take_due(self.clock.seconds())) is not None:
            self._task(self._open_pass(channel, number))
        while (chosen := channel.choose()) is not None:
            self._start(channel, *chosen)

    def _path(self, room: str, number: int) -> str:
        """A file as warnings name it, below the queue directory."""
        return f"{room}/{number % self.queue.split}/{number}"

    async def _open_pass(self, channel: Channel, number: int) -> None:
        try:
            info = await self.queue.info(number)
        except (OSError, ValueError):
            self.log.warning(f"trouble opening {self._path('info', number)}; will try again later")
            channel.give_back(number, self.clock.seconds() + RETRY_AFTER_TROUBLE)
            self._pump()
            return
        now = self.clock.seconds()
        if number in self.keeper.claimed:
            channel.give_back(number, now + 1)
            self._pump()
            return
        if self.keeper.keeps(number, info.birth, info.sender):
            channel.give_back(number, next_attempt(info.birth, now, channel.name))
            self._pump()
            return
        one = channel.begin(number, info.sender, info.birth, now, self.settings.lifetime)
        one.asked = info.asked
        if channel.name == "remote":
            # On disk before anybody is dialled: a crash in the middle must not make us dial again too soon. Local mail
            # bothers nobody by coming soon after a crash.
            await self._postpone(number, channel.name, one.retry)
        await self._read(channel, one)

    async def _postpone(self, number: int, channel: str, due: float) -> None:
        try:
            await self.queue.postpone(number, channel, due)
        except OSError:
            self._postpone_refused(number, channel)

    def _postpone_refused(self, number: int, channel: str) -> None:
        self.log.warning(f"unable to utime {self._path(channel, number)}; message will be retried too soon")

    async def _read(self, channel: Channel, one: Pass) -> None:
        """Read on, until some recipients are pending or the file ends."""
        one.reading = True
        try:
            while True:
                records, one.offset = await self.queue.recipients(one.number, channel.name, one.offset, READ_AHEAD)
                one.pending.extend(record for record in records if not record.done)
                one.at_end = len(records) < READ_AHEAD
                self.keeper.sift(one)
                if one.pending or one.at_end:
                    break
        except OSError:
            self.log.warning(f"trouble reading {self._path(channel.name, one.number)}; will try again later")
            one.at_end = one.left = True
        except ValueError:
            self.log.warning(f"unknown record type in {self._path(channel.name, one.number)}!")
            one.at_end = one.left = True
        finally:
            one.reading = False
        await self._go_on(channel, one)

    async def _go_on(self, channel: Channel, one: Pass) -> None:
        """After anything that changed a pass: end it, or read on, and use the slots."""
        if one.is_over:
            channel.end(one)
            self._settling[one.number] += 1
            try:
                await self._end_pass(channel, one)
            finally:
                self._settling -= Counter((one.number,))
        elif one.wants_reading and not self.exiting:
            self._task(self._read(channel, one))
        self._pump()

    def _start(self, channel: Channel, one: Pass, record: RecipientRecord) -> None:
        self._deliveries += 1
        self.log.starting(self._deliveries, one.number, channel.name, record.address)
        self._log_status()
        self._task(self._deliver(channel, one, record, self._deliveries))

    async def _deliver(self, channel: Channel, one: Pass, record: RecipientRecord, delivery: int) -> None:
        report = await self._try(channel, one, record)
        if report.letter == b"Z" and one.dying:
            report = Report.failure(report.text + GIVING_UP)
        channel.free_slot(one)
        self.log.delivery(delivery, report)
        self.history.note(one.number, channel.name, record.address, self.clock.seconds(), report)
        self._log_status()
        self._pump()
        paragraph = self.reporter.paragraph(channel.name, one, record, report)
        done = report.letter in (b"K", b"D")
        if paragraph is not None:
            done = await self._append_bounce(one, paragraph)
        if done:
            await self._mark(channel, one, record)
        else:
            one.left = True
        one.running -= 1
        await self._go_on(channel, one)

    async def _try(self, channel: Channel, one: Pass, record: RecipientRecord) -> Report:
        try:
            fd = await self.queue.open(one.number)
        except OSError as error:
            return Report.deferral(b"Unable to open the message: %s. (#4.3.0)\n" % str(error.strerror).encode())
        sender = expand(one.sender, record.address)
        delivery = Delivery(one.number, fd, sender, record.address, channel.siblings(one))
        if one.asked is not None:
            asked = one.asked.recipients.get((channel.name, record.offset), b"")
            delivery = attrs.evolve(delivery, asked_mail=one.asked.mail, asked=asked)
        try:
            report: Report = await self.spawners[channel.name].deliver(delivery)
        except Exception:  # a spawner that breaks its promise must not cost a slot, nor the message
            _log.failure("the {channel} spawner failed", channel=channel.name)
            return Report.deferral(b"Internal error in the delivery; the daemon's log says more. (#4.3.0)\n")
        return report

    async def _append_bounce(self, one: Pass, paragraph: bytes) -> bool:
        """Add the paragraph of one recipient; False when the daemon ends before the disk takes it."""
        while True:
            try:
                await self.queue.append_bounce(one.number, paragraph)
            except OSError:
                self.log.alert("unable to append to bounce message; HELP! sleeping...")
                if self.exiting:
                    return False
                await deferLater(self.clock, SLEEP_AFTER_TROUBLE)
            else:
                return True

    async def _mark(self, channel: Channel, one: Pass, record: RecipientRecord) -> None:
        try:
            await self.queue.mark(one.number, channel.name, record.offset)
        except OSError:
            path = self._path(channel.name, one.number)
            self.log.warning(f"trouble marking {path}; message will be delivered twice!")

    async def _end_pass(self, channel: Channel, one: Pass) -> None:
        if one.left:
            if one.delayed:
                await self.reporter.tell_delay(one)
            if channel.name == "local":
                await self._postpone(one.number, channel.name, one.retry)
            channel.add(one.number, one.retry)
            self.queue.settle(one.number)
            self._pump()
            return
        try:
            await self.queue.finish_channel(one.number, channel.name)
        except OSError:
            self.log.warning(f"unable to unlink {self._path(channel.name, one.number)}; will try again later")
            channel.add(one.number, self.clock.seconds() + RETRY_AFTER_TROUBLE)
            return
        await self.channel_finished(one.number)

    async def channel_finished(self, number: int) -> None:
        """The file of one channel is gone; with the last one, the message ends."""
        if number in self._both:
            self._both.discard(number)
        else:
            await self._end_message(number)

    # The end of a message.

    async def _end_message(self, number: int, *, logged: bool = False) -> None:
        """Bounce what failed and remove the message; what the disk refuses is tried again later (§9.6)."""
        try:
            if not logged:
                await self.reporter.tell_end(number)
                # Before the files go: their number may be given to a new message at once.
                self.log.end(number)
                logged = True
                self.history.forget(number)
                self.keeper.forget(number)
            await self.queue.finish(number)
        except QueueError as error:
            self.log.warning(f"trouble injecting bounce message, will try later: {error}")
        except (OSError, ValueError) as error:
            self.log.warning(f"unable to clean up {self._path('mess', number)}; will try again later: {error}")
        else:
            return
        self._later(f"end {number}", RETRY_AFTER_TROUBLE, lambda: self._task(self._end_message(number, logged=logged)))

    def drained(self) -> Deferred[None]:
        """Fires when nothing is under way: for tests and for a clean stop of the parts below."""
        if not self._tasks:
            return succeed(None)
        waiting: Deferred[None] = Deferred.fromCoroutine(self._wait_for_tasks())
        return waiting

    async def _wait_for_tasks(self) -> None:
        while self._tasks:
            await DeferredList(list(self._tasks))
