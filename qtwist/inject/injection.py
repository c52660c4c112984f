"""One message on its way into the queue: its header as it will be, its sender and its recipients (spec/qmail.md §19).

It must not know files, clocks, processes, or the environment of this one: what it needs of them it is given.
"""

from __future__ import annotations

from qtwist.inject import fields
from qtwist.inject.addresses import Completion, rewrite_field
from qtwist.inject.tokens import (
    AT,
    ATOM,
    COLON,
    COMMENT,
    LEFT,
    QUOTED,
    RIGHT,
    SyntaxTrouble,
    parse,
    unparse,
    unquote,
)
from qtwist.mail.dates import rfc822_date
from qtwist.mail.domains import ascii_key
from qtwist.mail.quoting import needs_quotes, quote2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from qtwist.inject.tokens import Tokens

_NOT_SHOWN = b"Cc: recipient list not shown: ;\n"
_VERP = b"-@[]"


class InjectionError(Exception):
    """A message that cannot be sent as it is (exit code 100). ``args[0]`` says why, as bytes, perhaps in two lines."""


class Settings:
    """Who sends a message, and by which rules.

    `environ` is the environment, `control` gives the first line of a control file or its default, `followup` are the
    addresses of the file $QMAILMFTFILE, by :func:`ascii_key`. InjectionError when a host name cannot be read as one.
    """

    def __init__(
        self,
        environ: Mapping[bytes, bytes],
        control: Callable[[str], bytes],
        followup: Collection[bytes] = (),
    ) -> None:
        def first(*names: bytes) -> bytes | None:
            return next((environ[name] for name in names if name in environ), None)

        def host(name: str) -> bytes:
            chosen = environ.get(b"QMAIL" + name.upper().encode())
            return control(name) if chosen is None else chosen

        self.flags = environ.get(b"QMAILINJECT", b"")
        self.host = first(b"QMAILHOST", b"MAILHOST")
        self.sender_host = environ.get(b"QMAILSHOST", self.host)
        user = first(b"QMAILUSER", b"MAILUSER", b"USER", b"LOGNAME")
        self.user = b"anonymous" if user is None else user
        self.sender_user = environ.get(b"QMAILSUSER", self.user)
        self.name = first(b"QMAILNAME", b"MAILNAME", b"NAME")
        self.idhost = _one_line(host("idhost"))
        self.followup = followup
        hosts = [host(name) for name in ("defaulthost", "defaultdomain", "plusdomain")]
        try:
            self.complete = Completion(*hosts)
        except SyntaxTrouble as error:
            raise InjectionError(b"unable to parse a default host: " + b", ".join(hosts)) from error

    def has(self, flag: bytes) -> bool:
        """Is this letter in $QMAILINJECT?"""
        return flag in self.flags


