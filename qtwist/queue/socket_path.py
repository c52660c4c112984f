"""Addresses of Unix sockets whose path is longer than the system takes. Standard library only."""

from __future__ import annotations

import os

_LONGEST = 107  # sun_path holds 108 octets, with a NUL


class SocketPath:
    """The socket `name` in `directory`: :attr:`address` is what to connect to or to listen at, until :meth:`close`.

    Where the path is too long, the address leads through a descriptor of the directory, which is open meanwhile.
    OSError when that is not there.
    """

    def __init__(self, directory: str, name: str) -> None:
        self.address = f"{directory}/{name}"
        self._holder = -1
        if len(os.fsencode(self.address)) > _LONGEST:
            self._holder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self.address = f"/proc/self/fd/{self._holder}/{name}"

    def close(self) -> None:
        """The address is no longer needed. Harmless when repeated."""
        if self._holder != -1:
            os.close(self._holder)
            self._holder = -1
