"""What policies may use beside the control files: the time, the DNS, and who else serves the same port."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.threads import deferToThreadPool

from qtwist.dns.resolver import make_resolver
from qtwist.interfaces import IResolver

if TYPE_CHECKING:
    from qtwist.control import Control
    from qtwist.policy.recipients import ILookup


@attrs.define(eq=False)
class Surroundings:
    """Where a factory's policies are at work. What is set here after the factory was made counts, too.

    `clock` is the reactor (or a test's clock), `now` tells the date; `share` is one out of how many processes that
    serve the same ports this is. `resolver` is made when it is first needed. `lookup` says whether mail for a local
    part could be delivered; None where nobody can tell.
    """

    control: Control
    clock: Any
    now: Callable[[], float] = time.time
    share: Callable[[], int] = lambda: 1
    make: Callable[[], IResolver] | None = None
    lookup: ILookup | None = None
    _resolver: IResolver | None = None

    @property
    def resolver(self) -> IResolver:
        """Asks the DNS, by control/dnsservers."""
        if self._resolver is None:
            make = self.make or self._make
            self._resolver = make()
        return self._resolver

    def _make(self) -> IResolver:
        servers = [line.decode("ascii") for line in self.control.list("dnsservers") or ()]
        return make_resolver(self.clock, servers)

    def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """Call what blocks, in the reactor's threads. With a clock that is no reactor it is called at once."""
        pool = getattr(self.clock, "getThreadPool", None)
        if pool is None:
            return maybeDeferred(function, *arguments)
        return deferToThreadPool(self.clock, pool(), function, *arguments)

    @property
    def home(self) -> str:
        """The home directory, the one that has control/ in it."""
        return os.path.dirname(os.path.abspath(self.control.directory))
