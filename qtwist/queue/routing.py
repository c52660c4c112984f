"""The recipients of one message on their way from its envelope into the files of the channels. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from qtwist.mail.asked import Kept

Route = Callable[[bytes], tuple[str, bytes]]


class Routing:
    """Rewrites recipients in order, and keeps count of where those stand who came with parameters (RFC 3461).

    `asked` has these by the recipient's place in the envelope; it may grow as long as it is ahead of :meth:`take`.
    """

    def __init__(self, route: Route) -> None:
        self.asked: dict[int, bytes] = {}
        self._route = route
        self._index = 0
        self._sizes: Counter[str] = Counter()
        self._kept: dict[tuple[str, int], bytes] = {}

    def take(self, recipients: Sequence[bytes]) -> dict[str, list[bytes]]:
        """Addresses for the channels, to be appended to their files in this order."""
        routed: dict[str, list[bytes]] = {}
        if not self.asked:
            for recipient in recipients:
                channel, address = self._route(recipient)
                routed.setdefault(channel, []).append(address)
            for channel, addresses in routed.items():
                self._sizes[channel] += sum(map(len, addresses)) + 2 * len(addresses)
            self._index += len(recipients)
            return routed
        for recipient in recipients:
            channel, address = self._route(recipient)
            routed.setdefault(channel, []).append(address)
            parameters = self.asked.get(self._index)
            if parameters is not None:
                self._kept[channel, self._sizes[channel]] = parameters
            self._sizes[channel] += len(address) + 2
            self._index += 1
        return routed

    def kept(self, mail: bytes) -> Kept | None:
        """What info/N has to keep, with the message's own parameters; None where nothing was asked for."""
        return Kept(mail, self._kept) if mail or self._kept else None
