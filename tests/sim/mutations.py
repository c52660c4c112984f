"""What the crash machine is worth: take each sync out of the code, swap each pair of steps whose order counts, and see
whether it notices.

``python -m tests.sim.mutations`` (part of `make soak`) tries them all, and lists those that survive.
:data:`KNOWN_SURVIVORS` are those that may, each with its reason.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import attrs
from twisted.internet.defer import succeed

from qtwist.files import disk as files_disk
from qtwist.interfaces import MessageInfo, RecipientRecord
from qtwist.mail.qsbmf import recipient_paragraph
from qtwist.queue import accept, files, journal, journaled, large, preprocess, settle, writer
from qtwist.queue.layout import LayoutError, create_queue, open_layout
from qtwist.queue.store import Store
from qtwist.send import manager, reporting, steering
from qtwist.send.bounces import inject_bounce
from tests.sim.disk import Model, SimulatedDisk
from tests.sim.machine import QUEUE, Life, Machine, Stop, Violation
from tests.sim.stories import EVERYBODY, FAILURES, Story, count_calls, one_message

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

_FAIL = Story([Life([("send", b"ok", [FAILURES[3], FAILURES[3]], 10), ("settle",), ("steer", "fail", 0), ("settle",)])])
_TWO_LIVES = [("send", b"ok", EVERYBODY, 10), ("settle",), ("send", b"bad", FAILURES, 10), ("settle",)]

#: Between them they come by every sync and every order. Those that find most come first.
STORIES = (
    one_message(FAILURES, model=Model.POSIX, shared_sync=False),
    one_message(FAILURES, model=Model.JOURNAL),
    attrs.evolve(_FAIL, model=Model.POSIX),
    one_message(EVERYBODY, model=Model.POSIX, shared_sync=False),
    one_message(EVERYBODY, model=Model.POSIX, times=2),
    one_message(EVERYBODY[:1], size=70_000, model=Model.POSIX, shared_sync=False),
    Story([Life(_TWO_LIVES)], model=Model.POSIX, shared_sync=False),
)

_LARGE = ("send", b"ok", EVERYBODY, 70_000)
_SMALL = [("send", b"ok", EVERYBODY[2:], 5000), ("settle",)]
_TO_MAILDIR = [("send", b"ok", EVERYBODY[:1], 5000), ("settle",)]
_OLD = ("send", b"ok", FAILURES[3:], 10)

#: The same for the journal.
JOURNAL_STORIES = (
    one_message(FAILURES, model=Model.POSIX, shared_sync=False, journal=True),
    Story([Life([_OLD, *_SMALL * 12, ("advance", 7), *_SMALL * 5])], model=Model.POSIX, journal=True),
    Story([Life([("send", b"ok", EVERYBODY, 10), ("steps", 30), ("terminate",)])], model=Model.POSIX, journal=True),
    Story([Life([_OLD, ("hold", 0, True), *_TO_MAILDIR * 12])], model=Model.POSIX, journal=True),
    Story([Life([_LARGE, ("settle",), ("abort", 70_000), ("settle",), _LARGE])], model=Model.POSIX, journal=True),
)

#: Mutations that nothing can notice, and why they are there.
KNOWN_SURVIVORS = {
    "queue/accept.py:flush mess": "the commit syncs the file again; this sync is early so that the commit is short",
    "queue/journal.py:_sync < queue/journal.py:_rotate journal": "one crash in many: test_queue_journal test_rotation",
    "queue/layout.py:create_queue bounce": "a new directory that is still empty; once in the life of a queue",
    "queue/layout.py:create_queue intd": "as bounce",
    "queue/layout.py:create_queue todo": "as bounce",
}


def site_of_sync(path: str, home: str) -> str:
    """Who syncs what: the functions of queue/ and files/ that asked for the sync under way, and the room."""
    names = []
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(ROOT + "/qtwist/") and file != files_disk.__file__:
            names.append(f"{file.removeprefix(ROOT + '/qtwist/')}:{frame.f_code.co_name}")
            if not file.endswith(("queue/sync.py", "files/syncing.py")) and frame.f_code.co_name != "_sync":
                break
        frame = frame.f_back  # type: ignore[assignment]
    path = os.path.normpath(path)
    special = {"/": "everything", QUEUE: "queue", home: "home"}
    below = path.removeprefix(QUEUE + "/").removeprefix(home + "/").split("/")
    room = special.get(path) or {"pid": "mess"}.get(below[0], below[0])
    return " < ".join(dict.fromkeys(names)) + " " + room


@contextlib.contextmanager
def syncs_watched(home: str, ignored: str | None, seen: set[str]) -> Iterator[None]:
    """All simulated disks ignore one site's syncs, and note the others."""

    def ignores(_: str, path: str) -> bool:
        site = site_of_sync(path, home)
        seen.add(site)
        return site == ignored

    original = SimulatedDisk.__init__

    def build(self: SimulatedDisk, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        self.ignores = ignores

    with mock.patch.object(SimulatedDisk, "__init__", build):
        yield


def sites(home: str) -> list[str]:
    """Every place that syncs."""
    seen: set[str] = set()
    with syncs_watched(home, None, seen):
        for story in (*STORIES, *JOURNAL_STORIES):
            count_calls(home, story)
    return sorted(seen)


# Swapped steps. Each context manager swaps one pair.


@contextlib.contextmanager
def envelope_published_before_sync() -> Iterator[None]:
    """The link in todo/ before the contents are synced."""
    write = accept.Acceptor._write

    def swapped(self: accept.Acceptor, one: Any, sync: Any) -> None:
        write(self, one, sync)
        self._disk.link(self._layout.path("intd", one.number), self._layout.path("todo", one.number))
        self._disk.fsync_directory(self._layout.room("todo"))

    def published(self: accept.Acceptor, progress: list[Any], sync: Any) -> None:
        return

    with mock.patch.multiple(accept.Acceptor, _write=swapped, _publish=published):
        yield


@contextlib.contextmanager
def envelope_removed_before_sync() -> Iterator[None]:
    """todo/N removed before info, local and remote are synced."""
    write = preprocess._Writer.write

    def swapped(self: preprocess._Writer) -> Any:
        written = write(self)
        preprocess._clean(self._disk, self._layout, self._number)
        return written

    with mock.patch.object(preprocess._Writer, "write", swapped):
        yield


@contextlib.contextmanager
def todo_removed_before_intd() -> Iterator[None]:
    def swapped(disk: Any, layout: Any, number: int) -> bool:
        for room in ("todo", "intd"):
            preprocess.unlink_if_there(disk, layout.path(room, number))
        return True

    with mock.patch.object(preprocess, "_clean", swapped):
        yield


@contextlib.contextmanager
def message_removed_before_info() -> Iterator[None]:
    def swapped(self: Store, number: int) -> None:
        for room in ("mess", "intd", "info"):
            self.remove(room, number)

    with mock.patch.object(Store, "finish", swapped):
        yield


@contextlib.contextmanager
def mark_before_paragraph() -> Iterator[None]:
    append = manager.QueueManager._append_bounce
    mark = manager.QueueManager._mark
    kept: dict[Any, Any] = {}

    async def appended(self: Any, one: Any, paragraph: bytes) -> bool:
        kept[one.number, paragraph.partition(b"\n")[0]] = paragraph
        return True

    async def marked(self: Any, channel: Any, one: Any, record: RecipientRecord) -> None:
        await mark(self, channel, one, record)
        paragraph = kept.pop((one.number, b"<%b>:" % record.address), None)
        if paragraph is not None:
            await append(self, one, paragraph)

    with mock.patch.multiple(manager.QueueManager, _append_bounce=appended, _mark=marked):
        yield


@contextlib.contextmanager
def all_marked_before_paragraphs() -> Iterator[None]:
    """What `fail` does, with the marks first."""

    async def swapped(queue: Any, number: int, channel: str, original: Callable[[bytes], bytes]) -> int:
        records, _ = await queue.recipients(number, channel, 0, steering.READ_AHEAD)
        for record in records:
            await queue.mark(number, channel, record.offset)
        for record in records:
            await queue.append_bounce(number, recipient_paragraph(record.address, steering.REPORT.text))
        return len(records)

    with mock.patch.object(steering, "fail_recipients", swapped):
        yield


@contextlib.contextmanager
def bounce_removed_before_notice() -> Iterator[None]:
    async def swapped(self: Any, number: int) -> None:
        text = await self._queue.bounce(number)
        if text is None:
            return
        info: MessageInfo = await self._queue.info(number)
        await self._queue.discard_bounce(number)
        await inject_bounce(self._queue, self._settings, number, info.sender, text, 0)

    with mock.patch.object(reporting.Reporter, "tell_end", swapped):
        yield


@contextlib.contextmanager
def message_ends_before_notice() -> Iterator[None]:
    """info and mess removed before the notice is queued."""

    async def swapped(self: Any, number: int, *, logged: bool = False) -> None:
        await self.queue.finish(number)

    with mock.patch.object(manager.QueueManager, "_end_message", swapped):
        yield


@contextlib.contextmanager
def delivery_marked_before_it_is_made() -> Iterator[None]:
    deliver = manager.QueueManager._try

    async def swapped(self: Any, channel: Any, one: Any, record: RecipientRecord) -> Any:
        await self._mark(channel, one, record)
        return await deliver(self, channel, one, record)

    with mock.patch.object(manager.QueueManager, "_try", swapped):
        yield


@contextlib.contextmanager
def orphans_kept() -> Iterator[None]:
    with mock.patch.object(files, "remove_orphans", lambda *_: []):
        yield


@contextlib.contextmanager
def ended_before_settled() -> Iterator[None]:
    """The journal forgets a message before its files are durable."""
    settle_batch = journaled.JournaledQueue._settle_batch

    async def swapped(self: Any, batch: Any, end: Any) -> None:
        await end(batch, 0)
        await settle_batch(self, batch, end)

    with mock.patch.object(journaled.JournaledQueue, "_settle_batch", swapped):
        yield


@contextlib.contextmanager
def info_before_contents() -> Iterator[None]:
    """info/N and todo/N in the same sync as what they belong to."""
    contents, head = settle._write_contents, settle._write_head

    def both(*arguments: Any) -> None:
        contents(*arguments)
        head(*arguments)

    with mock.patch.multiple(settle, _write_contents=both, _write_head=lambda *_: None):
        yield


@contextlib.contextmanager
def number_freed_before_end() -> Iterator[None]:
    """The name that holds the number goes before the journal has forgotten the message."""
    end = journaled.JournaledQueue._end

    async def swapped(self: Any, settled: Any, failed: int) -> int:
        for live in settled:
            await self._workers.run(self._numbers.settled, live.entry.number)
        return await end(self, settled, failed)

    with mock.patch.object(journaled.JournaledQueue, "_end", swapped):
        yield


@contextlib.contextmanager
def released_with_messages() -> Iterator[None]:
    """Segments are used again as soon as they are full."""
    rotate = journal.Journal._rotate

    def swapped(self: Any) -> None:
        self.release(self.generation)
        rotate(self)
        self.release(self.generation)

    with mock.patch.object(journal.Journal, "_rotate", swapped):
        yield


@contextlib.contextmanager
def number_given_back_before_end() -> Iterator[None]:
    """Another message gets the number, and its record stands before the end of this one."""
    finish = journaled.JournaledQueue._finish
    late: list[Any] = []

    def swapped(self: Any, live: Any) -> Any:
        append = self._writer.append
        with mock.patch.object(self._writer, "append", lambda *records: late.append(records)):
            result = finish(self, live)
        self._reactor.callLater(0.5, append, *late.pop())
        return result

    with mock.patch.object(journaled.JournaledQueue, "_finish", swapped):
        yield


@contextlib.contextmanager
def accepted_before_its_file_is_synced() -> Iterator[None]:
    """The record of a large message before its text lasts."""

    def swapped(self: Any, mess: Any) -> None:
        self._disk.close(mess.fd)
        mess.fd = None

    accept_large = journaled.JournaledQueue._accept_large

    def accepted(self: Any, submission: Any, size: int) -> Any:
        def sync(accepted: Any) -> Any:
            def run() -> None:
                with contextlib.suppress(FileNotFoundError):
                    fd = self._disk.open_read(f"{self._directory}/{number}")
                    self._disk.fsync(fd)
                    self._disk.close(fd)

            return self._workers.run(run).addCallback(lambda _: accepted)

        number = submission.mess.number
        return accept_large(self, submission, size).addCallback(sync)

    with (
        mock.patch.object(large.LargeMessage, "flush", swapped),
        mock.patch.object(journaled.JournaledQueue, "_accept_large", accepted),
    ):
        yield


@contextlib.contextmanager
def file_removed_before_end() -> Iterator[None]:
    """The text of a large message goes while the journal may still hold it."""

    def swapped(self: Any) -> Any:
        return succeed(None)

    with mock.patch.object(writer.JournalWriter, "durable", swapped):
        yield


@contextlib.contextmanager
def file_removed_without_end() -> Iterator[None]:
    """As before, with the next thing that is written to the journal instead of the next flush."""

    write = writer.JournalWriter._write

    def written(self: Any, records: Any, sync: bool) -> Any:
        self._wait_no_longer()
        return write(self, records, sync)

    with mock.patch.object(writer.JournalWriter, "_write", written):
        yield


JOURNAL_SWAPS: Sequence[Callable[[], contextlib.AbstractContextManager[None]]] = (
    ended_before_settled,
    info_before_contents,
    number_freed_before_end,
    released_with_messages,
    number_given_back_before_end,
    accepted_before_its_file_is_synced,
    file_removed_before_end,
    file_removed_without_end,
)

SWAPS: Sequence[Callable[[], contextlib.AbstractContextManager[None]]] = (
    envelope_published_before_sync,
    envelope_removed_before_sync,
    todo_removed_before_intd,
    message_removed_before_info,
    mark_before_paragraph,
    all_marked_before_paragraphs,
    bounce_removed_before_notice,
    message_ends_before_notice,
    delivery_marked_before_it_is_made,
    orphans_kept,
)


def noticed(home: str, seeds: int, stories: Sequence[Story] = STORIES) -> str | None:
    """What the machine says against the code as it is now; None when it finds nothing."""
    rng = random.Random(1)
    try:
        for seed in range(seeds):
            for story in stories:
                calls = list(range(1, count_calls(home, story) + 1))
                rng.shuffle(calls)
                for at in calls:
                    life = attrs.evolve(story.lives[0], stop=Stop(True, at))
                    attrs.evolve(story, lives=[life], seed=1000 * seed + at).tell(home)
    except Violation as violation:
        return str(violation)
    return None


def a_new_queue(home: str) -> str | None:
    """What is wrong with a queue that was made just before a crash."""
    for model in Model:
        for seed in range(60):
            disk = SimulatedDisk(lambda: 1000.0, model)
            disk.prepare_directories("/sim")
            create_queue(QUEUE, disk, 2)
            disk.crash(random.Random(seed))
            try:
                open_layout(QUEUE, disk)
                if len(disk.contents(QUEUE + "/lock/tcpto")) != 1024:
                    return "tcpto is cut off"
            except (LayoutError, OSError) as error:
                return str(error)
    return None


_JOURNAL = re.compile(r"queue/(journal|large|numbers|recovery|settle)\.py")


def judge_site(home: str, site: str, seeds: int) -> str | None:
    with syncs_watched(home, site, set()):
        if site.startswith("queue/layout.py"):
            return a_new_queue(home)
        return noticed(home, seeds, JOURNAL_STORIES if _JOURNAL.search(site) else STORIES)


def main(seeds: int) -> int:
    home = tempfile.mkdtemp()
    survivors = []
    try:
        Machine(home)
        for site in sites(home):
            found = judge_site(home, site, seeds)
            print(f"{'noticed ' if found else 'SURVIVED'} without {site}: {(found or '')[:100]}", flush=True)
            if found is None and site not in KNOWN_SURVIVORS:
                survivors.append(site)
        for swap in (*SWAPS, *JOURNAL_SWAPS):
            with swap():
                found = noticed(home, seeds, JOURNAL_STORIES if swap in JOURNAL_SWAPS else STORIES)
            print(f"{'noticed ' if found else 'SURVIVED'} {swap.__name__}: {(found or '')[:100]}", flush=True)
            if found is None:
                survivors.append(swap.__name__)
    finally:
        shutil.rmtree(home)
    print("survivors:", ", ".join(survivors) or "none")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 6))