class Injection:
    """Takes recipients and header fields, then makes the header. `sender` is None until it is known.

    `seconds` (since the epoch) and `pid` go into dates and identifiers. `sender`, when given, is that of option -f.
    """

    def __init__(self, settings: Settings, seconds: int, pid: int, sender: bytes | None = None) -> None:
        self.settings = settings
        self.sender = None if sender is None else self._argument(sender)
        self._seconds = seconds
        self._pid = pid
        self._given: list[bytes] = []
        self._found: list[bytes] = []
        self._found_resent: list[bytes] = []
        self._public: list[bytes] = []
        self._seen: set[bytes] = set()
        self._fields: list[bytes] = []
        deleted = ((b"f", b"from"), (b"i", b"message-id"), (b"s", b"return-path"))
        self._deleted = frozenset(name for flag, name in deleted if settings.has(flag))

    def add_recipient(self, address: bytes) -> None:
        """Take a recipient that was given as an argument. InjectionError when it is no address."""
        self._given.append(self._argument(address))

    def add_field(self, field: bytes) -> None:
        """Take a header field with its line ends. InjectionError when it must be an address and is none."""
        name = fields.name_of(field)
        if name in self._deleted:
            return
        self._seen.add(name)
        action = fields.action(name)
        if action != fields.NOTED:
            try:
                field = unparse(rewrite_field(parse(field), self._rewriter(action)))
            except SyntaxTrouble as error:
                if action not in fields.LENIENT:
                    raise InjectionError(b"unable to parse this line:\n" + field.rstrip(b"\n")) from error
        if name not in fields.DROPPED:
            self._fields.append(field)

    def header(self) -> bytes:
        """The whole header, without an empty line behind it. Call it once, after all fields; it settles `sender`."""
        seen = self._seen
        added = []
        resent = not seen.isdisjoint(fields.RESENT)
        prefix, known_by = (b"Resent-", b"resent-") if resent else (b"", b"")
        if self.sender is None:
            self._default_sender()
        if known_by + b"date" not in seen:
            added.append(prefix + b"Date: %b\n" % rfc822_date(self._seconds))
        if known_by + b"message-id" not in seen:
            identity = fields.message_id(self._seconds, self._pid, self.settings.idhost)
            added.append(prefix + b"Message-ID: %b\n" % identity)
        if known_by + b"from" not in seen:
            added.append(prefix + self._default_from())
        if known_by + b"to" not in seen and known_by + b"cc" not in seen:
            added.append(prefix + _NOT_SHOWN)
        if not resent:
            added.append(self._followup())
        return b"".join(added + self._fields)

    def recipients(self, from_header: bool) -> list[bytes]:
        """All recipients, those given as arguments first; without those of the header unless `from_header`."""
        if not from_header:
            return self._given
        resent = not self._seen.isdisjoint(fields.RESENT)
        return self._given + (self._found_resent if resent else self._found)

    def return_path(self) -> bytes:
        """The field that shows the sender where nothing is queued."""
        return b"Return-Path: <%b>\n" % _one_line(quote2(self.sender or b""))

    # Inside

    def _argument(self, address: bytes) -> bytes:
        try:
            return unquote(self.settings.complete(parse(quote2(address))))
        except SyntaxTrouble as error:
            raise InjectionError(b"unable to parse address: " + address) from error

    def _rewriter(self, action: int) -> Callable[[Tokens], Tokens]:
        """What completes an address and notes it where the field says so."""
        complete = self.settings.complete
        if action == fields.REWRITTEN:
            return complete
        if action == fields.SENDER:
            return self._note_sender
        lists = {
            fields.RECIPIENTS: (self._found,),
            fields.PUBLIC_RECIPIENTS: (self._found, self._public),
            fields.RESENT_RECIPIENTS: (self._found_resent,),
        }[action]

        def rewrite(address: Tokens) -> Tokens:
            address = complete(address)
            plain = unquote(address)
            for addresses in lists:
                addresses.append(plain)
            return address

        return rewrite

    def _note_sender(self, address: Tokens) -> Tokens:
        address = self.settings.complete(address)
        if self.sender is None:
            self.sender = unquote(address) + (_VERP if self.settings.has(b"r") else b"")
        return address

    def _default_sender(self) -> None:
        settings = self.settings
        user = settings.sender_user
        if settings.has(b"m"):
            user += b"-%d.%d" % (self._seconds, self._pid)
        if settings.has(b"r"):
            user += b"-"
        tokens: Tokens = [(ATOM, b"Return-Path"), (COLON, b""), (QUOTED, user)]
        if settings.sender_host is not None:
            tokens += ((AT, b""), (ATOM, settings.sender_host))
        self._made(tokens, self._note_sender)

    def _default_from(self) -> bytes:
        settings = self.settings
        address: Tokens = [(QUOTED if needs_quotes(settings.user) else ATOM, settings.user)]
        if settings.host is not None:
            address += ((AT, b""), (ATOM, settings.host))
        if settings.name is not None:
            if settings.has(b"c"):
                address.append((COMMENT, settings.name))
            else:
                address = [(QUOTED, settings.name), (LEFT, b""), *address, (RIGHT, b"")]
        return self._made([(ATOM, b"From"), (COLON, b""), *address], settings.complete)

    def _made(self, tokens: Tokens, rewrite: Callable[[Tokens], Tokens]) -> bytes:
        """A field of our own. It is parsed anew, for words of the environment may hold dots and more."""
        text = unparse(tokens)
        try:
            return unparse(rewrite_field(parse(text), rewrite))
        except SyntaxTrouble as error:
            raise InjectionError(b"unable to parse this line:\n" + text.rstrip(b"\n")) from error

    def _followup(self) -> bytes:
        """Mail-Followup-To where a mailing list of the user is addressed (§19.5), else nothing."""
        listed = self.settings.followup
        if not listed or b"mail-followup-to" in self._seen or all(ascii_key(to) not in listed for to in self._public):
            return b""
        return b"Mail-Followup-To: " + b",\n  ".join(_one_line(quote2(to)) for to in reversed(self._public)) + b"\n"


def _one_line(text: bytes) -> bytes:
    """`text` with blanks for line ends: it must not add fields to a header."""
    return text.replace(b"\r", b" ").replace(b"\n", b" ")
