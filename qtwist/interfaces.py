"""The zope interfaces between the rooms: whoever implements one of these can replace a part of qtwist.

All addresses, paths inside messages and texts are bytes. Whatever may have to wait for a disk, a network or another
process returns a Deferred. Durations are seconds, sizes octets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs
from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from qtwist.mail.asked import Kept
from qtwist.mail.envelope import Envelope, Origin, Report


class QueueError(Exception):
    """A message was not taken into the queue.

    `code` is the exit code that qmail-queue would have given (spec/qmail.md §6.3): 11 to 40 permanent, all others
    temporary. `text` says more for the log; what a client is told comes from :mod:`qtwist.mail.queue_codes`, with the
    `words` of a queue program for its code 82 (§7).
    """

    def __init__(self, code: int, text: str = "", words: bytes = b"") -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text
        self.words = words

    def __str__(self) -> str:
        return f"{self.text or 'not queued'} (qmail-queue code {self.code})"


class AnswerLost(QueueError):
    """Whether a message was taken into the queue is not known: the process that writes the queue died over it.

    The client must hear neither yes nor no: a refusal promises that nothing will be delivered (doc/durability.md).
    """


@attrs.frozen
class Accepted:
    """A message that is on disk for good. `number` names it in the queue; `qp` is the number that replies and logs
    carry as ``qp`` (a process id for qmail-queue; the message number where no process was run)."""

    number: int
    qp: int


class IIncomingMessage(Interface):
    """A message on its way into the queue. Nothing of it counts before :meth:`commit` has fired."""

    def write(data: bytes) -> Deferred[None] | None:
        """Append `data` to the message (LF line ends).

        Returns None when more may be written at once, else a Deferred that fires when the disk has caught up; the
        writer must wait for it (back-pressure). A disk error is kept and reported by :meth:`commit`.
        """

    def commit(envelope: Envelope) -> Deferred[Accepted]:
        """Make message and envelope durable, directory entries included.

        Fires with :class:`Accepted` when both survive a crash, else errbacks with :class:`QueueError` and leaves
        nothing that would be delivered; with :class:`AnswerLost` when that is not known. At most once, and not after
        :meth:`abort`.
        """

    def abort() -> None:
        """Forget the message; what was written so far is removed. Harmless after commit or abort."""


@attrs.frozen
class Preprocessed:
    """A message that went from todo to info/local/remote (spec/qmail.md §9.4)."""

    number: int
    size: int  # octets of the mess file
    sender: bytes  # as stored, VERP suffix included
    qp: int  # the envelope's p record
    uid: int  # the envelope's u record
    birth: float  # mtime of the info file, seconds since the epoch
    channels: frozenset[str]  # those of "local" and "remote" that have recipients


@attrs.frozen
class QueuedMessage:
    """A preprocessed message found at start-up. `due` maps each channel that still has a file to its due time."""

    number: int
    due: dict[str, float]


@attrs.frozen
class MessageInfo:
    """What info/ knows of a message: the stored sender, its birth (seconds since the epoch), and what was asked for."""

    sender: bytes
    birth: float
    asked: Kept | None = None


@attrs.frozen
class RecipientRecord:
    """One record of local/N or remote/N: where its mark byte lies, whether it is done, the rewritten address."""

    offset: int
    done: bool
    address: bytes


class IQueueEntrance(Interface):
    """Where servers put messages: the queue itself, or the way to a queue in another process."""

    def begin(origin: Origin) -> IIncomingMessage:
        """Start to accept a message; the queue adds its own Received line (spec/qmail.md §6.2)."""


class IQueue(IQueueEntrance):
    """The store of accepted messages. The queue manager knows the queue by this alone (design §4).

    A message is a number N. ``channel`` is ``"local"`` or ``"remote"``. Methods that return a Deferred errback with
    OSError when the disk fails; the caller tries again later.
    """

    split = Attribute("int: the number of subdirectories of mess, info, local, remote, as paths in warnings show it")

    def on_todo(callback: Callable[[], None]) -> None:
        """Call `callback` in the reactor thread whenever todo/ may hold something new: after a commit of our own, and
        when a foreign program pulls lock/trigger."""

    def todo() -> Deferred[list[int]]:
        """The numbers in todo/, accepted but not yet preprocessed."""

    def preprocess(
        numbers: list[int], route: Callable[[bytes], tuple[str, bytes]]
    ) -> Deferred[list[Preprocessed | tuple[int, str]]]:
        """Move messages from todo to info/local/remote, durably (spec/qmail.md §9.4).

        `route` rewrites one envelope recipient to (channel, address); it is pure and may be called in a thread.
        The answer has one entry per number, in order: a :class:`Preprocessed`, or (number, warning text in the words
        of §9.7) for one that failed and stays in todo.
        """

    def scan() -> Iterable[Deferred[list[QueuedMessage]]]:
        """The preprocessed messages, a bounded batch at a time, messages that still have a todo file left out.

        Iterate and wait for each Deferred before the next; for start-up (spec/qmail.md §9.1). One that fails with
        OSError has lost nothing: a later one tries again what it could not.
        """

    def info(number: int) -> Deferred[MessageInfo]:
        """Sender and birth of a preprocessed message."""

    def recipients(number: int, channel: str, offset: int, limit: int) -> Deferred[tuple[list[RecipientRecord], int]]:
        """At most `limit` records of the channel file from byte `offset`, and the offset where the next ones start.

        An empty list means the end of the file. ValueError for a record that is neither T nor D.
        """

    def open(number: int) -> Deferred[int]:
        """A read-only, seekable, close-on-exec descriptor of the message. The caller owns and closes it."""

    def mark(number: int, channel: str, offset: int) -> Deferred[None]:
        """Mark the record at `offset` as done."""

    def postpone(number: int, channel: str, due: float) -> Deferred[None]:
        """Record when the channel file is due next (its mtime, seconds since the epoch)."""

    def postpone_all(channel: str, times: list[tuple[int, float]]) -> Deferred[list[int]]:
        """:meth:`postpone` for many messages (number, due); those for which the disk has failed."""

    def finish_channel(number: int, channel: str) -> Deferred[None]:
        """Remove the channel file: every recipient in it is done."""

    def append_bounce(number: int, paragraph: bytes) -> Deferred[None]:
        """Append a recipient paragraph to bounce/N."""

    def bounce(number: int) -> Deferred[bytes | None]:
        """The contents of bounce/N, or None when there is none."""

    def discard_bounce(number: int) -> Deferred[None]:
        """Remove bounce/N, once its notice is queued."""

    def finish(number: int) -> Deferred[None]:
        """Remove a message that has no channel file and no bounce left (spec/qmail.md §9.6): info, then mess."""

    def settle(number: int) -> None:
        """The message will stay for a while, as a try has left some recipient: whoever keeps fresh messages elsewhere
        may bring it to where it rests. Nothing that is promised depends on it."""

    def collect_garbage() -> Deferred[None]:
        """One sweep over the remains of crashed accepts (spec/qmail.md §5.4, §9.8)."""

    def lock() -> None:
        """Take lock/sendmutex. BlockingIOError when another queue manager has it, OSError when it cannot be opened."""


@attrs.frozen
class Delivery:
    """One message to one recipient, as a spawner gets it (spec/qmail.md §11.1).

    `fd` is the message, read-only and seekable; whoever takes the Delivery owns the descriptor and closes it.
    `siblings` is a hint: how many deliveries that can share something with this one (remote: of the message, a
    transaction; local: of any message, a flush) may be under way soon, itself included. 1 says that it waits for none.
    `asked_mail` and `asked` are the parameters of message and recipient (RFC 3461) for a server that knows them, and
    for a forward.
    """

    number: int
    fd: int
    sender: bytes
    recipient: bytes
    siblings: int = 1
    asked_mail: bytes = b""
    asked: bytes = b""


class ISpawner(Interface):
    """Carries out the deliveries of one channel."""

    limit = Attribute("int: the most deliveries that it runs at once, 1 to 255")

    def deliver(delivery: Delivery) -> Deferred[Report]:
        """Try once. Always fires with a Report; an unexpected error is a deferral, never a failure."""

    def stop() -> Deferred[None]:
        """Take nothing new; fires when what was running has ended."""


@attrs.frozen
class Answer:
    """A DNS answer.

    `status` is ``"ok"``, ``"nodata"`` (the name exists, this type does not) or ``"nxdomain"``. `records` depends on
    the question. `authenticated` is the resolver's AD bit. `ttl` is in seconds.
    """

    status: str
    records: tuple[object, ...]
    authenticated: bool = False
    ttl: int = 0


class DNSTemporaryError(Exception):
    """The question got no usable answer now (timeout, SERVFAIL, REFUSED, garbage). `args[0]` says which."""


class IResolver(Interface):
    """Asks the DNS, never a hosts file. Every method errbacks with DNSTemporaryError when there is no answer now.

    Names are bytes without a trailing dot; a CNAME is followed by the implementation.
    """

    def mx(name: bytes) -> Deferred[Answer]:
        """records: ``(preference: int, exchange: bytes)`` pairs; the null MX (RFC 7505) has the exchange ``b""``."""

    def addresses(name: bytes) -> Deferred[Answer]:
        """records: IPv4 and IPv6 addresses as str, IPv4 first, from A and AAAA asked together.

        An answer of one family is enough; a temporary failure of one family counts only when the other has none.
        """

    def a(name: bytes) -> Deferred[Answer]:
        """records: IPv4 addresses as str, from A alone: what lists of addresses answer with."""

    def txt(name: bytes) -> Deferred[Answer]:
        """records: one bytes value per TXT record, its strings joined."""

    def ptr(address: str) -> Deferred[Answer]:
        """records: names (bytes) for an IPv4 or IPv6 address."""

    def tlsa(name: bytes) -> Deferred[Answer]:
        """records: ``(usage, selector, matching type, data)``; `name` includes ``_port._tcp.``."""

    def local() -> bool:
        """Whether all servers that would be asked now are on this host: nobody can forge their AD bit on the way."""
