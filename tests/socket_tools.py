"""A client of a few lines, for the tests of servers on loopback."""

from __future__ import annotations

import socket


def talk(port: int, data: bytes, *, half_close: bool = True) -> bytes:
    """Send `data`, end our side if `half_close`, and return all that comes until the server's end."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.settimeout(30)
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer
