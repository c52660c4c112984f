"""Reading a message in big blocks, for whatever passes it on: maildir, mbox, forward."""

from __future__ import annotations

from collections.abc import Iterator

from qtwist.files.disk import Disk

#: How much is read at once (octets).
BLOCK_SIZE = 256 * 1024


def message_blocks(disk: Disk, fd: int, size: int = BLOCK_SIZE) -> Iterator[bytes]:
    """The file `fd` from its first octet on; the offset that it shares with other readers is neither used nor moved."""
    offset = 0
    while block := disk.pread(fd, size, offset):
        yield block
        offset += len(block)
