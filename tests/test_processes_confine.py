"""The filter that keeps a process from the network (doc/security.md)."""

from __future__ import annotations

import os
import platform
import socket

from twisted.trial.unittest import SynchronousTestCase

from qtwist.local.becoming import no_new_privileges
from qtwist.processes.confine import forbid_network


def confined() -> dict[str, str]:
    """What a child with the filter may still do."""
    listening = socket.create_server(("127.0.0.1", 0))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            no_new_privileges()
            said = [f"filter {forbid_network()}"]
            for family in ("AF_INET", "AF_INET6", "AF_NETLINK", "AF_UNIX"):
                try:
                    socket.socket(getattr(socket, family), socket.SOCK_DGRAM).close()
                    said.append(f"{family} made")
                except OSError as error:
                    said.append(f"{family} {error.strerror}")
            connection, _ = listening.accept()
            said.append(f"accepted {connection.recv(5).decode()}")
            os.write(writer, "\n".join(said).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with socket.create_connection(listening.getsockname(), 30) as client, listening:
        client.sendall(b"hello")
        with os.fdopen(reader) as pipe:
            lines = pipe.read().splitlines()
    os.waitpid(child, 0)
    return dict(line.split(" ", 1) for line in lines)


class ConfineTests(SynchronousTestCase):
    def test_no_network(self) -> None:
        """No socket of the network, whatever it is for; those of this host, and connections that come, work."""
        if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
            self.skipTest("the filter is for Linux on x86-64 and AArch64")
        found = confined()
        refused = "Operation not permitted"
        self.assertEqual(
            found,
            {
                "filter": "True",
                "AF_INET": refused,
                "AF_INET6": refused,
                "AF_NETLINK": refused,
                "AF_UNIX": "made",
                "accepted": "hello",
            },
        )
