"""The demo's stand-in for a host elsewhere: takes every message by SMTP and writes it to a file in a folder.

Used where Postfix's smtp-sink is not installed. `python sink.py PORT FOLDER`
"""

from __future__ import annotations

import itertools
import os
import socketserver
import sys

LIMIT = 1 << 20  # octets of a message, and of all commands before it, that the demo can need
NUMBERS = itertools.count(1)


class Session(socketserver.StreamRequestHandler):
    """One connection. It says yes to everything, as a sink does."""

    timeout = 60

    def answer(self, text: bytes) -> None:
        self.wfile.write(text + b"\r\n")

    def handle(self) -> None:
        self.answer(b"220 sink.example SMTP")
        while line := self.rfile.readline(2048):
            verb = line[:4].upper()
            if verb == b"DATA":
                self.answer(b"354 go ahead")
                self.keep()
                self.answer(b"250 2.0.0 kept")
            elif verb == b"QUIT":
                self.answer(b"221 2.0.0 bye")
                return
            else:
                self.answer(b"250 2.0.0 ok")

    def keep(self) -> None:
        size = 0
        with open(os.path.join(sys.argv[2], f"message.{next(NUMBERS)}"), "wb") as file:
            while (line := self.rfile.readline(2048)) and line != b".\r\n" and size < LIMIT:
                size += file.write(line.removeprefix(b".").replace(b"\r\n", b"\n"))


class Sink(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    with Sink(("127.0.0.1", int(sys.argv[1])), Session) as server:
        server.serve_forever()
