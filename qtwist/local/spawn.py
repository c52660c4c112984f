"""The local channel's spawner inside the daemon: deliveries as whoever the daemon runs as, in threads (spec §11).

The rules of qmail-lspawn hold: who owns the address is looked up anew for every delivery, and nothing is delivered as
root. As this process cannot change its user id, it delivers only to addresses that its own account owns.
"""

from __future__ import annotations

import os
import socket
import sysconfig
import time
from collections.abc import Callable, Sequence
from functools import partial

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorCore, IReactorFromThreads, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from qtwist.control import Control, ControlError
from qtwist.files.assign import Assignment
from qtwist.files.disk import Disk
from qtwist.interfaces import Delivery, IQueue, ISpawner
from qtwist.local.deliver import Forwarded, Job, Parts, deliver
from qtwist.local.door import Hatch, forward
from qtwist.local.errors import AS_ROOT, SYSTEM_TROUBLE, TEMPORARY, DeliveryError
from qtwist.local.report import report
from qtwist.local.users import Account, Users, folder_account, system_account
from qtwist.mail.envelope import Origin, Report

#: The most deliveries at once, whatever control/concurrencylocal says (conf-spawn, §1.1).
LIMIT = 120

_DEFAULT_PATH = b"/usr/local/bin:/usr/bin:/bin"


@implementer(ISpawner)
class LocalSpawner:
    """Delivers to local addresses in threads of its own, never in the reactor's.

    `home` is the home directory of the mail system. control/concurrencylocal is read once, control/defaultdelivery and
    control/timeoutlocal for every delivery. Addresses that nobody else owns belong to the owner of HOME/alias. `euid`
    is the account that deliveries run as, by default the process's; `find_account` asks the account database; `now` is
    in seconds since the epoch.
    """

    _log = Logger()

    def __init__(
        self,
        home: str,
        control: Control,
        queue: IQueue,
        disk: Disk,
        reactor: IReactorCore,
        *,
        euid: int | None = None,
        find_account: Callable[[bytes], Account | None] = system_account,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.limit = min(max(control.integer("concurrencylocal"), 1), LIMIT)
        base = os.fsencode(os.path.abspath(home))
        self._control = control
        self._queue = queue
        self._disk = disk
        self._reactor = reactor
        self._euid = os.geteuid() if euid is None else euid
        self._now = now
        self._alias_home = os.path.join(base, b"alias")
        alias = partial(folder_account, self._alias_home)
        self._users = Users(os.path.join(base, b"users", b"cdb"), alias, find_account)
        self._hostname = os.fsencode(socket.gethostname())
        # Programs of .qmail files find our commands by name (forward, preline, ...), and these find this home.
        scripts = os.fsencode(sysconfig.get_path("scripts"))
        path = os.environb.get(b"PATH", _DEFAULT_PATH)
        self._environment = {b"PATH": scripts + b":" + path, b"QTWISTHOME": base}
        self._hatch = Hatch(IReactorFromThreads(reactor))
        self._pool: ThreadPool | None = None
        self._running = 0
        self._stopping: list[Deferred[None]] | None = None

    def deliver(self, delivery: Delivery) -> Deferred[Report]:
        """As ISpawner says; the descriptor is closed in any case."""
        if self._stopping is not None:
            self._disk.close(delivery.fd)
            return succeed(Report.deferral(b"The mail system is stopping. (#4.3.0)\n"))
        if self._pool is None:
            self._pool = self._start()
        self._running += 1
        result = deferToThreadPool(IReactorFromThreads(self._reactor), self._pool, self._work, delivery)
        result.addErrback(self._unexpected, delivery)
        result.addBoth(self._done)
        return result

    def stop(self) -> Deferred[None]:
        """As ISpawner says. Programs may still take as long as control/timeoutlocal allows."""
        if self._stopping is None:
            self._stopping = []
        ended: Deferred[None] = Deferred()
        self._stopping.append(ended)
        self._check_stopped()
        return ended

    # -- in the reactor's thread ----------------------------------------------------------------------------------

    def _start(self) -> ThreadPool:
        pool = ThreadPool(minthreads=0, maxthreads=self.limit, name="local")
        pool.start()
        # Normally stop() has come before. If not: the reactor answers no thread after this, and threads that wait for
        # it or for work would keep the process alive.
        self._trigger = self._reactor.addSystemEventTrigger("during", "shutdown", self._end)
        return pool

    def _end(self) -> None:
        self._hatch.close()
        if self._pool is not None:
            pool, self._pool = self._pool, None
            pool.stop()

    def _done(self, result: Report) -> Report:
        self._running -= 1
        if self._stopping is not None:
            # After this report has gone its way.
            IReactorTime(self._reactor).callLater(0, self._check_stopped)
        return result

    def _check_stopped(self) -> None:
        if self._stopping is None or self._running:
            return
        if self._pool is not None:
            self._reactor.removeSystemEventTrigger(self._trigger)
        self._end()
        waiting, self._stopping = self._stopping, []
        for ended in waiting:
            ended.callback(None)

    def _unexpected(self, failure: Failure, delivery: Delivery) -> Report:
        self._log.failure("local delivery of message {number} failed", failure, number=delivery.number)
        return report(SYSTEM_TROUBLE, b"")

    # -- in a delivery thread -------------------------------------------------------------------------------------

    def _work(self, delivery: Delivery) -> Report:
        try:
            return self._deliver(delivery)
        except DeliveryError as error:
            return report(error.code, error.text + b"\n" if error.text else b"")
        except ControlError as error:
            return report(TEMPORARY, b"%s (#4.3.0)\n" % str(error).encode("utf-8", "surrogateescape"))
        finally:
            self._disk.close(delivery.fd)

    def _deliver(self, delivery: Delivery) -> Report:
        local, at, domain = delivery.recipient.rpartition(b"@")
        if not at:
            return Report.failure(b"A local address must have a host name. (#5.1.3)\n")
        if not local:
            # Mail for nobody at this host is thrown away (§11.2).
            return Report.success()
        owner = self._users.find(local)
        self._check_account(owner)
        default = self._control.text("defaultdelivery") or b""
        asked = delivery.asked_mail, delivery.asked
        job = Job.of(owner, local, domain, delivery.sender, default, delivery.fd, asked=asked)
        parts = Parts(
            disk=self._disk,
            now=self._now,
            hostname=self._hostname,
            forward=partial(self._forward, owner),
            base_environment=self._environment,
            program_timeout=self._control.integer("timeoutlocal"),
        )
        outcome = deliver(job, parts)
        return report(outcome.code, outcome.output)

    def _check_account(self, owner: Assignment) -> None:
        if 0 in {owner.uid, self._euid}:
            raise DeliveryError(AS_ROOT)
        if owner.uid != self._euid:
            raise DeliveryError(
                TEMPORARY,
                b"The address belongs to %s (user id %d), but this daemon runs as user id %d and delivers only to "
                b"its own account. (#4.3.0)" % (owner.user, owner.uid, self._euid),
            )

    def _forward(
        self,
        owner: Assignment,
        fd: int,
        prefix: bytes,
        sender: bytes,
        recipients: Sequence[bytes],
        asked: tuple[bytes, bytes],
    ) -> Forwarded:
        # "By alias" names the role: in a home of one account, its uid would say nothing.
        origin = Origin.alias(owner.uid) if owner.home == self._alias_home else Origin.user(owner.uid)
        return forward(self._hatch, self._queue, self._disk, origin, fd, prefix, sender, recipients, asked)
