"""A maildir as an IMaildrop: what blocks is done in threads, one call at a time."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from zope.interface import implementer

from qtwist.pop3d.interfaces import IMaildrop, IMessageSource, MaildropError, MaildropTrouble, MessageGone
from qtwist.pop3d.maildir import MaildirSession

if TYPE_CHECKING:
    from qtwist.auth.mailboxes import Account

T = TypeVar("T")

#: Calls a function with arguments in a thread; fires with what it returns or raises.
Run = Callable[..., Deferred[Any]]

BLOCK = 262144  # octets of a message, or of several small ones, that are read at once

_PERMANENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP})
_log = Logger(namespace="qtwist.pop3d")


def reactor_threads(reactor: Any) -> Run:
    """The threads of the reactor."""
    return lambda function, *arguments: deferToThreadPool(reactor, reactor.getThreadPool(), function, *arguments)


def make_maildrops(reactor: Any, now: Callable[[], float] = time.time) -> Callable[[Account], Maildrop]:
    """What makes the maildrop of an account, for :func:`qtwist.auth.making.make_authenticator`."""
    run = reactor_threads(reactor)
    return lambda account: Maildrop(account.maildir, run, now)


class Session(Protocol):
    """What a maildrop needs of a maildir; :class:`~qtwist.pop3d.maildir.MaildirSession` has it. All of it may block."""

    @property
    def uids(self) -> Sequence[bytes]: ...

    def __len__(self) -> int: ...

    def size(self, index: int) -> int: ...

    def sizes(self) -> Sequence[int]: ...

    def open(self, index: int) -> int: ...

    def small(self, index: int, octets: int) -> list[bytes]: ...

    def finish(self, deleted: Collection[int], retrieved: Collection[int]) -> list[OSError]: ...

    def close(self) -> None: ...


@implementer(IMaildrop)
class Maildrop:
    """The maildir at `path`, None when none is known; `run` calls what blocks in threads, `now` tells the date.

    `opened`, which may block, makes the session in place of that: for a maildir that another process reads for us.

    Several sessions may use one maildir at once, and so may other programs. There is no lock: a message that somebody
    else removes is gone for us, too, and one that is renamed is found again.
    """

    def __init__(
        self,
        path: bytes | None,
        run: Run,
        now: Callable[[], float] = time.time,
        opened: Callable[[], Session] | None = None,
    ) -> None:
        self._path = path
        self._run = run
        self._now = now
        self._make = opened
        self._session: Session | None = None
        # Small messages that were read ahead, for a client that takes one after the other.
        self._ahead: dict[int, bytes] = {}
        self._next = 0

    def open(self) -> Deferred[int]:
        return self._call(self._open)

    def sizes(self) -> Deferred[Sequence[int]]:
        return self._call(self._opened.sizes)

    def uids(self) -> Deferred[Sequence[bytes]]:
        return succeed(self._opened.uids)

    def fetch(self, index: int) -> Deferred[IMessageSource]:
        in_order, self._next = index == self._next, index + 1
        known = self._ahead.pop(index, None)
        if known is not None:
            return succeed(_MessageSource(-1, known, self._call))
        self._ahead.clear()
        return self._call(self._fetch, self._opened, index, in_order)

    def finish(self, deleted: Collection[int], retrieved: Collection[int]) -> Deferred[int]:
        return self._call(self._finish, self._opened, deleted, retrieved)

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()
        self._ahead.clear()

    @property
    def _name(self) -> str:
        return os.fsdecode(self._path or b"")

    @property
    def _opened(self) -> Session:
        if self._session is None:
            raise RuntimeError("the maildrop is not open")
        return self._session

    def _call(self, function: Callable[..., T], *arguments: Any) -> Deferred[T]:
        """In a thread, with the errors of the system as those of the interface."""

        def checked() -> T:
            try:
                return function(*arguments)
            except OSError as error:
                text = f"{self._name}: {error.strerror or error}"
                raise (MaildropError if error.errno in _PERMANENT else MaildropTrouble)(text) from error

        return self._run(checked)

    # In threads

    def _open(self) -> int:
        if self._make is not None:
            session = self._make()
        elif self._path is not None:
            session = MaildirSession(self._path, self._now())
        else:
            raise MaildropError("no maildir is known for this account")
        self._session = session
        return len(session)

    def _fetch(self, session: Session, index: int, in_order: bool) -> IMessageSource:
        # A hop to a thread, or to another process, costs several times what reading a small message does.
        if in_order and (texts := session.small(index, BLOCK)):
            self._ahead = dict(enumerate(texts[1:], index + 1))
            return _MessageSource(-1, texts[0], self._call)
        try:
            fd, first = _begin(session, index)
        except FileNotFoundError as error:
            raise MessageGone(str(error)) from error
        return _MessageSource(fd, first, self._call)

    def _finish(self, session: Session, deleted: Collection[int], retrieved: Collection[int]) -> int:
        failures = session.finish(deleted, retrieved)
        if failures:
            _log.error(
                "{path}: {count} messages could not be removed: {error}",
                path=self._name,
                count=len(failures),
                error=str(failures[0]),
            )
        return len(failures)


def _begin(session: Session, index: int) -> tuple[int, bytes]:
    """A descriptor of the message and its first block; -1 when that is all. FileNotFoundError, OSError."""
    fd = session.open(index)
    try:
        first = os.read(fd, BLOCK)
        whole = len(first) < BLOCK and len(first) >= os.fstat(fd).st_size
    except OSError:
        os.close(fd)
        raise
    if whole:
        os.close(fd)
    return (-1 if whole else fd), first


@implementer(IMessageSource)
class _MessageSource:
    """A message of which the first block has been read already, which is the whole of most. `fd` is -1 then."""

    def __init__(self, fd: int, first: bytes, call: Callable[..., Deferred[bytes]]) -> None:
        self._fd = fd
        self._first = first
        self._call = call

    def read(self) -> Deferred[bytes]:
        first, self._first = self._first, b""
        if first or self._fd < 0:
            return succeed(first)
        return self._call(os.read, self._fd, BLOCK)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
