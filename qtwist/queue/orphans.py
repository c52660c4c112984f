"""Files of messages that are gone, which a crash has brought back (spec/qmail.md §5.3, §5.4).

The end of a message is not synced. On a file system that does not keep the order of what is done to different
directories, a crash may undo the removal of info/N or remote/N and not that of mess/N. Were such files left, a new
message that gets the number could go to the recipients of the old one.
"""

from __future__ import annotations

from qtwist.files.disk import Disk
from qtwist.queue.layout import Layout
from qtwist.queue.store import CHANNELS, Store


def remove_orphans(disk: Disk, layout: Layout, store: Store) -> list[str]:
    """Remove them, durably; the names of what was removed, below the queue directory.

    The caller holds the queue's lock and has preprocessed nothing yet, so nobody else makes such files; messages may be
    accepted meanwhile. OSError when the disk fails; what was found until then is removed.

    An envelope in todo/ without its message stays for people to see: somebody's mail may have been lost. Its number
    is not used (see :class:`~qtwist.queue.accept.Acceptor`).
    """
    removed: dict[str, list[str]] = {}

    def remove(room: str, number: int) -> None:
        store.remove(room, number)
        removed.setdefault(layout.holder(room, number), []).append(layout.name(room, number))

    # What belongs to a message is made after its mess file, and so it is listed before.
    intd = store.numbers("intd")
    bounces = store.numbers("bounce")
    todo = set(store.numbers("todo"))
    for part in range(layout.split):
        found = {room: store.numbers(room, part) for room in ("info", *CHANNELS)}
        messages = set(store.numbers("mess", part))
        keep = messages & (todo | set(found["info"]))
        for room, numbers in found.items():
            for number in numbers:
                if number not in keep:
                    remove(room, number)
        bounces = [number for number in bounces if number not in keep]
        intd = [number for number in intd if number not in messages]
    for number in bounces:
        remove("bounce", number)
    for number in intd:
        remove("intd", number)
    for directory in removed:
        disk.fsync_directory(directory)
    return [name for names in removed.values() for name in names]
