"""Packets with descriptors, received. Standard library only."""

from __future__ import annotations

import array
import socket

_SIZE = array.array("i").itemsize


def receive(sock: socket.socket, octets: int, most: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """One packet of at most so many octets, and its descriptors, at most so many, which are closed in programs that are
    run; an empty packet at the end. OSError as recvmsg raises it. (socket.recv_fds forgets its flags.)"""
    flags |= socket.MSG_CMSG_CLOEXEC
    packet, ancillary, _, _ = sock.recvmsg(octets, socket.CMSG_LEN(most * _SIZE), flags)
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _SIZE])
    return packet, list(fds)


def receive_or_end(sock: socket.socket, octets: int, most: int) -> tuple[bytes, list[int]]:
    """As :func:`receive`; a connection that broke is one that has ended. BlockingIOError when there is no packet."""
    for _ in range(2):
        try:
            return receive(sock, octets, most)
        except ConnectionError:
            # The other end left something unread; that is told once, before what it has said.
            continue
    return b"", []
