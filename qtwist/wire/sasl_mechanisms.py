"""The SASL mechanisms that there are, and the part of an engine that carries their dialogues: SMTP's and POP3's."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar

import attrs

from qtwist.wire.sasl import (
    UNKNOWN,
    Certificate,
    Channel,
    Claim,
    CramMD5,
    Exchange,
    External,
    Login,
    Plain,
    SaltWanted,
    SASLError,
    Step,
)
from qtwist.wire.sasl_scram import Scram, ScramPlus

SCRAM_PLUS = b"SCRAM-SHA-256-PLUS"
SCRAM = b"SCRAM-SHA-256"
EXTERNAL = b"EXTERNAL"
CRAM_MD5 = b"CRAM-MD5"

#: The mechanisms by their names, those first that give least away.
MECHANISMS: dict[bytes, type[Exchange]] = {
    SCRAM_PLUS: ScramPlus,
    SCRAM: Scram,
    EXTERNAL: External,
    CRAM_MD5: CramMD5,
    b"PLAIN": Plain,
    b"LOGIN": Login,
}

#: Those that work wherever a name and a password can be checked.
BY_PASSWORD = (b"PLAIN", b"LOGIN")

FOREIGN = "for somebody else"

E = TypeVar("E")


def offered(working: Collection[bytes], *, bound: bool, certified: bool) -> tuple[bytes, ...]:
    """What is offered on a connection, of the mechanisms that are `working` for the users: `bound` says whether there
    is a channel to bind to, `certified` whether the client has shown a certificate that is believed."""
    names = set(working)
    if bound and SCRAM in names:
        names.add(SCRAM_PLUS)
    if not certified:
        names.discard(EXTERNAL)
    return tuple(name for name in MECHANISMS if name in names)


def exchange(mechanism: bytes, channel: Channel | None = None) -> Exchange:
    """A new exchange by `mechanism`, in any letter case; SASLError(UNKNOWN) when there is no such one."""
    kind = MECHANISMS.get(mechanism.upper())
    if kind is None:
        raise SASLError(UNKNOWN)
    return kind(channel or Channel())


@attrs.frozen
class Claimed:
    """A question: is the claim right? `mechanism` is for the log.

    A Certificate is a claim to the name that it has: the shell knows what was shown.

    Answered by the engine's words for yes and no, or by :meth:`Authenticating.confirm`, after which Confirmed follows
    unless the client goes back on it.
    """

    claim: Claim
    mechanism: str


@attrs.frozen
class Confirmed:
    """A question: the client has seen the signature. Answered as Claimed."""


class Authenticating:
    """What an engine needs to speak SASL. The engine has `_ask`, `_challenge` and `_auth_failed`; it calls
    :meth:`_auth_begin` at AUTH, and hands every line to :meth:`_auth_line` while `_in_auth` is true."""

    #: Set by the shell where the mechanisms need to know more than nothing.
    channel = Channel()

    _exchange: Exchange | None = None
    _in_auth = False
    _confirming = False
    _mechanism = ""

    def _ask(self, question: E) -> E:
        raise NotImplementedError

    def _answered(self, kind: type) -> Any:
        raise NotImplementedError

    def _challenge(self, text: bytes) -> None:
        """Send a challenge, in base64."""
        raise NotImplementedError

    def _auth_failed(self, kind: str) -> None:
        """Say why the exchange is over: a SASLError's kind, or FOREIGN."""
        raise NotImplementedError

    def salted(self, salt: bytes, iterations: int) -> None:
        """Answer SaltWanted."""
        self._answered(SaltWanted)
        assert self._exchange is not None
        self._in_auth = True
        self._challenge(self._exchange.salted(salt, iterations))

    def confirm(self, signature: bytes) -> None:
        """Answer Claimed: it is right, and here is what proves us to the client. Confirmed follows."""
        self._answered(Claimed)
        assert self._exchange is not None
        self._in_auth = self._confirming = True
        self._challenge(self._exchange.confirm(signature))

    def _auth_begin(self, mechanism: bytes, initial: bytes | None) -> SaltWanted | Claimed | Confirmed | None:
        """AUTH with a mechanism that was offered, and its initial response where there is one."""
        self._exchange = one = exchange(mechanism, self.channel)
        self._mechanism = mechanism.upper().decode("ascii")
        self._confirming = False
        return self._auth_step(lambda: one.begin(initial))

    def _auth_line(self, line: bytes) -> SaltWanted | Claimed | Confirmed | None:
        one = self._exchange
        assert one is not None
        return self._auth_step(lambda: one.respond(line))

    def _auth_step(self, step: Callable[[], Step]) -> SaltWanted | Claimed | Confirmed | None:
        self._in_auth = False
        try:
            result = step()
        except SASLError as error:
            self._auth_failed(error.kind)
            return None
        if isinstance(result, bytes):
            self._in_auth = True
            self._challenge(result)
            return None
        if isinstance(result, SaltWanted):
            return self._ask(result)
        if self._confirming:
            return self._ask(Confirmed())
        if not isinstance(result, Certificate) and result.authzid not in (b"", result.username):
            self._auth_failed(FOREIGN)
            return None
        return self._ask(Claimed(result, self._mechanism))
