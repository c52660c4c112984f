"""What a server asks lspawn: has this local part a mailbox? (doc/security.md)"""

from __future__ import annotations

import os
import socket
from collections import deque
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred, succeed

from qtwist.local.errors import DONE, PERMANENT, SYSTEM_TROUBLE
from qtwist.processes.packets import PacketConnection
from qtwist.wire import spawning

#: How many questions one server has under way; the others wait for their turn.
AT_ONCE = 4
#: More than these that wait are not even asked.
WAITING = 1000


class MailboxQuestions:
    """Asks whoever is at the other end of `sock`; an :class:`~qtwist.policy.recipients.ILookup`."""

    def __init__(self, reactor: Any, sock: socket.socket) -> None:
        self._connection: PacketConnection | None = PacketConnection(reactor, sock, self._answered, self._lost)
        self._numbers = count(1)
        self._asked: dict[int, Deferred[int]] = {}
        self._waiting: deque[tuple[bytes, Deferred[int]]] = deque()

    def __call__(self, local: bytes) -> Deferred[int]:
        """As ILookup says."""
        if not local:
            return succeed(DONE)  # mail for nobody at this host is thrown away (§11.2)
        if b"\0" in local:
            return succeed(PERMANENT)
        if self._connection is None or len(self._waiting) >= WAITING:
            return succeed(SYSTEM_TROUBLE)
        answer: Deferred[int] = Deferred()
        self._waiting.append((local, answer))
        self._ask()
        return answer

    def _ask(self) -> None:
        while self._waiting and self._connection is not None and len(self._asked) < AT_ONCE:
            local, answer = self._waiting.popleft()
            if not answer.called:  # else nobody waits for it any more
                number = next(self._numbers) & 0xFFFFFFFF
                self._asked[number] = answer
                self._connection.send(spawning.request(number, 0, b"", local))

    def _answered(self, packet: bytes, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        number, code, _ = spawning.read_reply(packet)
        answer = self._asked.pop(number, None)
        if answer is not None and not answer.called:
            answer.callback(code)
        self._ask()

    def _lost(self) -> None:
        self._connection = None
        left = [*self._asked.values(), *(answer for _, answer in self._waiting)]
        self._asked.clear()
        self._waiting.clear()
        for answer in left:
            if not answer.called:
                answer.callback(SYSTEM_TROUBLE)
