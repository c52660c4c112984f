"""Moving message text in big blocks, for maildir and mbox."""

from __future__ import annotations

import os
from collections.abc import Iterator

from qtwist.files.disk import Disk

#: How much is read, and written, at once (octets).
BLOCK_SIZE = 256 * 1024


def message_blocks(fd: int, size: int = BLOCK_SIZE) -> Iterator[bytes]:
    """The file `fd` from its first octet on; the offset that it shares with other readers is neither used nor moved."""
    offset = 0
    while block := os.pread(fd, size, offset):
        yield block
        offset += len(block)


def write_all(disk: Disk, fd: int, data: bytes) -> None:
    """Write the whole of `data`, however little the disk takes at a time."""
    written = disk.write(fd, data)
    if written < len(data):
        rest = memoryview(data)[written:]
        while rest:
            rest = rest[disk.write(fd, rest) :]
